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


def told(capsys, *arguments, **settings):
    for _ in progress.tracked([1, 2], "tiny", *arguments, **settings):
        pass
    return capsys.readouterr().err


def test_there_are_lines_in_a_pipe_and_a_bar_at_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", -1)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    first, second = told(capsys, 3, "pictures").splitlines()
    assert first.startswith("tiny: 4 of 5 pictures, ends about ") and second.startswith("tiny: 5 of 5 pictures")
    monkeypatch.setenv(progress.NOTEBOOK, "02 maps")
    assert told(capsys).startswith("02 maps: tiny: 1 of 2 queries, ends about ")
    monkeypatch.delenv(progress.NOTEBOOK)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    assert "tiny:" in (bar := told(capsys, 3)) and "5/5" in bar and "ends about" not in bar
    assert told(capsys, printed=True) == "", "the answers are on the same terminal"
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert told(capsys) == ""


def test_a_notebook_run_at_a_terminal_has_the_runs_own_bar_alone(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", -1)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert told(capsys) == ""


def test_a_process_beside_others_leaves_the_telling_to_who_gives_out_the_work(monkeypatch, capsys):
    monkeypatch.setattr(progress.multiprocessing, "parent_process", object)
    for name in (None, "03 regressor training"):
        monkeypatch.setenv(progress.NOTEBOOK, name) if name else monkeypatch.delenv(progress.NOTEBOOK, raising=False)
        assert progress.progress("epochs", 5).disable
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "EVERY", -1)
    with progress.telling():
        assert told(capsys).startswith("03 regressor training: ")
    assert told(capsys) == ""
