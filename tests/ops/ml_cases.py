"""Models of one node of ai.onnx.ml, and what ONNX Runtime says of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

TRANSFORMS = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]
KERNELS = ["LINEAR", "POLY", "RBF", "SIGMOID"]


@dataclass(frozen=True)
class Case:
    """One node of the domain: its inputs, types of its outputs, and the version of the domain."""

    op: str
    inputs: tuple[np.ndarray, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = (TensorProto.FLOAT,)
    version: int = 3
    wide: bool = False  # ONNX Runtime takes float32 alone; we are given float64
    host: Sequence[str] = field(default=())  # operators that read or write texts

    def model(self) -> onnx.ModelProto:
        """The model, whose outputs have shapes of unknown sizes."""
        return self._model([[None] * right.ndim for right in self.expected], narrow=False)

    def _model(self, shapes: Sequence[Sequence[None] | None], *, narrow: bool) -> onnx.ModelProto:
        names = [f"x{k}" for k in range(len(self.inputs))]
        results = [f"y{k}" for k in range(len(self.outputs))]
        node = helper.make_node(self.op, names, results, name="it", domain="ai.onnx.ml", **self.attributes)
        entries = [
            helper.make_tensor_value_info(
                n, self._kind(a, narrow), [f"n{len(a)}", *a.shape[1:]] if a.ndim > 1 else a.shape
            )
            for n, a in zip(names, self.inputs, strict=True)
        ]
        kinds = [TensorProto.FLOAT] * len(results) if narrow and self.wide else self.outputs
        made = [
            helper.make_tensor_value_info(n, k, s) for n, k, s in zip(results, kinds, shapes, strict=True)
        ]
        graph = helper.make_graph([node], "g", entries, made)
        opsets = [helper.make_opsetid("ai.onnx.ml", self.version), helper.make_opsetid("", 21)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _kind(self, a: np.ndarray, narrow: bool) -> int:
        if a.dtype.kind in "UO":
            return TensorProto.STRING
        return helper.np_dtype_to_tensor_dtype(np.dtype(np.float32) if narrow and self.wide else a.dtype)

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {f"x{k}": a for k, a in enumerate(self.inputs)}

    @property
    def text(self) -> str:
        shapes = [f"{a.dtype}{list(a.shape)}" for a in self.inputs]
        return f"{self.op} {shapes} {dict(self.attributes)}"

    @functools.cached_property
    def expected(self) -> list[np.ndarray]:
        """What ONNX Runtime says."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        content = self._model([None] * len(self.outputs), narrow=True).SerializeToString()
        feeds = {n: a.astype(np.float32) if self.wide else a for n, a in self.feeds.items()}
        return onnxruntime.InferenceSession(content, options).run(None, feeds)


def numbers(rng: np.random.Generator, *shape: int) -> list[float]:
    """Attributes of floats, as ONNX stores them."""
    return rng.normal(0, 1, shape).astype(np.float32).reshape(-1).tolist()


def linear(rng: np.random.Generator) -> Case:
    """A linear model of random size, with labels that are numbers or texts."""
    rows, width = int(rng.integers(1, 9)), int(rng.integers(1, 7))
    dtype = rng.choice(["float32", "int64", "int32", "float64"])
    x = (rng.normal(0, 2, (rows, width))).astype(dtype)
    transform = str(rng.choice(TRANSFORMS))
    if rng.random() < 0.4:
        targets = int(rng.integers(2, 5)) if transform != "NONE" else int(rng.integers(1, 5))
        attributes = {"coefficients": numbers(rng, targets, width), "post_transform": transform}
        if rng.random() < 0.7:
            attributes["intercepts"] = numbers(rng, targets)
        return Case("LinearRegressor", (x.astype(np.float32),), attributes | {"targets": targets})
    classes = int(rng.integers(2, 6))
    single = classes == 2 and rng.random() < 0.5
    if single:
        transform = str(rng.choice(TRANSFORMS[:2]))
    count = 1 if single else classes
    attributes = {
        "coefficients": numbers(rng, count, width),
        "intercepts": numbers(rng, count),
        "post_transform": transform,
    }
    return _labelled(rng, "LinearClassifier", x, classes, attributes)


