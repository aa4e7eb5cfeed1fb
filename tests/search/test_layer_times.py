"""Times of kernels shared out among layers, and what formats save."""

from __future__ import annotations

import pytest

from hasten.passes.quantize import Layer
from hasten.search.layer_times import gains, shared_out


def layer(name: str, depth: int, outputs: int) -> Layer:
    return Layer(name, "MatMul", f"{name}.x", f"{name}.w", f"{name}.y", (depth, outputs), 1, 1)


def test_a_kernel_is_shared_by_the_nodes_in_its_title() -> None:
    titles = ["MatMul 'a' with Add 'c'", "MatMul 'a' and MatMul 'b'", "Softmax 's'"]
    found = shared_out(titles, [10.0, 8.0, 5.0], {"MatMul 'a'": 3.0, "MatMul 'b'": 1.0})
    assert found == {"MatMul 'a'": 10 + 6, "MatMul 'b'": 2}


def test_what_a_format_adds_elsewhere_is_taken_from_its_layers() -> None:
    work = {layer("a", 100, 10): 5.0, layer("b", 300, 10): 2.0, layer("unknown", 100, 20): 1.0}
    before, after = {"a": 10.0, "b": 20.0}, {"a": 4.0, "b": 8.0}
    # More was saved in a run than in known layers: the rest is the unknown one's.
    assert gains(work, before, after, 25.0) == {"a": 6, "b": 12, "unknown": 7}
    # Less: 8 of the 18 were lost again, by columns.
    found = gains(work, before, after, 10.0)
    assert found == pytest.approx({"a": 6 - 1.6, "b": 12 - 4.8, "unknown": -1.6})
    assert sum(found.values()) == pytest.approx(10.0)


def test_layers_that_cannot_have_the_format_have_no_part_in_it() -> None:
    times = {"a": 10.0, "odd": 20.0}
    assert gains({layer("a", 100, 10): 1.0}, times, {"a": 4.0, "odd": 20.0}, 2.0) == {"a": 2.0}


def test_what_is_left_is_shared_by_work_in_a_run_and_not_by_weights() -> None:
    # A layer of few weights may be the one that computes most: the first of a network for pictures.
    work = {layer("early", 10, 10): 9000.0, layer("late", 1000, 10): 1000.0}
    assert gains(work, {}, {}, 10.0) == {"early": 9.0, "late": 1.0}
