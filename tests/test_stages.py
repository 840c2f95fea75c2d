"""What a study keeps on disk: frames under a key, and regressors that are trained side by side."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from test_ablations import planted_misses
from test_store import make_queries

from acs_lib import paths
from acs_lib.core.candidates import ENTROPY
from acs_lib.method import regressor
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import load_profile
from acs_lib.runs import store
from acs_lib.study.experiment import Experiment
from acs_lib.study.stages import Study, frame_digest, kept

FRAME = pd.DataFrame({"query_id": ["a", "b"], "iou": [0.1, 0.9]})


def test_a_frame_is_made_once_for_a_key(tmp_path):
    made = []

    def make():
        made.append(1)
        return FRAME

    for _ in range(2):
        assert kept(tmp_path / "frame", "one", make).equals(FRAME)
    assert len(made) == 1 and [path.name for path in tmp_path.iterdir()] == ["frame.parquet"]
    kept(tmp_path / "frame", "another", make)
    (tmp_path / "frame.parquet").write_bytes(b"damaged")
    assert kept(tmp_path / "frame", "another", make).equals(FRAME) and len(made) == 3


def test_a_frames_digest_is_that_of_its_values():
    assert frame_digest(FRAME) == frame_digest(FRAME.copy())
    others = FRAME.assign(iou=[0.1, 0.8]), FRAME.rename(columns={"iou": "x"}), FRAME.iloc[::-1]
    assert frame_digest(FRAME) not in map(frame_digest, others)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Answers to three splits as if two LVLMs had given them."""
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(paths.ROOT)]))
    queries = make_queries(90).assign(size="small")
    parts = {"train": queries[:60], "validation": queries[60:75], "test": queries[75:]}
    runs = {
        name: store.fill(tmp_path / name, part.reset_index(drop=True), planted_misses, {}, 100)
        for name, part in parts.items()
    }
    monkeypatch.setattr(Study, "run", lambda self, lvlm, dataset, split, backend=map: runs[split])
    profile = load_profile("smoke")
    quick = profile.regressor.model_copy(update={"epochs": 2, "width": 8})
    return Study(profile.model_copy(update={"regressor": quick, "name": "quick", "lvlms": profile.lvlms[:2]}))


def test_regressors_that_are_trained_side_by_side_are_those_of_one_process(study, tmp_path):
    first, second = study.profile.lvlms
    alone = study.fit(second, seed=1)
    path = tmp_path / "quick" / second.name / "regressor-1.safetensors"
    content = path.read_bytes()
    path.unlink()
    models = study.fit_all(controls=1)
    assert len(models) == 2 and path.read_bytes() == content, "of the seeds that the profile shows, too"
    made = sorted(path.name for path in (tmp_path / "quick" / first.name).glob("*.safetensors"))
    assert made == ["regressor-0.safetensors", "regressor-1.safetensors", "regressor-shuffled-0.safetensors"]
    history = json.loads((tmp_path / "quick" / first.name / "regressor-shuffled-0.json").read_text())["history"]
    assert len(history) == 2 and alone.settings["width"] == 8
    predicted = [path.name for path in (tmp_path / "test").glob("predicted-*")]
    assert sorted(predicted) == ["predicted-0.parquet", "predicted-1.parquet"]


def test_predictions_and_choices_are_kept_until_what_they_follow_from_changes(study, monkeypatch):
    (lvlm, dataset), run = study.columns[0], study.run(None, None, "test")
    predictions = study.predicted(lvlm, run)
    e = Experiment(study.profile, lvlm, dataset, run, predictions, HeadSet(lvlm.name, "x", ((1, 1),)), None, run.folder)
    choices = e.choices

    def refuse(*arguments):
        raise AssertionError("made anew")

    with monkeypatch.context() as patch:
        patch.setattr(regressor, "predict", refuse)
        patch.setattr(Experiment, "choose", refuse)
        assert study.predicted(lvlm, run).equals(predictions)
        again = Experiment(study.profile, lvlm, dataset, run, predictions, e.head_set, None, run.folder)
        assert again.choices.equals(choices)
        other = HeadSet(lvlm.name, "x", ((0, 0),))
        with pytest.raises(AssertionError, match="made anew"):
            Experiment(study.profile, lvlm, dataset, run, predictions, other, None, run.folder).choices  # noqa: B018
    free = choices[choices["method"] == "ACS-Free"].set_index("query_id")["candidate"]
    first = next(iter(e.candidates()))
    assert free[first.query_id] == 1 + first.statistics[1:, :, 1, 1, ENTROPY].mean(1).argmin()
