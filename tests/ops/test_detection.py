import numpy as np
import pytest
from tests.ops.conformance import case

import hasten

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("centered", [0, 1])
def test_boxes_without_those_that_overlap(tmp_path, centered):
    limits = [("int64", [1]), ("float32", [1]), ("float32", [1])]
    boxes_and_scores = [("float32", ["b", "n", 4]), ("float32", ["b", "c", "n"])]
    prepared = case("NonMaxSuppression", [*boxes_and_scores, *limits], center_point_box=centered)
    session = hasten.compile(prepared.proto, cache=tmp_path)
    assert not session.report["host"]
    for (b, c, n), most, overlap, score in (
        ((1, 1, 1), 3, 0.5, 0.0),
        ((2, 3, 40), 40, 0.3, 0.5),
        ((1, 2, 33), 5, 0.0, 0.9),
        ((3, 1, 20), 0, 0.5, 0.0),
        ((1, 4, 25), 100, 1.0, -1.0),
        ((2, 2, 17), 17, 0.5, 2.0),
    ):
        # Few different numbers, so that scores are equal and overlaps lie at the limit.
        boxes = RNG.integers(0, 5, (b, n, 4)).astype(np.float32)
        scores = RNG.integers(0, 11, (b, c, n)).astype(np.float32) / 10
        given = (boxes, scores, np.array([most]), *(np.array([v], np.float32) for v in (overlap, score)))
        (right,) = prepared.check(*given)
        found = session.run({f"x{k}": a for k, a in enumerate(given)})["y0"]
        np.testing.assert_array_equal(found, right)
        assert found.dtype == np.int64


def test_limits_that_are_left_out():
    inputs = [("float32", [1, "n", 4]), ("float32", [1, 2, "n"])]
    boxes, scores = RNG.random((1, 9, 4)).astype(np.float32), RNG.random((1, 2, 9)).astype(np.float32)
    # ONNX's evaluator does not know the default.
    nothing = case("NonMaxSuppression", inputs, reference=lambda *_: np.empty((0, 3), np.int64))
    nothing.check(boxes, scores)
    limits = [np.array([4]), np.array([0.5], np.float32)]
    case("NonMaxSuppression", [*inputs, *limits]).check(boxes, scores)
