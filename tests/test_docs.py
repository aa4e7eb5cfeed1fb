"""The documents against the repository: names of files, the example, and the two languages."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tools import operators

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BASES = (ROOT, ROOT / "src/hasten")


def python_of(readme: str) -> list[str]:
    """Its blocks of Python: the quickstart, and the search."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / readme).read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 2
    return [str(block) for block in blocks]


def without_comments(code: str) -> str:
    return re.sub(r" *#.*$", "", code, flags=re.M)


def headings(readme: str) -> list[int]:
    text = re.sub(r"^```.*?^```$", "", (ROOT / readme).read_text("utf-8"), flags=re.M | re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]


def test_the_readme_s_example_is_the_quickstart_and_runs(tmp_path: Path) -> None:
    script = ROOT / "examples/quickstart.py"
    assert python_of("README.md")[0] in script.read_text("utf-8")
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = re.search(r"largest difference from PyTorch (\S+)", done.stdout)
    assert shown is not None
    assert float(shown[1]) < 1e-5
    assert (tmp_path / "mlp.hasten").is_file()


def test_the_readme_s_search_is_an_example_that_runs(tmp_path: Path) -> None:
    script = ROOT / "examples/optimize.py"
    assert textwrap.indent(python_of("README.md")[1], "    ") in script.read_text("utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "95% confidence" in done.stdout or "lossless" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_both_readmes_have_the_same_parts() -> None:
    assert headings("README.md") == headings("README.zh-CN.md")
    for one, other in zip(python_of("README.md"), python_of("README.zh-CN.md"), strict=True):
        assert without_comments(one) == without_comments(other)
    for one, other in (("README.md", "README.zh-CN.md"), ("README.zh-CN.md", "README.md")):
        assert f"]({other})" in (ROOT / one).read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    links = {target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in target}
    broken = [target for target in links if not (document.parent / target).exists()]
    # Paths in backticks: from the root, or from the package.
    named = re.findall(
        r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|md|h|c|txt|toml)|(?:src|docs|tests|tools)/[\w./-]*)`", text
    )
    broken += [name for name in named if not any((base / name).exists() for base in BASES)]
    assert not broken


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs/decisions"
    linked = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text("utf-8")))
    assert linked == {path.name for path in folder.glob("0*.md")}


def test_make_targets_that_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    known = set(re.findall(r"^([a-z]+):", makefile, re.M))
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        named = re.findall(r"(?:^|`)make ([a-z]+)", text, re.M)
        assert set(named) <= known, document.name
    scripts = re.findall(r"\$\(BIN\)/python (\S+\.py)", makefile)
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_the_lists_of_operators_are_those_of_the_code() -> None:
    """`python tools/operators.py --markdown docs/coverage.md` writes them."""
    assert operators.document() in (ROOT / "docs/coverage.md").read_text("utf-8")
