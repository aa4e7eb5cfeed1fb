"""The functions that kernels share: the register tiles and what prepares operands for them."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.codegen.amx import matrix_frame, matrix_functions
from hasten.codegen.few_rows import few_rows_functions
from hasten.codegen.tiles import DISPATCHER, tile_functions
from hasten.codegen.transpose import transpose_function
from hasten.loops.dtypes import DType
from hasten.loops.nest import Function
from hasten.target import Target


def microkernels(target: Target, dtypes: Sequence[DType]) -> list[Function]:
    """All of them for some element types, callees first."""
    few = [f for d in dtypes for f in few_rows_functions(target, d)]
    return [*tile_functions(target, dtypes), *few, *_whole_functions(target, dtypes)]


def called_by_kernels(target: Target, dtypes: Sequence[DType]) -> list[Function]:
    """Those that kernels call by name."""
    tiles = [f for f in tile_functions(target, dtypes) if f.name.startswith(DISPATCHER)]
    few = [f for d in dtypes for f in few_rows_functions(target, d)[-1:]]
    return [*tiles, *few, *_whole_functions(target, dtypes)]


def _whole_functions(target: Target, dtypes: Sequence[DType]) -> list[Function]:
    """Those that call no others; what packs keys of attention there is for floats."""
    matrices = [f for d in dtypes for f in matrix_functions(target, d)]
    return [*matrix_frame(target), *matrices, *(transpose_function(target, d) for d in dtypes if d.is_float)]
