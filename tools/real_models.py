"""Runs whole models of many architectures against ONNX Runtime and prints how much of each is compiled.

python tools/real_models.py [--only TEXT] [--markdown docs/coverage.md]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import onnxruntime
from tools.pages import markdown_table, replace_part

import hasten
from benchmarks import models, zoo

HEAD = ("model", "operators", "compiled", "on the host", "worst difference", "inputs tried")


@dataclass(frozen=True)
class Whole:
    """A model and inputs of several sizes for it."""

    name: str
    file: Callable[[], Path]
    inputs: Callable[[], list[models.Inputs]]


@dataclass(frozen=True)
class Agreement:
    """What a model's comparison gave.

    Attributes:
        operators: how many nodes the optimized graph has.
        host: the nodes that are not compiled, counted by operator.
        worst: the largest difference, as a part of the largest number of the same output.
        runs: how many inputs were compared.
    """

    operators: int
    host: Counter[str]
    worst: float
    runs: int


def wholes() -> Iterator[Whole]:
    """Trained models that packages carry, then small ones of many architectures."""
    pages = ((192, 384), (96, 160))
    yield Whole("MiniLM", models.minilm_onnx, _sentences)
    yield Whole("EfficientNet-lite0", models.efficientnet_lite0_onnx, _labelled)
    yield Whole("LAC (GRU)", models.lac, lambda: [models.chinese_inputs(), models.chinese_inputs(["你好。"])])
    yield Whole("PP-OCR detection", models.ppocr_det, lambda: [{"x": models.page(*size)} for size in pages])
    yield Whole(
        "PP-OCR recognition", models.ppocr_rec, lambda: [{"x": models.page_line(w)} for w in (320, 201)]
    )
    yield Whole("PP-OCR direction", models.ppocr_cls, lambda: [{"x": models.page_line(192)}])
    for architecture in zoo.architectures():
        yield Whole(architecture.name, architecture.file, architecture.all_inputs)


def _sentences() -> list[models.Inputs]:
    return [models.sentence_inputs([sentence]) for sentence in models.SENTENCES[:2]]


def _labelled() -> list[models.Inputs]:
    pictures, _ = models.labelled_pictures()
    return [{"pixels": pictures[:3]}, {"pixels": pictures[3:4]}]


def compare(file: Path, inputs: list[models.Inputs]) -> Agreement:
    """Compiles a model and runs it beside ONNX Runtime.

    Raises:
        ValueError: an output has another shape or type, or another value that is not a float.
        HastenError: the model cannot be compiled or run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    reference = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    session = hasten.compile(file, threads=2)
    worst = 0.0
    for feeds in inputs:
        for (name, found), expected in zip(
            session.run(feeds).items(), reference.run(None, feeds), strict=True
        ):
            worst = max(worst, _difference(name, found, expected))
    host = Counter(node.split(" ", 1)[0] for node in session.report["host"])
    return Agreement(session.report["passes"]["nodes_after"], host, worst, len(inputs))


def _difference(name: str, found: models.Array, expected: models.Array) -> float:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"{name} is {found.dtype}{found.shape}, expected {expected.dtype}{expected.shape}")
    if found.dtype.kind != "f":
        if not np.array_equal(found, expected):
            raise ValueError(
                f"{name} differs in {np.count_nonzero(found != expected)} of {found.size} places"
            )
        return 0.0
    if not found.size:
        return 0.0
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def table_row(name: str, agreement: Agreement) -> tuple[str, ...]:
    """The model's row of the table."""
    compiled = 1 - agreement.host.total() / agreement.operators
    host = ", ".join(f"{op} x {n}" for op, n in agreement.host.items())
    return (
        name, str(agreement.operators), f"{compiled:.0%}", host, f"{agreement.worst:.1e}", str(agreement.runs)
    )  # fmt: skip


def main() -> int:
    """Prints the table; 1 where a model fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose name has this text")
    parser.add_argument("--markdown", type=Path, help="page whose table of models is replaced")
    options = parser.parse_args()
    if options.only and options.markdown:
        parser.error("--markdown replaces the whole table: leave --only out")
    rows, failed = [], 0
    for whole in wholes():
        if options.only not in whole.name:
            continue
        try:
            rows.append(table_row(whole.name, compare(whole.file(), whole.inputs())))
        except Exception as error:  # noqa: BLE001 - a row that says so
            failed += 1
            rows.append((whole.name, "", "", "", f"failed: {error}", ""))
        print(" | ".join(rows[-1]), flush=True)
    if options.markdown:
        replace_part(options.markdown, "models", markdown_table(HEAD, rows))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
