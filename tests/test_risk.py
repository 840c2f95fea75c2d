"""Promises about wrong answers: by hand, and over many calibrations."""

import numpy as np
import pytest

from acs_lib.evaluation import risk


def test_the_conformal_threshold_by_hand():
    """Nine images of one question each: with k wrong ones among those that are answered (k + 1) / 10 <= alpha."""
    scores = np.arange(9, 0, -1.0)
    hit = np.array([True, True, False, True, True, False, True, False, True])
    images = np.arange(9)
    found = {alpha: risk.conformal_threshold(scores, hit, images, alpha) for alpha in (0.09, 0.1, 0.2, 0.3, 0.4)}
    assert found == {0.09: risk.NEVER, 0.1: 8, 0.2: 5, 0.3: 3, 0.4: 1}


def test_equal_scores_are_answered_together_and_what_has_no_box_never():
    scores, images = np.array([2.0, 2.0, 2.0, 1.0, -np.inf]), np.arange(5)
    hit = np.array([True, True, False, True, False])
    assert risk.conformal_threshold(scores, hit, images, 1 / 6) == risk.NEVER, "one of the three is wrong"
    assert risk.conformal_threshold(scores, hit, images, 2 / 6) == 1


def test_a_share_of_questions_is_promised_and_an_image_may_hold_most_of_them():
    """20 of 29 questions are about one image and answered wrongly: (20 + 20) / (29 + 20) <= alpha."""
    scores = np.concatenate([np.full(20, 3.0), np.arange(9) / 10])
    hit = np.concatenate([np.zeros(20, bool), np.ones(9, bool)])
    images = np.concatenate([np.zeros(20, int), 1 + np.arange(9)])
    assert risk.conformal_threshold(scores, hit, images, 40.1 / 49) == 0
    assert risk.conformal_threshold(scores, hit, images, 39.9 / 49) == risk.NEVER
    assert risk.conformal_threshold(scores[20:], hit[20:], images[20:], 1 / 10) == 0


def test_p_values_by_hand():
    """Two bets: before the first the variance is taken to be 1/4, after a loss of 0 it is (1/4 + 1/16) / 2."""
    first, second = (np.sqrt(2 * np.log(10) / (2 * known)) for known in (0.25, 0.3125 / 2))
    assert first > 1 and second > 1, "no stake is above 1"
    assert risk.p_value(np.zeros(2), 0.2, 0.1) == pytest.approx(1 / 1.2**2)
    assert risk.p_value(np.array([1.0, 0.0]), 0.2, 0.1) == pytest.approx(1 / max(1, 0.2 * 1.2))
    assert risk.p_value(np.full(50, 0.2), 0.2, 0.1) == 1


@pytest.mark.parametrize("mean", [0.2, 0.3])
def test_a_p_value_is_rarely_small_where_the_hypothesis_is_true(mean):
    rng = np.random.default_rng(0)
    found = [risk.p_value((rng.random(100) < mean).astype(float), 0.2, 0.1) for _ in range(2000)]
    assert np.mean(np.array(found) <= 0.1) <= 0.1 + 0.02
    smaller = [risk.p_value((rng.random(100) < 0.05).astype(float), 0.2, 0.1) for _ in range(200)]
    assert np.mean(np.array(smaller) <= 0.1) > 0.9


def drawn(rng, m, shift=0.0):
    """Scores, hits and images of m images with one to six questions: the surer the likelier right, the questions of an
    image are alike, and about a hard image there are more."""
    hard = rng.normal(0, 1, m)
    images = np.repeat(np.arange(m), rng.integers(1, 5, m) + 2 * (hard > 0))
    hard = hard[images]
    scores = rng.normal(0, 1, len(images)) - hard
    return scores, rng.random(len(images)) < 1 / (1 + np.exp(-1 - 2 * scores + shift)), images


def kept(find, measure, shift=0.0, draws=300, m=120):
    """Over many calibrations: the outcomes of new images under the threshold that was found."""
    rng, found = np.random.default_rng(0), []
    fresh = drawn(rng, 20_000, shift)
    for _ in range(draws):
        found.append(risk.outcome(*fresh[:2], find(*drawn(rng, m)))[measure])
    return np.nan_to_num(np.array(found))


def test_the_conformal_promise_holds_on_average_and_breaks_under_shift():
    def find(scores, hit, images):
        return risk.conformal_threshold(scores, hit, images, 0.1)

    wrong = kept(find, "wrong")
    assert 0.08 < wrong.mean() < 0.105, "kept, and not by answering nothing"
    assert kept(find, "wrong", shift=2.0).mean() > 0.13


def test_the_tested_promise_holds_with_its_probability_and_breaks_under_shift():
    thresholds = np.linspace(-2, 3, 11)

    def find(scores, hit, images):
        return risk.tested_threshold(scores, hit, images, 0.2, 0.1, thresholds)

    shares = kept(find, "selective_risk", m=300)
    assert (shares > 0.2).mean() <= 0.1 and (shares > 0).mean() > 0.8
    assert (kept(find, "selective_risk", shift=2.0, m=300) > 0.2).mean() > 0.5


def test_a_promise_that_cannot_be_kept_answers_nothing():
    scores, hit, images = np.zeros(30), np.zeros(30, bool), np.arange(30)
    assert risk.tested_threshold(scores, hit, images, 0.1, 0.1, [0.0]) == risk.NEVER
    found = risk.outcome(scores, hit, risk.NEVER)
    assert found["answered"] == found["wrong"] == 0 and np.isnan(found["selective_risk"])
