"""From a frontend's model to the one form that the rest of hasten expects."""

import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedOpsetsPass,
)

from hasten.errors import ModelError
from hasten.graph.constants import lift_constants
from hasten.graph.dims import name_dims
from hasten.graph.inference import check, infer_shapes, one_line
from hasten.graph.opset import to_internal_opset
from hasten.graph.repairs import name_contrib, write_defaults
from hasten.graph.rewrite import write_definitions

MOST_NODES = 20_000
"""More than a model has whose layers are functions; finding names for so many takes minutes."""

MOST_NESTED = 100
"""Functions inside functions."""


def prepare(model: ir.Model) -> ir.Model:
    """Bring a model of any opset into the form that passes and lowering rely on.

    Afterwards: the internal opset (or a newer one, see `to_internal_opset`); no functions; no `Constant`
    nodes but those that are outputs; no initializer among the inputs; unique, non-empty names,
    those of inputs and outputs as given; nodes in topological order; each symbolic
    size an input's name or an expression over such; types and shapes inferred; valid by ONNX's checker.

    Args:
        model: In topological order; it is changed.

    Returns:
        The prepared model, perhaps the same object.

    Raises:
        ModelError: The model is not valid, or an operator cannot be converted.
    """
    _check_functions(model)
    try:
        InlinePass()(model)
    except (ValueError, ir.passes.InvariantError, ir.passes.PassError) as error:
        raise ModelError(
            f"A function inside the model cannot be written out: {one_line(error)}. "
            "Export the model without functions."
        ) from error
    model.functions.clear()
    _check_interface(model)
    NameFixPass()(model)
    lift_constants(model)
    RemoveInitializersFromInputsPass()(model)
    name_dims(model)
    RemoveUnusedOpsetsPass()(model)
    # Files before version 4 listed initializers among the inputs, where they no longer are.
    write_defaults(model)
    name_contrib(model)
    model.ir_version = max(model.ir_version, 4)
    check(model)
    model = to_internal_opset(model)
    write_definitions(model)
    NameFixPass()(model)
    lift_constants(model)
    infer_shapes(model)
    return model


def _check_functions(model: ir.Model) -> None:
    """Functions that call others several times each grow without bounds when they are written out.

    Those that nobody calls are dropped.
    """
    made: dict[ir.OperatorIdentifier, int] = {}
    open_: list[ir.OperatorIdentifier] = []

    def nodes(body: ir.Graph | ir.Function) -> int:
        return sum(size(n.op_identifier()) for n in ir.traversal.RecursiveGraphIterator(body))

    def size(called: ir.OperatorIdentifier) -> int:
        function = model.functions.get(called)
        if function is None:
            return 1
        if called in open_:
            raise ModelError(
                f"The function '{'.'.join(called[:2])}' inside the model calls itself, which ONNX does "
                "not allow. Export the model without functions."
            )
        if len(open_) > MOST_NESTED:
            raise ModelError(
                f"Functions inside the model call each other more than {MOST_NESTED} levels deep. "
                "Export the model without functions."
            )
        if called not in made:
            open_.append(called)
            made[called] = nodes(function)
            open_.pop()
        return made[called]

    total = nodes(model.graph)
    for called in [name for name in model.functions if name not in made]:
        del model.functions[called]
    if total > MOST_NODES:
        raise ModelError(
            f"The model has {total} nodes when its functions are written out, more than {MOST_NODES}: "
            "its functions call each other several times each. Export the model without functions."
        )


def _check_interface(model: ir.Model) -> None:
    """Names of inputs and outputs belong to the user, so they are never mended."""
    if not model.graph.outputs:
        raise ModelError("The model has no outputs. Export it again with at least one.")
    for kind, values in (("inputs", model.graph.inputs), ("outputs", model.graph.outputs)):
        names = [value.name for value in values]
        if not all(names):
            raise ModelError(f"One of the model's {kind} has no name: {names}. Give it one.")
        if len(set(names)) != len(names):
            raise ModelError(f"Two of the model's {kind} have the same name: {names}. Rename one.")
