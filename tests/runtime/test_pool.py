"""The thread pool, through C tasks that notice any thread that is missing, twice there or too early."""

from __future__ import annotations

import ctypes
import importlib.resources
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hasten.codegen.toolchain import build, find_compiler
from hasten.target import cores, native

SOURCE = """
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#include "pool.h"

#include <time.h>

enum { MOST = 64 };
typedef struct { int64_t barriers, errors, count; int64_t turn[MOST][16]; } work;

/* Each thread says which turn it is in; after a barrier all must be in the same. */
static void take_turns(void *argument, hasten_team *team) {
    work *w = argument;
    if (team->index == 0) w->count = team->count;
    w->turn[team->index][0]++;
    for (int64_t i = 0; i < w->barriers; i++) {
        hasten_barrier(team);
        for (int j = 0; j < team->count; j++) {
            if (w->turn[j][0] != i + 1) __atomic_fetch_add(&w->errors, 1, __ATOMIC_RELAXED);
        }
        hasten_barrier(team);
        w->turn[team->index][0]++;
    }
}

/* Returns the number of errors; *smallest is the smallest team that was got. */
HASTEN_API int64_t stress(hasten_pool *pool, int32_t threads, int64_t runs, int64_t barriers,
                          int64_t nanoseconds, int64_t *smallest) {
    int64_t errors = 0;
    *smallest = MOST;
    for (int64_t r = 0; r < runs; r++) {
        work w = {.barriers = barriers};
        hasten_pool_run(pool, threads, nanoseconds, take_turns, &w);
        errors += w.errors;
        for (int64_t j = 0; j < MOST; j++) errors += w.turn[j][0] != (j < w.count ? barriers + 1 : 0);
        if (w.count < *smallest) *smallest = w.count;
    }
    return errors;
}

typedef struct { hasten_pool *pool; int64_t errors; } nest;

static void run_inside(void *argument, hasten_team *team) {
    nest *n = argument;
    int64_t smallest;
    int64_t errors = stress(n->pool, team->count, 10, 3, INT64_MAX, &smallest);
    __atomic_fetch_add(&n->errors, errors, __ATOMIC_RELAXED);
}

HASTEN_API int64_t nested(hasten_pool *pool, int32_t threads) {
    nest n = {pool, 0};
    hasten_pool_run(pool, threads, INT64_MAX, run_inside, &n);
    return n.errors;
}

typedef struct { int32_t milliseconds, count; } lag;

/* The last thread stands still, as if another program had its core. */
static void stand_still(void *argument, hasten_team *team) {
    lag *l = argument;
    struct timespec pause = {0, l->milliseconds * 1000000};
    if (team->index == 0) l->count = team->count;
    if (team->count > 1 && team->index == team->count - 1) nanosleep(&pause, NULL);
    hasten_barrier(team);
}

/* Returns the size of the team of a task of 100 ms. */
HASTEN_API int64_t team_size(hasten_pool *pool, int32_t threads, int32_t milliseconds) {
    lag l = {milliseconds, 0};
    hasten_pool_run(pool, threads, 100 * 1000 * 1000, stand_still, &l);
    return l.count;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("pool") / "pool.so"
    path.write_bytes(build({"stress.c": SOURCE}, native(), find_compiler(native())))
    library = ctypes.CDLL(str(path))
    library.hasten_pool_create.restype = ctypes.c_void_p
    library.hasten_pool_destroy.argtypes = [ctypes.c_void_p]
    library.stress.restype = library.nested.restype = library.team_size.restype = ctypes.c_int64
    library.stress.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.nested.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.team_size.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    return library


@pytest.fixture
def pool(library: ctypes.CDLL) -> Iterator[int]:
    made = library.hasten_pool_create(0)
    yield made
    library.hasten_pool_destroy(made)


FOR_ALL = 2**63 - 1
"""The time of a task for which a caller waits until all workers have come."""


def stress(
    library: ctypes.CDLL, pool: int | None, threads: int, runs: int, barriers: int, nanoseconds: int = FOR_ALL
) -> int:
    """Checks the runs; returns the size of the smallest team."""
    smallest = ctypes.c_int64()
    assert library.stress(pool, threads, runs, barriers, nanoseconds, ctypes.byref(smallest)) == 0
    return smallest.value


def test_all_threads_come_and_meet(library: ctypes.CDLL, pool: int) -> None:
    assert stress(library, pool, 1, 100, 5) == 1
    assert stress(library, pool, 2, 2000, 5) == 2
    for threads in (3, 7, 2, 4):  # more than the machine has; more and fewer than before
        assert stress(library, pool, threads, 40, 4) == threads
    assert stress(library, None, 4, 10, 3) == 1


def test_a_limited_pool_and_one_that_never_ran(library: ctypes.CDLL) -> None:
    pool = library.hasten_pool_create(2)
    assert stress(library, pool, 5, 20, 2) == 2
    library.hasten_pool_destroy(pool)
    library.hasten_pool_destroy(library.hasten_pool_create(3))
    library.hasten_pool_destroy(None)


def test_workers_that_sleep_wake_up(library: ctypes.CDLL, pool: int) -> None:
    pause = threading.Event()
    for _ in range(20):
        assert stress(library, pool, 2, 1, 2) == 2
        pause.wait(0.002)  # longer than they spin


def test_callers_at_once_and_runs_inside_runs(library: ctypes.CDLL, pool: int) -> None:
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda threads: stress(library, pool, threads, 150, 3), [2, 3, 1, 2] * 2))
    assert library.nested(pool, 3) == 0
    assert stress(library, pool, 2, 10, 2) == 2


def test_works_on_a_busy_machine(library: ctypes.CDLL, pool: int) -> None:
    others = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * min(cores(), 4))]
    try:
        assert stress(library, pool, 2, 50, 5) == 2
        assert stress(library, pool, 4, 20, 3) == 4
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_short_tasks_do_not_wait_for_workers(library: ctypes.CDLL, pool: int) -> None:
    others = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * min(cores(), 4))]
    try:
        for nanoseconds in (0, 1000, 50_000):  # whoever comes in time is the team, and no one else
            assert 1 <= stress(library, pool, 2, 300, 3, nanoseconds) <= 2
            assert 1 <= stress(library, pool, 4, 60, 2, nanoseconds) <= 4
        assert stress(library, pool, 2, 1, 2) == 2
    finally:
        for other in others:
            other.kill()
            other.wait()


def until(size: int, library: ctypes.CDLL, pool: int, lag: int) -> bool:
    """Whether teams that ask for 3 threads get to be of this size within 10 s."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if library.team_size(pool, 3, lag) == size:
            return True
        time.sleep(0.002)
    return False


