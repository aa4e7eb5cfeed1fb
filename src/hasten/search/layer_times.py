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


def times_by_title(
    artifact: Path, work: Mapping[str, float], feeds: Feeds, threads: int, cache: Path
) -> dict[str, float]:
    """Microseconds of nodes in a run, by what they are called in the titles of kernels.

    A kernel belongs to the nodes that stand in its title, in proportion to their work. What a node costs
    elsewhere, such as quantizing its input in the kernel before, counts there. Nodes whose kernel is not
    known are left out.

    Args:
        artifact: the compiled model.
        work: of each node, in any unit, by its title (`describe_node`).
        feeds: one sample.
        threads: of a run.
        cache: folder of compiled objects.

    Raises:
        HastenError: as `profile.record`.
    """
    recording = record(artifact, feeds, runs=_RUNS, threads=threads, cache=cache)
    titles = [title for _, _, title in recording.kernels]
    return shared_out(titles, kernel_times(recording), work)


def kernel_times(recording: Recording) -> list[float]:
    """The median microseconds of each kernel."""
    divisions = [divide(run) for run in recording.timelines]
    return [
        statistics.median(d.kernels[number] for d in divisions) / 1e3
        for number in range(len(recording.kernels))
    ]


def shared_out(titles: Sequence[str], us: Sequence[float], work: Mapping[str, float]) -> dict[str, float]:
    """Times of kernels among the nodes in their titles, in proportion to the nodes' work."""
    found: dict[str, float] = {}
    for title, time in zip(titles, us, strict=True):
        inside = [node for node in work if node in title]
        whole = sum(work[node] for node in inside)
        for node in inside:
            found[node] = found.get(node, 0.0) + time * work[node] / whole
    return found


def layer_times(
    artifact: Path, work: Mapping[Layer, float], feeds: Feeds, threads: int, cache: Path
) -> dict[str, float]:
    """Microseconds of each layer in a run (`times_by_title`), by its name; `work` is what each computes."""
    titles = {f"{layer.op_type} '{layer.name}'": layer for layer in work}
    by_title = {title: work[layer] for title, layer in titles.items()}
    found = times_by_title(artifact, by_title, feeds, threads, cache)
    return {titles[title].name: us for title, us in found.items()}


def gains(
    work: Mapping[Layer, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
    total: float,
) -> dict[str, float]:
    """Microseconds that another format of each layer saves.

    Layers whose times are not both known share what is left of the whole difference, by their work. Where the
    layers' own times fell by more than a run's, what has been added elsewhere, such as the search for scales
    of rows, is taken from them in proportion to the columns of what they multiply.

    Args:
        work: the layers that have the format, with what each computes in a run.
        before: microseconds of layers in floats, of others too.
        after: microseconds of layers where all that can have the format have it.
        total: microseconds that the format of all of them saves in a run, as measured from end to end.
    """
    names = [layer.name for layer in work]
    known = {name: before[name] - after[name] for name in names if name in before and name in after}
    rest = {layer.name: part for layer, part in work.items() if layer.name not in known}
    left = total - sum(known.values())
    whole = sum(rest.values())
    found = known | {name: max(0.0, left) * part / whole for name, part in rest.items()}
    if left >= 0:
        return found
    columns = {layer.name: layer.depth for layer in work}
    every = sum(columns.values())
    return {name: gain + left * columns[name] / every for name, gain in found.items()}
