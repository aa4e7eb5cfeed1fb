"""A model without its weights, as ONNX's own C++ functions take it.

ONNX's checker, shape inference and version converter work on a serialized protobuf, which cannot
exceed 2 GB. Weights play no part there, so they are sent as inputs of the graph, by name and type.
"""

from dataclasses import dataclass

import onnx
import onnx_ir as ir

# Small tensors stay: axes, shapes and scales decide shapes and conversions.
LARGEST_KEPT_BYTES = 1024


@dataclass(frozen=True)
class Skeleton:
    """A model without its large tensors.

    Attributes:
        proto: The model; each removed tensor is an input of the graph, after the real inputs.
        weights: The removed tensors by name. Those of subgraphs are among them.
        inputs: How many of the graph's inputs are real.
    """

    proto: onnx.ModelProto
    weights: dict[str, ir.TensorProtocol]
    inputs: int


def skeleton(model: ir.Model) -> Skeleton:
    """Serialize a model without its large tensors; the model is left as it is.

    Args:
        model: Its values must have unique names.

    Returns:
        The skeleton. A large initializer of a subgraph becomes one of the main graph, which means
        the same, since a body may refer to everything around it.
    """
    copy = model.clone()
    weights: dict[str, ir.TensorProtocol] = {}
    inputs = len(copy.graph.inputs)
    for graph in list(copy.graphs()):
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or value.is_graph_input():
                continue
            value.shape = ir.Shape(tensor.shape.numpy())
            value.type = ir.TensorType(tensor.dtype)
            if tensor.nbytes > LARGEST_KEPT_BYTES:
                weights[name] = tensor
                del graph.initializers[name]
                value.const_value = None
                copy.graph.inputs.append(value)
            elif isinstance(tensor, ir.ExternalTensor):  # ONNX would look for its file in the current folder
                value.const_value = ir.tensor(tensor.numpy(), tensor.dtype, name=name)
    return Skeleton(ir.to_proto(copy), weights, inputs)


def restore(proto: onnx.ModelProto, source: Skeleton) -> ir.Model:
    """Read a processed skeleton back and give it its weights again.

    Args:
        proto: What a function of ONNX made of `source.proto`; inputs must have kept their order.
        source: The skeleton from which it was made.

    Returns:
        A complete model that shares the tensors with the model from which the skeleton came.
    """
    model = ir.from_proto(proto)
    added = list(model.graph.inputs[source.inputs :])
    for _ in added:
        model.graph.inputs.pop()  # a slice deletion would leave them marked as inputs
    for value in added:
        assert value.name is not None
        value.const_value = source.weights[value.name]
        model.graph.register_initializer(value)
    return model
