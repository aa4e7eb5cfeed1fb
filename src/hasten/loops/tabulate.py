"""Arrays from expressions of what is known now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Expr, Load, Var, walk
from hasten.loops.program import Definition, Program


def tabulate(e: Expr, variables: Sequence[Var], constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """The values of an expression for all values of some variables.

    Args:
        e: reads nothing but `constants`, and depends on no other variables.
        variables: one for each dimension of the result; their extents are numbers.
        constants: arrays by name.
    """
    read = {n.buffer: constants[n.buffer] for n in walk(e) if isinstance(n, Load)}
    table = Definition("table", e.dtype, tuple(variables), e)
    return evaluate(Program(constants=read, definitions={"table": table}, outputs=["table"]), {})["table"]
