"""Attention and rotary embeddings in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from hasten.backends.torch_node import Inputs, Run, attribute, maybe, operand


def _attention(node: ir.Node, inputs: Inputs) -> Tensor:
    q, k, v, mask = operand(inputs), operand(inputs, 1), operand(inputs, 2), maybe(inputs, 3)
    if len(inputs) > 4 or attribute(node, "softcap", 0.0) or len([o for o in node.outputs if o.name]) > 1:
        raise NotImplementedError("Attention with a cache, softcap or further outputs")
    if any(attribute(node, side, -1) >= 0 for side in ("left_window_size", "right_window_size")):
        raise NotImplementedError("Attention with a window")
    causal = bool(attribute(node, "is_causal", 0))
    if causal and mask is not None:
        raise NotImplementedError("Attention with a mask besides its own")
    if mask is not None and mask.shape[-1] not in (1, k.shape[-2]):
        raise NotImplementedError("Attention with a mask of fewer keys than there are")
    flat = q.dim() == 3
    if flat:
        heads, shared = attribute(node, "q_num_heads", 1), attribute(node, "kv_num_heads", 1)
        q = q.reshape(*q.shape[:2], heads, -1).transpose(1, 2)
        k, v = (t.reshape(*t.shape[:2], shared, -1).transpose(1, 2) for t in (k, v))
    result = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=attribute(node, "scale", None),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return result.transpose(1, 2).flatten(2) if flat else result


def _rotary(node: ir.Node, inputs: Inputs) -> Tensor:
    """Rotates pairs of a head's first elements by the angles of its position, which tables hold."""
    x, cos, sin, positions = operand(inputs), operand(inputs, 1), operand(inputs, 2), maybe(inputs, 3)
    flat = x.dim() == 3
    heads = x.reshape(*x.shape[:2], attribute(node, "num_heads", 1), -1) if flat else x.transpose(1, 2)
    size = attribute(node, "rotary_embedding_dim", 0) or heads.shape[-1]
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    cos, sin = (table[:, :, None, : size // 2] for table in (cos, sin))
    turned, rest = heads[..., :size], heads[..., size:]
    interleaved = attribute(node, "interleaved", 0)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    parts = [cos * a - sin * b, sin * a + cos * b]
    turned = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    result = torch.cat([turned, rest], -1)
    return result.flatten(2) if flat else result.transpose(1, 2)


ATTENTION: Mapping[str, Run] = {"Attention": _attention, "RotaryEmbedding": _rotary}
