"""Operators that run on the host and that ONNX's reference evaluator lacks, or has no types for: maps.

Importing this module imports onnx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

DOMAIN = "hasten"
Array = NDArray[Any]

_ROUNDS = 100
_PRECISION = 0.005


class ZipMap(OpRun):
    """Rows of numbers as maps from the name of the column, a list of dict."""

    op_domain = DOMAIN

    def _run(self, x: Array, classlabels_int64s: Any = None, classlabels_strings: Any = None) -> Any:
        keys = list(classlabels_strings or classlabels_int64s or [])
        rows = np.atleast_2d(x)
        if rows.shape[1] != len(keys):
            raise ValueError(f"{rows.shape[1]} columns for {len(keys)} keys")
        return ([dict(zip(keys, row, strict=True)) for row in rows.tolist()],)


class DictVectorizer(OpRun):
    """The values of a map, or of several, in the order of a vocabulary; 0 for those it lacks."""

    op_domain = DOMAIN

    def _run(
        self,
        x: Mapping[Any, Any] | Sequence[Mapping[Any, Any]],
        int64_vocabulary: Any = None,
        string_vocabulary: Any = None,
        dtype: str | None = None,
    ) -> Any:
        keys = list(string_vocabulary or int64_vocabulary or [])
        nothing: Any = "" if dtype == "str" else 0
        rows = [[row.get(k, nothing) for k in keys] for row in _maps(x)]
        return (np.array(rows, dtype or np.float32).reshape(len(rows), len(keys)),)


class CastMap(OpRun):
    """The values of a map by ascending key, or each at the place that its key says."""

    op_domain = DOMAIN

    def _run(
        self,
        x: Mapping[int, Any],
        cast_to: str | None = None,
        map_form: str | None = None,
        max_map: Any = None,
    ) -> Any:
        (given,) = _maps(x)
        kind = cast_to or "TO_FLOAT"
        found = {int(k): _converted(v, kind) for k, v in given.items()}
        if (map_form or "DENSE") == "DENSE":
            values = [found[k] for k in sorted(found)]
        else:
            length = int(max_map or 1)
            if any(not 0 <= k < length for k in found):
                raise ValueError(f"a key lies outside the {length} places of a sparse map")
            nothing = {"TO_FLOAT": 0.0, "TO_INT64": 0, "TO_STRING": "0.f"}[kind]  # as ONNX Runtime has it
            values = [found.get(k, nothing) for k in range(length)]
        dtype = {"TO_FLOAT": np.float32, "TO_INT64": np.int64, "TO_STRING": np.str_}[kind]
        return (np.array([values], dtype).reshape(1, len(values)),)


def _maps(x: Any) -> list[Mapping[Any, Any]]:
    given = [x] if isinstance(x, Mapping) else list(x)
    if not all(isinstance(m, Mapping) for m in given):
        raise TypeError("a map is wanted: give a dict")
    return given


def _converted(value: Any, kind: str) -> Any:
    if kind == "TO_STRING":
        return value if isinstance(value, str) else f"{value:f}"
    number = float(value)
    return int(number) if kind == "TO_INT64" else number


class PairwiseCoupling(OpRun):
    """Probabilities [row, class] from those of each class against each other, [row, pair].

    Source: T.-F. Wu, C.-J. Lin, R. Weng, Probability estimates for multi-class classification by pairwise
    coupling (2004), the second method; rounds and precision are those of LIBSVM, whose results these are.
    """

    op_domain = DOMAIN

    def _run(self, r: Array, classes: int | None = None) -> Any:
        return (coupled(r, int(classes or 2)),)


def coupled(r: Array, classes: int) -> Array:
    """What `PairwiseCoupling` computes."""
    rows, k = len(r), classes
    against = np.zeros((rows, k, k))
    first, second = np.triu_indices(k, 1)
    against[:, first, second], against[:, second, first] = r, 1.0 - r
    q = -against * against.transpose(0, 2, 1)
    q[:, range(k), range(k)] = np.square(against).sum(axis=1)
    p = np.full((rows, k), 1 / k)
    open_rows = np.arange(rows)
    for _ in range(max(_ROUNDS, k)):
        own, now = q[open_rows], p[open_rows]
        gradient = np.einsum("nij,nj->ni", own, now)
        value = (now * gradient).sum(axis=1)
        still = np.abs(gradient - value[:, None]).max(axis=1) >= _PRECISION / k
        open_rows = open_rows[still]
        if not open_rows.size:
            break
        own, now, gradient, value = own[still], now[still], gradient[still], value[still]
        for t in range(k):
            step = (value - gradient[:, t]) / own[:, t, t]
            now[:, t] += step
            scale = 1 + step
            value = (value + step * (step * own[:, t, t] + 2 * gradient[:, t])) / scale**2
            gradient = (gradient + step[:, None] * own[:, t]) / scale[:, None]
            now /= scale[:, None]
        p[open_rows] = now
    return p.astype(np.float32)


class Inverse(OpRun):
    """Inverses of square matrices, the last two axes."""

    op_domain = DOMAIN

    def _run(self, x: Array) -> Any:
        try:
            return (np.linalg.inv(x).astype(x.dtype, copy=False),)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"a matrix has no inverse: {error}") from error


HOST_OPERATORS: tuple[type[OpRun], ...] = (ZipMap, DictVectorizer, CastMap, PairwiseCoupling, Inverse)
"""What ONNX's reference evaluator is given in addition."""
