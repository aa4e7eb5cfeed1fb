"""Random graphs by seed."""

from __future__ import annotations

import numpy as np
from tests.differential import choosing, combining, composing, computing, elementwise, moving, sampling
from tests.differential.graph import INTEGERS, Builder, Dim, Graph

SIMPLE = (*elementwise.STEPS, *moving.STEPS, *choosing.STEPS, *computing.STEPS, *sampling.STEPS)
STEPS = (*SIMPLE, *composing.STEPS, *combining.STEPS)
VERSIONS = (18, 19, 20, 21, 22, 23, 24, 25)
BINDINGS = ((3, 5), (1, 7), (6, 2), (13, 1), (0, 4), (2, 31), (24, 9), (4, 0))
"""Values that the two symbolic sizes n and m take; a graph is run with three of them."""

RANKS = (0, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5)


def random_graph(seed: int) -> Graph:
    """The graph of a seed, the same on every machine."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(BINDINGS), 3, replace=False)
    sizes = {name: tuple(BINDINGS[i][k] for i in chosen) for k, name in enumerate("nm")}
    b = Builder(rng, sizes, int(rng.choice(VERSIONS)))
    _inputs(b)
    steps = [step for step, _ in STEPS]
    weights = np.array([w for _, w in STEPS]) / sum(w for _, w in STEPS)
    wanted = b.int(2, 16)
    while len(b.nodes) < wanted or not any(v.name not in b.inputs for v in b.values):
        step = steps[int(rng.choice(len(steps), p=weights))]
        b.attempt(step)
    return b.graph(seed)


def _inputs(b: Builder) -> None:
    """One to four inputs, of which some have the same shape."""
    shape: tuple[Dim, ...] = ()
    dtype = "float32"
    for k in range(b.int(1, 3)):
        if k == 0 or b.chance(0.6):
            while True:
                shape = tuple(b.dim() for _ in range(b.pick(RANKS)))
                if max(np.prod([d[i] for d in shape]) for i in range(b.bindings)) <= 1500:
                    break
        if k == 0 or b.chance(0.4):
            kind = b.rng.random()
            dtype = (
                "float32"
                if kind < 0.55
                else b.pick(
                    ["float64", "float64", "float16", "bfloat16", "int64", "int32", *INTEGERS, "bool"]
                )
            )
        b.numbers(dtype, shape)
