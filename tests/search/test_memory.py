"""What searches measured before is found again, for the same things only."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import TuningError
from hasten.search.memory import Memory, forget
from hasten.search.results import Results


def test_values_are_found_for_what_they_were_measured_of(tmp_path: Path) -> None:
    results = Results(tmp_path / "folder" / "results.sqlite")
    memory = Memory(results, {"model": "a"}, "1")
    assert memory.get("time", candidate="x") is None
    memory.put("time", {"ms": [1.5, 2.0]}, candidate="x")
    memory.put("time", {"ms": [1.0, 2.0]}, candidate="x")
    assert memory.get("time", candidate="x") == {"ms": [1.0, 2.0]}
    assert memory.get("time", candidate="y") is None
    assert memory.get("drop", candidate="x") is None
    assert Memory(results, {"model": "b"}, "1").get("time", candidate="x") is None
    assert Memory(results, {"model": "a"}, "1").get("time", candidate="x") == {"ms": [1.0, 2.0]}


def test_results_of_tuning_are_in_the_same_file(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.sqlite")
    assert results.record([]) == 0
    memory = Memory(results, {}, "1")
    assert memory.get("drop") is None
    memory.put("drop", 0.5)
    assert results.rows() == []
    assert results.clear() == 0
    assert memory.get("drop") == 0.5


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"no database at all, and long enough to be looked at" * 100)
    with pytest.raises(TuningError, match="damaged or no database"):
        Memory(Results(path), {}, "1").get("drop")


def test_everything_is_forgotten_at_once(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.sqlite")
    assert forget(results) == 0
    assert not results.path.exists()
    for candidate in ("x", "y"):
        Memory(results, {}, "1").put("time", 1.0, candidate=candidate)
    assert forget(results) == 2
    assert Memory(results, {}, "1").get("time", candidate="x") is None
