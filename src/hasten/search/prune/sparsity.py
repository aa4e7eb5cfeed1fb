"""Single weights instead of whole units: which weights of each product become zero.

Without data the smallest go. With data a weight is worth what it adds to its output, |w| * |x| (Sun et al.
2023, "A Simple and Effective Pruning Approach for Large Language Models"), or what the weights behind it
could not make up for; those are changed as each goes (`surgeon.py`). Products are taken in the order of the
graph, each with what arrives at it from those before, and towards what the original gave.

No kernel is faster for zeros that lie anywhere (decision 30), so the arithmetic counts as before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import OptionError
from hasten.passes.prune.remove import Kept, set_constant
from hasten.passes.prune.units import LeftAlone
from hasten.search.prune.cost import Feeds
from hasten.search.prune.products import Product, product_of
from hasten.search.prune.report import Cut

WEIGHTS = "weights"
CRITERIA = ("magnitude", "activation", "obs", "random")
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """Which weights are zero.

    Attributes:
        zeros: their share, above 0 and below 1.
        group: so many consecutive weights of an output have that share each, or None for any place in the
            matrix.
    """

    zeros: float
    group: int | None = None

    @staticmethod
    def of(given: float | str) -> Pattern:
        """The pattern that a user means: the share of zeros, or N:M for N of each M that stay.

        Raises:
            OptionError: it is neither.
        """
        said = f"sparsity={given!r}: give the share of zeros, such as 0.5, or N:M, such as 2:4 (2 of 4 stay)"
        if isinstance(given, str):
            stays, colon, group = given.partition(":")
            if not (colon and stays.isdecimal() and group.isdecimal() and 0 < int(stays) < int(group) <= 64):
                raise OptionError(said)
            return Pattern(1 - int(stays) / int(group), int(group))
        if not 0 < given < 1:
            raise OptionError(said)
        return Pattern(float(given))

    def lowest(self, worth: NDArray[np.floating], *, by_output: bool = False) -> Mask:
        """Which weights go.

        Args:
            worth: of each weight, [unknowns, outputs].
            by_output: whether each output loses the same share, where `group` is None.
        """
        gone = np.zeros(worth.shape, bool)
        if self.group is None:
            axis = 0 if by_output else None
            among = len(worth) if by_output else worth.size
            count = min(round(self.zeros * among), among - 1)
            np.put_along_axis(gone, worth.argpartition(count, axis).take(range(count), axis), True, axis)
            return gone
        whole = len(worth) // self.group * self.group
        grouped = worth[:whole].reshape(-1, self.group, worth.shape[1])
        first = grouped.argsort(1, kind="stable")[:, : round(self.zeros * self.group)]
        np.put_along_axis(gone[:whole].reshape(grouped.shape), first, True, 1)
        return gone


@dataclass(frozen=True)
class Sparsity:
    """How weights are made zero.

    Attributes:
        pattern: which share, and where.
        criterion: one of `CRITERIA`.
        repair: whether the weights that stay are changed to make up for the others.
        seed: of the criterion random.
    """

    pattern: Pattern
    criterion: str
    repair: bool
    seed: int = 0


@dataclass(frozen=True)
class Zeros:
    """What is zero in a graph.

    Attributes:
        cuts: of each product: how many weights it has, and how many are not zero.
        left_alone: products whose weights stay as they are, with reasons.
        notes: what else the user should know.
    """

    cuts: tuple[Cut, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    notes: tuple[str, ...] = ()


def sparsify(
    original: ir.Model,
    small: ir.Model,
    sparsity: Sparsity,
    samples: Sequence[Feeds] = (),
    *,
    kept: Kept | None = None,
    until: float = math.inf,
) -> Zeros:
    """Makes weights of products zero, in place.

    Args:
        original: the graph whose values products should still give.
        small: a copy of it, or what pruning left of it.
        sparsity: which weights, and whether others make up for them.
        samples: for all but "magnitude" and "random" without repair.
        kept: what has stayed of values that have lost something.
        until: a time by `time.monotonic` after which products stay as they are.

    Raises:
        OptionError: there is no product with constant weights.
    """
    places = [place for node in small.graph if (place := _place(node)) is not None]
    if not any(product is not None for _, _, product in places):
        raise OptionError("sparsity: the model has no products with constant weights that are used once")
    skipped: tuple[str, ...] = ()
    if sparsity.criterion in ("magnitude", "random") and not sparsity.repair:
        _by_weights(small.graph, sparsity)
    else:
        from hasten.search.prune.surgeon import operate  # needs PyTorch

        skipped = operate(original, small, sparsity, samples, kept or {}, until=until)
    return _described(small, skipped)


def rows_of(product: Product, count: int) -> NDArray[np.int64]:
    """The order of unknowns in which those of consecutive channels at one tap follow one another."""
    return np.arange(count).reshape(-1, product.taps).T.reshape(-1)


def worth_of(matrix: NDArray[np.floating], criterion: str, rng: np.random.Generator) -> NDArray[np.floating]:
    """What weights are worth without data."""
    return rng.random(matrix.shape) if criterion == "random" else np.abs(matrix)


def sparse_product(node: ir.Node) -> Product | None:
    """A product whose weights may become zeros: constant, and of this node alone."""
    place = _place(node)
    return None if place is None else place[2]


def _place(node: ir.Node) -> tuple[ir.Node, ir.Value, Product | None] | None:
    """A node with constant weights, and how it is a product, if it is and nobody else has those weights."""
    if node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain not in ("", "ai.onnx"):
        return None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None:
        return None
    alone = len(weight.uses()) == 1 and weight.dtype == ir.DataType.FLOAT
    product = product_of(node, tuple(weight.const_value.shape.numpy())) if alone else None
    return node, weight, product


def _by_weights(graph: ir.Graph, sparsity: Sparsity) -> None:
    rng = np.random.default_rng(sparsity.seed)
    for node in list(graph):
        product = sparse_product(node)
        weight = node.inputs[1] if product is not None else None
        if product is None or weight is None or weight.const_value is None:
            continue
        matrix = product.matrix(weight.const_value.numpy())
        order = rows_of(product, len(matrix))
        gone = sparsity.pattern.lowest(worth_of(matrix[order], sparsity.criterion, rng))
        changed = np.array(matrix)
        changed[order] = np.where(gone, 0, matrix[order])
        set_constant(graph, node, 1, product.weights(changed), weight.name or "weights")


def _described(model: ir.Model, skipped: Sequence[str]) -> Zeros:
    cuts, alone, whole, zeros = [], [], 0, 0
    for node in model.graph:
        place = _place(node)
        if place is None:
            continue
        _, weight, product = place
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        name = node.name or node.outputs[0].name or ""
        if product is None:
            why = "its weights are used several times" if len(weight.uses()) > 1 else (
                "a product of a form whose weights are not looked at singly"
            )  # fmt: skip
            alone.append(LeftAlone(name, WEIGHTS, array.size, (why,)))
            continue
        left = int(np.count_nonzero(array))
        cuts.append(Cut(name, WEIGHTS, array.size, left))
        whole, zeros = whole + array.size, zeros + array.size - left
    notes = [f"left as it is: {reason}" for reason in skipped]
    notes.append(
        f"{zeros / max(1, whole):.1%} of the weights of products are zero: that makes nothing faster, and "
        'artifacts smaller with storage="sparse"'
    )
    return Zeros(tuple(cuts), tuple(alone), tuple(notes))
