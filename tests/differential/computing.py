"""Steps that add reductions, normalizations, products, convolutions, pooling and recurrences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tests.differential.elementwise import bounded
from tests.differential.graph import Builder, Dim, Shape, Unfit, Value, elements, fixed

REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
WIDE = ("float32", "float64")


def _axes(b: Builder, x: Value) -> list[int]:
    return sorted(int(a) for a in b.rng.choice(x.rank, b.int(1, x.rank), replace=False))


def _log2(n: int) -> float:
    return math.log2(max(n, 1))


def reduce(b: Builder) -> None:
    op = b.pick(REDUCTIONS)
    x = b.source(lambda v: v.dtype not in ("bfloat16", "bool", "int16", "uint16"))
    if not x.is_float and op not in ("Sum", "Max", "Min", "SumSquare", "L1", "Prod"):
        raise Unfit
    if x.dtype in ("uint8", "int8") and op not in ("Max", "Min"):
        raise Unfit
    if x.rank and b.chance(0.85):
        axes = _axes(b, x)
        inputs: list[Value | str] = [x, b.ints(*(a - x.rank if b.chance(0.3) else a for a in axes))]
        attributes: dict[str, Any] = {}
    else:
        axes, inputs, attributes = list(range(x.rank)), [x], {}
        if b.chance(0.3):
            axes, attributes = [], {"noop_with_empty_axes": 1}
    count = elements(tuple(x.shape[a] for a in axes)) if axes else 1
    keep = b.int(0, 1)
    shape = tuple(b.const_dim(1) if k in axes else d for k, d in enumerate(x.shape) if keep or k not in axes)
    if not axes:
        shape = x.shape
    if op in ("LogSum", "LogSumExp", "Prod") and min((min(x.shape[a]) for a in axes), default=1) == 0:
        raise Unfit
    if (
        op in ("Max", "Min", "Mean")
        and min((min(x.shape[a]) for a in axes), default=1) == 0
        and b.chance(0.9)
    ):
        raise Unfit
    if op == "LogSum":
        x = b.emit("Add", [b.emit("Abs", [x], x), b.constant(np.array(1), x.dtype)], x, bound=x.bound + 1)
        inputs[0] = x
    if op == "LogSumExp":
        x = bounded(b, x, 8)
        inputs[0] = x
    if op == "Prod":
        if count > 8 or x.bound > 4 or not x.exact:
            raise Unfit
        bound, fraction = x.bound**count, None if x.is_float else 0
    else:
        bound, fraction = {
            "Sum": (x.bound * count, x.fraction),
            "L1": (x.bound * count, x.fraction),
            "Mean": (x.bound, None),
            "Max": (x.bound, x.fraction),
            "Min": (x.bound, x.fraction),
            "SumSquare": (x.bound**2 * count, None if x.fraction is None else 2 * x.fraction),
            "L2": (x.bound * math.sqrt(count), None),
            "LogSum": (_log2(count) + _log2(int(x.bound) + 1), None),
            "LogSumExp": (x.bound + _log2(count) + 1, None),
        }[op]
    if not x.is_float and bound > 1e6:
        raise Unfit
    b.emit(f"Reduce{op}", inputs, x, shape, bound=bound, fraction=fraction, keepdims=keep, **attributes)


def argument(b: Builder) -> None:
    x = b.source(
        lambda v: v.exact and v.rank >= 1 and v.dtype in (*WIDE, "int32", "uint8", "int8", "float16")
    )
    axis, keep = b.int(-x.rank, x.rank - 1), b.int(0, 1)
    at = axis % x.rank
    if min(x.shape[at]) == 0:
        raise Unfit
    shape = tuple(b.const_dim(1) if k == at else d for k, d in enumerate(x.shape) if keep or k != at)
    b.emit(
        b.pick(["ArgMax", "ArgMin"]),
        [x],
        x,
        shape,
        dtype="int64",
        bound=max(x.shape[at]),
        fraction=0,
        axis=axis,
        keepdims=keep,
        select_last_index=b.int(0, 1),
    )


def softmax(b: Builder) -> None:
    x = b.floating(1e3, rank=1)
    op = b.pick(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
    axis = b.int(-x.rank, x.rank - 1)
    if op == "Hardmax":
        if not x.exact or x.dtype not in WIDE:
            raise Unfit
        b.emit(op, [x], x, bound=1, fraction=0, axis=axis)
        return
    b.emit(op, [x], x, bound=1 if op == "Softmax" else 2 * x.bound + 8, fraction=None, axis=axis)


def normalize(b: Builder) -> None:
    op = b.pick(
        [
            "LayerNormalization",
            "LayerNormalization",
            "RMSNormalization",
            "InstanceNormalization",
            "BatchNormalization",
            "GroupNormalization",
            "LpNormalization",
            "LRN",
            "MeanVarianceNormalization",
        ]
    )
    x = b.floating(1e3, rank=1)
    if x.dtype not in WIDE or any(0 in d for d in x.shape):
        raise Unfit
    # Of equal numbers nothing is left but rounding, so that all are made different.
    if op in ("LayerNormalization", "RMSNormalization"):
        axis = b.int(-x.rank, -1)
        tail = x.shape[axis:]
        if not all(fixed(d) for d in tail):
            raise Unfit
        shape = [d[0] for d in tail]
        inputs: list[Value | str] = [x, b.weights_of(x.dtype, *shape)]
        if op == "LayerNormalization" and b.chance(0.7):
            inputs.append(b.weights_of(x.dtype, *shape))
        if op == "RMSNormalization":
            b.need(23)
        b.emit(
            op,
            inputs,
            x,
            bound=2 * math.sqrt(elements(tail)) + 2,
            fraction=None,
            axis=axis,
            epsilon=b.pick([1e-2, 1e-3]),
        )
        return
    if op == "LpNormalization":
        x = b.emit("Add", [b.emit("Abs", [x], x), b.constant(np.array(1), x.dtype)], x, bound=x.bound + 1)
        b.emit(op, [x], x, bound=1, fraction=None, axis=b.int(-x.rank, x.rank - 1), p=b.int(1, 2))
        return
    if x.rank < 3 or not fixed(x.shape[1]):
        raise Unfit
    channels = x.shape[1][0]
    pair: list[Value | str] = [b.weights_of(x.dtype, channels) for _ in range(2)]
    bound = 2 * math.sqrt(elements(x.shape[1:])) + 2
    if op == "InstanceNormalization":
        b.emit(op, [x, *pair], x, bound=bound, fraction=None, epsilon=1e-2)
    elif op == "GroupNormalization":
        b.need(21)
        groups = b.pick([g for g in range(1, channels + 1) if channels % g == 0])
        b.emit(op, [x, *pair], x, bound=bound, fraction=None, epsilon=1e-2, num_groups=groups)
    elif op == "BatchNormalization":
        variance = b.constant(b.rng.integers(4, 17, channels) / 8, x.dtype)
        b.emit(
            op,
            [x, *pair, b.weights_of(x.dtype, channels), variance],
            x,
            bound=4 * x.bound + 20,
            fraction=None,
        )
    elif op == "LRN":
        if x.dtype != "float32" or x.rank != 4:
            raise Unfit
        b.emit(op, [x], x, fraction=None, size=b.pick([1, 3, 5]), alpha=0.01)
    else:
        if x.rank != 4 or x.dtype != "float32":
            raise Unfit
        b.emit(op, [x], x, bound=bound, fraction=None)


def _matrix(b: Builder, x: Value) -> Value:
    """The second operand of a product."""
    inner = x.shape[-1]

    def fits(v: Value) -> bool:
        if v.dtype != x.dtype or v.bound > 100 or v.rank < 2 or v.shape[-2] != inner:
            return False
        return v.rank == 2 or v.shape[:-2] == x.shape[:-2]

    if b.chance(0.35):
        return b.source(fits)
    if not fixed(inner):
        raise Unfit
    columns = b.pick([1, 2, 3, 8, 16, 17, 31, 32, 48, 64, 65])
    if b.chance(0.2) and x.rank > 2 and fixed(x.shape[-3]):
        return b.weights_of(x.dtype, x.shape[-3][0], inner[0], columns)
    if b.chance(0.1):
        return b.weights_of(x.dtype, inner[0])
    return b.weights_of(x.dtype, inner[0], columns)


def matmul(b: Builder) -> None:
    x = b.source(
        lambda v: (
            v.rank >= 1
            and v.bound <= 100
            and v.dtype in (*WIDE, "float16", "int32", "int64", "uint32", "uint64")
        )
    )
    y = _matrix(b, x)
    if y.rank == 1:
        shape: Shape = x.shape[:-1]
    elif x.rank == 1:
        shape = (*y.shape[:-2], y.shape[-1])
    else:
        batch = x.shape[:-2] if x.rank >= y.rank else y.shape[:-2]
        shape = (*batch, x.shape[-2], y.shape[-1])
    depth = max(x.shape[-1])
    fraction = None if x.fraction is None or y.fraction is None else x.fraction + y.fraction
    bound = x.bound * y.bound * max(depth, 1)
    if bound > 1e6:
        raise Unfit
    b.emit("MatMul", [x, y], x, shape, bound=bound, fraction=fraction)


def gemm(b: Builder) -> None:
    x = b.source(lambda v: v.rank == 2 and v.bound <= 100 and v.dtype in WIDE and fixed(v.shape[1]))
    columns = b.pick([1, 3, 8, 16, 33, 64])
    turned_x, turned = b.int(0, 1), b.int(0, 1)
    inner = x.shape[0] if turned_x else x.shape[1]
    rows = x.shape[1] if turned_x else x.shape[0]
    if not fixed(inner):
        raise Unfit
    w = b.weights_of(x.dtype, *((columns, inner[0]) if turned else (inner[0], columns)))
    inputs: list[Value | str] = [x, w]
    if b.chance(0.7):
        inputs.append(b.weights_of(x.dtype, *b.pick([(columns,), (1, columns), (1,), (), (1, 1)])))
    attributes = {"transA": turned_x, "transB": turned}
    if b.chance(0.4):
        attributes |= {"alpha": b.pick([0.5, 2.0, 0.0]), "beta": b.pick([0.5, 2.0, 0.0])}
    b.emit(
        "Gemm",
        inputs,
        x,
        (rows, b.const_dim(columns)),
        bound=2 * x.bound * w.bound * max(inner[0], 1) + 4,
        fraction=None,
        **attributes,
    )


def _window(b: Builder, space: Shape, *, dilate: bool = True) -> tuple[dict[str, Any], Shape]:
    """Attributes of a window, and the positions that it takes."""
    kernel = [b.pick([1, 2, 3, 3, 5]) for _ in space]
    strides = [b.pick([1, 1, 2, 3]) for _ in space]
    dilations = [b.pick([1, 1, 1, 2]) if dilate else 1 for _ in space]
    before = [b.int(0, k - 1) for k in kernel]
    after = [b.int(0, k - 1) for k in kernel]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if any(s != 1 for s in strides) or b.chance(0.3):
        attributes["strides"] = strides
    if any(d != 1 for d in dilations):
        attributes["dilations"] = dilations
    if b.chance(0.2) and all(d == 1 for d in dilations):
        attributes["auto_pad"] = b.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
        if attributes["auto_pad"] != "VALID":
            made = tuple(tuple(-(-n // s) for n in d) for d, s in zip(space, strides, strict=True))
            return attributes, made
        before = after = [0] * len(space)
    elif any(before) or any(after) or b.chance(0.3):
        attributes["pads"] = [*before, *after]
    else:
        before = after = [0] * len(space)
    shape: list[Dim] = []
    for d, k, s, e, p, q in zip(space, kernel, strides, dilations, before, after, strict=True):
        lengths = tuple((n + p + q - (k - 1) * e - 1) // s + 1 for n in d)
        if min(lengths) < 1:
            raise Unfit
        shape.append(lengths)
    return attributes, tuple(shape)


def _pictures(b: Builder, most: float = 100) -> Value:
    if b.chance(0.3):
        shape = (
            b.dim(),
            b.const_dim(b.pick([1, 2, 3, 4, 8])),
            *(b.const_dim(b.int(3, 9)) for _ in range(b.int(1, 2))),
        )
        if elements(shape) > 2000 or min(shape[0]) == 0:
            raise Unfit
        return b.numbers("float32", shape)
    return b.source(
        lambda v: (
            v.rank in (3, 4, 5)
            and v.dtype in ("float32", "float32", "float64")
            and v.bound <= most
            and fixed(v.shape[1])
            and all(0 not in d for d in v.shape)
        )
    )


def conv(b: Builder) -> None:
    x = _pictures(b)
    channels = x.shape[1][0]
    group = b.pick([1, 1, channels, *(g for g in range(1, channels + 1) if channels % g == 0)])
    filters = group * b.pick([1, 1, 2, 3, 4])
    if group == 1:
        filters = b.pick([1, 4, 8, 16, 17, 32])
    attributes, space = _window(b, x.shape[2:])
    w = b.weights_of(x.dtype, filters, channels // group, *attributes["kernel_shape"])
    inputs: list[Value | str] = [x, w]
    if b.chance(0.6):
        inputs.append(b.weights_of(x.dtype, filters))
    if group != 1 or b.chance(0.2):
        attributes["group"] = group
    depth = elements(w.shape[1:])
    fraction = None if x.fraction is None else x.fraction + 3
    b.emit(
        "Conv",
        inputs,
        x,
        (x.shape[0], b.const_dim(filters), *space),
        bound=x.bound * w.bound * depth + 2,
        fraction=fraction,
        **attributes,
    )


def conv_transpose(b: Builder) -> None:
    x = _pictures(b)
    if not all(fixed(d) for d in x.shape[2:]) or x.rank == 5:
        raise Unfit
    channels = x.shape[1][0]
    group = b.pick([1, 1, *(g for g in range(1, channels + 1) if channels % g == 0)])
    each = b.pick([1, 2, 3])
    kernel = [b.pick([1, 2, 3]) for _ in x.shape[2:]]
    strides = [b.pick([1, 2, 3]) for _ in kernel]
    pads = [b.int(0, (k - 1) // 2) for k in kernel]
    extra = [b.int(0, s - 1) if b.chance(0.3) else 0 for s in strides]
    space = tuple(
        b.const_dim(s * (d[0] - 1) + e + k - 2 * p)
        for d, k, s, p, e in zip(x.shape[2:], kernel, strides, pads, extra, strict=True)
    )
    if any(d[0] < 1 for d in space):
        raise Unfit
    w = b.weights_of(x.dtype, channels, each, *kernel)
    inputs: list[Value | str] = [x, w]
    if b.chance(0.5):
        inputs.append(b.weights_of(x.dtype, each * group))
    b.emit(
        "ConvTranspose",
        inputs,
        x,
        (x.shape[0], b.const_dim(each * group), *space),
        bound=x.bound * w.bound * channels * 9 + 2,
        fraction=None,
        group=group,
        kernel_shape=kernel,
        strides=strides,
        pads=[*pads, *pads],
        output_padding=extra,
    )


def pool(b: Builder) -> None:
    x = _pictures(b, 1e4)
    op = b.pick(["MaxPool", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
    if op.startswith("Global"):
        shape = (*x.shape[:2], *(b.const_dim(1) for _ in x.shape[2:]))
        b.emit(op, [x], x, shape, fraction=x.fraction if op == "GlobalMaxPool" else None)
        return
    attributes, space = _window(b, x.shape[2:], dilate=op == "MaxPool")
    if "pads" in attributes:
        # Windows that lie in the padding alone have no maximum.
        half = len(space)
        limit = [max((k - 1) // 2, 0) for k in attributes["kernel_shape"]] * 2
        pads = [min(p, m) for p, m in zip(attributes["pads"], limit, strict=True)]
        strides = attributes.get("strides", [1] * half)
        dilations = attributes.get("dilations", [1] * half)
        attributes["pads"] = pads
        space = tuple(
            tuple(
                (n + pads[k] + pads[k + half] - (attributes["kernel_shape"][k] - 1) * dilations[k] - 1)
                // strides[k]
                + 1
                for n in d
            )
            for k, d in enumerate(x.shape[2:])
        )
        if any(min(d) < 1 for d in space):
            raise Unfit
    if op == "AveragePool":
        attributes["count_include_pad"] = b.int(0, 1)
    if op == "LpPool":
        attributes["p"] = b.int(1, 2)
    bound = x.bound * (
        elements(tuple(b.const_dim(k) for k in attributes["kernel_shape"])) if op == "LpPool" else 1
    )
    b.emit(
        op,
        [x],
        x,
        (*x.shape[:2], *space),
        bound=bound,
        fraction=x.fraction if op == "MaxPool" else None,
        **attributes,
    )


def einsum(b: Builder) -> None:
    x = b.source(lambda v: v.rank in (2, 3, 4) and v.dtype in WIDE and v.bound <= 100)
    letters = "abcd"[: x.rank]
    kind = b.int(0, 3)
    if kind == 0:
        order = "".join(b.rng.permutation(list(letters)))
        b.emit(
            "Einsum", [x], x, tuple(x.shape["abcd".index(c)] for c in order), equation=f"{letters}->{order}"
        )
    elif kind == 1:
        kept = "".join(c for c in letters if b.chance(0.6))
        shape = tuple(x.shape["abcd".index(c)] for c in kept)
        b.emit(
            "Einsum",
            [x],
            x,
            shape,
            bound=x.bound * max(x.elements(), 1),
            fraction=None,
            equation=f"{letters}->{kept}",
        )
    else:
        last = x.shape[-1]
        if not fixed(last):
            raise Unfit
        columns = b.pick([1, 4, 16])
        w = b.weights_of(x.dtype, last[0], columns)
        out = letters[:-1] + "z" if kind == 2 else "z" + letters[:-1]
        shape = (*x.shape[:-1], b.const_dim(columns)) if kind == 2 else (b.const_dim(columns), *x.shape[:-1])
        b.emit(
            "Einsum",
            [x, w],
            x,
            shape,
            bound=x.bound * w.bound * max(last[0], 1),
            fraction=None,
            equation=f"{letters},{letters[-1]}z->{out}",
        )


def recurrence(b: Builder) -> None:
    op, gates = b.pick([("GRU", 3), ("LSTM", 4), ("RNN", 1)])
    if b.chance(0.5):
        x = b.numbers("float32", (b.const_dim(b.int(1, 5)), b.dim(), b.const_dim(b.pick([1, 3, 8]))))
    else:
        x = b.source(lambda v: v.rank == 3 and v.dtype == "float32" and v.bound <= 30 and fixed(v.shape[2]))
    if any(0 in d for d in x.shape):
        raise Unfit
    hidden, directions = b.pick([1, 4, 8, 9]), b.pick([1, 1, 2])
    reverse = directions == 1 and b.chance(0.3)
    inputs: list[Value | str] = [
        x,
        b.weights_of("float32", directions, gates * hidden, x.shape[2][0]),
        b.weights_of("float32", directions, gates * hidden, hidden),
    ]
    if b.chance(0.6):
        inputs.append(b.weights_of("float32", directions, 2 * gates * hidden))
    attributes: dict[str, Any] = {"hidden_size": hidden}
    attributes["direction"] = "bidirectional" if directions == 2 else "reverse" if reverse else "forward"
    if op == "GRU":
        attributes["linear_before_reset"] = b.int(0, 1)
    steps, batch = x.shape[:2]
    d, h = b.const_dim(directions), b.const_dim(hidden)
    made = b.emit_all(
        op, inputs, x, [(steps, d, batch, h), (d, batch, h)], bound=1, fraction=None, **attributes
    )
    assert len(made) == 2


STEPS = (
    (reduce, 4), (argument, 0.8), (softmax, 1.5), (normalize, 1.8), (matmul, 4), (gemm, 1.2), (conv, 3),
    (conv_transpose, 0.6), (pool, 1.2), (einsum, 0.8), (recurrence, 0.3),
)  # fmt: skip
