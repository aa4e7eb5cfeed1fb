"""What was removed where: a bar for each group of units, of a search's candidates or of one pruning."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hasten.passes.prune.layers import LAYERS
from hasten.search.prune.report import Cut, PruneReport
from hasten.search.record import SearchRecord
from hasten.search.report_page import in_a_row, notes_section, page, tile


def removed(record: SearchRecord) -> str:
    """A section with a row for each group and a column for each pruned candidate; empty without any."""
    tried = [(number, c) for number, c in enumerate(record.candidates, 1) if c.cuts]
    if not tried:
        return ""
    tried.sort(key=lambda pair: -(pair[1].flops or 0.0))
    is_chosen = [c.name == record.chosen for _, c in tried]
    heads = [f"{number}<small>{c.flops or 0:.0%} of FLOPs</small>" for number, c in tried]
    returned = "the returned one in colour" if any(is_chosen) else "none of them is returned"
    lead = (
        "A row for each group of units that can be removed, in the order of the model; a column for each "
        f"pruned candidate, by its number above, {returned}. A bar is what stays."
    )
    return _section(lead, heads, [c.cuts for _, c in tried], is_chosen, record.left_alone)


def pruned_page(report: PruneReport, model: str) -> str:
    """One pruning as a page.

    Args:
        report: of the pruning.
        model: what the original is called.
    """
    parameters = report.parameters_after / max(1, report.parameters_before)
    aim = "" if report.target is None else f"; target {report.target:.1%}"
    figures = (
        tile(
            "FLOPs left", f"{report.flops:.1%}", f"{_millions(report.flops_after, report.flops_before)}{aim}"
        ),
        tile(
            "Parameters left",
            f"{parameters:.1%}",
            _millions(report.parameters_after, report.parameters_before),
        ),
        tile("Criterion", escape(report.criterion), f"repair: {report.repair}"),
    )
    lead = "A row for each group of units, in the order of the model. A bar is what stays."
    alone = [f"{u.count} {u.unit} of {u.name}: {'; '.join(u.reasons[:2])}" for u in report.left_alone]
    sections = (
        f"<header><b>hasten prune</b><span>{escape(model)}</span></header>"
        f"<h1>{report.flops:.1%} of the FLOPs and {parameters:.1%} of the parameters are left</h1>",
        in_a_row(figures),
        notes_section(report.notes),
        _section(lead, ["left"], [report.cuts], [True], alone),
    )
    return page(f"hasten: {model}, pruned", sections)


def _section(
    lead: str,
    heads: Sequence[str],
    columns: Sequence[Sequence[Cut]],
    in_colour: Sequence[bool],
    left_alone: Sequence[str],
) -> str:
    """A table of bars: a row for each cut, a column for each pruning; and what was left alone."""
    head = "".join(
        f'<th class="{"chosen" if here else ""}">{text}</th>'
        for text, here in zip(heads, in_colour, strict=True)
    )
    rows = []
    for cuts in zip(*columns, strict=True):
        cells = "".join(_cell(cut, here=here) for cut, here in zip(cuts, in_colour, strict=True))
        name = f"{escape(cuts[0].name)} <small>{_units(cuts[0])}</small>"
        rows.append(f"<tr><td>{name}</td>{cells}</tr>")
    alone = "".join(f"<li>{escape(text)}</li>" for text in left_alone)
    left = f"<details><summary>Left alone: {len(left_alone)}</summary><ul>{alone}</ul></details>"
    return (
        f'<section><h2>What was removed where</h2><p class="lead">{lead}</p>'
        f'<div class="scroll"><table class="dense removed"><thead><tr><th>layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{left if alone else ''}</section>"
    )


def _units(cut: Cut) -> str:
    return "1 layer" if cut.unit == LAYERS else f"{cut.before:,} {escape(cut.unit)}"


def _millions(after: int, before: int) -> str:
    return f"{after / 1e6:,.1f} of {before / 1e6:,.1f} million"


def _cell(cut: Cut, *, here: bool) -> str:
    share = 100 * cut.after / cut.before
    return (
        f'<td class="{"is-chosen" if here else ""}"><span>{cut.after:,}</span>'
        f'<span class="bar"><i style="width:{share:.0f}%"></i></span></td>'
    )
