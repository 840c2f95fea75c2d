"""Heads without annotations: consensus by hand, and a head that follows it."""

from dataclasses import replace

import numpy as np
import pytest
from test_accuracy import candidates

from acs_lib.core.candidates import ENTROPY
from acs_lib.method import heads, label_free

NAN = [np.nan] * 4
A, NEAR, FAR = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]


def test_consensus_by_hand():
    """The greedy answer lies apart and has no say; of A, A, near and far, one A is the medoid."""
    found = label_free.consensus_iou(candidates("q", [FAR, A, A, NEAR, FAR, NAN]))
    assert np.isnan(found[[0, 1, 5]]).all() and found[2:5].tolist() == pytest.approx([1, 0.8, 0])


def test_without_two_boxes_there_is_no_consensus():
    assert np.isnan(label_free.consensus_iou(candidates("q", [A, A, NAN]))).all()
    with pytest.raises(ValueError, match="no question has 2 answers with a box"):
        label_free.agreeing([candidates("q", [A, A, NAN])])


def sharp(c, rows, layer, head, coordinate):
    """The candidates with low entropy of one head at one coordinate in some rows, noise elsewhere."""
    statistics = np.array(c.statistics)
    statistics[..., ENTROPY] = np.random.default_rng(len(c.query_id)).normal(4, 0.1, statistics.shape[:4])
    statistics[rows, coordinate, layer, head, ENTROPY] = 1
    return replace(c, statistics=statistics)


def planted(count=12):
    found = []
    for index in range(count):
        c = candidates("q" * (index + 1), [FAR, A, NEAR, A, FAR, [70, 70, 90, 90]])
        found.append(sharp(c, [1, 2, 3], 2, 1, 3))
    return found


def test_the_head_that_follows_the_consensus_is_found():
    entropy, iou, query = label_free.agreeing(planted())
    assert entropy.shape == (48, 4, 3, 2) and len(set(query)) == 12
    found, coordinates = heads.separating_heads(entropy, iou, query, ((0, 1, 2, 3), (0,), (3,)), 1)
    assert found == ((2, 1),) and coordinates in ((3,), (0, 1, 2, 3))


def test_of_answers_that_all_agree_nothing_can_be_told():
    entropy, iou, query = label_free.agreeing([candidates("q", [A, A, A, NEAR])])
    with pytest.raises(ValueError, match="no question has both a good box"):
        heads.separating_heads(entropy, iou, query, ((0,),), 1)
