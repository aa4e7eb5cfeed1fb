"""Searches that remove units and layers, in made-up times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from benchmarks.hostile import CLASSES, WIDTH, network, samples
from onnx import TensorProto, helper, numpy_helper
from tests.search.searches import LAYERS, Search, record

import hasten
from hasten.backends.graph_members import whole_graph
from hasten.runtime.artifact import read_artifact
from hasten.search import certificates, pruning
from hasten.search.candidates import LOSSLESS, pruned
from hasten.search.record import Outcome
from hasten.search.transfer import mapped
from hasten.search.variants import Variant


def test_what_is_worth_nothing_is_removed_together_with_int8(
    search: Search, clockwork: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="pruning needs gradients")
    model = network(useless=True)
    found = search(model, prune=True)
    told = record(found)
    chosen = told.candidate(told.chosen)
    assert chosen.quantized == LAYERS
    assert chosen.flops < 0.75
    assert {(cut.before, cut.after) for cut in chosen.cuts} == {(WIDTH, WIDTH // 2)}
    assert told.stated <= 0.05
    shares = [point.share for point in told.prune_curve]
    assert shares == sorted(shares, reverse=True)
    assert [p.loss for p in told.prune_curve] == sorted(p.loss for p in told.prune_curve)
    x = {"x": np.concatenate([s["x"] for s in samples(200, seed=9)])}
    right = hasten.compile(model).run(x)["scores"].argmax(axis=1)
    assert (found.run(x)["scores"].argmax(axis=1) == right).mean() > 0.93
    found.save(tmp_path / "found.hasten")
    exported = whole_graph(read_artifact(tmp_path / "found.hasten"))
    sizes = {tuple(tensor.dims) for tensor in exported.graph.initializer if len(tensor.dims) == 2}
    assert (WIDTH // 2, WIDTH // 2) in sizes
    count = len(clockwork)
    again = record(search(model, prune=True))
    assert clockwork[count:] == []
    assert again.candidate(again.chosen) == chosen


def test_what_a_pruned_one_set_aside_comes_back_if_that_fails(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest of three promises more than the second, and is blind to an input that is held out alone."""
    monkeypatch.setattr(certificates, "_SMALLEST_SHARE", 0.03)  # as if more had passed than one

    def family(self: pruning.Pruning) -> None:
        trials, rng = self._trials, np.random.default_rng(3)
        for share, noise, blind in ((0.8, 1e-4, False), (0.6, 3e-3, False), (0.4, 1e-3, True)):
            model = network()
            for tensor in model.graph.initializer:
                weight = numpy_helper.to_array(tensor) + noise * rng.standard_normal(tensor.dims)
                weight[-1] *= not (blind and tensor.name == "w0")
                tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), tensor.name))
            name = f"without {1 - share:.0%}"
            graph = mapped(ir.from_proto(model), trials.problem.folder / f"{name}.onnx")
            trials.variants[name] = Variant(graph)
            candidate = pruned(trials.candidates[LOSSLESS], name, share)
            trials.add(candidate)
            trials.note(candidate.name, flops=share)

    monkeypatch.setattr(pruning.Pruning, "try_amounts", family)
    usual, data = samples(200, seed=5), samples(600)
    for sample in usual:
        sample["x"][:, -1] = 0.0
    options = {"data": data, "calibration": usual, "prune": True, "precision": "f32"}
    told = record(search(**options))
    slow, middle, fast = (told.candidate(f"{share}% of FLOPs") for share in (80, 60, 40))
    assert slow.loss < fast.loss < middle.loss < 1e-2
    assert all(c.drop < 0.05 for c in (slow, middle, fast))
    assert [c.outcome for c in (slow, middle, fast)] == [
        Outcome.CERTIFIED,
        Outcome.CHOSEN,
        Outcome.NOT_CERTIFIED,
    ]
    assert fast.bound.measured > 0.05
    assert [c.bound.share for c in (slow, fast, middle)] == pytest.approx([0.9, 0.9, 0.05])
    assert told.stated == 0.05
    count = len(clockwork)
    again = record(search(**options))
    assert clockwork[count:] == []
    assert again.candidate(again.chosen) == told.candidate(told.chosen)


def residual() -> onnx.ModelProto:
    """Four residual layers, of which the first and the third give next to nothing."""
    rng = np.random.default_rng(2)
    nodes, value, weights = [], "x", {"w": rng.standard_normal((WIDTH, CLASSES))}
    for k, size in enumerate((1e-4, 1.0, 1e-4, 1.0)):
        weights[f"a{k}"] = rng.standard_normal((WIDTH, 64)) / 6
        weights[f"b{k}"] = rng.standard_normal((64, WIDTH)) * size / 6
        nodes += [
            helper.make_node("MatMul", [value, f"a{k}"], [f"p{k}"], f"up{k}"),
            helper.make_node("Relu", [f"p{k}"], [f"q{k}"], f"relu{k}"),
            helper.make_node("MatMul", [f"q{k}", f"b{k}"], [f"r{k}"], f"down{k}"),
            helper.make_node("Add", [value, f"r{k}"], [f"y{k}"], f"add{k}"),
        ]
        value = f"y{k}"
    nodes.append(helper.make_node("MatMul", [value, "w"], ["scores"], "scores"))
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_whole_layers_that_give_nothing_go(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="pruning needs gradients")
    monkeypatch.setattr(pruning, "_MOST", 2)
    monkeypatch.setattr(pruning, "_MOST_BEHIND", 1)
    monkeypatch.setattr(pruning, "_MOST_LAYERS", 2)
    model = residual()
    found = search(model, prune=True, precision="f32")
    told = record(found)
    pruned = [c for c in told.candidates if c.cuts]
    gone = {c.name: [cut.after for cut in c.cuts if cut.unit == "layers"] for c in pruned}
    assert sorted(4 - sum(after) for after in gone.values()) == [0, 1, 2, 2]
    assert all((" without " in name) == (sum(after) < 4) for name, after in gone.items())
    chosen = told.candidate(told.chosen)
    assert gone[chosen.name] == [0, 1, 0, 1]
    removed = {layer.name for layer in told.layers if layer.precision == "removed"}
    assert removed == {"up0", "down0", "up2", "down2"}
    assert chosen.flops < 0.6
    assert told.stated <= 0.05
    assert {cut.after for cut in chosen.cuts if cut.name.startswith(("up0", "up2"))} == {0}
    x = {"x": np.concatenate([s["x"] for s in samples(200, seed=9)])}
    right = hasten.compile(model).run(x)["scores"].argmax(axis=1)
    assert (found.run(x)["scores"].argmax(axis=1) == right).mean() > 0.93


@pytest.mark.parametrize(
    ("good", "bad", "of", "following"),
    [
        ([0], [], 6, 2),
        ([0, 2], [], 6, 4),
        ([0, 2], [4], 6, 3),
        ([0, 2, 3], [4], 6, None),
        ([0], [2], 9, 1),
        ([0], [1], 9, None),
        ([0], [], 1, 1),
        ([0, 1], [], 1, None),
        ([0], [], 0, None),
    ],
)
def test_how_many_layers_are_left_out_next(
    good: list[int], bad: list[int], of: int, following: int | None
) -> None:
    assert pruning.next_count(good, bad, of) == following
