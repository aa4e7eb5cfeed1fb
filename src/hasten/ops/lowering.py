"""From an ONNX graph to a tensor program, with the nodes that stay on the host named and explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError, RuntimeImplementationError

from hasten.errors import UnsupportedModelError
from hasten.graph.bodies import reads
from hasten.graph.constants import constant_tensor
from hasten.graph.describe import describe_node
from hasten.graph.functions import function_body
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.descriptions import operands
from hasten.loops.expr import Expr, Reduce, Size, Var, const, size, walk
from hasten.loops.program import Definition, Program
from hasten.ops.base import Declined, Lowering, Tensor
from hasten.ops.control_flow import is_control, lower_control
from hasten.ops.element_types import COMPUTED, rounded
from hasten.ops.graph_state import Dims, GraphState
from hasten.ops.lowered import Control, HostNode, Lowered, Outside
from hasten.ops.table import find_op
from hasten.runtime.host_operators import HOST_OPERATORS


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
    state = GraphState.of(graph, model.opset_imports)
    state.sizes.update(
        d.value for v in graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim) and d.value
    )
    for value in graph.inputs:
        state.enter(value, _known_dims(value, keep_names=True))
    outside = _lower_nodes(state, graph)
    program = state.ctx.program
    program.outputs = [v.name for v in graph.outputs if v in state.tensors and v.name]
    _drop_unused(program, outside, {v.name for v in graph.inputs if v.name})
    lowered = Lowered(program, tuple(outside), tuple(v.name or "" for v in graph.outputs))
    _refuse_impossible(model, lowered.host_nodes)
    return lowered


def _known_dims(value: ir.Value, keep_names: bool) -> Dims | None:
    """The shape of a value as the graph has it.

    Args:
        value: an input of the graph, or the output of a host node.
        keep_names: its symbolic sizes are bound by it. Those of a host node's output are not: what was
            inferred for them is not certain, so they become sizes of their own.
    """
    if value.shape is None:
        return None
    known = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return [const(n) if isinstance(n, int) else size(n) if n and keep_names else None for n in known]


def _lower_nodes(state: GraphState, graph: ir.Graph) -> list[Outside]:
    """Defines what the nodes of a graph make; those that cannot be compiled or have bodies of their own."""
    entered = set(graph.inputs)
    for value in graph.initializers.values():
        # A caller may override an initializer that is also an input, so that one is no constant.
        if value not in entered and value.const_value is not None:
            state.add_constant(value, value.const_value)
    outside: list[Outside] = []
    for node in graph:
        tensor = constant_tensor(node)
        if tensor is not None:
            state.add_constant(node.outputs[0], tensor)
            continue
        made = _lower_node(state, node)
        outside += [_host_node(state, node, made)] if isinstance(made, str) else made
    return outside


def _lower_body(state: GraphState, body: ir.Graph) -> Lowered:
    """Lowers a graph inside a node, in whose state its inputs are entered."""
    outside = _lower_nodes(state, body)
    program, ctx = state.ctx.program, state.ctx
    outputs = []
    for value in body.outputs:
        name, tensor = value.name or "", state.tensors.get(value)
        if name in program.constants and tensor is not None:
            # What other definitions read stays constant.
            ctx.begin(f"result of '{body.name}'", (ctx.fresh(f"{name}_result"),))
            name = ctx.define(tensor.shape, tensor.at, tensor.dtype).name
        outputs.append(name)
    program.outputs = [n for n in dict.fromkeys(outputs) if n in program.definitions or n in program.inputs]
    _drop_unused(program, outside, {v.name for v in body.inputs if v.name})
    return Lowered(program, tuple(outside), tuple(outputs))


def _lower_node(state: GraphState, node: ir.Node) -> list[Control] | str:
    """Defines a node's outputs.

    Returns:
        What has bodies in it; the reason where it cannot be compiled, with the program as before.
    """
    if is_control(node):
        control = lower_control(state, node, _lower_body)
        if control is None:
            return []
        return control if isinstance(control, str) else [control]
    for value in node.inputs:
        if value is not None and value not in state.tensors:
            return state.opaque.get(value, f"'{value.name}' is not known")
    reason = _lower_by_us(state, node)
    if reason is None:
        return []
    defined = _lower_by_definition(state, node)
    return reason if defined is None else defined


def _lower_by_definition(state: GraphState, node: ir.Node) -> list[Control] | None:
    """Defines a node's outputs by ONNX's definition of its operator, if there is one that can be compiled."""
    ctx = state.ctx
    first = next((v.name for v in node.outputs if v.name), "")
    body = function_body(node, state.opsets, f"{first}/")
    if body is None or len(body.outputs) != sum(bool(v.name) for v in node.outputs):
        return None  # a node with more outputs than its operator has
    made: list[Control] = []
    undo = ctx.mark()
    actual = {f"{first}/in{k}": v for k, v in enumerate(node.inputs)}
    for value in body.inputs:
        outer = actual[value.name or ""]
        assert outer is not None
        state.tensors[value] = state.tensors[outer]
    for value in body.initializers.values():
        assert value.const_value is not None
        state.add_constant(value, value.const_value)
    for inner in body:
        inner.name = node.name
        tensor = constant_tensor(inner)
        if tensor is not None:
            state.add_constant(inner.outputs[0], tensor)
            continue
        lowered = _lower_node(state, inner)
        # The host runs whole operators, never halves of them.
        if isinstance(lowered, str) or any(b.lowered.host_nodes for c in lowered for b in c.bodies):
            undo()
            return None
        made += lowered
    named = (v for v in node.outputs if v.name)
    for value, result in zip(named, body.outputs, strict=True):
        ctx.begin(describe_node(node), (value.name or "",))
        state.tensors[value] = _named(ctx, state.tensors[result], value.name or "")
    return made


def _lower_by_us(state: GraphState, node: ir.Node) -> str | None:
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


def _host_node(state: GraphState, node: ir.Node, reason: str) -> HostNode:
    inputs = tuple(v for v in reads(node) if v not in state.constants)
    for value in node.outputs:
        if value.name:
            state.enter(value, _known_dims(value, keep_names=False))
    return HostNode(node, reason, inputs, tuple(v.name for v in node.outputs if v.name))


def _refuse_impossible(model: ir.Model, host: Sequence[HostNode]) -> None:
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
        [ir.to_proto(v) for v in reads(node)],
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
    except (RuntimeError, TypeError, ValueError):
        return False  # it refuses an attribute
    return True


def _drop_unused(program: Program, outside: Sequence[Outside], graph_inputs: set[str]) -> None:
    """Removes what neither the outputs nor a node beside the program needs: shape arithmetic, mostly."""
    needed = {*program.outputs, *(name for h in outside for name in h.inputs)}
    needed |= _read_for(program, _sizes_of_guards(program))
    for name in reversed(list(program.definitions)):
        definition = program.definitions[name]
        if name not in needed:
            del program.definitions[name]
            continue
        needed |= definition.reads() | _read_for(program, _sizes_of_definition(definition))
    used = set(_sizes(program))
    for name in reversed(list(program.derived)):
        if name in used:
            used.update(e.name for e in walk(program.derived[name]) if isinstance(e, Size))
        else:
            del program.derived[name]
    needed |= graph_inputs
    # An input may be there for its lengths alone.
    needed |= {n for n, i in program.inputs.items() if any(s in used for d in i.shape for s in _sizes_in(d))}
    for table in (program.constants, program.inputs):
        for name in list(table):
            if name not in needed:
                del table[name]
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
