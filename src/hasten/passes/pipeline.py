"""All passes over a graph, in order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from hasten.graph.bodies import CONTROL_FLOW, bodies
from hasten.graph.constants import lift_constants
from hasten.passes.common_subexpressions import merge_equal_constants, merge_equal_nodes
from hasten.passes.constant_folding import fold_constants
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.facts import Facts
from hasten.passes.fuse_attention import ATTENTION, ATTENTION_FACTOR
from hasten.passes.fuse_conv_batchnorm import CONV_BATCHNORM
from hasten.passes.fuse_gelu import GELU
from hasten.passes.fuse_group_norm import GROUP_NORM
from hasten.passes.fuse_layer_norm import LAYER_NORM
from hasten.passes.fuse_qkv import QKV, QKV_SLICES
from hasten.passes.fuse_rms_norm import RMS_NORM
from hasten.passes.inline_branches import inline_branches
from hasten.passes.move_parts import PART_RULES
from hasten.passes.no_ops import NO_OP_RULES
from hasten.passes.normalize_qdq import normalize_qdq
from hasten.passes.rule import DeclinedMatch, Fused, PassReport, Rule, sweep

_SMALL_BYTES = 4096  # constants compared in each round; weights are compared once at either end
_MAX_ROUNDS = 20  # each round shrinks the graph; twenty are far more than any model has needed

FUSIONS: tuple[tuple[Rule, ...], ...] = (
    (CONV_BATCHNORM, GROUP_NORM, LAYER_NORM, RMS_NORM, GELU),
    (ATTENTION,),
    (ATTENTION_FACTOR, QKV, QKV_SLICES),
)
"""Fusions by stage; a stage begins when the one before it and the simplifications are done."""


def optimize_graph(model: ir.Model) -> PassReport:
    """Simplify a model's graph and fuse operators, in place, without changing what it computes.

    Results stay the same up to float rounding (and see `fuse_attention` on fully masked rows).
    Names, order and symbolic dimensions of inputs and outputs are kept. Proved shapes are stored
    on the values between them. Bodies of If, Loop and Scan are rewritten as their model's graph is, and after
    it, when it is known which of them stay.

    Args:
        model: at the internal opset (23 or later), its functions inlined.

    Returns:
        What fused where, what declined and why, and how often each simplification applied.
    """
    graph = model.graph
    before = graph.num_nodes()
    lift_constants(model)
    account = _Account(Counter(), [], [])
    _rewrite(graph, None, account)
    remove_dead_code(graph)  # what only bodies needed
    _write_shapes(graph)
    simplified = tuple(sorted((name, count) for name, count in account.counts.items() if count))
    return PassReport(tuple(account.fused), tuple(account.declined), simplified, before, graph.num_nodes())


@dataclass(frozen=True)
class _Account:
    """What happened so far, in all graphs."""

    counts: Counter[str]
    fused: list[Fused]
    declined: list[DeclinedMatch]


def _rewrite(graph: ir.Graph, around: Facts | None, account: _Account) -> None:
    """Simplify and fuse one graph, then the bodies that stand in it."""
    counts = account.counts
    counts["normalize quantized operators"] += normalize_qdq(graph, around)
    counts["merge equal constants"] += merge_equal_constants(graph)
    _simplify(graph, around, counts)
    for rules in FUSIONS:
        for _ in range(_MAX_ROUNDS):
            found = sweep(graph, rules, Facts(graph, around))
            account.fused.extend(found.fused)
            if not found.fused:
                account.declined.extend(found.declined)
                break
            _simplify(graph, around, counts)
    counts["merge equal constants"] += merge_equal_constants(graph)
    control = [node for node in graph if node.op_type in CONTROL_FLOW and not node.domain]
    inside = [body for node in control for body in bodies(node)]
    if inside:
        facts = Facts(graph, around)
        for body in inside:
            _rewrite(body, facts, account)


def _simplify(graph: ir.Graph, around: Facts | None, counts: Counter[str]) -> None:
    """Run the passes that only remove, until none finds anything."""
    for _ in range(_MAX_ROUNDS):
        inlined = inline_branches(graph, graph if around is None else around.outermost)
        facts = Facts(graph, around)
        folded = fold_constants(graph, facts)
        found = sweep(graph, (*NO_OP_RULES, *PART_RULES), facts)
        merged_constants = merge_equal_constants(graph, largest=_SMALL_BYTES)
        merged = merge_equal_nodes(graph)
        dead = remove_dead_code(graph)
        counts["take known branches"] += inlined
        counts["fold constants"] += folded
        counts["merge equal constants"] += merged_constants
        counts["merge equal nodes"] += merged
        counts["remove dead nodes"] += dead
        counts.update(item.rule for item in found.fused)
        if not (inlined or folded or merged or merged_constants or dead or found.fused):
            return


def _write_shapes(graph: ir.Graph) -> None:
    outputs = set(graph.outputs)
    inner = [v for node in graph for v in node.outputs if v not in outputs]
    Facts(graph).write_shapes(inner)
