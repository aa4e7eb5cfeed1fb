"""Rows of tables that are looked up, such as embeddings: those that no id asks for can go.

Ids are mapped first: a row of small integers, one for each id, says where what is left of the table has it.
All ids whose rows are gone go to one row. So a table of V rows of which v stay takes 4 V bytes more and
(V - v) rows less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.prune.units import LeftAlone

ROWS = "rows"
_SAME_IDS = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Flatten", "Expand")
"""Operators that give no other numbers than they take."""


@dataclass(frozen=True)
class Table:
    """A constant whose rows are looked up by ids that the user gives.

    Attributes:
        name: of the constant.
        inputs: of the model, that ids come from.
        rows: how many.
        width: elements of a row.
    """

    name: str
    inputs: tuple[str, ...]
    rows: int
    width: int


def find_tables(model: ir.Model) -> tuple[tuple[Table, ...], tuple[LeftAlone, ...]]:
    """Tables that rows can be taken from, and those that keep theirs, with reasons."""
    found, alone = [], []
    for name, value in model.graph.initializers.items():
        uses = [use for use in value.uses() if use.node.op_type == "Gather" and use.idx == 0]
        array = value.const_value
        if not uses or array is None or len(array.shape) != 2 or value.is_graph_output():
            continue
        rows, width = array.shape.numpy()
        sources = [_source(use.node.inputs[1]) for use in uses]
        reason = ""
        if len(uses) != len(list(value.uses())):
            reason = "it is read by something else than look-ups too"
        elif any(use.node.attributes.get_int("axis", 0) != 0 for use in uses):
            reason = "it is looked up along another axis than its rows"
        elif any(source is None for source in sources):
            reason = "the ids are computed, and do not come from an input"
        elif array.dtype != ir.DataType.FLOAT:
            reason = f"its elements are {array.dtype}, not FLOAT"
        if reason:
            alone.append(LeftAlone(name, ROWS, rows, (reason,)))
        else:
            inputs = tuple(dict.fromkeys(source for source in sources if source is not None))
            found.append(Table(name, inputs, rows, width))
    return tuple(found), tuple(alone)


def remove_rows(graph: ir.Graph, table: Table, stays: NDArray[np.bool_], unseen: int | None) -> None:
    """Takes rows out of a table, in place.

    Args:
        graph: that the table was found in.
        table: the table.
        stays: for each row whether it does, [rows]; that of `unseen` must.
        unseen: the row that ids of the others get; None for a row of its own, the mean of those that go.
    """
    value = graph.initializers[table.name]
    array = constant_value(value)
    assert array is not None
    kept = array[stays]
    places = np.cumsum(stays, dtype=np.int32) - 1
    places[~stays] = len(kept) if unseen is None else places[unseen]
    if unseen is None:
        kept = np.concatenate(
            [kept, array[~stays].mean(0, keepdims=True, dtype=np.float64).astype(array.dtype)]
        )
    small = _constant(graph, f"{table.name}_rows", kept)
    where = _constant(graph, f"{table.name}_places", places.astype(np.int32))
    mapped: dict[ir.Value, ir.Value] = {}
    for use in list(value.uses()):
        node, ids = use.node, use.node.inputs[1]
        assert ids is not None
        if ids not in mapped:
            name = f"{ids.name}_in_{table.name}"
            look_up = ir.node("Gather", [where, ids], name=name)
            result = look_up.outputs[0]
            result.name, result.shape, result.type = name, ids.shape, ir.TensorType(ir.DataType.INT32)
            graph.insert_before(node, look_up)
            mapped[ids] = result
        node.replace_input_with(0, small)
        node.replace_input_with(1, mapped[ids])
    del graph.initializers[table.name]


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _source(ids: ir.Value | None) -> str | None:
    """The input of the model whose numbers a value has, or None if they are others."""
    while ids is not None and not ids.is_graph_input():
        node = ids.producer()
        if node is None or node.op_type not in _SAME_IDS or node.domain not in ("", "ai.onnx"):
            return None
        ids = node.inputs[0]
    return None if ids is None else ids.name


def used_rows(table: Table, ids: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """How often each row is asked for, [rows].

    Args:
        table: the table.
        ids: by input, all that was given there.

    Raises:
        IndexError: an id is outside the table.
    """
    counts = np.zeros(table.rows, np.int64)
    for name in table.inputs:
        given = ids[name].reshape(-1)
        if len(given) and not -table.rows <= given.min() <= given.max() < table.rows:
            worst = int(given.min() if given.min() < -table.rows else given.max())
            raise IndexError(
                f"id {worst} of input '{name}' is outside the {table.rows} rows of '{table.name}'"
            )
        counts += np.bincount(given % table.rows, minlength=table.rows)
    return counts
