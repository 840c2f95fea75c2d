"""Head sets and regressors say what they belong to; `ground` samples alike, refuses other weights and questions, and
warns of the rest."""

import dataclasses
import json
import warnings

import pandas as pd
import pytest

from acs_lib import paths
from acs_lib.grounding.api import ground, samples, usual_settings
from acs_lib.lvlms.checkpoint import calibration_folder, lvlm_digest
from acs_lib.lvlms.load import load_checkpoint, loaded_digest, lvlm_spec
from acs_lib.method import regressor
from acs_lib.method.heads import HeadSet
from acs_lib.method.origin import Origin
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.profiles import Sampling, load_profile
from acs_lib.runs.collect import run_folder
from acs_lib.study.stages import Study

HOW = Sampling(samples=4, temperature=1.1, top_p=0.9, max_new_tokens=20, seed=3, row="after")


@pytest.fixture(scope="module")
def scene():
    first = samples().iloc[0]
    return first["image"], first["category"]


@pytest.fixture(scope="module")
def origin(untrained):
    return Origin(weights=loaded_digest(untrained), question=untrained.question, sampling=HOW, map_side=16)


@pytest.fixture
def write(untrained, tmp_path):
    """Writes a head set and a regressor of the untrained LVLM with an origin; returns them as arguments of `ground`."""

    def written(of_heads, of_regressor):
        HeadSet(untrained.name, "mine", ((1, 1),), origin=of_heads).save(tmp_path / "h.json")
        model = AttentionIoURegressor(untrained.layers, untrained.heads)
        regressor.save(model, tmp_path / "r.safetensors", untrained.name, of_regressor)
        return {"head_set": tmp_path / "h.json", "regressor": tmp_path / "r.safetensors"}

    return written


def with_sampling(origin, **changes):
    return origin.model_copy(update={"sampling": origin.sampling.model_copy(update=changes)})


@pytest.mark.parametrize("spec", load_profile("embedded").lvlms, ids=lambda spec: spec.name)
def test_the_shipped_files_say_what_they_belong_to(spec):
    expected = Study.open("embedded").origin(spec)
    assert expected.weights == lvlm_digest(spec) and expected.sampling == load_profile("embedded").sampling
    folder = paths.place(spec.source)
    assert HeadSet.load(folder / "head_set.json", spec.name).origin == expected
    assert regressor.load(folder / "regressor.safetensors", spec.name).origin == expected


def test_what_is_written_is_read(origin, tmp_path):
    head_set = HeadSet("mine", "scenes", ((1, 1),), (2,), origin)
    head_set.save(tmp_path / "h.json")
    assert HeadSet.load(tmp_path / "h.json", "mine") == head_set
    stored = json.loads((tmp_path / "h.json").read_text())
    assert list(stored) == ["lvlm", "found_on", "heads", "coordinates", "origin"]
    assert list(stored["origin"]) == ["weights", "question", "sampling", "map_side"]
    assert stored["origin"]["sampling"] == HOW.model_dump()


def test_answers_are_drawn_and_read_as_those_that_the_files_were_found_on(untrained, scene, origin, write):
    """As the head set's, or as the regressor's where that chooses; more or other samples are no other setting."""
    files = write(origin, with_sampling(origin, max_new_tokens=12))
    for selector, tokens in (("acs-free", 20), ("medoid", 20), ("acs-learned", 12)):
        found = ground(untrained, *scene, selector, samples=2, **files).settings
        assert found == HOW.model_copy(update={"samples": 2, "seed": 0, "max_new_tokens": tokens})


def test_other_weights_are_refused(untrained, scene, origin, write):
    other = origin.model_copy(update={"weights": "0" * 64})
    for origins, name in (((other, origin), "the head set .*h.json"), ((origin, other), "the regressor .*r.safeten")):
        with pytest.raises(ValueError, match=f"{name}.* other weights or settings than untrained has here.*calibrate"):
            ground(untrained, *scene, samples=1, **write(*origins))
    with pytest.raises(ValueError, match="the head set was found with other weights"):
        ground(untrained, *scene, samples=1, head_set=HeadSet(untrained.name, "", ((1, 1),), origin=other))


def test_another_question_is_refused(untrained, scene, origin, write):
    asked = load_checkpoint(untrained.model.name_or_path, "untrained", question="Where is the {object}?")
    with pytest.raises(ValueError, match="found with the question 'Detect the .*asked 'Where is the {object}"):
        ground(asked, *scene, samples=1, **write(origin, origin))


def test_files_that_read_different_rows_are_refused(untrained, scene, origin, write):
    with pytest.raises(ValueError, match=r"different attention rows \('after', 'own'\)"):
        ground(untrained, *scene, samples=1, **write(origin, with_sampling(origin, row="own")))


