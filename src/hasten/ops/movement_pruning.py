"""What operators that only move elements say about pruning: which indices come from which."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hasten.ops.pruning import (
    Dim,
    Dims,
    Indices,
    Kept,
    Member,
    Operands,
    Port,
    PruningFacts,
    Shrunk,
    Tie,
    Whole,
    except_axes,
    grouped,
    input_,
    output,
    same,
)

_X, _Y = input_(0), output(0)

UNMOVED = except_axes(lambda node: ())


def _reshape_ties(node: Operands) -> list[Tie | None]:
    before, after = node.dims(_X), node.dims(_Y)
    if before is None or after is None:
        return []
    return [grouped(node, (_X, a, run), (_Y, b, other)) for a, run, b, other in _pairs(before, after)]


def _pairs(before: Dims, after: Dims) -> list[tuple[int, int, int, int]]:
    """Axes before and after that fall into the same slots: (axis, indices to a slot) of each.

    Both shapes are the same elements in row-major order. Where several axes become one, or the reverse, the
    outermost of them are paired: a head is a run of features, a channel a run of pixels.
    """
    first = 0
    while first < min(len(before), len(after)) and before[first] == after[first]:
        first += 1
    pairs = [(axis, 1, axis, 1) for axis in range(first)]
    i, j = len(before), len(after)
    while i > first and j > first:
        if before[i - 1] == after[j - 1]:
            pairs.append((i - 1, 1, j - 1, 1))
            i, j = i - 1, j - 1
            continue
        step = _segment(before[first:i], after[first:j])
        if step is None:
            break
        a, b = _outermost(before, i - step[0], i), _outermost(after, j - step[1], j)
        small, large = sorted((a[1], b[1]))
        if small > 1 and large % small == 0:
            pairs.append((a[0], a[1] // small, b[0], b[1] // small))
        i, j = i - step[0], j - step[1]
    return pairs


def _segment(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[int, int] | None:
    """How many of the last axes of either have the same number of elements; None if sizes are unknown."""
    lengths: list[dict[int, int]] = []
    for dims in (before, after):
        known = list(itertools.takewhile(lambda d: isinstance(d, int) and d > 0, reversed(dims)))
        products = itertools.accumulate((d for d in known if isinstance(d, int)), lambda a, b: a * b)
        found: dict[int, int] = {}
        for count, size in enumerate(products, 1):
            found.setdefault(size, count)
        lengths.append(found)
    shared = [size for size in lengths[0] if size in lengths[1] and size > 1]
    return (lengths[0][min(shared)], lengths[1][min(shared)]) if shared else None


def _outermost(dims: Dims, first: int, last: int) -> tuple[int, int]:
    """The first axis of a range that is longer than 1, and its length; of known lengths."""
    for axis in range(first, last):
        length = dims[axis]
        if isinstance(length, int) and length > 1:
            return axis, length
    return first, 1


def _to_target(node: Operands, ties: Sequence[Tie | None]) -> list[Tie | None]:
    """Those ties of which the target can be told: its number for the axis of the output is a constant."""
    target, rank = node.elements(1), len(node.dims(_Y) or ())
    if target is None:
        raise Whole("its target is computed while the model runs")
    computed = {rank - len(target) + k for k, number in enumerate(target) if number is None}
    return [
        tie
        for tie in ties
        if tie is not None and not any(m.port == _Y and m.axis in computed for m in tie.members)
    ]


def _with_known_target(node: Operands) -> list[Tie | None]:
    return _to_target(node, _reshape_ties(node))


def _shrink_target(node: Operands, kept: Kept) -> Shrunk:
    """Numbers of a target shape that are lengths of axes which have become shorter."""
    target, dims = node.elements(1), node.dims(_Y)
    if target is None or dims is None:
        return Shrunk()
    new: dict[int, int] = {}
    offset = len(dims) - len(target)  # the target of an Expand may have fewer axes
    for k, number in enumerate(target):
        stays = kept(_Y, k + offset)
        if stays is not None and number is not None and number > 1:
            new[k] = len(stays)
    if node.constant(1) is None:
        return Shrunk(elements={1: new} if new else {})
    return Shrunk(inputs={1: np.array([new.get(k, number) for k, number in enumerate(target)], np.int64)})


RESHAPE = PruningFacts(_with_known_target, _shrink_target)
RESHAPED = PruningFacts(_reshape_ties)
"""Flatten, Squeeze, Unsqueeze: their target follows from what they get."""


def _transpose_ties(node: Operands) -> list[Tie | None]:
    dims = node.dims(_X)
    if dims is None:
        return []
    perm = node.node.attributes.get("perm")
    order = list(reversed(range(len(dims)))) if perm is None else [int(p) for p in perm.as_ints()]
    return [same(node, (_X, source), (_Y, axis)) for axis, source in enumerate(order)]


TRANSPOSE = PruningFacts(_transpose_ties)


def _expand_ties(node: Operands) -> list[Tie | None]:
    before, after = node.dims(_X), node.dims(_Y)
    if before is None or after is None:
        return []
    ties = []
    for axis in range(len(after)):
        at = axis - len(after) + len(before)
        source = [(_X, at)] if at >= 0 and before[at] != 1 else []
        ties.append(same(node, *source, (_Y, axis)))
    return _to_target(node, ties)


EXPAND = PruningFacts(_expand_ties, _shrink_target)


def _axis(node: Operands, rank: int, default: int) -> int:
    return node.attribute("axis", default) % rank


def _other_axes(node: Operands, parts: Sequence[Port], whole: Port, axis: int) -> list[Tie | None]:
    rank = len(node.dims(whole) or ())
    return [same(node, *((p, d) for p in parts), (whole, d)) for d in range(rank) if d != axis]


def _part_ties(node: Operands, parts: Sequence[Port], whole: Port, axis: int) -> list[Tie | None]:
    """One tie for each part that lies along an axis of the whole, if all lengths are known."""
    total = node.length(whole, axis)
    lengths = [node.length(part, axis) for part in parts]
    known = [n for n in lengths if n is not None]
    if total is None or len(known) != len(lengths) or sum(known) != total:
        return []
    ties: list[Tie | None] = []
    start = 0
    for part, length in zip(parts, known, strict=True):
        slots = np.full(total, -1)
        slots[start : start + length] = np.arange(length)
        ties.append(Tie((Member(part, axis, np.arange(length)), Member(whole, axis, slots))))
        start += length
    return ties


def _concat_ties(node: Operands) -> list[Tie | None]:
    dims = node.dims(_Y)
    if dims is None:
        return []
    axis = _axis(node, len(dims), 0)
    parts = [input_(i) for i in range(len(node.inputs))]
    return _other_axes(node, parts, _Y, axis) + _part_ties(node, parts, _Y, axis)


CONCAT = PruningFacts(_concat_ties)


def _split_ties(node: Operands) -> list[Tie | None]:
    dims = node.dims(_X)
    if dims is None:
        return []
    axis = _axis(node, len(dims), 0)
    parts = [output(i) for i in range(len(node.outputs))]
    ties = _other_axes(node, parts, _X, axis)
    if len(node.node.inputs) == 1 or node.constant(1) is not None:
        ties += _part_ties(node, parts, _X, axis)
    return ties


def _shrink_split(node: Operands, kept: Kept) -> Shrunk:
    axis = _axis(node, len(node.dims(_X) or (0,)), 0)
    if kept(_X, axis) is None:
        return Shrunk()
    sizes = []
    for position in range(len(node.outputs)):
        stays = kept(output(position), axis)
        sizes.append(node.length(output(position), axis) if stays is None else len(stays))
    return Shrunk({"num_outputs": None}, {1: np.array(sizes, np.int64)})


SPLIT = PruningFacts(_split_ties, _shrink_split)


def _cuts(node: Operands) -> dict[int, tuple[int, int, int, int]] | None:
    """What a Slice with known limits takes: axis -> its place in the limits, start, stop, step."""
    rank = len(node.dims(_X) or ())
    starts, ends = node.constant(1), node.constant(2)
    axes, steps = node.constant(3), node.constant(4)
    given = [len(node.node.inputs) > i and node.node.inputs[i] is not None for i in (3, 4)]
    if starts is None or ends is None or (given[0] and axes is None) or (given[1] and steps is None):
        return None
    along = list(range(len(starts))) if axes is None else [int(a) % rank for a in axes]
    by = [1] * len(starts) if steps is None else [int(s) for s in steps]
    return {a: (k, int(starts[k]), int(ends[k]), by[k]) for k, a in enumerate(along)}


def _slice_ties(node: Operands) -> list[Tie | None]:
    dims, cuts = node.dims(_X), _cuts(node)
    if dims is None:
        return []
    if cuts is None:
        raise Whole("its limits are computed while the model runs")
    ties: list[Tie | None] = []
    for axis, length in enumerate(dims):
        if axis not in cuts:
            ties.append(same(node, (_X, axis), (_Y, axis)))
            continue
        _, start, stop, step = cuts[axis]
        if isinstance(length, int) and step == 1:
            every = np.arange(length)
            ties.append(Tie((Member(_X, axis, every), Member(_Y, axis, every[start:stop]))))
    return ties


def _shrink_slice(node: Operands, kept: Kept) -> Shrunk:
    cuts, starts, ends = _cuts(node), node.constant(1), node.constant(2)
    if cuts is None or starts is None or ends is None:
        return Shrunk()
    starts, ends = starts.copy(), ends.copy()
    for axis, (k, start, stop, _) in cuts.items():
        stays, length = kept(_X, axis), node.length(_X, axis)
        if stays is None or length is None:
            continue
        first, last, _ = slice(start, stop).indices(length)
        starts[k], ends[k] = np.searchsorted(stays, [first, max(first, last)])
    return Shrunk(inputs={1: starts, 2: ends})


SLICE = PruningFacts(_slice_ties, _shrink_slice)


def _pad_ties(node: Operands) -> list[Tie | None]:
    dims, pads = node.dims(_X), node.constant(1)
    if dims is None:
        return []
    if pads is None:
        raise Whole("its padding is computed while the model runs")
    rank = len(dims)
    given = node.constant(3)
    axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    half = len(axes)
    padded = {a for k, a in enumerate(axes) if pads[k] or pads[k + half]}
    return [same(node, (_X, d), (_Y, d)) for d in range(rank) if d not in padded]


PAD = PruningFacts(_pad_ties)


def _gather_ties(node: Operands) -> list[Tie | None]:
    data, indices = node.dims(_X), node.dims(input_(1))
    if data is None or indices is None:
        return []
    axis = _axis(node, len(data), 0)
    ties = [same(node, (_X, d), (_Y, d)) for d in range(axis)]
    ties += [same(node, (_X, d), (_Y, d - 1 + len(indices))) for d in range(axis + 1, len(data))]
    picked = _picked(node, axis)
    if picked is None:
        return ties + [same(node, (input_(1), d), (_Y, axis + d)) for d in range(len(indices))]
    length, order = picked
    members = (Member(_X, axis, np.arange(length)), Member(input_(1), 0, order), Member(_Y, axis, order))
    return [*ties, Tie(members)]


def _picked(node: Operands, axis: int) -> tuple[int, Indices] | None:
    """The length of an axis from which a Gather takes known indices, and those, if all that is known."""
    length, order = node.length(_X, axis), node.constant(1)
    if length is None or order is None or order.ndim != 1:
        return None
    return length, order.astype(np.int64) % length


def _shrink_gather(node: Operands, kept: Kept) -> Shrunk:
    axis = _axis(node, len(node.dims(_X) or (0,)), 0)
    stays, picked = kept(_X, axis), _picked(node, axis)
    if stays is None or picked is None:
        return Shrunk()
    new = np.full(picked[0], -1)
    new[stays] = np.arange(len(stays))
    order = new[picked[1]]
    return Shrunk(inputs={1: order[order >= 0]})


GATHER = PruningFacts(_gather_ties, _shrink_gather)


def _shape_ties(node: Operands) -> list[Tie | None]:
    dims = node.dims(_X)
    if dims is None:
        return []
    read = range(len(dims))[slice(node.attribute("start", 0), node.attribute("end", len(dims)))]
    return [same(node, (_X, d)) for d in range(len(dims)) if d not in read]


SHAPE = PruningFacts(_shape_ties)
"""The axes whose lengths it does not read."""


def _resize_ties(node: Operands) -> list[Tie | None]:
    before, after = node.dims(_X), node.dims(_Y)
    if before is None or after is None or node.attribute("antialias", 0):
        return []
    given = [len(node.node.inputs) > i and node.node.inputs[i] is not None for i in (2, 3)]
    if (given[0] and node.constant(2) is None) or (given[1] and node.constant(3) is None):
        raise Whole("its size is computed while the model runs")
    scaled = _scaled(node, len(before))
    unmoved = (d for d in range(len(before)) if before[d] == after[d] and d not in scaled)
    return [same(node, (_X, d), (_Y, d)) for d in unmoved]


def _scaled(node: Operands, rank: int) -> set[int]:
    """The axes that a Resize scales, though perhaps by so little that they are as long as before."""
    scales = node.constant(2)
    if scales is None or not scales.size:
        return set()
    return {axis for axis, scale in zip(_resized(node, rank), scales.tolist(), strict=True) if scale != 1}


def _resized(node: Operands, rank: int) -> list[int]:
    """The axes that scales or sizes of a Resize are given for."""
    named = node.node.attributes.get("axes")
    return list(range(rank)) if named is None else [int(a) % rank for a in named.as_ints()]


def _shrink_resize(node: Operands, kept: Kept) -> Shrunk:
    sizes, rank = node.constant(3), len(node.dims(_X) or ())
    if sizes is None:
        return Shrunk()
    new = sizes.copy()
    for k, axis in enumerate(_resized(node, rank)):
        stays = kept(_Y, axis)
        if stays is not None:
            new[k] = len(stays)
    return Shrunk(inputs={3: new})


RESIZE = PruningFacts(_resize_ties, _shrink_resize)
