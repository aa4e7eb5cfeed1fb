"""Rules over a graph: a pattern, and a rewrite that may decline with a reason.

Patterns describe a value by the operators that compute it. A rewrite sees the match, decides, and
only then builds; the driver inserts what was built, checks that nothing inside the match is used
elsewhere, and keeps an account of what fused and what declined, for `hasten inspect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from hasten.graph.bodies import bodies
from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts

_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Max", "Min", "Sum"})


@dataclass(frozen=True)
class Var:
    """Any value; the same name twice in a pattern is the same value."""

    name: str


@dataclass(frozen=True)
class Const:
    """A constant for which `test` holds."""

    name: str = ""
    test: Callable[[np.ndarray], bool] = lambda _: True


@dataclass(frozen=True)
class Op:
    """A node with one of the operators `kinds`.

    Attributes:
        kinds: one operator or several, in the ONNX domain.
        inputs: a pattern for each input (in any order where the operator commutes); None: any.
        name: captures the node.
        test: what else must hold for the node.
        shared: others may use the result too; the node then stays in the graph.
    """

    kinds: str | tuple[str, ...]
    inputs: tuple[Pattern, ...] | None = None
    name: str = ""
    test: Callable[[ir.Node], bool] = lambda _: True
    shared: bool = False


@dataclass(frozen=True)
class Either:
    """The first of several patterns that leads to a match."""

    options: tuple[Pattern, ...]


Pattern = Var | Const | Op | Either


@dataclass(frozen=True)
class Match:
    """One place where a pattern fits.

    Attributes:
        root: the node whose output is to be replaced.
        values: captured values by name.
        nodes: captured nodes by name.
        interior: matched nodes, root included, that only the match may use.
    """

    root: ir.Node
    values: Mapping[str, ir.Value] = field(default_factory=dict)
    nodes: Mapping[str, ir.Node] = field(default_factory=dict)
    interior: tuple[ir.Node, ...] = ()

    @property
    def output(self) -> ir.Value:
        """The value that the rewrite replaces."""
        return self.root.outputs[0]

    def constant(self, name: str) -> np.ndarray:
        """The array of a captured constant.

        Raises:
            KeyError: the pattern captured no constant of this name.
        """
        array = constant_value(self.values[name])
        if array is None:
            raise KeyError(name)
        return array


@dataclass(frozen=True)
class Declined:
    """A rewrite's answer where its pattern fits and replacing it would not be right."""

    reason: str


