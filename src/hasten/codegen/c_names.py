"""Names of tensors in C, and the C of what sizes are worked out with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Op, transform


def c_name(tensor: str) -> str:
    """A tensor's name as a C identifier."""
    name = re.sub(r"\W+", "_", tensor).strip("_") or "t"
    taken = name in _RESERVED or name.startswith(_PREFIXES) or name.endswith("_int64_t")
    return f"t_{name}" if name[0].isdigit() or taken else name


_PREFIXES = ("hasten_", "HASTEN_", "part_", "size_", "scratch_")
_RESERVED = frozenset(
    ["int", "float", "double", "char", "void", "for", "if", "else", "do", "while", "switch", "case", "long",
     "short", "const", "static", "return", "break", "continue", "default", "signed", "unsigned", "auto",
     "goto", "sizeof", "struct", "union", "enum", "typedef", "volatile", "register", "extern", "inline",
     "restrict", "call", "team", "plan", "arena", "weights", "sizes", "shapes", "run", "argument", "scratch",
     "apart", "index", "count", "own", "stride", "picture", "NULL", "INT64_MIN", "INT64_MAX", "MOST_THREADS"]
)  # fmt: skip
"""C's own, and names in the code of a part (`codegen.part`)."""


def unique_names(tensors: Sequence[str]) -> dict[str, str]:
    """A distinct C identifier for each tensor."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for t in tensors:
        name, n = c_name(t), 1
        while name in taken:
            n += 1
            name = f"{c_name(t)}_{n}"
        taken.add(name)
        names[t] = name
    return names


SATURATING = {"add": "total", "sub": "difference", "mul": "product"}
"""Arithmetic of sizes where some are read and may be any number: results stay within the type."""

SIZE_HELPERS = {
    **{
        f"{name}_int64_t": [
            f"static inline int64_t {name}_int64_t(int64_t a, int64_t b) {{",
            "    int64_t result;",
            f"    return __builtin_{op}_overflow(a, b, &result) ? ({sign}) ? INT64_MIN : INT64_MAX : result;",
            "}",
        ]
        for (op, name), sign in zip(SATURATING.items(), ("a < 0", "a < 0", "(a < 0) != (b < 0)"), strict=True)
    },
    "max_int64_t": ["static inline int64_t max_int64_t(int64_t a, int64_t b) { return a < b ? b : a; }"],
    "min_int64_t": ["static inline int64_t min_int64_t(int64_t a, int64_t b) { return a < b ? a : b; }"],
    "floordiv_int64_t": [
        "static inline int64_t floordiv_int64_t(int64_t a, int64_t b) {",
        "    const int64_t q = b == 0 ? 0 : a / b;",
        "    return b != 0 && a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;",
        "}",
    ],
    "mod_int64_t": [
        "static inline int64_t mod_int64_t(int64_t a, int64_t b) {",
        "    return a - floordiv_int64_t(a, b) * b;",
        "}",
    ],
}
"""Arithmetic of sizes that C has no operator for; the last one uses the one before it."""


def saturating(e: Expr, fields: Mapping[Expr, Expr]) -> Expr:
    """An expression of sizes, with these as their fields, whose integer arithmetic saturates."""

    def visit(node: Expr) -> Expr | None:
        if node in fields:
            return fields[node]
        if isinstance(node, Op) and node.op in SATURATING and node.dtype is INDEX:
            return Op(INDEX, SATURATING[node.op], tuple(transform(a, visit) for a in node.args))
        return None

    return transform(e, visit)


def helpers_for(code: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Definitions of the helpers that some lines call, without those among `known` lines."""
    text = "\n".join(code)
    used = {name for name in SIZE_HELPERS if f"{name}(" in text}
    if "mod_int64_t" in used:
        used.add("floordiv_int64_t")
    wanted = [d for name, d in SIZE_HELPERS.items() if name in used and d[0] not in known]
    return [line for definition in wanted for line in definition]
