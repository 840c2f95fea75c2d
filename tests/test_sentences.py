"""Sentences follow from the numbers: each case of a finding has its own."""

import json

import numpy as np
import pandas as pd
import pytest

from acs_lib import accept
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.method.heads import ATTRIBUTIONS, HeadSet
from acs_lib.report import sentences
from acs_lib.report.tables import head_set_table, pivoted
from acs_lib.study import results

POOLED = np.array([[0.5, 0.6], [0.9, 0.4], [0.7, 0.8]])  # AUROC [layers, heads]
WITHIN = np.array([[0.8, 0.5], [0.5, 0.6], [0.5, 0.7]])


@pytest.fixture
def table():
    layer, head = np.indices(POOLED.shape).reshape(2, -1)
    columns = {"layer": layer, "head": head, "auroc": POOLED.ravel(), "auroc_within_query": WITHIN.ravel()}
    return pd.concat([pd.DataFrame(columns).assign(lvlm=name) for name in ("tiny", "other")])


def attributions(lvlm: str, selected: list[int]) -> pd.DataFrame:
    """Three layers, the first one leant on most by every attribution."""
    frame = pd.DataFrame({"lvlm": lvlm, "layer": range(3), "selected": [layer in selected for layer in range(3)]})
    return frame.assign(**{name: [0.6, 0.3, 0.1] for name in ATTRIBUTIONS})


def entropies(good: list[float]) -> pd.DataFrame:
    """Mean entropy at x1 of each layer: of good boxes, and 2 of the others."""
    rows = [
        ("tiny", "scenes", "x1", layer, group, mean)
        for layer, high in enumerate(good)
        for group, mean in (("high", high), ("low", 2.0), ("zero", 2.0))
    ]
    return pd.DataFrame(rows, columns=["lvlm", "dataset", "coordinate", "layer", "group", "mean"])


def test_the_signal_is_told_by_d_c_its_layers_and_the_filter(table):
    chosen = {"tiny": [(1, 0), (2, 1)], "other": [(2, 0)]}  # the best two of all layers; not the best one
    own = [(layer, head) in chosen[lvlm] for lvlm, layer, head in zip(table["lvlm"], table["layer"], table["head"])]
    shares = pd.concat([attributions("tiny", [1, 2]), attributions("other", [0])])
    said = sentences.say_signal(table.assign(selected=own), shares, entropies([1.0, 1.5, 3.0])).data
    assert "D_c has 1 to 2 an LVLM" in said and "AUROC 0.70 to 0.90 over all answers and 0.50 to 0.70 inside" in said
    assert (
        "first half in 1 of 2 LVLMs; without the paper's filter by layer they would be the same heads in 1 of 2" in said
    )
    assert said.endswith("entropy is lower for good boxes than for misses in 67 to 67 % of layers and coordinates.")


def test_d_c_without_a_filter_is_the_best_heads_of_all_layers(table):
    found = results.unfiltered(HeadSet("tiny", "scenes", ((2, 1), (2, 0))), table)
    assert found == [((1, 0), (2, 1)), ((0, 0), (2, 1))], "over all answers, inside queries"


@pytest.mark.parametrize(
    ("so", "told"),
    [([True] * 3, "in all 3 columns"), ([True, False, True], "in 2 of 3 columns"), ([False], "in none of 1 columns")],
)
def test_columns_are_counted(so, told):
    assert sentences.in_columns(so) == told


def test_differences_are_counted_by_their_intervals():
    rows = pd.DataFrame({"delta": [0.05, -0.03, 0.0], "delta_lo": [0.01, -0.05, -0.1], "delta_hi": [0.1, -0.01, 0.1]})
    assert sentences.above_and_below(rows) == "above in 1, below in 1, not told apart in 1 of 3 (-3.0 to +5.0)"
    assert sentences.spread_of([float("nan")]) == "not measured"


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
    assert "Attention predicts the box's IoU: reproduced with the habit, contradicted without the habit;" in said


