"""The record of a search that ended, and its one sentence."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import replace

from hasten.search.candidates import LOSSLESS, ORIGINAL
from hasten.search.comparison import over_budget
from hasten.search.metrics import Metric
from hasten.search.optimize import Search
from hasten.search.record import (
    CandidateRecord,
    DataRecord,
    MachineRecord,
    Outcome,
    PhaseRecord,
    SearchRecord,
)
from hasten.target import cores, processor_name

_PACKAGES = ("numpy", "scipy", "onnx", "onnx-ir", "onnxruntime", "openvino", "torch", "transformers")


def summarize(search: Search, *, version: str, command: str, started: str) -> SearchRecord:
    """Everything that a search did and found.

    Args:
        search: that ended.
        version: of hasten.
        command: what repeats it.
        started: when it began.
    """
    trials = search.trials
    problem, clock, asked = trials.problem, trials.clock, trials.problem.asked
    trials.note(search.best, outcome=Outcome.CHOSEN)
    notes = list(dict.fromkeys(search.notes))
    if trials.reused:
        notes.append(f"{trials.reused} measurements are from earlier searches on this machine")
    return SearchRecord(
        model=problem.name,
        model_sha256=problem.sha256,
        machine=MachineRecord(
            processor_name(),
            ", ".join(problem.build.targets),
            asked.threads,
            cores(),
            platform.platform(terse=True),
            _memory(),
        ),
        versions={"hasten": version, "Python": platform.python_version(), **_versions()},
        command=command,
        started=started,
        seed=asked.seed,
        metric=asked.metric.name,
        larger_is_better=asked.metric.larger_is_better,
        max_drop=asked.max_drop,
        confidence=asked.confidence,
        data=DataRecord(
            samples=len(problem.calibration) + len(problem.held_out),
            calibration=len(problem.calibration),
            held_out=len(problem.held_out),
            labelled=problem.held_out.labels is not None,
            sha256=problem.data_sha256,
        ),
        original=problem.original.engine.name if problem.original and trials.works(ORIGINAL) else None,
        original_value=trials.reference_value(),
        candidates=_in_order(list(trials.records.values())),
        chosen=search.best,
        layers=search.table.records(search.best),
        curve=search.mixed.curve_points(),
        stated=search.certificates.stated(),
        headline=headline(search),
        notes=tuple(notes),
        phases=tuple(PhaseRecord(name, seconds) for name, seconds in clock.phases),
        interrupted=search.interrupted,
        samples_needed=search.certificates.samples_needed,
        prune_curve=tuple(search.pruning.curve),
        left_alone=tuple(search.pruning.left_alone),
        reference=trials.records[search.best].against or trials.reference,
    )


def headline(search: Search) -> str:
    """What is returned, and what is certain about it."""
    trials = search.trials
    asked = trials.problem.asked
    best = trials.records[search.best]
    stated = search.certificates.stated()
    if stated is None:
        lost = trials.records[LOSSLESS].drop
        itself = ""
        if lost is not None and over_budget(trials, LOSSLESS):
            itself = (
                f"; it drops {amount(lost, asked.metric)} itself against the original on the "
                f"{len(trials.problem.calibration):,} calibration samples"
            )
        return f"the lossless compilation is returned: {_why_lossless(search)}{itself}"
    ratio, than = best.to_original, "the original"
    if ratio is None:
        ratio, than = best.to_lossless, "the lossless compilation"
    assert best.bound is not None
    speed = "" if ratio is None else f"{ratio.median:.2f} x as fast as {than}; "
    certain = "with" if best.bound.guaranteed else "with about"
    against = "" if best.against == ORIGINAL else " against the lossless compilation"
    return (
        f"{best.name}: {speed}{certain} {asked.confidence:.0%} confidence the drop in "
        f"{asked.metric.name}{against} on data like yours is at most {amount(stated, asked.metric)} "
        f"(measured {amount(best.bound.measured, asked.metric)} on {best.bound.samples:,} held-out samples)"
    )


def amount(drop: float, metric: Metric) -> str:
    """A drop for people: points of a share, else a number."""
    bounded = metric.zero_one or metric.name in ("f1", "mcc", "spearman")
    return f"{drop * 100:.3g} points" if bounded else f"{drop:.3g}"


def _why_lossless(search: Search) -> str:
    records = list(search.trials.records.values())
    problem, asked = search.trials.problem, search.trials.problem.asked
    needed = search.certificates.samples_needed
    if needed is not None:
        return (
            f"{len(problem.held_out):,} held-out samples cannot certify a drop of at most "
            f"{amount(asked.max_drop, asked.metric)} with {asked.confidence:.0%} confidence; about "
            f"{needed:,} would be needed"
        )
    slower = [r for r in records if r.outcome is Outcome.NOT_FASTER and r.bound is not None]
    if any(r.bound is not None and r.bound.upper <= asked.max_drop for r in slower):
        return f"no candidate that keeps the budget is faster ({slower[-1].name}: {slower[-1].reason})"
    failed = [r for r in records if r.outcome is Outcome.NOT_CERTIFIED]
    if failed:
        return f"no other candidate is certain to keep the budget ({failed[0].name}: {failed[0].reason})"
    if any(r.outcome is Outcome.OVER_BUDGET for r in records):
        return "no faster candidate kept the budget on the calibration part"
    if search.interrupted:
        return "the search ended before anything else was certified"
    if asked.max_drop <= 0:
        return "a drop of 0 cannot be certified by any number of samples"
    return "no other candidate was faster"


def _in_order(records: Sequence[CandidateRecord]) -> tuple[CandidateRecord, ...]:
    first = [r for name in (ORIGINAL, LOSSLESS) for r in records if r.name == name]
    rest = [r for r in records if r.name not in (ORIGINAL, LOSSLESS)]
    return (*first, *(_explained(r) for r in rest))


def _explained(record: CandidateRecord) -> CandidateRecord:
    """With a reason where it was measured and nothing else came of it."""
    if record.outcome is Outcome.NOT_TRIED and not record.reason:
        return replace(record, reason="the search ended before its turn")
    return record


def _memory() -> int | None:
    """Bytes of the machine."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
