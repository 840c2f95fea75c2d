"""The script of the first run on a GPU, with commands that only note that they were called."""

import os
import shutil
import subprocess

import pytest

from acs_lib import paths

SCRIPT = paths.ROOT / "tools" / "first_gpu_run.sh"


@pytest.fixture
def first_run(tmp_path):
    """(step that fails) -> (exit code, commands called in order, what the archive holds)."""
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    for report in ("laptop", "paper-first-20"):
        (tmp_path / "reports" / report / "tables").mkdir(parents=True)
        for name in ("tables/main_results.csv", "manifest.json", "index.html"):
            (tmp_path / "reports" / report / name).write_text("x")
    (tmp_path / "reports" / "benchmarks").mkdir()
    (tmp_path / "reports" / "benchmarks" / "gpu.csv").write_text("x")
    (tmp_path / "bin").mkdir()
    for name in ("acs", "python"):
        command = tmp_path / "bin" / name
        command.write_text(
            f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\necho "{name} said $*"\n[ "$*" != "$FAILS" ] || exit 1\n'
        )
        command.chmod(0o755)

    def run(fails=""):
        environment = os.environ | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "FAILS": fails,
        }  # fmt: skip
        script = tmp_path / "tools" / SCRIPT.name
        done = subprocess.run([script, "mine"], env=environment, cwd="/", capture_output=True, text=True)
        archive = ["tar", "-tzf", str(tmp_path / "mine.tar.gz")]
        held = subprocess.run(archive, capture_output=True, text=True).stdout.split()
        return done, (tmp_path / "calls").read_text().splitlines(), held

    return run


def test_it_runs_the_steps_of_the_guide_in_order_and_packs_what_they_said(first_run):
    done, calls, held = first_run()
    assert done.returncode == 0 and done.stdout.endswith("send back mine.tar.gz\n")
    assert [call for call in calls if "data" not in call] == [
        "acs doctor", "acs probe --lvlm Qwen2.5-VL-7B", "acs run --profile laptop",
        "acs run --profile paper --limit 20 --dry-run", "acs run --profile paper --limit 20",
        "python -m benchmarks.gpu --minutes 8",
    ]  # fmt: skip
    assert {"mine/probe.txt", "mine/laptop/tables/main_results.csv", "mine/paper-first-20/index.html"} < set(held)
    guide = (paths.ROOT / "docs" / "gpu.md").read_text()
    assert all(call in guide for call in calls), "and each stands in the guide"


def test_a_step_that_fails_ends_it_and_what_is_there_is_packed(first_run):
    done, calls, held = first_run("run --profile laptop")
    assert done.returncode == 1 and "laptop failed: docs/gpu.md says what to do" in done.stderr
    assert calls[-1] == "acs run --profile laptop" and "mine/laptop.txt" in held and "mine/gpu.csv" not in held


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_it_is_a_sound_script():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
