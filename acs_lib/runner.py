"""Run a profile's notebooks in order, each at most once.

A notebook that finished leaves a stamp beside its executed copy: the digests of all that it depended on, the files it
wrote and the seconds it took. As long as the digests are still the same and the files are still there it is reused;
the first notebook for which that does not hold is run, and so is every later one.
"""

import difflib
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
import yaml

from acs_lib import paths

DEFAULT_NOTEBOOKS = ("01", "02", "03", "04", "05", "06")
VERSIONED = ("torch", "transformers", "numpy")  # recorded in the manifest, beside Python's own
KERNEL = "python3"


class RunError(Exception):
    """What went wrong and how to mend it, in words for the user; `code` is the exit code."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@dataclass(frozen=True)
class Stage:
    """One notebook of a run. `parameters` go into its parameters cell, `folder` takes the executed copy, `digests`
    names everything that its result depends on but the notebook before it."""

    notebook: Path
    parameters: dict
    folder: Path
    digests: dict[str, str]

    @property
    def number(self) -> int:
        return int(self.notebook.stem[:2])

    @property
    def label(self) -> str:
        return self.notebook.stem.replace("_", " ")

    def output(self, suffix: str) -> Path:
        return self.folder / f"{self.notebook.stem}{suffix}"

    def read_stamp(self) -> dict | None:
        """The record of the last finished run, None where there is none (or none that can be read)."""
        try:
            return json.loads(self.output(".stamp.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None


# ------------------------------------------------------------------------------------------------ what is to be run


def read_profile(name: str) -> dict:
    """The profile's settings as in its YAML file; RunError (code 2) lists the valid names."""
    valid = sorted(path.stem for path in paths.PROFILES.glob("*.yaml"))
    if name not in valid:
        raise RunError(f"unknown profile {name!r}; valid ones: {', '.join(valid) or 'none'}", code=2)
    try:
        profile = yaml.safe_load((paths.PROFILES / f"{name}.yaml").read_text())
    except yaml.YAMLError as error:
        raise RunError(f"{name}.yaml is not valid YAML: {' '.join(str(error).split())}", code=2) from error
    if not isinstance(profile, dict):
        raise RunError(f"{name}.yaml must hold `setting: value` lines", code=2)
    return profile


