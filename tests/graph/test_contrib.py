"""Operators of com.microsoft against ONNX Runtime, compiled, with their optional inputs and attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from hasten.onnx_backend import HastenRep, prepare_all

BATCH, LENGTH, HEADS, SIZE = 2, 5, 4, 8
HIDDEN = HEADS * SIZE
rng = np.random.default_rng(0)


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    return rng.normal(0, scale, shape).astype(np.float32)


def codes(dtype: type, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape).astype(dtype)


@dataclass(frozen=True)
class Case:
    """One node: its inputs (None is left out), how many outputs it has, and which inputs are constant."""

    op: str
    inputs: tuple[np.ndarray | None, ...]
    outputs: tuple[int, ...] = (0,)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constant: tuple[int, ...] = ()
    shown: np.ndarray | None = None  # positions that are compared: what a mask hides is not computed

    def model(self, ranks: Sequence[int] = ()) -> onnx.ModelProto:
        """The model; with `ranks` its outputs have so many dims of unknown size."""
        names = ["" if a is None else f"x{k}" for k, a in enumerate(self.inputs)]
        results = [f"y{k}" if k in self.outputs else "" for k in range(max(self.outputs) + 1)]
        node = helper.make_node(self.op, names, results, name="it", domain="com.microsoft", **self.attributes)
        entries = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for k, (n, a) in enumerate(zip(names, self.inputs, strict=True))
            if a is not None and k not in self.constant
        ]
        weights = [onnx.numpy_helper.from_array(self.inputs[k], names[k]) for k in self.constant]
        graph = helper.make_graph(
            [node],
            "g",
            entries,
            [
                helper.make_tensor_value_info(r, self.kind(k), [None] * n if ranks else None)
                for (k, r), n in zip(
                    ((k, r) for k, r in enumerate(results) if r), ranks or self.outputs, strict=True
                )
            ],
            weights,
        )
        opsets = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def kind(self, output: int) -> int:
        lengths = self.op == "EmbedLayerNormalization" and output == 1
        return onnx.TensorProto.INT32 if lengths else onnx.TensorProto.FLOAT

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {f"x{k}": a for k, a in enumerate(self.inputs) if a is not None and k not in self.constant}


def activations() -> list[Case]:
    x, bias = floats(BATCH, LENGTH, HIDDEN), floats(HIDDEN)
    return [
        Case("Gelu", (x,)),
        Case("BiasGelu", (x, bias)),
        Case("FastGelu", (x,)),
        Case("FastGelu", (x, bias), constant=(1,)),
        Case("QuickGelu", (x,)),
        Case("QuickGelu", (x,), attributes={"alpha": 1.0}),
    ]


def norms() -> list[Case]:
    x, skip, one = floats(BATCH, LENGTH, HIDDEN), floats(BATCH, LENGTH, HIDDEN), floats(1, LENGTH, HIDDEN)
    gamma, beta, bias = floats(HIDDEN), floats(HIDDEN), floats(HIDDEN)
    ids = rng.integers(0, 30, (BATCH, LENGTH)).astype(np.int32)
    types = rng.integers(0, 2, (BATCH, LENGTH)).astype(np.int32)
    mask = (rng.random((BATCH, LENGTH)) < 0.7).astype(np.int32)
    tables = (floats(30, HIDDEN), floats(9, HIDDEN), floats(2, HIDDEN))
    places = np.tile(np.arange(LENGTH, dtype=np.int32)[::-1], (BATCH, 1)).copy()
    return [
        Case("SkipLayerNormalization", (x, skip, gamma, beta, bias), (0, 3), {"epsilon": 1e-5}),
        Case("SkipLayerNormalization", (x, one, gamma)),
        Case("SkipSimplifiedLayerNormalization", (x, skip, gamma, bias), (0, 3), {"epsilon": 1e-5}),
        Case("SkipSimplifiedLayerNormalization", (x, skip, gamma)),
        Case("EmbedLayerNormalization", (ids, types, *tables, gamma, beta, mask), (0, 1)),
        Case("EmbedLayerNormalization", (ids, None, *tables[:2], None, gamma, beta), (0, 1, 2)),
        Case("EmbedLayerNormalization", (ids, types, *tables, gamma, beta, None, places), (0, 1)),
    ]


def products() -> list[Case]:
    a, b = floats(2, 3, 6, 7), floats(2, 3, 7, 5)
    weight, scale = codes(np.int8, 7, 5), np.array(0.02, np.float32)
    zero, bias = np.array(3, np.int8), floats(5)
    x, byte = floats(4, 7), codes(np.uint8, 4, 7)
    return [
        Case("FusedMatMul", (a, b), attributes={"alpha": 0.25}),
        Case("FusedMatMul", (a.swapaxes(2, 3).copy(), b), attributes={"transA": 1}),
        Case("FusedMatMul", (a, b.swapaxes(2, 3).copy()), attributes={"transB": 1, "alpha": 2.0}),
        Case("FusedMatMul", (np.moveaxis(a, 2, 0).copy(), b), attributes={"transBatchA": 1}),
        Case("DynamicQuantizeMatMul", (x, weight, scale, zero, bias), constant=(1, 2, 3, 4)),
        Case("DynamicQuantizeMatMul", (x, weight, scale), constant=(1, 2)),
        *(
            Case("CDist", (x, floats(6, 7)), attributes={"metric": metric})
            for metric in ("euclidean", "sqeuclidean")
        ),
        Case(
            "MatMulIntegerToFloat",
            (byte, weight, np.array(0.1, np.float32), scale, np.array(120, np.uint8), zero, bias),
            constant=(1, 2, 3, 4, 5, 6),
        ),
    ]


def rotary() -> list[Case]:
    angles = np.arange(12)[:, None] / 100 ** (np.arange(SIZE // 2) / (SIZE // 2))
    tables = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    places = rng.integers(0, 12, (BATCH, LENGTH))
    x = floats(BATCH, LENGTH, HIDDEN)
    return [
        Case("RotaryEmbedding", (x, places, *tables), attributes={"num_heads": HEADS}),
        Case("RotaryEmbedding", (x, np.array([3]), *tables), attributes={"num_heads": HEADS}),
        Case(
            "RotaryEmbedding",
            (floats(BATCH, HEADS, LENGTH, SIZE), places, *tables),
            attributes={"interleaved": 1},
        ),
    ]


def attentions() -> list[Case]:
    x, weight, bias = floats(BATCH, LENGTH, HIDDEN), floats(HIDDEN, 3 * HIDDEN, scale=0.2), floats(3 * HIDDEN)
    heads = {"num_heads": HEADS}
    lengths = np.array([LENGTH, 2], np.int32)
    mask = np.arange(LENGTH) < lengths[:, None]
    square = np.tril(np.ones((LENGTH, LENGTH), bool)) & mask[:, None]
    added = floats(BATCH, HEADS, LENGTH, LENGTH)
    past = floats(2, BATCH, HEADS, 3, SIZE)
    long = np.concatenate([np.ones((BATCH, 3), bool), mask], axis=1).astype(np.int32)
    byte, narrow = codes(np.uint8, BATCH, LENGTH, HIDDEN), codes(np.int8, HIDDEN, 3 * HIDDEN)
    q, k, v = (floats(BATCH, n, HIDDEN) for n in (LENGTH, 7, 7))
    keys = (np.arange(7) < np.array([7, 4])[:, None]).astype(np.int32)
    caches = (floats(BATCH, HEADS, 3, SIZE), floats(BATCH, HEADS, 3, SIZE))
    scale = np.array(0.01, np.float32)
    return [
        Case("Attention", (x, weight, bias), attributes=heads),
        Case("Attention", (x, weight, bias, lengths), attributes=heads, shown=mask),
        Case(
            "Attention",
            (x, weight, bias, mask.astype(np.int32)),
            attributes=heads,
            constant=(1, 2),
            shown=mask,
        ),
        Case("Attention", (x, weight, bias, square.astype(np.int32)), attributes=heads | {"scale": 0.2}),
        Case("Attention", (x, weight, bias, None, None, added), attributes=heads),
        Case("Attention", (x, weight, bias), attributes=heads | {"unidirectional": 1}),
        Case("Attention", (x, weight, bias, long, past), (0, 1), heads),
        Case(
            "Attention",
            (x, floats(HIDDEN, 80, scale=0.2), floats(80)),
            attributes=heads | {"qkv_hidden_sizes": [32, 32, 16]},
        ),
        Case(
            "QAttention",
            (byte, narrow, bias, scale, scale, lengths, np.array(120, np.uint8), np.array(0, np.int8)),
            attributes=heads,
            constant=(1, 2, 3, 4, 6, 7),
            shown=mask,
        ),
        Case("MultiHeadAttention", (q, k, v), attributes=heads),
        Case("MultiHeadAttention", (q, k, v, bias, keys), attributes=heads | {"scale": 0.3}),
        Case("MultiHeadAttention", (q, k, v, None, None, floats(1, HEADS, LENGTH, 7)), attributes=heads),
        Case("MultiHeadAttention", (q, q, q, None, None, None, *caches), (0, 1, 2), heads),
        Case("MultiHeadAttention", (q, q, q), attributes=heads | {"unidirectional": 1}),
    ]


def by_onnxruntime(case: Case) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = case.model().SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(None, case.feeds)


def test_compiled_code_agrees():
    cases = [*activations(), *norms(), *products(), *rotary(), *attentions()]
    expected = [by_onnxruntime(c) for c in cases]
    models = [c.model([a.ndim for a in e]) for c, e in zip(cases, expected, strict=True)]
    wrong = []
    for case, right, rep in zip(cases, expected, prepare_all(models), strict=True):
        what = f"{case.op} {[None if a is None else a.shape for a in case.inputs]} {dict(case.attributes)}"
        try:
            assert isinstance(rep, HastenRep), rep
            assert not rep.host, rep.host
            for found, wanted in zip(rep.run(case.feeds), right, strict=True):
                assert found.shape == wanted.shape
                assert found.dtype == wanted.dtype
                shown = slice(None) if case.shown is None else case.shown
                np.testing.assert_allclose(found[shown], wanted[shown], rtol=1e-3, atol=2e-5)
        except Exception as error:  # noqa: BLE001 - all cases are listed
            wrong.append(f"{what}: {type(error).__name__} {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)
