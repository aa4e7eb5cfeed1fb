"""Results of tuning: the schedule that was fastest for each kernel on a processor, in an SQLite file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import reprlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hasten.codegen.schedule import Schedule, parse_schedule
from hasten.errors import OptionError, TuningError
from hasten.target import TARGETS

SCHEMA = 3
_APPLICATION = 0x68737431  # "hst1": tells our files from other databases
_MOST_THREADS = 2**31 - 1
_MOST_SECONDS = 10**6
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON may have them, files and databases cannot
_PATIENCE = 30.0  # seconds to wait for another process that writes

Effort = Literal["quick", "full"]
EFFORTS: tuple[Effort, ...] = ("quick", "full")

_CREATE = """
CREATE TABLE results (
    kernel TEXT NOT NULL, target TEXT NOT NULL, processor TEXT NOT NULL, threads INTEGER NOT NULL,
    schedule TEXT NOT NULL, seconds REAL NOT NULL, default_seconds REAL NOT NULL,
    effort TEXT NOT NULL, version TEXT NOT NULL, measured TEXT NOT NULL,
    verified INTEGER NOT NULL,
    PRIMARY KEY (kernel, target, processor, threads, version)
) WITHOUT ROWID
"""
_COLUMNS = ("kernel", "target", "processor", "threads", "schedule", "seconds", "default_seconds", "effort",
            "version", "measured")  # fmt: skip
_KEY = ("kernel", "target", "processor", "threads", "version")
_ALL = ", ".join((*_COLUMNS, "verified"))
# From a schema to the next.
_UPGRADES = {
    1: ("ALTER TABLE results ADD COLUMN verified INTEGER NOT NULL DEFAULT 0",),
    2: (
        "ALTER TABLE results RENAME TO older",
        _CREATE,
        f"INSERT INTO results ({_ALL}) SELECT {_ALL} FROM older",
        "DROP TABLE older",
    ),
}


@dataclass(frozen=True)
class Machine:
    """What a result holds for.

    Attributes:
        target: name of the instruction set.
        processor: the processor's model (`target.processor_name`).
        threads: threads of a run.
    """

    target: str
    processor: str
    threads: int


@dataclass(frozen=True)
class Result:
    """What was found for one kernel.

    Attributes:
        kernel: the text of its shape (`codegen.schedule.ProductShape`).
        machine: where.
        schedule: the fastest; the default one where no other was faster by more than the noise.
        seconds: time of one run with it.
        default_seconds: time with the default, in the same rounds.
        effort: how many schedules were tried.
        version: of the kernels that were measured (`codegen.sources`).
        measured: when, in UTC, as ISO 8601 has it.
    """

    kernel: str
    machine: Machine
    schedule: Schedule
    seconds: float
    default_seconds: float
    effort: Effort
    version: str
    measured: str

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "kernel": self.kernel,
            "target": self.machine.target,
            "processor": self.machine.processor,
            "threads": self.machine.threads,
            "schedule": self.schedule.data(),
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "effort": self.effort,
            "version": self.version,
            "measured": self.measured,
        }


def parse_result(data: object) -> Result:
    """The result that `Result.data` gave.

    Raises:
        OptionError: something is missing, unknown or of another type.
    """
    if not isinstance(data, dict) or data.keys() != set(_COLUMNS):
        got = ", ".join(map(repr, data)) if isinstance(data, dict) else repr(data)
        raise OptionError(f"a result is an object with {', '.join(_COLUMNS)}: received {got}")
    texts = {name: _text(data, name) for name in ("kernel", "target", "processor", "version", "measured")}
    if texts["target"] not in [t.name for t in TARGETS]:
        known = ", ".join(t.name for t in TARGETS)
        raise OptionError(f"target={reprlib.repr(texts['target'])}: this hasten knows {known}")
    threads = data["threads"]
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise OptionError(
            f"threads={reprlib.repr(threads)}: a whole number from 1 to {_MOST_THREADS} is needed"
        )
    efforts = [e for e in EFFORTS if e == data["effort"]]
    if not efforts:
        raise OptionError(f"effort={data['effort']!r}: {' or '.join(EFFORTS)} is needed")
    try:
        datetime.fromisoformat(texts["measured"])
    except ValueError:
        raise OptionError(
            f"measured={texts['measured']!r}: a time such as 2026-01-31T12:00:00 is needed"
        ) from None
    return Result(
        texts["kernel"],
        Machine(texts["target"], texts["processor"], threads),
        parse_schedule(data["schedule"]),
        _seconds(data, "seconds"),
        _seconds(data, "default_seconds"),
        efforts[0],
        texts["version"],
        texts["measured"],
    )


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data[name]
    if not isinstance(value, str) or not value or _SURROGATE.search(value):
        raise OptionError(f"{name}={reprlib.repr(value)}: a text is needed")
    return value


def _seconds(data: Mapping[str, Any], name: str) -> float:
    value = data[name]
    if type(value) not in (int, float) or not 0 < value <= _MOST_SECONDS:
        raise OptionError(
            f"{name}={reprlib.repr(value)}: a number of seconds above 0 and up to {_MOST_SECONDS} is needed"
        )
    return float(value)


def default_database() -> Path:
    """Where results are kept: $HASTEN_TUNING, else in the user's data folder."""
    named = os.environ.get("HASTEN_TUNING")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "hasten" / "tuning.sqlite"