def _labelled(
    rng: np.random.Generator, op: str, x: np.ndarray, classes: int, attributes: dict[str, Any]
) -> Case:
    if rng.random() < 0.3:
        labels = {"classlabels_strings": [f"class {k}" for k in range(classes)]}
        return Case(op, (x,), attributes | labels, (TensorProto.STRING, TensorProto.FLOAT), host=["Gather"])
    labels = {"classlabels_ints": [int(v) for v in rng.permutation(20)[:classes]]}
    return Case(op, (x,), attributes | labels, (TensorProto.INT64, TensorProto.FLOAT))


def machine(rng: np.random.Generator) -> Case:
    """A support vector machine with any kernel, with probabilities or without."""
    width, rows = int(rng.integers(1, 6)), int(rng.integers(1, 9))
    x = rng.normal(3, 1, (rows, width)).astype(np.float32)
    kernel = str(rng.choice(KERNELS))
    common: dict[str, Any] = {
        "kernel_type": kernel,
        "kernel_params": [
            float(rng.choice([0.1, 0.5])),
            float(rng.choice([0, 0.3])),
            float(rng.integers(1, 4)),
        ],
    }
    if rng.random() < 0.3:
        count = int(rng.integers(1, 12))
        attributes = common | {
            "support_vectors": (np.array(numbers(rng, count, width)) + 3).tolist(),
            "coefficients": numbers(rng, count),
            "rho": numbers(rng, 1),
            "n_supports": count,
            "one_class": int(rng.random() < 0.3),
        }
        return Case("SVMRegressor", (x,), attributes)
    classes = int(rng.integers(2, 5))
    sizes = [int(v) for v in rng.integers(1, 5, classes)]
    pairs = classes * (classes - 1) // 2
    attributes = common | {
        "support_vectors": (np.array(numbers(rng, sum(sizes), width)) + 3).tolist(),
        "coefficients": numbers(rng, classes - 1, sum(sizes)),
        "rho": numbers(rng, pairs),
        "vectors_per_class": sizes,
        "post_transform": str(rng.choice(TRANSFORMS[:2] if classes == 2 else TRANSFORMS)),
    }
    if rng.random() < 0.4:
        attributes |= {
            "prob_a": (-np.abs(numbers(rng, pairs))).tolist(),
            "prob_b": numbers(rng, pairs),
            "post_transform": "NONE",
        }
    case = _labelled(rng, "SVMClassifier", x, classes, attributes)
    if "prob_a" in attributes:
        return Case(
            case.op, case.inputs, case.attributes, case.outputs, host=[*case.host, "PairwiseCoupling"]
        )
    return case


def preparing(rng: np.random.Generator) -> list[Case]:
    """Scaler, Normalizer, Binarizer, Imputer, ArrayFeatureExtractor and FeatureVectorizer."""
    x = rng.normal(0, 2, (6, 4)).astype(np.float32)
    x[2] = 0
    holes = np.where(rng.random(x.shape) < 0.3, np.float32(np.nan), x)
    whole = rng.integers(-3, 4, (5, 4))
    scales = {"offset": numbers(rng, 4), "scale": numbers(rng, 4)}
    float64, int64 = TensorProto.DOUBLE, TensorProto.INT64
    return [
        Case("Scaler", (x,), scales),
        Case("Scaler", (whole,), {"offset": [0.5], "scale": [2.0]}),
        Case("Scaler", (x.astype(np.float64),), scales),
        Case("Scaler", (x[0],), scales),
        *(Case("Normalizer", (v,), {"norm": n}) for v in (x, whole, x[1]) for n in ("L1", "L2")),
        Case("Normalizer", (np.abs(x),), {"norm": "MAX"}),
        Case("Binarizer", (x,), {"threshold": 0.25}),
        Case("Imputer", (holes,), {"imputed_value_floats": numbers(rng, 4), "replaced_value_float": np.nan}),
        Case("Imputer", (holes,), {"imputed_value_floats": [9.0], "replaced_value_float": 0.0}),
        Case("Imputer", (whole,), {"imputed_value_int64s": [7], "replaced_value_int64": 1}, (int64,)),
        Case(
            "Imputer",
            (holes.astype(np.float64),),
            {"imputed_value_floats": [9.0], "replaced_value_float": np.nan},
            (float64,),
            wide=True,
        ),
        Case("ArrayFeatureExtractor", (x, np.array([3, 0, 3]))),
        Case("ArrayFeatureExtractor", (x[0], np.array([3, 0]))),
        Case("ArrayFeatureExtractor", (whole, np.array([[1, 2], [0, 0]])), {}, (int64,)),
        Case("FeatureVectorizer", (x[:5], whole.astype(np.float32)), {"inputdimensions": [2, 6]}),
        Case("FeatureVectorizer", (x[0], x[1]), {"inputdimensions": [4, 3]}),
    ]