def select_notebooks(profile: dict) -> list[Path]:
    """The notebooks of a profile in order: 01 to 06, or those that its field `notebooks` names by number or stem."""
    found = {path.stem: path for path in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if "notebooks" not in profile:
        chosen = [path for stem, path in found.items() if stem[:2] in DEFAULT_NOTEBOOKS]
    else:
        chosen = []
        for wanted in profile["notebooks"]:
            number = f"{int(wanted):02d}" if str(wanted).isdigit() else None
            matches = [path for stem, path in found.items() if stem == wanted or stem[:2] == number]
            if not matches:
                raise RunError(f"the profile names notebook {wanted!r}; there are {', '.join(found) or 'none'}", code=2)
            chosen += matches
    if not chosen:
        raise RunError(f"no notebooks in {paths.NOTEBOOKS}", code=2)
    return sorted(set(chosen))


def _check_parameters(notebook: Path, wanted: dict, optional: dict) -> dict:
    """The parameters to inject: all of `wanted`, and those of `optional` that the notebook has. RunError for a name
    that the cell tagged `parameters` does not hold (papermill itself would only warn, and run with the default)."""
    import papermill

    try:
        known = papermill.inspect_notebook(notebook)
    except (ValueError, json.JSONDecodeError) as error:
        raise RunError(f"{notebook.name} is not a notebook that papermill can read: {error}") from error
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; is {close[0]!r} a misspelling of it?" if close else ""
            names = ", ".join(known) or "none"
            raise RunError(f"{notebook.name} has no parameter {name!r} (its parameters cell has: {names}){hint}")
    return wanted | {name: value for name, value in optional.items() if name in known}


def make_stages(profile_name: str, engine: Engine = Engine.local, limit: int | None = None) -> list[Stage]:
    """The stages of a run, checked before anything is computed."""
    profile = read_profile(profile_name)
    optional = {"engine": engine.value} | ({} if limit is None else {"limit": limit})
    folder = paths.reports(profile_name) / "notebooks"
    shared = {
        "the library": _digest_files(sorted(paths.LIBRARY.rglob("*.py")), paths.LIBRARY),
        "the profile": _digest_files([paths.PROFILES / f"{profile_name}.yaml"], paths.PROFILES),
        "the weights": _digest_json(weight_digests()),
    }
    stages = []
    for notebook in select_notebooks(profile):
        parameters = _check_parameters(notebook, {"profile": profile_name}, optional)
        own = {"the notebook": _digest_source(notebook), "the parameters": _digest_json(parameters)}
        stages.append(Stage(notebook, parameters, folder, own | shared))
    if engine != Engine.local and not any("engine" in stage.parameters for stage in stages):
        raise RunError(f"no notebook of profile {profile_name!r} has the parameter 'engine'", code=2)
    if limit is not None and not any("limit" in stage.parameters for stage in stages):
        raise RunError(f"no notebook of profile {profile_name!r} has the parameter 'limit'", code=2)
    return stages


# ---------------------------------------------------------------------------------------------- what it depends on


def _digest_json(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_files(files: list[Path], root: Path) -> str:
    names = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return _digest_json(names)


def _digest_source(notebook: Path) -> str:
    """Of the cells' kinds, sources and tags; outputs and execution counts do not matter."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]
    return _digest_json(source)


def weight_digests() -> dict[str, str]:
    """SHA-256 of each weight file of the embedded LVLMs, by path from the root."""
    files = sorted(paths.EMBEDDED.rglob("model.safetensors"))
    return {_from_root(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _from_root(path: Path) -> str:
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else path.name


def _chain(digests: dict[str, str], previous: str) -> str:
    return _digest_json({**digests, "the notebook before it": previous})


def changed_inputs(stage: Stage, stamp: dict) -> list[str]:
    """Names of what differs from the time of the stamp."""
    return [name for name, digest in stage.digests.items() if stamp["digests"].get(name) != digest]


def stale_reason(stage: Stage, previous: str) -> str | None:
    """Why a stage has to be run, None if its result can be reused. `previous` is the digest of the stage before it."""
    stamp = stage.read_stamp()
    if stamp is None:
        return "not finished yet"
    if changed := changed_inputs(stage, stamp):
        return f"{' and '.join(changed)} changed"
    if stamp["digest"] != _chain(stage.digests, previous):
        return "the notebook before it changed"
    missing = [name for name in stamp["outputs"] if not (paths.ROOT / name).exists()]
    if missing:
        return f"{missing[0]} is missing"
    return None


def split_stages(stages: list[Stage], start: int | None) -> tuple[list[Stage], list[tuple[Stage, str]]]:
    """(stages to reuse, stages to run with the reason); from the first that is to run on, all are.

    With `start`, notebook number `start` and all later ones run, and the earlier ones are taken as they are; RunError
    when there is no such notebook or an earlier one is not finished.
    """
    if start is not None:
        if start not in [stage.number for stage in stages]:
            names = ", ".join(f"{stage.number:02d}" for stage in stages)
            raise RunError(f"this profile has no notebook {start:02d} to start from; valid ones: {names}", code=2)
        earlier = [stage for stage in stages if stage.number < start]
        for stage in earlier:
            if stage.read_stamp() is None:
                raise RunError(f"--from {start:02d} needs {stage.label}, which is not finished; start from there")
        return earlier, [(stage, "--from") for stage in stages if stage.number >= start]
    previous = ""
    for index, stage in enumerate(stages):
        reason = stale_reason(stage, previous)
        if reason:
            return stages[:index], [(stage, reason)] + [(later, "follows") for later in stages[index + 1 :]]
        previous = stage.read_stamp()["digest"]
    return stages, []


# --------------------------------------------------------------------------------------------------------- running


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _written_files(profile_name: str) -> dict[str, tuple[int, int]]:
    """(modification time in ns, size) of all that a profile's notebooks have written, by path from the root."""
    found = {}
    for folder in (paths.runs(profile_name), paths.reports(profile_name)):
        for path in folder.rglob("*"):
            if path.is_file() and path.parent != paths.reports(profile_name) / "notebooks":
                status = path.stat()
                found[_from_root(path)] = status.st_mtime_ns, status.st_size
    return found


def _to_html(notebook, stage: Stage) -> str:
    from nbconvert import HTMLExporter

    resources = {"metadata": {"name": stage.label, "path": str(stage.notebook.parent)}}
    return HTMLExporter(embed_images=True).from_notebook_node(notebook, resources=resources)[0]


def _is_out_of_memory(ename: str, evalue: str) -> bool:
    return ename.endswith("MemoryError") or "can't allocate memory" in evalue or "out of memory" in evalue.lower()


def _execute(stage: Stage):
    """The executed notebook; RunError says in which cell it failed and why, and leaves <stem>.failed.ipynb."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    memory = "mend: close other programs, or lower `batch_queries` in the profile, then start again"
    partial, failed = stage.output(".partial.ipynb"), stage.output(".failed.ipynb")
    partial = partial.with_name(f".{partial.name}")
    failed.unlink(missing_ok=True)
    try:
        return papermill.execute_notebook(
            stage.notebook,
            partial,
            parameters=stage.parameters,
            kernel_name=KERNEL,
            cwd=stage.notebook.parent,
            progress_bar={"desc": stage.label, "leave": False} if sys.stderr.isatty() else False,
            log_output=False,
        )
    except papermill.PapermillExecutionError as error:
        os.replace(partial, failed)
        cause = f"{error.ename}: {error.evalue.strip()}".removesuffix(": ")
        if len(cause) > 800:
            cause = f"{cause[:800]} ..."
        where = f"{stage.notebook.name} failed in cell [{error.exec_count}]"
        if _is_out_of_memory(error.ename, error.evalue):
            raise RunError(f"{where}, out of memory ({cause})\n{memory}") from error
        raise RunError(f"{where} with {cause}\nthe cells up to there: {_from_root(failed)}") from error
    except DeadKernelError as error:
        if partial.exists():
            os.replace(partial, failed)
        raise RunError(f"{stage.notebook.name}: the kernel died: most likely out of memory\n{memory}") from error
    except NoSuchKernel as error:
        message = f"no Jupyter kernel {KERNEL!r} in this environment\nmend: pip install --force-reinstall ipykernel"
        raise RunError(message) from error
    except RuntimeError as error:  # nbclient's word for a kernel that never answered
        raise RunError(f"{stage.notebook.name}: the kernel did not start ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def run_stage(stage: Stage, previous: str) -> dict:
    """Execute one notebook, write its copy, its HTML and, last of all, its stamp (which is returned)."""
    import nbformat

    profile_name = stage.parameters["profile"]
    stage.folder.mkdir(parents=True, exist_ok=True)
    before = _written_files(profile_name)
    start = time.perf_counter()
    notebook = _execute(stage)
    seconds = time.perf_counter() - start
    # papermill's own notes hold absolute paths, and the path of the copy aside
    notebook.metadata.papermill.update(
        input_path=_from_root(stage.notebook), output_path=_from_root(stage.output(".ipynb"))
    )
    write_atomically(stage.output(".ipynb"), nbformat.writes(notebook))
    write_atomically(stage.output(".html"), _to_html(notebook, stage))
    written = [name for name, status in _written_files(profile_name).items() if before.get(name) != status]
    outputs = [_from_root(stage.output(suffix)) for suffix in (".ipynb", ".html")] + sorted(written)
    stamp = {
        "digest": _chain(stage.digests, previous),
        "digests": stage.digests,
        "outputs": outputs,
        "seconds": round(seconds, 2),
    }
    write_atomically(stage.output(".stamp.json"), json.dumps(stamp, indent=1))
    return stamp


# --------------------------------------------------------------------------------------------------------- manifest


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def git_state() -> dict:
    """{"commit": 40 hex digits, "dirty": whether anything but the reports differs from it}, both None outside git."""
    top = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "--verify", "HEAD") if top and Path(top).resolve() == paths.ROOT else None
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", ".", ":(exclude)reports"))}


def _seeds(settings, name: str = "") -> Iterator[tuple[str, int | list | None]]:
    """(dotted name, value) of every setting called seed or seeds."""
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in items:
        dotted = f"{name}.{key}" if name else str(key)
        if key in ("seed", "seeds"):
            yield dotted, value
        elif isinstance(value, dict | list):
            yield from _seeds(value, dotted)


def dataset_digests() -> dict[str, str]:
    """The digest that each rendered dataset's annotation file states (`info.digest`), by path from the root."""
    found = {}
    for path in sorted(paths.DATA.rglob("annotations.json")):
        digest = json.loads(path.read_text()).get("info", {}).get("digest")
        if digest:
            found[_from_root(path)] = digest
    return found


def make_manifest(profile_name: str, stages: list[Stage], git: dict) -> dict:
    """Where a report comes from; reused notebooks keep the seconds of the run that made them."""
    profile = read_profile(profile_name)
    seconds = {stage.notebook.stem: stage.read_stamp()["seconds"] for stage in stages}
    return {
        "git": git,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in VERSIONED},
        "platform": f"{platform.system()} {platform.machine()}",
        "profile": profile,
        "parameters": {stage.notebook.stem: stage.parameters for stage in stages},
        "seeds": dict(_seeds(profile)),
        "weights": weight_digests(),
        "datasets": dataset_digests(),
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 2),
    }


