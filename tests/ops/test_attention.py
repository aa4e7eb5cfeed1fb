import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.loops.descriptions import Attention
from hasten.loops.program import Program
from hasten.ops.attention import lower_attention
from hasten.ops.base import Declined, Lowering

RNG = np.random.default_rng(5)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_attention(check_node, data):
    batch, rows, keys = (data.draw(st.integers(1, 3)) for _ in range(3))
    groups, key_heads, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)), 4
    heads, value_size = groups * key_heads, data.draw(st.sampled_from([4, 3]))
    if data.draw(st.booleans()):
        q, k = floats(batch, heads, rows, size), floats(batch, key_heads, keys, size)
        v = floats(batch, key_heads, keys, value_size)
        attributes, symbolic = {}, {0: ["b", heads, "s", size], 1: ["b", key_heads, "t", size]}
        symbolic[2] = ["b", key_heads, "t", value_size]
    else:
        q, k = floats(batch, rows, heads * size), floats(batch, keys, key_heads * size)
        v = floats(batch, keys, key_heads * value_size)
        attributes = {"q_num_heads": heads, "kv_num_heads": key_heads}
        symbolic = {0: ["b", "s", heads * size], 1: ["b", "t", key_heads * size]}
        symbolic[2] = ["b", "t", key_heads * value_size]
    mask = None
    if data.draw(st.booleans()):
        full = [batch, heads, rows, keys]
        shape = [1 if d < 2 and data.draw(st.booleans()) else n for d, n in enumerate(full)]
        mask = floats(*shape[data.draw(st.integers(0, 2)) :])
        if data.draw(st.booleans()):
            mask = mask > -0.5
        elif data.draw(st.booleans()):
            mask = np.where(mask > -0.5, np.float32(0), np.float32(-np.inf))
    if data.draw(st.booleans()):
        attributes["scale"] = 0.3
    attributes["is_causal"] = data.draw(st.integers(0, 1))
    symbolic = symbolic if data.draw(st.booleans()) else {}
    lowered = check_node("Attention", [q, k, v, mask], symbolic=symbolic, **attributes)
    assert isinstance(lowered.program.definitions["y_heads"].body, Attention)


def test_a_short_mask_leaves_out_the_other_keys(check_node):
    q, k, v = floats(1, 2, 3, 4), floats(1, 2, 5, 4), floats(1, 2, 5, 4)
    check_node("Attention", [q, k, v, floats(3, 4)])
    check_node("Attention", [q, k, v, np.ones((3, 2), np.bool_)])


@pytest.mark.parametrize(
    ("inputs", "outputs", "attributes", "reason"),
    [
        (6, 1, {}, "past_key"),
        (3, 3, {}, "present_key"),
        (3, 1, {"softcap": 2.0}, "softcap"),
        (4, 1, {}, "mask of int32"),
    ],
)
def test_forms_that_are_declined(inputs, outputs, attributes, reason):
    ctx = Lowering(Program())
    names = tuple(f"y{n}" for n in range(outputs))
    ctx.begin("it", names)
    tensors = [ctx.constant(floats(1, 2, 3, 4)) for _ in range(inputs)]
    if reason.startswith("mask"):
        tensors[3] = ctx.constant(np.zeros((3, 3), np.int32))
    node = ir.node("Attention", [], attributes, num_outputs=outputs)
    for output, name in zip(node.outputs, names, strict=True):
        output.name = name
    with pytest.raises(Declined, match=reason):
        lower_attention(ctx, node, tensors)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [0, 4])
@pytest.mark.parametrize("by_position", [False, True])
def test_rotary_embedding(check_node, rank, interleaved, rotated, by_position):
    batch, heads, length, size = 2, 3, 5, 8
    x = floats(batch, length, heads * size) if rank == 3 else floats(batch, heads, length, size)
    half = (rotated or size) // 2
    shape = (11, half) if by_position else (batch, length, half)
    positions = RNG.integers(0, 11, (batch, length)) if by_position else None
    symbolic = ["b", "s", heads * size] if rank == 3 else ["b", heads, "s", size]
    check_node(
        "RotaryEmbedding",
        [x, floats(*shape), floats(*shape), positions],
        symbolic={0: symbolic},
        interleaved=interleaved,
        rotary_embedding_dim=rotated,
        num_heads=heads,
    )
