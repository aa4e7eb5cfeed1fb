"""The attention operators of com.microsoft, as ONNX's Attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from hasten.graph.contrib import float_product
from hasten.graph.definition import Definition, Rewrite, rank

Outputs = Sequence[ir.Value | None] | None


def _attention(r: Rewrite) -> Outputs:
    """Projections of one input, and attention."""
    x, weights = r.node.inputs[:2]
    assert x is not None
    projected = r.added(r.op("MatMul", x, weights), r.input(2))
    if r.attribute("do_rotary", 0) or r.input(6) is not None:
        return None
    return _self_attention(r, projected, r.input(3), r.input(4), r.input(5))


def _quantized_attention(r: Rewrite) -> Outputs:
    """The same of codes."""
    x, weights, bias, first, second = r.node.inputs[:5]
    assert x is not None
    if r.attribute("do_rotary", 0):
        return None
    zeros = (r.input(6), r.input(7))
    projected = float_product(r, x, weights, (first, second), zeros, bias)
    return _self_attention(r, projected, r.input(5), r.input(8), None)


def _self_attention(
    r: Rewrite,
    projected: ir.Value,
    mask: ir.Value | None,
    past: ir.Value | None,
    bias: ir.Value | None,
) -> Outputs:
    sizes = r.attribute("qkv_hidden_sizes", None)
    if sizes:
        q, k, v = r.ops("Split", 3, projected, r.constant(list(sizes)), axis=-1)
    else:
        q, k, v = r.ops("Split", 3, projected, axis=-1, num_outputs=3)
    before: tuple[ir.Value | None, ir.Value | None] = (None, None)
    if past is not None:
        zero, one = r.constant(0), r.constant(1)
        before = (r.op("Gather", past, zero, axis=0), r.op("Gather", past, one, axis=0))
    found = _attended(r, q, k, v, mask, bias, before, r.wants(1))
    if found is None or not r.wants(1):
        return found
    y, key, value = found
    axis = r.constant([0])
    both = [r.op("Unsqueeze", t, axis) for t in (key, value)]
    return [y, r.op("Concat", *both, axis=0)]


def _multi_head_attention(r: Rewrite) -> Outputs:
    """Queries, keys and values of three dims, with a bias and what was before."""
    q, key, value = r.node.inputs[0], r.input(1), r.input(2)
    assert q is not None
    if any(r.input(n) is not None for n in (8, 9)) or r.wants(3):
        return None
    if not rank(q) == rank(key) == rank(value) == 3:
        return None
    assert key is not None and value is not None
    bias = r.input(3)
    if bias is not None:
        q, key, value = _biased(r, bias, q, key, value)
    before = (r.input(6), r.input(7))
    return _attended(r, q, key, value, r.input(4), r.input(5), before, r.wants(1) or r.wants(2))


def _biased(r: Rewrite, bias: ir.Value, *operands: ir.Value) -> list[ir.Value]:
    """Operands with their parts of one bias; values may have another width than the other two."""
    widths = [r.op("Shape", t, start=2, end=3) for t in operands]
    parts = r.ops("Split", 3, bias, r.op("Concat", *widths, axis=0), axis=0)
    for part in parts:
        part.shape = ir.Shape([None])  # inference gives up on widths that it does not see
    return [r.op("Add", t, b) for t, b in zip(operands, parts, strict=True)]


def _attended(
    r: Rewrite,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    mask: ir.Value | None,
    bias: ir.Value | None,
    past: tuple[ir.Value | None, ir.Value | None],
    present: bool,
) -> list[ir.Value | None] | None:
    """ONNX's Attention with a mask of positions and what is added to scores."""
    heads = r.attribute("num_heads", 0)
    attributes = {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "is_causal": int(r.attribute("unidirectional", 0)),
    }
    scale = r.attribute("scale", 0.0)
    if scale:
        attributes["scale"] = scale
    added = bias
    if mask is not None:
        keep = _kept(r, mask, k, past[0])
        if keep is None:
            return None
        # A query from which all keys are hidden weighs them by their scores, as they all have this added.
        low = r.number(r.attribute("mask_filter_value", -10000.0), q)
        hidden = r.op("Where", keep, r.number(0.0, q), low)
        added = hidden if bias is None else r.op("Add", hidden, bias)
    if past[0] is None and not present:
        return [r.op("Attention", q, k, v, added, **attributes)]
    return [*r.ops("Attention", 3, q, k, v, added, *past, **attributes)]


def _kept(r: Rewrite, mask: ir.Value, key: ir.Value, past: ir.Value | None) -> ir.Value | None:
    """Which keys a mask shows, for [batch, heads, queries, keys]; a mask of one dim has lengths."""
    dims = rank(mask)
    if dims == 1:
        count = mask.shape[0] if mask.shape is not None else None
        x = r.node.inputs[0]
        batch = x.shape[0] if x is not None and x.shape is not None else None
        if past is not None or (isinstance(count, int) and isinstance(batch, int) and count != batch):
            return None  # starts and ends of packed texts
        length = r.op("Squeeze", r.op("Shape", key, start=1, end=2))
        places = r.op("Range", r.constant(0), length, r.constant(1))
        ends = r.op("Unsqueeze", r.op("Cast", mask, to=ir.DataType.INT64.value), r.constant([1, 2, 3]))
        return r.op("Less", places, ends)
    if dims not in (2, 3, 4):
        return None
    shown = r.op("Cast", mask, to=ir.DataType.BOOL.value)
    if dims == 4:
        return shown
    return r.op("Unsqueeze", shown, r.constant([1, 2] if dims == 2 else [1]))


ATTENTION: Mapping[str, Definition] = MappingProxyType(
    {
        "Attention": _attention,
        "QAttention": _quantized_attention,
        "MultiHeadAttention": _multi_head_attention,
    }
)
"""Definitions of attention operators."""
