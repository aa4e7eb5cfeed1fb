"""Scaled dot-product attention (Vaswani et al. 2017) as one ONNX `Attention` in its 3-D form.

    softmax(scale * q k^T + mask) v      over [batch, sequence, heads * size]

The rewrite starts at the product with the values and reads upward. It puts explicit Transpose and
Reshape nodes around `Attention`, from `[batch, heads, sequence, size]` to the 3-D form and back;
where the model had split the heads itself, these cancel (see `no_ops`), and where it had not (a
rotary embedding on the 4-D form), they remain and the fusion is still right.

Fully masked rows. A row of scores that is -inf everywhere has no defined softmax. `Attention`
answers such rows with zeros (hasten's kernel, ONNX's reference and ONNX Runtime agree). So:

- `Where(IsNaN(p), 0, p)` after the softmax, which torch writes to get those zeros, is absorbed.
  It would also hide a NaN that comes in with q or k; `Attention` passes such a NaN on.
- without that guard a fully masked row was NaN and becomes zero. No other row changes.
- a mask that adds a finite number, such as the lowest float32, masks nothing completely: a row
  full of it is a plain average. It stays an additive mask, so that average stays what it was.
- `Where(keep, 0, -inf)` becomes the boolean mask `keep`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from hasten.passes.attention_inputs import Operand, flatten_heads, peel_scale, ungroup
from hasten.passes.attention_mask import MaskPart, additive_mask, filled_mask, mask_problem, merge_masks
from hasten.passes.facts import Facts, integer
from hasten.passes.rule import Builder, Declined, Match, Op, Rule, used_elsewhere
from hasten.passes.scalars import scalar_value
from hasten.passes.sizes import Dims, broadcast


@dataclass(frozen=True)
class _Scores:
    """What the softmax is taken of: operands of the product, its factor and its masks."""

    query: ir.Value
    key: ir.Value
    scale: float
    masks: tuple[MaskPart, ...]
    nodes: tuple[ir.Node, ...]


def _producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type not in kinds:
        return None
    return node


def _softmax(value: ir.Value | None) -> tuple[ir.Node, list[ir.Node]] | None:
    """The Softmax behind a value, looking through the guard against NaN."""
    guard = _producer(value, "Where")
    nodes: list[ir.Node] = []
    if guard is not None:
        test, zero, kept = guard.inputs
        is_nan = _producer(test, "IsNaN")
        if is_nan is None or scalar_value(zero) != 0.0 or is_nan.inputs[0] is not kept:
            return None
        nodes, value = [guard, is_nan], kept
    node = _producer(value, "Softmax")
    return None if node is None else (node, [*nodes, node])


def _read_scores(value: ir.Value | None) -> _Scores | Declined | None:
    """Read masks, factors and the product upward from the input of the softmax."""
    nodes: list[ir.Node] = []
    masks: list[MaskPart] = []
    scale = 1.0
    while (node := _producer(value, "Add", "Where", "Mul", "Div", "MatMul")) is not None:
        if node.op_type == "MatMul":
            query, key = node.inputs
            if query is None or key is None:
                return None
            return _Scores(query, key, scale, tuple(masks), (*nodes, node))
        if node.op_type in ("Mul", "Div"):
            factor = scalar_value(node.inputs[1], rank=4)
            step = node.inputs[0]
            if factor is None and node.op_type == "Mul":
                factor, step = scalar_value(node.inputs[0], rank=4), node.inputs[1]
            if not factor:
                return None
            scale *= factor if node.op_type == "Mul" else 1 / factor
            value = step
        else:
            if scale != 1.0:
                return Declined("the scores are scaled after the mask is applied")
            found = _mask_step(node)
            if found is None or isinstance(found, Declined):
                return found
            value, part = found
            masks.append(part)
        nodes.append(node)
    return None


def _mask_step(node: ir.Node) -> tuple[ir.Value, MaskPart] | Declined | None:
    """Split one masking node into the scores that it masks and its mask."""
    if node.op_type == "Where":
        return filled_mask(node)
    first, second = node.inputs
    for scores, mask in ((first, second), (second, first)):
        if scores is not None and mask is not None and _leads_to_product(scores):
            return scores, additive_mask(mask)
    return None


def _leads_to_product(value: ir.Value, depth: int = 4) -> bool:
    node = _producer(value, "MatMul", "Mul", "Div", "Add", "Where")
    if node is None or depth == 0:
        return False
    if node.op_type == "MatMul":
        return True
    return any(v is not None and _leads_to_product(v, depth - 1) for v in node.inputs)


def _rewrite(match: Match, facts: Facts, build: Builder) -> ir.Value | Declined | None:
    probabilities, value = match.root.inputs
    found = _softmax(probabilities)
    if found is None or value is None:
        return None
    softmax, nodes = found
    rank = len(facts.dims(softmax.inputs[0]) or ())
    if rank < 3:
        return None  # a classifier's softmax
    if integer(softmax, "axis", -1) not in (-1, rank - 1):
        return Declined("the Softmax is not taken over the last axis")
    scores = _read_scores(softmax.inputs[0])
    if scores is None:
        return Declined("the Softmax is not taken of a product with scale and mask")
    if isinstance(scores, Declined):
        return scores
    shared = used_elsewhere([*nodes, *scores.nodes], match.root)
    if shared is not None:
        return Declined(shared)
    return _fuse(match, scores, softmax, value, facts, build)


def _fuse(
    match: Match,
    scores: _Scores,
    softmax: ir.Node,
    value: ir.Value,
    facts: Facts,
    build: Builder,
) -> ir.Value | Declined:
    query, query_scale = peel_scale(scores.query)
    key, key_scale = peel_scale(scores.key)
    scale = scores.scale * query_scale * key_scale
    if query.dtype != ir.DataType.FLOAT:
        return Declined(f"the queries are {query.dtype}, not float32")
    q = Operand.of(query, facts.dims(query), (0, 1, 2, 3))
    k = Operand.of(key, facts.dims(key), (0, 1, 3, 2))
    v = Operand.of(value, facts.dims(value), (0, 1, 2, 3))
    if isinstance(q, Declined) or isinstance(k, Declined) or isinstance(v, Declined):
        return next(o for o in (q, k, v) if isinstance(o, Declined))
    wrong = _disagreement(q, k, v, facts.dims(softmax.inputs[0]))
    if wrong is not None:
        return Declined(wrong)
    groups = ungroup(k, v, facts)
    if isinstance(groups, Declined):
        return groups
    k, v = groups
    problem = mask_problem(scores.masks, facts)
    if problem is not None:
        return Declined(problem)
    mask = merge_masks(scores.masks, facts, build)
    inputs: list[ir.Value | None] = [flatten_heads(o, build) for o in (q, k, v)]
    if mask is not None:
        inputs.append(mask)
    attributes: dict[str, int | float] = {
        "q_num_heads": q.heads,
        "kv_num_heads": k.heads,
        "scale": scale,
    }
    fused = build.op("Attention", inputs, attributes)
    split = build.integers([0, 0, q.heads, v.size], "heads")
    return build.op("Transpose", [build.op("Reshape", [fused, split])], {"perm": (0, 2, 1, 3)})


def _disagreement(q: Operand, k: Operand, v: Operand, scores: Dims | None) -> str | None:
    """Why the operands are not those of one attention; None if they are."""
    if not q.batch == k.batch == v.batch:
        return f"batch sizes {q.batch}, {k.batch} and {v.batch} are not proved equal"
    if not q.heads == k.heads == v.heads:
        return f"{q.heads}, {k.heads} and {v.heads} heads of q, k and v differ"
    if k.sequence != v.sequence:
        return f"keys and values have {k.sequence} and {v.sequence} positions, not proved equal"
    if q.size != k.size:
        return f"heads of q and k have sizes {q.size} and {k.size}"
    expected = (q.batch, q.heads, q.sequence, k.sequence)
    if scores is None or broadcast(expected, scores) != expected:
        return f"the mask widens the scores from {expected} to {scores}"
    return None


def _absorb_factor(match: Match, _facts: Facts, build: Builder) -> ir.Value | None:
    """Take a constant factor of q or k, written before the heads are split, into the scale."""
    node = match.root
    attribute = node.attributes.get("scale")
    if attribute is None:
        return None
    scale, inputs = attribute.as_float(), list(node.inputs)
    for side in (0, 1):
        source = inputs[side]
        if source is not None and len(source.uses()) == 1:
            inputs[side], factor = peel_scale(source)
            scale *= factor
    if inputs == list(node.inputs) or len(node.outputs) != 1:
        return None
    return build.like(node, inputs, {"scale": scale})


ATTENTION_FACTOR = Rule("absorb factor of Attention", Op("Attention"), _absorb_factor)
ATTENTION = Rule("fuse Attention", Op("MatMul"), _rewrite)
