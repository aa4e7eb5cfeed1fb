"""Storage in bf16: products read operands of 16 bits, everything is computed and summed in f32.

What a product or an attention reads is written in bf16 by the stage that computes it, in its epilogue, so
that no conversion is a pass of its own; so is what a window slides over (depthwise convolution, pooling),
which is bound by memory. Every other reader widens what it loads. So are large constants that are no
operands of products: tables of embeddings. Inputs and results of the program keep their types, and what only
normalizations, softmax and residual sums read stays f32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.codegen.fuse import operand_load
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import group
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import (
    Attention,
    Contraction,
    Description,
    Gemm,
    Order,
    Prefix,
    RankSelect,
    Whole,
    map_operands,
    operands,
)
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    cast,
    const,
    constant_int,
    free_vars,
    transform,
    walk,
)
from hasten.loops.program import TensorInfo

NARROW, WIDE = DType.BF16, DType.F32

LARGE_TABLE = 1 << 16
"""Elements from which on a constant is stored narrow; biases and the like are not worth the rounding."""


def narrow_storage(
    stages: Sequence[Stage],
    outside: Mapping[str, TensorInfo],
    constants: Collection[str],
    results: Collection[str],
) -> list[Stage]:
    """The stages with operands of products stored in bf16.

    Products stay f32 whose depth is odd (pairs are multiplied), or whose second operand is computed.

    Args:
        stages: all stages in order.
        outside: inputs and constants.
        constants: names of the constants.
        results: names of stages whose memory is the caller's.
    """
    wanted: dict[str, None] = {}
    wide: dict[str, None] = {}
    for s in stages:
        if isinstance(s.body, Expr):
            wanted |= dict.fromkeys(_windows(s.body, s.vars))
        elif isinstance(s.body, Contraction):
            (wanted if _takes_pairs(s.body, constants) else wide).update(dict.fromkeys(_reads(s.body)))
    # Kernels of other descriptions read what they wrote, so that stays as it is, and products read a copy.
    plain = [s for s in stages if isinstance(s.body, Expr | Contraction)]
    own = {s.name for s in plain if s.dtype is WIDE and s.name not in results and s.name not in wide}
    plan = _Plan(frozenset(n for n in wanted if n in own), outside, frozenset(constants), {})
    result: list[Stage] = []
    for s in stages:
        body, copies = plan.body(s, stages)
        result += copies
        epilogue = None if s.epilogue is None else plan.widened(s.epilogue)
        narrowed = replace(s, body=body, epilogue=epilogue)
        result.append(_stored_narrow(narrowed) if s.name in plan.narrow else narrowed)
    return result


def narrow_tables(
    stages: Sequence[Stage], constants: Mapping[str, np.ndarray]
) -> tuple[list[Stage], dict[str, np.ndarray]]:
    """The stages with large tables that they look up in bf16, and those tables by their new names.

    Weights of a window are no tables: its kernels take them in f32.
    """
    tables: dict[str, np.ndarray] = {}

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.buffer not in constants or node.dtype is not WIDE:
            return None
        array = constants[node.buffer]
        looked_up = any(isinstance(n, Load) for i in node.index for n in walk(i))
        if array.size < LARGE_TABLE or (node in reduced and not looked_up):
            return None
        name = f"{node.buffer}_{NARROW}"
        if name not in tables:
            tables[name] = array.astype(NARROW.numpy)
        return cast(Load(NARROW, name, tuple(transform(i, visit) for i in node.index)), WIDE)

    sums = [n for s in stages if isinstance(s.body, Expr) for n in walk(s.body) if isinstance(n, Reduce)]
    reduced = {n for r in sums for n in walk(r.body) if isinstance(n, Load)}
    found = [replace(s, body=transform(s.body, visit)) if isinstance(s.body, Expr) else s for s in stages]
    return found, tables


def _stored_narrow(s: Stage) -> Stage:
    """The stage with its elements rounded where they are written."""
    if isinstance(s.body, Expr):
        return replace(s, dtype=NARROW, body=cast(s.body, NARROW))
    if isinstance(s.body, Attention):
        return replace(s, dtype=NARROW)  # its kernel converts to the stage's type
    finished = s.epilogue if s.epilogue is not None else Load(WIDE, ACCUMULATOR, ())
    return replace(s, dtype=NARROW, epilogue=cast(finished, NARROW))


def _takes_pairs(c: Contraction, constants: Collection[str]) -> bool:
    """Whether a kernel for bf16 can compute a contraction."""
    depth = constant_int(c.depth.extent)
    if depth is None or depth % group(NARROW):
        return False
    loads = _operand_loads(c)
    if not all(load is not None and load.dtype is WIDE for load in loads.values()):
        return False
    if isinstance(c, Attention):
        return True
    reads = {n.buffer for n in walk(c.b) if isinstance(n, Load)}
    return reads <= set(constants) and c.has_known_weight


def _operand_loads(c: Contraction) -> dict[str, Load | None]:
    """The loads of the operands that a kernel walks in memory, by attribute."""
    if isinstance(c, Gemm):
        return {"a": operand_load(c.a, c.depth)}
    along = {"q": c.depth, "k": c.depth, "v": c.column}
    return {name: operand_load(getattr(c, name), v) for name, v in along.items()}


def _reads(c: Contraction) -> list[str]:
    """Tensors that a contraction's walked operands read."""
    walked = [c.a] if isinstance(c, Gemm) else [c.q, c.k, c.v]
    return [n.buffer for e in walked for n in walk(e) if isinstance(n, Load)]


