"""Choices of `compile`."""

import numpy as np
import pytest

import hasten
from hasten.api import CompileOptions
from hasten.errors import OptionError


@pytest.mark.parametrize("threads", [0, 2.0, "2", True])
def test_threads_are_a_whole_number_before_anything_is_read(threads: object) -> None:
    with pytest.raises(OptionError, match=f"threads={threads!r}: give a whole number, 1 or more, or None"):
        hasten.compile("absent.onnx", threads=threads)  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_are_pythons() -> None:
    assert type(CompileOptions(threads=np.int64(2)).threads) is int  # type: ignore[arg-type]
