"""The results of tuning on disk: what is kept, who may write at once, and files that are no good."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.codegen.schedule import Order, Schedule, Split
from hasten.errors import TuningError
from hasten.search.results import (
    SCHEMA,
    Machine,
    Result,
    Results,
    default_database,
    export_lines,
    import_lines,
)

HERE = Machine("x86-64-v3", "Some Processor", 2)


def result(
    kernel: str = "f32: 8 rows", *, measured: str = "2026-01-02T03:04:05+00:00", **changes: object
) -> Result:
    schedule = Schedule(split=Split.ROWS, order=Order.ROWS, row_block=48, tile_rows=4)
    made = Result(kernel, HERE, schedule, 1e-6, 2e-6, "quick", "0.1.0", measured)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "folder" / "tuning.sqlite")


def test_what_is_recorded_comes_back(results: Results) -> None:
    assert results.rows() == []
    assert not results.path.exists()
    there = Machine("aarch64", "Another", 2)
    rows = [result("a"), result("b"), result("a", machine=there, version="0.2.0")]
    assert results.record(rows) == 3
    assert results.rows() == [rows[2], rows[0], rows[1]]
    assert results.rows(HERE) == rows[:2]
    assert results.rows(dataclasses.replace(HERE, threads=1)) == []
    assert results.rows(there, "0.1.0") == []
    assert results.clear() == 3
    assert results.rows() == []


def test_a_kernel_has_one_result_of_a_version_on_a_machine(results: Results) -> None:
    results.record([result()])
    newer = result(seconds=5e-7, effort="full", schedule=Schedule())
    other = result(version="0.2.0")
    results.record([newer, other])
    assert results.rows() == [newer, other]
    results.judge(other, right=False)
    assert results.rows() == [newer]


def test_what_was_imported_replaces_nothing_that_is_better(results: Results) -> None:
    mine = result("a", effort="full")
    later = "2027-01-01T00:00:00+00:00"
    quick, full = (result("a", measured=later, effort=effort, seconds=5e-7) for effort in ("quick", "full"))
    results.record([mine])
    assert import_lines(export_lines([quick]), results).kept == 1
    assert results.rows() == [mine]
    assert import_lines(export_lines([full]), results).kept == 0
    assert import_lines(export_lines([quick]), results).kept == 0  # the one that is there is not verified
    assert results.rows() == [quick]


def test_export_and_import(results: Results, tmp_path: Path) -> None:
    rows = [result("a"), result("b")]
    results.record(rows)
    other = Results(tmp_path / "other.sqlite")
    mine = result("b", measured="2027-01-01T00:00:00+00:00", seconds=3e-6)
    other.record([mine])
    done = import_lines(export_lines(results.rows()), other)
    assert (done.written, done.kept, done.refused) == (1, 1, ())
    assert other.rows() == [rows[0], mine]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 0}, "threads=0"),
        ({"seconds": -1}, "seconds=-1"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"default_seconds": "1"}, "default_seconds='1'"),
        ({"target": "pdp-11"}, "pdp-11"),
        ({"effort": "some"}, "some"),
        ({"measured": "yesterday"}, "yesterday"),
        ({"kernel": ""}, "kernel=''"),
        ({"kernel": "\ud800"}, r"kernel='\ud800'"),
        ({"threads": 10**30}, "threads=1000"),
        ({"seconds": 10**400}, "seconds=1000"),
        ({"\ud800": 1}, r"'\ud800'"),
        ({"schedule": {"\ud800": 1}}, r"'\ud800'"),
        ({"schedule": {}}, "schedule"),
        ({"schedule": {**Schedule().data(), "row_block": 1e9}}, "row_block"),
        ({"extra": 1}, "extra"),
    ],
)
def test_lines_that_are_no_result_are_named_and_left_out(
    results: Results, change: dict[str, object], said: str
) -> None:
    bad = json.dumps({**result("bad").data(), **change})
    good = result("good")
    other = [bad, "", "not json", "[1]", "[" * 100_000, "9" * 10_000]
    done = import_lines("\n".join(other) + "\n" + export_lines([good]), results)
    assert results.rows() == [good]
    assert done.written == 1
    assert [line.split(":")[0] for line in done.refused] == [f"line {n}" for n in (1, 3, 4, 5, 6)]
    assert said in done.refused[0]
    "".join(done.refused).encode()


WRITER = """
import sys
from pathlib import Path
from tests.search.test_results import result
from hasten.search.results import Results
own = Results(Path(sys.argv[1]))
for number in range(40):
    own.record([result(f"{sys.argv[2]} {number}"), result("shared")])
