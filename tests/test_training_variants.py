"""The log of training variants: its rows come from a small run, and the shipped log says what it has to."""

import pandas as pd
import pytest

from acs_lib import paths
from acs_lib.evaluation.mistakes import MISTAKES
from acs_lib.profiles import load_profile
from acs_lib.report import sentences
from acs_lib.study.experiment import resolve
from acs_lib.study.stages import Study
from acs_lib.study.training_variants import MISSING, habit_contrast, variant_log, variant_row


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(paths, "RUNS", tmp_path_factory.mktemp("runs"))
    patch.setattr(paths, "DATA", tmp_path_factory.mktemp("data"))
    profile = load_profile("smoke-first-24").model_copy(update={"bootstrap": 200})
    study = Study(profile)
    column, *_ = study.columns
    study.find_heads(column[0])
    yield resolve(study, *column)
    patch.undo()


@pytest.fixture(scope="module")
def row(experiment):
    return variant_row([experiment])


def test_a_row_is_consistent(row):
    assert row["n_queries"] == 24 and row["temperature"] == load_profile("smoke").sampling.temperature
    assert row["oracle"] >= max(row["acs_learned"], row["acs_free"], row["log_prob"], row["random"])
    for gain, (method, reference) in {
        "delta_learned_vs_greedy": ("acs_learned", "greedy"),
        "delta_free_vs_all": ("acs_free", "entropy_all"),
    }.items():
        assert row[gain] == pytest.approx(row[method] - row[reference])
        assert row[f"{gain}_lo"] <= row[gain] <= row[f"{gain}_hi"]
    assert sum(row[f"share {kind}"] for kind in MISTAKES) == pytest.approx(1)


def test_the_shipped_log_has_one_row_a_setting_and_the_control():
    log = variant_log()
    assert not log.duplicated(["lvlm", "edition", "design", "temperature", "top_p"]).any()
    assert (log["n_queries"] >= 400).all()
    assert (log[log["design"] == "no habit"].groupby("lvlm").size() > 0).all()
    assert (log["oracle"] >= log["greedy"]).all() and log["pearson"].between(-1, 1).all()


def test_nobody_says_that_the_log_is_all_that_was_tried():
    notebook = (paths.NOTEBOOKS / "08_when_attention_helps.ipynb").read_text()
    assert "MISSING" in notebook and "designs of the embedded LVLM that were tried" not in notebook
    told = " ".join((paths.EMBEDDED / "README.md").read_text().split())
    assert MISSING in told


def test_the_contrast_is_like_for_like(experiment, row):
    for name in ("embedded", "smoke"):
        lvlms = load_profile(name).lvlms
        habit, plain = ([lvlm for lvlm in lvlms if lvlm.condition == which] for which in ("habit", "plain"))
        assert [f"{lvlm.name}-plain" for lvlm in habit] == [lvlm.name for lvlm in plain]
        for lvlm, control in zip(habit, plain):
            changed = {"name": control.name, "source": f"{lvlm.source}-plain", "condition": "plain"}
            assert control == lvlm.model_copy(update=changed), "the same question and precision"
    contrast = habit_contrast([experiment])
    assert contrast["condition"].tolist() == ["habit"] and contrast["pearson"].tolist() == [row["pearson"]]


def test_the_takeaway_says_with_and_without_the_habit_and_over_how_many_models():
    of = pd.DataFrame({"lvlm": ["x", "x-plain"], "dataset": "scenes", "condition": ["habit", "plain"]})
    gain = "delta_learned_vs_greedy"
    contrast = of.assign(**{gain: [0.05, -0.03], f"{gain}_lo": [0.01, -0.06], f"{gain}_hi": [0.09, 0.01]})
    ranked = pd.concat([
        of.assign(method="ACS-Learned", kind=kind, pair_auroc=found)
        for kind, found in (("another object", [0.9, 0.5]), ("near miss", [0.6, 0.55]))
    ])  # fmt: skip
    correlations = of.assign(score="ACS-Learned", partial_pearson_category=[0.5, 0.25])
    log = pd.DataFrame({
        "lvlm": "x", "edition": [1, 1, 2], "design": "a", "temperature": [0.4, 0.8, 0.4], gain: [0.03, -0.03, 0.0],
        "share another object": [0.5, 0.1, 0.3], "pearson": [0.6, 0.7, 0.65], "within_query_pearson": [0.5, 0.4, 0.3],
    })  # fmt: skip
    text = sentences.say_when(contrast, ranked, correlations, log).data
    assert "with the habit above in 1, below in 0, not told apart in 0 of 1 (+5.0 to +5.0); without the habit" in text
    assert (
        "better than *where its edges are* in 1 of 2 columns" in text and "object with probability 0.50 to 0.90" in text
    )
    assert "still correlates with IoU by +0.25 to +0.50. Over 2 models, 3 with their settings of sampling" in text
    assert "of +1.00 with the share" in text and "-1.00 with the pooled r" in text
