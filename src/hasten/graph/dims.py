"""Symbolic sizes: one meaning for each name, bound by the inputs of the graph."""

import ast
import keyword
import re

import onnx_ir as ir


def name_dims(model: ir.Model) -> None:
    """Give every unknown size of the inputs a name, and drop names that nothing binds, in place.

    Files write unknown sizes as `?`, `-1`, a name with dots or nothing at all, and such a mark
    used twice does not mean equal sizes. Only a valid identifier does. Afterwards each symbolic
    size of an input is an identifier, and each one anywhere else is an expression over those, or
    unknown.

    Args:
        model: Its inputs must have names.
    """
    inputs = model.graph.inputs
    taken = {
        dim.value
        for value in inputs
        for dim in value.shape or ()
        if isinstance(dim, ir.SymbolicDim) and _is_name(dim.value)
    }
    for value in inputs:
        if value.shape is None:
            continue
        dims: list[int | str] = []
        for axis, dim in enumerate(value.shape):
            known = dim if isinstance(dim, int) else dim.value
            if (isinstance(known, int) and known >= 0) or (isinstance(known, str) and _is_name(known)):
                dims.append(known)
            else:
                dims.append(_new_name(value.name or "input", axis, taken))
        value.shape = ir.Shape(dims)
    forget_unbound_dims(model)


def forget_unbound_dims(model: ir.Model) -> None:
    """Make every size unknown that is not an expression over the input's sizes, in place.

    Args:
        model: The sizes of its inputs must be numbers or names, as `name_dims` leaves them.
    """
    inputs = set(model.graph.inputs)
    bound = {dim.value for value in inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)}
    for graph in model.graphs():
        values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
        for value in values:
            if value.shape is None or value in inputs:
                continue
            value.shape = ir.Shape([_bound_or_none(dim, bound) for dim in value.shape])


def input_dims(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the symbolic sizes that the inputs bind, in order of appearance."""
    names: dict[str, None] = {}
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names[dim.value] = None
    return tuple(names)


def _is_name(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _new_name(value: str, axis: int, taken: set[str | None]) -> str:
    stem = re.sub(r"\W+", "_", value, flags=re.ASCII).strip("_") or "input"
    if stem[0].isdigit():
        stem = f"input_{stem}"
    name = wanted = f"{stem}_dim{axis}"
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _bound_or_none(dim: int | ir.SymbolicDim, bound: set[str | None]) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    if dim.value is None or dim.value in bound:
        return dim.value
    try:
        tree = ast.parse(dim.value, mode="eval")
    except SyntaxError:
        return None
    allowed = ast.Expression | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop | ast.Load
    for part in ast.walk(tree):
        match part:
            case ast.Name(id=name) if name in bound:
                continue
            case ast.Constant(value=int()):
                continue
            case _ if isinstance(part, allowed):
                continue
        return None
    return dim.value
