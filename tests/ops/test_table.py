import onnx

from hasten.graph.opset import OPSET
from hasten.ops.table import OPERATORS, find_op


def test_operators_of_onnx_exist_at_the_internal_opset():
    unknown = [name for domain, name in OPERATORS if domain == "" and not onnx.defs.has(name, OPSET, "")]
    assert unknown == []


def test_operators_are_found_by_domain_and_type():
    found = find_op("", "Relu")
    assert found is not None
    assert found.name == "Relu"
    assert find_op("com.example", "Relu") is None
    assert find_op("", "NonMaxSuppression") is None
