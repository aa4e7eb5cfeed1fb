"""Prints loop nests as C that a person can read: vector types, plain loops, names from the graph."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from hasten.codegen.c_helpers import helper_name, helper_source, vector_type
from hasten.codegen.kernel import FAULT_PARAM
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    GROUPS,
    Address,
    Bounded,
    Const,
    Expr,
    Load,
    Op,
    Ramp,
    Reduce,
    Size,
    Var,
    children,
)
from hasten.loops.nest import (
    Call,
    Comment,
    Declare,
    For,
    Function,
    If,
    Let,
    Param,
    Prefetch,
    Stmt,
    Store,
    size_parameter,
)
from hasten.loops.simplify import is_nonnegative

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "truncdiv": "/",
    "bitand": "&", "bitor": "|", "bitxor": "^", "shl": "<<", "shr": ">>",
    "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
_PRECEDENCE = {
    "mul": 12, "div": 12, "truncdiv": 12, "add": 11, "sub": 11, "shl": 10, "shr": 10,
    "lt": 9, "le": 9, "eq": 8, "ne": 8, "bitand": 7, "bitxor": 6, "bitor": 5, "and": 4, "or": 3,
}  # fmt: skip
_LOGIC = {"and": "&&", "or": "||", "xor": "!="}
_VECTOR_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_ATOM = 20
_WIDTH = 110

Expand = Callable[[str, tuple[Expr, ...]], Expr | None]


def emit_functions(
    functions: Sequence[Function], expand: Expand, *, exported: Iterable[str] = (), prototypes: str = ""
) -> str:
    """C source of some functions, with the helpers that they use in front.

    Args:
        functions: in an order in which callees come first.
        expand: gives elementary functions as expressions (`codegen.vector_math`), or None for libm.
        exported: names that other files call; the rest is static.
        prototypes: declarations of what other files define.
    """
    printer = _Printer(expand)
    shared = frozenset(exported)
    texts = [printer.function(f, shared) for f in functions]
    helpers = printer.helper_text()
    head = '#include <math.h>\n#include <stdint.h>\n#include <string.h>\n\n#include "pool.h"\n'
    return "\n".join([head, helpers, prototypes, "", *texts])


def size_text(e: Expr) -> str:
    """C text of an expression of sizes; divisions and extrema are calls."""
    return _Printer(lambda op, args: None).text(e)[0]


def declaration(f: Function) -> str:
    """The C prototype of a function."""
    text = f"void {f.name}({', '.join(_parameter(p) for p in f.params)})"
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * 8, break_long_words=False)


def _parameter(p: Param) -> str:
    if p == FAULT_PARAM:
        return "hasten_fault *fault"
    if p.depth == 0:
        return f"{p.dtype.c_name} {p.name}"
    constness = "" if p.writable else "const "
    if p.depth == 1:
        return f"{constness}{p.dtype.c_name} *{'' if p.shared else 'restrict '}{p.name}"
    return f"const {p.dtype.c_name} *const *{p.name}"


class _Printer:
    """Prints functions and remembers which helpers they need."""

    def __init__(self, expand: Expand) -> None:
        self.expand = expand
        self.helpers: dict[tuple[str, DType, int], None] = {}
        self.math: dict[str, str] = {}
        self.locals: dict[str, Declare] = {}
        self.tables: set[str] = set()
        self.lines: list[str] = []
        self.depth = 0
        self.named: dict[Expr, str] = {}
        self.counter = 0

    # Structure

    def function(self, f: Function, exported: frozenset[str]) -> str:
        self.locals, self.named, self.counter = {}, {}, 0
        self.tables = {p.name for p in f.params if p.depth == 2}
        self.lines, self.depth = [], 0
        if f.comment:
            self.lines += [f"/* {f.comment.replace('*/', '* /')} */"]
        static = "" if f.name in exported else "static inline " if f.inline else "static "
        self.lines.append(f"{static}{declaration(f)} {{")
        head = len(self.lines)
        if f.native:
            self.lines.append(textwrap.indent(f.native, "    "))
        else:
            self.block(f.body)
        # All kernels have the same last parameters; most do not need those that report a fault.
        used = set(re.findall(r"\w+", "\n".join(self.lines[head:])))
        unused = ", ".join(f"(void){p.name}" for p in f.params if p.name not in used)
        if unused:
            self.lines.insert(head, f"    {unused};")
        self.lines += ["}", ""]
        return "\n".join(self.lines)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def block(self, body: Sequence[Stmt]) -> None:
        self.depth += 1
        outer = dict(self.named)
        for s in body:
            self.statement(s)
        self.named = outer
        self.depth -= 1

    def statement(self, s: Stmt) -> None:
        match s:
            case Comment(text):
                self.line(f"/* {text.replace('*/', '* /')} */")
            case Let(v, value):
                text = self.value(value)
                self.line(f"const {self.type(value.dtype, value.lanes)} {v.name} = {text};")
            case Declare():
                self.declare(s)
            case Store(buffer, index, value):
                self.store(buffer, index, value)
            case For():
                self.loop(s)
            case If(condition, then, otherwise):
                self.line(f"if ({self.value(condition)}) {{")
                self.block(then)
                if otherwise:
                    self.line("} else {")
                    self.block(otherwise)
                self.line("}")
            case Call(name, arguments):
                self.line(f"{name}({', '.join(self.value(a) for a in arguments)});")
            case Prefetch(buffer, index):
                self.line(f"__builtin_prefetch({self.pointer(buffer, index)});")

    def declare(self, s: Declare) -> None:
        self.locals[s.name] = s
        dims = "".join(f"[{n}]" for n in s.dims)
        if s.pointer:
            self.line(f"const {s.dtype.c_name} *{s.name}{dims};")
            return
        initial = "" if s.value is None else f" = {self.operand(s.value, s.lanes)}"
        # A local block of elements is read and written as vectors: align it as such.
        align = " __attribute__((aligned(64)))" if s.dims and s.lanes == 1 else ""
        self.line(f"{self.type(s.dtype, s.lanes)} {s.name}{dims}{align}{initial};")

    def loop(self, s: For) -> None:
        start, stop = self.value(s.start), self.value(s.stop)
        if s.unroll:
            self.line("HASTEN_UNROLL")
        step = f"++{s.var.name}" if s.step == 1 else f"{s.var.name} += {s.step}"
        self.line(f"for (int64_t {s.var.name} = {start}; {s.var.name} < {stop}; {step}) {{")
        self.block(s.body)
        self.line("}")

    def store(self, buffer: str, index: tuple[Expr, ...], value: Expr) -> None:
        local = self.locals.get(buffer)
        text = self.value(value)
        if local is not None and (local.pointer or local.lanes > 1 or not local.dims):
            text = self.operand(value, local.lanes)
            self.line(f"{self.element(buffer, index)} = {text};")
        elif value.lanes > 1:
            at = self.pointer(buffer, index)
            self.line(f"{self.helper('store', value.dtype, value.lanes)}({at}, {text});")
        else:
            self.line(f"{self.element(buffer, index)} = {text};")

    # Values

    def value(self, e: Expr) -> str:
        """Text of an expression; parts used more than once get a name in front of the statement."""
        self.name_shared(e)
        return self.text(e)[0]

    def name_shared(self, e: Expr) -> None:
        uses: dict[Expr, int] = {}
        order: list[Expr] = []

        def count(node: Expr) -> None:
            uses[node] = uses.get(node, 0) + 1
            if uses[node] > 1 or node in self.named:
                return
            if isinstance(node, Op) and node.op == "select" and node.args[0].lanes == 1:
                count(node.args[0])  # the arms are evaluated only if chosen
            else:
                for c in children(node):
                    count(c)
            order.append(node)

        count(e)
        for node in order:
            if uses[node] > 1 and not isinstance(node, (Const, Var, Size, Address, Ramp)):
                text = self.text(node)[0]
                name = f"t{self.counter}"
                self.counter += 1
                self.line(f"const {self.type(node.dtype, node.lanes)} {name} = {text};")
                self.named[node] = name

    def operand(self, e: Expr, lanes: int) -> str:
        """Text of a value, broadcast to `lanes` if it is a scalar."""
        text = self.value(e) if not isinstance(e, Address) else self.text(e)[0]
        return self.splat(text, e, lanes)

    def splat(self, text: str, e: Expr, lanes: int) -> str:
        if lanes in (1, e.lanes):
            return text
        dtype = e.dtype
        if dtype is DType.BOOL:
            return f"{self.helper('splat', DType.I32, lanes)}(-(int32_t)({text}))"
        return f"{self.helper('splat', dtype, lanes)}({text})"

    def text(self, e: Expr) -> tuple[str, int]:
        """Text and precedence of an expression."""
        if e in self.named:
            return self.named[e], _ATOM
        match e:
            case Const():
                return _literal(e), _ATOM if not isinstance(e.value, (int, float)) or e.value >= 0 else 13
            case Var():
                return e.name, _ATOM
            case Size():
                return size_parameter(e.name), _ATOM
            case Load():
                return self.load(e), _ATOM
            case Address(buffer=buffer, index=index):
                return self.pointer(buffer, index), 13
            case Ramp():
                base, stride = self.text(e.base)[0], self.text(e.stride)[0]
                return f"{self.helper('ramp', e.dtype, e.lanes)}({base}, {stride})", _ATOM
            case Bounded():
                at, limit = self.text(e.index)[0], self.text(e.limit)[0]
                return f"{self.helper('bounded', INDEX, 1)}({at}, {limit}, fault, kernel)", _ATOM
            case Op():
                return self.operation(e)
            case Reduce():
                raise TypeError("a reduction must be scheduled before it is printed")
        raise TypeError(f"cannot print {type(e).__name__}")

    def part(self, e: Expr, precedence: int) -> str:
        text, p = self.text(e)
        return text if p > precedence else f"({text})"

    def load(self, e: Load) -> str:
        local = self.locals.get(e.buffer)
        if local is not None and local.lanes == e.lanes and (not local.pointer or e.lanes == 1):
            return self.element(e.buffer, e.index)
        if e.lanes == 1:
            stored = self.element(e.buffer, e.index)
            return f"({stored} != 0)" if e.dtype is DType.BOOL else stored
        last = e.index[-1]
        if isinstance(last, Ramp):
            at = self.pointer(e.buffer, (*e.index[:-1], last.base))
            stride = self.text(last.stride)[0]
            return f"{self.helper('strided', e.dtype, e.lanes)}({at}, {stride})"
        if last.lanes > 1:
            return f"{self.helper('gather', e.dtype, e.lanes)}({e.buffer}, {self.text(last)[0]})"
        return f"{self.helper('load', e.dtype, e.lanes)}({self.pointer(e.buffer, e.index)})"

    def element(self, buffer: str, index: tuple[Expr, ...]) -> str:
        return buffer + "".join(f"[{self.text(i)[0]}]" for i in index)

    def pointer(self, buffer: str, index: tuple[Expr, ...]) -> str:
        if not index:
            return buffer
        inner = self.element(buffer, index[:-1])
        last = self.text(index[-1])[0]
        return inner if last == "0" else f"{inner} + {last}"

    def operation(self, e: Op) -> tuple[str, int]:
        if e.op == "cast":
            return self.conversion(e), 13
        if e.op == "select":
            return self.choice(e)
        if e.op == "broadcast":
            return self.argument(e.args[0], e.lanes), _ATOM
        if e.op in ("and", "or", "xor", "not"):
            return self.logic(e)
        if e.op in _INFIX:
            return self.infix(e)
        expanded = self.expand(e.op, e.args)
        if expanded is not None:
            return self.math_call(e), _ATOM
        proven = e.op in ("floordiv", "mod") and e.lanes == 1 and e.dtype is INDEX
        if proven and all(is_nonnegative(a) for a in e.args):
            sign = "/" if e.op == "floordiv" else "%"
            return f"{self.part(e.args[0], 11)} {sign} {self.part(e.args[1], 12)}", 12
        if e.op in GROUPS:
            name = self.helper(e.op, e.args[-1].dtype, max(e.lanes, e.args[-1].lanes))
            return f"{name}({', '.join(self.text(a)[0] for a in e.args)})", _ATOM
        if e.op in ("max", "min") and e.dtype.is_float and any(_is_number(a) for a in e.args):
            return self.bounded_value(e), _ATOM
        width = e.args[0].lanes if e.op.startswith("total_") else e.lanes
        name = self.helper(e.op, e.args[0].dtype, width)
        return f"{name}({', '.join(self.argument(a, e.lanes) for a in e.args)})", _ATOM

    def bounded_value(self, e: Op) -> str:
        """A minimum or maximum with a literal: one instruction, because only the other side can be NaN."""
        value, bound = e.args if _is_number(e.args[1]) else e.args[::-1]
        name = self.helper(f"{e.op}_bound", e.dtype, e.lanes)
        return f"{name}({self.argument(value, e.lanes)}, {self.argument(bound, e.lanes)})"

    def argument(self, e: Expr, lanes: int) -> str:
        return self.splat(self.text(e)[0], e, lanes)

    def side(self, e: Expr, lanes: int, precedence: int) -> str:
        """An operand of an operator that wants vectors on both sides."""
        return self.part(e, precedence) if e.lanes == lanes else self.argument(e, lanes)

    def infix(self, e: Op) -> tuple[str, int]:
        p = _PRECEDENCE[e.op]
        a, b = e.args
        if e.lanes > 1 and e.dtype.is_float and e.op in ("add", "sub"):
            a, b = _as_vector_product(a, e.lanes), _as_vector_product(b, e.lanes)
        # Compilers warn of a sum next to a shift or a mask, however clear to them: put it in parentheses.
        inner = 13 if e.op in ("shl", "shr", "bitand", "bitor", "bitxor") else p
        left, right = self.part(a, max(p - 1, inner - 1)), self.part(b, inner)
        if e.op in ("lt", "le", "eq", "ne") and e.lanes > 1:
            left, right = self.side(a, e.lanes, p), self.side(b, e.lanes, p)
            compared = f"({left} {_INFIX[e.op]} {right})"
            if a.dtype.bytes == 4:
                return f"({self.vector(DType.I32, e.lanes)}){compared}", 13
            mask = self.vector(DType.I32, e.lanes)
            return f"__builtin_convertvector({compared}, {mask})", _ATOM
        # C promotes small integers: a choice between two of them is an int, which no vector takes.
        small = not e.dtype.is_float and e.dtype.bytes < 4 and e.dtype is not DType.BOOL
        if e.lanes > 1 and (small or e.op in ("shl", "shr")):
            left, right = self.side(a, e.lanes, max(p - 1, inner - 1)), self.side(b, e.lanes, inner)
        elif e.op == "shl" and isinstance(a, Const):
            left = f"({e.dtype.c_name}){left}"  # a literal alone is an int
        text = f"{left} {_INFIX[e.op]} {right}"
        if e.lanes == 1 and small:  # the IR computes in their own width
            return f"({e.dtype.c_name})({text})", 13
        return text, p

    def logic(self, e: Op) -> tuple[str, int]:
        if e.op == "not":
            return (f"~{self.part(e.args[0], 13)}" if e.lanes > 1 else f"!{self.part(e.args[0], 13)}"), 13
        sign = _VECTOR_LOGIC[e.op] if e.lanes > 1 else _LOGIC[e.op]
        p = _PRECEDENCE[f"bit{e.op}" if e.lanes > 1 else "ne" if e.op == "xor" else e.op]
        a, b = (
            (self.splat(f"({self.text(x)[0]})", x, e.lanes)) if e.lanes > 1 else self.part(x, p)
            for x in e.args
        )
        return f"{a} {sign} {b}", p

    def choice(self, e: Op) -> tuple[str, int]:
        condition, a, b = e.args
        if condition.lanes == 1:
            yes, no = self.argument(a, e.lanes), self.argument(b, e.lanes)
            return f"({self.part(condition, 2)} ? {yes} : {no})", _ATOM
        name = self.helper("select", e.dtype, e.lanes)
        return (
            f"{name}({self.text(condition)[0]}, {self.argument(a, e.lanes)}, {self.argument(b, e.lanes)})",
            _ATOM,
        )

    def conversion(self, e: Op) -> str:
        (a,) = e.args
        if e.dtype is DType.BF16:
            return f"{self.helper('narrow', DType.BF16, e.lanes)}({self.text(a)[0]})"
        if a.dtype is DType.BF16:
            return f"{self.helper('widen', DType.BF16, e.lanes)}({self.text(a)[0]})"
        if e.lanes == 1:
            if e.dtype is DType.BOOL:
                return f"({self.part(a, 8)} != 0)"
            return f"({e.dtype.c_name}){self.part(a, 13)}"
        if a.dtype is DType.BOOL:
            narrow = f"({self.part(a, _PRECEDENCE['bitand'])} & 1)"
            return f"__builtin_convertvector({narrow}, {self.vector(e.dtype, e.lanes)})"
        if e.dtype is DType.BOOL:
            zero = Const(a.dtype, 0.0 if a.dtype.is_float else 0)
            return self.infix(Op(DType.BOOL, "ne", (a, zero), lanes=e.lanes))[0]
        return f"__builtin_convertvector({self.text(a)[0]}, {self.vector(e.dtype, e.lanes)})"

    # Helpers

    def math_call(self, e: Op) -> str:
        """A call of an elementary function, which is printed once for each type and width."""
        lanes, dtype = e.lanes, e.args[0].dtype
        name = f"hasten_{e.op}_{self.type(dtype, lanes)}"
        if name not in self.math:
            self.math[name] = ""  # reserves the place: functions it uses come in front
            variables = tuple(Var(dtype, v, lanes=lanes) for v in ("x", "y")[: len(e.args)])
            body = self.expand(e.op, variables)
            assert body is not None
            inner = _Printer(self.expand)
            inner.helpers, inner.math, inner.depth = self.helpers, self.math, 1
            text = inner.operand(body, lanes)
            parameters = ", ".join(f"{self.type(dtype, lanes)} {v.name}" for v in variables)
            lines = "\n".join([*inner.lines, f"    return {text};"])
            del self.math[name]
            self.math[name] = (
                f"static inline {self.type(e.dtype, lanes)} {name}({parameters}) {{\n{lines}\n}}\n"
            )
        return f"{name}({', '.join(self.argument(a, lanes) for a in e.args)})"

    def helper(self, op: str, dtype: DType, lanes: int) -> str:
        self.helpers[(op, dtype, lanes)] = None
        self.vector(dtype, lanes)
        return helper_name(op, dtype, lanes)

    def vector(self, dtype: DType, lanes: int) -> str:
        self.helpers[("type", dtype, lanes)] = None
        return vector_type(dtype, lanes)

    def type(self, dtype: DType, lanes: int) -> str:
        if lanes == 1:
            return dtype.c_name
        return self.vector(DType.I32 if dtype is DType.BOOL else dtype, lanes)

    def helper_text(self) -> str:
        return helper_source(self.helpers) + "\n" + "\n".join(self.math.values())


def _is_number(e: Expr) -> bool:
    """Whether an expression is a literal that is not NaN."""
    return isinstance(e, Const) and not math.isnan(float(e.value))


def _literal(e: Const) -> str:
    if e.dtype is DType.BOOL:
        return "1" if e.value else "0"
    if not e.dtype.is_float:
        text = str(int(e.value))
        if e.dtype is DType.I64 and int(e.value) == -(2**63):
            return "INT64_MIN"
        return text + "LL" if abs(int(e.value)) > 2**31 - 1 else text
    value = float(e.value)
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return f"{value!r}f" if e.dtype is DType.F32 else repr(value)


def _as_vector_product(e: Expr, lanes: int) -> Expr:
    """A scalar product as one of vectors: compilers fuse it with a sum of vectors only then.

    Elements beside the vectors of a row are computed one by one, where they fuse it: bits must be the same.
    """
    if not isinstance(e, Op) or e.lanes > 1:
        return e
    if e.op == "neg":
        (x,) = e.args
        product = _as_vector_product(x, lanes)
        return e if product is x else replace(e, args=(product,), lanes=lanes)
    if e.op != "mul":
        return e
    a, b = e.args
    return replace(e, args=(Op(a.dtype, "broadcast", (a,), lanes=lanes), b), lanes=lanes)
