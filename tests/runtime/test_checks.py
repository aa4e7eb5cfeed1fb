"""What is taken as an input of text."""

from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError
from hasten.runtime.checks import to_array
from hasten.runtime.manifest import TensorInfo

TEXT = TensorInfo("text", "object", ("batch", 1))


@pytest.mark.parametrize(
    "given", [[["a"], ["bc\0"]], (("a",), ("bc\0",)), np.array([["a"], ["bc\0"]], object)]
)
def test_strings_are_taken_as_they_are(given: Any) -> None:
    array = to_array(TEXT, given)
    assert array.dtype == object
    assert array.tolist() == [["a"], ["bc\0"]]


def test_strings_of_numpy_and_a_single_one_are_taken() -> None:
    assert to_array(TEXT, np.array([["a"], ["bc"]])).tolist() == [["a"], ["bc"]]
    assert to_array(TensorInfo("text", "object", ()), "abc").item() == "abc"


@pytest.mark.parametrize(
    ("given", "received"),
    [([["a"], [1]], "1 among them"), ([[b"a"]], "b'a' among them"), (np.zeros((2, 1)), "float64")],
)
def test_what_is_no_text_is_refused(given: Any, received: str) -> None:
    with pytest.raises(InputError, match=f"'text' takes strings and received {received}: give an array or a"):
        to_array(TEXT, given)
