"""Operators of com.microsoft against ONNX Runtime, compiled, with their optional inputs and attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch.nn import functional

from hasten.errors import InputError
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
    used: int | None = None  # positions of caches that are compared: behind them they hold anything

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
        if self.op == "NhwcMaxPool":
            return onnx.TensorProto.UINT8
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
    blind = np.array([[1] * LENGTH, [0] * LENGTH], np.int32)  # of the second entry nothing is shown
    rows = square.astype(np.int32) * (np.arange(LENGTH) != 2)[:, None]
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
        Case("Attention", (x, weight, bias, blind), attributes=heads | {"mask_filter_value": -15000.0}),
        Case("Attention", (x, weight, bias, rows), attributes=heads),
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
        Case("MultiHeadAttention", (q, k, v, None, blind[:, :1] * keys), attributes=heads),
        Case("MultiHeadAttention", (q, k, v, None, None, floats(1, HEADS, LENGTH, 7)), attributes=heads),
        Case("MultiHeadAttention", (q, q, q, None, None, None, *caches), (0, 1, 2), heads),
        Case("MultiHeadAttention", (q, q, q), attributes=heads | {"unidirectional": 1}),
    ]


def fused() -> list[Case]:
    picture, weight, bias = floats(2, 4, 7, 6), floats(6, 2, 3, 3, scale=0.3), floats(6)
    conv = {"group": 2, "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    a, b, c = floats(3, 5), floats(4, 5), floats(4)
    activations = [
        ("Relu", []),
        ("Sigmoid", []),
        ("Tanh", []),
        ("LeakyRelu", [0.3]),
        ("Clip", [-0.5, 0.75]),
        ("HardSigmoid", [0.3, 0.4]),
    ]
    grid = (rng.random((2, 5, 4, 2)) * 2.2 - 1.1).astype(np.float32)
    return [
        *(
            Case(
                "FusedConv",
                (picture, weight, bias),
                attributes=conv | {"activation": kind, **({"activation_params": numbers} if numbers else {})},
                constant=(1, 2),
            )
            for kind, numbers in activations
        ),
        Case(
            "FusedConv",
            (picture, weight, bias, floats(2, 6, 7, 6)),
            attributes=conv | {"activation": "Relu"},
            constant=(1, 2),
        ),
        Case(
            "FusedGemm",
            (a, b, c),
            attributes={"transB": 1, "alpha": 0.5, "activation": "Tanh"},
            constant=(1, 2),
        ),
        Case(
            "FusedGemm",
            (a, b, c),
            attributes={"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2},
            constant=(1, 2),
        ),
        Case("TransposeMatMul", (a, b), attributes={"transB": 1, "alpha": 2.0}),
        Case("Trilu", (floats(3, 4, 5), np.array(1)), attributes={"upper": 0}),
        Case("ExpandDims", (a, np.array(-1, np.int32)), constant=(1,)),
        Case("Pad", (a, np.array([[1, 0, 2, 1]]), np.array([0.5], np.float32)), constant=(1,)),
        Case("GridSample", (picture, grid), attributes={"mode": "bilinear", "align_corners": 1}),
        Case("GridSample", (picture, grid), attributes={"mode": "nearest", "padding_mode": "border"}),
        Case(
            "NhwcMaxPool",
            (codes(np.uint8, 2, 7, 6, 4),),
            attributes={"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        ),
    ]


def grouped() -> list[Case]:
    """Heads that share keys, a prompt, one more position, caches that are longer, packed operands."""
    heads, groups, size, batch = 4, 2, 16, 2
    angles = np.arange(20)[:, None] / 100 ** (np.arange(size // 2) / (size // 2))
    tables = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    common = {"num_heads": heads, "kv_num_heads": groups}

    def case(new: int, past: int, packed: bool = False, turned: bool = True, **more: Any) -> Case:
        widths = [heads * size, groups * size, groups * size]
        parts = [floats(batch, new, w) for w in ([sum(widths)] if packed else widths)]
        caches = [floats(batch, groups, past, size) for _ in range(2)]
        total = np.array(min(past, 6) + new, np.int32)
        ends = np.full(batch, total - 1, np.int32)
        inputs = (*parts, *([None, None] if packed else []), *caches, ends, total)
        inputs = (*inputs, *(tables if turned else ()))
        attributes = common | {"do_rotary": int(turned)} | more
        constant = tuple(range(7, len(inputs)))
        return Case("GroupQueryAttention", inputs, (0, 1, 2), attributes, constant, used=int(total))

    return [
        case(5, 0),
        case(5, 0, packed=True, rotary_interleaved=1),
        case(1, 6),
        case(1, 6, turned=False, scale=0.2, softcap=3.0),
        case(1, 6, local_window_size=3),
        case(5, 0, turned=False, local_window_size=2),
        case(1, 12, packed=True),  # a cache with room
    ]


def by_onnxruntime(case: Case) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = case.model().SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(None, case.feeds)


def test_compiled_code_agrees():
    cases = [*activations(), *norms(), *products(), *rotary(), *attentions(), *fused(), *grouped()]
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
                if case.used is not None and found.ndim == 4:
                    shown = np.s_[:, :, : case.used]
                np.testing.assert_allclose(found[shown], wanted[shown], rtol=1e-3, atol=2e-5)
        except Exception as error:  # noqa: BLE001 - all cases are listed
            wrong.append(f"{what}: {type(error).__name__} {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)


def test_operators_without_a_kernel_here_agree_with_their_definition():
    """ONNX Runtime has these for other processors, so PyTorch says what is right."""
    picture, weight, bias = floats(2, 5, 4, 8), floats(6, 4, 3, 3, scale=0.3), floats(6)
    scale, offset, rows = floats(8), floats(8), floats(3, 5, 12)
    first = torch.from_numpy(np.ascontiguousarray(picture.transpose(0, 3, 1, 2)))
    skip, wide = floats(2, 5, 4, 8), floats(12)
    conv = functional.conv2d(first, torch.from_numpy(weight), torch.from_numpy(bias), padding=1, groups=2)

    def normed(x: np.ndarray) -> np.ndarray:
        turned = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        y = functional.group_norm(turned, 4, torch.from_numpy(scale), torch.from_numpy(offset))
        return functional.silu(y).permute(0, 2, 3, 1).numpy()

    left, right = np.split(rows + wide, 2, axis=-1)
    groups = {"groups": 4, "activation": 1}
    convolution = {"group": 2, "pads": [1, 1, 1, 1], "activation": "Relu"}
    cases = [
        (
            Case("NhwcFusedConv", (picture, weight, bias), (0,), convolution, (1, 2)),
            conv.relu().permute(0, 2, 3, 1).numpy(),
        ),
        (Case("GroupNorm", (picture, scale, offset), attributes=groups), normed(picture)),
        (Case("SkipGroupNorm", (picture, scale, offset, skip), attributes=groups), normed(picture + skip)),
        (Case("BiasAdd", (rows, wide, rows)), rows + wide + rows),
        (Case("BiasSplitGelu", (rows, wide)), left * functional.gelu(torch.from_numpy(right)).numpy()),
    ]
    models = [case.model([right.ndim]) for case, right in cases]
    for (case, right), rep in zip(cases, prepare_all(models), strict=True):
        assert isinstance(rep, HastenRep), (case.op, rep)
        assert not rep.host, (case.op, rep.host)
        np.testing.assert_allclose(rep.run(case.feeds)[0], right, rtol=1e-4, atol=1e-5, err_msg=case.op)


def old_model(op: str, version: int, inputs: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """A node that ONNX Runtime writes into ONNX's own domain, with constants but for the first input."""
    (first, x), *others = inputs.items()
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.numpy_helper.from_array(a, name) for name, a in others],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def test_normalizations_that_onnxruntime_puts_into_the_domain_of_onnx():
    x, scale, bias = floats(3, 4, 16), floats(16), floats(16)
    models = [
        old_model("SimplifiedLayerNormalization", 17, {"x": x, "scale": scale}, axis=-1, epsilon=1e-3),
        old_model("LayerNormalization", 13, {"x": x, "scale": scale, "bias": bias}, axis=-1, epsilon=1e-3),
    ]
    for model, rep in zip(models, prepare_all(models), strict=True):
        assert isinstance(rep, HastenRep), rep
        assert not rep.host
        (right,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
        np.testing.assert_allclose(rep.run({"x": x})[0], right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [False, True])
def test_an_lstm_with_weights_in_bytes(columns: bool):
    """ONNX Runtime rounds inputs and states to bytes in every step, so that answers are near, not equal."""
    steps, batch, width, hidden = 4, 2, 6, 8
    shapes = {1: (2, width, 4 * hidden), 2: (2, hidden, 4 * hidden)}
    w, r = (codes(np.int8, *shapes[k]) for k in (1, 2))
    scales = [np.full((2, 4 * hidden) if columns else (2,), 0.004, np.float32) for _ in range(2)]
    zeros = [np.zeros(s.shape, np.int8) for s in scales]
    inputs = (floats(steps, batch, width), w, r, floats(2, 8 * hidden, scale=0.1), None, None, None, None)
    given = (*inputs, scales[0], zeros[0], scales[1], zeros[1])
    attributes = {"hidden_size": hidden, "direction": "bidirectional"}
    case = Case("DynamicQuantizeLSTM", given, (0, 1, 2), attributes, (1, 2, 3, 8, 9, 10, 11))
    expected = by_onnxruntime(case)
    (rep,) = prepare_all([case.model([a.ndim for a in expected])])
    assert isinstance(rep, HastenRep), rep
    assert not rep.host
    for found, right in zip(rep.run(case.feeds), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=0.03)


def test_an_inverse_is_found_on_the_host():
    x = floats(2, 4, 4)
    case = Case("Inverse", (x,))
    (rep,) = prepare_all([case.model([3])])
    assert isinstance(rep, HastenRep)
    np.testing.assert_allclose(rep.run({"x0": x})[0], by_onnxruntime(case)[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="no inverse"):
        rep.run({"x0": np.zeros_like(x)})
