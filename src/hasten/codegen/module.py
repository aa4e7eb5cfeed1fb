"""All C of a part, in files of a few kernels each, and what a shared object has once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.codegen.emit_c import Expand, declaration, emit_functions
from hasten.codegen.images import picture_elements, run_tensors
from hasten.codegen.kernel import Kernel
from hasten.codegen.memory import ALIGNMENT, Lifetime, Slot, plan_memory
from hasten.codegen.microkernels import called_by_kernels, microkernels
from hasten.codegen.part import Part, at_bounds, part_text
from hasten.loops.dtypes import DType
from hasten.loops.expr import round_up
from hasten.loops.nest import Call, Function, rename_calls, statements
from hasten.target import Target

KERNELS_PER_FILE = 8


@dataclass(frozen=True)
class PartCode:
    """Generated code of one part.

    Attributes:
        sources: C text by file name.
        kernels: names of the kernels in the order of their fault numbers, with what they compute.
        slots: the memory plan.
    """

    sources: Mapping[str, str]
    kernels: tuple[tuple[str, str], ...]
    slots: tuple[Slot, ...]


def part_code(part: Part, target: Target, expand: Expand) -> PartCode:
    """The C of a part for a target."""
    kernels, functions = share_functions(part.lowered.kernels, part.number)
    slots = plan_memory(_lifetimes(part, kernels))
    prefix = f"part_{part.number}"
    sources: dict[str, str] = {}
    for start in range(0, len(functions), KERNELS_PER_FILE):
        group = functions[start : start + KERNELS_PER_FILE]
        called = {s.function for f in group for s in statements(f.body) if isinstance(s, Call)}
        calls = [
            *called_by_kernels(target, part.lowered.tile_dtypes),
            *(f for f in functions if f.name in called and f not in group),
        ]
        prototypes = "\n".join(f"{declaration(f)};" for f in calls)
        text = emit_functions(group, expand, exported=[f.name for f in group], prototypes=prototypes)
        sources[f"{prefix}_kernels_{start // KERNELS_PER_FILE}.c"] = text
    sources[f"{prefix}.c"] = part_text(part, kernels, functions, slots)
    titles = tuple((k.function.name, k.title) for k in kernels)
    return PartCode(sources, titles, slots)


def module_sources(
    parts: Sequence[int], target: Target, expand: Expand, tile_dtypes: Sequence[DType] = (DType.F32,)
) -> dict[str, str]:
    """The files that a shared object has once: the tiles and the C interface.

    Args:
        parts: numbers of the parts.
        target: the instructions to use.
        expand: gives elementary functions as expressions.
        tile_dtypes: element types that register tiles are needed for.
    """
    lines = ['#include "pool.h"', ""]
    for n in parts:
        lines.append(f"int32_t plan_part_{n}(const int64_t *sizes, int64_t *shapes, int64_t *arena_bytes);")
        lines.append(f"int32_t start_part_{n}(hasten_call *call);")
    lines += [
        "",
        "int32_t hasten_plan(int32_t part, const int64_t *sizes, int64_t *shapes, int64_t *arena_bytes) {",
        *(f"    if (part == {n}) return plan_part_{n}(sizes, shapes, arena_bytes);" for n in parts),
        "    return -1;",
        "}",
        "",
        "int32_t hasten_run(int32_t part, hasten_call *call) {",
        *(f"    if (part == {n}) return start_part_{n}(call);" for n in parts),
        f"    hasten_report(&call->fault, HASTEN_FAULT_PART, 0, part, {len(parts)});",
        "    return call->fault.code;",
        "}",
        "",
    ]
    sources = {"module.c": "\n".join(lines)}
    tiles = microkernels(target, tile_dtypes)
    names = [f.name for f in tiles]
    for start in range(0, len(tiles), KERNELS_PER_FILE):
        group = tiles[start : start + KERNELS_PER_FILE]
        others = "\n".join(f"{declaration(f)};" for f in tiles if f not in group)
        text = emit_functions(group, expand, exported=names, prototypes=others)
        sources[f"tiles_{start // KERNELS_PER_FILE}.c"] = text
    return sources


def share_functions(kernels: Sequence[Kernel], number: int) -> tuple[list[Kernel], list[Function]]:
    """Kernels with equal code call one function, the first one's, and so do those that they call."""
    known: dict[tuple[object, ...], Function] = {}

    def shared(f: Function, names: Mapping[str, str]) -> Function:
        body = rename_calls(f.body, names)
        named = replace(f, name=f"part_{number}_{f.name}", body=body)
        return known.setdefault((f.params, body), named)

    result: list[Kernel] = []
    for k in kernels:
        names: dict[str, str] = {}
        helpers: list[Function] = []
        for h in k.helpers:
            helpers.append(shared(h, names))
            names[h.name] = helpers[-1].name
        result.append(replace(k, function=shared(k.function, names), helpers=tuple(helpers)))
    return result, list(known.values())


def _lifetimes(part: Part, kernels: Sequence[Kernel]) -> list[Lifetime]:
    """When each tensor in the arena is written first and read last."""
    ends: dict[str, int] = {}
    measured = {m.tensor for m in part.program.measured.values()}
    for step, k in enumerate(kernels):
        for _, tensor in k.buffers:
            ends[tensor] = step
    result: list[Lifetime] = []
    for step, tensor in ((step, tensor) for step, k in enumerate(kernels) for tensor in k.writes):
        if tensor in part.program.outputs:
            continue
        layout = part.lowered.layouts[tensor]
        size = round_up(layout.elements * layout.dtype.bytes, ALIGNMENT)
        # Each thread reads a measured size when it gets there: nothing may take its place.
        first, last = step, len(kernels) if tensor in measured else ends[tensor]
        for run in part.lowered.runs:
            if tensor in run_tensors(kernels, run):
                size = round_up(picture_elements(layout) * layout.dtype.bytes, ALIGNMENT) * run.size
                continue
            # For all pictures, while kernels of the run are called again and again.
            first = run.first if run.first <= first < run.end else first
            last = run.end - 1 if run.first <= last < run.end else last
        bytes_ = at_bounds(part.program, size)
        # One picture of a tensor may lie elsewhere than its part of all pictures.
        replaced = kernels[step].over if tensor == kernels[step].writes[0] else None
        over = next((t.name for t in result if t.name == replaced and t.bytes == bytes_), None)
        result.append(Lifetime(tensor, bytes_, first, last, over))
    return result
