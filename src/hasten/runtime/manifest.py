"""What an artifact says of itself: the parsed form of its `manifest.json` (docs/architecture.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hasten.errors import ArtifactError

FORMAT = 2
"""2: weights may be stored as `weights.sparse`."""
NATIVE_TYPES = frozenset(
    ["bool", "float32", "float64", "bfloat16", "float16"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
"""Element types of arrays that compiled code takes and gives."""

MOST_DEPTH = 100
"""Loops and branches in one another that this hasten opens."""

MOST_RANK = 64
"""Axes that an array can have; NumPy's limit."""

OBJECT = "sequence or optional"
"""Stands for the element type of what is no tensor: a list of values, or None."""

Dim = int | str
_T = TypeVar("_T")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Attributes:
        name: Its name.
        dtype: NumPy's name of its element type.
        shape: Lengths of its axes; a name stands for a length that may differ from run to run, and is
            the same wherever the name stands.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class NativeStep:
    """A part of the model that the shared object runs.

    Attributes:
        part: Its number in the C interface.
        inputs: What it takes.
        outputs: Names of the values it makes.
        output_dtypes: Their element types.
        output_ranks: Their numbers of axes; `hasten_plan` gives the lengths.
        sizes: The symbolic sizes, in the order in which the part takes them.
        elements: Those of them that are elements of inputs, by name: (number of the input, number of the
            element in row-major order); the others are in the inputs' shapes.
        kernels: What each kernel computes, for messages about a fault.
    """

    part: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    output_ranks: tuple[int, ...]
    sizes: tuple[str, ...]
    elements: Mapping[str, tuple[int, int]]
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class HostStep:
    """A part of the model that ONNX's reference evaluator runs.

    Attributes:
        member: The artifact's member that holds it as an ONNX model.
        operators: Kinds of operators in it.
        inputs: Names of the values it takes.
        input_dtypes: Element types of those that compiled code holds in wider ones, "" for others.
        outputs: Names of the values it makes.
    """

    member: str
    operators: tuple[str, ...]
    inputs: tuple[str, ...]
    input_dtypes: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ForeignStep:
    """A whole model that another engine runs.

    Attributes:
        engine: The package: onnxruntime or openvino.
        version: Of the engine, when the artifact was made.
        precision: "f32" or "bf16", of the engine's products where the model does not say.
        member: The artifact's member that holds the ONNX model.
        inputs: Names of the values it takes.
        outputs: Names of the values it makes.
    """

    engine: str
    version: str
    precision: str
    member: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Body:
    """Steps that a branch or loop runs; they also read what the step that has them reads.

    Attributes:
        inputs: Names of what each run is given.
        outputs: Names of what it gives.
        steps: What it does, in order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class BranchStep:
    """One of two bodies.

    Attributes:
        operator: What it was in the graph, for people.
        condition: Name of the value that chooses the first one.
        inputs: Names of the values that it and its bodies take.
        outputs: Names of the values it makes, "" where nobody wants it.
        bodies: What is run if the condition holds, and if not.
    """

    operator: str
    condition: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: tuple[Body, ...]


@dataclass(frozen=True)
class Row:
    """Element type ("" if not known) and shape of an output of each step, for the case that none is taken.

    A length is a number, or that of an axis of a value by name.
    """

    dtype: str
    shape: tuple[int | tuple[str, int], ...]


@dataclass(frozen=True)
class LoopStep:
    """A body that is repeated.

    It is given the number of the step, the condition and the states. It gives the condition, the next states,
    and rows that are collected.

    Attributes:
        operator: What it was in the graph, for people.
        count: Most steps: their number, or the name of a value that holds it, or None for any number.
        condition: Whether the first step is taken: that, or the name of a value.
        goes_on: Whether another step follows a step: that (True: if the condition held), or the name of what
            the body gives.
        initial: Names of the states before the first step.
        rows: What the rows are if there are none.
        inputs: Names of the values that it and its body take.
        outputs: Names of the last states and of the collected rows, "" where nobody wants one.
        bodies: The body alone.
    """

    operator: str
    count: int | str | None
    condition: bool | str
    goes_on: bool | str
    initial: tuple[str, ...]
    rows: tuple[Row, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: tuple[Body, ...]


Step = NativeStep | HostStep | ForeignStep | BranchStep | LoopStep


def nested(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps and those of the bodies in them, in order."""
    for step in steps:
        yield step
        for body in step.bodies if isinstance(step, BranchStep | LoopStep) else ():
            yield from nested(body.steps)


