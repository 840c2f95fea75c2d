"""A run against a reference: rounding passes, whatever changes the result is found and told, with the number's name."""

import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from acs_lib import cli, paths
from acs_lib.core.candidates import COORDINATES
from acs_lib.evaluation import compare
from acs_lib.grounding import api
from acs_lib.lvlms.load import load_lvlm
from acs_lib.profiles import Sampling
from acs_lib.runs.answer import answer_batch
from acs_lib.study import results
from tests.nbval_numbers import Output, _once, differences

REFERENCE = sorted((paths.REPORTS / "reference" / "smoke" / "tables").glob("*.csv"))
METHODS = ("greedy", "sequence log-prob", "ACS-Free", "ACS-Learned", "oracle best of N")


@pytest.fixture
def table():
    """A main table of one column: 48 queries."""
    rates = {"acc50": [0.479, 0.5, 0.417, 0.458, 0.604], "acc50_lo": [0.378, 0.4, 0.31, 0.35, 0.5]}
    others = {"miou": [0.41, 0.43, 0.36, 0.39, 0.52], "p_value": [np.nan, 0.3, 0.2, 0.8, 0.001]}
    return pd.DataFrame({"lvlm": "one", "method": METHODS, "n_queries": 48, **rates, **others})


def test_a_table_equals_itself_in_any_order_and_up_to_rounding(table):
    assert compare.tables(table, table.sample(frac=1, random_state=0)) == []
    assert compare.tables(table, table.assign(acc50=table["acc50"] + 1e-4, miou=table["miou"] - 1e-4)) == []


def test_one_answer_may_change_and_two_may_not(table):
    changed = table.copy()
    changed.loc[3, "acc50"] += 1 / 48
    assert compare.tables(table, changed) == []
    changed.loc[3, "acc50"] += 1 / 48
    (told,) = compare.tables(table, changed)
    assert told == "row one, ACS-Learned, acc50: 0.499667, the reference has 0.458: moved by 0.0417, 0.0413 is allowed"


def test_most_of_a_column_may_not_move_at_all(table):
    """Other weights move every number a little; one answer moves few."""
    many = pd.concat([table, table.assign(lvlm="two")], ignore_index=True)
    (told,) = compare.tables(many, many.assign(miou=many["miou"] + 0.005))
    assert told == "miou: 100% of its numbers moved by more than 0.001, half of them by 0.005"
    half = many["miou"] + 0.005 * (many["lvlm"] == "two")
    assert compare.tables(many, many.assign(miou=half)) == []
    swapped = many.assign(acc50=many["acc50_lo"] + 0.03, acc50_lo=many["acc50"] - 0.03)
    assert [told.partition(":")[0] for told in compare.tables(many, swapped)][-1] == "acc50_lo"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.drop(index=3), "row one, ACS-Learned is missing"),
        (lambda t: pd.concat([t, t.tail(1).assign(method="new")]), "row one, new is not in the reference"),
        (lambda t: t.rename(columns={"acc50": "miou", "miou": "acc50"}), "columns are"),
        (lambda t: t.assign(acc50=t["miou"], miou=t["acc50"]), "row one, greedy, acc50: 0.41, the reference has 0.479"),
        (lambda t: t.assign(method=t["method"].replace("ACS-Free", "ACS")), "row one, ACS-Free is missing"),
        (lambda t: t.assign(n_queries=49), "row one, greedy, n_queries: 49, the reference has 48"),
        (lambda t: t.assign(p_value=[np.nan, 0.3, 0.2, np.nan, 0.001]), "row one, ACS-Learned, p_value: nan, the"),
        (lambda t: t.assign(p_value=[np.nan, 0.3, 0.2, 0.05, 0.001]), "row one, ACS-Learned, p_value: 0.05, the"),
        (lambda t: t.assign(miou=t["miou"].astype(str)), "miou: numbers in one of both, words in the other"),
    ],
)
def test_what_changes_a_table_is_told(table, change, told):
    found = compare.tables(table, change(table))
    assert found and found[0].startswith(told), found


def test_a_row_is_known_by_its_words_and_by_the_numbers_that_name_it():
    sweep = pd.DataFrame(
        {"method": ["a", "a", "b"], "n_samples": [1, 2, 1], "n_queries": 1000, "acc50": [0.1, 0.2, 0.3]}
    )
    assert compare.tables(sweep, sweep) == []
    assert compare.tables(sweep, sweep.sort_values("n_samples")) == []
    (told,) = compare.tables(sweep, sweep.assign(acc50=[0.1, 0.23, 0.3]))
    assert told.startswith("row a, 2, acc50: 0.23")
    assert compare.tables(sweep, sweep.assign(n_samples=[1, 3, 1]))[0] == "row a, 2 is missing"
    bins = pd.DataFrame({"from": [0.3, 0.6], "n": [20, 40], "iou": [0.2, 0.5]})  # as a reference's six digits are
    assert compare.tables(bins, bins.assign(**{"from": [0.1 * 3, 0.1 * 6]})) == []


