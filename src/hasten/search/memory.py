"""What searches measured before: a repeated search measures nothing twice.

The values are in a table of the file that has the results of tuning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hasten.search.results import Results

_CREATE = (
    "CREATE TABLE IF NOT EXISTS searches ("
    "key TEXT PRIMARY KEY, value TEXT NOT NULL, version TEXT NOT NULL, measured TEXT NOT NULL) WITHOUT ROWID"
)


@dataclass(frozen=True)
class Memory:
    """Values of earlier searches, by what they were measured of.

    Attributes:
        results: the file.
        about: what all values of this search hold for: model, data, processor, version.
        version: of hasten.
    """

    results: Results
    about: Mapping[str, Any]
    version: str

    def get(self, kind: str, **of: Any) -> Any | None:
        """A value, or None.

        Raises:
            TuningError: the file is damaged or something else.
        """
        key = self._key(kind, of)
        with self.results.transaction(create=False) as connection:
            if connection is None:
                return None
            tables = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE name = 'searches'"
            ).fetchone()
            if not tables[0]:
                return None
            found = connection.execute("SELECT value FROM searches WHERE key = ?", [key]).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, kind: str, value: Any, **of: Any) -> None:
        """Keeps a value, which JSON must have.

        Raises:
            TuningError: the file cannot be written.
        """
        row = [
            self._key(kind, of),
            json.dumps(value),
            self.version,
            datetime.now(UTC).isoformat(timespec="seconds"),
        ]
        with self.results.transaction(create=True) as connection:
            assert connection is not None
            connection.execute(_CREATE)
            connection.execute("INSERT OR REPLACE INTO searches VALUES (?, ?, ?, ?)", row)

    def _key(self, kind: str, of: Mapping[str, Any]) -> str:
        text = json.dumps([kind, self.about, of], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def forget(results: Results) -> int:
    """Deletes what all searches measured.

    Returns:
        How many values there were.

    Raises:
        TuningError: the file cannot be written.
    """
    if not results.path.exists():
        return 0
    with results.transaction(create=True) as connection:
        assert connection is not None
        connection.execute(_CREATE)
        return connection.execute("DELETE FROM searches").rowcount
