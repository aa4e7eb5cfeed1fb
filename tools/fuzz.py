"""Loads mutated models, opens damaged artifacts, runs on wrong inputs: a result, or an error of ours.

python tools/fuzz.py [--count N] [--first SEED]

A problem is printed when it is met first, and all with their numbers in the end.

Of the cases 70% are models, and 10% each artifacts with changed bytes, with changed manifests, and inputs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.fuzz import artifacts, loading
from tests.onnx_suite.suite import load_cases

BATCH = 100


def main() -> int:
    """Runs the cases and prints what was found, equal problems once; 1 if there is anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    options = parser.parse_args()
    start = time.monotonic()
    found: Counter[str] = Counter()
    where: dict[str, str] = {}
    seeds = range(options.first, options.first + options.count)
    with ThreadPoolExecutor(2) as pool:
        for place, problem in (p for part in pool.map(run, batches(seeds)) for p in part):
            found[problem] += 1
            if problem not in where:
                where[problem] = place
                print(f"met first at {place}: {problem}", flush=True)
    for problem, n in found.most_common():
        print(f"{n:5}  {problem}  ({where[problem]})")
    seconds = time.monotonic() - start
    print(f"{len(seeds)} cases, {found.total()} that ended otherwise than they must, in {seconds:.0f} s")
    return bool(found)


Batch = list[loading.Item] | list[artifacts.Item]


def batches(seeds: Sequence[int]) -> list[Batch]:
    """The cases, those of one kind together."""
    cases = load_cases()
    models, rest = seeds[: len(seeds) * 7 // 10], seeds[len(seeds) * 7 // 10 :]
    items = [loading.Item((c := cases[seed * 7919 % len(cases)]).key, c.model, seed) for seed in models]
    result: list[Batch] = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    for k, kind in enumerate(("bytes", "manifest", "inputs")):
        damaged = [artifacts.Item(kind, seed) for seed in rest[k::3]]
        result += [damaged[i : i + 10 * BATCH] for i in range(0, len(damaged), 10 * BATCH)]
    return result


def run(items: Batch) -> list[tuple[str, str]]:
    """Where something ended otherwise than it must, and how."""
    if isinstance(items[0], loading.Item):
        return [(f"seed {f.seed} of {f.case}", f.problem) for f in loading.findings(items)]
    return [(f"seed {f.item.seed} of {f.item.kind}", f.problem) for f in artifacts.findings(items)]


if __name__ == "__main__":
    sys.exit(main())
