"""The one version of ONNX's operators that the rest of hasten knows, and the way to it."""

import re

import onnx
import onnx.checker
import onnx.defs
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from hasten.errors import ModelError
from hasten.graph.inference import one_line
from hasten.graph.repairs import write_in, write_out
from hasten.graph.skeleton import restore, skeleton

# The newest opset for which ONNX Runtime has kernels of everything that older models convert to
# (26 to 28 lack QuantizeLinear and Optional there), so that a graph of ours stays meaningful
# to other engines. It has Attention, RMSNormalization and RotaryEmbedding (all since 23).
OPSET = 25
OLDEST_OPSET = 1
# The newest format that this opset needs; engines refuse files of a newer one than they know.
IR_VERSION = 10


def to_internal_opset(model: ir.Model) -> ir.Model:
    """Convert a model to the internal opset by ONNX's version converter.

    A model that has operators which are newer, or were extended since, keeps its own opset; what is
    compiled means the same in both. Operators of other domains stay as they are. Tensors are shared with
    the given model, which is left as it is.

    Args:
        model: A valid model of opset 11 or newer without functions of its own.

    Returns:
        The converted model: the same object if there was nothing to convert. Values that the
        conversion added have no shape.

    Raises:
        ModelError: The opset is too old or unknown, or an operator cannot be converted; the
            message names it.
    """
    version = opset_of(model)
    if version == OPSET:
        return model
    if version is None:
        model = model.clone()
        model.opset_imports[""] = OPSET
        return model
    newest = onnx.defs.onnx_opset_version()
    if OPSET < version <= newest:
        return _without_newer(model, version)
    if not OLDEST_OPSET <= version <= newest:
        raise ModelError(
            f"The model uses ONNX opset {version}; {OLDEST_OPSET} to {newest} can be read. "
            + (
                "Export it again with a newer opset."
                if version < OLDEST_OPSET
                else "Install a newer onnx package, or export it with an older opset."
            )
        )
    work = model.clone()
    NameFixPass()(work)
    write_out(work, version)
    NameFixPass()(work)
    source = skeleton(work)
    try:
        proto = onnx.version_converter.convert_version(source.proto, OPSET)
    except (
        onnx.version_converter.ConvertError,
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise ModelError(
            f"{_culprit(work, version, str(error))} cannot be converted from ONNX opset "
            f"{version} to {OPSET}: {one_line(error)}. Export the model with opset {OPSET}."
        ) from error
    converted = restore(proto, source)
    converted.ir_version = max(converted.ir_version or 0, IR_VERSION)
    write_in(converted, version)
    NameFixPass()(converted)
    _restore_values(converted, work)
    return converted


def _without_newer(model: ir.Model, version: int) -> ir.Model:
    """A model of a newer opset as one of the internal opset, if its operators are all as old."""
    operators = {node.op_type for graph in model.graphs() for node in graph if node.domain == ""}
    older = all(
        onnx.defs.has(op, version, "") and onnx.defs.get_schema(op, version, "").since_version <= OPSET
        for op in operators
    )
    if not older:
        return model
    model = model.clone()
    for graph in model.graphs():
        graph.opset_imports[""] = OPSET
    model.opset_imports[""] = OPSET
    return model


def opset_of(model: ir.Model) -> int | None:
    """Return the version of ONNX's own operators that a model imports, or None if it has none."""
    imports = model.opset_imports
    return imports.get("", imports.get("ai.onnx"))


def _culprit(model: ir.Model, version: int, message: str) -> str:
    for node in model.graph.all_nodes():
        if node.domain == "" and not onnx.defs.has(node.op_type, version, ""):
            return f"The operator {node.op_type}"
    named = re.search(r"for (?:op(?:erator)? )?'?([A-Z]\w+)", message)
    if named and onnx.defs.has(named[1]):
        return f"The operator {named[1]}"
    known = {node.op_type for node in model.graph.all_nodes() if node.op_type in message}
    return f"The operator {max(known, key=len)}" if known else "The model"


def _restore_values(converted: ir.Model, original: ir.Model) -> None:
    """Give values their first types and shapes: the converter loses some and guesses others."""
    graphs = zip(converted.graphs(), original.graphs(), strict=True)
    for graph, source in graphs:
        known = {value.name: value for value in [*source.inputs, *source.outputs]}
        known |= {value.name: value for node in source for value in node.outputs}
        for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
            before = known.get(value.name)
            value.shape = None if before is None else before.shape and ir.Shape(before.shape)
            if before is not None and before.type is not None:
                value.type = before.type
