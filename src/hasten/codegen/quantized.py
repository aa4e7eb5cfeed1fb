"""Products of quantized operands: sums of bytes, exact in i32, instead of sums of what the bytes stand for.

A quantized operand is (x - zero) * scale of bytes x. Where both operands of a product are of that form,

    sum (x - zero) * scale_x * w * scale_w  =  (sum x * w  -  zero * sum w) * scale_x * scale_w

so that what is summed are bytes, and the rest happens once for each element of the result, in the epilogue.
Weights with zero points of their own take the sums of the rows as well:

    sum (x - zero) * (w - offset)  =  sum x * w  -  zero * sum (w - offset)  -  offset * sum x

Sums of differences of bytes in I32, as MatMulInteger has them, are the same without scales.

It is a rewriting of tensor programs, before fusion and without knowing operators: where zero points and
scales lie (one for all, one for each row or column) follows from the variables that they depend on. Sums
over the window of a depthwise convolution, which no register tile computes, become sums of whole numbers in
f32, which are exact as well.

Quantizing multiplies by the reciprocal of a constant scale: a division takes as long as ten products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hasten.codegen.codes import dequantized
from hasten.codegen.fuse import is_movement
from hasten.codegen.tiles import group
from hasten.loops.descriptions import Gemm, expression
from hasten.loops.dtypes import BYTES, INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    cast,
    const,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)
from hasten.loops.program import Definition, Program
from hasten.loops.tabulate import tabulate

F32, I32 = DType.F32, DType.I32
UNSIGNED, SIGNED = BYTES

ONE = const(1.0, F32)

SHIFT = 128
"""What turns signed bytes into unsigned ones."""

LARGEST = 255 * 128
"""Most that one product of bytes adds to a sum."""

LARGEST_SHIFTED = 255 * 255
"""The same where weights have zero points."""

EXACT_IN_F32 = 1 << 24
"""Whole numbers up to which f32 holds every one."""


@dataclass(frozen=True)
class Quantized:
    """An operand (x - zero) * scale, and what it is outside of padding.

    Attributes:
        x: load of a byte.
        zero: the zero point as I32, or None for 0.
        scale: the scale.
        inside: where it is not padding, or None for everywhere.
    """

    x: Load
    zero: Expr | None
    scale: Expr
    inside: Expr | None = None


def quantize_products(program: Program) -> Program:
    """The program with products of quantized operands as products of bytes.

    Products stay as they are whose second operand is computed or has scales along the depth, or whose sums
    could leave i32.
    """
    of_bytes = {DType.stored(a.dtype) for a in program.constants.values()}
    of_bytes |= {d.dtype for d in program.definitions.values()}
    if not of_bytes & set(BYTES):
        return _with_plain_sums(program)
    return _with_plain_sums(_Rewriter(program).program())


def _with_plain_sums(program: Program) -> Program:
    """Products whose sums are integers, and whose operands are none of bytes, as plain loops."""
    plain = {
        name: replace(d, body=expression(d.body))
        for name, d in program.definitions.items()
        if isinstance(d.body, Gemm) and d.body.dtype is I32
    }
    return replace(program, definitions={**program.definitions, **plain}) if plain else program


class _Rewriter:
    """Rewrites one program; holds what is made on the way."""

    def __init__(self, program: Program) -> None:
        self.source = program
        self.constants = dict(program.constants)
        self.definitions: dict[str, Definition] = {}

    def program(self) -> Program:
        """The rewritten program."""
        for d in self.source.definitions.values():
            for made in self.rewritten(d):
                self.definitions[made.name] = made
        return replace(self.source, constants=self.constants, definitions=self.definitions)

    def rewritten(self, d: Definition) -> list[Definition]:
        """The definitions that take the place of one."""
        if isinstance(d.body, Gemm) and d.dtype is I32:
            return self.product(d, d.body) or [d]
        if isinstance(d.body, Gemm) and d.dtype is F32:
            return self.product(d, d.body) or [replace(d, body=self.with_codes(d.body))]
        if isinstance(d.body, Expr):
            body = transform(d.body, self.visit)
            return [d if body is d.body else replace(d, body=body)]
        return [d]

    def visit(self, e: Expr) -> Expr | None:
        """What replaces a part of a plain definition, or None."""
        if isinstance(e, Reduce):
            return self.window(e)
        if isinstance(e, Op) and e.op == "div" and self.is_constant_scalar(e.args[1]):
            scale = e.args[1]
            assert isinstance(scale, Load)
            name = f"{scale.buffer}_reciprocal"
            self.constants[name] = np.float32(1) / self.source.constants[scale.buffer]
            return Op(F32, "mul", (transform(e.args[0], self.visit), replace(scale, buffer=name)))
        return None

    def is_constant_scalar(self, e: Expr) -> bool:
        """Whether an expression is a constant of one finite element of f32 that is not 0."""
        if not isinstance(e, Load) or e.dtype is not F32 or e.buffer not in self.source.constants:
            return False
        array = self.source.constants[e.buffer]
        return array.size == 1 and bool(np.isfinite(array).all() and (array != 0).all())

    def product(self, d: Definition, g: Gemm) -> list[Definition] | None:
        """Sums of bytes, the corrections of their columns, and the product in terms of them."""
        operands = self.operands(g)
        if operands is None:
            return None
        a, w = operands
        made, x, zero = self.unsigned(a)
        wide = _as_i32(zero)
        inner: Expr = x
        if a.inside is not None:
            if not isinstance(wide, Const):
                return None  # what is outside must be a number
            inner = Op(UNSIGNED, "select", (a.inside, x, const(wide.value, UNSIGNED)))
        sums = Definition(f"{d.name}_sums", I32, d.vars, replace(g, a=inner, b=w.x), d.origin)
        made.append(sums)
        columns = (*g.batch, g.column)
        value: Expr = Load(I32, sums.name, d.vars)
        if not isinstance(wide, Const) or wide.value:
            value = Op(I32, "sub", (value, self.correction(d.name, g, columns, w, wide)))
        if w.zero is not None:
            by_row = Reduce(I32, "sum", (*g.taps, g.depth), cast(inner, I32))
            rows = Definition(f"{d.name}_row_sums", I32, (*g.batch, *g.rows), by_row, d.origin)
            made.append(rows)
            value = Op(I32, "sub", (value, Op(I32, "mul", (w.zero, Load(I32, rows.name, rows.vars)))))
        if d.dtype is I32:
            return [*made, replace(d, body=value)]
        scale = self.scale(d.name, columns, a.scale, w.scale)
        return [*made, replace(d, body=Op(F32, "mul", (cast(value, F32), scale)))]

    def with_codes(self, g: Gemm) -> Gemm:
        """The product with constant weights said as what their codes stand for, in place of their tensor."""
        b = self.expanded(g.b)
        return replace(g, b=b) if b != g.b and self.known(b) and dequantized(b) else g

    def operands(self, g: Gemm) -> tuple[Quantized, Quantized] | None:
        """Both operands of a product, if sums of bytes can compute it."""
        a, w = self.quantized(g.a), self.signed(self.quantized(g.b))
        extents = [constant_int(v.extent) for v in (*g.taps, g.depth, g.column, *g.batch)]
        if a is None or w is None or None in extents:
            return None
        summed = {*g.taps, g.depth}
        outside = [e for e in (a.zero, a.scale, w.scale, w.zero) if e is not None]
        if w.inside is not None or any(free_vars(e) & summed for e in outside):
            return None
        if not all(self.known(e) for e in (w.x, w.scale)):
            return None
        depth = math.prod(n or 1 for n in extents[: len(g.taps) + 1])
        # Whole groups are read, beyond the last element too: of memory that is ours.
        callers = {*self.source.inputs, *self.source.outputs}
        foreign = a.x.buffer in callers and (extents[len(g.taps)] or 1) % group(UNSIGNED)
        most = LARGEST if w.zero is None else LARGEST_SHIFTED
        return None if depth * most >= 1 << 31 or foreign else (a, w)

    def signed(self, w: Quantized | None) -> Quantized | None:
        """Constant weights in signed bytes with constant zero points, or None where they are not constant."""
        if w is None or w.x.buffer not in self.constants or not self.known(_as_i32(w.zero)):
            return None
        if w.x.dtype is SIGNED:
            return w
        name = f"{w.x.buffer}_signed"
        self.constants[name] = (self.constants[w.x.buffer].astype(np.int16) - SHIFT).astype(np.int8)
        return replace(w, x=Load(SIGNED, name, w.x.index), zero=_moved(w.zero, -SHIFT))

    def quantized(self, e: Expr) -> Quantized | None:
        """An operand as a quantized one, seen through movement."""
        e = self.expanded(e)
        inside: Expr | None = None
        if isinstance(e, Op) and e.op == "select":
            inside, e, outside = e.args
            if not (isinstance(outside, Const) and outside.value == 0):
                return None
        if not isinstance(e, Op) or (e.dtype is not I32 and e.op != "mul"):
            return None
        difference, scale = (e, ONE) if e.dtype is I32 else e.args
        zero: Expr | None = None
        if isinstance(difference, Op) and difference.op == "sub":
            difference, shift = difference.args
            zero = self.zero_point(shift)
            if zero is None:
                return None
            zero = None if isinstance(zero, Const) and zero.value == 0 else zero
        x = difference.args[0] if isinstance(difference, Op) and difference.op == "cast" else None
        if not isinstance(x, Load) or x.dtype not in BYTES:
            return None
        return Quantized(x, zero, scale, inside)

    def zero_point(self, e: Expr) -> Expr | None:
        """A zero point, in f32 or I32, as I32: a number where it is known, or None where it is no integer."""
        if not isinstance(e, Op) or e.op != "cast" or e.args[0].dtype not in BYTES:
            return None
        (stored,) = e.args
        if isinstance(stored, Load) and stored.buffer in self.source.constants:
            array = self.source.constants[stored.buffer]
            if (array == array.reshape(-1)[:1]).all():
                return const(int(array.reshape(-1)[0]), I32)
        return cast(stored, I32)

    def expanded(self, e: Expr) -> Expr:
        """An operand with movement and de-quantization in place of the tensors that they define."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Load) or node.buffer not in self.source.definitions:
                return None
            d = self.source.definitions[node.buffer]
            if not isinstance(d.body, Expr):
                return None
            if not (_is_plain_movement(d.body) or dequantized(d.body) or _is_centered(d.body)):
                return None
            index = [self.expanded(i) for i in node.index]
            return self.expanded(substitute(d.body, dict(zip(d.vars, index, strict=True))))

        return transform(e, visit)

    def unsigned(self, a: Quantized) -> tuple[list[Definition], Load, Expr | None]:
        """The first operand in unsigned bytes with its zero point, and what must be defined for that."""
        if a.x.dtype is UNSIGNED:
            return [], a.x, a.zero
        name = f"{a.x.buffer}_unsigned"
        made: list[Definition] = []
        if name not in self.definitions:
            info = self.source.info(a.x.buffer)
            variables = tuple(Var(INDEX, f"i{n}", extent) for n, extent in enumerate(info.shape))
            wide = cast(Load(SIGNED, a.x.buffer, variables), I32)
            body = cast(Op(I32, "add", (wide, const(SHIFT, I32))), UNSIGNED)
            made.append(Definition(name, UNSIGNED, variables, body, "bytes without sign"))
        return made, Load(UNSIGNED, name, a.x.index), _moved(a.zero, SHIFT)

    def scale(self, name: str, columns: tuple[Var, ...], a: Expr, w: Expr) -> Expr:
        """The product of both scales: a constant where it is known."""
        both = Op(F32, "mul", (a, w))
        if not free_vars(both) <= set(columns) or not self.known(both):
            return both
        return self.constant(f"{name}_scales", F32, columns, both)

    def correction(self, name: str, g: Gemm, columns: tuple[Var, ...], w: Quantized, zero: Expr) -> Expr:
        """Zero point times the sum of what a column's weights stand for, in steps."""
        weight = cast(w.x, I32)
        if w.zero is not None:
            weight = Op(I32, "sub", (weight, w.zero))
        weights = Reduce(I32, "sum", (*g.taps, g.depth), weight)
        if isinstance(zero, Const):
            return self.constant(f"{name}_offsets", I32, columns, Op(I32, "mul", (weights, zero)))
        return Op(I32, "mul", (self.constant(f"{name}_column_sums", I32, columns, weights), zero))

    def known(self, e: Expr) -> bool:
        """Whether everything that an expression reads is a constant."""
        return all(n.buffer in self.constants for n in walk(e) if isinstance(n, Load))

    def constant(self, name: str, dtype: DType, variables: tuple[Var, ...], e: Expr) -> Load:
        """A new constant that holds an expression's values, and its load."""
        self.constants[name] = tabulate(e, variables, self.constants)
        return Load(dtype, name, variables)

    def window(self, r: Reduce) -> Expr | None:
        """A sum of products of quantized bytes as a sum of whole numbers in f32, scaled afterwards."""
        if r.dtype is not F32:
            return None  # sums of whole numbers are exact as they are
        if r.op != "sum" or not isinstance(r.body, Op) or r.body.op != "mul":
            return None
        a, w = (self.quantized(e) for e in r.body.args)
        count = [constant_int(v.extent) for v in r.vars]
        if a is None or w is None or None in count or w.inside is not None:
            return None
        whole = self.whole(w)
        summed = set(r.vars)
        if any(e is not None and free_vars(e) & summed for e in (a.zero, a.scale, w.scale)):
            return None
        most = LARGEST if w.zero is None else LARGEST_SHIFTED
        if whole is None or math.prod(n or 1 for n in count) * most >= EXACT_IN_F32:
            return None
        x: Expr = cast(a.x, F32)
        if a.zero is not None:
            x = Op(F32, "sub", (x, cast(a.zero, F32)))
        if a.inside is not None:
            x = Op(F32, "select", (a.inside, x, const(0.0, F32)))
        product = Op(F32, "mul", (x, whole))
        return Op(F32, "mul", (replace(r, body=product), Op(F32, "mul", (a.scale, w.scale))))

    def whole(self, w: Quantized) -> Load | None:
        """Constant weights less their zero points as whole numbers in f32."""
        if w.x.buffer not in self.constants:
            return None
        codes = self.constants[w.x.buffer].astype(np.float32)
        name, zero = f"{w.x.buffer}_whole", _as_i32(w.zero)
        if isinstance(zero, Const):
            codes -= np.float32(zero.value)
            name = f"{w.x.buffer}_less_{zero.value}_whole" if zero.value else name
        else:
            stored = zero.args[0] if isinstance(zero, Op) and zero.op == "cast" else None
            if not isinstance(stored, Load) or not self.known(stored) or len(stored.index) != 1:
                return None
            if w.x.index.count(stored.index[0]) != 1:
                return None
            axis = w.x.index.index(stored.index[0])
            offsets = self.constants[stored.buffer].astype(np.float32)
            codes -= offsets.reshape([-1 if d == axis else 1 for d in range(codes.ndim)])
            name = f"{w.x.buffer}_less_{stored.buffer}_whole"
        self.constants[name] = codes
        return replace(w.x, dtype=F32, buffer=name)


def _as_i32(zero: Expr | None) -> Expr:
    return const(0, I32) if zero is None else zero


def _is_centered(e: Expr) -> bool:
    """Whether an element is a byte in 32 bits, less a zero point of bytes or not."""
    terms = e.args if isinstance(e, Op) and e.op == "sub" else (e,)
    return all(
        isinstance(t, Op) and t.op == "cast" and t.dtype is I32 and t.args[0].dtype in BYTES for t in terms
    )


def _moved(zero: Expr | None, by: int) -> Expr | None:
    """The zero point of bytes that were all moved by a number; None for 0."""
    wide = _as_i32(zero)
    if isinstance(wide, Const):
        moved = int(wide.value) + by
        return const(moved, I32) if moved else None
    return Op(I32, "add", (wide, const(by, I32)))


def _is_plain_movement(e: Expr) -> bool:
    """Whether an element is only fetched, or a number elsewhere.

    A border of computed elements, such as a zero point known at run time, is written to memory: row pointers
    of products cannot choose between two tensors.
    """
    chosen = [n for n in walk(e) if isinstance(n, Op) and n.op == "select"]
    return is_movement(e) and all(isinstance(n.args[2], Const) for n in chosen if n.dtype is not INDEX)
