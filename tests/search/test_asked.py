"""What is asked is kept in Python's own numbers, which processes and files pass on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.errors import OptionError
from hasten.search.asked import Asked
from hasten.search.metrics import metric_named


def asked(**more: Any) -> Asked:
    options: dict[str, Any] = {
        "metric": metric_named("agreement"), "named": True, "max_drop": 0.01, "confidence": 0.95,
        "calibration": None, "precision": "auto", "engines": False, "prune": (), "prune_criterion": "obs",
        "padding": "skip", "threads": 2, "seconds": None, "memory": None, "seed": 0, "cache": Path(),
        "database": Path(),
    }  # fmt: skip
    return Asked(**{**options, **more})


def test_numbers_of_numpy_and_whole_floats_are_taken() -> None:
    given = asked(
        max_drop=np.float32(0.5), confidence=np.float32(0.5), seconds=np.int64(60), memory=8e9,
        threads=np.int32(2), seed=np.int64(3), calibration=np.int64(64),
    )  # fmt: skip
    names = ("max_drop", "confidence", "seconds", "memory", "threads", "seed", "calibration")
    kept = [getattr(given, name) for name in names]
    assert json.loads(json.dumps(kept)) == [0.5, 0.5, 60.0, 8_000_000_000, 2, 3, 64]
    assert type(given.memory) is int  # what limits a process takes no float


@pytest.mark.parametrize("memory", [0.5, float("inf"), float("nan"), -1])
def test_memory_is_some_bytes(memory: float) -> None:
    with pytest.raises(OptionError, match=r"memory_limit=.*: give a number of bytes above 0, or None"):
        asked(memory=memory)
