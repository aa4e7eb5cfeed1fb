"""Models that a search must not be taken in by: a layer that int8 destroys, and answers that mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH, CLASSES = 32, 5


def network(
    outlier: float = 1.0,
    seed: int = 0,
    *,
    useless: bool = False,
    width: int = WIDTH,
    more: int = 0,
) -> onnx.ModelProto:
    """Random layers "first", "hostile" and "last" with ReLU between, and some more before the last.

    What the second one reads has a channel that is `outlier` times as large as it should be. Its weights undo
    it together with those of a copy of it, so that only quantization sees the difference. Moving the outlier
    into such weights does not help: they are as large as all others.

    Args:
        outlier: how many times.
        seed: of the weights.
        useless: whether half of the neurons hardly reach the scores.
        width: of all layers.
        more: how many more layers.
    """
    rng = np.random.default_rng(seed)
    names = ["first", "hostile", *(f"more{n}" for n in range(more)), "last"]
    columns = [width] * (2 + more) + [CLASSES]
    weights = {
        name: rng.standard_normal((width, n)) / np.sqrt(width) for name, n in zip(names, columns, strict=True)
    }
    first, hostile = weights["first"], weights["hostile"]
    first[:, 3] *= outlier
    first[:, 4] = first[:, 3]
    hostile[3] = hostile[3] / outlier - hostile[4]
    if useless:
        hostile[width // 2 :] *= 1e-3
        weights["last"][width // 2 :] *= 1e-3
    nodes, value = [], "x"
    for number, name in enumerate(names):
        product = "scores" if name == "last" else f"m{number}"
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [product], name))
        if name != "last":
            nodes.append(helper.make_node("Relu", [product], [f"r{number}"], f"relu{number}"))
            value = f"r{number}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(w.astype(np.float32), f"w{number}")
            for number, w in enumerate(weights.values())
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def samples(count: int, seed: int = 1, *, width: int = WIDTH) -> list[dict[str, NDArray[Any]]]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, width)).astype(np.float32)} for _ in range(count)]
