"""Whole layers: residual branches without which the value that they are added to goes on unchanged.

A branch is what feeds one side of an `Add` whose other side, the shortcut, it reads itself, and feeds
nothing else. What follows the `Add` up to the next shortcut (a normalization, an activation) goes with it.
Where kinds of branches alternate, such as attention and feed-forward, a layer is one of each. Dropping
whole layers: Sajjad et al. 2020, "On the Effect of Dropping Layers of Pre-trained Transformer Models".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hasten.graph.describe import describe_node
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.facts import Facts
from hasten.passes.prune.units import LeftAlone

LAYERS = "layers"
_LONGEST_TAIL = 3  # nodes between an Add and the next shortcut


@dataclass(frozen=True)
class Layer:
    """Something that can be left out: what reads `exit` then reads `entry`.

    Attributes:
        name: of its last addition.
        entry: the value that goes in.
        exit: the value that comes out, of the same shape.
        nodes: indices of the nodes that go.
        kind: the operators in it.
    """

    name: str
    entry: str
    exit: str
    nodes: tuple[int, ...]
    kind: tuple[str, ...]


def find_layers(model: ir.Model) -> tuple[Layer, ...]:
    """The layers that can be left out of a graph, in its order (`find_branches`)."""
    return find_branches(model)[0]


def find_branches(model: ir.Model) -> tuple[tuple[Layer, ...], tuple[LeftAlone, ...]]:
    """Find the layers that can be left out of a graph, in its order, and branches that cannot, with reasons.

    Args:
        model: as `optimize_graph` leaves it.
    """
    facts = Facts(model.graph)
    index = {node: i for i, node in enumerate(model.graph)}
    looked_at = [_branch(node, index, facts) for node in model.graph]
    found = [branch for branch in looked_at if branch is not None and not isinstance(branch, LeftAlone)]
    alone = [branch for branch in looked_at if isinstance(branch, LeftAlone)]
    operators = [node.op_type for node in model.graph]
    branches: list[Layer] = []
    for k, (add, entry, nodes) in enumerate(found):
        following = found[k + 1][1] if k + 1 < len(found) else None
        tail = None if following is None else _tail(add.outputs[0], following)
        if tail is None:
            tail = _same_tail(add.outputs[0], branches[-1].kind if branches else ())
        exit_ = tail[-1].outputs[0] if tail else add.outputs[0]
        gone = tuple(sorted([*nodes, index[add], *(index[n] for n in tail)]))
        before = [operators[i] for i in gone if i <= index[add]]
        kind = (*before, "|", *(n.op_type for n in tail))
        name = add.name or describe_node(add)
        if facts.dims(exit_) == facts.dims(entry):
            branches.append(Layer(name, entry.name or "", exit_.name or "", gone, kind))
        else:
            change = f"'{exit_.name}' at its end has another shape than '{entry.name}' at its start"
            alone.append(LeftAlone(name, LAYERS, 1, (change,)))
    return tuple(_joined(branches)), tuple(alone)


def _branch(
    add: ir.Node, index: dict[ir.Node, int], facts: Facts
) -> tuple[ir.Node, ir.Value, list[int]] | LeftAlone | None:
    """The shortcut and the nodes of the branch of an addition; why not, if it looks residual."""
    if add.op_type != "Add" or add.domain or len(add.inputs) != 2:
        return None
    for shortcut, end in (add.inputs, reversed(add.inputs)):
        if shortcut is None or end is None or end.producer() is None or facts.dims(shortcut) is None:
            continue
        if facts.dims(shortcut) != facts.dims(add.outputs[0]):
            continue
        nodes = _exclusive(end, shortcut, add, index)
        reads = {v for n in nodes for v in n.inputs}
        if nodes and shortcut in reads:
            return add, shortcut, [index[n] for n in nodes]
    return _not_residual(add, facts)


def _not_residual(add: ir.Node, facts: Facts) -> LeftAlone | None:
    """Why the sum of two results is no layer; None where neither is the result of products."""
    ends = [v for v in add.inputs if v is not None and v.producer() is not None]
    if len(ends) < 2 or any(facts.dims(v) != facts.dims(add.outputs[0]) for v in ends):
        return None
    if not any(_has_product(v) for v in ends):
        return None
    read = [v for v in ends if len(v.uses()) > 1 or v.is_graph_output()]
    if len(read) == len(ends):
        why = f"'{ends[0].name}' and '{ends[1].name}', which are added, are both read elsewhere too"
    else:
        why = "it has no shortcut: neither of what is added goes into what makes the other"
    return LeftAlone(add.name or describe_node(add), LAYERS, 1, (why,))


def _has_product(end: ir.Value) -> bool:
    """Whether a product is among the last nodes before a value."""
    value: ir.Value | None = end
    for _ in range(_LONGEST_TAIL + 1):
        node = None if value is None else value.producer()
        if node is None:
            return False
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            return True
        value = next((v for v in node.inputs if v is not None and v.producer() is not None), None)
    return False


def _exclusive(end: ir.Value, shortcut: ir.Value, add: ir.Node, index: dict[ir.Node, int]) -> set[ir.Node]:
    """The nodes that serve nothing but one value, back to a shortcut."""
    last = end.producer()
    if last is None or end.is_graph_output() or any(use.node is not add for use in end.uses()):
        return set()
    inside = {last}
    pending = [last]
    while pending:
        node = max(pending, key=lambda n: index.get(n, -1))  # readers come before what they read
        pending.remove(node)
        for value in node.inputs:
            before = None if value is None or value is shortcut else value.producer()
            if before is None or before in inside or before is shortcut.producer():
                continue
            outputs = before.outputs
            if any(v.is_graph_output() or any(u.node not in inside for u in v.uses()) for v in outputs):
                continue
            inside.add(before)
            pending.append(before)
    return inside


def _tail(start: ir.Value, end: ir.Value) -> list[ir.Node] | None:
    """The nodes from one value to another, if each reads one variable; None if there is no such way."""
    nodes: list[ir.Node] = []
    value = end
    while value is not start:
        node = value.producer()
        if node is None or len(nodes) == _LONGEST_TAIL:
            return None
        variables = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if len(variables) != 1 or len(node.outputs) != 1:
            return None
        nodes.append(node)
        value = variables[0]
    return nodes[::-1]


def _same_tail(start: ir.Value, kind: Sequence[str]) -> list[ir.Node]:
    """The nodes behind a value that are of the same operators as the tail of another layer."""
    wanted = kind[kind.index("|") + 1 :] if "|" in kind else ()
    nodes: list[ir.Node] = []
    value = start
    for operator in wanted:
        readers = {use.node for use in value.uses()}
        reader = readers.pop() if len(readers) == 1 else None
        if reader is None or reader.op_type != operator or len(reader.outputs) != 1:
            return []
        nodes.append(reader)
        value = reader.outputs[0]
    return nodes


def _joined(branches: Sequence[Layer]) -> list[Layer]:
    """Branches that follow each other in turns, put together."""
    layers: list[Layer] = []
    start = 0
    while start < len(branches):
        stop = start + 1
        while stop < len(branches) and branches[stop].entry == branches[stop - 1].exit:
            stop += 1
        run = branches[start:stop]
        period = next((p for p in range(1, len(run) // 2 + 1) if len(run) % p == 0 and _repeats(run, p)), 1)
        for first in range(0, len(run), period):
            parts = run[first : first + period]
            nodes = tuple(sorted({n for part in parts for n in part.nodes}))
            kind = tuple(word for part in parts for word in part.kind)
            layers.append(Layer(parts[-1].name, parts[0].entry, parts[-1].exit, nodes, kind))
        start = stop
    return layers


def _repeats(run: Sequence[Layer], period: int) -> bool:
    return all(a.kind == b.kind for a, b in zip(run, run[period:], strict=False))


def remove_layers(model: ir.Model, layers: Collection[Layer]) -> ir.Model:
    """Leave layers out of a copy of a model.

    Args:
        model: the model in which `find_layers` found them.
        layers: which of them go.

    Returns:
        A new model with the interface of the old one.
    """
    copy = model.clone()
    graph = copy.graph
    values = {v.name: v for v in [*graph.inputs, *(v for node in graph for v in node.outputs)]}
    order = {node: i for i, node in enumerate(graph)}
    for layer in sorted(layers, key=lambda found: found.nodes):
        entry, exit_ = values[layer.entry], values[layer.exit]
        inside = {node for node, i in order.items() if i in layer.nodes}
        for use in list(exit_.uses()):
            if use.node not in inside:
                use.node.replace_input_with(use.idx, entry)
        for place, output in enumerate(graph.outputs):
            if output is exit_:
                name = exit_.name
                exit_.name = f"{name}_removed"
                kept = ir.Value(name=name, type=exit_.type, shape=exit_.shape)
                graph.append(ir.Node("", "Identity", [entry], outputs=[kept], name=f"{name}_identity"))
                graph.outputs[place] = kept
        values[layer.exit] = entry  # the next layer's way in
    remove_dead_code(graph)
    return copy
