"""Many small programs as parts of one object, in few files: starting a compiler takes longer than each."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.codegen.c_names import SIZE_HELPERS
from hasten.codegen.emit_c import Expand, declaration, emit_functions
from hasten.codegen.microkernels import called_by_kernels
from hasten.codegen.module import PartCode, module_sources, part_code, share_functions
from hasten.codegen.part import Part
from hasten.loops.nest import Function
from hasten.target import Target


def batch_sources(
    parts: Sequence[Part], target: Target, expand: Expand, *, per_file: int
) -> tuple[dict[str, str], list[PartCode]]:
    """The C of some parts, `per_file` of them in a file.

    Args:
        parts: numbered from 0 on, in order.
        target: instruction set.
        expand: see `emit_c`.
        per_file: parts whose kernels share a file, and whose plans and runs share another.

    Returns:
        All files of the object, and what each part would be by itself.
    """
    dtypes = tuple(dict.fromkeys(d for p in parts for d in p.lowered.tile_dtypes))
    sources = module_sources(range(len(parts)), target, expand, dtypes)
    prototypes = "\n".join(f"{declaration(f)};" for f in called_by_kernels(target, dtypes))
    codes = [part_code(p, target, expand) for p in parts]
    for start in range(0, len(parts), per_file):
        functions: list[Function] = []
        runs = ""
        for p, code in zip(parts[start : start + per_file], codes[start:], strict=False):
            functions += share_functions(p.lowered.kernels, p.number)[1]
            # Each part's file has helpers of its own.
            runs += "".join(f"#undef {h}\n#define {h} {h}_{p.number}\n" for h in SIZE_HELPERS)
            runs += code.sources[f"part_{p.number}.c"]
        names = [f.name for f in functions]
        kernels = emit_functions(functions, expand, exported=names, prototypes=prototypes)
        sources |= {f"kernels_{start}.c": kernels, f"parts_{start}.c": runs}
    return sources, codes
