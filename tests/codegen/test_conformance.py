"""The conformance suite of the operators, run by what the code generator makes of its programs."""

from collections import defaultdict

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, assert_close, program
from tests.codegen.recorder import Seen, conformance_programs

from hasten.errors import InputError
from hasten.loops.evaluate import evaluate
from hasten.target import TARGETS, Target, native, runs_here

COMPILED_OF_EACH = 7
"""Programs of each test that are compiled; the rest differ in shapes and constants."""

WHOLE_MODEL = 40
"""Definitions of a program that is not one operator's."""

PLAIN = tuple(t for t in TARGETS if not t.factors)
"""Targets that differ in their vectors alone."""

LOOSE = {"test_layer_normalization_does_not_cancel_far_from_zero": 1e-4}
"""Tests whose sums lose digits in float32 however they are computed, and their tolerance."""


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    return [s for s in conformance_programs() if not is_left_out(s)]


def is_left_out(s: Seen) -> bool:
    """Whole models, and what `partition` changes: results that are no definitions, computed sizes."""
    p = s.program
    if any(e.tensor in p.definitions for e in p.elements.values()):
        return True
    return len(p.definitions) > WHOLE_MODEL or not p.definitions.keys() >= set(p.outputs)


def tolerance_of(s: Seen) -> float:
    return LOOSE.get(s.test.split("::")[1], 4e-6)


def of_each(seen: list[Seen], count: int) -> list[Seen]:
    """At most so many programs of each test, evenly chosen."""
    by_test = defaultdict(list)
    for s in seen:
        by_test[s.test.split("[")[0]].append(s)
    return [s for group in by_test.values() for s in group[:: max(1, len(group) // count)][:count]]


@pytest.fixture(scope="module")
def compiled(seen):
    """Programs of each test, and what they are as machine code of every width of vectors that runs here."""
    chosen = of_each(seen, COMPILED_OF_EACH)
    assert len(chosen) > 300
    targets = dict.fromkeys(t for t in (*PLAIN, native()) if runs_here(t))
    return chosen, {
        t: compile_programs([s.program for s in chosen], t, parallel=True)
        for t in targets
        if t is native() or t.vector_bytes != native().vector_bytes
    }


def test_compiled_c_agrees(compiled):
    chosen, engines = compiled
    wrong = []
    for target, of_target in engines.items():
        for s, engine in zip(chosen, of_target, strict=True):
            for feeds in s.examples:
                try:
                    agree(engine, feeds, (1, 2), tolerance_of(s))
                except AssertionError as error:
                    wrong.append(f"{target.name}: {s.test}: {error}")
    assert not wrong, "\n".join(wrong)


def test_machine_code_of_all_widths_gives_the_same_bits(compiled):
    chosen, engines = compiled
    differ = []
    for number, s in enumerate(chosen):
        for feeds in s.examples:
            first, *others = ([*e[number].run(feeds).values()] for e in engines.values())
            for other in others:
                same = (a.tobytes() == b.tobytes() for a, b in zip(first, other, strict=True))
                differ += [] if all(same) else [s.test]
    assert not differ, "\n".join(dict.fromkeys(differ))


@pytest.mark.parametrize(
    ("name", "threads", "first"), [("x86-64-v3", 1, 0), ("x86-64-v4", 3, 1), ("aarch64", 2, 2)]
)
def test_interpreted_nests_agree(seen, name, threads, first):
    wrong = []
    for s in seen[first::4]:
        try:
            agree(Interpreted.of(s.program, Target.named(name)), s.examples[0], (threads,), tolerance_of(s))
        except AssertionError as error:
            wrong.append(f"{s.test}: {error}")
    assert not wrong, "\n".join(wrong)


def test_an_index_out_of_range_names_operator_and_index():
    p = program("(float[n, 3] x, int64[m] i) => (float[m, 3] y) { z = Exp(x) y = Gather(z, i) }")
    x = np.ones((4, 3), np.float32)
    engines = [*compile_programs([p], native()), Interpreted.of(p, native())]
    for engine in engines:
        agree(engine, {"x": x, "i": np.array([0, -4, 3])})
        for bad in (4, -5, 2**40):
            with pytest.raises(InputError, match=f"index {bad} is outside.* 4 in .*Gather"):
                engine.run({"x": x, "i": np.array([0, bad])})
    with pytest.raises(InputError, match="Gather"):
        evaluate(p, {"x": x, "i": np.array([4])})


def test_a_size_may_have_any_name():
    text = "(float[{}] x, float[{}] w) => (float[{}] y) {{ y = MatMul(x, w) }}"
    names = [
        ("a, b, out", "a, out, thread", "a, b, thread"),
        ("x0, fault, int", "x0, int, for", "x0, fault, for"),
    ]
    for engine in compile_programs([program(text.format(*n)) for n in names], native()):
        feeds = {"x": np.ones((2, 3, 5), np.float32), "w": np.ones((2, 5, 4), np.float32)}
        assert_close(engine.run(feeds)["y"], np.full((2, 3, 4), 5, np.float32), "y")
