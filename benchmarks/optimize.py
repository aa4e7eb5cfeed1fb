"""Searches under an accuracy budget on real models and data: a table in Markdown, or the records as JSON.

    python benchmarks/optimize.py [CASE ...] [--fresh] [--json F] [--reports FOLDER]

r8: MiniLM with a linear head, Reuters R8: 0.5 points of accuracy, certified on the test part.
pictures: EfficientNet-lite0 on unlabelled crops of the pictures of scikit-image and foolbox: 5 points of
agreement.
fashion: a small convolutional network, Fashion-MNIST: 0.5 points of accuracy, certified on the test part.
hostile: a network with a layer that reads a channel of 1000 times the size: 5 points of agreement.
impossible-model: random weights and random labels, 0.1 points of accuracy. Most of what is tried changes
more answers than that.
impossible-samples: 20 samples, a point of agreement.

Budget, precision and pruning can be asked for otherwise. Confidence is 95%, the time limit ten minutes unless
another is given, threads are all cores. Ratios are those of the search itself,
in turns with ONNX Runtime on the sample of median size; for r8 there is a second one after it, of what was
chosen to ONNX Runtime in float32 at 1 x 128 tokens, without padding. `--fresh` measures again what earlier
searches measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import hasten
from benchmarks import fashion, hostile, models, r8
from benchmarks.memory import Peak
from benchmarks.ratio import ratio_to_onnxruntime
from hasten.search.report import unit_of
from hasten.search.results import default_database
from hasten.search.status import Status
from hasten.target import describe_machine

_CALIBRATION = 400
_CROPS = 900
_SIDE = 224
_WIDTH = 512  # of networks with random weights


@dataclass(frozen=True)
class Case:
    """A search: its model, its data, and what is asked.

    Attributes:
        model: ONNX.
        data: samples, all held out if there is `calibration`.
        calibration: samples for choices; None to take them from `data`.
        metric: its name.
        max_drop: the budget.
        shape: what inputs `fixed` has, for people.
        fixed: inputs to time what was chosen with after the search; None for no such figure.
    """

    model: Path | onnx.ModelProto
    data: list[Any]
    calibration: list[Any] | None
    metric: str
    max_drop: float
    shape: str = ""
    fixed: models.Inputs | None = None


def r8_case(calibration: int = _CALIBRATION) -> Case:
    given, labels = r8.samples("test", 0, 10_000)
    held_out = [(feeds, int(label)) for feeds, label in zip(given, labels, strict=True)]
    given, labels = r8.calibration(calibration)
    looked_at = [(feeds, int(label)) for feeds, label in zip(given, labels, strict=True)]
    fixed = models.token_inputs(1, r8.LONGEST)
    return Case(r8.model(), held_out, looked_at, "accuracy", 0.005, f"1 x {r8.LONGEST} tokens", fixed)


def pictures_case(_: int = _CALIBRATION) -> Case:
    return Case(models.efficientnet_lite0_onnx(), crops(_CROPS), None, "agreement", 0.05)


def fashion_case(calibration: int = _CALIBRATION) -> Case:
    looked_at = fashion.samples("train", 4 * calibration)
    return Case(fashion.model(), fashion.samples("t10k"), looked_at, "accuracy", 0.005)


def hostile_case(_: int = _CALIBRATION) -> Case:
    given = hostile.samples(4000, width=_WIDTH)
    return Case(hostile.network(1000.0, width=_WIDTH, more=4), given, None, "agreement", 0.05)


def impossible_model_case(_: int = _CALIBRATION) -> Case:
    given = hostile.samples(4000, width=_WIDTH)
    labels = np.random.default_rng(2).integers(0, hostile.CLASSES, len(given)).tolist()
    model = hostile.network(width=_WIDTH, more=4)
    return Case(model, list(zip(given, labels, strict=True)), None, "accuracy", 0.001)


def impossible_samples_case(_: int = _CALIBRATION) -> Case:
    return Case(hostile.network(), hostile.samples(20), None, "agreement", 0.01)


CASES: Mapping[str, Callable[[int], Case]] = {
    "r8": r8_case,
    "pictures": pictures_case,
    "fashion": fashion_case,
    "hostile": hostile_case,
    "impossible-model": impossible_model_case,
    "impossible-samples": impossible_samples_case,
}


def pictures() -> list[Image.Image]:
    """Those of scikit-image and foolbox in colour."""
    paths = [
        *sorted((models.package("skimage") / "data").glob("*.[jp][pn]g")),
        *sorted((models.package("foolbox") / "data").glob("imagenet_*.jpg")),
    ]
    return [image.convert("RGB") for image in map(Image.open, paths) if image.mode in ("RGB", "RGBA")]


def crops(
    count: int, of: Sequence[Image.Image] | None = None, *, seed: int = 0, flip: bool = False
) -> list[dict[str, Any]]:
    """Random squares of all or some pictures in turn, of a third of the shorter side at least.

    Half of them are mirrored, if that is wanted.
    """
    rng = np.random.default_rng(seed)
    images = pictures() if of is None else of
    found = []
    for number in range(count):
        image = images[number % len(images)]
        side = min(image.size) * rng.uniform(1 / 3, 1)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        box = (left, top, left + side, top + side)
        small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=box), np.float32)
        if flip and rng.random() < 0.5:
            small = small[:, ::-1]
        found.append({"pixels": ((small.transpose(2, 0, 1) - 127) / 128)[None]})
    return found


def labelled_agreement(session: hasten.Session) -> int:
    """Of the twenty labelled ImageNet pictures those that get the original's class."""
    images, _ = models.labelled_pictures()
    with hasten.compile(models.efficientnet_lite0_onnx()) as original:
        wanted = original.run({"pixels": images})["logits"].argmax(axis=1)
    return int((session.run({"pixels": images})["logits"].argmax(axis=1) == wanted).sum())


