"""Layer normalization (Ba et al. 2016, https://arxiv.org/abs/1607.06450) from its arithmetic.

d = x - mean(x);  y = d / sqrt(mean(d * d) + epsilon) * scale + bias
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts, integer, integers
from hasten.passes.rule import (
    Builder,
    Const,
    Declined,
    Either,
    Match,
    Op,
    Pattern,
    Rule,
    Var,
)
from hasten.passes.scalars import number, scalar, wider
from hasten.passes.sizes import Dims

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def mean(of: Pattern, name: str) -> Op:
    """A `ReduceMean` that keeps its axes, which are constant."""
    return Op(
        "ReduceMean",
        (of, Var(f"{name}_axes")),
        name=name,
        test=lambda node: integer(node, "keepdims", 1) == 1,
    )


def square(of: Pattern) -> Either:
    """The square of `of`, as a product or a power."""
    return Either((Op("Pow", (of, number(2.0, 0.0))), Op("Mul", (of, of))))


def over_root(of: Pattern, variance: Pattern) -> Either:
    """`of` divided by the root of `variance` plus a constant epsilon, in each spelling."""
    moved = Op("Add", (variance, scalar("epsilon")))
    root = Op("Sqrt", (moved,))
    inverse = Either(
        (
            Op("Reciprocal", (root,)),
            Op("Div", (number(1.0, 0.0), root)),
            Op("Pow", (moved, number(-0.5, 0.0))),
        )
    )
    return Either((Op("Div", (of, root)), Op("Mul", (of, inverse))))


_CENTERED = Op("Sub", (Var("x"), mean(Var("x"), "mean")), name="centered")
_NORMAL = over_root(_CENTERED, mean(square(_CENTERED), "variance"))
_SCALED = Op("Mul", (_NORMAL, Var("scale")))
_PATTERN = Either(
    (
        Op("Add", (_SCALED, Var("bias"))),
        _SCALED,
        Op("Add", (_NORMAL, Const("bias"))),
        _NORMAL,
    )
)


def normalized_axis(node: ir.Node, dims: Dims) -> int | None:
    """First of the axes over which a mean is taken, if they are the last ones; else None."""
    axes = integers(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant_value(node.inputs[1])
        axes = None if array is None else tuple(int(a) for a in array.reshape(-1))
    if not axes:
        return None
    rank = len(dims)
    positive = sorted(a % rank for a in axes)
    return positive[0] if positive == list(range(positive[0], rank)) else None


def trailing(value: ir.Value, sizes: Dims, facts: Facts, build: Builder) -> ir.Value | None:
    """`value` with exactly the trailing dimensions `sizes`, or None where it does not fit.

    A constant with leading ones is stored without them.
    """
    dims = facts.dims(value)
    if dims == sizes:
        return value
    if dims is None or len(dims) <= len(sizes) or dims[-len(sizes) :] != sizes:
        return None
    array = constant_value(value)
    if array is None or any(d != 1 for d in dims[: -len(sizes)]):
        return None
    name = (value.name or "parameter").rsplit("/", 1)[-1]
    return build.constant(array.reshape([int(d) for d in sizes]), name)


def ones(like: ir.Value, sizes: Dims, build: Builder) -> ir.Value | None:
    """A scale that changes nothing, or None where its size is not a number."""
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) != len(sizes) or like.dtype is None:
        return None
    return build.constant(np.ones(numbers, dtype=like.dtype.numpy()), "scale")


def _rewrite(match: Match, facts: Facts, build: Builder) -> ir.Value | Declined:
    source = match.values["x"]
    dims = facts.dims(source)
    if dims is None:
        return Declined("the rank of the normalized value is unknown")
    axis = normalized_axis(match.nodes["mean"], dims)
    if axis is None or axis != normalized_axis(match.nodes["variance"], dims):
        return Declined("mean and variance are not taken over the same, last axes")
    reason = wider(facts, match.output, source)
    if reason is not None:
        return Declined(reason)
    if source.dtype not in FLOATS:
        return Declined(f"LayerNormalization computes in float32, the value is {source.dtype}")
    sizes = dims[axis:]
    fitted: list[ir.Value | None] = []
    for name in ("scale", "bias"):
        value = match.values.get(name)
        if value is not None:
            fitted.append(trailing(value, sizes, facts, build))
        elif name == "scale":
            fitted.append(ones(source, sizes, build))
        else:
            break
        if fitted[-1] is None:
            return Declined(f"the {name} is {facts.dims(value)}, not of shape {sizes}")
    epsilon = float(np.asarray(match.constant("epsilon")).reshape(-1)[0])
    attributes = {"axis": axis - len(dims), "epsilon": epsilon}
    return build.op("LayerNormalization", [source, *fitted], attributes)


LAYER_NORM = Rule("fuse LayerNormalization", _PATTERN, _rewrite)
