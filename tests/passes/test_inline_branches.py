import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from hasten.frontends import load
from hasten.passes.pipeline import optimize_graph

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[n,4,1] x) => (float[n,4] y, float[n,4] z) {
  last = Constant<value_ints = [2]>()
  dims = Shape<start = 2, end = 3>(x)
  one = Constant<value_ints = [1]>()
  single = Equal(dims, one)
  flag = Squeeze(single)
  y = If(flag) <then_branch = t () => (float[n,4] a) { s = Squeeze(x, last)  a = Relu(s) },
                else_branch = e () => (float[n,4,1] a) { a = Identity(x) }>
  never = Not(flag)
  w = If(never) <then_branch = t () => (float[n,4] a) { a = Squeeze(x, last) },
                 else_branch = e () => (float[n,4] a) {
                   two = Constant<value_float = 2.0>()  s = Squeeze(x, last)  a = Mul(s, two) }>
  z = Add(w, y)
}"""


def test_known_branches_take_the_place_of_their_nodes():
    proto = onnx.parser.parse_model(MODEL)
    model = load(proto)
    report = optimize_graph(model)
    assert "If" not in {node.op_type for node in model.graph}
    assert dict(report.simplified)["take known branches"] == 2
    names = [v.name for node in model.graph for v in node.outputs]
    assert len(set(names)) == len(names)
    x = np.random.default_rng(0).standard_normal((3, 4, 1)).astype(np.float32)
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    flat = x[..., 0]
    np.testing.assert_allclose(found[0], np.maximum(flat, 0))
    np.testing.assert_allclose(found[1], flat * 2 + np.maximum(flat, 0), rtol=1e-6)
