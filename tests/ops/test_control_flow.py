"""Bodies of If, Loop and Scan are compiled, and agree with ONNX Runtime."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import hasten
from hasten.errors import HostOperatorWarning, InputError, UnsupportedModelError
from hasten.onnx_backend import prepare_all
from hasten.runtime.manifest import LoopStep, NativeStep, nested
from hasten.runtime.session import Session

RNG = np.random.default_rng(0)
F32 = np.float32


def model(graph: str, opset: int = 21) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{graph}')


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F32)


def steps(session: Session) -> list[object]:
    assert session._opened is not None
    return list(nested(session._opened.artifact.manifest.steps))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[str, Session]:
    """All models, compiled at once."""
    made = prepare_all([model(text) for text in MODELS.values()], tmp_path_factory.mktemp("cache"))
    return {name: rep.session for name, rep in zip(MODELS, made, strict=True)}


def check(session: Session, name: str, *examples: dict[str, np.ndarray]) -> None:
    proto = model(MODELS[name])
    assert not session.report["host"]
    reference = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for feeds in examples:
        for found, expected in zip(session.run(feeds).values(), reference.run(None, feeds), strict=True):
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


BRANCHES = """g (float[n,4] x, bool c) => (float[n,k] y, float[n,4] same, float[a,b] captured) {
  w = Constant<value = float[4] {1, 2, 3, 4}>()
  z = Mul(x, w)
  y, same, captured = If(c)
    <then_branch = t () => (float[n,4] a, float[n,4] b, float[n,4] d) {
       a = Add(z, x)  b = Add(x, w)  d = Identity(z) },
     else_branch = e () => (float[m,2] a, float[n,4] b, float[1,4] d) {
       s = Constant<value_ints=[0]>()  e1 = Constant<value_ints=[2]>()  ax = Constant<value_ints=[1]>()
       a = Slice(z, s, e1, ax)
       b = Neg(x)
       d = Unsqueeze(w, s) }>
}"""


def test_branches_of_other_shapes(prepared):
    session = prepared["branches"]
    check(session, "branches", *({"x": normal(3, 4), "c": np.array(c)} for c in (True, False, True)))
    assert session.outputs[0].shape[0] == session.outputs[1].shape[0] == "n"
    with pytest.raises(InputError, match="shape"):
        session.run({"x": normal(3, 5), "c": np.array(True)})


LOOP = """g (float[n,4] x, int64 m) => (float[n,p] y, float s, float[q,n,4] rows) {
  c = Constant<value = bool {1}>()
  start = Constant<value_float=2.0>()
  y, s, rows = Loop(m, c, x, start) <body = b (int64 i, bool k, float[n,p] h, float s1)
      => (bool k2, float[n,p2] h2, float s2, float[n,4] r) {
     k2 = Identity(k)
     f = Cast<to=1>(i)
     t = Mul(x, f)
     r = Add(t, s1)
     h2 = Concat<axis=1>(h, r)
     s2 = Add(s1, f)
  }>
}"""


def test_states_that_grow_and_rows(prepared):
    session = prepared["loop"]
    sizes = ((3, 1), (2, 40), (3, 5))
    check(session, "loop", *({"x": normal(n, 4), "m": np.array(m)} for n, m in sizes))
    x = normal(3, 4)
    none = session.run({"x": x, "m": np.array(-1)})
    np.testing.assert_array_equal(none["y"], x)
    assert none["rows"].shape == (0, 3, 4)
    assert not np.may_share_memory(none["y"], x)
    # Nothing changes the condition, so nobody computes it.
    assert not any("Identity" in k for s in steps(session) if isinstance(s, NativeStep) for k in s.kernels)


WHILE = """g (float x, float limit) => (float y, int64[q] rows) {
  y, rows = Loop(, , x) <body = b (int64 i, bool k, float h) => (bool k2, float h2, int64 r) {
     two = Constant<value_float=2.0>()
     h2 = Mul(h, two)
     k2 = Less(h2, limit)
     r = Identity(i)
  }>
}"""


def test_a_condition_ends_a_loop(prepared):
    examples = [{"x": np.array(x, F32), "limit": np.array(100, F32)} for x in (3, 1000)]
    check(prepared["while"], "while", *examples)


WIDENED = """g (float[16,n] x, float[16,k] z) => (float[16,q] y, float[16,r] all) {
  three = Constant<value_int=3>()
  pads = Constant<value_ints=[0,1,0,2]>()
  wide = Pad(x, pads)
  y = Loop(three, , wide) <body = b (int64 i, bool go, float[16,w] h) => (bool go2, float[16,w2] h2) {
     h2 = Add(h, z)
     go2 = Identity(go)
  }>
  all = Concat<axis=1>(z, x, y)
}"""


def test_a_state_of_computed_length(prepared):
    """Its length follows from inputs: what comes before the loop does not wait for the loop's answer."""
    check(prepared["widened"], "widened", *({"x": normal(16, n), "z": normal(16, n + 3)} for n in (2, 5)))


