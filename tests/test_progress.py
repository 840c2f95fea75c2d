"""Lines of a log file in place of a bar."""

import io

import pytest

from acs_lib.core import progress


@pytest.fixture
def clock(monkeypatch):
    """The seconds since the epoch, as a list whose only entry can be set; local time is UTC."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    monkeypatch.setattr(progress.time, "localtime", progress.time.gmtime)
    return now


def test_a_line_every_30_seconds_says_how_many_and_when_it_ends(clock):
    log = io.StringIO()
    lines = progress.Lines("tiny on scenes, test", 100, done=20, file=log)
    for clock[0], count in ((29, 5), (31, 3), (60, 2), (61, 2), (62, 2)):
        lines.update(count)
    assert log.getvalue().splitlines() == [
        "tiny on scenes, test: 28 of 100 queries, ends about 00:05",  # 8 in 31 s, 72 left: at 310 s
        "tiny on scenes, test: 32 of 100 queries, ends about 00:06",  # 12 in 61 s, 68 left: at 407 s
    ]


def test_another_day_is_told_with_its_date(clock):
    log = io.StringIO()
    lines = progress.Lines("tiny", 1001, file=log)
    clock[0] = 3600.0
    lines.update()
    assert log.getvalue() == "tiny: 1 of 1001 queries, ends about 11 Feb 17:00\n"  # 1001 hours after 1 January


def test_a_run_without_a_terminal_names_its_notebook_and_anything_else_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", -1)
    with progress.progress("tiny", 2) as bar:
        bar.update()
    assert capsys.readouterr().err == "", "no bar in a pipe"
    monkeypatch.setenv(progress.NOTEBOOK, "02 maps")
    with progress.progress("tiny", 2, unit="done") as lines:
        lines.update()
    assert capsys.readouterr().err.startswith("02 maps: tiny: 1 of 2 done, ends about ")
