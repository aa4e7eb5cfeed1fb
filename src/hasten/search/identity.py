"""What tells a candidate of a search from all others: the keys of what is remembered of it."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

from hasten.search.candidates import ORIGINAL, Candidate
from hasten.search.quantization import Quantization
from hasten.search.variants import Variant


def identity(candidate: Candidate, variant: Variant) -> dict[str, Any]:
    """What tells a candidate from all others of any search with the same `Memory.about`.

    Args:
        candidate: the candidate.
        variant: the graph that it is made from.
    """
    return {
        "engine": candidate.engine.package,
        "engine version": candidate.engine.version,
        "mode": candidate.engine.mode,
        "original": candidate.name == ORIGINAL,
        "precision": candidate.precision,
        **graph_identity(candidate, variant),
    }


def graph_identity(candidate: Candidate, variant: Variant) -> dict[str, Any]:
    """What tells a candidate's graph from all others of the same problem."""
    how = candidate.how
    if how is None:
        return {"variant": candidate.variant}
    known = [[k, r.low, r.high] for k, r in sorted(variant.ranges[how.ranges].items())]
    careful = None if variant.prepared is None or how.rounding == "nearest" else variant.prepared.careful
    return {
        "variant": candidate.variant,
        "formats": sorted(candidate.formats.items()),
        "how": described(how),
        "ranges": hashlib.sha256(repr(known).encode()).hexdigest(),
        "rounded": [] if careful is None else sorted(careful.layers),
    }


def described(how: Quantization | None) -> str:
    """What distinguishes one way to quantize from another; layers, ranges and the rest's precision aside."""
    aside = ("layers", "ranges", "rest")
    return "" if how is None else repr([getattr(how, f.name) for f in fields(how) if f.name not in aside])
