"""A product or convolution cut out of its program, so that its kernel can be built and measured by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hasten.codegen.lower_stages import Lowered
from hasten.codegen.partition import sizes_of
from hasten.codegen.schedule import Product
from hasten.codegen.stage import ACCUMULATOR
from hasten.codegen.tiles import total_of
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import BYTES, DType
from hasten.loops.expr import Expr, Load, Size, cast, constant_int, size, transform
from hasten.loops.program import Definition, Program, TensorInfo

WEIGHT_STEPS = 32
"""Root mean square of random weights of bytes: about that of calibrated ones."""


def product_alone(product: Product, lowered: Lowered, constants: Mapping[str, np.ndarray]) -> Program:
    """The program of one product.

    Every tensor has its dimensions in the order in which they lie in memory in the whole program, so that
    the kernel walks the same addresses although inputs and results are row-major. The weights are numbers
    of about their size, since what they are makes no difference to the time. Where the first operand is
    stored in bf16, the product is of bf16 and f32: so the code generator wants it; see `well_formed`.

    Args:
        product: one of the kernels of `lowered`.
        lowered: the whole program, lowered.
        constants: of the whole program before that.

    Returns:
        A program with the tensors that the product reads as inputs, and for each symbolic size, those that
        the whole program derives from others too, an input of that length, which binds it.
    """
    stage, layouts = product.stage, lowered.layouts
    g = stage.body
    assert isinstance(g, Gemm)
    known = {**constants, **lowered.constants}  # epilogues read some that lowering made
    inputs: dict[str, TensorInfo] = {}
    kept: dict[str, np.ndarray] = {}

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.buffer == ACCUMULATOR:
            return None
        index = tuple(transform(i, visit) for i in node.index)
        if node.buffer in known:
            kept[node.buffer] = known[node.buffer]
            return Load(node.dtype, node.buffer, index)
        layout = layouts[node.buffer]
        shape = tuple(layout.shape[d] for d in layout.order)
        inputs[node.buffer] = TensorInfo(node.buffer, layout.dtype, shape)
        return Load(node.dtype, node.buffer, tuple(index[d] for d in layout.order))

    a = transform(g.a, visit)
    weights = None if product.shape.packs or product.shape.codes else _weights(g)
    if weights is None:
        b = transform(g.b, visit)
    else:
        b = Load(g.b.dtype, f"{stage.name} weights", (*g.batch, g.column, *g.taps, g.depth))
        kept[f"{stage.name} weights"] = weights
    variables = tuple(stage.vars[d] for d in layouts[stage.name].order)
    body = Gemm(g.batch, g.rows, g.column, g.taps, g.depth, a, b)
    name, dtype = f"{stage.name} product", total_of(g.a.dtype)
    made = [Definition(name, dtype, variables, body, "product")]
    if stage.epilogue is not None:
        element = Load(dtype, name, variables)
        finished = transform(
            transform(stage.epilogue, visit), lambda n: element if _is_accumulator(n) else None
        )
        made.append(Definition(stage.name, stage.dtype, variables, finished, "epilogue"))
    shapes = [n for i in inputs.values() for n in i.shape]
    evaluated = [stage.epilogue] if stage.epilogue is not None else []
    for n in sorted(sizes_of([*shapes, *stage.shape, a, b, *evaluated])):
        inputs[f"size {n}"] = TensorInfo(f"size {n}", DType.U8, (size(n),))
    return Program(
        inputs=inputs,
        constants=kept,
        definitions={d.name: d for d in made},
        outputs=[made[-1].name],
    )


def well_formed(program: Program) -> Program:
    """A program by `product_alone` as the interpreter takes it: operands that are floats have one type."""
    definitions = {}
    for name, d in program.definitions.items():
        g = d.body
        if isinstance(g, Gemm) and g.a.dtype.is_float and g.a.dtype is not g.b.dtype:
            definitions[name] = replace(d, body=replace(g, a=cast(g.a, g.b.dtype)))
        else:
            definitions[name] = d
    return replace(program, definitions=definitions)


def symbolic_sizes(program: Program) -> tuple[str, ...]:
    """Names of the sizes that a program by `product_alone` takes."""
    return tuple({n.name: None for i in program.inputs.values() for n in i.shape if isinstance(n, Size)})


def _is_accumulator(node: Expr) -> bool:
    return isinstance(node, Load) and node.buffer == ACCUMULATOR


def _weights(g: Gemm) -> np.ndarray | None:
    """Numbers for a constant second operand [batch, column, tap, depth], or None where its size is open."""
    shape = [constant_int(v.extent) for v in (*g.batch, g.column, *g.taps, g.depth)]
    known = [n for n in shape if n is not None]
    if len(known) < len(shape):
        return None
    numbers = np.random.default_rng(0).standard_normal(known, np.float32)
    if g.b.dtype in BYTES:
        return np.asarray(np.clip(np.rint(numbers * WEIGHT_STEPS), -127, 127)).astype(np.int8)
    terms = math.prod(known[len(g.batch) + 1 :])
    # Numbers that the type of the products has, as if they were packed already.
    return np.asarray(numbers / math.sqrt(terms)).astype(g.a.dtype.numpy).astype(g.b.dtype.numpy)
