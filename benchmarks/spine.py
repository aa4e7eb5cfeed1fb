"""The cases of the spine: f32, hasten against other engines, as a Markdown table and JSON.

    python benchmarks/spine.py [--cases minilm] [--rounds 30] [--json figures.json]

How engines are timed is described in `hasten.search.measure`. Compile seconds are those of an empty cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import models
from hasten.api import compile_payload
from hasten.runtime.artifact import write_artifact
from hasten.search.engines import ONNXRUNTIME, OPENVINO, TORCH, peers_named
from hasten.search.measure import Plan, Result
from hasten.search.measure_case import Case, measure_case
from hasten.target import cores, describe_machine


@dataclass(frozen=True)
class Entry:
    """A case: what is compiled, what else other engines may take, and inputs."""

    name: str
    model: Callable[[], Path]
    inputs: Callable[[], models.Inputs]
    more: Sequence[Callable[[], Path]] = ()


def tokens(batch: int, length: int) -> Callable[[], models.Inputs]:
    return lambda: models.token_inputs(batch, length)


def picture() -> models.Inputs:
    return {"pixels": models.labelled_pictures()[0][:1].copy()}


def numbers() -> models.Inputs:
    return {"x": np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)}


ENTRIES = (
    *(
        Entry(f"MiniLM {batch} x {length}", models.minilm_onnx, tokens(batch, length), (models.minilm,))
        for batch, length in ((1, 16), (1, 64), (1, 128), (8, 128))
    ),
    Entry("BERT-base 1 x 128", models.bert_base_onnx, tokens(1, 128)),
    Entry("ResNet-50 1 x 224", models.resnet50_onnx, picture),
    Entry("EfficientNet-lite0 1 x 224", models.efficientnet_lite0_onnx, picture),
    Entry("MLP 64-128-64-1, batch 1", models.mlp_onnx, numbers),
)


@dataclass(frozen=True)
class Compiled:
    """An artifact and how long it took to compile with an empty cache."""

    path: Path
    seconds: float


def compiled(model: Path, folder: Path, threads: int) -> Compiled:
    path = folder / f"{model.stem}.hasten"
    with tempfile.TemporaryDirectory(prefix="hasten-") as cache:
        start = time.perf_counter()
        payload = compile_payload(model, threads=threads, cache=cache)
        write_artifact(path, payload.manifest, payload.members)
        return Compiled(path, time.perf_counter() - start)


def markdown(cases: Iterable[Case]) -> str:
    """The cases as a table: times and ratios first, then what opening costs.

    The first answer is loading and the first run together, for engines differ in what they put off until then
    (hasten: reading the weights and their checksum).
    """
    header = (
        "case", "engine", "run ms", "hasten's speedup", "GFLOP/s", "of peak", "load ms",
        "hasten loads faster by", "first answer ms", "peak MB", "file MB", "compile s",
    )  # fmt: skip
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * 2}{'---:|' * (len(header) - 2)}"]
    for case in cases:
        for result in case.measurement.results:
            lines.append(f"| {' | '.join(cells(case, result))} |")
        for name, reason in case.measurement.failures.items():
            lines.append(f"| {case.name} | {name} | not measured: {reason} |{' |' * (len(header) - 3)}")
    return "\n".join(lines)


def cells(case: Case, result: Result) -> list[str]:
    own = result.ratio is None
    achieved = None if case.gflop is None else case.gflop / result.run_ms.median * 1e3
    peak = case.peak_gflops
    share = None if achieved is None or peak is None else achieved / peak.median
    ratio = result.ratio
    seconds = case.compile_seconds
    return [
        case.name,
        f"{result.engine} {result.version}",
        f"{result.run_ms.median:.4g}",
        "" if ratio is None else f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        "" if achieved is None else f"{achieved:.3g}",
        "" if share is None else f"{share:.0%}",
        f"{result.load_ms:.3g}",
        "" if result.load_ratio is None else f"{result.load_ratio:.1f}",
        f"{result.load_ms + result.first_ms:.3g}",
        "" if result.peak_mb is None else f"{result.peak_mb:.0f}",
        f"{result.file_mb:.3g}",
        f"{seconds:.1f}" if own and seconds is not None else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time hasten against other engines on the spine's cases.")
    parser.add_argument("--cases", default="", help="only those whose name contains this, in any case")
    installed = ",".join(e.name for e in (ONNXRUNTIME, OPENVINO, TORCH) if e.version is not None)
    parser.add_argument("--against", default=installed, help="engines, with commas between")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    plan = Plan(options.threads, rounds=options.rounds)
    chosen = [entry for entry in ENTRIES if options.cases.lower() in entry.name.lower()]
    if not chosen:
        parser.error(f"no case's name contains {options.cases!r}")
    cases = []
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        artifacts: dict[Path, Compiled] = {}
        for entry in chosen:
            say(f"{entry.name}: making the model and compiling it")
            model = entry.model()
            if model not in artifacts:
                artifacts[model] = compiled(model, Path(folder), options.threads)
            sources = [model, *(more() for more in entry.more)]
            against = peers_named(options.against)
            if not any(source.is_dir() for source in sources):
                against = tuple(engine for engine in against if engine.runs != "folder")
            say(f"{entry.name}: timing")
            artifact = artifacts[model]
            case = measure_case(
                entry.name,
                artifact.path,
                sources,
                against,
                entry.inputs(),
                plan,
                compile_seconds=artifact.seconds,
            )
            if case.load_average > 0.5 * cores():
                say(f"the machine is busy (load {case.load_average:.1f}): the figures mean little")
            cases.append(case)
    print(f"\n{describe_machine()}; {options.threads} threads, {options.rounds} rounds\n")
    print(markdown(cases))
    if options.json is not None:
        figures = {"machine": describe_machine(), "cases": [dataclasses.asdict(case) for case in cases]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
