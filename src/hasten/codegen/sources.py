"""Which kernels this is, or which search: a version of hasten, and of the sources that it comes from."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable

PACKAGES = ("codegen", "loops", "runtime/csrc", "target.py")
"""What decides which code a kernel gets, and what runs it."""

SEARCHED = (*PACKAGES, "backends", "graph", "ops", "passes", "runtime", "search")
"""What decides the answers and times of candidates, beside the model."""

_DIGITS = 8


def kernels_version(version: str, packages: Sequence[str] = PACKAGES) -> str:
    """A version of hasten together with a hash of what generates its kernels, such as "0.1.0+5d41402a".

    Between two releases a version stays what it is while kernels change: what was measured of older ones must
    not pass for today's.

    Args:
        version: of hasten.
        packages: of hasten, whose sources are hashed.
    """
    found = hashlib.sha256()
    for package in packages:
        for text in _sources(importlib.resources.files("hasten") / package):
            found.update(hashlib.sha256(text).digest())
    return f"{version}+{found.hexdigest()[:_DIGITS]}"


def _sources(place: Traversable) -> Iterator[bytes]:
    """Names and texts of a source, or of all in a folder in order, with the same ends of lines everywhere."""
    if place.is_dir():
        for entry in sorted(place.iterdir(), key=lambda e: e.name):
            yield from _sources(entry)
    elif place.name.endswith((".py", ".c", ".h")):
        yield place.name.encode()
        yield place.read_bytes().replace(b"\r\n", b"\n")
