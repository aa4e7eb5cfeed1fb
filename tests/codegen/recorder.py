"""Runs the conformance suite of the operators to see which programs it runs, on which inputs.

Compiling each program by itself would take minutes, so what the suite runs is written down first, and
`test_conformance` runs all of it from one shared object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.ops import conformance

from hasten.loops.evaluate import evaluate
from hasten.loops.program import Program

EXAMPLES = 3
"""Sets of inputs that are kept for each program."""


@dataclass
class Seen:
    """A program that a test ran, and inputs that it gave."""

    test: str
    program: Program
    examples: list[Mapping[str, np.ndarray]] = field(default_factory=list)


class Recorder:
    """A pytest plugin that stands in for every engine of the suite."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}
        self.test = ""

    def run(self, program: Program, feeds: Mapping[str, np.ndarray], *rest: Any) -> Mapping[str, np.ndarray]:
        results = evaluate(program, feeds, *rest)
        seen = self.seen.setdefault(id(program), Seen(self.test, program))
        if len(seen.examples) < EXAMPLES:
            seen.examples.append({name: np.copy(a) for name, a in feeds.items()})
        return results

    @pytest.fixture(autouse=True)
    def _record(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.test = request.node.nodeid
        monkeypatch.setattr(conformance, "ENGINES", [self.run])
        for plugin in (request.module, *request.config.pluginmanager.get_plugins()):
            if getattr(plugin, "evaluate", None) is evaluate:
                monkeypatch.setattr(plugin, "evaluate", self.run)
        yield


def conformance_programs() -> list[Seen]:
    """All programs that the conformance suite runs."""
    recorder = Recorder()
    folder = Path(conformance.__file__).parent
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:terminal"]
    status = pytest.main([*options, str(folder)], plugins=[recorder])
    assert status == 0, "the conformance suite itself fails"
    return list(recorder.seen.values())
