"""What all tests share."""

import copy
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest


def generators() -> list[np.random.Generator]:
    """The random numbers of all test modules that are loaded."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(("tests.", "test_"))]
    found = [getattr(m, name, None) for m in modules for name in ("RNG", "rng")]
    return list({id(g): g for g in found if isinstance(g, np.random.Generator)}.values())


@pytest.fixture(scope="session")
def beginnings() -> list[tuple[np.random.Generator, Any]]:
    return [(g, copy.deepcopy(g.bit_generator.state)) for g in generators()]


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order(beginnings: list[tuple[np.random.Generator, Any]]) -> Iterator[None]:
    """What a test draws must not depend on which tests the process ran before it."""
    for generator, state in beginnings:
        generator.bit_generator.state = state
    yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
