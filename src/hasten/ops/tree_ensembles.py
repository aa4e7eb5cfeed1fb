"""Tree ensembles of the domain ai.onnx.ml: the older classifier and regressor, and TreeEnsemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph.classical import ML
from hasten.loops.descriptions import Forest
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, bounded, cast, const, constant_int
from hasten.ops.attributes import attribute_int, attribute_ints, attribute_str, attribute_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required
from hasten.ops.post_transform import as_f32, best_class, both_classes, labelled, post_transform
from hasten.ops.trees import Leaf, Tree, question, tables

TREES_PER_PART = 24
MOST_PARTS = 16
MOST_NODES = 1 << 24

Weights = Sequence[tuple[int, float]]
"""What a leaf says: numbers and the targets that they are for."""


@dataclass(frozen=True)
class Ensemble:
    """Trees and what their leaves say.

    Attributes:
        trees: one for each root.
        weights: of each leaf by its number.
        features: number of features that the trees know of.
        targets: number of results.
        dtype: of limits and weights.
        op: how trees are combined.
    """

    trees: Sequence[Tree]
    weights: Sequence[Weights]
    features: int
    targets: int
    dtype: DType
    op: str = "sum"


@dataclass(frozen=True)
class _Nodes:
    """Nodes by a key, in the order of the model.

    Attributes:
        mode, feature, limits, missing: what each asks, see `question`.
        yes, no: keys of what is below.
        leaf: number of the leaf that a node is, or -1.
        features: number of features.
    """

    mode: Sequence[str]
    feature: Sequence[int]
    limits: Sequence[Sequence[Any]]
    missing: Sequence[bool]
    yes: Sequence[int]
    no: Sequence[int]
    leaf: Sequence[int]
    features: int

    def tree(self, root: int, known: dict[int, Tree]) -> Tree:
        """The tree below a node; `known` has what was built."""
        stack, open_nodes = [root], set[int]()
        while stack:
            at = stack[-1]
            if at in known:
                stack.pop()
            elif self.leaf[at] >= 0:
                known[at] = Leaf(self.leaf[at])
            else:
                below = (self.yes[at], self.no[at])
                waiting = [k for k in below if k not in known]
                if not waiting:
                    known[at] = question(
                        self.mode[at],
                        self.feature[at],
                        self.features,
                        self.limits[at],
                        self.missing[at],
                        known[below[0]],
                        known[below[1]],
                    )
                elif at in open_nodes:
                    raise Declined("a tree has a cycle")
                open_nodes.add(at)
                stack += waiting
        return known[root]


def lower_classifier(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Label and scores. Two classes may be told apart by one score, that of the second one."""
    x = required(inputs, 0)
    labels = attribute_ints(node, "classlabels_int64s", [])
    if len(labels) < 2:
        raise Declined(f"{node.op_type} with {len(labels)} labels that are integers")
    kind = attribute_str(node, "post_transform", "NONE")
    ensemble = _by_ids(node, x, "class", len(labels))
    used = {target for weights in ensemble.weights for target, _ in weights}
    base = _base_values(node)
    single = len(labels) == 2 and used <= {0}
    if single:
        ensemble = _replaced(ensemble, targets=1)
    raw = _combined(ctx, x, ensemble, base)
    if not single:
        raw = as_f32(ctx, raw)
        chosen = best_class(ctx, raw)
        result = post_transform(ctx, raw, kind)
        return labelled(ctx, labels, chosen, result)
    if kind not in ("NONE", "LOGISTIC"):
        raise Declined(f"{node.op_type} of one score with the post transform {kind}")
    positive = all(w >= 0 for weights in ensemble.weights for _, w in weights)
    # Probabilities are compared with a half, what may be negative or becomes one with zero.
    half = const(0.5 if positive and kind == "NONE" else 0.0, raw.dtype)
    chosen = ctx.temporary(
        raw.shape[:1], lambda i: cast(binary("lt", half, raw.at(i, const(0))), INDEX), INDEX, "class"
    )

    result = both_classes(ctx, raw, kind, complement=positive)
    return labelled(ctx, labels, chosen, result)


