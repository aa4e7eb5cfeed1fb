"""Pruning on Reuters R8: accuracy, certified drop and speed of MiniLM with a linear head.

    python -m benchmarks.prune_r8 one --flops 0.7                    # one pruning python -m
    benchmarks.prune_r8 one --flops 0.5 --speed            # with the time against the unpruned model python
    -m benchmarks.prune_r8 criteria --picture criteria.png    # criteria and amounts, with and without
    repair python -m benchmarks.prune_r8 layers                             # 1 to 4 of the 6 layers left
    out

Choices look at texts of the train part; accuracy is of the test part, which no choice has seen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

import hasten
from benchmarks import r8
from benchmarks.models import token_inputs
from hasten import frontends
from hasten.passes.pipeline import optimize_graph
from hasten.search.certify import Bound, certify
from hasten.search.engines import HASTEN
from hasten.search.measure import Contestant, measure
from hasten.search.measure import Plan as Measuring
from hasten.search.metrics import metric_named
from hasten.search.prune.criteria import CRITERIA
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import Plan, prune_model
from hasten.search.samples import Samples

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999")  # Okabe and Ito's palette


@dataclass
class Bench:
    """The model, its data, and what the model says of the test texts."""

    model: ir.Model
    calibration: Samples
    given: Sequence[dict[str, np.ndarray]]
    labels: np.ndarray
    right: np.ndarray

    @staticmethod
    def of(calibration: int, test: int, *, labelled: bool = False) -> Bench:
        """Loads all of it."""
        model = frontends.load(r8.model())
        optimize_graph(model)
        given, labels = r8.samples("test", 0, test)
        feeds, classes = r8.calibration(calibration)
        right = r8.logits(str(r8.model()), given)
        return Bench(model, Samples(tuple(feeds), classes if labelled else None), given, labels, right)

    def prune(self, plan: Plan) -> tuple[Pruned, float, Bound]:
        """Prunes; the result, its accuracy, and the certified drop in accuracy."""
        small = prune_model(self.model, plan, self.calibration)
        found = r8.logits(ir.to_proto(small.model).SerializeToString(), self.given)
        accuracy = float((found.argmax(1) == self.labels).mean())
        bound = certify(metric_named("accuracy"), {"logits": self.right}, {"logits": found}, self.labels)
        return small, accuracy, bound

    @property
    def accuracy(self) -> float:
        """Of the original."""
        return float((self.right.argmax(1) == self.labels).mean())


def speed(small: Pruned, rounds: int) -> str:
    """Time of the unpruned model divided by that of the pruned one, both compiled, at 1 x 128, in turns."""
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.hasten" for name in ("small", "big")]
        for path, source in zip(paths, (small, r8.model()), strict=True):
            with hasten.compile(source, threads=threads) as session:
                session.save(path)
        contestants = [Contestant(HASTEN, path, [path]) for path in paths]
        found = measure(contestants, token_inputs(1, 128), Measuring(threads, rounds))
    fast, slow = found.results
    ratio = slow.ratio_to(fast)
    return (
        f"{fast.run_ms.median:.2f} ms against {slow.run_ms.median:.2f} ms: {ratio.median:.2f} times as fast "
        f"(quartiles {ratio.low:.2f} to {ratio.high:.2f}, {found.rounds} rounds)"
    )


def line(name: str, small: Pruned, accuracy: float, bound: Bound, seconds: float) -> str:
    """One row of a table."""
    return (
        f"| {name} | {small.report.flops:.1%} | {accuracy:.2%} | {100 * bound.measured:+.2f} | "
        f"{100 * bound.upper:+.2f} | {seconds:.0f} |"
    )


def header(bench: Bench) -> None:
    """The head of a table of `line`s."""
    texts, used = len(bench.labels), len(bench.calibration)
    print(f"original: {bench.accuracy:.2%} of {texts} texts; texts to choose by: {used}")
    print("| pruned by | FLOPs left | accuracy | drop, points | certified (95%) | s |")
    print("|---|---|---|---|---|---|")


def one(options: argparse.Namespace) -> None:
    """One pruning."""
    bench = Bench.of(options.calibration, options.test, labelled=options.labelled)
    header(bench)
    plan = Plan(tuple(options.unit.split(",")), options.criterion, options.flops, options.repair)
    start = time.perf_counter()
    small, accuracy, bound = bench.prune(plan)
    print(line(f"{plan.criterion}, {plan.repair}", small, accuracy, bound, time.perf_counter() - start))
    print(small.report)
    if options.output:
        small.save(options.output, overwrite=True)
    if options.speed:
        print(speed(small, options.rounds))


def criteria(options: argparse.Namespace) -> None:
    """Criteria and amounts, with and without repair, as a table and a picture."""
    bench = Bench.of(options.calibration, options.test)
    header(bench)
    drops: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for repair in ("none", "least-squares"):
        for criterion in options.criteria.split(","):
            for flops in map(float, options.amounts.split(",")):
                start = time.perf_counter()
                small, accuracy, bound = bench.prune(Plan(("heads", "neurons"), criterion, flops, repair))
                seconds = time.perf_counter() - start
                print(line(f"{criterion}, {repair}", small, accuracy, bound, seconds), flush=True)
                drops.setdefault((criterion, repair), []).append((small.report.flops, 100 * bound.measured))
    if options.picture:
        draw(drops, options.picture)


def draw(drops: dict[tuple[str, str], list[tuple[float, float]]], path: Path) -> None:
    """Drop against FLOPs, without repair on the left and with it on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, repair in zip(figure.subplots(1, 2, sharey=True), ("none", "least-squares"), strict=True):
        for (criterion, how), points in drops.items():
            if how == repair:
                colour = _COLOURS[CRITERIA.index(criterion)]
                axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=criterion)
        axes.set_title("no repair" if repair == "none" else "least squares", loc="left")
        axes.set_xlabel("share of the FLOPs left")
        axes.set_yscale("symlog", linthresh=1)
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_xaxis()
    figure.axes[0].set_ylabel("drop in accuracy, points")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def layers(options: argparse.Namespace) -> None:
    """One to four of six layers left out, by three criteria."""
    bench = Bench.of(options.calibration, options.test)
    header(bench)
    for criterion in ("magnitude", "activation", "gradient", "fisher", "random"):
        for count in range(1, 5):
            start = time.perf_counter()
            plan = Plan(("layers",), criterion, 1 - count / 6 + 0.01, "none")
            small, accuracy, bound = bench.prune(plan)
            gone = [str(k + 1) for k, cut in enumerate(small.report.cuts) if not cut.after]
            name = f"{criterion}: without {', '.join(gone)}"
            print(line(name, small, accuracy, bound, time.perf_counter() - start), flush=True)
            if options.speed:
                print(f"|   {speed(small, options.rounds)} ||||||")


def main() -> None:
    """Runs one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["one", "criteria", "layers"])
    parser.add_argument("--flops", type=float, default=0.7)
    parser.add_argument("--unit", default="heads,neurons")
    parser.add_argument("--criterion", default="fisher")
    parser.add_argument("--criteria", default="magnitude,activation,gradient,fisher,random")
    parser.add_argument("--amounts", default="0.8,0.7,0.6,0.5,0.4")
    parser.add_argument("--repair", default="least-squares")
    parser.add_argument("--labelled", action="store_true", help="gradients of the loss with labels")
    parser.add_argument("--calibration", type=int, default=256, help="texts that choices look at")
    parser.add_argument("--test", type=int, default=2190, help="texts of the test part")
    parser.add_argument("--speed", action="store_true", help="time it too (on an idle machine)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--output", type=Path, help="keep the pruned model as ONNX")
    options = parser.parse_args()
    {"one": one, "criteria": criteria, "layers": layers}[options.what](options)


if __name__ == "__main__":
    main()
