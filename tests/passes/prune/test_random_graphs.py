"""Random graphs: who removes units whose weights are zero changes nothing, and ONNX Runtime agrees."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hasten.graph.inference import infer_shapes
from hasten.graph.opset import OPSET
from hasten.passes.prune.remove import remove_units, set_constant
from hasten.passes.prune.units import Analysis, Group, find_units

Array = np.ndarray
BATCH, SIDE = 2, 4


@dataclass
class Network:
    """A graph that grows: the value at its end, and that value's shape without the batch."""

    rng: np.random.Generator
    value: str
    shape: tuple[int, ...]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, *shape: int, low: float | None = None) -> str:
        array = self.rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        if low is not None:
            array = low + np.abs(array)
        return self.constant(array.astype(np.float32))

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        name = f"n{len(self.nodes)}"
        made = [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, name, **attributes))
        return made

    def step(self, kind: str, *inputs: str, **attributes: object) -> None:
        (self.value,) = self.add(kind, self.value, *inputs, **attributes)


def conv(net: Network, channels: int, *, side: int = 3, group: int = 1) -> None:
    taken = net.shape[0] // group
    w, b = net.weight(channels, taken, side, side), net.weight(channels)
    net.step("Conv", w, b, pads=[side // 2] * 4, group=group)
    net.shape = (channels, *net.shape[1:])


def batch_norm(net: Network) -> None:
    c = net.shape[0]
    net.step(
        "BatchNormalization", net.weight(c, low=0.5), net.weight(c), net.weight(c), net.weight(c, low=0.5)
    )


def residual(net: Network) -> None:
    shortcut, channels = net.value, net.shape[0]
    conv(net, 2 * channels, side=1)
    batch_norm(net)
    net.step("Relu")
    conv(net, 2 * channels, group=2 * channels)
    conv(net, channels)
    net.step("Add", shortcut)


def concatenation(net: Network) -> None:
    start, shape = net.value, net.shape
    conv(net, 5)
    left, net.value, net.shape = net.value, start, shape
    conv(net, 3, side=1)
    net.step("Sigmoid")
    (net.value,) = net.add("Concat", left, net.value, start, axis=1)
    net.shape = (8 + shape[0], *shape[1:])


def division(net: Network) -> None:
    """Halves that take different ways."""
    half = net.shape[0] // 2
    sizes = net.constant(np.array([half, net.shape[0] - half]))
    left, right = net.add("Split", net.value, sizes, outputs=2, axis=1)
    shape, net.value, net.shape = net.shape, left, (half, *net.shape[1:])
    conv(net, half)
    (net.value,) = net.add("Concat", right, net.value, axis=1)
    net.shape = shape


def squeeze_and_excite(net: Network) -> None:
    start, channels = net.value, net.shape[0]
    shape = net.shape
    net.step("GlobalAveragePool")
    conv(net, 3, side=1)
    net.step("Relu")
    conv(net, channels, side=1)
    net.step("HardSigmoid")
    net.step("Mul", start)
    net.shape = shape


def transposed_conv(net: Network) -> None:
    """Twice as large while that is not much; in groups where there can be two."""
    channels = net.shape[0]
    group = int(net.rng.choice([1, channels, 2 if channels % 2 == 0 else 1]))
    large = net.shape[1] <= SIDE
    how = {"strides": [2, 2]} if large else {"pads": [1] * 4}
    side = 2 if large else 3
    made = channels if group > 1 else 6
    net.step(
        "ConvTranspose", net.weight(channels, made // group, side, side), net.weight(made), group=group, **how
    )
    net.shape = (made, *(2 * length if large else length for length in net.shape[1:]))


def group_norm(net: Network) -> None:
    channels = net.shape[0]
    groups = int(net.rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
    net.step("GroupNormalization", net.weight(channels), net.weight(channels), num_groups=groups)


def cut(net: Network) -> None:
    """Some channels, counted from either end, and the picture without its rim."""
    channels, *sides = net.shape
    first, last = (int(n) for n in net.rng.permutation([0, 1, 1])[:2])
    if channels < 4 or min(sides) < 4:
        return
    starts, ends = [first, 1], [channels - last, sides[0] - 1]
    if net.rng.random() < 0.5:
        starts, ends = [first - channels, 1], [-last if last else 2**31, -1]
    net.step("Slice", *(net.constant(np.array(n)) for n in (starts, ends, [1, -2])))
    net.shape = (channels - first - last, sides[0] - 2, sides[1])


def resized(net: Network) -> None:
    channels, *sides = net.shape
    new = [2 * sides[0], sides[1]] if sides[0] <= SIDE else [sides[0] // 2, sides[1]]
    how = {"mode": str(net.rng.choice(["nearest", "linear"]))}
    form = net.rng.integers(3)
    if form == 0:
        scales = np.array([1, 1, new[0] / sides[0], 1], np.float32)
        net.step("Resize", "", net.constant(scales), **how)
    else:
        axes, sizes = ([1, 2, 3], [channels, *new]) if form == 1 else ([2], new[:1])
        net.step("Resize", "", "", net.constant(np.array(sizes)), axes=axes, **how)
    net.shape = (channels, *new)


def expanded(net: Network) -> None:
    """Means of channels, as large as the picture again: the target names the channels or not."""
    start, shape = net.value, net.shape
    net.step("GlobalAveragePool")
    target = [shape, (1, *shape[1:]), shape[1:]][net.rng.integers(3)]
    net.step("Expand", net.constant(np.array(target)))
    net.step("Add", start)


def picked(net: Network) -> None:
    """Channels in another order, some of them twice or not at all; then rows."""
    channels, rows = net.shape[:2]
    order = net.rng.integers(-channels, channels, int(net.rng.integers(2, channels + 2)))
    if net.rng.random() < 0.5:
        order = net.rng.permutation(channels)
    net.step("Gather", net.constant(order), axis=1)
    net.step("Gather", net.constant(np.arange(rows)[::-1].copy()), axis=2)
    net.shape = (len(order), *net.shape[1:])


PICTURES: tuple[Callable[[Network], None], ...] = (
    lambda net: conv(net, 6),
    lambda net: conv(net, 2 * net.shape[0], group=net.shape[0]),
    lambda net: conv(net, 4 * net.shape[0], group=2 if net.shape[0] % 2 == 0 else 1),
    batch_norm,
    residual,
    concatenation,
    division,
    squeeze_and_excite,
    lambda net: net.step("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
    lambda net: net.step("Mul", net.weight(net.shape[0], 1, 1)),
    lambda net: net.step("Softmax", axis=1),
    lambda net: net.step("Pad", net.constant(np.array([0] * 8))),
    transposed_conv,
    group_norm,
    cut,
    resized,
    expanded,
    picked,
)


def flattened(net: Network) -> None:
    net.step("Flatten") if net.rng.random() < 0.5 else net.step("Reshape", net.constant(np.array([0, -1])))
    net.shape = (int(np.prod(net.shape)),)


def pooled(net: Network) -> None:
    net.step("ReduceMean", net.constant(np.array([2, 3])), keepdims=0)
    net.shape = net.shape[:1]


def target(net: Network, of: str, *lengths: int) -> str:
    """What a Reshape makes of a value: its first two axes, and some more; half the time computed."""
    if net.rng.random() < 0.5:
        return net.constant(np.array([0, 0, *lengths]))
    (first,) = net.add("Shape", of, start=0, end=2)
    return net.add("Concat", first, net.constant(np.array(lengths)), axis=0)[0]


def linear_of_rows(net: Network, width: int) -> None:
    """As GPT-2 is exported: all positions as rows, and back, by a target that is computed."""
    start = net.value
    net.step("Reshape", net.constant(np.array([-1, net.shape[-1]])))
    net.step("Gemm", net.weight(net.shape[-1], width), net.weight(width))
    (first,) = net.add("Shape", start, start=0, end=2)
    (whole,) = net.add("Concat", first, net.constant(np.array([width])), axis=0)
    net.step("Reshape", whole)
    net.shape = (*net.shape[:-1], width)


def linear(net: Network, width: int) -> None:
    if len(net.shape) == 2 and net.rng.random() < 0.3:
        linear_of_rows(net, width)
    elif len(net.shape) == 1 and net.rng.random() < 0.5:
        net.step("Gemm", net.weight(width, net.shape[-1]), net.weight(width), transB=1)
    else:
        net.step("MatMul", net.weight(net.shape[-1], width))
        net.step("Add", net.weight(width))
    net.shape = (*net.shape[:-1], width)


def feed_forward(net: Network) -> None:
    start, width = net.value, net.shape[-1]
    linear(net, 10)
    net.step("Gelu")
    linear(net, width)
    net.step("Add", start)
    net.step("LayerNormalization", net.weight(width), net.weight(width), axis=-1)


def attention(net: Network) -> None:
    """With heads of keys and values that two heads of queries share, as one product or three."""
    start, width, heads, size = net.value, net.shape[-1], 6, 3
    parts = (heads * size, heads // 2 * size, heads // 2 * size)
    if net.rng.random() < 0.5:
        linear(net, sum(parts))
        split = net.add("Split", net.value, net.constant(np.array(parts)), outputs=3, axis=-1)
    else:
        split = []
        for part in parts:
            net.value, net.shape = start, (*net.shape[:-1], width)
            linear(net, part)
            split.append(net.value)
    (net.value,) = net.add("Attention", *split, q_num_heads=heads, kv_num_heads=heads // 2)
    net.shape = (*net.shape[:-1], heads * size)
    linear(net, width)
    net.step("Add", start)


def attention_by_hand(net: Network) -> None:
    """Heads as axes of their own: reshape, transpose, products of matrices, and back."""
    start, width, heads, size = net.value, net.shape[-1], 4, 3
    split = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        net.value, net.shape = start, (*net.shape[:-1], width)
        linear(net, heads * size)
        net.step("Reshape", target(net, start, heads, size))
        net.step("Transpose", perm=order)
        split.append(net.value)
    (net.value,) = net.add("MatMul", split[0], split[1])
    net.step("Softmax", axis=-1)
    net.step("MatMul", split[2])
    net.step("Transpose", perm=[0, 2, 1, 3])
    net.step("Reshape", target(net, start, heads * size))
    net.shape = (*net.shape[:-1], heads * size)
    linear(net, width)
    net.step("Add", start)


VECTORS: tuple[Callable[[Network], None], ...] = (
    lambda net: linear(net, 7),
    lambda net: net.step("Tanh"),
    feed_forward,
    feed_forward,
)


def class_token(net: Network) -> None:
    """A learned vector before all positions, from which the last is taken away again."""
    width, count = net.shape[-1], net.shape[-2]
    (token,) = net.add("Expand", net.weight(1, 1, width), net.constant(np.array([BATCH, 1, width])))
    (net.value,) = net.add("Concat", token, net.value, axis=1)
    if net.rng.random() < 0.5:
        net.step("Slice", *(net.constant(np.array(n)) for n in ([0], [count], [1])))
    else:
        net.step("Gather", net.constant(np.arange(count)), axis=1)


def rotated(net: Network) -> None:
    """The halves of all features change places, as of a rotary embedding; by slices or by an order."""
    half, width = net.shape[-1] // 2, net.shape[-1]
    if net.rng.random() < 0.5:
        net.step("Gather", net.constant(np.roll(np.arange(width), half)), axis=-1)
        return
    bounds = ([half], [2**31]), ([0], [half])
    parts = [net.add("Slice", net.value, *map(net.constant, map(np.array, (*b, [-1]))))[0] for b in bounds]
    (net.value,) = net.add("Concat", *parts, axis=-1)


SEQUENCES = (*VECTORS, attention, attention_by_hand, class_token, rotated)


def built(seed: int, steps: list[int], kind: str) -> ir.Model:
    rng = np.random.default_rng(seed)
    net = Network(rng, "x", (3, SIDE, SIDE) if kind == "pictures" else (5, 6))
    shape = (BATCH, *net.shape)
    if kind == "pictures":
        conv(net, 4)
        for step in steps:
            PICTURES[step % len(PICTURES)](net)
        (flattened if rng.random() < 0.5 else pooled)(net)
        for step in steps[:2]:
            VECTORS[step % len(VECTORS)](net)
    else:
        for step in steps:
            SEQUENCES[step % len(SEQUENCES)](net)
    linear(net, 3)
    f32 = TensorProto.FLOAT
    takes = helper.make_tensor_value_info("x", f32, ["batch", *shape[1:]])
    makes = helper.make_tensor_value_info(net.value, f32, None)
    graph = helper.make_graph(net.nodes, "random", [takes], [makes], net.weights)
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", OPSET)])
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def zeroed(model: ir.Model, removed: dict[Group, list[int]]) -> ir.Model:
    """The model with all weights of some units set to zero."""
    copy = model.clone()
    nodes = list(copy.graph)
    for group, units in removed.items():
        for (place, axis), members in group.members.items():
            if not place.is_constant:
                continue
            value = nodes[place.node].inputs[place.position]
            assert value is not None and value.const_value is not None
            array = np.moveaxis(value.const_value.numpy().copy(), axis, 0)
            if array.ndim > 1 or group.unit != "channels":  # statistics of a batch normalization stay
                array[np.isin(members, units)] = 0
            own = f"{value.name}_{place.node}_{place.position}_zeroed"  # others may read the same constant
            set_constant(copy.graph, nodes[place.node], place.position, np.moveaxis(array, 0, axis), own)
    return copy


def chosen(analysis: Analysis, rng: np.random.Generator) -> dict[Group, list[int]]:
    return {
        group: rng.choice(group.count, rng.integers(1, group.count), replace=False).tolist()
        for group in analysis.groups
    }


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 99), min_size=3, max_size=6),
    st.sampled_from(["pictures", "tokens"]),
)
def test_units_without_weights_can_go(seed: int, steps: list[int], kind: str) -> None:
    model = built(seed, steps, kind)
    analysis = find_units(model)
    rng = np.random.default_rng(seed)
    removed = chosen(analysis, rng)
    pruned = ir.to_proto(remove_units(model, analysis, removed))
    onnx.checker.check_model(pruned, full_check=True)
    feed = {"x": rng.standard_normal([BATCH, *model.graph.inputs[0].shape[1:]]).astype(np.float32)}
    zeros = ir.to_proto(zeroed(model, removed))
    by_runtime = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (zeros, pruned)
    ]
    if any(n.op_type == "ConvTranspose" for n in zeros.graph.node):  # the reference errs where it has groups
        by_reference = by_runtime
    else:
        by_reference = [ReferenceEvaluator(m).run(None, feed)[0] for m in (zeros, pruned)]
    np.testing.assert_allclose(by_reference[1], by_reference[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_runtime[1], by_reference[0], rtol=1e-3, atol=1e-4)
    for group, units in removed.items():
        for (place, _), members in group.members.items():
            if place.is_constant:
                assert np.isin(members, units).any()
    before = sum(t.size for v in model.graph.initializers.values() if (t := v.const_value) is not None)
    after = sum(np.prod(t.dims) for t in pruned.graph.initializer)
    assert after < before or not removed


def test_every_kind_of_block_has_units() -> None:
    """What the graphs are built of can be pruned, so that the property says something."""
    for step, units in ((4, "channels"), (5, "channels"), (6, "channels"), (7, "channels")):
        found = find_units(built(0, [step, 0], "pictures")).groups
        assert len([g for g in found if g.unit == units]) >= 2, step
    kinds = ("ConvTranspose", "GroupNormalization", "Slice", "Resize", "Expand", "Gather")
    for step, seed in itertools.product((12, 13, 14, 15, 16, 17), range(4)):
        found = find_units(built(seed, [0, step, 0], "pictures"))
        reasons = [reason for each in found.left_alone for reason in each.reasons]
        assert not [reason for reason in reasons if any(kind in reason for kind in kinds)], (step, seed)
        assert len(found.groups) >= 2, (step, seed)
    for step, seed in itertools.product((6, 7), range(4)):
        assert sum(g.count for g in find_units(built(seed, [0, step, 0], "tokens")).groups) == 14, (
            step,
            seed,
        )
    for seed in range(6):
        for step in (4, 5):
            assert [g.unit for g in find_units(built(seed, [step], "tokens")).groups] == ["heads"], step
        (neurons,) = find_units(built(seed, [2], "tokens")).groups
        assert (neurons.unit, neurons.count) == ("neurons", 10)
