"""The artifact file: a stored zip with page-aligned members, written at once or not at all, and mapped.

The layout is in docs/architecture.md; why the weights are verified apart from the rest, in
docs/decisions/0002-weights-verified-in-background.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from hasten.errors import ArtifactError
from hasten.runtime.manifest import Manifest, Member, parse_manifest
from hasten.runtime.sparse import SPARSE, expand

ALIGNMENT = 4096
WEIGHTS = "weights.bin"
GRAPH_WEIGHTS = "graph.data"
"""Weights of `graph.onnx`, where the artifact has them: no run needs them, and opening does not read them."""
_MANIFEST = "manifest.json"

Buffers = bytes | memoryview | Sequence[bytes | memoryview]
Verify = Literal["background", "now", "never"]

_CHUNK = 8 << 20
_SMALL_WEIGHTS = 1 << 20  # hashed in less time than a thread takes to start
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_ZIP64_EXTRA = 20
_ZIP64_SIZE = (1 << 31) - 1  # where Python's zipfile wants to know beforehand
_PADDING_ID = 0xD935  # the extra field that Android's zipalign pads with


def write_artifact(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], members: Mapping[str, Buffers]
) -> None:
    """Writes an artifact, to a temporary name that is renamed when all is on the disk.

    Args:
        path: Where to; an existing file is replaced.
        manifest: The manifest without "members", which is added here.
        members: Contents by name, each a buffer or a list of buffers that follow one another.

    Raises:
        ArtifactError: The file cannot be written; nothing is left behind.
    """
    with _replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        described = {}
        for name, contents in members.items():
            parts = [contents] if isinstance(contents, bytes | memoryview) else contents
            member = _write_member(archive, file, name, parts)
            described[name] = {"bytes": member.bytes, "sha256": member.sha256}
        text = json.dumps({**manifest, "members": described}, indent=1).encode()
        _write_member(archive, file, _MANIFEST, [text])


def read_artifact(path: str | os.PathLike[str], *, verify: Verify = "background") -> Artifact:
    """Maps an artifact and checks everything in it but the weights.

    Args:
        path: The file.
        verify: When the weights' checksum is compared: "background" (on another thread, whose verdict
            `Artifact.check_weights` awaits), "now" or "never".

    Raises:
        ArtifactError: There is no such file, or it is truncated, damaged, of a newer format or not an
            artifact.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ArtifactError(f"{path} is empty: compile the model again")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # Hashed through a mapping of its own, page by page given back: what no run ever reads, the
            # rows of an embedding for one, then does not count as this process's memory.
            hashed = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            data = memoryview(mapped)
            places, crc = _locate_members(path, file, data)
    except OSError as error:
        raise ArtifactError(f"cannot open {path}: {error.strerror or error}") from None
    if _MANIFEST not in places:
        raise ArtifactError(f"{path} is a zip file but not a hasten artifact: it has no {_MANIFEST}")
    members = {name: data[start:end] for name, (start, end) in places.items()}
    text = members.pop(_MANIFEST)
    if zlib.crc32(text) != crc:
        raise _damaged(path, _MANIFEST)
    try:
        manifest = parse_manifest(bytes(text))
    except ArtifactError as error:
        raise ArtifactError(f"cannot open {path}: {error}") from None
    _check_members(path, manifest, members)
    weights = members.get(WEIGHTS, memoryview(b""))
    if SPARSE in members:
        if weights:
            raise ArtifactError(f"{path} is damaged: it has its weights twice; compile the model again")
        try:
            members[WEIGHTS] = expand(members[SPARSE])
        except ArtifactError as error:
            raise ArtifactError(f"cannot open {path}: {error}") from None
    check = _WeightsCheck(
        hashed, places.get(WEIGHTS, (0, 0)), manifest.members[WEIGHTS].sha256 if weights else ""
    )
    if weights and verify != "never":
        check.start(background=verify == "background" and len(weights) > _SMALL_WEIGHTS)
    artifact = Artifact(path, manifest, members, data, check)
    if verify == "now":
        artifact.check_weights()
    return artifact


