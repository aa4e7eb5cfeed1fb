"""Steps of steps: views of views, one value with several consumers, quantized and fused operators."""

from __future__ import annotations

import numpy as np
from tests.differential import choosing, computing, elementwise, moving
from tests.differential.graph import Builder, Unfit, Value, fixed

SIMPLE = (*elementwise.STEPS, *moving.STEPS, *choosing.STEPS, *computing.STEPS)
VIEWS = (
    moving.transpose, moving.reshape, moving.squeeze, moving.slice_, moving.expand, moving.split,
    moving.concat, moving.pad, choosing.gather, moving.tile,
)  # fmt: skip


def views(b: Builder) -> None:
    """Movement of movement, of which only the end is computed with."""
    x = b.source(lambda v: v.rank >= 1 and v.elements() <= 1500)
    kept, b.recency, b.preferred = b.recency, 1.0, x.name
    done = 0
    for _ in range(b.int(3, 7)):
        done += b.attempt(b.pick(VIEWS))
        b.preferred = b.values[-1].name
    b.recency, b.preferred = kept, ""
    if not done:
        raise Unfit


def consumers(b: Builder) -> None:
    """Several steps that read one value; some of their results meet again."""
    x = b.source()
    made: list[Value] = []
    weights = np.array([w for _, w in SIMPLE]) / sum(w for _, w in SIMPLE)
    for _ in range(b.int(2, 4)):
        step, _ = SIMPLE[int(b.rng.choice(len(SIMPLE), p=weights))]
        b.preferred = x.name
        if b.attempt(step):
            made.append(b.values[-1])
        b.preferred = ""
    alike = [(p, q) for p in made for q in made if p.name < q.name and p.dtype == q.dtype]
    pairs = [(p, q) for p, q in alike if p.shape == q.shape and p.is_float and p.bound + q.bound < 1e4]
    if not made:
        raise Unfit
    if pairs:
        p, q = b.pick(pairs)
        fraction = None if p.fraction is None or q.fraction is None else max(p.fraction, q.fraction)
        b.emit("Add", [p, q], p, bound=p.bound + q.bound, fraction=fraction)


def _zero(b: Builder, dtype: str) -> Value:
    return b.constant(np.array(b.int(100, 156) if dtype == "uint8" else b.int(-20, 20)), dtype)


def _scale(b: Builder, *options: float) -> Value:
    """A power of two, by which dividing rounds nothing."""
    return b.constant(np.array(b.pick(options or (0.125, 0.25, 0.5))), "float32")


def quantized_operator(b: Builder) -> None:
    """QLinearMatMul and QLinearConv, ConvInteger, DynamicQuantizeLinear."""
    op = b.pick(["QLinearMatMul", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"])
    if op == "DynamicQuantizeLinear":
        x = b.source(lambda v: v.dtype == "float32" and v.exact and all(0 not in d for d in v.shape))
        # The range is made a power of two times 255, so that the scale is exact.
        ends = b.constant(np.array([-63.75, 191.25]), "float32")
        clipped = elementwise.clip(b, x, -63.75, 191.25)
        flat = b.emit("Reshape", [clipped, b.ints(-1)], clipped, moving.flat(b, clipped.shape))
        joined = b.emit("Concat", [flat, ends], flat, moving.longer(flat.shape, 2), bound=192, axis=0)
        b.emit_all(op, [joined], joined, [joined.shape, (), ()], dtypes=["uint8", "float32", "uint8"],
                   bound=255, fraction=0)  # fmt: skip
        return
    picture = op != "QLinearMatMul"
    x = b.source(
        lambda v: (
            v.dtype in ("uint8", "int8")
            and (v.rank == 4 if picture else v.rank >= 2)
            and all(0 not in d for d in v.shape)
            and fixed(v.shape[1 if picture else -1])
        )
    )
    depth, columns = x.shape[1 if picture else -1][0], b.pick([1, 3, 8, 16, 17])
    shape = (columns, depth, 3, 3) if picture else (depth, columns)
    w_type = "int8" if x.dtype == "int8" else b.pick(["int8", "uint8"])
    low, high = (-127, 128) if w_type == "int8" else (0, 256)
    w = b.constant(b.rng.integers(low, high, shape), w_type)
    zeros = [_zero(b, x.dtype), b.constant(np.array(0 if w_type == "int8" else 128), w_type)]
    made = (
        (x.shape[0], b.const_dim(columns), *x.shape[2:]) if picture else (*x.shape[:-1], b.const_dim(columns))
    )
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} if picture else {}
    if op == "ConvInteger":
        b.emit(
            op, [x, w, *zeros], x, made, dtype="int32", bound=9.0 * depth * 280 * 280, fraction=0, **window
        )
        return
    scales = [_scale(b), _scale(b, 2.0**-7, 2.0**-6), _scale(b, 1.0, 2.0, 4.0)]
    inputs = [x, scales[0], zeros[0], w, scales[1], zeros[1], scales[2], _zero(b, x.dtype)]
    if picture and b.chance(0.5):
        inputs.append(b.constant(b.rng.integers(-500, 500, columns), "int32"))
    b.emit(op, inputs, x, made, dtype=x.dtype, bound=255, fraction=0, **window)


def contributed(b: Builder) -> None:
    """Operators of com.microsoft that exporters write."""
    op = b.pick(["FusedMatMul", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "SkipLayerNormalization"])
    x = b.source(
        lambda v: v.dtype == "float32" and v.rank >= 2 and v.bound <= 100 and all(0 not in d for d in v.shape)
    )
    last = x.shape[-1]
    here = {"domain": "com.microsoft", "fraction": None}
    if op in ("Gelu", "QuickGelu", "FastGelu"):
        b.emit(op, [x], x, **here)
        return
    if not fixed(last):
        raise Unfit
    bias = b.weights_of("float32", last[0])
    if op == "BiasGelu":
        b.emit(op, [x, bias], x, bound=x.bound + 2, **here)
    elif op == "FusedMatMul":
        columns, turned = b.pick([1, 4, 16]), b.int(0, 1)
        w = b.weights_of("float32", *((columns, last[0]) if turned else (last[0], columns)))
        shape = (*x.shape[:-1], b.const_dim(columns))
        b.emit(
            op,
            [x, w],
            x,
            shape,
            bound=2 * x.bound * last[0] + 4,
            transB=turned,
            alpha=b.pick([1.0, 0.5]),
            **here,
        )
    else:
        if x.rank != 3:
            raise Unfit
        skip = b.numbers("float32", x.shape)
        inputs = [x, skip, bias, *(b.weights_of("float32", last[0]) for _ in range(b.int(1, 2)))]
        b.emit(op, inputs, x, bound=2 * last[0] ** 0.5 + 4, epsilon=1e-2, **here)


STEPS = ((views, 2), (consumers, 2), (quantized_operator, 1.5), (contributed, 1))
