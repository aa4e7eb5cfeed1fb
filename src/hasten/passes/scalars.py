"""Tests of constants, for patterns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts
from hasten.passes.rule import Const


def scalar(name: str = "") -> Const:
    """A constant of one floating-point element."""
    return Const(name, lambda array: array.size == 1 and array.dtype.kind == "f")


def number(expected: float, tolerance: float = 1e-3) -> Const:
    """A constant of one element, near `expected` relative to its size."""
    return Const("", _near(expected, tolerance))


def _near(expected: float, tolerance: float) -> Callable[[np.ndarray], bool]:
    def test(array: np.ndarray) -> bool:
        if array.size != 1 or array.dtype.kind not in "fiu":
            return False
        return abs(float(array.reshape(-1)[0]) - expected) <= tolerance * abs(expected)

    return test


def wider(facts: Facts, output: ir.Value, x: ir.Value) -> str | None:
    """Why a function of `x` alone cannot stand for `output`: constants of one element can add dimensions."""
    before, after = facts.dims(x), facts.dims(output)
    if before is None or after is None or len(before) == len(after):
        return None
    return f"constants make {len(after)} dimensions of {len(before)}"


def scalar_value(value: ir.Value | None, *, rank: int | None = None) -> float | None:
    """The number in a constant of one element, of rank at most `rank`; None for all else."""
    if value is None:
        return None
    if value.const_value is not None and value.const_value.size != 1:
        return None
    array = constant_value(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    if rank is not None and array.ndim > rank:
        return None
    return float(array.reshape(-1)[0])