def test_a_rate_over_part_of_the_queries_is_one_of_few():
    curve = pd.DataFrame({"coverage": [0.05, 1.0], "risk": [0.5, 0.5], "n_queries": 48})
    assert compare.tables(curve, curve.assign(risk=[0.9, 0.5])) == []
    (told,) = compare.tables(curve, curve.assign(risk=[0.5, 0.9]))
    assert told.startswith("row 1.0, risk: 0.9")


def test_where_nothing_was_lost_odds_are_infinite():
    odds = pd.DataFrame({"method": ["a", "b"], "odds_ratio": [4.0, 0.2], "gained": [4, 1], "lost": [1, 5]})
    assert compare.tables(odds, odds.assign(odds_ratio=[np.inf, 0.2], lost=[0, 5])) == []
    assert len(compare.tables(odds, odds.assign(odds_ratio=[4.0, 4.0]))) == 1
    assert len(compare.tables(odds, odds.assign(gained=[4, 4]))) == 1
    assert compare.tables(odds, odds.assign(odds_ratio=[4.0, np.nan])) == []
    assert len(compare.tables(odds, odds.assign(odds_ratio=np.nan))) == 2


def test_times_are_a_machines_own_but_their_rows_are_not():
    cost = pd.DataFrame({"stage": list("abcdefghij"), "seconds_per_query": 0.1})
    assert compare.tables(cost, cost.assign(seconds_per_query=9.0)) == []
    assert compare.tables(cost, cost.assign(stage=list("abcdefghik"))) != []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("- a on b: above greedy (+12.5 [+4.4, +20.4]), r 0.47, 97 pairs", None),
        ("- a on b: above greedy (+14.6 [+4.4, +20.5]), r 0.48, 97 pairs", None),
        ("- a on b: above greedy (+22.5 [+4.4, +20.4]), r 0.47, 97 pairs", "+22.5, the reference says +12.5: moved"),
        ("- a on b: above greedy (+12.5 [+4.4, +20.4]), r 0.67, 97 pairs", "0.67, the reference says 0.47: moved"),
        ("- a on b: above greedy (+12.5 [+4.4, +20.4]), r 0.47, 197 pairs", "197, the reference says 97: moved"),
        ("- a on b: below greedy (+12.5 [+4.4, +20.4]), r 0.47, 97 pairs", "'- a on b: below greedy"),
    ],
)  # fmt: skip
def test_words_are_compared_to_the_letter_and_numbers_as_numbers(found, told):
    differ = compare.texts("- a on b: above greedy (+12.5 [+4.4, +20.4]), r 0.47, 97 pairs", found)
    assert [text.startswith(told) for text in differ] == ([True] if told else [])


def test_a_number_in_a_name_is_a_word():
    assert compare.texts("qwen2.5-vl: x1, 0.10", "qwen3.5-vl: x1, 0.10") != []
    assert compare.texts("T 0.7, layer 3, p = 0.04", "T 0.7, layer 3, p = 0.60") == []
    assert len(compare.texts("T 0.7, layer 3, p = 0.04", "T 4.7, layer 4, p = 0.94")) == 3


@pytest.mark.parametrize(("lower", "upper"), [("lo", "hi"), ("acc50_lo", "acc50_hi"), ("r_lowest", "r_highest")])
def test_ends_in_each_others_place_are_found_however_close(lower, upper):
    reference = pd.DataFrame({"lvlm": ["a", "b"], lower: [0.5, 0.6], upper: [0.501, 0.6], "low": [1.0, 1.0]})
    swapped = reference.rename(columns={lower: upper, upper: lower})[list(reference)]
    assert compare.tables(reference, reference) == []
    assert compare.tables(reference, swapped) == [f"row a: {lower} is above {upper}"]


