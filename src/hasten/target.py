"""Processors: the instruction sets that code is generated for, and what this machine is.

A `Target` is a level of instructions that shared objects in an artifact are compiled for. The compile
side reads its vector width and registers; the deploy side asks which of an artifact's levels runs here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import TargetError

_V3_FEATURES = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"})
_V4_FEATURES = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})


@dataclass(frozen=True)
class Target:
    """A level of instructions.

    Attributes:
        name: The name in artifacts and on the command line.
        arch: "x86-64" or "aarch64".
        features: Instructions that a processor must have, by the names of Linux's /proc/cpuinfo
            (`lzcnt` for what it calls `abm`).
        vector_bytes: Bytes of a vector register.
        registers: Number of vector registers.
        triple: The platform, as clang and zig name it.
        factors: Element types, "bf16" and "u8", that it has instructions to multiply and sum in groups for.
    """

    name: str
    arch: str
    features: frozenset[str]
    vector_bytes: int
    registers: int
    triple: str
    factors: frozenset[str] = frozenset()

    @property
    def matrix(self) -> bool:
        """Whether it multiplies its factors in tiles of matrices (AMX)."""
        return "amx_tile" in self.features

    @staticmethod
    def named(name: str) -> Target:
        """The target of this name: one of `TARGETS`, an alias ("avx2", "avx512", ...) or "native".

        Raises:
            TargetError: There is no such name, or "native" and this machine is not supported.
        """
        wanted = name.strip().lower().replace("_", "-")
        if wanted == "native":
            return native()
        wanted = _ALIASES.get(wanted, wanted)
        for target in TARGETS:
            if target.name == wanted:
                return target
        known = ", ".join(target.name for target in TARGETS)
        raise TargetError(
            f"unknown target {name!r}: use native, {known}, or one of the aliases {', '.join(_ALIASES)}"
        )


_BYTES, _PAIRS = frozenset({"u8"}), frozenset({"bf16"})

# Within an architecture, each runs everything that those before it run, and faster; those with instructions
# for narrow factors are variants of the plain one before them.
TARGETS = (
    Target("x86-64-v3", "x86-64", _V3_FEATURES, 32, 16, "x86_64-linux-gnu"),
    Target("x86-64-v3-vnni", "x86-64", _V3_FEATURES | {"avx_vnni"}, 32, 16, "x86_64-linux-gnu", _BYTES),
    Target("x86-64-v4", "x86-64", _V3_FEATURES | _V4_FEATURES, 64, 32, "x86_64-linux-gnu"),
    Target(
        "x86-64-v4-vnni",
        "x86-64",
        _V3_FEATURES | _V4_FEATURES | {"avx512_vnni"},
        64,
        32,
        "x86_64-linux-gnu",
        _BYTES,
    ),
    Target(
        "x86-64-v4-bf16",
        "x86-64",
        _V3_FEATURES | _V4_FEATURES | {"avx512_vnni", "avx512_bf16"},
        64,
        32,
        "x86_64-linux-gnu",
        _BYTES | _PAIRS,
    ),
    Target(
        "x86-64-v4-amx",
        "x86-64",
        _V3_FEATURES | _V4_FEATURES | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"},
        64,
        32,
        "x86_64-linux-gnu",
        _BYTES | _PAIRS,
    ),
    Target("aarch64", "aarch64", frozenset({"asimd"}), 16, 32, "aarch64-linux-gnu"),
    Target("aarch64-dot", "aarch64", frozenset({"asimd", "asimddp"}), 16, 32, "aarch64-linux-gnu", _BYTES),
    Target(
        "aarch64-i8mm",
        "aarch64",
        frozenset({"asimd", "asimddp", "i8mm"}),
        16,
        32,
        "aarch64-linux-gnu",
        _BYTES,
    ),
)

_ALIASES = {"avx2": "x86-64-v3", "avx512": "x86-64-v4", "arm64": "aarch64", "neon": "aarch64"}


def with_factors(target: Target, factors: Collection[str]) -> tuple[Target, ...]:
    """The targets to compile for where `target` is asked for and a model multiplies narrow factors.

    Args:
        target: what was asked for.
        factors: element types that the model multiplies ("bf16", "u8").

    Returns:
        Variants of the target with instructions for all of them, the fastest first, for this machine and for
        others; where this one's are slow, also the best variant without. Then the target itself, for
        processors without.
    """
    wanted = frozenset(factors) - target.factors
    if not wanted:
        return (target,)
    variants = [t for t in _above(target) if wanted <= t.factors]
    here = [t for t in variants if runs_here(t) and not _slow_pairs(t)]
    # The plainest variant serves every processor that has the instructions at all; the best one is for this.
    chosen = dict.fromkeys([*here[:1], *variants[-1:]])
    if not here and any(runs_here(t) for t in variants):
        plainer = [t for t in _above(target) if runs_here(t) and not _slow_pairs(t)]
        chosen = dict.fromkeys([*plainer[:1], *chosen])
    return (*chosen, target)


def _above(target: Target) -> list[Target]:
    """Variants of a target with more instructions, the fastest first."""
    return [
        t
        for t in reversed(TARGETS)
        if t.arch == target.arch and t.vector_bytes == target.vector_bytes and t.features > target.features
    ]


def best_here(targets: Collection[Target]) -> Target | None:
    """The one of some targets whose code is the fastest that this machine runs; None if it runs none.

    Code that multiplies pairs slowly is passed over where there is other code with all its other factors.
    """
    running = [t for t in reversed(TARGETS) if t in targets and runs_here(t)]
    for t in running:
        others = t.factors - _PAIRS
        if not (_slow_pairs(t) and any(o is not t and o.factors >= others for o in running)):
            return t
    return None


def _slow_pairs(target: Target) -> bool:
    """Whether this machine multiplies pairs of bf16 by instructions that are no faster than those for f32.

    Intel's processors have fast ones on matrices alone: their `vdpbf16ps` does half as much as two `vfmadd`.
    """
    return target.factors >= _PAIRS and not target.matrix and _vendor() == "GenuineIntel"


@dataclass(frozen=True)
class Caches:
    """Sizes in bytes: of one core's first and second level, of the whole last level (0: none)."""

    l1: int
    l2: int
    l3: int


