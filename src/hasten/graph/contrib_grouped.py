"""GroupQueryAttention of com.microsoft, as decoders with a cache are exported, in ONNX's own operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from hasten.graph.definition import Definition, Rewrite, rank

_LEAST = -3.4028235e38
_QUERY, _KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _LENGTHS, _TOTAL, _COS, _SIN, _PLACES, _BIAS = range(11)


def _grouped(r: Rewrite) -> Sequence[ir.Value | None] | None:
    """Attention of new positions to what was before and to themselves.

    `seqlens_k` has, for each sequence, the number of positions with the new ones, less one. New keys and
    values are written behind those that were before, into a cache as long as the longest of both.
    """
    if any(r.input(n) is not None for n in range(_BIAS + 1, len(r.node.inputs))):
        return None
    plain = {
        "smooth_softmax": (0, -1),
        "kv_cache_bit_width": (0,),
        "sliding_window_cache": (0,),
        "causal": (1,),
    }
    if any(r.attribute(name, usual[0]) not in usual for name, usual in plain.items()) or r.wants(3):
        return None
    heads, groups = r.attribute("num_heads", 0), r.attribute("kv_num_heads", 0)
    parts = _operands(r, heads, groups)
    if parts is None:
        return None
    length = r.op("Shape", parts[0], start=1, end=2)
    total = r.op("Reshape", _whole(r, r.input(_TOTAL)), r.constant([1]))
    known = r.op("Reshape", _whole(r, r.input(_LENGTHS)), r.constant([-1]))
    before = r.op("Sub", r.op("Add", known, r.constant([1])), length)
    before = r.op("Where", r.op("Equal", total, length), r.op("Sub", before, before), before)
    steps = r.op("Range", r.constant(0), r.op("Squeeze", length), r.constant(1))
    places = r.op(
        "Add", r.op("Unsqueeze", before, r.constant([1])), r.op("Unsqueeze", steps, r.constant([0]))
    )
    query, key, value = parts
    if r.attribute("do_rotary", 0):
        given = r.input(_PLACES)
        at = places if given is None else given
        query, key = (_turned(r, t, n, at) for t, n in ((query, heads), (key, groups)))
    q = _by_heads(r, query, heads)
    k, v = (
        _cached(r, _by_heads(r, t, groups), r.input(past), before, total)
        for t, past in ((key, _PAST_KEY), (value, _PAST_VALUE))
    )
    attributes = {name: r.attribute(name, 0.0) for name in ("scale", "softcap") if r.attribute(name, 0.0)}
    y = r.op("Attention", q, k, v, _shown(r, k, places), **attributes)
    y = r.op("Reshape", r.op("Transpose", y, perm=[0, 2, 1, 3]), r.constant([0, 0, -1]))
    return [y, k, v]


def _whole(r: Rewrite, value: ir.Value | None) -> ir.Value:
    return r.op("Cast", value, to=ir.DataType.INT64.value)


def _operands(r: Rewrite, heads: int, groups: int) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Queries, keys and values of three dims, which may come packed as one."""
    query, key, value = (r.input(n) for n in (_QUERY, _KEY, _VALUE))
    if query is None or not heads or not groups or rank(query) != 3:
        return None
    if key is not None and value is not None:
        return query, key, value
    width = query.shape[2] if query.shape is not None else None
    if not isinstance(width, int):
        return None
    size = width // (heads + 2 * groups)
    parts = r.constant([heads * size, groups * size, groups * size])
    q, k, v = r.ops("Split", 3, query, parts, axis=-1)
    return q, k, v


def _by_heads(r: Rewrite, x: ir.Value, heads: int) -> ir.Value:
    return r.op("Transpose", r.op("Reshape", x, r.constant([0, 0, heads, -1])), perm=[0, 2, 1, 3])


def _turned(r: Rewrite, x: ir.Value, heads: int, places: ir.Value) -> ir.Value:
    cosines = r.input(_COS)
    width = cosines.shape[1] if cosines is not None and cosines.shape is not None else None
    attributes = {"num_heads": heads, "interleaved": r.attribute("rotary_interleaved", 0)}
    if isinstance(width, int):
        attributes["rotary_embedding_dim"] = 2 * width
    return r.op("RotaryEmbedding", x, cosines, r.input(_SIN), places, **attributes)


def _cached(r: Rewrite, new: ir.Value, past: ir.Value | None, before: ir.Value, total: ir.Value) -> ir.Value:
    """What was before, [batch, head, position, size], with what is new behind it."""
    if past is None:
        return new
    have = r.op("Shape", past, start=2, end=3)
    more = r.op("Sub", r.op("Max", have, total), have)
    none = r.constant([0])
    pads = r.op("Concat", *[none] * 6, more, none, axis=0)
    return r.op("TensorScatter", r.op("Pad", past, pads), new, before, axis=2)


def _shown(r: Rewrite, key: ir.Value, places: ir.Value) -> ir.Value:
    """Which keys each query sees, [batch, 1, query, key], or what is added to the scores."""
    count = r.op("Squeeze", r.op("Shape", key, start=2, end=3))
    keys = r.op("Range", r.constant(0), count, r.constant(1))
    own = r.op("Unsqueeze", places, r.constant([1, 3]))
    shown = r.op("LessOrEqual", keys, own)
    window = r.attribute("local_window_size", -1)
    if window > 0:
        near = r.op("Less", r.op("Sub", own, r.constant(window)), keys)
        shown = r.op("And", shown, near)
    bias = r.input(_BIAS)
    if bias is None:
        return shown
    return r.op("Where", shown, bias, r.number(_LEAST, bias))


GROUPED: Mapping[str, Definition] = MappingProxyType({"GroupQueryAttention": _grouped})
"""Definitions of attention with grouped heads and a cache."""
