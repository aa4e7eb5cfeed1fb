"""How far rounding may move an answer: found by moving what is rounded a little, in the peers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from tests.differential.peers import Feeds, Results, by_onnxruntime, by_reference, element_types

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul")
DRAWS = 3

STEP_OF_BF16 = 2.0**-8
"""Between two neighbours of bf16, relative to them."""


def sensitivity(model: onnx.ModelProto, feeds: Feeds, output: int) -> float:
    """How much an output changes where float inputs change in their last bits."""
    rng = np.random.default_rng(0)
    sets = [feeds]
    for _ in range(DRAWS):
        sets.append(
            {
                n: (a * (1 + rng.uniform(-1, 1, a.shape) * 2.0**-22)).astype(a.dtype)
                if a.dtype.kind == "f"
                else a
                for n, a in feeds.items()
            }
        )
    for engine in (by_onnxruntime, by_reference):
        found = _apart(engine(model, sets), output)
        if found is not None:
            return found
    return 0.0


def narrowed(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray] | None:
    """The answers where products read their operands in bf16; None where no peer runs that."""
    (found,) = _by_any(_with_operands(model), [feeds])
    return found


def sensitivity_of_bf16(model: onnx.ModelProto, feeds: Feeds, output: int) -> float:
    """How much an output changes where what products read changes by an eighth of a step of bf16 at most.

    What is scaled before it is rounded, as weights are by a normalization behind them, is not the same
    as what is scaled behind the product, though both are right.
    """
    shaken = [_by_any(_with_operands(model, seed), [feeds])[0] for seed in range(1, DRAWS + 1)]
    return _apart([*_by_any(model, [feeds]), *shaken], output) or 0.0


def _by_any(model: onnx.ModelProto, sets: Sequence[Feeds]) -> Results:
    """The answers of the first peer that has some."""
    found = by_reference(model, sets)
    return found if any(r is not None for r in found) else by_onnxruntime(model, sets)


def _apart(results: Results, output: int) -> float | None:
    """The largest distance of an answer to the first; None where one is missing or has another shape."""
    held = [r[output].astype(np.float64) for r in results if r is not None]
    if len(held) != len(results) or len({a.shape for a in held}) != 1:
        return None
    with np.errstate(all="ignore"):
        return float(max(np.nan_to_num(np.abs(a - held[0])).max(initial=0.0) for a in held[1:]))


def _with_operands(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A model whose products read their float32 operands rounded to bf16, or with noise smaller than that."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = element_types(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for number, node in enumerate(nodes):
        for k in range(2) if node.op_type in PRODUCTS else ():
            if types.get(node.input[k]) != TensorProto.FLOAT:
                continue
            made = [f"{n}_{number}_{k}" for n in ("between", "operand")]
            if seed:
                most = STEP_OF_BF16 / 8
                drawn = float(seed + DRAWS * (2 * number + k))
                copy.graph.node.append(
                    helper.make_node(
                        "RandomUniformLike",
                        node.input[k : k + 1],
                        made[:1],
                        low=1 - most,
                        high=1 + most,
                        seed=drawn,
                    )
                )
                copy.graph.node.append(helper.make_node("Mul", [node.input[k], made[0]], made[1:]))
            else:
                copy.graph.node.append(
                    helper.make_node("Cast", node.input[k : k + 1], made[:1], to=TensorProto.BFLOAT16)
                )
                copy.graph.node.append(helper.make_node("Cast", made[:1], made[1:], to=TensorProto.FLOAT))
            node.input[k] = made[1]
        copy.graph.node.append(node)
    return copy
