"""Rows of embeddings: what the data ask for is given as before, and all else is one stated row."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build

from hasten.errors import DataError, OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.search.prune.plan import Plan
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import prune_model
from hasten.search.samples import Samples

WORDS, WIDTH = 5000, 16
PLAN = Plan(("rows",), "magnitude", None, "none")


@pytest.fixture
def texts() -> ir.Model:
    """Words looked up twice, once through a Cast, positions by ids that are computed, and a tied head."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((WORDS, WIDTH)).astype(np.float32),
        "tied": rng.standard_normal((WORDS, WIDTH)).astype(np.float32),
        "places": rng.standard_normal((WORDS, WIDTH)).astype(np.float32),
        "one": np.array(1, np.int64),
    }
    body = (
        "i = Cast<to=7>(ids) a = Gather(table, ids) b = Gather(table, i) c = Gather(tied, ids) "
        "j = Add(i, one) d = Gather(places, j) e = Add(a, b) f = Add(c, d) g = Add(e, f) "
        "k = Cast<to=1>(ids) m = ReduceMax<keepdims=0>(k) o = Mul(tied, m) h = ReduceMean<keepdims=0>(o) "
        "y = Add(g, h)"
    )
    model = ir.from_proto(build(f"(int32[n, s] ids) => (float[n, s, {WIDTH}] y)", body, weights))
    optimize_graph(model)
    return model


def samples() -> Samples:
    """Ids from 0 to 99, negative ones for the last ten words; 40 occurs once."""
    rng = np.random.default_rng(1)
    ids = rng.choice([k for k in range(-10, 100) if k != 40], (50, 1, 30)).astype(np.int32)
    ids[0, 0, 0] = 40
    return Samples(tuple({"ids": each} for each in ids))


def run(model: ir.Model, ids: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, {"ids": ids.astype(np.int32)})[0])


def pruned(texts: ir.Model, unseen: int | None) -> Pruned:
    plan = Plan(("rows",), "magnitude", None, "none", unseen=unseen)
    return prune_model(texts, plan, samples())


def test_what_was_seen_is_as_before_and_the_rest_is_one_row(texts: ir.Model) -> None:
    seen, rare = np.array([[0, 7, 99, -1, -10, 40]]), np.array([[1234, -11]])
    table = texts.graph.initializers["table"].const_value
    assert table is not None
    for unseen in (None, 7, 3000):
        small = pruned(texts, unseen)
        (cut,) = small.report.cuts
        stays = 110 + (unseen != 7)
        assert (cut.unit, cut.before, cut.after) == ("rows", WORDS, stays)
        np.testing.assert_array_equal(run(small.model, seen), run(texts, seen))
        gone = np.ones(WORDS, bool)
        gone[np.r_[0:100, WORDS - 10 : WORDS]] = False
        row = table.numpy()[gone].mean(0) if unseen is None else table.numpy()[unseen]
        right = run(texts, rare) + 2 * (row - table.numpy()[rare])
        np.testing.assert_allclose(run(small.model, rare), right, atol=1e-5)
        assert "0.07% of new ids" in str(small.report)


def test_tables_that_keep_their_rows(texts: ir.Model) -> None:
    reasons = {alone.name: alone.reasons[0] for alone in pruned(texts, None).report.left_alone}
    assert "something else than look-ups" in reasons["tied"]
    assert "the ids are computed" in reasons["places"]


def test_what_cannot_be(texts: ir.Model) -> None:
    with pytest.raises(OptionError, match="no table has such a row"):
        pruned(texts, WORDS)
    far = Samples(({"ids": np.array([[WORDS]], np.int32)},))
    with pytest.raises(DataError, match="id 5000 of input 'ids' is outside the 5000 rows"):
        prune_model(texts, PLAN, far)
    with pytest.raises(OptionError, match="rows save no arithmetic"):
        prune_model(texts, Plan(("rows",), "magnitude", 0.5, "none"), samples())
    with pytest.raises(OptionError, match="needs samples"):
        prune_model(texts, PLAN)
