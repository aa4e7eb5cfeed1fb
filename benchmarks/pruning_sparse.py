"""Single weights and rows of embeddings taken out of real models: accuracy, size and time to open.

    python -m benchmarks.pruning_sparse weights r8 --patterns 0.5,2:4 --criteria magnitude,activation,obs
    python -m benchmarks.pruning_sparse rows r8 --unseen 100     # rows no text asks for; 100 is [UNK]
    python -m benchmarks.pruning_sparse open r8.onnx             # size and opening, mapped and sparse

Models and data: `benchmarks.pruning_cases`, whose train part says what goes. Models are kept as ONNX with
`--output FOLDER`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import hasten
from benchmarks.pruning import HEAD, Bench, line
from benchmarks.pruning_cases import CASES
from hasten.search.prune.plan import Plan
from hasten.search.prune.run import prune_model
from hasten.search.prune.sparsity import Pattern

_ROUNDS = 15


def weights(options: argparse.Namespace) -> None:
    """Zeros by each pattern and criterion, with repair and without."""
    bench = Bench.of(options)
    print(HEAD)
    for given in options.patterns.split(","):
        pattern = Pattern.of(given if ":" in given else float(given))
        for criterion in options.criteria.split(","):
            for repair in options.repairs.split(","):
                plan = Plan(
                    ("neurons",), criterion, None, repair, looked_at=options.looked_at, sparsity=pattern
                )
                start = time.perf_counter()
                small = prune_model(bench.model, plan, bench.data)
                bound = bench.bound_of(small)
                name = f"{given}, {criterion}, {repair}"
                print(line(name, small.report.flops, bound, time.perf_counter() - start), flush=True)
                if options.output:
                    small.save(options.output / f"{given}-{criterion}-{repair}.onnx", overwrite=True)


def rows(options: argparse.Namespace) -> None:
    """Rows that no sample of the train part asks for, and how many of the ids examined had theirs taken."""
    bench = Bench.of(options)
    small = prune_model(
        bench.model, Plan(("rows",), "magnitude", None, "none", unseen=options.unseen), bench.data
    )
    print(small.report)
    print(HEAD)
    print(line("rows", small.report.flops, bench.bound_of(small), 0.0))
    for name in bench.data.feeds[0]:
        known = np.unique(np.concatenate([feeds[name].reshape(-1) for feeds in bench.data.feeds]))
        ids = np.concatenate([feeds[name].reshape(-1) for feeds in bench.examined.feeds])
        new = ~np.isin(ids, known)
        texts = np.mean([bool((~np.isin(feeds[name], known)).any()) for feeds in bench.examined.feeds])
        print(f"{name}: {new.mean():.3%} of the ids examined are new, in {texts:.1%} of the samples")
    if options.output:
        small.save(options.output / "rows.onnx", overwrite=True)


def open_(options: argparse.Namespace) -> None:
    """Size of artifacts, and time until they are open, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for storage in ("mapped", "sparse"):
            paths[storage] = Path(folder) / f"{storage}.hasten"
            with hasten.compile(options.model, storage=storage) as session:
                session.save(paths[storage])
        seconds: dict[str, list[float]] = {storage: [] for storage in paths}
        for _ in range(_ROUNDS):
            for storage, path in paths.items():
                start = time.perf_counter()
                hasten.open(path).close()
                seconds[storage].append(time.perf_counter() - start)
        for storage, path in paths.items():
            median = 1e3 * statistics.median(seconds[storage])
            print(f"| {storage} | {path.stat().st_size / 1e6:.1f} MB | {median:.1f} ms |")


def main() -> None:
    """Runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parsers = parser.add_subparsers(required=True)
    for command in (weights, rows):
        sub = parsers.add_parser(command.__name__, help=command.__doc__)
        sub.set_defaults(command=command, labelled=False)
        sub.add_argument("case", choices=list(CASES))
        sub.add_argument("--on", choices=["check", "test"], default="test")
        sub.add_argument("--most", type=int, help="samples to examine, at most")
        sub.add_argument("--learn", type=int, help="samples that pruning may look at")
        sub.add_argument("--looked-at", type=int, default=Plan.looked_at)
        sub.add_argument("--patterns", default="0.5,2:4")
        sub.add_argument("--criteria", default="magnitude,activation,obs")
        sub.add_argument("--repairs", default="none,least-squares")
        sub.add_argument("--unseen", type=int)
        sub.add_argument("--output", type=Path)
    sub = parsers.add_parser("open", help=open_.__doc__)
    sub.set_defaults(command=open_)
    sub.add_argument("model")
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
