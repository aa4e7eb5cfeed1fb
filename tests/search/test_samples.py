"""Samples that choices may look at are told from those held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hasten.errors import DataError
from hasten.runtime.manifest import TensorInfo
from hasten.search.data import load_samples
from hasten.search.samples import Samples, apart
from hasten.search.start import data_hash


def test_no_choice_looks_at_what_is_held_out() -> None:
    rows = [{"x": np.full((1, 3), i, np.float32)} for i in range(6)]
    calibration, held_out = apart(
        Samples(tuple(rows[:4]), np.arange(4)), Samples((*rows[2:], rows[5]), np.arange(2, 7))
    )
    assert [float(f["x"][0, 0]) for f in calibration.feeds] == [0, 1]
    assert calibration.labels is not None
    assert calibration.labels.tolist() == [0, 1]
    assert len(held_out) == 5
    assert held_out.notes[0].startswith("2 samples to calibrate with were left out")
    assert held_out.notes[1].startswith("1 held-out samples repeat others")
    with pytest.raises(DataError, match="all 2 samples to calibrate with are held out too"):
        apart(Samples(tuple(rows[:2])), Samples(tuple(rows)))


def test_texts_are_told_apart_by_what_they_say(tmp_path: Path) -> None:
    """An array of texts has room for its longest, which is another in a list than in a file."""
    city = TensorInfo("city", "object", ("batch",))
    np.savez(tmp_path / "held_out.npz", city=np.array(["oslo", "trondheim"]))
    held_out = load_samples(tmp_path / "held_out.npz", [city])
    listed = load_samples([{"city": ["oslo"]}, {"city": ["bergen"]}], [city])
    calibration, noted = apart(listed, held_out)
    assert [feeds["city"].tolist() for feeds in calibration.feeds] == [["bergen"]]
    assert noted.notes == ("1 samples to calibrate with were left out, since they are held out too",)
    oslo = [Samples((part.feeds[0],)) for part in (listed, held_out)]
    assert data_hash(oslo[0]) == data_hash(oslo[1]) != data_hash(calibration)
