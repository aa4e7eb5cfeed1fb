"""Parameters that are no constants: one lowering serves all values that a call may give."""

import itertools

import numpy as np
import pytest
from tests.ops.conformance import case

from hasten.errors import InputError
from hasten.loops.evaluate import evaluate

X = ("float32", ["n", 3, "m"])
INT64 = "int64"


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 7 - 2


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("name", ["Sum", "Mean", "Max", "LogSumExp", "L2"])
def test_reductions(name, keepdims):
    x = ramp(2, 3, 4)
    for count in (1, 2, 3):
        prepared = case(f"Reduce{name}", [X, (INT64, [count])], keepdims=keepdims)
        for axes in itertools.permutations(range(3), count):
            prepared.check(x, ints(*axes))
        prepared.check(x, ints(*range(-count, 0)))


def test_axes_that_are_not_there_or_are_listed_twice():
    program = case("ReduceSum", [X, (INT64, [2])]).program
    for axes in ((0, 3), (-4, 1), (1, -2)):
        with pytest.raises(InputError, match=r"ReduceSum 'it' needs .*ax[ei]s.*x1\[0\] = "):
            evaluate(program, {"x0": ramp(2, 3, 4), "x1": ints(*axes)})


def test_squeeze_and_unsqueeze():
    squeeze = case("Squeeze", [("float32", ["n", "a", 3, "b"]), (INT64, [2])])
    for shape, axes in (((5, 1, 3, 1), (1, 3)), ((1, 1, 3, 7), (0, -3)), ((1, 4, 3, 1), (-1, 0))):
        squeeze.check(ramp(*shape), ints(*axes))
    with pytest.raises(InputError, match="Squeeze"):
        evaluate(squeeze.program, {"x0": ramp(2, 1, 3, 1), "x1": ints(0, 1)})
    unsqueeze = case("Unsqueeze", [X, (INT64, [2])])
    for axes in ((0, 1), (4, 0), (-1, 2), (1, 3)):
        unsqueeze.check(ramp(2, 3, 4), ints(*axes))


def test_slices():
    prepared = case("Slice", [X, *[(INT64, [2])] * 4])
    far = np.iinfo(np.int64).max
    for starts, ends, axes, steps in (
        ((1, 0), (3, 2), (2, 0), (1, 1)),
        ((-1, 0), (-far, far), (2, 1), (-2, 2)),
        ((100, -100), (-far - 1, 100), (-1, 0), (-1, 1)),
        ((3, 2), (1, 1), (2, 1), (1, -1)),
        ((4, 1), (2, 1), (2, 1), (1, 1)),
    ):
        prepared.check(ramp(2, 3, 5), *(ints(*v) for v in (starts, ends, axes, steps)))
    feeds = {f"x{k}": ints(0, 0) for k in range(1, 5)} | {"x0": ramp(2, 3, 5), "x3": ints(0, 1)}
    with pytest.raises(InputError, match="a step of the slice that is not 0"):
        evaluate(prepared.program, feeds)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_borders(mode):
    prepared = case("Pad", [X, (INT64, [4]), None, (INT64, [2])], mode=mode)
    for pads, axes in (((1, 0, 2, 1), (0, 2)), ((1, 2, 1, 0), (-2, -1)), ((0, 0, 0, 0), (0, 1))):
        prepared.check(ramp(4, 3, 5), ints(*pads), ints(*axes))


def test_shapes():
    reshape = case("Reshape", [X, (INT64, [3])])
    for shape in ((6, 2, 2), (0, -1, 2), (4, 0, -1), (-1, 3, 2), (1, 1, 24)):
        reshape.check(ramp(2, 3, 4), ints(*shape))
    with pytest.raises(InputError, match="Reshape"):
        evaluate(reshape.program, {"x0": ramp(2, 3, 4), "x1": ints(5, 5, 1)})
    expand = case("Expand", [("float32", [3, 1]), (INT64, [3])])
    for shape in ((2, 1, 6), (1, 3, 1), (4, 3, 2), (0, 1, 1)):
        expand.check(ramp(3, 1), ints(*shape))
    with pytest.raises(InputError, match=r"Expand 'it' needs x1\[1\] == 3, or 1"):
        evaluate(expand.program, {"x0": ramp(3, 1), "x1": ints(1, 2, 2)})
    tile = case("Tile", [X, (INT64, [3])])
    for repeats in ((1, 2, 1), (3, 1, 2), (0, 1, 1)):
        tile.check(ramp(2, 3, 4), ints(*repeats))
    constant = case("ConstantOfShape", [(INT64, [2])])
    constant.check(ints(3, 4))
    with pytest.raises(InputError, match="not negative"):
        evaluate(constant.program, {"x0": ints(3, -4)})


def test_parts():
    split = case("Split", [X, (INT64, [3])], outputs=3, axis=2)
    for lengths in ((1, 2, 4), (0, 7, 0), (3, 3, 1)):
        split.check(ramp(2, 3, 7), ints(*lengths))
    with pytest.raises(InputError, match="Split"):
        evaluate(split.program, {"x0": ramp(2, 3, 7), "x1": ints(1, 2, 3)})


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float64", "int16"])
def test_ranges(dtype):
    prepared = case("Range", [(dtype, [])] * 3)
    for values in ((0, 7, 2), (5, 5, 1), (5, 2, 1), (5, 2, -1), (-3, 4, 3), (10, -11, -7)):
        prepared.check(*(np.array(v, dtype) for v in values))


def test_depths_of_any_type():
    for dtype in ("int32", "float32"):
        prepared = case("OneHot", [("int64", ["n"]), (dtype, []), ("float32", [2])], axis=1)
        for depth in (1, 4):
            prepared.check(ints(0, 3, -1), np.array(depth, dtype), np.array([2, 5], np.float32))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("where", ["half_pixel", "align_corners", "asymmetric"])
def test_resize(mode, where):
    given = {"mode": mode, "coordinate_transformation_mode": where, "axes": [1, 2]}
    image = ("float32", ["n", "h", "w"])
    by_size = case("Resize", [image, None, None, (INT64, [2])], **given)
    by_scale = case("Resize", [image, None, ("float32", [2])], **given)
    x = ramp(1, 4, 6)
    for size in ((5, 9), (4, 3), (8, 8), (2, 11)):
        by_size.check(x, ints(*size), atol=1e-4)
    for scales in ((2, 1.5), (0.5, 3), (0.6, 0.8), (1, 2.25)):
        by_scale.check(x, np.array(scales, np.float32), atol=1e-4)
