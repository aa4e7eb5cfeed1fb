"""Schedules: what they are as data, and that none of them changes an answer."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from tests.codegen.engines import compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.codegen.row_tiles import POINTERS
from hasten.codegen.schedule import (
    Algorithm,
    Extent,
    Order,
    ProductShape,
    Schedule,
    Schedules,
    Split,
    candidate_schedules,
    default_schedule,
    parse_schedule,
)
from hasten.errors import OptionError
from hasten.loops.nest import Declare, statements
from hasten.loops.program import Program
from hasten.target import TARGETS, Target, native, runs_here

RNG = np.random.default_rng(0)
HERE = [t for t in TARGETS if runs_here(t)]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


PROGRAMS = {
    "product": program(
        "(float[130, 37] x, float[130, 70] r) => (float[130, 70] y) "
        "{ p = MatMul(x, w) q = Add(p, r) y = Relu(q) }",
        {"w": normal(37, 70)},
    ),
    "product of any rows": program(
        "(float[m, 37] x) => (float[m, 70] y) { p = MatMul(x, w) y = Add(p, c) }",
        {"w": normal(37, 70), "c": normal(70)},
    ),
    "products of two inputs": program(
        "(float[3, 60, 9] x, float[3, 9, 66] z) => (float[3, 60, 66] y) { y = MatMul(x, z) }"
    ),
    "convolution": program(
        "(float[1, 9, 14, 13] x) => (float[1, 40, 14, 13] y) { "
        "p = Conv<pads = [1, 1, 1, 1]>(x, w, c) y = Relu(p) }",
        {"w": normal(40, 9, 3, 3), "c": normal(40)},
    ),
    "convolution with steps": program(
        "(float[2, 8, 17, 16] x) => (float[2, 33, 8, 8] y) "
        "{ y = Conv<strides = [2, 2], pads = [0, 1, 0, 1]>(x, w) }",
        {"w": normal(33, 8, 3, 3)},
    ),
}


def shape_of(p: Program, target: Target, **sizes: int) -> ProductShape:
    kernels = lower_program(p, target, Schedules(sizes=sizes)).kernels
    (shape,) = [k.product.shape for k in kernels if k.product]
    return shape


def feeds_of(p: Program, **sizes: int) -> dict[str, np.ndarray]:
    return {
        name: normal(*(sizes[n.name] if hasattr(n, "name") else int(n.value) for n in info.shape))
        for name, info in p.inputs.items()
    }


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_schedule_changes_the_answer(name: str, target: Target) -> None:
    p = PROGRAMS[name]
    key = shape_of(p, target)
    # Blocks smaller than any that is worth trying, and every division whether it is worth trying or not.
    odd = [
        Schedule(split=split, order=order, row_block=block, tile_rows=height)
        for split, order, block, height in (
            (Split.ENTRIES, Order.ROWS, 7, None),
            (Split.ROWS, Order.ROWS, 5, 2),
            (Split.PANELS, Order.ROWS, 1, 1),
            (Split.PANELS, Order.PANELS, 13, 3),
        )
    ]
    every = list(dict.fromkeys([*candidate_schedules(key, target), *odd]))
    assert len(every) > len(odd) + 1
    choices = [Schedules({str(key): schedule}) for schedule in every]
    for engine in compile_programs([p] * len(every), target, parallel=True, schedules=choices):
        for m in (1, 31, 200) if "any rows" in name else (0,):
            agree(engine, feeds_of(p, m=m), threads=(1, 2, 3))


def test_schedules_reach_the_kernels_of_their_shape_alone() -> None:
    p, target = PROGRAMS["convolution"], native()
    other = Schedule(row_block=48, tile_rows=4)
    key = shape_of(p, target)
    for text, expected in ((str(key), other), ("another", default_schedule(key, target))):
        kernels = lower_program(p, target, Schedules({text: other})).kernels
        assert [k.product.schedule for k in kernels if k.product] == [expected]


@pytest.mark.parametrize(
    ("name", "sizes", "text"),
    [
        ("product", {}, "f32: 130 rows, depth 37, 70 columns, reads 1"),
        ("product of any rows", {}, "f32: ~128 rows, depth 37, 70 columns, reads 1"),
        ("product of any rows", {"m": 33}, "f32: ~64 rows, depth 37, 70 columns, reads 1"),
        ("products of two inputs", {}, "f32: 3 times 60 rows, depth 9, 66 columns, packs"),
        ("convolution", {}, "f32: 14x13 rows, 3x3 taps by 1x1 padded, depth 9, 40 columns, reads 1"),
        ("convolution with steps", {}, "f32: 2x8x8 rows, 3x3 taps by 2x2 padded, depth 8, 33 columns"),
    ],
)  # fmt: skip
def test_keys_say_what_decides_speed(name: str, sizes: dict[str, int], text: str) -> None:
    assert str(shape_of(PROGRAMS[name], native(), **sizes)) == text


def test_the_division_stays_open_where_sizes_are_symbolic() -> None:
    p = PROGRAMS["product of any rows"]
    for target in TARGETS:
        splits = {s.split for s in candidate_schedules(shape_of(p, target), target)}
        assert splits == {Split.AUTO}


def test_the_default_is_the_first_candidate_and_candidates_are_distinct() -> None:
    for p in PROGRAMS.values():
        for target in TARGETS:
            key = shape_of(p, target)
            found = candidate_schedules(key, target)
            assert found[0] == default_schedule(key, target)
            assert len(set(found)) == len(found)
            assert [parse_schedule(json.loads(json.dumps(s.data()))) for s in found] == found


def test_a_schedule_says_what_differs() -> None:
    assert str(Schedule()) == "plain"
    made = Schedule(Algorithm.WINOGRAD_2, Split.ROWS, Order.ROWS, 96, 8)
    assert str(made) == "winograd 2, split rows, rows outside, blocks of 96, tiles of 8"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"row_block": 0}, "row_block=0"),
        ({"row_block": 10**6}, "row_block=1000000"),
        ({"row_block": True}, "row_block=True"),
        ({"tile_rows": "8"}, "tile_rows='8'"),
        ({"split": "columns"}, "'columns'"),
        ({"algorithm": None}, "None"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_no_schedule_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        parse_schedule({**Schedule().data(), **change})
    with pytest.raises(OptionError, match="object"):
        parse_schedule([change])


def test_an_extent_that_is_only_likely_shows() -> None:
    assert str(Extent(8)) == "8"
    assert str(Extent(8, symbolic=True)) == "~8"
    assert dataclasses.replace(Extent(8), symbolic=True) != Extent(8)


@pytest.mark.parametrize(
    ("rows", "height"),
    [(1, None), (10, None), (12, None), (14, 8), (16, 8), (20, None), (49, None), (128, None)],
)
def test_few_rows_are_divided_evenly_over_tiles(rows: int, height: int | None) -> None:
    for count, columns, expected in ((rows, 384, height), (rows + 1000, 384, None)):
        p = program(
            f"(float[{count}, 8] x) => (float[{count}, {columns}] y) {{ y = MatMul(x, w) }}",
            {"w": normal(8, columns)},
        )
        target = Target.named("x86-64-v4")
        assert default_schedule(shape_of(p, target), target).tile_rows == expected
        narrow = Target.named("x86-64-v3")
        assert default_schedule(shape_of(p, narrow), narrow).tile_rows is None


@pytest.mark.parametrize("window", [3, 40, 72])
def test_row_pointers_fit_the_stack(window):
    """One for each row of a block and tap of the window."""
    weight = np.random.default_rng(0).standard_normal((4, 8, window, window)).astype(np.float32) / window
    p = program("(float[n, 8, h, w0] x) => (float[n, 4, i, j] y) { y = Conv(x, w) }", {"w": weight})
    for name in ("x86-64-v3", "x86-64-v4", "aarch64"):
        (kernel,) = [k for k in lower_program(p, Target.named(name)).kernels if k.product is not None]
        (table,) = [
            s for s in statements(kernel.function.body) if isinstance(s, Declare) and s.name == "table"
        ]
        assert math.prod(table.dims) <= POINTERS
    (engine,) = compile_programs([p], native())
    x = np.random.default_rng(1).standard_normal((1, 8, window + 2, window + 1)).astype(np.float32)
    agree(engine, {"x": x}, (1, 2), tolerance=4e-6)
