"""A product or convolution cut out of its program, so that its kernel can be built and measured by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hasten.codegen.codes import kept_as_codes
from hasten.codegen.layout import Layouts
from hasten.codegen.partition import sizes_of
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Load, Size, cast, constant_int, size, transform, walk
from hasten.loops.program import Definition, Program, TensorInfo


def product_alone(stage: Stage, layouts: Layouts, constants: Mapping[str, np.ndarray]) -> Program:
    """The program of one contraction stage.

    Every tensor has its dimensions in the order in which they lie in memory in the whole program, so that
    the kernel walks the same addresses although inputs and results are row-major. The weights are numbers
    of about their size, since what they are makes no difference to the time. Where the first operand is
    stored in bf16, the product is of bf16 and f32: so the code generator wants it; see `well_formed`.

    Args:
        stage: a stage whose body is a `Gemm`, its second operand not packed.
        layouts: of the tensors that it reads and writes.
        constants: of the whole program.

    Returns:
        A program with the tensors that the stage reads as inputs, and for each symbolic size, also those that
        the whole program derives from others, an input of that length, which binds it.
    """
    g = stage.body
    assert isinstance(g, Gemm)
    inputs: dict[str, TensorInfo] = {}
    kept: dict[str, np.ndarray] = {}

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.buffer == ACCUMULATOR:
            return None
        index = tuple(transform(i, visit) for i in node.index)
        if node.buffer in constants:
            kept[node.buffer] = constants[node.buffer]
            return Load(node.dtype, node.buffer, index)
        layout = layouts[node.buffer]
        shape = tuple(layout.shape[d] for d in layout.order)
        inputs[node.buffer] = TensorInfo(node.buffer, layout.dtype, shape)
        return Load(node.dtype, node.buffer, tuple(index[d] for d in layout.order))

    a = transform(g.a, visit)
    weights = _weights(g, constants) if kept_as_codes(g, constants.keys()) is None else None
    if weights is None:
        b = transform(g.b, visit)
    else:
        name = f"{stage.name} weights"
        b = Load(g.b.dtype, name, (*g.batch, g.column, *g.taps, g.depth))
        kept[name] = weights
    variables = tuple(stage.vars[d] for d in layouts[stage.name].order)
    body = Gemm(g.batch, g.rows, g.column, g.taps, g.depth, a, b)
    product = f"{stage.name} product"
    made = [Definition(product, g.b.dtype, variables, body, "product")]
    if stage.epilogue is not None:
        element = Load(g.b.dtype, product, variables)
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
    """A program by `product_alone` as the interpreter takes it: operands of products have one type."""
    definitions = {}
    for name, d in program.definitions.items():
        g = d.body
        if isinstance(g, Gemm) and g.a.dtype is not g.b.dtype:
            definitions[name] = replace(d, body=replace(g, a=cast(g.a, g.b.dtype)))
        else:
            definitions[name] = d
    return replace(program, definitions=definitions)


def symbolic_sizes(program: Program) -> tuple[str, ...]:
    """Names of the sizes that a program by `product_alone` takes."""
    return tuple({n.name: None for i in program.inputs.values() for n in i.shape if isinstance(n, Size)})


def _is_accumulator(node: Expr) -> bool:
    return isinstance(node, Load) and node.buffer == ACCUMULATOR


def _weights(g: Gemm, constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Numbers for the second operand as [batch, column, tap, depth], or None where it is computed."""
    variables = (*g.batch, g.column, *g.taps, g.depth)
    shape = [constant_int(v.extent) for v in variables]
    known = [n for n in shape if n is not None]
    read = {n.buffer for n in walk(g.b) if isinstance(n, Load)}
    if len(known) < len(shape) or not read <= constants.keys():
        return None
    numbers = np.random.default_rng(0).standard_normal(known, np.float32)
    terms = math.prod(known[len(g.batch) + 1 :])
    # Numbers that the type of the products has, as if they were packed already.
    return np.asarray(numbers / math.sqrt(terms)).astype(g.a.dtype.numpy).astype(g.b.dtype.numpy)
