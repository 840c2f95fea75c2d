"""Selectors against hand-worked numbers, and the rules of choosing."""

import numpy as np
import pytest

from acs_lib.core.candidates import Candidates
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.attention import random_heads, spatial_entropy, spatial_entropy_of_maps
from acs_lib.method.baselines.consensus import FUSIONS, coordinate_median, medoid, pixel_vote, weighted_box_fusion
from acs_lib.method.baselines.likelihood import deepconf_lowest_window, p_true
from acs_lib.method.selection import FAMILIES, above, acs_free, acs_learned, choose, entropy_of_heads

NAN = [np.nan] * 4
BOXES = [[0, 0, 4, 4], [0, 0, 2, 2], NAN, [0, 0, 2, 4]]  # greedy, sampled, no box, sampled


def make(boxes=BOXES, tokens=None, layers=6, heads=2, statistics=None, maps=None, **values) -> Candidates:
    """Candidates of a 10 x 8 px image; five tokens an answer, the inner three write the coordinates of a box."""
    boxes = np.array(boxes, float)
    n = len(boxes)
    if tokens is None:
        tokens = [np.array([], int) if np.isnan(box).any() else np.array([1, 2, 3]) for box in boxes]
    per_token = {
        name: [np.array(row, float) for row in values.get(name, [[0.0] * 5] * n)]
        for name in ("logprobs", "entropies", "mean_log_vp", "top20_logprob")
    }
    if statistics is None:
        statistics = np.zeros((n, 4, layers, heads, 4))
    return Candidates("query-1", "bird", 10, 8, boxes, coordinate_tokens=tokens, statistics=statistics, maps=maps,
                      **per_token)  # fmt: skip


def score(name: str, c: Candidates) -> np.ndarray:
    return SELECTORS[name].score(c)


def test_registry_is_complete_and_every_selector_scores_every_candidate():
    c = make()
    for name, selector in SELECTORS.items():
        assert selector.name == name and selector.family in FAMILIES and selector.source
        assert selector.score(c).shape == (4,)
    assert [fusion.family for fusion in FUSIONS.values()] == ["fusion"] * 3


# choosing


@pytest.mark.parametrize(
    ("scores", "parsed", "pool", "expected"),
    [
        ([9, 1, 3, 2], [1, 1, 1, 1], "sampled", 2),
        ([9, 1, 3, 2], [1, 1, 1, 1], "all", 0),
        ([9, 1, 3, 2], [1, 1, 0, 1], "sampled", 3),
        ([0, 5, 5, 5], [1, 1, 1, 1], "sampled", 1),  # first on ties
        ([0, 5, 5.00001, 5.00002], [1, 1, 1, 1], "sampled", 1),  # which rounding does not break
        ([0, -2e-4, -2e-4 + 1e-10, -3e-4], [1, 1, 1, 1], "sampled", 1),
        ([0, 0, 1e-17, -1e-17], [1, 1, 1, 1], "sampled", 1),
        ([0, 5, 5.0002, 5.0001], [1, 1, 1, 1], "sampled", 2),
        ([0, np.nan, 1, 0], [1, 1, 1, 1], "sampled", 2),
        ([0, np.nan, -np.inf, -np.inf], [1, 1, 1, 1], "sampled", 2),
        ([0, np.nan, np.nan, np.nan], [1, 1, 1, 1], "sampled", 0),
        ([0, 1, 2, 3], [1, 0, 0, 0], "sampled", 0),
        ([0, 1, 2, 3], [0, 0, 0, 0], "all", 0),
        ([1], [1], "sampled", 0),
    ],
)
def test_choose(scores, parsed, pool, expected):
    assert choose(np.array(scores, float), np.array(parsed, bool), pool) == expected


def test_choose_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="pool"):
        choose([1.0, 2.0], [True, True], "best")
    with pytest.raises(ValueError, match="scores"):
        choose([1.0, 2.0], [True, True, True])


