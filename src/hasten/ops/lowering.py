"""From an ONNX graph to a tensor program, with the nodes that stay on the host named and explained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError, RuntimeImplementationError

from hasten.errors import UnsupportedModelError
from hasten.graph.constants import constant_tensor
from hasten.graph.describe import describe_node
from hasten.graph.functions import function_body
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.descriptions import operands
from hasten.loops.expr import Expr, Reduce, Size, Var, const, size, walk
from hasten.loops.program import Definition, Program, TensorInfo
from hasten.ops.base import Declined, Lowering, Tensor
from hasten.ops.element_types import COMPUTED, element_type, rounded
from hasten.ops.table import find_op
from hasten.runtime.host_operators import HOST_OPERATORS


@dataclass(frozen=True)
class HostNode:
    """A node that runs through ONNX's reference evaluator.

    Attributes:
        node: the node in the graph.
        reason: why it is not compiled, for the user.
        inputs: names of what it reads at each call, constants left out; tensors of the program, inputs
            of the graph, or outputs of other host nodes.
        outputs: names of what it makes. Those that compiled code can read are inputs of the program.
    """

    node: ir.Node
    reason: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Lowered:
    """A graph as a program and the nodes beside it.

    Attributes:
        program: what is compiled. Its inputs are those of the graph that it can read and the outputs
            of host nodes; its definitions are those that a result or a host node needs.
        host_nodes: the nodes that are not compiled, in the graph's order.
        outputs: names of the graph's outputs in order. Those that are not in `program.outputs` are made
            by host nodes, or are inputs that only host nodes can read.
    """

    program: Program
    host_nodes: tuple[HostNode, ...]
    outputs: tuple[str, ...]

    @property
    def reasons(self) -> dict[str, str]:
        """Why each host node is not compiled, by its description."""
        return {describe_node(h.node): h.reason for h in self.host_nodes}


@dataclass
class _State:
    """What is known while the graph is walked.

    Attributes:
        ctx: the program being built.
        opsets: the operator sets of the model.
        tensors: the tensor of each value that compiled code can read.
        opaque: why compiled code cannot read the others.
        constants: values that are known now, whether or not compiled code can read them.
        sizes: names of sizes that are taken.
    """

    ctx: Lowering
    opsets: Mapping[str, int]
    tensors: dict[ir.Value, Tensor] = field(default_factory=dict)
    opaque: dict[ir.Value, str] = field(default_factory=dict)
    constants: set[ir.Value] = field(default_factory=set)
    sizes: set[str] = field(default_factory=set)


def lower_graph(model: ir.Model) -> Lowered:
    """Describe the main graph of a model as a tensor program.

    Args:
        model: at the internal opset, functions inlined, types and ranks inferred as far as they can be;
            values have unique names.

    Returns:
        The program and the nodes that must run on the host.

    Raises:
        UnsupportedModelError: some nodes can be neither compiled nor run by ONNX's reference
            evaluator; the message lists all of them.
    """
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    ctx = Lowering(Program(), reserved=frozenset(v.name for v in values if v.name))
    state = _State(ctx, model.opset_imports)
    state.sizes.update(
        d.value for v in graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim) and d.value
    )
    for value in graph.inputs:
        _enter(state, value, keep_names=True)
    entered = set(graph.inputs)
    for value in graph.initializers.values():
        # A caller may override an initializer that is also an input, so that one is no constant.
        if value not in entered and value.const_value is not None:
            _add_constant(state, value, value.const_value)
    host: list[HostNode] = []
    for node in graph:
        tensor = constant_tensor(node)
        if tensor is not None:
            _add_constant(state, node.outputs[0], tensor)
            continue
        reason = _lower_node(state, node)
        if reason is not None:
            host.append(_host_node(state, node, reason))
    _refuse_impossible(model, host)
    program = ctx.program
    program.outputs = [v.name for v in graph.outputs if v in state.tensors and v.name]
    _drop_unused(program, host, {v.name for v in graph.inputs if v.name})
    return Lowered(program, tuple(host), tuple(v.name or "" for v in graph.outputs))


def _enter(state: _State, value: ir.Value, keep_names: bool) -> None:
    """Makes a value from outside an input of the program, or notes why it cannot be one.

    Args:
        state: what is known.
        value: an input of the graph, or the output of a host node.
        keep_names: its symbolic sizes are bound by it. Those of a host node's output are not: what was
            inferred for them is not certain, so they become sizes of their own.
    """
    assert value.name is not None
    if value.dtype is None or value.shape is None:
        state.opaque[value] = f"type or rank of '{value.name}' is not known before the run"
        return
    dtype = element_type(value.dtype)
    if dtype is None or not isinstance(value.type, ir.TensorType):
        state.opaque[value] = _unreadable(value.name, value.dtype)
        return
    shape: list[Expr] = []
    for axis, dim in enumerate(value.shape):
        known = dim if isinstance(dim, int) else dim.value
        if isinstance(known, int):
            shape.append(const(known))
        elif known is not None and keep_names:
            shape.append(size(known))
        else:
            shape.append(size(_new_size(state, value.name, axis)))
    state.ctx.program.inputs[value.name] = TensorInfo(value.name, dtype, tuple(shape))
    state.tensors[value] = state.ctx.tensor(value.name)


def _new_size(state: _State, value: str, axis: int) -> str:
    stem = re.sub(r"\W+", "_", value, flags=re.ASCII).strip("_")
    name = wanted = f"{stem if stem and not stem[0].isdigit() else f'v{stem}'}_dim{axis}"
    number = 1
    while name in state.sizes:
        number += 1
        name = f"{wanted}_{number}"
    state.sizes.add(name)
    return name


def _unreadable(name: str, dtype: ir.DataType) -> str:
    return f"'{name}' has element type {dtype.name.lower()}, which is not compiled"


def _add_constant(state: _State, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    assert value.name is not None
    state.constants.add(value)
    dtype = element_type(tensor.dtype)
    if dtype is None:
        state.opaque[value] = _unreadable(value.name, tensor.dtype)
        return
    array = tensor.numpy()
    state.ctx.program.constants[value.name] = array.astype(dtype.numpy) if tensor.dtype in COMPUTED else array
    state.tensors[value] = state.ctx.tensor(value.name)


def _lower_node(state: _State, node: ir.Node) -> str | None:
    """Defines a node's outputs; the reason where that cannot be done, with the program as before."""
    for value in node.inputs:
        if value is not None and value not in state.tensors:
            return state.opaque.get(value, f"'{value.name}' is not known")
    reason = _lower_by_us(state, node)
    return None if reason is None or _lower_by_definition(state, node) else reason


