"""`acs clean`: what runs left, and nothing else, goes."""

import os

import pytest
from typer.testing import CliRunner

from acs_lib import cli, paths
from acs_lib.runs import store


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Two runs (one of which has no report), a report without a run, a reference and benchmarks."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "data" / "runs")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    files = {
        "data/runs/smoke/tiny/scenes-test/00000.safetensors": 1_500_000, "reports/smoke/index.html": 500_000,
        "data/runs/mine/tiny/scenes-test/run.json": 10, "reports/old/index.html": 10,
        "reports/reference/smoke/manifest.json": 10, "reports/benchmarks/engine.csv": 10,
    }  # fmt: skip
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    for name, hours in (("data/runs/smoke/tiny/scenes-test/00000.safetensors", 90), ("reports/smoke/index.html", 73)):
        then = os.stat(tmp_path / name).st_mtime - hours * 3600
        os.utime(tmp_path / name, (then, then))
    return tmp_path


def clean(*names):
    result = CliRunner().invoke(cli.app, ["clean", *names])
    return result.exit_code, [line.split("\t") for line in result.stdout.splitlines()], result.stderr


def there(disk):
    return {path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file() and path.name != ".lock"}


def test_it_lists_runs_with_size_and_age_and_removes_nothing(disk):
    before = there(disk)
    assert clean() == (
        0,
        [["mine", "0.0 MB", "0 hours"], ["old", "0.0 MB", "0 hours"], ["smoke", "2.0 MB", "3 days"]],
        "",
    )
    assert there(disk) == before


def test_it_removes_what_is_named_and_no_reference(disk):
    assert clean("smoke", "old") == (
        0,
        [["smoke", "2.0 MB", "3 days", "removed"], ["old", "0.0 MB", "0 hours", "removed"]],
        "",
    )
    assert there(disk) == {
        "data/runs/mine/tiny/scenes-test/run.json", "reports/reference/smoke/manifest.json",
        "reports/benchmarks/engine.csv",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["reference", "benchmarks", "nothing", "../reports", "."])
def test_what_is_no_run_is_refused_before_anything_goes(disk, name):
    before = there(disk)
    assert clean("mine", name) == (1, [], f"error: there is no run {name!r}; there are mine, old, smoke\n")
    assert there(disk) == before


def test_a_run_that_is_written_to_stays(disk):
    folder = paths.RUNS / "mine" / "tiny" / "scenes-test"
    with store.locked(folder):
        code, lines, told = clean("smoke", "mine")
    assert (code, lines) == (1, []) and told.startswith(f"error: another process is writing to {folder}")
    assert (paths.RUNS / "smoke").is_dir() and (folder / "run.json").is_file()
