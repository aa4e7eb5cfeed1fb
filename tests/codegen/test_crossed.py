"""Maps that read a tensor across its memory order: whole blocks, remainders, and what is computed on top."""

import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (48, 33), (17, 1), (5, 300), (21, 2100), (16, 1024)])
@pytest.mark.parametrize("named", [True, False])
def test_a_matrix_is_transposed(shape, named):
    dims = ["n", "m"] if named else list(shape)
    case("Transpose", [("float32", dims)], perm=[1, 0]).check(RNG.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 3, 2), (3, 2, 1, 0)])
def test_axes_among_others(perm):
    prepared = case("Transpose", [("float32", ["n", 19, 20, 37])], perm=list(perm))
    for n in (1, 3):
        prepared.check(RNG.standard_normal((n, 19, 20, 37)).astype(np.float32))


def test_arithmetic_on_top(tmp_path):
    import onnx.parser
    import onnxruntime

    import hasten

    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
      g (float[n,35,41] x, float[41,1] scale, float[n,41,35] other) => (float[n,41,35] y) {
        t = Transpose<perm=[0,2,1]>(x)  e = Exp(t)  s = Mul(e, scale)  y = Add(s, other) }""")
    session = hasten.compile(proto, cache=tmp_path)
    reference = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 4):
        shapes = {"x": (n, 35, 41), "scale": (41, 1), "other": (n, 41, 35)}
        feeds = {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
        found, expected = session.run(feeds)["y"], reference.run(None, feeds)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_read_under_a_condition_is_not_read_elsewhere(tmp_path):
    """A border whose value is computed: pages before and behind the input may not be touched."""
    import ctypes
    import mmap

    import onnx.parser

    import hasten

    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
      g (float[1,32,56,56] x, float value, float[1] k) => (float[1,58,58,32] z)
      <int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}> {
        y = Pad(x, pads, value)  t = Transpose<perm=[0,2,3,1]>(y)  z = Mul(t, k) }""")
    session = hasten.compile(proto, cache=tmp_path)
    page, size = mmap.PAGESIZE, 32 * 56 * 56 * 4
    between = -(-size // page)
    place = mmap.mmap(-1, (between + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(place))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for fence in (start, start + (between + 1) * page):
        assert protect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    for offset in (page, (between + 1) * page - size):
        x = np.frombuffer(place, np.float32, size // 4, offset).reshape(1, 32, 56, 56)
        x[...] = RNG.standard_normal(x.shape)
        found = session.run({"x": x, "value": np.float32(3), "k": np.ones(1, np.float32)})
        expected = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=3)
        np.testing.assert_array_equal(found["z"], expected.transpose(0, 2, 3, 1))
