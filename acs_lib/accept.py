"""Take over a finished run: as the committed reference of its profile, and as the outputs that the notebooks store
whose default profile it is.

Of a report is kept what is read and compared: tables (CSV, Markdown), figures (PNG), page, manifest. PDF and LaTeX, for
papers, every run writes anew. Of the profile TESTED, which the tests run, are kept tables/*.csv and, in COPIES, all its
executed notebooks without pictures.
"""

import ast
import base64
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import papermill
import typer

from acs_lib import paths, runner
from acs_lib.core.files import write_text
from acs_lib.evaluation import compare
from acs_lib.profiles import load_profile
from acs_lib.report import page
from acs_lib.report.encoding import small_png

TESTED = "smoke"
COPIES = Path("tests", "notebooks")  # below the project's root
COMPARED = ("tables/*.csv",)
LONG = 100  # lines of a table in Markdown: longer ones are read on the page, and kept as CSV alone
REPORT = (*COMPARED, "tables/*.md", "tables/*.json", "figures/*.png", "figures/*.json", "manifest.json", "browser.json")
PRECISE = re.compile(r"(?<![\w.])-?\d+\.\d{7,}(?:e[-+]?\d+)?(?!\w)")  # a number with more digits than are compared
INLINE_PNG = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")


def accept(name: str) -> list[str]:
    """Replace reports/reference/<profile> by what is kept of the run's report, and the outputs of the notebooks whose
    default profile it is, or those copies that the tests execute, by the run's. Returns what differs between the old
    tables and the new ones, a sentence each.

    A run with uncommitted changes is taken with a warning: they are to be committed with it.
    ValueError for a run that is not finished, or not of the notebooks, library, profile and weights that are here.
    """
    stages = runner.make_stages(load_profile(name), name)
    report, reference = paths.reports(name), paths.reference(name)
    reasons = [f"{stage.label}: {reason}" for stage in stages if (reason := stage.stale())]
    if not reasons and not (report / "manifest.json").exists():
        reasons = ["manifest.json is missing"]
    if reasons:
        raise ValueError(
            f"profile {name} has no finished run of what is here ({reasons[0]}); run acs run --profile {name}"
        )
    if json.loads((report / "manifest.json").read_text(encoding="utf-8"))["git"]["dirty"]:
        typer.echo("warning: the run had uncommitted changes; commit them with the reference", err=True)
    tested = name == TESTED
    stored = {}
    for stage in stages:
        if tested:
            copy = with_outputs(stage.notebook, stage.output(".ipynb"))
            stored[paths.ROOT / COPIES / stage.notebook.name] = _for_tests(copy, name)
        elif _default_profile(stage.notebook) == name:
            stored[stage.notebook] = with_outputs(stage.notebook, stage.output(".ipynb"))
    aside = reference.with_name(f".{name}.{os.getpid()}")
    written = {paths.ROOT / file for stage in stages for file in stage.stamp()["outputs"]}
    written |= {*report.glob("*.json"), *report.glob("tables/published_and_measured.*")}  # from after the last stage
    try:
        _copy(report, aside, COMPARED if tested else REPORT, written)
        differences = compare.folders(reference / "tables", aside / "tables")
        if not tested:
            manifest = json.loads((aside / "manifest.json").read_text(encoding="utf-8"))
            manifest["compared"] = None  # it is the reference now
            write_text(aside / "manifest.json", json.dumps(manifest, indent=1))
            page.build(name, aside)
            (aside / "browser.json").unlink(missing_ok=True)  # the page holds it
        _rename(aside, reference)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for notebook, found in stored.items():
        notebook.parent.mkdir(parents=True, exist_ok=True)
        write_text(notebook, nbformat.writes(found) + "\n")
    return differences


def with_outputs(notebook: Path, executed: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of its executed copy: cells counted from 1, small pictures, and nothing
    of papermill, of the session or of the minute."""
    stored = nbformat.read(notebook, 4)
    stored.metadata.pop("widgets", None)
    ran = [c for c in nbformat.read(executed, 4).cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for cell, copy in zip(stored.cells, ran, strict=True):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count, cell.outputs = count, [_small(output) for output in copy.outputs]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return stored


def _for_tests(notebook: nbformat.NotebookNode, profile: str) -> nbformat.NotebookNode:
    """The notebook with that default profile, and without pictures, which no test compares."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub("(?m)^profile = .*$", f'profile = "{profile}"', cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in [kind for kind in data if kind.startswith("image/")]:
                del data[kind]
            if "text/html" in data:
                data["text/html"] = page.INLINE_IMAGE.sub("", data["text/html"])
    return notebook


def _small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output with its pictures, also those inside HTML, in few bytes, and no second form of what it has as HTML."""
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = _small_base64(data["image/png"])
    if "text/html" in data:
        data.pop("text/plain", None)
        data["text/html"] = INLINE_PNG.sub(lambda found: _small_base64(found[0]), data["text/html"])
    return output


def _small_base64(png: str) -> str:
    return base64.b64encode(small_png(base64.b64decode(png))).decode("ascii")


def _default_profile(notebook: Path) -> str:
    return ast.literal_eval(papermill.inspect_notebook(notebook)["profile"]["default"])


def _copy(report: Path, folder: Path, patterns: tuple[str, ...], written: set[Path]) -> None:
    """Copy what the patterns match and this run has written (an earlier one may have left other tables), pictures in
    few bytes, numbers of CSV tables with six significant digits, and no long table in Markdown."""
    for path in (path for pattern in patterns for path in sorted(report.glob(pattern)) if path in written):
        if path.suffix == ".md" and path.read_text(encoding="utf-8").count("\n") > LONG:
            continue
        target = folder / path.relative_to(report)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        if path.suffix == ".png":
            content = small_png(content)
        elif path.suffix == ".csv":
            content = six_digits(content.decode("utf-8")).encode("utf-8")
        target.write_bytes(content)


def six_digits(text: str) -> str:
    """The text of a table with numbers of more than six decimals rounded to six significant digits: what another
    processor moves (docs/processors.md) is no part of a reference."""
    return PRECISE.sub(lambda number: f"{float(number[0]):.6g}", text)


def _rename(aside: Path, folder: Path) -> None:
    """Put a finished folder in the place of another, which is whole up to then."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # left between the two renames by a killed process
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
