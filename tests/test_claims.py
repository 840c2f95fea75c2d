"""Verdicts and sentences follow from the numbers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from acs_lib.evaluation.accuracy import CHOICE_COLUMNS, accuracy_table
from acs_lib.evaluation.claims import claims_table, evidence, lower_for_good
from acs_lib.method.heads import ATTRIBUTIONS, IOU_GROUPS
from acs_lib.method.selection import ALL_HEADS
from acs_lib.profiles import load_profile
from acs_lib.report import page, sentences
from acs_lib.study import results
from acs_lib.study.experiment import Experiment

HIGH, _, ZERO = IOU_GROUPS
DATASETS = ("a", "b")


def verdicts(free=((0.03, 0.001), (0.03, 0.001)), r=(0.8, 0.75), entropy=((1.0, 2.0), (1.0, 2.0)), rank=1, free_rank=1,
             occlusion=None):  # fmt: skip
    """Verdicts of two columns. free: (difference, p after Holm) of ACS-Free against greedy and against all heads in
    each; r: by column, its interval is 0.05 to either side; entropy: (good boxes, misses) by column; rank: of D_c's
    layer among four; free_rank: ACS-Free's mean rank, beside another method's 2 [1.5, 2.5]."""
    good = ((0.05, 0.001),) * 2
    compared = pd.DataFrame(
        [
            ("x", dataset, size, method, reference, delta, delta - 0.02, delta + 0.02, p)
            for method, reference, size, column in (
                ("ACS-Learned", "greedy", "small", good), ("ACS-Learned", "greedy", "large", good),
                ("ACS-Learned", "best sampling baseline: medoid", "small", good),
                ("ACS-Free", "greedy", "small", free), ("ACS-Free", ALL_HEADS, "small", free),
                ("ACS-Free", "entropy, all heads", "small", ((-0.5, 0.001),) * 2),
            )
            for dataset, (delta, p) in zip(DATASETS, column)
        ],
        columns=["lvlm", "dataset", "size", "method", "reference", "delta", "delta_lo", "delta_hi", "p_holm"],
    )  # fmt: skip
    r = np.array(r)
    regressors = pd.DataFrame(
        {
            "lvlm": "x",
            "dataset": DATASETS,
            "split": "test",
            "pearson": r,
            "pearson_lo": r - 0.05,
            "pearson_hi": r + 0.05,
        }
    )
    curves = pd.DataFrame(
        [
            ("x", dataset, "x1", 0, group, value)
            for dataset, values in zip(DATASETS, entropy)
            for group, value in zip((HIGH, ZERO), values)
        ],
        columns=["lvlm", "dataset", "coordinate", "layer", "group", "mean"],
    )
    sizes = pd.DataFrame(
        [
            ("x", dataset, "greedy", size, acc, acc - 0.1, acc + 0.1)
            for dataset in DATASETS
            for size, acc in (("large", 0.9), ("small", 0.4))
        ],
        columns=["lvlm", "dataset", "method", "size", "acc50", "acc50_lo", "acc50_hi"],
    )
    ranks = pd.DataFrame(
        {"method": ["ACS-Free", "medoid"], "mean_rank": [free_rank, 2], "mean_rank_lo": [free_rank - 0.2, 1.5],
         "mean_rank_hi": [free_rank + 0.2, 2.5]}
    ).sort_values("mean_rank")  # fmt: skip
    layers = pd.DataFrame({"lvlm": "x", "layer": range(4), **dict.fromkeys(ATTRIBUTIONS, [0.4, 0.3, 0.2, 0.1])})
    layers["occlusion"] = layers["occlusion"] if occlusion is None else occlusion
    layers["selected"] = layers["layer"] == rank - 1
    spread = pd.DataFrame([("x", DATASETS[0], "regressor", "ACS-Learned", 3, 0.02, 0.01, 0.03)], columns=[
        "lvlm", "dataset", "source", "method", "seeds", *(f"delta_vs_greedy_{n}" for n in ("mean", "lowest", "highest"))
    ])  # fmt: skip
    found = claims_table(
        evidence(regressors, compared.assign(condition=""), curves, sizes, ranks.assign(condition=""), layers, spread)
    )
    learned = found.set_index("claim").loc["ACS-Learned beats greedy decoding on small objects", "measured"].split("; ")
    assert learned[0].endswith("(mean of 3 seeds +2.0, +1.0 to +3.0)") and "seeds" not in learned[1]
    return found.set_index("claim")["verdict"]


FREE = "ACS-Free beats greedy decoding"


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        ([(0.03, 0.001), (0.03, 0.04)], "reproduced"),
        ([(0.03, 0.001), (0.03, 0.06)], "in part: in 1 of 2 columns"),
        ([(0.03, 0.001), (-0.03, 0.001)], "in part: in 1 of 2 columns"),
        ([(0.03, 0.2), (-0.01, 0.9)], "not shown"),
        ([(0.03, 0.2), (-0.05, 0.001)], "contradicted"),
    ],
)
def test_a_claim_about_gains_is_judged_by_all_columns_after_holm(free, verdict):
    found = verdicts(free)
    assert found[FREE] == verdict
    assert any(found[FREE].startswith(known) for known in page.VERDICTS), "the page has a colour for it"
    assert found[found.index.str.startswith("Few discriminative heads")].tolist() == [verdict], "at equal coordinates"


def test_the_other_claims_are_judged_by_their_own_numbers():
    found = verdicts()
    assert (found == "reproduced").all() and len(found) == 10
    assert verdicts(r=(0.8, 0.7))["Attention predicts the box's IoU"] == "in part: in 1 of 2 columns"
    assert verdicts(r=(0.5, 0.7))["Attention predicts the box's IoU"] == "contradicted"
    entropy = "Good boxes have lower attention entropy, averaged over all heads"
    assert verdicts(entropy=((1.0, 2.0), (2.0, 1.0)))[entropy] == "in part: in 1 of 2 columns"
    assert verdicts(entropy=((2.0, 1.0), (2.0, 1.0)))[entropy] == "contradicted"
    layers = "Gradient attribution finds the layers with the discriminative heads (D_c)"
    assert verdicts(rank=2)[layers] == "reproduced" and verdicts(rank=3)[layers] == "contradicted"
    assert verdicts(rank=3, occlusion=[0, 0, 1, 0])[layers] == "not shown", "first by one attribution alone"
    best = "ACS-Free is the best method without training"
    assert verdicts(free_rank=1.9)[best] == "not shown" and verdicts(free_rank=4)[best] == "contradicted"


def test_an_iou_group_without_answers_is_no_error():
    table = pd.DataFrame(
        {"lvlm": "x", "dataset": ["a", "b", "b"], "coordinate": "x1", "layer": 0, "group": [ZERO, HIGH, ZERO],
         "mean": [2.0, 1.0, 2.0]}
    )  # fmt: skip
    found = lower_for_good(table)
    assert np.isnan(found["x", "a"]) and found["x", "b"] == 1
    assert np.isnan(lower_for_good(table[:1])["x", "a"])


def test_methods_that_hit_the_same_queries_have_one_rank():
    rows = {"greedy": ("control", [0, 0, 0, 1]), "sequence log-prob": ("likelihood", [1, 1, 0, 1]),
            "mean token log-prob": ("likelihood", [1, 1, 0, 1]), "ACS-Free": ("acs-free", [1, 1, 1, 1])}  # fmt: skip
    choices = pd.DataFrame(
        [(q, method, family, 1, *[float(hit)] * 3) for method, (family, hits) in rows.items()
         for q, hit in enumerate(hits)],
        columns=CHOICE_COLUMNS,
    )  # fmt: skip
    queries = pd.DataFrame({"query_id": range(4), "image_id": range(4)})

    profile = load_profile("smoke")
    run = SimpleNamespace(queries=queries.assign(size="small"), unanswered=set)
    e = Experiment(profile, profile.lvlms[0], profile.datasets[0], run)
    e.__dict__["choices"] = choices
    main = e.labelled(accuracy_table(choices, queries, draws=50))
    ranks = results.rank_table([e], main)
    assert ranks[["method", "same", "mean_rank"]].to_numpy().tolist() == [
        ["ACS-Free", "", 1], ["sequence log-prob", "mean token log-prob", 2], ["greedy", "", 3],
    ]  # fmt: skip


def test_a_report_on_lvlms_with_a_habit_says_that_their_mistakes_are_planted():
    rows = [
        ("x", "habit", "small", "ACS-Learned", "greedy", 0.07),
        ("x-plain", "plain", "small", "ACS-Learned", "greedy", -0.02),
        ("x", "habit", "large", "ACS-Learned", "greedy", 0.5),
        ("x", "habit", "small", "ACS-Free", "greedy", 0.6),
    ]
    names = ["lvlm", "condition", "size", "method", "reference", "delta"]
    compared = pd.DataFrame(rows, columns=names).assign(dataset="a")
    compared = compared.assign(delta_lo=compared["delta"] - 0.01, delta_hi=compared["delta"] + 0.01)
    said = sentences.planted(compared)
    assert "taught a habit on purpose" in said
    with_it = "with the habit above in 1, below in 0, not told apart in 0 of 1 (+7.0 to +7.0)"
    assert f"{with_it}; without the habit above in 0, below in 1, not told apart in 0 of 1 (-2.0 to -2.0)." in said
    assert sentences.planted(compared.assign(condition="")) == ""


def test_every_condition_has_its_own_verdicts_and_ranks():
    profile = load_profile("smoke")
    lvlms = [profile.lvlms[0], profile.lvlms[1]]
    assert [lvlm.condition for lvlm in lvlms] == ["habit", "plain"]
    queries = pd.DataFrame({"query_id": range(4), "image_id": range(4)})
    hits = {"ACS-Free": ("acs-free", [1, 1, 1, 1]), "greedy": ("control", [0, 0, 1, 1])}
    experiments = []
    for lvlm, flip in zip(lvlms, (False, True)):
        choices = pd.DataFrame(
            [(q, method, family, 1, *[float(hit != flip)] * 3)
             for method, (family, found) in hits.items() for q, hit in enumerate(found)],
            columns=CHOICE_COLUMNS,
        )  # fmt: skip
        e = Experiment(profile, lvlm, profile.datasets[0], SimpleNamespace(queries=queries, unanswered=set))
        vars(e).update(choices=choices, small=queries, choices_on=lambda size, found=choices: found)
        experiments.append(e)
    main = pd.concat([e.labelled(accuracy_table(e.choices, queries, draws=20)) for e in experiments])
    ranks = results.rank_table(experiments, main)
    assert ranks[["condition", "method", "mean_rank"]].to_numpy().tolist() == [
        ["habit", "ACS-Free", 1], ["habit", "greedy", 2], ["plain", "greedy", 1], ["plain", "ACS-Free", 2],
    ]  # fmt: skip


def test_the_control_is_named_with_its_spread():
    table = pd.DataFrame(
        {"lvlm": "x", "dataset": "a", "split": ["test", "test, labels shuffled"], "pearson": [0.8, 0.04],
         "pearson_lo": [0.7, np.nan], "pearson_hi": [0.9, np.nan], "pearson_sd": [np.nan, 0.1],
         "within_query_pearson": [0.6, 0.0]}
    )  # fmt: skip
    text = sentences.say_regressor(table, 0.67).data
    assert "whole interval in all 1 columns. On unseen images r is 0.800 to 0.800, and 0.600 to 0.600 inside" in text
    assert "With shuffled labels it is 0.040 to 0.040 (means of 3 an LVLM, SD up to 0.100)." in text
    assert "in none of 1 columns" in sentences.say_regressor(table, 0.75).data
