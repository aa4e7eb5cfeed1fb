"""Run a host step: operators that were not compiled, through ONNX's reference evaluator."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.errors import InputError, MissingDependencyError
from hasten.runtime.manifest import HostStep

_REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What operators of ONNX's reference evaluator raise where their inputs do not suit them."""


class HostRunner:
    """Runs a host step.

    Attributes:
        step: The step.
    """

    def __init__(self, step: HostStep, model: memoryview) -> None:
        if importlib.util.find_spec("onnx") is None:
            raise MissingDependencyError(
                f"the artifact runs {', '.join(step.operators)} through ONNX's reference evaluator, and "
                "the package onnx is not installed: pip install onnx"
            )
        self.step = step
        self._model = model
        self._evaluator: Any = None  # made at the first run: importing onnx takes longer than opening

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Runs the step; its values are arrays, sequences as lists, or None for an empty optional.

        Raises:
            InputError: An operator refused its inputs.
        """
        if self._evaluator is None:
            from onnx.reference import ReferenceEvaluator

            from hasten.runtime.host_operators import HOST_OPERATORS

            self._evaluator = ReferenceEvaluator(bytes(self._model), new_ops=list(HOST_OPERATORS))
        feeds = dict(zip(self.step.inputs, arrays, strict=True))
        try:
            with np.errstate(all="ignore"):  # NaN and infinity pass through as IEEE says
                results = self._evaluator.run(list(self.step.outputs), feeds)
        except _REFUSALS as error:
            kinds, made = ", ".join(self.step.operators), ", ".join(map(repr, self.step.outputs))
            said = str(error) or type(error).__name__
            raise InputError(
                f"{kinds}, run on the host to make {made}, refused its inputs: {said}"
            ) from error
        return [r if r is None or isinstance(r, list) else np.asarray(r) for r in results]
