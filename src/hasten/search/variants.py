"""The graphs that candidates are made from: the problem's own, and those that units were removed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from hasten.passes.quantize import Range
from hasten.search.quantization import Prepared, Ranges

WHOLE = ""
"""Name of the problem's own graph."""


@dataclass(frozen=True)
class Variant:
    """A graph, and what int8 candidates of it need.

    Attributes:
        graph: after `optimize_graph`.
        prepared: smoothed and observed; None until that was done. Candidates without int8 are made from the
            graph itself, which is not smoothed.
        ranges: of the prepared graph's activations, by the method that they were found with.
    """

    graph: ir.Model
    prepared: Prepared | None = None
    ranges: Mapping[Ranges, Mapping[str, Range]] = field(default_factory=dict)
