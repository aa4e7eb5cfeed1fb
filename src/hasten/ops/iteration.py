"""Loop and Scan: a body that is repeated.

A run of the body is given the number of the step, the condition and the states. A state may change its shape
from step to step: the body is lowered for the shapes of the first step, and again with free lengths where
those that it gives differ. Scan is a loop whose body is given slices by the number of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from hasten.errors import UnsupportedModelError
from hasten.graph.describe import describe_node
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Const, Expr, bounded, const, constant_int
from hasten.ops.attributes import attribute_int, attribute_ints
from hasten.ops.base import Declined, Tensor, normalize_axis
from hasten.ops.bodies import (
    Inside,
    LowerBody,
    body_of,
    enter,
    in_order,
    inside_of,
    known_flag,
    named,
    require_compiled,
)
from hasten.ops.graph_state import GraphState
from hasten.ops.independent_steps import Given, Slices, are_independent, side_by_side
from hasten.ops.lowered import Body, Iteration, Lowered


@dataclass(frozen=True)
class _Element:
    """An input of a body that is a slice of a tensor, another one in each step."""

    formal: ir.Value
    source: ir.Value
    axis: int
    backwards: bool


@dataclass(frozen=True)
class _Row:
    """An output that steps give a slice of."""

    value: ir.Value
    axis: int = 0
    backwards: bool = False


@dataclass(frozen=True)
class _Form:
    """What Loop and Scan have in common.

    Attributes:
        node, body: the node and what it repeats.
        count: most steps: a number or a name.
        steps: their number as a length, where it is known before the run.
        condition: whether the first step is taken.
        step, going: inputs of the body: the number of a step, and the condition.
        states: inputs of the body and what they begin with.
        elements: slices that the body is given.
        carried: number of the body's output that is the first state; the condition is before it.
        rows: outputs behind the states.
    """

    node: ir.Node
    body: ir.Graph
    count: int | str | None
    steps: Expr | None
    condition: bool | str
    step: ir.Value | None
    going: ir.Value | None
    states: tuple[tuple[ir.Value, ir.Value], ...]
    elements: tuple[_Element, ...]
    carried: int
    rows: tuple[_Row, ...]


def lower_loop(state: GraphState, node: ir.Node, lower_body: LowerBody) -> Iteration | None:
    """A body that is repeated a number of times, or while a condition holds; None where it needs no loop."""
    body = body_of(node, "body")
    initial = [v for v in node.inputs[2:] if v is not None]
    count = node.inputs[0] if node.inputs else None
    condition = node.inputs[1] if len(node.inputs) > 1 else None
    states = len(initial)
    fits = len(body.inputs) == states + 2 and len(body.outputs) == len(node.outputs) + 1
    if len(initial) != len(node.inputs) - 2 or not fits or len(node.outputs) < states:
        raise Declined("its body has another number of inputs or outputs than the Loop")
    known = state.ctx.constant_of(None if count is None else state.tensors.get(count))
    whole = known is not None and known.size == 1
    most = int(known.reshape(-1)[0]) if known is not None and whole else None
    flag = True if condition is None else known_flag(state, condition)
    form = _Form(
        node,
        body,
        most if most is not None or count is None else named(state, node, count),
        const(max(most, 0)) if most is not None else None,
        flag if flag is not None else named(state, node, condition),
        body.inputs[0],
        body.inputs[1],
        tuple(zip(body.inputs[2:], initial, strict=True)),
        (),
        1,
        tuple(_Row(v) for v in node.outputs[states:]),
    )
    return _iterate(state, form, lower_body)


def lower_scan(state: GraphState, node: ir.Node, lower_body: LowerBody) -> Iteration | None:
    """A body that is repeated for each slice of some tensors; None where it needs no loop."""
    body = body_of(node, "body")
    number = attribute_int(node, "num_scan_inputs", 0)
    inputs = [v for v in node.inputs if v is not None]
    states = len(inputs) - number
    fits = len(body.inputs) == len(inputs) and len(body.outputs) == len(node.outputs) >= states
    if number < 1 or states < 0 or len(inputs) != len(node.inputs) or not fits:
        raise Declined("its body has another number of inputs or outputs than the Scan")
    rows = len(node.outputs) - states
    lists = {
        name: attribute_ints(node, name, [0] * count)
        for name, count in (
            ("scan_input_axes", number),
            ("scan_input_directions", number),
            ("scan_output_axes", rows),
            ("scan_output_directions", rows),
        )
    }
    if any(len(v) != (number if "input" in k else rows) for k, v in lists.items()):
        raise Declined("its axes or directions are not one for each input and output")
    elements = []
    lengths = []
    around = zip(lists["scan_input_axes"], lists["scan_input_directions"], strict=True)
    for formal, source, (place, direction) in zip(body.inputs[states:], inputs[states:], around, strict=True):
        tensor = state.tensors.get(source)
        if tensor is None:
            raise Declined(state.opaque.get(source, f"'{source.name}' is not known"))
        axis = normalize_axis(place, tensor.rank)
        elements.append(_Element(formal, source, axis, direction == 1))
        lengths.append(tensor.shape[axis])
    state.ctx.begin(describe_node(node), ())
    steps = lengths[0]
    for n in lengths[1:]:
        steps = state.ctx.same_size(steps, n)
    most = constant_int(steps)
    count: int | str = most if most is not None else _length(state, node, steps)
    given = zip(lists["scan_output_axes"], lists["scan_output_directions"], strict=True)
    form = _Form(
        node,
        body,
        count,
        steps,
        True,
        None,
        None,
        tuple(zip(body.inputs[:states], inputs[:states], strict=True)),
        tuple(elements),
        0,
        tuple(_Row(v, axis, way == 1) for v, (axis, way) in zip(node.outputs[states:], given, strict=True)),
    )
    return _iterate(state, form, lower_body)


def _length(state: GraphState, node: ir.Node, steps: Expr) -> str:
    """A tensor that holds a length."""
    first = next((v.name for v in node.outputs if v.name), "scan")
    state.ctx.begin(describe_node(node), (state.ctx.fresh(f"{first}_steps"),))
    return state.ctx.define([], lambda: steps, INDEX).name


@dataclass
class _Formal:
    """A state as the body takes it: its shape there, None where compiled code cannot read it."""

    dims: list[Expr | None] | None
    reason: str = ""


def _iterate(state: GraphState, form: _Form, lower_body: LowerBody) -> Iteration | None:
    node = form.node
    initial = tuple(named(state, node, v) for _, v in form.states)
    formals = [_formal(state, value) for _, value in form.states]
    names: list[str] = []
    while True:
        give = partial(_give, form=form, formals=formals, names=names)
        inside = inside_of(state, form.body, give, lower_body)
        if not _loosen(form, formals, inside):
            break
    require_compiled([inside])
    goes_on = _goes_on(form, inside)
    if _needs_no_loop(form, inside, goes_on):
        _lay_side_by_side(state, form, inside, names)
        return None
    if form.count is None and goes_on is True and form.condition is not False:
        raise UnsupportedModelError(
            f"{describe_node(node)} would never end: it has no trip count, and nothing changes its "
            "condition. Export it with one of them."
        )
    around = {n for n in (form.count, form.condition) if isinstance(n, str)} | set(initial)
    around |= inside.captures(names)
    body = inside.body(names)
    results = body.outputs[form.carried :]
    if isinstance(goes_on, bool):  # nobody reads the condition
        _forget(inside.lowered, body.outputs[: form.carried], results)
        body = Body(body.lowered, body.inputs, ("", *results))
    outputs = []
    for k, (_, value) in enumerate(form.states):
        given = node.outputs[k]
        outputs.append(given.name or "")
        if given.name:
            tensor = state.tensors.get(value)
            formal = formals[k].dims
            enter(state, given, formal, None if tensor is None else tensor.dtype)
    rows = []
    for k, row in enumerate(form.rows, form.carried + len(form.states)):
        outputs.append(_enter_rows(state, form, inside, k, row))
        tensor = inside.tensor(k)
        shape = tuple(_shown(state, n) for n in inside.dims_around(k) or ())
        around |= {n[0] for n in shape if isinstance(n, tuple)}
        rows.append(("" if tensor is None else tensor.dtype.numpy.name, shape))
    return Iteration(
        node,
        form.count,
        form.condition,
        goes_on,
        initial,
        tuple(rows),
        (body,),
        in_order(node, around),
        tuple(outputs),
    )


def _formal(state: GraphState, value: ir.Value) -> _Formal:
    tensor = state.tensors.get(value)
    if tensor is None:
        return _Formal(None, state.opaque.get(value, f"'{value.name}' is not known"))
    return _Formal(list(tensor.shape))


def _give(inner: GraphState, form: _Form, formals: Sequence[_Formal], names: list[str]) -> None:
    """Enters what a step is given; `names` become those of the values."""
    assert inner.around is not None
    names.clear()
    step = _scalar(inner, form, form.step, INDEX, names)
    _scalar(inner, form, form.going, DType.BOOL, names)
    for (formal, value), known in zip(form.states, formals, strict=True):
        names.append(formal.name or "")
        formal.type = formal.type or value.type
        tensor = inner.around.tensors.get(value)
        if known.dims is None or tensor is None:
            inner.opaque[formal] = known.reason
            continue
        name = formal.name or ""
        dims = [None if n is None else inner.size_of(n, name, axis) for axis, n in enumerate(known.dims)]
        inner.enter(formal, dims, tensor.dtype)
    for element in form.elements:
        _give_element(inner, form, element, step)


def _scalar(
    inner: GraphState, form: _Form, formal: ir.Value | None, dtype: DType, names: list[str]
) -> Tensor:
    """The number of a step, or the condition; old models declare vectors of one."""
    name = (formal.name if formal is not None else None) or "going"
    vector = formal is not None and formal.shape is not None and formal.shape.rank() == 1
    if formal is not None and not vector:
        inner.enter(formal, [], dtype)
        names.append(name)
        return inner.tensors[formal]
    given = ir.Value(name=inner.ctx.fresh("step" if dtype is INDEX else "going"))
    inner.enter(given, [], dtype)
    names.append(given.name or "")
    scalar = inner.tensors[given]
    if formal is not None:
        inner.ctx.begin(describe_node(form.node), (name,))
        inner.tensors[formal] = inner.ctx.define([const(1)], lambda _: scalar.at(), dtype)
    return scalar


def _give_element(inner: GraphState, form: _Form, element: _Element, step: Tensor) -> None:
    """Defines a slice by the number of the step."""
    if element.source not in inner.tensors:
        inner.capture(element.source)
    x = inner.tensors[element.source]
    element.formal.type = element.formal.type or element.source.type
    length, axis = x.shape[element.axis], element.axis

    def slice_at(*index: Expr) -> Expr:
        at = length - 1 - step.at() if element.backwards else step.at()
        return x.at(*index[:axis], bounded(at, length), *index[axis:])

    name = element.formal.name or ""
    inner.ctx.begin(describe_node(form.node), (name,))
    shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
    inner.tensors[element.formal] = inner.ctx.define(shape, slice_at, x.dtype)


def _loosen(form: _Form, formals: list[_Formal], inside: Inside) -> bool:
    """Makes lengths free that a step changes; whether there were any.

    Raises:
        Declined: a step changes the element type of a state.
    """
    changed = False
    for k, ((formal, _), known) in enumerate(zip(form.states, formals, strict=True)):
        if known.dims is None:
            continue
        before, after = inside.state.tensors[formal], inside.tensor(form.carried + k)
        if after is None or after.rank != before.rank:
            what = "is not known" if after is None else "changes from step to step"
            formals[k] = _Formal(None, f"type or rank of '{formal.name}' {what}")
            changed = True
            continue
        if after.dtype is not before.dtype:
            raise Declined(f"a step changes the element type of '{formal.name}'")
        for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)):
            if old != new and known.dims[axis] is not None:
                known.dims[axis] = None
                changed = True
    return changed


def _goes_on(form: _Form, inside: Inside) -> bool | str:
    """Whether another step follows, as far as the body says: True where it hands back the condition."""
    if form.carried == 0:
        return True
    if form.going is not None and _hands_back(form.body.outputs[0], form.going):
        return True
    known = known_flag(inside.state, form.body.outputs[0])
    return known if known is not None else inside.lowered.outputs[0]


def _hands_back(result: ir.Value, given: ir.Value) -> bool:
    """Whether a result of a body is what it was given."""
    value: ir.Value | None = result
    while value is not None and value is not given:
        producer = value.producer()
        if producer is None or producer.op_type != "Identity" or producer.domain:
            return False
        value = producer.inputs[0]
    return value is given


def _needs_no_loop(form: _Form, inside: Inside, goes_on: bool | str) -> bool:
    """Whether all steps are taken, and none depends on another one."""
    behind = form.body.outputs[form.carried :]
    same = all(_hands_back(out, formal) for (formal, _), out in zip(form.states, behind, strict=False))
    taken = form.steps is not None and form.condition is True and goes_on is True
    known = all(inside.tensor(k) is not None for k in range(form.carried, len(form.body.outputs)))
    return taken and same and known and are_independent(inside)


def _lay_side_by_side(state: GraphState, form: _Form, inside: Inside, names: Sequence[str]) -> None:
    """Defines the outputs of a node by an axis for its steps."""
    assert form.steps is not None
    named_outputs = [v for v in form.node.outputs if v.name]
    if not named_outputs:
        return
    states = {formal.name or "": state.tensors[value] for formal, value in form.states}
    state.ctx.begin(describe_node(form.node), ())
    given = Given(names[0], names[1], states)
    results = side_by_side(state, inside, given, form.steps, named_outputs[0].name or "")
    for (_, value), output in zip(form.states, form.node.outputs, strict=False):
        if output.name:
            tensor = state.tensors[value]
            state.ctx.begin(describe_node(form.node), (output.name,))
            state.tensors[output] = state.ctx.define(tensor.shape, tensor.at, tensor.dtype)
    for row, result in zip(form.rows, results[form.carried + len(form.states) :], strict=True):
        if row.value.name:
            _define_rows(state, form, row, result, form.steps)


def _define_rows(state: GraphState, form: _Form, row: _Row, result: Slices, steps: Expr) -> None:
    """Defines an output by the slice of each step."""
    shape = result.tensor.shape[result.stepped :]
    axis = normalize_axis(row.axis, len(shape) + 1)

    def element(*index: Expr) -> Expr:
        step, *rest = _in_its_step(row, axis, steps, index)
        return result.tensor.at(step, *rest) if result.stepped else result.tensor.at(*rest)

    state.ctx.begin(describe_node(form.node), (row.value.name or "",))
    whole = [*shape[:axis], steps, *shape[axis:]]
    state.tensors[row.value] = state.ctx.define(whole, element, result.tensor.dtype)


def _forget(lowered: Lowered, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Takes outputs out of a program."""
    program = lowered.program
    for name in names:
        if name in program.outputs and name not in wanted:
            program.outputs.remove(name)
            read = any(name in d.reads() for d in program.definitions.values())
            if not read and not any(name in o.inputs for o in lowered.outside):
                program.definitions.pop(name, None)


