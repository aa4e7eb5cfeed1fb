"""Whole models with schedules that tuning could choose: the answers do not depend on which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import models
from hasten import frontends
from hasten.backends.native import Options, compile_graph
from hasten.codegen.algorithm import Algorithm
from hasten.codegen.schedule import Schedule, Schedules, candidate_schedules
from hasten.loops.dtypes import DType
from hasten.loops.program import Program
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import Session, open_session
from hasten.search.tune import tasks_of
from hasten.target import Target, native


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def with_schedules(model: ir.Model, seed: int | None, folder: Path) -> tuple[Session, list[Schedule]]:
    """The model with schedules that a seed draws for each shape of a product, or with the defaults.

    Winograd's algorithms are left out: they are other sums.
    """
    used: list[Schedule] = []

    def choose(programs: Sequence[Program], target: Target) -> Schedules:
        drawn, chosen = random.Random(seed), {}
        for task in tasks_of(programs, target, {}):
            every = [s for s in candidate_schedules(task.shape, target) if s.algorithm is Algorithm.DIRECT]
            chosen[str(task.shape)] = every[0] if seed is None else drawn.choice(every)
        used.extend(chosen.values())
        return Schedules(chosen)

    how = Options((native(),), 2, DType.F32, folder, choose=choose)
    payload = compile_graph(model, how, {}, "test")
    write_artifact(folder / f"{seed}.hasten", payload.manifest, payload.members)
    return open_session(folder / f"{seed}.hasten"), used


def sentences() -> list[dict[str, np.ndarray]]:
    texts = models.news(40)
    return [models.sentence_inputs(texts[:count]) for count in (1, 3)] + [models.sentence_inputs(["yes"])]


def pictures() -> list[dict[str, np.ndarray]]:
    return [{"pixels": models.labelled_pictures()[0][:count]} for count in (1, 2)]


@pytest.mark.parametrize("name", ["MiniLM", "EfficientNet-lite0"])
def test_no_schedule_changes_a_bit(name: str, cache: Path) -> None:
    source, inputs = {
        "MiniLM": (models.minilm, sentences),
        "EfficientNet-lite0": (models.efficientnet_lite0_onnx, pictures),
    }[name]
    model = frontends.load(source())
    optimize_graph(model)
    default, usual = with_schedules(model, None, cache)
    expected = [default.run(feeds) for feeds in inputs()]
    for seed in (0, 1):
        other, drawn = with_schedules(model, seed, cache)
        assert sum(a != b for a, b in zip(usual, drawn, strict=True)) > len(usual) // 2
        for feeds, right in zip(inputs(), expected, strict=True):
            found = other.run(feeds)
            for output, array in right.items():
                np.testing.assert_array_equal(found[output], array, output)
