"""MODEL on the command line: an artifact, or something that is compiled on the way; and input files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hasten.api import CompileOptions, compile_payload
from hasten.cli.console import Steps, stderr
from hasten.errors import OptionError
from hasten.runtime.artifact import GRAPH_WEIGHTS, WEIGHTS, read_artifact, write_artifact
from hasten.runtime.checks import element
from hasten.runtime.manifest import OBJECT, Manifest, TensorInfo, parse_manifest
from hasten.runtime.sparse import SPARSE
from hasten.search.data_files import DAMAGED
from hasten.search.measure_inputs import make_inputs, parse_shapes

Array = NDArray[Any]


@dataclass(frozen=True)
class Contents:
    """What an artifact holds, be it a file or not yet.

    Attributes:
        manifest: parsed.
        raw: the manifest's JSON, which has more for people.
        sizes: bytes of each member.
        texts: members but the weights and the code.
    """

    manifest: Manifest
    raw: Mapping[str, Any]
    sizes: Mapping[str, int]
    texts: Mapping[str, bytes]

    @property
    def graph(self) -> onnx.GraphProto:
        """The optimized graph, without weights."""
        return onnx.load_from_string(self.texts["graph.onnx"]).graph


def is_artifact(path: Path) -> bool:
    """Whether a path is an artifact, or means to be one."""
    if path.suffix == ".hasten":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return "manifest.json" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_contents(model: Path) -> Contents:
    """Reads an artifact, or compiles a model in memory.

    Raises:
        HastenError: as `read_artifact` and `hasten.compile`.
    """
    if not is_artifact(model):
        with Steps(stderr()).shown() as steps:
            payload = compile_payload(str(model), progress=steps)
        members = {name: b"".join(_parts(part)) for name, part in payload.members.items() if _is_text(name)}
        sizes = {name: sum(map(len, _parts(part))) for name, part in payload.members.items()}
        text = json.dumps({**payload.manifest, "members": {}}).encode()
        return Contents(parse_manifest(text), payload.manifest, sizes, members)
    artifact = read_artifact(model)
    artifact.close()
    with zipfile.ZipFile(model) as archive:
        raw = json.loads(archive.read("manifest.json"))
    sizes = {name: member.bytes for name, member in artifact.manifest.members.items()}
    members = {name: bytes(data) for name, data in artifact.members.items() if _is_text(name)}
    return Contents(artifact.manifest, raw, sizes, members)


@contextmanager
def as_artifact(model: Path, *, threads: int | None = None) -> Iterator[tuple[Path, float | None]]:
    """An artifact file for a model, and the seconds that its compilation took, if it was needed."""
    if is_artifact(model):
        yield model, None
        return
    with TemporaryDirectory(prefix="hasten-") as folder:
        path = Path(folder) / f"{model.stem or 'model'}.hasten"
        with Steps(stderr()).shown() as steps:
            payload = compile_payload(str(model), CompileOptions(threads=threads), progress=steps)
            steps("writing the artifact")
            write_artifact(path, payload.manifest, payload.members)
            seconds = steps.seconds
        yield path, seconds


def read_inputs(path: Path) -> dict[str, Array]:
    """Arrays from an .npz file.

    Raises:
        OptionError: there is no such file, or it is not one, or it holds Python objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise OptionError(f"{path} holds one array: write an .npz with numpy.savez(file, name=array)")
        with loaded:
            return dict(loaded)
    except FileNotFoundError:
        raise OptionError(f"there is no file {path}: check the path") from None
    except DAMAGED as error:
        raise OptionError(
            f"{path} cannot be read as an .npz file of arrays ({error}): write it with numpy.savez"
        ) from None


def _is_text(name: str) -> bool:
    return name not in (WEIGHTS, SPARSE, GRAPH_WEIGHTS) and not name.startswith(("code/", "foreign/"))


def _parts(member: bytes | memoryview | list[memoryview]) -> list[bytes | memoryview]:
    return list(member) if isinstance(member, list) else [member]


def artifact_inputs(
    path: Path, input_file: Path | None, shapes: tuple[str, ...], *, batch: int = 1
) -> dict[str, Array]:
    """Inputs for an artifact: from a file, or made up.

    Raises:
        HastenError: as `read_inputs` and `make_inputs`.
    """
    if input_file is not None:
        if shapes:
            raise OptionError("--shape is for made-up inputs: leave it out, or leave out --input")
        given = read_inputs(input_file)
        inputs = read_artifact(path, verify="never").manifest.inputs
        return given | {i.name: _named(i, given[i.name]) for i in inputs if i.name in given}
    artifact = read_artifact(path, verify="never")
    graph = onnx.load_from_string(bytes(artifact.members["graph.onnx"])).graph
    return make_inputs(artifact.manifest.inputs, parse_shapes(shapes), batch=batch, graph=graph)


def _named(info: TensorInfo, array: Array) -> Array:
    """An array of bytes as the element type of its input: .npz files have no name for bfloat16 and such."""
    if array.dtype.kind != "V" or info.dtype == OBJECT:
        return array
    wanted = element(info.dtype)
    return array.view(wanted) if wanted.kind == "V" and wanted.itemsize == array.dtype.itemsize else array
