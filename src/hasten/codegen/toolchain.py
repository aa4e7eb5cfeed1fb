"""The C compiler: find one, and make a shared object of generated C.

clang is preferred to gcc, because gcc spills the register tiles of some microkernels and halves their
speed. The `ziglang` wheel is clang with everything that cross-compiling needs, so the order is: what
HASTEN_CC names, clang, zig, gcc.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasten.errors import ToolchainError
from hasten.target import Target, architecture, cores

CACHE_BYTES = 512 << 20
_ERROR_LINES = 8
_HOW_TO_GET_ONE = "install one with: pip install 'hasten[zig]'"

_COMPILE_FLAGS = (
    "-std=c11",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    # Floats: nobody reads errno or the exception flags. NaN, infinities and the order of sums stay.
    "-fno-math-errno",
    "-fno-trapping-math",
    # Integers wrap, as ONNX's do; elementary functions shift bits of NaN that nobody reads.
    "-fwrapv",
)
# A product and a sum may become one fused operation, but only as the C expression says it: "fast" lets the
# optimizer choose which product of a sum it fuses, in a vectorized loop another one than in its remainder,
# so that an element's last bit would depend on how many threads there are. gcc before 14 knows only "fast".
_CONTRACTION = {"clang": "-ffp-contract=on", "zig": "-ffp-contract=on", "gcc": "-ffp-contract=fast"}
_ARCH_FLAGS = {
    # Both families otherwise split 512-bit vectors into halves, to spare the clock of processors of 2017.
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "x86-64-v3-vnni": ("-march=x86-64-v3", "-mavxvnni"),
    "x86-64-v4-vnni": ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
    "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
    # The instructions on tiles are written as assembly, which needs no flags: old compilers know none.
    "x86-64-v4-amx": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
    # Outlined atomics live in a compiler library that the object shall not need.
    "aarch64": ("-march=armv8-a", "-mno-outline-atomics"),
    "aarch64-dot": ("-march=armv8.2-a+dotprod", "-mno-outline-atomics"),
    "aarch64-i8mm": ("-march=armv8.2-a+dotprod+i8mm", "-mno-outline-atomics"),
}
_ZIG_CPUS = {
    "x86-64-v3": "x86_64_v3",
    "x86-64-v4": "x86_64_v4",
    "x86-64-v3-vnni": "x86_64_v3+avxvnni",
    "x86-64-v4-vnni": "x86_64_v4+avx512vnni",
    "x86-64-v4-bf16": "x86_64_v4+avx512vnni+avx512bf16",
    "x86-64-v4-amx": "x86_64_v4+avx512vnni+avx512bf16",
    "aarch64": "generic",
    "aarch64-dot": "generic+dotprod",
    "aarch64-i8mm": "generic+dotprod+i8mm",
}
_ZIG_GLIBC = "2.17"  # the oldest that a system of today may have


@dataclass(frozen=True)
class Compiler:
    """A C compiler that was found.

    Attributes:
        command: How to start it.
        kind: The family, which decides the flags.
        version: The first line of what it says of itself.
    """

    command: tuple[str, ...]
    kind: Literal["clang", "zig", "gcc"]
    version: str

    def builds_for(self, target: Target) -> bool:
        """Whether it can compile for the target: zig for all, the others for their own architecture."""
        return self.kind == "zig" or target.arch == architecture()


def find_compiler(target: Target | None = None) -> Compiler:
    """The compiler to use: HASTEN_CC (a command, with arguments if need be), clang, zig or gcc.

    Args:
        target: Pass over compilers that cannot build for it.

    Raises:
        ToolchainError: There is none, or HASTEN_CC names something that is not one.
    """
    named = os.environ.get("HASTEN_CC", "").strip()
    if named:
        compiler = _identify(tuple(shlex.split(named)))
        if compiler is None:
            raise ToolchainError(
                f"HASTEN_CC={named!r} is not a C compiler that runs: set it to a clang, gcc or "
                "'zig cc' command, or unset it"
            )
        return compiler
    passed_over = []
    for command in _candidates():
        compiler = _identify(command)
        if compiler is None:
            continue
        if target is None or compiler.builds_for(target):
            return compiler
        passed_over.append(shlex.join(command))
    if target is not None and passed_over:
        raise ToolchainError(
            f"{', '.join(passed_over)} cannot compile for {target.name} on this {architecture()} "
            f"machine, and zig, which can, was not found: {_HOW_TO_GET_ONE}"
        )
    raise ToolchainError(f"no C compiler was found (looked for clang, zig and gcc): {_HOW_TO_GET_ONE}")


def default_cache() -> Path:
    """Where compiled objects are kept: $HASTEN_CACHE, else the user's cache folder."""
    named = os.environ.get("HASTEN_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hasten"


def build(
    sources: Mapping[str, str],
    target: Target,
    compiler: Compiler,
    *,
    workers: int | None = None,
    cache: Path | None = None,
    level: int = 3,
    stop: Callable[[], bool] = lambda: False,
) -> bytes:
    """Compiles C files, and the thread pool with them, into one shared object.

    The result depends on the sources, the target, the level, and the compiler's version and arguments alone.

    Args:
        sources: C text by file name ("part.c"; a name that does not end in ".c" is a header). They can
            include `hasten.h` and `pool.h`.
        target: The instructions to use.
        compiler: From `find_compiler`.
        workers: How many compilers run at once; the machine's cores if None.
        cache: A folder where objects are kept for the next time (`default_cache()`), or None.
        level: How hard the compiler optimizes, 0 to 3; 1 where compiling takes longer than all runs will.
        stop: Asked before each file is compiled, whether to give up.

    Raises:
        ToolchainError: The compiler cannot build for the target, or failed; the message has its first
            errors and the folder where the sources were kept.
        TimeoutError: `stop` said so.
    """
    if not compiler.builds_for(target):
        raise ToolchainError(
            f"{shlex.join(compiler.command)} cannot compile for {target.name} on this "
            f"{architecture()} machine; zig can: {_HOW_TO_GET_ONE}"
        )
    with contextlib.ExitStack() as stack:
        texts = dict(sources)
        for header in _runtime_files(stack):
            texts[header.name] = header.read_text("utf-8")
        flags = _compile_flags(target, compiler, level)
        headers = sorted((name, text) for name, text in texts.items() if not name.endswith(".c"))
        keys = {
            name: _key(
                compiler.version,
                *compiler.command[1:],
                *flags,
                *(part for h in headers for part in h),
                name,
                text,
            )
            for name, text in sorted(texts.items())
            if name.endswith(".c")
        }
        store = _Store(None if cache is None else cache / "objects")
        library_key = _key("library", *_link_flags(target, compiler), *keys.values())
        library = store.get(library_key)
        if library is None:
            zig_cache = None if cache is None else cache / "zig"
            job = _Job(target, compiler, flags, texts, keys, store, zig_cache, stop)
            library = _compile_and_link(job, workers or cores())
            store.put(library_key, library)
            store.evict(CACHE_BYTES)
        return library


@dataclass(frozen=True)
class _Job:
    target: Target
    compiler: Compiler
    flags: tuple[str, ...]
    texts: Mapping[str, str]
    keys: Mapping[str, str]  # of the C files
    store: _Store
    zig_cache: Path | None
    stop: Callable[[], bool]


def _compile_and_link(job: _Job, workers: int) -> bytes:
    """Works in a folder of its own, with relative names, so that no path gets into the result."""
    folder = Path(tempfile.mkdtemp(prefix="hasten-build-"))
    try:
        for name, text in job.texts.items():
            (folder / name).write_text(text, "utf-8")
        failure = _compile_all(job, folder, workers) or _link(job, folder)
        library = b"" if failure else (folder / "out.so").read_bytes()
    except BaseException:  # an interrupt or a full disk too: nobody would look for the folder
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if failure is not None:
        raise ToolchainError(f"{failure}\nThe sources were kept in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    return library


def _compile_all(job: _Job, folder: Path, workers: int) -> str | None:
    """Makes all object files; returns what failed first."""
    pool = ThreadPoolExecutor(workers)
    try:
        done = [pool.submit(_compile, name, job, folder) for name in job.keys]
        return next((f for f in (future.result() for future in done) if f), None)
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or an interrupt nobody waits for the others


def _link(job: _Job, folder: Path) -> str | None:
    """Makes the library; returns what failed."""
    command = [*job.compiler.command, "-shared", *map(_object_name, job.keys), "-o", "out.so"]
    command += _link_flags(job.target, job.compiler)
    # libc's stubs, which zig makes at its first link for a target, are worth keeping where that is possible.
    kept = job.zig_cache
    zig_cache = folder / "zig" if kept is None or not _writable(kept) else kept
    return _call(command, folder, zig_cache, f"linking with {shlex.join(job.compiler.command)}")


def _compile(name: str, job: _Job, folder: Path) -> str | None:
    """Makes one object file; returns what failed."""
    result = folder / _object_name(name)
    kept = job.store.get(job.keys[name])
    if kept is not None:
        result.write_bytes(kept)
        return None
    if job.stop():
        raise TimeoutError
    command = [*job.compiler.command, *job.flags]
    command += ["-c", name, "-o", result.name]
    # zig keeps every object for ever in its own cache, which nothing would bound: give it one to throw away
    doing = f"compiling {name} with {shlex.join(job.compiler.command)}"
    failure = _call(command, folder, folder / "zig", doing)
    if failure is None:
        job.store.put(job.keys[name], result.read_bytes())
    return failure


def _call(command: list[str], folder: Path, zig_cache: Path, doing: str) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=_environment(zig_cache), capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"{doing} could not be started: {error}"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).splitlines()
    first = next((i for i, line in enumerate(lines) if "error" in line), 0)
    shown = "\n".join(lines[first : first + _ERROR_LINES]) or "(it said nothing)"
    return f"{doing} failed with status {done.returncode}:\n{shown}"


def _environment(zig_cache: Path) -> dict[str, str]:
    """Of a compiler. zig does nothing without a folder that it can write, not even say its version."""
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(zig_cache.absolute())}


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _compile_flags(target: Target, compiler: Compiler, level: int) -> tuple[str, ...]:
    common = (f"-O{level}", *_COMPILE_FLAGS, _CONTRACTION[compiler.kind])
    if compiler.kind != "zig":
        return (*common, *_ARCH_FLAGS[target.name], "-I.")
    rest = tuple(flag for flag in _ARCH_FLAGS[target.name] if not flag.startswith("-march"))
    return (*_zig_target(target), *common, *rest, "-fno-sanitize=undefined", "-I.")


