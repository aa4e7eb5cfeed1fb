"""A few hundred random graphs; `make differential` runs 10,000."""

import numpy as np
import pytest
from tests.differential.generate import random_graph
from tests.differential.graph import Graph
from tests.differential.run import Config, configs, run_batch
from tests.differential.shrink import read, shrink, write

WAYS = (Config(), Config(threads=2), Config(inside=True))
SAMPLE = 30


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_sample_agrees(way):
    first = WAYS.index(way) * SAMPLE
    outcomes = run_batch([(seed, way) for seed in range(first, first + SAMPLE)])
    assert not [o for o in outcomes if not o.passed]
    assert sum(o.verdict == "same" for o in outcomes) > 0.9 * SAMPLE
    assert sum(o.host for o in outcomes) < 0.05 * sum(o.nodes for o in outcomes)


def test_graphs_are_the_same_every_time_and_various():
    graphs = [random_graph(seed) for seed in range(200)]
    assert random_graph(7).model == graphs[7].model
    assert len({n.op_type for g in graphs for n in g.model.graph.node}) > 100
    assert any(0 in a.shape for g in graphs for f in g.feeds for a in f.values())


def test_a_failing_graph_is_made_small(tmp_path):
    """With a failure of our own: anything that computes a Softmax."""

    def fails(graphs: list[Graph]) -> list[bool]:
        return [any(n.op_type == "Softmax" for n in g.model.graph.node) for g in graphs]

    graph = next(g for g in map(random_graph, range(500)) if len(g.model.graph.node) > 8 and fails([g])[0])
    small = shrink(graph, fails)
    assert [n.op_type for n in small.model.graph.node] == ["Softmax"]
    assert len(small.feeds) == 1
    write(tmp_path / "found.zip", small)
    again = read(tmp_path / "found.zip")
    assert again.model == small.model
    assert again.tolerances == small.tolerances
    for name, array in small.feeds[0].items():
        np.testing.assert_array_equal(again.feeds[0][name], array)


def test_all_targets_and_types_are_tried():
    ways = configs()
    assert {w.threads for w in ways} == {1, 2}
    assert {w.precision for w in ways} == {"f32", "bf16"}