def all_steps(steps: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same for steps as the manifest's JSON has them."""
    for step in steps:
        yield step
        for body in step.get("bodies", ()):
            yield from all_steps(body["steps"])


@dataclass(frozen=True)
class Member:
    """Size and checksum (SHA-256, hexadecimal) of a member."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest.

    Attributes:
        version: The version of hasten that wrote the artifact.
        inputs: The model's inputs.
        outputs: The model's outputs.
        steps: What a run does, in order.
        threads: Threads that a run was compiled to use, or None for what the machine has.
        members: The artifact's other members by name.
        guards: Equalities of sizes that hold in every valid run.
        report: What the compilation noted for people.
    """

    version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    steps: tuple[Step, ...]
    threads: int | None
    members: Mapping[str, Member]
    guards: tuple[str, ...]
    report: Mapping[str, Any]


def parse_manifest(text: bytes) -> Manifest:
    """Reads a manifest.

    Raises:
        ArtifactError: It is not JSON, has a newer format, or lacks something. The message does not name
            the file.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the manifest is not JSON ({error})") from None
    form = _get(data, "format", int)
    version = _get(data, "hasten", str)
    if form > FORMAT:
        raise ArtifactError(
            f"it was written by hasten {version} in format {form} and this hasten reads formats up to "
            f"{FORMAT}: upgrade with pip install -U hasten"
        )
    if form < 1:
        raise ArtifactError(f"the manifest's format is {form}, which no hasten has written")
    inputs = tuple(_tensor(item) for item in _get(data, "inputs", list))
    outputs = tuple(_tensor(item) for item in _get(data, "outputs", list))
    steps = tuple(_step(item) for item in _get(data, "steps", list))
    _check_order(inputs, outputs, steps)
    return Manifest(
        version=version,
        inputs=inputs,
        outputs=outputs,
        steps=steps,
        threads=_threads(data),
        members={
            name: Member(_get(item, "bytes", int), _get(item, "sha256", str))
            for name, item in _get(data, "members", dict).items()
        },
        guards=_strings(data, "guards"),
        report=_get(data, "report", dict),
    )


def _check_order(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], steps: Sequence[Step]) -> None:
    """Raises ArtifactError unless everything that is read was made before."""
    known = {info.name for info in inputs}
    _check_steps(known, steps)
    missing = [info.name for info in outputs if info.name not in known]
    if missing:
        raise ArtifactError(f"the manifest has an output {missing[0]!r}, which nothing makes")


def _check_steps(known: set[str], steps: Sequence[Step]) -> None:
    """Adds what steps make to what is known, and looks into bodies."""
    for step in steps:
        read = [i.name for i in step.inputs] if isinstance(step, NativeStep) else list(step.inputs)
        missing = [name for name in read if name not in known]
        if missing:
            raise ArtifactError(f"the manifest has a step that takes {missing[0]!r}, which nothing makes")
        if isinstance(step, BranchStep | LoopStep):
            for body in step.bodies:
                inside = {*step.inputs, *body.inputs}
                _check_steps(inside, body.steps)
                if not inside.issuperset(n for n in body.outputs if n):
                    raise ArtifactError(f"the manifest has a body of {step.operator} that lacks an output")
        known.update(step.outputs)


def _step(data: object, depth: int = 0) -> Step:
    kind = _get(data, "kind", str)
    if kind == "host":
        host = HostStep(
            member=_get(data, "member", str),
            operators=_strings(data, "operators"),
            inputs=_strings(data, "inputs"),
            input_dtypes=_strings(data, "input_dtypes"),
            outputs=_strings(data, "outputs"),
        )
        if len(host.inputs) != len(host.input_dtypes):
            raise ArtifactError("the manifest's host step describes its inputs in part")
        return host
    if kind == "foreign":
        return ForeignStep(
            engine=_get(data, "engine", str),
            version=_get(data, "version", str),
            precision=_get(data, "precision", str),
            member=_get(data, "member", str),
            inputs=_strings(data, "inputs"),
            outputs=_strings(data, "outputs"),
        )
    if kind in ("branches", "loop"):
        return _control(data, kind, depth)
    if kind != "native":
        raise ArtifactError(f"the manifest has a step of kind {kind!r}, which this hasten cannot run")
    names, dtypes = _strings(data, "inputs"), _strings(data, "input_dtypes")
    shapes = [_dims(item) for item in _get(data, "input_shapes", list)]
    step = NativeStep(
        part=_get(data, "part", int),
        inputs=tuple(map(TensorInfo, names, dtypes, shapes)),
        outputs=_strings(data, "outputs"),
        output_dtypes=_strings(data, "output_dtypes"),
        output_ranks=_list(data, "output_ranks", int),
        sizes=_strings(data, "sizes"),
        elements=_elements(data, shapes),
        kernels=_strings(data, "kernels"),
    )
    if not len(names) == len(dtypes) == len(shapes):
        raise ArtifactError(f"the manifest's native step {step.part} describes its inputs in part")
    if not len(step.outputs) == len(step.output_dtypes) == len(step.output_ranks):
        raise ArtifactError(f"the manifest's native step {step.part} describes its outputs in part")
    strange = sorted({*dtypes, *step.output_dtypes} - NATIVE_TYPES)
    if strange:
        raise ArtifactError(f"the manifest's native step {step.part} has the element type {strange[0]!r}")
    if not all(0 <= rank <= MOST_RANK for rank in (*step.output_ranks, *map(len, shapes))):
        raise ArtifactError(f"the manifest's native step {step.part} has arrays of impossible ranks")
    if not 0 <= step.part < 1 << 31:
        raise ArtifactError(f"the manifest's native step has the number {step.part}")
    unknown = set(step.sizes).difference(step.elements, *shapes)
    if unknown:
        raise ArtifactError(
            f"the manifest's native step {step.part} has sizes that no input shows: "
            f"{', '.join(sorted(unknown))}"
        )
    return step


def _control(data: object, kind: str, depth: int) -> Step:
    if depth == MOST_DEPTH:
        raise ArtifactError(f"the manifest has more than {MOST_DEPTH} loops and branches in one another")

    def inner(steps: Sequence[object]) -> tuple[Step, ...]:
        return tuple(_step(s, depth + 1) for s in steps)

    operator = _get(data, "operator", str)
    inputs, outputs = _strings(data, "inputs"), _strings(data, "outputs")
    bodies = tuple(
        Body(_strings(b, "inputs"), _strings(b, "outputs"), inner(_get(b, "steps", list)))
        for b in _get(data, "bodies", list)
    )
    if kind == "branches":
        branches = BranchStep(operator, _get(data, "condition", str), inputs, outputs, bodies)
        whole = len(bodies) == 2 and all(len(b.outputs) == len(outputs) for b in bodies)
        if not whole or any(b.inputs for b in bodies) or branches.condition not in inputs:
            raise ArtifactError(f"the manifest describes {operator} in part")
        return branches
    loop = LoopStep(
        operator,
        _either(data, "count", int),
        _either(data, "condition", bool) or False,
        _either(data, "goes_on", bool) or False,
        _strings(data, "initial"),
        tuple(Row(_get(r, "dtype", str), _lengths(r, inputs)) for r in _get(data, "rows", list)),
        inputs,
        outputs,
        bodies,
    )
    states, made = len(loop.initial), len(loop.initial) + len(loop.rows)
    read = {n for n in (loop.count, loop.condition, *loop.initial) if isinstance(n, str)}
    whole = len(bodies) == 1 and len(bodies[0].inputs) == states + 2
    if not whole or not len(outputs) == len(bodies[0].outputs) - 1 == made or not read.issubset(inputs):
        raise ArtifactError(f"the manifest describes {operator} in part")
    if isinstance(loop.goes_on, str) and loop.goes_on != bodies[0].outputs[0]:
        raise ArtifactError(f"the manifest describes the end of {operator} in part")
    if loop.count is None and loop.goes_on is True and loop.condition is not False:
        raise ArtifactError(f"the manifest has the loop {operator}, which never ends")
    return loop


def _lengths(row: object, inputs: Sequence[str]) -> tuple[int | tuple[str, int], ...]:
    """The shape of rows: numbers, or a name and an axis."""
    found: list[int | tuple[str, int]] = []
    for item in _get(row, "shape", list):
        match item:
            case [str(name), int(axis)] if name in inputs and 0 <= axis < MOST_RANK:
                found.append((name, axis))
            case int(length) if 0 <= length < 1 << 63:
                found.append(length)
            case _:
                raise ArtifactError(f"the manifest has {item!r} where the length of a row should be")
    return tuple(found)


def _either(data: object, key: str, kind: type[_T]) -> _T | str | None:
    """A value of a kind, or a name."""
    value = data.get(key) if isinstance(data, dict) else None
    if value is not None and type(value) is not kind and not isinstance(value, str):
        raise ArtifactError(f"the manifest's field {key!r} is of the wrong type")
    return value


def _threads(data: Mapping[str, Any]) -> int | None:
    threads = None if data.get("threads") is None else _get(data, "threads", int)
    if threads is not None and threads < 1:
        raise ArtifactError(f"the manifest asks for {threads} threads")
    return threads


def _elements(data: object, shapes: Sequence[tuple[Dim, ...]]) -> dict[str, tuple[int, int]]:
    """Sizes that are elements of inputs, each of which its input surely has."""
    found: dict[str, tuple[int, int]] = {}
    for name, place in _get(data, "elements", dict).items():
        match place:
            case [int(number), int(at)] if 0 <= number < len(shapes):
                dims = [n for n in shapes[number] if isinstance(n, int)]
                if len(dims) == len(shapes[number]) and 0 <= at < math.prod(dims):
                    found[name] = (number, at)
        if name not in found:
            raise ArtifactError(f"the manifest says that size {name!r} is at {place}, where nothing is")
    return found


def _tensor(data: object) -> TensorInfo:
    shape = _dims(_get(data, "shape", list))
    return TensorInfo(_get(data, "name", str), _get(data, "dtype", str), shape)


def _dims(items: object) -> tuple[Dim, ...]:
    if not isinstance(items, list) or not all(
        isinstance(item, str) or (type(item) is int and 0 <= item < 1 << 63) for item in items
    ):
        raise ArtifactError(f"the manifest has {items!r} where a shape should be")
    return tuple(items)


def _strings(data: object, key: str) -> tuple[str, ...]:
    return _list(data, key, str)


def _list(data: object, key: str, kind: type[_T]) -> tuple[_T, ...]:
    items = _get(data, key, list)
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise ArtifactError(f"the manifest has {item!r} in its list {key!r}")
    return tuple(items)


def _get(data: object, key: str, kind: type[_T]) -> _T:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArtifactError(f"the manifest's field {key!r} is missing or of the wrong type")
    return value
