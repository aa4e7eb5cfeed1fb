"""What tests of whole searches share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hasten
from hasten.search.record import Outcome

LAYERS = ("first", "hostile", "last")
"""Of `benchmarks.hostile.network`."""

Search = Callable[..., hasten.Session]


def record(session: hasten.Session) -> Any:
    return session.report.record  # type: ignore[attr-defined]


def outcomes(session: hasten.Session) -> Mapping[str, Outcome]:
    return {c.name: c.outcome for c in record(session).candidates}
