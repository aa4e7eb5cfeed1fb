"""Which kernels this is, or which search: a version of hasten, and of the sources that it comes from."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable

PACKAGES = ("codegen", "loops")
"""What decides which code a kernel gets: its generators, and the language that they are written in."""

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


def _sources(folder: Traversable) -> Iterator[bytes]:
    """Names and texts of all Python files, in order, with the same ends of lines everywhere."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _sources(entry)
        elif entry.name.endswith(".py"):
            yield entry.name.encode()
            yield entry.read_bytes().replace(b"\r\n", b"\n")
