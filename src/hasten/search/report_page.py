"""The page that all reports are on."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template


def page(title: str, sections: Iterable[str]) -> str:
    """One HTML file without scripts that opens from disk, in light and dark, on wide and narrow screens.

    Args:
        title: as text.
        sections: as HTML; empty ones are left out.
    """
    template = Template(files("hasten.search").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(filter(None, sections)))


def notes_section(notes: Iterable[str]) -> str:
    """A section of remarks; empty without any."""
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section><h2>To know</h2><ul class="notes">{listed}</ul></section>' if listed else ""


def tile(name: str, value: str, more: str) -> str:
    """A figure; its value as HTML."""
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{value}</div>'
        f'<div class="more">{escape(more)}</div></div>'
    )


def in_a_row(made: Iterable[str]) -> str:
    """A row of figures, of which the first is set off."""
    return f'<div class="tiles">{"".join(made)}</div>'.replace('class="tile"', 'class="tile first"', 1)