@dataclass(frozen=True)
class Results:
    """The results in a file, which appears when the first is recorded. Several processes may use it at once.

    Attributes:
        path: the file.
    """

    path: Path

    def rows(
        self,
        machine: Machine | None = None,
        version: str | None = None,
        *,
        verified: bool | None = None,
    ) -> list[Result]:
        """All results, or those of one machine or version, ordered by machine and kernel.

        Results whose schedule this hasten does not understand are left out; `count` has them.

        Args:
            machine: what they hold for; None for any.
            version: of the kernels that were measured; None for any.
            verified: whether the schedule's answer was compared with the interpreter's on this machine; None
                for both.

        Raises:
            TuningError: the file is damaged, of a newer hasten or something else.
        """
        found = []
        for *values, known in self._select(machine, version):
            if verified is not None and bool(known) is not verified:
                continue
            data = dict(zip(_COLUMNS, values, strict=True))
            with contextlib.suppress(OptionError, json.JSONDecodeError):
                found.append(parse_result({**data, "schedule": json.loads(data["schedule"])}))
        return found

    def count(self) -> int:
        """How many results there are.

        Raises:
            TuningError: as `rows`.
        """
        return len(self._select(None, None))

    def record(self, results: Iterable[Result], *, verified: bool = True, replace_better: bool = True) -> int:
        """Adds results; each takes the place of one for the same kernel, machine and version.

        Args:
            results: what to add.
            verified: whether the schedules' answers were compared with the interpreter's on this machine.
            replace_better: also where the one that is there was measured later, or is verified and was
                measured with more effort.

        Returns:
            How many were written.

        Raises:
            TuningError: as `rows`, or the file cannot be written.
        """
        others = [c for c in (*_COLUMNS, "verified") if c not in _KEY]
        statement = (
            f"INSERT INTO results ({_ALL}) VALUES ({', '.join('?' * (len(_COLUMNS) + 1))}) "
            f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
            + ", ".join(f"{c} = excluded.{c}" for c in others)
        )
        if not replace_better:
            statement += (
                " WHERE excluded.measured >= results.measured "
                "AND NOT (results.verified AND results.effort = 'full' AND excluded.effort != 'full')"
            )
        written = 0
        with self.transaction(create=True) as connection:
            assert connection is not None
            for r in results:
                data = r.data()
                data["schedule"] = json.dumps(data["schedule"])
                values = [*(data[c] for c in _COLUMNS), int(verified)]
                written += connection.execute(statement, values).rowcount
        return written

    def judge(self, result: Result, *, right: bool) -> None:
        """Marks a result as verified on this machine, or deletes it.

        Raises:
            TuningError: as `record`.
        """
        statement = "UPDATE results SET verified = 1" if right else "DELETE FROM results"
        data = result.data()
        of = [*(data[c] for c in _KEY), json.dumps(data["schedule"])]
        where = " AND ".join(f"{c} = ?" for c in (*_KEY, "schedule"))
        with self.transaction(create=True) as connection:
            assert connection is not None
            connection.execute(f"{statement} WHERE {where}", of)

    def clear(self) -> int:
        """Deletes all results.

        Returns:
            How many there were.

        Raises:
            TuningError: as `record`.
        """
        if not self.path.exists():
            return 0
        with self.transaction(create=True) as connection:
            assert connection is not None
            return connection.execute("DELETE FROM results").rowcount

    def _select(self, machine: Machine | None, version: str | None) -> list[tuple[Any, ...]]:
        wanted: dict[str, object] = {}
        if machine is not None:
            wanted = {"target": machine.target, "processor": machine.processor, "threads": machine.threads}
        if version is not None:
            wanted["version"] = version
        where = f"WHERE {' AND '.join(f'{c} = ?' for c in wanted)}" if wanted else ""
        order = "ORDER BY processor, target, threads, kernel, version"
        with self.transaction(create=False) as connection:
            if connection is None:
                return []
            # A file of an older schema is read as it is.
            verified = "verified" if _schema(connection) > 1 else "0"
            text = f"SELECT {', '.join(_COLUMNS)}, {verified} FROM results {where} {order}"
            return connection.execute(text, list(wanted.values())).fetchall()

    @contextlib.contextmanager
    def transaction(self, *, create: bool) -> Iterator[sqlite3.Connection | None]:
        """A transaction; one that creates, and therefore may write, has the file for itself.

        Yields:
            The connection; None where nothing is to be created and there is no file yet.

        Raises:
            TuningError: the file is damaged, of a newer hasten or something else, or cannot be written.
        """
        if not create and (not self.path.exists() or (self.path.is_file() and self.path.stat().st_size == 0)):
            yield None
            return
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN IMMEDIATE" if create else "BEGIN")
                self._check(connection, create=create)
                yield connection
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise TuningError(
                f"the results of tuning in {self.path} cannot be used ({error}): free the file or some "
                "space, or name another with --database or HASTEN_TUNING"
            ) from None
        except sqlite3.DatabaseError as error:
            raise TuningError(
                f"{self.path} is damaged or no database ({error}): delete it, the kernels can be tuned "
                "again; or name another file with --database or HASTEN_TUNING"
            ) from None
        except OSError as error:
            raise TuningError(
                f"the results of tuning cannot be kept in {self.path} ({error.strerror or error}): name "
                "another file with --database or HASTEN_TUNING"
            ) from None

    def _check(self, connection: sqlite3.Connection, *, create: bool) -> None:
        """Refuses a file that is not ours; makes the table in an empty one."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        schema = _schema(connection)
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if create and application == 0 and tables == 0:
            connection.execute(_CREATE)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        elif application != _APPLICATION:
            raise TuningError(
                f"{self.path} is a database of another program: name another file with --database"
            )
        elif schema > SCHEMA:
            raise TuningError(
                f"{self.path} was written by a newer hasten (schema {schema}; this one knows {SCHEMA}): "
                "update hasten, or name another file with --database"
            )
        elif create and schema < SCHEMA:
            for old in range(schema, SCHEMA):
                for statement in _UPGRADES[old]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _schema(connection: sqlite3.Connection) -> int:
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    return int(schema)


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        written: results that were added or replaced older ones.
        kept: results that were left out, since newer ones are there or some of more effort.
        refused: for each line that is no result, its number and why.
    """

    written: int
    kept: int
    refused: tuple[str, ...]


def export_lines(results: Iterable[Result]) -> str:
    """Results as JSON, one to a line."""
    return "".join(json.dumps(r.data()) + "\n" for r in results)


def import_lines(text: str, into: Results) -> Imported:
    """Records results that `export_lines` wrote, not yet verified here, but for lines that are none.

    Raises:
        TuningError: as `Results.record`.
    """
    good, refused = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            good.append(parse_result(json.loads(line)))
        except OptionError as error:
            refused.append(f"line {number}: {error}")
        except (ValueError, RecursionError) as error:  # also of numbers and nesting beyond Python's limits
            refused.append(f"line {number}: not JSON ({error})")
    written = into.record(good, verified=False, replace_better=False) if good else 0
    return Imported(written, len(good) - written, tuple(refused))
