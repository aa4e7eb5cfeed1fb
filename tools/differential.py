"""Random graphs through hasten, ONNX Runtime and ONNX's reference evaluator; two of three decide.

python tools/differential.py [--count N] [--first SEED] [--workers N] [--folder FOLDER]
python tools/differential.py FILE ...

A graph on which hasten differs is made smaller and written to FOLDER; given such files, they run again.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import onnx
from tests.differential.generate import random_graph
from tests.differential.graph import Graph
from tests.differential.run import BATCH, PER_PROCESS, Config, Outcome, configs, run_batch
from tests.differential.shrink import read, shrink, write

MOST_SHRUNK = 20
"""Differences that are made smaller."""


def main() -> int:
    """Runs the graphs and prints what differs; 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="graphs that were written here once")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first graph")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/differential"))
    options = parser.parse_args()
    if options.files:
        return replay(options.files)
    start = time.monotonic()
    seeds = range(options.first, options.first + options.count)
    ways = configs()
    items = [(seed, ways[seed // BATCH % len(ways)]) for seed in seeds]
    batches = [items[at : at + PER_PROCESS] for at in range(0, len(items), PER_PROCESS)]
    outcomes: list[Outcome] = []
    bad: list[tuple[Outcome, Config]] = []
    with ThreadPoolExecutor(options.workers) as pool:
        for batch, found in zip(batches, pool.map(run_batch, batches), strict=True):
            outcomes += found
            for (_, way), o in zip(batch, found, strict=True):
                if not o.passed:
                    bad.append((o, way))
                    print(f"{o.verdict} {o.seed} {way} {o.detail}", flush=True)
    print(summary(outcomes), f"in {time.monotonic() - start:.0f} s", flush=True)
    for outcome, way in list(alike(bad).values())[:MOST_SHRUNK]:
        options.folder.mkdir(parents=True, exist_ok=True)
        path = options.folder / f"{outcome.seed}.zip"
        smaller = shrink(random_graph(outcome.seed), lambda g, o=outcome, w=way: same_failure(g, o, w))
        write(path, smaller)
        print(f"\n{path}: {outcome.verdict}, {outcome.detail}\n{onnx.printer.to_text(smaller.model)[:2000]}")
    return bool(bad)


def alike(bad: Sequence[tuple[Outcome, Config]]) -> dict[str, tuple[Outcome, Config]]:
    """One difference of each kind: what says the same but for its numbers has one cause, mostly."""
    kinds: dict[str, tuple[Outcome, Config]] = {}
    for o, way in bad:
        kinds.setdefault(
            f"{o.verdict} {re.sub(r'[0-9.]+', '', o.detail)}" if o.verdict != "wrong" else str(o.seed),
            (o, way),
        )
    return kinds


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts of what was run."""
    verdicts = Counter(o.verdict for o in outcomes)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    nodes, host = sum(o.nodes for o in outcomes), sum(o.host for o in outcomes)
    empty = sum(o.empty for o in outcomes)
    return (
        f"{len(outcomes)} graphs, {nodes} nodes of which {host} on the host: {counts}; "
        f"{empty} runs with empty values ended in an error that says so;"
    )


def same_failure(graphs: Sequence[Graph], outcome: Outcome, way: Config) -> list[bool]:
    """For each graph, whether it ends as another one did."""
    return [o.verdict == outcome.verdict for o in run_batch([(g, way) for g in graphs])]


def replay(files: Sequence[Path]) -> int:
    """Runs graphs from files in all ways; 1 if any differs."""
    graphs = [read(f) for f in files]
    failed = False
    for way in configs():
        for path, o in zip(files, run_batch([(g, way) for g in graphs]), strict=True):
            print(path, way, o.verdict, o.detail)
            failed |= not o.passed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
