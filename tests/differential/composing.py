"""Steps that add several operators: what exporters write for one layer, quantized products, control flow."""

from __future__ import annotations

import numpy as np
from onnx import helper
from tests.differential.computing import WIDE
from tests.differential.elementwise import bounded
from tests.differential.graph import Builder, Unfit, Value, fixed, onnx_type


def layer_norm(b: Builder) -> None:
    """LayerNormalization or RMSNormalization in primitive operators."""
    x = b.source(
        lambda v: (
            v.rank >= 2 and v.dtype in WIDE and v.bound <= 1e3 and fixed(v.shape[-1]) and v.shape[-1][0] > 1
        )
    )
    last = (*x.shape[:-1], b.const_dim(1))
    plain = b.chance(0.4)
    centered = x
    if not plain:
        mean = b.emit("ReduceMean", [x, b.ints(-1)], x, last, fraction=None)
        centered = b.emit("Sub", [x, mean], x, bound=2 * x.bound, fraction=None)
    two = b.constant(np.array(2.0), x.dtype)
    op, inputs = ("Pow", [centered, two]) if b.chance(0.5) else ("Mul", [centered, centered])
    square = b.emit(op, inputs, centered, bound=centered.bound**2, fraction=None)
    variance = b.emit("ReduceMean", [square, b.ints(-1)], square, last, fraction=None)
    shifted = b.emit("Add", [variance, b.constant(np.array(0.01), x.dtype)], variance, fraction=None)
    root = b.emit("Sqrt", [shifted], shifted, fraction=None)
    if b.chance(0.5):
        result = b.emit("Div", [centered, root], x, bound=x.shape[-1][0] + 1, fraction=None)
    else:
        inverse = b.emit("Reciprocal", [root], root, bound=10, fraction=None)
        result = b.emit("Mul", [centered, inverse], x, bound=x.shape[-1][0] + 1, fraction=None)
    scaled = b.emit("Mul", [result, b.weights_of(x.dtype, x.shape[-1][0])], result, bound=2 * result.bound)
    if b.chance(0.7) and not plain:
        b.emit("Add", [scaled, b.weights_of(x.dtype, x.shape[-1][0])], scaled, bound=scaled.bound + 2)


def gelu(b: Builder) -> None:
    """Gelu in primitive operators."""
    x = bounded(b, b.source(lambda v: v.dtype in WIDE), 1e3)

    def number(n: float) -> Value:
        return b.constant(np.array(n), x.dtype)

    inner = b.emit("Div", [x, number(2**0.5)], x, fraction=None)
    error = b.emit("Erf", [inner], x, bound=1, fraction=None)
    plus = b.emit("Add", [error, number(1.0)], x, bound=2, fraction=None)
    if b.chance(0.5):
        half = b.emit("Mul", [x, plus], x, bound=2 * x.bound, fraction=None)
        b.emit("Mul", [half, number(0.5)], x, fraction=None)
    else:
        half = b.emit("Mul", [x, number(0.5)], x)
        b.emit("Mul", [half, plus], x, fraction=None)


def silu(b: Builder) -> None:
    x = bounded(b, b.source(lambda v: v.dtype in WIDE), 1e3)
    gate = b.emit("Sigmoid", [x], x, bound=1, fraction=None)
    b.emit("Mul", [x, gate] if b.chance(0.5) else [gate, x], x, fraction=None)


def _hidden(r: np.random.Generator, _: int, shape: tuple[int, ...]) -> np.ndarray:
    """What is added to scores so that a sequence ends somewhere."""
    shown = np.arange(shape[-1]) <= r.integers(0, shape[-1], shape[:-1])[..., None]
    return np.where(shown, 0, -1e4).astype(np.float32)


