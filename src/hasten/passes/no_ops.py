"""No-op removal: nodes that return their input, pairs that undo each other, roundabout movement."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts, integer, integers
from hasten.passes.rule import Builder, Declined, Match, Op, Rule, Var, is_fixed
from hasten.passes.sizes import Dims, broadcast


def _pass_through(match: Match) -> ir.Value | None:
    """The first input, unless both ends are named by the model and the node must stand."""
    source = match.root.inputs[0]
    if source is None:
        return None
    fixed = is_fixed(source, match.root.graph)
    return None if fixed and match.output.is_graph_output() else source


def _same_shape(match: Match, facts: Facts) -> ir.Value | None:
    before, after = facts.dims(match.root.inputs[0]), facts.dims(match.output)
    return _pass_through(match) if before is not None and before == after else None


def _identity(match: Match, _facts: Facts, _build: Builder) -> ir.Value | None:
    return _pass_through(match)


def _dropout(match: Match, _facts: Facts, _build: Builder) -> ir.Value | Declined | None:
    node = match.root
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return Declined("the mask of the Dropout is used")
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        flag = constant_value(training)
        if flag is None or bool(flag):
            return Declined("the Dropout may run in training mode")
    return _pass_through(match)


def _cast(match: Match, _facts: Facts, _build: Builder) -> ir.Value | None:
    source = match.root.inputs[0]
    if source is None or source.dtype is None:
        return None
    return _pass_through(match) if integer(match.root, "to", -1) == source.dtype else None


def _expand_or_squeeze(match: Match, facts: Facts, _build: Builder) -> ir.Value | None:
    return _same_shape(match, facts)


def _unsqueezed_squeeze(match: Match, facts: Facts, _build: Builder) -> ir.Value | None:
    source = match.values["x"]
    before, after = facts.dims(source), facts.dims(match.output)
    return source if before is not None and before == after else None


def _reshape(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Drop a Reshape that keeps the shape, look through a Reshape, write the target plainly."""
    same = _same_shape(match, facts)
    if same is not None:
        return same
    node = match.root
    source, target = node.inputs[0], node.inputs[1]
    output = facts.dims(match.output)
    if source is None or output is None:
        return None
    before = source.producer()
    looked_through = before is not None and before.op_type == "Reshape" and not before.domain
    origin = before.inputs[0] if looked_through and before is not None else source
    plain = plain_target(facts.dims(origin), output)
    if origin is None or plain is None:
        return None
    current = None if target is None else constant_value(target)
    canonical = current is not None and not integer(node, "allowzero", 0)
    if canonical and not looked_through and current is not None and current.tolist() == plain:
        return None
    shape = build.constant(np.array(plain, dtype=np.int64), "shape")
    return build.op("Reshape", [origin, shape])


