"""Random graphs through hasten and its peers, in processes that may crash."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from tests import processes
from tests.codegen.engines import division_of_work
from tests.differential.compare import Tolerance, judge
from tests.differential.generate import random_graph
from tests.differential.graph import Graph
from tests.differential.inside import CONDITION, inside
from tests.differential.peers import (
    ONNXRUNTIME_ERRORS,
    REFERENCE_ERRORS,
    Feeds,
    all_values,
    by_onnxruntime,
    by_reference,
    known,
)
from tests.differential.rounding import STEP_OF_BF16, narrowed, sensitivity, sensitivity_of_bf16

from hasten import __version__, frontends
from hasten.backends.batch import compile_batch
from hasten.backends.native import Payload, Planned, plan_graph
from hasten.codegen.toolchain import default_cache
from hasten.errors import HastenError, InputError, ToolchainError
from hasten.loops.dtypes import DType
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import Session, open_session
from hasten.target import TARGETS, Target, runs_here

BATCH = 64
"""Graphs in one shared object: more of them make it long to write and to load for each."""

PER_PROCESS = 4 * BATCH
"""Graphs that one process runs: it starts for as long as some of them take."""

LIMITS = processes.Limits(seconds=480, first=480, bytes=12 << 30)
PASSED = ("same", "unrun")


@dataclass(frozen=True)
class Config:
    """How graphs are compiled and run.

    Attributes:
        target: name of the instruction set.
        threads: of a run.
        precision: "f32" or "bf16".
        inside: whether a graph stands in both branches of an If, of which each run takes one.
        level: how hard the C compiler optimizes: most of the time would go into that.
    """

    target: str = "native"
    threads: int = 1
    precision: str = "f32"
    inside: bool = False
    level: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a graph.

    Attributes:
        seed: the graph.
        verdict: "same", "unrun" (neither peer runs it), "wrong", "refused" (an error of ours where peers have
            an answer), or "crashed".
        detail: what differs, or the error.
        host: operators that ran on the host.
        nodes: the graph's nodes.
        empty: runs in which a value was empty and an error said that something is taken from it.
    """

    seed: int
    verdict: str
    detail: str = ""
    host: int = 0
    nodes: int = 0
    empty: int = 0

    @property
    def passed(self) -> bool:
        return self.verdict in PASSED


def configs() -> list[Config]:
    """The ways that graphs are run on this machine, in turn."""
    names = [t.name for t in TARGETS if runs_here(t)]
    found = [Config(level=1), Config(threads=2), *(Config(target=n) for n in names)]
    return [
        *found,
        Config(threads=2, target=names[0], level=1),
        Config(precision="bf16"),
        Config(inside=True),
    ]


Item = tuple[int | Graph, Config]
"""A graph, or the seed that it is made from, and how to run it."""


def run_batch(items: Sequence[Item]) -> list[Outcome]:
    """Runs graphs in a process of their own."""
    found = processes.run(work, items, LIMITS)
    lost = "the process died or did not end"
    seeds = [g if isinstance(g, int) else g.seed for g, _ in items]
    return [o or Outcome(seed, "crashed", lost) for seed, o in zip(seeds, found, strict=True)]


def work(items: Sequence[Item]) -> Iterator[Outcome]:
    """What a process does: neighbours of one configuration are compiled together."""
    for config, group in itertools.groupby(items, key=lambda item: item[1]):
        graphs = [g for g, _ in group]
        for start in range(0, len(graphs), BATCH):
            some = graphs[start : start + BATCH]
            yield from evaluate([random_graph(g) if isinstance(g, int) else g for g in some], config)


def evaluate(graphs: Sequence[Graph], config: Config) -> Iterator[Outcome]:
    """Compiles graphs together, runs each, and compares."""
    sessions = _prepare([inside(g.model) if config.inside else g.model for g in graphs], config)
    for graph, session in zip(graphs, sessions, strict=True):
        expected = _expected(graph)
        nodes = len(graph.model.graph.node)
        ours = isinstance(session, HastenError) and not isinstance(session, ToolchainError)
        if not any(expected) and (ours or not isinstance(session, Exception)):
            yield Outcome(graph.seed, "unrun", nodes=nodes)
        elif isinstance(session, Exception):
            yield Outcome(graph.seed, "refused", _raised(session), nodes=nodes)
        else:
            host = len(session.report["host"])
            verdict, detail, empty = _compare(graph, session, expected, config)
            session.close()
            yield Outcome(graph.seed, verdict, detail, host, nodes, empty)


class Unopened(Exception):  # noqa: N818 - what was found
    """An artifact that hasten wrote and does not open: never excused as an error that a model deserves."""


