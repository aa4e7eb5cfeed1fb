"""Trying candidates: building, asking, timing and certifying each, and what was found about it.

Whatever goes wrong with a candidate is noted in its record, and ends that candidate alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, MetricError, TuningError
from hasten.search.answers import Batch, Outputs, Part, answers_to, passing, relative_change, write_part
from hasten.search.asked import Problem
from hasten.search.blocks import said_of_size
from hasten.search.build import Recipe, build, write_quantized
from hasten.search.candidates import LOSSLESS, ORIGINAL, Candidate
from hasten.search.certify import Bound, certify
from hasten.search.clock import Clock
from hasten.search.data import Samples
from hasten.search.engines import Limits, Worker
from hasten.search.formats import NEAREST
from hasten.search.hidden import Shown, padding_of, untold
from hasten.search.identity import graph_identity, identity
from hasten.search.isolated import isolated
from hasten.search.measure import Contestant, Measurement, Plan, Spread, measure
from hasten.search.measure_case import files_of
from hasten.search.memory import Memory
from hasten.search.metrics import drop, evaluate
from hasten.search.record import CandidateRecord, Outcome
from hasten.search.status import Status, Watch, nobody, tell
from hasten.search.transfer import file_of
from hasten.search.variants import WHOLE, Variant

_PATIENCE = 120.0  # seconds until an answer of any worker
_BATCH = 32
_KEPT = 256e6  # bytes of a part that is in files as a whole
_ROUNDS, _FEWEST_ROUNDS, _TURN = 11, 3, 0.15


@dataclass(eq=False)
class Trials:
    """The candidates of a search and what is known of them.

    Attributes:
        problem: what is asked.
        clock: how much time is left.
        memory: what earlier searches measured.
        records: by name, in the order in which they were added.
        candidates: by name.
        variants: the graphs that candidates are made from, by name; the problem's own is `WHOLE`.
        answering: seconds a sample that candidates took when they last answered, by name.
        reused: how many measurements came from earlier searches.
        reference: name of the candidate whose answers the others are compared with.
        best: name of the fastest candidate that is certified; the lossless compilation at first.
        notes: for the user.
        watch: is told what happens.
    """

    problem: Problem
    clock: Clock
    memory: Memory
    watch: Watch = nobody

    def __post_init__(self) -> None:
        self.records: dict[str, CandidateRecord] = {}
        self.candidates: dict[str, Candidate] = {}
        self.variants: dict[str, Variant] = {WHOLE: Variant(self.problem.graph)}
        self.answering: dict[str, float] = {}
        self.reused = 0
        self.reference: str = LOSSLESS
        self.best: str = LOSSLESS
        self.notes: list[str] = []
        self._first_looks: set[str] = set()
        self._timed_now: set[str] = set()
        self._timings: Counter[str | None] = Counter()
        self._models: dict[str, Path] = {}
        self._graphs: dict[str, Path] = {}
        self._files: dict[Path, list[Path]] = {}
        self._parts: dict[str, Part] = {}
        self._answers: dict[tuple[str, str], Outputs] = {}

    # What is known

    def say(self, doing: str) -> None:
        """Tells what begins."""
        clock = self.clock
        left = None if clock.limit is None else clock.left
        known = tuple(self.records.values())
        now = Status(doing, clock.current or "", known, self.best, clock.elapsed, left)
        error = tell(self.watch, now)
        if error is not None:
            self.watch = nobody
            self.notes.append(
                f"what watches the search failed, and was told nothing more: {reason_of(error)}"
            )

    def remember(self, kind: str, value: Any, **of: Any) -> None:
        """Keeps a measurement for later searches, if that can be done."""
        try:
            self.memory.put(kind, value, **of)
        except TuningError as error:
            self.notes.append(f"measurements are not kept for later searches: {error}")

    def recall(self, kind: str, **of: Any) -> Any:
        """A measurement of an earlier search, which is counted as reused; None if there is none."""
        known = self.memory.get(kind, **of)
        self.reused += known is not None
        return known

    def note(self, name: str, **found: Any) -> None:
        """Changes fields of a candidate's record."""
        self.records[name] = replace(self.records[name], **found)

    def works(self, name: str) -> bool:
        """Whether a candidate is there and has not failed."""
        return name in self.records and self.records[name].outcome is not Outcome.FAILED

    def attempt(self, name: str, do: Callable[[Candidate], None]) -> bool:
        """Does something with a candidate that works; notes why if it fails."""
        if not self.works(name):
            return False
        try:
            do(self.candidates[name])
        except Exception as error:  # noqa: BLE001 - whatever went wrong loses this candidate, not the search
            self.note(name, outcome=Outcome.FAILED, reason=reason_of(error))
            return False
        return True

    def add(self, candidate: Candidate) -> bool:
        """Makes a candidate known, builds it and compares its answers; returns whether it works."""
        return self.build(candidate) and self.attempt(candidate.name, self.judge)

    def build(self, candidate: Candidate) -> bool:
        """Makes a candidate known and builds it; returns whether it works."""
        self.register(candidate)
        self.say(f"{candidate.name}: compiling" if candidate.ours else f"{candidate.name}: trying")
        return self.attempt(candidate.name, lambda c: self.note(c.name, bytes=self._size(self.model(c))))

    def register(self, candidate: Candidate) -> None:
        """Makes a candidate known."""
        how = candidate.how
        self.candidates[candidate.name] = candidate
        self.records[candidate.name] = CandidateRecord(
            name=candidate.name,
            description=candidate.description,
            engine=candidate.engine.package,
            precision=candidate.precision,
            quantized=candidate.quantized,
            formats=candidate.formats,
            calibration=how.ranges if how is not None and "int8" in candidate.formats.values() else None,
            rounding=None if how is None else how.rounding,
            smoothing=None if how is None else how.smoothing,
            correct_bias=how is not None and how.correct_bias,
        )

    # Models and data

    def graph(self, candidate: Candidate) -> Path:
        """The file of a candidate's graph.

        Raises:
            HastenError: it cannot be made.
        """
        path, recipe = self._recipe(candidate)
        if recipe is not None:
            write_quantized(recipe, path, self.limits(None))
            self._graphs[self._graph_key(candidate)] = path
        return path

    def model(self, candidate: Candidate) -> Path:
        """What a candidate's engine takes; made if need be.

        Raises:
            HastenError: it cannot be made.
        """
        original = self.problem.original
        if candidate.name == ORIGINAL and original is not None:
            return original.model
        if not candidate.ours:
            return self.graph(candidate)
        if candidate.name not in self._models:
            graph, recipe = self._recipe(candidate)
            path = self.problem.folder / f"candidate{len(self._models)}.hasten"
            # Whatever the time limit, there is something to return.
            always = candidate.name == LOSSLESS
            limits = Limits(None, self.problem.asked.memory) if always else self.limits(None)
            build(graph, path, self.problem.build, candidate.precision, limits, {}, recipe)
            if always and untold(padding_of(path), self.problem.outputs):
                # What is 0 in a compiled model's answers could not be told from what counts.
                self.problem = replace(self.problem, build=replace(self.problem.build, padding="compute"))
                self.notes.append("padding is computed: its positions cannot be told from the inputs alone")
                build(graph, path, self.problem.build, candidate.precision, limits, {}, recipe)
            self._graphs[self._graph_key(candidate)] = graph
            self._models[candidate.name] = path
        return self._models[candidate.name]

    def _recipe(self, candidate: Candidate) -> tuple[Path, Recipe | None]:
        """The file of a candidate's graph, and how that is made if it is not there."""
        how, variant = candidate.how, self.variants[candidate.variant]
        known = self._graphs.get(self._graph_key(candidate))
        if known is not None:
            return known, None
        if how is None:
            place = file_of(variant.graph)
            assert place is not None
            return place, None
        assert variant.prepared is not None
        careful = variant.prepared.careful if how.rounding == "gptq" else NEAREST
        prepared = replace(variant.prepared, how=how, careful=careful)
        path = self.problem.folder / f"graph{len(self._graphs)}.onnx"
        return path, Recipe(prepared, candidate.formats, variant.ranges[how.ranges])

    def part(self, kind: str, last: int | None = None) -> Part:
        """The samples of a part ("calibration" or "held_out"), or the last of them, in files.

        The calibration part is in random order. What is fitted to some of it takes the first ones, so that
        the last ones tell what that is worth elsewhere.
        """
        name = kind if last is None else f"{kind}-last-{last}"
        if name not in self._parts:
            whole: Samples = getattr(self.problem, kind)
            samples = whole
            if last is not None:
                labels = None if whole.labels is None else whole.labels[-last:]
                samples = Samples(whole.feeds[-last:], labels)
            self._parts[name] = write_part(samples, self._batch(), self.problem.folder / name)
        return self._parts[name]

    def _fed(self, kind: str) -> Iterable[Batch]:
        """The samples of a part in files, which stay where they are small; else one after the other."""
        whole: Samples = getattr(self.problem, kind)
        if sum(array.nbytes for feeds in whole.feeds for array in feeds.values()) <= _KEPT:
            return self.part(kind).batches
        return passing(whole, self._batch(), self.problem.folder / kind)

    def _batch(self) -> int:
        """Samples in a file, at most."""
        shapes = [v.shape for v in self.problem.graph.graph.inputs if v.shape is not None]
        return 1 if any(isinstance(shape[0], int) for shape in shapes if len(shape)) else _BATCH

    def worker(self, candidate: Candidate) -> Worker:
        """A process with the candidate's model open."""
        first = self.part("calibration", _BATCH).batches[0].path
        limits = self.limits()
        return Worker(candidate.engine, self.model(candidate), first, self.problem.asked.threads, limits)

    def answers(self, candidate: Candidate, kind: str) -> Outputs:
        """What a candidate answers to a part of the samples.

        Raises:
            EngineError: it fails.
        """
        samples: Samples = getattr(self.problem, kind)
        keep = candidate.name in (ORIGINAL, LOSSLESS)
        if (candidate.name, kind) in self._answers:
            return self._answers[candidate.name, kind]
        begin = self.clock.elapsed
        with self.worker(candidate) as worker:
            names = [value.name or "" for value in self.problem.graph.graph.outputs]
            shown, files = self.shown(), self._fed(kind)
            found = answers_to(worker, samples, files, self.problem.outputs, names, shown)
        self.answering[candidate.name] = (self.clock.elapsed - begin) / max(1, len(samples))
        if keep:
            self._answers[candidate.name, kind] = found
            told = (*said_of_size(found, len(samples)), *shown.said(found))
            self.notes += [said for said in told if said not in self.notes]
        return found

    def shown(self) -> Shown:
        """What of answers counts: not what a mask hides."""
        return Shown(self.problem.asked.metric, padding_of(self.model(self.candidates[LOSSLESS])))

    @property
    def answered_held_out(self) -> bool:
        """Whether the reference has answered the held-out part."""
        return (self.reference, "held_out") in self._answers

    def reference_answers(self, kind: str) -> Outputs:
        """The answers that candidates are compared with: the lossless ones where the original fails."""
        if self.reference == ORIGINAL:
            try:
                return self.answers(self.candidates[ORIGINAL], kind)
            except HastenError as error:
                if self.clock.left <= 0:
                    raise
                self.note(ORIGINAL, outcome=Outcome.FAILED, reason=str(error))
                self.reference = LOSSLESS
                self.notes.append(
                    f"drops are against the lossless compilation from here on: the original failed ({error})"
                )
        return self.answers(self.candidates[LOSSLESS], kind)

    # Measurements

    def judge(self, candidate: Candidate) -> None:
        """Compares a candidate's answers to the calibration part with the reference's."""
        asked = self.problem.asked
        about = self.identity(candidate) | {"metric": asked.metric.name, "reference": self.reference}
        known = self.recall("judged", **about) if asked.named else None
        if known is None:
            found = self.answers(candidate, "calibration")
            base = self.answers(self.candidates[LOSSLESS], "calibration")
            reference = self.reference_answers("calibration")
            labels = self.shown().labels(self.problem.calibration, reference)
            about["reference"] = self.reference
            lost = drop(asked.metric, reference, found, labels)
            seconds = self.answering.get(candidate.name)
            known = {"loss": relative_change(base, found), "drop": lost, "seconds": seconds}
            if asked.named:
                self.remember("judged", known, **about)
        elif known.get("seconds") is not None:
            self.answering.setdefault(candidate.name, known["seconds"])
        self.note(candidate.name, loss=known["loss"], drop=known["drop"])

    def time(self, names: Collection[str], rounds: int = _ROUNDS) -> None:
        """Times candidates in turns with the lossless one and with the original, if that was not done before.

        Two at a time, so that no more models than those are in memory together. What can be compared is how
        many times faster candidates are than the lossless one. If one was not timed, all are again.

        Args:
            names: of the candidates.
            rounds: turns of each. Figures of fewer turns than usual do for now, are with the lossless one
                alone, and are taken again later.
        """
        first_look = rounds < _ROUNDS
        self._timings[self.clock.current] += 1
        asked = [n for n in dict.fromkeys([LOSSLESS, ORIGINAL, *names]) if self.works(n)]
        names = [n for n in asked if self.records[n].latency_ms is None or n in self._first_looks]
        unknown = [name for name in names if not self._recall_time(name, first_look)]
        if not unknown:
            if names and not first_look:
                for name in [n for n in asked if n not in names and self._known_now(n)]:
                    self._recall_time(name, first_look)  # the earlier search timed it again as well
            return
        if not first_look:
            unknown = asked  # compared with each other: within the same minutes
        baselines = [n for n in (ORIGINAL, LOSSLESS) if self.works(n)]
        others = [n for n in unknown if n not in baselines]
        against = [LOSSLESS] if first_look and self.works(LOSSLESS) else baselines
        pairs: list[tuple[Sequence[str], Sequence[str]]] = [([b, n], [n]) for n in others for b in against]
        if any(name in unknown for name in baselines):
            pairs.insert(0, (baselines, baselines))
        fitting = max(0.0, min(self.clock.left, 1e6)) / (2 * _TURN * 2 * len(pairs))
        rounds = max(_FEWEST_ROUNDS, min(rounds, int(fitting)))
        for k, (pair, noted) in enumerate(pairs):
            if all(map(self.works, pair)):
                share = max(0.0, self.clock.left) / (2 * (len(pairs) - k))
                self._note_times(self._in_turns(pair, rounds, share), noted)
        timed = {name for _, noted in pairs for name in noted}
        self._first_looks = self._first_looks | timed if first_look else self._first_looks - timed
        for name in timed:
            self._keep_times(name, first_look)

    def _in_turns(self, names: Sequence[str], rounds: int, seconds: float) -> Measurement:
        """Times candidates in turns. All take part in all rounds, however slow: ratios need both.

        Rounds after the first few begin within some seconds, however long other programs make each take.
        """
        contestants = []
        for name in names:
            model = self.model(self.candidates[name])
            contestants.append(Contestant(self.candidates[name].engine, model, self._files_of(model), name))
        # Its rounds are as many as fit: to end it by force would lose the baselines too.
        limits = Limits(max(1.0, min(_PATIENCE, self.clock.left)), self.problem.asked.memory)
        ends = time.monotonic() + seconds
        plan = Plan(self.problem.asked.threads, rounds, _TURN, 1, limits=limits, ends=ends)
        found = measure(contestants, self.problem.calibration.typical(), plan, progress=self.say)
        for name, reason in found.failures.items():
            self.note(name, outcome=Outcome.FAILED, reason=reason)
        return found

    def certify(self, name: str, share: float) -> bool:
        """Tests a candidate on the held-out part; returns whether its drop is certain to keep the budget.

        Args:
            name: of the candidate.
            share: of what may go wrong (`certify.Levels`).

        Raises:
            HastenError: it fails.
        """
        candidate, problem = self.candidates[name], self.problem
        about = self.identity(candidate) | {
            "metric": problem.asked.metric.name,
            "reference": self.reference,
            "confidence": problem.asked.confidence,
            "share": share,
        }
        known = self.recall("certified", **about) if problem.asked.named else None
        if known is None:
            self.say(f"{name}: answering the held-out samples")
            reference = self.reference_answers("held_out")
            about["reference"] = self.reference
            found = self.answers(candidate, "held_out")
            bound = certify(
                problem.asked.metric,
                reference,
                found,
                self.shown().labels(problem.held_out, reference),
                confidence=problem.asked.confidence,
                share=share,
                seed=problem.asked.seed,
                until=time.monotonic() + self.clock.left / 2,
            )
            known = asdict(bound)
            if problem.asked.named:
                self.remember("certified", known, **about)
        bound = Bound(**known)
        self.note(name, bound=bound, against=about["reference"])
        return bound.upper <= problem.asked.max_drop

    def reference_value(self) -> float | None:
        """The metric of the reference on the held-out part, if that was ever asked for."""
        metric, found = self.problem.asked.metric, self._answers.get((self.reference, "held_out"))
        about = self.identity(self.candidates[self.reference]) | {"metric": metric.name}
        if found is None:
            known = self.memory.get("value", **about) if self.problem.asked.named else None
            return None if known is None else float(known)
        try:
            value = evaluate(metric, found, self.shown().labels(self.problem.held_out, found), found)
        except MetricError:
            return None
        if self.problem.asked.named:
            self.remember("value", value, **about)
        return value

    def _note_times(self, found: Measurement, names: Sequence[str]) -> None:
        """Notes times, and ratios to those baselines that took part."""
        results = {result.engine: result for result in found.results}
        for name in names:
            own = results.get(name)
            if own is None or not self.works(name):
                continue
            memory = None if own.peak_mb is None else int(own.peak_mb * 1e6)
            self.note(name, latency_ms=own.run_ms, memory=memory)
            for field, other in (("to_original", ORIGINAL), ("to_lossless", LOSSLESS)):
                if other in results:
                    self.note(name, **{field: results[other].ratio_to(own)})

    def _keep_times(self, name: str, first_look: bool) -> None:
        """Remembers a candidate's times for later searches."""
        found = self.records[name]
        if found.latency_ms is None or not self.works(name):
            return
        times = {"latency_ms": found.latency_ms, "to_original": found.to_original}
        times["to_lossless"] = found.to_lossless
        kept: dict[str, Any] = {k: None if spread is None else asdict(spread) for k, spread in times.items()}
        self._timed_now.add(name)
        about, kept["memory"] = self.identity(self.candidates[name]), found.memory
        self.remember("timed in", kept, **self._moment(), **about)
        if not first_look:
            self.remember("timed", kept, **about)

    def _recall_time(self, name: str, first_look: bool) -> bool:
        """Takes times of an earlier search: those of the same moment if it can, so that the same follows."""
        same = self._known_now(name)
        known = self.memory.get("timed", **self.identity(self.candidates[name])) if same is None else same
        if known is None:
            return False
        spreads = {k: None if known[k] is None else Spread(**known[k]) for k in known if k != "memory"}
        self.note(name, **spreads, memory=known["memory"])
        looked = {name} if first_look and same is not None else set()
        self._first_looks = self._first_looks - {name} | looked
        self.reused += name not in self._timed_now
        return True

    def _known_now(self, name: str) -> Any:
        """A candidate's times that an earlier search took at the same moment; None if there are none."""
        return self.memory.get("timed in", **self._moment(), **self.identity(self.candidates[name]))

    def _moment(self) -> dict[str, Any]:
        """The phase, and how many times it has timed something so far."""
        return {"phase": self.clock.current, "timing": self._timings[self.clock.current]}

    def identity(self, candidate: Candidate) -> dict[str, Any]:
        """What tells a candidate from all others of any search with the same `Memory.about`."""
        return identity(candidate, self.variants[candidate.variant])

    def _graph_key(self, candidate: Candidate) -> str:
        return repr(graph_identity(candidate, self.variants[candidate.variant]))

    def apart(
        self, function: Callable[..., Any], *args: Any, doing: str, limits: Limits | None = None, **named: Any
    ) -> Any:
        """Calls a function in a process of its own, within what is left to the search (`isolated.isolated`).

        Raises:
            EngineError: it failed, or took too long or too much memory.
            HastenError: what the function raises.
        """
        limits = limits or self.limits(None)
        return isolated(function, *args, doing=doing, folder=self.problem.folder, limits=limits, **named)

    def limits(self, seconds: float | None = _PATIENCE, share: float = 1.0) -> Limits:
        """What a process may take that begins now, at most until the time limit.

        Args:
            seconds: for each answer; None for any time.
            share: of the time limit for all it does.
        """
        return Limits(seconds, self.problem.asked.memory, self.clock.until(share))

    def _size(self, model: Path) -> int:
        return sum(path.stat().st_size for path in self._files_of(model))

    def _files_of(self, model: Path) -> list[Path]:
        """The files of a model, which are found by reading all of it: once."""
        if model not in self._files:
            self._files[model] = files_of(model)
        return self._files[model]


def reason_of(error: Exception) -> str:
    """Why something failed, in words; of what nobody expected, its kind too."""
    return str(error) if isinstance(error, HastenError) else f"{type(error).__name__}: {error}"
