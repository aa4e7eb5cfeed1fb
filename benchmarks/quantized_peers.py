"""Models that other engines' own tools quantize to int8, as those who make them advise.

ONNX Runtime: its static quantization (QDQ, weights by channel) after its own preprocessing, and for
transformers its dynamic one beside it. OpenVINO: NNCF's post-training quantization with fixed shapes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hasten.search.engines import ONNXRUNTIME, OPENVINO, Engine
from hasten.search.measure import Contestant

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Make = Callable[[Path, Sequence[Feeds], Feeds, Path], None]


def contestants(
    model: Path, calibration: Sequence[Feeds], feeds: Feeds, folder: Path
) -> tuple[list[Contestant], dict[str, str]]:
    """Engines with their quantized models, and why there are no others.

    Args:
        model: an ONNX file.
        calibration: inputs on which scales are found.
        feeds: inputs that are timed, whose shapes are fixed where an engine wants that.
        folder: for the models.
    """
    found: list[Contestant] = []
    missing: dict[str, str] = {}
    shape = "x".join(str(n) for n in next(iter(feeds.values())).shape)
    for engine, make, suffix in _PEERS:
        if engine.version is None:
            missing[engine.name] = "it is not installed"
            continue
        path = folder / f"{model.stem}-{shape}-{engine.name}{suffix}"
        if not path.exists():
            try:
                with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                    warnings.simplefilter("ignore")
                    logging.disable(logging.WARNING)
                    make(model, calibration, feeds, path)
            except ImportError as error:
                missing[engine.name] = str(error)
                continue
            finally:
                logging.disable(logging.NOTSET)
        files = [path, path.with_suffix(".bin")] if suffix == ".xml" else [path]
        found.append(Contestant(engine, path, files))
    return found, missing


def _is_transformer(model: Path) -> bool:
    kinds = {node.op_type for node in onnx.load(str(model), load_external_data=False).graph.node}
    return "Conv" not in kinds


def _onnxruntime_static(model: Path, calibration: Sequence[Feeds], feeds: Feeds, path: Path) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            given = next(self.rest, None)
            return None if given is None else dict(given)

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"] if _is_transformer(model) else None,
    )


def _onnxruntime_dynamic(model: Path, calibration: Sequence[Feeds], feeds: Feeds, path: Path) -> None:
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        str(model), str(path), per_channel=True, weight_type=quantization.QuantType.QInt8
    )


def _openvino(model: Path, calibration: Sequence[Feeds], feeds: Feeds, path: Path) -> None:
    import nncf
    import openvino

    read = openvino.Core().read_model(str(model))
    read.reshape({name: [*array.shape] for name, array in feeds.items()})
    transformer = _is_transformer(model)

    def fitted(given: Feeds) -> dict[str, Array]:
        """An input repeated to the batch that is timed, and cut or padded with zeros to its lengths."""
        result = {}
        for name, array in given.items():
            wanted = feeds[name].shape
            cut = array[tuple(slice(0, n) for n in (array.shape[0], *wanted[1:]))]
            padded = np.pad(
                cut, [(0, 0), *((0, n - m) for n, m in zip(wanted[1:], cut.shape[1:], strict=True))]
            )
            result[name] = np.repeat(padded, -(-wanted[0] // len(padded)), axis=0)[: wanted[0]]
        return result

    quantized = nncf.quantize(
        read,
        nncf.Dataset([fitted(given) for given in calibration]),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        subset_size=len(calibration),
    )
    openvino.save_model(quantized, str(path), compress_to_fp16=False)


_PEERS: tuple[tuple[Engine, Make, str], ...] = (
    (replace(ONNXRUNTIME, name="onnxruntime-int8", precision="int8"), _onnxruntime_static, ".onnx"),
    (replace(ONNXRUNTIME, name="onnxruntime-int8-dynamic", precision="int8"), _onnxruntime_dynamic, ".onnx"),
    (replace(OPENVINO, name="openvino-nncf-int8", precision="int8"), _openvino, ".xml"),
)
