"""Scores as confidence, against hand-worked cases."""

import numpy as np
import pandas as pd
import pytest
from test_accuracy import NAN, candidates

from acs_lib.evaluation.bootstrap import image_counts
from acs_lib.evaluation.confidence import (
    COVERAGES,
    area_interval,
    auroc_interval,
    confidence_table,
    curve_interval,
    drawn_auroc,
    reliability,
    risk_coverage,
    risk_coverage_table,
    score_frame,
    won_by_image,
)
from acs_lib.method import heads
from acs_lib.method.selection import Selector
from acs_lib.report import sentences

LAST = Selector("last", "attention", lambda c: np.arange(len(c), dtype=float), "test")


def test_scored_keeps_the_answers_with_a_box():
    world = [candidates("a", [[0, 0, 10, 5], NAN, [0, 0, 10, 2]])]
    found = score_frame(world, {"a": [0, 0, 10, 10]}, [LAST])
    assert found["candidate"].tolist() == [0, 2]
    assert found["iou"].tolist() == pytest.approx([0.5, 0.2])
    assert found["last"].tolist() == [0, 2]


def test_image_counts_draw_as_many_images_as_there_are():
    counts = image_counts(5, 200)
    assert counts.shape == (200, 5)
    assert (counts.sum(1) == 5).all()
    assert (counts == 0).any() and (counts > 1).any()


def test_pairs_by_hand():
    """Image 0 holds a hit at 3 and a miss at 1, image 1 a hit at 1 and a miss at 2."""
    scores, hit, images = np.array([3.0, 1, 1, 2]), np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    assert won_by_image(scores, hit, images, 2).tolist() == [[1, 1], [0.5, 0]]
    drawn = drawn_auroc(scores, hit, images, np.array([[1, 1], [2, 0], [0, 2], [3, 1]]))
    assert drawn.tolist() == [2.5 / 4, 1, 0, (9 + 3 + 1.5) / 16]


def test_auroc_and_its_interval():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(50), 8)
    hit = rng.random(400) < 0.4
    scores = hit + rng.normal(size=400).round(1)
    counts = image_counts(50, 2000)
    value, lo, hi = auroc_interval(scores, hit, images, counts)
    assert value == pytest.approx(heads.auroc(scores, hit))
    assert 0.5 < lo < value < hi < 1
    repeated = np.concatenate([np.repeat(scores[images == image], count) for image, count in enumerate(counts[0])])
    hits = np.concatenate([np.repeat(hit[images == image], count) for image, count in enumerate(counts[0])])
    drawn = auroc_interval(scores, hit, images, counts[:1])
    assert drawn[1] == drawn[2] == pytest.approx(heads.auroc(repeated, hits))
    assert np.isnan(auroc_interval(scores, np.ones(400, bool), images, counts)).all()


def test_answers_of_one_kind_are_told():
    scores = pd.DataFrame({"query_id": ["a", "a"], "candidate": [0, 1], "iou": [0.9, 0.8], "last": [0.0, 1.0]})
    table = confidence_table(scores, [LAST], {"a": 1}, 10).assign(lvlm="tiny", dataset="scenes")
    assert table["auroc"].isna().all()
    told = sentences.say_confidence(table).data
    assert "the best of each column, none, with not measured" in told


def test_risk_and_its_area_by_hand():
    assert risk_coverage(np.array([0.1, 0.9, 0.5]), np.array([0, 1, 0])).tolist() == pytest.approx([0, 1 / 2, 2 / 3])
    ties = risk_coverage(np.array([1.0, 1, 1, 0]), np.array([1, 0, 0, 1]))
    assert ties.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 2])
    area, lo, hi = area_interval(
        np.array([0.1, 0.9, 0.5]), np.array([0, 1, 0]), np.arange(3), np.array([[1, 1, 1], [0, 2, 0], [1, 0, 1]])
    )
    assert area == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)
    drawn = np.array([area, 0, 1])
    assert (lo, hi) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))))


def test_a_draw_of_the_curve_is_the_risk_of_the_answers_it_drew():
    rng = np.random.default_rng(0)
    scores, hit, images = rng.random(60), (rng.random(60) < 0.5).astype(float), np.repeat(np.arange(20), 3)
    count = image_counts(20, 1)
    rows = np.repeat(np.arange(60), count[0][images])
    risk = risk_coverage(scores[rows], hit[rows])
    lo, hi = curve_interval(scores, hit, images, count)
    assert lo.tolist() == hi.tolist()
    assert lo == pytest.approx(risk[np.ceil(COVERAGES * 60).astype(int) - 1])


def test_an_uninformative_score_has_the_share_of_misses_as_its_area():
    rng = np.random.default_rng(1)
    hit = (rng.random(20_000) < 0.7).astype(float)
    area = area_interval(rng.random(20_000), hit, np.arange(20_000), np.ones((1, 20_000), int))[0]
    assert area == pytest.approx(0.3, abs=0.02)


def test_table_and_curves():
    scores = pd.DataFrame(
        {
            "query_id": ["a", "a", "b", "b", "c", "c"],
            "candidate": [0, 1] * 3,
            "iou": [0.9, 0.1, 0.2, 0.6, 0.8, 0.0],
            "mass inside the box (MTLA)": [3.0, 1, 0, 2, 4, 1],
        }
    )
    selectors = [Selector("mass inside the box (MTLA)", "attention", None, "test")]
    table = confidence_table(scores, selectors, {"a": 1, "b": 2, "c": 2}, draws=50).set_index("answers")
    assert table["n"].to_dict() == {"all": 6, "greedy": 3}
    assert table["acc50"].to_dict() == pytest.approx({"all": 0.5, "greedy": 2 / 3})
    assert table["auroc"].to_dict() == {"all": 1, "greedy": 1}
    assert table.loc["greedy", "aurc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert table["published_auroc"].tolist() == ["0.890 and 0.916"] * 2
    curve = risk_coverage_table(scores, ["mass inside the box (MTLA)"], {"a": 1, "b": 2, "c": 2}, draws=50)
    assert curve["coverage"].iloc[-1] == 1
    assert curve["risk"].iloc[-1] == pytest.approx(1 / 3)
    assert (curve["risk"] + curve["accuracy"] == 1).all()
    assert curve["risk"].iloc[0] == 0
    assert curve[["risk_lo", "risk_hi"]].iloc[-1].tolist() == [0, 0.5], "image 1 alone, or image 2"


def test_reliability_by_hand():
    predicted, iou = np.array([0.11, 0.19, 0.95, 1.0]), np.array([0.1, 0.4, 0.95, 0.6])
    bins, (error, lo, hi) = reliability(predicted, iou, np.arange(4), draws=200)
    assert bins["n"].tolist() == [2, 2]
    assert bins["predicted_iou"].tolist() == pytest.approx([0.15, 0.975])
    assert bins["iou"].tolist() == pytest.approx([0.25, 0.775])
    assert error == pytest.approx(0.5 * 0.1 + 0.5 * 0.2)
    assert lo <= error <= hi
    assert (bins["iou_lo"] <= bins["iou"]).all() and (bins["iou"] <= bins["iou_hi"]).all()
    assert reliability(predicted, predicted, np.arange(4), draws=10)[1] == (0, 0, 0)
