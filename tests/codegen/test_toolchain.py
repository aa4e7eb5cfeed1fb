from __future__ import annotations

import ctypes
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.codegen import toolchain
from hasten.codegen.toolchain import Compiler, build, default_cache, find_compiler
from hasten.errors import ToolchainError
from hasten.target import TARGETS, Target, native

SOURCES = {
    "twice.h": "#include <math.h>\nfloat twice(float x);\n",
    "one.c": '#include "twice.h"\nfloat twice(float x) { return 2 * sqrtf(x); }\n',
    "two.c": (
        '#include "pool.h"\n#include "twice.h"\n'
        "typedef float vector __attribute__((vector_size(64)));\n"
        "HASTEN_API float answer(float x) { return twice(x) + 1; }\n"
        "HASTEN_API void add(vector *a, const vector *b) { *a += *b; }\n"
    ),
}


def test_builds_reproducibly_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = native()
    compiler = find_compiler(target)
    library = build(SOURCES, target, compiler, cache=tmp_path / "cache", workers=2)
    assert build(SOURCES, target, compiler, cache=None) == library
    assert b"/tmp" not in library
    (tmp_path / "a.so").write_bytes(library)
    loaded = ctypes.CDLL(str(tmp_path / "a.so"))
    loaded.answer.restype, loaded.answer.argtypes = ctypes.c_float, [ctypes.c_float]
    assert loaded.answer(9.0) == 7.0
    assert loaded.hasten_abi_version() == 1
    assert not hasattr(loaded, "twice")  # hidden

    calls = []
    real = toolchain.subprocess.run

    def counted(command: list[str], **options: object) -> object:
        calls.append(command)
        return real(command, **options)

    monkeypatch.setattr(toolchain.subprocess, "run", counted)
    assert build(SOURCES, target, compiler, cache=tmp_path / "cache") == library
    assert calls == []
    changed = {**SOURCES, "one.c": SOURCES["one.c"] + "/* changed */"}
    build(changed, target, compiler, cache=tmp_path / "cache")
    assert [c[c.index("-c") + 1] for c in calls if "-c" in c] == ["one.c"]
    for path in (tmp_path / "cache" / "objects").iterdir():
        path.write_bytes(path.read_bytes()[:-9])  # as by a crash
    assert build(SOURCES, target, compiler, cache=tmp_path / "cache") == library