NESTED = """g (float[n] x, int64 m) => (float[n] y) {
  c = Constant<value = bool {1}>()
  y = Loop(m, c, x) <body = b (int64 i, bool k, float[n] h) => (bool k, float[n] h2) {
     one = Constant<value_int=1>()
     odd = BitwiseAnd(i, one)
     flag = Cast<to=9>(odd)
     h2 = If(flag) <then_branch = t () => (float[n] a) {
             a = Loop(i, c, h) <body = d (int64 j, bool k3, float[n] g1) => (bool k3, float[n] g2) {
               g2 = Add(g1, x) }> },
          else_branch = e () => (float[n] a) { a = Mul(h, x) }>
  }>
}"""


def test_bodies_in_bodies(prepared):
    examples = [{"x": normal(n), "m": np.array(m)} for n, m in ((5, 6), (1, 1))]
    check(prepared["nested"], "nested", *examples)
    assert sum(isinstance(s, LoopStep) for s in steps(prepared["nested"])) == 2


SCAN = """g (float[b,t,4] x, float[b,4] h0, float[t,4] z) => (float[b,4] h, float[b,t,4] ys) {
  h, ys = Scan<num_scan_inputs=2, scan_input_axes=[1,0], scan_input_directions=[WAY,0],
               scan_output_axes=[-2], scan_output_directions=[WAY],
               body = b (float[b,4] s, float[b,4] e, float[4] f) => (float[b,4] s2, float[b,4] r) {
     a = Add(s, e)  s2 = Tanh(a)  v = Mul(s2, e)  r = Add(v, f) }>(h0, x, z)
}"""


@pytest.mark.parametrize("name", ["scan", "scan backwards"])
def test_slices_and_rows_along_any_axis(prepared, name):
    examples = [{"x": normal(2, t, 4), "h0": normal(2, 4), "z": normal(t, 4)} for t in (5, 1, 40)]
    check(prepared[name], name, *examples)
    empty = prepared[name].run({"x": normal(2, 0, 4), "h0": examples[0]["h0"], "z": normal(0, 4)})
    np.testing.assert_array_equal(empty["h"], examples[0]["h0"])
    assert empty["ys"].shape == (2, 0, 4)


GREEDY = """g (int64[b,1] first, float[b,t,8] memory, int64 most) => (int64[b,s] tokens, float[b,u,8] cache) {
  yes = Constant<value = bool {1}>()
  base = Constant<value_floats = [0.3, -1.2, 0.8, 1.9, -0.4, 0.1, -2.0, 0.7]>()
  row = Constant<value_ints = [1, 8]>()
  square = Constant<value_ints = [16, 1]>()
  wide = Reshape(base, row)
  first16 = Constant<value_floats = [1.0, 7.0, 3.0, 9.0, 2.0, 6.0, 0.0, 4.0,
    8.0, 5.0, 1.5, 3.5, 7.5, 9.5, 0.5, 2.5]>()
  tall = Reshape(first16, square)
  mixed = MatMul(tall, wide)
  table = Sin(mixed)
  head = Transpose<perm = [1, 0]>(table)
  empty = Shape<start=0, end=1>(memory)
  tail = Constant<value_ints=[0, 8]>()
  dims = Concat<axis=0>(empty, tail)
  past = ConstantOfShape(dims)
  final, tokens, cache = Loop(most, yes, first, first, past) <body = step (int64 i, bool go, int64[b,1] token,
      int64[b,s0] written, float[b,u0,8] kept)
      => (bool go2, int64[b,1] next, int64[b,s1] written2, float[b,u1,8] kept2) {
    h = Gather(table, token)
    kept2 = Concat<axis=1>(kept, h)
    turned = Transpose<perm=[0,2,1]>(kept2)
    scores = MatMul(h, turned)
    weights = Softmax<axis=-1>(scores)
    own = MatMul(weights, kept2)
    across = Transpose<perm=[0,2,1]>(memory)
    scores2 = MatMul(own, across)
    weights2 = Softmax<axis=-1>(scores2)
    seen = MatMul(weights2, memory)
    logits = MatMul(seen, head)
    next = ArgMax<axis=-1, keepdims=0>(logits)
    written2 = Concat<axis=1>(written, next)
    end = Constant<value_int=0>()
    others = Equal(next, end)
    same = Cast<to=7>(others)
    all = ReduceMin<keepdims=0>(same)
    ended = Cast<to=9>(all)
    go2 = Not(ended)
  }>
}"""


def test_greedy_decoding_with_a_cache(prepared):
    examples = [
        {"first": RNG.integers(1, 16, (b, 1)), "memory": 3 * normal(b, t, 8), "most": np.array(most)}
        for b, t, most in ((1, 6, 7), (3, 4, 20), (1, 1, 3))
    ]
    check(prepared["greedy"], "greedy", *examples)
    parts = [s for s in steps(prepared["greedy"]) if isinstance(s, NativeStep)]
    assert len(parts) == 2, "a step is one compiled part"