def plain_target(before: Dims | None, after: Dims) -> list[int] | None:
    """A constant Reshape target: numbers, 0 for a size that stays in place, at most one -1."""
    target: list[int] = []
    for axis, dim in enumerate(after):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif before is not None and axis < len(before) and before[axis] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _transpose(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Drop an identity permutation, join two permutations into one."""
    order = permutation(match.root, facts)
    source = match.root.inputs[0]
    if order is None or source is None:
        return None
    if order == tuple(range(len(order))):
        return _pass_through(match)
    before = source.producer()
    if before is None or before.op_type != "Transpose" or before.domain:
        return None
    first = permutation(before, facts)
    if first is None:
        return None
    joined = tuple(first[axis] for axis in order)
    if joined == tuple(range(len(order))) and before.inputs[0] is not None:
        fixed = is_fixed(before.inputs[0], match.root.graph)
        if not (fixed and match.output.is_graph_output()):
            return before.inputs[0]
    return build.op("Transpose", [before.inputs[0]], {"perm": joined})


def permutation(node: ir.Node, facts: Facts) -> tuple[int, ...] | None:
    """The permutation of a Transpose, the default written out; None if the rank is unknown."""
    order = integers(node, "perm")
    if order is None:
        dims = facts.dims(node.inputs[0])
        order = None if dims is None else tuple(reversed(range(len(dims))))
    return order


def _batched_transpose(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Reshape to rank 3, swap the last two axes, Reshape back: one Transpose.

    This is how torch's exporter writes the transpose of the keys.
    """
    source = match.values["x"]
    before, flat = facts.dims(source), facts.dims(match.nodes["flat"].outputs[0])
    after = facts.dims(match.output)
    swapped = permutation(match.nodes["swap"], facts) == (0, 2, 1)
    if not swapped or before is None or flat is None or after is None or len(before) < 3:
        return None
    *batch, rows, columns = before
    if flat[1:] != (rows, columns) or after != (*batch, columns, rows):
        return None
    rank = len(before)
    return build.op("Transpose", [source], {"perm": [*range(rank - 2), rank - 1, rank - 2]})


def _flattened_softmax(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Softmax over the last axis written as Flatten, Softmax, Reshape.

    ONNX's version converter writes this for models older than opset 13.
    """
    source = match.values["x"]
    dims = facts.dims(source)
    if dims is None or facts.dims(match.output) != dims:
        return None
    last = len(dims) - 1
    over_last = integer(match.nodes["softmax"], "axis", -1) in (1, -1)
    if not over_last or integer(match.nodes["flatten"], "axis", 1) not in (last, -1):
        return None
    return build.op("Softmax", [source], {"axis": -1})


def _slice(match: Match, facts: Facts, _build: Builder) -> ir.Value | None:
    """Drop a Slice in steps of 1 that is as long as what it is taken of."""
    steps = match.root.inputs[4] if len(match.root.inputs) > 4 else None
    if steps is not None:
        known = facts.contents(steps)
        if known is None or any(step != 1 for step in known):
            return None
    return _same_shape(match, facts)


def _pad(match: Match, facts: Facts, _build: Builder) -> ir.Value | None:
    pads = facts.contents(match.root.inputs[1])
    return _pass_through(match) if pads is not None and not any(pads) else None


def _concat(match: Match, _facts: Facts, _build: Builder) -> ir.Value | None:
    return _pass_through(match) if len(match.root.inputs) == 1 else None


def _neutral(match: Match, facts: Facts, _build: Builder) -> ir.Value | None:
    """Adding 0 or multiplying by 1, where the constant does not widen the other operand."""
    kind = match.root.op_type
    neutral = 0 if kind in ("Add", "Sub") else 1
    sides = (1,) if kind in ("Sub", "Div") else (1, 0)
    for side in sides:
        constant, other = match.root.inputs[side], match.root.inputs[1 - side]
        array = None if constant is None else constant_value(constant)
        if other is None or array is None or array.dtype.kind not in "fiu":
            continue
        if not array.size or not (array == neutral).all():
            continue
        dims = facts.dims(other)
        if dims is None or broadcast(dims, array.shape) != dims:
            continue
        fixed = is_fixed(other, match.root.graph)
        return None if fixed and match.output.is_graph_output() else other
    return None


NO_OP_RULES = (
    Rule("remove Identity", Op("Identity"), _identity),
    Rule("remove Dropout", Op("Dropout"), _dropout),
    Rule("remove Cast to the same type", Op("Cast"), _cast),
    Rule("remove Expand to the same shape", Op("Expand"), _expand_or_squeeze),
    Rule(
        "remove Squeeze of Unsqueeze",
        Op("Squeeze", (Op("Unsqueeze", (Var("x"), Var("added")), shared=True), Var("removed"))),
        _unsqueezed_squeeze,
    ),
    Rule(
        "join Reshape, Transpose, Reshape",
        Op(
            "Reshape",
            (
                Op(
                    "Transpose",
                    (Op("Reshape", (Var("x"), Var("s")), name="flat", shared=True),),
                    name="swap",
                    shared=True,
                ),
                Var("t"),
            ),
        ),
        _batched_transpose,
    ),
    Rule(
        "remove Flatten around Softmax",
        Op(
            "Reshape",
            (
                Op("Softmax", (Op("Flatten", (Var("x"),), name="flatten"),), name="softmax"),
                Var("shape"),
            ),
        ),
        _flattened_softmax,
    ),
    Rule("simplify Reshape", Op("Reshape"), _reshape),
    Rule("simplify Transpose", Op("Transpose"), _transpose),
    Rule("remove Slice of everything", Op("Slice"), _slice),
    Rule("remove Pad by nothing", Op("Pad"), _pad),
    Rule("remove Concat of one", Op("Concat"), _concat),
    Rule("remove neutral operand", Op(("Add", "Sub", "Mul", "Div")), _neutral),
)
