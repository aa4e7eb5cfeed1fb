import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.codegen.memory import ALIGNMENT, Lifetime, plan_memory
from hasten.loops.expr import const, round_up, size
from hasten.loops.scope import size_value

N, M = size("n"), size("m")


@st.composite
def lifetimes(draw):
    made = []
    for i in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, 9))
        factor = draw(st.sampled_from([const(4), N * 4, M * 8, N * M * 4, N * N]))
        bytes_ = round_up(factor * draw(st.integers(1, 50)), ALIGNMENT)
        same = [t.name for t in made if t.bytes == bytes_ and t.first < first]
        over = draw(st.sampled_from([None, *same]))
        made.append(Lifetime(f"t{i}", bytes_, first, first + draw(st.integers(0, 5)), over))
    return made


@settings(max_examples=200, deadline=None)
@given(lifetimes(), st.integers(0, 40), st.integers(0, 300))
def test_tensors_that_live_at_once_never_share_memory_at_any_size(tensors, n, m):
    sizes = {"n": n, "m": m}
    slots = plan_memory(tensors)
    by_name = {t.name: t for t in tensors}
    assert sorted(name for s in slots for name in s.tensors) == sorted(by_name)
    for s in slots:
        room = size_value(s.bytes, sizes)
        assert room % ALIGNMENT == 0
        assert all(size_value(by_name[name].bytes, sizes) <= room for name in s.tensors)
        in_order = sorted((by_name[name] for name in s.tensors), key=lambda t: t.first)
        for a, b in itertools.combinations(in_order, 2):
            apart = a.last < b.first or b.last < a.first
            assert apart or (b.over == a.name and a.last == b.first)


def test_a_chain_needs_two_slots():
    chain = [Lifetime(f"t{i}", N * 64, i, i + 1) for i in range(6)]
    assert [s.tensors for s in plan_memory(chain)] == [("t0", "t2", "t4"), ("t1", "t3", "t5")]


def test_a_chain_of_results_over_what_they_are_made_from_needs_one():
    chain = [Lifetime(f"t{i}", N * 64, i, i + 1, f"t{i - 1}") for i in range(6)]
    assert [s.tensors for s in plan_memory(chain)] == [tuple(f"t{i}" for i in range(6))]


def test_what_is_read_later_is_not_written_over():
    read_later = [Lifetime("a", N * 64, 0, 3), Lifetime("b", N * 64, 1, 3, "a")]
    assert [s.tensors for s in plan_memory(read_later)] == [("a",), ("b",)]
