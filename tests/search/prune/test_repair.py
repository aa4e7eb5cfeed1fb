"""Repair where channels go through residual additions, so that products lose inputs and outputs at once."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build

from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.layers import find_layers, remove_layers
from hasten.passes.prune.remove import kept_indices, remove_units
from hasten.passes.prune.units import find_units
from hasten.search.prune import repair
from hasten.search.prune.plan import Plan
from hasten.search.prune.run import prune_model
from hasten.search.prune.sparsity import Pattern
from hasten.search.samples import Samples

CHANNELS, SIDE = 32, 8


def convolutions() -> ir.Model:
    """A stem, a residual block, a depthwise convolution and a linear layer."""
    rng = np.random.default_rng(1)

    def filters(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def biases(count: int) -> np.ndarray:
        return rng.standard_normal(count).astype(np.float32) / 4

    c = CHANNELS
    weights = {
        "a": filters(c, 3, 3, 3), "b": biases(c), "d": filters(2 * c, c, 1, 1), "e": biases(2 * c),
        "f": filters(c, 2 * c, 3, 3), "g": biases(c), "h": filters(c, 1, 3, 3), "i": biases(c),
        "j": filters(4, c, 1, 1), "k": biases(4),
    }  # fmt: skip
    body = (
        "p = Conv<pads=[1,1,1,1]>(x, a, b) q = Relu(p) r = Conv(q, d, e) s = Relu(r) "
        "t = Conv<pads=[1,1,1,1]>(s, f, g) u = Add(q, t) "
        f"v = Conv<pads=[1,1,1,1], group={c}>(u, h, i) w = Relu(v) y = Conv(w, j, k)"
    )
    sizes = f"{SIDE}, {SIDE}"
    model = ir.from_proto(build(f"(float[n, 3, {sizes}] x) => (float[n, 4, {sizes}] y)", body, weights))
    optimize_graph(model)
    return model


def samples(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(tuple({"x": rng.standard_normal((1, 3, SIDE, SIDE), np.float32)} for _ in range(count)))


def test_each_repair_is_better_than_the_one_before() -> None:
    model, data, held = convolutions(), samples(80, 0), samples(40, 1)
    x = np.concatenate([feeds["x"] for feeds in held.feeds])

    def run(graph: ir.Model) -> np.ndarray:
        return np.asarray(ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})[0])

    right = run(model)
    plan = Plan(("channels",), "fisher", 0.6, "none")
    errors, means = [], []
    for how in ("none", "statistics", "least-squares"):
        small = prune_model(model, dataclasses.replace(plan, repair=how), data)
        found = run(small.model)
        errors.append(float(np.square(found - right).mean()))
        means.append(np.abs(found.mean((0, 2, 3)) - right.mean((0, 2, 3))).max())
    assert errors[2] < 0.7 * errors[1] < 0.7 * errors[0]
    assert means[1] < 0.5 * means[0]


def test_products_in_groups_are_repaired_too() -> None:
    small = prune_model(convolutions(), Plan(("channels",), "fisher", 0.6, "least-squares"), samples(80, 0))
    assert not small.report.notes


def test_samples_join_where_values_are_small_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for few of the samples at the first values, all of them are there at the last."""
    model, data = convolutions(), samples(96, 0)
    analysis = find_units(model)
    removed = {analysis.groups[0]: list(range(0, CHANNELS, 2))}
    small = remove_units(model, analysis, removed)
    one = 16 * CHANNELS * SIDE * SIDE * 4  # bytes of a value of a batch
    monkeypatch.setattr(repair, "_BYTES", 12 * one)
    seen: list[int] = []

    def solve(site: repair.Site) -> str:
        seen.append(len(site.new))
        return repair.least_squares(site)

    kept = {place.value: axes for place, axes in kept_indices(removed).items() if not place.is_constant}
    repair.reconstruct(model, small, kept, data.feeds, solve=solve)
    assert seen == sorted(seen)
    assert 1 <= seen[0] < seen[-1] == 6, seen


def classifier(kind: str, shape: tuple[int, ...]) -> ir.Model:
    """A perceptron to whose results 3 is added, as a constant of a shape; or, by a Gemm, what x gives."""
    rng = np.random.default_rng(7)
    weights = {
        "a": rng.standard_normal((8, 64)) / 3, "b": rng.standard_normal((64, 2)) / 8,
        "c": np.full(shape, 3.0), "e": rng.standard_normal((8, 2)) * 4,
    }  # fmt: skip
    last = {
        "MatMul": "s = MatMul(h, b) y = Add(s, c)",
        "Gemm": "y = Gemm(h, b, c)",
        "variable": "z = MatMul(x, e) y = Gemm(h, b, z)",
    }[kind]
    rows = 4 if shape[:1] == (4,) else "n"
    body = f"p = MatMul(x, a) h = Relu(p) {last}"
    arrays = {name: w.astype(np.float32) for name, w in weights.items() if re.search(rf"\b{name}\b", body)}
    model = ir.from_proto(build(f"(float[{rows}, 8] x) => (float[{rows}, 2] y)", body, arrays))
    optimize_graph(model)
    return model


ADDED = [
    *(("MatMul", shape) for shape in ((2,), (1, 2), (1,), (), (4, 1), (4, 2))),
    *(("Gemm", shape) for shape in ((2,), (1, 2), (1,), (), (4, 1), (4, 2))),
    ("variable", ()),
]


