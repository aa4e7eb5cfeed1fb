"""Where the time goes that keeps a model from the machine's peak, by the operators of its kernels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hasten.search.measure import Spread
from hasten.search.profile import Peaks, Profile, measure_peaks, record, summarize

Array = NDArray[Any]

_SHOWN = 3
_LEAST = 0.005  # of a run, to be worth a word
_ALIKE = 0.05  # by which a profile's runs may differ from others to tell of them


@dataclass(frozen=True)
class Loss:
    """Time that kernels of the same operators take beyond what they would take at the machine's peak.

    Attributes:
        what: their operators, or what is lost outside of kernels.
        share: of a run's time.
    """

    what: str
    share: float


@dataclass(frozen=True)
class Losses:
    """What a profile says of where a model's time goes: of its own runs, by peaks measured right after them.

    Attributes:
        run_us: microseconds of a run.
        peak_share: of the kernels, as in `Profile`.
        peaks: of the machine.
        lost: time beyond the peak, the largest share first.
    """

    run_us: Spread
    peak_share: float
    peaks: Peaks
    lost: tuple[Loss, ...]


def losses(found: Profile) -> Losses:
    """What a profiled model loses; kernels above the peak lose nothing."""
    lost: dict[str, float] = defaultdict(float)
    for kernel in found.kernels:
        lost[operators(kernel.title)] += kernel.us * (1 - min(1.0, kernel.peak_share))
    for host in found.hosts:
        lost[f"{', '.join(host.operators)} on the host"] += host.us
    lost["between kernels"] = found.barriers_us + found.dispatch_us
    lost["Python"] = found.python_us
    ranked = sorted(lost.items(), key=lambda item: -item[1])
    shares = tuple(Loss(what, us / found.sum_us) for what, us in ranked if us > 0)
    return Losses(found.run_us, found.peak_share, found.peaks, shares)


def operators(title: str) -> str:
    """The kinds of operators in a kernel's title, each once, in order."""
    kinds = dict.fromkeys(re.findall(r"(\w+) '[^']*'", title))
    return " + ".join(kinds) or title


def measured_losses(artifact: Path, feeds: Mapping[str, Array], threads: int) -> Losses:
    """Profiles an artifact; takes about three seconds.

    Raises:
        HastenError: it cannot be profiled on this machine.
    """
    recording = record(artifact, feeds, threads=threads)
    shapes = {name: array.shape for name, array in feeds.items()}
    return losses(summarize(artifact.name, recording, shapes, measure_peaks(recording.threads)))


def told(found: Losses, run_ms: float) -> str:
    """The largest ones in a cell of a table, beside figures of runs of so many milliseconds."""
    shown = [f"{loss.what} {loss.share:.1%}" for loss in found.lost[:_SHOWN] if loss.share >= _LEAST]
    own = found.run_us.median / 1e3
    differs = abs(own / run_ms - 1) > _ALIKE
    note = f" (of the profile's runs of {own:.4g} ms, {own / run_ms - 1:+.0%})" if differs else ""
    return f"{', '.join(shown)}{note}".strip()
