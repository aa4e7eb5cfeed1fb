"""Numbers in inputs that nobody expects: an answer, or an error that names the node."""

import warnings

import numpy as np
import pytest
from tests.runtime.extremes import MODELS, feeds, models

from hasten.errors import InputError
from hasten.onnx_backend import HastenRep, prepare_all


@pytest.fixture(scope="module")
def compiled():
    protos = models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(zip(protos, prepare_all(list(protos.values())), strict=True)), protos


@pytest.mark.parametrize("name", MODELS)
def test_a_number_out_of_range_names_the_node(name, compiled):
    reps, protos = compiled
    rep = reps[name]
    assert isinstance(rep, HastenRep), rep
    good = 0
    for number in MODELS[name][1]:
        given = feeds(protos[name], number)
        try:
            found = rep.run(given)
        except InputError as error:
            text = str(error)
            named = "'it" in text or (rep.host and "'y'" in text)
            assert named or "too large" in text or "too small" in text or "memory than there is" in text, text
            continue
        good += 1
        again = rep.run(given)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, again, strict=True))
    assert good
