"""What a profile's kernels lose."""

from __future__ import annotations

import pytest
from benchmarks.losses import Loss, Losses, losses, operators, told

from hasten.search.measure import Spread
from hasten.search.profile import HostProfile, KernelProfile, Peaks, Profile


def kernel(number: int, title: str, us: float, peak_share: float) -> KernelProfile:
    return KernelProfile(
        number=number,
        part=0,
        function=f"kernel_{number}",
        title=title,
        us=us,
        share=us / 100,
        waiting=0.0,
        flops=1000,
        bytes=10,
        gflops=1.0,
        gigabytes_per_second=1.0,
        peak_share=peak_share,
        bound="compute",
    )


def profile(*kernels: KernelProfile, host_us: float = 0.0) -> Profile:
    hosts = (HostProfile(("NonZero", "Unique"), host_us, host_us / 100),) if host_us else ()
    return Profile(
        name="a",
        target="x86-64-v3",
        compiler=None,
        artifact_compiler=None,
        threads=2,
        team=2,
        shapes={},
        runs=10,
        run_us=Spread(100, 100, 100),
        sum_us=100.0,
        kernels=kernels,
        hosts=hosts,
        kernels_us=sum(k.us for k in kernels),
        barriers_us=3.0,
        dispatch_us=1.0,
        python_us=2.0,
        waiting=0.0,
        flops=2000,
        peak_share=0.9,
        peaks=Peaks({"f32": 100.0}, 10.0),
    )


def test_kernels_of_the_same_operators_lose_together() -> None:
    found = profile(
        kernel(0, "MatMul 'a', Add 'b', Add 'c'", 40.0, 0.9),
        kernel(1, "Attention 'd'", 10.0, 0.5),
        kernel(2, "MatMul 'e', Add 'f'", 30.0, 0.8),
        kernel(3, "Conv 'by Winograd'", 10.0, 1.7),
        host_us=4.0,
    )
    assert losses(found).lost == (
        Loss("MatMul + Add", pytest.approx(0.10)),
        Loss("Attention", pytest.approx(0.05)),
        Loss("NonZero, Unique on the host", pytest.approx(0.04)),
        Loss("between kernels", pytest.approx(0.04)),
        Loss("Python", pytest.approx(0.02)),
    )


def lost(*found: Loss, run_us: float = 1000.0) -> Losses:
    return Losses(Spread(run_us, run_us, run_us), 0.9, Peaks({"f32": 100.0}, 10.0), found)


def test_a_cell_has_the_largest_three_that_are_worth_a_word() -> None:
    found = [Loss("MatMul", 0.05), Loss("Python", 0.01), Loss("between kernels", 0.001)]
    assert told(lost(*found), 1.0) == "MatMul 5.0%, Python 1.0%"
    assert told(lost(*found[:2], Loss("Attention", 0.009), Loss("Softmax", 0.008)), 1.0).count("%") == 3
    assert told(lost(), 1.0) == ""


def test_a_cell_says_where_the_profile_tells_of_other_runs() -> None:
    found = Loss("MatMul", 0.05)
    assert told(lost(found, run_us=1049.0), 1.0) == "MatMul 5.0%"
    assert told(lost(found, run_us=951.0), 1.0) == "MatMul 5.0%"
    assert told(lost(found, run_us=1060.0), 1.0) == "MatMul 5.0% (of the profile's runs of 1.06 ms, +6%)"
    assert told(lost(run_us=500.0), 1.0) == "(of the profile's runs of 0.5 ms, -50%)"


def test_a_title_without_operators_stands_for_itself() -> None:
    assert operators("copies the input") == "copies the input"
    assert operators("MatMul 'it''s', Gelu '/g/Gelu'") == "MatMul + Gelu"
