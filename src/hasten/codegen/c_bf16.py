"""C functions on bf16: conversion, and products of pairs summed in f32.

Where the processor has the instructions they are used; elsewhere the same values are computed in f32, on
elements widened by a shift. Rounding is to nearest, ties to even. The instructions take numbers too small
for a normalized f32 as zero.
"""

from __future__ import annotations

_INSTRUCTIONS = "#if defined(__AVX512BF16__) && defined(__clang__)"


def bf16_function(op: str, name: str, lanes: int) -> str:
    """Definition of a helper; `lanes` counts bf16 elements.

    Raises:
        KeyError: there is no such operation on bf16.
    """
    if lanes == 1:
        return {"widen": _WIDEN, "narrow": _NARROW}[op].format(name=name)
    v, u, f = f"bf16x{lanes}", f"u32x{lanes}", f"f32x{lanes}"
    half = lanes // 2
    texts = {
        "widen": (
            f"static inline {f} {name}({v} x) {{ return ({f})(__builtin_convertvector(x, {u}) << 16); }}"
        ),
        "narrow": _narrow(name, lanes),
        "repeat": (
            f"static inline {v} {name}(bf16x2 pair) {{\n"
            f"    uint32_t both;\n    memcpy(&both, &pair, sizeof both);\n"
            f"    return ({v})(both - (u32x{half}){{0}});\n}}"
        ),
        "interleave": (
            f"static inline {v} {name}(bf16x{half} a, bf16x{half} b) {{\n"
            f"    return ({v})(__builtin_convertvector(a, u32x{half}) | "
            f"__builtin_convertvector(b, u32x{half}) << 16);\n}}"
        ),
        "dot": _dot(name, lanes),
    }
    return texts[op]


_WIDEN = """\
static inline float {name}(hasten_bf16 x) {{
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}}"""

_NARROW = f"""\
static inline hasten_bf16 {{name}}(float x) {{{{
    hasten_bf16 y;
{_INSTRUCTIONS}
    const __bf16 rounded = (__bf16)x;
    memcpy(&y, &rounded, sizeof y);
#else
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    y = (hasten_bf16)((x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
    return y;
}}}}"""


def _narrow(name: str, lanes: int) -> str:
    v, u, f = f"bf16x{lanes}", f"u32x{lanes}", f"f32x{lanes}"
    return f"""\
static inline {v} {name}({f} x) {{
{_INSTRUCTIONS}
    typedef __bf16 rounded __attribute__((vector_size({2 * lanes})));
    return ({v})__builtin_convertvector(x, rounded);
#else
    const {u} bits = ({u})x, nan = ({u})(x != x);
    const {u} rounded = bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_convertvector(((rounded & ~nan) | ((bits | 0x400000) & nan)) >> 16, {v});
#endif
}}"""


def _dot(name: str, lanes: int) -> str:
    half = lanes // 2
    v, u, f = f"bf16x{lanes}", f"u32x{half}", f"f32x{half}"
    general = f"""\
    const {u} x = ({u})a, y = ({u})b;
    sums = sums + ({f})(x << 16) * ({f})(y << 16);
    return sums + ({f})(x & 0xffff0000u) * ({f})(y & 0xffff0000u);"""
    if half == 16:
        general = f"""\
#if defined(__AVX512BF16__)
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
#else
{general}
#endif"""
    return f"static inline {f} {name}({f} sums, {v} a, {v} b) {{\n{general}\n}}"
