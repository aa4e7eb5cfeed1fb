"""How far the schedules that follow from shapes are from those that tuning finds: issue 3 allows 10%.

    python -m benchmarks.tuned CASE [--precision int8] [--effort full] [--seconds 600] [--rounds 9]

CASE is a part of a name in `cases.py`. The model of each case that it names is compiled twice, with the
default schedules and after tuning for the case's own shapes (into a database of its own), and both run in
turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cases import Entry, entries_named
from hasten.api import CompileOptions, Quantization, compile_payload
from hasten.errors import EngineError
from hasten.runtime.artifact import write_artifact
from hasten.search.engines import HASTEN
from hasten.search.measure import Contestant, Plan, Spread, measure
from hasten.search.tune_options import Tuning
from hasten.target import cores, describe_machine

_TUNED = dataclasses.replace(HASTEN, name="hasten-tuned")


def default_by_tuned(entry: Entry, options: argparse.Namespace, folder: Path) -> Spread:
    """The time of the default schedules divided by that of the tuned ones, within the same rounds.

    Raises:
        EngineError: one of them cannot run the inputs.
    """
    model, feeds = entry.onnx(), entry.inputs()
    shapes = {name: array.shape for name, array in feeds.items()}
    database = folder / "tuning.sqlite"
    tuning = Tuning(options.effort, seconds=options.seconds, shapes=shapes, database=database)
    of_bytes = options.precision == "int8"
    contestants = []
    for engine, tune in ((HASTEN, Tuning()), (_TUNED, tuning)):
        start, path = time.perf_counter(), folder / f"{engine.name}.hasten"
        choices = CompileOptions(
            precision=options.precision,
            data=entry.calibration() if of_bytes and entry.calibration else None,
            quantization=Quantization(rest="bf16") if of_bytes else None,
            threads=options.threads,
            tune=tune,
        )
        payload = compile_payload(model, choices)
        write_artifact(path, payload.manifest, payload.members)
        say(f"{entry.name}: {engine.name} compiled in {time.perf_counter() - start:.0f} s")
        contestants.append(Contestant(engine, path, [path]))
    found = measure(contestants, feeds, Plan(options.threads, rounds=options.rounds, openings=1))
    for name, reason in found.failures.items():
        raise EngineError(f"{name}: {reason}")
    default, tuned = (next(r for r in found.results if r.engine == c.engine.name) for c in contestants)
    ratio = default.ratio_to(tuned)
    assert ratio is not None
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description="Time default schedules against tuned ones.")
    parser.add_argument("case", help="a part of the names of cases, in any case of letters")
    parser.add_argument("--precision", choices=("f32", "bf16", "int8"), default="f32")
    parser.add_argument("--effort", choices=("quick", "full"), default="full")
    parser.add_argument("--seconds", type=float, help="time limit of tuning [60, or 600 in full]")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    entries = [entry for entry in entries_named(options.case) if entry.figure == "run"]
    if not entries:
        parser.error(f"no case's name contains {options.case!r}")
    print(f"{describe_machine()}; threads: {options.threads}, tuning: {options.effort}\n", flush=True)
    print("| case | precision | default / tuned [quartiles] |\n|---|---|---|", flush=True)
    for entry in entries:
        with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
            ratio = default_by_tuned(entry, options, Path(folder))
        spread = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        print(f"| {entry.name} | {options.precision} | {spread} |", flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