"""


def test_two_processes_write_at_once(results: Results) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = [{root!r}]\n{WRITER}", str(results.path)]
    writers = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [w.wait(60) for w in writers] == [0, 0]
    kernels = {r.kernel for r in results.rows()}
    assert kernels == {"shared", *(f"{name} {n}" for name in ("one", "two") for n in range(40))}


def test_a_failed_write_leaves_nothing(results: Results) -> None:
    results.record([result("a")])

    def rows():
        yield result("b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.record(rows())
    assert [r.kernel for r in results.rows()] == ["a"]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"something else, and longer than the header of a database" * 20)
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE results (a)")
    connection.close()
    newer = Results(tmp_path / "newer")
    newer.record([result()])
    with sqlite3.connect(newer.path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    (tmp_path / "folder").mkdir()
    for path, said in (
        (damaged, "damaged or no database"),
        (foreign, "another program"),
        (newer.path, "newer hasten"),
        (tmp_path / "folder", "cannot be used"),
        (damaged / "below", "--database"),
    ):
        with pytest.raises(TuningError, match=said) as caught:
            Results(path).record([result()])
        assert str(path) in str(caught.value)
        if path.exists():
            with pytest.raises(TuningError, match=said):
                Results(path).rows()


def test_an_empty_file_is_an_empty_database(results: Results) -> None:
    results.path.parent.mkdir()
    results.path.touch()
    assert results.rows() == []
    results.record([result()])
    assert results.count() == 1


def test_a_schedule_of_another_version_is_passed_over(results: Results) -> None:
    results.record([result("a"), result("b")])
    with sqlite3.connect(results.path) as connection:
        connection.execute("UPDATE results SET schedule = '{\"way\": 1}' WHERE kernel = 'a'")
    connection.close()
    assert [r.kernel for r in results.rows()] == ["b"]
    assert results.count() == 2


def older_file(path: Path, schema: int, rows: list[Result]) -> None:
    """As earlier versions made it: without versions in the key, the first without `verified`."""
    columns = ("kernel", "target", "processor", "threads", "schedule", "seconds", "default_seconds", "effort",
               "version", "measured", "verified")[: 9 + schema]  # fmt: skip
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"CREATE TABLE results ({', '.join(f'{c} NOT NULL' for c in columns)}, "
            "PRIMARY KEY (kernel, target, processor, threads)) WITHOUT ROWID"
        )
        connection.execute("PRAGMA application_id = 0x68737431")
        connection.execute(f"PRAGMA user_version = {schema}")
        for r in rows:
            data = {**r.data(), "schedule": json.dumps(r.schedule.data()), "verified": 1}
            values = [data[c] for c in columns]
            connection.execute(f"INSERT INTO results VALUES ({', '.join('?' * len(columns))})", values)
    connection.close()


@pytest.mark.parametrize("schema", [1, 2])
def test_a_file_of_an_older_schema_is_used(schema: int, results: Results) -> None:
    """The oldest does not say whether its results were measured on this machine."""
    rows = [result("a"), result("b")]
    older_file(results.path, schema, rows)
    before = results.path.read_bytes()
    assert results.rows() == results.rows(verified=schema > 1) == rows
    assert results.path.read_bytes() == before
    results.judge(result("a"), right=True)
    results.judge(result("b"), right=False)
    results.record([result("a", version="0.2.0")])
    assert results.rows() == results.rows(verified=True) == [result("a"), result("a", version="0.2.0")]
    with sqlite3.connect(results.path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    connection.close()


def test_what_was_imported_is_not_verified(results: Results) -> None:
    import_lines(export_lines([result("a")]), results)
    assert results.rows(verified=False) == [result("a")]
    assert results.rows(verified=True) == []
    results.judge(result("a", schedule=Schedule()), right=True)  # another one, which came in between
    assert results.rows(verified=True) == []
    results.record([result("a")])
    assert results.rows(verified=True) == [result("a")]


def test_where_results_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_TUNING", str(tmp_path / "here"))
    assert default_database() == tmp_path / "here"
    monkeypatch.delenv("HASTEN_TUNING")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_database() == tmp_path / "hasten" / "tuning.sqlite"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_database() == Path.home() / ".local/share/hasten/tuning.sqlite"
