from __future__ import annotations

import pytest

from hasten.loops.expr import Expr, binary, const, size
from hasten.loops.simplify import infix

A, B = size("a"), size("b")


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (A * B * 4, "a * b * 4"),
        ((A + B) * 2, "a * 2 + b * 2"),
        ((A + 1) // 2, "(a + 1) // 2"),
        (A - (B - 1), "a + 1 - b"),
        (binary("max", A - 3, const(0)), "max(a - 3, 0)"),
        (A // (B + 1), "a // (b + 1)"),
    ],
)
def test_sizes_read_as_people_write_them(e: Expr, text: str) -> None:
    assert infix(e) == text


def test_named_sizes_are_written_out() -> None:
    assert infix(size("half") * 2, {"half": (A - 1) // 2 + 1}) == "((a - 1) // 2 + 1) * 2"
