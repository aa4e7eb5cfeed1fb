"""What other programs on the machine cost: times of a run beside programs that keep some cores busy.

    python -m benchmarks.busy [--programs 1] [--rounds 5]

Each engine runs with a thread for each core, in a process of its own, in turns with the others; first
with nobody else on the machine, then beside `--programs` programs that compute without end. Given are
mean times (of the median round), and how many times slower a run is beside them; a fair scheduler with
one such program on two cores leaves room for 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

import hasten
from benchmarks import models
from hasten.search.engines import HASTEN, HASTEN_BF16, Engine, Worker, peers_named, save_feeds
from hasten.search.measure import Contestant
from hasten.search.measure_case import files_of
from hasten.target import cores

_TURN = 0.3  # seconds
PEERS = "onnxruntime,openvino-static,openvino-static-bf16"


def _picture() -> models.Inputs:
    return {"pixels": np.random.default_rng(0).random((1, 3, 224, 224), np.float32)}


CASES: dict[str, tuple[Callable[[], Path], Callable[[], models.Inputs]]] = {
    "EfficientNet-lite0 1 x 224": (models.efficientnet_lite0_onnx, _picture),
    "MiniLM 1 x 16": (models.minilm_onnx, lambda: models.token_inputs(1, 16)),
    "MiniLM 1 x 128": (models.minilm_onnx, lambda: models.token_inputs(1, 128)),
    "MiniLM 8 x 128": (models.minilm_onnx, lambda: models.token_inputs(8, 128)),
}


@contextmanager
def beside(programs: int) -> Iterator[None]:
    """Other programs that compute as long as the block runs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def contestants(model: Path, folder: Path) -> list[Contestant]:
    """hasten in both precisions, and the peers."""
    own: list[tuple[Engine, str]] = [(HASTEN, "f32"), (HASTEN_BF16, "bf16")]
    found = []
    for engine, precision in own:
        path = folder / f"{engine.name}.hasten"
        hasten.compile(model, precision=precision).save(path)
        found.append(Contestant(engine, path, [path]))
    return found + [Contestant(peer, model, files_of(model)) for peer in peers_named(PEERS)]


def mean_times(engines: Sequence[Contestant], feeds: Path, programs: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a run beside programs: the mean, as a median would hide runs that are held up."""
    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(e.engine, e.model, feeds, cores())) for e in engines]
        for worker in workers:
            worker.stop()
        stack.enter_context(beside(programs))
        for _ in range(rounds):
            for engine, worker in zip(engines, workers, strict=True):
                worker.go_on()
                typical = min(worker.times(5))
                runs = worker.times(max(5, int(_TURN / typical)))
                seconds[engine.name].append(sum(runs) / len(runs))
                worker.stop()
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def table(engines: Sequence[Contestant], feeds: Path, programs: int, rounds: int) -> list[str]:
    """A row for each engine."""
    alone, beside_them = (mean_times(engines, feeds, n, rounds) for n in (0, programs))
    return [
        f"| {name} | {alone[name]:.2f} | {beside_them[name]:.2f} | {beside_them[name] / alone[name]:.2f} |"
        for name in alone
    ]


def main() -> None:
    """Prints a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--programs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name, (onnx, inputs) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            feeds = save_feeds(inputs(), Path(folder))
            rows = table(contestants(onnx(), Path(folder)), feeds, options.programs, options.rounds)
        print(f"\n| {name} | ms | ms beside {options.programs} | times slower |\n|---|---:|---:|---:|")
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