def test_threads_whose_cores_others_use_are_left_out_for_a_while(library: ctypes.CDLL, pool: int) -> None:
    assert until(3, library, pool, 0)
    assert until(2, library, pool, 30)
    assert until(1, library, pool, 30)
    assert until(3, library, pool, 0)
    assert stress(library, pool, 3, 5, 2) == 3  # whoever waits for all gets all


def test_destroying_ends_the_threads(library: ctypes.CDLL) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = count()
    pool = library.hasten_pool_create(0)
    stress(library, pool, 5, 3, 2)
    assert count() == before + 4
    library.hasten_pool_destroy(pool)
    assert count() == before


def test_the_source_compiles_without_warnings(tmp_path: Path) -> None:
    runtime = Path(str(importlib.resources.files("hasten"))) / "runtime"
    commands = {find_compiler().command}
    commands |= {(name,) for name in ("gcc", "clang") if shutil.which(name)}
    (tmp_path / "uses.cc").write_text('#include "hasten.h"\nint main() { return HASTEN_OK; }\n')
    for command in sorted(commands):
        common = [*command, "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{runtime / 'include'}"]
        for source, language in ((runtime / "csrc/pool.c", "c11"), (tmp_path / "uses.cc", "c++11")):
            subprocess.run(
                [*common, f"-std={language}", "-c", str(source), "-o", str(tmp_path / "x.o")],
                check=True,
                env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "zig")},
            )
