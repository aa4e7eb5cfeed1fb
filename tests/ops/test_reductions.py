import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
NAMES = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_reductions_over_any_axes(check_node, name, data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    axes = [a - len(shape) if data.draw(st.booleans()) else a for a in axes]
    x = np.abs(floats(*shape)) + 0.1 if name == "LogSum" else floats(*shape)
    given_axes = np.array(axes, np.int64) if data.draw(st.booleans()) or axes else None
    check_node(
        f"Reduce{name}",
        [x, given_axes],
        constant=[1],
        symbolic={0: [f"n{d}" for d in range(len(shape))]},
        keepdims=data.draw(st.integers(0, 1)),
        noop_with_empty_axes=data.draw(st.integers(0, 1)),
        tolerance=1e-4,
    )


def test_reductions_of_integers_booleans_and_nothing(check_node):
    whole = RNG.integers(-5, 5, (3, 4)).astype(np.int32)
    wide = {"Sum": whole.sum(1), "Prod": whole.prod(1), "L1": np.abs(whole).sum(1)}
    wide |= {"Max": whole.max(1), "Min": whole.min(1), "SumSquare": (whole**2).sum(1)}
    for name, values in wide.items():
        expected = [values.astype(np.int32)]  # the reference evaluator widens the sums
        arrays = [whole, np.array([1])]
        check_node(f"Reduce{name}", arrays, constant=[1], keepdims=0, expected=expected)
    check_node("ReduceMax", [whole > 0, np.array([0])], constant=[1], keepdims=0)
    empty = np.zeros((2, 0), np.float32)
    for name in ("Sum", "Prod", "Max", "Min", "LogSumExp"):
        check_node(f"Reduce{name}", [empty, np.array([1])], constant=[1])


def test_log_sum_exp_does_not_overflow_and_keeps_infinities(check_node):
    inf = np.float32(np.inf)
    x = np.array([[1000, 999], [-1000, -1001], [-inf, -inf], [inf, 1]], np.float32)
    expected = [np.logaddexp(x[:, 0], x[:, 1])]
    check_node("ReduceLogSumExp", [x, np.array([1])], constant=[1], keepdims=0, expected=expected)


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_position_of_the_extremum_with_ties_and_nan(check_node, name, last):
    ties = RNG.integers(0, 3, (3, 5, 4)).astype(np.float32)
    for axis in (0, 1, -1):
        for keepdims in (0, 1):
            check_node(
                name,
                [ties],
                symbolic={0: ["a", "b", "c"]},
                axis=axis,
                keepdims=keepdims,
                select_last_index=last,
            )
    check_node(name, [ties.astype(np.int64)], axis=1, select_last_index=last)
    nan = np.array([[1, np.nan, 3, np.nan], [4, 9, 9, 2]], np.float32)
    check_node(name, [nan], axis=1, select_last_index=last)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_family_along_each_axis(check_node, name):
    for axis in (0, 1, -1):
        check_node(name, [floats(2, 5, 3)], symbolic={0: ["a", "b", 3]}, axis=axis)
    # The reference evaluator takes the logarithm of a quotient that underflows.
    far = np.array([[1e4, -1e4, 0], [3, 3, 3]], np.float32)
    check_node(name, [far], onnxruntime=name == "LogSoftmax")


def test_softmax_of_masked_scores(check_node):
    inf = np.float32(np.inf)
    x = np.array([[-inf, 1, 2], [-inf, -inf, 0], [np.nan, 1, 2]], np.float32)
    check_node("Softmax", [x])
