"""Searches under an accuracy budget on real models and data: a table in Markdown, or the records as JSON.

    python benchmarks/optimize.py [r8] [pictures] [fashion] [--fresh] [--json F] [--reports FOLDER]

r8: MiniLM with a linear head, Reuters R8: 0.5 points of accuracy, certified on the test part.
pictures: EfficientNet-lite0 on unlabelled crops of the pictures of scikit-image and foolbox: 5 points of
agreement.
fashion: a small convolutional network, Fashion-MNIST: 0.5 points of accuracy, certified on the test part.

Confidence is 95%, the time limit ten minutes, threads are all cores. Ratios are those of the search itself,
in turns with ONNX Runtime on the same samples. `--fresh` measures again what earlier searches measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import hasten
from benchmarks import fashion, models, r8
from hasten.search.results import default_database
from hasten.target import describe_machine

_CALIBRATION = 400
_CROPS = 900
_SIDE = 224


@dataclass(frozen=True)
class Case:
    """A search: its model, its data, and what is asked.

    Attributes:
        model: an ONNX file.
        data: samples, all held out if there is `calibration`.
        calibration: samples for choices; None to take them from `data`.
        metric: its name.
        max_drop: the budget.
    """

    model: Path
    data: list[Any]
    calibration: list[Any] | None
    metric: str
    max_drop: float


def r8_case() -> Case:
    given, labels = r8.samples("test", 0, 10_000)
    held_out = [(feeds, int(label)) for feeds, label in zip(given, labels, strict=True)]
    given, labels = r8.calibration(_CALIBRATION)
    looked_at = [(feeds, int(label)) for feeds, label in zip(given, labels, strict=True)]
    return Case(r8.model(), held_out, looked_at, "accuracy", 0.005)


def pictures_case() -> Case:
    return Case(models.efficientnet_lite0_onnx(), crops(_CROPS), None, "agreement", 0.05)


def fashion_case() -> Case:
    looked_at = fashion.samples("train", 4 * _CALIBRATION)
    return Case(fashion.model(), fashion.samples("t10k"), looked_at, "accuracy", 0.005)


CASES: Mapping[str, Callable[[], Case]] = {
    "r8": r8_case,
    "pictures": pictures_case,
    "fashion": fashion_case,
}


def crops(count: int) -> list[dict[str, Any]]:
    """Random squares of pictures in colour, of a third of the shorter side at least."""
    rng = np.random.default_rng(0)
    paths = [
        *sorted((models.package("skimage") / "data").glob("*.[jp][pn]g")),
        *sorted((models.package("foolbox") / "data").glob("imagenet_*.jpg")),
    ]
    images = [image.convert("RGB") for image in map(Image.open, paths) if image.mode in ("RGB", "RGBA")]
    found = []
    for number in range(count):
        image = images[number % len(images)]
        side = min(image.size) * rng.uniform(1 / 3, 1)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        box = (left, top, left + side, top + side)
        small = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=box)
        found.append({"pixels": ((np.asarray(small, np.float32).transpose(2, 0, 1) - 127) / 128)[None]})
    return found


def labelled_agreement(session: hasten.Session) -> int:
    """Of the twenty labelled ImageNet pictures those that get the original's class."""
    images, _ = models.labelled_pictures()
    with hasten.compile(models.efficientnet_lite0_onnx()) as original:
        wanted = original.run({"pixels": images})["logits"].argmax(axis=1)
    return int((session.run({"pixels": images})["logits"].argmax(axis=1) == wanted).sum())


def run(name: str, database: Path, reports: Path | None) -> dict[str, Any]:
    """A case's record with the seconds it took."""
    case = CASES[name]()
    begin = time.perf_counter()
    session = hasten.optimize(
        case.model,
        data=case.data,
        calibration=case.calibration,
        metric=case.metric,
        max_drop=case.max_drop,
        database=database,
        command=f"python benchmarks/optimize.py {name}",
        watch=lambda status: print(f"{name} {status.elapsed:6.1f} s: {status}", file=sys.stderr),
    )
    seconds = time.perf_counter() - begin
    if reports is not None:
        reports.mkdir(parents=True, exist_ok=True)
        session.report.to_html(reports / f"{name}.html")
    more = {"labelled_agreement_of_20": labelled_agreement(session)} if name == "pictures" else {}
    return {"case": name, "seconds": seconds, **more, "record": dataclasses.asdict(session.report.record)}


def markdown(results: list[dict[str, Any]]) -> str:
    """A table of what was returned for each case."""
    lines = [
        "| case | returned | by the original (quartiles) | drop | at most | held out | tried | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        record = result["record"]
        best = next(c for c in record["candidates"] if c["name"] == record["chosen"])
        ratio, bound = best["to_original"], best["bound"]
        speed = "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        drop = "-" if bound is None else f"{100 * bound['measured']:.2f}"
        most = "-" if record["stated"] is None else f"{100 * record['stated']:.2f}"
        lines.append(
            f"| {result['case']} | {record['chosen']} | {speed} | {drop} | {most} "
            f"| {record['data']['held_out']} | {len(record['candidates'])} | {result['seconds']:.0f} |"
        )
    return "\n".join([describe_machine(), "", *lines])


def main() -> None:
    """Runs the cases that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(CASES)}; all if none")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--reports", type=Path, help="write an HTML report for each case to this folder")
    options = parser.parse_args()
    names: list[str] = options.cases or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]}: give some of {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "results.sqlite" if options.fresh else default_database()
        results = [run(name, database, options.reports) for name in names]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1, default=str) + "\n", "utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
