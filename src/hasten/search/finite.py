"""Numbers as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def finite(value: object) -> object:
    """What JSON can say: null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
