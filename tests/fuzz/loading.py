"""Loads mutated models in processes with limits; each must end in a result or in a `HastenError`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests import processes
from tests.fuzz.mutate import mutated

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
    from hasten import frontends
    from hasten.backends.native import lower_parts, plan_graph
    from hasten.codegen.schedule import DEFAULTS
    from hasten.codegen.weights import Weights
    from hasten.errors import HastenError
    from hasten.loops.dtypes import DType
    from hasten.passes.pipeline import optimize_graph
    from hasten.target import Target

    target = Target.named("x86-64-v3")
    for item in items:
        try:
            model = frontends.load(mutated(item.model, item.seed))
            optimize_graph(model)
            planned = plan_graph(model, "skip")
            lower_parts(planned.native, target, DEFAULTS, DType.F32, Weights())
            yield ""
        except HastenError:
            yield ""
        except BaseException as error:  # noqa: BLE001 - any other exception is what is looked for
            yield processes.described(error)


def findings(items: Sequence[Item]) -> list[Finding]:
    """What must not happen, by seed."""
    outcomes = processes.run(load, items, LIMITS)
    lost = "the process died, or took more than 10 s or 2 GB"
    return [
        Finding(i.case, i.seed, lost if o is None else o)
        for i, o in zip(items, outcomes, strict=True)
        if o is None or o
    ]
