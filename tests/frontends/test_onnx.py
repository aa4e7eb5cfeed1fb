import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from hasten.errors import ModelError, OptionError
from hasten.frontends import onnx as frontend
from hasten.graph.inference import check
from hasten.graph.pages import give_back

WEIGHTS = np.random.default_rng(0).standard_normal((40, 40), np.float32)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.fixture
def proto() -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n,40] x) => (float[n,40] y)'
        "{ h = MatMul(x, w) y = Relu(h) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHTS, "w"))
    return model


def _external(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    ir.save(ir.from_proto(proto), path, external_data="model.data")
    return path


def _weights(model: ir.Model) -> ir.TensorProtocol:
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor


def test_every_kind_of_source_gives_the_same_model(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), proto]
    for source in [*sources, ir.from_proto(proto)]:
        assert frontend.accepts(source)
        model = frontend.load(source)
        assert [node.op_type for node in model.graph] == ["MatMul", "Relu"]
        np.testing.assert_array_equal(_weights(model).numpy(), WEIGHTS)


def test_a_given_graph_is_copied_and_shares_its_tensors(proto: onnx.ModelProto) -> None:
    source = ir.from_proto(proto)
    model = frontend.load(source)
    model.graph.node(0).op_type = "Other"
    assert source.graph.node(0).op_type == "MatMul"
    assert _weights(model) is _weights(source)


def test_external_weights_are_mapped_only_when_used(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _external(proto, tmp_path)
    monkeypatch.chdir(tmp_path)
    tensor = _weights(frontend.load("model.onnx"))
    monkeypatch.chdir("/")  # The path of the weights must not depend on where we are.
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    np.testing.assert_array_equal(tensor.numpy(), WEIGHTS)


def test_missing_external_weights_name_the_file(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = _external(proto, tmp_path)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"'w' are in the file '.*model\.data'.*No such file"):
        frontend.load(path)


def test_truncated_external_weights(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = _external(proto, tmp_path)
    os.truncate(tmp_path / "model.data", 100)
    with pytest.raises(ModelError, match=r"up to 6400 of '.*model\.data', which has 100"):
        frontend.load(path)


def test_external_weights_that_link_to_themselves(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path, beside = _external(proto, tmp_path), tmp_path / "model.data"
    beside.unlink()
    beside.symlink_to(beside.name)
    with pytest.raises(ModelError, match=r"model\.data.*cannot be read"):
        frontend.load(path)


def test_external_weights_outside_the_folder(proto: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = _external(proto, tmp_path / "inside")
    (tmp_path / "inside" / "model.data").rename(tmp_path / "elsewhere.data")
    (tmp_path / "inside" / "model.data").symlink_to(tmp_path / "elsewhere.data")
    with pytest.raises(ModelError, match="outside the model's own folder"):
        frontend.load(path)


def _in_a_cache(path: Path, cache: Path) -> Path:
    """The model as the Hugging Face Hub caches it: files are links to others that are named by their hash."""
    blobs, shown = cache / "blobs", cache / "snapshots" / "0a1b" / "onnx"
    blobs.mkdir(parents=True)
    shown.mkdir(parents=True)
    for number, file in enumerate(sorted(path.parent.iterdir())):
        (blobs / f"{number}c3d").write_bytes(file.read_bytes())
        (shown / file.name).symlink_to(Path("../../../blobs") / f"{number}c3d")
    return shown / path.name


def test_external_weights_of_files_that_are_links(proto: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = _external(proto, tmp_path / "model")
    cached = _in_a_cache(path, tmp_path / "cache")
    (tmp_path / "link.onnx").symlink_to(path)  # its weights are beside what it stands for
    for source in (cached, tmp_path / "link.onnx"):
        weights = _weights(frontend.load(source))
        np.testing.assert_array_equal(weights.numpy(), WEIGHTS)
        assert weights.tobytes() == WEIGHTS.tobytes()
    data = cached.with_name("model.data")
    data.unlink()
    (tmp_path / "elsewhere.data").write_bytes(WEIGHTS.tobytes())
    data.symlink_to(tmp_path / "elsewhere.data")
    with pytest.raises(ModelError, match="outside the model's own folder"):
        frontend.load(cached)


def test_a_file_of_many_weights_is_opened_once(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 40
    arrays = {f"w{i}": rng.standard_normal((1 + i % 3, 7), np.float32) for i in range(count)}
    arrays |= {"narrow": rng.standard_normal(5).astype(ml_dtypes.bfloat16)}
    arrays |= {f"four{i}": rng.integers(-8, 8, (3, 3 + i)).astype(ml_dtypes.int4) for i in range(count)}
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}, name="g")
    path, outside = tmp_path / "m.onnx", {"external_data": "m.data", "size_threshold_bytes": 0}
    ir.save(ir.Model(graph, ir_version=10), path, **outside)
    model = frontend.load(path)
    before = open_files()
    for name, array in arrays.items():
        tensor = model.graph.initializers[name].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        np.testing.assert_array_equal(tensor.numpy(), array)
        np.testing.assert_array_equal(np.asarray(tensor), array)
        assert tensor.tobytes() == ir.tensor(array).tobytes()
    assert open_files() <= before + 1
    give_back(model)
    check(model)
    ir.save(model, path, **outside)  # over the file that is mapped
    again = frontend.load(path).graph.initializers
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name].const_value.numpy(), array)


def test_external_weights_with_hard_links(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = _external(proto, tmp_path)
    (tmp_path / "second").hardlink_to(tmp_path / "model.data")
    with pytest.raises(ModelError, match=r"model\.data' has 2 hard links"):
        frontend.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# A readme, not a model\n", "not an ONNX model"),
        (b"PK\x03\x04rest", "a zip archive, perhaps a saved PyTorch model"),
        (b"\x08\x0a", "would hold a graph"),
    ],
)
def test_a_file_that_is_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"model.onnx'.*{message}"):
        frontend.load(path)


def test_a_truncated_file_is_refused_wherever_it_ends(proto: onnx.ModelProto) -> None:
    content = proto.SerializeToString()
    for length in range(0, len(content), 97):
        with pytest.raises(ModelError):
            frontend.load(content[:length])


def test_a_tensor_of_the_wrong_length(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 41
    with pytest.raises(ModelError, match=r"'w' \[41, 40\] needs 6560 bytes, but 6400"):
        frontend.load(proto)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file '.*absent\.onnx'"):
        frontend.load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match=r"folder without config\.json"):
        frontend.load(tmp_path)


def test_a_value_that_nothing_defines_is_named(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[0] = "absent"
    with pytest.raises(ModelError, match="Relu 'y' uses the value 'absent', which nothing"):
        frontend.load(proto)


def test_nodes_are_sorted_and_cycles_refused(proto: onnx.ModelProto) -> None:
    first = proto.graph.node.pop(0)
    proto.graph.node.append(first)
    assert [node.op_type for node in frontend.load(proto).graph] == ["MatMul", "Relu"]
    first = proto.graph.node[1]
    first.input[0] = "y"
    with pytest.raises(ModelError, match="cycle"):
        frontend.load(proto)


def test_dynamic_is_not_for_onnx(proto: onnx.ModelProto) -> None:
    with pytest.raises(OptionError, match="cannot be used with an ONNX model"):
        frontend.load(proto, dynamic={"x": {0: "batch"}})
