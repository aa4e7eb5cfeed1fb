"""Checking a graph and inferring the types and shapes of its values, by ONNX's own rules."""

import onnx
import onnx.checker
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


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line without its final stop."""
    return " ".join(str(error).split()).rstrip(". ")


def _forget_declared_shapes(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


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