def run(name: str, database: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A case's record with the seconds it took."""
    case, reports = CASES[name](options.calibration), options.reports
    peak, before = Peak(), psutil.Process().memory_info().rss

    def watch(status: Status) -> None:
        peak.phase, peak.doing = status.phase, status.doing
        print(f"{name} {status.elapsed:6.1f} s: {status}", file=sys.stderr)

    begin = time.perf_counter()
    with peak:
        session = hasten.optimize(
            case.model,
            data=case.data,
            calibration=case.calibration,
            metric=case.metric,
            max_drop=case.max_drop if options.max_drop is None else options.max_drop,
            precision=options.precision,
            prune=options.prune,
            time_limit=options.time_limit,
            database=database,
            command=shlex.join(["python", "benchmarks/optimize.py", *sys.argv[1:]]),
            watch=watch,
        )
    seconds = time.perf_counter() - begin
    if reports is not None:
        reports.mkdir(parents=True, exist_ok=True)
        session.report.to_html(reports / f"{name}.html")
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        session.save(options.save / f"{name}.hasten")
    more: dict[str, Any] = {
        "memory": {
            "own": peak.own,
            "together": peak.most.together,
            "when": peak.most.when,
            "each": dict(peak.most.each),
            "phases": {phase: str(moment) for phase, moment in peak.phases.items()},
            "data": before,
        }
    }
    if name == "pictures":
        more["labelled_agreement_of_20"] = labelled_agreement(session)
    if case.fixed is not None and isinstance(case.model, Path):
        ratio = ratio_to_onnxruntime(session, case.model, case.fixed)
        more["to_onnxruntime_f32"] = {"shape": case.shape, **dataclasses.asdict(ratio)}
    return {"case": name, "seconds": seconds, **more, "record": dataclasses.asdict(session.report.record)}


def markdown(results: list[dict[str, Any]]) -> str:
    """A table of what was returned for each case."""
    lines = [
        "| case | returned | by original (quartiles) | drop | at most | in | held out | tried | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        record = result["record"]
        best = next(c for c in record["candidates"] if c["name"] == record["chosen"])
        ratio, bound = best["to_original"], best["bound"]
        unit = unit_of(record["metric"])
        drop = unit(None if bound is None else bound["measured"])
        most = unit(record["stated"])
        lines.append(
            f"| {result['case']} | {record['chosen']} | {times(ratio)} | {drop} | {most} | {unit.name} "
            f"| {record['data']['held_out']} | {len(record['candidates'])} | {result['seconds']:.0f} |"
        )
    more = [f"{result['case']}: {result['record']['headline']}." for result in results]
    more += [_memory(result) for result in results]
    for result in results:
        if (ratio := result.get("to_onnxruntime_f32")) is not None:
            more.append(
                f"{result['case']}, what was returned at {ratio['shape']}, timed after the search: "
                f"{times(ratio)} x the speed of ONNX Runtime f32."
            )
        if (kept := result.get("labelled_agreement_of_20")) is not None:
            more.append(f"{result['case']}: {kept} of the 20 labelled pictures of foolbox keep their class.")
    return "\n".join([describe_machine(), "", *lines, *(["", *more] if more else [])])


def _memory(result: Mapping[str, Any]) -> str:
    """The most that the search had, against runs of the model in float32."""
    runs = {c["name"]: c["memory"] for c in result["record"]["candidates"] if c["memory"] is not None}
    against = ", ".join(f"{n} {runs[n] / 1e6:.0f} MB" for n in ("lossless", "original") if n in runs)
    found = result["memory"]
    listed = ", ".join(f"{who} {size / 1e6:.0f}" for who, size in found["each"].items())
    return (
        f"{result['case']}, memory: {found['own'] / 1e6:.0f} MB of the search's own process, of which "
        f"{found['data'] / 1e6:.0f} MB before it began; {found['together'] / 1e6:.0f} MB with all that it "
        f"started ({listed}), in {found['when']!r}. A run in float32: {against or 'not measured'}."
    )


def times(ratio: Mapping[str, Any] | None) -> str:
    """A ratio with its quartiles."""
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def main() -> None:
    """Runs the cases that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(CASES)}; all if none")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--reports", type=Path, help="write an HTML report for each case to this folder")
    parser.add_argument("--save", type=Path, help="keep what was returned for each case in this folder")
    parser.add_argument("--max-drop", type=float, help="the budget, instead of the case's own")
    parser.add_argument(
        "--precision", default="auto", help="f32, bf16 or int8: what layers may have beside f32"
    )
    parser.add_argument("--prune", action="store_true", help="remove units too")
    parser.add_argument(
        "--calibration",
        type=int,
        default=_CALIBRATION,
        help="texts of r8, and a quarter of the pictures of fashion",
    )
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds")
    options = parser.parse_args()
    names: list[str] = options.cases or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]}: give some of {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "results.sqlite" if options.fresh else default_database()
        results = [run(name, database, options) for name in names]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1, default=str) + "\n", "utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
