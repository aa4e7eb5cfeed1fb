"""Queries, keys and values as one product, where they are three products of the same input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts
from hasten.passes.rule import Builder, Declined, Match, Op, Rule, used_elsewhere

_NAMES = ("q", "k", "v")


@dataclass(frozen=True)
class _Linear:
    """x @ weight + bias."""

    source: ir.Value
    weight: np.ndarray
    bias: np.ndarray | None
    nodes: tuple[ir.Node, ...]


def _read_linear(name: str, value: ir.Value | None) -> _Linear | Declined:
    node = None if value is None else value.producer()
    nodes: list[ir.Node] = []
    bias: np.ndarray | None = None
    if node is not None and node.op_type == "Add" and not node.domain:
        nodes.append(node)
        for side in (0, 1):
            array = constant_value(node.inputs[side])
            product = node.inputs[1 - side]
            if array is not None and product is not None:
                bias, node = array, product.producer()
                break
    if node is None or node.op_type != "MatMul" or node.domain or node.inputs[0] is None:
        kind = "an input" if node is None else f"{node.name!r} ({node.op_type})"
        return Declined(f"{name} comes from {kind}, not from a MatMul with an optional bias")
    weight = constant_value(node.inputs[1])
    if weight is None or weight.ndim != 2:
        return Declined(f"the weights of {name} are not a constant matrix")
    if bias is not None and bias.shape != (weight.shape[1],):
        return Declined(f"the bias of {name} has shape {bias.shape}, not ({weight.shape[1]},)")
    return _Linear(node.inputs[0], weight, bias, (*nodes, node))


def _rewrite(match: Match, _facts: Facts, build: Builder) -> ir.Value | Declined | None:
    node = match.root
    if len(node.outputs) != 1 or _is_split(node):
        return None
    parts: list[_Linear] = []
    for name, value in zip(_NAMES, node.inputs[:3], strict=True):
        part = _read_linear(name, value)
        if isinstance(part, Declined):
            return part
        parts.append(part)
    shared = used_elsewhere([n for part in parts for n in part.nodes], node)
    if shared is not None:
        return Declined(shared)
    first = parts[0]
    if any(part.source is not first.source for part in parts):
        return Declined("q, k and v are products of different inputs")
    if any(part.weight.dtype != first.weight.dtype for part in parts):
        return Declined("the weights of q, k and v have different types")
    weight = np.concatenate([part.weight for part in parts], axis=1)
    result = build.op("MatMul", [first.source, build.constant(weight, "qkv_weight")])
    if any(part.bias is not None for part in parts):
        zeros = [np.zeros(part.weight.shape[1], part.weight.dtype) for part in parts]
        biases = [z if p.bias is None else p.bias for p, z in zip(parts, zeros, strict=True)]
        result = build.op("Add", [result, build.constant(np.concatenate(biases), "qkv_bias")])
    sizes = build.integers([part.weight.shape[1] for part in parts], "sizes")
    split = build.ops("Split", [result, sizes], {"axis": -1}, outputs=3)
    return build.like(node, [*split, *node.inputs[3:]])


def _is_split(node: ir.Node) -> bool:
    """Whether q, k and v are parts of one value already."""
    sources = {v.producer() for v in node.inputs[:3] if v is not None}
    parents = {s.inputs[0] for s in sources if s is not None and s.op_type in ("Split", "Slice")}
    return len(parents) == 1 and all(s is not None for s in sources)


def _slices(match: Match, facts: Facts, build: Builder) -> ir.Value | None:
    """Three slices that follow each other over all columns of one value are one Split."""
    node = match.root
    source: ir.Value | None = None
    sizes: list[int] = []
    for value in node.inputs[:3]:
        cut = None if value is None else value.producer()
        if cut is None or cut.op_type != "Slice" or cut.domain or len(cut.inputs) != 4:
            return None
        limits = [facts.contents(limit) for limit in cut.inputs[1:]]
        rank = len(facts.dims(cut.inputs[0]) or ())
        width = (facts.dims(value) or ("",))[-1]
        if source is None:
            source = cut.inputs[0]
        if cut.inputs[0] is not source or not isinstance(width, int):
            return None
        start = sum(sizes)
        if limits != [(start,), (start + width,), (rank - 1,)]:
            return None
        sizes.append(width)
    if source is None or (facts.dims(source) or ("",))[-1] != sum(sizes):
        return None
    split = build.ops("Split", [source, build.integers(sizes, "sizes")], {"axis": -1}, outputs=3)
    return build.like(node, [*split, *node.inputs[3:]])


QKV_SLICES = Rule("split QKV product", Op("Attention"), _slices)
QKV = Rule("fuse QKV products", Op("Attention"), _rewrite)
