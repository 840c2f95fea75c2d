"""Other attributions, stability and transfer, against hand-worked cases."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_accuracy import candidates

from acs_lib.core.candidates import ENTROPY
from acs_lib.evaluation.bootstrap import image_counts, share_interval
from acs_lib.method import heads
from acs_lib.profiles import load_profile
from acs_lib.study import robustness
from acs_lib.study.experiment import Experiment

SHAPE = (4, 3, 2, 2, 2)  # coordinates, layers, heads, h, w


def linear(weights):
    return lambda maps: (maps * weights).sum((1, 2, 3, 4, 5))


def test_integrated_gradients_of_a_line_and_of_a_square():
    maps, weights = torch.rand(5, *SHAPE), torch.rand(SHAPE)
    baseline = torch.rand(1, *SHAPE)
    found = robustness.integrated_gradients(linear(weights), maps, baseline)
    assert torch.allclose(found, (maps - baseline) * weights, atol=1e-6)

    def square(values):
        return (values**2 * weights).sum((1, 2, 3, 4, 5))

    found = robustness.integrated_gradients(square, maps, baseline)
    assert torch.allclose(found, (maps**2 - baseline**2) * weights, atol=1e-5)
    assert torch.allclose(found.sum((1, 2, 3, 4, 5)), square(maps) - square(baseline), atol=1e-4)


def test_occlusion_sees_the_only_layer_that_counts():
    weights = torch.zeros(SHAPE)
    weights[:, 1] = 1
    maps = torch.ones(2, *SHAPE)
    maps[1] = 3
    baseline = torch.full((1, *SHAPE), 2.0)
    assert robustness.occlusion(linear(weights), maps, baseline).tolist() == [[0, 32, 0]] * 2  # 32 values, each 1
    assert maps[0].unique().tolist() == [1]


def test_shares_vary_with_the_images_that_are_drawn():
    values, images = np.array([[1.0, 1], [1, 1], [3, 1], [1, 3]]), np.array(["a", "a", "b", "c"])
    lo, hi = share_interval(values, images, draws=2000)
    assert lo == pytest.approx([0.25, 0.25]) and hi == pytest.approx([0.75, 0.75]), "b alone and c alone are drawn"
    assert np.ptp(share_interval(values[:2], images[:2], draws=20)) == 0, "one image does not vary"


def test_agreement_by_hand():
    table = pd.DataFrame({"layer": range(3), **dict(zip(robustness.ATTRIBUTIONS, ([1, 2, 3], [2, 4, 9], [3, 2, 1])))})
    scores = np.array([[0.9, 0.6], [0.8, 0.5], [0.7, 0.4]])
    found = robustness.attribution_agreement(table, scores, layers=2, count=2)
    assert found["spearman"].tolist() == pytest.approx([1, -1, -1])
    assert found["jaccard"].tolist() == pytest.approx([1, 1 / 3, 1 / 3]), "(1, 0) (2, 0) against (0, 0) (1, 0)"


def made_up(images=40, each=6):
    """Entropy of head (1, 0) tells good boxes from misses, the others are noise."""
    rng = np.random.default_rng(0)
    records = pd.DataFrame({"image": np.repeat(np.arange(images), each)})
    records["iou"] = np.where(rng.random(len(records)) < 0.5, 0.9, 0.0)
    records["query_id"] = records["image"].astype(str)
    entropy = rng.normal(3, 1, (len(records), 2, 2))
    entropy[:, 1, 0] -= 3 * (records["iou"] > 0.6)
    return records, entropy


def test_a_draw_is_the_separation_of_the_images_it_drew():
    records, entropy = made_up()
    images = records["image"].to_numpy()
    drawn = robustness.drawn_aurocs(entropy, records["iou"].to_numpy(), images, draws=3)
    counts = image_counts(40, 3)
    for values, count in zip(drawn, counts):
        rows = np.repeat(np.arange(len(images)), count[images])
        assert values == pytest.approx(heads.entropy_auroc(entropy[rows], records["iou"].to_numpy()[rows]))


def test_an_image_without_a_good_box_or_miss_still_counts_as_an_image():
    iou, images = np.array([0.9, 0.0, 0.5]), np.array([0, 1, 2])
    drawn = robustness.drawn_aurocs(np.array([1.0, 2, 3])[:, None], iou, images, draws=50)
    assert drawn.shape == (50, 1)
    assert np.isnan(drawn).any() and set(drawn[~np.isnan(drawn)]) == {1.0}


def test_stability_of_a_head_that_counts():
    records, entropy = made_up()
    table, kept = robustness.stability(entropy, records, np.array([0.4, 0.6]), layers=2, count=1, draws=50)
    best = table.set_index(["layer", "head"]).loc[(1, 0)]
    assert best["selected"] and best["share_of_draws"] == 1
    assert best["auroc_lo"] <= best["auroc"] <= best["auroc_hi"]
    assert kept == {"kept": 1, "lo": 1, "hi": 1}
    assert table["selected"].sum() == 1
    other = robustness.stability(entropy, records, np.array([0.6, 0.4]), layers=1, count=1, draws=50)[0]
    assert (other.groupby("layer")["share_of_draws"].sum() == [1, 0]).all()


def test_overlap_and_halves():
    assert robustness.jaccard(((0, 1), (1, 1)), ((1, 1), (2, 0))) == pytest.approx(1 / 3)
    images = np.array([0, 0, 1, 2, 3, 3])
    half = robustness.halves(images)
    assert half[0] == half[1] and half[4] == half[5]
    assert np.bincount(half[[0, 2, 3, 4]]).tolist() == [2, 2]


class FakeRun:
    """Two queries; head (0, 0) has the lower entropy on the good box, head (0, 1) on the bad one."""

    truth = {"a": [0, 0, 10, 10], "b": [0, 0, 10, 10]}
    queries = pd.DataFrame({"query_id": ["a", "b"], "image_id": [1, 2], "size": "small"})

    def unanswered(self):
        return set()

    def candidates(self, maps=False):
        for name in self.truth:
            found = candidates(name, [[0, 0, 1, 1], [0, 0, 10, 10], [50, 50, 60, 60]])
            found.statistics[1, :, 0, 1, ENTROPY] = found.statistics[2, :, 0, 0, ENTROPY] = 1
            yield found


def test_transfer_takes_each_querys_own_heads():
    profile = load_profile("smoke")
    e = Experiment(profile, profile.lvlms[0], profile.datasets[0], FakeRun())
    sets = {"right": ((0, 0),), "wrong": ((0, 1),), "crossed": {"a": ((0, 1),), "b": ((0, 0),)}}
    table = robustness.transfer_rows(e, sets, (0, 1, 2, 3), 50).set_index("found_on")
    assert table["acc50"].to_dict() == {"right": 1, "wrong": 0, "crossed": 0.5}
    assert (table["n_queries"] == 2).all()
