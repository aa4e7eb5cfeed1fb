"""The C of a part beside its kernels: its plan (sizes, guards, arena) and its run (kernels in order)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hasten.codegen.c_names import helpers_for, saturating, unique_names
from hasten.codegen.emit_c import declaration, size_text
from hasten.codegen.images import Run, picture_elements, run_tensors
from hasten.codegen.kernel import SCRATCH, Kernel
from hasten.codegen.lower_stages import Lowered
from hasten.codegen.magnitude import MOST, magnitude
from hasten.codegen.memory import ALIGNMENT, Slot, slots_by_tensor
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import (
    Expr,
    Load,
    Reduce,
    Size,
    Var,
    const,
    constant_int,
    round_up,
    substitute,
    transform,
    walk,
)
from hasten.loops.nest import Function, size_parameter
from hasten.loops.program import Program

SERIAL_WORK = 16_000
"""Operations below which a kernel runs on one thread: a barrier costs about as much."""

SERIAL_RUN = 400_000
"""Operations below which a whole run uses one thread: waking a worker costs about as much."""

WORK_PER_NANOSECOND = 16
"""Operations that one core does in a nanosecond, roughly; decides how long workers are waited for."""

MOST_THREADS = 64
"""Threads that a run uses at the most; the arena has scratch memory for so many."""

FEW_THREADS = 4
"""Threads up to which all work on one picture; more take pictures of their own, if there are enough."""

STAGGER = 384
"""Bytes between slots. Large tensors fill whole pages: without a gap, what a kernel reads and what it writes
would lie at the same place of their pages, where processors mistake a load for one of a store under way. Six
lines put eight slots at different places even of 1024 bytes, a common distance of rows."""

APART = 4096
"""Bytes between the scratch memory of two threads. What one asks for ahead of time lies up to 2 kB beyond its
own, and would be taken from the cache of the other, which is writing there (decision 47)."""

MOST_BYTES = 1 << 46
"""Bytes of an arena that no machine has; planned for where a number that a tensor holds asks for them."""

TOO_LARGE = "HASTEN_TOO_LARGE"
"""What a plan returns then."""

GUARD_BYTES = 256
"""Bytes at the end of the arena: whole vectors may be read, never used, beyond a tensor's end."""


@dataclass(frozen=True)
class Part:
    """What a part's code is made from.

    Attributes:
        number: its index in the artifact.
        program: the tensor program.
        lowered: its kernels.
        sizes: names of the symbolic sizes in the order in which calls give them.
        offsets: offset in the weights of each constant.
        first_guard: index of its first guard in the artifact's list.
        stands_alone: whether its work is all that there is, and may be too little to wake the threads for.
    """

    number: int
    program: Program
    lowered: Lowered
    sizes: tuple[str, ...]
    offsets: Mapping[str, int]
    first_guard: int
    stands_alone: bool = True


def at_bounds(program: Program, e: Expr) -> Expr:
    """An expression of sizes with every measured size at its upper bound, which a plan can know."""
    return substitute(e, {Size(m.bound.dtype, name): m.bound for name, m in program.measured.items()})


