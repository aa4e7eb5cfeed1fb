"""Small C functions that generated code calls, for each element type and vector width it uses."""

from __future__ import annotations

from collections.abc import Iterable

from hasten.codegen.c_bf16 import bf16_function
from hasten.codegen.c_bytes import bytes_function
from hasten.loops.dtypes import BYTES, DType
from hasten.loops.expr import GROUPS

Key = tuple[str, DType, int]

_BIT_PARTNER = {DType.F32: DType.I32, DType.I32: DType.F32, DType.F64: DType.I64, DType.I64: DType.F64}
_MASK = {1: DType.I8, 2: DType.I16, 4: DType.I32, 8: DType.I64}

UNROLL = """
#if defined(__clang__)
#define HASTEN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HASTEN_UNROLL _Pragma("GCC unroll 64")
#endif
"""


def vector_type(dtype: DType, lanes: int) -> str:
    """Name of the C type of a vector; a vector of booleans is one of int32, 0 or -1 each."""
    return f"{DType.I32 if dtype is DType.BOOL else dtype}x{lanes}"


def scalar_or_vector(dtype: DType, lanes: int) -> str:
    """Name of the C type of a value with any number of lanes."""
    return dtype.c_name if lanes == 1 else vector_type(dtype, lanes)


def helper_name(op: str, dtype: DType, lanes: int) -> str:
    """Name of a helper; memory accesses of booleans differ from those of the int32 that hold them."""
    if dtype is DType.BOOL and lanes > 1 and op in ("load", "store", "gather", "strided"):
        return f"{op}_boolx{lanes}"
    return f"{op}_{scalar_or_vector(dtype, lanes)}"


def helper_source(keys: Iterable[Key]) -> str:
    """Definitions of the helpers that were asked for, types first."""
    wanted = dict.fromkeys(keys)
    for op, dtype, lanes in list(wanted):
        for extra, width in _types_of(op, dtype, lanes):
            wanted[("type", extra, width)] = None
    types = sorted({(dt, n) for op, dt, n in wanted if op == "type" and n > 1})
    lines = [UNROLL]
    done: set[str] = set()
    for dtype, lanes in types:
        name = vector_type(dtype, lanes)
        element = DType.I32 if dtype is DType.BOOL else dtype
        if name not in done:
            done.add(name)
            width = element.bytes * lanes
            lines.append(f"typedef {element.c_name} {name} __attribute__((vector_size({width})));")
    seen: set[str] = set()
    for op, dtype, lanes in wanted:
        if op == "type":
            continue
        text = _function(op, dtype, lanes)
        if text not in seen:
            seen.add(text)
            lines.append(text)
    return "\n".join(lines) + "\n"


