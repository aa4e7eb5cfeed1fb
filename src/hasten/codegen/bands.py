"""Bands: a 1x1 convolution, the depthwise one or pooling that reads it and the next 1x1, rows at a time.

The tensor between an expanding product and a depthwise convolution is the widest of its block; written
as a whole it leaves the cache before it is read. Here each thread takes some rows of the result and goes
through them in bands: it computes the rows of the wide tensor that a band needs into a ring in its own
memory, in which those that the next band needs too stay, then the depthwise rows, then the product of
these. Only at the first row of a thread's part are rows computed that another thread computes as well.

Products take one row of the picture at a time, so that which tiles they take does not depend on where a
thread's part or a band begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.codegen.counts import factor_type, stage_bytes, stage_flops
from hasten.codegen.domain import OUTPUT, extent, share, split_flat
from hasten.codegen.kernel import FAULT_PARAM, TAIL_PARAMS, Kernel, scratch_view
from hasten.codegen.layout import Layout, Layouts
from hasten.codegen.slide import Slide, find_slide
from hasten.codegen.slide_kernel import FIRST_ROW, LAST_ROW, slide_rows
from hasten.codegen.stage import Stage
from hasten.codegen.tiles import factor_of
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Address,
    Expr,
    Load,
    Op,
    Size,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)
from hasten.loops.nest import Call, For, Function, Let, Param, Stmt, size_parameter, sizes_of
from hasten.target import Target

BAND_BYTES = 256 << 10
"""Bytes of the rows between the kernels of a band: they stay in the second-level cache."""

WORTH_BYTES = 1 << 20
"""Bytes of one picture of a tensor between kernels, from which on bands pay."""

PIXELS = Size(INDEX, "band pixels")
"""Rows of a product: pixels of some rows of the picture."""

FLOPS_PER_WORK = 16
"""Operations of products that take as long as one operation of another kernel."""

BuildProduct = Callable[[Stage, Layouts, str], Kernel]


@dataclass(frozen=True)
class FlatProduct:
    """A product whose rows are the pixels of a picture, in the order of memory.

    Attributes:
        stage: the product over `PIXELS` rows; what it reads and writes has the addresses of `layouts`.
        layouts: of its tensors, flat.
        steps: elements from one pixel to the next, of each tensor that it reads, and of its result.
    """

    stage: Stage
    layouts: Layouts
    steps: Mapping[str, int]


@dataclass(frozen=True)
class Chain:
    """Stages that are run band by band.

    Attributes:
        stages: all of them, in order.
        expand: the product that the depthwise convolution reads, or None.
        slide: the depthwise convolution.
        project: the product that reads it, or None.
        axis: the dimension of its input along which bands are cut.
        rows: of a band.
        ring: rows of the input in memory; 0 where `expand` is None.
        dtype: element type of the tensors between the kernels.
    """

    stages: tuple[Stage, ...]
    expand: FlatProduct | None
    slide: Slide
    project: FlatProduct | None
    axis: int
    rows: int
    ring: int
    dtype: DType

    @property
    def taps(self) -> int:
        """Rows of the window."""
        (tap,) = self.slide.rows
        return constant_int(tap.extent) or 1


def passed_on(stages: Sequence[Stage], results: Sequence[str]) -> frozenset[str]:
    """Tensors that one stage alone reads: they need not be in memory as a whole."""
    readers = Counter(name for s in stages for name in s.reads())
    return frozenset(name for name, count in readers.items() if count == 1 and name not in results)


def find_chain(stages: Sequence[Stage], at: int, layouts: Layouts, passed: Collection[str]) -> Chain | None:
    """The longest chain that begins with a stage, or None if there is none that pays.

    Args:
        stages: all stages in order.
        at: where the chain begins.
        layouts: of all tensors.
        passed: names of the tensors that `passed_on` gives.
    """
    first = flat_product(stages[at], layouts) if stages[at].name in passed else None
    middle = at + 1 if first else at
    slide = find_slide(stages[middle], layouts) if middle < len(stages) else None
    if slide is None or (first and slide.x.buffer != stages[at].name):
        return None
    if first and any(isinstance(n, Load) and n.buffer == stages[at].name for n in walk(slide.finish)):
        return None  # its rows are in a ring, where an epilogue that reads them too does not find them
    last = None
    if stages[middle].name in passed and middle + 1 < len(stages):
        last = flat_product(stages[middle + 1], layouts)
        if last is not None and _operand(last.stage) != stages[middle].name:
            last = None
    taken = tuple(stages[at : middle + (2 if last else 1)])
    return _cut(taken, first, slide, last, layouts) if len(taken) > 1 else None


def _operand(product: Stage) -> str:
    assert isinstance(product.body, Gemm) and isinstance(product.body.a, Load)
    return product.body.a.buffer


def flat_product(s: Stage, layouts: Layouts) -> FlatProduct | None:
    """A product as one over pixels, if everything that it touches advances by a constant with them."""
    g = s.body
    if not isinstance(g, Gemm) or g.batch or g.taps or not isinstance(g.a, Load):
        return None
    if g.b.dtype is not factor_of(g.a.dtype):
        return None  # weights in codes, whose kernels need memory of their own
    pixel = Var(INDEX, "pixel", PIXELS)
    values = split_flat(pixel, g.rows)
    steps: dict[str, int] = {}
    flat: dict[str, Layout] = {}

    def linear(name: str, address: Expr) -> Expr | None:
        address = substitute(address, values)
        step = constant_int(coefficient(address, pixel) or const(0))
        rest = free_vars(address) - {pixel, g.column, g.depth}
        if (
            step is None
            or rest
            or (step == 0 and pixel in free_vars(address))
            or steps.get(name, step) != step
        ):
            return None
        steps[name] = step
        return address

    broken: list[Load] = []

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or not node.index:
            return None
        address = linear(node.buffer, layouts[node.buffer].address(node.index))
        if address is None:
            broken.append(node)
            return node
        layout = layouts[node.buffer]
        flat[node.buffer] = replace(layout, shape=(layout.elements,), order=(0,), gap=0)
        return replace(node, index=(address,))

    a = transform(g.a, visit)
    epilogue = None if s.epilogue is None else transform(s.epilogue, visit)
    out = linear(s.name, layouts[s.name].address(s.vars))
    sizes = [n for e in (a, epilogue) if e is not None for n in walk(e) if isinstance(n, Size)]
    if broken or sizes or out is None or out != pixel * steps[s.name] + g.column:
        return None
    flat[s.name] = replace(layouts[s.name], shape=(PIXELS, const(steps[s.name])), order=(0, 1), gap=0)
    body = replace(g, rows=(pixel,), a=a)
    stage = replace(s, vars=(pixel, g.column), body=body, epilogue=epilogue)
    return FlatProduct(stage, {**layouts, **flat}, steps)


def _cut(
    stages: tuple[Stage, ...],
    expand: FlatProduct | None,
    slide: Slide,
    project: FlatProduct | None,
    layouts: Layouts,
) -> Chain | None:
    """The chain with bands that fit the cache, or None where they cannot be cut or do not pay."""
    source = layouts[slide.x.buffer]
    if len(slide.outer) != 2 or len(slide.rows) != 1 or len(source.order) != 4:
        return None
    picture, line = slide.outer
    (tap,) = slide.rows
    axis = source.order[1]
    index = slide.x.index
    steps = [constant_int(coefficient(index[axis], v) or const(0)) for v in (line, tap)]
    if index[source.order[0]] != picture or steps[0] is None or steps[0] < 1 or steps[1] != 1:
        return None
    if free_vars(index[axis]) != {line, tap} or any(line in free_vars(index[d]) for d in source.order[2:]):
        return None
    between = {layouts[s.name].dtype for s in stages[:-1]}
    if len(between) > 1 or not between <= {DType.F32, DType.BF16}:
        return None
    (dtype,) = between
    taps, channels = constant_int(tap.extent), constant_int(slide.channel.extent)
    inside, outside = constant_int(source.shape[source.order[2]]), constant_int(slide.position.extent)
    heights = constant_int(source.shape[axis]), constant_int(line.extent)
    if not (taps and channels and inside and outside and heights[0] and heights[1]):
        return None  # not known, or nothing to compute
    wide = inside * channels * dtype.bytes if expand else 0
    narrow = outside * channels * dtype.bytes if project else 0
    if max(wide * heights[0], narrow * heights[1]) < WORTH_BYTES:
        return None
    rows = max(
        (
            b
            for b in range(1, heights[1] + 1)
            if ((b - 1) * steps[0] + taps) * wide + b * narrow <= BAND_BYTES
        ),
        default=1,
    )
    ring = (rows - 1) * steps[0] + taps
    return Chain(stages, expand, slide, project, axis, rows, ring if expand else 0, dtype)


def band_kernel(chain: Chain, layouts: Layouts, build: BuildProduct, target: Target, name: str) -> Kernel:
    """One kernel for a chain.

    Args:
        chain: its stages.
        layouts: of all tensors.
        build: makes the kernel of a product, given its stage, layouts and name.
        target: instruction set.
        name: of the function; those that it calls have names that begin with it.
    """
    return _Builder(chain, layouts, build, target, name).kernel()


class _Builder:
    """Builds one kernel; holds what its parts share."""

    def __init__(
        self, chain: Chain, layouts: Layouts, build: BuildProduct, target: Target, name: str
    ) -> None:
        self.chain, self.layouts, self.name, self.slide = chain, layouts, name, chain.slide
        self.source = layouts[chain.slide.x.buffer]
        self.picture, self.line = chain.slide.outer
        (self.tap,) = chain.slide.rows
        self.height = self.source.shape[chain.axis]
        self.width = self.source.shape[self.source.order[2]]
        assert self.line.extent is not None and self.slide.position.extent is not None
        self.lines = self.line.extent
        self.columns = self.slide.position.extent
        self.channels = self.slide.channel.extent or const(1)
        self.first, self.last = Var(INDEX, "first"), Var(INDEX, "last")
        self.begin, self.end = Var(INDEX, "begin"), Var(INDEX, "end")
        self.result = layouts[chain.stages[-1].name].dtype
        self.memory = scratch_view(chain.dtype)
        self.params: dict[str, Param] = {}
        self.tensors: dict[str, str] = {}
        self.products = {
            role: build(p.stage, p.layouts, f"{name}_{role}")
            for role, p in (("expand", chain.expand), ("project", chain.project))
            if p is not None
        }
        self.window, self.window_tensors = slide_rows(
            self.local_slide(), self.local_layouts(), target, f"{name}_window"
        )

    def kernel(self) -> Kernel:
        """The kernel with the functions that it calls."""
        first, last = share(extent((self.picture, self.line)), const(1))
        total_first, total_last = Var(INDEX, "first_row"), Var(INDEX, "last_row")
        low, high = self.picture * self.lines, self.picture * self.lines + self.lines
        body: tuple[Stmt, ...] = (
            Let(total_first, first),
            Let(total_last, last),
            For(
                self.picture,
                total_first // self.lines,
                (total_last + (self.lines - 1)) // self.lines,
                (
                    Let(self.first, binary("max", total_first, low) - low),
                    Let(self.last, binary("min", total_last, high) - low),
                    For(self.begin, self.first, self.last, self.band(), step=self.chain.rows),
                ),
            ),
        )
        stages, functions = self.chain.stages, [self.window, *(k.function for k in self.products.values())]
        flops = sum((stage_flops(s) for s in stages), start=const(0))
        moved = sum((stage_bytes(s, self.layouts) for s in stages), start=const(0))
        for s in stages[:-1]:
            layout = self.layouts[s.name]
            moved = moved - layout.elements * (2 * layout.dtype.bytes)
        sizes = sorted(sizes_of(body))
        params = (
            *self.params.values(),
            Param(OUTPUT, self.result, 1, writable=True),
            self.memory,
            *(Param(size_parameter(n), INDEX) for n in sizes),
            *TAIL_PARAMS,
        )
        title = ", ".join(dict.fromkeys(o for s in stages for o in s.origins if o))
        return Kernel(
            Function(self.name, params, body, title),
            tuple(functions),
            (*self.tensors.items(), (OUTPUT, stages[-1].name)),
            tuple((size_parameter(n), Size(INDEX, n)) for n in sizes),
            (flops + (FLOPS_PER_WORK - 1)) // FLOPS_PER_WORK,
            (stages[-1].name,),
            (self.ring_elements + self.columns * self.channels * self.chain.rows) * self.chain.dtype.bytes,
            title,
            flops=flops,
            bytes=moved,
            factors=factor_type(next(s for s in stages if isinstance(s.body, Gemm)), self.layouts),
        )

    @property
    def ring_elements(self) -> Expr:
        """Elements of the ring of rows that the depthwise convolution reads."""
        return self.width * self.channels * self.chain.ring

    def local_slide(self) -> Slide:
        """The depthwise convolution from the ring and into the rows of a band, where there are these."""
        s, ring = self.slide, self.chain.ring
        if self.chain.expand is not None:
            index = list(s.x.index)
            index[self.source.order[0]] = const(0)
            # Padding in front makes rows negative; remainders are of what is not.
            index[self.chain.axis] = (index[self.chain.axis] + ring * self.chain.taps) % ring
            s = replace(s, x=replace(s.x, index=tuple(index)))
        if self.chain.project is not None:
            row = self.picture * self.lines + self.line - FIRST_ROW
            s = replace(s, out=(row * self.columns + s.position) * self.channels + s.channel)
        return s

    def local_layouts(self) -> Layouts:
        """With the ring in place of the tensor that it holds rows of."""
        if self.chain.expand is None:
            return self.layouts
        shape = list(self.source.shape)
        shape[self.chain.axis] = const(self.chain.ring)
        return {**self.layouts, self.source.name: replace(self.source, shape=tuple(shape))}

    def band(self) -> tuple[Stmt, ...]:
        """Computes the rows of the result from `begin` on."""
        end = binary("min", self.begin + self.chain.rows, self.last)
        first, last = (self.picture * self.lines + e for e in (self.begin, self.end))
        statements: list[Stmt] = [Let(self.end, end), *self.expanded()]
        place = {FIRST_ROW.name: first, LAST_ROW.name: last}
        buffers: dict[str, Expr] = {}
        for p, tensor in self.window_tensors.items():
            local = tensor == self.source.name and self.chain.expand is not None
            buffers[p] = self.scratch(const(0)) if local else self.outside("window", p, tensor, const(0))
        whole = Address(self.result, OUTPUT, (const(0),))
        buffers[OUTPUT] = whole if self.chain.project is None else self.scratch(self.ring_elements)
        statements.append(self.call(self.window, buffers, place))
        if self.chain.project is not None:
            statements.append(self.projected())
        return tuple(statements)

    def expanded(self) -> tuple[Stmt, ...]:
        """Computes the rows that this band needs and the one before it did not."""
        if self.chain.expand is None:
            return ()
        index, ring = self.slide.x.index[self.chain.axis], self.chain.ring
        fresh, upto = Var(INDEX, "fresh"), Var(INDEX, "upto")

        def reached(end: Expr) -> Expr:
            """The row behind the last that output rows up to `end` (exclusive) need."""
            values: dict[Expr, Expr] = {self.line: end - 1, self.tap: const(self.chain.taps)}
            return binary("min", substitute(index, values), self.height)

        need = binary("max", 0, substitute(index, {self.line: self.begin, self.tap: const(0)}))
        again = binary("lt", self.first, self.begin)
        kept = Op(INDEX, "select", (again, binary("max", need, reached(self.begin)), need))
        row = Var(INDEX, "row")
        slot = self.scratch(row % ring * self.width * self.channels)
        pixel = (self.picture * self.height + row) * self.width
        one = self.product("expand", self.width, pixel, {self.source.name: slot})
        return Let(fresh, kept), Let(upto, reached(self.end)), For(row, fresh, upto, (one,))

    def projected(self) -> For:
        """Computes the rows of the result from the depthwise rows."""
        row = Var(INDEX, "row")
        local = self.scratch(self.ring_elements + (row - self.begin) * self.columns * self.channels)
        pixel = (self.picture * self.lines + row) * self.columns
        one = self.product("project", self.columns, pixel, {self.chain.stages[-2].name: local})
        return For(row, self.begin, self.end, (one,))

    def product(self, role: str, pixels: Expr, first: Expr, given: Mapping[str, Expr]) -> Call:
        """Calls a product for some pixels; tensors that are not given are whole, outside."""
        kernel = self.products[role]
        flat = self.chain.expand if role == "expand" else self.chain.project
        steps = flat.steps if flat is not None else {}
        buffers: dict[str, Expr] = {}
        for p, tensor in kernel.buffers:
            offset = first * steps.get(tensor, 0)
            if tensor in given:
                buffers[p] = given[tensor]
            elif p == OUTPUT:
                buffers[p] = Address(self.result, OUTPUT, (offset,))
            else:
                buffers[p] = self.outside(role, p, tensor, offset)
        return self.call(kernel.function, buffers, {size_parameter(PIXELS.name): pixels})

    def outside(self, role: str, parameter: str, tensor: str, offset: Expr) -> Expr:
        """A place in a tensor that the kernel is given."""
        dtype, name = self.layouts[tensor].dtype, f"{role}_{parameter}"
        self.params[name] = Param(name, dtype, 1)
        self.tensors[name] = tensor
        return Address(dtype, name, (offset,))

    def scratch(self, offset: Expr) -> Expr:
        """A place in this thread's own memory."""
        return Address(self.chain.dtype, self.memory.name, (offset,))

    def call(self, f: Function, buffers: Mapping[str, Expr], values: Mapping[str, Expr]) -> Call:
        """A call on one thread; sizes that are not given have the caller's values."""
        alone: dict[str, Expr] = {"thread": const(0, DType.I32), "threads": const(1, DType.I32)}
        alone["kernel"] = Var(DType.I32, "kernel")
        alone[FAULT_PARAM.name] = Address(FAULT_PARAM.dtype, FAULT_PARAM.name, (const(0),))
        given = {**self.sizes(f), **alone, **buffers, **values}
        return Call(f.name, tuple(given[p.name] for p in f.params))

    def sizes(self, f: Function) -> dict[str, Expr]:
        """Values of a function's size parameters."""
        return {size_parameter(name): Size(INDEX, name) for name in sizes_of(f.body)}
