"""Reductions over axes, the index of an extremum, and softmax with its relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, cast, const, constant_int, reduce, select, unary, var
from hasten.ops.attributes import attribute_int
from hasten.ops.axes import apart, axis_numbers, without
from hasten.ops.base import (
    Declined,
    Inputs,
    Lower,
    Lowering,
    Op,
    Tensor,
    constant_ints,
    normalize_axis,
    optional,
    required,
)
from hasten.ops.indices import product
from hasten.ops.pruning import Operands, PruningFacts, Tie, Whole, except_axes, input_, output, same

Element = Callable[[Sequence[Expr]], Expr]


def _same(e: Expr) -> Expr:
    return e


@dataclass(frozen=True)
class _Kind:
    """A reduction as before -> `op` -> after; `after` also receives the number of elements."""

    op: str
    before: Callable[[Expr], Expr] = _same
    after: Callable[[Expr, Expr], Expr] = lambda total, count: total
    floats_only: bool = False


def lowest(dtype: DType) -> Expr:
    """The neutral element of a maximum."""
    if dtype.is_float:
        return const(float("-inf"), dtype)
    if not dtype.is_signed:
        return const(0, dtype)
    return const(-(2 ** (8 * dtype.bytes - 1)), dtype)


def over_axes(
    ctx: Lowering, node: ir.Node, inputs: Inputs, reduction: Callable[[Tensor, Sequence[int]], Element]
) -> list[Tensor]:
    """A reduction over the axes that the second input lists, or all; they may be read at each call.

    Args:
        ctx: what is lowered to.
        node: the node, for its attributes.
        inputs: the tensor, and perhaps the axes.
        reduction: gives the result's element for a tensor and the axes of it to reduce.

    Raises:
        Declined: the axes lie outside the rank or depend on data that cannot be read.
    """
    x, given = required(inputs, 0), optional(inputs, 1)
    keep = attribute_int(node, "keepdims", 1) != 0
    count = 0 if given is None else constant_int(product(given.shape))
    if count is None:
        raise Declined("the number of axes is not constant")
    if given is not None and count and ctx.constant_of(given) is None:
        axes = axis_numbers(ctx, given, x.rank, ())
        halves, second = apart(ctx, x, axes), range(x.rank, 2 * x.rank)
        name = None if keep else f"{ctx.names[0]}_kept"
        total = define_reduced(ctx, halves, second, False, reduction(halves, second), x.dtype, name)
        return [total if keep else without(ctx, total, axes)]
    known: list[int] = []
    if count:
        known = sorted({normalize_axis(a, x.rank) for a in constant_ints(ctx, given, "the list of axes")})
    elif not attribute_int(node, "noop_with_empty_axes", 0):
        known = list(range(x.rank))
    return [define_reduced(ctx, x, known, keep, reduction(x, known), x.dtype)]


def axis_vars(x: Tensor, axes: Sequence[int], prefix: str = "r") -> dict[int, Expr]:
    """A variable for each axis that a reduction runs over; 0 where the extent is 1."""
    return {a: var(f"{prefix}{a}", x.shape[a]) if x.shape[a] != const(1) else const(0) for a in axes}


def reduce_over(op: str, variables: Sequence[Expr], body: Expr) -> Expr:
    """The reduction of `body` over those of `variables` that are loop variables."""
    return reduce(op, tuple(v for v in variables if isinstance(v, Var)), body)


def reduce_axes(op: str, x: Tensor, axes: Sequence[int], element: Element, prefix: str = "r") -> Element:
    """The reduction over axes of `element` as a function of the full index; its `axes` entries are unused."""
    inner = axis_vars(x, axes, prefix)

    def reduced(index: Sequence[Expr]) -> Expr:
        body = element([inner.get(d, i) for d, i in enumerate(index)])
        return reduce_over(op, list(inner.values()), body)

    return reduced


def count_of(x: Tensor, axes: Sequence[int], dtype: DType) -> Expr:
    """The number of elements along axes, as a value of `dtype`."""
    return cast(product([x.shape[a] for a in axes]), dtype)


def define_reduced(
    ctx: Lowering,
    x: Tensor,
    axes: Sequence[int],
    keepdims: bool,
    element: Element,
    dtype: DType,
    name: str | None = None,
) -> Tensor:
    """A definition with `axes` reduced to size 1 or dropped; `element` takes an index of x's rank."""
    gone = set(axes)
    if keepdims:
        shape = [const(1) if d in gone else n for d, n in enumerate(x.shape)]
        return ctx.define(shape, lambda *i: element(list(i)), dtype, name=name)
    shape = [n for d, n in enumerate(x.shape) if d not in gone]

    def body(*index: Expr) -> Expr:
        kept = iter(index)
        return element([const(0) if d in gone else next(kept) for d in range(x.rank)])

    return ctx.define(shape, body, dtype, name=name)


