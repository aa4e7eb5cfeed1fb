"""A search as a live table: what is on the screen, and that nothing is where there is none."""

from __future__ import annotations

import io

from rich.console import Console
from rich.spinner import Spinner
from tests.search.records import found

from hasten.cli.progress import live, picture
from hasten.search.report import unit_of
from hasten.search.status import Status


def status(count: int, best: str, left: float | None = 100.0) -> Status:
    candidates = (*found().candidates, *found().candidates)[:count]
    return Status("answering the held-out samples", "certifying", candidates, best, 65.0, left)


def text_of(shown: Status, since: float = 0.0) -> str:
    console = Console(width=110, file=io.StringIO(), record=True)
    console.print(picture(shown, unit_of("accuracy"), Spinner("dots"), since))
    return console.export_text()


def test_the_table_says_what_is_known() -> None:
    text = text_of(status(5, "int8 (percentile), 23 layers"), since=3)
    assert "certifying  answering the held-out samples" in text
    assert "best: int8 (percentile), 23 layers, 3.19 x, drop 0.183, at most 0.46 points" in text
    assert "5 candidates, 1:08 gone, 1:37 left" in text
    (refused,) = (line for line in text.splitlines() if "not certified" in line)
    assert "0.548" in refused
    assert "0.96" in refused


def test_of_many_candidates_the_latest_and_the_best_are_shown() -> None:
    text = text_of(status(16, "bf16", left=None))
    lines = [line for line in text.splitlines()[:-1] if line[:2].strip().isdecimal()]
    assert [int(line[:2]) for line in lines] == [3, *range(5, 17)]
    assert "left" not in text.splitlines()[-1]


def test_nothing_is_certified_yet() -> None:
    assert "nothing certified yet" in text_of(status(0, "lossless"))


def test_it_is_quiet_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with live(Console(file=file), "accuracy") as watch:
        watch(status(3, "bf16"))
    assert file.getvalue() == ""


def test_it_draws_on_a_terminal_and_leaves_nothing_behind() -> None:
    file = io.StringIO()
    with live(Console(file=file, force_terminal=True, width=110), "kl") as watch:
        watch(status(3, "bf16"))
    drawn = file.getvalue()
    assert "best so far" in drawn
    assert drawn.rindex("\x1b[2K") > drawn.rindex("best so far")  # lines are erased after the last picture
