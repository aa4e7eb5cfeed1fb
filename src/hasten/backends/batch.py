"""Many small graphs in one shared object: starting a compiler takes longer than compiling one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hasten.backends.graph_members import Members
from hasten.backends.native import Payload, Planned, lower_parts, pack
from hasten.codegen.batch import batch_sources
from hasten.codegen.elementary import expand_operation
from hasten.codegen.part import Part
from hasten.codegen.schedule import DEFAULTS
from hasten.codegen.toolchain import build, find_compiler
from hasten.codegen.weights import Weights
from hasten.loops.dtypes import DType
from hasten.target import Target

GRAPHS_PER_FILE = 16
LEVEL = 1
"""How hard the compiler optimizes: these graphs run a few times at the most."""


def compile_batch(
    planned: Sequence[Planned],
    target: Target,
    version: str,
    *,
    cache: Path | None,
    precision: DType = DType.F32,
    level: int = LEVEL,
) -> list[Payload]:
    """Compiles some graphs; each payload holds the same code and runs its own parts of it.

    Args:
        planned: from `plan_graph`.
        target: instruction set.
        version: hasten's version.
        cache: folder of compiled objects, or None.
        precision: see `Options`.
        level: see `toolchain.build`.

    Returns:
        An artifact's content for each graph, for one thread.

    Raises:
        ToolchainError: no compiler, or it failed.
    """
    weights = [Weights() for _ in planned]
    groups: list[list[Part]] = []
    count = 0
    for graph, constants in zip(planned, weights, strict=True):
        groups.append(lower_parts(graph.native, target, DEFAULTS, precision, constants, count))
        count += len(groups[-1])
    parts = [p for group in groups for p in group]
    code: Members = {}
    sources, codes = batch_sources(parts, target, expand_operation, per_file=GRAPHS_PER_FILE)
    if parts:
        library = build(sources, target, find_compiler(target), cache=cache, level=level)
        code[f"code/{target.name}.so"] = library
    payloads = []
    first = 0
    for graph, group, constants in zip(planned, groups, weights, strict=True):
        own = codes[first : first + len(group)]
        members = code if group else {}
        payloads.append(pack(graph, own, constants, dict(members), 1, {}, version, first))
        first += len(group)
    return payloads
