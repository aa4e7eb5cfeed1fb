"""A compiled session timed against its source in ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hasten
from benchmarks.models import Inputs
from hasten.errors import EngineError
from hasten.search.engines import HASTEN, ONNXRUNTIME
from hasten.search.measure import Contestant, Plan, Spread, measure
from hasten.search.measure_case import files_of
from hasten.target import cores


def ratio_to_onnxruntime(
    session: hasten.Session, model: Path, feeds: Inputs, plan: Plan | None = None
) -> Spread:
    """ONNX Runtime's time in float32 divided by the session's, within the same rounds.

    Args:
        session: what was compiled.
        model: the ONNX file that it comes from.
        feeds: inputs of both.
        plan: how much to measure; by default all cores in 15 rounds.

    Raises:
        EngineError: one of them cannot run the inputs.
    """
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        path = Path(folder) / "chosen.hasten"
        session.save(path)
        contestants = [
            Contestant(HASTEN, path, [path]),
            Contestant(ONNXRUNTIME, model, files_of(model)),
        ]
        found = measure(contestants, feeds, plan or Plan(cores(), openings=1))
    for engine, reason in found.failures.items():
        raise EngineError(f"{engine}: {reason}")
    own, other = (next(r for r in found.results if r.engine == c.engine.name) for c in contestants)
    ratio = other.ratio_to(own)
    assert ratio is not None
    return ratio
