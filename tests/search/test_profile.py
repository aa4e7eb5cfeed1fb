"""Profiles of small models: what was recorded against their manifests and graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.ops.host import leave_to_host

from hasten.api import CompileOptions, compile_payload
from hasten.errors import ArtifactError
from hasten.runtime.artifact import read_artifact, write_artifact
from hasten.runtime.manifest import NativeStep
from hasten.search.measure_flops import count_flops
from hasten.search.profile import Peaks, Profile, Recording, measure_peaks, merge, record, summarize
from hasten.search.profile_record import Count
from hasten.search.profile_timeline import divide

PEAKS = Peaks({"f32": 100.0, "bf16": 200.0}, 10.0)
PERCEPTRON = (
    "(float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) "
    "e = MatMul(d, w) f = Relu(e) y = Softmax(f) }"
)
CONVOLUTIONS = (
    "(float[1, 16, h, 20] x) => (float[1, 16] y) { a = Conv<pads = [1, 1, 1, 1]>(x, k) b = Relu(a)"
    " c = Conv<pads = [1, 1, 1, 1], group = 16>(b, g) d = GlobalAveragePool(c) y = Flatten(d) }"
)
PICTURES = (
    "(float[n, 16, 96, 96] x) => (float[n, 16] y) { a = Conv<pads = [1, 1, 1, 1]>(x, k) b = Relu(a)"
    " c = Conv<pads = [1, 1, 1, 1]>(b, k) d = GlobalAveragePool(c) y = Flatten(d) }"
)
"""The convolutions take one picture at a time."""
WITH_HOST = "(float[n, 64] x) => (int64[2, m] y) { a = MatMul(x, w) i = NonZero(a) y = Mul(i, i) }"
PADDED = (
    "(float[b, s, 64] x, int64[b, s] mask) => (float[b, s, 64] z) { m = Cast<to = 9>(mask)"
    " keep = Unsqueeze(m, middle) a = MatMul(x, w)"
    " b = Attention<q_num_heads = 2, kv_num_heads = 2>(a, a, a, keep)"
    " c = MatMul(b, w) d = Attention<q_num_heads = 2, kv_num_heads = 2>(c, c, c, keep)"
    " y = MatMul(d, w) z = Relu(y) }"
)
CONSTANTS = {"w": (64, 64), "k": (16, 16, 3, 3), "g": (16, 1, 3, 3)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def compiled(text: str, cache: Path, folder: Path) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g {text}')
    rng = np.random.default_rng(0)
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in CONSTANTS.items():
        if name in read:
            array = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    if "middle" in read:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "middle"))
    onnx.save(model, folder / "model.onnx")
    payload = compile_payload(folder / "model.onnx", CompileOptions(cache=cache))
    write_artifact(folder / "model.hasten", payload.manifest, payload.members)
    return folder / "model.hasten"


def recorded(text: str, x: np.ndarray, cache: Path, folder: Path) -> tuple[Path, Recording]:
    path = compiled(text, cache, folder)
    return path, record(path, {"x": x}, runs=7, threads=2, cache=cache)


@pytest.mark.parametrize(
    ("text", "shape", "flops"),
    [
        (PERCEPTRON, (300, 64), 3 * 2 * 300 * 64 * 64),
        (CONVOLUTIONS, (1, 16, 30, 20), 2 * 16 * 30 * 20 * (16 * 9 + 9)),
        (PICTURES, (9, 16, 96, 96), 9 * 2 * 2 * 16 * 96 * 96 * 16 * 9),
    ],
    ids=["perceptron", "convolutions", "pictures"],
)
def test_what_is_recorded(text: str, shape: tuple[int, ...], flops: int, cache: Path, tmp_path: Path) -> None:
    path, found = recorded(text, np.ones(shape, np.float32), cache, tmp_path)
    artifact = read_artifact(path)
    (step,) = artifact.manifest.steps
    assert isinstance(step, NativeStep)
    assert tuple(title for _, _, title in found.kernels) == step.kernels
    assert len(found.logs) == len(list(found.timelines)) == 7
    # Of each run the marks that were made are kept, and no more is in memory at a time than one run's spans.
    assert all(log.marks.shape[1] == 1 + log.marks[:, 0, 0].max() for log in found.logs)
    assert isinstance(found.timelines, Iterator)
    for run in found.timelines:
        division = divide(run)
        assert set(division.kernels) == set(range(len(found.kernels)))
        assert min(division.kernels.values()) > 0
        parts = [*division.kernels.values(), division.barriers, division.dispatch, division.python]
        assert sum(parts) == pytest.approx(run.end - run.start)
        assert min(parts) >= 0
    assert sum(count.flops for count in found.counts) == flops
    # Counting operators of the graph gives the same, where all its shapes are known.
    graph = onnx.load_from_string(bytes(artifact.members["graph.onnx"])).graph
    assert count_flops(graph, {"n": shape[0], "h": 30}) in (flops, None)
    assert all(count.bytes > 0 for count in found.counts)


@pytest.mark.parametrize("threads", [1, 2])
def test_of_a_padded_batch_only_its_tokens_count(threads: int, cache: Path, tmp_path: Path) -> None:
    path = compiled(PADDED, cache, tmp_path)
    lengths = np.array([3, 40, 0, 17])
    mask = (np.arange(40) < lengths[:, None]).astype(np.int64)
    feeds = {"x": np.ones((4, 40, 64), np.float32), "mask": mask}
    found = record(path, feeds, runs=3, threads=threads, cache=cache)
    by_title = {title: count for (_, _, title), count in zip(found.kernels, found.counts, strict=True)}
    products = [count for title, count in by_title.items() if title.startswith("MatMul")]
    attentions = [count for title, count in by_title.items() if title.startswith("Attention")]
    tokens, pairs = int(lengths.sum()), int((lengths**2).sum())
    product = 2 * tokens * 64 * 64
    # queries, keys and values are computed as one
    assert [c.flops for c in products] == [3 * product, 3 * product, product]
    assert [c.flops for c in attentions] == [2 * 2 * pairs * (32 + 32)] * 2
    assert products[2].bytes == 4 * (2 * tokens * 64 + 64 * 64)
    # The same artifact again: what counts is this run's mask.
    full = record(path, {**feeds, "mask": np.ones_like(mask)}, runs=3, threads=threads, cache=cache)
    assert sum(c.flops for c in full.counts) == 7 * 2 * 160 * 64 * 64 + 2 * 2 * 2 * 4 * 40**2 * (32 + 32)


def test_summary(cache: Path, tmp_path: Path) -> None:
    _, recording = recorded(PERCEPTRON, np.ones((300, 64), np.float32), cache, tmp_path)
    found = summarize("m", recording, {"x": (300, 64)}, PEAKS)
    assert found.threads == 2
    assert found.runs == 7
    assert found.run_us.low <= found.run_us.median <= found.run_us.high
    typical = recording.typical
    assert (typical.end - typical.start) / 1e3 == pytest.approx(found.run_us.median)
    assert typical in recording.timelines
    lost = found.barriers_us + found.dispatch_us + found.python_us
    assert found.sum_us == pytest.approx(sum(k.us for k in found.kernels) + lost)
    assert sum(k.share for k in found.kernels) == pytest.approx(found.kernels_us / found.sum_us)
    product = found.kernels[1]
    assert product.flops == 2 * 300 * 64 * 64
    assert product.gflops == pytest.approx(product.flops / product.us / 1e3)
    assert product.bytes == 4 * (300 * 64 + 64 * 64 + 300 * 64)
    assert product.gigabytes_per_second == pytest.approx(product.bytes / product.us / 1e3)
    assert product.bound == "compute"
    assert product.peak_share == pytest.approx(product.flops / 100e3 / product.us)
    at_peak = sum(min(k.us, k.peak_share * k.us) for k in found.kernels)
    assert found.peak_share == pytest.approx(at_peak / found.kernels_us)
    check_merged(found)


def check_merged(found: Profile) -> None:
    """Kernels with the same code as one."""
    same = [k for k in found.kernels if k.function == found.kernels[0].function]
    assert len(same) > 1
    merged = merge(same)
    assert merged.number == 0
    assert merged.us == pytest.approx(sum(k.us for k in same))
    assert merged.share == pytest.approx(sum(k.share for k in same))
    rates = [k.gflops for k in same]
    assert min(rates) <= merged.gflops <= max(rates)
    shares = [k.peak_share for k in same]
    assert min(shares) <= merged.peak_share * (1 + 1e-9) <= max(shares) * (1 + 2e-9)


def test_host_steps_are_timed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_to_host(monkeypatch, "NonZero")
    _, recording = recorded(WITH_HOST, np.ones((3, 64), np.float32), cache, tmp_path)
    assert recording.hosts == (("NonZero",),)
    run = next(recording.timelines)
    assert [call.part for call in run.calls] == [0, 1]
    (host,) = run.hosts
    assert run.calls[0].end <= host.start < host.end <= run.calls[1].start
    found = summarize("m", recording, {}, PEAKS)
    assert found.hosts[0].us > 0
    assert {k.part for k in found.kernels} == {0, 1}


@pytest.mark.parametrize(
    ("count", "us", "bound"),
    [
        (Count(10**6, 10, 32), 10.0, "compute"),
        (Count(10**6, 10, 16), 5.0, "compute"),
        (Count(10**6, 10**6, 32), 100.0, "memory"),
        (Count(0, 0, 32), 0.0, "memory"),
    ],
)
def test_the_roofline(count: Count, us: float, bound: str) -> None:
    assert PEAKS.floor_us(count) == (pytest.approx(us), bound)


def test_without_bf16_its_products_count_as_f32() -> None:
    assert Peaks({"f32": 100.0}, 10.0).floor_us(Count(10**6, 10, 16)) == (pytest.approx(10), "compute")


def test_peaks_are_positive() -> None:
    found = measure_peaks(1)
    assert found.gflops["f32"] > 0
    assert found.gigabytes_per_second > 0


def test_an_artifact_without_marks_is_refused(cache: Path, tmp_path: Path) -> None:
    path = compiled(PERCEPTRON, cache, tmp_path)
    artifact = read_artifact(path)
    payload = compile_payload(tmp_path / "model.onnx", CompileOptions(cache=cache))
    members = {
        name: bytes(data).replace(b"HASTEN_MARK", b"OLD") if name.startswith("c/") else bytes(data)
        for name, data in artifact.members.items()
    }
    write_artifact(tmp_path / "old.hasten", {**payload.manifest, "hasten": "0.0.9"}, members)
    with pytest.raises(ArtifactError, match=r"0\.0\.9.*no marks.*compile the model again"):
        record(tmp_path / "old.hasten", {"x": np.ones((3, 64), np.float32)}, cache=cache)
