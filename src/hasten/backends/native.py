"""Our own engine: a graph compiled to machine code, packed as the members and manifest of an artifact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.backends.graph_members import Members, graph_members
from hasten.codegen.elementary import expand_operation
from hasten.codegen.kernel import Kernel
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.module import PartCode, module_sources, part_code
from hasten.codegen.padding import Skipped, skip_padding, why_padded
from hasten.codegen.part import Part
from hasten.codegen.partition import ControlStep, NativePart, Step, native_parts, partition
from hasten.codegen.schedule import DEFAULTS, Schedules
from hasten.codegen.toolchain import build, find_compiler
from hasten.codegen.weights import Weights
from hasten.graph.describe import describe_node
from hasten.graph.evaluate import node_model
from hasten.graph.pages import give_back
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Size, constant_int
from hasten.loops.program import Element, Guard, Program
from hasten.loops.simplify import infix
from hasten.ops.element_types import COMPUTED
from hasten.ops.lowered import Branches, Control, HostNode
from hasten.ops.lowering import lower_graph
from hasten.runtime.manifest import OBJECT, all_steps
from hasten.runtime.sparse import SPARSE
from hasten.runtime.sparse import pack as pack_zeros
from hasten.target import Target

_SMALLER = 0.9

Choose = Callable[[Sequence[Program], Target], Schedules]
"""Gives the schedules for the parts of a model on a target."""


def default_schedules(programs: Sequence[Program], target: Target) -> Schedules:
    """No choices but the defaults."""
    return DEFAULTS


@dataclass(frozen=True)
class Options:
    """How to compile.

    Attributes:
        targets: instruction sets, one shared object each.
        threads: threads that a run uses by default; None for all cores of the machine that runs it.
        precision: F32, or BF16 to store the operands of products so.
        cache: folder of compiled objects, or None.
        padding: "skip" leaves out what a mask hides (`codegen.padding`), "compute" computes it.
        choose: gives the schedules of products and convolutions.
        keep_graph: keep the weights of the graph too, for `hasten export`.
    """

    targets: tuple[Target, ...]
    threads: int | None
    precision: DType
    cache: Path | None
    padding: str = "skip"
    choose: Choose = default_schedules
    keep_graph: bool = False


@dataclass(frozen=True)
class Payload:
    """What an artifact is written from."""

    manifest: Mapping[str, Any]
    members: Members


def compile_graph(model: ir.Model, options: Options, report: Mapping[str, Any], version: str) -> Payload:
    """Compiles an optimized graph.

    Args:
        model: at the internal opset, optimized.
        options: targets, threads, cache.
        report: what earlier steps noted for people; goes into the manifest.
        version: hasten's version.

    Raises:
        UnsupportedModelError: some nodes can run nowhere.
        ToolchainError: no compiler, or it failed.
    """
    planned = plan_graph(model, options.padding)
    weights = Weights()
    members: Members = {}
    native = planned.native
    compiled: list[PartCode] = []
    chosen: list[dict[str, Any]] = [{} for _ in native]
    compilers: dict[str, str] = {}
    for target in options.targets if native else ():
        schedules = options.choose([s.program for s in native], target)
        parts = lower_parts(native, target, schedules, options.precision, weights)
        for part, by_target in zip(parts, chosen, strict=True):
            by_target[target.name] = _products(part.lowered.kernels, schedules)
        dtypes = tuple(dict.fromkeys(d for p in parts for d in p.lowered.tile_dtypes))
        sources = module_sources(range(len(native)), target, expand_operation, dtypes)
        compiled = [part_code(part, target, expand_operation) for part in parts]
        for code in compiled:
            sources.update(code.sources)
        compiler = find_compiler(target)
        compilers[target.name] = compiler.version
        give_back(model)  # weights are packed; the compiler takes memory
        members[f"code/{target.name}.so"] = build(sources, target, compiler, cache=options.cache)
        members.update({f"c/{target.name}/{name}": text.encode() for name, text in sources.items()})
    noted = {**report, "compilers": compilers}
    payload = pack(planned, compiled, weights, members, options.threads, noted, version)
    described = (d for d in all_steps(payload.manifest["steps"]) if d["kind"] == "native")
    for step, by_target in zip(described, chosen, strict=True):
        step["products"] = by_target
    if options.keep_graph:
        image = np.concatenate(weights.arrays) if weights.arrays else None
        payload.members.update(graph_members(model, weights=True, image=image))
    return payload


@dataclass(frozen=True)
class Planned:
    """A graph cut into steps.

    Attributes:
        model: the graph.
        steps: what a run does, in order.
        derived: sizes computed from others, for people.
        reasons: why nodes run on the host.
        skipped: padding that is left out.
        padded: why some is not, that might be.
    """

    model: ir.Model
    steps: tuple[Step, ...]
    derived: Mapping[str, Expr]
    reasons: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    padded: tuple[str, ...]

    @property
    def native(self) -> list[NativePart]:
        """The steps that are compiled, those in bodies included."""
        return list(native_parts(self.steps))


def plan_graph(model: ir.Model, padding: str) -> Planned:
    """Lowers a graph and cuts it into steps.

    Args:
        model: at the internal opset, optimized.
        padding: see `Options`.

    Raises:
        UnsupportedModelError: some nodes can run nowhere.
    """
    lowered = lower_graph(model)
    steps = partition(lowered)
    skipped: list[Skipped] = []
    padded: list[str] = []
    if padding == "skip":
        steps, skipped, padded = _without_padding(steps)
    derived = lowered.program.derived
    return Planned(model, tuple(steps), derived, lowered.reasons, tuple(skipped), tuple(padded))


def pack(
    planned: Planned,
    compiled: Sequence[PartCode],
    weights: Weights,
    members: Members,
    threads: int | None,
    report: Mapping[str, Any],
    version: str,
    first_part: int = 0,
) -> Payload:
    """The artifact of a graph whose parts are compiled.

    Args:
        planned: the graph.
        compiled: its parts, in order.
        weights: constants that the parts read.
        members: what is to be in the artifact already: code.
        threads: threads that a run uses by default.
        report: what earlier steps noted for people.
        version: hasten's version.
        first_part: number of its first part in the shared object.
    """
    model = planned.model
    guards = [g for s in planned.native for g in s.program.guards]
    members["weights.bin"] = [a.data for a in weights.arrays]
    described = _Description(compiled, members, first_part).steps(planned.steps)
    members |= graph_members(model, weights=False)
    manifest = {
        "format": 1,
        "hasten": version,
        "inputs": [io(v) for v in model.graph.inputs],
        "outputs": [io(v) for v in model.graph.outputs],
        "steps": described,
        "threads": threads,
        "guards": [_guard_text(g, planned.derived) for g in guards],
        "report": {
            **report,
            "host": dict(planned.reasons),
            "padding": [asdict(s) for s in planned.skipped],
            "padded": list(planned.padded),
        },
    }
    return Payload(manifest, members)


def stored_sparse(payload: Payload) -> Payload:
    """The same artifact with weights stored without zeros, if that makes them smaller by a tenth or more."""
    stored = payload.members["weights.bin"]
    assert isinstance(stored, list)
    parts = [np.frombuffer(part, np.uint8) for part in stored]
    packed = pack_zeros(parts)
    before, after = sum(map(len, parts)), sum(map(len, packed))
    report = {**payload.manifest["report"], "storage": {"mapped": before, "sparse": after}}
    if after > _SMALLER * before:
        return replace(payload, manifest={**payload.manifest, "report": report})
    members = {name: content for name, content in payload.members.items() if name != "weights.bin"}
    members[SPARSE] = [memoryview(part) for part in packed]
    return Payload({**payload.manifest, "format": 2, "report": report}, members)


def _without_padding(steps: Sequence[Step]) -> tuple[list[Step], list[Skipped], list[str]]:
    """The steps with padding left out of native parts where it can be, what was done, and why not more."""
    result: list[Step] = []
    skipped: list[Skipped] = []
    padded: list[str] = []
    read = {name for step in steps for name in _inputs(step)}
    for step in steps:
        if isinstance(step, NativePart):
            program, done = skip_padding(step.program, read)
            result.append(replace(step, program=program))
            skipped += [] if done is None else [done]
            reason = why_padded(step.program, read) if done is None else None
            padded += [] if reason is None else [reason]
        else:
            result.append(step)
    return result, skipped, padded


def _inputs(step: Step) -> Collection[str]:
    """Names of what a step reads, in its bodies too."""
    if isinstance(step, NativePart):
        return step.program.inputs
    return step.inputs if isinstance(step, HostNode) else step.node.inputs


def lower_parts(
    native: Sequence[NativePart],
    target: Target,
    schedules: Schedules,
    precision: DType,
    weights: Weights,
    first_part: int = 0,
) -> list[Part]:
    """The kernels of the parts of a graph; their constants go into `weights`.

    Args:
        native: the parts, in order.
        target: instruction set.
        schedules: of products and convolutions.
        precision: see `Options`.
        weights: collects the constants of the artifact.
        first_part: number of the first one in the shared object.
    """
    parts: list[Part] = []
    first_guard = 0
    for number, step in enumerate(native, first_part):
        lowered = lower_program(step.program, target, schedules, precision)
        offsets = {name: weights.add(array) for name, array in lowered.constants.items()}
        parts.append(Part(number, step.program, lowered, step.sizes, offsets, first_guard))
        first_guard += len(step.program.guards)
    return parts


def _products(kernels: Sequence[Kernel], schedules: Schedules) -> list[dict[str, Any]]:
    """Number, shape and schedule of the kernels of products, and whether the schedule was measured."""
    return [
        {
            "kernel": number,
            "shape": str(p.shape),
            "schedule": str(p.schedule),
            "measured": schedules.chosen.get(str(p.shape)) == p.schedule,
        }
        for number, p in enumerate(k.product for k in kernels)
        if p is not None
    ]


class _Description:
    """Describes steps for the manifest, and adds what they need to the members."""

    def __init__(self, compiled: Sequence[PartCode], members: Members, first_part: int) -> None:
        self._parts = iter(enumerate(compiled, first_part))
        self._members = members
        self._hosts = 0

    def steps(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """The steps, those of bodies within theirs."""
        return [self._step(s) for s in steps]

    def _step(self, s: Step) -> dict[str, Any]:
        if isinstance(s, HostNode):
            return self._host(s)
        if isinstance(s, ControlStep):
            bodies = [
                {"inputs": list(b.inputs), "outputs": list(b.outputs), "steps": self.steps(inner)}
                for b, inner in zip(s.node.bodies, s.bodies, strict=True)
            ]
            return {**_control(s.node), "bodies": bodies}
        return self._native(s)

    def _host(self, s: HostNode) -> dict[str, Any]:
        name = f"host/{self._hosts}.onnx"
        self._hosts += 1
        self._members[name] = _host_member(s)
        return {
            "kind": "host",
            "member": name,
            "operators": [s.node.op_type],
            "inputs": list(s.inputs),
            "input_dtypes": [_narrow(v.dtype) for v in s.reads],
            "outputs": list(s.outputs),
            "reason": s.reason,
        }

    def _native(self, s: NativePart) -> dict[str, Any]:
        number, code = next(self._parts)
        program = s.program
        outputs = [program.info(n) for n in program.outputs]
        return {
            "kind": "native",
            "part": number,
            "inputs": list(program.inputs),
            "input_dtypes": [i.dtype.numpy.name for i in program.inputs.values()],
            "input_shapes": [[_dim(n) for n in i.shape] for i in program.inputs.values()],
            "outputs": list(program.outputs),
            "output_dtypes": [o.dtype.numpy.name for o in outputs],
            "output_ranks": [len(o.shape) for o in outputs],
            "sizes": list(s.sizes),
            "elements": {n: _place(e, program) for n, e in program.elements.items()},
            "kernels": [title for _, title in code.kernels],
            "functions": [function for function, _ in code.kernels],
            "memory": [
                {"bytes": infix(slot.bytes, program.derived), "tensors": slot.tensors} for slot in code.slots
            ],
        }


def _control(node: Control) -> dict[str, Any]:
    common = {
        "operator": describe_node(node.node),
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
    }
    if isinstance(node, Branches):
        return {"kind": "branches", "condition": node.condition, **common}
    return {
        "kind": "loop",
        "count": node.count,
        "condition": node.condition,
        "goes_on": node.goes_on,
        "initial": list(node.initial),
        "rows": [{"dtype": dtype, "shape": list(shape)} for dtype, shape in node.rows],
        **common,
    }


def _narrow(dtype: ir.DataType | None) -> str:
    """The name of a type that compiled code holds in a wider one, "" for others."""
    return "" if dtype is None or dtype not in COMPUTED else np.dtype(dtype.numpy()).name


def _place(e: Element, program: Program) -> list[int]:
    """Where a size stands: the number of an input, and the element's in row-major order."""
    dims = [constant_int(n) or 0 for n in program.info(e.tensor).shape]
    return [list(program.inputs).index(e.tensor), int(np.ravel_multi_index(e.index, dims)) if dims else 0]


