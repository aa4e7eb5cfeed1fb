import onnx

from hasten.ops.table import OPERATORS, find_op


def test_operators_of_onnx_exist_at_the_newest_opset():
    newest = onnx.defs.onnx_opset_version()
    unknown = [name for domain, name in OPERATORS if domain == "" and not onnx.defs.has(name, newest, "")]
    assert unknown == []


def test_operators_are_found_by_domain_and_type():
    found = find_op("", "Relu")
    assert found is not None
    assert found.name == "Relu"
    assert find_op("com.example", "Relu") is None
    assert find_op("", "StringNormalizer") is None
