"""The pruned model as files, and its report as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.search.prune.conftest import WIDTH
from tests.search.prune.test_run import answers

from hasten import frontends
from hasten.errors import OptionError
from hasten.passes.prune.units import LeftAlone
from hasten.search.prune import report
from hasten.search.prune.plan import Plan
from hasten.search.prune.report import Cut, PruneReport
from hasten.search.prune.run import prune_model
from hasten.search.report_pruning import pruned_page
from hasten.search.samples import Samples


def test_large_weights_go_beside_the_model(
    network: ir.Model, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = prune_model(network, Plan(("neurons",), "magnitude", 0.6, "none"))
    path, beside = tmp_path / "small.onnx", tmp_path / "small.onnx.data"
    assert small.save(path) == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    assert onnx.load(path).opset_import[0].version == 21
    monkeypatch.setattr(report, "_LARGEST", 1000)
    beside.write_text("another's")
    path.unlink()
    with pytest.raises(OptionError, match=r"small\.onnx\.data exists"):
        small.save(path)
    assert small.save(path, overwrite=True) == path.stat().st_size + beside.stat().st_size
    assert sorted(tmp_path.iterdir()) == [path, beside]
    assert onnx.load(path).opset_import[0].version == 21
    onnx.checker.check_model(path)
    x = np.concatenate([feeds["x"] for feeds in samples.feeds])
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    np.testing.assert_allclose(found, answers(small.model, samples), rtol=1e-4, atol=1e-5)
    assert x.shape[1] == WIDTH
    with pytest.raises(OptionError, match="cannot write"):
        small.save(tmp_path / "none" / "small.onnx")


def test_weights_that_lie_beside_the_original_come_along(
    network: ir.Model, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("original", "elsewhere"):
        (tmp_path / name).mkdir()
    source, moved = tmp_path / "original" / "big.onnx", tmp_path / "elsewhere" / "small.onnx"
    ir.save(network.clone(), source, external_data="big.onnx.data", size_threshold_bytes=0)
    small = prune_model(frontends.load(source), Plan(("neurons",), "magnitude", 0.6, "none"))
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in small.model.graph.initializers.values())
    monkeypatch.setattr(report, "_LARGEST", 1000)
    with pytest.raises(OptionError, match=r"big\.onnx\.data holds weights that this model still reads"):
        small.save(source, overwrite=True)
    monkeypatch.undo()
    small.save(moved)
    for left in source.parent.iterdir():
        left.unlink()
    assert list(moved.parent.iterdir()) == [moved]
    x = np.concatenate([feeds["x"] for feeds in samples.feeds])
    (found,) = onnxruntime.InferenceSession(moved).run(None, {"x": x})
    right = answers(prune_model(network, Plan(("neurons",), "magnitude", 0.6, "none")).model, samples)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_a_page_with_a_bar_for_each_layer() -> None:
    cuts = (Cut("a<b", "layers", 1, 0), Cut("fc1", "neurons", 64, 48), Cut("fc2", "neurons", 1024, 1024))
    alone = (LeftAlone("head", "neurons", 4, ("'y' is an output of the model",)),)
    told = PruneReport("fisher", "none", 0.5, True, 100, 49, {"n": 1}, 2000, 900, cuts, alone, ("a note",))
    text = pruned_page(told, "model.onnx")
    widths: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "i":
                widths.append(dict(attrs)["style"] or "")

    Reader().feed(text)
    assert widths == ["width:0%", "width:75%", "width:100%"]
    for piece in ("49.0%", "a&lt;b", "Left alone: 1", "an output of the model", "a note", "model.onnx"):
        assert piece in text
