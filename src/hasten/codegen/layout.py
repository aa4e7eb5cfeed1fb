"""Memory layouts: the order in which a tensor's dimensions lie in memory, and addresses.

A tensor keeps its logical dimensions; only its strides change. So convolutions get their channels
innermost (NHWC) without a transpose in the graph: the reader asks, the writer writes in that order,
and element-wise stages in between take over the order of what they read. Where a writer cannot (an
input, a result, two readers that disagree) a copying stage stands in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.codegen.fuse import is_movement, operand_load
from hasten.codegen.shared_sums import share_sums
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import PANEL, group
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import Attention, Gemm, map_operands
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Var, const, constant_int, free_vars, substitute, transform, walk
from hasten.loops.program import TensorInfo

Order = tuple[int, ...]

SAME_SET = 4096
"""Bytes after which lines fall into the same set of a first-level cache, on all processors of today."""

LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor lie.

    Attributes:
        name: the tensor.
        dtype: element type.
        shape: logical extents.
        order: logical dimensions from the outermost in memory to the innermost.
        gap: elements of memory between the rows of the innermost dimension.
    """

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    order: Order
    gap: int = 0

    def address(self, index: Sequence[Expr]) -> Expr:
        """Offset, in elements, of the element at a logical index."""
        flat: Expr = const(0)
        for d in self.order:
            flat = flat * self._room(d) + index[d]
        return flat

    @property
    def elements(self) -> Expr:
        """Number of elements, those between rows included."""
        total: Expr = const(1)
        for d in range(len(self.shape)):
            total = total * self._room(d)
        return total

    def _room(self, d: int) -> Expr:
        return self.shape[d] + self.gap if d == self.order[-1] else self.shape[d]


Layouts = Mapping[str, Layout]


def row_major(info: TensorInfo) -> Layout:
    """The layout of inputs, results and constants."""
    return Layout(info.name, info.dtype, info.shape, tuple(range(len(info.shape))))


def flatten(e: Expr, layouts: Layouts) -> Expr:
    """The expression with every load at its address in memory."""

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.buffer == ACCUMULATOR:
            return None
        index = [flatten(i, layouts) for i in node.index]
        return replace(node, index=(layouts[node.buffer].address(index),))

    return transform(e, visit)


def assign_layouts(
    stages: list[Stage], fixed: Mapping[str, TensorInfo], results: Sequence[str]
) -> tuple[list[Stage], dict[str, Layout]]:
    """Chooses the order of every tensor and adds copies where a reader's wish cannot be met.

    Args:
        stages: all stages in order.
        fixed: inputs and constants, which are row-major.
        results: names of stages whose memory is the caller's, also row-major.

    Returns:
        The stages, with copies, and the layout of every tensor.
    """
    layouts = {name: row_major(info) for name, info in fixed.items()}
    wishes = _wishes(stages)
    spread = _operands_of_products(stages) - set(results)
    done: list[Stage] = []
    for stage in stages:
        s = _with_copies(stage, layouts, done, fixed)
        identity = tuple(range(len(s.vars)))
        order = _written_order(s)
        if s.name not in results:
            order = order or wishes.get(s.name) or _inherited(s, layouts)
        elif order is None:
            moves = isinstance(s.body, Expr) and is_movement(s.body)
            order = identity if moves else _inherited(s, layouts)
        if s.name in results and order != identity:
            _write(replace(s, name=f"{s.name}_inner"), order, layouts, done)
            s, order = _row_major_copy(s), identity
        _write(s, order, layouts, done)
        if s.name in spread:
            layouts[s.name] = _spread(layouts[s.name])
    return done, layouts


def _write(s: Stage, order: Order, layouts: dict[str, Layout], done: list[Stage]) -> None:
    """Adds a stage that writes in an order, behind stages for the sums that its elements share."""
    sums, s = share_sums(s, order, frozenset(layouts))
    for each, own in (*((shared, tuple(range(len(shared.vars)))) for shared in sums), (s, order)):
        layouts[each.name] = Layout(each.name, each.dtype, each.shape, own)
        done.append(each)


