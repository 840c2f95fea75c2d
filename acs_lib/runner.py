"""Run a profile's notebooks in order, each at most once.

A finished notebook leaves a stamp beside its executed copy: the digests of all that it depended on (itself, the
profile, the LVLMs, the data, the modules that it imports, the files that these read), the files written meanwhile and
the seconds it took. As long as nothing of that changed it is reused; the first notebook for which that does not hold is
run, and so is every later one.
"""

import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
import typer
import yaml
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from acs_lib import paths
from acs_lib.core import progress
from acs_lib.core.errors import UserError
from acs_lib.core.files import read_text, write_text
from acs_lib.core.sources import imported_files
from acs_lib.evaluation import compare
from acs_lib.lvlms.checkpoint import CALIBRATED, is_embedded, lvlm_digest, pinned
from acs_lib.profiles import Profile, load_profile, profile_file

WIDGET = "application/vnd.jupyter.widget-view+json"  # lives in a session; what it says elsewhere is its plain text
VERSIONED = ("torch", "transformers", "numpy", "pandas")  # recorded in the manifest, beside Python's own
SIDE_BY_SIDE = ("06", "07", "08")  # they read what those before wrote, none what another of them writes; of tiny LVLMs
TOLD = 3  # of what changed, by name
MEMORY_MEND = "mend: close other programs, or lower `batch_queries` in the profile, then start again"


def _digest(value) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value).encode()).hexdigest()


def _file_digests(files: Iterable[Path]) -> dict[str, str]:
    return {_from_root(path): _digest(path.read_bytes()) for path in sorted(files)}


def read_by(profile: Profile) -> dict[str, list[tuple[Path, str]]]:
    """Module -> (folder, pattern) of the files that it reads besides the profile, its LVLMs and data, and what runs
    write."""
    found = [(paths.place(spec.source), name) for spec in profile.lvlms for name in CALIBRATED]
    return {
        "study/training_variants.py": [(paths.EMBEDDED, "*.csv")],
        "grounding/api.py": [
            *found, *((paths.DATA / "calibrated", f"**/{name}") for name in CALIBRATED),
            (paths.EMBEDDED / "samples", "**/*"), (paths.PROFILES, "*.yaml"),
        ],
    }  # fmt: skip


def _depends_on(code: str, profile: Profile) -> dict[str, str]:
    """File -> digest of the modules of the library that a notebook's code imports, of all if it is not plain Python,
    and of what these read (`read_by`)."""
    try:
        modules = imported_files(code, paths.LIBRARY)
    except SyntaxError:
        modules = set(paths.LIBRARY.rglob("*.py"))
    places = [place for module, read in read_by(profile).items() if paths.LIBRARY / module in modules for place in read]
    files = {path for folder, pattern in places for path in folder.glob(pattern) if path.is_file()}
    return _file_digests(files - {profile_file(profile.name)}) | _file_digests(modules)


def _data_files(profile: Profile) -> list[tuple[str, int]]:
    """Name and size of the annotation files and images that a profile's datasets on disk have at the moment. (Rendered
    worlds follow from the library and the profile.)"""
    splits = [split for dataset in profile.datasets if dataset.kind != "scenes" for split in dataset.splits.values()]
    roots = {paths.ROOT / place for split in splits for place in (split.annotations, split.folder) if place}
    files = {path for root in roots for path in (root, *root.rglob("*")) if path.is_file()}
    return sorted((_from_root(path), path.stat().st_size) for path in files)


def _from_root(path: Path) -> str:
    """A path as it may be published: without the machine's folders."""
    roots = (root for root in (paths.ROOT, paths.LIBRARY.parent) if path.is_relative_to(root))
    return next((path.relative_to(root).as_posix() for root in roots), path.name)