def runs_here(target: Target) -> bool:
    """Whether this machine's processor has all that the target's code uses, and the system lets us use it."""
    has_all = target.arch == architecture() and target.features <= processor_features()
    return has_all and (not target.matrix or _tiles_permitted())


def native() -> Target:
    """The best target that this machine runs, of those that differ in more than one type's instructions.

    Raises:
        TargetError: It runs none of them.
    """
    for target in reversed(TARGETS):
        if runs_here(target) and not target.factors:
            return target
    nearest = [target for target in TARGETS if target.arch == architecture()]
    lacks = sorted(nearest[0].features - processor_features()) if nearest else []
    raise TargetError(
        f"this machine ({describe_machine()}) runs none of {', '.join(t.name for t in TARGETS)}"
        + (f": it lacks {', '.join(lacks)}" if lacks else "")
        + "; name the machine that you compile for with target="
    )


@functools.cache
def _tiles_permitted() -> bool:
    """Asks Linux for the registers of matrix tiles, which a process has to before it uses them.

    The permission is for all threads, also later ones, and for child processes. Another system knows no such
    question; whether it keeps the registers for us is not known, so that we do without.
    """
    if platform.system() != "Linux":
        return False
    arch_prctl, req_xcomp_perm, tile_data = 158, 0x1023, 18  # Documentation/arch/x86/xstate.rst
    return bool(ctypes.CDLL(None).syscall(arch_prctl, req_xcomp_perm, tile_data) == 0)


def architecture() -> str:
    """This machine's architecture: "x86-64", "aarch64", or what the system calls it."""
    machine = platform.machine().lower()
    return {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}.get(machine, machine)


def describe_machine() -> str:
    """Architecture and model of the processor, for messages."""
    return f"{architecture()}, {processor_name()}"


@functools.cache
def processor_features() -> frozenset[str]:
    """Instructions of this processor, by the names of Linux's /proc/cpuinfo.

    Also those that no target asks for yet.
    """
    if platform.system() == "Darwin":
        return _features_of_darwin(architecture())
    return _features_of_cpuinfo(_read("/proc/cpuinfo"))


@functools.cache
def processor_name() -> str:
    """The processor's model, such as "AMD EPYC 9B45 (family 26, model 2, stepping 1)".

    The numbers are there where the system tells them: a virtual machine may hide the generation in the name.
    """
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    return _name_of_cpuinfo(_read("/proc/cpuinfo"))


