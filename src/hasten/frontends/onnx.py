"""ONNX: a file, its bytes, a `ModelProto` or an `onnx_ir.Model`."""

import os
import stat
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.external_data import set_base_dir

from hasten.errors import ModelError, OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.frontends.quiet import quiet
from hasten.graph.describe import describe_node
from hasten.graph.inference import one_line
from hasten.graph.mapped import MappedFile, MappedTensor
from hasten.graph.maps import hide_maps

_LARGEST_PROTOBUF = 2**31 - 1
# How files that people try to open instead begin, and what they are.
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive, perhaps a saved PyTorch model: load it with torch and give "),
    *(
        (
            start,
            "a Python pickle, which runs code when it is read: if you trust it, load it yourself and give ",
        )
        for start in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    ),
    *(
        (start, "a compressed file, perhaps of joblib, which runs code: if you trust it, load it and give ")
        for start in (b"x\x01", b"x^", b"x\x9c", b"x\xda", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
    ),
    (b"\x89HDF", "an HDF5 file: convert it to ONNX first, and give "),
)


def accepts(source: object) -> bool:
    """Return whether `source` is a path, bytes, a `ModelProto` or an `onnx_ir.Model`."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, onnx.ModelProto, ir.Model))


def load(source: object, *, example: Example | None = None, dynamic: Dynamic | None = None) -> ir.Model:
    """Read an ONNX model, of any opset, with its functions as they are.

    Weights in external files are mapped when they are first used, each file once; the files are
    checked for presence and size here.

    Args:
        source: A path; the content of a file; a `ModelProto`; or an `onnx_ir.Model`, which is
            copied. What is not a file has external weights relative to the current folder.
        example: Not used: an ONNX model needs no tracing.
        dynamic: Not allowed: an ONNX model says itself which sizes are symbolic.

    Returns:
        A model in topological order.

    Raises:
        ModelError: No such file, or it is not a valid ONNX model, or a file that it needs is
            missing or too short.
        OptionError: `dynamic` was given.
    """
    if dynamic is not None:
        raise OptionError(
            "`dynamic` cannot be used with an ONNX model, which says itself which sizes are "
            f"symbolic: got {dict(dynamic)}. Leave it out, or set it when exporting."
        )
    beside = None
    match source:
        case ir.Model():
            _check_defined(source)
            _sort(source)
            model = source.clone()
        case onnx.ModelProto():
            model = _from_proto(source, "The ModelProto")
        case bytes() | bytearray() | memoryview():
            model = _from_proto(_parse(bytes(source), "The given bytes"), "The given bytes")
        case str() | os.PathLike():
            path = Path(source)
            proto = _parse(_read(path), f"'{path}'")
            model = _from_proto(proto, f"'{path}'")
            set_base_dir(model.graph, path.absolute().parent)
            # A file may be a link, and its weights beside the link or beside what that stands for.
            beside = path.resolve().parent
        case _:
            raise ModelError(f"Expected an ONNX model, got {type(source).__name__}.")
    _check_tensors(model, beside)
    return model


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(
                f"'{path}' is a folder without config.json, so no Hugging Face model. "
                "Give an .onnx file, or a folder with config.json and weights."
            )
        if status.st_size == 0:
            raise ModelError(f"'{path}' is empty. Export or copy the model again.")
        if status.st_size > _LARGEST_PROTOBUF:
            raise ModelError(
                f"'{path}' has {status.st_size} bytes; a single ONNX file cannot have more than "
                f"{_LARGEST_PROTOBUF}. Save the model with external data."
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"There is no file '{path}'. Check the path.") from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    if not content:
        raise ModelError(f"{name} are empty. Give the content of an .onnx file.")
    for start, kind in _OTHER_KINDS:
        if content.startswith(start):
            raise ModelError(f"{name}: not an ONNX model but {kind}the result to hasten.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(
            f"{name} cannot be read as ONNX: the content is not an ONNX model, or it is truncated "
            f"or damaged ({len(content)} bytes). Export or copy the model again."
        ) from error
    return proto


def _from_proto(proto: onnx.ModelProto, name: str) -> ir.Model:
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"{name}: not an ONNX model, which would hold a graph. Give an .onnx file.")
    if not proto.opset_import:
        raise ModelError(
            f"{name}: the model does not say which operator sets it uses (opset_import), so it is "
            "truncated or damaged. Export or copy the model again."
        )
    try:
        with quiet("onnx_ir"):  # What is odd in a model is found and said below.
            model = ir.from_proto(hide_maps(proto))
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            f"{name}: the ONNX model is damaged or uses an unknown feature: {one_line(cause)}. "
            "Export or copy the model again."
        ) from error
    _check_defined(model)
    _sort(model)
    return model


def _check_defined(model: ir.Model) -> None:
    for graph in [*model.graphs(), *(function.graph for function in model.functions.values())]:
        uses = [(describe_node(node), value) for node in graph for value in node.inputs]
        uses += [("The graph's output list", value) for value in graph.outputs]
        for user, value in uses:
            if value is None or value.producer() is not None:
                continue
            if not value.is_graph_input() and not value.is_initializer():
                raise ModelError(
                    f"{user} uses the value '{value.name}', which nothing in the model defines. "
                    "Export the model again, or repair it."
                )


def _sort(model: ir.Model) -> None:
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        try:
            graph.sort()
        except ValueError as error:
            raise ModelError(
                f"The graph '{graph.name}' has a cycle: a node depends on its own output. "
                "Export the model again, or repair it."
            ) from error


def _check_tensors(model: ir.Model, beside: Path | None) -> None:
    """Refuse tensors whose data are missing or of the wrong length, without reading them.

    External ones are then known by their real files, which they share.

    Args:
        model: The model.
        beside: A second folder that may have the weights, beside the one that the tensors name.
    """
    files: dict[Path, tuple[MappedFile, int]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _checked(value.const_value, files, beside)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    tensor = attribute.as_tensor()
                    checked = _checked(tensor, files, beside)
                    if checked is not tensor:
                        node.attributes[name] = ir.AttrTensor(name, checked)


def _checked(
    tensor: ir.TensorProtocol, files: dict[Path, tuple[MappedFile, int]], beside: Path | None
) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        return _check_external(tensor, files, beside)
    if isinstance(tensor, ir.TensorProtoTensor):
        _check_raw(tensor)
    return tensor


def _check_raw(tensor: ir.TensorProtoTensor) -> None:
    if not tensor.raw.HasField("raw_data"):
        return
    if len(tensor.raw.raw_data) != tensor.nbytes:
        raise ModelError(
            f"The tensor '{tensor.name}' {list(tensor.shape)} needs {tensor.nbytes} bytes, "
            f"but {len(tensor.raw.raw_data)} are stored: the model is damaged. Export it again."
        )


def _check_external(
    tensor: ir.ExternalTensor, files: dict[Path, tuple[MappedFile, int]], beside: Path | None
) -> MappedTensor:
    path = Path(tensor.path)
    base = Path(tensor.base_dir or ".").resolve()
    if "\0" in str(path):
        raise ModelError(
            f"The weights '{tensor.name}' are said to be in {str(path)!r}, which is no name of a file: "
            "the model is damaged. Export it again."
        )
    folders = [base]
    if beside is not None:
        folders.append(beside)
        second = beside / tensor.location
        there = [p for p in (path, second) if os.path.exists(p)]  # noqa: PTH110 - takes names of any length
        path = there[0] if there else path
    real = Path(os.path.realpath(path))  # as `resolve`, but for loops of links: `stat` refuses those
    if not any(real.is_relative_to(folder) for folder in folders):
        raise ModelError(
            f"The weights '{tensor.name}' are said to be in '{path}', outside the model's own "
            f"folder '{base}', which is not allowed. Put the file into that folder."
        )
    if real not in files:
        try:
            status = real.stat()
        except OSError as error:
            raise ModelError(
                f"The model's weights '{tensor.name}' are in the file '{path}', which cannot be "
                f"read: {error.strerror}. Put it beside the model."
            ) from error
        if status.st_nlink > 1:
            raise ModelError(
                f"The weights file '{path}' has {status.st_nlink} hard links, which onnx_ir "
                "refuses to read because anything could be linked there. Make a real copy of it."
            )
        files[real] = MappedFile(real), status.st_size
    file, size = files[real]
    end = (tensor.offset or 0) + tensor.nbytes
    if end > size or (tensor.length is not None and tensor.length != tensor.nbytes):
        raise ModelError(
            f"The weights '{tensor.name}' {list(tensor.shape)} take the bytes up to {end} of "
            f"'{path}', which has {size}: the file is truncated, or belongs to "
            "another model. Copy it again."
        )
    return MappedTensor(tensor, file)