def _reduction(kind: _Kind) -> Lower:
    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        if kind.floats_only and not required(inputs, 0).dtype.is_float:
            raise Declined(f"{node.op_type} of integers is only defined for floats")

        def reduced(x: Tensor, axes: Sequence[int]) -> Element:
            # Extrema of booleans are those of their bytes.
            work = DType.U8 if x.dtype is DType.BOOL else x.dtype
            total = reduce_axes(kind.op, x, axes, lambda i: kind.before(cast(x.at(*i), work)))
            count = count_of(x, axes, work)
            return lambda i: cast(kind.after(total(i), count), x.dtype)

        return over_axes(ctx, node, inputs, reduced)

    return lower


def _square(e: Expr) -> Expr:
    return binary("mul", e, e)


def _mean(total: Expr, count: Expr) -> Expr:
    if total.dtype.is_float:
        return binary("div", total, count)
    # Of nothing it is 0: processors trap on division by zero. (`max` would be simplified: of sizes it is
    # known that what is computed has elements, not that what is summed has.)
    one, nothing = const(1, count.dtype), binary("eq", count, const(0, count.dtype))
    return binary("truncdiv", total, select(nothing, one, count))


def _root(total: Expr, count: Expr) -> Expr:
    if total.dtype.is_float:
        return unary("sqrt", total)
    return cast(unary("sqrt", cast(total, DType.F64)), total.dtype)


def _absolute(e: Expr) -> Expr:
    return unary("abs", e) if e.dtype.is_signed else e


def lower_log_sum_exp(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """log(sum(exp(x - m))) + m with m the maximum, or 0 where the maximum is infinite."""
    if not required(inputs, 0).dtype.is_float:
        raise Declined("ReduceLogSumExp is only defined for floats")
    return over_axes(ctx, node, inputs, _log_sum_exp)


def _log_sum_exp(x: Tensor, axes: Sequence[int]) -> Element:
    peak = reduce_axes("max", x, axes, lambda i: x.at(*i), "m")

    def element(index: Sequence[Expr]) -> Expr:
        top = peak(index)
        infinite = binary("eq", unary("abs", top), const(float("inf"), x.dtype))
        shift = select(infinite, const(0, x.dtype), top)
        total = reduce_axes("sum", x, axes, lambda i: unary("exp", binary("sub", x.at(*i), shift)))
        return binary("add", unary("log", total(index)), shift)

    return element


def extremum_index(x: Tensor, axis: int, op: str, last: bool) -> Element:
    """Position along an axis of the first or last extremum; the first NaN counts as one, as in NumPy."""
    extent = x.shape[axis]

    def element(index: Sequence[Expr]) -> Expr:
        best = reduce_axes(op, x, [axis], lambda i: x.at(*i), "m")(index)
        k = var(f"k{axis}", extent)
        value = x.at(*(k if d == axis else i for d, i in enumerate(index)))
        found = binary("eq", value, best)
        if x.dtype.is_float:
            found = binary("or", found, binary("ne", value, value))
        otherwise = const(-1) if last else extent
        return reduce("max" if last else "min", (k,), select(found, k, otherwise))

    return element


def _arg(op: str) -> Lower:
    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        x = required(inputs, 0)
        axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)
        ctx.require_some(x.shape[axis], [n for d, n in enumerate(x.shape) if d != axis])
        element = extremum_index(x, axis, op, attribute_int(node, "select_last_index", 0) != 0)
        keep = attribute_int(node, "keepdims", 1) != 0
        return [define_reduced(ctx, x, [axis], keep, element, INDEX)]

    return lower


def _softmax_axis(node: ir.Node, x: Tensor) -> int:
    if x.rank == 0:
        raise Declined(f"{node.op_type} of a scalar has no axis")
    return normalize_axis(attribute_int(node, "axis", -1), x.rank)


