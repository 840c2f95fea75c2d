"""The notebooks are thin, executed, free of a machine's paths, and their smoke profile gives what is promised.

`./run_all.sh --test` also runs nbval, which executes them and compares every output with the stored one; how far a
number may move there and in the tables is in acs_lib.evaluation.compare.
"""

import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import papermill
import pytest

from acs_lib import paths
from acs_lib.evaluation import compare
from acs_lib.profiles import load_profile
from acs_lib.report import sentences, sentences_notebook_10
from acs_lib.report.tables import at_a_glance, measured_text
from tests import nbval_numbers

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
SMOKED = {path.stem for path in NOTEBOOKS if path.stem[:2] in load_profile("smoke").notebooks}
MOST_CELLS, MOST_LINES = 16, 100  # of code, in one notebook
MACHINE_PATH = re.compile(rf"{re.escape(str(paths.ROOT))}\b|(?<![\w.:/])/(?:home|root|tmp|Users|var|opt|mnt)/\w+")
EMBEDDED_DATA = re.compile(r"base64,[A-Za-z0-9+/=\s]+")
CUT = re.compile(r"\d+ rows × \d+ columns|\.\.\.</td>")  # pandas left out rows, columns or the end of a text
MAIN_COLUMNS = (
    "lvlm,dataset,condition,method,family,n_queries,acc50,acc50_lo,acc50_hi,acc75,acc75_lo,acc75_hi,miou,miou_lo,miou_hi,"
    "delta_vs_greedy,p_value,published_acc50"
)
TABLES = (
    "main_results regressor layers heads entropy_by_layer by_size candidates_sweep ranks significance fusions seeds "
    "ablations confidence cost"
).split()


def texts(output):
    """All that is readable of one output of a cell: streams, tracebacks, and data but pictures."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([output.get("text"), output.get("traceback"), EMBEDDED_DATA.sub("", json.dumps(data))])


def is_literal(source):
    """Whether code does nothing but assign literals to names."""
    try:
        for statement in ast.parse(source).body:
            ast.literal_eval(statement.value)
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                return False
    except (ValueError, AttributeError):
        return False
    return True


def complaints(notebook):
    """What is wrong with a notebook that is to be published; an empty set if nothing is."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in codes for output in cell.outputs]
    lines = [line for cell in codes for line in cell.source.splitlines() if line.strip()]
    nodes = [node for cell in codes for node in ast.walk(ast.parse(cell.source))]
    parameters = [cell.source for cell in codes if "parameters" in cell.metadata.get("tags", [])]
    first = notebook.cells[0]
    rules = {
        "executed in order": [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1)),
        "no errors": all(output.output_type != "error" for output in outputs),
        "nothing on stderr": all(output.get("name") != "stderr" for output in outputs),
        "few cells": len(codes) <= MOST_CELLS,
        "few lines": len(lines) <= MOST_LINES,
        "no definitions": not any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in nodes),
        "one parameters cell": len(parameters) == 1,
        "literal parameters": all(is_literal(source) for source in parameters),
        "kernelspec python3": notebook.metadata.get("kernelspec", {}).get("name") == "python3",
        "a heading first": first.cell_type == "markdown" and first.source.startswith("# "),
        "a result last": bool(codes and codes[-1].outputs),
        "no machine paths": not any(MACHINE_PATH.search(texts(output)) for output in outputs),
        "no table cut": not any(CUT.search(output.get("data", {}).get("text/html", "")) for output in outputs),
    }
    return {rule for rule, kept in rules.items() if not kept}