def encoding(rng: np.random.Generator) -> list[Case]:
    """OneHotEncoder, LabelEncoder and CategoryMapper, from and to numbers and texts."""
    x = rng.integers(-2, 9, (5, 3))
    texts = rng.choice(["a", "bb", "", "ü", "zz"], (4, 2)).astype(object)
    floats = rng.choice([1.5, -2.0, np.nan, 7.25, 3.9], (6, 2)).astype(np.float32)
    int64, text = TensorProto.INT64, TensorProto.STRING
    keys = ["a", "bb", "ü"]
    many = [int(v) for v in rng.permutation(5000)[:40]]
    return [
        Case("OneHotEncoder", (x,), {"cats_int64s": [3, -1, 5, 2]}),
        Case("OneHotEncoder", (x[:, 0],), {"cats_int64s": many}),
        Case("OneHotEncoder", (x,), {"cats_int64s": list(range(-2, 9)), "zeros": 0}),
        Case("OneHotEncoder", (floats,), {"cats_int64s": [1, 0, 3, 7]}),
        Case("OneHotEncoder", (texts,), {"cats_strings": keys}, host=["LabelEncoder"]),
        Case("LabelEncoder", (x,), {"keys_int64s": [1, 2, 5], "values_floats": [0.5, 1.5, -3.0]}),
        Case(
            "LabelEncoder",
            (np.array(many)[rng.integers(0, 40, 30)],),
            {"keys_int64s": many[:25], "values_int64s": list(range(25)), "default_int64": -9},
            (int64,),
        ),
        Case(
            "LabelEncoder",
            (floats,),
            {"keys_floats": [np.nan, 7.25, 1.5], "values_int64s": [8, 9, 7]},
            (int64,),
            version=4,
        ),
        Case("LabelEncoder", (floats,), {"keys_floats": [1.5, 3.9], "values_floats": [0.25, 9.0]}),
        Case(
            "LabelEncoder",
            (x,),
            {
                "keys_tensor": onnx.numpy_helper.from_array(np.arange(3)),
                "values_tensor": onnx.numpy_helper.from_array(np.array([5.0, 6.0, 7.0], np.float32)),
                "default_tensor": onnx.numpy_helper.from_array(np.array([-1.0], np.float32)),
            },
            version=4,
        ),
        Case(
            "LabelEncoder",
            (texts,),
            {"keys_strings": keys, "values_int64s": [3, 1, 2], "default_int64": 7},
            (int64,),
            host=["LabelEncoder"],
        ),
        Case(
            "LabelEncoder",
            (texts,),
            {"keys_strings": keys, "values_floats": [3.0, 1.0, 2.0]},
            host=["LabelEncoder"],
        ),
        Case(
            "LabelEncoder",
            (texts,),
            {"keys_strings": keys, "values_strings": keys[::-1], "default_string": "none"},
            (text,),
            host=["Gather", "LabelEncoder"],
        ),
        Case(
            "LabelEncoder", (x,), {"keys_int64s": [1, 2, 5], "values_strings": keys}, (text,), host=["Gather"]
        ),
        Case(
            "LabelEncoder",
            (floats,),
            {"keys_floats": [1.5, 7.25, 3.9], "values_strings": keys},
            (text,),
            host=["Gather"],
        ),
        Case("LabelEncoder", (texts,), {"classes_strings": keys}, (int64,), version=1, host=["LabelEncoder"]),
        Case("LabelEncoder", (x,), {"classes_strings": keys}, (text,), version=1, host=["Gather"]),
        Case(
            "CategoryMapper",
            (texts,),
            {"cats_strings": keys, "cats_int64s": [4, 5, 6]},
            (int64,),
            host=["LabelEncoder"],
        ),
        Case(
            "CategoryMapper", (x,), {"cats_strings": keys, "cats_int64s": [4, 5, 6]}, (text,), host=["Gather"]
        ),
    ]
