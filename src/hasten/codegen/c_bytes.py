"""C functions on groups of four bytes: unsigned by signed, summed in i32 without saturation anywhere.

Processors that multiply bytes only with 16-bit saturation (AVX2 without VNNI) get 16-bit products of
widened bytes instead, so that every instruction set gives the same sums.
"""

from __future__ import annotations

from hasten.loops.dtypes import DType


def bytes_function(op: str, name: str, dtype: DType, lanes: int) -> str:
    """Definition of a helper; `lanes` counts bytes.

    Raises:
        KeyError: there is no such operation on bytes.
    """
    v, words = f"{dtype}x{lanes}", f"u32x{lanes // 4}"
    texts = {
        "repeat": (
            f"static inline {v} {name}({dtype}x4 group) {{\n"
            f"    uint32_t all;\n    memcpy(&all, &group, sizeof all);\n"
            f"    return ({v})(all - ({words}){{0}});\n}}"
        ),
        "dot": _dot(name, lanes),
    }
    return texts[op]


_INSTRUCTIONS = {
    64: """\
#if defined(__AVX512VNNI__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
#elif defined(__AVX512BW__)
{products}
#else
{general}
#endif""",
    32: """\
#if defined(__AVXVNNI__)
    __asm__("%{{vex%}} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b));
    return sums;
#elif defined(__AVX2__)
{products}
#else
{general}
#endif""",
    # `sdot` multiplies signed by signed: a = (a - 128) + 128; the second sum is shared by all rows.
    16: """\
#if defined(__ARM_FEATURE_MATMUL_INT8)
    __asm__("usdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(a), "w"(b));
    return sums;
#elif defined(__ARM_FEATURE_DOTPROD)
    i32x4 columns = {{0}};
    const u8x16 ones = 1 - (u8x16){{0}}, shifted = a ^ 0x80;
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(columns) : "w"(ones), "w"(b));
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(shifted), "w"(b));
    return sums + (columns << 7);
#else
{general}
#endif""",
}
"""What instruction sets have for a width, the general form last."""


def _dot(name: str, lanes: int) -> str:
    t, u, s = f"i32x{lanes // 4}", f"u32x{lanes // 4}", f"i16x{lanes // 2}"
    general = f"""\
    const {u} x = ({u})a;
    const {t} y = ({t})({u})b;
    sums += ({t})(x & 0xff) * (({t})(({u})y << 24) >> 24);
    sums += ({t})(x >> 8 & 0xff) * (({t})(({u})y << 16) >> 24);
    sums += ({t})(x >> 16 & 0xff) * (({t})(({u})y << 8) >> 24);
    return sums + ({t})(x >> 24) * (y >> 24);"""
    # An instruction adds the products of two neighbouring 16-bit elements: the even bytes, then the odd.
    products = f"""\
    const {s} y = ({s})b, odd = y >> 8, even = ({s})(({u})y << 8) >> 8;
    const {u} x = ({u})a, odds = x >> 8 & 0x00ff00ffu, evens = x & 0x00ff00ffu;
    {t} p, q;
    __asm__("vpmaddwd %2, %1, %0" : "=v"(p) : "v"(even), "v"(evens));
    __asm__("vpmaddwd %2, %1, %0" : "=v"(q) : "v"(odd), "v"(odds));
    return sums + p + q;"""
    body = _INSTRUCTIONS.get(lanes, "{general}").format(products=products, general=general)
    return f"static inline {t} {name}({t} sums, u8x{lanes} a, i8x{lanes} b) {{\n{body}\n}}"
