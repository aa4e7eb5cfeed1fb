import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.loops.descriptions import Gemm
from hasten.loops.expr import Load, Op, const, walk

RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def windows(data, rank, padding=True):
    """Kernel, strides, dilations, pads and sizes for which there is an output."""
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    attributes = {
        "strides": [data.draw(st.integers(1, 3)) for _ in range(rank)],
        "dilations": [data.draw(st.integers(1, 2)) for _ in range(rank)],
    }
    if padding and data.draw(st.booleans()):
        attributes["pads"] = [data.draw(st.integers(0, 2)) for _ in range(2 * rank)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, attributes["dilations"], strict=True)]
    extents = [r + data.draw(st.integers(0, 4)) for r in reach]
    return kernel, attributes, extents


@pytest.mark.parametrize("rank", [1, 2, 3])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_convolution(check_node, rank, data):
    kernel, attributes, extents = windows(data, rank)
    group = data.draw(st.sampled_from([1, 2, 3]))
    per_input, per_group = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 7, 17]))
    x = floats(2, group * per_input, *extents)
    w = floats(group * per_group, per_input, *kernel)
    bias = floats(group * per_group) if data.draw(st.booleans()) else None
    spatial = [f"s{d}" for d in range(rank)] if data.draw(st.booleans()) else extents
    check_node(
        "Conv",
        [x, w, bias],
        constant=[1, 2],
        symbolic={0: ["n", group * per_input, *spatial]},
        group=group,
        **attributes,
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_padding(check_node, auto_pad, stride):
    w = floats(4, 2, 3, 2)
    for extents in ((5, 6), (6, 5)):
        for spatial in (extents, ("h", "w")):
            check_node(
                "Conv",
                [floats(1, 2, *extents), w],
                constant=[1],
                symbolic={0: [1, 2, *spatial]},
                auto_pad=auto_pad,
                strides=[stride, stride],
                onnxruntime=True,
            )


def conditions(definition) -> int:
    body = definition.body.a if isinstance(definition.body, Gemm) else definition.body
    return sum(isinstance(e, Op) and e.op in ("le", "lt") for e in walk(body))


def test_forms_of_convolution(check_node):
    """What code generation relies on: one contraction, bias apart, no condition without padding."""
    x, symbolic = floats(1, 6, 8, 8), {0: ["n", 6, "h", "w"]}
    w, bias = floats(4, 6, 3, 3), floats(4)
    program = check_node("Conv", [x, w, bias], constant=[1, 2], symbolic=symbolic).program
    product = program.definitions["y_product"]
    assert isinstance(product.body, Gemm)
    assert [v.name for v in product.vars] == ["n", "oc", "oh", "ow"]
    assert [v.name for v in product.body.rows] == ["n", "oh", "ow"]
    assert [v.name for v in product.body.taps] == ["kh", "kw"]
    assert conditions(product) == 0

    program = check_node("Conv", [x, w], constant=[1], symbolic=symbolic, pads=[1, 1, 1, 1]).program
    assert program.definitions["y"].shape[2:] == program.inputs["x0"].shape[2:]
    assert conditions(program.definitions["y"]) == 4

    # With stride 2 the last element of an even size is not padding: only the front is checked.
    program = check_node("Conv", [x, w], constant=[1], pads=[1, 1, 1, 1], strides=[2, 2]).program
    assert conditions(program.definitions["y"]) == 2

    pointwise = check_node("Conv", [x, floats(4, 6, 1, 1)], constant=[1], symbolic=symbolic).program
    assert pointwise.definitions["y"].body.taps == ()

    wide = [x, floats(40, 3, 3, 3), floats(40)]
    grouped = check_node("Conv", wide, constant=[1, 2], group=2).program
    assert [v.name for v in grouped.definitions["y_product"].body.batch] == ["g"]
    assert isinstance(grouped.definitions["y"].body, Load)  # the bias is added to the product

    # A panel takes as long for few columns: groups that have few are computed as one, beside zeros.
    joined = check_node("Conv", [x, floats(4, 3, 3, 3)], constant=[1], group=2).program
    assert (joined.definitions["y"].body.batch, joined.definitions["y"].body.depth.extent) == ((), const(6))

    depthwise = check_node("Conv", [x, floats(12, 1, 3, 3)], constant=[1], group=6).program
    assert not isinstance(depthwise.definitions["y"].body, Gemm)


@pytest.mark.parametrize("rank", [1, 2, 3])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_transposed_convolution(check_node, rank, data):
    kernel, attributes, _ = windows(data, rank, padding=False)
    strides = attributes["strides"]
    attributes["output_padding"] = [data.draw(st.integers(0, s - 1)) for s in strides]
    extents = [data.draw(st.integers(2, 4)) for _ in range(rank)]
    # Padding takes away from the output, of which something must be left.
    attributes["pads"] = [data.draw(st.integers(0, min(k - 1, 1))) for k in kernel] * 2
    group = data.draw(st.sampled_from([1, 2]))
    per_input, per_group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    x = floats(2, group * per_input, *extents)
    w = floats(group * per_input, per_group, *kernel)
    bias = floats(group * per_group) if data.draw(st.booleans()) else None
    spatial = [f"s{d}" for d in range(rank)] if data.draw(st.booleans()) else extents
    check_node(
        "ConvTranspose",
        [x, w, bias],
        constant=[1, 2],
        symbolic={0: ["n", group * per_input, *spatial]},
        group=group,
        onnxruntime=True,
        **attributes,
    )


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 2])
def test_transposed_convolution_is_one_product_and_movement(check_node, rank, group, taps):
    strides = [2, 3, 1][:rank]
    kernel = [s * taps for s in strides]
    x, w = floats(2, 4, *(3, 2, 4)[:rank]), floats(4, 17, *kernel)
    definitions = check_node(
        "ConvTranspose",
        [x, w, floats(17 * group)],
        constant=[1, 2],
        symbolic={0: ["n", 4, *"hwd"[:rank]]},
        strides=strides,
        pads=[taps - 1] * 2 * rank,
        group=group,
        onnxruntime=True,
    ).program.definitions
    product = definitions["y_product"].body
    assert isinstance(product, Gemm)
    assert [v.extent for v in product.taps] == [const(taps)] * (rank if taps > 1 else 0)
    assert product.column.extent == const(17 * int(np.prod(strides)))
    assert isinstance(definitions["y"].body, Load)  # the bias is added to the product


def test_transposed_convolution_of_stride_1_is_a_convolution(check_node):
    x, w = floats(1, 4, 6, 6), floats(4, 3, 3, 3)
    definitions = check_node(
        "ConvTranspose", [x, w], constant=[1], pads=[1] * 4, symbolic={0: ["n", 4, "h", "w"]}
    ).program.definitions
    assert isinstance(definitions["y"].body, Gemm)


def test_transposed_convolution_with_a_given_output_shape(check_node):
    x, w = floats(1, 2, 4, 5), floats(2, 3, 3, 3)
    for auto_pad in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
        check_node(
            "ConvTranspose",
            [x, w],
            constant=[1],
            strides=[2, 2],
            auto_pad=auto_pad,
            output_shape=[8, 9],
            onnxruntime=True,
        )
