"""Which boxes are one object, by hand; and every box of a list with what is read of it."""

import numpy as np
import pytest

from acs_lib.method import instances

A, A2, B, C = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60], [4, 0, 14, 10]


def test_boxes_that_overlap_are_one_instance_and_the_best_one_stands_for_it():
    boxes = np.array([A, B, A2, C, B], float)
    scores = np.array([0.5, 0.1, 0.9, 0.4, 0.3])
    assert instances.clusters(boxes, scores).tolist() == [0, 2, 0, 1, 2], "C overlaps A by 0.43"
    found = instances.instances(boxes, scores, np.array([0, 0, 1, 2, 2]), answers=4)
    assert found[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [A2, C, B]
    assert found["row"].tolist() == [2, 3, 4] and found["score"].tolist() == [0.9, 0.4, 0.3]
    assert found["votes"].tolist() == [0.5, 0.25, 0.5] and found["boxes"].tolist() == [2, 1, 2]


def test_an_answer_that_names_an_instance_twice_has_one_vote():
    found = instances.instances(np.array([A, A, A], float), np.ones(3), np.array([0, 0, 1]), answers=2)
    assert (found["votes"].tolist(), found["boxes"].tolist(), found["row"].tolist()) == ([1.0], [3], [0])


def test_a_box_without_a_score_comes_last_and_keeps_its_own_score():
    found = instances.instances(np.array([A, B, A2], float), np.array([np.nan, 0.2, 0.1]), np.arange(3), answers=3)
    assert found["row"].tolist() == [1, 2] and found["boxes"].tolist() == [1, 2]
    alone = instances.instances(np.array([A], float), np.array([np.nan]), np.zeros(1, int), answers=1)
    assert np.isnan(alone["score"]).all() and len(alone) == 1


def test_of_nothing_there_is_no_instance():
    found = instances.instances(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), answers=5)
    assert len(found) == 0 and list(found) == ["x1", "y1", "x2", "y2", "row", "score", "votes", "boxes"]


@pytest.mark.parametrize("same", [0.4, 0.5, 0.8])
def test_instances_do_not_overlap_by_more_than_is_said(same):
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 20, (60, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 15, (60, 2))], 1).astype(float)
    found = instances.instances(boxes, rng.random(60), rng.integers(0, 10, 60), 10, same)
    kept = found[["x1", "y1", "x2", "y2"]].to_numpy()
    overlap = instances.bx.iou(kept[:, None], kept[None]) - np.eye(len(kept))
    assert overlap.max() < same and found["score"].is_monotonic_decreasing and found["boxes"].sum() == 60
