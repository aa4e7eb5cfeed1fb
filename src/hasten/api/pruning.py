"""`hasten.prune`: a smaller model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from hasten import frontends
from hasten.api.sources import folder_of, inputs_of, plain
from hasten.errors import OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.units import UNITS
from hasten.search.asked import share_of
from hasten.search.data import load_samples
from hasten.search.prune.plan import Plan, Progress, check_plan, default_criterion, default_repair
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import prune_model
from hasten.search.prune.sparsity import Pattern
from hasten.search.prune.training import Training


def prune(  # noqa: PLR0913 - choices, each with a default
    source: object,
    *,
    flops: float | str | None = None,
    sparsity: float | str | None = None,
    data: object = None,
    unit: str | Sequence[str] = UNITS,
    criterion: str | None = None,
    repair: str | None = None,
    training: Training | None = None,
    unseen: int | None = None,
    amounts: str = "global",
    seconds: float | None = None,
    seed: int = 0,
    example: Example | None = None,
    dynamic: Dynamic | None = None,
    progress: Progress = lambda _: None,
) -> Pruned:
    """Removes the units of a model that matter least, so that less arithmetic is left.

    Args:
        source: as `compile` takes it; the result of another `prune` too.
        flops: the share of the floating-point operations of products, convolutions and attention to keep,
            at the median shape of `data`, such as 0.6 or "60%". At most that share is left, as little less as
            whole tiles of 16 features and whole heads allow. None leaves all of it.
        sparsity: single weights of products that become zero: their share, such as 0.5, or "2:4" for 2 of
            each 4 consecutive ones that stay. That makes nothing faster, and artifacts smaller which are
            compiled with `storage="sparse"`.
        data: examples of what the model will see, as `search.data.load_samples` takes them, with labels or
            without; some hundred are enough. Criteria but magnitude and random need them, and so does repair.
        unit: "neurons", "heads", "channels", "layers", or several of them; layers together with others by
            the criteria fisher and gradient only. "rows" are those of embeddings that `data` never asks for.
        criterion: "magnitude" or "magnitude-l1", "activation", "gradient", "fisher", "obs", "random"; by
            default magnitude without data and obs with data; fisher if layers are among the units or nothing
            is repaired. `sparsity` goes by magnitude, activation (weight times what it reads), obs or random:
            where units go by another, and by default, it is obs with repair and activation without.
        repair: "none"; "statistics" (means and variances); "least-squares", the default with data; or
            "distill", which trains after that.
        training: for "distill": epochs, time limit, rate and checkpoint (`hasten.Training`); None for
            3 epochs, 5 minutes at most.
        unseen: for rows: the id whose row those ids get that have none any more, such as that of the
            unknown token; None for the mean of the rows that went.
        amounts: "global", by one ranking over all groups of units, or "uniform", the same share of each.
        seconds: time limit of everything, reading included; None for none. What is left undone for want of
            time is noted.
        seed: of random numbers.
        example: inputs to trace a torch.nn.Module with.
        dynamic: for torch.nn.Module, the symbolic dims: input name -> {dim: name}.
        progress: is told what begins.

    Returns:
        The smaller model: `save` writes it as ONNX, `compile` takes it, `report` says what was removed
        where, what could not be, and whether the target was reached.

    Raises:
        ModelError: the source cannot be read.
        OptionError: an argument makes no sense or would do nothing, or the model has none of these units.
        DataError: the data cannot be read or do not fit the model.
        MissingDependencyError: PyTorch is needed and not installed.
        UnsupportedModelError: a gradient is needed and cannot pass through an operator.
    """
    start = time.monotonic()
    units = (unit,) if isinstance(unit, str) else tuple(unit)
    share = None if flops is None else share_of(flops)
    if flops is not None and share is None:
        raise OptionError(f"flops={flops!r}: give the share to keep, such as 0.6 or '60%'")
    ranked = flops is not None or sparsity is not None
    _check_used(ranked=ranked, criterion=criterion, repair=repair, training=training)
    repaired = repair or default_repair(ranked=ranked, with_data=data is not None)
    chosen = criterion or default_criterion(
        units,
        repaired,
        with_units=flops is not None,
        with_weights=sparsity is not None,
        with_data=data is not None,
    )
    pattern = None if sparsity is None else Pattern.of(sparsity)
    plan = Plan(
        units,
        chosen,
        share,
        repaired,
        training or Training(),
        seed,
        amounts,
        seconds,
        sparsity=pattern,
        unseen=unseen,
    )
    check_plan(plan, with_data=data is not None)
    progress("reading the model")
    model = frontends.load(plain(source), example=example, dynamic=dynamic)
    samples = None
    if data is not None:
        samples = load_samples(data, inputs_of(model), folder=folder_of(source))
    optimize_graph(model)
    small = prune_model(model, plan, samples, progress, start=start)
    return replace(small, folder=folder_of(source))


def _check_used(
    *, ranked: bool, criterion: str | None, repair: str | None, training: Training | None
) -> None:
    """Refuses arguments that would do nothing.

    Raises:
        OptionError: one was given that would not.
    """
    if training is not None and repair != "distill":
        raise OptionError(
            f"training is for repair='distill', and repair is {repair!r}: give that too, or no epochs, "
            "checkpoint and so on"
        )
    if ranked:
        return
    for name, value, idle in (("criterion", criterion, True), ("repair", repair, repair != "none")):
        if value is not None and idle:
            raise OptionError(
                f"{name}={value!r} is about units or weights that go, and none do: leave it out, or give "
                "flops or sparsity"
            )