def _lower_by_definition(state: _State, node: ir.Node) -> bool:
    """Defines a node's outputs by ONNX's definition of its operator, if there is one that can be compiled."""
    ctx = state.ctx
    first = next((v.name for v in node.outputs if v.name), "")
    body = function_body(node, state.opsets, f"{first}/")
    if body is None:
        return False
    undo = ctx.mark()
    actual = {f"{first}/in{k}": v for k, v in enumerate(node.inputs)}
    for value in body.inputs:
        outer = actual[value.name or ""]
        assert outer is not None
        state.tensors[value] = state.tensors[outer]
    for value in body.initializers.values():
        assert value.const_value is not None
        _add_constant(state, value, value.const_value)
    for inner in body:
        inner.name = node.name
        tensor = constant_tensor(inner)
        if tensor is not None:
            _add_constant(state, inner.outputs[0], tensor)
        elif _lower_node(state, inner) is not None:
            undo()
            return False
    made = (v for v in node.outputs if v.name)
    for value, result in zip(made, body.outputs, strict=True):
        ctx.begin(describe_node(node), (value.name or "",))
        state.tensors[value] = _named(ctx, state.tensors[result], value.name or "")
    return True


def _lower_by_us(state: _State, node: ir.Node) -> str | None:
    """Defines a node's outputs as the table of operators says; the reason where that cannot be done."""
    op = find_op(node.domain, node.op_type)
    if op is None or op.lower is None:
        return f"{node.op_type} is not compiled"
    ctx = state.ctx
    first = next(v.name for v in node.outputs if v.name)
    # What is rounded afterwards is another tensor before.
    names = tuple(
        ctx.fresh(f"{v.name or first}_{'exact' if v.name else 'unused'}{k}")
        if not v.name or v.dtype in COMPUTED
        else v.name
        for k, v in enumerate(node.outputs)
    )
    ctx.begin(describe_node(node), names)
    undo = ctx.mark()
    try:
        made = op.lower(ctx, node, [None if v is None else state.tensors[v] for v in node.inputs])
        missing = [v.name for v in node.outputs[len(made) :] if v.name]
        if missing:
            raise Declined(f"{node.op_type} with the output '{missing[0]}'")
    except Declined as declined:
        undo()
        return str(declined)
    for value, tensor in zip(node.outputs, made, strict=False):
        if not value.name:
            continue
        if value.dtype is not None and value.dtype in COMPUTED:
            ctx.begin(ctx.origin, (value.name,))
            state.tensors[value] = rounded(ctx, tensor, value.dtype, node)
        else:
            state.tensors[value] = _named(ctx, tensor, value.name)
    return None


def _named(ctx: Lowering, tensor: Tensor, name: str) -> Tensor:
    """The tensor under the value's own name: a view where the operator handed back another one."""
    if tensor.name == name:
        return tensor
    ctx.begin(ctx.origin, (name,))
    return ctx.define(tensor.shape, tensor.at, tensor.dtype)


