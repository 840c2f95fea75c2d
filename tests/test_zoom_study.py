"""A closer look as a table, and all ways in one: by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_accuracy import candidates

from acs_lib import paths
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import Selector
from acs_lib.study import advice, instances, intervention, zoom
from acs_lib.study.experiment import code_of

NAN = [np.nan] * 4
TRUTH = np.array([0, 0, 10, 10.0])
WIDE, GOOD = [0, 0, 40, 40], [0, 0, 10, 9]
HEADS = HeadSet("one", "x", ((0, 0),))
BY_SIZE = {"small": Selector("small", "control", lambda c: -c.boxes[:, 2], "test")}
SECONDS = {"10": 1.0, "5 + 5": 0.6, "1 + 1": 0.1}
FIVES, ONES = ("5 + 5", "greedy", 2), ("1 + 1", "greedy", 2)
PROMPTS = {None: 100, FIVES: 110, ONES: 120}


def with_maps(boxes):
    c = candidates("a", boxes)
    maps = np.zeros((len(c), 4, 3, 2, 2, 2), np.float32)
    maps[..., 1, 0] = 1
    return replace(c, maps=maps)


def test_windows_lie_around_what_the_first_answers_choose():
    first = with_maps([[80, 80, 90, 90], *[[20, 20, 30, 30]] * 5, *[[60, 0, 70, 10]] * 5])
    found = zoom.windows(first, HEADS, (2, 4))
    assert len(found) == 2 * (4 + 2)
    assert found["5 + 5", "greedy", 2] == found["1 + 1", "greedy", 2] == (50, 50, 100, 100)
    assert found["5 + 5", "medoid", 4] == (12, 12, 37, 37), "the first five agree"
    assert found["5 + 5", "attention peak", 2] == (0, 50, 50, 100)
    without = with_maps([NAN, *[[20, 20, 30, 30]] * 10])
    assert {key[:2] for key in zoom.windows(without, HEADS, (2,))} == {
        ("5 + 5", "medoid"), ("5 + 5", "ACS-Free"), ("5 + 5", "attention peak"),
    }  # fmt: skip


@pytest.fixture
def rows():
    """The whole image's answers are all wide but the last two samples; a window's are good."""
    first = with_maps([WIDE] * 9 + [GOOD] * 2)
    closer = with_maps([GOOD, [0, 0, 9, 10], WIDE, WIDE, WIDE, WIDE])
    second = {FIVES: closer, ONES: with_maps([NAN])}
    found = zoom.outcomes(first, second, TRUTH, BY_SIZE, PROMPTS, SECONDS)
    return pd.DataFrame([("a", *row) for row in found], columns=zoom.ROW).set_index(["budget", "method"])


def test_outcomes_by_hand(rows):
    assert rows.loc[("10", "small"), "iou"] == 0.9 and rows.loc[("10", "greedy"), "iou"] == 1 / 16
    assert rows.loc[("5 + 5", "small"), "iou"] == pytest.approx(0.9), "of the window's five samples the small one"
    ten, fives, ones = (rows.loc[(name, "small")] for name in ("10", "5 + 5", "1 + 1"))
    assert ten["answers"] == fives["answers"] == 11 and ones["answers"] == 2
    assert ten["tokens"] == fives["tokens"] == 44 and ones["tokens"] == 8
    assert [one["prompt_tokens"] for one in (ten, fives, ones)] == [100, 210, 220], "both looks' prompts are read"
    assert [one["seconds"] for one in (ten, fives, ones)] == pytest.approx([1, 1.2, 0.2]), "two looks"
    assert rows.loc[("1 + 1", "second look"), "iou"] == 1 / 16, "without a box there, the first look's"
    assert rows.loc[("5 + 5", "oracle"), "iou"] == pytest.approx(0.9)


def test_a_window_whose_greedy_box_is_better_is_found_by_one_and_one():
    first, second = with_maps([WIDE] * 11), {ONES: with_maps([GOOD])}
    found = [row for row in zoom.outcomes(first, second, TRUTH, BY_SIZE, PROMPTS, SECONDS) if row[0] == "1 + 1"]
    assert [(row[3], row[4]) for row in found] == [("small", 0.9), ("second look", 0.9), ("oracle", 0.9)]


def test_zoom_rows_by_hand(rows):
    """Of a second question nothing had a box, so that there is no window."""
    other = rows.reset_index()
    other = other[other["budget"] == "10"].assign(query_id="b", iou=0.0)
    looked = pd.concat([rows.reset_index(), other])
    queries = pd.DataFrame({"query_id": ["a", "b"], "image_id": [1, 2]})
    table = zoom.zoom_rows(looked, queries, 100).set_index(["budget", "method"])
    assert (table["n"] == 2).all()
    assert table.loc[("5 + 5", "small"), ["acc50", "delta_vs_greedy", "delta_vs_ten"]].tolist() == [0.5, 0.5, 0]
    assert table.loc[("1 + 1", "small"), ["acc50", "delta_vs_ten"]].tolist() == [0, -0.5]
    assert table.loc[("1 + 1", "small"), "answers"] == 1.5, "the greedy answer alone where there is no window"
    assert table.loc[("1 + 1", "small"), "prompt_tokens"] == (220 + 100) / 2
    assert table.loc[("5 + 5", "small"), ["acc50_lo", "acc50_hi"]].tolist() == [0, 1]


@pytest.mark.parametrize("module", [zoom, instances, intervention])
def test_what_is_kept_follows_from_the_selectors_too(module):
    """A changed selector, or how maps are made, leaves no kept scores that are old."""
    code = code_of(module.__name__)
    for name in ("study/experiment.py", "method/selection.py", "method/maps.py", "method/sampling.py"):
        assert (paths.LIBRARY / name).read_text(encoding="utf-8") in code, name
    assert (paths.LIBRARY / "report/figures_notebook_10.py").read_text(encoding="utf-8") not in code


# --------------------------------------------------------------------------------------------------------- advice

WHERE = {"lvlm": "one", "dataset": "d", "condition": "plain"}
CHOSEN = pd.DataFrame(
    [("one", "d", "plain", "greedy", 4, 0.5, 0.4, 0.6, 0.0, 0.0, 0.0, 1, 1, advice.NOTHING, False, False),
     ("one", "d", "plain", "ACS-Free", 4, 0.6, 0.5, 0.7, 0.1, 0.0, 0.2, 11, 1, advice.BOXES, False, True),
     ("one", "d", "plain", "P(True)", 4, 0.57, 0.5, 0.6, 0.07, 0.0, 0.1, 22, 2, advice.NOTHING, False, False),
     ("one", "d", "plain", "self-certainty", 4, 0.55, 0.5, 0.6, 0.05, 0, 0.1, 11, 1, advice.NOTHING, False, False)],
    columns=[name for name in advice.COLUMNS if name != "seconds"],
)  # fmt: skip


def test_what_should_i_use_by_hand():
    rates = {"acc50": 0.58, "acc50_lo": 0.5, "acc50_hi": 0.6, "delta_vs_greedy": 0.08}
    rates |= {"delta_vs_greedy_lo": 0, "delta_vs_greedy_hi": 0.1}
    free = pd.DataFrame([
        {**WHERE, "method": "label-free", "images": images, "n": 4, **rates}
        for images in (10, 300)
    ])  # fmt: skip
    free.loc[0, "acc50"] = 0.1
    effort = pd.DataFrame([
        {**WHERE, "method": "ACS-Free", "rule": rule, "n": 4, "answers": answers, "acc50": 0.6, "looks": looks,
         "acc50_lo": 0.5, "acc50_hi": 0.7, "delta_vs_greedy": 0.1, "delta_vs_greedy_lo": 0.0,
         "delta_vs_greedy_hi": 0.2, "seconds": answers / 10}
        for rule, answers, looks in (("auto", 3.5, 1.8), ("always", 11.0, 1.0), ("greedy", 1.0, 1.0))
    ])  # fmt: skip
    looked = pd.DataFrame([
        {**WHERE, "budget": "1 + 1", "window": "greedy", "times": 2.0, "method": method,
         "n": 2, "acc50": 0.7, "acc50_lo": 0.5, "acc50_hi": 0.9, "delta_vs_greedy": 0.2, "delta_vs_greedy_lo": 0.1,
         "delta_vs_greedy_hi": 0.3, "answers": 2.0, "seconds": 0.25} for method in ("second look", "oracle", "ACS-Free")
    ])  # fmt: skip
    table = advice.advice_table(
        *(advice.timed(ways, effort) for ways in (CHOSEN, advice.label_free_advice(free, "label-free", 11))),
        advice.effort_advice(effort, CHOSEN, "auto"),
        advice.zoom_advice(looked, CHOSEN, "1 + 1", "greedy", 2),
    )
    assert list(table) == advice.COLUMNS
    assert table["method"].tolist() == [
        "second look, 1 + 1 answers, 2 times closer around the greedy box",
        "ACS-Free, 1 + 1 answers, 2 times closer around the greedy box",
        "ACS-Free, as many samples as needed", "ACS-Free", "ACS-Free, heads found without labels", "P(True)",
        "self-certainty", "greedy",
    ]  # fmt: skip
    assert table["looks"].tolist() == [2, 2, 1.8, 1, 1, 2, 1, 1] and table.loc[2, "answers"] == 3.5
    seconds = table["seconds"].tolist()
    assert seconds[:5] == pytest.approx([0.25, 0.25, 0.35, 1.1, 1.1]) and seconds[6:] == pytest.approx([1.1, 0.1])
    assert np.isnan(seconds[5]), "nobody timed the questions of P(True)"
    assert table.loc[2, "delta_vs_greedy"] == pytest.approx(0.1) and table.loc[2, "labels"] == advice.BOXES
    assert table.loc[0, "labels"] == advice.NOTHING and not table.loc[0, "attention"] and table.loc[1, "attention"]
    assert table.loc[4, ["acc50", "labels"]].tolist() == [0.58, advice.NOTHING] and table.loc[4, "attention"]
