from __future__ import annotations

import platform
from pathlib import Path

import pytest

from hasten import target as module
from hasten.errors import TargetError
from hasten.target import (
    TARGETS,
    Target,
    best_here,
    caches,
    cores,
    native,
    processor_name,
    runs_here,
    with_factors,
)

SKYLAKE = """processor : 0
model name : Some Processor
flags : fpu avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f avx512bw avx512cd avx512dq avx512vl
"""


def test_names_and_aliases() -> None:
    assert [Target.named(target.name) for target in TARGETS] == list(TARGETS)
    assert Target.named("AVX512") == Target.named("x86_64_v4") == Target.named("x86-64-v4")
    assert Target.named("native") == native()
    v3, v4 = Target.named("avx2"), Target.named("avx512")
    assert (v3.vector_bytes, v3.registers, v4.vector_bytes, v4.registers) == (32, 16, 64, 32)
    assert v3.features < v4.features
    with pytest.raises(TargetError, match="unknown target 'mips': use native, x86-64-v3, x86-64-v3-vnni, "):
        Target.named("mips")


@pytest.mark.parametrize(
    ("machine", "flags", "best"),
    [
        ("x86_64", SKYLAKE, "x86-64-v4"),
        ("AMD64", SKYLAKE.replace(" avx512bw", ""), "x86-64-v3"),
        ("x86_64", SKYLAKE.replace(" abm", ""), None),
        ("aarch64", "Features : fp asimd asimddp", "aarch64"),
        ("riscv64", "isa : rv64", None),
    ],
)
def test_the_best_target_of_a_machine(
    machine: str, flags: str, best: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    features = module._features_of_cpuinfo(flags)
    monkeypatch.setattr(module, "processor_features", lambda: features)
    if best is None:
        with pytest.raises(TargetError, match=r"this machine .* runs none of"):
            native()
        return
    assert native().name == best
    better = [target for target in TARGETS if target.arch == native().arch and not target.factors]
    assert [runs_here(target) for target in better] == sorted(
        (runs_here(target) for target in better), reverse=True
    )


def test_tiles_need_the_systems_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    amx = Target.named("x86-64-v4-amx")
    monkeypatch.setattr(module, "processor_features", lambda: amx.features)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for permitted in (True, False):
        monkeypatch.setattr(module, "_tiles_permitted", lambda permitted=permitted: permitted)
        assert runs_here(amx) is permitted
        best = with_factors(Target.named("avx512"), {"bf16"})[0].name
        assert best == ("x86-64-v4-amx" if permitted else "x86-64-v4-bf16")


def test_variants_with_instructions_for_narrow_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    v4 = Target.named("avx512")
    features = v4.features | {"avx512_vnni"}
    monkeypatch.setattr(module, "processor_features", lambda: features)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert with_factors(v4, ()) == (v4,)
    assert [t.name for t in with_factors(v4, {"u8"})] == ["x86-64-v4-vnni", "x86-64-v4"]
    assert [t.name for t in with_factors(v4, {"u8", "bf16"})] == ["x86-64-v4-bf16", "x86-64-v4"]
    vnni = Target.named("x86-64-v4-vnni")
    assert with_factors(vnni, {"u8"}) == (vnni,)
    arm, dot, i8mm = (Target.named(f"aarch64{name}") for name in ("", "-dot", "-i8mm"))
    assert with_factors(arm, {"u8"}) == (dot, arm)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for flags, best in (("asimd asimddp", dot), ("asimd asimddp sve i8mm", i8mm), ("asimd i8mm", arm)):
        features = module._features_of_cpuinfo(f"Features : fp {flags}")
        assert best_here([arm, dot, i8mm]) == best
        assert with_factors(arm, {"u8"}) == tuple(dict.fromkeys([*({best} - {arm}), dot, arm]))


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "vendor_id : AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n"
            "stepping\t: 1\ncpu MHz : 2596.1\n\nprocessor : 1\nmodel name\t: AMD EPYC\n",
            "AMD EPYC (family 26, model 2, stepping 1)",
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            "CPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n\nHardware\t: A Board\n",
            "A Board (implementer 0x41, part 0xd40, variant 0x1, revision 1)",
        ),
        (SKYLAKE, "Some Processor"),
        ("", "what Python says"),
    ],
    ids=["x86-64", "arm", "no numbers", "nothing"],
)
def test_processors_are_told_apart(cpuinfo: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "what Python says")
    assert module._name_of_cpuinfo(cpuinfo) == name


@pytest.mark.parametrize(
    ("answer", "best"), [("1", "aarch64-i8mm"), ("0", "aarch64-dot"), ("", "aarch64-dot")]
)
def test_features_of_apples_processors(answer: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sysctl", lambda name: answer if name.endswith("FEAT_I8MM") else "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    features = module._features_of_darwin("aarch64")
    monkeypatch.setattr(module, "processor_features", lambda: features)
    found = best_here(TARGETS)
    assert found is not None and found.name == best


def test_pairs_that_are_slow_are_storage_only(monkeypatch: pytest.MonkeyPatch) -> None:
    v4, vnni, bf16, amx = (Target.named(f"x86-64-v4{name}") for name in ("", "-vnni", "-bf16", "-amx"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module, "processor_features", lambda: bf16.features)
    monkeypatch.setattr(module, "_vendor", lambda: "AuthenticAMD")
    assert with_factors(v4, {"bf16"}) == (bf16, v4)
    assert best_here([v4, vnni, bf16]) == bf16
    monkeypatch.setattr(module, "_vendor", lambda: "GenuineIntel")
    assert with_factors(v4, {"bf16"}) == with_factors(v4, {"bf16", "u8"}) == (vnni, bf16, v4)
    assert with_factors(v4, {"u8"}) == (vnni, v4)
    assert best_here([v4, vnni, bf16]) == vnni
    assert best_here([v4, bf16]) == bf16  # the only one that multiplies bytes
    assert best_here([amx]) is None
    monkeypatch.setattr(module, "processor_features", lambda: amx.features)
    monkeypatch.setattr(module, "_tiles_permitted", lambda: True)
    assert with_factors(v4, {"bf16"}) == (amx, bf16, v4)
    assert best_here([v4, vnni, bf16, amx]) == amx


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, float("inf")),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, float("inf")),
        # a group above is tighter
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
        ),
        # in a container: the host's path, our group at the root
        ({"proc/self/cgroup": "0::/../x", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/docker/1\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            float("inf"),
        ),
    ],
)
def test_quotas_of_control_groups(files: dict[str, str], quota: float, tmp_path: Path) -> None:
    assert module._cgroup_quota(write(tmp_path, files)) == quota


def test_cores_are_physical_and_within_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = {f"cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}
    write(tmp_path, siblings)
    assert module._physical_cores(set(range(8)), tmp_path) == 4
    assert module._physical_cores({0, 4, 5}, tmp_path) == 2
    write(tmp_path, {"smt/active": "0"})
    assert module._physical_cores(set(range(8)), tmp_path) == 8
    for quota, expected in ((float("inf"), cores()), (0.5, 1), (1.9, 1)):
        monkeypatch.setattr(module, "_cgroup_quota", lambda root, quota=quota: quota)
        assert cores() == expected


def test_this_machine_is_described() -> None:
    assert cores() >= 1
    assert 8 << 10 <= caches().l1 <= caches().l2
    assert processor_name()
    assert runs_here(native())
