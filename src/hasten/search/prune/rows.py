"""Rows of tables that no sample asks for: which, and how often new data will ask for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import DataError, OptionError
from hasten.passes.prune.rows import ROWS, Table, find_tables, remove_rows, used_rows
from hasten.passes.prune.units import LeftAlone
from hasten.search.prune.cost import Feeds
from hasten.search.prune.report import Cut

_ID_BYTES = 4  # of a row's place
_WORTH = 1 << 14  # bytes: a table that would lose less keeps its rows


@dataclass(frozen=True)
class Rows:
    """What tables have lost.

    Attributes:
        cuts: rows of each table before and after.
        left_alone: tables that keep their rows, with reasons.
        notes: what ids get whose rows are gone, and how often that will be.
    """

    cuts: tuple[Cut, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()


def drop_rows(model: ir.Model, samples: Sequence[Feeds], unseen: int | None = None) -> Rows:
    """Takes rows that no sample asks for out of tables, in place.

    Args:
        model: its graph is changed.
        samples: inputs by name: all the ids that are known.
        unseen: the id whose row the others get; None for the mean of the rows that go.

    Raises:
        DataError: a sample has an id that a table does not.
        OptionError: no table has the row `unseen`, or there is no table.
    """
    counted, left = count_rows(model, samples, unseen)
    cuts, alone, notes = [], list(left), []
    for table, counts in counted:
        stays, row = counts > 0, unseen if unseen is not None and unseen < table.rows else None
        if row is not None:
            stays[row] = True
        gone = int(np.count_nonzero(~stays))
        if (gone - 1) * table.width * 4 - table.rows * _ID_BYTES < _WORTH:
            alone.append(
                LeftAlone(table.name, ROWS, table.rows, ("too few of its rows are never asked for",))
            )
            continue
        remove_rows(model.graph, table, stays, row)
        cuts.append(Cut(table.name, ROWS, table.rows, table.rows - gone + (row is None)))
        notes.append(_risk(table, counts, gone, row))
    return Rows(tuple(cuts), tuple(alone), tuple(notes))


def count_rows(
    model: ir.Model, samples: Sequence[Feeds], unseen: int | None = None
) -> tuple[list[tuple[Table, NDArray[np.int64]]], tuple[LeftAlone, ...]]:
    """How often samples ask for each row of tables, and the tables that keep their rows, with reasons.

    What `drop_rows` refuses is refused here, so that it can be said before other work.
    """
    tables, left = find_tables(model)
    if not tables:
        why = f" ({left[0].name}: {left[0].reasons[0]})" if left else ""
        raise OptionError(f"nothing to prune: the model has no {ROWS} that can be removed{why}")
    if unseen is not None and not any(0 <= unseen < table.rows for table in tables):
        raise OptionError(f"unseen={unseen}: no table has such a row; give an id below {tables[0].rows}")
    ids = {
        name: np.concatenate([np.asarray(feeds[name]).reshape(-1).astype(np.int64) for feeds in samples])
        for name in dict.fromkeys(name for table in tables for name in table.inputs)
    }
    try:
        return [(table, used_rows(table, ids)) for table in tables], left
    except IndexError as error:
        raise DataError(str(error)) from None


def _risk(table: Table, counts: np.ndarray, gone: int, row: int | None) -> str:
    """What is to be said of a table: how many of the ids to come have no row is estimated by those seen once.

    Good 1953, "The Population Frequencies of Species and the Estimation of Population Parameters".
    """
    total = int(counts.sum())
    once = np.count_nonzero(counts == 1) / max(1, total)
    get = "the mean of those rows" if row is None else f"the row of {row}"
    return (
        f"'{table.name}' has lost {gone:,} of {table.rows:,} rows, which no sample asked for; an id of one "
        f"of those gets {get}. By the ids seen only once among {total:,}, that will be {once:.2%} of new "
        "ids: check with data that were not given here"
    )