# -------------------------------------------------------------------------------------------------------------- run


def _build_page(profile_name: str) -> Path:
    """The report's index.html, through acs_lib.report.html.build (imported late: it brings the plotting libraries)."""
    try:
        return importlib.import_module("acs_lib.report.html").build(profile_name)
    except (ImportError, KeyError, OSError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"all notebooks are finished, but the report page could not be made ({what})") from error


def run(
    profile_name: str,
    start: int | None = None,
    engine: Engine = Engine.local,
    limit: int | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = typer.echo,
) -> Path | None:
    """Run what is not finished of a profile, and return its index.html (None after a dry run, which writes nothing).

    RunError: an unknown profile or notebook, a misspelt parameter, a notebook that failed.
    """
    git = git_state()
    stages = make_stages(profile_name, engine, limit)
    reused, to_run = split_stages(stages, start)
    for stage in reused:
        changed = changed_inputs(stage, stage.read_stamp())  # nothing, unless --from skipped over it
        say(f"{stage.label}: reused" + (f", although {' and '.join(changed)} changed" if changed else ""))
    if dry_run:
        for stage, reason in to_run:
            say(f"{stage.label}: would run ({reason})")
        return None
    for stage, _ in to_run:  # what is about to be computed anew is unfinished from here on
        stage.output(".stamp.json").unlink(missing_ok=True)
    previous = reused[-1].read_stamp()["digest"] if reused else ""
    for stage, reason in to_run:
        say(f"{stage.label}: running ({reason})")
        stamp = run_stage(stage, previous)
        say(f"{stage.label}: done in {stamp['seconds']:.0f} s")
        previous = stamp["digest"]
    manifest = make_manifest(profile_name, stages, git)
    write_atomically(paths.reports(profile_name) / "manifest.json", json.dumps(manifest, indent=1, default=str))
    return _build_page(profile_name)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    profile: Annotated[str, typer.Option(help="What to run: the name of a file in acs_lib/profiles.")] = "embedded",
    start: Annotated[
        int | None, typer.Option("--from", metavar="N", min=0, help="Run notebook N and the later ones anew.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="How candidates are sampled.")] = Engine.local,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N queries a split, for a quick look.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which notebooks would run.")] = False,
) -> None:
    """Run a profile's notebooks in order; finished ones are reused as long as nothing they depend on has changed.

    The executed notebooks, tables, figures and index.html land in reports/<profile>.
    """
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel before the user's
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # no debugger warning from every kernel
    begun = time.perf_counter()
    try:
        page = run(profile, start, engine, limit, dry_run)
    except RunError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.code) from None
    except OSError as error:
        typer.echo(f"error: {error.strerror or error}: {error.filename or ''}".removesuffix(": "), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("\nstopped; the same command goes on with the notebook that was running", err=True)
        raise typer.Exit(130) from None
    if page is not None:
        typer.echo(f"finished in {time.perf_counter() - begun:.0f} s; look at {page}")


if __name__ == "__main__":
    app(prog_name="python -m acs_lib.runner")
