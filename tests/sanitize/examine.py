"""Runs compiled code in a process that has a sanitizer loaded, which ends it where it finds something.

python -m tests.sanitize.examine address|thread
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from tests import processes
from tests.codegen.engines import division_of_work
from tests.onnx_suite.suite import Case, Outcome, evaluate, load_cases, sample, skipped
from tests.runtime import extremes, unequal

from benchmarks import models, zoo
from hasten import __version__, frontends
from hasten.backends.batch import compile_batch
from hasten.backends.native import plan_graph
from hasten.codegen.toolchain import default_cache
from hasten.errors import InputError
from hasten.onnx_backend import HastenRep, prepare_all
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import read_artifact, write_artifact
from hasten.runtime.session import Session, start
from hasten.target import Target

ONE_IN = 10
LIMITS = processes.Limits(seconds=600, first=1200, bytes=None)  # a sanitizer reserves terabytes of addresses
BATCH = 32


def open_unstaged(path: Path, threads: int = 1) -> Session:
    """A session whose code works on the callers' arrays, between which a sanitizer leaves gaps."""
    artifact = read_artifact(path, verify="never")
    return Session(artifact, *start(artifact, threads, staged_bytes=-1))


def suite(cases: Sequence[Case]) -> Iterator[Outcome]:
    """Cases of ONNX's suite."""
    for at in range(0, len(cases), BATCH):
        yield from evaluate(cases[at : at + BATCH], open_unstaged)


def address() -> list[str]:
    """Cases at which a process ended, or that are wrong: the suite's sample, and whole networks."""
    cases = sample(load_cases(), ONE_IN)
    found = processes.run(suite, cases, LIMITS)
    reasons = skipped()
    bad = [c.key for c, o in zip(cases, found, strict=True) if o is None or (o.passed == (c.key in reasons))]
    print(f"{len(cases)} cases of ONNX's suite, {len(bad)} at fault", flush=True)
    extreme = list(extremes.models())
    ran = processes.run(numbers, extreme, LIMITS)
    bad += [n for n, o in zip(extreme, ran, strict=True) if o is None]
    print(f"{len(extreme)} operators that read numbers, {ran.count(None)} at fault", flush=True)
    free = unequal.chosen(load_cases())
    met = processes.run(unequal.work, free, LIMITS)
    wrong = [c.key for c, f in zip(free, met, strict=True) if f is None or f.problems]
    bad += wrong
    print(f"{len(free)} operators with inputs that contradict each other, {len(wrong)} at fault", flush=True)
    names = sorted(networks())
    ran = processes.run(network, names, LIMITS)
    lost = [n for n, o in zip(names, ran, strict=True) if o is None]
    print(f"{len(names)} networks, {len(lost)} at fault", flush=True)
    return bad + lost


def numbers(names: Sequence[str]) -> Iterator[int]:
    """Runs operators on numbers that nobody expects, and says how many were refused."""
    protos = extremes.models()
    prepared = prepare_all([protos[name] for name in names], opener=open_unstaged)
    for name, rep in zip(names, prepared, strict=True):
        refused = 0
        for number in extremes.MODELS[name][1] if isinstance(rep, HastenRep) else ():
            try:
                rep.run(extremes.feeds(protos[name], number))
            except InputError:
                refused += 1
        yield refused


def networks() -> dict[str, tuple[Path, list[dict[str, np.ndarray]]]]:
    """Small whole models with inputs."""
    wanted = ("GPT-2", "LSTM tagger", "ViT", "U-Net")
    found = {a.name: (a.file(), a.all_inputs()) for a in zoo.architectures() if a.name in wanted}
    found["LAC"] = (models.lac(), [models.chinese_inputs()])
    found["PP-OCR"] = (models.ppocr_cls(), [{"x": np.zeros((2, 3, 48, 192), np.float32)}])
    return found


def network(names: Sequence[str]) -> Iterator[int]:
    """Runs models on all their inputs, and says on how many."""
    known = networks()
    for name in names:
        path, inputs = known[name]
        with opened([onnx.load(path)]) as (session,):
            for feeds in inputs:
                session.run(feeds)
        yield len(inputs)


@contextlib.contextmanager
def opened(protos: Sequence[onnx.ModelProto], threads: int = 1) -> Iterator[list[Session]]:
    """Sessions of models that are compiled together."""
    graphs = [frontends.load(proto) for proto in protos]
    for graph in graphs:
        optimize_graph(graph)
    target, cache = Target.named("native"), default_cache()
    planned = [plan_graph(graph, "skip") for graph in graphs]
    with division_of_work(threads > 1):
        payloads = compile_batch(planned, target, __version__, cache=cache)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions = []
        for k, payload in enumerate(payloads):
            path = folder / f"{k}.hasten"
            write_artifact(path, payload.manifest, payload.members)
            sessions.append(stack.enter_context(open_unstaged(path, threads)))
        yield sessions


ROUNDS = 20
CALLERS = 4


def threads() -> list[str]:
    """Several sessions in threads, each used by several callers: the pool and the workspaces are shared.

    A race ends the process; what is given back are sessions whose answers differ from those of one thread.
    """
    wanted = {name: networks()[name] for name in ("GPT-2", "LSTM tagger", "PP-OCR")}
    with opened([onnx.load(path) for path, _ in wanted.values()], threads=2) as sessions:
        work = [(n, s, i, s.run(i)) for (n, (_, all_)), s in zip(wanted.items(), sessions, strict=True)
                for i in all_]  # fmt: skip
        work *= ROUNDS

        def same(item: tuple[str, Session, dict[str, np.ndarray], dict[str, np.ndarray]]) -> bool:
            _, session, inputs, expected = item
            found = session.run(inputs)
            return all(np.array_equal(found[k], expected[k], equal_nan=True) for k in expected)

        with ThreadPoolExecutor(CALLERS) as pool:
            right = list(pool.map(same, work))
    print(f"{len(work)} runs of {len(sessions)} sessions by {CALLERS} callers, {right.count(False)} differ")
    return sorted({item[0] for item, r in zip(work, right, strict=True) if not r})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    problems = {"address": address, "thread": threads}[sys.argv[1]]()
    print("\n".join(problems))
    sys.exit(bool(problems))