def _types_of(op: str, dtype: DType, lanes: int) -> list[tuple[DType, int]]:
    """Vector types that a helper mentions."""
    if op in GROUPS and dtype in BYTES:
        words = [(t, lanes // 4) for t in (DType.U32, DType.I32)]
        return [*((t, lanes) for t in BYTES), *words, (DType.I16, lanes // 2), (dtype, 4)]
    if op in GROUPS:
        return [
            (dtype, lanes),
            (dtype, lanes // 2),
            (dtype, 2),
            (DType.U32, lanes // 2),
            (DType.F32, lanes // 2),
        ]
    if lanes == 1:
        return []
    if op.startswith("total_"):
        halves = [lanes >> n for n in range(lanes.bit_length() - 1)]
        return [(t, n) for n in halves for t in (dtype, _MASK[dtype.bytes])]
    types = [dtype, _MASK[dtype.bytes], DType.I32]
    if op == "bitcast":
        types.append(_BIT_PARTNER[dtype])
    if op in ("gather", "strided", "ramp"):
        types.append(DType.I64)
    if dtype is DType.BOOL:
        types.append(DType.U8)
    if op in ("widen", "narrow"):
        types += [DType.U32, DType.F32]
    return [(t, lanes) for t in types]


def _function(op: str, dtype: DType, lanes: int) -> str:
    t = scalar_or_vector(dtype, lanes)
    c = dtype.c_name
    name = helper_name(op, dtype, lanes)
    head = "static inline "
    if op == "load":
        if dtype is DType.BOOL:
            return (
                f"{head}{t} {name}(const uint8_t *p) {{ u8x{lanes} v; memcpy(&v, p, sizeof v); "
                f"return __builtin_convertvector(v, {t}) != 0; }}"
            )
        return f"{head}{t} {name}(const {c} *p) {{ {t} v; memcpy(&v, p, sizeof v); return v; }}"
    if op == "store":
        if dtype is DType.BOOL:
            return (
                f"{head}void {name}(uint8_t *p, {t} v) {{ u8x{lanes} b = "
                f"__builtin_convertvector(v & 1, u8x{lanes}); memcpy(p, &b, sizeof b); }}"
            )
        return f"{head}void {name}({c} *p, {t} v) {{ memcpy(p, &v, sizeof v); }}"
    if op == "splat":
        # x - 0 is x for every x, the negative zero and NaN included.
        return f"{head}{t} {name}({c} x) {{ return x - ({t}){{0}}; }}"
    if op in ("gather", "strided", "ramp"):
        return _lanewise_access(op, name, dtype, t, lanes)
    if op == "select" and lanes > 1:
        size = 4 if dtype is DType.BOOL else dtype.bytes  # vectors of bool are masks of i32
        mask = vector_type(_MASK[size], lanes)
        wide = "m" if size == 4 else f"__builtin_convertvector(m, {mask})"
        return (
            f"{head}{t} {name}(i32x{lanes} m, {t} a, {t} b) {{ const {mask} w = {wide}; "
            f"return ({t})((w & ({mask})a) | (~w & ({mask})b)); }}"
        )
    if op in ("max", "min"):
        return _extremum(op, name, dtype, t, lanes)
    if op in ("max_bound", "min_bound"):
        return _bound(op, name, dtype, t, lanes)
    if op.startswith("total_"):
        return _total(op.removeprefix("total_"), dtype, lanes)
    if op == "bitcast":
        to = scalar_or_vector(_BIT_PARTNER[dtype], lanes)
        return f"{head}{to} {name}({t} x) {{ {to} y; memcpy(&y, &x, sizeof y); return y; }}"
    if op == "apart":
        return f'{head}{t} {name}({t} x) {{ __asm__("" : "+r"(x)); return x; }}'
    if op == "bounded":
        return (
            f"{head}int64_t {name}(int64_t index, int64_t limit, hasten_fault *fault, int32_t kernel) {{\n"
            "    const int64_t wrapped = index < 0 ? index + limit : index;\n"
            "    if (wrapped >= 0 && wrapped < limit) return wrapped;\n"
            "    hasten_report(fault, HASTEN_FAULT_INDEX, kernel, index, limit);\n"
            "    return 0;\n}"
        )
    if op in ("zip_low", "zip_high"):
        return _zip(name, dtype, lanes, high=op == "zip_high")
    if op == "lower":
        half, order = vector_type(dtype, lanes // 2), ", ".join(map(str, range(lanes // 2)))
        return f"{head}{half} {name}({t} a) {{ return __builtin_shufflevector(a, a, {order}); }}"
    if dtype is DType.BF16:
        return bf16_function(op, name, lanes)
    if op in GROUPS:
        return bytes_function(op, name, dtype, lanes)
    if lanes == 1:
        return f"{head}{_scalar_function(op, name, dtype)}"
    return _mapped(op, name, dtype, t, lanes)


def _zip(name: str, dtype: DType, lanes: int, *, high: bool) -> str:
    """Groups of 32 bits of two vectors in turns, from their lower or upper halves."""
    size = 4 // dtype.bytes
    first = lanes // 2 if high else 0
    groups = [g + side for g in range(first, first + lanes // 2, size) for side in (0, lanes)]
    order = ", ".join(str(g + i) for g in groups for i in range(size))
    t = vector_type(dtype, lanes)
    body = f"    return __builtin_shufflevector(a, b, {order});"
    return f"static inline {t} {name}({t} a, {t} b) {{\n{body}\n}}"


def _lanewise_access(op: str, name: str, dtype: DType, t: str, lanes: int) -> str:
    loop = f"for (int l = 0; l < {lanes}; ++l)"
    fix = " != 0 ? -1 : 0" if dtype is DType.BOOL else ""
    if op == "gather":
        return (
            f"static inline {t} {name}(const {dtype.c_name} *p, i64x{lanes} index) "
            f"{{ {t} v; {loop} v[l] = p[index[l]]{fix}; return v; }}"
        )
    if op == "strided":
        return (
            f"static inline {t} {name}(const {dtype.c_name} *p, int64_t stride) "
            f"{{ {t} v; {loop} v[l] = p[l * stride]{fix}; return v; }}"
        )
    return (
        f"static inline {t} {name}(int64_t base, int64_t stride) "
        f"{{ {t} v; {loop} v[l] = base + l * stride; return v; }}"
    )


def _extremum(op: str, name: str, dtype: DType, t: str, lanes: int) -> str:
    sign = "<" if op == "max" else ">"
    # A comparison with NaN is false: `b != b` lets a NaN in b through, and one in a stays anyway.
    if lanes == 1:
        both = " || b != b" if dtype.is_float else ""
        return f"static inline {t} {name}({t} a, {t} b) {{ return a {sign} b{both} ? b : a; }}"
    mask = vector_type(_MASK[dtype.bytes], lanes)
    lines = [f"const {mask} w = ({mask})(a {sign} b);", f"{mask} v = (w & ({mask})b) | (~w & ({mask})a);"]
    if dtype.is_float:
        # Apart from the comparison, which waits for `a` where that is the result so far.
        lines += [f"const {mask} n = ({mask})(b != b);", f"v = (n & ({mask})b) | (~n & v);"]
    return f"static inline {t} {name}({t} a, {t} b) {{ {' '.join(lines)} return ({t})v; }}"


def _bound(op: str, name: str, dtype: DType, t: str, lanes: int) -> str:
    """The larger or smaller of a value, which NaN stays, and a bound, which is a number."""
    sign = ">" if op == "max_bound" else "<"
    if lanes == 1:
        return f"static inline {t} {name}({t} x, {t} bound) {{ return bound {sign} x ? bound : x; }}"
    mask = vector_type(_MASK[dtype.bytes], lanes)
    return (
        f"static inline {t} {name}({t} x, {t} bound) {{ const {mask} w = ({mask})(bound {sign} x); "
        f"return ({t})((w & ({mask})bound) | (~w & ({mask})x)); }}"
    )


def _total(op: str, dtype: DType, lanes: int) -> str:
    """Reduction of a vector to a scalar by halves, the same order on every target.

    The halves are vectors: of a loop over lanes, compilers make gathers over what calls it in a loop.
    """
    c = dtype.c_name
    lines = [
        f"static inline {c} total_{op}_{vector_type(dtype, lanes)}({vector_type(dtype, lanes)} v{lanes}) {{"
    ]
    n = lanes // 2
    while n > 1:
        t = vector_type(dtype, n)
        lines += [
            f"    {t} a{n}, b{n};",
            f"    memcpy(&a{n}, &v{2 * n}, sizeof a{n}), "
            f"memcpy(&b{n}, (const {c} *)&v{2 * n} + {n}, sizeof b{n});",
            f"    const {t} v{n} = {_combined(op, f'a{n}', f'b{n}', t, vector_type(_MASK[dtype.bytes], n))};",
        ]
        n //= 2
    return "\n".join([*lines, f"    return {_combined(op, 'v2[0]', 'v2[1]')};", "}"])


def _combined(op: str, a: str, b: str, t: str = "", mask: str = "") -> str:
    """Two values of a reduction as one; of vectors where their type and that of a mask are given."""
    if op in ("sum", "prod"):
        return f"{a} {'+' if op == 'sum' else '*'} {b}"
    chosen = f"{a} {'>' if op == 'min' else '<'} {b}"
    if not t:
        return f"{chosen}{'' if op == 'peak' else f' || {b} != {b}'} ? {b} : {a}"

    def either(condition: str, rest: str) -> str:
        return f"((({mask})({condition}) & ({mask}){b}) | (~({mask})({condition}) & {rest}))"

    best = either(chosen, f"({mask}){a}")
    return f"({t}){best if op == 'peak' else either(f'{b} != {b}', best)}"


def _scalar_function(op: str, name: str, dtype: DType) -> str:
    c = dtype.c_name
    suffix = "f" if dtype is DType.F32 else ""
    if op in ("floordiv", "mod") and not dtype.is_float:
        zero = "if (b == 0) return 0; "
        if op == "floordiv":
            body = f"{zero}const {c} q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0));"
        else:
            body = f"{zero}const {c} r = a % b; return r != 0 && (r < 0) != (b < 0) ? r + b : r;"
        return f"{c} {name}({c} a, {c} b) {{ {body} }}"
    binary_bodies = {
        "mod": f"const {c} r = fmod{suffix}(a, b); return r != 0 && (r < 0) != (b < 0) ? r + b : r;",
        "fmod": f"return fmod{suffix}(a, b);" if dtype.is_float else "return b == 0 ? 0 : a % b;",
        "pow": f"return pow{suffix}(a, b);" if dtype.is_float else f"return ({c})pow((double)a, (double)b);",
        "atan2": f"return atan2{suffix}(a, b);",
    }
    if op in binary_bodies:
        return f"{c} {name}({c} a, {c} b) {{ {binary_bodies[op]} }}"
    negated = {
        "neg": "return -x;",
        "abs": f"return fabs{suffix}(x);" if dtype.is_float else "return x < 0 ? -x : x;",
        "sign": "return x != x ? x : (x > 0) - (x < 0);",
        "round": f"return rint{suffix}(x);",
        "bitnot": "return ~x;",
        "sigmoid": f"return 1 / (1 + exp{suffix}(-x));",
    }
    if not dtype.is_signed and op == "abs":
        negated["abs"] = "return x;"
    if op in ("isnan", "isinf"):
        test = "x != x" if op == "isnan" else f"fabs{suffix}(x) == INFINITY"
        return f"uint8_t {name}({c} x) {{ return {test}; }}"
    body = negated.get(op, f"return {op}{suffix}(x);")
    return f"{c} {name}({c} x) {{ {body} }}"


def _mapped(op: str, name: str, dtype: DType, t: str, lanes: int) -> str:
    """A vector function: directly where the language can say it, else lane by lane."""
    mask = vector_type(_MASK[dtype.bytes], lanes)
    if op == "neg":
        return f"static inline {t} {name}({t} x) {{ return -x; }}"
    if op == "bitnot":
        return f"static inline {t} {name}({t} x) {{ return ~x; }}"
    if op == "abs" and dtype.is_float:
        ones = "0x7fffffff" if dtype is DType.F32 else "0x7fffffffffffffff"
        return f"static inline {t} {name}({t} x) {{ return ({t})(({mask})x & {ones}); }}"
    if op in ("isnan", "isinf"):
        test = "x != x" if op == "isnan" else "(x == INFINITY) | (x == -INFINITY)"
        convert = "({0})({1})" if dtype.bytes == 4 else "__builtin_convertvector({1}, {0})"
        return f"static inline i32x{lanes} {name}({t} x) {{ return {convert.format(f'i32x{lanes}', test)}; }}"
    scalar = _scalar_function(op, f"lane_{name}", dtype)
    two = "," in scalar.split(")")[0]
    arguments = f"({t} a, {t} b)" if two else f"({t} x)"
    call = f"lane_{name}(a[l], b[l])" if two else f"lane_{name}(x[l])"
    return (
        f"static inline {scalar}\n"
        f"static inline {t} {name}{arguments} "
        f"{{ {t} r; for (int l = 0; l < {lanes}; ++l) r[l] = {call}; return r; }}"
    )
