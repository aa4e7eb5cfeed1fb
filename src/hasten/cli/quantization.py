"""Options of `hasten compile` that say how to quantize."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from hasten.api import Quantization, Scheme
from hasten.errors import OptionError
from hasten.passes.weight_blocks import GROUPS
from hasten.search.formats import WEIGHTS
from hasten.search.quantization import RANGES, RESTS, ROUNDINGS

_OPTIONS = (
    click.option(
        "--ranges",
        type=click.Choice(RANGES),
        help="For int8 with --data: how the range of an activation follows from what it is on the data; "
        "layer takes for each the one that changes results least. [default: minmax]",
    ),
    click.option(
        "--rounding",
        type=click.Choice(ROUNDINGS),
        help="With --data: weights to the nearest codes, or by what they do to the results (GPTQ). "
        "[default: nearest for int8, gptq for weights alone]",
    ),
    click.option(
        "--smoothing",
        metavar="0..1|off",
        help="With --data: how much of the outliers of activations moves into weights. [default: 0.8]",
    ),
    click.option(
        "--group",
        type=click.Choice([str(group) for group in sorted(GROUPS)]),
        help="For int8-weights and int4-weights: weights that share a scale; fewer in layers that so many do "
        "not divide. [default: 128 for int8, 32 for int4]",
    ),
    click.option(
        "--rest",
        type=click.Choice(RESTS),
        help="For int8, int8-weights and int4-weights: what all that is not quantized computes in. "
        "[default: f32]",
    ),
)
_NAMES = ("ranges", "rounding", "smoothing", "group", "rest")


def quantization_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; the verb gets as `choices` those that were given, by name."""

    @functools.wraps(verb)
    def gathered(**given: Any) -> None:
        choices = {name: given.pop(name) for name in _NAMES}
        verb(**given, choices={name: value for name, value in choices.items() if value is not None})

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def quantization_of(precision: str, data: Path | None, choices: Mapping[str, str]) -> Quantization | None:
    """How to quantize; None for the usual way.

    Args:
        precision: that was asked for.
        data: to calibrate with, if any.
        choices: the options that were given.

    Raises:
        OptionError: one of them says nothing about that precision, or needs data.
    """
    for name in choices:
        _check(name, precision, data)
    if not choices:
        return None
    given: dict[str, Any] = {
        name: choices[name] for name in ("ranges", "rounding", "rest") if name in choices
    }
    if "smoothing" in choices:
        given["smoothing"] = _smoothing(choices["smoothing"])
    if "group" in choices:
        given["scheme"] = Scheme(group=int(choices["group"]))
    return Quantization(**given)


def _check(name: str, precision: str, data: Path | None) -> None:
    kinds = {"ranges": ("int8",), "group": tuple(WEIGHTS)}.get(name, ("int8", *WEIGHTS))
    if precision not in kinds:
        raise OptionError(f"--{name} is for --precision {' or '.join(kinds)}, and that is {precision}")
    if data is None and name in ("ranges", "rounding", "smoothing"):
        raise OptionError(f"--{name} is about what the model sees: give examples with --data")


def _smoothing(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"--smoothing {text}: give a number from 0 to 1, or off") from None