@dataclass(frozen=True)
class NotebookStage:
    """One notebook of a run. `inputs` are the digests of what its result depends on, `digest` adds those of the
    notebooks before it; `parameters` are what papermill hands over besides the profile's name."""

    notebook: Path
    profile: str
    inputs: dict[str, str]
    digest: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.notebook.stem.replace("_", " ")

    def output(self, suffix: str) -> Path:
        return paths.reports(self.profile) / "notebooks" / f"{self.notebook.stem}{suffix}"

    def stamp(self) -> dict | None:
        """The record of the last finished run, None where there is none (or none that can be read)."""
        try:
            return json.loads(self.output(".stamp.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def stale(self) -> str | None:
        """Why it has to be run, None if its result can be reused."""
        stamp = self.stamp()
        if stamp is None:
            return "not finished yet"
        inputs = stamp["inputs"] | self.inputs
        if changed := [name for name in inputs if stamp["inputs"].get(name) != self.inputs.get(name)]:
            more = f" and {len(changed) - TOLD} more" if len(changed) > TOLD else ""
            return f"{' and '.join(changed[:TOLD])}{more} changed"
        if stamp["digest"] != self.digest:
            return "the notebook before it changed"
        missing = [name for name in stamp["outputs"] if not (paths.ROOT / name).exists()]
        return f"{missing[0]} is missing" if missing else None


def make_stages(profile: Profile, name: str, engine: str = "local") -> list[NotebookStage]:
    """The stages of a run, checked before anything is computed. UserError for a notebook that is not there, or that
    does not have the parameter `profile` (papermill itself would only warn, and run with the notebook's default), or an
    LVLM whose commit on the hub cannot be told.

    `engine` goes to the notebook that has the parameter, the one that samples; results do not depend on it.
    """
    shared = {"the profile": _digest(profile_file(name).read_bytes())}
    try:
        shared |= {f"the LVLM {spec.name}": lvlm_digest(spec) for spec in profile.lvlms}
    except OSError as error:
        raise UserError(str(error)) from error
    if files := _data_files(profile):
        shared["the data"] = _digest(files)
    stages: list[NotebookStage] = []
    for number in sorted(profile.notebooks):
        notebook = next(paths.NOTEBOOKS.glob(f"{number}_*.ipynb"), None)
        if notebook is None:
            raise UserError(f"profile {name!r} names notebook {number}, which is not in {paths.NOTEBOOKS}", code=2)
        known = papermill.inspect_notebook(notebook)
        if "profile" not in known:
            raise UserError(f"{notebook.name} has no parameter 'profile', but {', '.join(known) or 'none at all'}")
        cells = nbformat.read(notebook, 4).cells  # outputs and execution counts do not matter
        source = _digest([(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in cells])
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        inputs = {"the notebook": source} | shared | _depends_on(code, profile)
        digest = _digest([inputs, stages[-1].digest if stages else ""])
        parameters = {"engine": engine} if "engine" in known else {}
        stages.append(NotebookStage(notebook, name, inputs, digest, parameters))
    if engine != "local" and not any(stage.parameters for stage in stages):
        raise UserError(f"no notebook of the profile {name!r} has the parameter 'engine'; leave --engine out")
    return stages


def first_to_run(stages: list[NotebookStage], start: int | None) -> int:
    """Index of the first stage that has to be run; with `start`, of notebook number `start`, whatever the stamps of
    the earlier ones say. UserError when there is no such notebook or an earlier one is not finished."""
    if start is None:
        return next((index for index, stage in enumerate(stages) if stage.stale()), len(stages))
    numbers = [stage.notebook.stem[:2] for stage in stages]
    if f"{start:02d}" not in numbers:
        raise UserError(f"no notebook {start:02d} to start from; valid ones: {', '.join(numbers)}", code=2)
    first = numbers.index(f"{start:02d}")
    for stage in stages[:first]:
        if stage.stamp() is None:
            raise UserError(f"--from {start:02d} needs {stage.label}, which is not finished; start from there")
    return first


def _started_last(executed: Path) -> str:
    """Number and first line of the code cell that a partly executed copy came to."""
    cells = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code"]
    number = max(number for number, cell in enumerate(cells, 1) if cell.metadata.papermill.start_time)
    return f"cell [{number}] `{cells[number - 1].source.partition(chr(10))[0]}`"


class _Kernels(AsyncKernelManager):
    """Kernels that share no terminal: what they and their processes write to standard error comes by papermill alone,
    not twice."""

    def start_kernel(self, **settings):
        return super().start_kernel(**settings, stderr=subprocess.DEVNULL)


def _execute(stage: NotebookStage) -> nbformat.NotebookNode:
    """The executed notebook; UserError says in which cell it failed and why, and leaves <stem>.failed.ipynb."""
    alone = multiprocessing.parent_process() is None  # bars of several would write over each other
    executed = stage.output(".failed.ipynb")  # what is there of it, until the last cell is done
    # Bars of the notebooks would end up in their copies. (papermill's own has read its settings already.)
    os.environ.update(TQDM_DISABLE="1", PYDEVD_DISABLE_FILE_VALIDATION="1", JUPYTER_PREFER_ENV_PATH="1")
    if not sys.stderr.isatty():
        os.environ[progress.NOTEBOOK] = stage.label
    if all(map(is_embedded, load_profile(stage.profile).lvlms)):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: a second thread spins, and rounds otherwise
    try:
        notebook = papermill.execute_notebook(
            stage.notebook, executed, parameters={"profile": stage.profile, **stage.parameters},
            kernel_name="python3", cwd=stage.notebook.parent,
            progress_bar=alone and sys.stderr.isatty() and {"desc": stage.label, "leave": False},
            stderr_file=sys.stderr,  # warnings at once; the report is kept free of them
            kernel_manager_class=_Kernels,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        cause = f"{error.ename}: {error.evalue.strip()}"[:800]
        if error.ename.endswith("MemoryError") or "allocate memory" in cause or "out of memory" in cause.lower():
            cause = f"out of memory ({cause})\n{MEMORY_MEND}"
    except DeadKernelError:
        cause = f"the kernel died, most likely out of memory\n{MEMORY_MEND}"
    except NoSuchKernel as error:
        mend = "mend: python -m pip install --force-reinstall ipykernel"
        raise UserError(f"no Jupyter kernel {error.name!r} in this environment\n{mend}") from error
    else:
        executed.unlink()
        return notebook
    finally:
        os.environ.pop(progress.NOTEBOOK, None)
    where = f"{stage.notebook.name} failed in {_started_last(executed)}"
    raise UserError(f"{where}\n{cause}\nthe notebook up to there: {_from_root(executed)}")


def run_stage(stage: NotebookStage) -> None:
    """Execute one notebook; write its copy, its HTML and, last of all, its stamp."""
    stage.output("").parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    notebook = _execute(stage)
    seconds = time.time() - began
    # Reports are published: no warnings with a machine's paths, nor papermill's note of where the notebook was.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and o.get("data") != {}]
    copy = stage.output(".ipynb")
    notebook.metadata.papermill.update(input_path=_from_root(stage.notebook), output_path=_from_root(copy))
    write_text(copy, nbformat.writes(notebook))
    resources = {"metadata": {"name": stage.label}}
    write_text(stage.output(".html"), HTMLExporter().from_notebook_node(notebook, resources=resources)[0])
    folders = (paths.runs(stage.profile), paths.reports(stage.profile))
    files = {path for folder in folders for path in folder.rglob("[!.]*") if path.is_file()}
    files -= {path for path in stage.output("").parent.iterdir() if not path.name.startswith(stage.notebook.stem)}
    written = [_from_root(path) for path in sorted(files) if path.stat().st_mtime >= began]
    stamp = {"digest": stage.digest, "inputs": stage.inputs, "outputs": written, "seconds": round(seconds, 2)}
    write_text(stage.output(".stamp.json"), json.dumps(stamp, indent=1))


def _say_done(stage: NotebookStage) -> None:
    typer.echo(f"{stage.label}: done in {stage.stamp()['seconds']:.0f} s")


def _run_side_by_side(group: list[tuple[NotebookStage, str]]) -> None:
    from acs_lib.runs.local import processes  # late: it brings torch

    for stage, reason in group:
        typer.echo(f"{stage.label}: running ({reason})")
    stages = [stage for stage, _ in group]
    with processes() as work:
        for stage, _ in zip(stages, work(run_stage, stages)):
            _say_done(stage)


def git_state() -> dict:
    """{"commit": 40 hex digits, "dirty": whether anything but the reports differs from it}, both None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", paths.ROOT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == paths.ROOT:
            return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", ".", ":(exclude)reports"))}
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no repository
    return {"commit": None, "dirty": None}


def dataset_digests() -> dict[str, str]:
    """The digest that each rendered split's annotation file states (`info.digest`), by path from the root."""
    infos = {path: json.loads(read_text(path)).get("info", {}) for path in paths.DATA.rglob("annotations.json")}
    return {_from_root(path): info["digest"] for path, info in sorted(infos.items()) if "digest" in info}


def checkpoints(profile: Profile) -> dict[str, str]:
    """The commit of each hub LVLM of a profile. A folder has none; the digest of its weights is under `weights`."""
    return {spec.name: pinned(spec).revision for spec in profile.lvlms if not paths.place(spec.source).exists()}


def compared(name: str) -> dict | None:
    """How a run's tables stand to those of the committed reference: `said`, a sentence, and `differences`, a sentence
    each; None without one."""
    reference, found = paths.reference(name) / "tables", paths.reports(name) / "tables"
    if not reference.is_dir():
        return None
    return dict(zip(("said", "differences"), compare.summary(reference, found)))


def make_manifest(profile: Profile, stages: list[NotebookStage], began: dict) -> dict:
    """Where a report comes from; reused notebooks keep the seconds of the run that made them.

    began: what was recorded when the run began, `git`, `cores` and `load` (mean over 1, 5 and 15 minutes)
    """
    seconds = {stage.notebook.stem: stage.stamp()["seconds"] for stage in stages}
    splits = {f"{data.name}-{name}": split.seed for data in profile.datasets for name, split in data.splits.items()}
    return {
        **began,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in VERSIONED},
        "platform": f"{platform.system()} {platform.machine()}",
        "profile": profile.model_dump(mode="json"),
        "seeds": {"sampling": profile.sampling.seed, "regressor": list(range(profile.regressor.seeds)), **splits},
        "weights": {
            name: digest
            for lvlm in profile.lvlms
            for name, digest in _file_digests(paths.place(lvlm.source).rglob("model.safetensors")).items()
        },
        "checkpoints": checkpoints(profile),
        "datasets": dataset_digests(),
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 2),
        "compared": compared(profile.name),
    }


def check_gpu(name: str) -> None:
    """UserError where torch sees no GPU, unless the environment has ACS_CPU=1."""
    import torch  # late: it takes seconds

    if torch.cuda.is_available() or os.environ.get("ACS_CPU") == "1":
        return
    built = torch.version.cuda
    if built:
        reason = f"it is built for CUDA {built}: there is no GPU, or its driver is too old for that (see nvidia-smi)"
    else:
        reason = "it is built without CUDA"
    raise UserError(
        f"the profile {name!r} needs a GPU, and torch {torch.__version__} sees none; {reason}\n"
        "mend: install a build of torch for your driver (https://pytorch.org/get-started), or a newer driver; "
        "with ACS_CPU=1 in the environment it runs on the CPU all the same"
    )


def run(
    name: str, start: int | None = None, dry_run: bool = False, limit: int | None = None, engine: str = "local"
) -> Path | None:
    """Run what is not finished of a profile, and return its index.html (None after a dry run, which writes nothing).

    A profile that names its GPU, or that is to be planned here, has its cost printed first. `limit`: with at most so
    many queries of each size and split, as the profile `<name>-first-<limit>`, which has runs and a report of its own.
    UserError: an unknown profile or notebook, a misspelt parameter, an engine that is not installed, no GPU for a
    profile that names one, a notebook that failed.
    """
    began = {"git": git_state(), "cores": os.cpu_count(), "load": [round(load, 2) for load in os.getloadavg()]}
    if limit is not None:
        name = f"{name}-first-{limit}"
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError(
            '--engine ray needs Ray, which is not installed here\nmend: python -m pip install "acs-kit[ray]"'
        )
    try:
        profile = load_profile(name)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(str(error), code=2) from error
    stages = make_stages(profile, name, engine)
    first = first_to_run(stages, start)
    for stage in stages[:first]:
        reason = stage.stale()  # none, unless --from skipped over it
        typer.echo(f"{stage.label}: reused" + (f", although {reason}" if reason else ""))
    to_run = [(stage, "follows") for stage in stages[first:]]
    to_run[:1] = [(stage, stage.stale() if start is None else "--from") for stage, _ in to_run[:1]]
    if to_run and (profile.gpu or profile.plan_here):
        from acs_lib.runs import plan  # late: it brings torch

        typer.echo(plan.say(profile))
    if dry_run:
        for stage, reason in to_run:
            typer.echo(f"{stage.label}: would run ({reason})")
        return None
    if to_run and profile.gpu and not (engine == "ray" and "RAY_ADDRESS" in os.environ):  # whose workers have GPUs
        check_gpu(name)
    for stage, _ in to_run:  # what is about to be computed anew is unfinished from here on
        stage.output(".stamp.json").unlink(missing_ok=True)
    for beside, group in itertools.groupby(to_run, lambda each: each[0].notebook.stem[:2] in SIDE_BY_SIDE):
        if beside and all(map(is_embedded, profile.lvlms)):
            _run_side_by_side(list(group))
        else:
            for stage, reason in group:
                typer.echo(f"{stage.label}: running ({reason})")
                run_stage(stage)
                _say_done(stage)

    from acs_lib.report import page, tables  # late: they take seconds

    tables.write_comparison(profile, paths.reports(name))
    manifest = make_manifest(profile, stages, began)
    write_text(paths.reports(name) / "manifest.json", json.dumps(manifest, indent=1))
    if found := manifest["compared"]:
        typer.echo(
            "\n  ".join([f"against the committed reference: {found['said']}", *compare.first(found["differences"])])
        )
    return page.build(name)
