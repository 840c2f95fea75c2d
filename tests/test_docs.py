"""What the documentation promises is there: links, pictures, the first example, the citation."""

import itertools
import json
import re
import runpy
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

import acs_lib
from acs_lib import ground, load_lvlm, paths
from acs_lib.core import boxes as bx
from acs_lib.evaluation.accuracy import ORACLE, RANDOM, hits
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.grounding.api import samples
from acs_lib.study import examples
from tools.results import MARKS, claims, tables, told

PAGES = sorted(path for folder in (".", "docs", "data", "data/embedded") for path in (paths.ROOT / folder).glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
CARD = (paths.EMBEDDED / "README.md").read_text()
README = (paths.ROOT / "README.md").read_text()
OWN_IMAGE = (paths.ROOT / "docs" / "your_own_image.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(paths.ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_pictures_have_alt_texts():
    pages = "".join(page.read_text() for page in PAGES)
    assert len(re.findall(r"!\[[^\]]{10,}\]\(", pages)) == pages.count("![") > 3


def test_the_schematic_is_small_told_in_words_and_stands_alone():
    path = paths.ROOT / "docs" / "method.svg"
    drawn, name = ElementTree.parse(path).getroot(), "{http://www.w3.org/2000/svg}"
    assert path.stat().st_size < 12_000
    assert all(len(drawn.find(name + part).text) > 40 for part in ("title", "desc"))
    written = " ".join("".join(text.itertext()) for text in drawn.iter(name + "text"))
    assert all(
        word in written for word in ("LVLM", "ACS-Learned", "ACS-Free", "argmax", "argmin", "gradient attribution")
    )
    links = [value for tag in drawn.iter() for key, value in tag.items() if key.endswith("href")]
    assert links and all(link.startswith("#") for link in links)


def test_online_links_open_a_notebook_that_is_here():
    opened = re.findall(r"\((https://(?:mybinder|colab)\.[^)]*?)(notebooks/\w+\.ipynb)\)", OWN_IMAGE)
    assert len(opened) == 2 and all((paths.ROOT / notebook).is_file() for _, notebook in opened)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    monkeypatch.chdir(paths.ROOT)
    result = runpy.run_path(str(tmp_path / "example.py"))["result"]
    assert result.category == "scissors" and len(result.table) == 11


def test_the_example_is_the_success_of_median_change_and_the_failure_is_told():
    lvlm, known = load_lvlm(), samples()
    known = known[known["size"] == "small"].reset_index(drop=True)
    found = [ground(lvlm, row.image, row.category, "acs-free") for row in known.itertuples()]
    truth = known[["x1", "y1", "x2", "y2"]].to_numpy()
    greedy, chosen = (
        np.array([bx.iou(of.candidates.boxes[row], box) for of, row, box in zip(found, rows, truth)])
        for rows in ([0] * len(found), [of.chosen for of in found])
    )
    change, hit = pd.Series(chosen - greedy), hits(chosen) - hits(greedy)
    (gained,), (lost,) = examples.middle(change[hit > 0], 1), examples.middle(change[hit < 0], 1)
    assert f'"{Path(known["image"][gained]).relative_to(paths.ROOT)}", "{known["category"][gained]}")' in OWN_IMAGE
    wins, losses = (hit > 0).sum(), (hit < 0).sum()
    counts = f"of the {len(known)} small objects in the sample pictures ACS-Free gains {wins} and loses {losses} "
    ious = f"Its box has IoU {chosen[gained]:.2f} with the true one, the greedy box {greedy[gained]:.2f}."
    failure = (
        f"the {known['category'][lost]} of {Path(known['image'][lost]).name}: {chosen[lost]:.2f}, the greedy box "
        f"{greedy[lost]:.2f}."
    )
    assert [text for text in (counts, ious, failure) if text not in OWN_IMAGE] == []
    cells = json.loads((paths.NOTEBOOKS / "07_your_own_image.ipynb").read_text())["cells"]
    source, shown = (
        "".join("".join(cell["source"]) for cell in cells),
        json.dumps([cell.get("outputs") for cell in cells]),
    )
    assert f"The failure that the same rule gives is the *{known['category'][lost]}* in " in source
    assert f"*{known['category'][lost]}* in {Path(known['image'][lost]).name}." in source
    assert f'category = "{known["category"][gained]}"' in source and f'{Path(known["image"][gained]).name}"' in source
    assert json.dumps(f"**Takeaway.** {found[gained].summary}.")[1:-1] in shown


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert citation["version"] == acs_lib.__version__
    assert "arXiv:2606.01612" in [found["value"] for found in citation["references"][0]["identifiers"]]


def test_the_architecture_names_every_module_and_folder():
    architecture = (paths.ROOT / "docs" / "architecture.md").read_text()
    modules = [path.relative_to(paths.LIBRARY) for path in paths.LIBRARY.rglob("*.py") if path.name[0] != "_"]
    assert [str(m) for m in modules if f"`{m}`" not in architecture and f"`{m.name}`" not in architecture] == []
    named = re.findall(r"`([a-z_0-9/]+\.py)`", architecture)
    assert [name for name in named if not list(paths.LIBRARY.rglob(name))] == [], "no module that is gone"
    rooms = [path.name for path in paths.LIBRARY.iterdir() if path.is_dir() and path.name[0] != "_"]
    assert [name for name in rooms if f"`{name}/" not in architecture] == []
    listed = subprocess.run(["git", "ls-files"], cwd=paths.ROOT, capture_output=True, text=True).stdout.splitlines()
    folders = {name.split("/")[0] for name in listed if "/" in name and name[0] != "."}
    assert [name for name in sorted(folders) if f"`{name}/`" not in architecture] == []


# ------------------------------------------------------------------------------- what is told of the committed run


def report(folder: Path, learned: float = 0.04) -> Path:
    """The tables that tools/results.py reads, of one LVLM with the habit and without it on one dataset."""
    of = pd.DataFrame({"lvlm": ["tiny", "tiny-plain"], "dataset": "scenes", "condition": ["habit", "plain"]})
    tables = {
        "main_results": of.assign(method="greedy", n_queries=50, acc50=0.5, acc50_lo=0.4, acc50_hi=0.6),
        "comparisons": of.assign(
            method="ACS-Learned", reference="greedy", size="small", delta=[learned, -0.01], p_holm=[0.01, 0.3]
        ),
        "regressor": of.assign(split="test", pearson=[0.8, 0.6]),
        "evidence": pd.concat([
            of.assign(claim="A", published="+2 (one column)", measured="+4", sign=[1, 0]),
            of.assign(claim="B", published="r > 0.67", measured="r = 0.8", sign=[-1, 1]),
            of.assign(claim="C", published="first", lvlm="", dataset="", measured="second", sign=[0, -1]),
        ]),
    }  # fmt: skip
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for stem, table in tables.items():
        table.to_csv(folder / "tables" / f"{stem}.csv", index=False)
    return folder


def test_readme_and_results_say_what_the_committed_tables_say():
    assert [path.name for path, text in told(paths.ROOT, tables()).items() if path.read_text() != text] == []


def test_another_number_in_a_table_is_found_in_both_pages(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for path, text in told(tmp_path, tables(report(tmp_path))).items():
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert "clearly above greedy decoding in 1 of 1 columns (+4.0 to +4.0 points, r 0.80 to 0.80)" in text
        path.write_text(text)
    assert [path.read_text() == text for path, text in told(tmp_path, tables(tmp_path)).items()] == [True] * 2
    found = told(tmp_path, tables(report(tmp_path, learned=0.05)))
    assert [path.read_text() == text for path, text in found.items()] == [False] * 2


def test_a_claim_has_one_mark_an_lvlm_and_condition(tmp_path):
    rows = claims(tables(report(tmp_path))["evidence"])
    assert list(rows) == ["claim", "paper", "tiny, with the habit", "tiny, without the habit"]
    assert rows.to_numpy().tolist() == [
        ["A", "+2", "✓", "○"], ["B", "r > 0.67", "✗", "✓"], ["C", "first", "○", "✗"],
    ]  # fmt: skip


def test_the_page_on_processors_says_what_was_measured():
    page = (paths.ROOT / "docs" / "processors.md").read_text()
    found = pd.read_csv(paths.REPORTS / "benchmarks" / "processors.csv").query("edition == 2")
    assert (found[["answers_differ", "boxes_differ", "acc50_moves_by", "heads_differ"]] == 0).all(axis=None)
    assert {f"{total:,}" for total in found["answers"]} | {f"{total:,}" for total in found["choices"]} <= set(
        re.findall(r"[\d,]+\d", page)
    )
    told = re.findall(r"^\| (float\d\d)\b.*?\| (SSE|MKL).*?\| (.*?) \|$", page, re.MULTILINE)
    settings = {"default-1": "SSE", "compatible-1": "MKL"}
    assert told == [
        (row.dtype, settings[row.setting], f"{row.candidates_differ} | {row.boxes_differ} | "
         f"{row.predicted_iou_moves_by:.6f} | {row.auroc_moves_by:.5f}")
        for row in found.itertuples()
    ]  # fmt: skip


GOALS = {
    "answers with a box, or none": ("answered", "at least 98", (98, 100)),
    "small objects hit": ("acc50_small", "30 to 75", (30, 75)),
    "large objects hit": ("acc50_large", "at least 85", (85, 100)),
    "small objects answered by none": ("none_small", "at most 15", (0, 15)),
    "large objects answered by none": ("none_large", "at most 5", (0, 5)),
    "absent objects answered by none": ("none_absent", "plain: at least 90", (90, 100)),
    "lists": ("ap50_lists", "at least 50", (50, 100)),
    "right about a quoted box": ("right", "-", (0, 100)),
}


def cells(page: str, after: str) -> dict[str, list[str]]:
    """The rows of a page's first table after some words: the first cell -> the others."""
    lines = itertools.takewhile(str.strip, page[page.index(after) :].splitlines())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: others for name, *others in rows if not name.startswith("---")}


def bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def test_the_model_card_says_what_was_measured_and_marks_what_missed_its_goal():
    found = pd.read_csv(paths.REPORTS / "benchmarks" / "bars.csv").set_index("lvlm")
    shown = cells(CARD, "| | goal | `internvl` |")
    lvlms = [name.strip("`") for name in shown.pop("")[1:]]
    expected = {what: [goal] for what, (_, goal, _) in GOALS.items()}
    for what, (column, goal, (lowest, highest)) in GOALS.items():
        for lvlm, value in (100 * found.loc[lvlms, column]).items():
            meant = lvlm.endswith("-plain") or not goal.startswith("plain")
            expected[what].append(bold(f"{value:.1f}", meant and not lowest <= value <= highest))
    assert shown == expected


def test_the_model_card_says_what_selection_reached():
    tables, keys = paths.reference("embedded") / "tables", ["lvlm", "dataset"]
    found = pd.read_csv(tables / "regressor.csv").query("condition == 'habit' and split == 'test'").set_index(keys)
    small = pd.read_csv(tables / "greedy_to_oracle.csv").query("size == 'small'")
    rate = small.pivot(index=keys, columns="method", values="acc50")
    room = 100 * (rate[ORACLE] - rate["greedy"])[found.index]
    compared = pd.read_csv(tables / "comparisons.csv").query("condition == 'habit' and size == 'small'")

    def differences(method: str, reference: str) -> list[str]:
        rows = compared[(compared["method"] == method) & (compared["reference"] == reference)].set_index(keys)
        missed = rows["delta_lo"] <= 0 if (method, reference) != ("ACS-Free", "greedy") else rows["delta_hi"] < 0
        texts = [estimate(row, "delta", "+.1f", 100) for row in rows.loc[found.index].itertuples()]
        return [bold(text, each) for text, each in zip(texts, missed[found.index])]

    shown = cells(CARD, "| | goal | `internvl`, scenes |")
    del shown[""]
    assert shown == {
        "oracle above greedy": ["at least 10", *(bold(f"{value:.1f}", value < 10) for value in room)],
        "Pearson r": ["above 0.67", *(bold(f"{r:.3f}", r <= 0.67) for r in found["pearson"])],
        "ACS-Learned above greedy": ["surely", *differences("ACS-Learned", "greedy")],
        "ACS-Free above random": ["surely", *differences("ACS-Free", RANDOM)],
        "ACS-Free against greedy": ["not surely below", *differences("ACS-Free", "greedy")],
    }


def words(text: str) -> int:
    """How many words a text has; rules and marks of a table are none."""
    return sum(any(map(str.isalnum, word)) for word in text.split())


def test_the_readme_is_short():
    assert words("| a | ✓ |\n| :--- | two words") == 3
    assert words(told(paths.ROOT, tables())[paths.ROOT / "README.md"]) < 900