def lower_softmax(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """exp(x - max) / sum(exp(x - max)) along one axis."""
    x = required(inputs, 0)
    axis = _softmax_axis(node, x)
    peak = reduce_axes("max", x, [axis], lambda i: x.at(*i), "m")

    def power(index: Sequence[Expr]) -> Expr:
        return unary("exp", binary("sub", x.at(*index), peak(index)))

    total = reduce_axes("sum", x, [axis], power)

    def share(*index: Expr) -> Expr:
        if x.dtype not in (DType.F32, DType.F64):
            return binary("div", power(index), total(index))
        # One division for all of the axis; in types of few bits the inverse of a long sum would lose some.
        return binary("mul", power(index), binary("div", const(1, x.dtype), total(index)))

    return [ctx.define(x.shape, share, x.dtype)]


def lower_log_softmax(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """(x - max) - log(sum(exp(x - max))) along one axis."""
    x = required(inputs, 0)
    axis = _softmax_axis(node, x)
    peak = reduce_axes("max", x, [axis], lambda i: x.at(*i), "m")

    def shifted(index: Sequence[Expr]) -> Expr:
        return binary("sub", x.at(*index), peak(index))

    total = reduce_axes("sum", x, [axis], lambda i: unary("exp", shifted(i)))
    return [ctx.define(x.shape, lambda *i: binary("sub", shifted(i), unary("log", total(i))), x.dtype)]


def lower_hardmax(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """1 at the first maximum along an axis, 0 elsewhere."""
    x = required(inputs, 0)
    axis = _softmax_axis(node, x)
    position = extremum_index(x, axis, "max", last=False)

    def body(*index: Expr) -> Expr:
        here = binary("eq", index[axis], position(index))
        return select(here, const(1, x.dtype), const(0, x.dtype))

    return [ctx.define(x.shape, body, x.dtype)]


_KINDS = {
    "ReduceSum": _Kind("sum"),
    "ReduceMean": _Kind("sum", after=_mean),
    "ReduceMax": _Kind("max"),
    "ReduceMin": _Kind("min"),
    "ReduceProd": _Kind("prod"),
    "ReduceL1": _Kind("sum", before=_absolute),
    "ReduceL2": _Kind("sum", before=_square, after=_root),
    "ReduceSumSquare": _Kind("sum", before=_square),
    "ReduceLogSum": _Kind("sum", after=lambda total, count: unary("log", total), floats_only=True),
}


def _along(node: Operands) -> list[int]:
    return [node.attribute("axis", -1)]


def _left_over(node: Operands, axes: set[int]) -> list[Tie | None]:
    """Ties of a reduction: axes that it does not reduce, with their places in the output."""
    rank, keep = len(node.dims(input_(0)) or ()), node.attribute("keepdims", 1)
    rest = [d for d in range(rank) if d not in axes]
    return [same(node, (input_(0), d), (output(0), d if keep else k)) for k, d in enumerate(rest)]


def _reduction_ties(node: Operands) -> list[Tie | None]:
    dims, axes = node.dims(input_(0)), node.constant(1)
    if dims is None:
        return []
    if axes is None and len(node.node.inputs) > 1 and node.node.inputs[1] is not None:
        raise Whole("its axes are computed while the model runs")
    if axes is None or not axes.size:
        idle = node.attribute("noop_with_empty_axes", 0)
        return _left_over(node, set() if idle else set(range(len(dims))))
    return _left_over(node, {int(a) % len(dims) for a in axes.reshape(-1)})


def _arg_ties(node: Operands) -> list[Tie | None]:
    dims = node.dims(input_(0))
    return [] if dims is None else _left_over(node, {node.attribute("axis", 0) % len(dims)})


_REDUCTION, _ARG, _SOFTMAX = PruningFacts(_reduction_ties), PruningFacts(_arg_ties), except_axes(_along)


OPS = (
    *(Op(name=name, lower=_reduction(kind), pruning=_REDUCTION) for name, kind in _KINDS.items()),
    Op(name="ReduceLogSumExp", lower=lower_log_sum_exp, pruning=_REDUCTION),
    Op(name="ArgMax", lower=_arg("max"), pruning=_ARG),
    Op(name="ArgMin", lower=_arg("min"), pruning=_ARG),
    Op(name="Softmax", lower=lower_softmax, pruning=_SOFTMAX),
    Op(name="LogSoftmax", lower=lower_log_softmax, pruning=_SOFTMAX),
    Op(name="Hardmax", lower=lower_hardmax, pruning=_SOFTMAX),
)
