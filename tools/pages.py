"""Pages of docs/ that commands write parts of: a part stands between two comments that name it."""

from __future__ import annotations

import re
from pathlib import Path


def replace_part(page: Path, name: str, text: str) -> None:
    """Puts `text` in place of a page's part.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    old = page.read_text("utf-8")
    if not pattern.search(old):
        raise ValueError(f"{page} has no part between {begin} and {end}")
    page.write_text(pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", old), "utf-8")


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table, as text."""
    rule = "|" + "---|" * len(head)
    first, *others = ("| " + " | ".join(line) + " |" for line in (head, *rows))
    return "\n".join([first, rule, *others])