def test_another_temperature_is_a_warning(untrained, scene, origin, write):
    files = write(origin, origin)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ground(untrained, *scene, samples=1, **files)
        ground(untrained, *scene, samples=1, temperature=1.1, top_p=0.9, **files)
    with pytest.warns(UserWarning, match="at temperature 1.1 and top-p 0.9; at 0.5 and 0.9 their choices may be worse"):
        found = ground(untrained, *scene, samples=1, temperature=0.5, **files)
    assert found.settings.temperature == 0.5


def test_files_that_do_not_say_are_read_with_a_warning(untrained, scene, write):
    files = write(None, None)
    assert "origin" not in json.loads(files["head_set"].read_text())
    with pytest.warns(UserWarning, match="does not say with which weights, question and sampling") as told:
        found = ground(untrained, *scene, samples=1, **files)
    ours = [str(warning.message) for warning in told if warning.category is UserWarning]
    assert [message.split(" does not")[0] for message in ours] == list(map(str, files.values()))
    assert found.heads == ((1, 1),) and found.settings.temperature == Sampling().temperature


def test_an_origin_that_is_none_is_one_sentence(untrained, scene, origin, write):
    files = write(origin, origin)
    content = json.loads(files["head_set"].read_text())
    content["origin"]["sampling"]["temperature"] = "warm"
    files["head_set"].write_text(json.dumps(content))
    with pytest.raises(ValueError, match="h.json holds no head set; make it anew") as caught:
        ground(untrained, *scene, samples=1, **files)
    assert "\n" not in str(caught.value)


def test_the_forms_first_settings_are_the_files(untrained, origin, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    folder = calibration_folder(untrained)
    folder.mkdir(parents=True)
    HeadSet(untrained.name, "mine", ((1, 1),), origin=origin).save(folder / "head_set.json")
    assert usual_settings(untrained).temperature == 1.1


def test_a_regressor_in_a_runs_folder_comes_to_say_it(tmp_path, monkeypatch, origin):
    """One of an earlier version, which need not be trained anew: its key holds all that the origin says."""
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    study = Study.open("smoke")
    lvlm, trained = study.profile.lvlms[0], []
    run = dataclasses.make_dataclass("Stub", ["key", "folder"])("a key", tmp_path)
    study._runs.update({(lvlm.name, study.train_set.name, split): run for split in ("train", "validation")})

    def train(*_, **__):
        trained.append(1)
        return AttentionIoURegressor(2, 2, 4, (3, 3)).eval(), pd.DataFrame({"pearson": [0.0]})

    monkeypatch.setattr(regressor, "train", train)
    folder = tmp_path / "smoke" / lvlm.name
    folder.mkdir(parents=True)
    model, path = study.fit(lvlm), folder / "regressor-0.safetensors"
    assert regressor.load(path, lvlm.name).origin == study.origin(lvlm)
    regressor.save(model, path, lvlm.name)
    assert regressor.load(path, lvlm.name).origin is None
    study.fit(lvlm)
    assert trained == [1] and regressor.load(path, lvlm.name).origin == study.origin(lvlm)


# ---------------------------------------------------------------------------------------------- names of hub LVLMs


def test_two_hub_models_of_one_last_name_share_no_folder():
    mine, yours = lvlm_spec("mine/model-1.5"), lvlm_spec("yours/model-1.5")
    assert (mine.name, yours.name) == ("mine/model-1.5", "yours/model-1.5")
    assert calibration_folder(mine) == paths.DATA / "calibrated" / "mine" / "model-1.5"
    assert calibration_folder(mine) != calibration_folder(yours)
    profile = load_profile("smoke")
    folders = {run_folder(profile, spec, profile.datasets[0], "test") for spec in (mine, yours)}
    assert len(folders) == 2 and all(folder.is_relative_to(paths.RUNS / "smoke") for folder in folders)


@pytest.mark.parametrize("name", ["../model", "owner/.", "owner/.hidden", "a/b/c", "owner/"])
def test_a_hub_name_is_no_way_out_of_a_folder(name):
    with pytest.raises(ValueError, match="there is no LVLM"):
        lvlm_spec(name)


def test_files_of_earlier_versions_go_by_a_hub_models_last_name(tmp_path):
    HeadSet("model", "COCO", ((0, 0),)).save(tmp_path / "h.json")
    assert HeadSet.load(tmp_path / "h.json", "owner/model").lvlm == "owner/model"
    regressor.save(AttentionIoURegressor(2, 2, 4), tmp_path / "r.safetensors", "model")
    assert regressor.load(tmp_path / "r.safetensors", "owner/model").settings["layers"] == 2
    for load, file in ((HeadSet.load, "h.json"), (regressor.load, "r.safetensors")):
        with pytest.raises(ValueError, match="'model', not 'owner/other'"):
            load(tmp_path / file, "owner/other")
