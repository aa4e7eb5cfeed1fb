"""The public surface: these names and no others, and NumPy alone to import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hasten

NAMES = [
    "HastenError", "Pruned", "Quantization", "Session", "Target", "TensorInfo", "Training", "Tuning",
    "__version__", "compile", "errors", "open", "optimize", "prune",
]  # fmt: skip

# Runs where nothing but the standard library, NumPy and hasten can be imported.
ALONE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "hasten"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import hasten
assert callable(hasten.open) and hasten.Session
compile_side = [m for m in sys.modules if m.startswith(("hasten.api", "hasten.codegen", "hasten.graph"))]
assert not compile_side, compile_side
try:
    hasten.compile
except hasten.HastenError as error:
    print(error)
"""


def test_the_public_names() -> None:
    assert sorted(NAMES) == NAMES == hasten.__all__
    assert len(NAMES) <= 14
    for name in NAMES:
        assert getattr(hasten, name) is not None
    assert hasten.compile.__module__ == "hasten.api.compiling"


def test_a_name_that_does_not_exist() -> None:
    assert not hasattr(hasten, "optimise")


def test_importing_needs_numpy_alone() -> None:
    source = Path(hasten.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "onnx" in done.stdout
    assert "pip install 'hasten[compile]'" in done.stdout