def test_building_can_be_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(TimeoutError):
        build(SOURCES, native(), find_compiler(native()), stop=lambda: True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupts_and_full_disks_leave_nothing(
    error: type[BaseException] | OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = find_compiler(native())
    started = []

    def failing(name: str, *_: object) -> str | None:
        started.append(name)
        time.sleep(0.05)
        raise error

    monkeypatch.setattr(toolchain.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(toolchain, "_compile", failing)
    many = SOURCES | {f"{index}.c": "int a;\n" for index in range(20)}
    with pytest.raises(error if isinstance(error, type) else type(error)):
        build(many, native(), compiler, workers=1)
    assert list(tmp_path.iterdir()) == []
    assert len(started) < 10  # nobody waits for the others


def test_a_disk_that_is_full_before_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    compiler = find_compiler(native())
    monkeypatch.setattr(toolchain.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        build(SOURCES, native(), compiler)
    assert list(tmp_path.iterdir()) == []


def test_builds_where_neither_cache_nor_home_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME", "HASTEN_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "file" / "folder"))
    compiler = find_compiler(next(target for target in TARGETS if target.arch != native().arch))  # zig
    library = build(SOURCES, native(), compiler, cache=default_cache())
    assert library == build(SOURCES, native(), compiler, cache=tmp_path / "cache")
    assert library == build(SOURCES, native(), compiler, cache=None)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_zig_builds_for_every_target(target: Target, tmp_path: Path) -> None:
    compiler = find_compiler(target)
    if compiler.kind != "zig" and not compiler.builds_for(target):
        pytest.skip("HASTEN_CC names a compiler for this machine alone")
    library = build(SOURCES, target, compiler, cache=default_cache())
    machine = struct.unpack_from("<H", library, 18)[0]
    assert library[:4] == b"\x7fELF"
    assert machine == {"x86-64": 62, "aarch64": 183}[target.arch]


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump to read instructions")
def test_vectors_are_not_split(tmp_path: Path) -> None:
    target = Target.named("x86-64-v4")
    compilers = [find_compiler(target)]
    if shutil.which("gcc") and native().arch == "x86-64":
        compilers.append(Compiler(("gcc",), "gcc", "as it comes"))
    for compiler in compilers:
        (tmp_path / "a.so").write_bytes(build(SOURCES, target, compiler))
        text = toolchain.subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", str(tmp_path / "a.so")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "vaddps" in text and "zmm" in text, compiler


def test_errors_of_the_compiler_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.tempfile, "tempdir", str(tmp_path))
    broken = {"good.c": "int a;\n", "bad.c": "int f(void) { return missing; }\n"}
    with pytest.raises(ToolchainError) as caught:
        build(broken, native(), find_compiler(native()))
    message = str(caught.value)
    assert message.startswith("compiling bad.c with ")
    assert "bad.c:1" in message and "missing" in message
    (folder,) = tmp_path.iterdir()
    assert message.endswith(f"The sources were kept in {folder}")
    assert (folder / "bad.c").read_text() == broken["bad.c"]
    unresolved = {"a.c": '#include "hasten.h"\nint g(void);\nHASTEN_API int f(void) { return g(); }\n'}
    with pytest.raises(ToolchainError, match=r"linking with (?s:.*)undefined"):
        build(unresolved, native(), find_compiler(native()))


def test_a_compiler_for_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = next(target for target in TARGETS if target.arch != native().arch)
    gcc = Compiler(("gcc",), "gcc", "12")
    with pytest.raises(ToolchainError, match=r"gcc cannot compile for .*pip install 'hasten\[zig\]'"):
        build(SOURCES, foreign, gcc)


def fake(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the only compilers of the machine."""

    def make(**compilers: str) -> None:
        for name, says in compilers.items():
            fake(tmp_path / "bin", name, says)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.delenv("HASTEN_CC", raising=False)
        monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)

    return make


def test_which_compiler_is_found(
    only: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only()
    with pytest.raises(ToolchainError, match=r"no C compiler was found.*pip install 'hasten\[zig\]'"):
        find_compiler()
    foreign = next(target for target in TARGETS if target.arch != native().arch)
    only(gcc="gcc 13; Free Software Foundation")
    assert find_compiler().kind == "gcc"
    with pytest.raises(ToolchainError, match="gcc cannot compile for"):
        find_compiler(foreign)
    only(zig="clang version 20")
    assert find_compiler().command == (str(tmp_path / "bin/zig"), "cc")
    only(clang="clang version 20")
    assert find_compiler() == Compiler((str(tmp_path / "bin/clang"),), "clang", "clang version 20")
    assert find_compiler(foreign).kind == "zig"
    monkeypatch.setenv("HASTEN_CC", f"{tmp_path / 'bin/gcc'} -m64")
    assert find_compiler().command == (str(tmp_path / "bin/gcc"), "-m64")
    for wrong in ("/absent/cc", str(fake(tmp_path / "bin", "other", "hello"))):
        monkeypatch.setenv("HASTEN_CC", wrong)
        with pytest.raises(ToolchainError, match=f"HASTEN_CC='{wrong}' is not a C compiler"):
            find_compiler()


def test_objects_of_other_arguments_are_others(tmp_path: Path) -> None:
    target = native()
    compiler = find_compiler(target)
    library = build(SOURCES, target, compiler, cache=tmp_path)
    again = Compiler((*compiler.command, "-DHASTEN_OTHER"), compiler.kind, compiler.version)
    before = len(list((tmp_path / "objects").iterdir()))
    assert build(SOURCES, target, again, cache=tmp_path) == library
    assert len(list((tmp_path / "objects").iterdir())) > before


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    store = toolchain._Store(tmp_path / "objects")
    for index in range(10):
        store.put(str(index), bytes(1000))
        path = tmp_path / "objects" / str(index)
        toolchain.os.utime(path, (index, index))
    assert store.get("0") == bytes(1000)  # and is used now
    store.evict(3200)
    assert sorted(path.name for path in (tmp_path / "objects").iterdir()) == ["0", "8", "9"]


def test_a_cache_is_read_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = toolchain._Store(tmp_path / "objects")
    store.put("a", b"1")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(toolchain.os, "utime", refuse)
    assert store.get("a") == b"1"


def test_a_cache_that_cannot_be_made_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = toolchain._Store(tmp_path / "file" / "objects")
    blocked.put("a", b"1")
    blocked.evict(0)
    assert blocked.get("a") is None
    monkeypatch.setenv("HASTEN_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
