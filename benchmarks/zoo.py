"""Small networks of many architectures, with random weights, as ONNX files with inputs.

Configurations are cut down (two layers, narrow), for what they show is whether the operators of each
architecture are compiled and agree; nothing here is timed. Each is exported by `torch.onnx.export` with its
free sizes symbolic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import models

Array = NDArray[Any]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Architecture:
    """A network, and how it is fed.

    Attributes:
        name: What it is like.
        network: The function or class of `zoo_networks` that builds it.
        inputs: Makes inputs for the values of the free sizes, in the order of its parameters.
        dims: For each input, the names of its free sizes by axis.
        sizes: Values of the free sizes, to export with (the first) and to run with (all).
        finish: Changes the exported file.
        scripted: Whether TorchScript exports it, which keeps loops.
    """

    name: str
    network: str
    inputs: Callable[[Sizes], dict[str, Array]]
    dims: Mapping[str, Mapping[int, str]]
    sizes: tuple[Sizes, ...]
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    scripted: bool = False

    def all_inputs(self) -> list[dict[str, Array]]:
        """Inputs for all values of the free sizes."""
        return [self.inputs(sizes) for sizes in self.sizes]

    def file(self) -> Path:
        """The network as an ONNX file, which is made once."""
        return models.kept(f"zoo-{self.name}".replace(" ", "-"), lambda path: _export(self, path))


def architectures() -> Iterator[Architecture]:
    """All of them."""
    for name, network in (("T5", "t5"), ("Marian", "marian")):
        yield Architecture(name, network, _two_texts, _TWO_TEXTS, _TEXT_SIZES)
    for name, network in (("GPT-2", "gpt2"), ("Llama", "llama")):
        yield Architecture(name, network, _text, _TEXT, _TEXT_SIZES)
    for name, network in (("LSTM tagger", "Tagger"), ("two towers", "TwoTowers")):
        yield Architecture(name, network, _ids, _IDS, _TEXT_SIZES)
    # Its scan is written out for each token by the exporter.
    yield Architecture("Mamba", "mamba", _ids, {"tokens": {0: "batch"}}, _FIXED_TEXT_SIZES)
    for name, network in _PICTURE_NETWORKS.items():
        yield Architecture(name, network, _picture, {"pixels": {0: "batch"}}, _BATCHES)
    for name, network in (("U-Net", "UNet"), ("SegFormer", "segformer")):
        free = {"pixels": {0: "batch", 2: "height", 3: "width"}}
        yield Architecture(name, network, _picture, free, _PICTURE_SIZES)
    yield Architecture(
        "YOLO with NMS", "Yolo", _picture, {"pixels": {0: "batch"}}, _BATCHES, with_suppression
    )
    yield Architecture("wav2vec 2.0", "wav2vec2", _wave, {"wave": {0: "batch", 1: "samples"}}, _WAVE_SIZES)
    mixed = {"dense": {0: "batch"}, "sparse": {0: "batch"}}
    yield Architecture("DLRM", "Mixed", _mixed, mixed, _BATCHES)
    yield Architecture("gate (If)", "Gate", _mixed, mixed, _BATCHES)
    yield Architecture("Mamba (Scan)", "SelectiveScan", _ids, {"tokens": {0: "batch"}}, _FIXED_TEXT_SIZES)
    cached = {**_IDS, "past": {1: "batch", 3: "past"}}
    yield Architecture("decoder (If)", "Decoder", _cached, cached, _CACHED_SIZES, scripted=True)
    for name, network in (("LSTM in steps (Loop)", "Stepped"), ("greedy writer (Loop)", "Writer")):
        yield Architecture(name, network, _ids, _IDS, _TEXT_SIZES, scripted=True)


_PICTURE_NETWORKS = {
    "ViT": "vit",
    "Swin": "swin",
    "ConvNeXt": "convnext",
    "MobileNetV2": "mobilenet_v2",
    "EfficientNet": "efficientnet",
    "DETR": "detr",
    "YOLO": "Yolo",
}
_BATCHES = ({"batch": 2}, {"batch": 1}, {"batch": 5})
_TEXT_SIZES = ({"batch": 2, "tokens": 16}, {"batch": 1, "tokens": 7}, {"batch": 3, "tokens": 33})
_FIXED_TEXT_SIZES = ({"batch": 2, "tokens": 12}, {"batch": 1, "tokens": 12}, {"batch": 3, "tokens": 12})
_CACHED_SIZES = (
    {"batch": 2, "tokens": 3, "past": 5},
    {"batch": 1, "tokens": 9, "past": 0},
    {"batch": 3, "tokens": 1, "past": 17},
)
_PICTURE_SIZES = (
    {"batch": 2, "height": 64, "width": 96},
    {"batch": 1, "height": 32, "width": 32},
    {"batch": 3, "height": 96, "width": 64},
)
_WAVE_SIZES = ({"batch": 2, "samples": 1600}, {"batch": 1, "samples": 900}, {"batch": 3, "samples": 2345})
_IDS = {"tokens": {0: "batch", 1: "tokens"}}
_TEXT = {**_IDS, "mask": {0: "batch", 1: "tokens"}}
_TWO_TEXTS = {**_TEXT, "written": {0: "batch", 1: "written"}}


def _ids(sizes: Sizes) -> dict[str, Array]:
    rng = np.random.default_rng(sizes["tokens"])
    return {"tokens": rng.integers(1, 60, (sizes["batch"], sizes["tokens"]))}


def _cached(sizes: Sizes) -> dict[str, Array]:
    rng = np.random.default_rng(sizes["past"])
    past = rng.standard_normal((2, sizes["batch"], 4, sizes["past"], 8), np.float32)
    return {**_ids(sizes), "past": past, "again": np.array(sizes["past"] > 0)}


def _text(sizes: Sizes) -> dict[str, Array]:
    made = _ids(sizes)
    mask = np.ones_like(made["tokens"])
    mask[0, sizes["tokens"] - 2 :] = 0  # the first is padded by two
    return {"tokens": made["tokens"], "mask": mask}


def _two_texts(sizes: Sizes) -> dict[str, Array]:
    written = np.random.default_rng(1).integers(1, 60, (sizes["batch"], sizes["tokens"] // 2 + 1))
    return {**_text(sizes), "written": written}


def _picture(sizes: Sizes) -> dict[str, Array]:
    shape = (sizes["batch"], 3, sizes.get("height", 64), sizes.get("width", 64))
    return {"pixels": np.random.default_rng(sizes["batch"]).standard_normal(shape, np.float32)}


def _wave(sizes: Sizes) -> dict[str, Array]:
    shape = (sizes["batch"], sizes["samples"])
    return {"wave": np.random.default_rng(sizes["batch"]).standard_normal(shape, np.float32)}


def _mixed(sizes: Sizes) -> dict[str, Array]:
    rng = np.random.default_rng(sizes["batch"])
    dense = rng.standard_normal((sizes["batch"], 13), np.float32)
    return {"dense": dense, "sparse": rng.integers(0, 30, (sizes["batch"], 3))}


def _export(architecture: Architecture, path: Path) -> None:
    import torch

    from benchmarks import zoo_networks

    torch.manual_seed(0)
    network = zoo_networks.spread(getattr(zoo_networks, architecture.network)())
    inputs = architecture.inputs(architecture.sizes[0])
    if architecture.scripted:
        _export_script(network, inputs, architecture.dims, path)
        return
    program = torch.onnx.export(
        network,
        tuple(torch.from_numpy(value) for value in inputs.values()),
        dynamo=True,
        dynamic_shapes=tuple(
            dict.fromkeys(architecture.dims.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs
        ),
        input_names=list(inputs),
        verbose=False,
    )
    program.save(str(path), external_data=False)
    if architecture.finish:
        onnx.save(architecture.finish(onnx.load(path)), path)


def _export_script(
    network: Any, inputs: Mapping[str, Array], dims: Mapping[str, Mapping[int, str]], path: Path
) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch would rather have the other exporter used
        torch.onnx.export(
            torch.jit.script(network),
            tuple(torch.from_numpy(value) for value in inputs.values()),
            str(path),
            dynamo=False,
            input_names=list(inputs),
            dynamic_axes={name: dict(axes) for name, axes in dims.items()},
            opset_version=17,
        )


def with_suppression(model: onnx.ModelProto) -> onnx.ModelProto:
    """A detector that ends in NonMaxSuppression: how many objects it gives depends on the picture."""
    boxes, scores = (output.name for output in model.graph.output)
    constants = {"most": np.array([5]), "overlap": np.float32([0.5]), "score": np.float32([0.5])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in constants.items())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 2]), "picture_and_box"))
    model.graph.node.extend(
        [
            onnx.helper.make_node("NonMaxSuppression", [boxes, scores, *constants], ["chosen"]),
            onnx.helper.make_node("Gather", ["chosen", "picture_and_box"], ["places"], axis=1),
            onnx.helper.make_node("GatherND", [boxes, "places"], ["objects"]),
        ]
    )
    del model.graph.output[:]
    model.graph.output.extend(
        [
            onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.INT64, ["objects", 3]),
            onnx.helper.make_tensor_value_info("objects", onnx.TensorProto.FLOAT, ["objects", 4]),
        ]
    )
    return model
