"""Damaged artifacts and wrong inputs: opening and running end in a result or in a `HastenError`."""

from __future__ import annotations

import copy
import json
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from tests import processes

from hasten.backends.batch import compile_batch
from hasten.backends.native import Payload, plan_graph
from hasten.codegen.toolchain import default_cache
from hasten.errors import HastenError, HostOperatorWarning
from hasten.frontends import load
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import Session, open_session
from hasten.target import Target

LIMITS = processes.Limits(seconds=20, first=240, bytes=6 << 30)

MODEL = """<ir_version: 10, opset_import: ["": 21]> g
(float[n, 4] x, int64[m] ids, float[k, k] s,
bool[n] keep, float16[2] h)
=> (float[n, 4] y, float[m, 4] z, float[p, p] w, float[n, q] e, float16[2] g, float size)
<float[8, 4] t = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
25, 26, 27, 28, 29, 30, 31}, float[4, 4] v = {1, 0, 2, 0, 3, 0, 1, 0, 5, 0, 1, 0, 2, 0, 1, 1},
int64[1] flat = {-1}>
{
    a = MatMul (x, v)
    y = Softmax <axis = -1> (a)
    z = Gather (t, ids)
    f = Reshape (s, flat)
    c = MatMul (s, s)
    w = Relu (c)
    d = Transpose <perm = [1, 0]> (x)
    e = MatMul (x, d)
    size = Det (c)
    g = Neg (h)
}"""


@dataclass(frozen=True)
class Item:
    """A seed, and what it damages: "bytes", "manifest" or "inputs"."""

    kind: str
    seed: int


@dataclass(frozen=True)
class Finding:
    """What must not happen, and where."""

    item: Item
    problem: str


def payload() -> Payload:
    """The artifact that is damaged: compiled parts, a host step, and all kinds of inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HostOperatorWarning)
        model = load(onnx.parser.parse_model(MODEL))
        optimize_graph(model)
        planned = plan_graph(model, "skip")
    (made,) = compile_batch([planned], Target.named("native"), "0", cache=default_cache())
    return made


def good_feeds(r: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs that fit."""
    n, m, k = (int(i) for i in r.integers(0, 6, 3))
    return {
        "x": r.standard_normal((n, 4)).astype(np.float32),
        "ids": r.integers(0, 8, m),
        "s": r.standard_normal((k, k)).astype(np.float32),
        "keep": np.ones(n, np.bool_),
        "h": np.ones(2, np.float16),
    }


def attempt(items: Sequence[Item]) -> Iterator[str]:
    """Does what each item says; gives "" where that ended as it must, else what happened."""
    made = payload()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.hasten"
        write_artifact(path, made.manifest, made.members)
        whole = path.read_bytes()
        session = open_session(path, threads=2)
        for item in items:
            try:
                if item.kind == "inputs":
                    _run_wrongly(session, item.seed)
                elif item.kind == "bytes":
                    path.write_bytes(damaged(whole, random.Random(item.seed)))
                    _open_and_run(path, item.seed)
                else:
                    write_artifact(path, edited(made.manifest, random.Random(item.seed)), made.members)
                    _open_and_run(path, item.seed)
                yield ""
            except HastenError:
                yield ""
            except BaseException as error:  # noqa: BLE001 - any other exception is what is looked for
                yield processes.described(error)


def _open_and_run(path: Path, seed: int) -> None:
    feeds = good_feeds(np.random.default_rng(seed))
    with open_session(path, threads=1) as session:
        session.run({info.name: feeds[info.name] for info in session.inputs if info.name in feeds})


def _run_wrongly(session: Session, seed: int) -> None:
    r = np.random.default_rng(seed)
    feeds: dict[Any, Any] = dict(good_feeds(r))
    for name in r.permutation(list(feeds))[: int(r.integers(1, 3))]:
        INPUT_FAULTS[int(r.integers(len(INPUT_FAULTS)))](feeds, str(name), r)
    session.run(feeds)
    if seed % 50 == 0:
        check = good_feeds(r)
        found = session.run(check)["y"]
        assert np.allclose(found.sum(-1), 1), "a good run after a bad one differs"


def damaged(data: bytes, r: random.Random) -> bytes:
    """A file cut short, or with bytes changed, moved, lost or added."""
    kind = r.randrange(6)
    out = bytearray(data)
    if kind == 0:
        return data[: r.randrange(len(data))]
    # The directory and the manifest lie at the end, where there is most to misread.
    low = 0 if r.random() < 0.5 else max(0, len(data) - 6000)
    at = r.randrange(low, len(data))
    if kind == 1:
        for _ in range(r.choice([1, 1, 8])):
            out[r.randrange(low, len(data))] ^= 1 << r.randrange(8)
    elif kind == 2:
        out[at : at + r.choice([1, 4, 64])] = bytes(r.randrange(256) for _ in range(r.choice([1, 4, 64])))
    elif kind == 3:
        del out[at : at + r.choice([1, 100, 5000])]
    elif kind == 4:
        out[at : at + 4] = r.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
    else:
        out += bytes(r.randrange(1, 5000))
    return bytes(out)


