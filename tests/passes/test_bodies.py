"""Bodies of If, Loop and Scan are simplified and fused as the graph around them is."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from tests.onnx_suite.suite import load_cases

from hasten.frontends import load
from hasten.graph.bodies import bodies
from hasten.passes.pipeline import optimize_graph

RNG = np.random.default_rng(0)


def optimize(text, *constants):
    """A model in ONNX's text form, and what it is after all passes."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants)
    model = load(proto)
    report = optimize_graph(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return proto, model, after, report


def same(before, after, feeds):
    expected, found = (ReferenceEvaluator(m).run(None, feeds) for m in (before, after))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=2e-6)


def kinds(graph):
    return Counter(node.op_type for node in graph)


ATTENTION = """
  {p}qt = Transpose<perm = [0, 2, 1, 3]>({p}qh)  {p}kt = Transpose<perm = [0, 2, 3, 1]>({p}kh)
  {p}vt = Transpose<perm = [0, 2, 1, 3]>({p}vh)
  {p}s = MatMul({p}qt, {p}kt)  {p}m = Mul({p}s, root)  {p}w = Softmax<axis = -1>({p}m)
  {p}c = MatMul({p}w, {p}vt)  {p}ct = Transpose<perm = [0, 2, 1, 3]>({p}c)
  {p}flat = Reshape({p}ct, back)
"""


def test_attention_in_a_branch_reads_products_around_it():
    """As merged decoders are: one branch computes its keys, the other is given them."""
    projections = "".join(
        f"{p}{n}p = MatMul(x, w{n})  {p}{n}h = Reshape({p}{n}p, split)  " for p in ("t_",) for n in "qkv"
    )
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    g (float[b,s,8] x, float[b,s,2,4] k, float[b,s,2,4] v, bool again) => (float[b,s,8] y) {{
      eqp = MatMul(x, wq)  e_qh = Reshape(eqp, split)  e_kh = Identity(k)  e_vh = Identity(v)
      y = If(again) <
        then_branch = t () => (float[b,s,8] t_flat) {{ {projections} {ATTENTION.format(p="t_")} }},
        else_branch = e () => (float[b,s,8] e_out) {{
          {ATTENTION.format(p="e_")}  e_cube = Mul(e_flat, e_flat)  e_out = Add(e_cube, e_flat) }}>
    }}"""
    weights = [(f"w{n}", RNG.standard_normal((8, 8), dtype=np.float32)) for n in "qkv"]
    sizes = [("split", np.array([0, 0, 2, 4])), ("back", np.array([0, 0, 8]))]
    root = ("root", np.array(0.5, np.float32))
    before, model, after, report = optimize(text, *weights, *sizes, root)
    (branch,) = (node for node in model.graph if node.op_type == "If")
    taken, other = bodies(branch)
    assert kinds(taken)["Attention"] == kinds(other)["Attention"] == 1
    assert kinds(taken)["MatMul"] == 1, "three projections are one product"
    assert {f.rule for f in report.fused} >= {"fuse Attention"}
    shape = (2, 3, 2, 4)
    feeds = {"x": RNG.standard_normal((2, 3, 8), dtype=np.float32)}
    feeds |= {name: RNG.standard_normal(shape, dtype=np.float32) for name in "kv"}
    for flag in (True, False):
        same(before, after, feeds | {"again": np.array(flag)})


def test_what_a_branch_gives_from_around_it_keeps_its_place():
    """A branch that only names a value from around it still gives it: nothing around it is renamed."""
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[n] x, bool c) => (float[n] y, float[n] r) {
      r = Relu(x)
      y = If(c) <then_branch = t () => (float[n] a) { i = Identity(r)  a = Identity(i) },
                 else_branch = e () => (float[n] b) { d = Add(r, zero)  n = Neg(d)  b = Identity(n) }>
    }"""
    before, model, after, _ = optimize(text, ("zero", np.zeros((), np.float32)))
    (branch,) = (node for node in model.graph if node.op_type == "If")
    taken, other = bodies(branch)
    assert (kinds(taken), kinds(other)) == (Counter(Identity=1), Counter(Neg=1))
    for flag in (True, False):
        same(before, after, {"x": np.array([-1, 2], np.float32), "c": np.array(flag)})


