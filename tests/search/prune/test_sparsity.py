"""Single weights: the pattern holds, what stays makes up for what went, and training leaves zeros alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.conftest import build

from hasten.errors import OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.search.prune.plan import Plan, check_plan
from hasten.search.prune.run import prune_model
from hasten.search.prune.sparsity import Pattern
from hasten.search.prune.surgeon import removed
from hasten.search.prune.training import Training
from hasten.search.samples import Samples

SIDE = 6


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([2, 3, 4, 8]), st.data())
def test_a_pattern_takes_the_lowest(rows: int, columns: int, group: int, data: st.DataObject) -> None:
    worth = np.random.default_rng(rows).permutation(rows * columns).reshape(rows, columns) * 1.0
    stays = data.draw(st.integers(1, group - 1))
    gone = Pattern.of(f"{stays}:{group}").lowest(worth)
    whole = rows // group * group
    assert not gone[whole:].any()
    blocks, values = (a[:whole].reshape(-1, group, columns) for a in (gone, worth))
    assert (blocks.sum(1) == group - stays).all()
    assert (np.where(blocks, values, -1).max(1) < np.where(blocks, np.inf, values).min(1)).all()
    share = data.draw(st.floats(0.05, 0.95))
    anywhere, each = (Pattern.of(share).lowest(worth, by_output=b) for b in (False, True))
    assert anywhere.sum() == min(round(share * worth.size), worth.size - 1)
    assert (each.sum(0) == min(round(share * rows), rows - 1)).all()
    if anywhere.any():
        assert worth[anywhere].max() < worth[~anywhere].min()


def test_one_weight_that_goes_is_made_up_for_by_later_ones() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((200, 300)) @ rng.standard_normal((300, 140)) / 17
    weights = rng.standard_normal((140, 1))
    gone = np.zeros(weights.shape, bool)
    gone[50] = True
    system = torch.from_numpy(x.T @ x)
    found, _ = removed(torch.from_numpy(weights), system, Pattern(0.5), gone)
    change = np.linalg.lstsq(x[:, 51:], x[:, 50] * weights[50, 0], rcond=None)[0]
    np.testing.assert_allclose(found[51:, 0], weights[51:, 0] + change, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(found[:51, 0], np.append(weights[:50, 0], 0))


@pytest.fixture
def convolutions() -> ir.Model:
    """A convolution, a matrix that is read transposed, and one that is used twice."""
    rng = np.random.default_rng(4)

    def made(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {"a": made(16, 8, 3, 3), "b": made(16), "c": made(32, 16), "d": made(32), "e": made(32, 32)}
    body = (
        "p = Conv<pads=[1,1,1,1]>(x, a, b) q = Relu(p) r = GlobalAveragePool(q) s = Flatten(r) "
        "t = Gemm<transB=1>(s, c, d) u = Relu(t) v = MatMul(u, e) y = MatMul(v, e)"
    )
    model = ir.from_proto(build(f"(float[n, 8, {SIDE}, {SIDE}] x) => (float[n, 32] y)", body, weights))
    optimize_graph(model)
    return model


def correlated(count: int, seed: int) -> Samples:
    mix = np.random.default_rng(9).standard_normal((3, 8)).astype(np.float32)
    rng = np.random.default_rng(seed)
    pictures = np.einsum("ncij,cd->ndij", rng.standard_normal((count, 3, SIDE, SIDE), np.float32), mix)
    pictures += 0.1 * rng.standard_normal(pictures.shape, np.float32)
    return Samples(tuple({"x": picture[None]} for picture in pictures))


def run(model: ir.Model, data: Samples) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, {"x": np.concatenate([f["x"] for f in data.feeds])})[0])


def weight(model: ir.Model, operator: str, position: int = 1) -> np.ndarray:
    node = next(node for node in model.graph if node.op_type == operator)
    value = node.inputs[position]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def bias(model: ir.Model, operator: str) -> np.ndarray:
    return weight(model, operator, 2)


def test_what_stays_makes_up_for_what_went(convolutions: ir.Model) -> None:
    """On other pictures a criterion is nearer to the original than chance, and repair is nearer still."""
    data, held = correlated(60, 0), correlated(40, 1)
    right = run(convolutions, held)
    errors = []
    for criterion, repair in (
        ("random", "none"),
        ("magnitude", "none"),
        ("activation", "least-squares"),
        ("obs", "least-squares"),
    ):
        plan = Plan(("neurons",), criterion, None, repair, sparsity=Pattern.of("2:4"))
        small = prune_model(convolutions, plan, data)
        filters, matrix = weight(small.model, "Conv"), weight(small.model, "Gemm")
        assert (np.count_nonzero(filters.reshape(16, 2, 4, 9), axis=2) == 2).all()
        assert (np.count_nonzero(matrix.reshape(32, 4, 4), axis=2) == 2).all()
        np.testing.assert_array_equal(weight(small.model, "MatMul"), weight(convolutions, "MatMul"))
        assert [(c.before, c.after) for c in small.report.cuts] == [(1152, 576), (512, 256)]
        assert {a.reasons[0] for a in small.report.left_alone} == {"its weights are used several times"}
        assert any("makes nothing faster" in note for note in small.report.notes)
        errors.append(float(np.square(run(small.model, held) - right).mean()))
    assert errors[0] > 1.5 * errors[1] and errors[1] > 2 * max(errors[2:]), errors


@pytest.mark.parametrize("criterion", ["activation", "obs"])
def test_without_repair_all_that_stays_is_as_it_was(criterion: str, convolutions: ir.Model) -> None:
    plan = Plan(("neurons",), criterion, None, "none", sparsity=Pattern.of("2:4"))
    small = prune_model(convolutions, plan, correlated(40, 0)).model
    for operator in ("Conv", "Gemm"):
        before, after = ((weight(m, operator), bias(m, operator)) for m in (convolutions, small))
        np.testing.assert_array_equal(after[0], np.where(after[0] == 0, 0, before[0]))
        np.testing.assert_array_equal(after[1], before[1])


def test_training_leaves_zeros_alone_and_helps(convolutions: ir.Model) -> None:
    data, held = correlated(60, 0), correlated(40, 1)
    right = run(convolutions, held)
    plan = Plan(("neurons",), "magnitude", None, "least-squares", sparsity=Pattern.of("1:4"))
    before = prune_model(convolutions, plan, data)
    training = Training(epochs=6, seconds=None, rate=1e-2)
    trained = Plan(("neurons",), "magnitude", None, "distill", training, sparsity=Pattern.of("1:4"))
    after = prune_model(convolutions, trained, data)
    np.testing.assert_array_equal(weight(after.model, "Conv") == 0, weight(before.model, "Conv") == 0)
    assert (weight(after.model, "Conv") != weight(before.model, "Conv")).any()
    errors = [float(np.square(run(small.model, held) - right).mean()) for small in (before, after)]
    assert errors[1] < 0.9 * errors[0], errors


@pytest.mark.parametrize("given_", ["4:2", "2", "0:4", "a:b", 0.0, 1.0, "2:128"])
def test_what_is_no_pattern(given_: float | str) -> None:
    with pytest.raises(OptionError, match="give the share of zeros"):
        Pattern.of(given_)


def test_criteria_that_are_not_of_weights() -> None:
    plan = Plan(("neurons",), "fisher", None, "none", sparsity=Pattern(0.5))
    with pytest.raises(OptionError, match="magnitude, activation, obs, random"):
        check_plan(plan, with_data=True)
    with pytest.raises(OptionError, match="nothing is asked for"):
        check_plan(Plan(("neurons",), "magnitude", None, "none"), with_data=True)
    units = Plan(("neurons",), "fisher", 0.5, "none", sparsity=Pattern(0.5))
    check_plan(units, with_data=True)
    assert units.of_weights == "activation"
    norms = Plan(("neurons",), "magnitude-l1", 0.5, "none", sparsity=Pattern(0.5))
    check_plan(norms, with_data=False)
    assert norms.of_weights == "magnitude"  # which needs no data either