def test_above_counts_a_tie_half_though_rounding_broke_it():
    assert above(np.array([2.0, 1.0, 1.0, 1.0]), np.array([1.0, 2.0, 1.0, 1.000001])).tolist() == [1, 0, 0.5, 0.5]


# controls


def test_greedy_is_row_0_even_without_a_box():
    greedy = SELECTORS["greedy"]
    for boxes in (BOXES, [NAN, *BOXES[1:]]):
        c = make(boxes)
        assert choose(greedy.score(c), c.parsed, greedy.pool) == 0


def test_random_is_the_same_every_time_and_differs_between_queries():
    c = make()
    np.testing.assert_array_equal(score("random", c), score("random", make()))
    other = Candidates(**{**c.__dict__, "query_id": "query-2"})
    assert not np.array_equal(score("random", c), score("random", other))


def test_area_prior():
    c = make([[0, 0, 4, 4], [0, 0, 2, 2], NAN, [0, 0, 0, 4]])
    np.testing.assert_allclose(score("box area, large first", c), [np.log(16), np.log(4), np.nan, -np.inf])
    np.testing.assert_allclose(score("box area, small first", c), [-np.log(16), -np.log(4), np.nan, -np.inf])


# likelihood: tokens 1, 2, 3 of five write the coordinates


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("sequence log-prob", "logprobs", -6),  # -1 - 2 - 3
        ("sequence log-prob, all tokens", "logprobs", -106),
        ("mean token log-prob", "logprobs", -2),
        ("min-token probability", "logprobs", np.exp(-3)),
        ("token entropy", "entropies", 2),  # of (-1, -2, -3); a mean entropy of x scores -x
        ("self-certainty", "mean_log_vp", 2),
        ("DeepConf mean", "top20_logprob", 2),
    ],
)
def test_likelihood_by_hand(name, field, expected):
    c = make(**{field: [[-50, -1, -2, -3, -50]] * 4})
    scores = score(name, c)
    assert scores[[0, 1, 3]] == pytest.approx(expected)
    if "all tokens" not in name:
        assert scores[2] == -np.inf  # no coordinates


def test_deepconf_lowest_window_by_hand():
    rows = [[-1, -5, -3, -1, -4, -9]] * 2
    c = make([[0, 0, 1, 1]] * 2, tokens=[np.arange(6), np.arange(2)], top20_logprob=rows)
    # windows of 4 of (1, 5, 3, 1, 4, 9): 10/4, 13/4, 17/4; the second answer has two tokens: (1 + 5) / 2
    np.testing.assert_allclose(score("DeepConf lowest window", c), [2.5, 3])
    np.testing.assert_allclose(deepconf_lowest_window(c, window=2), [2, 3])  # (3 + 1) / 2


def test_a_sharper_distribution_scores_higher_in_every_likelihood_method():
    sharp, flat = np.array([0.97, 0.01, 0.01, 0.01]), np.full(4, 0.25)
    fields = {
        "logprobs": [[np.log(p[0])] * 5 for p in (flat, sharp)],
        "entropies": [[-(p * np.log(p)).sum()] * 5 for p in (flat, sharp)],
        "mean_log_vp": [[np.log(4 * p).mean()] * 5 for p in (flat, sharp)],
        "top20_logprob": [[np.log(p).mean()] * 5 for p in (flat, sharp)],
    }
    c = make([[0, 0, 1, 1]] * 2, **fields)
    for selector in SELECTORS.values():
        if selector.family == "likelihood":
            worse, better = selector.score(c)
            assert better > worse, selector.name
    assert score("self-certainty", c)[0] == pytest.approx(0)  # KL of uniform from uniform


def test_p_true_takes_the_answer_that_the_lvlm_calls_right_and_never_one_without_a_box():
    c, selector = make(), p_true(lambda c: np.array([0.9, 0.2, np.nan, 0.3]))
    assert choose(selector.score(c), c.parsed) == 3 and choose(selector.score(c), c.parsed, "all") == 0
    assert (selector.name, selector.family, selector.source) == ("P(True)", "likelihood", "arXiv 2207.05221")