def lower_regressor(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Sums, means, least or greatest of what the trees say, plus the base values."""
    x = required(inputs, 0)
    kind = attribute_str(node, "post_transform", "NONE")
    function = attribute_str(node, "aggregate_function", "SUM")
    ensemble = _by_ids(node, x, "target", attribute_int(node, "n_targets", 1))
    raw = _combined(ctx, x, _aggregated(ensemble, function), _base_values(node), function == "AVERAGE")
    result = post_transform(ctx, as_f32(ctx, raw), kind)
    return [ctx.define(result.shape, result.at, DType.F32)]


_MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_FUNCTIONS = ("AVERAGE", "SUM", "MIN", "MAX")


def lower_tree_ensemble(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The operator of version 5, in which leaves are numbered apart from nodes."""
    x = required(inputs, 0)
    try:
        ensemble = _by_leaves(node, x)
        kind = _TRANSFORMS[attribute_int(node, "post_transform", 0)]
        function = _FUNCTIONS[attribute_int(node, "aggregate_function", 1)]
    except (IndexError, ValueError, KeyError) as error:
        raise Declined(f"the attributes of {node.op_type} contradict each other: {error}") from error
    raw = _combined(ctx, x, _aggregated(ensemble, function), (), function == "AVERAGE")
    result = post_transform(ctx, raw, kind)
    return [ctx.define(result.shape, lambda i, k: cast(result.at(i, k), x.dtype), x.dtype)]


def _aggregated(ensemble: Ensemble, function: str) -> Ensemble:
    if function not in _FUNCTIONS:
        raise Declined(f"the aggregate function {function} is not known")
    return _replaced(ensemble, op={"MIN": "min", "MAX": "max"}.get(function, "sum"))


def _replaced(e: Ensemble, **changes: Any) -> Ensemble:
    return Ensemble(**{**e.__dict__, **changes})


def _base_values(node: ir.Node) -> Sequence[float]:
    values = attribute_values(node, "base_values")
    return [] if values is None else [float(v) for v in values]


def _lists(node: ir.Node, names: Sequence[str]) -> Mapping[str, list[int]]:
    return {n: attribute_ints(node, n, []) for n in names}


def _by_ids(node: ir.Node, x: Tensor, prefix: str, targets: int) -> Ensemble:
    """Reads the trees of the older operators, whose nodes and weights name each other by two numbers."""
    lists = _lists(
        node,
        ["nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids",
         f"{prefix}_treeids", f"{prefix}_nodeids", f"{prefix}_ids"],
    )  # fmt: skip
    trees, ids = lists["nodes_treeids"], lists["nodes_nodeids"]
    attribute = node.attributes.get("nodes_modes")
    modes = [] if attribute is None else list(attribute.as_strings())
    limits = attribute_values(node, "nodes_values")
    weights = attribute_values(node, f"{prefix}_weights")
    missing = attribute_ints(node, "nodes_missing_value_tracks_true", [0] * len(trees))
    if limits is None or weights is None or not trees:
        raise Declined(f"{node.op_type} without nodes or weights")
    counts = {len(trees), len(ids), len(modes), len(limits), len(missing),
              *(len(v) for n, v in lists.items() if n.startswith("nodes_"))}  # fmt: skip
    if len(counts) > 1:
        raise Declined(f"the lists of nodes of {node.op_type} have different lengths")
    place = {key: k for k, key in enumerate(zip(trees, ids, strict=True))}
    leaves: dict[int, list[tuple[int, float]]] = {k: [] for k, m in enumerate(modes) if m == "LEAF"}
    try:
        keys = zip(lists[f"{prefix}_treeids"], lists[f"{prefix}_nodeids"], strict=True)
        for key, target, weight in zip(keys, lists[f"{prefix}_ids"], weights, strict=True):
            leaves[place[key]].append((target, float(weight)))
        yes = [k if m == "LEAF" else place[trees[k], lists["nodes_truenodeids"][k]]
               for k, m in enumerate(modes)]  # fmt: skip
        no = [k if m == "LEAF" else place[trees[k], lists["nodes_falsenodeids"][k]]
              for k, m in enumerate(modes)]  # fmt: skip
    except (KeyError, ValueError) as error:
        raise Declined(f"a tree of {node.op_type} names what it does not have: {error}") from error
    number = {k: n for n, k in enumerate(leaves)}
    dtype = _dtype(x, limits, weights)
    nodes = _Nodes(
        modes,
        lists["nodes_featureids"],
        [[dtype.numpy.type(v)] for v in limits],
        [m != 0 for m in missing],
        yes,
        no,
        [number.get(k, -1) for k in range(len(modes))],
        _feature_count(lists["nodes_featureids"]),
    )
    roots = {tree: k for k, tree in reversed(list(enumerate(trees)))}
    return _ensemble(node, nodes, sorted(roots.values()), list(leaves.values()), targets, dtype)


def _by_leaves(node: ir.Node, x: Tensor) -> Ensemble:
    lists = _lists(
        node,
        ["nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs",
         "nodes_falseleafs", "leaf_targetids", "tree_roots"],
    )  # fmt: skip
    splits, modes = attribute_values(node, "nodes_splits"), attribute_values(node, "nodes_modes")
    weights = attribute_values(node, "leaf_weights")
    if splits is None or modes is None or weights is None:
        raise Declined(f"{node.op_type} without nodes or weights")
    count = len(splits)
    missing = attribute_ints(node, "nodes_missing_value_tracks_true", [0] * count)
    dtype = _dtype(x, splits, weights)
    members = _members(attribute_values(node, "membership_values"), dtype)
    names = [_MODES[int(m)] for m in modes]
    limits = [next(members) if m == "MEMBER" else [dtype.numpy.type(v)]
              for m, v in zip(names, splits, strict=True)]  # fmt: skip

    def below(side: str) -> list[int]:
        leaf = lists[f"nodes_{side}leafs"]
        return [count + i if is_leaf else i
                for i, is_leaf in zip(lists[f"nodes_{side}nodeids"], leaf, strict=True)]  # fmt: skip

    yes, no = below("true"), below("false")
    nodes = _Nodes(
        [f"BRANCH_{m}" for m in names],
        lists["nodes_featureids"],
        limits,
        [m != 0 for m in missing],
        yes,
        no,
        [*[-1] * count, *range(len(weights))],
        _feature_count(lists["nodes_featureids"]),
    )
    if not all(0 <= k < count + len(weights) for k in (*yes, *no)) or len(yes) != count:
        raise Declined(f"a tree of {node.op_type} names what it does not have")
    # A tree of one leaf is a node both of whose sides are that leaf.
    roots = [yes[r] if yes[r] == no[r] and yes[r] >= count else r for r in lists["tree_roots"]]
    leaves = [[(t, float(w))] for t, w in zip(lists["leaf_targetids"], weights, strict=True)]
    return _ensemble(node, nodes, roots, leaves, attribute_int(node, "n_targets", 1), dtype)


def _members(values: np.ndarray | None, dtype: DType) -> Any:
    """The sets of membership nodes, which NaN ends."""
    found: list[Any] = []
    for v in [] if values is None else values:
        if np.isnan(v):
            yield found
            found = []
        else:
            found.append(dtype.numpy.type(v))


def _feature_count(ids: Sequence[int]) -> int:
    if min(ids, default=0) < 0:
        raise Declined(f"a tree asks for the feature {min(ids)}")
    return max(ids, default=0) + 1


def _dtype(x: Tensor, *numbers: np.ndarray) -> DType:
    wide = x.dtype is DType.F64 or any(n.dtype == np.float64 for n in numbers)
    return DType.F64 if wide else DType.F32


def _ensemble(
    node: ir.Node,
    nodes: _Nodes,
    roots: Sequence[int],
    weights: Sequence[Weights],
    targets: int,
    dtype: DType,
) -> Ensemble:
    if any(not 0 <= t < targets for leaf in weights for t, _ in leaf):
        raise Declined(f"a leaf of {node.op_type} is for a target beyond {targets}")
    if len(nodes.leaf) > MOST_NODES:
        raise Declined(f"{len(nodes.leaf)} nodes in {node.op_type}; {MOST_NODES} are compiled at the most")
    known: dict[int, Tree] = {}
    try:
        trees = [nodes.tree(r, known) for r in roots]
    except ValueError as error:
        raise Declined(f"the mode {error} of a node of {node.op_type} is not known") from error
    if not trees:
        raise Declined(f"{node.op_type} without trees")
    return Ensemble(trees, weights, nodes.features, targets, dtype)


def _combined(ctx: Lowering, x: Tensor, e: Ensemble, base: Sequence[float], average: bool = False) -> Tensor:
    """What the trees say together, [row, target], with the base values."""
    if x.rank != 2:
        raise Declined(f"features of rank {x.rank}, not 2")
    if base and len(base) not in (1, e.targets):
        raise Declined(f"{len(base)} base values for {e.targets} targets")
    width = constant_int(x.shape[1])
    if width is not None and width < e.features:
        raise Declined(f"the trees ask for {e.features} features of {width}")
    own = _tree_targets(e) if e.targets > 1 else None
    if own is None:
        groups, columns = [list(e.trees)], e.targets
    else:
        groups = [
            [t for t, k in zip(e.trees, own, strict=True) if k == target] for target in range(e.targets)
        ]
        columns = 1
    count = _parts(max(len(g) for g in groups))
    parts = [g[q::count] for g in groups for q in range(count)]
    made = _forest(ctx, x, e, parts, columns)
    start = np.zeros(e.targets) + (np.array(base) if base else 0.0)
    offsets = ctx.constant(start.astype(e.dtype.numpy), "base")
    divisor = const(float(len(e.trees)) if average else 1.0, e.dtype)

    def body(i: Expr, k: Expr) -> Expr:
        terms = [made.at(q, i, k) if own is None else made.at(k * count + q, i, 0) for q in range(count)]
        total = terms[0]
        for term in terms[1:]:
            total = binary("add" if e.op == "sum" else e.op, total, term)
        if average:
            total = binary("div", total, divisor)
        return binary("add", total, offsets.at(k)) if base else total

    return ctx.temporary([x.shape[0], e.targets], body, e.dtype, "combined")


def _parts(trees: int) -> int:
    """Into how many parts trees are divided, so that threads can share the work on one row."""
    parts = 1
    while parts < MOST_PARTS and trees >= 2 * parts * TREES_PER_PART:
        parts *= 2
    return parts


def _tree_targets(e: Ensemble) -> list[int] | None:
    """For each tree the one target that its leaves are for, or None if one has several."""
    result: list[int] = []
    for tree in e.trees:
        found: set[int] = set()
        seen: set[int] = set()
        stack: list[Tree] = [tree]
        while stack:
            t = stack.pop()
            if id(t) in seen:
                continue
            seen.add(id(t))
            if isinstance(t, Leaf):
                found |= {target for target, weight in e.weights[t.number] if weight != 0 or e.op != "sum"}
            else:
                stack += [t.yes, t.no]
        if len(found) > 1:
            return None
        result.append(next(iter(found), 0))
    return result


def _forest(ctx: Lowering, x: Tensor, e: Ensemble, parts: Sequence[Sequence[Tree]], columns: int) -> Tensor:
    neutral = {"sum": 0.0, "min": np.inf, "max": -np.inf}[e.op]
    combine = {"sum": np.add, "min": np.minimum, "max": np.maximum}[e.op]
    values = np.full((len(e.weights) + 1, columns), neutral, e.dtype.numpy)
    for number, weights in enumerate(e.weights):
        for target, weight in weights:
            column = target if columns > 1 else 0
            values[number, column] = combine(values[number, column], e.dtype.numpy.type(weight))
    made = tables(parts, Leaf(len(e.weights)), e.dtype.numpy)
    constants = {
        name: ctx.constant(getattr(made, name), name) for name in ("root", "split", "limit", "below", "end")
    }
    value = ctx.constant(values, "values")
    tree = Var(INDEX, "t", const(made.root.shape[1]))
    node = Var(INDEX, "n", const(len(made.split)))
    leaf, feature = Var(INDEX, "leaf", const(len(values))), Var(INDEX, "f", const(e.features))

    def body(p: Var, i: Var, k: Var) -> Forest:
        return Forest(
            p, i, k, tree, node, leaf, feature,
            cast(x.at(i, bounded(feature, x.shape[1])), e.dtype),
            constants["root"].at(p, tree),
            constants["split"].at(node),
            constants["limit"].at(node),
            constants["below"].at(node),
            constants["end"].at(node),
            value.at(leaf, k),
            made.depth,
            e.op,
        )  # fmt: skip

    return ctx.temporary([len(parts), x.shape[0], columns], body, e.dtype, "parts", vars=("p", "i", "k"))


OPS: tuple[Op, ...] = (
    Op(name="TreeEnsembleClassifier", domain=ML, lower=lower_classifier),
    Op(name="TreeEnsembleRegressor", domain=ML, lower=lower_regressor),
    Op(name="TreeEnsemble", domain=ML, lower=lower_tree_ensemble),
)
