"""The version of the kernels changes with their sources, and with nothing else."""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

import pytest

from hasten.codegen.sources import SEARCHED, kernels_version


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is hashed."""
    own = Path(str(importlib.resources.files("hasten")))
    for package in SEARCHED:
        if (own / package).is_dir():
            shutil.copytree(own / package, tmp_path / package, dirs_exist_ok=True)
        else:
            shutil.copy(own / package, tmp_path / package)
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    return tmp_path


def test_the_same_sources_have_the_same_version(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = kernels_version("1.2.3")
    assert copied.startswith("1.2.3+")
    (sources / "codegen" / "notes.txt").write_text("no source")
    text = sources / "codegen" / "gemm.py"
    text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    assert kernels_version("1.2.3") == copied
    monkeypatch.undo()
    assert kernels_version("1.2.3") == copied


@pytest.mark.parametrize("name", ["codegen/math/power.py", "runtime/csrc/pool.c", "target.py"])
def test_a_change_of_any_makes_another(name: str, sources: Path) -> None:
    before = kernels_version("1.2.3")
    with (sources / name).open("a") as file:
        file.write("\n")
    assert kernels_version("1.2.3") != before


def test_a_search_depends_on_more_than_kernels(sources: Path) -> None:
    before = kernels_version("1.2.3"), kernels_version("1.2.3", SEARCHED)
    with (sources / "passes" / "quantize.py").open("a") as file:
        file.write("# one more line\n")
    assert kernels_version("1.2.3") == before[0]
    assert kernels_version("1.2.3", SEARCHED) != before[1]
