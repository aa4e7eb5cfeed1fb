"""What lowering gives: a tensor program, and the nodes beside it, on the host or with bodies of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from hasten.graph.describe import describe_node
from hasten.loops.program import Program


@dataclass(frozen=True)
class HostNode:
    """A node that runs through ONNX's reference evaluator.

    Attributes:
        node: the node in the graph.
        reason: why it is not compiled, for the user.
        reads: what it reads at each call, constants left out; tensors of the program, inputs of the
            graph, or outputs of other nodes beside the program.
        outputs: names of what it makes. Those that compiled code can read are inputs of the program.
    """

    node: ir.Node
    reason: str
    reads: tuple[ir.Value, ...]
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(v.name or "" for v in self.reads)


@dataclass(frozen=True)
class Body:
    """A graph inside a node, lowered by itself.

    Attributes:
        lowered: its program; what it takes from around it is among the program's inputs.
        inputs: names of what each run of it is given.
        outputs: names of what it gives.
    """

    lowered: Lowered
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Branches:
    """An If whose branches are compiled.

    Attributes:
        node: the node in the graph.
        condition: name of the value that chooses.
        bodies: what is run if it is true, and if not.
        inputs: names of all that it reads.
        outputs: names of what it makes, "" where nobody wants it.
    """

    node: ir.Node
    condition: str
    bodies: tuple[Body, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Iteration:
    """A Loop or Scan whose body is compiled.

    Its body is given the number of the step, the condition and the states, and gives the next states and
    the rows; it says whether another step follows in `goes_on`.

    Attributes:
        node: the node in the graph.
        count: most steps: a number, or the name of a value, or None for any number.
        condition: whether the first step is taken: a name, or what is known now.
        goes_on: the same for the steps behind it; the name of an output of the body, or True for no change.
        initial: names of the states before the first step.
        rows: element type (NumPy's name, "" if not known) and shape of each output that steps give a row
            of, for the case that no step is taken: a length is a number, 0 if it is not known, or that of
            an axis of a value by name.
        bodies: the body alone.
        inputs: names of all that it reads.
        outputs: names of the last states and of the rows, "" where nobody wants one.
    """

    node: ir.Node
    count: int | str | None
    condition: bool | str
    goes_on: bool | str
    initial: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int | tuple[str, int], ...]], ...]
    bodies: tuple[Body, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Control = Branches | Iteration
Outside = HostNode | Control
"""What runs between compiled parts."""


@dataclass(frozen=True)
class Lowered:
    """A graph as a program and the nodes beside it.

    Attributes:
        program: what is compiled. Its inputs are those of the graph that it can read and the outputs
            of nodes beside it; its definitions are those that a result or such a node needs.
        outside: the nodes that are not compiled or have bodies, in the graph's order.
        outputs: names of the graph's outputs in order. Those that are not in `program.outputs` are made
            by nodes beside it, or are inputs that only host nodes can read.
    """

    program: Program
    outside: tuple[Outside, ...]
    outputs: tuple[str, ...]

    @property
    def host_nodes(self) -> tuple[HostNode, ...]:
        """The nodes that run on the host, those in bodies included."""
        return tuple(self._hosts())

    def _hosts(self) -> Iterator[HostNode]:
        for node in self.outside:
            if isinstance(node, HostNode):
                yield node
            else:
                for body in node.bodies:
                    yield from body.lowered.host_nodes

    @property
    def compiles(self) -> bool:
        """Whether anything of the graph is compiled."""
        inner = (b for n in self.outside if not isinstance(n, HostNode) for b in n.bodies)
        return bool(self.program.definitions) or any(b.lowered.compiles for b in inner)

    @property
    def reasons(self) -> dict[str, str]:
        """Why each host node is not compiled, by its description."""
        return {describe_node(h.node): h.reason for h in self.host_nodes}
