"""Definitions of operators in terms of others."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tests.onnx_suite.suite import load_cases

from hasten.frontends import load
from hasten.graph.functions import function_body


def defined(model):
    """Whether there is a definition of the model's node."""
    loaded = load(model)
    (node,) = (n for n in loaded.graph if n.op_type == "FlexAttention")
    return function_body(node, loaded.opset_imports, "p_") is not None


def test_a_body_with_names_that_onnx_cannot_write_has_no_definition():
    """ONNX writes constants of a body as text; exporters name theirs by paths."""
    (case,) = (c for c in load_cases() if c.key == "node/test_flexattention_relative_positional")
    model = onnx.ModelProto.FromString(case.model)
    assert defined(model)
    (body,) = (a.g for a in model.graph.node[0].attribute if a.type == onnx.AttributeProto.GRAPH)
    last = body.node[-1]
    result, last.output[0] = last.output[0], "before"
    body.initializer.append(numpy_helper.from_array(np.float32(1), "w/one"))
    body.node.append(helper.make_node("Mul", ["before", "w/one"], [result]))
    assert not defined(model)