# consensus


def test_medoid_by_hand():
    # voters are rows 1 (2x2) and 3 (2x4): IoU 1/2 between them; with the greedy 4x4 it is 1/4 and 1/2
    np.testing.assert_allclose(medoid(make()), [3 / 4, 3 / 2, 0, 3 / 2])


def test_coordinate_median_by_hand():
    boxes = [[0, 0, 9, 9], [1, 1, 3, 3], [2, 1, 5, 3], NAN, [3, 7, 8, 8]]
    np.testing.assert_array_equal(coordinate_median(make(boxes)), [2, 1, 5, 3])


def test_weighted_box_fusion_by_hand():
    boxes = [[0, 0, 8, 8], [0, 0, 4, 4], [0, 0, 4, 3], [6, 6, 8, 8], NAN]
    weights = [1.0, 0.6, 0.2, 0.7, 1.0]
    c = make(boxes, logprobs=[[np.log(weight)] * 5 for weight in weights])
    # clusters: {row 3} with 0.7, and {rows 1, 2} (IoU 12/16) with 0.8, fused y2 = (0.6 * 4 + 0.2 * 3) / 0.8 = 3.75
    np.testing.assert_allclose(weighted_box_fusion(c), [0, 0, 4, 3.75])
    np.testing.assert_allclose(weighted_box_fusion(c, threshold=0.75), [6, 6, 8, 8])  # 12/16 no longer joins


def test_pixel_vote_by_hand():
    boxes = [[0, 0, 10, 8], [0, 0, 4, 4], [2, 1, 6, 4], NAN, [8, 6, 12, 9]]
    np.testing.assert_array_equal(pixel_vote(make(boxes)), [2, 1, 4, 4])  # where rows 1 and 2 meet: 2 votes
    apart = [[0, 0, 10, 8], [0, 0, 2, 2], [5, 5, 20, 20]]
    np.testing.assert_array_equal(pixel_vote(make(apart)), [5, 5, 10, 8])  # one vote each: the larger, clipped
    assert np.isnan(pixel_vote(make([[0, 0, 9, 9], [1.6, 1.6, 2.4, 2.4]]))).all()  # covers no pixel's centre


def test_fusions_without_a_sampled_box_are_nan_and_do_not_share_memory():
    c = make([[0, 0, 4, 4], NAN, NAN])
    for fusion in FUSIONS.values():
        box = fusion.fuse(c)
        assert box.shape == (4,) and np.isnan(box).all()
        box[:] = 0
        assert np.isnan(fusion.fuse(c)).all()


# attention


def test_attention_mass_and_mass_in_box_by_hand():
    statistics = np.full((2, 4, 6, 2, 4), 9.0)
    statistics[0, ..., 1], statistics[1, ..., 1] = 0.2, 0.4
    statistics[1, 0, 0, 0, 1] += 4.8  # one of 48 entries: the mean grows by 0.1
    statistics[..., 2] = np.arange(6)[:, None] / 10  # middle third: layers 2 and 3
    c = make([[0, 0, 1, 1]] * 2, statistics=statistics)
    np.testing.assert_allclose(score("attention mass (SVAR)", c), [0.2, 0.5])
    np.testing.assert_allclose(score("mass inside the box (MTLA)", c), [0.25, 0.25])


def entropies() -> Candidates:
    """Entropy = candidate + coordinate / 10 + layer / 100 + head / 1000."""
    candidate, coordinate, layer, head = np.ogrid[:2, :4, :6, :2]
    statistics = np.full((2, 4, 6, 2, 4), np.nan)
    statistics[..., 0] = candidate + coordinate / 10 + layer / 100 + head / 1000
    return make([[0, 0, 1, 1]] * 2, statistics=statistics)


