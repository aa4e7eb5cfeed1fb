"""The runner in PyTorch equals ONNX's own node tests and whole models, and lets gradients through."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase
from onnx.defs import get_all_schemas
from tests.ops.test_recurrent import by_onnxruntime, setting

from benchmarks import models
from hasten import frontends
from hasten.backends.torch_graph import TorchGraph
from hasten.backends.torch_operators import OPERATORS
from hasten.errors import DataError, HastenError, UnsupportedModelError
from hasten.passes.pipeline import optimize_graph


def takes(case: TestCase) -> bool:
    """Whether a node test is of one operator of ONNX's own that is no matter of chance and has tensors."""
    if case.model is None or len(case.model.graph.node) != 1 or "training" in case.name:
        return False
    (node,), values = case.model.graph.node, [*case.model.graph.input, *case.model.graph.output]
    floats = [v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in values]
    ours = node.op_type in OPERATORS or (any(floats[: len(node.input)]) and any(floats[-len(node.output) :]))
    return node.domain == "" and ours and all(v.type.HasField("tensor_type") for v in values)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # making ONNX's test data overflows on purpose
    CASES = [case for case in collect_testcases(None) if takes(case)]


def prepared(proto: onnx.ModelProto) -> ir.Model | None:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for opset in copy.opset_import:
        opset.version = max(opset.version, 11)  # operators that have not changed since before
    try:
        return frontends.load(copy)
    except HastenError:
        return None  # a type that hasten does not read


def arrays(values: list[object]) -> list[np.ndarray]:
    return [
        onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v) for v in values
    ]


def known(values: list[np.ndarray]) -> bool:
    return all(
        v.dtype in (np.float32, np.float64, np.int64, np.int32, np.uint8, np.int8, bool) for v in values
    )


WITHOUT_GRADIENT = {
    *("AveragePool", "Bernoulli", "Col2Im", "Compress", "DFT", "DeformConv", "DequantizeLinear", "Det"),
    *("Hardmax", "LinearAttention", "Loop", "LpPool", "MaxPool", "MaxUnpool", "MelWeightMatrix", "OneHot"),
    *("OptionalGetElement", "Resize", "RoiAlign", "STFT", "Scan", "ScatterND", "TensorScatter", "Unique"),
}
"""Operators of which some node test has floats that no gradient passes."""


@pytest.mark.parametrize("operator", sorted({case.model.graph.node[0].op_type for case in CASES}))
def test_onnx_node_tests(operator: str) -> None:
    """Forward is right, and gradients pass wherever they are not known to stop."""
    compared, stops = 0, False
    for case in CASES:
        if case.model.graph.node[0].op_type != operator:
            continue
        given, expected = (arrays(values) for values in case.data_sets[0])
        model = prepared(case.model) if known([*given, *expected]) else None
        if model is None:
            continue
        graph = TorchGraph(model)
        tensors = [torch.from_numpy(a.copy()) for a in given]
        leaves = [t.requires_grad_() for t in tensors if t.is_floating_point() and t.numel()]
        feeds = dict(zip(graph.inputs, tensors, strict=True))
        try:
            found = graph.run(feeds)
        except UnsupportedModelError:
            stops = True
            try:
                found = graph.run({name: tensor.detach() for name, tensor in feeds.items()})
            except UnsupportedModelError:
                continue  # neither here nor in the reference evaluator
            if operator not in OPERATORS:
                continue  # the reference, which may be a matter of chance
        for name, right in zip(graph.outputs, expected, strict=True):
            got = found[name].detach().numpy()
            assert got.shape == right.shape, case.name
            np.testing.assert_allclose(got, right, rtol=1e-3, atol=1e-5, err_msg=case.name)
            compared += 1
        passed = [v.double().sum() for v in found.values() if v.requires_grad]
        if passed:
            gradients = torch.autograd.grad(torch.stack(passed).sum(), leaves, allow_unused=True)
            assert any(g is not None for g in gradients), case.name
    assert compared > 0 or operator not in OPERATORS
    assert stops == (operator in WITHOUT_GRADIENT)


def test_operators_that_have_no_node_test_are_few() -> None:
    tested = {case.model.graph.node[0].op_type for case in CASES}
    assert set(OPERATORS) <= {schema.name for schema in get_all_schemas()}
    assert len(set(OPERATORS) - tested) <= 3, set(OPERATORS) - tested


