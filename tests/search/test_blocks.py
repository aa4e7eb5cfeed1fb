"""Answers to many samples: the same whether they are in memory or in a file, and read in blocks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from hasten.search import blocks
from hasten.search.answers import relative_change
from hasten.search.certify import certify
from hasten.search.metrics import metric_named

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ragged", [False, True])
def test_what_is_in_a_file_is_what_was_given(
    ragged: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(blocks, "IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    given = [RNG.standard_normal((3, 5 + n * ragged, 7)).astype(np.float32) for n in range(6)]
    rows = blocks.Rows()
    for batch in given:
        rows.add(batch)
    found = rows.joined()
    assert (found.dtype == object) is ragged
    assert isinstance(found[4] if ragged else found, np.memmap)
    for row, expected in zip(found, (row for batch in given for row in batch), strict=True):
        np.testing.assert_array_equal(row, expected)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    (said,) = blocks.said_of_size({"y": found}, 18)
    assert said.startswith("the answers to 18 samples are 0 MB, and are kept in temporary files")
    few = blocks.Rows()
    few.add(given[0])
    assert not isinstance(few.joined(), np.memmap)
    assert blocks.said_of_size({"y": given[0]}, 3) == []


def test_texts_of_different_lengths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "IN_MEMORY", 1)
    rows = blocks.Rows()
    for text in ("a", "long"):
        rows.add(np.array([text]))
    assert rows.joined().tolist() == ["a", "long"]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"y": RNG.standard_normal((50, 4, 8, 8)).astype(np.float32)}
    after = {"y": before["y"] + 0.3 * RNG.standard_normal((50, 4, 8, 8)).astype(np.float32)}
    labels = RNG.integers(0, 4, (50, 8, 8))
    names = ("accuracy", "agreement", "cosine", "kl", "mse")

    def all_of_it() -> list[object]:
        metrics = [metric_named(name) for name in names]
        right = [before["y"] if m.name == "mse" else labels if m.needs_labels else None for m in metrics]
        bounds = [certify(m, before, after, r) for m, r in zip(metrics, right, strict=True)]
        return [*bounds, pytest.approx(relative_change(before, after), rel=1e-12)]

    whole = all_of_it()
    changes = (
        np.square(after["y"].astype(np.float64) - before["y"]).mean() / before["y"].astype(np.float64).var()
    )
    assert whole[-1] == changes
    monkeypatch.setattr(blocks, "_BLOCK", 3000)
    assert all_of_it() == whole
    before["y"][33, 1, 2, 3] = np.nan
    with pytest.raises(Exception, match=r"first at \[33, 1, 2, 3\]"):
        certify(metric_named("agreement"), before, after, None)


def test_what_is_masked_in_both_answers_does_not_count() -> None:
    before = {"y": np.array([[1.0, 2.0, -np.inf], [4.0, np.nan, 0.0]], np.float32)}
    after = {"y": before["y"] + np.float32(0.1)}
    finite = {"y": before["y"][np.isfinite(before["y"])][:, None]}
    changed = {"y": after["y"][np.isfinite(after["y"])][:, None]}
    assert 0 < relative_change(before, after) == pytest.approx(relative_change(finite, changed))
    for broken in (np.nan, np.inf):
        after["y"][0, 0] = broken
        assert relative_change(before, after) == np.inf
    assert relative_change(before, {"y": np.zeros((2, 3), np.float32)}) == np.inf
