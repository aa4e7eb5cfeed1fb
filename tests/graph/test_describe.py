import onnx_ir as ir

from hasten.graph.describe import describe_node


def test_a_node_is_called_by_its_name_or_else_by_its_output() -> None:
    named = ir.Node("", "MatMul", [], name="encoder.layer.0")
    unnamed = ir.Node("com.microsoft", "FusedMatMul", [], outputs=[ir.Value(name="h")])
    assert describe_node(named) == "MatMul 'encoder.layer.0'"
    assert describe_node(unnamed) == "com.microsoft.FusedMatMul 'h'"
    assert describe_node(ir.Node("", "Relu", [])) == "Relu"
