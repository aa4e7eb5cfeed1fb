"""Run steps one after the other: compiled parts, host operators, and the bodies of branches and loops.

Values go by name. A body reads the values of the step that has it, and writes its own beside them; what it
makes in one step of a loop is overwritten in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError
from hasten.runtime.checks import element
from hasten.runtime.foreign import ForeignRunner
from hasten.runtime.host import HostRunner
from hasten.runtime.manifest import BranchStep, ForeignStep, HostStep, LoopStep, NativeStep, Row, Step
from hasten.runtime.native import NativeRunner

Array = NDArray[Any]
Make = Callable[[NativeStep | HostStep | ForeignStep], "Runner"]
_FIRST_ROWS = 16  # rows that there is room for at first


@dataclass(frozen=True)
class BranchRunner:
    """Runs one of two bodies."""

    step: BranchStep
    bodies: Sequence[Sequence[Runner]]

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Runs the body that the condition chooses.

        Raises:
            InputError: Shapes or values do not fit.
        """
        step = self.step
        values = dict(zip(step.inputs, arrays, strict=True))
        chosen = 0 if _known(step.condition, values, step.operator, "condition") else 1
        run_steps(self.bodies[chosen], values)
        return [values[name] for name in step.bodies[chosen].outputs]


@dataclass(frozen=True)
class LoopRunner:
    """Repeats a body."""

    step: LoopStep
    bodies: Sequence[Sequence[Runner]]

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Takes steps until there have been as many as there may be, or the condition does not hold.

        Raises:
            InputError: Shapes or values do not fit.
        """
        step = self.step
        (body,), (runners,) = step.bodies, self.bodies
        values = dict(zip(step.inputs, arrays, strict=True))
        going = _known(step.condition, values, step.operator, "condition")
        count = _known(step.count, values, step.operator, "trip count")
        count = None if count is None else int(count)
        states: list[Any] = [values[name] for name in step.initial]
        rows = [_Rows(row, count, step.operator) for row in step.rows]
        true = np.array(True)  # a step is taken only if the condition holds
        done = 0
        while going and (count is None or done < count):
            values.update(zip(body.inputs, (np.array(done, np.int64), true, *states), strict=True))
            run_steps(runners, values)
            states = [values[name] for name in body.outputs[1 : 1 + len(states)]]
            for row, name in zip(rows, body.outputs[1 + len(states) :], strict=True):
                row.append(values[name])
            done += 1
            going = _known(step.goes_on, values, step.operator, "condition")
        return [*states, *(row.all(values) for row in rows)]


class _Rows:
    """Arrays of one shape, collected along a new first axis; memory is taken as it is needed."""

    def __init__(self, empty: Row, most: int | None, operator: str) -> None:
        self._empty, self._most, self._operator = empty, most, operator
        self._made: Array | None = None
        self._count = 0

    def append(self, row: Any) -> None:
        row = np.asarray(row)
        made = self._made
        if made is None or self._count == len(made):
            room = 2 * len(made) if made is not None else _FIRST_ROWS
            grown = np.empty((room if self._most is None else min(room, self._most), *row.shape), row.dtype)
            if made is not None:
                self._check(row, made)
                grown[: self._count] = made
            self._made = made = grown
        self._check(row, made)
        made[self._count] = row
        self._count += 1

    def _check(self, row: Array, made: Array) -> None:
        if row.shape != made.shape[1:]:
            raise InputError(
                f"{self._operator} gives {list(row.shape)} in step {self._count} and "
                f"{list(made.shape[1:])} in the steps before, which cannot be one array"
            )

    def all(self, values: Mapping[str, Any]) -> Array:
        """What was collected; lengths of nothing are those of these values."""
        if self._made is None:
            dtype = element(self._empty.dtype) if self._empty.dtype else np.dtype(object)
            lengths = [
                n if isinstance(n, int) else sum(np.shape(values[n[0]])[n[1] :][:1])
                for n in self._empty.shape
            ]
            return np.empty((0, *lengths), dtype)
        return self._made[: self._count]


def _known(given: Any, values: Mapping[str, Any], operator: str, what: str) -> Any:
    """A number or a flag, or what the value of that name holds."""
    if not isinstance(given, str):
        return given
    array = np.asarray(values[given])
    if array.size != 1:
        raise InputError(f"the {what} of {operator} has the shape {list(array.shape)}: give one value")
    return array.reshape(-1)[0]


Runner = NativeRunner | HostRunner | ForeignRunner | BranchRunner | LoopRunner


def make_runners(steps: Sequence[Step], make: Make) -> list[Runner]:
    """A runner for each step.

    Args:
        steps: The steps.
        make: Makes that of a step without bodies.
    """
    runners: list[Runner] = []
    for step in steps:
        if isinstance(step, BranchStep):
            runners.append(BranchRunner(step, [make_runners(body.steps, make) for body in step.bodies]))
        elif isinstance(step, LoopStep):
            runners.append(LoopRunner(step, [make_runners(body.steps, make) for body in step.bodies]))
        else:
            runners.append(make(step))
    return runners


def run_steps(runners: Sequence[Runner], values: dict[str, Any]) -> None:
    """Runs steps one after the other, and adds what they make to the values.

    Raises:
        InputError: Shapes or values do not fit.
    """
    for runner in runners:
        if isinstance(runner, NativeRunner):
            # The reference evaluator does not always keep to the types that the graph says.
            taken = [values[info.name].astype(info.dtype, copy=False) for info in runner.step.inputs]
        elif isinstance(runner, HostRunner):
            names = zip(runner.step.inputs, runner.step.input_dtypes, strict=True)
            taken = [values[n].astype(element(t), copy=False) if t else values[n] for n, t in names]
        else:
            taken = [values[name] for name in runner.step.inputs]
        values.update(zip(runner.step.outputs, runner.run(taken), strict=True))
