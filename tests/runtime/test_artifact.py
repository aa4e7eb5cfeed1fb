from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.errors import ArtifactError
from hasten.runtime.artifact import ALIGNMENT, Verify, read_artifact, write_artifact
from hasten.runtime.manifest import parse_manifest

MANIFEST: dict[str, Any] = {
    "format": 1,
    "hasten": "0.1.0",
    "inputs": [],
    "outputs": [],
    "steps": [],
    "threads": None,
    "guards": [],
    "report": {},
}
MEMBERS = {"weights.bin": bytes(range(256)) * 9, "c/a.c": b"int a;\n", "graph.onnx": b""}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("artifact") / "intact.hasten"
    write_artifact(path, MANIFEST, MEMBERS)
    return path.read_bytes()


def open_bytes(folder: Path, data: bytes, verify: Verify = "now") -> dict[str, bytes]:
    path = folder / "given.hasten"
    path.write_bytes(data)
    return {name: bytes(view) for name, view in read_artifact(path, verify=verify).members.items()}


def test_members_come_back_aligned_and_the_file_is_reproducible(tmp_path: Path) -> None:
    weights = np.arange(5000, dtype=np.float32).reshape(50, 100)
    parts = {"weights.bin": [weights.data, b"tail", b""], "c/π.c": "π".encode()}
    write_artifact(tmp_path / "a", MANIFEST, parts)
    write_artifact(tmp_path / "b", MANIFEST, parts)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    artifact = read_artifact(tmp_path / "a")
    artifact.check_weights()
    assert bytes(artifact.weights) == weights.tobytes() + b"tail"
    assert data.index(weights.tobytes()) % ALIGNMENT == 0
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert archive.testzip() is None


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.integers(0, 10**9), flip=st.integers(1, 255))
def test_a_flipped_byte_is_reported_or_harmless(tmp_path: Path, intact: bytes, place: int, flip: int) -> None:
    data = bytearray(intact)
    data[place % len(data)] ^= flip
    try:
        members = open_bytes(tmp_path, bytes(data))
    except ArtifactError:
        return
    assert members == MEMBERS  # it was in the padding, or in a field that says nothing


def test_any_flipped_byte_in_any_member_is_reported(tmp_path: Path, intact: bytes) -> None:
    manifest_start = intact.index(b'{\n "format"')
    manifest_end = intact.index(b"\n}", manifest_start) + 2
    starts = {name: intact.index(data) for name, data in MEMBERS.items() if data}
    places = {(name, start + at) for name, start in starts.items() for at in (0, len(MEMBERS[name]) - 1)}
    places |= {("manifest.json", at) for at in range(manifest_start, manifest_end, 7)}
    for name, place in places:
        data = bytearray(intact)
        data[place] ^= 4
        with pytest.raises(ArtifactError, match=f"damaged.* member {re.escape(name)} is wrong"):
            open_bytes(tmp_path, bytes(data))


def test_a_file_cut_anywhere_is_reported(tmp_path: Path, intact: bytes) -> None:
    for length in [*range(0, len(intact), 97), len(intact) - 1]:
        with pytest.raises(ArtifactError, match=r"truncated|is empty|not a hasten artifact"):
            open_bytes(tmp_path, intact[:length])


def test_weights_may_be_checked_later_or_never(tmp_path: Path) -> None:
    weights = np.zeros(1 << 19, np.float32)  # enough to be hashed on another thread
    write_artifact(tmp_path / "a", MANIFEST, {"weights.bin": weights.data})
    data = bytearray((tmp_path / "a").read_bytes())
    data[ALIGNMENT + 77] = 1
    (tmp_path / "a").write_bytes(data)
    artifact = read_artifact(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"weights\.bin is wrong"):
            artifact.check_weights()
    with pytest.raises(ArtifactError, match=r"weights\.bin is wrong"):
        artifact.save(tmp_path / "b")
    with pytest.raises(ArtifactError, match=r"weights\.bin is wrong"):
        read_artifact(tmp_path / "a", verify="now")
    read_artifact(tmp_path / "a", verify="never").check_weights()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3, "hasten": "9.0"}, r"written by hasten 9\.0 in format 3.*upgrade"),
        ({"format": "1"}, "'format' is missing or of the wrong type"),
        ({"inputs": None}, "'inputs' is missing"),
        ({"steps": [{"kind": "gpu"}]}, "step of kind 'gpu'"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [1.5]}]}, "where a shape should be"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_artifact(tmp_path / "a", {**MANIFEST, **changes}, {})
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path / "a")


def test_a_manifest_nested_too_deeply() -> None:
    with pytest.raises(ArtifactError, match="not JSON"):
        parse_manifest(b"[" * 1_000_000)


def test_files_that_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot open .*No such file"):
        read_artifact(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"cannot open .*directory"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="is not a hasten artifact"):
        open_bytes(tmp_path, b"hello, this is text" * 100)
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("x", b"")
    with pytest.raises(ArtifactError, match="has no manifest"):
        read_artifact(tmp_path / "z")


def test_a_member_that_is_missing_or_too_many(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", MANIFEST, MEMBERS)
    with zipfile.ZipFile(tmp_path / "a") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    fewer = {name: data for name, data in contents.items() if name != "c/a.c"}
    more = {**contents, "new": b""}
    for members, message in ((fewer, "has no member c/a.c"), (more, "new is not in its manifest")):
        with zipfile.ZipFile(tmp_path / "b", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        with pytest.raises(ArtifactError, match=message):
            read_artifact(tmp_path / "b")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    # a process with a limit on the size of files has, in effect, a full disk
    script = (
        "import resource, signal, sys\n"
        "from hasten.runtime.artifact import write_artifact\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write_artifact(sys.argv[1], {}, {'weights.bin': bytes(1 << 20)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert "ArtifactError: cannot write" in done.stderr, done.stderr
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ArtifactError, match=r"cannot write .*No such file"):
        write_artifact(tmp_path / "absent" / "a", MANIFEST, {})
    with pytest.raises(ValueError, match="interrupted"):
        write_artifact(path, MANIFEST, _Interrupting())
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


class _Interrupting(dict[str, bytes]):
    def items(self) -> Any:
        yield "weights.bin", b"abc"
        raise ValueError("interrupted")