@functools.cache
def _vendor() -> str:
    """The processor's maker as Linux has it, such as "GenuineIntel"; empty elsewhere."""
    match = re.search(r"^vendor_id\s*:\s*(\S+)", _read("/proc/cpuinfo"), re.M)
    return match[1] if match else ""


def cores() -> int:
    """Cores that this process may keep busy, at least 1.

    The least of: distinct physical cores in its affinity mask (a second thread on a core adds nothing to
    dense arithmetic), and the processor quota of its control groups, rounded down.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = _physical_cores(os.sched_getaffinity(0), Path("/sys/devices/system/cpu"))
        return max(1, int(min(allowed, _cgroup_quota(Path("/")))))
    physical = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
    return int(physical) if physical.isdigit() else os.cpu_count() or 1


@functools.cache
def caches() -> Caches:
    """Sizes of this machine's data caches; where it does not say, those of a small server core."""
    found: dict[int, int] = {}
    if platform.system() == "Darwin":
        for level, key in ((1, "hw.l1dcachesize"), (2, "hw.l2cachesize"), (3, "hw.l3cachesize")):
            answer = _sysctl(key)
            if answer.isdigit():
                found[level] = int(answer)
    else:
        for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
            size = re.fullmatch(r"(\d+)([KM]?)", _read(index / "size"))
            number = _read(index / "level")
            if size and number.isdigit() and _read(index / "type") != "Instruction":
                found[int(number)] = int(size[1]) << {"": 0, "K": 10, "M": 20}[size[2]]
    return Caches(found.get(1, 32 << 10), found.get(2, 512 << 10), found.get(3, 0))


_NUMBERS = {
    "family": "cpu family",
    "model": "model",
    "stepping": "stepping",
    "implementer": "CPU implementer",
    "part": "CPU part",
    "variant": "CPU variant",
    "revision": "CPU revision",
}
"""What Linux calls the numbers of a model; the first three on x86-64, the others on Arm."""


def _features_of_cpuinfo(text: str) -> frozenset[str]:
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    features = frozenset(match[1].split()) if match else frozenset()
    return features | {"lzcnt"} if "abm" in features else features


def _name_of_cpuinfo(text: str) -> str:
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(\S.*)$", text, re.M)
    name = match[1].strip() if match else platform.processor() or "unknown processor"
    numbers = []
    for label, key in _NUMBERS.items():
        found = re.search(rf"^{key}\s*:\s*(\w+)\s*$", text, re.M)
        numbers += [f"{label} {found[1]}"] if found else []
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _features_of_darwin(arch: str) -> frozenset[str]:
    if arch == "aarch64":
        have = {"asimd", "asimddp"}  # every Apple processor for this system has both
        return frozenset(have | {"i8mm"} if _sysctl("hw.optional.arm.FEAT_I8MM") == "1" else have)
    keys = ("machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.extfeatures")
    words = " ".join(_sysctl(key) for key in keys).lower().split()
    renamed = {"avx1.0": "avx"}
    return frozenset(renamed.get(word, word) for word in words)


def _physical_cores(processors: set[int], sysfs: Path) -> int:
    if _read(sysfs / "smt/active") == "0":
        return len(processors)
    siblings = {
        _read(sysfs / f"cpu{processor}/topology/thread_siblings_list") or str(processor)
        for processor in processors
    }
    return len(siblings)


def _cgroup_quota(root: Path) -> float:
    """Processors that the control groups (versions 1 and 2) grant this process; infinity without limit."""
    quota = float("inf")
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            folders = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            folders = [mount / "cpu", mount / "cpu,cpuacct", mount / controllers]
        else:
            continue
        relative = Path(group.lstrip("/"))
        for folder in folders:
            # A limit on any group above applies too. Inside a container the path may be the host's, which
            # does not exist here; the mount's root is then our own group.
            for ancestor in (relative, *relative.parents):
                quota = min(quota, _quota_of(folder / ancestor))
    return quota


def _quota_of(group: Path) -> float:
    words = _read(group / "cpu.max").split()
    if not words:
        words = [_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")]
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    return float("inf")


def _read(path: str | Path) -> str:
    """The text of one of the system's small files, stripped; empty if it cannot be read."""
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _sysctl(key: str) -> str:
    try:
        answer = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip()