@pytest.mark.parametrize("how", ["statistics", "least-squares", "2:4"])
@pytest.mark.parametrize(("kind", "shape"), ADDED)
def test_whatever_is_added_to_a_product_is_counted_once(kind: str, shape: tuple[int, ...], how: str) -> None:
    rng = np.random.default_rng(8)
    mixed = rng.standard_normal((8, 8))
    x = (rng.standard_normal((400, 4, 8)) @ mixed).astype(np.float32)
    data, model = Samples(tuple({"x": each} for each in x[:300])), classifier(kind, shape)

    def error(plan: Plan) -> float:
        small = prune_model(model, plan, data).model
        run, right = (ReferenceEvaluator(ir.to_proto(graph)) for graph in (small, model))
        found = [run.run(None, {"x": each})[0] - right.run(None, {"x": each})[0] for each in x[300:]]
        return float(np.square(found).mean())

    pattern = Pattern.of(how) if how == "2:4" else None
    plan = Plan(("neurons",), "magnitude", None if pattern else 0.5, "none", sparsity=pattern)
    repaired = dataclasses.replace(plan, repair="least-squares" if pattern else how)
    alone = how == "statistics" and (kind == "variable" or shape[:1] == (4,))  # and said
    assert error(repaired) < (1.01 if alone else 0.7) * error(plan)


def test_nodes_that_the_original_has_not_are_run_too() -> None:
    """Where a shape is computed, pruning adds a node that says the new one."""
    rng = np.random.default_rng(9)
    arrays = {"a": rng.standard_normal((4, 64)), "c": np.zeros(64), "b": rng.standard_normal((64, 2)) / 8}
    body = (
        "s = Shape(x) t = Slice(s, none, two) r = Reshape(x, rows) p = Gemm(r, a, c) "
        "u = Concat<axis = 0>(t, width) q = Reshape(p, u) h = Relu(q) y = MatMul(h, b)"
    )
    numbers = {"none": [0], "two": [2], "rows": [-1, 4], "width": [64]}
    weights = {name: w.astype(np.float32) for name, w in arrays.items()}
    weights |= {name: np.array(n, np.int64) for name, n in numbers.items()}
    model = ir.from_proto(build("(float[n, m, 4] x) => (float[n, m, 2] y)", body, weights))
    optimize_graph(model)
    data = Samples(tuple({"x": rng.standard_normal((1, 5, 4), np.float32)} for _ in range(40)))
    small = prune_model(model, Plan(("neurons",), "magnitude", 0.5, "least-squares"), data)
    run, right = (ReferenceEvaluator(ir.to_proto(graph)) for graph in (small.model, model))
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    found, wanted = run.run(None, {"x": x})[0], right.run(None, {"x": x})[0]
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < np.abs(wanted).max()


def test_an_output_that_is_constant_keeps_its_scale() -> None:
    """The square of its mean can be more than the mean of its squares, by rounding."""
    spread = repair._Spread()
    spread.add(torch.from_numpy(np.random.default_rng(3).random((1, 200), np.float32)).repeat(301, 1))
    assert float(spread.variance.min()) >= 0


def stream(width: int, count: int, norm: bool) -> ir.Model:
    """Residual layers, each a product, a rectifier and a product with its bias."""
    rng = np.random.default_rng(10)
    weights: dict[str, np.ndarray] = {"g": np.ones(width), "z": np.zeros(width)} if norm else {}
    body, source = [], "x"
    for k in range(count):
        end = "y" if k == count - 1 else f"x{k}"
        weights |= {
            f"a{k}": rng.standard_normal((width, 8 * width)) / 3,
            f"b{k}": rng.standard_normal((8 * width, width)) / 8,
            f"c{k}": rng.standard_normal(width),
        }
        body.append(f"p{k} = MatMul({source}, a{k}) h{k} = Relu(p{k}) q{k} = MatMul(h{k}, b{k})")
        sum_ = f"s{k}" if norm else end
        body.append(f"r{k} = Add(q{k}, c{k}) {sum_} = Add({source}, r{k})")
        body += [f"{end} = LayerNormalization({sum_}, g, z)"] if norm else []
        source = end
    arrays = {name: w.astype(np.float32) for name, w in weights.items()}
    signature = f"(float[n, {width}] x) => (float[n, {width}] y)"
    model = ir.from_proto(build(signature, " ".join(body), arrays))
    optimize_graph(model)
    return model


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gone", [(1,), (0, 1)])
def test_what_a_layer_added_to_the_shortcut_is_made_up_for(gone: tuple[int, ...], norm: bool) -> None:
    """The product at the end of the next layer adds what the layers that went had added past it."""
    model = stream(8, 3, norm)
    x = np.random.default_rng(11).standard_normal((900, 8)).astype(np.float32)
    right = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x[600:]})[0]
    layers = find_layers(model)
    assert len(layers) == 3
    small = remove_layers(model, [layers[k] for k in gone])

    def error() -> float:
        found = ReferenceEvaluator(ir.to_proto(small)).run(None, {"x": x[600:]})[0]
        return float(np.square(found - right).mean() / np.square(right).mean())

    before = error()
    repair.reconstruct(model, small, {}, [{"x": row[None]} for row in x[:600]])
    assert error() < 0.1 * before
