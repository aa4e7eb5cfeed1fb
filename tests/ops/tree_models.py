"""Models of one tree ensemble with random trees, of the older operators and of TreeEnsemble."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

MODES = ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]
GRID = [-np.inf, -2.0, -1.0, -0.0, 0.5, 1.0, 3.0, np.inf]
"""Few limits, which features meet exactly."""


@dataclass
class Nodes:
    """Nodes in the order of a model; a leaf has the mode LEAF."""

    tree: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    yes: list[int] = field(default_factory=list)
    no: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    def grow(self, rng: np.random.Generator, tree: int, leaves: int, features: int, modes: list[str]) -> None:
        """A tree of so many leaves, by splitting leaves at random."""
        first = len(self.tree)
        self._leaf(tree, 0)
        for _ in range(leaves - 1):
            ends = [k for k in range(first, len(self.tree)) if self.mode[k] == "LEAF"]
            at = int(rng.choice(ends[-4:]))  # deep ones
            self.mode[at] = str(rng.choice(modes))
            self.feature[at] = int(rng.integers(features))
            self.limit[at] = float(rng.choice(GRID))
            self.missing[at] = int(rng.integers(2))
            self.yes[at], self.no[at] = len(self.tree) - first, len(self.tree) - first + 1
            self._leaf(tree, self.yes[at])
            self._leaf(tree, self.no[at])

    def _leaf(self, tree: int, node: int) -> None:
        self.tree.append(tree)
        self.node.append(node)
        self.mode.append("LEAF")
        self.limit.append(0.0)
        for column in (self.feature, self.yes, self.no, self.missing):
            column.append(0)

    def leaves(self) -> list[int]:
        return [k for k, m in enumerate(self.mode) if m == "LEAF"]


@dataclass(frozen=True)
class Setting:
    """A model, features for it, and what it is."""

    model: onnx.ModelProto
    x: np.ndarray
    text: str


def setting(seed: int) -> Setting:
    """A random ensemble: number and size of trees, modes, targets, post transform, base values."""
    rng = np.random.default_rng(seed)
    kind = ["TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble"][seed % 3]
    features, trees = int(rng.integers(1, 6)), int(rng.choice([1, 3, 9, 50]))
    modes = MODES if seed % 2 else [str(rng.choice(MODES[:4]))]
    nodes = Nodes()
    for tree in range(trees):
        nodes.grow(rng, tree, int(rng.choice([1, 2, 7, 40, 90])), features, modes)
    dtype = np.float64 if kind == "TreeEnsemble" and rng.random() < 0.4 else np.float32
    x = rng.choice([*GRID, np.nan, -1.5, 0.7], (41, features)).astype(dtype)
    build = _newer if kind == "TreeEnsemble" else _older
    name, attributes, outputs = build(rng, kind, nodes, dtype)
    node = helper.make_node(name, ["x"], [o.name for o in outputs], domain="ai.onnx.ml", **attributes)
    entry = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), ["n", features])
    graph = helper.make_graph([node], "g", [entry], outputs)
    version = 5 if kind == "TreeEnsemble" else 3
    opsets = [helper.make_opsetid("ai.onnx.ml", version), helper.make_opsetid("", 21)]
    text = f"{seed} {kind} {trees} trees {modes} {attributes.get('post_transform')} {dtype.__name__}"
    return Setting(helper.make_model(graph, opset_imports=opsets, ir_version=10), x, text)


def _older(
    rng: np.random.Generator, kind: str, nodes: Nodes, dtype: type
) -> tuple[str, dict[str, Any], list[onnx.ValueInfoProto]]:
    targets = int(rng.choice([1, 3])) if kind == "TreeEnsembleRegressor" else int(rng.choice([2, 4]))
    single = targets == 2
    # ONNX Runtime leaves one score alone, whatever the transform.
    transforms = (
        ["NONE"]
        if targets == 1
        else ["NONE", "LOGISTIC"]
        if single
        else ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]
    )
    attributes = {
        "nodes_treeids": nodes.tree,
        "nodes_nodeids": nodes.node,
        "nodes_featureids": nodes.feature,
        "nodes_modes": [m if m == "LEAF" else f"BRANCH_{m}" for m in nodes.mode],
        "nodes_values": nodes.limit,
        "nodes_truenodeids": nodes.yes,
        "nodes_falsenodeids": nodes.no,
        "nodes_missing_value_tracks_true": nodes.missing,
        "post_transform": str(rng.choice(transforms)),
    }
    # A leaf is for all targets, or a tree for one; ONNX Runtime never chooses a class that has no tree.
    dense = not single and (rng.random() < 0.5 or nodes.tree[-1] < targets)
    pairs = [
        (k, t)
        for k in nodes.leaves()
        for t in (range(targets) if dense else [0 if single else nodes.tree[k] % targets])
    ]
    prefix = "target" if kind == "TreeEnsembleRegressor" else "class"
    attributes |= {
        f"{prefix}_treeids": [nodes.tree[k] for k, _ in pairs],
        f"{prefix}_nodeids": [nodes.node[k] for k, _ in pairs],
        f"{prefix}_ids": [t for _, t in pairs],
        f"{prefix}_weights": [float(v) for v in rng.normal(0, 0.2, len(pairs)).astype(np.float32)],
    }
    if rng.random() < 0.5:
        attributes["base_values"] = [float(v) for v in rng.normal(0, 0.2, 1 if single else targets)]
    scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", targets])
    if prefix == "target":
        function = str(rng.choice(["SUM", "AVERAGE"] if not dense else ["SUM", "AVERAGE", "MIN", "MAX"]))
        return kind, attributes | {"n_targets": targets, "aggregate_function": function}, [scores]
    label = helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"])
    labels = [int(v) for v in rng.permutation(10)[:targets]]
    return kind, attributes | {"classlabels_int64s": labels}, [label, scores]


def _newer(
    rng: np.random.Generator, kind: str, nodes: Nodes, dtype: type
) -> tuple[str, dict[str, Any], list[onnx.ValueInfoProto]]:
    inner = {k: n for n, k in enumerate(k for k, m in enumerate(nodes.mode) if m != "LEAF")}
    leaf = {k: n for n, k in enumerate(nodes.leaves())}
    first = {tree: k for k, tree in reversed(list(enumerate(nodes.tree)))}
    modes: list[int] = []
    lists: dict[str, list[int]] = {
        n: [] for n in ("feature", "true", "trueleaf", "false", "falseleaf", "miss")
    }
    limits, members, roots = [], [], []

    def add(feature: int, mode: int, limit: float, missing: int, sides: list[tuple[int, int]]) -> None:
        modes.append(mode)
        limits.append(limit)
        lists["feature"].append(feature)
        lists["miss"].append(missing)
        for name, (target, is_leaf) in zip(("true", "false"), sides, strict=True):
            lists[name].append(target)
            lists[f"{name}leaf"].append(is_leaf)

    for k in inner:
        at = first[nodes.tree[k]]
        below = [nodes.yes[k] + at, nodes.no[k] + at]
        member = nodes.mode[k] == "EQ" and rng.random() < 0.5
        if member:
            members += [1.0, 3.0, np.nan]  # ONNX Runtime has sets of integers alone
        mode = 6 if member else MODES.index(nodes.mode[k])
        sides = [(leaf[b], 1) if b in leaf else (inner[b], 0) for b in below]
        add(nodes.feature[k], mode, nodes.limit[k], nodes.missing[k], sides)
    for root in first.values():
        if root in inner:
            roots.append(inner[root])
        else:
            roots.append(len(modes))
            add(0, 0, 0.0, 0, [(leaf[root], 1), (leaf[root], 1)])
    tensor = onnx.numpy_helper.from_array
    attributes = {
        "nodes_splits": tensor(np.array(limits, dtype)),
        "nodes_featureids": lists["feature"],
        "nodes_modes": tensor(np.array(modes, np.uint8)),
        "nodes_missing_value_tracks_true": lists["miss"],
        "nodes_truenodeids": lists["true"],
        "nodes_trueleafs": lists["trueleaf"],
        "nodes_falsenodeids": lists["false"],
        "nodes_falseleafs": lists["falseleaf"],
        "leaf_targetids": [nodes.tree[k] % 3 for k in leaf],
        "leaf_weights": tensor(rng.normal(0, 1, len(leaf)).astype(dtype)),
        "tree_roots": roots,
        "n_targets": 3,
        "aggregate_function": 1,
        "post_transform": 0,
    }
    if members:
        attributes["membership_values"] = tensor(np.array(members, dtype))
    kind_of = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return kind, attributes, [helper.make_tensor_value_info("scores", kind_of, ["n", 3])]
