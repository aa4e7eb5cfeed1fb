"""ONNX's own test cases, and running them over `hasten.onnx_backend` in processes that may crash."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tests import processes

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
SKIPPED = Path(__file__).with_name("skipped.txt")
BATCH = 64
LIMITS = processes.Limits(seconds=120, first=480, bytes=8 << 30)


@dataclass(frozen=True)
class Case:
    """A model of the suite with the inputs and outputs that ONNX expects.

    Attributes:
        kind: one of `KINDS`.
        name: unique within the suite.
        model: the serialized model.
        data: pairs of inputs and expected outputs.
        rtol: relative tolerance, ONNX's.
        atol: absolute tolerance.
    """

    kind: str
    name: str
    model: bytes
    data: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]
    rtol: float
    atol: float

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def operators(self) -> str:
        """The operators of the case, or what it is part of."""
        found = dict.fromkeys(n.op_type for n in onnx.load_from_string(self.model).graph.node)
        return " ".join(found) if self.kind == "node" and len(found) == 1 else self.kind


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: its key.
        verdict: "native", "host" (right, but partly through the reference evaluator), "refused", "wrong",
            or "crashed".
        detail: the reason, or the host's operators.
    """

    case: str
    verdict: str
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict in ("native", "host")


def skipped() -> dict[str, str]:
    """Cases that are not expected to pass, and why."""
    lines = [line.split("#", 1) for line in SKIPPED.read_text("utf-8").splitlines()]
    return {name.strip(): reason[0].strip() if reason else "" for name, *reason in lines if name.strip()}


def load_cases() -> list[Case]:
    """All cases of the suite, in a stable order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases compute with NaN and infinities on purpose
        return [_case(kind, t) for kind in KINDS for t in load_model_tests(kind=kind)]


def sample(cases: Sequence[Case], one_in: int) -> list[Case]:
    """A part of the cases that stays the same from run to run and machine to machine."""
    return [c for c in cases if int(hashlib.sha256(c.key.encode()).hexdigest(), 16) % one_in == 0]


def _case(kind: str, test: Any) -> Case:
    if test.model is not None:
        model = test.model.SerializeToString()
        sets = [(tuple(map(_value, i)), tuple(map(_value, o))) for i, o in test.data_sets]
    else:
        folder = Path(test.model_dir)
        model = (folder / "model.onnx").read_bytes()
        graph = onnx.load_from_string(model).graph
        sets = []
        for data in sorted(folder.glob("test_data_set_*")):
            sets.append((_read_all(data, "input", graph.input), _read_all(data, "output", graph.output)))
    return Case(kind, test.name, model, tuple(sets), test.rtol, test.atol)


def _read_all(folder: Path, stem: str, infos: Sequence[onnx.ValueInfoProto]) -> tuple[Any, ...]:
    """The values that there are: inputs that have a default have no file."""
    paths = [folder / f"{stem}_{k}.pb" for k in range(len(infos))]
    return tuple(_read(path, info) for path, info in zip(paths, infos, strict=True) if path.exists())


def _read(path: Path, info: onnx.ValueInfoProto) -> Any:
    kinds = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    proto = kinds.get(info.type.WhichOneof("value") or "", onnx.TensorProto)()
    proto.ParseFromString(path.read_bytes())
    return _value(proto)


def _value(item: Any) -> Any:
    match item:
        case onnx.TensorProto():
            return numpy_helper.to_array(item)
        case onnx.SequenceProto():
            return numpy_helper.to_list(item)
        case onnx.OptionalProto():
            return numpy_helper.to_optional(item)
    return item


def run_cases(cases: Sequence[Case], workers: int = 2) -> Iterator[Outcome]:
    """Runs cases in processes of their own; one that dies costs the case at which it died."""
    batches = [cases[i : i + BATCH] for i in range(0, len(cases), BATCH)]
    with ThreadPoolExecutor(workers) as pool:
        for outcomes in pool.map(_run_batch, batches):
            yield from outcomes


def _run_batch(cases: Sequence[Case]) -> list[Outcome]:
    found = processes.run(evaluate, cases, LIMITS)
    lost = "the process died or did not end"
    return [o or Outcome(c.key, "crashed", lost) for c, o in zip(cases, found, strict=True)]


def evaluate(cases: Iterable[Case], opener: Callable[[Path], Any] | None = None) -> Iterator[Outcome]:
    """Compiles cases together and runs them in this process."""
    from hasten.onnx_backend import HastenRep, open_for_one_thread, prepare_all

    cases = list(cases)
    models = [onnx.load_from_string(c.model) for c in cases]
    prepared = prepare_all(models, opener=opener or open_for_one_thread)
    for case, rep in zip(cases, prepared, strict=True):
        if isinstance(rep, HastenRep):
            yield _compare(case, rep)
        else:
            yield Outcome(case.key, "refused", f"{type(rep).__name__}: {rep}")


def _compare(case: Case, rep: Any) -> Outcome:
    from hasten.errors import HastenError

    host = "; ".join(f"{node}: {reason}" for node, reason in rep.host.items())
    try:
        for inputs, expected in case.data:
            found = rep.run(list(inputs))
            with np.errstate(all="ignore"):
                Runner.assert_similar_outputs(expected, found, case.rtol, case.atol)
    except HastenError as error:
        return Outcome(case.key, "refused", f"{type(error).__name__}: {error}")
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        return Outcome(case.key, "wrong", f"{text} [host: {host}]" if host else text)
    finally:
        rep.session.close()
    return Outcome(case.key, "host" if host else "native", host)
