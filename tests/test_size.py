"""What size and category explain: partial correlations, the regressor on size and the gain by category, by hand."""

import numpy as np
import pandas as pd
import pytest
from test_accuracy import candidates

from acs_lib.embedded.scenes import CATEGORIES, RARE
from acs_lib.method import heads
from acs_lib.method.selection import Selector
from acs_lib.profiles import load_profile
from acs_lib.report import figures_beyond_paper
from acs_lib.study import size
from acs_lib.study.experiment import Experiment


def test_partial_correlation_removes_a_mere_size_effect():
    rng = np.random.default_rng(0)
    area = rng.normal(size=4000)
    entropy, iou = area + 0.3 * rng.normal(size=4000), area + 0.3 * rng.normal(size=4000)
    assert np.corrcoef(entropy, iou)[0, 1] > 0.9
    assert abs(size.partial_correlation(entropy, iou, area[:, None])) < 0.05
    x, y, z = rng.normal(size=(3, 200))
    r = np.corrcoef([x, y, z])
    textbook = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert size.partial_correlation(x, y, z[:, None]) == pytest.approx(textbook)
    assert np.isnan(size.partial_correlation(z, y, z[:, None]))


def test_partial_correlation_removes_a_mere_category_effect():
    rng = np.random.default_rng(0)
    category = rng.integers(3, size=3000)
    entropy, iou = (np.array([0.0, 2, 5])[category] + 0.3 * rng.normal(size=3000) for _ in range(2))
    noise = rng.normal(size=(3000, 1))
    assert size.partial_correlation(entropy, iou, noise) > 0.9
    assert abs(size.partial_correlation(entropy, iou, noise, category)) < 0.05
    design = np.column_stack([noise, category == 0, category == 1, category == 2]).astype(float)
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (entropy, iou)]
    assert size.partial_correlation(entropy, iou, noise, category) == pytest.approx(np.corrcoef(rest)[0, 1])


def test_size_effect_has_the_prediction_every_head_and_both_means():
    rng = np.random.default_rng(0)
    records = pd.DataFrame({
        "image": np.repeat(np.arange(30), 4), "category": np.tile(["dog", "cat"], 60), "iou": rng.random(120),
        "object_area": rng.random(120) + 0.1,
        "box_area": np.where(np.arange(120) == 7, 0, rng.random(120) + 0.1),
    })  # fmt: skip
    entropy = rng.normal(size=(120, 4, 2, 2))
    entropy[:, :, 1, 0] = -records["iou"].to_numpy()[:, None]
    entropy[:, 3, 1, 0] = 0  # not one of D_c's coordinates
    head_set = heads.HeadSet("tiny", "scenes", ((1, 0),), (0, 2))
    table = size.size_effect(records, entropy, 0.5 * records["iou"].to_numpy(), head_set, draws=20)
    single = ["entropy, one head"] * 4
    assert table["score"].tolist() == ["ACS-Learned", "entropy, D_c", "entropy, all heads", *single]
    assert (table["n"] == 119).all()
    columns = ["pearson", *size.PARTIAL]
    rows = table.set_index("score")
    assert rows.loc["entropy, D_c", columns].tolist() == pytest.approx([-1] * 3)
    assert rows.loc["ACS-Learned", columns].tolist() == pytest.approx([1] * 3)
    found = table[table["score"] == single[0]].set_index(["layer", "head"])["pearson"]
    assert found[(1, 0)] == pytest.approx(-1) and found.abs().nsmallest(3).max() < 0.5


def test_a_regressor_on_size_alone_is_the_mean_iou_of_boxes_of_that_size():
    share = np.repeat([0.01, 0.04], 30)
    iou = np.where(share == 0.01, 0.2, 0.8)
    selector = size.learned_size(share, iou)
    found = selector.score(candidates("a", [[0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 90, 90], [np.nan] * 4]))
    assert found[:3] == pytest.approx([0.2, 0.8, 0.8]) and np.isnan(found[3]), "images of 100 x 100 px"
    middle = selector.score(candidates("a", [[0, 0, 10, 20]]))
    assert middle == pytest.approx([0.5]), "halfway in log area"


class Answers:
    """Greedy misses both objects, ACS-Learned finds the rare one; both are small."""

    names = {"a": CATEGORIES[min(RARE)], "b": CATEGORIES[min(set(range(len(CATEGORIES))) - RARE)]}
    truth = {"a": [0, 0, 10, 10], "b": [0, 0, 10, 10]}
    queries = pd.DataFrame({"query_id": ["a", "b"], "image_id": [1, 2], "size": "small", "category": names.values()})

    def unanswered(self):
        return set()

    def candidates(self, maps=False):
        for name in self.truth:
            yield candidates(name, [[0, 0, 1, 1], [0, 0, 10, 10 if name == "a" else 4], [50, 50, 60, 60]])


def test_the_gain_is_told_for_rare_and_for_common_categories():
    profile = load_profile("smoke").model_copy(update={"bootstrap": 20})
    e = Experiment(profile, profile.lvlms[0], profile.datasets[0], Answers())
    first = Selector("", "acs-learned", lambda c: np.array([0.0, 1, 0]), "")
    names = ("greedy", size.SMALLEST, size.FREE, size.LEARNED)
    e.__dict__["selectors"] = {name: Selector(name, first.family, first.score, "") for name in names}
    e.selectors["greedy"] = Selector("greedy", "control", lambda c: np.array([1.0, np.nan, np.nan]), "", pool="all")
    last = Selector(size.SIZE, "control", lambda c: np.array([0.0, 0, 1]), "")
    table = size.size_and_category(e, last)
    rows = table.set_index(["categories", "method"])
    gains = {name: rows.loc[(name, size.LEARNED), "delta_vs_greedy"] for name in ("all", "rare, small only", "common")}
    assert gains == {"all": 0.5, "rare, small only": 1, "common": 0}
    assert rows.loc[("all", size.LEARNED), "delta_vs_size"] == 0.5 and rows.loc[("all", size.SIZE), "acc50"] == 0
    assert rows["n_queries"].groupby("categories").first().to_dict() == {"all": 2, "rare, small only": 1, "common": 1}
    assert (
        rows.loc[("rare, small only", size.LEARNED), "auroc"] == 1
        and (rows["n_answers"] == 3 * rows["n_queries"]).all()
    )
    (axes,) = figures_beyond_paper.gains_by_category(e.labelled(table)).axes
    rows = [f"{group}: {name}" for group in ("rare", "common") for name in figures_beyond_paper.SIZED]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows and axes.get_title().endswith("scenes")
    (gained,) = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "*"]
    assert gained == [[100, 0], [0, 3]], "points, the rare categories first"


def test_photographs_have_no_rare_categories():
    profile = load_profile("smoke")
    dataset = profile.datasets[0].model_copy(update={"kind": "coco"})
    assert list(size.category_groups(Experiment(profile, profile.lvlms[0], dataset, Answers()))) == ["all"]
