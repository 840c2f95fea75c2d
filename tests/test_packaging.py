"""pyproject.toml, requirements.lock and environment.yml say the same; the wheel works alone; run_all.sh sets up."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command

from acs_lib import __version__, paths
from acs_lib.cli import app
from acs_lib.lvlms.checkpoint import is_embedded
from acs_lib.profiles import known_lvlms

PYPROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SCRIPTS = ("run_all.sh", ".ci/run")
PROFILES = sorted(path.stem for path in paths.PROFILES.glob("*.yaml"))


def read_lock():
    """{canonical name: version}"""
    lines = (paths.ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


# ------------------------------------------------------------------------------------------------- dependencies


EXTRAS = PROJECT["optional-dependencies"]
LISTED = [Requirement(line) for line in (*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values()))]


@pytest.mark.parametrize("requirement", [each for each in LISTED if each.name != PROJECT["name"]], ids=str)
def test_each_dependency_is_pinned_within_its_bound(requirement):
    assert ">=" in str(requirement.specifier), "a lower bound, so that an old release is not taken"
    version = read_lock()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_the_job_for_the_lowest_versions_asks_for_the_lower_bounds():
    done = subprocess.run(
        [sys.executable, paths.ROOT / "tools" / "lowest.py"], capture_output=True, text=True, check=True
    )
    lowest = dict(line.split("==") for line in done.stdout.splitlines())
    assert lowest["transformers"] == "5.18" and set(lowest) == {Requirement(n).name for n in PROJECT["dependencies"]}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert f">={lowest[requirement.name]}" in str(requirement.specifier)
        assert requirement.specifier.contains(lowest[requirement.name])


def test_the_job_for_other_versions_is_optional():
    job = yaml.safe_load((paths.ROOT / ".github" / "workflows" / "versions.yml").read_text())
    assert set(job[True]) == {"workflow_dispatch", "schedule"}, "YAML reads `on` as true"
    (tests,) = [step["run"] for step in job["jobs"]["versions"]["steps"] if "pytest" in step.get("run", "")]
    for name in re.findall(r"tests/\w+\.py", tests):
        assert (paths.ROOT / name).is_file()


def test_the_tests_install_every_extra():
    """So that all tests run wherever their packages are installed."""
    brought = {"test"}
    while (
        more := {
            extra
            for each in map(Requirement, itertools.chain(*(EXTRAS[name] for name in brought)))
            if each.name == PROJECT["name"]
            for extra in each.extras
        }
        - brought
    ):
        brought |= more
    assert brought == set(EXTRAS)


def test_the_lock_holds_plain_pins_only():
    lock = read_lock()
    assert list(lock) == sorted({canonicalize_name(name) for name in lock})
    assert all("+" not in version for version in lock.values()), "a build suffix ties the lock to one index"


def test_uv_takes_the_versions_of_the_lock():
    assert PYPROJECT["tool"]["uv"]["constraint-dependencies"] == [f"{name}=={pin}" for name, pin in read_lock().items()]


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


def test_conda_installs_what_a_run_needs_as_the_lock_pins_it():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert [line.split("=")[0] for line in conda] == ["python", "pip"]
    assert pip == {"pip": ["-c requirements.lock", "-e .[run]"]}
    python = conda[0].split("=")[1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


# --------------------------------------------------------------------------------------------------------- wheel


def brought_by(requirements):
    """The distributions that are installed for `requirements`, direct and transitive."""
    found, waiting = {}, list(requirements)
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in found:
            found[key] = metadata.distribution(requirement.name)
            needs = map(Requirement, found[key].requires or [])
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            waiting += [each for each in needs if not each.marker or any(map(each.marker.evaluate, extras))]
    return found.values()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A new environment's folder, with the wheel, made of the sdist, and links to the packages of the core alone."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    for name in ("acs_lib", "data/embedded"):
        shutil.copytree(paths.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy2(paths.ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder], cwd=source, capture_output=True, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, sdist]
    subprocess.run([*pip, *build], check=True)
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    for distribution in brought_by(map(Requirement, PROJECT["dependencies"])):
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    (wheel,) = folder.glob("*.whl")
    install = ["--python", environment / "bin" / "python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *install], check=True)
    return environment


def run_alone(environment, *command, cwd, **variables):
    """A command of the environment, without any variable but these."""
    command = [environment / "bin" / command[0], *command[1:]]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


def test_the_wheel_grounds_from_any_folder_with_the_core_alone(alone, tmp_path):
    (sample,) = alone.glob("lib/python*/site-packages/acs_lib/shipped/samples/images/000000.png")
    result = run_alone(
        alone, "acs", "ground", sample, "police car", "--json", "--save", "found.png", cwd=tmp_path, HOME=tmp_path
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["lvlm"] == "internvl-embedded" and answer["predicted_iou"] is not None, "D_c and regressor are there"
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["found.png"]
    assert run_alone(alone, "acs", "--version", cwd=tmp_path, HOME=tmp_path).stdout == f"{__version__}\n"


def test_the_wheel_carries_every_embedded_lvlm(alone, tmp_path):
    (shipped,) = alone.glob("lib/python*/site-packages/acs_lib/shipped")
    carried = {f"data/embedded/{weights.parent.name}" for weights in shipped.glob("*/model.safetensors")}
    assert carried == {lvlm.source for lvlm in known_lvlms().values() if is_embedded(lvlm)}
    folder = tmp_path / "größere Straßen"  # and nobody's home
    folder.mkdir()
    shutil.copy2(shipped / "samples" / "images" / "000000.png", folder / "grüne ü.png")
    asked = ["ground", "grüne ü.png", "police car", "--selector", "medoid", "--samples", "1", "--save", "häuser.png"]
    result = run_alone(alone, "acs", *asked, "--lvlm", "internvl-embedded-plain", "--json", cwd=folder)
    answer = json.loads(result.stdout)
    assert (answer["lvlm"], answer["image"]) == ("internvl-embedded-plain", "grüne ü.png"), result.stderr
    assert (folder / "häuser.png").is_file()


def test_what_the_core_lacks_is_told_with_the_mend(alone, tmp_path):
    (sample,) = alone.glob("lib/python*/site-packages/acs_lib/shipped/samples/images/000000.png")
    for command, mend in (
        (
            ["ground", sample, "police car", "--selector", "spatial-entropy"],
            'scipy, .* pip install "acs-kit\\[report]"',
        ),
        (["data", "coco"], 'pip install "acs-kit\\[run]"'),
        (["run"], 'pip install "acs-kit\\[run]"'),
    ):
        result = run_alone(alone, "acs", *command, cwd=tmp_path, HOME=tmp_path)
        assert result.returncode == 1
        advice = "look: .*python.* -m acs_lib doctor\n" if command == ["run"] else ""
        assert re.fullmatch(f"error: .*{mend}\n{advice}", result.stderr), result.stderr


def test_every_package_is_in_the_wheel():
    """They are listed by name, since one of them, acs_lib.shipped, lies elsewhere."""
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(paths.ROOT) for path in paths.LIBRARY.rglob("__init__.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"acs_lib.shipped"}


def test_the_wheel_says_that_it_is_typed(alone):
    (site,) = alone.glob("lib/python*/site-packages")
    assert (site / "acs_lib" / "py.typed").is_file()


# ---------------------------------------------------------------------------------------------------- containers


def test_the_containers_run_what_the_readme_runs():
    """They cannot be started here: that they are read without complaint and name what is there."""
    dockerfile = (paths.ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["./run_all.sh"]' in dockerfile and "RUN ./run_all.sh --dry-run" in dockerfile
    devcontainer = json.loads((paths.ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert devcontainer["postCreateCommand"] == "./run_all.sh --dry-run"
    for image in (dockerfile.split("FROM python:")[1], devcontainer["image"].split("python:")[1]):
        version = re.match(r"[0-9.]+", image)[0]
        assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)
    ignored = (paths.ROOT / ".dockerignore").read_text().split()
    assert ".venv" in ignored and ".git" not in ignored, "a run's manifest names the commit"


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


STEMS = ("01_one", "09_nine", "12_twelve")


@pytest.fixture
def kit(tmp_path):
    """A copy of what run_all.sh looks at before it sets anything up, in a folder with a blank in its name."""
    root = tmp_path / "a kit"
    (root / "acs_lib").mkdir(parents=True)
    shutil.copytree(paths.PROFILES, root / "acs_lib" / "profiles")
    (root / "tests" / "notebooks").mkdir(parents=True)
    for stem in STEMS:
        (root / "tests" / "notebooks" / f"{stem}.ipynb").write_text("{}")
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
    """An 'environment' whose python only writes down what it is asked to do (and runs -c for real, but the
    making of bytecode, with the packages of this one and not the copy's rest of acs_lib; where there is a file `bare`,
    without any package)."""
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    python = prefix / "bin" / "python"
    python.write_text(
        f'#!/usr/bin/env bash\n[ ! -e "{prefix}/bare" ] || bare=-S\n'
        f'[[ "$1" != -c || "$2" != *compileall* ]] || {{ echo bytecode >> "{prefix}/calls"; exit; }}\n'
        f'[ "$1" = -c ] && exec "{sys.executable}" -P ${{bare:-}} "$@"\n'
        f'echo "$*" >> "{prefix}/calls"\n[ ! -e "{prefix}/broken" ] || [ "$3" != install ] || '
        "{ echo 'ERROR: No matching distribution found for torch'; exit 1; }\n"
        f'[ ! -e "{prefix}/failing" ] || [ "$2" != pytest ] || exit 3\n'
    )
    (prefix / "bin" / "lint-imports").write_text(f'#!/usr/bin/env bash\necho lint-imports >> "{prefix}/calls"\n')
    for path in (prefix / "bin").iterdir():
        path.chmod(0o755)
    return prefix


def calls(prefix):
    """What the recording python was asked for since the last time, without the look whether pip is there."""
    lines = (prefix / "calls").read_text().splitlines()
    (prefix / "calls").unlink()
    return [line for line in lines if line not in ("--version", "-m pip --version")]


INSTALL = "-m pip install --no-input --progress-bar off --no-compile -c requirements.lock -e .[{}]"


def test_help_lists_the_profiles(kit):
    result = run_all(kit, "--help")
    assert result.returncode == 0
    assert f"one of: {' '.join(PROFILES)}\n" in result.stdout


def test_it_knows_the_options_of_acs_run(kit):
    known = {option for parameter in get_command(app).commands["run"].params for option in parameter.opts}
    listed = run_all(kit, "--bogus").stderr.splitlines()[1].removeprefix("valid ones:").split()
    assert set(listed) == known | {"--test", "--full", "--help"}
    assert all(option in run_all(kit, "--help").stdout for option in listed)


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["--profile", "smoke", "-x"], ["--test", "--dry-run"], ["--full"]], ids=str
)
def test_unknown_options_are_refused_before_any_set_up(kit, environment, arguments):
    result = run_all(kit, *arguments, VIRTUAL_ENV=str(environment))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("run_all.sh: ")
    assert not (environment / "calls").exists()
    assert not (kit / ".venv").exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used_and_filled_once(kit, environment, variable):
    active = {variable: str(environment)}
    arguments = ["--profile", "a b", "--from=09", "--limit", "20", "--engine=local", "--dry-run"]
    result = run_all(kit, *arguments, **active)
    assert result.returncode == 0, result.stderr
    handed_on = "-m acs_lib run --profile a b --from=09 --limit 20 --engine=local --dry-run"
    assert calls(environment) == [INSTALL.format("run"), "bytecode", handed_on]
    assert not (kit / ".venv").exists()

    assert run_all(kit, *arguments, **active).returncode == 0
    assert calls(environment) == [handed_on]

    for engine in (["--engine", "ray"], ["--engine=ray"]):
        assert run_all(kit, *engine, **active).returncode == 0
    ray = [f"-m acs_lib run {words}" for words in ("--engine ray", "--engine=ray")]
    assert calls(environment) == [INSTALL.format("run,ray"), "bytecode", *ray]

    for packages in ([INSTALL.format("test"), "bytecode"], []):
        assert run_all(kit, "--test", **active).returncode == 0
        *installed, ruff, form, imports, suite, notebooks = calls(environment)
        assert (ruff, form, imports) == ("-m ruff check .", "-m ruff format --check .", "lint-imports")
        side_by_side = "-m pytest --numprocesses=auto --dist=loadfile"
        assert suite == side_by_side
        assert notebooks.startswith(f"{side_by_side} -p tests.nbval_numbers --nbval ")
        assert notebooks.endswith(" ".join(f"tests/notebooks/{stem}.ipynb" for stem in STEMS))
        assert installed == packages

    for words in ([], ["--engine", "ray"]):
        assert run_all(kit, *words, **active).returncode == 0
    assert calls(environment) == ["-m acs_lib run", ray[0]], "the tests' packages hold those of a run"

    with (kit / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert run_all(kit, **active).returncode == 0
    assert calls(environment) == [INSTALL.format("run"), "bytecode", "-m acs_lib run"]


def test_a_failed_installation_shows_the_end_of_its_log_and_how_to_mend_it(kit, environment):
    (environment / "broken").touch()
    result = run_all(kit, "--test", VIRTUAL_ENV=str(environment))
    assert result.returncode == 1
    assert "No matching distribution found for torch" in result.stderr
    assert "mend: a pinned package has no build for this Python" in result.stderr
    assert result.stderr.endswith(f"\nlook: {environment}/bin/python -m acs_lib doctor\n")
    assert calls(environment) == [INSTALL.format("test")]
    (environment / "bare").touch()
    assert "doctor" not in run_all(kit, "--test", VIRTUAL_ENV=str(environment)).stderr, "it could not be run"
    calls(environment)
    (environment / "bare").unlink()
    (environment / "broken").unlink()
    assert run_all(kit, "--test", VIRTUAL_ENV=str(environment)).returncode == 0
    assert calls(environment)[0] == INSTALL.format("test")


def test_full_also_runs_the_embedded_profile_and_the_notebooks_as_they_are_stored(kit, environment):
    assert run_all(kit, "--test", VIRTUAL_ENV=str(environment)).returncode == 0
    tested = calls(environment)
    assert run_all(kit, "--test", "--full", VIRTUAL_ENV=str(environment)).returncode == 0
    *known, run, compared = calls(environment)
    assert [INSTALL.format("test"), "bytecode", *known] == tested
    assert run == "-m acs_lib run --profile embedded" and "--nbval " in compared and " notebooks/0" in compared


def test_failing_tests_end_with_the_advice_and_their_exit_code(kit, environment):
    (environment / "failing").touch()
    result = run_all(kit, "--test", VIRTUAL_ENV=str(environment))
    assert (result.returncode, result.stderr) == (3, f"look: {environment}/bin/python -m acs_lib doctor\n")
    (environment / "failing").unlink()
    result = run_all(kit, "--test", VIRTUAL_ENV=str(environment))
    assert (result.returncode, result.stderr) == (0, "")


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
    """Most of it are the weights; a report is kept once, without PDF, LaTeX and executed notebooks."""
    command = ["git", "-C", paths.ROOT, "ls-files", "-z"]
    if not (paths.ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout")
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [path for name in names if name and (path := paths.ROOT / name).is_file()]
    assert len(files) > 100 and sum(path.stat().st_size for path in files) < 40 * 2**20
