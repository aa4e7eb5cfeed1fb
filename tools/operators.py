"""Lists the operators outside ONNX's own domain that are compiled, defined by others, or run on the host.

python tools/operators.py [--markdown docs/coverage.md]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import onnx.defs
from tools.pages import replace_part

from hasten.graph.classical import ML
from hasten.graph.contrib import CONTRIB
from hasten.graph.rewrite import DEFINITIONS
from hasten.ops.table import OPERATORS
from hasten.passes.normalize_qdq import CONTRIB_QUANTIZED
from hasten.runtime.host_operators import HOST_OPERATORS


def main() -> int:
    """Prints the lists, or puts them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="page whose part on operators is replaced")
    options = parser.parse_args()
    text = document()
    if options.markdown:
        replace_part(options.markdown, "operators", text)
    else:
        print(text)
    return 0


def document() -> str:
    """The part of docs/coverage.md on operators of other domains."""
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ML}
    compiled = {name for domain, name in OPERATORS if domain == ML}
    defined = set(DEFINITIONS[ML]) - compiled
    maps = {op.__name__ for op in HOST_OPERATORS} & known
    left = known - compiled - defined - maps
    contrib = sorted({*DEFINITIONS[CONTRIB], *CONTRIB_QUANTIZED})
    host = [name for name in contrib if name in {op.__name__ for op in HOST_OPERATORS}]
    return "\n".join(
        [
            f"**{ML}**, {len(known)} operators. Compiled for numbers: {listed(compiled)}. Texts among their",
            f"inputs, labels and keys, and {listed(defined)}, become numbers by one look-up on the host.",
            f"Maps are made and read on the host: {listed(maps)}."
            + (f" Run by ONNX's reference evaluator: {listed(left)}." if left else ""),
            "The coupling of an SVMClassifier's probabilities runs on the host, its kernels do not.",
            "",
            f"**{CONTRIB}**, {len(contrib)} operators, written in ONNX's own or in quantized form:",
            f"{listed(contrib)}.",
            f"On the host: {listed(host)}. Forms that have no definition are refused with their names.",
        ]
    )


def listed(names: set[str] | list[str]) -> str:
    """Names in order, with commas."""
    return ", ".join(sorted(names))


if __name__ == "__main__":
    raise SystemExit(main())