def test_a_match_does_not_reach_out_of_its_body():
    """The square root around the body is used in it alone; the Gelu's first half stays where it is."""
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[n] x, int64 count, bool yes) => (float[n] y) {
      half = Mul(x, point)
      y = Loop(count, yes, x) <body = b (int64 i, bool go, float[n] s) => (bool again, float[n] t) {
        again = Identity(go)
        d = Div(s, two)  e = Erf(d)  p = Add(e, one)  q = Mul(s, p)  g = Mul(q, point)
        t = Add(g, half) }>
    }"""
    numbers = [("two", np.sqrt(2)), ("one", 1), ("point", 0.5)]
    before, model, after, _ = optimize(text, *((n, np.array(v, np.float32)) for n, v in numbers))
    (loop,) = (node for node in model.graph if node.op_type == "Loop")
    (body,) = bodies(loop)
    assert kinds(body) == Counter(Identity=1, Gelu=1, Add=1)
    assert kinds(model.graph) == Counter(Mul=1, Loop=1)
    same(
        before, after, {"x": np.array([-1, 0.5, 2], np.float32), "count": np.array(3), "yes": np.array(True)}
    )


def test_operators_of_other_domains_are_written_in_bodies_too():
    text = """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
    g (float[n,4] x, float[n,4] z, bool c) => (float[n,4] y) {
      y = If(c) <
        then_branch = t () => (float[n,4] a) { a = com.microsoft.SkipLayerNormalization(x, z, gamma, beta) },
        else_branch = e () => (float[n,4] b) { b = com.microsoft.FastGelu(x) }>
    }"""
    weights = [(n, RNG.standard_normal(4, dtype=np.float32)) for n in ("gamma", "beta")]
    _, model, after, _ = optimize(text, *weights)
    (branch,) = (node for node in model.graph if node.op_type == "If")
    assert not any(node.domain for body in bodies(branch) for node in body)
    x, z = RNG.standard_normal((2, 3, 4), dtype=np.float32)
    (found,) = ReferenceEvaluator(after).run(None, {"x": x, "z": z, "c": np.array(True)})
    total = x + z
    centered = total - total.mean(-1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12)
    np.testing.assert_allclose(found, expected * weights[0][1] + weights[1][1], rtol=1e-5, atol=1e-5)


def test_what_is_a_part_of_a_definition_is_left_alone():
    """ONNX puts the scores' function into the text of FlexAttention's definition, which takes few names."""
    (case,) = (c for c in load_cases() if c.key == "node/test_flexattention_relative_positional")
    model = load(case.model)
    (node,) = (n for n in model.graph if n.op_type == "FlexAttention")
    before = [str(n) for body in bodies(node) for n in body]
    optimize_graph(model)
    assert before == [str(n) for body in bodies(node) for n in body]


@pytest.mark.parametrize("flag", [True, False])
def test_names_of_branches_do_not_meet(flag):
    """Both branches give rise to constants and values that would go by the same names."""
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[a,6] x, bool c) => (float[m,k] y) {
      y = If(c) <
        then_branch = t () => (float[m,k] o) { u = Reshape(x, three)  v = Relu(u)  o = Reshape(v, two) },
        else_branch = e () => (float[m,k] o) { u = Reshape(x, two)  v = Neg(u)  o = Reshape(v, three) }>
    }"""
    sizes = [("two", np.array([-1, 2])), ("three", np.array([-1, 3]))]
    before, _, after, _ = optimize(text, *sizes)
    same(before, after, {"x": RNG.standard_normal((2, 6), dtype=np.float32), "c": np.array(flag)})
