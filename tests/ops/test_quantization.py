import numpy as np
import pytest

RNG = np.random.default_rng(7)
TYPES = (np.uint8, np.int8, np.uint16, np.int16)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_quantize_and_dequantize(check_node, dtype, axis):
    limits = np.iinfo(dtype)
    x = RNG.normal(size=(3, 4, 5)).astype(np.float32) * (limits.max // 4)
    x[0, 0, :4] = [0.5, 1.5, 1e9, -1e9]  # ties, and what does not fit
    extents = () if axis is None else (x.shape[axis],)
    scale = np.abs(RNG.normal(size=extents)).astype(np.float32) + 0.5
    zero = RNG.integers(limits.min // 2, limits.max // 2, extents).astype(dtype)
    attributes = {} if axis is None else {"axis": axis}
    symbolic = {0: ["a", "b", "c"] if axis is None else [3, "b", 5]}
    for zero_point in (zero, None) if dtype is np.uint8 else (zero,):
        arrays = [x, np.asarray(scale), None if zero_point is None else np.asarray(zero_point)]
        check_node("QuantizeLinear", arrays, symbolic=symbolic, **attributes)
    q = RNG.integers(limits.min, limits.max, x.shape).astype(dtype)
    check_node("DequantizeLinear", [q, np.asarray(scale), np.asarray(zero)], symbolic=symbolic, **attributes)
    check_node("DequantizeLinear", [q, np.asarray(scale)], symbolic=symbolic, **attributes)


def test_the_type_of_the_result_may_be_an_attribute(check_node):
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    scale = np.array(0.1, np.float32)
    check_node("QuantizeLinear", [x, scale], output_dtype=3)  # INT8
    check_node("DequantizeLinear", [RNG.integers(-9, 9, (3, 4)).astype(np.int32), scale], output_dtype=1)
