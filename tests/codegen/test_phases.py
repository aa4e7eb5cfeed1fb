"""Rows computed in phases, in parts and from tables: compiled C, interpreted nests and the definition."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.codegen.segments import segments
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Var, binary, const, constant_int, substitute
from hasten.target import Target, native, runs_here

HERE = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
RNG = np.random.default_rng(0)


def graph(body, shape, **constants):
    arrays = {
        name: np.array(value, np.float32 if name == "s" else np.int64) for name, value in constants.items()
    }
    rank = shape.count(",")
    dims = ", ".join(f"o{d}" for d in range(rank + 1))
    return program(f"(float[{shape}] x) => (float[{dims}] y) {{ y = {body} }}", arrays)


def resized(attributes, scales, shape="2, 3, 5, 45"):
    return graph(f"Resize<{attributes}>(x, , s)", shape, s=[1, 1, *scales])


CORNERS = 'mode = "linear", coordinate_transformation_mode = "align_corners"'
PROGRAMS = {
    "nearest by 2": resized('mode = "nearest"', [2, 2]),
    "nearest by 3": resized('mode = "nearest"', [1, 3]),
    "nearest by 4": resized('mode = "nearest", nearest_mode = "floor"', [4, 4]),
    "nearest to 0.8": resized('mode = "nearest"', [0.8, 0.8]),
    "linear by 2": resized('mode = "linear"', [2, 2]),
    "linear by 4": resized('mode = "linear"', [1, 4]),
    "linear by 8": resized('mode = "linear"', [1, 8], "1, 1, 2, 7"),
    "linear to corners": resized(CORNERS, [2, 3]),
    "linear of any width": resized('mode = "linear"', [2, 2], "2, 1, 3, w"),
    "nearest of any width": resized('mode = "nearest"', [1, 1.5], "2, 1, 3, w"),
    "cubic by 2": resized('mode = "cubic"', [2, 2]),
    "rows again": graph("Tile(x, t)", "7, 40", t=[2, 3]),
    "rows again and again": graph("Tile(x, t)", "3, 20", t=[1, 11]),
    "short rows again": graph("Tile(x, t)", "7, 5", t=[1, 4]),
    "rows of any width again": graph("Tile(x, t)", "7, w", t=[1, 3]),
    "reflected": graph('Pad<mode = "reflect">(x, p)', "2, 3, 5, 45", p=[0, 0, 1, 2, 0, 0, 2, 3]),
    "edges": graph('Pad<mode = "edge">(x, p)', "2, 3, 5, 45", p=[0, 0, 1, 20, 0, 0, 2, 3]),
    "around": graph('Pad<mode = "wrap">(x, p)', "3, 45", p=[1, 20, 2, 30]),
    "mean of a picture": graph("GlobalAveragePool(x)", "2, 3, 7, 9"),
    "mean of any picture": graph("GlobalAveragePool(x)", "2, 3, 7, w"),
}


def feeds(p):
    for width in (1, 4, 45):
        shape = [constant_int(n) or width for n in p.inputs["x"].shape]
        yield {"x": RNG.standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_compiled(target):
    for engine in compile_programs(list(PROGRAMS.values()), target, parallel=True):
        for given in feeds(engine.program):
            agree(engine, given, (1, 2))


@pytest.mark.parametrize("name", PROGRAMS)
def test_interpreted(name):
    p = PROGRAMS[name]
    agree(Interpreted.of(p, Target.named("x86-64-v4")), list(feeds(p))[1], (2,))


def test_places_of_no_small_fraction_are_in_tables():
    for name, tables in (("nearest by 2", 0), ("nearest to 0.8", 2), ("linear to corners", 2)):
        lowered = lower_program(PROGRAMS[name], Target.named("x86-64-v4"))
        assert len(lowered.constants) == tables and len(lowered.kernels) == 1


def test_parts_are_what_the_whole_is():
    v = Var(INDEX, "v", const(50))
    turned = binary("min", (v + 3) % 20, 17 - v % 20)
    values = (binary("max", binary("min", v * 2 - 9, const(31)), 4), turned, (v * 3 - 1) // 40)
    assert [start for start, _, _ in segments(values[:1], v)] == [0, 7, 21]
    for each in values:
        covered = 0
        for start, stop, (part,) in segments((each,), v):
            assert start == covered
            for at in range(start, stop):
                assert constant_int(substitute(part, {v: const(at)})) == constant_int(
                    substitute(each, {v: const(at)})
                )
            covered = stop
        assert covered == 50
