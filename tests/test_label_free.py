"""Heads without annotations: consensus by hand, and a head that follows it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_accuracy import candidates

from acs_lib.core.candidates import ENTROPY
from acs_lib.method import heads, label_free
from acs_lib.profiles import load_profile
from acs_lib.study import label_free as study
from acs_lib.study.experiment import Experiment

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


class FakeRun:
    """The planted answers, of which A is right."""

    queries = pd.DataFrame({"query_id": ["q" * (i + 1) for i in range(12)], "image_id": range(12), "size": "small"})
    truth = {name: np.array(A, float) for name in queries["query_id"]}

    def unanswered(self):
        return set()

    def candidates(self, maps=False):
        return iter(planted())

    def statistics(self):
        return np.concatenate([c.statistics for c in planted()])

    def records(self):
        iou = [0.0, 1, 0.8, 1, 0, 0]
        return pd.concat([
            pd.DataFrame({"query_id": c.query_id, "candidate": range(6), "failure": "", "iou": iou}) for c in planted()
        ], ignore_index=True)  # fmt: skip


def test_both_rules_find_the_planted_head_and_random_ones_do_not():
    run = FakeRun()
    found = study.found_sets(run, set(run.queries["query_id"]), 1)
    assert found["label-free"][0] == found["labelled, same rule"][0] == ((2, 1),)
    sets = study.sets_by_images(run, (3, 300), 3, 2)
    assert [each[:3] for each in sets[:2]] == [("label-free", 3, 0), ("labelled, same rule", 3, 0)]
    assert sum(each[1] == 12 for each in sets) == 2, "all images are one draw"
    assert len(study.drawn_names(run.queries, 3, 0)) == 3
    profile = load_profile("smoke")
    e = Experiment(profile, profile.lvlms[0], profile.datasets[0], run)
    sets = [("label-free", 12, 0, ((2, 1),), (3,)), ("random heads", 0, 0, ((0, 0),), (3,))]
    sets += [("random heads", 0, 1, ((2, 1),), (3,)), ("D_c", 12, 0, ((2, 1),), (3,))]
    table = study.label_free_rows(e, sets, ((2, 1), (0, 1))).set_index("method")
    assert table.loc["label-free", ["acc50", "delta_vs_greedy", "jaccard"]].tolist() == [1, 1, 0.5]
    random = table.loc["random heads", "acc50"]
    assert 0.5 <= random < 1 and table.loc["random heads", "draws"] == 2, "one of both sets is the planted head"
    assert table.loc["label-free", ["delta_vs_random", "delta_vs_d_c"]].tolist() == pytest.approx([1 - random, 0])
    assert table.loc["label-free", "delta_vs_random_hi"] > 1 - random and (table["n"] == 12).all()
    assert (table["acc50_lo"] <= table["acc50"]).all() and (table["acc50"] <= table["acc50_hi"]).all()
