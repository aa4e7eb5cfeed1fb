import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.loops.program import Program
from hasten.ops.base import Declined, Lowering
from hasten.ops.normalization import lower_batch_normalization

RNG = np.random.default_rng(1)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_layer_and_rms_normalization(check_node, data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    tail = shape[axis:]
    symbolic = {0: [f"n{d}" if d < len(shape) + axis else n for d, n in enumerate(shape)]}
    symbolic = symbolic if axis < 0 else {}
    bias = floats(*tail) if data.draw(st.booleans()) else None
    epsilon = data.draw(st.sampled_from([1e-5, 1e-2]))
    x, scale = floats(*shape), floats(*tail)
    tolerance = 1e-3  # deviations of one or two elements cancel against the small epsilon
    check_node(
        "LayerNormalization",
        [x, scale, bias],
        symbolic=symbolic,
        axis=axis,
        epsilon=epsilon,
        tolerance=tolerance,
    )
    check_node("RMSNormalization", [x, scale], symbolic=symbolic, axis=axis, epsilon=epsilon)


@pytest.mark.parametrize("outputs", [("y", "mean"), ("y", "mean", "inverse"), ("y", "", "inverse")])
def test_layer_normalization_with_statistics(check_node, outputs):
    check_node("LayerNormalization", [floats(2, 3, 8), floats(8), floats(8)], outputs=outputs)


def test_layer_normalization_does_not_cancel_far_from_zero(check_node):
    x = floats(2, 64) + 1000
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    ones = np.ones(64, np.float32)
    check_node("LayerNormalization", [x, ones], expected=[expected.astype(np.float32)], tolerance=1e-3)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("constant", [(), (1, 2, 3, 4)])
def test_batch_normalization(check_node, rank, constant):
    x = floats(2, 3, *range(2, rank))
    statistics = [floats(3), floats(3), floats(3), np.abs(floats(3)) + 0.1]
    lowered = check_node(
        "BatchNormalization",
        [x, *statistics],
        constant=constant,
        symbolic={0: ["n", 3, *x.shape[2:]]},
        epsilon=1e-3,
    )
    # Known statistics leave one multiplication and one addition for each element.
    assert len(lowered.program.definitions) == (1 if constant else 3)


def test_batch_normalization_in_training_is_declined():
    ctx = Lowering(Program())
    ctx.begin("it", ("y",))
    tensors = [ctx.constant(floats(1, 3)), *(ctx.constant(floats(3)) for _ in range(4))]
    node = ir.node("BatchNormalization", [], {"training_mode": 1})
    with pytest.raises(Declined, match="training"):
        lower_batch_normalization(ctx, node, tensors)


def test_instance_and_group_normalization(check_node):
    x, symbolic = floats(2, 6, 5, 4), {0: ["n", 6, "h", "w"]}
    check_node("InstanceNormalization", [x, floats(6), floats(6)], symbolic=symbolic, tolerance=1e-4)
    for groups in (1, 2, 3, 6):
        shape = (2, groups, -1)
        g = x.reshape(shape).astype(np.float64)
        g = (g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)
        scale, bias = floats(6), floats(6)
        wide = g.reshape(x.shape) * scale[:, None, None] + bias[:, None, None]
        check_node(
            "GroupNormalization",
            [x, scale, bias],
            symbolic=symbolic,
            num_groups=groups,
            expected=[wide.astype(np.float32)],
        )


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(check_node, p):
    x = np.abs(floats(3, 4, 2))
    x[1] = 0
    for axis in (0, 1, -1):
        check_node("LpNormalization", [x], p=p, axis=axis, symbolic={0: ["a", "b", "c"]})


def test_local_response_normalization(check_node):
    # The reference evaluator only visits as many channels as there are images.
    for size in (1, 2, 3, 5):
        check_node("LRN", [floats(4, 4, 3, 2)], size=size, alpha=0.3, beta=0.6, bias=2.0)


def test_mean_variance_normalization(check_node):
    x = floats(2, 3, 4, 5)
    check_node("MeanVarianceNormalization", [x], symbolic={0: ["n", 3, "h", "w"]}, tolerance=1e-4)
    check_node("MeanVarianceNormalization", [x], axes=[-1, 1], tolerance=1e-4)
