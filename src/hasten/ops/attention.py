"""Scaled-dot-product attention and rotary position embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from hasten.loops.descriptions import Attention
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Bounded, Expr, Var, binary, const, constant_int, select, var
from hasten.ops.attributes import attribute_float, attribute_int
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.broadcasting import spread
from hasten.ops.pruning import (
    HEADS,
    Kept,
    Operands,
    PruningFacts,
    Shrunk,
    Tie,
    Whole,
    grouped,
    input_,
    output,
    same,
)

_UNSUPPORTED_INPUTS = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}
_UNSUPPORTED_OUTPUTS = {1: "present_key", 2: "present_value", 3: "qk_matmul_output"}


@dataclass(frozen=True)
class _Heads:
    """A tensor [batch, heads, sequence, size], or [batch, sequence, heads * size], seen by head."""

    tensor: Tensor
    heads: Expr

    @property
    def length(self) -> Expr:
        return self.tensor.shape[1 if self.tensor.rank == 3 else 2]

    @property
    def size(self) -> Expr:
        last = self.tensor.shape[-1]
        return last // self.heads if self.tensor.rank == 3 else last

    def at(self, b: Expr, h: Expr, s: Expr, d: Expr) -> Expr:
        if self.tensor.rank == 3:
            return self.tensor.at(b, s, h * self.size + d)
        return self.tensor.at(b, h, s, d)


def _split(ctx: Lowering, t: Tensor, heads: int, what: str) -> _Heads:
    """A tensor by its heads, their number given by an attribute where it has three dims.

    Raises:
        Declined: the last dim does not divide, or the rank is another.
    """
    if t.rank == 4:
        return _Heads(t, t.shape[1])
    if t.rank != 3:
        raise Declined(f"{what} of rank {t.rank}; 3 and 4 are defined")
    if heads < 1:
        raise Declined(f"{what} of rank 3 needs its number of heads")
    found = _Heads(t, const(heads))
    ctx.require_equal(found.size * heads, t.shape[2])
    return found


def _check_form(node: ir.Node, inputs: Inputs) -> None:
    """Declines what the contraction does not express."""
    for position, name in _UNSUPPORTED_INPUTS.items():
        if optional(inputs, position) is not None:
            raise Declined(f"Attention with {name}")
    for position, name in _UNSUPPORTED_OUTPUTS.items():
        if position < len(node.outputs) and node.outputs[position].name:
            raise Declined(f"Attention with the output {name}")
    if attribute_float(node, "softcap", 0.0):
        raise Declined("Attention with softcap")
    for name in ("left_window_size", "right_window_size"):
        if attribute_int(node, name, -1) >= 0:
            raise Declined(f"Attention with {name}")


def lower_attention(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """softmax(scale * Q K^T + mask) V by head; key and value heads may be shared by several queries."""
    _check_form(node, inputs)
    query_heads = attribute_int(node, "q_num_heads", 0)
    key_heads = attribute_int(node, "kv_num_heads", 0)
    q = _split(ctx, required(inputs, 0), query_heads, "the query of Attention")
    k = _split(ctx, required(inputs, 1), key_heads, "the key of Attention")
    v = _split(ctx, required(inputs, 2), key_heads, "the value of Attention")
    mask = optional(inputs, 3)
    dtype = _common_type(ctx, q, k, v)
    group = _group(ctx, q.heads, k.heads)
    scale = _scale(node, q.size)
    key, depth = var("t", k.length), var("k", q.size)
    mask_at = _mask(ctx, mask, (q.tensor.shape[0], q.heads, q.length, k.length), dtype)
    causal = attribute_int(node, "is_causal", 0) != 0

    def body(b: Var, s: Var, h: Var, d: Var) -> Attention:
        bias, keep = mask_at(b, h, s, key)
        if causal:
            before = binary("le", key, s)
            keep = before if keep is None else binary("and", keep, before)
        shared = h // group
        return Attention(
            batch=b,
            head=h,
            row=s,
            column=d,
            key=key,
            depth=depth,
            q=q.at(b, h, s, depth),
            k=k.at(b, shared, key, depth),
            v=v.at(b, shared, key, d),
            scale=scale,
            bias=bias,
            keep=keep,
        )

    shape = (q.tensor.shape[0], q.length, q.heads, v.size)
    by_row = ctx.temporary(shape, body, dtype, "heads", vars=("b", "s", "h", "d"))
    if q.tensor.rank == 4:
        outside = (shape[0], shape[2], shape[1], shape[3])
        names = ("b", "h", "s", "d")
        return [ctx.define(outside, lambda b, h, s, d: by_row.at(b, s, h, d), dtype, vars=names)]
    size = by_row.shape[3]

    def flat(b: Expr, s: Expr, c: Expr) -> Expr:
        return by_row.at(b, s, c // size, c % size)

    return [ctx.define((shape[0], shape[1], shape[2] * shape[3]), flat, dtype, vars=("b", "s", "c"))]


def _common_type(ctx: Lowering, q: _Heads, k: _Heads, v: _Heads) -> DType:
    """The element type of the operands, whose sizes are required to fit each other."""
    dtype = q.tensor.dtype
    if not dtype.is_float or any(t.tensor.dtype is not dtype for t in (k, v)):
        raise Declined("Attention of different or integer element types")
    ctx.require_equal(q.size, k.size)
    ctx.require_equal(k.length, v.length)
    ctx.require_equal(k.heads, v.heads)
    for t in (k, v):
        ctx.require_equal(q.tensor.shape[0], t.tensor.shape[0])
    return dtype


def _group(ctx: Lowering, queries: Expr, keys: Expr) -> Expr:
    """Query heads that share one key head."""
    if queries == keys:
        return const(1)
    many, few = constant_int(queries), constant_int(keys)
    if many is None or few is None:
        ctx.require_equal(queries, keys)
        return const(1)
    if not few or many % few:
        raise Declined(f"Attention of {many} query heads over {few} key heads")
    return const(many // few)


def _scale(node: ir.Node, size: Expr) -> float:
    """The factor of the scores: given, or 1 / sqrt(size of a head)."""
    given = node.attributes.get("scale")
    if given is not None:
        return given.as_float()
    known = constant_int(size)
    if known is None:
        raise Declined("Attention without a scale whose head size is not constant")
    return 1 / math.sqrt(max(known, 1))


class _Mask:
    """Additive bias and boolean mask by (batch, head, row, key), either of them None."""

    def __init__(self, mask: Tensor | None, short: Expr | None, dtype: DType) -> None:
        self.mask, self.short, self.dtype = mask, short, dtype

    def __call__(self, b: Expr, h: Expr, s: Expr, t: Expr) -> tuple[Expr | None, Expr | None]:
        if self.mask is None:
            return None, None
        index = (b, h, s, t)[4 - self.mask.rank :]
        ones = [constant_int(n) == 1 for n in self.mask.shape]
        value = self.mask.at(*(const(0) if one else i for one, i in zip(ones, index, strict=True)))
        # A mask may end before the keys do; those beyond it are left out.
        there = None if self.short is None else binary("lt", t, self.short)
        if self.mask.dtype is DType.BOOL:
            return None, value if there is None else select(there, value, const(False, DType.BOOL))
        return value if there is None else select(there, value, const(0, self.dtype)), there


def _mask(ctx: Lowering, mask: Tensor | None, scores: tuple[Expr, ...], dtype: DType) -> _Mask:
    """Access to a mask that broadcasts to the scores [batch, head, row, key].

    Raises:
        Declined: its type or rank is not one that Attention defines.
    """
    if mask is None:
        return _Mask(None, None, dtype)
    if mask.dtype not in (DType.BOOL, dtype):
        raise Declined(f"Attention with a mask of {mask.dtype.numpy.name}")
    if not 1 <= mask.rank <= 4:
        raise Declined(f"Attention with a mask of rank {mask.rank}")
    wanted = scores[4 - mask.rank :]
    for n, m in zip(mask.shape[:-1], wanted[:-1], strict=True):
        if constant_int(n) != 1:
            ctx.require_equal(n, m)
    last, keys = constant_int(mask.shape[-1]), constant_int(wanted[-1])
    if last is not None and keys is not None and last < keys:
        return _Mask(mask, const(last), dtype)
    ctx.require_equal(mask.shape[-1], wanted[-1])
    return _Mask(mask, None, dtype)


def lower_rotary_embedding(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Rotates pairs of a head's first elements by the angle of the position."""
    x, cos, sin = (required(inputs, k) for k in range(3))
    positions = optional(inputs, 3)
    if not x.dtype.is_float or cos.dtype is not x.dtype or sin.dtype is not x.dtype:
        raise Declined("RotaryEmbedding of different or integer element types")
    heads = _split(ctx, x, attribute_int(node, "num_heads", 0), "the input of RotaryEmbedding")
    size = constant_int(heads.size)
    if size is None:
        raise Declined("RotaryEmbedding whose head size is not constant")
    rotated = attribute_int(node, "rotary_embedding_dim", 0) or size
    half = rotated // 2
    interleaved = attribute_int(node, "interleaved", 0) != 0

    place = None if positions is None else spread(ctx, positions, (x.shape[0], heads.length))

    def angle(cache: Tensor, b: Expr, s: Expr, pair: Expr) -> Expr:
        if place is None:
            return cache.at(b, s, pair)
        at = place(b, s)
        return cache.at(Bounded(INDEX, at, cache.shape[0]), pair)

    def element(b: Expr, h: Expr, s: Expr, d: Expr) -> Expr:
        pair = d // 2 if interleaved else select(binary("lt", d, half), d, d - half)
        first = binary("eq", d % 2, 0) if interleaved else binary("lt", d, half)
        low = pair * 2 if interleaved else pair
        high = low + 1 if interleaved else low + half
        c, n = angle(cos, b, s, pair), angle(sin, b, s, pair)
        x1, x2 = heads.at(b, h, s, low), heads.at(b, h, s, high)
        real = binary("sub", binary("mul", c, x1), binary("mul", n, x2))
        imaginary = binary("add", binary("mul", n, x1), binary("mul", c, x2))
        turned = select(first, real, imaginary)
        return select(binary("lt", d, rotated), turned, heads.at(b, h, s, d))

    if x.rank == 4:
        return [ctx.define(x.shape, element, x.dtype, vars=("b", "h", "s", "d"))]

    def flat(b: Expr, s: Expr, c: Expr) -> Expr:
        return element(b, c // size, s, c % size)

    return [ctx.define(x.shape, flat, x.dtype, vars=("b", "s", "c"))]


def _head_counts(node: Operands) -> tuple[int, int] | None:
    """Heads of the queries, and of the keys and values, if they are known."""
    dims, keys = node.dims(input_(0)), node.dims(input_(1))
    if dims is None or keys is None:
        return None
    queries = node.attribute("q_num_heads", 0) if len(dims) == 3 else dims[1]
    shared = node.attribute("kv_num_heads", 0) if len(keys) == 3 else keys[1]
    known = isinstance(queries, int) and isinstance(shared, int) and shared > 0 and queries % shared == 0
    return (queries, shared) if known and isinstance(queries, int) and isinstance(shared, int) else None


def _attention_ties(node: Operands) -> list[Tie | None]:
    """A head of keys and values, with all heads of queries that share it."""
    if len(node.inputs) > 4 or len([v for v in node.node.outputs if v.name]) > 1:
        raise Whole("its cache of keys and values has heads too")
    counts = _head_counts(node)
    if counts is None:
        return []
    queries, shared = counts
    axes, batch = [], []
    for port in (input_(0), input_(1), input_(2), output(0)):
        dims = node.dims(port) or ()
        axis = 2 if len(dims) == 3 else 1
        length = node.length(port, axis)
        if length is None or length % shared:
            return []
        axes.append((port, axis, length // shared))
        batch.append((port, 0))
    mask = node.dims(input_(3))
    if mask is not None and len(mask) >= 3 and mask[-3] != 1:
        axes.append((input_(3), len(mask) - 3, queries // shared))
    return [same(node, *batch), grouped(node, *axes, unit=HEADS)]


def _shrink_attention(node: Operands, kept: Kept) -> Shrunk:
    counts, dims = _head_counts(node), node.dims(input_(0)) or ()
    axis = 2 if len(dims) == 3 else 1
    stays, width = kept(input_(0), axis), node.length(input_(0), axis)
    if counts is None or stays is None or width is None or len(dims) != 3:
        return Shrunk()
    queries, shared = (count * len(stays) // width for count in counts)
    return Shrunk({"q_num_heads": queries, "kv_num_heads": shared})


OPS = (
    Op(name="Attention", lower=lower_attention, pruning=PruningFacts(_attention_ties, _shrink_attention)),
    Op(name="RotaryEmbedding", lower=lower_rotary_embedding),
)