def _link_flags(target: Target, compiler: Compiler) -> tuple[str, ...]:
    if platform.system() == "Darwin" and compiler.kind != "zig":
        return ("-lm", "-lpthread")
    # `-nostdlib` and `-fno-sanitize` keep zig from building its compiler and sanitizer libraries: the first
    # link takes 0.5 s instead of 17. Nothing in the generated code needs them, and `-z defs` would say so.
    # `-S` drops the debug information, and with it the paths, of what zig's libc contributes.
    zig = (*_zig_target(target), "-nostdlib", "-fno-sanitize=undefined", "-Wl,-S")
    common = ("-Wl,--build-id=none", "-Wl,-z,defs", "-lm", "-lc", "-lpthread")
    return (*zig, *common) if compiler.kind == "zig" else common


def _zig_target(target: Target) -> tuple[str, ...]:
    return ("-target", f"{target.triple}.{_ZIG_GLIBC}", f"-mcpu={_ZIG_CPUS[target.name]}")


def _object_name(source: str) -> str:
    return source.removesuffix(".c") + ".o"


def _candidates() -> Iterator[tuple[str, ...]]:
    for name in ("clang", "zig", "gcc"):
        if name == "zig":
            spec = importlib.util.find_spec("ziglang")
            for folder in (spec.submodule_search_locations or []) if spec else []:
                yield (str(Path(folder) / "zig"), "cc")
        found = shutil.which(name)
        if found:
            yield (found, "cc") if name == "zig" else (found,)