@dataclass(frozen=True, eq=False)
class Artifact:
    """A mapped artifact. Its memory lives as long as something refers to it.

    Attributes:
        path: The file it was read from.
        manifest: What it says of itself.
        members: Contents by name, read-only; `weights.bin` is unverified until `check_weights`, `graph.data`
            until `check_member`. Weights that are stored as `weights.sparse` are here as `weights.bin` too.
    """

    path: Path
    manifest: Manifest
    members: Mapping[str, memoryview]
    _data: memoryview
    _check: _WeightsCheck

    @property
    def weights(self) -> memoryview:
        """The contents of `weights.bin`; empty if there is none."""
        return self.members.get(WEIGHTS, memoryview(b""))

    def check_weights(self) -> None:
        """Awaits the verdict on the weights.

        Raises:
            ArtifactError: They are damaged.
        """
        if not self._check.passed():
            raise _damaged(self.path, WEIGHTS)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Copies the artifact to another file.

        Raises:
            ArtifactError: The file cannot be written, or the weights are damaged.
        """
        self.check_weights()
        with _replacing(Path(path)) as file:
            for start in range(0, len(self._data), _CHUNK):
                file.write(self._data[start : start + _CHUNK])

    def close(self) -> None:
        """Ends the verification of the weights if it is still under way."""
        self._check.cancel()


class _WeightsCheck:
    """Compares a checksum, here or on another thread; hashlib leaves the interpreter free meanwhile."""

    def __init__(self, file: mmap.mmap, place: tuple[int, int], expected: str) -> None:
        self._file = file
        self._place = place
        self._expected = expected
        self._verdict: bool | None = True  # None: being worked out
        self._cancelled = False
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def start(self, *, background: bool) -> None:
        self._verdict = None
        if background:
            self._thread = threading.Thread(target=self._hash, name="hasten-verify", daemon=True)
            self._thread.start()
        else:
            self._hash()

    def passed(self) -> bool:
        if self._verdict is None and self._thread is not None and self._process == os.getpid():
            self._thread.join()
        if self._verdict is None:
            # It was cancelled, or we are a child by fork and the thread stayed with the parent.
            self._cancelled = False
            self._hash()
        return self._verdict is True

    def cancel(self) -> None:
        self._cancelled = True

    def _hash(self) -> None:
        digest = hashlib.sha256()
        first, last = self._place
        data = memoryview(self._file)
        for start in range(first, last, _CHUNK):
            if self._cancelled:
                return
            stop = min(start + _CHUNK, last)
            digest.update(data[start:stop])
            page = start - start % mmap.PAGESIZE
            if hasattr(mmap, "MADV_DONTNEED"):
                self._file.madvise(mmap.MADV_DONTNEED, page, stop - page)
        self._verdict = digest.hexdigest() == self._expected


def _write_member(
    archive: zipfile.ZipFile, file: IO[bytes], name: str, contents: Sequence[bytes | memoryview]
) -> Member:
    views = [memoryview(part) for part in contents]
    size = sum(view.nbytes for view in views)
    large = size >= _ZIP64_SIZE
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    before = file.tell() + _LOCAL_HEADER.size + len(name.encode()) + 6 + (_ZIP64_EXTRA if large else 0)
    padding = -before % ALIGNMENT
    info.extra = struct.pack("<HHH", _PADDING_ID, 2 + padding, ALIGNMENT) + bytes(padding)
    digest = hashlib.sha256()
    with archive.open(info, "w", force_zip64=large) as member:
        for view in views:
            flat = view.cast("B") if view.nbytes else memoryview(b"")
            for start in range(0, len(flat), _CHUNK):
                chunk = flat[start : start + _CHUNK]
                digest.update(chunk)
                member.write(chunk)
    return Member(size, digest.hexdigest())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends, and vanishes if it raises."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from None
    finally:
        # Gone already if all went well; its folder may not even exist.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _locate_members(path: Path, file: IO[bytes], data: memoryview) -> tuple[dict[str, tuple[int, int]], int]:
    """Start and end of each member in the file, and the manifest's CRC-32."""
    places = {}
    crc = 0
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                places[info.filename] = _locate(info, data)
                if info.filename == _MANIFEST:
                    crc = info.CRC
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        if bytes(data[:4]) == b"PK\x03\x04":
            raise ArtifactError(
                f"{path} is truncated or damaged ({error}): copy it or compile the model again"
            ) from None
        raise ArtifactError(f"{path} is not a hasten artifact") from None
    return places, crc


def _locate(info: zipfile.ZipInfo, data: memoryview) -> tuple[int, int]:
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
    signature, name, extra = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name + extra
    end = start + info.file_size
    if signature != b"PK\x03\x04" or end > len(data):
        raise zipfile.BadZipFile(f"member {info.filename!r} is not where it should be")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise zipfile.BadZipFile(f"member {info.filename!r} is compressed")
    return start, end


def _check_members(path: Path, manifest: Manifest, members: Mapping[str, memoryview]) -> None:
    """Compares the members with the manifest, the contents of the weights excepted."""
    for name in manifest.members.keys() - members.keys():
        raise ArtifactError(f"{path} is damaged: it has no member {name}; copy it or compile again")
    for name in members.keys() - manifest.members.keys():
        raise ArtifactError(f"{path} is damaged: member {name} is not in its manifest")
    for name, member in manifest.members.items():
        data = members[name]
        if len(data) != member.bytes:
            raise _damaged(path, name)
        if name not in (WEIGHTS, GRAPH_WEIGHTS) and hashlib.sha256(data).hexdigest() != member.sha256:
            raise _damaged(path, name)


def check_member(artifact: Artifact, name: str) -> memoryview:
    """The contents of a member that opening does not read, after a look at its checksum.

    Raises:
        ArtifactError: There is no such member, or it is damaged.
    """
    if name not in artifact.members:
        raise ArtifactError(f"{artifact.path} has no member {name}")
    data = artifact.members[name]
    if name not in artifact.manifest.members:
        return data  # made of a member that was checked at opening
    if hashlib.sha256(data).hexdigest() != artifact.manifest.members[name].sha256:
        raise _damaged(artifact.path, name)
    return data


def _damaged(path: Path, name: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged: the checksum of its member {name} is wrong; copy it or compile the model again"
    )
