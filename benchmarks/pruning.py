"""Pruning on real models and data: accuracy, certified drop and speed, each line by a command.

    python -m benchmarks.pruning one r8 --flops 0.7 --speed       # one pruning
    python -m benchmarks.pruning one r8 --flops 0.5 --repair distill --learn 3000 --epochs 2 --seconds 1200
    python -m benchmarks.pruning train r8 --given F.onnx --output G.onnx --seconds 300 --checkpoint t.pt
    python -m benchmarks.pruning together r8 --flops 0.7          # alone, int8 alone, and both
    python -m benchmarks.pruning times r8 pruned.hasten f32.hasten  # what was made before, in turns
    python -m benchmarks.pruning criteria fashion --json c.json   # criteria, amounts, with repair or not
    python -m benchmarks.pruning picture r8.json fashion.json -o criteria.png
    python -m benchmarks.pruning layers r8 --output FOLDER        # 1 to 4 of the 6 layers left out

Models and data: `benchmarks.pruning_cases`. `--on check` looks at samples of the train part, for who tries
settings; `--on test`, the default, at those that no choice has seen. The certified drop is the exact bound of
`hasten.search.certify` at 95%. Times are of one run on all cores, in turns with the other model of the line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import hasten
from benchmarks.pruning_cases import CASES, Case
from hasten import frontends
from hasten.passes.pipeline import optimize_graph
from hasten.search.certify import Bound, certify
from hasten.search.engines import HASTEN, ONNXRUNTIME
from hasten.search.measure import Contestant, Result, measure
from hasten.search.measure import Plan as Measuring
from hasten.search.metrics import metric_named
from hasten.search.prune.cost import graph_flops, typical_sizes
from hasten.search.prune.criteria import CRITERIA
from hasten.search.prune.distill import distill
from hasten.search.prune.plan import Plan
from hasten.search.prune.ranking import rank
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import prune_model, prune_ranked
from hasten.search.prune.training import Training
from hasten.search.samples import Samples, some
from hasten.target import cores

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999")  # Okabe and Ito
_COMPARED = "magnitude,activation,gradient,fisher,obs,random"


@dataclass
class Bench:
    """A case, and what its model says of the samples that are examined."""

    case: Case
    model: ir.Model
    data: Samples
    examined: Samples
    right: np.ndarray

    @staticmethod
    def of(options: argparse.Namespace) -> Bench:
        """Loads all of it."""
        case = CASES[options.case]()
        model = frontends.load(case.model)
        optimize_graph(model)
        examined = case.examine(options.on)
        if options.most is not None:
            labels = None if examined.labels is None else examined.labels[: options.most]
            examined = Samples(examined.feeds[: options.most], labels)
        data = case.learn(options.learn or case.choose)
        if not options.labelled:
            data = Samples(data.feeds)
        bench = Bench(case, model, data, examined, case.answers(case.model, examined.feeds))
        print(
            f"{options.case}: {bench.original()}; {len(data)} samples to choose by; on {options.on}",
            flush=True,
        )
        return bench

    def original(self) -> str:
        """What is known of the original, in words."""
        count, labels = len(self.examined), self.examined.labels
        if labels is None:
            return f"original on {count} unlabelled samples"
        return f"original {(self.right.argmax(1) == labels).mean():.2%} of {count} samples"

    def bound(self, found: np.ndarray) -> Bound:
        """The certified drop of some answers."""
        metric = metric_named(self.case.metric)
        return certify(metric, {"logits": self.right}, {"logits": found}, self.examined.labels)

    def bound_of(self, small: Pruned) -> Bound:
        """The certified drop of a pruned model."""
        return self.bound(
            self.case.answers(ir.to_proto(small.model).SerializeToString(), self.examined.feeds)
        )

    def bound_of_session(self, session: hasten.Session) -> Bound:
        """The certified drop of a compiled model."""
        return self.bound(np.concatenate([session.run(f)["logits"] for f in self.examined.feeds]))


def plan_of(options: argparse.Namespace, case: Case) -> Plan:
    """The plan that the command line asks for."""
    units = tuple(options.unit.split(",")) if options.unit else case.units
    training = Training(options.epochs, options.seconds, options.rate, options.batch, options.checkpoint)
    return Plan(
        units,
        options.criterion,
        options.flops,
        options.repair,
        training,
        options.seed,
        options.amounts,
        looked_at=options.looked_at,
    )


HEAD = "| pruned by | FLOPs left | drop, points | certified (95%) | lost, gained | s |\n" + "|---" * 6 + "|"


def line(name: str, flops: float, bound: Bound, seconds: float) -> str:
    """One row of a table."""
    return (
        f"| {name} | {flops:.1%} | {100 * bound.measured:+.2f} | {100 * bound.upper:+.2f} | "
        f"{bound.losses}, {bound.gains} | {seconds:.0f} |"
    )


def timed(models: Sequence[Path], case: Case, rounds: int) -> Sequence[Result]:
    """Times of models in turns: artifacts by hasten, ONNX files by ONNX Runtime."""
    contestants = [
        Contestant(HASTEN if p.suffix == ".hasten" else ONNXRUNTIME, p, [p], label=str(number))
        for number, p in enumerate(models)
    ]
    found = measure(contestants, case.fixed, Measuring(cores(), rounds, openings=1))
    for number, reason in found.failures.items():
        raise SystemExit(f"{models[int(number)]}: {reason}")
    return found.results


def compiled(source: object, folder: Path, name: str, **how: Any) -> Path:
    """A model as an artifact."""
    path = folder / f"{name}.hasten"
    with hasten.compile(source, threads=cores(), **how) as session:
        session.save(path)
    return path


def ratio(slow: Result, fast: Result) -> str:
    """How many times as fast, with quartiles."""
    found = slow.ratio_to(fast)
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def speed(small: Pruned, case: Case, rounds: int) -> str:
    """Time of the unpruned model divided by that of the pruned one, both compiled in float32."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paths = [compiled(small, place, "small"), compiled(case.model, place, "big")]
        fast, slow = timed(paths, case, rounds)
    return (
        f"{fast.run_ms.median:.3f} ms against {slow.run_ms.median:.3f} ms at {case.shape}, f32: "
        f"{ratio(slow, fast)} times as fast"
    )


