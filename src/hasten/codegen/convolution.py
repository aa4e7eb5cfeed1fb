"""Which stages are 3x3 convolutions that Winograd's algorithm computes."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.algorithm import WINDOW
from hasten.codegen.fuse import operand_load
from hasten.codegen.stage import Stage
from hasten.codegen.window import find_window
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Var, binary, const, constant_int, free_vars, substitute

STORED = (DType.F32, DType.BF16)
"""Element types of inputs and results; transforms, weights and sums are f32."""


@dataclass(frozen=True)
class Convolution:
    """A 3x3 convolution whose window moves by one element.

    Attributes:
        rows: image, height and width of the result.
        column: channel of the result.
        depth: channel of the input.
        y, x: place in the padded input: place of the result plus tap.
        load: element of the input at image, depth, y and x.
        lowest, beyond: first value and first value beyond the last of y and x for which that is inside.
    """

    rows: tuple[Var, Var, Var]
    column: Var
    depth: Var
    y: Var
    x: Var
    load: Load
    lowest: tuple[Expr, Expr]
    beyond: tuple[Expr, Expr]

    def inside(self, y: Expr, x: Expr) -> Expr:
        """Whether a place in the padded input has an element."""
        condition: Expr = const(True, DType.BOOL)
        for at, low, high in zip((y, x), self.lowest, self.beyond, strict=True):
            if constant_int(low) != 0:
                condition = binary("and", condition, binary("le", low, at))
            condition = binary("and", condition, binary("lt", at, high))
        return condition


def find_convolution(stage: Stage) -> Convolution | None:
    """The stage as a 3x3 convolution of stride and dilation 1 over floats, or None if it is none."""
    g = stage.body
    if not isinstance(g, Gemm) or g.batch or len(g.rows) != 3 or len(g.taps) != 2:
        return None
    if stage.dtype not in STORED or g.a.dtype not in STORED or g.b.dtype is not DType.F32:
        return None
    if any(constant_int(t.extent) != WINDOW for t in g.taps) or constant_int(g.depth.extent) is None:
        return None
    load = operand_load(g.a, g.depth)
    if load is None or sum(g.depth in free_vars(i) for i in load.index) != 1:
        return None
    image, oh, ow = g.rows
    (kh, kw) = g.taps
    assert oh.extent is not None and ow.extent is not None
    y, x = Var(INDEX, "y", oh.extent + (WINDOW - 1)), Var(INDEX, "x", ow.extent + (WINDOW - 1))
    # The element depends on place and tap by their sum alone: then the window moves by one.
    element = substitute(g.a, {oh: y - kh, ow: x - kw})
    if free_vars(element) & {oh, ow, kh, kw}:
        return None
    lowest: list[Expr] = [const(0), const(0)]
    beyond: list[Expr] = [oh.extent + (WINDOW - 1), ow.extent + (WINDOW - 1)]
    if not isinstance(element, Load):
        window = find_window("sum", (y, x), element)
        if window is None or not isinstance(window.body, Load):
            return None
        for d, v in enumerate((y, x)):
            lowest[d], beyond[d] = window.ranges.get(v, (lowest[d], beyond[d]))
        element = window.body
    return Convolution(
        (image, oh, ow), g.column, g.depth, y, x, element, (lowest[0], lowest[1]), (beyond[0], beyond[1])
    )
