"""`.ci/run` comes to the test command on every machine, with a browser where one can be installed."""

import shutil
import subprocess

import pytest

from acs_lib import paths

NEEDED = ("bash", "env", "dirname", "tail", "timeout")
ROOT, USER = "echo 0", "echo 1000"


@pytest.mark.parametrize(
    ("commands", "said", "asked"),
    [
        ({"id": ROOT}, "not installed without root and apt", []),
        ({"id": USER, "apt-get": "exit 0"}, "not installed without root and apt", []),
        (
            {"id": ROOT, "apt-get": "echo no network; exit 100"},
            "no network\nchromium: could not be installed",
            ["update"],
        ),
        ({"id": ROOT, "apt-get": "exit 0"}, "chromium: installed", ["update", "install"]),
        ({"id": ROOT, "apt-get": "exit 0", "chromium": "", "chromedriver": ""}, "", []),
    ],
    ids=["no apt", "not root", "apt fails", "installed", "there already"],
)
def test_the_tests_run_with_a_browser_or_without(tmp_path, commands, said, asked):
    tools, log = tmp_path / "bin", tmp_path / "asked"
    (tmp_path / "kit" / ".ci").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(paths.ROOT / ".ci" / "run", tmp_path / "kit" / ".ci")
    for name in NEEDED:
        (tools / name).symlink_to(shutil.which(name))
    scripts = {tools / name: f"echo {name} $* >>{log}\n{code}" for name, code in commands.items()}
    for path, code in scripts.items() | {(tmp_path / "kit" / "run_all.sh", f"echo run_all.sh $* >>{log}; exit 7")}:
        path.write_text(f"#!/usr/bin/env bash\n{code}\n")
        path.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "kit" / ".ci" / "run"], env={"PATH": str(tools)}, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 7 and done.stderr == "", "the tests' exit code is the last word"
    assert said in done.stdout and bool(said) == bool(done.stdout)
    called = log.read_text().splitlines()
    assert called[-1] == "run_all.sh --test"
    assert [line.split()[2] for line in called if line.startswith("apt-get")] == asked
