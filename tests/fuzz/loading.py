"""Loads mutated models in processes with limits; each must end in a result or in a `HastenError`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import processes
from tests.fuzz.mutate import SECRET, mutated

LIMITS = processes.Limits(seconds=10, first=60, bytes=4 << 30)
"""Importing maps some 2 GB of libraries, which count as address space; 2 GB are left for the model."""


@dataclass(frozen=True)
class Item:
    """A model of the suite, and the seed of its mutation."""

    case: str
    model: bytes
    seed: int


@dataclass(frozen=True)
class Finding:
    """Something that loading must not do."""

    case: str
    seed: int
    problem: str


def load(items: Sequence[Item]) -> Iterator[str]:
    """Brings each model as far as C; gives "" where that ended as it must, else what happened."""
    from hasten.errors import HastenError

    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "inside"
        folder.mkdir()
        (folder / "data.bin").write_bytes(bytes(256))
        (folder / SECRET).write_bytes(bytes(1 << 20))
        (folder / "link.bin").symlink_to(SECRET)
        os.chdir(folder)
        touched = _watched(Path(outer))
        for item in items:
            del touched[:]
            try:
                as_far_as_c(mutated(item.model, item.seed), by_path=item.seed % 2 == 0)
                yield touched[0] if touched else ""
            except HastenError:
                yield touched[0] if touched else ""
            except BaseException as error:  # noqa: BLE001 - any other exception is what is looked for
                yield processes.described(error)
        os.chdir("/")


def as_far_as_c(data: bytes, *, by_path: bool = False) -> None:
    """Loads, optimizes and lowers a model, from its bytes or from a file in the current folder."""
    from hasten import frontends
    from hasten.backends.native import lower_parts, plan_graph
    from hasten.codegen.schedule import DEFAULTS
    from hasten.codegen.weights import Weights
    from hasten.loops.dtypes import DType
    from hasten.passes.pipeline import optimize_graph
    from hasten.target import Target

    source: bytes | Path = data
    if by_path:
        source = Path("model.onnx")
        source.write_bytes(data)
    model = frontends.load(source)
    optimize_graph(model)
    planned = plan_graph(model, "skip")
    lower_parts(planned.native, Target.named("x86-64-v3"), DEFAULTS, DType.F32, Weights())


def _watched(folder: Path) -> list[str]:
    """From now on the list gets what is opened that must not be: the secret, and whatever is written."""
    touched: list[str] = []
    secret = folder / "secret.bin"

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            path, mode, flags = Path(arguments[0]), arguments[1], arguments[2]
            writes = any(c in str(mode or "") for c in "wax+") or int(str(flags or 0)) & (
                os.O_WRONLY | os.O_CREAT
            )
            where = Path(os.path.realpath(path))
            if where == secret or where == Path("/etc/passwd") or str(where).startswith("/dev/zero"):
                touched.append(f"read {path.name}")
            elif writes and path.name != "model.onnx":
                touched.append(f"wrote {path}")
        elif event in ("subprocess.Popen", "os.system", "socket.connect", "os.remove", "os.rename"):
            touched.append(event)

    sys.addaudithook(hook)
    return touched


def findings(items: Sequence[Item]) -> list[Finding]:
    """What must not happen, by seed."""
    outcomes = processes.run(load, items, LIMITS)
    lost = "the process died, or took more than 10 s or 2 GB"
    return [
        Finding(i.case, i.seed, lost if o is None else o)
        for i, o in zip(items, outcomes, strict=True)
        if o is None or o
    ]
