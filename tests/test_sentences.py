"""Sentences follow from the numbers: each case of a finding has its own."""

import json

import numpy as np
import pandas as pd
import pytest

from acs_lib.method.heads import HeadSet
from acs_lib.report import sentences
from acs_lib.study import results

POOLED = np.array([[0.5, 0.6], [0.9, 0.4], [0.7, 0.8]])  # AUROC [layers, heads]
WITHIN = np.array([[0.8, 0.5], [0.5, 0.6], [0.5, 0.7]])


@pytest.fixture
def table():
    layer, head = np.indices(POOLED.shape).reshape(2, -1)
    columns = {"layer": layer, "head": head, "auroc": POOLED.ravel(), "auroc_within_query": WITHIN.ravel()}
    return pd.concat([pd.DataFrame(columns).assign(lvlm=name) for name in ("tiny", "other")])


@pytest.mark.parametrize("heads", [((1, 0), (2, 1)), ((0, 0), (2, 1)), ((2, 1), (0, 0))])
def test_a_filter_by_layer_that_changed_nothing_is_said_to_have_done_nothing(table, heads):
    told = sentences.say_layer_filter([HeadSet("tiny", "scenes", heads)], table).data
    assert "tiny: nothing: D_c is what the heads of all 3 layers give, the best 2 of them" in told


def test_a_filter_by_layer_that_changed_d_c_is_told_with_what_it_left_out(table):
    head_set = HeadSet("tiny", "scenes", ((2, 1), (2, 0)))
    assert results.unfiltered(head_set, table) == [((1, 0), (2, 1)), ((0, 0), (2, 1))]
    told = sentences.say_layer_filter([head_set, HeadSet("other", "scenes", ((1, 0),))], table).data
    changed = "D_c from all 3 layers would be (1, 0), (2, 1) (best over all answers) or (0, 0), (2, 1) (inside queries)"
    assert f"tiny: {changed}" in told
    assert "other: nothing: D_c is what the heads of all 3 layers give, the best 1 of them" in told


def judged() -> pd.DataFrame:
    rows = [
        (claim, "Pearson r > 0.67", condition, lvlm, "scenes", measured, sign)
        for claim in sentences.HEADLINE
        for lvlm, condition, measured, sign in (
            ("tiny-embedded", "habit", "+6.2 [+3.9, +8.6] (mean of 3 seeds)", 1),
            ("tiny-embedded-plain", "plain", "-1.0 [-2.0, -0.1] (medoid)", -1),
        )
    ]
    return pd.DataFrame(rows, columns=["claim", "published", "condition", "lvlm", "dataset", "measured", "sign"])


def test_the_headline_has_a_card_a_claim_with_a_verdict_a_condition(tmp_path):
    (tmp_path / "tables").mkdir()
    compared = pd.DataFrame({"condition": [""]})
    said = sentences.headline(judged(), compared, tmp_path).data
    told = json.loads((tmp_path / "tables" / "headline.json").read_text())
    assert [card["title"] for card in told["cards"]] == list(sentences.HEADLINE)
    assert told["cards"][0]["parts"] == [
        {"under": "with the habit", "verdict": "reproduced", "rows": [["tiny, scenes", "+6.2 [+3.9, +8.6]"]]},
        {"under": "without the habit", "verdict": "contradicted", "rows": [["tiny, scenes", "-1.0 [-2.0, -0.1]"]]},
    ]
    assert told["sentences"] == ["Published (Qwen2.5-VL-7B on COCO, small objects): greedy 61.4%, ACS-Free 63.4%, "
                                 "ACS-Learned 65.3%."]  # fmt: skip
    assert "Attention predicts the box's IoU: reproduced with the habit; contradicted without the habit" in said


def test_the_ablations_have_a_headline_of_their_own(tmp_path):
    (tmp_path / "tables").mkdir()
    rows = [
        ("as the profile has it", "-", 0.0, 0.0, 0.0), ("temperature", "0.5", 0.03, 0.01, 0.05),
        ("top-p", "1.0", -0.04, -0.06, -0.02), ("rows", "last", -0.01, -0.03, 0.01),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["factor", "value", "delta", "delta_lo", "delta_hi"])
    table = table.assign(lvlm="tiny", method="ACS-Learned")
    confident = pd.DataFrame({"lvlm": "tiny", "dataset": "scenes", "answers": "all", "method": ["a", "b"],
                              "auroc": [0.6, 0.8], "auroc_lo": 0.5, "auroc_hi": 0.9})  # fmt: skip
    spread = pd.DataFrame({"lvlm": "tiny", "dataset": "scenes", "source": ["sampling", "regressor"],
                           "method": "ACS-Learned", "acc50_mean": [0.5, 0.6], "acc50_sd": [0.012, 0.1]})  # fmt: skip
    sentences.ablation_headline(table, confident, spread, tmp_path)
    told = json.loads((tmp_path / "tables" / "headline.json").read_text())
    assert told["cards"] == [] and told["sentences"] == [
        "tiny, ACS-Learned: 2 of 3 changes are told apart from the profile's own setting; most gained by temperature = "
        "0.5 (+3.0 [+1.0, +5.0]); most lost by top-p = 1.0 (-4.0 [-6.0, -2.0]).",
        "tiny on scenes: b tells right boxes best, AUROC 0.80 [0.50, 0.90].",
        "tiny on scenes: over the seeds of sampling ACS-Learned's Acc@0.5 is 50.0%, SD 1.2 points.",
    ]
