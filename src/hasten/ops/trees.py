"""Decision trees as data: splits and leaves, and the tables of numbers that a `Forest` walks through.

Whatever a model's nodes ask (<=, <, =, membership, where missing values go) is said by one question,
x <= limit, of which NaN is never true. x > limit is -x <= a limit, so features count twice, as themselves
and as their negatives; = is two questions. Trees may share what is below a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Number = np.floating


@dataclass(frozen=True, eq=False)
class Leaf:
    """An end: the number of a row of values."""

    number: int


@dataclass(frozen=True, eq=False)
class Split:
    """A question to a row: x[feature] <= limit.

    Attributes:
        feature: from the number of features on, negatives.
        limit: NaN for never.
        yes, no: where it goes on.
    """

    feature: int
    limit: Number
    yes: Tree
    no: Tree


Tree = Leaf | Split


@dataclass(frozen=True)
class Tables:
    """Trees as arrays; see `loops.descriptions.Forest`.

    Attributes:
        root: [parts, trees], first node of each tree.
        split, limit, below, end: of each node.
        depth: steps from a root to the farthest leaf.
    """

    root: np.ndarray
    split: np.ndarray
    limit: np.ndarray
    below: np.ndarray
    end: np.ndarray
    depth: int


def question(
    mode: str, feature: int, features: int, limits: Sequence[Number], missing: bool, yes: Tree, no: Tree
) -> Tree:
    """A node of ONNX in terms of `Split`.

    Args:
        mode: BRANCH_ and LEQ, LT, GTE, GT, EQ, NEQ or MEMBER.
        feature: which feature is asked for.
        features: number of features.
        limits: one number, or for MEMBER any number of them.
        missing: NaN goes where `yes` goes.
        yes: where it goes on if so.
        no: where it goes on if not.

    Raises:
        ValueError: the mode is none of these.
    """
    negative = feature + features

    def at_most(limit: Number, yes: Tree, no: Tree) -> Tree:
        return Split(feature, limit, yes, no)

    def at_least(limit: Number, yes: Tree, no: Tree) -> Tree:
        return Split(negative, -limit, yes, no)

    def less(limit: Number, yes: Tree, no: Tree) -> Tree:
        return at_most(_next(limit, -np.inf), yes, no)

    def more(limit: Number, yes: Tree, no: Tree) -> Tree:
        return at_least(_next(limit, np.inf), yes, no)

    def equal(limit: Number, yes: Tree, no: Tree) -> Tree:
        return at_most(limit, at_least(limit, yes, no), no)

    ordered: dict[str, tuple[Callable[..., Tree], Callable[..., Tree]]] = {
        "BRANCH_LEQ": (at_most, more),
        "BRANCH_LT": (less, at_least),
        "BRANCH_GTE": (at_least, less),
        "BRANCH_GT": (more, at_most),
    }
    if mode in ordered:
        asked, opposite = ordered[mode]
        # NaN never is true: where it should go with the true ones, the opposite is asked.
        return opposite(limits[0], no, yes) if missing else asked(limits[0], yes, no)
    if mode == "BRANCH_NEQ":
        mode, yes, no, missing = "BRANCH_EQ", no, yes, False  # NaN differs from everything
    if mode not in ("BRANCH_EQ", "BRANCH_MEMBER"):
        raise ValueError(mode)
    result = no
    for limit in limits:
        result = equal(limit, yes, result)
    infinity = limits[0].dtype.type(np.inf) if limits else np.float32(np.inf)
    return at_most(infinity, result, yes) if missing else result


def _next(limit: Number, towards: float) -> Number:
    """The next number in a direction; NaN, which nothing is compared to, where there is none."""
    if limit == towards:
        return limit.dtype.type(np.nan)
    result: Number = np.nextafter(limit, limit.dtype.type(towards))
    return result


def tables(parts: Sequence[Sequence[Tree]], empty: Leaf, dtype: np.dtype[np.generic]) -> Tables:
    """The arrays of trees, breadth first, so that what many rows visit lies together.

    Args:
        parts: the trees of each part.
        empty: what parts with fewer trees than others are filled up with.
        dtype: of the limits.
    """
    count = max(1, *(len(p) for p in parts))
    filled = [[*p, *[empty] * (count - len(p))] for p in parts]
    slots: list[Tree] = []
    below: dict[int, int] = {}  # first of the two places of a split's answers; shared splits have one pair
    roots = np.zeros((len(filled), count), np.int64)
    for index in np.ndindex(*roots.shape):
        # A leaf needs a place in front of it, so a root has one too.
        slots.append(empty)
        roots[index] = len(slots)
        tree = filled[index[0]][index[1]]
        slots.append(tree)
        queue = [tree]
        while queue:
            inner: list[Tree] = []
            for t in queue:
                if isinstance(t, Split) and id(t) not in below:
                    below[id(t)] = len(slots)
                    slots += [t.yes, t.no]
                    inner += [t.yes, t.no]
            queue = inner
    split = [t.feature if isinstance(t, Split) else 0 for t in slots]
    limit = [t.limit if isinstance(t, Split) else np.nan for t in slots]
    next_ = [below[id(t)] if isinstance(t, Split) else place - 1 for place, t in enumerate(slots)]
    end = [t.number if isinstance(t, Leaf) else 0 for t in slots]
    depth = depths([t for p in filled for t in p])
    return Tables(
        roots,
        np.array(split, np.int64),
        np.array(limit, dtype),
        np.array(next_, np.int64),
        np.array(end, np.int64),
        max(depth),
    )


def depths(trees: Iterable[Tree]) -> list[int]:
    """Steps from each root to the farthest leaf."""
    known: dict[int, int] = {}

    def depth(root: Tree) -> int:
        stack = [root]
        while stack:
            t = stack[-1]
            if id(t) in known:
                stack.pop()
                continue
            if isinstance(t, Leaf):
                known[id(t)] = 0
                continue
            waiting = [c for c in (t.yes, t.no) if id(c) not in known]
            if not waiting:
                known[id(t)] = 1 + max(known[id(t.yes)], known[id(t.no)])
            stack += waiting
        return known[id(root)]

    return [depth(t) for t in trees]