def attention(b: Builder) -> None:
    """Heads of scaled dot products, with or without a mask, in primitive operators."""
    x = b.source(lambda v: v.rank == 3 and v.dtype == "float32" and v.bound <= 20 and fixed(v.shape[2]))
    if any(0 in d for d in x.shape):
        raise Unfit
    heads, size = b.pick([1, 2, 3]), b.pick([4, 8, 16])
    width = x.shape[2][0]
    batch, sequence = x.shape[:2]
    h, s, w = b.const_dim(heads), b.const_dim(size), b.const_dim(heads * size)

    def project() -> Value:
        weight = b.constant(b.rng.integers(-8, 9, (width, heads * size)) / (8 * width), "float32")
        made = b.emit("MatMul", [x, weight], x, (batch, sequence, w), bound=x.bound, fraction=None)
        if b.chance(0.6):
            made = b.emit("Add", [made, b.weights_of("float32", heads * size)], made, bound=made.bound + 2)
        split = b.emit("Reshape", [made, b.ints(0, -1, heads, size)], made, (batch, sequence, h, s))
        return b.emit("Transpose", [split], split, (batch, h, sequence, s), perm=[0, 2, 1, 3])

    q, k, v = project(), project(), project()
    turned = b.emit("Transpose", [k], k, (batch, h, s, sequence), perm=[0, 1, 3, 2])
    scores = b.emit("MatMul", [q, turned], q, (batch, h, sequence, sequence), bound=q.bound * k.bound * size)
    scale = b.constant(np.array(size**0.5), "float32")
    scores = b.emit("Div", [scores, scale], scores)
    kind = b.int(0, 2)
    if kind == 1:
        shape = (batch, b.const_dim(1), b.const_dim(1), sequence)
        mask = b.add_input("float32", shape, _hidden, 1e4, 0)
        scores = b.emit("Add", [scores, mask], scores, bound=scores.bound + 1e4)
    weights = b.emit("Softmax", [scores], scores, bound=1, fraction=None, axis=-1)
    mixed = b.emit("MatMul", [weights, v], v, fraction=None)
    back = b.emit("Transpose", [mixed], mixed, (batch, sequence, h, s), perm=[0, 2, 1, 3])
    b.emit("Reshape", [back, b.ints(0, -1, heads * size)], back, (batch, sequence, w))


def attention_operator(b: Builder) -> None:
    b.need(23)
    heads, kv, size = b.pick([(2, 2, 8), (4, 2, 4), (1, 1, 16), (3, 1, 4)])
    batch, queries, keys = b.dim(), b.dim(), b.dim()
    if 0 in batch + queries + keys:
        raise Unfit
    q = b.numbers("float32", (batch, queries, b.const_dim(heads * size)))
    k = b.numbers("float32", (batch, keys, b.const_dim(kv * size)))
    v = b.numbers("float32", (batch, keys, b.const_dim(kv * size)))
    b.emit(
        "Attention",
        [q, k, v],
        v,
        (batch, queries, b.const_dim(heads * size)),
        fraction=None,
        q_num_heads=heads,
        kv_num_heads=kv,
        is_causal=b.int(0, 1),
    )


def residual(b: Builder) -> None:
    """A product, an activation, and the operand again."""
    x = b.source(
        lambda v: v.rank >= 2 and v.dtype in WIDE and v.bound <= 50 and fixed(v.shape[-1]) and v.shape[-1][0]
    )
    n = x.shape[-1][0]
    y = b.emit(
        "MatMul",
        [x, b.weights_of(x.dtype, n, n)],
        x,
        bound=x.bound * 2 * n,
        fraction=None if x.fraction is None else x.fraction + 3,
    )
    y = b.emit("Add", [y, b.weights_of(x.dtype, n)], y, bound=y.bound + 2)
    y = b.emit(b.pick(["Relu", "Identity", "HardSwish"]), [y], y, fraction=None)
    b.emit("Add", [x, y] if b.chance(0.5) else [y, x], y, bound=x.bound + y.bound)


def conv_norm(b: Builder) -> None:
    x = b.source(
        lambda v: (
            v.rank == 4
            and v.dtype == "float32"
            and v.bound <= 100
            and fixed(v.shape[1])
            and all(0 not in d for d in v.shape)
        )
    )
    channels, filters = x.shape[1][0], b.pick([4, 8, 16])
    w = b.weights_of("float32", filters, channels, 3, 3)
    y = b.emit(
        "Conv",
        [x, w],
        x,
        (x.shape[0], b.const_dim(filters), *x.shape[2:]),
        bound=x.bound * 2 * 9 * channels,
        fraction=None,
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )
    numbers = [b.weights_of("float32", filters) for _ in range(3)]
    variance = b.constant(b.rng.integers(4, 17, filters) / 8, "float32")
    y = b.emit("BatchNormalization", [y, *numbers, variance], y, bound=4 * y.bound + 20, fraction=None)
    y = b.emit(
        "Clip", [y, b.constant(np.array(0), "float32"), b.constant(np.array(6), "float32")], y, bound=6
    )
    if filters == channels:
        b.emit("Add", [x, y], y, bound=x.bound + 6)


