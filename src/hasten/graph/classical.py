"""Classical models with texts as labels or keys, as models of numbers with one look-up where the texts stand.

The operators of ai.onnx.ml take texts in many places. Here each becomes the number of its entry, by a
LabelEncoder of texts, and a number becomes its text by Gather. Those two run on the host; all between is
compiled. An SVMClassifier with probabilities is divided into what is compiled and the
coupling of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph.definition import Definition, Rewrite

ML = "ai.onnx.ml"
"""ONNX's domain of classical models."""
OPSET_ML = 4
"""The version that the rewritten operators are of; in later ones ensembles of trees are other operators."""

_SURE = 1e-7  # LIBSVM's distance of a pair's probability from 0 and 1
_TRANSFORMS = {"NONE": None, "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax"}

Outputs = Sequence[ir.Value | None] | None


def _own(
    r: Rewrite, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: Any
) -> Sequence[ir.Value]:
    """The outputs of a new node of ai.onnx.ml."""
    return r.tape.op_multi_out(kind, inputs, attributes, num_outputs=outputs, domain=ML)


def _like(r: Rewrite, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """States the type of a value with the shape of the node's first input."""
    x = r.node.inputs[0]
    value.type = ir.TensorType(dtype)
    value.shape = None if x is None or x.shape is None else ir.Shape(x.shape)
    return value


def _texts(r: Rewrite, name: str) -> list[str] | None:
    """A list of texts, as an attribute or as a tensor; None where there is none."""
    given = r.node.attributes.get(f"{name}_strings")
    if given is not None:
        return [str(t) for t in given.as_strings()] or None
    tensor = r.node.attributes.get(f"{name}_tensor")
    if tensor is None or tensor.as_tensor().dtype is not ir.DataType.STRING:
        return None
    return _decoded(tensor.as_tensor().numpy())


def _decoded(array: np.ndarray) -> list[str]:
    return [t.decode() if isinstance(t, bytes) else str(t) for t in array.reshape(-1)]


def _kept(r: Rewrite, *without: str) -> dict[str, Any]:
    """The attributes of the node but for some, as a new node takes them."""
    return {name: a for name, a in r.node.attributes.items() if name not in without}


def _classifier(integers: str) -> Definition:
    """A classifier with texts as labels: the place of the label, and its text."""

    def define(r: Rewrite) -> Outputs:
        labels = _texts(r, "classlabels")
        if labels is None:
            return _coupled(r, None) if r.node.op_type == "SVMClassifier" else None
        if r.node.op_type == "SVMClassifier":
            coupled = _coupled(r, labels)
            if coupled is not None:
                return coupled
        attributes = _kept(r, "classlabels_strings") | {integers: list(range(len(labels)))}
        place, scores = _own(r, r.node.op_type, 2, r.input(0), **attributes)
        return [_label(r, place, labels), scores]

    return define


def _label(r: Rewrite, place: ir.Value, labels: Sequence[str] | None) -> ir.Value:
    if labels is None:
        return place
    place.type, place.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
    return r.op("Gather", r.op("Constant", value_strings=list(labels)), place, axis=0)


def _coupled(r: Rewrite, labels: Sequence[str] | None) -> Outputs:
    """Probabilities from the decisions between any two classes; None for other models.

    Two classes are coupled too: LIBSVM's rounds end some thousandths from what one of them would have.
    """
    numbers = r.attribute("classlabels_ints", None) or range(len(labels or ()))
    first, second = r.attribute("prob_a", None), r.attribute("prob_b", None)
    kind = r.attribute("post_transform", "NONE")
    pairs = len(numbers) * (len(numbers) - 1) // 2
    if len(numbers) < 2 or not first or not second or kind not in _TRANSFORMS:
        return None
    if not len(first) == len(second) == pairs:
        return None
    attributes = _kept(r, "classlabels_strings", "prob_a", "prob_b", "post_transform")
    place, decisions = _own(
        r, "SVMClassifier", 2, r.input(0), **attributes | {"classlabels_ints": list(numbers)}
    )
    decisions.type = ir.TensorType(ir.DataType.FLOAT)
    decisions.shape = ir.Shape([None, max(pairs, 2)])
    if pairs == 1:  # two scores, of which the second is the decision
        decisions = r.op("Slice", decisions, r.constant([1]), r.constant([2]), r.constant([1]))
    lines = [r.constant(np.negative(v), np.float32) for v in (first, second)]
    likely = r.op("Sigmoid", r.op("Add", r.op("Mul", decisions, lines[0]), lines[1]))
    bounds = [r.constant(v, np.float32) for v in (_SURE, 1 - _SURE)]
    likely = r.op("Clip", likely, *bounds)
    result = r.tape.op("PairwiseCoupling", [likely], {"classes": len(numbers)}, domain="hasten")
    result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, len(numbers)])
    transform = _TRANSFORMS[kind]
    return [_label(r, place, labels), result if transform is None else r.op(transform, result)]


