"""Whole models stored in bf16, against themselves in f32 on real inputs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

import hasten
from benchmarks import models
from hasten.api import CompileOptions, compile_payload
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import Session, open_session
from hasten.target import TARGETS, Target, runs_here, with_factors

WITHOUT = [t for t in TARGETS if runs_here(t) and not t.factors]
"""Instructions of this machine that do not know bf16, the best last."""

COSINE = 0.999
SENTENCES = 200


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def embeddings(session: Session, texts: list[str]) -> np.ndarray:
    """The mean of the shown tokens' states, as the model is used."""
    found = []
    for start in range(0, len(texts), 20):
        feeds = models.sentence_inputs(texts[start : start + 20])
        states = session.run(feeds)["last_hidden_state"]
        shown = feeds["attention_mask"][..., None].astype(np.float32)
        found.append((states * shown).sum(1) / shown.sum(1))
    return np.concatenate(found)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def open_without_instructions(source: object, target: Target, cache: Path) -> Session:
    """The model in bf16 as a processor without its instructions would open it."""
    payload = compile_payload(source, CompileOptions(precision="bf16", target=target.name, cache=cache))
    members = {
        n: m for n, m in payload.members.items() if not n.startswith("code/") or target.name + "." in n
    }
    assert f"code/{target.name}.so" in members
    write_artifact(cache / "without.hasten", payload.manifest, members)
    return open_session(cache / "without.hasten")


def test_sentence_embeddings_keep_their_direction(cache: Path) -> None:
    texts = models.news(SENTENCES)
    assert len(texts) == SENTENCES
    plain = embeddings(hasten.compile(models.minilm(), cache=cache), texts)
    stored = hasten.compile(models.minilm(), precision="bf16", cache=cache)
    found = embeddings(stored, texts)
    assert cosines(plain, found).min() >= COSINE
    assert not np.array_equal(plain, found)  # it was in bf16
    # The same artifact on processors without the instructions: the same to rounding.
    for target in WITHOUT:
        if target != stored.target:
            without = embeddings(open_without_instructions(models.minilm(), target, cache), texts[:20])
            assert cosines(without, found[:20]).min() >= 0.9999


def test_padding_is_left_out_of_bf16(cache: Path) -> None:
    session = hasten.compile(models.minilm(), precision="bf16", cache=cache)
    feeds = models.sentence_inputs(models.news(5))
    together = session.run(feeds)["last_hidden_state"]
    for row, mask in enumerate(feeds["attention_mask"]):
        alone = session.run({name: a[row : row + 1, : mask.sum()] for name, a in feeds.items()})
        np.testing.assert_allclose(together[row, : mask.sum()], alone["last_hidden_state"][0], atol=1e-5)


def test_an_artifact_has_code_for_processors_without_bf16(tmp_path: Path, cache: Path) -> None:
    session = hasten.compile(models.mlp_onnx(), precision="bf16", target=WITHOUT[-1].name, cache=cache)
    session.save(tmp_path / "mlp.hasten")
    with zipfile.ZipFile(tmp_path / "mlp.hasten") as archive:
        members = set(archive.namelist())
    assert {f"code/{t.name}.so" for t in with_factors(WITHOUT[-1], {"bf16"})} <= members


def test_efficientnet_answers_as_in_f32(cache: Path) -> None:
    pictures, _ = models.labelled_pictures()
    assert len(pictures) == 20
    path = models.efficientnet_lite0_onnx()
    answers = []
    for precision in ("f32", "bf16"):
        session = hasten.compile(path, precision=precision, cache=cache)
        (name,) = [i.name for i in session.inputs]
        (found,) = session.run({name: pictures}).values()
        answers.append(found.argmax(1))
    np.testing.assert_array_equal(*answers)