def _scale(b: Builder) -> Value:
    """A power of two, by which dividing rounds nothing."""
    return b.constant(np.array(b.pick([0.125, 0.25, 0.5])), "float32")


def _zero(b: Builder, dtype: str) -> Value:
    return b.constant(np.array(b.int(100, 156) if dtype == "uint8" else b.int(-20, 20)), dtype)


def quantize(b: Builder) -> None:
    """There and back, of numbers that all engines have exactly."""
    b.need(19)
    x = b.source(lambda v: v.dtype == "float32" and v.exact)
    dtype = b.pick(["uint8", "int8"])
    scale, zero = _scale(b), _zero(b, dtype)
    q = b.emit("QuantizeLinear", [x, scale, zero], x, dtype=dtype, bound=255, fraction=0)
    b.emit("DequantizeLinear", [q, scale, zero], q, dtype="float32", bound=255, fraction=3)


def quantized_product(b: Builder) -> None:
    """A product in QuantizeLinear and DequantizeLinear, as quantizers write it."""
    b.need(19)
    exact = b.chance(0.7)
    x = b.source(lambda v: v.dtype == "float32" and v.rank >= 2 and v.exact and v.bound <= 300)
    picture = x.rank == 4 and b.chance(0.7) and all(0 not in d for d in x.shape)
    dtype = b.pick(["uint8", "int8"])
    scale, zero = _scale(b), _zero(b, dtype)
    q = b.emit("QuantizeLinear", [x, scale, zero], x, dtype=dtype, bound=255, fraction=0)
    x = b.emit("DequantizeLinear", [q, scale, zero], q, dtype="float32", bound=128, fraction=3)
    columns = b.pick([1, 4, 16, 17, 32])
    per_channel = b.chance(0.5)
    if picture:
        if not fixed(x.shape[1]):
            raise Unfit
        shape, axis, depth = (columns, x.shape[1][0], 3, 3), 0, 9 * x.shape[1][0]
    else:
        if not fixed(x.shape[-1]) or not x.shape[-1][0]:
            raise Unfit
        shape, axis, depth = (x.shape[-1][0], columns), 1, x.shape[-1][0]
    w = b.constant(b.rng.integers(-127, 128, shape), "int8")
    w_scale = b.constant(
        b.rng.choice([0.0078125, 0.015625], columns) if per_channel else np.array(0.0078125), "float32"
    )
    w_zero = b.constant(np.zeros(columns if per_channel else (), np.int8))
    w = b.emit("DequantizeLinear", [w, w_scale, w_zero], w, dtype="float32", bound=2, fraction=7, axis=axis)
    fraction = 10 if exact else None
    if picture:
        y = b.emit(
            "Conv",
            [x, w],
            x,
            (x.shape[0], b.const_dim(columns), *x.shape[2:]),
            bound=260.0 * depth,
            fraction=fraction,
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
        )
    else:
        y = b.emit(
            "MatMul", [x, w], x, (*x.shape[:-1], b.const_dim(columns)), bound=260.0 * depth, fraction=fraction
        )
    if b.chance(0.3):
        bias = b.constant(b.rng.integers(-9, 10, (columns, 1, 1) if picture else columns), "float32")
        y = b.emit("Add", [y, bias], y, bound=y.bound + 9)
    if b.chance(0.4):
        y = b.emit("Relu", [y], y)
    if y.exact and b.chance(0.6):
        out, other = b.constant(np.array(b.pick([0.5, 1.0, 2.0])), "float32"), _zero(b, dtype)
        q = b.emit("QuantizeLinear", [y, out, other], y, dtype=dtype, bound=255, fraction=0)
        b.emit("DequantizeLinear", [q, out, other], q, dtype="float32", bound=512, fraction=1)


