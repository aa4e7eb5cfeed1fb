"""A profile of an artifact: the time of each kernel inside the model, and its share of the machine's peak."""

from __future__ import annotations

import json
import statistics
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from hasten.codegen.toolchain import default_cache
from hasten.errors import ArtifactError
from hasten.runtime.artifact import read_artifact
from hasten.runtime.manifest import ForeignStep, HostStep, NativeStep, all_steps, nested
from hasten.search.measure import Spread
from hasten.search.peak import Peak
from hasten.search.profile_record import Count, Recorder
from hasten.search.profile_timeline import Log, Timeline, divide
from hasten.target import cores

Array = NDArray[Any]

_WARM_UP = 5
_SECONDS = 2.0  # of runs, where their number is not given
_FEWEST, _MOST = 10, 200
_PEAK_TRIES, _PEAK_SECONDS = 100, 0.002  # short, to fall between what other programs do
_PRECISIONS = {16: "bf16", 8: "int8"}  # by bits of what is multiplied


@dataclass(frozen=True)
class Peaks:
    """What this machine does at best with as many threads, at the time of the profile.

    Attributes:
        gflops: 10**9 operations per second in "f32" and, where the processor has instructions for them, in
            "bf16" and "int8".
        gigabytes_per_second: read from memory, beyond all caches.
    """

    gflops: Mapping[str, float]
    gigabytes_per_second: float

    def floor_us(self, count: Count) -> tuple[float, Literal["compute", "memory"]]:
        """The least time for a kernel by the roofline model (Williams, Waterman and Patterson, 2009).

        Returns:
            Microseconds, and which of the two peaks asks for them.
        """
        best = self.gflops.get(_PRECISIONS.get(count.bits, ""), self.gflops["f32"])
        compute = count.flops / best / 1e3
        memory = count.bytes / self.gigabytes_per_second / 1e3
        return (compute, "compute") if compute > memory else (memory, "memory")


@dataclass(frozen=True)
class KernelProfile:
    """One kernel. Times are medians over the runs.

    Attributes:
        number: through all parts, as in `hasten inspect --kernels`.
        part: of the artifact.
        function: its code, which equal kernels share.
        title: the operators that it computes.
        us: microseconds of a run that go to it; where threads are in different kernels at a time, each
            kernel has its part of that time.
        share: `us` by `Profile.sum_us`.
        waiting: part of the threads' time in it that they waited, for each other or for work.
        flops: floating-point operations of its products; 0 if it has none.
        bytes: what it reads and writes, each element once.
        gflops: 10**9 operations per second.
        gigabytes_per_second: 10**9 bytes per second; above the peak where data come from caches.
        peak_share: time that it would take at the machine's peak, by `us`: `flops` at the peak of its
            arithmetic or `bytes` at that of the memory, whichever takes longer. It can exceed 1 where the
            data come from caches, or an algorithm such as Winograd's multiplies less than the definition.
        bound: which of the two takes longer, "compute" or "memory".
    """

    number: int
    part: int
    function: str
    title: str
    us: float
    share: float
    waiting: float
    flops: int
    bytes: int
    gflops: float
    gigabytes_per_second: float
    peak_share: float
    bound: Literal["compute", "memory"]


