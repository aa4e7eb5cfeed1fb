"""Amounts on the command line: shares, times and sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hasten.errors import OptionError
from hasten.search.asked import share_of

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def parse_share(text: str, option: str) -> float:
    """A share, such as "1%" or "0.01".

    Raises:
        OptionError: it is neither.
    """
    share = share_of(text)
    if share is None:
        raise OptionError(f"{option} {text!r}: write a share, such as 1% or 0.01")
    return share


def parse_seconds(text: str, option: str) -> float:
    """A time, such as "90s", "10m" or "1h".

    Raises:
        OptionError: it is of another form.
    """
    return _with_unit(text, option, _SECONDS, "a time, such as 90s, 10m or 1h")


def parse_bytes(text: str, option: str) -> int:
    """A size, such as "8G" or "500M", in powers of ten.

    Raises:
        OptionError: it is of another form.
    """
    return int(_with_unit(text.lower().removesuffix("b"), option, _BYTES, "a size, such as 500M or 8G"))


def _with_unit(text: str, option: str, units: Mapping[str, float], wanted: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        raise OptionError(f"{option} {text!r}: write {wanted}")
    return float(match[1]) * units[match[2]]
