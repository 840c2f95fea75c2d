"""`.ci/run` comes to the test command on every machine, with a browser where one can be installed; the workflows."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from acs_lib import paths

NEEDED = ("bash", "env", "dirname", "tail", "timeout")
WORKFLOWS = sorted((paths.ROOT / ".github" / "workflows").glob("*.yml"))
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


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_their_actions_and_may_only_read_what_they_need(workflow):
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"pages": "write", "id-token": "write"}} if workflow.stem == "docs" else {})
    used = [step["uses"] for job in content["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used and [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_the_tests_run_on_the_lowest_and_the_newest_python():
    content = yaml.safe_load((paths.ROOT / ".github" / "workflows" / "tests.yml").read_text())
    lowest = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    tried = re.findall(r"python(3\.\d+)", re.search(r"for name in (.*?);", (paths.ROOT / "run_all.sh").read_text())[1])
    assert content["jobs"]["tests"]["strategy"]["matrix"]["python"] == [lowest, tried[-1]]
    commands = [step["run"] for step in content["jobs"]["tests"]["steps"] if "run" in step]
    assert commands == [".ci/run", "./run_all.sh --test --full"] and "schedule" in content[True], (
        "YAML reads `on` as true"
    )


def test_the_site_is_published_from_main_alone():
    jobs = yaml.safe_load((paths.ROOT / ".github" / "workflows" / "docs.yml").read_text())["jobs"]
    assert jobs["publish"]["if"] == "github.ref == 'refs/heads/main'" and jobs["publish"]["needs"] == "build"
    assert any("sphinx -W" in step.get("run", "") for step in jobs["build"]["steps"])
