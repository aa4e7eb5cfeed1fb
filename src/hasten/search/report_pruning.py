"""What was removed where: a bar for each group of units and each pruned candidate."""

from __future__ import annotations

from html import escape

from hasten.search.record import CandidateRecord, SearchRecord


def removed(record: SearchRecord) -> str:
    """A section with a row for each group and a column for each pruned candidate; empty without any."""
    tried = [(number, c) for number, c in enumerate(record.candidates, 1) if c.cuts]
    if not tried:
        return ""
    tried.sort(key=lambda pair: -(pair[1].flops or 0.0))
    is_chosen = [c.name == record.chosen for _, c in tried]
    head = "".join(
        f'<th class="{"chosen" if here else ""}">{number}<small>{c.flops or 0:.0%} of FLOPs</small></th>'
        for (number, c), here in zip(tried, is_chosen, strict=True)
    )
    rows = []
    for row, cut in enumerate(tried[0][1].cuts):
        cells = "".join(_cell(c, row, here=here) for (_, c), here in zip(tried, is_chosen, strict=True))
        name = f"{escape(cut.name)} <small>{cut.before} {escape(cut.unit)}</small>"
        rows.append(f"<tr><td>{name}</td>{cells}</tr>")
    alone = "".join(f"<li>{escape(text)}</li>" for text in record.left_alone)
    left = f"<details><summary>Left alone: {len(record.left_alone)}</summary><ul>{alone}</ul></details>"
    returned = "the returned one in colour" if any(is_chosen) else "none of them is returned"
    return (
        "<section><h2>What was removed where</h2>"
        f'<p class="lead">A row for each group of units that can be removed, in the order of the model; a '
        f"column for each pruned candidate, by its number above, {returned}. A bar is what stays.</p>"
        f'<div class="scroll"><table class="dense removed"><thead><tr><th>layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{left if alone else ''}</section>"
    )


def _cell(candidate: CandidateRecord, row: int, *, here: bool) -> str:
    cut = candidate.cuts[row]
    share = 100 * cut.after / cut.before
    return (
        f'<td class="{"is-chosen" if here else ""}"><span>{cut.after}</span>'
        f'<span class="bar"><i style="width:{share:.0f}%"></i></span></td>'
    )