def made_up(*cells, heading="# Title", kernel="python3"):
    """A notebook of (source, outputs, execution count) after its heading; the first has the tag `parameters`."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": kernel}})
    notebook.cells.append(nbformat.v4.new_markdown_cell(heading))
    for source, outputs, count in cells:
        notebook.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=count))
    notebook.cells[1].metadata.tags = ["parameters"]
    return notebook


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_the_rules_find_what_they_are_for():
    assert (
        complaints(made_up(('profile = "smoke"', [], 1), ("1 + 1", [stream("2, image / mask, a/mnt/b")], 2))) == set()
    )
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=["in /home/someone/kit/a.py"])
    frames = [pd.DataFrame({"n": range(61)}), pd.DataFrame({"claim": ["a" * 60]})]
    cut = [nbformat.v4.new_output("display_data", {"text/html": frame._repr_html_()}) for frame in frames]
    assert [complaints(made_up(("a = 1", [output], 1))) for output in cut] == [{"no table cut"}] * 2
    worst = made_up(
        ("folder = str(profile)", [error], 2),
        ("def f():\n    pass\n" * 51, [stream("a warning", "stderr")], None),
        *[("1", [], None)] * 15,
        heading="Title",
        kernel="mine",
    )
    assert complaints(worst) | {"one parameters cell"} == {
        "executed in order", "no errors", "nothing on stderr", "few cells", "few lines", "no definitions",
        "one parameters cell", "literal parameters", "kernelspec python3", "a heading first", "a result last",
        "no machine paths",
    }  # fmt: skip
    del worst.cells[1].metadata["tags"]
    assert "one parameters cell" in complaints(worst)


@pytest.mark.parametrize(
    ("source", "literal"),
    [
        ("profile = 'smoke'\nsizes: tuple = (1, -2.5)\nseed = None", True),
        ("seed = 1 if fast else 2", False),
        ("folder = root / 'data'", False),
        ("import os", False),
        ("'a text'", False),
    ],
)
def test_only_literals_are_literal(source, literal):
    assert is_literal(source) == literal


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_thin_executed_and_publishable(path):
    assert complaints(nbformat.read(path, 4)) == set()


def machine_paths(folder):
    """{file: the first machine path in it} of all text files of a report."""
    files = [path for path in folder.rglob("*") if path.suffix in {".html", ".json", ".csv", ".md", ".tex", ".ipynb"}]
    kept = [path for path in files if not path.name.endswith((".failed.ipynb", ".partial.ipynb"))]
    found = {path.name: MACHINE_PATH.search(EMBEDDED_DATA.sub("", path.read_text())) for path in kept}
    return {name: match.group() for name, match in found.items() if match}


@pytest.mark.parametrize("profile", ["embedded", "ablations", "smoke"])
def test_the_published_reports_hold_no_machine_paths(profile):
    assert paths.reference(profile).is_dir() and machine_paths(paths.reference(profile)) == {}


# ------------------------------------------------------------------------------- what is shown, and what is committed

KEPT_NOWHERE = [  # columns of shown tables that are of single queries, of a run's log, or no result: in no CSV
    {"step"}, {"greedy_parsed"}, {"candidate"}, {"epoch"}, {"x1", "category"}, {"head", "0"},
]  # fmt: skip
SAID = vars(sentences) | vars(sentences_notebook_10)
TAKEAWAYS = {  # sentence -> the tables that it is made of
    "say_greedy_to_oracle": ["greedy_to_oracle"], "say_entropy": ["entropy_by_layer"], "say_regressor": ["regressor"],
    "say_attributions": ["attributions", "attribution_agreement"], "say_seeds": ["seed_spread"],
    "say_significance": ["significance"], "say_ranks": ["ranks"], "say_ranked": ["ranked_right"],
    "say_size": ["size_and_category", "partial_correlation"], "say_habit": ["habit"],
    "say_training_variants": ["training_variants"],
    "say_zoom": ["zoom"], "say_instances": ["instances"], "say_risk": ["risk"], "say_effort": ["effort"],
    "say_label_free": ["label_free_heads"], "say_intervention": ["intervention"],
    "say_sinks": ["sinks", "sinks_masked"], "say_advice": ["advice"],
}  # fmt: skip


def committed(folder):
    """Stem -> table of a reference run; no condition is ''."""
    tables = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("tables/*.csv"))}
    return {
        stem: table.fillna({"condition": "", "same": ""}) if {"condition", "same"} & set(table) else table
        for stem, table in tables.items()
    }


def decimals(column):
    """How many decimals a column shows."""
    return max((len(text.partition(".")[2]) for text in map(str, column.dropna())), default=0)


def rows_not_in(shown, table):
    """How many rows of a shown table are none of a committed one's, to the shown decimals."""
    table, off = table[list(shown)], 0
    near = {name: 0.5 * 10.0 ** -decimals(shown[name]) + 1e-9 for name in shown}
    for _, row in shown.iterrows():
        fits = pd.Series(True, table.index)
        for name, value in row.items():
            column = table[name]
            if pd.isna(value) or value == "":
                fits &= column.isna() | (column == "")
            elif pd.api.types.is_numeric_dtype(column) and not isinstance(value, str):
                fits &= ((column - value).abs() <= near[name]) | (column == value)  # or both infinite
            else:
                fits &= column.astype(str) == str(value)
        off += not fits.any()
    return off