@dataclass(frozen=True)
class HostProfile:
    """A step that runs on the host, through ONNX's reference evaluator: its operators, median, and share."""

    operators: tuple[str, ...]
    us: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a model's runs goes. As JSON its fields have the same names.

    Attributes:
        name: of the artifact.
        target: instructions that its code uses; None if no part of it is compiled.
        compiler: what built the code that ran; None without any.
        artifact_compiler: what built the artifact's own; None without any, or if the artifact does not say.
            If the two differ, the artifact's kernels may take other times.
        threads: that a run may use.
        team: that took part (median); fewer where the work is too little or cores were busy.
        shapes: of the inputs.
        runs: that were measured.
        run_us: microseconds of a run, from the call in Python to its return: median and quartiles.
        sum_us: sum of the medians of everything that a run consists of. What other programs take from a run
            falls now on this kernel, now on that, so that the medians, and this sum, hardly know of it.
        kernels: in the order in which they run.
        hosts: steps on the host, in order.
        kernels_us: sum over the kernels' medians.
        barriers_us: between kernels, when no thread computes.
        dispatch_us: gathering the threads at the beginning of a call, and dismissing them.
        python_us: outside of compiled code and host steps.
        waiting: part of the threads' time inside kernels that they waited.
        flops: of all kernels.
        peak_share: time that the kernels would take at the machine's peak, by `kernels_us`; those that are
            above the peak count as at it.
        peaks: of this machine.
    """

    name: str
    target: str | None
    compiler: str | None
    artifact_compiler: str | None
    threads: int
    team: float
    shapes: Mapping[str, tuple[int, ...]]
    runs: int
    run_us: Spread
    sum_us: float
    kernels: tuple[KernelProfile, ...]
    hosts: tuple[HostProfile, ...]
    kernels_us: float
    barriers_us: float
    dispatch_us: float
    python_us: float
    waiting: float
    flops: int
    peak_share: float
    peaks: Peaks


@dataclass(frozen=True)
class Recording:
    """Runs of an artifact: what happened in each, and what its kernels are.

    Attributes:
        logs: one for each run.
        counts: of the kernels.
        kernels: (part, function, title) of each.
        hosts: operators of each host step.
        target: instructions that the code uses.
        compilers: what built the code that ran, and the artifact's own; None as in `Profile`.
        threads: that a run may use.
    """

    logs: tuple[Log, ...]
    counts: tuple[Count, ...]
    kernels: tuple[tuple[int, str, str], ...]
    hosts: tuple[tuple[str, ...], ...]
    target: str | None
    compilers: tuple[str | None, str | None]
    threads: int

    @property
    def timelines(self) -> Iterator[Timeline]:
        """What happened in each run, read one by one: those of a loop of many steps would fill the memory."""
        return (log.read() for log in self.logs)

    @property
    def typical(self) -> Timeline:
        """The run whose time is nearest to the median."""
        middle = statistics.median(log.end - log.start for log in self.logs)
        return min(self.logs, key=lambda log: abs(log.end - log.start - middle)).read()


def record(
    path: Path,
    feeds: Mapping[str, Array],
    *,
    runs: int | None = None,
    threads: int | None = None,
    cache: Path | None = None,
) -> Recording:
    """Builds an artifact's code with marks, and runs it.

    Args:
        path: the artifact.
        feeds: an array for each input.
        runs: how many; None for about two seconds of them, from 10 to 200. A few more warm up.
        threads: of a run; None for what the artifact was compiled for.
        cache: folder of compiled objects; `default_cache()` if None.

    Raises:
        ArtifactError: there is no artifact, or none with marks or code for this machine; or another engine
            runs it.
        ToolchainError: there is no compiler.
        InputError: the inputs do not fit.
    """
    artifact = read_artifact(path)
    used = threads or min(artifact.manifest.threads or cores(), cores())
    steps = list(nested(artifact.manifest.steps))
    foreign = next((step for step in steps if isinstance(step, ForeignStep)), None)
    if foreign is not None:
        artifact.close()
        raise ArtifactError(
            f"{path} is run by {foreign.engine}, which was faster than hasten's own kernels: it has "
            f"none. Use {foreign.engine}'s own profiler, or compile the model with `hasten compile`"
        )
    recorder = Recorder(artifact, used, default_cache() if cache is None else cache)
    begin = time.perf_counter()
    for _ in range(_WARM_UP):
        recorder.run(feeds)
    each = (time.perf_counter() - begin) / _WARM_UP
    wanted = runs or min(_MOST, max(_FEWEST, int(_SECONDS / max(each, 1e-9))))
    logs = tuple(recorder.run(feeds) for _ in range(wanted))
    artifact.close()
    return Recording(
        logs,
        tuple(recorder.counts()),
        _kernels(path, [step for step in steps if isinstance(step, NativeStep)]),
        tuple(step.operators for step in steps if isinstance(step, HostStep)),
        recorder.target,
        (recorder.compiler, recorder.artifact_compiler),
        used,
    )


def measure_peaks(threads: int) -> Peaks:
    """The machine's peaks: the best of a few measurements; takes about a second.

    Raises:
        ToolchainError: there is no compiler.
    """
    peak = Peak(threads, seconds=_PEAK_SECONDS)
    best = peak.by_precision(_PEAK_TRIES)
    return Peaks(best, peak.gigabytes_per_second())


def summarize(
    name: str, recording: Recording, shapes: Mapping[str, tuple[int, ...]], peaks: Peaks
) -> Profile:
    """The figures of a recording."""
    divisions, teams, calls = [], [], Counter[int]()
    for run in recording.timelines:
        divisions.append(divide(run))
        teams.append(max((call.threads for call in run.calls), default=1))
        calls = Counter(call.part for call in run.calls)
    kernel_us = [_median_us(d.kernels[n] for d in divisions) for n in range(len(recording.kernels))]
    host_us = [_median_us(d.hosts[n] for d in divisions) for n in range(len(recording.hosts))]
    barriers, dispatch, python = (
        _median_us(getattr(d, name) for d in divisions) for name in ("barriers", "dispatch", "python")
    )
    sum_us = sum(kernel_us) + sum(host_us) + barriers + dispatch + python
    # Parts of a loop's body are called many times: the last call of the last run stands for all of them.
    kernels = []
    for number, ((part, function, title), us) in enumerate(zip(recording.kernels, kernel_us, strict=True)):
        once = recording.counts[number]
        count = Count(calls[part] * once.flops, calls[part] * once.bytes, once.bits)
        floor, bound = peaks.floor_us(count)
        kernels.append(
            KernelProfile(
                number=number,
                part=part,
                function=function,
                title=title,
                us=us,
                share=_ratio(us, sum_us),
                waiting=statistics.median(_ratio(d.waiting[number], d.kernels[number]) for d in divisions),
                flops=count.flops,
                bytes=count.bytes,
                gflops=_ratio(count.flops, us * 1e3),
                gigabytes_per_second=_ratio(count.bytes, us * 1e3),
                peak_share=_ratio(floor, us),
                bound=bound,
            )
        )
    return Profile(
        name=name,
        target=recording.target,
        compiler=recording.compilers[0],
        artifact_compiler=recording.compilers[1],
        threads=recording.threads,
        team=statistics.median(teams),
        shapes=shapes,
        runs=len(recording.logs),
        run_us=Spread.of([(log.end - log.start) / 1e3 for log in recording.logs]),
        sum_us=sum_us,
        kernels=tuple(kernels),
        hosts=tuple(
            HostProfile(operators, us, _ratio(us, sum_us))
            for operators, us in zip(recording.hosts, host_us, strict=True)
        ),
        kernels_us=sum(kernel_us),
        barriers_us=barriers,
        dispatch_us=dispatch,
        python_us=python,
        waiting=_ratio(sum(k.us * k.waiting for k in kernels), sum(kernel_us)),
        flops=sum(k.flops for k in kernels),
        peak_share=_ratio(sum(k.us * min(1.0, k.peak_share) for k in kernels), sum(kernel_us)),
        peaks=peaks,
    )


def merge(kernels: Sequence[KernelProfile]) -> KernelProfile:
    """Several kernels as one, with the name and the place of the first one."""
    us, flops, moved = (sum(getattr(k, name) for k in kernels) for name in ("us", "flops", "bytes"))
    return replace(
        kernels[0],
        us=us,
        share=sum(k.share for k in kernels),
        waiting=_ratio(sum(k.us * k.waiting for k in kernels), us),
        flops=flops,
        bytes=moved,
        gflops=_ratio(flops, us * 1e3),
        gigabytes_per_second=_ratio(moved, us * 1e3),
        peak_share=_ratio(sum(k.us * k.peak_share for k in kernels), us),
    )


def _median_us(nanoseconds: Iterable[float]) -> float:
    return statistics.median(nanoseconds) / 1e3


def _kernels(path: Path, native: Sequence[NativeStep]) -> tuple[tuple[int, str, str], ...]:
    """(part, function, title) of all kernels; the functions stand in the manifest for people."""
    with zipfile.ZipFile(path) as archive:
        every = all_steps(json.loads(archive.read("manifest.json"))["steps"])
    steps = [s for s in every if s["kind"] == "native"]
    return tuple(
        (step.part, function, title)
        for step, told in zip(native, steps, strict=True)
        for function, title in zip(told["functions"], step.kernels, strict=True)
    )


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
