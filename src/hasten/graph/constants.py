"""What is known at compile time: initializers and the outputs of `Constant` nodes."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def constant_value(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the array that a value always has, or None if it is only known at run time.

    Args:
        value: An input of a node; None stands for an omitted optional input.

    Returns:
        The array (read-only where it is mapped from a file), or None. An initializer that is
        at the same time an input of the graph may be overridden by a caller, so it is no constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return None if value.const_value is None else value.const_value.numpy()
    producer = value.producer()
    if producer is None:
        return None
    tensor = constant_tensor(producer)
    return None if tensor is None else tensor.numpy()


def raw_bytes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """The bytes of an array, which are not copied if they lie in a row."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the tensor that a `Constant` node holds, in whichever attribute it is written.

    Args:
        node: Any node.

    Returns:
        The tensor; None if the node is no `Constant`, or a sparse one.
    """
    if node.op_type != "Constant" or node.domain != "":
        return None
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        match name:
            case "value":
                return attribute.as_tensor()
            case "value_int":
                return ir.tensor(np.array(attribute.as_int(), dtype=np.int64))
            case "value_ints":
                return ir.tensor(np.array(attribute.as_ints(), dtype=np.int64))
            case "value_float":
                return ir.tensor(np.array(attribute.as_float(), dtype=np.float32))
            case "value_floats":
                return ir.tensor(np.array(attribute.as_floats(), dtype=np.float32))
            case "value_string":
                return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
            case "value_strings":
                texts = [text.encode() for text in attribute.as_strings()]
                return ir.StringTensor(texts, shape=ir.Shape([len(texts)]))
    return None


def lift_constants(model: ir.Model) -> None:
    """Turn every `Constant` node into an initializer of the graph in which it stands, in place.

    A constant that is itself an output of its graph stays a node: an output must be produced.
    Sparse constants stay too.

    Args:
        model: Its values must have unique names.
    """
    for graph in model.graphs():
        for node in list(graph):
            tensor = constant_tensor(node)
            output = node.outputs[0]
            if tensor is None or output.is_graph_output():
                continue
            initializer = ir.Value(
                name=output.name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            output.replace_all_uses_with(initializer)
            graph.remove(node, safe=True)
            graph.register_initializer(initializer)
