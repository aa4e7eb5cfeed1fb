"""How far rounding may move an answer: found by moving what is rounded a little, in the peers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from tests.differential.peers import Feeds, Results, by_onnxruntime, by_reference, element_types

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "Einsum")
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


def narrowed(model: onnx.ModelProto, feeds: Feeds) -> list[list[np.ndarray]]:
    """The answers of a peer where products read their operands in bf16, alone or with all who read those."""
    found = [_by_any(m, [feeds])[0] for m in (_with_operands(model), _stored(model))]
    return [answer for answer in found if answer is not None]


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


def _stored(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model in which what a product reads, if a node makes it, is rounded to bf16 for all who read it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = element_types(model)
    read = {n for node in model.graph.node if _is_product(node) for n in node.input}
    del copy.graph.node[:]
    for node in model.graph.node:
        made = copy.graph.node.add()
        made.CopyFrom(node)
        for k, name in enumerate(node.output):
            if name not in read or types.get(name) != TensorProto.FLOAT:
                continue
            exact, narrow = f"{name}_exact", f"{name}_narrow"
            made.output[k] = exact
            copy.graph.node.extend(_rounded(exact, narrow, name))
    return copy


def _rounded(source: str, between: str, result: str) -> list[onnx.NodeProto]:
    """Nodes that round a value to bf16."""
    return [
        helper.make_node("Cast", [source], [between], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [between], [result], to=TensorProto.FLOAT),
    ]


def _is_product(node: onnx.NodeProto) -> bool:
    return node.op_type in PRODUCTS


def _with_operands(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A model whose products read their float32 operands rounded to bf16, or with noise smaller than that."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = element_types(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for number, node in enumerate(nodes):
        for k in range(min(2, len(node.input))) if _is_product(node) else ():
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
                copy.graph.node.extend(_rounded(node.input[k], *made))
            node.input[k] = made[1]
        copy.graph.node.append(node)
    return copy