def _enter_rows(state: GraphState, form: _Form, inside: Inside, k: int, row: _Row) -> str:
    """Enters an output that is made of rows; the name that the rows themselves have, one after the other."""
    if not row.value.name:
        return ""
    tensor, dims = inside.tensor(k), inside.dims_around(k)
    always = form.condition is True and _goes_on(form, inside) is True
    known = isinstance(form.steps, Const) or isinstance(_shown(state, form.steps), tuple)
    steps = form.steps if always and known else None
    shape = None if dims is None else [steps, *dims]
    dtype = None if tensor is None else tensor.dtype
    if row.axis == 0 and not row.backwards:
        enter(state, row.value, shape, dtype)
        return row.value.name
    if shape is None or dtype is None:
        raise Declined(f"type or rank of '{row.value.name}' is not known before the run")
    rows = ir.Value(name=state.ctx.fresh(f"{row.value.name}_rows"))
    state.enter(rows, shape, dtype)
    stacked = state.tensors[rows]
    axis = normalize_axis(row.axis, stacked.rank)
    length = stacked.shape[0]

    def moved(*index: Expr) -> Expr:
        return stacked.at(*_in_its_step(row, axis, length, index))

    state.ctx.begin(describe_node(form.node), (row.value.name,))
    result = [*stacked.shape[1 : axis + 1], length, *stacked.shape[axis + 1 :]]
    state.tensors[row.value] = state.ctx.define(result, moved, dtype)
    return rows.name or ""


def _in_its_step(row: _Row, axis: int, steps: Expr, index: Sequence[Expr]) -> tuple[Expr, ...]:
    """The step that gives an element of an output of rows, and the element's index in what it gives."""
    at = steps - 1 - index[axis] if row.backwards else index[axis]
    return (at, *index[:axis], *index[axis + 1 :])


def _shown(state: GraphState, length: Expr | None) -> int | tuple[str, int]:
    """A length as a number, or an input of the program and the axis that shows it; 0 where none does."""
    if length is None or isinstance(length, Const):
        return 0 if length is None else int(length.value)
    inputs = state.ctx.program.inputs
    return next(((n, i.shape.index(length)) for n, i in inputs.items() if length in i.shape), 0)