@dataclass(frozen=True)
class _Place:
    """Where a kernel is called.

    Attributes:
        names: C names of tensors, where they are others than everywhere.
        sizes: values of symbolic sizes, where they are others than everywhere.
        index: C text of the thread's number among those that share the kernel.
        count: C text of how many those are.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[Expr, Expr] = field(default_factory=dict)
    index: str = "team->index"
    count: str = "team->count"


_WHOLE = _Place()


def part_text(
    part: Part, kernels: Sequence[Kernel], functions: Sequence[Function], slots: Sequence[Slot]
) -> str:
    """The C file of a part's plan and run.

    Args:
        part: the part.
        kernels: its kernels in order, with shared functions (`module.share_functions`).
        functions: all functions that they call.
        slots: the memory plan.
    """
    return _Printer(part, kernels, functions, slots).text()


class _Printer:
    """Prints the plan and the run of a part."""

    def __init__(
        self, part: Part, kernels: Sequence[Kernel], functions: Sequence[Function], slots: Sequence[Slot]
    ) -> None:
        self.part, self.kernels, self.functions, self.slots = part, kernels, functions, slots
        self.program = part.program
        tensors = dict.fromkeys(t for k in kernels for _, t in k.buffers)
        self.names = unique_names(list(dict.fromkeys([*self.program.inputs, *tensors])))
        derived = list(self.program.derived)
        self.fields = {n: size_parameter(n) for n in (*part.sizes, *derived)}
        self.locals = {n: size_parameter(n) for n in self.program.measured}
        self.scratch = [at_bounds(self.program, k.scratch) for k in kernels if constant_int(k.scratch) != 0]
        self.sums = {e: Var(e.dtype, f"sum_{i}") for i, e in enumerate(_sums(kernels))}

    def text(self) -> str:
        n = self.part.number
        plan, run = self.plan(), self.run()
        helpers = helpers_for([*plan, *run])
        body = [
            '#include "pool.h"',
            '#include "profile.h"',
            "",
            *(f"{declaration(f)};" for f in self.functions),
            "",
            f"#define MOST_THREADS {MOST_THREADS}",
            "",
            *helpers,
            *([""] if helpers else []),
            f"/* Symbolic sizes of part {n}, and where its tensors lie in the arena. */",
            "typedef struct {",
            *(f"    int64_t {f};" for f in self.fields.values()),
            *(f"    int64_t slot_{i}; /* {', '.join(s.tensors)} */" for i, s in enumerate(self.slots)),
            "    int64_t scratch, scratch_bytes, work;",
            f"}} part_{n}_plan;",
            "",
            *plan,
            *self.record(),
            *self.counts(helpers),
            *run,
        ]
        return "\n".join(body) + "\n"

    def expr(self, e: Expr) -> str:
        """Text of a size expression in terms of the plan's fields, and of local variables if measured."""
        sizes: dict[Expr, Expr] = {
            node: Var(node.dtype, self.locals.get(node.name) or f"plan->{self.fields[node.name]}")
            for node in walk(e)
            if isinstance(node, Size)
        }
        return size_text(substitute(e, sizes))

    def planned(self, e: Expr) -> str:
        """The same for the plan, which must see when numbers that were read ask for too much."""
        text = self.expr(e)
        if not self.program.elements:
            return text
        sizes = (n for n in walk(e) if isinstance(n, Size))
        fields: dict[Expr, Expr] = {n: Var(n.dtype, f"plan->{self.fields[n.name]}") for n in sizes}
        return size_text(saturating(e, fields))

    def plan(self) -> list[str]:
        n, part = self.part.number, self.part
        lines = [f"static int32_t make_plan_{n}(const int64_t *sizes, part_{n}_plan *plan) {{"]
        for i, name in enumerate(part.sizes):
            lines.append(f"    plan->{self.fields[name]} = sizes[{i}];")
        for name, e in self.program.derived.items():
            lines.append(f"    plan->{self.fields[name]} = max_int64_t(0, {self.planned(e)});")
        for i, g in enumerate(self.program.guards):
            code = 1 + part.first_guard + i
            left, right = self.planned(g.left), self.planned(g.right)
            broken = f"{left} != {right}" if g.kind == "equal" else f"({left}) == 0 && ({right}) != 0"
            lines.append(f"    if ({broken}) return {code};")
        lines.append("    int64_t end = 0;")
        for i, slot in enumerate(self.slots):
            lines += [f"    plan->slot_{i} = end;", *self.grown(self.planned(slot.bytes), str(STAGGER))]
        lines.append("    plan->scratch = end;")
        lines.append("    plan->scratch_bytes = 0;")
        for e in dict.fromkeys(self.scratch):
            needed = self.planned(round_up(e, ALIGNMENT))
            lines.append(f"    plan->scratch_bytes = max_int64_t(plan->scratch_bytes, {needed});")
        if self.scratch:
            lines.append(f"    plan->scratch_bytes += {APART};")
        total = " + ".join(self.expr(at_bounds(self.program, k.work)) for k in self.kernels) or "0"
        lines += [f"    plan->work = {total};", "    return 0;", "}", ""]
        shapes = [d for o in self.program.outputs for d in self.program.info(o).shape]
        lines += [
            f"int32_t plan_part_{n}(const int64_t *sizes, int64_t *shapes, int64_t *arena_bytes) {{",
            *self.refusal(),
            f"    part_{n}_plan made, *plan = &made;",
            f"    const int32_t broken = make_plan_{n}(sizes, plan);",
            "    if (broken) return broken;",
            *(f"    shapes[{i}] = {self.expr(d)};" for i, d in enumerate(shapes)),
            *self.limited(),
            f"    *arena_bytes = plan->scratch + plan->scratch_bytes * MOST_THREADS + {GUARD_BYTES};",
            "    return 0;",
            "}",
            "",
        ]
        return lines

    def refusal(self) -> list[str]:
        """Refuses sizes of which some value would be larger than what 64 bits address."""
        if self.program.elements:
            return []  # numbers of any sign: `planned` and `grown` see to it
        known = {name: f"(double)sizes[{i}]" for i, name in enumerate(self.part.sizes)}
        lines = []
        for name, e in self.program.derived.items():
            lines.append(f"    const double most_{self.fields[name]} = {magnitude(e, known.__getitem__)};")
            known[name] = f"most_{self.fields[name]}"
        bytes_ = [s.bytes for s in self.slots] + [e * MOST_THREADS for e in dict.fromkeys(self.scratch)]
        for name in self.program.outputs:
            size: Expr = const(self.program.info(name).dtype.bytes)
            for d in self.program.info(name).shape:
                size = size * d
            bytes_.append(size)
        symbolic = [e for e in bytes_ if constant_int(e) is None]
        if not symbolic:
            return []
        total = " + ".join(dict.fromkeys(magnitude(e, known.__getitem__) for e in symbolic))
        return [*lines, f"    if ({total} > {MOST!r}) return -2;"]

    def grown(self, size: str, gap: str) -> list[str]:
        """Statements that move the end of the arena on; a plan that reads numbers may give up."""
        if not self.program.elements:
            return [f"    end += {size} + {gap};"]
        return [
            f"    end = total_int64_t(end, total_int64_t({size}, {gap}));",
            f"    if (end > {MOST_BYTES}) return {TOO_LARGE};",
        ]

    def limited(self) -> list[str]:
        """A check of the scratch memory of a plan that reads numbers."""
        if not self.program.elements:
            return []
        return [f"    if (plan->scratch_bytes > {MOST_BYTES} / MOST_THREADS) return {TOO_LARGE};"]

    def record(self) -> list[str]:
        """The type of what the threads of a call share; a profile also keeps what only the run knows."""
        n = self.part.number
        kept = [*self.locals.values(), *(v.name for v in self.sums.values())]
        profiled = ["#ifdef HASTEN_PROFILE", *(f"    int64_t {name};" for name in kept), "#endif"]
        return [
            "typedef struct {",
            "    hasten_call *call;",
            f"    part_{n}_plan plan;",
            *(profiled if kept else []),
            f"}} part_{n}_run;",
            "",
        ]

    def counts(self, helpers: Sequence[str]) -> list[str]:
        """A function that tells a profile what each kernel amounts to."""
        n = self.part.number
        begin = f"static void count_part_{n}(const part_{n}_run *run) {{"
        lines = [begin, f"    const part_{n}_plan *plan = &run->plan;"]
        known: dict[Expr, Expr] = {e: Var(v.dtype, f"run->{v.name}") for e, v in self.sums.items()}
        known |= {Size(INDEX, name): Var(INDEX, f"run->{local}") for name, local in self.locals.items()}
        for i, k in enumerate(self.kernels):
            flops, moved = (self.expr(substitute(e, known)) for e in (k.flops, k.bytes))
            amounts = f"{flops}, {moved}, {8 * k.factors.bytes}"
            lines.append(f"    hasten_count({n}, {i}, {amounts});")
        lines += ["    (void)plan;", "}"]
        return ["#ifdef HASTEN_PROFILE", *helpers_for(lines, helpers), *lines, "#endif", ""]

    def sums_at(self, first: int, end: int) -> list[str]:
        """For a profile: the sums that kernels are the first to ask for, while what they add is there."""
        asked, before = (_sums(self.kernels[a:b]) for a, b in ((first, end), (0, first)))
        found = [e for e in asked if e not in before]
        if not found:
            return []
        lines = ["    if (team->index == 0) {"]
        for e in found:
            at: dict[Expr, Expr] = {v: Var(INDEX, f"at_{i}") for i, v in enumerate(e.vars)}
            loops = [
                f"for (int64_t at_{i} = 0; at_{i} < {self.expr(v.extent or const(1))}; ++at_{i})"
                for i, v in enumerate(e.vars)
            ]
            value = self.expr(transform(substitute(e.body, at), self.loaded))
            lines.append(f"        {' '.join(loops)} run->{self.sums[e].name} += {value};")
        return ["#ifdef HASTEN_PROFILE", *lines, "    }", "#endif"]

    def loaded(self, e: Expr) -> Expr | None:
        """An element of a tensor as the run's code reads it, where an expression is one."""
        if not isinstance(e, Load):
            return None
        index = tuple(transform(i, self.loaded) for i in e.index)
        address = self.expr(self.part.lowered.layouts[e.buffer].address(index))
        return Var(e.dtype, f"{self.names[e.buffer]}[{address}]")

    def run(self) -> list[str]:
        n = self.part.number
        serial = SERIAL_RUN if self.part.stands_alone else 0
        lines = [
            f"static void run_part_{n}(void *argument, hasten_team *team) {{",
            f"    part_{n}_run *run = argument;",
            "    hasten_call *call = run->call;",
            f"    const part_{n}_plan *plan = &run->plan;",
            "    char *arena = call->arena;",
            "    const char *weights = call->weights;",
            "    (void)arena, (void)weights, (void)plan;",
            *self.pointers(),
        ]
        if self.scratch:
            lines.append(
                "    float *scratch = (float *)(arena + plan->scratch + plan->scratch_bytes * team->index);"
            )
        params = dict.fromkeys(p for k in self.kernels for p in k.function.params)
        for p in (p for p in params if p.name.startswith(f"{SCRATCH}_")):
            lines.append(f"    {p.dtype.c_name} *{p.name} = ({p.dtype.c_name} *)scratch;")
        lines += self.steps()
        lines += ["    HASTEN_MARK(team->index, HASTEN_WAITS);", "}", ""]
        lines += [
            f"int32_t start_part_{n}(hasten_call *call) {{",
            f"    part_{n}_run run = {{.call = call}};",
            f"    HASTEN_MARK(0, HASTEN_BEGINS - {n});",
            f"    const int32_t broken = make_plan_{n}(call->sizes, &run.plan);",
            "    if (broken) return -broken;",
            f"    int32_t threads = run.plan.work < {serial} ? 1 : call->threads;",
            "    if (threads > MOST_THREADS) threads = MOST_THREADS;",
            f"    const int64_t nanoseconds = run.plan.work / {WORK_PER_NANOSECOND};",
            f"    hasten_pool_run(call->pool, threads, nanoseconds, run_part_{n}, &run);",
            "    HASTEN_MARK(0, HASTEN_ENDS);",
            f"    HASTEN_PROFILED(count_part_{n}(&run));",
            "    return call->fault.code;",
            "}",
        ]
        return lines

    def pointers(self) -> list[str]:
        """Declares a pointer for each tensor: input, output, constant or place in the arena."""
        lines = []
        outputs = self.program.outputs
        inputs = list(self.program.inputs)
        slots = slots_by_tensor(self.slots)
        for tensor, name in self.names.items():
            layout = self.part.lowered.layouts.get(tensor)
            if layout is None:
                continue
            c = layout.dtype.c_name
            if tensor in slots:
                lines.append(f"    {c} *{name} = ({c} *)(arena + plan->slot_{slots[tensor]});")
            elif tensor in self.part.offsets:
                offset = self.part.offsets[tensor]
                lines.append(f"    const {c} *{name} = (const {c} *)(weights + {offset});")
            elif tensor in inputs:
                lines.append(f"    const {c} *{name} = call->values[{inputs.index(tensor)}];")
            else:
                lines.append(f"    {c} *{name} = call->values[{len(inputs) + outputs.index(tensor)}];")
        return lines

    def steps(self) -> list[str]:
        """Calls all kernels in order, those of a run picture by picture."""
        runs = {r.first: r for r in self.part.lowered.runs}
        lines: list[str] = []
        at = 0
        while at < len(self.kernels):
            run = runs.get(at)
            lines += self.sums_at(at, at + 1 if run is None else run.end)
            if run is None:
                lines += [*self.step(at, _WHOLE), *self.barrier(at)]
                at += 1
            else:
                lines += self.pictures(run)
                at = run.end
        return lines

    def step(self, i: int, place: _Place) -> list[str]:
        """Calls a kernel, on one thread if it has little to do."""
        k = self.kernels[i]
        arguments = []
        tensors, sizes = dict(k.buffers), dict(k.sizes)
        for p in k.function.params[:-3]:
            if p.name == "fault":
                arguments.append("&call->fault")
            elif p.name in tensors:
                arguments.append(place.names.get(tensors[p.name], self.names[tensors[p.name]]))
            elif p.name in sizes:
                arguments.append(self.expr(substitute(sizes[p.name], place.sizes)))
            else:
                arguments.append(p.name)
        text = ", ".join(arguments)
        name = k.function.name
        mark = f"HASTEN_MARK(team->index, {i});"
        shared = [mark, f"{name}({text}, {i}, {place.index}, {place.count});"]
        alone = [mark, f"{name}({text}, {i}, 0, 1);"]
        lines = [f"    /* {k.title.replace('*/', '* /')} */"]
        work = substitute(k.work, place.sizes)
        known = constant_int(work)
        if known is not None and known >= SERIAL_WORK:
            lines += _indented(shared, 4)
        elif known is not None:
            lines += [f"    if ({place.index} == 0) {{", *_indented(alone, 8), "    }"]
        else:
            lines += [
                f"    if ({self.expr(work)} >= {SERIAL_WORK}) {{",
                *_indented(shared, 8),
                f"    }} else if ({place.index} == 0) {{",
                *_indented(alone, 8),
                "    }",
            ]
        return lines

    def barrier(self, i: int) -> list[str]:
        """Waits for all threads behind a kernel if that is needed, and reads the sizes that it measured."""
        k = self.kernels[i]
        counted = {name: m for name, m in self.program.measured.items() if m.tensor in k.writes}
        last, both = i + 1 == len(self.kernels), self.kernels[i : i + 2]
        lines: list[str] = []
        if not last and (counted or not all(self.serial(other) for other in both)):
            lines += ["    HASTEN_MARK(team->index, HASTEN_WAITS);", "    hasten_barrier(team);"]
        for name, m in counted.items():
            at, local = self.part.lowered.layouts[m.tensor].address(m.index), self.locals[name]
            lines.append(f"    const int64_t {local} = {self.names[m.tensor]}[{self.expr(at)}];")
            lines.append(f"    HASTEN_PROFILED(if (team->index == 0) run->{local} = {local});")
        return lines

    def pictures(self, run: Run) -> list[str]:
        """Calls the kernels of a run for one picture after the other, or each thread for its own ones."""
        size = self.expr(run.size)
        names: dict[str, str] = {}
        pointers: list[str] = []
        slots = slots_by_tensor(self.slots)
        inner = run_tensors(self.kernels, run) & slots.keys()
        for tensor in dict.fromkeys(t for k in self.kernels[run.first : run.end] for _, t in k.buffers):
            if tensor in self.part.offsets:
                continue
            layout = self.part.lowered.layouts[tensor]
            names[tensor] = name = f"{self.names[tensor]}_here"
            held = layout.dtype.c_name if self.is_written(tensor) else f"const {layout.dtype.c_name}"
            offset = f"picture * {self.expr(picture_elements(layout))}"
            if tensor in inner:
                # Behind one another, with room for the largest of those that share the slot.
                slot = self.expr(self.slots[slots[tensor]].bytes)
                room = f"{slot} / {size} / {ALIGNMENT} * {ALIGNMENT // layout.dtype.bytes}"
                offset = f"own * ({room})"
            pointers.append(f"{held} *{name} = {self.names[tensor]} + {offset};")
        place = _Place(names, {run.size: const(1)}, "index", "count")
        calls: list[str] = []
        for i in range(run.first, run.end):
            calls += self.step(i, place)
            calls += ["    HASTEN_MARK(team->index, HASTEN_WAITS);", "    if (!apart) hasten_barrier(team);"]
        return [
            "    {",
            f"        const int apart = team->count > {FEW_THREADS} && {size} >= team->count;",
            "        const int32_t index = apart ? 0 : team->index, count = apart ? 1 : team->count;",
            "        const int64_t own = apart ? team->index : 0, stride = apart ? team->count : 1;",
            f"        for (int64_t picture = own; picture < {size}; picture += stride) {{",
            *_indented(pointers, 12),
            *_indented(calls, 8),
            "        }",
            "        if (apart) hasten_barrier(team);",
            "    }",
        ]

    def is_written(self, tensor: str) -> bool:
        """Whether a kernel writes a tensor."""
        return any(tensor in k.writes for k in self.kernels)

    def serial(self, k: Kernel) -> bool:
        work = constant_int(k.work)
        return work is not None and work < SERIAL_WORK


def _sums(kernels: Sequence[Kernel]) -> dict[Reduce, None]:
    """The sums over tensors of the run that kernels amount to."""
    amounts = (e for k in kernels for e in (k.flops, k.bytes))
    return dict.fromkeys(n for e in amounts for n in walk(e) if isinstance(n, Reduce))


def _indented(lines: Sequence[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]
