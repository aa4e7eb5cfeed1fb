"""MiniLM after ONNX Runtime's optimizers, which write operators of their own, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from benchmarks import models
from hasten.onnx_backend import HastenRep, prepare_all

pytestmark = pytest.mark.filterwarnings("ignore")  # of the older exporter, whose graphs the optimizers know


LAYERS = 2
"""Of six that are alike; all of them take three times as long."""


class Encoder(torch.nn.Module):
    """The first layers of MiniLM, with inputs in order and results as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(
            models.minilm(), local_files_only=True, attn_implementation="eager"
        )
        del self.model.encoder.layer[LAYERS:]

    def forward(self, ids: Any, mask: Any, types: Any) -> Any:
        found = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return found[0], found[1]


def exported(path: Path, feeds: Mapping[str, np.ndarray]) -> Path:
    torch.onnx.export(
        Encoder().eval(),
        tuple(torch.from_numpy(a) for a in feeds.values()),
        path,
        input_names=list(feeds),
        output_names=["hidden", "pooled"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in feeds},
        opset_version=14,
        dynamo=False,
    )
    return path


def by_session(source: Path, path: Path) -> onnx.ModelProto:
    """What the session's own extended optimizations make of a model."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(source, options)
    return onnx.load(path)


def by_transformers(source: Path, path: Path, multi_head: bool) -> onnx.ModelProto:
    """What the optimizer of transformers in ONNX Runtime's package makes of it."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.use_multi_head_attention = multi_head
    optimized = optimizer.optimize_model(
        str(source), "bert", num_heads=12, hidden_size=384, opt_level=0, optimization_options=options
    )
    optimized.save_model_to_file(str(path))
    return onnx.load(path)


def test_minilm_after_optimizers(tmp_path: Path) -> None:
    feeds = models.token_inputs(2, 24)
    source = exported(tmp_path / "minilm.onnx", feeds)
    optimized = {
        "FusedGemm": by_session(source, tmp_path / "extended.onnx"),
        "Attention": by_transformers(source, tmp_path / "attention.onnx", multi_head=False),
        "MultiHeadAttention": by_transformers(source, tmp_path / "heads.onnx", multi_head=True),
    }
    reference = onnxruntime.InferenceSession(source)
    others = models.token_inputs(3, 9)
    for (operator, proto), rep in zip(optimized.items(), prepare_all(list(optimized.values())), strict=True):
        found = {node.op_type for node in proto.graph.node if node.domain == "com.microsoft"}
        assert operator in found and {"BiasGelu"} <= found
        assert isinstance(rep, HastenRep), rep
        assert not rep.host
        for given in (feeds, others):
            shown = given["attention_mask"].astype(bool)
            hidden, pooled = rep.run(dict(given))
            right, summary = reference.run(None, given)
            np.testing.assert_allclose(hidden[shown], right[shown], atol=2e-5, err_msg=operator)
            np.testing.assert_allclose(pooled, summary, atol=2e-5, err_msg=operator)