@pytest.mark.parametrize("batchwise", [False, True])
def test_recurrences_of_all_kinds(batchwise: bool) -> None:
    """As ONNX Runtime computes them, which knows no layout 1: lengths, clips, peepholes, any activations."""
    for seed in range(30):
        case = setting(seed)
        node, feeds = case.model.graph.node[0], dict(case.feeds)
        if batchwise:
            node.attribute.append(onnx.helper.make_attribute("layout", 1))
            feeds = {n: a.swapaxes(0, 1) if n in ("x", "h", "c") else a for n, a in feeds.items()}
        graph = TorchGraph(ir.from_proto(case.model))
        tensors = {name: torch.from_numpy(a.copy()) for name, a in feeds.items()}
        found = graph.run(tensors | {"x": tensors["x"].requires_grad_()})
        del node.attribute[len(node.attribute) - batchwise :]
        for name, right in zip(graph.outputs, by_onnxruntime(case), strict=True):
            got = found[name].detach().numpy()
            if batchwise:
                got = got.transpose(1, 2, 0, 3) if name == "y" else got.swapaxes(0, 1)
            np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5, err_msg=case.text)
        sum(v.sum() for v in found.values()).backward()  # type: ignore[union-attr]
        gradient = tensors["x"].grad
        assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any()), case.text


@pytest.mark.parametrize("optimized", [False, True])
def test_a_sentence_encoder(optimized: bool) -> None:
    path = models.minilm_onnx()
    model = frontends.load(path)
    if optimized:
        optimize_graph(model)
    feeds = models.sentence_inputs()
    with torch.no_grad():
        found = TorchGraph(model).run(feeds)
    for name, right in zip(found, onnxruntime.InferenceSession(path).run(list(found), feeds), strict=True):
        np.testing.assert_allclose(found[name].numpy(), right, rtol=1e-3, atol=1e-5)


def test_a_gradient_passes_to_weights() -> None:
    model = frontends.load(models.efficientnet_lite0_onnx())
    optimize_graph(model)
    graph = TorchGraph(model)
    names = [name for name, w in graph.weights.items() if w.dim() == 4]
    for name in names:
        graph.weights[name].requires_grad_()
    pixels = models.labelled_pictures()[0][:1]
    graph.run({"pixels": pixels})["logits"].square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(float(graph.weights[name].grad.abs().sum()) > 0 for name in names)  # type: ignore[union-attr]


def test_an_operator_without_a_gradient() -> None:
    """Whole numbers need none."""
    signature = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 4] x) => (int64[n] i, float[n, 4] y)'
    text = f"{signature} {{i = ArgMax <axis=1, keepdims=0> (x) y = Hardmax(x)}}"
    graph = TorchGraph(frontends.load(onnx.parser.parse_model(text)))
    x = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    with torch.no_grad():
        found = graph.run({"x": x})
        assert found["y"].tolist() == [[0, 1, 0, 0]] and found["i"].tolist() == [1]
    with pytest.raises(UnsupportedModelError, match="Hardmax"):
        graph.run({"x": x.requires_grad_()})


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"i": np.array([[1, 9]])}, r"Gather 'e' cannot take inputs of shapes \[5, 4\], \[1, 2\]"),
        ({"i": np.zeros((1, 3), np.int64)}, r"Add 'y' cannot take inputs of shapes \[1, 3, 4\], \[2, 4\]"),
    ],
)
def test_data_that_do_not_fit(feeds: dict[str, np.ndarray], said: str) -> None:
    """An id outside the table, and more tokens than there are positions."""
    text = """<ir_version: 10, opset_import: ["": 21]> g (int64[n, m] i) => (float[n, m, 4] y)
        { e = Gather(t, i) y = Add(e, p) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("t", (5, 4)), ("p", (2, 4))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    graph = TorchGraph(ir.from_proto(model))
    with torch.no_grad():
        assert graph.run({"i": np.array([[1, 4]])})["y"].shape == (1, 2, 4)
        with pytest.raises(DataError, match=said):
            graph.run(feeds)


@pytest.mark.parametrize("chosen", [True, False])
def test_bodies_that_read_values_around_them(chosen: bool) -> None:
    """What only a body reads is there when the node's turn comes; gradients pass through the branch taken."""
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[n, 4] x, bool c) => (float[n, 4] y)
        <float[1] w = {-1}> {
        h = Relu(x)
        k = Exp(x)
        z = If (c) <then_branch = t () => (float[n, 4] a) { a = Mul(h, w) },
                    else_branch = e () => (float[n, 4] b) { b = Add(h, k) }>
        y = Mul(z, x) }"""
    model = frontends.load(onnx.parser.parse_model(text))
    x = np.array([[1.0, -3.0, 2.0, 0.5]], np.float32)
    graph = TorchGraph(model)
    with torch.no_grad():
        found = graph.run({"x": x, "c": np.array(chosen)})["y"].numpy()
    relu = np.maximum(x, 0)
    np.testing.assert_allclose(found, (-relu if chosen else relu + np.exp(x)) * x, rtol=1e-6)
    given = torch.from_numpy(x).requires_grad_()
    graph.run({"x": given, "c": np.array(chosen)})["y"].sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    slope = -2 * relu if chosen else 2 * relu + np.exp(x) * (1 + x)
    np.testing.assert_allclose(given.grad.numpy(), slope, rtol=1e-5)


def test_a_cast_to_a_type_that_is_not_computed_with() -> None:
    """It runs by the reference where PyTorch can hold the type, and is refused where not."""
    x = np.array([1.5, 3.0], np.float32)

    def cast(name: str) -> torch.Tensor:
        kind = onnx.TensorProto.DataType.Value(name.upper())
        text = f"""<ir_version: 10, opset_import: ["": 21]> g (float[n] x) => ({name}[n] y)
            {{ y = Cast<to={kind}>(x) }}"""
        return TorchGraph(ir.from_proto(onnx.parser.parse_model(text))).run({"x": x})["y"]

    assert cast("uint32").tolist() == [1, 3]
    with pytest.raises(UnsupportedModelError, match="float8_e4m3fn"):
        cast("float8e4m3fn")


def test_types_that_pytorch_has_not_are_refused() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (int64[n] i) => (float8e4m3fn[n] y)
        <float8e4m3fn[3] w = {1, 2, 3}> { y = Gather(w, i) }"""
    with pytest.raises(UnsupportedModelError, match="float8_e4m3fn"):
        TorchGraph(ir.from_proto(onnx.parser.parse_model(text)))


