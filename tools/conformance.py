"""Runs ONNX's own test suite over hasten and prints what passes, by operator.

python tools/conformance.py [--only TEXT] [--failures FILE] [--markdown docs/coverage.md]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import onnx
from tests.onnx_suite.suite import KINDS, Outcome, load_cases, run_cases, skipped
from tools.pages import markdown_table, replace_part

COLUMNS = ("native", "host", "refused", "wrong", "crashed")


def main() -> int:
    """Runs the cases and prints; 1 where they contradict the list of skipped ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--failures", type=Path, help="file for what does not pass or is not native")
    parser.add_argument("--markdown", type=Path, help="page whose part on the suite is replaced")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.only and options.markdown:
        parser.error("--markdown replaces the whole table: leave --only out")
    start = time.monotonic()
    cases = [c for c in load_cases() if options.only in c.key]
    by_key = {c.key: c for c in cases}
    outcomes = list(run_cases(cases, options.workers))
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for o in outcomes:
        rows[by_key[o.case].operators][o.verdict] += 1
        totals[by_key[o.case].kind][o.verdict] += 1
    kinds = table("part of the suite", {k: totals[k] for k in KINDS if k in totals})
    partly = table("operator", {k: v for k, v in sorted(rows.items()) if set(v) != {"native"}})
    whole = [k for k, v in sorted(rows.items()) if set(v) == {"native"}]
    print("\n".join([*partly, f"({len(whole)} more operators have every case native)", "", *kinds]))
    if options.markdown:
        replace_part(options.markdown, "suite", document(kinds, partly, whole))
    if options.failures:
        lines = [f"{o.verdict}\t{o.case}\t{o.detail}" for o in outcomes if o.verdict != "native"]
        options.failures.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"\n{len(outcomes)} cases in {time.monotonic() - start:.0f} s")
    return judge(outcomes)


def table(head: str, rows: dict[str, Counter[str]]) -> list[str]:
    """How often each verdict was reached, in Markdown."""
    lines = []
    for name, counts in rows.items():
        passed = f"{counts['native'] + counts['host']} of {counts.total()}"
        lines.append((name, passed, *(str(counts[c]) for c in COLUMNS)))
    return markdown_table((head, "passed", *COLUMNS), lines).splitlines()


def document(kinds: list[str], partly: list[str], whole: list[str]) -> str:
    """The part of docs/coverage.md on ONNX's suite."""
    return "\n".join(
        [
            f"The test cases of onnx {onnx.__version__} over `hasten.onnx_backend`. *Native* cases are",
            "compiled as a whole; *host* ones give the right answer with some operators run by ONNX's",
            "reference evaluator, which `hasten inspect` names with the reason; *refused* ones end in an",
            "error of ours, *wrong* ones in another answer. The last two are listed with reasons in",
            "`tests/onnx_suite/skipped.txt`.",
            "",
            *kinds,
            "",
            "### Operators whose cases are not all native",
            "",
            *partly,
            "",
            "### Operators whose cases are all native",
            "",
            ", ".join(whole) + ".",
        ]
    )


def judge(outcomes: list[Outcome]) -> int:
    """Names what contradicts the list of skipped cases, both ways."""
    reasons = skipped()
    unexpected = [o for o in outcomes if o.passed == (o.case in reasons)]
    for o in unexpected:
        print(f"{'passes but is skipped' if o.passed else o.verdict}: {o.case} {o.detail}")
    return bool(unexpected)


if __name__ == "__main__":
    sys.exit(main())