def one(options: argparse.Namespace) -> None:
    """One pruning."""
    bench = Bench.of(options)
    plan = plan_of(options, bench.case)
    start, used = time.perf_counter(), time.process_time()
    small = prune_model(bench.model, plan, bench.data, tell)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    if options.output:
        small.save(options.output, overwrite=True)
    print(small.report)
    print(HEAD)
    name = f"{plan.criterion}, {plan.repair}"
    print(line(name, small.report.flops, bench.bound_of(small), seconds), flush=True)
    print(f"{used:.0f} s of processor time")
    if options.speed:
        print(speed(small, bench.case, options.rounds))


def tell(text: str) -> None:
    """Prints what begins."""
    print(f"  {text}", flush=True)


def train(options: argparse.Namespace) -> None:
    """Trains a model that was pruned and kept before, from its checkpoint if there is one."""
    bench = Bench.of(options)
    small = ir.load(options.given)
    training = Training(options.epochs, options.seconds, options.rate, options.batch, options.checkpoint)
    data, labels = bench.data.feeds, None if bench.data.labels is None else bench.data.labels.tolist()
    done = distill(bench.model, small, data, training, labels=labels, progress=tell)
    ir.save(small, options.output)
    name = f"{done.epochs} epochs, {done.before:.3g} to {done.after:.3g}"
    sizes = typical_sizes(bench.model, some(bench.data, Plan.looked_at, options.seed).feeds)
    share = graph_flops(small, sizes) / graph_flops(bench.model, sizes)
    print(HEAD)
    answers = bench.case.answers(Path(options.output), bench.examined.feeds)
    print(line(name, share, bench.bound(answers), done.seconds))