STATES = """g (float16[n] x, int64 m) => (float16[n] y, float16[q,n] rows) {
  c = Constant<value = bool {1}>()
  y, rows = Loop(m, c, x) <body = b (int64 i, bool k, float16[n] h) => (bool k, float16[n] h2, float16[n] r) {
     h2 = Mul(h, x)  r = Identity(h2) }>
}"""


def test_states_of_narrow_types(prepared):
    check(prepared["states"], "states", {"x": normal(6).astype(np.float16), "m": np.array(3)})


INDEPENDENT = """g (float[n,8] x, float[t,n,8] z, float[8] h0)
    => (float[8] h, float[n,t] ys, float[8,t] same, float[t,n,8] plain) {
  w = Constant<value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}>()
  h, ys, same, plain = Scan<num_scan_inputs=1, scan_input_directions=[WAY], scan_output_axes=[1, -1, 0],
               scan_output_directions=[WAY, 0, 0],
               body = b (float[8] s, float[n,8] e) => (float[8] s2, float[n] r, float[8] c, float[n,8] p) {
     s2 = Identity(s)  d = Sub(x, e)  dw = Mul(d, w)  axes = Constant<value_ints=[1]>()
     r = ReduceSumSquare<keepdims=0>(dw, axes)  c = Identity(s)  p = Mul(e, s) }>(h0, z)
}"""

COUNTED = """g (float[n] x) => (float[5,n] rows) {
  m = Constant<value_int=5>()  c = Constant<value = bool {1}>()
  rows = Loop(m, c) <body = b (int64 i, bool k) => (bool k2, float[n] r) {
     k2 = Identity(k)  f = Cast<to=1>(i)  r = Mul(x, f) }>
}"""


@pytest.mark.parametrize("name", ["independent", "independent backwards", "counted"])
def test_steps_that_do_not_depend_on_each_other_need_no_loop(prepared, name):
    if name == "counted":
        examples = [{"x": normal(n)} for n in (1, 6)]
    else:
        sizes = [(3, 5), (1, 1), (2, 40)]
        examples = [{"x": normal(n, 8), "z": normal(t, n, 8), "h0": normal(8)} for n, t in sizes]
        empty = prepared[name].run({**examples[0], "z": normal(0, 3, 8)})
        assert empty["ys"].shape == (3, 0) and empty["same"].shape == (8, 0)
    check(prepared[name], name, *examples)
    assert not any(isinstance(s, LoopStep) for s in steps(prepared[name]))


MODELS = {
    "independent": INDEPENDENT.replace("WAY", "0"),
    "independent backwards": INDEPENDENT.replace("WAY", "1"),
    "counted": COUNTED,
    "branches": BRANCHES,
    "loop": LOOP,
    "while": WHILE,
    "widened": WIDENED,
    "nested": NESTED,
    "scan": SCAN.replace("WAY", "0"),
    "scan backwards": SCAN.replace("WAY", "1"),
    "greedy": GREEDY,
    "states": STATES,
}


def test_what_cannot_be_compiled_stays_on_the_host_within_a_body(tmp_path):
    proto = model("""g (float[n] x, int64 m) => (float[q] y) {
      c = Constant<value = bool {1}>()
      start = SequenceEmpty()
      all = Loop(m, c, start) <body = b (int64 i, bool k, seq(float[n]) h) => (bool k, seq(float[n]) h2) {
         f = Cast<to=1>(i)  r = Mul(x, f)  h2 = SequenceInsert(h, r) }>
      y = ConcatFromSequence<axis=0>(all)
    }""")
    with pytest.warns(HostOperatorWarning):
        session = hasten.compile(proto, cache=tmp_path)
    assert any("SequenceInsert" in name for name in session.report["host"])
    assert not any("Loop" in name for name in session.report["host"])
    x = normal(3)
    found = session.run({"x": x, "m": np.array(3)})["y"]
    np.testing.assert_array_equal(found, np.concatenate([x * k for k in range(3)]))


def test_a_loop_that_never_ends_is_refused(tmp_path):
    endless = WHILE.replace("Less(h2, limit)", "Identity(k)")
    with pytest.raises(UnsupportedModelError, match="would never end: it has no trip count"):
        hasten.compile(model(endless), cache=tmp_path)


def test_values_that_do_not_fit(tmp_path):
    proto = model("""g (float[n] x, int64[k] m) => (float[q,p] rows) {
      c = Constant<value = bool {1}>()
      y, rows = Loop(m, c, x) <body = b (int64 i, bool k, float[n] h) => (bool k, float[n2] h2, float[n2] r) {
         h2 = Concat<axis=0>(h, x)  r = Identity(h2) }>
    }""")
    session = hasten.compile(proto, cache=tmp_path)
    with pytest.raises(InputError, match=r"trip count of Loop .* has the shape \[2\]"):
        session.run({"x": normal(3), "m": np.array([1, 2])})
    with pytest.raises(InputError, match=r"gives \[9\] in step 1 and \[6\] in the steps before"):
        session.run({"x": normal(3), "m": np.array([2])})