def _guard_text(g: Guard, derived: Mapping[str, Expr]) -> str:
    if g.says:
        return f"{g.says} ({g.origin})"
    left, right = infix(g.left, derived), infix(g.right, derived)
    if g.kind == "equal":
        return f"{left} == {right} ({g.origin})"
    return f"{left} > 0" + ("" if right == "1" else f" or {right} == 0") + f" ({g.origin})"


def _dim(n: Expr) -> int | str:
    value = constant_int(n)
    if value is not None:
        return value
    return n.name if isinstance(n, Size) else infix(n)


def _host_member(h: HostNode) -> bytes:
    outputs = [v for v in h.node.outputs if v.name]
    return bytes(ir.to_proto(node_model([h.node], h.reads, outputs)).SerializeToString())


def io(value: ir.Value) -> dict[str, Any]:
    """An input or output as the manifest has it."""
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        # Only the host has values that are no tensors.
        return {"name": value.name, "dtype": OBJECT, "shape": []}
    dtype = "float32" if value.dtype is None else np.dtype(value.dtype.numpy()).name
    dims = [d if isinstance(d, int) else d.value for d in value.shape or ()]
    shape = [d if d is not None else f"{value.name}_dim{i}" for i, d in enumerate(dims)]
    return {"name": value.name, "dtype": dtype, "shape": shape}
