"""Checking a graph and inferring the types and shapes of its values, by ONNX's own rules."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

from hasten.errors import ModelError
from hasten.graph.dims import forget_unbound_dims, input_dims
from hasten.graph.skeleton import skeleton


def check(model: ir.Model) -> None:
    """Check that a model follows the ONNX standard: operators, attributes, names, order.

    Args:
        model: Its values must have unique names.

    Raises:
        ModelError: It does not; the message is the checker's.
    """
    try:
        onnx.checker.check_model(skeleton(model).proto)
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise ModelError(
            f"The model is not valid ONNX: {one_line(error)}. Export it again, or repair it."
        ) from error


def infer_shapes(model: ir.Model) -> None:
    """Infer types and shapes of all values, in place, and find contradictions between them.

    Shapes that the file declares for inner values are only used where inference finds none: files
    often declare wrong ones. Sizes that the inputs do not bind become unknown.

    Args:
        model: A model that `check` accepts; sizes of inputs are numbers or names.

    Raises:
        ModelError: Two values contradict each other, such as a product of 2 x 3 and 4 x 5.
    """
    proto = skeleton(model).proto
    _forget_declared_shapes(proto.graph)
    _give_rules(proto.graph)
    try:
        inferred = ir.from_proto(
            onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        )
    except MemoryError as error:
        raise ModelError(
            "Inferring the model's shapes needs more memory than there is: a size in it is beyond all "
            "bounds. Export it again, or repair it."
        ) from error
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(
            f"The model contradicts itself: {one_line(error)}. Export it again, or repair it."
        ) from error
    bound = input_dims(model)
    for graph, other in zip(model.graphs(), inferred.graphs(), strict=True):
        found = {output.name: output for node in other for output in node.outputs}
        for node in graph:
            for output in node.outputs:
                _take(output, found.get(output.name), bound)
    forget_unbound_dims(model)


Dims = Sequence[int | str | None]
"""Sizes of a tensor: a number, a name, or None for one that is not known."""

_GRAPH_ATTRIBUTES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def infer_node(
    node: ir.Node,
    imports: Mapping[str, int],
    dims: Callable[[ir.Value], Dims | None],
    data: Callable[[ir.Value], np.ndarray | None],
) -> dict[str, onnx.TypeProto.Tensor]:
    """Infer types and shapes of one node's outputs, by name, by ONNX's rule of its operator.

    Args:
        node: A node; its inputs come first, as they need types.
        imports: Versions of the operator sets.
        dims: Gives the dimensions of an input as far as they are known, or None.
        data: Gives what an input always holds, or None.

    Returns:
        What is known; nothing for operators with bodies, for those that ONNX has no rule for, and where types
        of inputs are not known.
    """
    if any(a.type in _GRAPH_ATTRIBUTES for a in node.attributes.values()):
        return {}
    if not onnx.defs.has(node.op_type, node.domain):
        return {}
    types: dict[str, onnx.TypeProto] = {}
    known: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        if value.name is None or not isinstance(value.type, ir.TensorType):
            return {}  # inference needs the type of every input, and only knows tensors here
        types[value.name] = _type_proto(value, dims(value))
        array = data(value)
        if array is not None and array.dtype.kind != "S":  # texts say nothing of shapes
            known[value.name] = onnx.numpy_helper.from_array(array, value.name)
    proto = ir.serde.serialize_node(node)
    _give_rule(proto)
    try:
        result = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(proto.op_type, imports.get(node.domain, 1), node.domain),
            proto,
            types,
            known,
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in imports.items()],
        )
    except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError):
        return {}  # the declared shapes stand; the checker of the frontend judges models
    return {n: t.tensor_type for n, t in result.items() if t.HasField("tensor_type")}


def _type_proto(value: ir.Value, dims: Dims | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = int(value.dtype) if value.dtype is not None else 0
    if dims is not None:
        proto.tensor_type.shape.SetInParent()
        for dim in dims:
            entry = proto.tensor_type.shape.dim.add()
            if isinstance(dim, int):
                entry.dim_value = dim
            elif dim is not None:
                entry.dim_param = dim
    return proto


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line without its final stop."""
    return " ".join(str(error).split()).rstrip(". ")


def _forget_declared_shapes(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _give_rules(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        _give_rule(node)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _give_rules(body)


def _give_rule(node: onnx.NodeProto) -> None:
    """Of all operators GroupNormalization alone has no rule in ONNX: its output is like its first input."""
    if (node.domain, node.op_type) == ("", "GroupNormalization"):
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]


def _take(value: ir.Value, inferred: ir.Value | None, bound: tuple[str, ...]) -> None:
    if inferred is None:
        return
    if inferred.type is not None:
        value.type = inferred.type
    if inferred.shape is None:
        return
    declared = value.shape
    if declared is None or declared.rank() != inferred.shape.rank():
        value.shape = ir.Shape(inferred.shape)
        return
    value.shape = ir.Shape(
        [
            # What follows from the inputs comes first, then what the exporter knew.
            new if isinstance(new, int) or new.value in bound else old
            for new, old in zip(inferred.shape, declared, strict=True)
        ]
    )