def _operands_of_products(stages: Sequence[Stage]) -> set[str]:
    """Tensors that products write and nothing but products read."""
    products = [s for s in stages if isinstance(s.body, Gemm)]
    others = {name for s in stages if not isinstance(s.body, Gemm) for name in s.reads()}
    return {s.name for s in products} - others


def _spread(layout: Layout) -> Layout:
    """The layout with a gap between rows where all rows would begin in the same set of the first-level cache.

    A tile of a product reads as many rows side by side as the set has places, and panels must fit as well.
    """
    row = constant_int(layout.shape[layout.order[-1]]) if layout.order else None
    if row is None or row * layout.dtype.bytes % SAME_SET:
        return layout
    return replace(layout, gap=LINE // layout.dtype.bytes)


def _written_order(s: Stage) -> Order | None:
    """The only order in which a contraction can write: its column (or head and column) innermost."""
    identity = tuple(range(len(s.vars)))
    if isinstance(s.body, Gemm):
        return _last(s.vars.index(s.body.column), len(s.vars))
    return None if isinstance(s.body, Expr) else identity


def _last(d: int, rank: int) -> Order:
    return (*(i for i in range(rank) if i != d), d)


def _row_major_copy(s: Stage) -> Stage:
    """The copy of what a stage wrote in an order of its own into a result, which must be row-major."""
    body = Load(s.dtype, f"{s.name}_inner", tuple(s.vars))
    return Stage(s.name, s.dtype, s.vars, body, None, ("result in row-major order",))


def _inherited(s: Stage, layouts: Layouts) -> Order:
    """The order in which a stage walks the first tensor of its rank that it reads and is not row-major."""
    identity = tuple(range(len(s.vars)))
    for e in s.expressions():
        for node in walk(e):
            if isinstance(node, Load) and node.buffer in layouts:
                order = layouts[node.buffer].order
                if len(order) == len(identity) and order != tuple(range(len(order))):
                    return _walked(s, node, order)
    return identity


def _walked(s: Stage, load: Load, order: Order) -> Order:
    """The stage's variables in the order in which a load advances through memory, others first."""
    found: dict[int, None] = {}
    for axis in order:
        own = [d for d, v in enumerate(s.vars) if v in free_vars(load.index[axis])]
        if len(own) == 1:
            found.setdefault(own[0])
    return (*(d for d in range(len(s.vars)) if d not in found), *found)


def _needs(s: Stage) -> dict[str, tuple[Expr, Var]]:
    """Operands that must be contiguous along a variable: attribute name -> (expression, variable)."""
    c = s.body
    if isinstance(c, Gemm):
        return {"a": (c.a, c.depth)}
    if isinstance(c, Attention):
        # Keys of several elements in a group are moved as groups.
        keys = {"k": (c.k, c.depth)} if group(c.k.dtype) > 1 else {}
        return {"q": (c.q, c.depth), **keys, "v": (c.v, c.column)}
    return {}


def _wishes(stages: list[Stage]) -> dict[str, Order]:
    """The order that the first reader with needs asks of each tensor."""
    wishes: dict[str, Order] = {}
    for s in stages:
        for e, along in _needs(s).values():
            load = operand_load(e, along)
            if load is None:
                continue
            holders = [d for d, i in enumerate(load.index) if along in free_vars(i)]
            if len(holders) == 1:
                wishes.setdefault(load.buffer, _last(holders[0], len(load.index)))
    return wishes


def contiguous(e: Expr, along: Var, layouts: Layouts) -> bool:
    """Whether an operand's address advances by one element with `along`."""
    load = operand_load(e, along)
    if load is None:
        return False
    step = coefficient(layouts[load.buffer].address(load.index), along)
    return step is not None and constant_int(step) == 1


def _ends_early(load: Load | None, along: Var, outside: Mapping[str, TensorInfo]) -> bool:
    """Whether whole panels could be read beyond the end of memory that is not ours."""
    columns = constant_int(along.extent)
    return load is not None and load.buffer in outside and (columns is None or columns % PANEL != 0)


def _with_copies(
    s: Stage, layouts: dict[str, Layout], done: list[Stage], outside: Mapping[str, TensorInfo]
) -> Stage:
    """The stage with operands that it cannot walk read from copies in an order that it can."""
    if isinstance(s.body, Expr):
        return s
    changed: dict[str, Expr] = {}
    for name, (e, along) in _needs(s).items():
        load = operand_load(e, along)
        if contiguous(e, along, layouts) and not (name == "v" and _ends_early(load, along, outside)):
            continue
        holders = [d for d, i in enumerate(load.index) if along in free_vars(i)] if load else []
        if load is None or len(holders) != 1:
            changed[name] = _operand_copy(s, name, e, along, layouts, done)
            continue
        copy = _copy(layouts[load.buffer], _last(holders[0], len(load.index)), layouts, done)
        changed[name] = substitute(e, {load: replace(load, buffer=copy)})
    return replace(s, body=map_operands(s.body, changed)) if changed else s


def arrange_constants(
    stages: list[Stage], constants: dict[str, np.ndarray], layouts: dict[str, Layout]
) -> list[Stage]:
    """Copies constants, now, into the order in which the stages that read them walk memory.

    A stage's innermost variable should be innermost in everything that it reads, so that whole vectors
    can be loaded: the weights of a depthwise convolution, channels last, for one.
    """
    result: list[Stage] = []
    for s in stages:
        if not isinstance(s.body, Expr) or not s.vars:
            result.append(s)
            continue
        inner = s.vars[layouts[s.name].order[-1]]
        renamed: dict[Expr, Expr] = {}
        for node in walk(s.body):
            if isinstance(node, Load) and node.buffer in constants:
                holders = [d for d, i in enumerate(node.index) if inner in free_vars(i)]
                if len(holders) == 1 and holders[0] != len(node.index) - 1:
                    name = _arranged(node.buffer, holders[0], constants, layouts)
                    renamed[node] = replace(node, buffer=name)
        result.append(replace(s, body=substitute(s.body, renamed)))
    return result


def _arranged(name: str, last: int, constants: dict[str, np.ndarray], layouts: dict[str, Layout]) -> str:
    """Name of a constant with one dimension moved innermost."""
    source = layouts[name]
    order = _last(last, len(source.shape))
    copy = f"{name}_order{''.join(map(str, order))}"
    if copy not in constants:
        constants[copy] = np.ascontiguousarray(constants[name].transpose(order))
        layouts[copy] = replace(source, name=copy, order=order)
    return copy


def _copy(source: Layout, order: Order, layouts: dict[str, Layout], done: list[Stage]) -> str:
    """Name of a copy of a tensor in another order, made once."""
    name = f"{source.name}_copy{''.join(map(str, order))}"
    if name not in layouts:
        variables = tuple(Var(INDEX, f"i{d}", n) for d, n in enumerate(source.shape))
        body = Load(source.dtype, source.name, variables)
        done.append(Stage(name, source.dtype, variables, body, None, (f"layout of {source.name}",)))
        layouts[name] = Layout(name, source.dtype, source.shape, order)
    return name


def _operand_copy(
    s: Stage, name: str, e: Expr, along: Var, layouts: dict[str, Layout], done: list[Stage]
) -> Expr:
    """A general operand expression written to memory with `along` innermost; returns its load."""
    variables = [v for v in sorted(free_vars(e), key=lambda v: v.name) if v != along] + [along]
    label = f"{s.name}_{name}"
    done.append(Stage(label, e.dtype, tuple(variables), e, None, s.origins))
    shape = tuple(v.extent for v in variables if v.extent is not None)
    layouts[label] = Layout(label, e.dtype, shape, tuple(range(len(variables))))
    return Load(e.dtype, label, tuple(variables))
