"""From a tensor program to kernels: fusion, layouts, packing, and the choice of kernel for each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.codegen.algorithm import Algorithm
from hasten.codegen.amx import joined_group
from hasten.codegen.amx_gemm import product_kernel
from hasten.codegen.attention import attention_kernel
from hasten.codegen.bands import band_kernel, find_chain, passed_on
from hasten.codegen.codes import find_codes
from hasten.codegen.codes_gemm import CodesOperand, codes_kernel
from hasten.codegen.convolution import find_convolution
from hasten.codegen.domain import extent
from hasten.codegen.forest import PackedForest, forest_kernel, pack_forest
from hasten.codegen.fuse import fuse
from hasten.codegen.greedy import greedy_kernel
from hasten.codegen.heap import first_places_kernel
from hasten.codegen.images import Run, find_runs
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layout, arrange_constants, assign_layouts, row_major
from hasten.codegen.maps import map_kernel
from hasten.codegen.narrow import narrow_storage, narrow_tables
from hasten.codegen.order import order_kernel
from hasten.codegen.packing import (
    PackedOperand,
    padding_name,
    padding_of,
    whole_depth,
)
from hasten.codegen.panels import pack_constant, packed_columns
from hasten.codegen.plane_kernel import plane_kernel
from hasten.codegen.prefix import prefix_kernel
from hasten.codegen.quantized import quantize_products
from hasten.codegen.rank import rank_kernel
from hasten.codegen.recurrence import recurrence_kernel
from hasten.codegen.requantize import lean_epilogues
from hasten.codegen.rows import find_rows, row_kernel
from hasten.codegen.scatter import scatter_kernel
from hasten.codegen.schedule import DEFAULTS, Product, Schedules, default_schedule, product_shape
from hasten.codegen.shallow import join_shallow_taps
from hasten.codegen.slide_kernel import slide_kernel
from hasten.codegen.stage import Stage
from hasten.codegen.tables import with_tables
from hasten.codegen.tiles import PANEL, factor_of, tiles_for
from hasten.codegen.winograd import winograd_kernel
from hasten.codegen.winograd_transforms import transform_weights
from hasten.loops.descriptions import (
    Attention,
    Contraction,
    Forest,
    Gemm,
    Greedy,
    Order,
    Prefix,
    RankSelect,
    Recurrence,
    Scatter,
)
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Var, binary, const, constant_int, round_up, select, substitute, walk
from hasten.loops.program import Program
from hasten.loops.tabulate import tabulate
from hasten.target import Target

PARTS = 3
"""Operands of an attention that one product computes: queries, keys and values."""


@dataclass(frozen=True)
class _Packed:
    """A product or convolution whose second operand was packed."""

    operand: PackedOperand | CodesOperand
    product: Product


@dataclass(frozen=True)
class Lowered:
    """Kernels in order, and what they read and write.

    Attributes:
        kernels: one for each stage.
        layouts: of every tensor in memory.
        constants: arrays that kernels read, packed ones included.
        tile_dtypes: element types that register tiles are needed for.
        runs: kernels that take one picture of a batch at a time.
    """

    kernels: tuple[Kernel, ...]
    layouts: Mapping[str, Layout]
    constants: Mapping[str, np.ndarray]
    tile_dtypes: tuple[DType, ...]
    runs: tuple[Run, ...] = ()


def lower_program(
    program: Program, target: Target, schedules: Schedules = DEFAULTS, precision: DType = DType.F32
) -> Lowered:
    """Chooses and builds the kernels of a program for a target.

    Args:
        program: what to compute.
        target: instruction set.
        schedules: of products and convolutions, where they are not the defaults.
        precision: F32, or BF16 to store the operands of products so.
    """
    program = quantize_products(with_tables(without_empty_sums(program)))
    outside = {n: program.info(n) for n in (*program.inputs, *program.constants)}
    stages, constants = lean_epilogues(fuse(program), program.constants)
    program = replace(program, constants=constants)
    outside |= {n: program.info(n) for n in constants}
    shapes = {n: info.shape for n, info in outside.items()}
    stages = join_shallow_taps(stages, shapes, joined_group(target, precision))
    if precision is DType.BF16:
        stages, tables = narrow_tables(stages, program.constants)
        program = replace(program, constants=program.constants | tables)
        outside |= {n: program.info(n) for n in tables}
        stages = narrow_storage(stages, outside, program.constants.keys(), program.outputs)
    stages, constants, products = _pack(program, stages, target, schedules)
    forests: dict[str, PackedForest] = {}
    for s in stages:
        if isinstance(s.body, Forest):
            forests[s.name], tables = pack_forest(s, constants, target.vector_bytes // s.dtype.bytes)
            constants |= tables
    fixed = dict(program.inputs)
    fixed |= {name: Program(constants={name: a}).info(name) for name, a in constants.items()}
    written, layouts = assign_layouts(stages, fixed, program.outputs)
    written = arrange_constants(written, constants, layouts)
    dtypes = tuple(dict.fromkeys(_operand_type(s.body) for s in written if isinstance(s.body, Contraction)))
    for name, array in _paddings(written).items():
        constants[name] = array
        layouts[name] = row_major(Program(constants=constants).info(name))
    built = _kernels(written, layouts, products, forests, target, program.outputs)
    kernels = tuple(k for _, k in built)
    runs = find_runs([stages for stages, _ in built], layouts, constants.keys())
    read = {tensor for k in kernels for _, tensor in k.buffers}
    used = {n: a for n, a in constants.items() if n in read}
    return Lowered(kernels, layouts, used, dtypes, runs)


def without_empty_sums(program: Program) -> Program:
    """Products of no depth or no elements, which no kernel is made for, as the zeros that they are."""
    made = {
        name: replace(d, body=const(0, d.dtype))
        for name, d in program.definitions.items()
        if isinstance(g := d.body, Gemm)
        and any(constant_int(v.extent) == 0 for v in (*g.batch, g.column, *g.taps, g.depth))
    }
    return replace(program, definitions={**program.definitions, **made}) if made else program


def _paddings(stages: Sequence[Stage]) -> dict[str, np.ndarray]:
    """What the row pointers of products point to outside their input, as long as the deepest of them."""
    products = [s.body for s in stages if isinstance(s.body, Gemm)]
    longest = max([constant_int(whole_depth(g)) or 0 for g in products] + [16])
    # Winograd's tiles reach beyond the input where its window does not.
    found = dict.fromkeys(padding_of(g) or const(0, g.a.dtype) for g in products)
    return {padding_name(p): np.full(longest, p.value, p.dtype.numpy) for p in found}


def _kernels(
    stages: Sequence[Stage],
    layouts: Mapping[str, Layout],
    products: Mapping[str, _Packed],
    forests: Mapping[str, PackedForest],
    target: Target,
    results: Sequence[str],
) -> list[tuple[tuple[Stage, ...], Kernel]]:
    """A kernel for each stage, or one for several that run in bands or row by row, with what it computes."""

    def build(s: Stage, flat: Mapping[str, Layout], name: str) -> Kernel:
        assert isinstance(s.body, Gemm) and isinstance(s.body.b, Load)
        packed = products[s.body.b.buffer]
        # A band gives it a row at a time on one thread, of which measuring it alone says nothing.
        plain = replace(packed.product, schedule=default_schedule(packed.product.shape, target))
        return _product_kernel(s, replace(packed, product=plain), flat, target, name)

    passed = passed_on(stages, results)
    kernels: list[tuple[tuple[Stage, ...], Kernel]] = []
    at = 0
    while at < len(stages):
        chain = find_chain(stages, at, layouts, passed)
        taken = find_rows(stages, at, layouts) if chain is None else chain.stages
        if chain is not None:
            kernel = band_kernel(chain, layouts, build, target, f"band_{at}")
        elif len(taken) > 1:
            kernel = row_kernel(taken, layouts, target.vector_bytes, f"rows_{at}")
        else:
            kernel = _kernel(stages[at], at, layouts, products, forests, target)
        kernels.append((taken, kernel))
        at += len(taken)
    return kernels


def _kernel(
    s: Stage,
    number: int,
    layouts: Mapping[str, Layout],
    products: Mapping[str, _Packed],
    forests: Mapping[str, PackedForest],
    target: Target,
) -> Kernel:
    if isinstance(s.body, Gemm):
        assert isinstance(s.body.b, Load)
        packed = products[s.body.b.buffer]
        chosen = packed.product
        assert isinstance(chosen.stage.body, Gemm)
        prefix = "product" if chosen.schedule.algorithm is Algorithm.DIRECT else "winograd"
        kernel = _product_kernel(s, packed, layouts, target, f"{prefix}_{number}")
        plain = replace(s, body=replace(s.body, b=chosen.stage.body.b))
        return replace(kernel, product=replace(chosen, stage=plain))
    if isinstance(s.body, Attention):
        return attention_kernel(s, layouts, target, f"attention_{number}")
    if isinstance(s.body, RankSelect):
        return rank_kernel(s, layouts, f"rank_{number}")
    if isinstance(s.body, Prefix):
        return prefix_kernel(s, layouts, target.vector_bytes, f"prefix_{number}")
    if isinstance(s.body, Forest):
        return forest_kernel(s, forests[s.name], layouts, target.vector_bytes, f"forest_{number}")
    if isinstance(s.body, Scatter):
        return scatter_kernel(s, layouts, target.vector_bytes, f"scatter_{number}")
    if isinstance(s.body, Greedy):
        return greedy_kernel(s, layouts, f"greedy_{number}")
    if isinstance(s.body, Order):
        return (first_places_kernel if s.body.partial else order_kernel)(s, layouts, f"order_{number}")
    if isinstance(s.body, Recurrence):
        return recurrence_kernel(s, layouts, target, f"recurrence_{number}")
    window = slide_kernel(s, layouts, target, f"window_{number}")
    window = window or plane_kernel(s, layouts, target.vector_bytes, f"window_{number}")
    return window or map_kernel(s, layouts, target.vector_bytes, f"map_{number}")


def _product_kernel(
    s: Stage, packed: _Packed, layouts: Mapping[str, Layout], target: Target, name: str
) -> Kernel:
    assert isinstance(s.body, Gemm)
    operand, schedule = packed.operand, packed.product.schedule
    if isinstance(operand, CodesOperand):
        return codes_kernel(s, operand, layouts, tiles_for(target, s.body.a.dtype), schedule, name)
    if schedule.algorithm is Algorithm.DIRECT:
        return product_kernel(s, operand, layouts, target, schedule, name)
    return winograd_kernel(s, operand, layouts, tiles_for(target), schedule, name)


def _operand_type(c: Contraction) -> DType:
    """Element type of what a contraction's register tile multiplies: after Winograd f32, whatever is read."""
    if not isinstance(c, Gemm):
        return c.q.dtype
    return DType.F32 if c.b.dtype is DType.F32 else c.a.dtype