def test_folders_are_compared_table_by_table(table, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "main.csv", index=False)
    assert compare.folders(tmp_path / "a", tmp_path / "b") == []
    table.assign(miou=0.1).to_csv(tmp_path / "b" / "main.csv", index=False)
    table.to_csv(tmp_path / "a" / "other.csv", index=False)
    first, *rest = compare.folders(tmp_path / "a", tmp_path / "b")
    assert first == "other.csv is missing"
    assert len(rest) == 5 and rest[0].startswith("main.csv: row one, greedy, miou: 0.1, the reference has 0.41")


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_in_every_reference_table_a_swapped_column_and_a_missing_row_are_found(path):
    table = pd.read_csv(path)
    assert compare.tables(table, table.sample(frac=1, random_state=0)[list(table)]) == []
    assert compare.tables(table, table.drop(index=len(table) // 2)) != []
    floats = [name for name in table if table[name].dtype.kind == "f" and not compare.MACHINES_OWN.search(name)]
    for one, other in zip(floats, floats[1:]):
        if (table[one] - table[other]).abs().max() > 0.01:
            swapped = table.assign(**{one: table[other], other: table[one]})
            assert compare.tables(table, swapped) != [], (one, other)


# ------------------------------------------------------------------------------------------- another weight is found


@pytest.fixture(scope="module")
def asked():
    """The embedded InternVL, and what it answers about the samples: tables of answers and of statistics by layer."""
    lvlm = load_lvlm("internvl-embedded")
    known = api.samples()
    with Image.open(known["image"].iloc[0]) as image:
        width, height = image.size
    queries = known.assign(width=width, height=height, query_id=[f"sample/{i}" for i in known.index])

    def answer():
        how = Sampling(temperature=0.8, top_p=0.6, max_new_tokens=16)
        found = [candidates for candidates, _ in answer_batch(lvlm, how, queries)]
        entropy = np.concatenate([candidates.statistics[candidates.parsed] for candidates in found])[..., 0]
        layers = pd.DataFrame({"entropy": entropy.mean((0, 1, 3)), "n": len(entropy)}).rename_axis("layer")
        boxes = pd.DataFrame([c.boxes[0] for c in found], columns=COORDINATES).assign(category=queries["category"])
        return layers.reset_index(), boxes

    return lvlm, answer


def test_the_same_weights_are_the_same(asked):
    _, answer = asked
    assert [compare.tables(*pair) for pair in zip(answer(), answer())] == [[], []]


@pytest.mark.parametrize("name", ["0.self_attn.q_norm", "2.mlp.down_proj", "5.self_attn.k_norm"])
def test_a_changed_weight_is_found(asked, name):
    lvlm, answer = asked
    reference = answer()
    weight = lvlm.model.get_submodule(f"model.language_model.layers.{name}").weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.1)
        try:
            found = answer()
        finally:
            weight.copy_(kept)
    told = [text for pair in zip(reference, found) for text in compare.tables(*pair)]
    assert any("moved by" in text for text in told)


def test_every_reported_mean_of_statistics_says_of_how_many_answers_it_is():
    class Answered:
        def records(self):
            return pd.DataFrame({"failure": ["", "no box", ""]})

        def statistics(self):
            return np.ones((3, 4, 2, 5, 4))

    table = results.statistics_by_layer(Answered())
    assert table["n"].tolist() == [2, 2] and (table["entropy"] == 1).all()


# --------------------------------------------------------------------------------------------- the outputs of nbval


def html(frame):
    return f"<div><style scoped>.a {{ width: 1px; }}</style>{frame.to_html()}<p>5 rows</p></div>"


def test_a_table_in_html_is_compared_as_a_table(table):
    assert Output(html(table)) == html(table.assign(acc50=table["acc50"] + 0.01))
    assert Output(html(table)) == html(table.sample(frac=1, random_state=0)), "row numbers are no words"
    assert Output(html(table)) != html(table.assign(acc50=table["acc50"] + 0.1))
    assert differences(html(table), html(table.drop(index=1)))[0].startswith("row one, sequence log-prob is missing")
    assert Output(html(table)) != html(table).replace("5 rows", "4 rows")
    assert Output(html(table)) != "no table"
    assert Output(html(table) + "<p>0.59</p><p>11 rows</p>") != html(table) + "<p>0.59</p><p>99 rows</p>"


def executed(folder, source, says):
    """A notebook of one cell whose stored output is what it prints by `says`."""
    output = nbformat.v4.new_output("stream", name="stdout", text=says + "\n")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3"}})
    notebook.cells = [nbformat.v4.new_code_cell(source, outputs=[output], execution_count=1)]
    nbformat.write(notebook, folder / "one.ipynb")
    return folder / "one.ipynb"


@pytest.mark.parametrize(
    ("says", "told"),
    [("r is 0.471 of 48", None), ("r is 0.671 of 48", "0.471, the reference says 0.671: moved by 0.2, 0.13 is")],
)
def test_nbval_with_the_plugin_says_which_number_moved(tmp_path, says, told):
    notebook = executed(tmp_path, "print('r is 0.473 of 48'.replace('3 of', '1 of'))", says)
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_numbers", "--nbval", "--nbval-current-env"]
    result = subprocess.run([*command, str(notebook)], cwd=paths.ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode == 0) == (told is None), result.stdout + result.stderr
    assert (told or "1 passed") in result.stdout


@pytest.fixture
def two_runs(tmp_path, table):
    """The table folders of a reference and of a run with other numbers: one hit more, one verdict turned."""
    folders = tmp_path / "reference", tmp_path / "run" / "tables"
    judged = pd.DataFrame({"claim": ["A", "B"], "lvlm": "one", "dataset": "x", "condition": "habit", "sign": [1, 0]})
    fits = pd.DataFrame({"lvlm": "one", "split": ["train", "test"], "pearson": [0.9, 0.7], "n": 500})
    for folder in folders:
        folder.mkdir(parents=True)
        table.to_csv(folder / "main_results.csv", index=False)
        judged.to_csv(folder / "evidence.csv", index=False)
        fits.to_csv(folder / "regressor.csv", index=False)
    return folders, table, judged, fits


def test_a_run_is_summed_up_against_its_reference(two_runs):
    folders, table, judged, fits = two_runs
    same = "every table as the reference's, up to rounding; all 2 verdicts on the paper's claims the same"
    assert compare.summary(*folders)[0] == f"{same}; Acc@0.5 the same; r the same"
    table.assign(acc50=table["acc50"] + [0, 0, 0, 0.02, 0]).to_csv(folders[1] / "main_results.csv", index=False)
    fits.assign(pearson=[0.9, 0.704]).to_csv(folders[1] / "regressor.csv", index=False)
    steps = "Acc@0.5 within 2 points (the largest step: one, ACS-Learned); r within 0.004 (the largest step: one, test)"
    assert compare.summary(*folders)[0] == f"{same}; {steps}"
    judged.assign(sign=[1, -1]).to_csv(folders[1] / "evidence.csv", index=False)
    said, (difference,) = compare.summary(*folders)
    assert difference.startswith("evidence.csv: ")
    assert said.startswith("differences beyond rounding: 1; 1 of 2 verdicts on the paper's claims differ, the first: ")
    assert "one, x, habit, B" in said
    judged.head(1).to_csv(folders[1] / "evidence.csv", index=False)
    assert "1 of 2 verdicts on the paper's claims differ, the first: one, x, habit, B" in compare.summary(*folders)[0]
    (folders[1] / "evidence.csv").unlink()
    assert "verdicts" not in compare.summary(*folders)[0], "a run without the claims"


def test_acs_compare(two_runs, tmp_path, monkeypatch):
    folders, table, *_ = two_runs

    def told(*arguments):
        return CliRunner().invoke(cli.app, ["compare", *map(str, arguments)])

    result = told(tmp_path / "run", folders[0])
    assert (result.exit_code, len(result.output.splitlines())) == (0, 1), result.output
    table.assign(acc50=table["acc50"] + 0.2).to_csv(folders[1] / "main_results.csv", index=False)
    result = told(tmp_path / "run", folders[0])
    assert result.exit_code == 1 and "main_results.csv: row one, greedy, acc50" in result.output
    result = told("nowhere", folders[0])
    assert result.exit_code == 1 and "give a profile that ran, or its report" in result.output
    monkeypatch.setattr(cli.paths, "reference", {"run": folders[0]}.get)
    result = told(tmp_path / "run")
    assert result.exit_code == 1 and "greedy, acc50" in result.output, "a report's folder, and its profile's reference"


def test_the_first_differences_are_named():
    assert compare.first(["a", "b"]) == ["a", "b"]
    assert compare.first([*"abcdefg"]) == [*"abcde", "... and 2 more: acs compare lists all"]


def test_pictures_are_compared_by_nobody():
    drawn = {"output_type": "display_data", "data": {"image/svg+xml": "<svg/>", "text/plain": "<SVG>"}}
    assert _once(drawn)["data"] == {"text/plain": "<SVG>"}
    shown = {"output_type": "display_data", "data": {"image/png": "aa", "text/html": "<p>", "text/plain": "a"}}
    assert _once(shown)["data"] == {"text/html": "<p>"} and "data" not in _once({"output_type": "stream"})
