"""Small networks of many architectures against ONNX Runtime, at several values of their free sizes."""

from __future__ import annotations

import pytest
from tools.real_models import compare

from benchmarks import zoo


@pytest.mark.parametrize("architecture", list(zoo.architectures()), ids=lambda a: a.name)
def test_agrees_and_is_compiled(architecture: zoo.Architecture) -> None:
    agreement = compare(architecture.file(), architecture.all_inputs())
    assert agreement.worst <= 1e-5
    assert not agreement.host