EXACT = {
    "RMSNormalization of large float16": (
        "(float16[1, 2] x) => (float16[1, 2] y) { w = Constant<value = float[2] {1, 1}>() "
        "s = Cast<to = 10>(w) y = RMSNormalization(x, s) }",
        np.array([[300, 300]], np.float16),
        np.array([[1, 1]], np.float16),
    ),
    "nearest Resize by a fraction": (
        "(float[1, 1, 3] x) => (float[1, 1, m] y) { s = Constant<value = float[3] {1, 1, 2.3}>() "
        'y = Resize<mode = "nearest">(x, , s) }',
        np.array([[[0, 1, 2]]], np.float32),
        np.array([[[0, 0, 1, 1, 1, 2]]], np.float32),
    ),
    "ConvTranspose with more behind": (
        "(float[1, 1, 1] x) => (float[1, 1, 2] y) { w = Constant<value = float[1, 1, 1] {1}>() "
        "b = Constant<value = float[1] {5}>() "
        "y = ConvTranspose<strides = [2], output_padding = [1]>(x, w, b) }",
        np.array([[[2]]], np.float32),
        np.array([[[7, 5]]], np.float32),
    ),
    "Slice to before the first": (
        "(float[3] x) => (float[m] y) { s = Constant<value = int64[1] {0}>() "
        "e = Constant<value = int64[1] {-9223372036854775807}>() y = Slice(x, s, e) }",
        np.array([1, 2, 3], np.float32),
        np.zeros(0, np.float32),
    ),
    "InstanceNormalization of one element": (
        "(float[1, 2, 1] x) => (float[1, 2, 1] y) { s = Constant<value = float[2] {3, 4}>() "
        "y = InstanceNormalization(x, s, s) }",
        np.array([[[8], [9]]], np.float32),
        np.array([[[3], [4]]], np.float32),
    ),
    "ReduceMean of integers": (
        "(int64[3] x) => (int64[1] y) { y = ReduceMean(x) }",
        np.array([1, 2, 6]),
        np.array([3]),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_where_pytorch_says_something_else(name: str) -> None:
    text, x, right = EXACT[name]
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> g {text}')
    with torch.no_grad():
        found = TorchGraph(ir.from_proto(model)).run({"x": x})["y"].numpy()
    np.testing.assert_allclose(found, right, rtol=2e-3)
    assert found.dtype == right.dtype