def _whole(g: Gemm) -> Expr:
    """Columns rounded up to whole panels."""
    return round_up(extent((g.column,)), PANEL)


def _pack(
    program: Program, stages: list[Stage], target: Target, schedules: Schedules
) -> tuple[list[Stage], dict[str, np.ndarray], dict[str, _Packed]]:
    """Replaces each second operand by its packed form: a new constant, or a stage that packs at run time.

    Returns:
        The stages, all constants, and by the name of the packed operand how its product is built.
    """
    constants = dict(program.constants)
    sizes = schedules.likely_sizes(program)
    known = frozenset(program.constants)
    products: dict[str, _Packed] = {}
    side_by_side = _joint_operands(stages)
    result: list[Stage] = []
    for s in stages:
        g = s.body
        if not isinstance(g, Gemm):
            result.append(s)
            continue
        name = f"{s.name}_packed"
        size = extent(g.taps) * whole_depth(g)
        columns = constant_int(g.column.extent)
        reads = {n.buffer for n in walk(g.b) if isinstance(n, Load)}
        shape = product_shape(s, sizes, known)
        schedule = schedules.of(shape, target)
        # What repeats for each entry of a batch of unknown length is packed at run time.
        constant = g.has_known_weight and reads <= known
        if not constant or find_convolution(s) is None:
            schedule = replace(schedule, algorithm=Algorithm.DIRECT)
        factor = factor_of(g.a.dtype)
        multiplied = factor if schedule.algorithm is Algorithm.DIRECT else DType.F32
        codes = find_codes(g, program.constants)
        packed: PackedOperand | CodesOperand
        if codes is not None:
            constants |= {name: codes.words, f"{name}_scales": codes.scales}
            if codes.zeros is not None:
                constants[f"{name}_zeros"] = codes.zeros
            packed = CodesOperand.of(codes, name)
        elif columns is not None and constant:
            weight = _weight(g, program.constants).astype(factor.numpy)
            if schedule.algorithm is not Algorithm.DIRECT:
                weight = transform_weights(weight.astype(np.float32), schedule.algorithm)
            constants[name] = pack_constant(weight)
            parts = PARTS if s.name in side_by_side and columns % (PARTS * PANEL) == 0 else 1
            packed = PackedOperand(name, size * packed_columns(columns), half=True, parts=parts)
        else:
            result.append(_packing_stage(s, name))
            packed = PackedOperand(name, size * _whole(g), half=False)
        products[name] = _Packed(packed, Product(s, shape, schedule))
        stored = multiplied if codes is None else DType.I32
        result.append(replace(s, body=replace(g, b=Load(stored, name, ()))))
    return result, constants, products