def _windows(e: Expr, variables: Sequence[Var]) -> list[str]:
    """Tensors of f32 over which the reductions of an expression slide a window.

    An axis that is divided in parts, each of them reduced, looks like a window as wide as its step: groups of
    channels, whose sums shall stay f32. So one axis alone must have windows that overlap.
    """
    found = []
    for r in (n for n in walk(e) if isinstance(n, Reduce)):
        for load in (n for n in walk(r.body) if isinstance(n, Load) and n.dtype is WIDE):
            slid = [i for i in load.index if _slides(i, r.vars, variables)]
            if len(slid) > 1 or any(_overlaps(i, r.vars, variables) for i in slid):
                found.append(load.buffer)
    return found


def _slides(index: Expr, taps: Sequence[Var], variables: Sequence[Var]) -> bool:
    used = free_vars(index)
    return bool(used & set(taps) and used & set(variables))


def _overlaps(index: Expr, taps: Sequence[Var], variables: Sequence[Var]) -> bool:
    """Whether windows along an axis are known to share elements."""
    steps = [_constant_factor(index, v) for v in variables if v in free_vars(index)]
    reach = 1
    for tap in (t for t in taps if t in free_vars(index)):
        extent, factor = constant_int(tap.extent), _constant_factor(index, tap)
        if extent is None or factor is None:
            return False
        reach += (extent - 1) * factor
    return all(step is not None and step < reach for step in steps)


def _constant_factor(index: Expr, v: Var) -> int | None:
    factor = coefficient(index, v)
    value = None if factor is None else constant_int(factor)
    return None if value is None else abs(value)


@dataclass(frozen=True)
class _Plan:
    """Which tensors are stored narrow, and the narrow copies of others that were made.

    Attributes:
        narrow: stages that write bf16.
        outside: inputs and constants.
        constants: names of the constants.
        copies: name of the narrow copy of a tensor; grows.
    """

    narrow: frozenset[str]
    outside: Mapping[str, TensorInfo]
    constants: frozenset[str]
    copies: dict[str, str]

    def widened(self, e: Expr) -> Expr:
        """An expression that converts what it loads from narrow tensors."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Load) or node.buffer not in self.narrow:
                return None
            index = tuple(transform(i, visit) for i in node.index)
            return cast(Load(NARROW, node.buffer, index), WIDE)

        return transform(e, visit)

    def body(self, s: Stage, stages: Sequence[Stage]) -> tuple[Expr | Description, list[Stage]]:
        """What a stage computes, and stages to put before it that make narrow copies."""
        if isinstance(s.body, Expr):
            return self.widened(s.body), []
        c = s.body
        if isinstance(c, RankSelect | Prefix | Order | Whole) or not _takes_pairs(c, self.constants):
            return map_operands(c, {n: self.widened(e) for n, e in operands(c).items()}), []
        made: list[Stage] = []
        walked: dict[str, Expr] = {}
        for name, load in _operand_loads(c).items():
            assert load is not None
            buffer = load.buffer
            if buffer not in self.narrow:
                if buffer not in self.copies:
                    made.append(self.copy(buffer, stages))
                buffer = self.copies[load.buffer]
            walked[name] = _with_load(getattr(c, name), Load(NARROW, buffer, load.index))
        masks = {n: self.widened(e) for n, e in operands(c).items() if n in ("bias", "keep")}
        return map_operands(c, walked | masks), made

    def copy(self, buffer: str, stages: Sequence[Stage]) -> Stage:
        """A stage that converts a whole tensor."""
        shape = next((s.shape for s in stages if s.name == buffer), None)
        if shape is None:
            shape = self.outside[buffer].shape
        variables = tuple(Var(INDEX, f"i{d}", n) for d, n in enumerate(shape))
        self.copies[buffer] = name = f"{buffer}_{NARROW}"
        body = cast(Load(WIDE, buffer, variables), NARROW)
        return Stage(name, NARROW, variables, body, None, (f"{buffer} in {NARROW}",))


def _with_load(e: Expr, load: Load) -> Expr:
    """A walked operand (a load, or one that is 0 outside) with another load in it."""
    if isinstance(e, Op) and e.op == "select":
        return Op(load.dtype, "select", (e.args[0], load, const(0.0, load.dtype)))
    return load
