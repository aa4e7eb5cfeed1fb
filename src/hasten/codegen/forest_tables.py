"""Decision trees packed for the kernel that evaluates them: nodes in records, and leaves as bits.

In QuickScorer's form a tree is a list of questions. Its leaves have bits in order, the answer no clears those
on the yes side, and the first bit that is left is the leaf (Lucchese et al., QuickScorer: a fast algorithm to
rank documents with additive ensembles of regression trees, 2015). Without its search for where the answers
turn, all questions are asked in one order for many rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.loops.dtypes import DType

TOGETHER = 8
"""Walks that go on side by side, so that they wait for memory together."""

CLUSTER_BYTES = 64
"""A cache line: what a walk reads next should lie in the one it has just read."""

QUESTION = 3
"""Numbers of a question: offset of its feature, bits of its limit, bits that yes and no leave."""


@dataclass(frozen=True)
class Nodes:
    """What a forest's tables say.

    Attributes:
        root: [parts, trees].
        split, limit, below, end: of each node, see `loops.descriptions.Forest`.
        value: [leaves, targets].
    """

    root: np.ndarray
    split: np.ndarray
    limit: np.ndarray
    below: np.ndarray
    end: np.ndarray
    value: np.ndarray

    def is_leaf(self, node: int) -> bool:
        """Whether a node is one that is not left."""
        return bool(self.below[node] == node - 1 and np.isnan(self.limit[node]))


@dataclass(frozen=True)
class Sizes:
    """What walking down some trees takes.

    Attributes:
        steps: from each root to the farthest leaf.
        leaves: how many each has, shared ones as often as they are reached.
    """

    steps: np.ndarray
    leaves: np.ndarray


def measure(nodes: Nodes) -> Sizes:
    """Steps and leaves of each tree, [parts, trees]."""
    known: dict[int, tuple[int, int]] = {}

    def go(root: int) -> tuple[int, int]:
        stack = [root]
        while stack:
            at = stack[-1]
            if at in known:
                stack.pop()
            elif nodes.is_leaf(at):
                known[at] = (0, 1)
            else:
                first = int(nodes.below[at])
                waiting = [k for k in (first, first + 1) if k not in known]
                if not waiting:
                    (a, m), (b, n) = known[first], known[first + 1]
                    known[at] = (1 + max(a, b), m + n)
                stack += waiting
        return known[root]

    both = np.array([go(int(r)) for r in nodes.root.reshape(-1)], np.float64)
    shape = nodes.root.shape
    return Sizes(both[:, 0].astype(np.int64).reshape(shape), both[:, 1].reshape(shape))


@dataclass(frozen=True)
class Record:
    """How a node is written in two words: its limit, and where it goes on.

    The limit of a leaf is NaN, with its number as the payload. The other word has the feature in its upper
    bits, and in its lower ones how far away the first node below is.

    Attributes:
        word: type of the words; limits are floats of the same width.
        distance: bits of the distance.
        payload: bits of the number of a leaf.
    """

    word: DType
    distance: int
    payload: int

    @property
    def limit(self) -> DType:
        """Element type of the limit."""
        return DType.F64 if self.word is DType.I64 else DType.F32


NARROW = Record(DType.I32, 20, 22)
WIDE = Record(DType.I64, 40, 50)


@dataclass(frozen=True)
class Walk:
    """Trees to be walked down.

    Attributes:
        record: how nodes are written.
        nodes: [nodes, 2].
        roots: [parts, trees], the deepest first, in groups of `TOGETHER`.
        steps: of each of them.
        values: [leaves, targets].
    """

    record: Record
    nodes: np.ndarray
    roots: np.ndarray
    steps: np.ndarray
    values: np.ndarray


def pack_walk(nodes: Nodes, sizes: Sizes, dtype: DType) -> Walk:
    """The records of nodes, those that follow each other in one cache line where that can be.

    Args:
        nodes: the forest.
        sizes: of its trees.
        dtype: of features and limits.
    """
    order = np.argsort(-sizes.steps, axis=1, kind="stable")
    missing = (0, -nodes.root.shape[1] % TOGETHER)
    roots = np.pad(np.take_along_axis(nodes.root, order, 1), ((0, 0), missing))  # node 0 says nothing
    steps = np.pad(np.take_along_axis(sizes.steps, order, 1), ((0, 0), missing))
    narrow = _written(nodes, roots, NARROW) if dtype is DType.F32 else None
    written = narrow or _written(nodes, roots, WIDE)
    assert written is not None, "a forest of 2^39 nodes"
    record, records, places = written
    return Walk(record, records, places.astype(np.int32), steps.astype(np.int32), nodes.value)


def _written(nodes: Nodes, roots: np.ndarray, record: Record) -> tuple[Record, np.ndarray, np.ndarray] | None:
    """The records and the places of roots; None where some number has too many bits."""
    pairs = CLUSTER_BYTES // (4 * record.word.bytes)
    sources, pair_place, root_place = _clustered(nodes, roots, pairs)
    word = record.word.numpy
    leaf = np.isnan(nodes.limit[sources]) & (nodes.below[sources] == sources - 1)
    place = np.arange(len(sources))
    distance = np.where(leaf, -1, [pair_place.get(int(b), 0) for b in nodes.below[sources]] - place)
    split = nodes.split[sources]
    end = nodes.end[sources]
    room = 8 * record.word.bytes - 1 - record.distance
    if abs(distance).max() >> (record.distance - 1) or split.max() >> room or end.max() >> record.payload:
        return None
    limit = nodes.limit[sources].astype(record.limit.numpy)
    bits = np.where(leaf, np.array(np.nan, limit.dtype).view(word) | end, limit.view(word))
    second = (split << record.distance) | (distance & ((1 << record.distance) - 1))
    records = np.stack([bits.astype(word), second.astype(word)], axis=1)
    return record, records, np.vectorize(root_place.__getitem__, otypes=[np.int64])(roots)


def _clustered(
    nodes: Nodes, roots: np.ndarray, pairs: int
) -> tuple[np.ndarray, dict[int, int], dict[int, int]]:
    """Places for nodes: pairs of answers, each with those below it in a group of so many pairs.

    Returns:
        The node at each place; the place of each pair, by its first node; and that of each root.
    """
    sources: list[int] = []
    pair_place: dict[int, int] = {}
    root_place: dict[int, int] = {}
    for root in dict.fromkeys(int(r) for r in roots.reshape(-1)):
        root_place[root] = len(sources) + 1
        sources += [0, root]  # a leaf needs a place in front of it
        starts = [int(nodes.below[root])] if not nodes.is_leaf(root) else []
        while starts:
            group = [starts.pop()]
            taken = 0
            while group and taken < pairs:
                first = group.pop(0)
                if first in pair_place:
                    continue
                if taken == 0:
                    sources += [0] * (-len(sources) % (2 * pairs))
                pair_place[first] = len(sources)
                sources += [first, first + 1]
                taken += 1
                group += [int(nodes.below[k]) for k in (first, first + 1) if not nodes.is_leaf(k)]
            starts += group[::-1]
    return np.array(sources), pair_place, root_place


@dataclass(frozen=True)
class Bits:
    """Trees as questions.

    Attributes:
        questions: [questions, QUESTION].
        parts: [parts + 1], the first tree of each part.
        trees: [trees + 1], the first word of each tree; its words from the last to the first.
        words: [words + 1], the first question of each word.
        leaves: [words], the number of the leaf of a word's lowest bit.
        values: [leaves, targets].
    """

    questions: np.ndarray
    parts: np.ndarray
    trees: np.ndarray
    words: np.ndarray
    leaves: np.ndarray
    values: np.ndarray


def pack_bits(nodes: Nodes, rows: int, dtype: DType) -> Bits:
    """The questions of trees in words of as many bits as a limit has.

    Args:
        nodes: the forest.
        rows: number of rows whose features lie together.
        dtype: of features and limits.
    """
    word = _word(dtype)
    width = 8 * word.itemsize
    questions: list[tuple[int, int, int]] = []
    parts, trees, words = [0], [0], [0]
    leaves: list[int] = []
    values: list[int] = []
    limits = nodes.limit.view(word)
    for roots in nodes.root:
        for root in roots:
            if nodes.is_leaf(root) and nodes.end[root] == nodes.end[0]:
                continue
            ends, asked = _flattened(nodes, int(root))
            first = len(values)
            values += ends
            for low in reversed(range(0, len(ends), width)):
                for at, begin, end in asked:
                    inside = range(max(begin, low) - low, min(end, low + width) - low)
                    if inside:
                        kept = ~sum(1 << b for b in inside) & ((1 << width) - 1)
                        signed = kept - (1 << width) if kept >> (width - 1) else kept
                        questions.append((int(nodes.split[at]) * rows, int(limits[at]), signed))
                words.append(len(questions))
                leaves.append(first + low)
            trees.append(len(words) - 1)
        parts.append(len(trees) - 1)
    return Bits(
        np.array(questions, word).reshape(-1, QUESTION),
        np.array(parts, word),
        np.array(trees, word),
        np.array(words, word),
        np.array(leaves, word),
        nodes.value[values].reshape(len(values), -1),
    )


def _flattened(nodes: Nodes, root: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The leaves of a tree in order, and each node with the range of leaves on its yes side."""
    ends: list[int] = []
    asked: list[tuple[int, int, int]] = []
    # A node stands on the stack again, as its own complement, behind its yes side.
    stack, begins = [root], list[int]()
    while stack:
        at = stack.pop()
        if at < 0:
            asked.append((~at, begins.pop(), len(ends)))
        elif nodes.is_leaf(at):
            ends.append(int(nodes.end[at]))
        else:
            below = int(nodes.below[at])
            begins.append(len(ends))
            stack += [below + 1, ~at, below]
    return ends, asked


def _word(dtype: DType) -> np.dtype[np.signedinteger]:
    return np.dtype(np.int64 if dtype is DType.F64 else np.int32)
