import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.conformance import case

from hasten.loops.expr import Op, walk

RNG = np.random.default_rng(4)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pooling(check_node, name, data):
    rank = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [data.draw(st.integers(1, 2)) for _ in range(rank)]
    attributes = {
        "kernel_shape": kernel,
        "strides": [data.draw(st.integers(1, 3)) for _ in range(rank)],
        "pads": [data.draw(st.integers(0, k - 1)) for k in kernel] * 2,
        "dilations": dilations,
        "ceil_mode": data.draw(st.integers(0, 1)),
    }
    if name == "AveragePool":
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
    if name == "LpPool":
        attributes["p"] = data.draw(st.integers(1, 3))
        attributes["ceil_mode"] = 0  # ONNX Runtime, and the reference evaluator, mean something else
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    extents = [r + data.draw(st.integers(0, 5)) for r in reach]
    spatial = [f"s{d}" for d in range(rank)] if data.draw(st.booleans()) else extents
    symbolic = {0: ["n", 2, *spatial]}
    check_node(name, [floats(2, 2, *extents)], symbolic=symbolic, onnxruntime=True, **attributes)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
def test_automatic_padding(check_node, name, auto_pad):
    for stride in (1, 2):
        for extents in ((5, 6), (6, 7)):
            for spatial in (extents, ("h", "w")):
                check_node(
                    name,
                    [floats(1, 2, *extents)],
                    symbolic={0: [1, 2, *spatial]},
                    auto_pad=auto_pad,
                    kernel_shape=[3, 2],
                    strides=[stride, stride],
                    onnxruntime=True,
                )


def test_max_pool_of_bytes_and_of_minus_infinity(check_node):
    attributes = {"kernel_shape": [3], "pads": [1, 1], "onnxruntime": True}
    check_node("MaxPool", [RNG.integers(-128, 0, (1, 2, 7)).astype(np.int8)], **attributes)
    check_node("MaxPool", [RNG.integers(0, 255, (1, 2, 7)).astype(np.uint8)], **attributes)
    lowest = np.full((1, 1, 4), -np.inf, np.float32)
    check_node("MaxPool", [lowest], kernel_shape=[3], pads=[1, 1], expected=[lowest])


def test_average_without_padding_divides_by_a_constant(check_node):
    lowered = check_node(
        "AveragePool", [floats(1, 2, 8, 8)], symbolic={0: [1, 2, "h", "w"]}, kernel_shape=[2, 2]
    )
    found = [e.op for e in walk(lowered.program.definitions["y"].body) if isinstance(e, Op)]
    assert not {"min", "max", "select", "cast"} & set(found)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_pooling_of_whole_images(check_node, rank):
    x = floats(2, 3, *(4, 5, 2)[: rank - 2])
    symbolic = {0: ["n", 3, *"hwd"[: rank - 2]]}
    check_node("GlobalAveragePool", [x], symbolic=symbolic)
    axes = tuple(range(2, rank))
    expected = [x.max(axes, keepdims=True)]  # the reference evaluator only knows pictures
    check_node("GlobalMaxPool", [x], symbolic=symbolic, expected=expected)
    for p in (1, 2, 3):
        norm = (np.abs(x) ** p).sum(axes, keepdims=True) ** np.float32(1 / p)
        check_node("GlobalLpPool", [x], symbolic=symbolic, p=p, expected=[norm])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_where_the_largest_elements_stand(check_node, column, dtype):
    x = RNG.integers(0, 4, (2, 3, 7, 8)).astype(dtype)  # many are equal: the first one counts
    attributes = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "storage_order": column}
    symbolic = {0: ["n", 3, "h", "w"]}
    check_node("MaxPool", [x], outputs=("y", "places"), symbolic=symbolic, onnxruntime=True, **attributes)


def test_elements_back_where_they_stood(check_node):
    x = RNG.permutation(2 * 3 * 6 * 8).reshape(2, 3, 6, 8).astype(np.float32)
    views = x.reshape(2, 3, 3, 2, 4, 2).transpose(0, 1, 2, 4, 3, 5).reshape(2, 3, 3, 4, 4)
    largest, tap = views.max(-1), views.argmax(-1)
    rows, columns = 2 * np.arange(3)[:, None] + tap // 2, 2 * np.arange(4) + tap % 2
    places = np.arange(6).reshape(2, 3, 1, 1) * 48 + rows * 8 + columns
    for more in ([], [np.array([2, 3, 7, 9])]):
        check_node("MaxUnpool", [largest, places, *more], kernel_shape=[2, 2], strides=[2, 2])


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pictures_of_known_size_whose_rows_are_contiguous(op):
    """The window slides along the innermost axis, which is no axis of channels."""
    prepared = case(op, [("float32", [2, 3, 32, 37])], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    prepared.check(np.random.default_rng(0).standard_normal((2, 3, 32, 37)).astype(np.float32))