def shown_otherwise(path, tables):
    """What a notebook shows otherwise than the committed tables have it, a sentence each."""
    complaints = []
    if "advice" in tables:
        tables = tables | {"at a glance": at_a_glance(tables["advice"])}
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for frame in nbval_numbers.parts(data.get("text/html", ""))[1]:
                if any(known <= set(frame) for known in KEPT_NOWHERE):
                    continue
                if any(name.startswith("measured, ") for name in frame):
                    cells = {f"measured, {row.lvlm}, {row.dataset}": {} for row in tables["main_results"].itertuples()}
                    for row in tables["main_results"].itertuples():
                        cells[f"measured, {row.lvlm}, {row.dataset}"][row.method] = measured_text(row)
                    off = sum(
                        text != told[method]
                        for name, told in cells.items()
                        for method, text in zip(frame["method"], frame[name])
                        if method in told
                    )
                    complaints += [f"{off} cells of the main table"] * bool(off)
                    continue
                fitting = [stem for stem, table in tables.items() if set(frame) <= set(table)]
                off = min((rows_not_in(frame, tables[stem]) for stem in fitting), default=len(frame))
                complaints += [f"{off} rows of the table {list(frame)} (looked for in {fitting})"] * bool(off)
            if "text/markdown" in data and (found := re.search(r"sentences\.(say_\w+)\(", cell.source)):
                name = found[1]
                if name == "say_comparisons":
                    compared = tables["comparisons"]
                    method = re.search('"(ACS-[A-Za-z]+)"', cell.source)[1]
                    size = re.search('"size"\\] == "(\\w+)"', cell.source)
                    frames = [compared[compared["size"] == size[1]] if size else compared, method]
                else:
                    frames = [tables[stem] for stem in TAKEAWAYS.get(name, [])]
                if frames and SAID[name](*frames).data != data["text/markdown"]:
                    complaints.append(f"the takeaway by {name}")
    return complaints


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_what_is_committed(path):
    profile = ast.literal_eval(papermill.inspect_notebook(path)["profile"]["default"])
    assert shown_otherwise(path, committed(paths.reference(profile))) == []


def test_another_number_in_a_notebook_is_found(tmp_path):
    tables = {"a": pd.DataFrame({"lvlm": ["x", "y"], "n": [3, 4], "r": [0.1234, 0.5]})}
    shown = tables["a"].round(2)
    assert rows_not_in(shown, tables["a"]) == 0 and rows_not_in(shown.assign(r=[0.12, 0.51]), tables["a"]) == 1
    output = nbformat.v4.new_output("display_data", {"text/html": shown.assign(n=[3, 5])._repr_html_()})
    notebook = made_up(("a = 1", [output], 1))
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert len(shown_otherwise(tmp_path / "a.ipynb", tables)) == 1


# ---------------------------------------------------------------------------------------------- the smoke profile


@pytest.fixture(scope="module")
def smoke():
    """reports/smoke after a run of all notebooks (those that are finished and unchanged are reused)."""
    environment = {name: value for name, value in os.environ.items() if name != "ACS_ROOT"}
    command = [sys.executable, "-m", "acs_lib.cli", "run", "--profile", "smoke"]
    result = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    return paths.LIBRARY.parent / "reports" / "smoke"