def criteria(options: argparse.Namespace) -> None:
    """Criteria and amounts, with and without repair, as a table and as JSON."""
    bench = Bench.of(options)
    print(HEAD)
    rows = []
    for criterion in options.criteria.split(","):
        options.criterion, options.repair = criterion, "none"
        plan = plan_of(options, bench.case)
        ranking = rank(bench.model, plan, bench.data)
        for repair in options.repairs.split(","):
            for flops in map(float, options.shares.split(",")):
                options.flops, options.repair = flops, repair
                start = time.perf_counter()
                small = prune_ranked(ranking, plan_of(options, bench.case))
                if options.output:
                    _kept(small, options.output, f"{criterion}-{repair}-{flops}")
                bound = bench.bound_of(small)
                seconds = time.perf_counter() - start
                print(line(f"{criterion}, {repair}", small.report.flops, bound, seconds), flush=True)
                rows.append(
                    {
                        "case": options.case, "criterion": criterion, "repair": repair,
                        "flops": small.report.flops, "drop": 100 * bound.measured, "upper": 100 * bound.upper,
                    }
                )  # fmt: skip
                if options.json:  # as it goes: all of it takes long
                    options.json.write_text(json.dumps(rows, indent=1) + "\n")


def picture(options: argparse.Namespace) -> None:
    """Drop against FLOPs from files of `criteria`: a row for each case, without repair on the left."""
    from matplotlib.figure import Figure

    rows = [row for path in options.files for row in json.loads(Path(path).read_text())]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    repairs = ("none", "least-squares")
    figure = Figure(figsize=(10, 3.6 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), 2, sharey="row", squeeze=False)
    for case, across in zip(cases, grid, strict=True):
        for repair, axes in zip(repairs, across, strict=True):
            for criterion, colour in zip(CRITERIA, _COLOURS, strict=True):
                chosen = [
                    r for r in rows if (r["case"], r["repair"], r["criterion"]) == (case, repair, criterion)
                ]
                if chosen:
                    drops = [(100 * r["flops"], r["drop"]) for r in chosen]
                    axes.plot(*zip(*drops, strict=True), marker="o", color=colour, label=criterion)
            how = "no repair" if repair == "none" else "least squares"
            axes.set_title(f"{case}: {how}", loc="left")
            axes.set_xlabel("FLOPs left, %")
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.axhline(1, color="#444444", linewidth=0.8, linestyle="--")
            axes.grid(color="#dddddd", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.invert_xaxis()
        across[0].set_ylabel("drop in accuracy, points")
    grid[0][0].legend(frameon=False, fontsize=9)
    figure.savefig(options.output, dpi=110)


def layers(options: argparse.Namespace) -> None:
    """One to four layers left out, by some criteria."""
    bench = Bench.of(options)
    print(HEAD)
    options.unit = "layers"
    for criterion in options.criteria.split(","):
        options.criterion = criterion
        ranking = rank(bench.model, plan_of(options, bench.case), bench.data)
        for count in range(1, 5):
            options.flops = 1 - count / len(ranking.layers) + 0.01
            start = time.perf_counter()
            small = prune_ranked(ranking, plan_of(options, bench.case))
            gone = [str(k + 1) for k, cut in enumerate(small.report.cuts) if not cut.after]
            name = f"{criterion}, {options.repair}: without {', '.join(gone)}"
            bound = bench.bound_of(small)
            print(line(name, small.report.flops, bound, time.perf_counter() - start), flush=True)
            if options.output:
                _kept(small, options.output, f"{criterion}-{count}")


def _kept(small: Pruned, folder: Path, name: str) -> None:
    """Keeps one of several models in a folder, which need not be there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    small.save(folder / f"{name}.onnx", overwrite=True)


def together(options: argparse.Namespace) -> None:
    """Pruning alone, int8 alone and both: certified drops of what hasten compiled, and times in turns."""
    bench = Bench.of(options)
    folder = options.output or Path(tempfile.mkdtemp(prefix="hasten-"))
    folder.mkdir(parents=True, exist_ok=True)
    if options.given:
        pruned: object = options.given
    else:
        pruned = prune_model(bench.model, plan_of(options, bench.case), bench.data)
    examples = [dict(feeds) for feeds in bench.data.feeds[: bench.case.choose]]
    quantized: dict[str, Any] = {"precision": "int8", "data": examples}
    paths = [
        compiled(bench.case.model, folder, "f32"),
        compiled(pruned, folder, "pruned f32"),
        compiled(bench.case.model, folder, "int8", **quantized),
        compiled(pruned, folder, "pruned int8", **quantized),
    ]
    if "bf16" in options.also:
        paths += [
            compiled(bench.case.model, folder, "bf16", precision="bf16"),
            compiled(pruned, folder, "pruned bf16", precision="bf16"),
        ]
    print("| compiled | drop, points | certified (95%) |\n|---|---|---|")
    for path in [] if options.unexamined else paths:
        with hasten.open(path) as session:
            bound = bench.bound_of_session(session)
        print(f"| {path.stem} | {100 * bound.measured:+.2f} | {100 * bound.upper:+.2f} |", flush=True)
    if not options.untimed:
        show_times([*paths, bench.case.model], bench.case, options.rounds)


def examine(options: argparse.Namespace) -> None:
    """Drops of ONNX models and artifacts that were made before."""
    bench = Bench.of(options)
    print("| model | drop, points | certified (95%) |\n|---|---|---|")
    for path in options.files:
        if path.endswith(".hasten"):
            with hasten.open(path) as session:
                bound = bench.bound_of_session(session)
        else:
            bound = bench.bound(bench.case.answers(Path(path), bench.examined.feeds))
        print(f"| {path} | {100 * bound.measured:+.2f} | {100 * bound.upper:+.2f} |", flush=True)


def times(options: argparse.Namespace) -> None:
    """Times of artifacts and ONNX files in turns, the last of which the ratios are to."""
    show_times([Path(path) for path in options.files], CASES[options.case](), options.rounds)


def show_times(paths: Sequence[Path], case: Case, rounds: int) -> None:
    """A table of times, and ratios to the last."""
    results = timed(paths, case, rounds)
    print(f"| at {case.shape} | ms | times as fast as {paths[-1].name} (quartiles) |\n|---|---|---|")
    for path, result in zip(paths, results, strict=True):
        print(f"| {path.name} | {result.run_ms.median:.3f} | {ratio(results[-1], result)} |")


def main() -> None:
    """Runs one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = {
        "one": one, "criteria": criteria, "layers": layers, "together": together, "times": times,
        "examine": examine, "train": train,
    }  # fmt: skip
    parsers = parser.add_subparsers(required=True)
    for name, command in commands.items():
        sub = parsers.add_parser(name, help=(command.__doc__ or "").partition("\n")[0])
        sub.set_defaults(command=command)
        sub.add_argument("case", choices=list(CASES))
        if name in ("times", "examine"):
            sub.add_argument("files", nargs="+")
        _options(sub)
    sub = parsers.add_parser("picture", help="draws what `criteria --json` wrote")
    sub.set_defaults(command=picture)
    sub.add_argument("files", nargs="+")
    sub.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.command(options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on", choices=["check", "test", "unseen"], default="test")
    parser.add_argument("--most", type=int, help="samples to examine, at most")
    parser.add_argument("--learn", type=int, help="samples that pruning may look at")
    parser.add_argument(
        "--looked-at", type=int, default=Plan.looked_at, help="of those by ranking and repair"
    )
    parser.add_argument("--labelled", action="store_true", help="gradients and training with labels")
    parser.add_argument("--unit")
    parser.add_argument("--criterion", default="fisher")
    parser.add_argument("--criteria", default=_COMPARED)
    parser.add_argument("--flops", type=float, default=0.7)
    parser.add_argument("--shares", default="0.8,0.7,0.6,0.5,0.4")
    parser.add_argument("--amounts", default="global")
    parser.add_argument("--repair", default="least-squares")
    parser.add_argument("--repairs", default="none,least-squares")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of distillation, at most")
    parser.add_argument("--rate", type=float, default=Training.rate)
    parser.add_argument("--batch", type=int, default=Training.batch)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true", help="time it too (on an idle machine)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--given", type=Path, help="together, train: a model that is pruned already, as ONNX")
    parser.add_argument("--also", default="", help="together: bf16 too")
    parser.add_argument("--unexamined", action="store_true", help="together: times only")
    parser.add_argument("--untimed", action="store_true", help="together: artifacts and drops only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, help="keep the pruned model as ONNX; a folder for several")


if __name__ == "__main__":
    main()
