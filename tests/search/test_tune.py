"""What tuning decides from given times, and that it measures and verifies what an artifact runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.codegen.graphs import program
from tests.codegen.test_alone import WHOLE

from hasten.codegen.lower_stages import lower_program
from hasten.codegen.schedule import Order, Schedule, Schedules, candidate_schedules
from hasten.errors import ToolchainError, TuningError
from hasten.loops.dtypes import DType
from hasten.search.results import Result, Results, export_lines, import_lines
from hasten.search.tune import (
    SCREENING_ROUNDS,
    Pick,
    Settings,
    candidates_for,
    machine_for,
    never,
    pick_fastest,
    stored_schedules,
    tasks_of,
    tune_programs,
)
from hasten.search.tune_bench import TOLERANCE, Bench, Task, distance
from hasten.search.tune_verify import verify_stored
from hasten.target import Target, native

RNG = np.random.default_rng(0)
SETTINGS = Settings("quick", 1, DType.F32, "0.1.0", None)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SMALL = program(
    "(float[n, 20] x) => (float[n, 70] y) { p = MatMul(x, a) q = Relu(p) r = MatMul(q, b) s = Tanh(r) "
    "y = MatMul(s, b) }",
    {"a": normal(20, 70), "b": normal(70, 70)},
)  # fmt: skip
SIZES = {"n": 30}


def timer(*tracks: Sequence[float]) -> Callable[[int], float]:
    """A sample of schedule i is the next of its times; the last one stays."""
    times = [itertools.chain(t, itertools.repeat(t[-1])) for t in tracks]
    return lambda index: next(times[index])


# The decision


def test_the_fastest_is_taken() -> None:
    assert pick_fastest([0, 1, 2], timer([1.0], [0.9], [0.8]), never) == Pick(2, 0.8, 1.0)


def test_the_default_stays_where_the_gain_is_noise() -> None:
    assert pick_fastest([0, 1, 2], timer([1.0], [0.99], [1.01]), never) == Pick(0, 1.0, 1.0)


def test_a_gain_that_does_not_last_is_none() -> None:
    lucky = [0.5] * SCREENING_ROUNDS + [1.0]
    assert pick_fastest([0, 1], timer([1.0], lucky), never) == Pick(0, 1.0, 1.0)


def test_a_gain_in_one_half_of_the_rounds_is_none() -> None:
    # The machine grows twice as fast in between: the minimum over everything would call that a gain.
    slow, fast = SCREENING_ROUNDS + 6, 0.5
    default = [1.0] * slow + [fast]
    other = [0.9] * slow + [fast]
    assert pick_fastest([0, 1], timer(default, other), never) == Pick(0, fast, fast)


def test_the_next_best_gets_its_chance() -> None:
    lucky = [0.5] * SCREENING_ROUNDS + [1.0]
    assert pick_fastest([0, 1, 2], timer([1.0], lucky, [0.54]), never) == Pick(2, 0.54, 1.0)


def test_what_is_far_behind_is_not_measured_for_long() -> None:
    counts = [0, 0, 0]
    times = (1.0, 3.0, 0.9)

    def sample(index: int) -> float:
        counts[index] += 1
        return times[index]

    assert pick_fastest([0, 1, 2], sample, never) == Pick(2, 0.9, 1.0)
    assert counts[1] == 2
    assert counts[0] == counts[2] > SCREENING_ROUNDS


def test_one_disturbed_round_costs_nobody_the_choice() -> None:
    assert pick_fastest([0, 1], timer([1.0], [50.0, 0.8]), never) == Pick(1, 0.8, 1.0)


@pytest.mark.parametrize("looks", [0, SCREENING_ROUNDS * 2 + 5])
def test_without_time_there_is_no_choice(looks: int) -> None:
    """The clock is looked at before each sample: those of slow kernels take long."""
    count = itertools.count()
    taken: list[int] = []

    def sample(index: int) -> float:
        taken.append(index)
        return (1.0, 0.1)[index]

    with pytest.raises(TimeoutError):
        pick_fastest([0, 1], sample, lambda: next(count) >= looks)
    assert len(taken) == looks


def test_the_default_alone() -> None:
    assert pick_fastest([0], timer([1.0]), never) == Pick(0, 1.0, 1.0)


# What is tuned


def test_equal_kernels_are_one_task_and_the_largest_is_first() -> None:
    tasks = tasks_of([SMALL, SMALL], native(), SIZES)
    assert [str(t.shape) for t in tasks] == [
        "f32: ~32 rows, depth 70, 70 columns",
        "f32: ~32 rows, depth 20, 70 columns",
    ]
    assert tasks[0].resident == sum(a.nbytes for a in SMALL.constants.values())


def test_a_quick_search_changes_one_choice_at_a_time() -> None:
    (task, *_) = tasks_of([SMALL], native(), SIZES)
    quick, full = (candidates_for(task.shape, native(), effort) for effort in ("quick", "full"))
    assert quick[0] == full[0]
    assert full == candidate_schedules(task.shape, native())
    assert set(quick) < set(full)
    for s in quick[1:]:
        assert sum(getattr(s, f.name) != getattr(quick[0], f.name) for f in dataclasses.fields(s)) == 1


def test_sizes_that_no_run_has_are_not_measured(results: Results) -> None:
    """A window that reaches beyond the picture: its kernel would read outside."""
    valid = program(
        "(float[1, 2, h, v] x) => (float[1, 9, k, l] y) { y = Conv(x, w) }", {"w": normal(9, 2, 5, 5)}
    )
    for height, known in ((3, False), (4, False), (5, True)):
        builder = Builder(rows_outside_is_faster)
        sizes = {"h": height, "v": 9}
        report = tune_programs([valid], native(), sizes, results, SETTINGS, build=builder)
        assert (report.measured, report.unknown, len(builder.built)) == (known, not known, known), height
    joined = program(
        "(float[n, 9] x, float[m, 9] z) => (float[k, 9] y, float[n, 9] u) "
        "{ c = Concat<axis = 0>(x, z) y = MatMul(c, w) u = MatMul(x, w) }", {"w": normal(9, 9)}
    )  # fmt: skip
    report = tune_programs(
        [joined], native(), {"n": 0, "m": 5}, results, SETTINGS, build=Builder(rows_outside_is_faster)
    )
    assert (report.measured, report.unknown) == (1, 1)


class Fake:
    """A kernel with given times; its answers are right unless said otherwise."""

    def __init__(
        self, schedules: Sequence[Schedule], seconds: Callable[[Schedule], float], wrong: set[int]
    ) -> None:
        self.schedules, self.seconds, self.wrong = schedules, seconds, wrong

    def sample(self, index: int) -> float:
        return self.seconds(self.schedules[index])

    def difference(self, index: int, expected: np.ndarray) -> float:
        return math.inf if index in self.wrong else TOLERANCE / 2

    def expected(self) -> np.ndarray:
        return np.zeros(1)


@dataclasses.dataclass
class Builder:
    """Builds fakes and remembers for what."""

    seconds: Callable[[Schedule], float]
    wrong: set[int] = dataclasses.field(default_factory=set)
    built: list[str] = dataclasses.field(default_factory=list)
    fails: bool = False

    def __call__(
        self,
        task: Task,
        schedules: Sequence[Schedule],
        target: Target,
        threads: int,
        cache: Path | None,
        stop: Callable[[], bool],
    ) -> Fake:
        self.built.append(str(task.shape))
        if self.fails:
            raise ToolchainError("the compiler failed")
        return Fake(schedules, self.seconds, self.wrong)


def rows_outside_is_faster(s: Schedule) -> float:
    return 0.5 if s.order is Order.ROWS else 1.0


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "tuning.sqlite")


def test_results_are_recorded_and_used_and_not_measured_again(results: Results) -> None:
    builder, machine = Builder(rows_outside_is_faster), machine_for(native(), 1)
    report = tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder)
    assert (report.measured, report.improved, report.stored, report.left, report.notes) == (2, 2, 0, 0, ())
    assert len(builder.built) == 2
    rows = results.rows(machine, SETTINGS.version)
    found = {(r.seconds, r.default_seconds, r.effort, r.schedule.order) for r in rows}
    assert found == {(0.5, 1.0, "quick", Order.ROWS)}
    again = tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder)
    assert (again.measured, again.stored) == (0, 2)
    assert len(builder.built) == 2
    chosen = Schedules(stored_schedules(results, machine, SETTINGS.version), SIZES)
    orders = [k.product.schedule.order for k in lower_program(SMALL, native(), chosen).kernels if k.product]
    assert orders == [Order.ROWS] * 3


def test_other_efforts_threads_and_versions_are_measured_anew(results: Results) -> None:
    builder = Builder(rows_outside_is_faster)
    tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder)
    for change in ({"threads": 2}, {"effort": "full"}, {"version": "0.2.0"}):
        settings = dataclasses.replace(SETTINGS, **change)
        assert tune_programs([SMALL], native(), SIZES, results, settings, build=builder).measured == 2, change
    full = dataclasses.replace(SETTINGS, effort="full")
    tune_programs([SMALL], native(), SIZES, results, full, build=builder)
    assert tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder).stored == 2


def test_a_schedule_with_a_wrong_answer_is_refused(results: Results) -> None:
    (task, *_) = tasks_of([SMALL], native(), SIZES)
    candidates = candidates_for(task.shape, native(), "quick")
    wrong = {i for i, s in enumerate(candidates) if s.order is Order.ROWS}
    builder = Builder(rows_outside_is_faster, wrong)
    report = tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder)
    assert report.improved == 0
    assert len(report.notes) == 2 * len(wrong)
    assert "rows outside' differs" in report.notes[0]
    assert all(r.schedule.order is Order.PANELS for r in results.rows())


def test_where_the_default_is_wrong_nothing_is_kept(results: Results) -> None:
    builder = Builder(rows_outside_is_faster, {0})
    report = tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder)
    assert (report.measured, report.left, report.refused) == (0, 0, 2)
    assert results.rows() == []


def test_what_cannot_be_built_is_told_and_no_failure(results: Results) -> None:
    builder = Builder(rows_outside_is_faster, fails=True)
    report = tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=builder)
    assert (report.measured, report.left, report.refused) == (0, 0, 2)
    assert "cannot be built alone (the compiler failed)" in report.notes[0]
    assert results.rows() == []


def test_what_was_measured_elsewhere_is_verified_before_it_is_used(results: Results, tmp_path: Path) -> None:
    machine = machine_for(native(), 1)
    tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=Builder(rows_outside_is_faster))
    right, wrong = (Results(tmp_path / name) for name in ("right", "wrong"))
    for other, bad in ((right, set[int]()), (wrong, {0})):
        import_lines(export_lines(results.rows()), other)
        assert len(other.rows()) == 2
        assert stored_schedules(other, machine, SETTINGS.version) == {}
        builder = Builder(rows_outside_is_faster, bad)
        told = [verify_stored([SMALL], native(), SIZES, other, SETTINGS, build=builder) for _ in range(2)]
        assert [len(t.notes) for t in told] == [2 * len(bad), 0]
        assert len(builder.built) == 2
    known = stored_schedules(results, machine, SETTINGS.version)
    assert stored_schedules(right, machine, SETTINGS.version) == known
    assert wrong.rows() == []


def of_another_machine(results: Results) -> list[Result]:
    """Results for `SMALL`, as if imported."""
    tune_programs([SMALL], native(), SIZES, results, SETTINGS, build=Builder(rows_outside_is_faster))
    imported = results.rows()
    results.clear()
    results.record(imported, verified=False)
    return imported


def test_what_cannot_be_built_is_not_verified_and_kept(results: Results) -> None:
    """A compiler that fails says nothing of a schedule."""
    imported = of_another_machine(results)
    builder = Builder(rows_outside_is_faster, fails=True)
    notes = verify_stored([SMALL], native(), SIZES, results, SETTINGS, build=builder).notes
    assert len(notes) == 2
    assert "cannot be built here and is not used (the compiler failed)" in notes[0]
    assert results.rows(verified=False) == imported


def test_the_time_limit(results: Results) -> None:
    now = 0.0

    def slow(s: Schedule) -> float:
        nonlocal now
        now += 1.0
        return rows_outside_is_faster(s)

    candidates = len(candidates_for(tasks_of([SMALL], native(), SIZES)[0].shape, native(), "quick"))
    limit = candidates * SCREENING_ROUNDS + 30.0
    enough_for_one = dataclasses.replace(SETTINGS, out_of_time=lambda: now >= limit)
    report = tune_programs([SMALL], native(), SIZES, results, enough_for_one, build=Builder(slow))
    assert (report.measured, report.left) == (1, 1)
    assert [r.kernel for r in results.rows()] == ["f32: ~32 rows, depth 70, 70 columns"]


def test_verifying_ends_with_the_time(results: Results) -> None:
    of_another_machine(results)
    count = itertools.count()
    once = dataclasses.replace(SETTINGS, out_of_time=lambda: next(count) >= 1)
    verify_stored([SMALL], native(), SIZES, results, once, build=Builder(rows_outside_is_faster))
    assert [r.kernel for r in results.rows(verified=True)] == ["f32: ~32 rows, depth 70, 70 columns"]
    assert len(results.rows(verified=False)) == 1


def test_what_was_verified_before_an_interruption_stays_so(results: Results) -> None:
    of_another_machine(results)
    told = itertools.count()

    def interrupt(_: str) -> None:
        if next(told) == 1:
            raise KeyboardInterrupt

    build = Builder(rows_outside_is_faster)
    with pytest.raises(KeyboardInterrupt):
        verify_stored([SMALL], native(), SIZES, results, SETTINGS, build=build, progress=interrupt)
    assert [r.kernel for r in results.rows(verified=True)] == ["f32: ~32 rows, depth 70, 70 columns"]


@pytest.mark.parametrize("looks", [2, 15, 25])
def test_the_time_limit_holds_while_kernels_are_built(looks: int, results: Results) -> None:
    """The clock is looked at between two schedules, two files and two comparisons."""
    p, sizes = CUT["products"]
    ticks = itertools.count()
    settings = dataclasses.replace(SETTINGS, effort="full", out_of_time=lambda: next(ticks) >= looks)
    report = tune_programs([p], native(), sizes, results, settings)
    assert (report.measured, report.left, report.refused) == (0, 2, 0)
    assert next(ticks) < looks + 10


def test_a_database_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    builder = Builder(rows_outside_is_faster)
    with pytest.raises(TuningError):
        tune_programs([SMALL], native(), SIZES, Results(tmp_path), SETTINGS, build=builder)
    assert builder.built == []


# Real kernels


CUT = {
    "bytes": (WHOLE["bytes"], {"n": 30}),
    "pictures of bytes": (WHOLE["pictures of bytes"], {"b": 1, "h": 9, "w0": 8}),
    "products": (SMALL, SIZES),
    "pictures": (
        program(
            "(float[b, 9, h, w0] x) => (float[b, 40, oh, ow] y) { p = Conv<pads = [1, 1, 1, 1]>(x, w1, c) "
            "q = Relu(p) r = Conv<strides = [2, 2]>(q, w2) y = HardSwish(r) }",
            {"w1": normal(40, 9, 3, 3), "c": normal(40), "w2": normal(40, 40, 1, 1)},
        ),
        {"b": 1, "h": 9, "w0": 8},
    ),
    "what has no logarithm": (
        program(
            "(float[m, 12] x) => (float[m, 40] y) { p = MatMul(x, w) y = Log(p) }", {"w": normal(12, 40)}
        ),
        {"m": 14},
    ),
    "two inputs": (
        program("(float[b, m, k] x, float[b, k, n] z) => (float[b, m, n] y) { y = MatMul(x, z) }"),
        {"b": 3, "m": 14, "k": 5, "n": 33},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


WAYS = [(1, DType.F32), (2, DType.F32), (2, DType.BF16)]


@pytest.mark.parametrize(
    ("name", "threads", "precision"),
    [(n, *way) for n in CUT for way in (WAYS[1:2] if "bytes" in n else WAYS)],
)
def test_a_bench_runs_what_the_interpreter_defines(
    name: str, threads: int, precision: DType, cache: Path
) -> None:
    p, sizes = CUT[name]
    for task in tasks_of([p], native(), sizes, precision):
        candidates = candidates_for(task.shape, native(), "quick")
        bench = Bench(task, candidates, native(), threads, cache)
        expected = bench.expected()
        assert np.nanmax(np.abs(expected.astype(np.float32))) > 0
        for index in range(len(candidates)):
            assert bench.difference(index, expected) <= TOLERANCE
            assert 0 < bench.sample(index) < 1
        assert len(np.unique(expected.astype(np.float32))) > 20
        step = 1 if expected.dtype == np.uint8 else np.nanmax(expected)
        assert bench.difference(0, expected.astype(np.float32) + np.float32(step)) > TOLERANCE
        bench.output.fill(0 if expected.dtype == np.uint8 else np.inf)
        bench.sample(0)
        left = bench.output.astype(np.float32)
        assert (np.isfinite(left) == np.isfinite(expected.astype(np.float32))).all()
        assert np.nanmax(np.abs(left - expected.astype(np.float32))) <= max(1, 0.01 * np.nanmax(np.abs(left)))


def test_what_is_not_finite_must_be_where_it_is_expected() -> None:
    expected = np.array([1, -2, np.nan, np.inf, -np.inf], np.float32)
    assert distance(expected, expected, DType.F32) == 0
    assert distance(expected * np.float32(1.25), expected, DType.F32) == 0.25
    for place, other in itertools.product(range(5), (np.nan, np.inf, 3e38)):
        wrong = expected.copy()
        wrong[place] = other
        if not np.array_equal(wrong, expected, equal_nan=True):
            assert distance(wrong, expected, DType.F32) > 1, (place, other)


def test_tuning_ends_with_a_result_for_each_kernel(results: Results, cache: Path) -> None:
    p, sizes = CUT["pictures"]
    report = tune_programs([p], native(), sizes, results, dataclasses.replace(SETTINGS, cache=cache))
    assert (report.measured, report.left, report.notes) == (2, 0, ())
    for r in results.rows():
        assert 0 < r.seconds <= r.default_seconds