def test_smoke_leaves_all_that_is_promised(smoke):
    names = [f"tables/{name}.csv" for name in TABLES] + ["index.html", "manifest.json"]
    names += [f"notebooks/{stem}{suffix}" for stem in SMOKED for suffix in (".ipynb", ".html")]
    assert [name for name in names if not (smoke / name).is_file()] == []
    assert len(list((smoke / "notebooks").glob("*.html"))) >= 6
    manifest = json.loads((smoke / "manifest.json").read_text())
    assert set(manifest["seconds"]) == SMOKED
    assert list(manifest["weights"]) == [f"{lvlm.source}/model.safetensors" for lvlm in load_profile("smoke").lvlms]
    assert machine_paths(smoke) == {}


def test_smoke_tables_are_the_committed_ones_up_to_rounding(smoke):
    differences = compare.folders(paths.LIBRARY.parent / "reports" / "reference" / "smoke" / "tables", smoke / "tables")
    assert not differences, "\n".join(differences)


def test_smoke_main_results(smoke):
    table = pd.read_csv(smoke / "tables" / "main_results.csv")
    assert ",".join(table.columns) == MAIN_COLUMNS
    asked = {data.name: data.splits["test"].queries["small"] for data in load_profile("smoke").datasets}
    assert set(table["dataset"]) == set(asked)
    assert set(table["lvlm"]) == {lvlm.name for lvlm in load_profile("smoke").lvlms}
    assert (table["n_queries"] == table["dataset"].map(asked)).all()
    families = {"control", "likelihood", "consensus", "attention", "acs-free", "acs-learned", "fusion"}
    assert set(table["family"]) <= families
    rates = table.set_index(["lvlm", "dataset", "method"])["acc50"].unstack()
    assert rates.notna().all(axis=None), "every method has every LVLM and dataset"
    assert table["acc50"].between(0, 1).all()
    assert (rates["greedy"] <= rates["oracle best of N"]).all()


def test_smoke_every_method_is_set_against_greedy_and_ranked(smoke):
    main, tested, ranks = (
        pd.read_csv(smoke / "tables" / f"{n}.csv") for n in ("main_results", "significance", "ranks")
    )
    shared = main.merge(tested, on=["lvlm", "dataset", "method"], suffixes=("", "_tested"))
    assert len(shared) == len(tested) == len(main) - 3 * main[["lvlm", "dataset"]].drop_duplicates().shape[0]
    assert shared["delta_vs_greedy"].equals(shared["delta_vs_greedy_tested"])
    for name in ("p_bootstrap", "p_mcnemar"):
        assert (tested[f"{name}_holm"] >= tested[name]).all() and tested[name].between(0, 1).all()
    assert (ranks["mean_rank_lo"] <= ranks["mean_rank_hi"]).all()


def test_smoke_the_greedy_answer_does_not_depend_on_the_seed(smoke):
    table = pd.read_csv(smoke / "tables" / "seeds.csv")
    greedy = table[(table["method"] == "greedy") & (table["source"] == "sampling")].groupby(["lvlm", "dataset"])
    assert (greedy["seed"].nunique() == load_profile("smoke").seeds.sampling).all()
    assert (greedy["acc50"].nunique() == 1).all() and (greedy["miou"].nunique() == 1).all()


def test_smoke_regressor_learns_and_its_control_does_not(smoke):
    """48 test queries, whose answers are much alike: with shuffled labels r has a standard deviation of up to 0.15
    (1/sqrt(48)), so 0.35 is well beyond two of them. Both bounds were set before any run of this profile."""
    table = pd.read_csv(smoke / "tables" / "regressor.csv")
    assert {"lvlm", "dataset", "split", "pearson", "spearman", "mae", "n"} <= set(table.columns)
    table = table[table["dataset"] == load_profile("smoke").train_on]
    by_split = table.set_index(["lvlm", "split"])["pearson"].unstack()
    assert (by_split["test, labels shuffled"].abs() < 0.35).all()
    assert (by_split["test"] > 0.3).all()