class Builder:
    """Collects the nodes and constants of a replacement."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Add a node of one output and return it."""
        return self.ops(kind, inputs, attributes, outputs=1)[0]

    def like(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Add a node of one output with the operator and attributes of another, but for those given."""
        output = self.op(node.op_type, inputs, attributes)
        made = self.nodes[-1].attributes
        made.update({name: a for name, a in node.attributes.items() if name not in made})
        return output

    def ops(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        *,
        outputs: int,
    ) -> Sequence[ir.Value]:
        """Add a node of several outputs and return them."""
        node = ir.node(kind, inputs=inputs, attributes=attributes, num_outputs=outputs)
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """Add a constant; the name is made unique when it enters the graph."""
        tensor = ir.tensor(np.array(array, order="C", copy=None), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.constants.append(value)
        return value

    def integers(self, items: Sequence[int], name: str) -> ir.Value:
        """Add a constant int64 vector."""
        return self.constant(np.array(items, dtype=np.int64), name)


Rewrite = Callable[[Match, Facts, Builder], ir.Value | Declined | None]


@dataclass(frozen=True)
class Rule:
    """A rewrite of all places that fit a pattern.

    Attributes:
        name: as reports show it.
        pattern: where to look; its root has one output that is used.
        rewrite: returns the replacement of the root's output, a reason against it, or None where
            a closer look shows something else than what the rule is about.
    """

    name: str
    pattern: Op | Either
    rewrite: Rewrite


@dataclass(frozen=True)
class Fused:
    """One replacement: the rule, the names of the nodes that went, the node in their place."""

    rule: str
    nodes: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class DeclinedMatch:
    """One place that a rule left alone, and why."""

    rule: str
    node: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What happened to a graph.

    Attributes:
        fused: fusions, in the order in which they were made.
        declined: places that looked like a fusion and were left, as of the last round.
        simplified: number of changes by pass or rule, for those that are not fusions.
        nodes_before: number of nodes at the start.
        nodes_after: number of nodes at the end.
    """

    fused: tuple[Fused, ...] = ()
    declined: tuple[DeclinedMatch, ...] = ()
    simplified: tuple[tuple[str, int], ...] = ()
    nodes_before: int = 0
    nodes_after: int = 0


@dataclass(frozen=True)
class _State:
    graph: ir.Graph | ir.Function | None
    values: dict[str, ir.Value]
    nodes: dict[str, ir.Node]
    interior: tuple[ir.Node, ...]


def find(pattern: Op | Either, root: ir.Node) -> Iterator[Match]:
    """All ways in which a pattern fits with `root` as its last node, all nodes in its graph."""
    for state in _match(pattern, root.outputs[0], _State(root.graph, {}, {}, ())):
        yield Match(root, state.values, state.nodes, state.interior)


def _match(pattern: Pattern, value: ir.Value | None, state: _State) -> Iterator[_State]:
    match pattern:
        case Either():
            for option in pattern.options:
                yield from _match(option, value, state)
        case Var():
            if value is not None and state.values.get(pattern.name, value) is value:
                values = {**state.values, pattern.name: value}
                yield replace(state, values=values)
        case Const():
            array = None if value is None else constant_value(value)
            if value is not None and array is not None and pattern.test(array):
                values = {**state.values, pattern.name: value} if pattern.name else state.values
                yield replace(state, values=values)
        case Op():
            node = None if value is None else value.producer()
            if node is not None and node.graph is state.graph and value is node.outputs[0]:
                yield from _match_node(pattern, node, state)


def _match_node(pattern: Op, node: ir.Node, state: _State) -> Iterator[_State]:
    kinds = (pattern.kinds,) if isinstance(pattern.kinds, str) else pattern.kinds
    if node.op_type not in kinds or node.domain or not pattern.test(node):
        return
    nodes = {**state.nodes, pattern.name: node} if pattern.name else state.nodes
    interior = state.interior if pattern.shared else (*state.interior, node)
    start = replace(state, nodes=nodes, interior=interior)
    if pattern.inputs is None:
        yield start
        return
    given = list(node.inputs)
    while given and given[-1] is None:
        given.pop()
    if len(given) != len(pattern.inputs):
        return
    yield from _match_inputs(pattern.inputs, given, start)
    if node.op_type in _COMMUTATIVE and len(given) == 2:
        yield from _match_inputs(pattern.inputs, given[::-1], start)


def _match_inputs(
    patterns: Sequence[Pattern], values: Sequence[ir.Value | None], state: _State
) -> Iterator[_State]:
    if not patterns:
        yield state
        return
    for head in _match(patterns[0], values[0], state):
        yield from _match_inputs(patterns[1:], values[1:], head)


def used_elsewhere(nodes: Sequence[ir.Node], root: ir.Node) -> str | None:
    """Why nodes between some inputs and `root` cannot go: a sentence, or None if they can."""
    inside = {*nodes, root}
    for node in nodes:
        if node is root:
            continue
        for value in node.outputs:
            if value.is_graph_output():
                return f"the intermediate {value.name!r} is an output of the model"
            for user in value.consumers():
                if user not in inside:
                    return f"the intermediate {value.name!r} is also used by {user.name!r} ({user.op_type})"
    return None


@dataclass(frozen=True)
class Sweep:
    """Result of one round over the graph."""

    fused: tuple[Fused, ...]
    declined: tuple[DeclinedMatch, ...]


def sweep(graph: ir.Graph, rules: Sequence[Rule], facts: Facts) -> Sweep:
    """Try each rule at each node once, from the outputs to the inputs.

    The order lets the outermost node of a nest be seen first, so that a part of a larger match is
    never taken for a match of its own.
    """
    fused: list[Fused] = []
    declined: dict[DeclinedMatch, None] = {}
    for rule in rules:
        for node in reversed(list(graph)):
            if node.graph is graph:
                _try_rule(graph, rule, node, facts, fused, declined)
    return Sweep(tuple(fused), tuple(declined))


def _try_rule(
    graph: ir.Graph,
    rule: Rule,
    node: ir.Node,
    facts: Facts,
    fused: list[Fused],
    declined: dict[DeclinedMatch, None],
) -> None:
    reasons: list[str] = []
    for found in find(rule.pattern, node):
        shared = used_elsewhere(found.interior, node)
        if shared is not None:
            reasons.append(shared)
            continue
        build = Builder()
        result = rule.rewrite(found, facts, build)
        if isinstance(result, ir.Value):
            name = node.name or node.op_type
            gone = commit(graph, node, result, build, facts)
            fused.append(Fused(rule.name, gone, name))
            return
        if isinstance(result, Declined):
            reasons.append(result.reason)
    for reason in dict.fromkeys(reasons):
        declined[DeclinedMatch(rule.name, node.name or node.op_type, reason)] = None


def commit(graph: ir.Graph, root: ir.Node, new: ir.Value, build: Builder, facts: Facts) -> tuple[str, ...]:
    """Put a built replacement in the place of `root` and remove what is dead after it.

    Returns:
        The names of the nodes that were removed.
    """
    old = root.outputs[0]
    hint = old.name
    if build.nodes or build.constants:
        _insert(graph, root, build, facts)
    replace_value(graph, old, new)
    gone = remove_dead(graph, root)
    if root.graph is None and hint is not None and new in _outputs(build):
        old.name = None
        new.name = hint  # the replacement goes by the name of what it replaces
    return gone


def _outputs(build: Builder) -> set[ir.Value]:
    return {value for node in build.nodes for value in node.outputs if not value.is_graph_output()}


def _insert(graph: ir.Graph, root: ir.Node, build: Builder, facts: Facts) -> None:
    """Name what was built after the node that it replaces, and put it before that node."""
    hint = root.outputs[0].name or "fused"
    taken = names_of_values(facts.outermost)
    for value in build.constants:
        value.name = free_name(f"{hint}/{value.name}", taken)
        taken.add(value.name)
        graph.register_initializer(value)
    names = {n.name for n in graph}
    for node in build.nodes:
        node.name = free_name(f"{root.name or hint}/{node.op_type}", names)
        for value in node.outputs:
            value.name = free_name(f"{hint}/{node.op_type.lower()}", taken)
            taken.add(value.name)
        names.add(node.name)
    graph.insert_before(root, build.nodes)
    for node in build.nodes:
        facts.infer(node)


def names_of_values(graph: ir.Graph) -> set[str | None]:
    """Names of all values of a graph and of the bodies in it, which see each other's."""
    names = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        names.update(value.name for value in node.outputs)
        for body in bodies(node):
            names |= names_of_values(body)
    return names


def free_name(base: str, taken: set[str | None]) -> str:
    """A name that is not taken: the wanted one, or that with a number."""
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def is_fixed(value: ir.Value, graph: ir.Graph | ir.Function | None) -> bool:
    """Whether a graph may not rename a value: an input, a constant, an output, or one from around it."""
    producer = value.producer()
    return producer is None or producer.graph is not graph or value.is_graph_output()


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let all users of `old`, the graph's outputs included, use `new`; outputs keep their names."""
    if new.type is None:
        new.type = old.type
    if new.shape is None and old.shape is not None:
        new.shape = old.shape.copy()
    if old.is_graph_output():
        if is_fixed(new, graph):
            new_output = ir.node("Identity", inputs=[new])
            anchor = old.producer()
            if anchor is None:
                raise ValueError(f"graph output {old.name!r} has no producer to replace")
            graph.insert_before(anchor, new_output)
            new = new_output.outputs[0]
            new.type = old.type
        name, old.name = old.name, None
        new.name = name
        new.shape = old.shape
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
    old.replace_all_uses_with(new)


def remove_dead(graph: ir.Graph, root: ir.Node) -> tuple[str, ...]:
    """Remove a node and what computes for it alone; return the names of the removed nodes."""
    gone: list[str] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.graph is not graph:
            continue
        if any(v.is_graph_output() or v.uses() for v in node.outputs):
            continue
        producers = [v.producer() for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        gone.append(node.name or node.op_type)
        stack.extend(p for p in producers if p is not None)
    return tuple(gone)
