"""`hasten doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hasten import __version__
from hasten.cli.console import echo_json, row, size, stdout, table
from hasten.cli.options import json_option
from hasten.codegen.toolchain import default_cache, find_compiler
from hasten.errors import HastenError
from hasten.target import TARGETS, caches, cores, native, processor_features, processor_name, runs_here

_PACKAGES = (
    ("numpy", "runs artifacts"),
    ("onnx", "reads ONNX; runs operators that are not compiled"),
    ("onnx_ir", "compiles"),
    ("ziglang", "C compiler, also for other processors"),
    ("torch", "reads PyTorch modules; engine to compare with"),
    ("transformers", "reads Hugging Face folders"),
    ("onnxscript", "exports PyTorch modules"),
    ("onnxruntime", "engine to compare with"),
    ("openvino", "engine to compare with"),
)


@click.command(short_help="Say what hasten finds on this machine.")
@json_option
def doctor(as_json: bool) -> None:
    """Say what hasten finds on this machine: compiler, processor, engines, cache."""
    found = _examine()
    if as_json:
        echo_json(found)
        return
    shown = table("", "")
    lines = {
        "hasten": f"{__version__}, Python {found['python']}",
        "processor": f"{found['processor']}, {found['cores']} cores to use of {found['processors']}",
        "caches": ", ".join(
            f"{level.upper()} {count >> 10:,} KiB" for level, count in found["caches"].items()
        ),
        "native target": found["native"] or "none: this machine runs no target",
        "compiler": found["compiler"] or found["compiler_error"],
        "cache": f"{found['cache']}, {size(found['cache_bytes'])}",
    }
    for name, text in lines.items():
        row(shown, name, text)
    console = stdout()
    console.print(shown)
    targets = table("target", "runs here", "can be compiled for", "")
    for name, about in found["targets"].items():
        lacks = f"lacks {', '.join(about['lacks'])}" if about["lacks"] else ""
        row(targets, name, _word(about["runs"]), about["compiler"] or "no", lacks)
    console.print()
    console.print(targets)
    packages = table("package", "version", "what it is for")
    for name, purpose in _PACKAGES:
        row(packages, name, found["packages"][name] or "not installed", purpose)
    console.print()
    console.print(packages)


def _examine() -> dict[str, Any]:
    cache = default_cache()
    compiler, error = _compiler(None)
    return {
        "hasten": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "cores": cores(),
        "caches": {"l1": caches().l1, "l2": caches().l2, "l3": caches().l3},
        "features": sorted(processor_features()),
        "native": next((t.name for t in TARGETS if runs_here(t) and t == native()), None),
        "compiler": compiler,
        "compiler_error": error,
        "targets": _targets(),
        "packages": {name: _version(name) for name, _ in _PACKAGES},
        "cache": str(cache),
        "cache_bytes": _size_of(cache),
    }


def _compiler(target: Any) -> tuple[str | None, str | None]:
    try:
        found = find_compiler(target)
    except HastenError as error:
        return None, str(error)
    return f"{found.version} ({' '.join(found.command)})", None


def _targets() -> Mapping[str, Any]:
    return {
        target.name: {
            "runs": runs_here(target),
            "compiler": _compiler(target)[0],
            "lacks": sorted(target.features - processor_features()),
        }
        for target in TARGETS
    }


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _word(answer: bool) -> str:
    return "yes" if answer else "no"