def test_entropy_scores_by_hand():
    c = entropies()
    np.testing.assert_allclose(score("entropy, all heads", c), [-0.1755, -1.1755])  # 0.15 + 0.025 + 0.0005
    np.testing.assert_allclose(acs_free([(1, 0), (5, 1)]).score(c), [-0.1805, -1.1805])  # 0.15 + 0.03 + 0.0005
    np.testing.assert_allclose(acs_free([(1, 0), (5, 1)], coordinates=(3,)).score(c), [-0.3305, -1.3305])
    picked = random_heads(6, 2)
    assert len(set(picked)) == 3 and picked == random_heads(6, 2) and random_heads(1, 2) == ((0, 0), (0, 1))
    expected = np.mean([layer / 100 + head / 1000 for layer, head in picked]) + 0.15
    np.testing.assert_allclose(score("entropy, random heads", c), [-expected, -1 - expected])


def test_acs_free_takes_the_lowest_entropy_and_refuses_no_heads():
    c = entropies()
    assert choose(acs_free([(0, 0)]).score(c), c.parsed, "all") == 0
    with pytest.raises(ValueError, match="at least one"):
        acs_free([])
    with pytest.raises(ValueError, match="no heads"):
        entropy_of_heads(c, [])


def test_acs_free_takes_the_first_of_answers_with_the_same_rows():
    """Rows of one number are equal but for rounding where the answers begin alike; what follows must not count."""
    c = make(BOXES[:2] + BOXES[3:])
    c.statistics[:, 0, 0, 0, 0] = [5, 4 + 2e-7, 4]
    assert choose(acs_free([(0, 0)], coordinates=(0,)).score(c), c.parsed) == 1
    c.statistics[2, 0, 0, 0, 0] = 3.999
    assert choose(acs_free([(0, 0)], coordinates=(0,)).score(c), c.parsed) == 2


def test_acs_learned_takes_the_highest_predicted_iou():
    c, selector = make(), acs_learned(lambda c: np.linspace(0, 1, len(c)))
    assert choose(selector.score(c), c.parsed) == 3 and selector.family == "acs-learned"


def test_spatial_entropy_by_hand():
    blobs = np.zeros((4, 5))
    blobs[0, 0], blobs[1, 1] = 3.0, 3.0  # touch by a corner: one component of 8-connectivity
    blobs[3, 4] = 4.0
    # mean 0.5: excess 2.5 + 2.5 and 3.5; shares 5/8.5 and 3.5/8.5
    p = 5 / 8.5
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert spatial_entropy_of_maps(blobs[None]) == pytest.approx(expected)
    assert spatial_entropy_of_maps(0.001 * blobs[None]) == pytest.approx(expected)  # no absolute threshold
    single = np.zeros((4, 5))
    single[1:3, 1] = 1
    assert spatial_entropy_of_maps(single[None]) == 0
    assert spatial_entropy_of_maps(np.full((1, 7, 7), 0.1)) == np.inf
    together = np.stack([blobs, single, np.full((4, 5), 0.1), blobs, np.full((4, 5), np.nan)])
    found = spatial_entropy_of_maps(together)
    assert found[:4] == pytest.approx([expected, 0, np.inf, expected]) and np.isnan(found[4]), "maps do not touch"

    maps = np.zeros((2, 4, 6, 2, 4, 5))
    maps[:, :, :, :] = single
    maps[1, 2, 3, 1] = blobs  # one of four coordinates, one of the two heads asked for
    scores = spatial_entropy([(3, 1), (0, 0)]).score(make([[0, 0, 1, 1]] * 2, maps=maps))
    np.testing.assert_allclose(scores, [0, -expected / 8])
    with pytest.raises(ValueError, match="needs the attention maps"):
        spatial_entropy([(0, 0)]).score(make())


def test_an_answer_without_maps_never_wins():
    statistics = np.zeros((2, 4, 6, 2, 4))
    statistics[1] = np.nan
    c = make([[0, 0, 1, 1]] * 2, statistics=statistics)
    for selector in SELECTORS.values():
        if selector.family == "attention":
            assert choose(selector.score(c), c.parsed, "all") == 0
