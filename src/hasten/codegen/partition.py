"""Cuts a lowered graph into compiled parts and what runs between them: host nodes, and nodes with bodies.

A tensor's level is the number of such nodes, and of definitions that sizes are read from, on the longest way
to it. Part n holds all definitions of level n; the nodes that need them follow, then part n + 1. Bodies are
cut in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from hasten.loops.expr import Expr, Load, Reduce, Size, Var, size, walk
from hasten.loops.program import Definition, Guard, Program
from hasten.ops.lowered import Control, HostNode, Lowered, Outside


@dataclass(frozen=True)
class NativePart:
    """A compiled part: its program, and the sizes that it takes, which its inputs show or hold."""

    program: Program
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class ControlStep:
    """A node with bodies, and the steps of each body."""

    node: Control
    bodies: tuple[tuple[Step, ...], ...]


Step = NativePart | HostNode | ControlStep


def native_parts(steps: Iterable[Step]) -> Iterator[NativePart]:
    """The compiled parts of some steps and of the bodies in them, in order."""
    for step in steps:
        if isinstance(step, NativePart):
            yield step
        elif isinstance(step, ControlStep):
            for body in step.bodies:
                yield from native_parts(body)


def partition(lowered: Lowered) -> list[Step]:
    """The steps of a lowered graph, in the order in which they run."""
    program = _with_computed_outputs(lowered.program)
    levels = _Levels(program, lowered.outside)
    steps: list[Step] = []
    wanted = _wanted_outside(program, lowered.outside, levels)
    for level in range(levels.deepest + 1):
        own = [d for d in program.definitions.values() if levels.of[d.name] == level]
        if own or any(levels.guard(g) == level for g in program.guards):
            steps.append(_native_part(program, own, level, levels, wanted))
        steps += [_beside(n) for n in lowered.outside if levels.of_outside(n) == level]
    return steps


def _beside(node: Outside) -> Step:
    if isinstance(node, HostNode):
        return node
    return ControlStep(node, tuple(tuple(partition(body.lowered)) for body in node.bodies))


def _with_computed_outputs(program: Program) -> Program:
    """The program with every output that is a constant copied by a definition."""
    constants, definitions = dict(program.constants), dict(program.definitions)
    for name in program.outputs:
        if name in constants:
            inner = f"{name}_value"
            info = program.info(name)
            constants[inner] = constants.pop(name)
            variables = tuple(Var(n.dtype, f"i{d}", n) for d, n in enumerate(info.shape))
            body = Load(info.dtype, inner, variables)
            definitions[name] = Definition(name, info.dtype, variables, body, "constant result")
            for other in list(definitions.values()):
                _refuse_readers(other, name)
    return replace(program, constants=constants, definitions=definitions)


def _refuse_readers(d: Definition, name: str) -> None:
    # A copy comes last, so an earlier reader of the constant would not find it.
    assert name not in d.reads() or d.name == name, f"{d.name} reads the constant result {name}"


class _Levels:
    """The level of every tensor, size and node beside the program."""

    def __init__(self, program: Program, outside: Sequence[Outside]) -> None:
        made_by = {name: n for n in outside for name in n.outputs if name}
        self.of: dict[str, int] = dict.fromkeys((*program.inputs, *program.constants), 0)
        self.sizes: dict[str, int] = {}
        self.program, self.made_by = program, made_by
        for name in program.inputs:
            self._tensor(name)
        for d in program.definitions.values():
            self.of[d.name] = self._definition(d)
        levels = [*self.of.values(), *(self.of_outside(n) for n in outside)]
        levels += [self.guard(g) for g in program.guards]
        self.deepest = max(levels, default=0)

    def _tensor(self, name: str) -> int:
        """The level of a tensor; definitions are worked out on demand, since hosts may come in between."""
        if name in self.made_by:
            level = self.of_outside(self.made_by[name]) + 1
            self.of[name] = level
        elif name in self.program.definitions and name not in self.of:
            self.of[name] = 0  # replaced below; a program has no cycles
            self.of[name] = self._definition(self.program.definitions[name])
        level = self.of.get(name, 0)
        if name in self.program.inputs:
            for n in self.program.inputs[name].shape:
                if isinstance(n, Size):
                    self.sizes[n.name] = min(level, self.sizes.get(n.name, level))
        return level

    def _definition(self, d: Definition) -> int:
        level = max((self._tensor(name) for name in d.reads()), default=0)
        return max([level, *(self.size(s) for s in sizes_of_definition(d))])

    def size(self, name: str) -> int:
        """The level at which a size is known."""
        element = self.program.elements.get(name)
        if element is not None:
            return self._tensor(element.tensor) + (element.tensor in self.program.definitions)
        derived = self.program.derived.get(name)
        if derived is not None:
            return max((self.size(n.name) for n in walk(derived) if isinstance(n, Size)), default=0)
        if name not in self.sizes:
            for input_name in self.program.inputs:
                self._tensor(input_name)
        return self.sizes.get(name, 0)

    def guard(self, g: Guard) -> int:
        """The level at which a guard can be checked."""
        return max((self.size(n) for n in sizes_of((g.left, g.right))), default=0)

    def of_outside(self, node: Outside) -> int:
        """The level of what a node beside the program reads."""
        return max((self._tensor(name) for name in node.inputs), default=0)


def sizes_of(expressions: Iterable[Expr]) -> set[str]:
    """Names of the sizes in some expressions, extents of their loops included."""
    found: set[str] = set()
    for e in expressions:
        for node in walk(e):
            if isinstance(node, Size):
                found.add(node.name)
            variables = node.vars if isinstance(node, Reduce) else (node,) if isinstance(node, Var) else ()
            found |= sizes_of(v.extent for v in variables if v.extent is not None)
    return found


def sizes_of_definition(d: Definition) -> set[str]:
    """Names of the sizes that a definition depends on."""
    return sizes_of((*d.shape, *d.meaning()))


def _wanted_outside(program: Program, outside: Sequence[Outside], levels: _Levels) -> set[str]:
    """Definitions that something outside their part reads."""
    wanted = set(program.outputs) | {name for n in outside for name in n.inputs}
    for d in program.definitions.values():
        wanted |= {n for n in d.reads() if levels.of[n] != levels.of[d.name]}
    wanted |= {e.tensor for e in program.elements.values()}
    return wanted & program.definitions.keys()


def _native_part(
    program: Program, own: list[Definition], level: int, levels: _Levels, wanted: set[str]
) -> NativePart:
    names = {d.name for d in own}
    read = {n for d in own for n in d.reads()} - names
    guards = [g for g in program.guards if levels.guard(g) == level]
    used = set().union(*(sizes_of_definition(d) for d in own)) if own else set()
    used |= {n for g in guards for n in sizes_of((g.left, g.right))}
    shapes = {n: program.info(n).shape for n in read if n not in program.constants}
    used |= {s for shape in shapes.values() for s in sizes_of(shape)}
    derived: dict[str, Expr] = {}
    for name in reversed(list(program.derived)):
        if name in used:
            derived = {name: program.derived[name], **derived}
            used |= sizes_of((program.derived[name],))
    elements = {n: e for n, e in program.elements.items() if n in used}
    read |= {e.tensor for e in elements.values()}
    free = [s for s in levels.sizes if s in used and s not in program.derived]
    for s in free:
        # Every size must be bound by an input, if need be by one that is not read otherwise.
        holders = [n for n, i in program.inputs.items() if size(s) in i.shape]
        if not any(h in read for h in holders):
            read.add(min(holders, key=lambda n: levels.of[n]))
    inputs = {n: program.info(n) for n in _in_order(program, read) if n not in program.constants}
    part = Program(
        inputs=inputs,
        constants={n: program.constants[n] for n in program.constants if n in read},
        definitions={d.name: d for d in own},
        outputs=[d.name for d in own if d.name in wanted],
        derived=derived,
        guards=guards,
        elements=elements,
    )
    return NativePart(part, (*free, *elements))


def _in_order(program: Program, names: set[str]) -> list[str]:
    return [n for n in (*program.inputs, *program.constants, *program.definitions) if n in names]