STRANGE = (
    None,
    "",
    "?",
    -1,
    0,
    1 << 31,
    1 << 63,
    1 << 70,
    0.5,
    True,
    [],
    {},
    [[]],
    "object",
    "float33",
    "\0",
)

TRUSTED = frozenset({"input_shapes", "output_ranks", "output_dtypes", "input_dtypes", "part", "sizes"})
"""What the manifest says of compiled code is true where it can be: it and the code are one program, and who
writes another checksum into a file could write another program. Only impossible values are tried there."""


def edited(manifest: Mapping[str, Any], r: random.Random) -> dict[str, Any]:
    """A manifest with one to three of its values changed, lost or repeated."""
    data = copy.deepcopy(dict(json.loads(json.dumps(manifest))))
    for _ in range(r.choice([1, 1, 2, 3])):
        holder: Any = data
        key: Any = r.choice(list(data))
        trusted = False
        while isinstance(holder[key], dict | list) and holder[key] and r.random() < 0.8:
            holder = holder[key]
            key = r.choice(list(holder)) if isinstance(holder, dict) else r.randrange(len(holder))
            trusted = trusted or key in TRUSTED
        kind = r.randrange(3)
        if kind == 0 and not trusted:
            del holder[key]
        elif kind == 1 and isinstance(holder, list) and not trusted:
            holder.insert(r.randrange(len(holder) + 1), copy.deepcopy(r.choice(holder)))
        else:
            options = [s for s in STRANGE if not (trusted and isinstance(s, int | str))]
            holder[key] = copy.deepcopy(r.choice([*options, -1, 1 << 70] if trusted else options))
    return data


Fault = Callable[[dict[Any, Any], str, np.random.Generator], None]


def _other_type(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    kinds = ("f8", "f2", "i4", "u8", "c8", "O", "U3", "S2", "M8[s]", "m8[s]", "?", ">f4", "V4", "f4,i4")
    with np.errstate(all="ignore"):
        f[name] = np.zeros(f[name].shape, kinds[int(r.integers(len(kinds)))])


def _other_shape(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    shape = tuple(int(i) for i in r.choice([0, 1, 2, 4, 7, 300], int(r.integers(0, 6))))
    f[name] = np.zeros(shape, f[name].dtype) if np.prod(shape) < 1e6 else np.zeros(3)


def _no_array(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    values = (
        None,
        "text",
        b"x",
        [],
        [[1, 2], [3]],
        {},
        object(),
        1e400,
        10**400,
        [None],
        float,
        [np.zeros(2)],
        iter(()),
    )
    f[name] = values[int(r.integers(len(values)))]


def _other_names(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    key = (0, None, "", "X", ("x",), "x\0", 1.5)[int(r.integers(7))]
    f[key] = f.pop(name) if r.random() < 0.5 else f[name]


def _strided(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    a = f[name]
    big = np.zeros(tuple(2 * n + 1 for n in a.shape), a.dtype)
    view = big[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    f[name] = view[::-1] if r.random() < 0.5 and a.ndim else np.asfortranarray(a)


def _odd_address(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    a = f[name]
    f[name] = np.frombuffer(b"\1" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)


def _odd_numbers(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    a = f[name].copy()
    values = (np.nan, np.inf, -np.inf, 3e38) if a.dtype.kind == "f" else (-(2**63), 2**63 - 1, 8, -9, -8)
    if a.size and a.dtype.kind != "b":
        with np.errstate(all="ignore"):
            a.reshape(-1)[int(r.integers(a.size))] = values[int(r.integers(len(values)))]
    f[name] = a


def _huge(f: dict[Any, Any], name: str, r: np.random.Generator) -> None:
    """Shapes of arrays that take no memory: repeated by a stride of 0, or of no elements."""
    n = 2 ** int(r.choice([20, 22, 36, 40, 50, 57]))  # a copy of it fits easily, or not at all
    a = f[name]
    if r.random() < 0.5:
        shape: tuple[int, ...] = (n, *a.shape[1:]) if a.ndim > 1 else (n,)
        if name == "s":
            shape = (2**10 if n < 2**30 else 2**30,) * 2
        f[name] = np.broadcast_to(np.zeros((), a.dtype), shape)
    else:
        f[name] = np.zeros((0, min(n, 2**58)), a.dtype)


INPUT_FAULTS: tuple[Fault, ...] = (
    _other_type, _other_shape, _no_array, _other_names, _strided, _odd_address, _odd_numbers, _huge,
)  # fmt: skip


def findings(items: Sequence[Item]) -> list[Finding]:
    """What must not happen."""
    outcomes = processes.run(attempt, items, LIMITS)
    lost = "the process died, or took too much time or memory"
    return [
        Finding(i, lost if o is None else o) for i, o in zip(items, outcomes, strict=True) if o is None or o
    ]
