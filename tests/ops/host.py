"""Operators as if hasten did not compile them: the host is tested apart from what is left to it today."""

from __future__ import annotations

import pytest

from hasten.ops import lowering
from hasten.ops.base import Op
from hasten.ops.table import find_op


def leave_to_host(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Takes operators out of what is lowered."""

    def found(domain: str, name: str) -> Op | None:
        return None if name in names else find_op(domain, name)

    monkeypatch.setattr(lowering, "find_op", found)