def _joint_operands(stages: Sequence[Stage]) -> set[str]:
    """Tensors that have queries, keys and values of an attention side by side, as wide as each other.

    A thread that computes the same stretch of all three, as attention divides heads, finds them in its cache.
    """
    found: set[str] = set()
    for s in stages:
        a = s.body
        if isinstance(a, Attention):
            read = {n.buffer for e in (a.q, a.k, a.v) for n in walk(e) if isinstance(n, Load)}
            loads = [n for e in (a.q, a.k, a.v) for n in walk(e) if isinstance(n, Load)]
            if len(read) == 1 and len(set(loads)) == PARTS and a.depth.extent == a.column.extent:
                found |= read
    return found


def _weight(g: Gemm, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """The second operand as an array [batch, column, tap, depth]."""
    variables = (*g.batch, g.column, *g.taps, g.depth)
    array = tabulate(g.b, variables, constants)
    counts = [constant_int(extent(v)) or 1 for v in (g.batch, (g.column,), g.taps, (g.depth,))]
    return array.reshape(counts)


def _packing_stage(s: Stage, name: str) -> Stage:
    """Packs an operand that is computed: [batch, panel, tap, depth, PANEL], missing columns zero."""
    g = s.body
    assert isinstance(g, Gemm) and g.column.extent is not None
    panel = Var(INDEX, "panel", _whole(g) // PANEL)
    j = Var(INDEX, "j", const(PANEL))
    column = panel * PANEL + j
    inside = binary("lt", column, g.column.extent)
    element = select(inside, substitute(g.b, {g.column: column}), const(0, g.b.dtype))
    variables = (*g.batch, panel, *g.taps, g.depth, j)
    return Stage(name, g.b.dtype, variables, element, None, (f"packing for {', '.join(s.origins)}",))
