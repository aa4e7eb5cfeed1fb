"""How long each layer takes inside a run, from the times of the kernels that compute it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from hasten.passes.quantize import Layer
from hasten.search.data import Feeds
from hasten.search.profile import Recording, record
from hasten.search.profile_timeline import divide

_RUNS = 30


def layer_times(
    artifact: Path, layers: Sequence[Layer], feeds: Feeds, threads: int, cache: Path
) -> dict[str, float]:
    """Microseconds of each layer in a run; layers whose kernel is not known are left out.

    A kernel belongs to the layer whose node stands in its title, together with what was fused into it. What
    a layer costs elsewhere, such as quantizing its input in the kernel before, counts there.

    Args:
        artifact: the compiled model.
        layers: that could be quantized.
        feeds: one sample.
        threads: of a run.
        cache: folder of compiled objects.

    Raises:
        HastenError: as `profile.record`.
    """
    recording = record(artifact, feeds, runs=_RUNS, threads=threads, cache=cache)
    return attributed(recording, kernel_times(recording), layers)


def kernel_times(recording: Recording) -> list[float]:
    """The median microseconds of each kernel."""
    divisions = [divide(run) for run in recording.timelines]
    return [
        statistics.median(d.kernels[number] for d in divisions) / 1e3
        for number in range(len(recording.kernels))
    ]


def attributed(recording: Recording, us: Sequence[float], layers: Sequence[Layer]) -> dict[str, float]:
    """The microseconds of the kernels that name each layer's node."""
    found: dict[str, float] = {}
    for (_, _, title), time in zip(recording.kernels, us, strict=True):
        for layer in layers:
            if f"{layer.op_type} '{layer.name}'" in title:
                found[layer.name] = found.get(layer.name, 0.0) + time
    return found


def gains(
    layers: Sequence[Layer],
    before: Mapping[str, float],
    after: Mapping[str, float],
    total: float,
) -> dict[str, float]:
    """Microseconds that quantizing each layer saves.

    Layers whose times are not both known share what is left of the whole difference, by their work.

    Args:
        layers: that could be quantized.
        before: microseconds of layers that are not quantized.
        after: microseconds of the same layers quantized.
        total: microseconds that quantizing all of them saves in a run, as measured from end to end.
    """
    known = {name: before[name] - after[name] for name in before if name in after}
    rest = [layer for layer in layers if layer.name not in known]
    left = max(0.0, total - sum(known.values()))
    work = sum(layer.macs for layer in rest)
    return known | {layer.name: left * layer.macs / work for layer in rest}
