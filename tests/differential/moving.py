"""Steps that move elements: reshaping, slicing, joining, choosing by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tests.differential.graph import Builder, Dim, Shape, Unfit, Value, fixed


def _product(dims: Sequence[Dim], bindings: int) -> Dim:
    return tuple(int(np.prod([d[k] for d in dims])) for k in range(bindings))


def flat(b: Builder, shape: Shape) -> Shape:
    """The shape of all elements in one axis."""
    return (_product(shape, b.bindings),)


def longer(shape: Shape, by: int) -> Shape:
    """A shape whose first axis has more elements."""
    return (tuple(n + by for n in shape[0]), *shape[1:])


def transpose(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 2)
    order = [int(i) for i in b.rng.permutation(x.rank)]
    attributes = {"perm": order} if b.chance(0.85) else {}
    if not attributes:
        order = list(range(x.rank))[::-1]
    b.emit("Transpose", [x], x, tuple(x.shape[i] for i in order), **attributes)


def reshape(b: Builder) -> None:
    """Joins neighbouring axes, or splits one; lengths are copied (0), inferred (-1) or computed."""
    x = b.source()
    kind = b.pick(["join", "split", "flat", "flatten"])
    if kind == "flatten":
        axis = b.int(-x.rank, x.rank)
        at = axis + x.rank if axis < 0 else axis
        shape = (_product(x.shape[:at], b.bindings), _product(x.shape[at:], b.bindings))
        b.emit("Flatten", [x], x, shape, axis=axis)
        return
    if kind == "flat":
        b.emit("Reshape", [x, b.ints(-1)], x, (_product(x.shape, b.bindings),))
        return
    if not x.rank:
        b.emit("Reshape", [x, b.ints(*[1] * (n := b.int(0, 3)))], x, (b.const_dim(1),) * n)
        return
    at = b.int(0, x.rank - 1)
    if kind == "join":
        end = min(x.rank, at + b.int(1, 2) + 1)
        joined = _product(x.shape[at:end], b.bindings)
        new: list[Dim] = [*x.shape[:at], joined, *x.shape[end:]]
        special = at
    else:
        if not fixed(x.shape[at]) or x.shape[at][0] < 1:
            raise Unfit
        length = x.shape[at][0]
        factor = b.pick([f for f in range(1, length + 1) if length % f == 0])
        new = [*x.shape[:at], b.const_dim(factor), b.const_dim(length // factor), *x.shape[at + 1 :]]
        special = b.pick([at, at + 1])
    target = _reshape_target(b, x, new, special)
    # A length that is worked out and comes to 0 is no request to copy one.
    zero = {"allowzero": 1} if any(0 in d for d in new) else {}
    b.emit("Reshape", [x, target], x, tuple(new), **zero)


def _reshape_target(b: Builder, x: Value, new: Sequence[Dim], inferred: int) -> str:
    """The second input of Reshape."""
    free = [k for k, d in enumerate(new) if not fixed(d)]
    if all(0 not in d for d in new) and len(free) <= 1 and b.chance(0.5):
        return b.ints(*(-1 if k in free or (not free and k == inferred) else d[0] for k, d in enumerate(new)))
    if all(0 not in d for d in new):
        # 0 copies the length of the same axis of x.
        numbers = []
        for k, d in enumerate(new):
            if k < x.rank and x.shape[k] == d and not (fixed(d) and b.chance(0.5)):
                numbers.append(0)
            elif fixed(d):
                numbers.append(d[0])
            else:
                numbers.append(-1)
        if numbers.count(-1) <= 1:
            return b.ints(*numbers)
    return computed_shape(b, x, new)


def computed_shape(b: Builder, x: Value, new: Sequence[Dim]) -> str:
    """A shape worked out of the shape of x, as exporters write it."""
    whole = b.emit("Shape", [x], x, (b.const_dim(x.rank),), dtype="int64", bound=1e4, fraction=0)
    parts: list[Value] = []
    for d in new:
        if fixed(d):
            parts.append(b.constant(np.array([d[0]], np.int64)))
            continue
        for start in range(x.rank):
            ends = [e for e in range(start + 1, x.rank + 1) if _product(x.shape[start:e], b.bindings) == d]
            if ends:
                break
        else:
            raise Unfit
        taken = [_length(b, whole, k) for k in range(start, ends[0])]
        made = taken[0]
        for other in taken[1:]:
            made = b.emit("Mul", [made, other], made)
        parts.append(made)
    if len(parts) == 1:
        return parts[0].name
    return b.emit("Concat", parts, parts[0], (b.const_dim(len(parts)),), bound=1e4, fraction=0, axis=0).name


def _length(b: Builder, whole: Value, axis: int) -> Value:
    """One entry of a shape, as a list of one."""
    kind = b.int(0, 2)
    if kind == 0:
        return b.emit("Gather", [whole, b.ints(axis)], whole, (b.const_dim(1),), axis=0)
    if kind == 1:
        return b.emit("Slice", [whole, b.ints(axis), b.ints(axis + 1), b.ints(0)], whole, (b.const_dim(1),))
    single = b.emit("Gather", [whole, b.constant(np.array(axis))], whole, (), axis=0)
    return b.emit("Unsqueeze", [single, b.ints(0)], single, (b.const_dim(1),))


def squeeze(b: Builder) -> None:
    x = b.source()
    if b.chance(0.5):
        n = b.int(1, 2)
        axes = sorted(int(a) for a in b.rng.choice(x.rank + n, n, replace=False))
        shape: list[Dim] = list(x.shape)
        for a in axes:
            shape.insert(a, b.const_dim(1))
        given = [a - x.rank - n if b.chance(0.3) else a for a in axes]
        b.emit("Unsqueeze", [x, b.ints(*given)], x, tuple(shape))
        return
    ones = [k for k, d in enumerate(x.shape) if set(d) == {1}]
    axes = [k for k in ones if b.chance(0.7)]
    if not axes:
        raise Unfit
    shape = [d for k, d in enumerate(x.shape) if k not in axes]
    b.emit("Squeeze", [x, b.ints(*(a - x.rank if b.chance(0.3) else a for a in axes))], x, tuple(shape))


def slice_(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1)
    axes = sorted(int(a) for a in b.rng.choice(x.rank, b.int(1, min(2, x.rank)), replace=False))
    starts, ends, steps = [], [], []
    shape = list(x.shape)
    for a in axes:
        start = b.pick([0, 0, 1, 2, -1, -2, -3, 100])
        step = b.pick([1, 1, 1, 2, 3, -1, -1, -2])
        end = b.pick([2**63 - 1, -1, 1, 3, 5, -2]) if step > 0 else b.pick([-(2**63), 0, 1, -4])
        if step < 0 and (start == 0 or -start > min(x.shape[a])):
            start = -1  # the reference evaluator takes none from before the first one, ONNX that one
        starts, ends, steps = [*starts, start], [*ends, end], [*steps, step]
        shape[a] = tuple(len(range(*slice(start, end, step).indices(n))) for n in x.shape[a])
    inputs: list[Value | str] = [
        x,
        b.ints(*starts),
        b.ints(*ends),
        b.ints(*(a - x.rank if b.chance(0.3) else a for a in axes)),
    ]
    if any(s != 1 for s in steps) or b.chance(0.5):
        inputs.append(b.ints(*steps))
    if axes == list(range(x.rank)) and len(inputs) == 4 and b.chance(0.5):
        inputs = inputs[:3]
    b.emit("Slice", inputs, x, tuple(shape))


def pad(b: Builder) -> None:
    x = b.source(
        lambda v: v.rank >= 1 and v.dtype in ("float32", "float64", "int32", "int64", "uint8", "int8", "bool")
    )
    mode = b.pick(["constant", "constant", "constant", "reflect", "edge"])
    before, after = [0] * x.rank, [0] * x.rank
    for a in range(x.rank):
        if b.chance(0.5):
            most = 3 if mode == "constant" else min(min(x.shape[a]) - 1, 3) if mode == "reflect" else 3
            if mode == "edge" and min(x.shape[a]) == 0:
                continue
            before[a], after[a] = (max(0, b.int(0, max(most, 0))) for _ in range(2))
            if mode == "constant" and b.chance(0.2) and min(x.shape[a]) >= 2:
                before[a] = -1
    shape = tuple(tuple(n + before[a] + after[a] for n in d) for a, d in enumerate(x.shape))
    inputs: list[Value | str] = [x, b.ints(*before, *after)]
    value = 0.0
    if mode == "constant" and b.chance(0.5):
        value = b.pick([1.0, 0.0, 2.0])
        inputs.append(b.constant(np.array(value), x.dtype))
    b.emit("Pad", inputs, x, shape, bound=max(x.bound, value), mode=mode)


def concat(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1)
    axis = b.int(0, x.rank - 1)

    def fits(v: Value) -> bool:
        return (
            v.dtype == x.dtype
            and v.rank == x.rank
            and all(k == axis or d == e for k, (d, e) in enumerate(zip(v.shape, x.shape, strict=True)))
        )

    parts = [x, *(b.source(fits) for _ in range(b.int(1, 2)))]
    if all(fixed(d) for k, d in enumerate(x.shape) if k != axis) and b.chance(0.3):
        shape = [b.int(0, 2) if k == axis else d[0] for k, d in enumerate(x.shape)]
        parts.insert(b.int(0, len(parts)), b.weights_of(x.dtype, *shape))
    lengths = tuple(sum(p.shape[axis][k] for p in parts) for k in range(b.bindings))
    fraction = None if any(p.fraction is None for p in parts) else max(p.fraction or 0 for p in parts)
    b.emit(
        "Concat",
        parts,
        x,
        (*x.shape[:axis], lengths, *x.shape[axis + 1 :]),
        bound=max(p.bound for p in parts),
        fraction=fraction,
        axis=axis - x.rank if b.chance(0.3) else axis,
    )


def split(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1 and any(fixed(d) and d[0] >= 2 for d in v.shape))
    axis = b.pick([k for k, d in enumerate(x.shape) if fixed(d) and d[0] >= 2])
    length = x.shape[axis][0]
    if b.chance(0.5):
        first = b.int(0, length)
        lengths = [first, length - first]
        inputs: list[Value | str] = [x, b.ints(*lengths)]
        attributes = {}
    else:
        count = b.int(2, min(length, 4))
        each = -(-length // count)
        lengths = [min(each, length - k * each) for k in range(count)]
        if lengths[-1] <= 0:
            raise Unfit
        inputs, attributes = [x], {"num_outputs": count}
    shapes = [(*x.shape[:axis], b.const_dim(n), *x.shape[axis + 1 :]) for n in lengths]
    b.emit_all("Split", inputs, x, shapes, axis=axis, **attributes)


def tile(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1)
    repeats = [b.pick([1, 1, 2, 3]) for _ in x.shape]
    shape = tuple(tuple(n * r for n in d) for d, r in zip(x.shape, repeats, strict=True))
    b.emit("Tile", [x, b.ints(*repeats)], x, shape)


def expand(b: Builder) -> None:
    x = b.source(lambda v: any(set(d) == {1} for d in v.shape) or v.rank < 4)
    dims = [
        b.int(1, 4) if set(d) == {1} and b.chance(0.7) else 1 if not fixed(d) or b.chance(0.3) else d[0]
        for d in x.shape
    ]
    shape: list[Dim] = [d if set(d) != {1} else b.const_dim(n) for d, n in zip(x.shape, dims, strict=True)]
    if b.chance(0.4):
        n = b.int(1, 3)
        dims, shape = [n, *dims], [b.const_dim(n), *shape]
    b.emit("Expand", [x, b.ints(*dims)], x, tuple(shape))


def expand_like(b: Builder) -> None:
    """To the shape of another value, as exporters write masks."""
    y = b.source(lambda v: v.rank >= 1 and min(min(d) for d in v.shape) >= 1)
    x = b.source(
        lambda v: (
            v.rank <= y.rank
            and all(set(d) == {1} or d == e for d, e in zip(v.shape, y.shape[y.rank - v.rank :], strict=True))
        )
    )
    whole = b.emit("Shape", [y], y, (b.const_dim(y.rank),), dtype="int64", bound=1e4, fraction=0)
    b.emit("Expand", [x, whole], x, y.shape)


def blocks(b: Builder) -> None:
    x = b.source(
        lambda v: v.rank == 4 and all(fixed(d) for d in v.shape[1:]) and v.dtype in ("float32", "float64")
    )
    n, c, h, w = x.shape
    if b.chance(0.5):
        if c[0] % 4 or not c[0]:
            raise Unfit
        shape: Shape = (n, b.const_dim(c[0] // 4), b.const_dim(2 * h[0]), b.const_dim(2 * w[0]))
        b.emit("DepthToSpace", [x], x, shape, blocksize=2, mode=b.pick(["DCR", "CRD"]))
    else:
        if h[0] % 2 or w[0] % 2 or not h[0] * w[0]:
            raise Unfit
        shape = (n, b.const_dim(c[0] * 4), b.const_dim(h[0] // 2), b.const_dim(w[0] // 2))
        b.emit("SpaceToDepth", [x], x, shape, blocksize=2)


def resize(b: Builder) -> None:
    x = b.source(
        lambda v: (
            v.rank in (3, 4)
            and v.dtype == "float32"
            and all(fixed(d) and d[0] > 0 for d in v.shape[2:])
            and 0 not in v.shape[0] + v.shape[1]
        )
    )
    mode = b.pick(["nearest", "linear", "cubic"])
    factor = [b.pick([0.5, 1.0, 2.0, 1.5]) for _ in x.shape[2:]]
    if mode == "cubic" and x.rank != 4:
        raise Unfit
    space = tuple(b.const_dim(int(np.floor(d[0] * f))) for d, f in zip(x.shape[2:], factor, strict=True))
    if any(d[0] == 0 for d in space):
        raise Unfit
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": b.pick(
            ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
        ),
    }
    if mode == "nearest":
        attributes |= {
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": b.pick(["floor", "round_prefer_floor", "ceil"]),
        }
    coordinates = attributes["coordinate_transformation_mode"]
    if coordinates == "align_corners" and any(d[0] * f % 1 for d, f in zip(x.shape[2:], factor, strict=True)):
        raise Unfit  # ONNX's corners lie a broken number of elements apart, ONNX Runtime's a whole one
    scales = b.constant(np.array([1, 1, *factor]), "float32")
    b.emit(
        "Resize",
        [x, "", scales],
        x,
        (*x.shape[:2], *space),
        bound=3 * x.bound,
        fraction=x.fraction if mode == "nearest" else None,
        **attributes,
    )


STEPS = (
    (transpose, 3), (reshape, 4), (squeeze, 2), (slice_, 3.5), (pad, 2), (concat, 2.5), (split, 1.5),
    (tile, 1), (expand, 1.2), (expand_like, 0.8), (blocks, 0.5), (resize, 0.6),
)  # fmt: skip
