"""Logs hold each candidate's numbers, as their own libraries read them."""

from __future__ import annotations

import dataclasses
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.search.records import found, refused

from hasten.errors import MissingDependencyError, OptionError
from hasten.search.logs import Log, log_to, numbers
from hasten.search.record import CandidateRecord, Outcome, SearchRecord
from hasten.search.status import Status


def records_of(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, checksum, data, checksum."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def moment(*candidates: CandidateRecord) -> Status:
    return Status("timing", "timing", candidates, "lossless", 1.0, None)


def written(file: Path, patience: float) -> set[str]:
    """Names of the numbers in a file that a thread writes."""
    from tensorboardX.proto.event_pb2 import Event

    end = time.monotonic() + patience
    names: set[str] = set()
    while not names and time.monotonic() < end:
        time.sleep(0.05)
        events = [Event.FromString(record) for record in records_of(file)]
        names = {v.tag for e in events for v in e.summary.value if v.HasField("simple_value")}
    return names


class Kept:
    """A writer that notes what it is told; its disk may be full."""

    def __init__(self, *, full: bool = False) -> None:
        self.steps: list[tuple[int, set[str]]] = []
        self.closed = False
        self._full = full

    def write(self, step: int, candidate: CandidateRecord, changed: Mapping[str, float]) -> None:
        if self._full:
            raise OSError(28, "No space left on device")
        self.steps.append((step, set(changed)))

    def close(self, record: SearchRecord) -> None:
        self.closed = True


def test_each_change_is_written_once_and_when_it_is_known() -> None:
    kept = Kept()
    log = Log(kept, "kept")
    original, lossless, narrow, *_ = found().candidates
    early = dataclasses.replace(narrow, bound=None, outcome=Outcome.NOT_TRIED)
    log(moment(lossless, original, early))
    log(moment(lossless, original, early))
    assert [step for step, _ in kept.steps] == [1, 2, 3]
    log(moment(lossless, original, narrow))
    assert kept.steps[3:] == [(3, {"drop/held_out", "drop/at_most"})]
    log.close(found())
    assert [step for step, _ in kept.steps[4:]] == [4, 5, 6, 7, 8]
    assert kept.closed


def test_a_full_disk_is_said_at_the_end() -> None:
    log = Log(Kept(full=True), "tensorboard:runs")
    log(moment(*found().candidates))
    log(moment(*found().candidates))
    with pytest.raises(OptionError, match="--log tensorboard:runs: cannot write: No space left"):
        log.close(found())


def test_numbers_are_what_is_known_and_finite() -> None:
    first, _, _, chosen, *_ = found().candidates
    assert numbers(chosen)["drop/at_most"] == 0.0046
    assert "drop/at_most" not in numbers(first)
    assert "drop/at_most" not in numbers(refused().candidates[2])  # unbounded


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `log` is not installed")
    from tensorboardX.proto.event_pb2 import Event

    log = log_to(f"tensorboard:{tmp_path / 'runs'}")
    log(moment(*found().candidates[:3]))
    (file,) = (tmp_path / "runs").iterdir()
    assert written(file, patience=5.0) >= {"latency_ms", "speed/to_original"}  # while the search runs
    log.close(found())
    scalars, texts = {}, []
    for record in records_of(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars[value.tag, event.step] = value.simple_value
            else:
                texts += [text.decode() for text in value.tensor.string_val]
    for step, candidate in enumerate(found().candidates, 1):
        for name, value in numbers(candidate).items():
            assert scalars[name, step] == pytest.approx(value)
        assert any(candidate.name in text and candidate.reason in text for text in texts)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `log` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    log_to("wandb:speed").close(found())
    (file,) = tmp_path.rglob("*.wandb")
    content, patience = b"", 100
    while b"drop/at_most" not in content and patience:  # a process of its own writes the file
        time.sleep(0.1)
        content, patience = file.read_bytes(), patience - 1
    for text in ("drop/at_most", "int8 (percentile), 23 layers", found().command):
        assert text.encode() in content


@pytest.mark.parametrize("place", ["tensorboard", "tensorboard:", "mlflow", ""])
def test_unknown_logs(place: str) -> None:
    with pytest.raises(OptionError, match="write tensorboard:FOLDER"):
        log_to(place)


@pytest.mark.parametrize(("place", "package"), [("tensorboard:x", "tensorboardX"), ("wandb", "wandb")])
def test_missing_packages_are_named(place: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.writer", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hasten\[log\]'"):
        log_to(place)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `log` is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write"):
        log_to(f"tensorboard:{tmp_path / 'file' / 'runs'}")
