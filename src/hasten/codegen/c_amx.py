"""C statements that multiply matrices on the tile registers of AMX.

A tile register holds 16 rows of 64 bytes. One instruction adds to a tile of 16 x 16 sums the product of 16
rows and 16 columns over up to 16 groups of 32 bits: bf16 in pairs, summed in f32, or unsigned by signed bytes
in fours, summed in i32. Floats too small for a normalized f32 count as zero. See the chapter on AMX of "Intel
Architecture Instruction Set Extensions".

Two tiles of rows by two of columns, four of sums, are in registers at a time, so that each load feeds two
products; what was loaded of a panel for one pair of rows is still in the first-level cache for the next.
"""

from __future__ import annotations

from hasten.loops.dtypes import DType

TILE_ROWS = 16
"""Rows of a tile register; also groups of depth, and columns of 32 bits, that it has room for."""

PAIR = 2 * TILE_ROWS
"""Rows whose sums are in registers at a time."""

DEPTH_BLOCK = 8
"""Steps of depth after which the next rows follow, their sums kept in memory: a panel's part, 16 KB of 32
columns, then stays in the first-level cache while all rows pass by. Measured on a Xeon with 48 KB, 128 rows
of 768 and of 3072 elements, weights from memory: 2.0 TFLOP/s on two cores; with 4 or 12 steps 1.8, without
blocks 1.75. The next part is fetched into the second level; into the first it only gets in the way."""

DOTS = {DType.BF16: "tdpbf16ps", DType.U8: "tdpbusd"}
"""The instructions, by the element type of the rows."""


BEGIN = f"""\
struct {{ uint8_t palette, begin, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; }} shape = {{1}};
const int64_t upper = m < {TILE_ROWS} ? m : {TILE_ROWS};
const int64_t lower = m < {PAIR} ? m - upper : {TILE_ROWS};
const int64_t rows[8] = {{upper, upper, lower, lower, upper, lower, step, step}};
for (int t = 0; t < 8; ++t) {{
    shape.bytes[t] = rows[t] == 0 ? 0 : t == 4 || t == 5 ? step * 4 : 64;
    shape.rows[t] = rows[t];
}}
__asm__ volatile("ldtilecfg %0" : : "m"(shape) : "memory");"""
"""Says how large tiles are for products of `m` rows in steps of `step` groups; takes about 50 ns."""

END = '__asm__ volatile("tilerelease" : : : "memory");'
"""Gives the tiles up, which the system else keeps for this thread."""


def matrix_statements(dtype: DType, columns: int) -> str:
    """The body of a function that multiplies any number of rows with one panel of 16 or 32 columns.

    Its parameters are those of `codegen.amx.matrix_function`; `BEGIN` ran before, for as many rows or, if
    these are at least a pair of tiles, for any such number.
    """
    wide = columns // TILE_ROWS
    both, upper = (_steps(dtype, wide, rows) for rows in (2, 1))
    return f"""\
const int64_t size = sizeof *rows, row = pitch * size, group = stride * size, out = tile_pitch * 4;
const int64_t block = {DEPTH_BLOCK} * step, whole = m / {PAIR} * {PAIR};
/* Lines of the panel's next part to ask for at each step, so that all pairs of rows together ask for all. */
const int64_t pairs = m > 0 ? (m + {PAIR - 1}) / {PAIR} : 1, lines = (step * group / 64 + pairs - 1) / pairs;
for (int64_t part = 0; part < 2; ++part) {{
    /* Whole pairs of tiles; where rows are left over, the last pair of all, of which some were done. */
    const int64_t first = part == 0 || m < {PAIR} ? 0 : m - {PAIR};
    const int64_t last = part == 0 ? whole : whole < m ? m : first;
    for (int64_t k = 0; k < depth && first < last; k += block) {{
        const int64_t steps = (depth - k < block ? depth - k : block) / step;
        for (int64_t r = first; r < last; r += {PAIR}) {{
            const char *a = (const char *)rows + r * row + k * 4, *b = (const char *)panel + k * group;
            const char *ahead = b + block * group + r / {PAIR} * steps * lines * 64;
            char *sums = (char *)tile + r * out;
            if (m > {TILE_ROWS}) {{
{both}
            }} else {{
{upper}
            }}
        }}
    }}
}}"""


def _steps(dtype: DType, wide: int, high: int) -> str:
    """Some steps of depth on `high` tiles of rows and `wide` of columns; tile 2 r + c has their sums."""
    sums = [(r, c) for r in range(high) for c in range(wide)]
    places = {(r, c): f"sums + {r * TILE_ROWS} * out + {64 * c}" for r, c in sums}
    zero = [f'__asm__ volatile("tilezero %tmm{2 * r + c}");' for r, c in sums]
    again = [_move("tileloadd", 2 * r + c, at, "out") for (r, c), at in places.items()]
    loads = [_move("tileloadd", 6 + c, f"b + {64 * c}", "group") for c in range(wide)]
    loads += [_move("tileloadd", 4 + r, f"a + {r * TILE_ROWS} * row", "row") for r in range(high)]
    dots = [f'__asm__ volatile("{DOTS[dtype]} %tmm{6 + c}, %tmm{4 + r}, %tmm{2 * r + c}");' for r, c in sums]
    stores = [_move("tilestored", 2 * r + c, at, "out") for (r, c), at in places.items()]
    inner = [*loads, *dots]
    prefetch = "for (int64_t l = 0; l < lines; ++l, ahead += 64) __builtin_prefetch(ahead, 0, 2);"
    text = ["if (k == 0) {", *_in(zero), "} else {", *_in(again), "}"]
    text += ["for (int64_t s = 0; s < steps; ++s, a += step * 4, b += step * group) {"]
    text += [*_in(inner[:-1]), *_in([prefetch]), *_in(inner[-1:]), "}", *stores]
    return "\n".join(" " * 16 + line for line in text)


def _in(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _move(instruction: str, register: int, at: str, pitch: str) -> str:
    """A load or store of a tile register whose rows lie `pitch` bytes apart."""
    place, tile = "(%0,%1,1)", f"%%tmm{register}"
    operands = f"{place}, {tile}" if instruction == "tileloadd" else f"{tile}, {place}"
    return f'__asm__ volatile("{instruction} {operands}" : : "r"({at}), "r"({pitch}) : "memory");'
