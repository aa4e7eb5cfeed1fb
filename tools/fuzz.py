"""Loads mutated ONNX models: each must end in a result or in one of hasten's errors.

python tools/fuzz.py [--count N] [--first SEED]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.fuzz.loading import Finding, Item, findings
from tests.onnx_suite.suite import load_cases

BATCH = 100


def main() -> int:
    """Runs the cases and prints what was found, equal problems once; 1 if there is anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    options = parser.parse_args()
    cases = load_cases()
    seeds = range(options.first, options.first + options.count)
    items = [Item((c := cases[seed * 7919 % len(cases)]).key, c.model, seed) for seed in seeds]
    batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    with ThreadPoolExecutor(2) as pool:
        found: list[Finding] = [f for part in pool.map(findings, batches) for f in part]
    count = Counter(f.problem for f in found)
    for problem, n in count.most_common():
        first = next(f for f in found if f.problem == problem)
        print(f"{n:5}  {problem}  (seed {first.seed} of {first.case})")
    print(f"{len(items)} models, {len(found)} that ended otherwise than they must")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
