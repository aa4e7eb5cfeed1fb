"""Taking parts of a packed value: `qkv[i]` spelled through transposes becomes a slice of columns.

Vision models compute q, k and v as one product, reshape it to `[batch, tokens, 3, heads, size]`,
transpose and take three parts. Here each part is taken first and transposed after, and the part of
the reshaped product becomes a slice of the product itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from hasten.passes.facts import Facts, integer
from hasten.passes.no_ops import permutation
from hasten.passes.rule import Builder, Match, Op, Rule, Var


def _squeezed_slice(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Squeeze of a slice of one is a Gather at a fixed index."""
    cut = match.nodes["cut"]
    source = cut.inputs[0]
    dims, left = facts.dims(source), facts.dims(match.output)
    limits = [facts.contents(value) for value in cut.inputs[1:]]
    if dims is None or left is None or source is None or len(limits) not in (3, 4):
        return None
    if any(limit is None or len(limit) != 1 for limit in limits):
        return None
    numbers = [limit[0] for limit in limits if limit is not None]
    start, stop, axis = numbers[0], numbers[1], numbers[2]
    if not (isinstance(start, int) and isinstance(stop, int) and isinstance(axis, int)):
        return None
    axis %= len(dims)
    removed = facts.contents(match.values["axes"])
    if start < 0 or stop != start + 1 or numbers[3:] not in ([], [1]) or removed is None:
        return None
    size = dims[axis]
    if len(removed) != 1 or removed[0] not in (axis, axis - len(dims)):
        return None
    if not isinstance(size, int) or start >= size:
        return None
    index = build.constant(np.array(start, dtype=np.int64), "index")
    return build.op("Gather", [source, index], {"axis": axis})


def _part_of_transpose(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Take a part before transposing instead of after."""
    dims = facts.dims(match.values["x"])
    order = permutation(match.nodes["transpose"], facts)
    index = facts.contents(match.values["index"])
    if dims is None or order is None or index is None:
        return None
    if facts.dims(match.values["index"]) != () or not isinstance(index[0], int):
        return None
    axis = integer(match.root, "axis", 0) % len(dims)
    source_axis = order[axis]
    rest = [a - (a > source_axis) for place, a in enumerate(order) if place != axis]
    part = build.op("Gather", [match.values["x"], match.values["index"]], {"axis": source_axis})
    return build.op("Transpose", [part], {"perm": rest})


def _part_of_columns(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """A part of reshaped columns, flattened again, is a slice of the columns."""
    source = match.values["x"]
    part = match.nodes["part"]
    before, split = facts.dims(source), facts.dims(match.nodes["split"].outputs[0])
    after, index = facts.dims(match.output), facts.contents(match.values["index"])
    if before is None or split is None or after is None or index is None or len(before) < 2:
        return None
    lead = len(before) - 1
    inner = [d for d in split[lead + 1 :] if isinstance(d, int)]
    axis = integer(part, "axis", 0) % len(split)
    if axis != lead or split[:lead] != before[:lead] or len(inner) != len(split) - lead - 1:
        return None
    width = math.prod(inner)
    if after != (*before[:lead], width) or facts.dims(match.values["index"]) != ():
        return None
    count, start = split[lead], index[0]
    if not isinstance(count, int) or not isinstance(start, int) or before[lead] != count * width:
        return None
    start = start % count * width
    limits = [build.integers([n], name) for n, name in ((start, "start"), (start + width, "end"))]
    return build.op("Slice", [source, *limits, build.integers([lead], "axis")])


PART_RULES = (
    Rule(
        "take parts by index",
        Op("Squeeze", (Op("Slice", name="cut"), Var("axes"))),
        _squeezed_slice,
    ),
    Rule(
        "take parts before Transpose",
        Op("Gather", (Op("Transpose", (Var("x"),), name="transpose", shared=True), Var("index"))),
        _part_of_transpose,
    ),
    Rule(
        "take parts as columns",
        Op(
            "Reshape",
            (
                Op(
                    "Gather",
                    (
                        Op("Reshape", (Var("x"), Var("heads")), name="split", shared=True),
                        Var("index"),
                    ),
                    name="part",
                    shared=True,
                ),
                Var("shape"),
            ),
        ),
        _part_of_columns,
    ),
)