def _identify(command: tuple[str, ...]) -> Compiler | None:
    """What the command is, if it starts and is a compiler that we know."""
    try:
        with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
            done = subprocess.run(
                [*command, "--version"],
                env=_environment(Path(folder)),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return None
    if any("zig" in Path(word).name for word in command):
        return Compiler(command, "zig", f"zig {lines[0]}")
    if "clang" in done.stdout:
        return Compiler(command, "clang", lines[0])
    if "Free Software Foundation" in done.stdout:
        return Compiler(command, "gcc", lines[0])
    return None


def _runtime_files(stack: contextlib.ExitStack) -> list[Path]:
    """The interface, the marks of a profile and the thread pool, which the package carries."""
    runtime = importlib.resources.files("hasten") / "runtime"
    parts = (("include", "hasten.h"), ("csrc", "pool.h"), ("csrc", "profile.h"), ("csrc", "pool.c"))
    return [
        stack.enter_context(importlib.resources.as_file(runtime.joinpath(folder, name)))
        for folder, name in parts
    ]


def _key(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Store:
    """Files named by the hash of what they were made from. Its loss or fullness costs time, never a build.

    Files appear by renaming, so that writers in several processes do not meet.
    """

    folder: Path | None

    def get(self, key: str) -> bytes | None:
        if self.folder is None:
            return None
        try:
            data = (self.folder / key).read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # others' files and disks that take no writes can be read
            os.utime(self.folder / key)  # the time of last use, for `evict`
        # A file cut short by a full disk or a crash must not be used.
        body, digest = data[:-32], data[-32:]
        return body if hashlib.sha256(body).digest() == digest else None

    def put(self, key: str, data: bytes) -> None:
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix="new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data + hashlib.sha256(data).digest())
                Path(name).replace(self.folder / key)
            except OSError:
                Path(name).unlink(missing_ok=True)

    def evict(self, limit: int) -> None:
        """Deletes what was not used for longest until the rest is within `limit` bytes."""
        if self.folder is None:
            return
        found = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
