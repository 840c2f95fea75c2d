"""Ablations and cost: changed inputs and selectors by hand, and all tables and figures on a planted study."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from test_accuracy import candidates
from test_regressor import HEADS, LAYERS, planted
from test_store import make_queries

from acs_lib import paths
from acs_lib.core.candidates import STATISTICS
from acs_lib.evaluation.accuracy import ORACLE, RANDOM, make_choices
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import acs_free, acs_learned, stored_scores
from acs_lib.profiles import Profile, load_profile
from acs_lib.report import figures as paper_figures
from acs_lib.report import figures_beyond_paper as figures
from acs_lib.report import sentences
from acs_lib.runs import store
from acs_lib.study import ablations, results, robustness, size
from acs_lib.study.cost import STAGES, peak_memory, timed
from acs_lib.study.experiment import Experiment, experiments
from acs_lib.study.stages import Study

MAPS = np.random.default_rng(0).random((3, 4, 2, 2, 2, 2)).astype(np.float32)
NUMBERS = np.random.default_rng(1).random((3, 4, 2, 2, 4)).astype(np.float32)
BOXES = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 0.25], [np.nan] * 4])


def planted_misses(part):
    """Small objects; of the planted answers those with the most even maps are misses (IoU 0)."""
    answers = planted(part)
    for found, _ in answers:
        missed = found.boxes[:, 2] < 16
        found.boxes[missed] = [60, 60, 70, 80]
    return answers


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    queries = make_queries(300).assign(size="small", area_fraction=0.004)
    parts = {"train": queries[:200], "validation": queries[200:240], "test": queries[240:]}
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: store.fill(folder / name, part.reset_index(drop=True), planted_misses, {}, 100)
        for name, part in parts.items()
    }


def test_renormalised_maps_sum_to_one():
    found = ablations.renormalised(MAPS, NUMBERS, BOXES)
    assert found.sum((-1, -2)) == pytest.approx(np.ones((3, 4, 2, 2)), abs=1e-5)
    assert found[0, 0, 0, 0] == pytest.approx(MAPS[0, 0, 0, 0] / MAPS[0, 0, 0, 0].sum(dtype=float), abs=1e-3)


def test_the_box_mask_is_one_more_layer():
    found = ablations.with_box_mask(MAPS, NUMBERS, BOXES)
    assert found.shape == (3, 4, 3, 2, 2, 2)
    assert (found[:, :, :2] == MAPS).all()
    assert found[0, 0, 2, 0].tolist() == [[1, 0], [0, 0]]
    assert found[1, 3, 2, 1].tolist() == [[0.5, 0.5], [0, 0]]
    assert (found[2, :, 2] == 0).all()


def test_statistics_alone_have_no_place():
    found = ablations.statistics_alone(MAPS, NUMBERS, BOXES)
    assert found.shape == (3, 4, 2, 8, 1, 1)
    assert sorted(found[1, 2, 1].ravel()) == sorted(NUMBERS[1, 2, 1].ravel())
    blind = ablations.statistics_without_box(MAPS, NUMBERS, BOXES)
    kept = [index for index, name in enumerate(STATISTICS) if name != "mass_in_box"]
    assert blind.shape == (3, 4, 2, 6, 1, 1) and sorted(blind[1, 2, 1].ravel()) == sorted(
        NUMBERS[1, 2, 1][:, kept].ravel()
    )


def test_a_changed_run_gives_each_query_its_own_rows(runs):
    run = runs["test"]
    seen = []

    def change(maps, statistics, boxes):
        seen.append((statistics, boxes))
        return maps * 0 + boxes[:, 2].reshape(-1, 1, 1, 1, 1, 1)

    found = np.concatenate(list(ablations.TransformedRun(run, change).maps(0)))
    records = run.records(0)
    assert found[:, 0, 0, 0, 0, 0] == pytest.approx(records["box_x2"].to_numpy() / 100, rel=1e-5)
    assert (np.concatenate([statistics for statistics, _ in seen]) == run.statistics(0)).all()
    assert ablations.TransformedRun(runs["train"], most=2).shards == [0, 1]
    assert ablations.TransformedRun(run).shards == run.shards
    assert next(ablations.TransformedRun(run).maps(0)).dtype == np.float16


def test_looked_up_scores_stand_at_their_candidates():
    predictions = pd.DataFrame({"query_id": ["a", "a"], "candidate": [2, 0], "predicted": [0.2, 0.7]})
    score = stored_scores(predictions, "predicted")
    known = score(candidates("a", [[0, 0, 1, 1]] * 3))
    assert known[[0, 2]].tolist() == [0.7, 0.2] and np.isnan(known[1])
    assert np.isnan(score(candidates("b", [[0, 0, 1, 1]] * 2))).all()


def test_raw_entropy_is_that_of_the_raw_map():
    c = candidates("a", [[0, 0, 1, 1]])
    attention = np.array([0.1, 0.3, 0.2])
    share = attention / attention.sum()
    c.statistics[..., STATISTICS.index("entropy")] = -(share * np.log(share)).sum()
    c.statistics[..., STATISTICS.index("mass")] = attention.sum()
    assert ablations.raw_entropy(c) == pytest.approx(np.full((1, 4, 3, 2), -(attention * np.log(attention)).sum()))


def test_signals_read_d_cs_heads_and_coordinates_with_their_sign():
    head_set = HeadSet("tiny", "scenes", ((1, 0),), (0, 2))
    c = candidates("a", [[0, 0, 1, 1]])
    c.statistics[:] = 100
    for index, value in enumerate((2.0, 0.5, 0.1, 0.3)):  # entropy, mass, mass in box, peak
        c.statistics[:, [0, 2], 1, 0, index] = value
    c = ablations.replace(c, maps=np.zeros((1, 4, 3, 2, 1, 3)))
    c.maps[:, [0, 2], 1, 0] = [0.5, 0, 0.5]
    scores = {value: selector.score(c)[0] for value, selector in ablations.signals(head_set)}
    assert scores == pytest.approx(
        {
            "entropy": -2,
            "entropy of the raw map": -0.5 * (2 - np.log(0.5)),
            "maximum of the renormalised map": 0.3,
            "mass on the image": 0.5,
            "mass inside the box": 0.1,
            "share of the mass inside the box": 0.2,
            "spatial entropy": -np.log(2),
        }
    )


def test_counts_of_heads_are_nested():
    head_set = HeadSet("tiny", "scenes", ((0, 0), (0, 1)), (0,))
    scores = np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.95]])
    found = ablations.counts_of_heads(np.array([0.2, 0.5, 0.3]), scores, head_set)
    assert [value for value, _ in found["layers that D_c is taken from"]] == ["1", "2", "3"]
    assert [value for value, _ in found["heads in D_c"]] == ["1", "2", "3", "5", "6"]
    c = candidates("a", [[0, 0, 1, 1]])
    c.statistics[..., 0] = np.arange(6).reshape(3, 2)
    first, second, third = (selector.score(c)[0] for _, selector in found["layers that D_c is taken from"])
    assert (first, second, third) == (-2.5, -3.5, -2.5)  # heads (1, 0) (1, 1); (2, 1) (1, 0); (2, 1) (0, 0)
    assert found["heads in D_c"][-1][1].score(c)[0] == -2.5


class Answered:
    """The run of two queries, whose object is at (0, 0, 10, 10)."""

    truth: ClassVar[dict] = {"a": [0, 0, 10, 10], "b": [0, 0, 10, 10]}
    queries = pd.DataFrame({"query_id": ["a", "b"], "image_id": [1, 2], "size": "small"})

    def __init__(self, world=()):
        self.world = world

    def candidates(self, maps=False):
        return iter(self.world)

    def unanswered(self):
        return set()


def an_experiment(world=()):
    profile = load_profile("smoke")
    return Experiment(profile, profile.lvlms[0], profile.datasets[0], Answered(world))


def test_rows_by_hand():
    world = [candidates(name, [[0, 0, 1, 1], [0, 0, 10, 10], [50, 50, 60, 60]]) for name in "ab"]
    for c in world:
        c.statistics[2, :, 0, 0, 0] = c.statistics[1, :, 0, 1, 0] = 1  # head (0, 0) is right, (0, 1) is not
    named = [("right", acs_free([(0, 0)])), ("wrong", acs_free([(0, 1)]))]
    standard = make_choices(world, Answered.truth, [SELECTORS["greedy"], acs_free([(0, 1)])])
    table = ablations.rows(an_experiment(world), "head", named, kept=("greedy",), standard=standard)
    assert list(table.columns) == ablations.COLUMNS
    gains = table.set_index(["method", "value"])[["delta", "delta_lo", "delta_hi"]]
    assert gains.loc[("ACS-Free", "right")].tolist() == [1, 1, 1]
    assert (gains.loc[[("ACS-Free", "wrong"), ("greedy", "right")]] == 0).all(axis=None)
    assert table.set_index(["value", "method"])["acc50"].to_dict() == {
        ("right", "greedy"): 0, ("right", "ACS-Free"): 1, ("wrong", "ACS-Free"): 0,
    }  # fmt: skip
    assert set(table["factor"]) == {"head"} and (table["n_queries"] == 2).all()


def test_a_variant_changes_what_it_says_and_has_its_own_folder():
    study = Study(load_profile("ablations"))
    hot = ablations.changed(study, "hot", temperature=1.1).profile
    assert hot.sampling.temperature == 1.1 and hot.sampling.samples == study.profile.sampling.samples
    assert hot.name == "ablations/hot"
    assert [dataset.name for dataset in hot.datasets] == ["scenes"]
    given = {split: spec.queries["small"] for split, spec in study.train_set.splits.items()}
    assert hot.datasets[0].splits["test"].queries == {"small": given["test"]}
    large = ablations.changed(study, "large", size="large").profile.datasets[0].splits
    assert large["train"].queries == {"large": given["train"]} and large["test"].queries == {"small": given["test"]}
    other = ablations.changed(study, "other", train_on="scenes-shift")
    assert other.train_set.name == "scenes-shift" and len(other.profile.datasets) == 1
    assert study.profile.sampling.temperature == 0.8


def test_no_split_of_the_ablations_shares_its_scenes_with_another():
    """A rendered split is a function of its world and seed."""
    worlds = [
        (dataset.name, split.seed)
        for dataset in load_profile("ablations").datasets
        for split in dataset.splits.values()
    ]
    assert len(set(worlds)) == len(worlds) == 6


def test_rows_that_an_answer_does_not_have():
    def told(*tokens):
        return set(ablations.unread_rows(pd.DataFrame({"failure": "", "coordinate_tokens": list(tokens)})))

    assert told([1, 2, 3, 4], [1, 2, 3, 4]) == {"last", "after"}
    assert told([1, 3, 5, 7]) == {"last"}, "commas"
    assert told([1, 2, 3, 4, 5, 6, 7]) == {"after"}, "several digits a number"
    assert told([1, 2, 4, 5, 7, 8, 10]) == set(), "several digits and commas, as Qwen2.5-VL writes them"
    failed = pd.DataFrame({"failure": ["no box in the answer", ""], "coordinate_tokens": [[], [1, 3, 5, 7]]})
    assert set(ablations.unread_rows(failed)) == {"last"}


def test_cocos_threshold_is_in_pixels_of_photographs():
    queries = pd.DataFrame({"width": [1000, 320], "height": [1000, 320], "area_fraction": [0.002, 0.009]})
    scenes, photographs = ablations.small_parts(queries, False), ablations.small_parts(queries, True)
    assert {value: list(part.index) for value, part in scenes.items()} == {
        "0.33 % (COCO's 32^2)": [0], "0.5 %": [0], "1 %": [0, 1], "5 %": [0, 1],
    }  # fmt: skip
    assert list(photographs["COCO's 32^2 px"].index) == [1], "45 x 45 px are not small, however large the image"


def test_photographs_thresholds_hold_what_lies_on_them():
    """32x32, 64x48 (1 %) and 128x120 px (5 %) of 640x480."""
    share = np.array([32 * 32, 64 * 48, 128 * 120]) / (640 * 480)
    queries = pd.DataFrame({"width": 640, "height": 480, "area_fraction": share})
    found = {value: list(part.index) for value, part in ablations.small_parts(queries, True).items()}
    assert found == {"COCO's 32^2 px": [0], "0.5 %": [0], "1 %": [0, 1], "5 %": [0, 1, 2]}


def test_selectors_of_one_name_are_one_method():
    world = [candidates(name, [[0, 0, 1, 1], [0, 0, 10, 10], [50, 50, 60, 60]]) for name in "ab"]

    def pick(row):
        return acs_learned(lambda c: np.eye(3)[row])

    found = ablations.choices_by_method(an_experiment(), [pick(1), pick(2), pick(1)], world)
    rows = found[found["method"] == "ACS-Learned"]
    assert rows["hit"].tolist() == pytest.approx([2 / 3] * 2) and len(rows) == 2
    assert not found.duplicated(["query_id", "method"]).any()


def test_numbers_are_told_from_words():
    table = pd.DataFrame({"factor": ["t", "t", "s", "s"], "value": ["0.5", "1", "1", "all"]})
    assert ablations.numeric(table)["value"].tolist() == [0.5, 1]


@pytest.mark.parametrize(("measure", "least"), [(timed, 0.001), (peak_memory, 1e8)])
def test_seconds_and_memory_are_seen(measure, least):
    with measure() as found:
        held = torch.ones(40_000_000)
        held.sum()
    assert found["value"] > least


# ----------------------------------------------------------------------------------------------- a planted study


class Planted(Study):
    """A study whose runs are given, whatever its sampling."""

    given: ClassVar[dict] = {}

    def run(self, lvlm, dataset, split, backend=map):
        return self.given[split]


@pytest.fixture(scope="module")
def study(runs, tmp_path_factory):
    content = load_profile("smoke").model_dump()
    content["datasets"], content["lvlms"] = content["datasets"][:1], content["lvlms"][:1]
    content |= {"bootstrap": 50, "regressor": {"width": 8, "epochs": 2}, "heads": {"layers": [2], "counts": [1]}}
    content["ablations"] = {
        "widths": [4], "train_shards": [1], "temperatures": [1.1], "top_ps": [1.0],
        "rows": ["predicting", "last", "after"], "trained_on": ["large"], "samples": 12,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path_factory.mktemp("planted"))
        for variant in (
            "",
            "temperature-1.1",
            "top-p-1",
            "row-predicting",
            "trained-on-large",
            "found-on-scenes-shift",
        ):
            (paths.RUNS / content["name"] / variant / "internvl-embedded").mkdir(parents=True)
        patch.setattr(Planted, "given", runs)
        yield Planted(Profile.model_validate(content))


def found_and_resolved(study):
    for lvlm in study.profile.lvlms:
        study.find_heads(lvlm)
    return experiments(study)


def test_what_is_trained_anew_is_trained_once(study, monkeypatch):
    """A killed notebook goes on after the regressors that it has trained; another input or width is another one."""
    (e, *_) = found_and_resolved(study)
    training = ablations.Training.of(study, e.lvlm)
    trained = []
    train = ablations.regressor.train
    monkeypatch.setattr(
        ablations.regressor, "train", lambda *runs, **known: (trained.append(known["width"]), train(*runs, **known))[1]
    )

    def scores(change=None, **settings):
        chosen = ablations.retrained(training, e, change, **settings)
        return np.array([[selector.score(c) for c in e.run.candidates()] for selector in chosen])

    first = scores(ablations.renormalised, width=5)
    assert trained == [5] * len(training.models)
    np.testing.assert_array_equal(scores(ablations.renormalised, width=5), first)
    assert trained == [5] * len(training.models), "the second time it is read"
    assert (scores(width=5) != first).any() and (scores(ablations.renormalised, width=6) != first).any()
    assert sorted(trained) == sorted([5, 5, 6] * len(training.models))


def test_stored_ablations_of_a_planted_study(study):
    columns = found_and_resolved(study)
    table = ablations.ablation_table(study, columns)
    assert list(table.columns) == ablations.COLUMNS
    assert table["acc50"].between(0, 1).all() and (table["acc50_lo"] <= table["acc50_hi"]).all()
    values = table.groupby("factor", sort=False)["value"].agg(set)
    assert values["regressor's width"] == {"4", "8"}
    assert values["training queries"] == {"64", "200"}
    assert values["regressor's input"] == {"maps (the paper's)", *ablations.INPUTS}
    assert values["temperature"] == {"0.8", "1.1"} and values["top-p"] == {"0.6", "1"}
    assert values["row read"] == {"own", "predicting"}, "planted answers have neither commas nor several digits"
    assert "'after' is left out, since no token" in sentences.rows_left_out(columns)
    assert values["samples"] == {str(n) for n in range(1, 13)}
    best = table[(table["factor"] == "samples") & (table["method"] == ORACLE)]["acc50"]
    assert best.is_monotonic_increasing and best.iloc[0] < best.iloc[-1]
    assert values["trained on size"] == {"small", "large"}
    base = table[table["factor"] == "as the profile has it"].set_index("method")["acc50"]
    assert base["ACS-Free"] == base[ORACLE] > base[RANDOM], "the planted head tells all"
    sampled = table[table["factor"] == "temperature"]
    assert sampled.groupby("method")["acc50"].nunique().eq(1).all(), "the planted runs do not depend on it"
    heads = table[table["factor"] == "heads in D_c"].set_index("value")
    assert heads["acc50"]["1"] == base["ACS-Free"]
    assert heads["delta"].tolist() == pytest.approx((heads["acc50"] - base["ACS-Free"]).tolist())
    assert table["delta"].isna().tolist() == table["factor"].isin(["threshold of small", "applied to size"]).tolist()
    (axes,) = figures.ablation_forest(table).axes
    told = {label.get_text().partition(":")[0] for label in axes.get_yticklabels() if ":" in label.get_text()}
    factors = set(values.index) - {"as the profile has it", "threshold of small", "applied to size"}
    assert told == {factor.replace("D_c", "$D_c$") for factor in factors}, "those of the same queries"


def test_heads_and_regressor_of_either_dataset_are_applied_to_both(study):
    content = study.profile.model_dump()
    content["datasets"] += (load_profile("ablations").datasets[1].model_dump(),)
    both = Planted(Profile.model_validate(content))
    columns = found_and_resolved(both)
    table = pd.concat(ablations.crossed(ablations.trainings_by_dataset(both, both.profile.lvlms[0]), columns))
    table = table[table["method"] == "ACS-Free"]
    assert table[["value", "dataset"]].to_numpy().tolist() == [
        ["scenes, on scenes", "scenes"],
        ["scenes-shift, on scenes", "scenes"],
        ["scenes, on scenes-shift", "scenes-shift"],
        ["scenes-shift, on scenes-shift", "scenes-shift"],
    ]
    assert (table[["delta", "delta_lo", "delta_hi"]] == 0).all(axis=None), "the planted runs are the same"
    content["datasets"][1]["splits"] = {"test": content["datasets"][1]["splits"]["test"]}
    alone = Planted(Profile.model_validate(content))
    trainings = ablations.trainings_by_dataset(alone, alone.profile.lvlms[0])
    table = pd.concat(ablations.crossed(trainings, experiments(alone)))
    assert table["dataset"].unique().tolist() == ["scenes", "scenes-shift"]
    assert table["value"].str.startswith("scenes, on").all()


def test_a_sentence_names_only_changes_whose_interval_leaves_out_zero():
    values = {"hot": (0.05, 0.01, 0.09), "cold": (-0.04, -0.09, 0.01), "own": (0, 0, 0)}
    table = pd.DataFrame(
        [
            {"factor": factor, "value": value, "lvlm": "tiny", "dataset": "scenes", "method": "ACS-Free",
             "delta": delta, "delta_lo": lo, "delta_hi": hi}
            for factor, names in {"temperature": ("hot", "cold", "own"), "row read": ("cold", "own")}.items()
            for value, (delta, lo, hi) in ((name, values[name]) for name in names)
        ]
    )  # fmt: skip
    said = sentences.say_ablations(table).data
    hot = "gained most by temperature = hot (tiny on scenes, +5.0 [+1.0, +9.0])."
    assert f"ACS-Free depends on 1 of 3 changes to it; {hot}" in said
    assert "cold" not in said and "lost" not in said


def test_confidence_and_calibration_of_a_planted_study(study):
    columns = found_and_resolved(study)
    table, curves = results.confidence_tables(columns)
    rows = table[table["answers"] == "all"].set_index("method")
    assert "greedy" not in rows.index and rows["auroc"]["ACS-Free"] > 0.95
    assert rows["auroc"]["sequence log-prob"] == 0.5, "all equal: every pair is a tie"
    assert rows["published_auroc"].notna().sum() == 2
    said = sentences.say_confidence(table).data
    for name in ("ACS-Learned", "ACS-Free"):
        assert f"{name} {rows['auroc'][name]:.2f} to {rows['auroc'][name]:.2f}" in said
    assert "0.890 and 0.916" in said and "(published, other LVLMs" in said
    assert len(figures.confidence(table).axes) == len(figures.risk_coverage(curves).axes) == 1
    bins, errors = results.reliability_tables(columns)
    assert bins["n"].sum() == errors["n"].iloc[0] and errors["ece"].between(0, 1).all()
    assert f"ECE = {errors['ece'].iloc[0]:.3f}" in [
        text.get_text() for text in figures.reliability_diagram(bins, errors).axes[0].texts
    ]


def test_p_true_of_an_lvlm_that_is_asked_is_a_score_as_well(study, monkeypatch):
    asked = study.given["test"].records().rename(columns={"iou": "p_true"})[["query_id", "candidate", "p_true"]]
    monkeypatch.setattr(Planted, "p_true", lambda self, lvlm, dataset: asked)
    table, _ = results.confidence_tables(found_and_resolved(study))
    assert (table.loc[table["method"] == "P(True)", "auroc"] == 1).all()
    assert set(table.loc[table["method"] == "P(True)", "answers"]) == {"all", "greedy"}


def test_analyses_of_a_planted_study(study):
    columns = found_and_resolved(study)
    shares, agreement = robustness.attribution_tables(study)
    assert agreement["jaccard"].tolist() == [1, 1, 1], "the planted head, in whatever order the layers come"
    assert shares[list(robustness.ATTRIBUTIONS)].sum().to_numpy() == pytest.approx([1, 1, 1], abs=1e-4)
    assert "rank correlations" in sentences.say_attributions(shares, agreement).data
    assert all((shares[f"{name}_lo"] <= shares[f"{name}_hi"]).all() for name in robustness.ATTRIBUTIONS)
    layers = results.head_tables(study)[0]
    assert (layers["attribution_lo"] <= layers["attribution"]).all()
    assert (layers["attribution"] <= layers["attribution_hi"]).all()
    heads, sets = robustness.stability_tables(study)
    assert len(heads) == LAYERS * HEADS
    assert sets["kept"].tolist() == [1], "the planted head is found in every draw"
    overlap, transfer = robustness.transfer_tables(study, columns)
    assert overlap["jaccard"].tolist() == [1]
    assert transfer["found_on"].tolist() == ["D_c", "train split", "scenes, test"]
    assert transfer["acc50"].nunique() == 1
    assert shares["selected"].tolist() == layers["selected"].tolist()
    assert (shares[["n", "n_images"]] == layers[["n", "n_images"]]).all(axis=None)
    sizes = size.partial_correlation_table(columns)
    chosen = sizes[(sizes["layer"] == 1) & (sizes["head"] == 1)].iloc[0]
    assert chosen["pearson"] < -0.8 and sizes["score"].iloc[0] == "ACS-Learned"
    made = (
        paper_figures.layer_attribution(shares),
        figures.stability(heads),
        figures.transfer(transfer),
        figures.size_effect(sizes),
    )
    assert [len(figure.axes) for figure in made] == [1, 2, 1, 1]


def test_cost_in_bars():
    table = pd.DataFrame(
        {"lvlm": "tiny", "stage": STAGES, "seconds_per_query": 0.002, "share_of_seconds": 1 / 7, "peak_mb": 10.0}
    )
    left, right = figures.cost(table).axes
    assert [bar.get_width() for bar in left.patches] == [2.0] * 7
    assert [bar.get_width() for bar in right.patches] == [10.0] * 7
