"""Cutting nodes out of a graph, and evaluating them by ONNX's own definition of its operators."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError, RuntimeImplementationError

from hasten.errors import UnsupportedModelError
from hasten.graph.constants import constant_tensor
from hasten.graph.describe import describe_node
from hasten.graph.opset import IR_VERSION, OPSET

Array = npt.NDArray[np.generic]


def evaluate_node(
    node: ir.Node, inputs: Sequence[Array | None], around: Mapping[str, Array] | None = None
) -> list[Array]:
    """Evaluate one node by ONNX's reference evaluator.

    Args:
        node: A node of a model at the internal opset.
        inputs: One array for each of the node's inputs; None where the input is omitted.
        around: What the bodies of `If`, `Loop` and `Scan` refer to around them and is not constant, by name
            (`captured_values`).

    Returns:
        The outputs; an empty array of zero elements stands for an omitted output.

    Raises:
        UnsupportedModelError: The reference evaluator does not know the operator.
        ValueError: The number of arrays is wrong, or a body refers to a value that is neither
            constant nor in `around`.
    """
    if len(inputs) != len(node.inputs):
        raise ValueError(f"{describe_node(node)}: {len(node.inputs)} inputs, got {len(inputs)}")
    arrays: dict[ir.Value, Array] = {}
    for value, array in zip(node.inputs, inputs, strict=True):
        if (value is None) != (array is None):
            raise ValueError(f"{describe_node(node)}: an input was given for None, or the reverse")
        if value is not None and array is not None:
            arrays[value] = array
    for value in captured_values(node):
        if around is not None and value.name is not None and value.name in around:
            arrays[value] = around[value.name]
    wanted = [output for output in node.outputs if output.name]
    model = node_model([node], list(arrays), wanted)
    feeds = {value.name or "": array for value, array in arrays.items()}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # Infinities and NaN are results.
            results = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    except (NotImplementedError, RuntimeImplementationError, RuntimeContextError) as error:
        raise UnsupportedModelError(
            f"{describe_node(node)} has no reference implementation: {error}"
        ) from error
    found = iter(results)
    return [np.asarray(next(found)) if output.name else np.empty(0, np.uint8) for output in node.outputs]


def node_model(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    """Copy a set of nodes out of a graph into a model that stands alone.

    Args:
        nodes: Nodes of one graph, in any order that a graph may have.
        inputs: Values from outside that become the inputs of the model, in this order.
        outputs: Outputs of the nodes that become the outputs of the model, in this order.

    Returns:
        A model at the internal opset. Value and node names are those of the source. All else that
        the nodes use must be constant and becomes initializers, which are in memory or mapped, so
        that the model can be serialized anywhere.

    Raises:
        ValueError: The nodes, or bodies inside them, use a value that is neither an input nor a
            constant nor made by one of the nodes.
    """
    made = {value for node in nodes for value in node.outputs}
    constants: dict[ir.Value, ir.TensorProtocol] = {}
    for value in _outer_values(nodes):
        if value in made or value in inputs:
            continue
        tensor = _tensor_of(value)
        if tensor is None:
            raise ValueError(f"the value '{value.name}' is neither given nor constant")
        constants[value] = tensor
    # The view only borrows the nodes; its copy owns new ones.
    borrowed = ir.GraphView(
        inputs=[*inputs, *constants],
        outputs=list(outputs),
        nodes=list(nodes),
        opset_imports=_imports(nodes),
        name="part",
    )
    graph = borrowed.clone()
    model = ir.Model(graph, ir_version=IR_VERSION)
    copies = list(graph.inputs[len(inputs) :])
    for _ in copies:
        graph.inputs.pop()  # a slice deletion would leave them marked as inputs
    for value in graph.inputs:
        value.const_value = None
    for copy, tensor in zip(copies, constants.values(), strict=True):
        copy.const_value = (
            ir.tensor(tensor.numpy(), name=copy.name) if isinstance(tensor, ir.ExternalTensor) else tensor
        )
        graph.register_initializer(copy)
    return model


def captured_values(node: ir.Node) -> list[ir.Value]:
    """What the bodies of a node refer to around them that is neither one of its inputs nor constant."""
    if not any(_bodies(attribute) for attribute in node.attributes.values()):
        return []
    return [v for v in _outer_values([node]) if v not in node.inputs and _tensor_of(v) is None]


def _outer_values(nodes: Iterable[ir.Node]) -> dict[ir.Value, None]:
    """Return what nodes and their bodies use and the bodies do not define, in order of use."""
    used: dict[ir.Value, None] = {}
    for node in nodes:
        used |= {value: None for value in node.inputs if value is not None}
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                own = {*body.inputs, *body.initializers.values()}
                own |= {value for inner in body for value in inner.outputs}
                inside = _outer_values(body) | dict.fromkeys(body.outputs)
                used |= {value: None for value in inside if value not in own}
    return used


def _bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    match attribute.type:
        case ir.AttributeType.GRAPH:
            return (attribute.as_graph(),)
        case ir.AttributeType.GRAPHS:
            return tuple(attribute.as_graphs())
    return ()


def _tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value
    producer = value.producer()
    return None if producer is None else constant_tensor(producer)


def _imports(nodes: Sequence[ir.Node]) -> dict[str, int]:
    """Return the operator sets that the nodes and their bodies need, at their graph's versions if it says."""
    graph = nodes[0].graph if nodes else None
    declared = {} if graph is None else graph.opset_imports
    others = {domain: declared.get(domain, 1) for domain in _domains(nodes) if domain}
    return {"": declared.get("", OPSET)} | others


def _domains(nodes: Iterable[ir.Node]) -> set[str]:
    domains: set[str] = set()
    for node in nodes:
        domains.add(node.domain)
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                domains |= _domains(body)
    return domains