def test_the_ablations_have_a_headline_of_their_own(tmp_path):
    (tmp_path / "tables").mkdir()
    rows = [
        ("as the profile has it", "-", 0.0, 0.0, 0.0), ("temperature", "0.5", 0.03, 0.01, 0.05),
        ("top-p", "1.0", -0.04, -0.06, -0.02), ("rows", "last", -0.01, -0.03, 0.01),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["factor", "value", "delta", "delta_lo", "delta_hi"])
    table = table.assign(lvlm="tiny", dataset="scenes", method="ACS-Learned")
    confident = pd.DataFrame({"lvlm": "tiny", "dataset": "scenes", "answers": "all", "method": ["ACS-Learned", "b"],
                              "auroc": [0.6, 0.8]})  # fmt: skip
    sets = pd.DataFrame({"kept": [0.5, 0.75]})
    spread = pd.DataFrame({
        "source": ["sampling", "regressor"], "method": "ACS-Learned", "acc50_sd": [0.012, 0.1],
        "delta_vs_greedy_lowest": [-0.01, -0.5], "delta_vs_greedy_highest": [0.02, 0.5],
    })  # fmt: skip
    said = sentences.trust_headline(table, confident, sets, spread, tmp_path).data
    told = json.loads((tmp_path / "tables" / "headline.json").read_text())
    first, *others = told["sentences"]
    assert told["cards"] == [] and said == f"**Takeaway.** {' '.join(others)}"
    assert first == (
        "ACS-Learned depends on 2 of 3 changes to it; gained most by temperature = 0.5 (tiny on scenes, +3.0 [+1.0, "
        "+5.0]); lost most by top-p = 1.0 (tiny on scenes, -4.0 [-6.0, -2.0]). In percentage points of Acc@0.5, paired "
        "95 % intervals; one in twenty is so by chance."
    )
    assert "AUROC ACS-Learned 0.60 to 0.60, ACS-Free not measured; the best of each column, b, with 0.80" in others[0]
    assert others[1] == "Other images of the same split select 50 to 75 % of the heads again."
    assert "standard deviation of 1.2 to 1.2 points" in others[2] and others[2].endswith("goes from -1.0 to +2.0.")


def test_a_table_of_methods_begins_with_what_they_are_set_against_and_acs_then_the_highest_mean():
    rates = {"medoid": 0.4, "ACS-Free": 0.3, "DeepConf": 0.6, "greedy": 0.5}
    rows = [("tiny", "a", size, name, rate, 0.3, 0.7) for size in ("small", "large") for name, rate in rates.items()]
    table = pd.DataFrame(rows, columns=["lvlm", "dataset", "size", "method", "acc50", "acc50_lo", "acc50_hi"])
    wide = pivoted(table, ["size", "method"], "acc50")
    assert wide["size"].tolist() == ["small"] * 4 + ["large"] * 4, "in the table's order"
    assert wide["method"].tolist() == ["greedy", "ACS-Free", "DeepConf", "medoid"] * 2
    assert wide["tiny, a"].iloc[0] == "50.0 [30.0, 70.0]"
    differences = table.rename(columns={f"acc50{end}": f"delta{end}" for end in ("", "_lo", "_hi")})
    assert pivoted(differences, ["size", "method"], "delta")["tiny, a"].iloc[0] == "+50.0 [+30.0, +70.0]"


@pytest.mark.parametrize(("value", "kept"), [(0.01 - 0.0075, 0.0025), (0.35749998, 0.3575)])
def test_a_tie_is_rounded_as_in_the_references_table(value, kept):
    exact, stored = ({"d": each, "d_lo": 0.0, "d_hi": 0.2} for each in (value, kept))
    told = [estimate(pd.Series(row), "d", "+.1f", 100) for row in (exact, stored)]
    assert exact["d"] != stored["d"] and told[0] == told[1]
    assert float(accept.six_digits(str(value))) == kept


def test_d_c_is_a_row_an_lvlm():
    found = head_set_table([HeadSet("tiny", "scenes", ((np.int64(2), np.int64(1)), (3, 0)), (0, 3))])
    assert found.to_numpy().tolist() == [["tiny", "(2, 1), (3, 0)", "x1, y2"]]


def test_the_sharpest_layer_is_that_of_the_least_entropy():
    table = pd.DataFrame({"layer": [0, 1], "entropy": [3.0, 2.0], "mass": [0.1, 0.4], "mass_in_box": [0.01, 0.08]})
    said = sentences.say_statistics(table.assign(even=5.99)).data
    assert "10.0 to 40.0 % of its attention on the image, by layer, and 1.0 to 8.0 % inside the box" in said
    assert (
        "Layer 1 is the sharpest with 2.00 nats on average, layer 0 the most diffuse with 3.00; an even map has 5.99"
        in said
    )


def test_only_what_both_tests_tell_apart_is_named():
    rows = [("ACS-Free", 0.1, 0.01, 0.04), ("medoid", 0.2, 0.01, 0.06), ("random", -0.1, 0.02, 0.02)]
    names = ["method", "delta_vs_greedy", "p_bootstrap_holm", "p_mcnemar_holm"]
    table = pd.DataFrame(rows, columns=names).assign(lvlm="tiny", dataset="scenes")
    said = sentences.say_significance(table).data
    assert said.endswith("in how many of 1 columns, above: ACS-Free (1), below: random (1).")