def _places(r: Rewrite, x: ir.Value | None, keys: Sequence[str], default: int) -> ir.Value:
    """The place of each text among the keys, of which the last of equal ones counts."""
    attributes = {
        "keys_strings": list(keys),
        "values_int64s": list(range(len(keys))),
        "default_int64": default,
    }
    return _like(r, _own(r, "LabelEncoder", 1, x, **attributes)[0], ir.DataType.INT64)


def _one_hot(r: Rewrite) -> Outputs:
    categories = _texts(r, "cats")
    if categories is None:
        return None
    place = _places(r, r.input(0), categories, -1)
    attributes = {"cats_int64s": list(range(len(categories))), "zeros": r.attribute("zeros", 1)}
    return _own(r, "OneHotEncoder", 1, place, **attributes)


def _label_encoder(r: Rewrite) -> Outputs:
    """A table from or to texts as one of places and one of values."""
    classes = r.node.attributes.get("classes_strings")  # of version 1
    if classes is not None:
        texts = list(classes.as_strings())
        return _mapped(r, texts, range(len(texts)), r.input(0))
    keys, values = _texts(r, "keys"), _texts(r, "values")
    if keys is None and values is None:
        return None
    numbers = _numbers(r, "keys") if keys is None else None
    entries = _numbers(r, "values") if values is None else None
    count = len(keys) if keys is not None else 0 if numbers is None else len(numbers)
    if count != (len(values) if values is not None else 0 if entries is None else len(entries)):
        return None
    if keys is not None:
        place = _places(r, r.input(0), keys, count)
    else:
        named = {k: v for k, v in r.node.attributes.items() if k.startswith("keys_")}
        attributes = named | _whole_values(numbers, count)
        (place,) = _own(r, "LabelEncoder", 1, r.input(0), **attributes)
        _like(r, place, ir.DataType.INT64)
    if values is not None:
        table = r.op("Constant", value_strings=[*values, _default_text(r)])
    else:
        assert entries is not None
        table = r.op("Constant", value=ir.tensor(np.append(entries, _default_number(r, entries))))
    return [r.op("Gather", table, place, axis=0)]


def _whole_values(numbers: np.ndarray | None, count: int) -> dict[str, Any]:
    """Values of places for keys that are numbers."""
    if numbers is not None and numbers.dtype in (np.float32, np.int64):
        return {"values_int64s": list(range(count)), "default_int64": count}
    return {
        "values_tensor": ir.tensor(np.arange(count)),
        "default_tensor": ir.tensor(np.array([count])),
    }


def _numbers(r: Rewrite, side: str) -> np.ndarray | None:
    for suffix, dtype in (("int64s", np.int64), ("floats", np.float32)):
        given = r.attribute(f"{side}_{suffix}", None)
        if given is not None:
            return np.array(given, dtype)
    tensor = r.attribute(f"{side}_tensor", None)
    return None if tensor is None else np.asarray(tensor.numpy()).reshape(-1)


def _default_text(r: Rewrite) -> str:
    tensor = r.attribute("default_tensor", None)
    if tensor is not None:
        return _decoded(tensor.numpy())[0]
    return str(r.attribute("default_string", "_Unused"))


def _default_number(r: Rewrite, entries: np.ndarray) -> np.ndarray:
    tensor = r.attribute("default_tensor", None)
    if tensor is not None:
        return np.asarray(tensor.numpy()).reshape(-1)[:1].astype(entries.dtype)
    name, value = ("default_float", -0.0) if entries.dtype.kind == "f" else ("default_int64", -1)
    return np.array([r.attribute(name, value)], entries.dtype)


def _category_mapper(r: Rewrite) -> Outputs:
    texts, numbers = r.attribute("cats_strings", None), r.attribute("cats_int64s", None)
    if not texts or not numbers or len(texts) != len(numbers):
        return None
    return _mapped(r, list(texts), list(numbers), r.input(0))


def _mapped(r: Rewrite, texts: Sequence[str], numbers: Sequence[int], x: ir.Value | None) -> Outputs:
    """Texts to numbers, or numbers to texts, whichever the input is not."""
    if x is None or x.dtype is None:
        return None
    if x.dtype is ir.DataType.STRING:
        attributes = {
            "keys_strings": list(texts),
            "values_int64s": list(numbers),
            "default_int64": r.attribute("default_int64", -1),
        }
        return [_like(r, _own(r, "LabelEncoder", 1, x, **attributes)[0], ir.DataType.INT64)]
    keys = {"keys_int64s": list(numbers)} | _whole_values(np.array(numbers, np.int64), len(texts))
    place = _like(r, _own(r, "LabelEncoder", 1, x, **keys)[0], ir.DataType.INT64)
    table = r.op("Constant", value_strings=[*texts, str(r.attribute("default_string", "_Unused"))])
    return [r.op("Gather", table, place, axis=0)]


CLASSICAL: Mapping[str, Definition] = MappingProxyType(
    {
        "LinearClassifier": _classifier("classlabels_ints"),
        "SVMClassifier": _classifier("classlabels_ints"),
        "TreeEnsembleClassifier": _classifier("classlabels_int64s"),
        "OneHotEncoder": _one_hot,
        "LabelEncoder": _label_encoder,
        "CategoryMapper": _category_mapper,
    }
)
"""Definitions of operators of ai.onnx.ml."""