def integer_product(b: Builder) -> None:
    x = b.source(
        lambda v: v.dtype in ("uint8", "int8") and v.rank >= 2 and fixed(v.shape[-1]) and v.shape[-1][0]
    )
    columns = b.pick([1, 5, 16])
    w = b.constant(b.rng.integers(-127, 128, (x.shape[-1][0], columns)), "int8")
    inputs: list[Value | str] = [x, w]
    if b.chance(0.6):
        inputs.append(_zero(b, x.dtype))
        if b.chance(0.5):
            inputs.append(b.constant(np.array(b.int(-5, 5)), "int8"))
    b.emit(
        "MatMulInteger",
        inputs,
        x,
        (*x.shape[:-1], b.const_dim(columns)),
        dtype="int32",
        bound=400.0 * 132 * x.shape[-1][0],
        fraction=0,
    )


def branch(b: Builder) -> None:
    """If: by a constant, or by the data."""
    x = b.source(lambda v: v.dtype == "float32")
    if b.chance(0.4):
        condition = b.constant(np.array(b.chance(0.5)))
    else:
        y = b.source(lambda v: v.exact and v.dtype in ("float32", "int64", "int32"))
        if 0 in [n for d in y.shape for n in d]:
            raise Unfit
        most = b.emit("ReduceMax", [y], y, (), keepdims=0)
        condition = b.emit(
            "Greater", [most, b.constant(np.array(2), y.dtype)], most, dtype="bool", bound=1, fraction=0
        )
    name = f"in{len(b.nodes)}"
    info = helper.make_tensor_value_info

    def body(kind: str, op: str) -> object:
        node = helper.make_node(op, [x.name], [f"{name}{kind}"], name=f"{op}_{name}{kind}")
        return helper.make_graph(
            [node], kind, [], [info(f"{name}{kind}", onnx_type(x.dtype), [None] * x.rank)]
        )

    b.emit("If", [condition], x, then_branch=body("then", "Neg"), else_branch=body("else", "Abs"))


def loop(b: Builder) -> None:
    """A loop that adds a value to a running one."""
    x = b.source(lambda v: v.dtype == "float32" and v.bound <= 1e3)
    y = b.numbers("float32", x.shape)
    count = b.int(0, 3)
    name = f"in{len(b.nodes)}"
    info = helper.make_tensor_value_info
    dims = [d[0] if fixed(d) else None for d in x.shape]
    nodes = [
        helper.make_node("Add", [f"{name}state", y.name], [f"{name}next"]),
        helper.make_node("Identity", [f"{name}go"], [f"{name}still"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [
            info(f"{name}i", onnx_type("int64"), []),
            info(f"{name}go", onnx_type("bool"), []),
            info(f"{name}state", onnx_type(x.dtype), dims),
        ],
        [info(f"{name}still", onnx_type("bool"), []), info(f"{name}next", onnx_type(x.dtype), dims)],
    )
    b.emit(
        "Loop", [b.constant(np.array(count), "int64"), "", x], x, bound=x.bound + count * y.bound, body=body
    )


def scan(b: Builder) -> None:
    """A running sum over the first axis."""
    x = b.source(
        lambda v: v.dtype == "float32" and v.rank in (2, 3) and v.bound <= 100 and 0 not in v.shape[0]
    )
    if not all(fixed(d) for d in x.shape[1:]):
        raise Unfit
    dims = [d[0] for d in x.shape[1:]]
    start = b.weights_of("float32", *dims)
    name = f"in{len(b.nodes)}"
    info = helper.make_tensor_value_info
    f = onnx_type("float32")
    nodes = [
        helper.make_node("Add", [f"{name}state", f"{name}x"], [f"{name}next"]),
        helper.make_node("Identity", [f"{name}next"], [f"{name}out"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [info(f"{name}state", f, dims), info(f"{name}x", f, dims)],
        [info(f"{name}next", f, dims), info(f"{name}out", f, dims)],
    )
    b.emit_all(
        "Scan",
        [start, x],
        x,
        [x.shape[1:], x.shape],
        bound=x.bound * max(x.shape[0]) + 2,
        body=body,
        num_scan_inputs=1,
    )


STEPS = (
    (layer_norm, 1), (gelu, 0.8), (silu, 0.6), (attention, 1), (attention_operator, 0.4), (residual, 1.2),
    (conv_norm, 0.8), (quantize, 1),
    (quantized_product, 2), (integer_product, 0.5), (branch, 0.25), (loop, 0.2),
    (scan, 0.2),
)  # fmt: skip
