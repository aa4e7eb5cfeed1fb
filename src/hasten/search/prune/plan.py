"""What to prune, how and how much, and what of that makes no sense."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hasten.errors import OptionError
from hasten.passes.prune.layers import LAYERS
from hasten.passes.prune.rows import ROWS
from hasten.passes.prune.units import UNITS
from hasten.runtime.checks import whole
from hasten.search.prune import sparsity
from hasten.search.prune.criteria import check_criterion, need_torch
from hasten.search.prune.sparsity import Pattern
from hasten.search.prune.training import Training

ALL_UNITS = (*UNITS, LAYERS, ROWS)
SEARCHED = (*UNITS, LAYERS)
"""What a search may remove."""
REPAIRS = ("none", "statistics", "least-squares", "distill")
AMOUNTS = ("global", "uniform")
Progress = Callable[[str], None]
"""Is told what begins: a few words, such as "reading the model"."""


@dataclass(frozen=True)
class Plan:
    """What to prune, how, and how much.

    Attributes:
        units: kinds of units, of `ALL_UNITS`.
        criterion: one of `criteria.CRITERIA`, for units; for single weights too if it ranks those.
        flops: the share of the arithmetic of products, convolutions and attention that may be left, at the
            median shape of the samples; None to leave all of it.
        repair: "none"; "statistics", which gives each output of a product that lost features the mean and the
            variance that it had (and does nothing for single weights); "least-squares"; or "distill", which
            trains after least squares.
        training: for "distill".
        seed: of random numbers.
        amounts: "global", by one ranking over all groups, or "uniform", the same share of each.
        seconds: time limit of everything; None for none. Ranking may take two fifths, repair without
            training up to seven tenths if there is training; what comes too late is left out, and noted.
        looked_at: samples that ranking and repair without training look at, at most, chosen by the seed, of
            each class its share; distillation takes all.
        sparsity: which single weights of what is left become zero; None for none of them.
        unseen: what ids get whose rows are gone: the row of this id, or None for the mean of those rows.
    """

    units: tuple[str, ...]
    criterion: str
    flops: float | None
    repair: str
    training: Training = field(default_factory=Training)
    seed: int = 0
    amounts: str = "global"
    seconds: float | None = None
    looked_at: int = 512
    sparsity: Pattern | None = None
    unseen: int | None = None

    @property
    def structure(self) -> tuple[str, ...]:
        """The kinds of units that save arithmetic."""
        return tuple(unit for unit in self.units if unit != ROWS)

    @property
    def of_weights(self) -> str:
        """What single weights are ranked by: the criterion, or the default where that ranks units only."""
        if self.criterion.startswith("magnitude"):  # of a single number all norms are one
            return "magnitude"
        return self.criterion if self.criterion in sparsity.CRITERIA else _default_of_weights(self.repair)


def default_repair(*, ranked: bool, with_data: bool) -> str:
    """The repair if nobody says: none where nothing is ranked, so that only rows of tables go."""
    return "least-squares" if ranked and with_data else "none"


def default_criterion(
    units: Collection[str], repair: str, *, with_units: bool, with_weights: bool, with_data: bool
) -> str:
    """What is ranked by if nobody says: `obs` ranks by what is left after repair.

    Args:
        units: their kinds.
        repair: one of `REPAIRS`.
        with_units: whether units are ranked.
        with_weights: whether single weights are.
        with_data: whether there are samples.
    """
    if not with_data or not (with_units or with_weights):
        return "magnitude"
    if not with_units:
        return _default_of_weights(repair)
    return "fisher" if LAYERS in units or repair in ("none", "statistics") else "obs"


def _default_of_weights(repair: str) -> str:
    return "activation" if repair in ("none", "statistics") else "obs"


def criterion_of_layers(criterion: str) -> str:
    """What whole layers are ranked by where a search ranks other units by a criterion."""
    return "fisher" if criterion == "obs" else criterion


def check_plan(plan: Plan, *, with_data: bool) -> None:
    """Refuses a plan that makes no sense.

    Raises:
        OptionError: a unit, criterion, repair or target is none, or needs samples that there are not.
        MissingDependencyError: PyTorch is needed and not installed.
    """
    unknown = [unit for unit in plan.units if unit not in ALL_UNITS]
    if unknown or not plan.units:
        raise OptionError(f"unit={', '.join(unknown) or '()'}: give some of {', '.join(ALL_UNITS)}")
    if len(set(plan.units)) < len(plan.units):
        raise OptionError(f"unit={', '.join(plan.units)}: give each once")
    layers = LAYERS in plan.units and plan.flops is not None
    if layers and len(plan.structure) > 1 and plan.criterion not in ("fisher", "gradient"):
        raise OptionError(
            f"unit={', '.join(plan.units)}: layers can be compared with other units by fisher or gradient, "
            f"not by {plan.criterion}; or give layers alone"
        )
    if layers and plan.criterion == "obs":
        raise OptionError(
            "criterion='obs' is about what products read and ranks no layers: give fisher or gradient, or "
            "one of the others for layers alone"
        )
    _check_aim(plan, with_data=with_data)
    if plan.repair not in REPAIRS:
        raise OptionError(f"repair={plan.repair!r}: give one of {', '.join(REPAIRS)}")
    if plan.amounts not in AMOUNTS:
        raise OptionError(f"amounts={plan.amounts!r}: give one of {', '.join(AMOUNTS)}")
    if plan.amounts != AMOUNTS[0] and (plan.flops is None or plan.structure == (LAYERS,)):
        raise OptionError(
            f"amounts={plan.amounts!r} is about how many units of each group go, and none do: leave it out, "
            f"or give flops and units other than {LAYERS}"
        )
    whole("seed", plan.seed, 0)
    if plan.seconds is not None and not plan.seconds > 0:
        raise OptionError(f"seconds={plan.seconds}: give a time above zero, or None for no limit")
    check_criterion(plan.criterion, with_data=with_data)
    if plan.repair != "none":
        if not with_data:
            raise OptionError(f"repair={plan.repair!r} needs samples: give data, or repair='none'")
        need_torch(f"repair={plan.repair!r}")


def _check_aim(plan: Plan, *, with_data: bool) -> None:
    """Refuses a plan that asks for nothing, or for what cannot be."""
    rows = ROWS in plan.units
    if plan.flops is None and plan.sparsity is None and not rows:
        raise OptionError(
            "nothing is asked for: give flops, the share of the arithmetic to keep, such as 0.6; sparsity, "
            f"such as '2:4'; or the unit '{ROWS}'"
        )
    if plan.flops is not None and not 0 < plan.flops < 1:
        raise OptionError(f"flops={plan.flops}: give the share to keep, between 0 and 1, such as 0.6")
    if plan.flops is not None and not plan.structure:
        raise OptionError(f"flops={plan.flops}: rows save no arithmetic; give other units too, or no flops")
    if rows and not with_data:
        raise OptionError(f"the unit '{ROWS}' needs samples: give data, which show what ids there are")
    if plan.unseen is not None and (not rows or plan.unseen < 0):
        raise OptionError(
            f"unseen={plan.unseen}: give the id of a row, and the unit '{ROWS}', whose rows ids can lose"
        )
    if plan.sparsity is not None and plan.flops is None and plan.criterion not in sparsity.CRITERIA:
        known = ", ".join(sparsity.CRITERIA)
        raise OptionError(f"criterion={plan.criterion!r}: single weights are ranked by one of {known}")
