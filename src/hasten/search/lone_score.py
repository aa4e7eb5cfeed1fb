"""Which classes an output has; of two with a single score, that of class 1 as a logit or a probability."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
Lone = Literal["logit", "probability"]
"""What the only score of an answer is: class 1 is above 0 or above 0.5."""

THRESHOLD = {"logit": "class 1 above 0", "probability": "class 1 above 0.5"}

_MOVES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def lone_score(model: ir.Model, output: str | None) -> Lone | None:
    """What the only score in an output is; None where answers have several, or none in float.

    Args:
        model: after `optimize_graph`.
        output: its name; None for the first.
    """
    value = _scores(model, output)
    dims = [] if value is None or value.shape is None else list(value.shape)
    if not (len(dims) == 1 or (len(dims) == 2 and dims[1] == 1)):
        return None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _MOVES:
            return "probability" if node.op_type == "Sigmoid" else "logit"
        value = node.inputs[0]
    return "logit"


def class_count(model: ir.Model, output: str | None) -> int | None:
    """How many classes an output has scores of; None where that is not known, or it has classes themselves.

    Args:
        model: after `optimize_graph`.
        output: its name; None for the first.
    """
    if lone_score(model, output) is not None:
        return 2
    value = _scores(model, output)
    if value is None or value.shape is None or len(value.shape) not in (2, 3):
        return None  # of pictures, the labels say which axis is that of the classes
    last = value.shape[-1]
    return last if isinstance(last, int) else None


def _scores(model: ir.Model, output: str | None) -> ir.Value | None:
    """An output, if it is one of floats."""
    found = [v for v in model.graph.outputs if output is None or v.name == output]
    return found[0] if found and found[0].dtype in _FLOATS else None


def both_classes(scores: Array, lone: Lone) -> Array:
    """Scores of class 0 and class 1 from those of class 1 alone; what has several scores stays as it is."""
    if scores.dtype.kind != "f" or scores.ndim > 2 or (scores.ndim == 2 and scores.shape[1] != 1):
        return scores
    of_one = scores.reshape(len(scores)).astype(np.float64)
    of_none = np.zeros_like(of_one) if lone == "logit" else 1 - of_one
    return np.stack([of_none, of_one], axis=1)
