"""pyproject.toml, requirements.lock and environment.yml say the same; run_all.sh refuses what it cannot do."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from acs_lib import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = ("run_all.sh", ".ci/run")
PROFILES = sorted(path.stem for path in paths.PROFILES.glob("*.yaml"))


def read_lock():
    """{canonical name: version}"""
    lines = (paths.ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


# ------------------------------------------------------------------------------------------------- dependencies


EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("dependency", PROJECT["dependencies"] + EXTRAS["test"])
def test_each_dependency_is_pinned_within_its_bound(dependency):
    requirement = Requirement(dependency)
    assert str(requirement.specifier).startswith(">="), "a lower bound, so that an old release is not taken"
    version = read_lock()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_the_tests_install_ray_as_the_extra_does():
    """So that tests/test_ray.py runs wherever the lock is installed."""
    assert set(EXTRAS["ray"]) <= set(EXTRAS["test"])


def test_the_lock_holds_plain_pins_only():
    lock = read_lock()
    assert list(lock) == sorted({canonicalize_name(name) for name in lock})
    assert all("+" not in version for version in lock.values()), "a build suffix ties the lock to one index"


def test_the_lock_is_closed():
    """What a pinned package needs here is pinned too (packages that are not installed here are passed over)."""
    lock, missing = read_lock(), set()
    for name in lock:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            here = need.marker is None or need.marker.evaluate({"extra": ""})
            system = need.name.startswith(("nvidia-", "cuda-", "triton"))  # of torch builds for GPUs
            if here and not system and canonicalize_name(need.name) not in lock:
                missing.add(f"{name} needs {need.name}")
    assert missing == set()


def test_conda_installs_the_lock():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert [line.split("=")[0] for line in conda] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    python = conda[0].split("=")[1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


# ------------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script):
    path = paths.ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)


def test_continuous_integration_runs_the_readmes_test_command():
    lines = (paths.ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if "run_all.sh" in line] == ["exec ./run_all.sh --test"]


@pytest.fixture
def kit(tmp_path):
    """A copy of what run_all.sh looks at before it sets anything up, in a folder with a blank in its name."""
    root = tmp_path / "a kit"
    (root / "acs_lib").mkdir(parents=True)
    shutil.copytree(paths.PROFILES, root / "acs_lib" / "profiles")
    (root / "notebooks").mkdir()
    for stem in ("01_one", "09_nine"):
        (root / "notebooks" / f"{stem}.ipynb").write_text("{}")
    for name in ("run_all.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy2(paths.ROOT / name, root)
    return root


def run_all(root, *arguments, **environment):
    """run_all.sh called from another folder, without an active environment unless one is given."""
    inactive = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "CONDA"))}
    return subprocess.run(
        [root / "run_all.sh", *arguments],
        cwd="/",
        env=inactive | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def environment(tmp_path):
    """An 'environment' whose python only writes down what it is asked to do (and runs -c for real)."""
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    python = prefix / "bin" / "python"
    python.write_text(
        f'#!/usr/bin/env bash\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\n'
        f'echo "$*" >> "{prefix}/calls"\n[ ! -e "{prefix}/broken" ] || [ "$3" != install ] || '
        "{ echo 'ERROR: No matching distribution found for torch'; exit 1; }\n"
    )
    python.chmod(0o755)
    return prefix


def calls(prefix):
    """What the recording python was asked for since the last time, without the look whether pip is there."""
    lines = (prefix / "calls").read_text().splitlines()
    (prefix / "calls").unlink()
    return [line for line in lines if line not in ("--version", "-m pip --version")]


def test_help_lists_the_profiles(kit):
    result = run_all(kit, "--help")
    assert result.returncode == 0
    assert f"one of: {' '.join(PROFILES)}\n" in result.stdout
    assert "01 09\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        (["--profile", "nonesuch"], PROFILES),
        (["--profile=nonesuch"], PROFILES),
        (["--profile", ""], PROFILES),
        (["--bogus"], ["--profile", "--from", "--limit", "--engine", "--dry-run", "--test", "--help"]),
        (["smoke"], ["--profile"]),
        (["--from", "two"], ["01", "09"]),
        (["--from", "-1"], ["01", "09"]),
        (["--from", "10"], ["01", "09"]),
        (["--engine", "spark"], ["local", "ray"]),
        (["--limit", "0"], []),
        (["--limit=many"], []),
        (["--from"], []),
        (["--test", "--dry-run"], []),
        (["--test", "--profile", PROFILES[0]], []),
    ],
)
def test_bad_usage_is_refused_before_any_set_up(kit, environment, arguments, valid):
    result = run_all(kit, *arguments, VIRTUAL_ENV=str(environment))
    assert (result.returncode, result.stdout) == (2, "")
    line = next((line for line in result.stderr.splitlines() if line.startswith("valid ones:")), "")
    assert all(name in line for name in valid)
    assert not (environment / "calls").exists()
    assert not (kit / ".venv").exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used_and_filled_once(kit, environment, variable):
    active = {variable: str(environment)}
    arguments = ["--profile", PROFILES[0], "--from=09", "--limit", "20", "--engine=ray", "--dry-run"]
    result = run_all(kit, *arguments, **active)
    assert result.returncode == 0, result.stderr
    first, second, run = calls(environment)
    assert first.endswith("install --no-input --progress-bar off -r requirements.lock")
    assert second.endswith("--no-deps -e .")
    wanted = f"-m acs_lib.cli run --profile {PROFILES[0]} --from 09 --limit 20 --engine ray --dry-run"
    assert run == wanted
    assert not (kit / ".venv").exists()

    assert run_all(kit, *arguments, **active).returncode == 0
    assert calls(environment) == [wanted]

    with (kit / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert run_all(kit, "--test", **active).returncode == 0
    *_, suite, notebooks = calls(environment)
    assert suite == "-m pytest"
    assert notebooks.startswith("-m pytest -p tests.nbval_numbers --nbval ")
    assert notebooks.endswith(" notebooks/01_one.ipynb notebooks/09_nine.ipynb")


def test_a_failed_installation_shows_the_end_of_its_log_and_how_to_mend_it(kit, environment):
    (environment / "broken").touch()
    result = run_all(kit, "--test", VIRTUAL_ENV=str(environment))
    assert result.returncode == 1
    assert "No matching distribution found for torch" in result.stderr
    assert "mend: a pinned package has no build for this Python" in result.stderr
    assert "-m pytest" not in calls(environment)
    (environment / "broken").unlink()
    assert run_all(kit, "--test", VIRTUAL_ENV=str(environment)).returncode == 0
    assert len(calls(environment)) == 4


def test_no_python_is_told_with_the_mend(kit, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cat"):
        (tools / name).symlink_to(shutil.which(name))
    old = tools / "python3"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")  # as a Python before 3.11 answers the question for its version
    old.chmod(0o755)
    (tools / "env").symlink_to(shutil.which("env"))
    result = run_all(kit, "--test", PATH=str(tools))
    assert result.returncode == 1
    assert "no Python 3.11 to 3.14 found" in result.stderr
    assert "conda env create -f environment.yml" in result.stderr


def test_an_active_environment_without_a_suitable_python_is_told_with_the_mend(kit, tmp_path):
    result = run_all(kit, "--test", CONDA_PREFIX=str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "mend: leave it" in result.stderr


def test_condas_base_is_left_alone(kit, tmp_path):
    """It is active on its own on many machines, and an installation into it can break conda itself."""
    (kit / ".venv").write_text("in the way, so that no environment is made here")
    result = run_all(kit, "--test", CONDA_PREFIX=str(tmp_path), CONDA_DEFAULT_ENV="base")
    assert "conda's base is left as it is" in result.stdout
    assert "could not make .venv" in result.stderr


# ------------------------------------------------------------------------------------------------------ checkout


def test_the_checkout_is_small():
    """Most of it are the weights (31 MiB); a report is kept once, without PDF, LaTeX and executed notebooks."""
    command = ["git", "-C", paths.ROOT, "ls-files", "-z"]
    if not (paths.ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout")
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [path for name in names if name and (path := paths.ROOT / name).is_file()]
    assert len(files) > 100 and sum(path.stat().st_size for path in files) < 40 * 2**20
