"""What is found in graphs that matter, and what is left alone for which reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tests.passes.conftest import build
from tests.passes.prune.test_random_graphs import zeroed

from benchmarks import models, zoo
from hasten import frontends
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.remove import remove_units
from hasten.passes.prune.units import Analysis, find_units

RNG = np.random.default_rng(3)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def analysed(signature: str, body: str, **constants: np.ndarray) -> Analysis:
    model = ir.from_proto(build(signature, body, constants))
    optimize_graph(model)
    return find_units(model)


def reasons(analysis: Analysis) -> str:
    assert analysis.groups == ()
    return "; ".join(reason for left in analysis.left_alone for reason in left.reasons)


def test_an_output_that_would_be_pruned() -> None:
    found = analysed(
        "(float[n, 4] x) => (float[n, 8] h, float[n, 2] y)",
        "p = MatMul(x, a) h = Relu(p) y = MatMul(h, b)",
        a=array(4, 8),
        b=array(8, 2),
    )
    assert "'h' is an output of the model" in reasons(found)


def test_weights_used_twice() -> None:
    found = analysed(
        "(float[n, 4] x, float[n, 4] z) => (float[n, 4] y, float[n, 4] t)",
        "p = MatMul(x, a) r = Relu(p) y = MatMul(r, b) q = MatMul(z, a) s = Tanh(q) t = MatMul(s, c)",
        a=array(4, 8),
        b=array(8, 4),
        c=array(8, 4),
    )
    assert "the weights 'a' are used 2 times" in reasons(found)


def test_a_shape_that_is_computed() -> None:
    found = analysed(
        "(float[n, 4] x, int64[2] target) => (float[a, b] y)",
        "p = MatMul(x, a) h = Relu(p) r = Reshape(h, target) y = MatMul(r, b)",
        a=array(4, 8),
        b=array(8, 2),
    )
    assert "its target is computed while the model runs" in reasons(found)


def test_what_needs_all_features() -> None:
    found = analysed(
        "(float[n, 4] x) => (float[n, 2] y)",
        "p = MatMul(x, a) h = Softmax <axis=-1> (p) y = MatMul(h, b)",
        a=array(4, 8),
        b=array(8, 2),
    )
    assert "needs all of axis 1" in reasons(found)


@pytest.mark.parametrize(
    "part", ["r, s = Split<axis=1>(h, sizes)", "r = Slice(h, zero, one, one)", "r = Gather<axis=1>(h, one)"]
)
def test_the_only_one_of_its_kind_stays(part: str) -> None:
    """What goes on alone would be nothing without its feature."""
    known = {"sizes": [1, 7], "zero": [0], "one": [1]}
    found = analysed(
        "(float[n, 4] x) => (float[n, 2] y)",
        f"p = MatMul(x, a) h = Relu(p) {part} t = Tanh(h) z = Concat<axis=1>(r, t) y = MatMul(z, b)",
        a=array(4, 8),
        b=array(9, 2),
        **{name: np.array(value) for name, value in known.items() if name in part},
    )
    assert [group.count for group in found.groups] == [7]
    assert any("it is all that axis 1 of" in r for each in found.left_alone for r in each.reasons)


def test_an_operator_without_facts() -> None:
    found = analysed(
        "(float[n, 4] x) => (float[n, 2] y)",
        "p = MatMul(x, a) h, i = TopK <axis=0> (p, k) y = MatMul(h, b)",
        a=array(4, 8),
        b=array(8, 2),
        k=np.array([2]),
    )
    assert "what it does to single indices is not known" in reasons(found)


def test_equal_biases_are_cut_each_for_itself() -> None:
    """Equal constants are one after the passes; the layers that use them stay apart."""
    found = analysed(
        "(float[n, 4] x) => (float[n, 2] y)",
        "p = MatMul(x, a) q = Add(p, zero) r = Relu(q) s = MatMul(r, b) t = Add(s, zero) u = Tanh(t)"
        "y = MatMul(u, c)",
        a=array(4, 8),
        b=array(8, 8),
        c=array(8, 2),
        zero=np.zeros(8, np.float32),
    )
    assert [(g.unit, g.count) for g in found.groups] == [("neurons", 8), ("neurons", 8)]


def test_all_units_of_a_group_cannot_go() -> None:
    model = ir.from_proto(
        build(
            "(float[n, 4] x) => (float[n, 2] y)",
            "p = MatMul(x, a) h = Relu(p) y = MatMul(h, b)",
            {"a": array(4, 8), "b": array(8, 2)},
        )
    )
    analysis = find_units(model)
    with pytest.raises(ValueError, match="all 8 neurons"):
        remove_units(model, analysis, {analysis.groups[0]: range(8)})


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("GPT-2", {"heads": 2, "neurons": 2}),
        ("Llama", {"heads": 2, "neurons": 2}),  # two heads of queries share one of keys and values
        ("T5", {"heads": 3, "neurons": 4}),
        ("DETR", {"channels": 4, "heads": 3, "neurons": 4}),
        ("Mamba", {"channels": 1, "neurons": 3}),
        ("Swin", {"heads": 4, "neurons": 4}),
    ],
)
def test_architectures(name: str, units: dict[str, int]) -> None:
    """Half of each group, with weights of zero, can go: ONNX Runtime gives the same."""
    network = next(a for a in zoo.architectures() if a.name == name)
    model = frontends.load(network.file())
    optimize_graph(model)
    analysis = find_units(model)
    assert Counter(g.unit for g in analysis.groups) == units
    removed = {group: list(range(0, group.count, 2)) for group in analysis.groups}
    models_ = (remove_units(model, analysis, removed), zeroed(model, removed))
    small, same = (onnxruntime.InferenceSession(ir.to_proto(m).SerializeToString()) for m in models_)
    for feeds in network.all_inputs():
        for found, right in zip(small.run(None, feeds), same.run(None, feeds), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_a_recognizer_of_text_keeps_its_interface() -> None:
    """PP-OCR's recognition: depthwise convolutions, concatenations, attention; a third of all units."""
    model = frontends.load(models.ppocr_rec())
    optimize_graph(model)
    analysis = find_units(model)
    assert {g.unit for g in analysis.groups} == {"channels", "heads", "neurons"}
    assert sum(g.unit == "heads" for g in analysis.groups) == 2
    pruned = remove_units(model, analysis, {g: range(g.count // 3) for g in analysis.groups})
    session = onnxruntime.InferenceSession(ir.to_proto(pruned).SerializeToString())
    (out,) = session.run(None, {"x": models.page_line()})
    assert out.shape == (1, 40, 6625)
