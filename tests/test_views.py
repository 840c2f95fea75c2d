"""Verdicts and sentences follow from the numbers."""

import numpy as np
import pandas as pd
import pytest

from acs_lib import views
from acs_lib.heads import GROUPS

HIGH, _, ZERO = GROUPS
DATASETS = ("a", "b")


def claims(intervals, r=(0.8, 0.7), entropy=((1.0, 2.0), (1.0, 2.0))):
    """claims.csv of two columns: ACS-Free's intervals against greedy, r, and entropies of good boxes and misses."""
    rows = [
        ("x", dataset, method, reference, (lo + hi) / 2, lo, hi)
        for method, reference in (("ACS-Learned", "greedy"), ("ACS-Free", "greedy"), ("ACS-Free", "entropy, all heads"))
        for dataset, (lo, hi) in zip(DATASETS, intervals)
    ]
    compared = pd.DataFrame(rows, columns=["lvlm", "dataset", "method", "reference", "delta", "delta_lo", "delta_hi"])
    regressors = pd.DataFrame({"lvlm": "x", "dataset": DATASETS, "split": "test", "pearson": r})
    curves = pd.DataFrame(
        [
            ("x", dataset, "x1", 0, group, value)
            for dataset, values in zip(DATASETS, entropy)
            for group, value in zip((HIGH, ZERO), values)
        ],
        columns=["lvlm", "dataset", "coordinate", "layer", "group", "mean"],
    )
    sizes = pd.DataFrame(
        [("x", dataset, "greedy", size, acc) for dataset in DATASETS for size, acc in (("large", 0.9), ("small", 0.4))],
        columns=["lvlm", "dataset", "method", "size", "acc50"],
    )
    return views.claims(regressors, compared, curves, sizes).set_index("claim")["verdict"]


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(0.01, 0.03), (0.01, 0.05)], "reproduced"),
        ([(0.01, 0.03), (-0.02, 0.05)], "in part: in 1 of 2 columns"),
        ([(-0.01, 0.03), (-0.02, 0.05)], "not shown"),
        ([(0.01, 0.03), (-0.05, -0.01)], "contradicted"),
    ],
)
def test_a_claim_about_gains_is_judged_by_all_columns(intervals, verdict):
    assert claims(intervals)["ACS-Free beats greedy decoding, or ties with it"] == verdict


def test_the_other_claims_are_judged_by_their_own_numbers():
    good = [(0.01, 0.03), (0.01, 0.05)]
    assert (claims(good) == "reproduced").all()
    assert claims(good, r=(0.8, 0.6))["Attention predicts the box's IoU"] == "not shown"
    mixed = claims(good, entropy=((1.0, 2.0), (2.0, 1.0)))
    assert mixed["Good boxes have lower attention entropy"] == "contradicted", "one half of the pairs is no majority"


def test_the_control_is_named_with_its_spread():
    table = pd.DataFrame(
        {"lvlm": "x", "dataset": "a", "split": ["test", "test, labels shuffled"], "pearson": [0.8, 0.04],
         "pearson_sd": [np.nan, 0.1]}
    )  # fmt: skip
    text = views.say_regressor(table, 0.67).data
    assert "r = 0.800, with shuffled labels 0.040 (mean of 3, SD 0.100)" in text and "so it is here" in text
