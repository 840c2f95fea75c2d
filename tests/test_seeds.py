"""The spread over seeds: which runs and regressors it asks for, and its numbers by hand."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from acs_lib.core.candidates import Candidates
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import load_profile
from acs_lib.report import figures_beyond_paper
from acs_lib.study.experiment import experiments
from acs_lib.study.seeds import COLUMNS, SEEDED, regressor_seeds, resampled, sampling_seeds, seed_spread
from acs_lib.study.stages import Study

TRUTH = [0.0, 0.0, 10.0, 10.0]
QUERIES = pd.DataFrame({"query_id": ["a", "b"], "image_id": [1, 2], "size": "small"})


def answers(seed: int) -> list[Candidates]:
    """Greedy misses `a` and finds `b`; with seed 7 the first sample finds both, with seed 8 only `b`, with 9 none."""
    found = []
    for query, greedy in (("a", 2.0), ("b", 10.0)):
        first = {"a": {7}, "b": {7, 8}}[query]
        boxes = np.array([[0, 0, 10, greedy], [0, 0, 10, 9 if seed in first else 3], [0, 0, 10, 4]], float)
        tokens = [np.zeros(4)] * 3
        statistics = np.tile(np.arange(3.0)[:, None, None, None, None], (1, 4, 1, 1, 4))
        found.append(Candidates(query, "cat", 10, 10, boxes, tokens, tokens, tokens, tokens, [np.arange(4)] * 3,
                                statistics))  # fmt: skip
    return found


@dataclass(frozen=True)
class Stub(Study):
    """A study whose answers depend on the seed of sampling; regressor 0 prefers the first sample, 1 the second."""

    asked: list = field(default_factory=list)

    def run(self, lvlm, dataset, split, backend=map):
        self.asked.append((self.profile.name, self.profile.sampling.seed, split))
        found = answers(self.profile.sampling.seed)
        truth = {"a": TRUTH, "b": TRUTH}
        return SimpleNamespace(folder=None, candidates=lambda maps: found, truth=truth, queries=QUERIES, unanswered=set)

    def predicted(self, lvlm, run, seeds=None):
        preferred = 1 + (list(seeds)[0] if seeds is not None else 0)
        rows = [(q, c, abs(c - 1) / 3, float(c == preferred)) for q in ("a", "b", "large") for c in range(3)]
        return pd.DataFrame(rows, columns=["query_id", "candidate", "iou", "predicted_iou"])

    def head_set(self, lvlm):
        return HeadSet(lvlm.name, "scenes", ((0, 0),))


def both(study):
    """The tables of both sources, one below the other."""
    found = experiments(study)
    return pd.concat([sampling_seeds(study, found), regressor_seeds(study, found)], ignore_index=True)


@pytest.fixture
def study():
    profile = load_profile("smoke")
    changes = {
        "seeds": profile.seeds.model_copy(update={"sampling": 3, "regressor": 2}),
        "sampling": profile.sampling.model_copy(update={"seed": 7}),
        "lvlms": profile.lvlms[:1],
        "datasets": profile.datasets[:1],
        "bootstrap": 50,
    }
    return Stub(profile.model_copy(update=changes))


def test_every_seed_of_both_sources_has_its_rows(study):
    found = both(study)
    assert list(found.columns) == COLUMNS
    accuracy = found.pivot(index=["source", "method"], columns="seed", values="acc50")
    drawn = accuracy.loc["sampling", [7, 8, 9]]
    assert set(drawn.index) == set(SEEDED)
    assert drawn.loc["greedy"].tolist() == [0.5] * 3
    assert drawn.loc["ACS-Learned"].tolist() == drawn.loc["ACS-Free"].tolist() == [1, 0.5, 0]
    assert drawn.loc[RANDOM].tolist() == [0.5, 0.25, 0] and drawn.loc[ORACLE].tolist() == [1, 0.5, 0]
    trained = accuracy.loc["regressor", [0, 1]]
    assert list(trained.index) == ["ACS-Learned"] and trained.loc["ACS-Learned"].tolist() == [1, 0]
    r = found.set_index(["source", "seed", "method"])["pearson"]
    assert r["regressor", 0, "ACS-Learned"] < 0 < r["regressor", 1, "ACS-Learned"]
    assert found["pearson"].notna().equals(found["method"] == "ACS-Learned")


def test_other_seeds_sample_the_small_test_objects_into_runs_of_their_own(study):
    assert resampled(study, 7) is study, "the profile's own answers are the first seed's"
    other = resampled(study, 8).profile
    assert other.sampling == study.profile.sampling.model_copy(update={"seed": 8})
    assert other.name == "smoke/sampling-seed-8"
    (dataset,) = other.datasets
    assert list(dataset.splits) == ["test"] and dataset.splits["test"].queries == {"small": 48}
    assert dataset.splits["test"].seed == study.profile.datasets[0].splits["test"].seed


def test_the_spread_by_hand(study):
    spread = seed_spread(both(study)).set_index(["source", "method"])
    learned = spread.loc[("sampling", "ACS-Learned")]
    assert (learned["seeds"], learned["acc50_mean"], learned["acc50_sd"]) == (3, 0.5, 0.5)
    assert (learned["acc50_lowest"], learned["acc50_highest"]) == (0, 1)
    assert (learned["delta_vs_greedy_lowest"], learned["delta_vs_greedy_highest"]) == (-0.5, 0.5)
    assert spread.loc[("sampling", "greedy"), "acc50_sd"] == 0
    assert spread.loc[("regressor", "ACS-Learned"), "acc50_sd"] == pytest.approx(0.5**0.5)


def test_the_figure_has_a_point_a_seed(study):
    found = both(study)
    axes = figures_beyond_paper.seeds(found).axes[0]
    points = {line.get_label(): len(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata())}
    assert points == {"seeds of sampling": 3 * len(SEEDED), "seeds of regressor": 2}
    axes = figures_beyond_paper.seeds(sampling_seeds(study, experiments(study))).axes[0]
    assert [line.get_label() for line in axes.get_lines() if len(line.get_xdata())] == ["seeds of sampling"]


def test_a_profile_without_seeds_samples_nothing_again_and_has_its_own_regressor(study):
    none = study.profile.model_copy(update={"seeds": study.profile.seeds.model_copy(update=dict.fromkeys(
        ("sampling", "regressor"), 0))})  # fmt: skip
    found = experiments(study)
    assert sampling_seeds(Stub(none), found).empty and not Stub(none).asked
    assert regressor_seeds(Stub(none), found)["seed"].tolist() == [0]