def _host_node(state: _State, node: ir.Node, reason: str) -> HostNode:
    inputs = tuple(v.name or "" for v in _reads(node) if v not in state.constants)
    for value in node.outputs:
        if value.name:
            _enter(state, value, keep_names=False)
    return HostNode(node, reason, inputs, tuple(v.name for v in node.outputs if v.name))


def _reads(node: ir.Node) -> list[ir.Value]:
    """The values of the node's own graph that it and the bodies inside it read, each once."""
    found: dict[ir.Value, None] = {v: None for v in node.inputs if v is not None}
    for body in _bodies(node):
        inside = [v for inner in body for v in _reads(inner)]
        own = {*body.inputs, *body.initializers.values(), *(v for inner in body for v in inner.outputs)}
        found |= {v: None for v in (*inside, *body.outputs) if v not in own}
    return list(found)


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()


def _refuse_impossible(model: ir.Model, host: list[HostNode]) -> None:
    """Raises one error that names every host node that ONNX's reference evaluator does not know."""
    impossible = [h for h in host if not _host_can_run(model, h.node)]
    if impossible:
        listing = "; ".join(f"{describe_node(h.node)} ({h.reason})" for h in impossible)
        raise UnsupportedModelError(
            f"{len(impossible)} of the model's nodes can neither be compiled nor run on the host: {listing}. "
            "Replace these operators before exporting the model."
        )


def _host_can_run(model: ir.Model, node: ir.Node) -> bool:
    """True where the reference evaluator has an implementation of the operator and of its bodies'."""
    imports = {"": OPSET} | model.opset_imports
    imports.setdefault(node.domain, 1)
    part = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "part",
        [ir.to_proto(v) for v in _reads(node)],
        [ir.to_proto(v) for v in node.outputs if v.name],
    )
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in imports.items()]
    proto = onnx.helper.make_model(part, opset_imports=opsets, ir_version=IR_VERSION)
    try:
        ReferenceEvaluator(proto, new_ops=list(HOST_OPERATORS))
    except RuntimeContextError:
        return True  # an implementation that depends on types, which the run knows
    except (NotImplementedError, RuntimeImplementationError):
        return False
    except (TypeError, ValueError):
        return False  # it refuses an attribute
    return True


def _drop_unused(program: Program, host: list[HostNode], graph_inputs: set[str]) -> None:
    """Removes what neither the outputs nor a host node needs: shape arithmetic, mostly."""
    needed = {*program.outputs, *(name for h in host for name in h.inputs)}
    needed |= _read_for(program, _sizes_of_guards(program))
    for name in reversed(list(program.definitions)):
        definition = program.definitions[name]
        if name not in needed:
            del program.definitions[name]
            continue
        needed |= definition.reads() | _read_for(program, _sizes_of_definition(definition))
    for table in (program.constants, program.inputs):
        for name in list(table):
            if name not in needed and name not in graph_inputs:
                del table[name]
    used = set(_sizes(program))
    for name in reversed(list(program.derived)):
        if name in used:
            used.update(e.name for e in walk(program.derived[name]) if isinstance(e, Size))
        else:
            del program.derived[name]
    for name in list(program.elements):
        if name not in used:
            del program.elements[name]


def _sizes(program: Program) -> Iterator[str]:
    """Names of the sizes that definitions and guards use."""
    for definition in program.definitions.values():
        yield from _sizes_of_definition(definition)
    yield from _sizes_of_guards(program)


def _sizes_of_definition(definition: Definition) -> Iterator[str]:
    body = definition.body
    parts = [body] if isinstance(body, Expr) else [*operands(body).values(), *definition.meaning()]
    for part in (*definition.shape, *parts):
        yield from _sizes_in(part)


def _sizes_of_guards(program: Program) -> Iterator[str]:
    for guard in program.guards:
        for side in (guard.left, guard.right):
            yield from _sizes_in(side)


def _read_for(program: Program, sizes: Iterable[str]) -> set[str]:
    """The tensors that sizes are read from, directly or through what they are derived from."""
    found: set[str] = set()
    stack = list(sizes)
    seen: set[str] = set()
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in program.elements:
            found.add(program.elements[name].tensor)
        elif name in program.derived:
            stack += _sizes_in(program.derived[name])
    return found


def _sizes_in(e: Expr) -> Iterator[str]:
    for node in walk(e):
        extents = node.vars if isinstance(node, Reduce) else (node,) if isinstance(node, Var) else ()
        for v in extents:
            if v.extent is not None:
                yield from _sizes_in(v.extent)
        if isinstance(node, Size):
            yield node.name
