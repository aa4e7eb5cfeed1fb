import onnx_ir as ir
import pytest

from hasten.graph.dims import input_dims, name_dims


def _model(inputs: dict[str, list], outputs: dict[str, list]) -> ir.Model:
    def value(name: str, dims: list) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))

    sources = [value(name, dims) for name, dims in inputs.items()]
    nodes = [ir.Node("", "Sum", sources, outputs=[value(name, dims)]) for name, dims in outputs.items()]
    results = [node.outputs[0] for node in nodes]
    graph = ir.Graph(sources, results, nodes=nodes, opset_imports={"": 25}, name="g")
    return ir.Model(graph, ir_version=10)


def _shapes(values: list[ir.Value]) -> list[list[int | str | None]]:
    return [[dim if isinstance(dim, int) else dim.value for dim in value.shape or ()] for value in values]


def test_unknown_sizes_of_inputs_get_readable_names_of_their_own() -> None:
    model = _model({"x": ["?", 3, -1, "?"], "p2o.in:0": [None, "a.b"], "0": ["if"]}, {"y": [1]})
    name_dims(model)
    assert _shapes(model.graph.inputs) == [
        ["x_dim0", 3, "x_dim2", "x_dim3"],
        ["p2o_in_0_dim0", "p2o_in_0_dim1"],
        ["input_0_dim0"],
    ]
    assert input_dims(model)[:3] == ("x_dim0", "x_dim2", "x_dim3")


def test_valid_names_mean_equal_sizes_and_are_never_taken_twice() -> None:
    model = _model({"a": ["batch", "a_dim1"], "b": ["batch"], "a_": [4, None]}, {"y": [1]})
    model.graph.inputs[2].name = "a."
    name_dims(model)
    assert _shapes(model.graph.inputs) == [["batch", "a_dim1"], ["batch"], [4, "a_dim1_2"]]


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        ("batch", "batch"),
        ("2*batch + 1", "2*batch + 1"),
        ("batch//2", "batch//2"),
        ("batch + other", None),
        ("p2o.batch", None),
        ("?", None),
        (-1, None),
        (7, 7),
    ],
)
def test_other_sizes_are_expressions_over_those_of_the_inputs(
    dim: int | str, expected: int | str | None
) -> None:
    model = _model({"x": ["batch"]}, {"y": [dim]})
    name_dims(model)
    assert _shapes(model.graph.outputs) == [[expected]]
