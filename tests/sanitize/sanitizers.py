"""gcc's sanitizers: how code is compiled with them, and what a process needs to load such code."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sanitizer:
    """One of them, or several that work together.

    Attributes:
        name: for people, and for the folder of compiled objects.
        flags: of the compiler.
        libraries: what they call, which a process must have loaded before anything else.
        options: what they are told, by environment variable.
    """

    name: str
    flags: str
    libraries: tuple[str, ...]
    options: Mapping[str, str]


ADDRESS = Sanitizer(
    "address",
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
    ("libasan.so", "libubsan.so"),
    # Python does not free everything; what it does is no business of compiled code. Memory that there is not
    # is an error of the session's, as it is without a sanitizer.
    {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
)
THREAD = Sanitizer(
    "thread",
    "-fsanitize=thread",
    ("libtsan.so",),
    # Of Python and NumPy it sees only what they call, not what orders it.
    {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1 exitcode=66"},
)


def environment(sanitizer: Sanitizer, cache: Path) -> dict[str, str] | None:
    """Variables for a process that compiles with a sanitizer and runs what it compiled; None without gcc's.

    Args:
        sanitizer: which.
        cache: folder of compiled objects.
    """
    gcc = shutil.which("gcc")
    found = [_library(gcc, name) for name in sanitizer.libraries] if gcc else []
    if not gcc or not all(found):
        return None
    return {
        **os.environ,
        **sanitizer.options,
        "HASTEN_CC": f"{gcc} {sanitizer.flags} -fno-omit-frame-pointer",
        "HASTEN_CACHE": str((cache / sanitizer.name).absolute()),
        "LD_PRELOAD": " ".join(found),
        "PYTHONMALLOC": "malloc",
    }


def _library(gcc: str, name: str) -> str:
    """Where gcc's library of this name is; "" if there is none."""
    done = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else ""