def _prepare(models: Sequence[onnx.ModelProto], config: Config) -> list[Session | Exception]:
    """A session for each model, or what was raised."""
    planned = [_planned(model) for model in models]
    payloads = iter(_separately([p for p in planned if not isinstance(p, Exception)], config))
    opened: list[Session | Exception] = []
    with tempfile.TemporaryDirectory() as folder:
        for k, plan in enumerate(planned):
            payload = plan if isinstance(plan, Exception) else next(payloads)
            if isinstance(payload, Exception):
                opened.append(payload)
                continue
            path = Path(folder) / f"{k}.hasten"
            write_artifact(path, payload.manifest, payload.members)
            try:
                opened.append(open_session(path, threads=config.threads))
            except HastenError as error:
                opened.append(Unopened(str(error)))
            path.unlink()
    return opened


def _planned(model: onnx.ModelProto) -> Planned | Exception:
    """A graph cut into steps, or what was raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = frontends.load(model)
            optimize_graph(graph)
            return plan_graph(graph, "compute")  # as peers compute what a mask hides
    except Exception as error:  # noqa: BLE001 - any exception is a finding
        return error


def _separately(planned: Sequence[Planned], config: Config) -> list[Payload | Exception]:
    """Compiles graphs of which one may be at fault: by halves, until it is alone."""
    if not planned:
        return []
    target, cache, precision = Target.named(config.target), default_cache(), DType(config.precision)
    try:
        with division_of_work(config.threads > 1):
            return list(
                compile_batch(
                    planned, target, __version__, cache=cache, precision=precision, level=config.level
                )
            )
    except Exception as error:  # noqa: BLE001 - any exception is a finding
        if len(planned) == 1:
            return [error]
        half = len(planned) // 2
        return [*_separately(planned[:half], config), *_separately(planned[half:], config)]


def _raised(error: Exception) -> str:
    """What an error says, and where it came from if it is none of ours."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    if isinstance(error, HastenError):
        return text
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{text} at {' < '.join(f'{Path(f.filename).name}:{f.lineno}' for f in reversed(frames))}"


def _expected(graph: Graph) -> list[list[list[np.ndarray]]]:
    """For each set of inputs the answers of the peers that have one."""
    peers = ((by_onnxruntime, ONNXRUNTIME_ERRORS), (by_reference, REFERENCE_ERRORS))
    expected: list[list[list[np.ndarray]]] = [[] for _ in graph.feeds]
    for engine, errors in peers:
        for feeds, held, answer in zip(graph.feeds, expected, engine(graph.model, graph.feeds), strict=True):
            if answer is not None and not known(graph.model, feeds, errors):
                held.append(answer)
    return expected


def _compare(
    graph: Graph, session: Session, expected: Sequence[Sequence[Sequence[np.ndarray]]], config: Config
) -> tuple[str, str, int]:
    """Verdict, what differs, and how many runs ended in an error about empty inputs."""
    empty = 0
    names = [o.name for o in graph.model.graph.output]
    first, second = ({CONDITION: np.array(b)} if config.inside else {} for b in (True, False))
    for k, (feeds, peers) in enumerate(zip(graph.feeds, expected, strict=True)):
        if not peers:
            with contextlib.suppress(HastenError):
                session.run(feeds | first)
            continue
        try:
            found = list(session.run(feeds | first).values())
            again = list(session.run(dict(reversed(feeds.items())) | second).values())
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            if isinstance(error, InputError) and _declared(error) and _nothing(graph, feeds):
                empty += 1
                continue
            return "refused", f"binding {k}: {_raised(error)}", empty
        in_bf16 = config.precision == "bf16"
        narrow = narrowed(graph.model, feeds) if in_bf16 else []
        moves = sensitivity_of_bf16 if in_bf16 else sensitivity
        for i, name in enumerate(names):
            if found[i].tobytes() != again[i].tobytes():
                return "wrong", f"binding {k}: {name} differs between two runs", empty
            tolerance = graph.tolerances[name]
            others = [p[i] for p in peers]
            if in_bf16:
                tolerance = Tolerance(False, max(tolerance.epsilon, STEP_OF_BF16))
            others += [answer[i] for answer in narrow]
            text = judge(found[i], others, tolerance, lambda i=i, f=feeds, m=moves: m(graph.model, f, i))
            if text:
                return "wrong", f"binding {k}: {name} {text}", empty
    return "same", "", empty


def _nothing(graph: Graph, feeds: Feeds) -> bool:
    """Whether an input or another value is empty."""
    values = feeds if any(a.size == 0 for a in feeds.values()) else all_values(graph.model, feeds)
    return any(a.size == 0 for a in values.values())


def _declared(error: InputError) -> bool:
    """Whether an error is one that empty values may get: where something is taken from what is empty."""
    return " > 0 " in str(error) or "too small" in str(error)
