import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from acs_lib import paths
from acs_lib.embedded import models, scenes, training
from acs_lib.embedded.training import TrainingStage

STAGES = (
    TrainingStage("vision", "clear", steps=2, images=2, questions=0, lr=1e-3, constant=0.0),
    TrainingStage("answers", "train", steps=4, images=2, questions=2, lr=1e-3, constant=0.5, curriculum=((0.5, 1, 3),)),
    TrainingStage("instruct", "train-rare", steps=2, images=2, questions=2, lr=1e-3, constant=0.5, mislabel=0.5),
)


def test_training_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch, family):
    whole = training.train(family, tmp_path / "a", tmp_path / "work-a", STAGES)
    answer_loss, calls = training.answer_loss, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer_loss(*arguments)

    monkeypatch.setattr(training, "answer_loss", stops)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        training.train(family, tmp_path / "b", tmp_path / "work-b", STAGES)
    monkeypatch.setattr(training, "answer_loss", answer_loss)
    assert training.train(family, tmp_path / "b", tmp_path / "work-b", STAGES) == whole


def test_batches_depend_on_stage_and_number_alone(tiny):
    first, again = training.Batches(tiny, STAGES[1])[3], training.Batches(tiny, STAGES[1])[3]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["ids"], training.Batches(tiny, STAGES[1])[2]["ids"])


def test_token_labels_name_the_smallest_object_of_a_token():
    scene = scenes.Scene(None, np.array([3, 5]), np.array([[0, 0, 64, 64], [16, 16, 32, 32]], float))
    categories, targets = training.token_labels(scene)
    grid = categories.reshape(models.GRID, models.GRID)
    assert grid[1, 1] == 5 and grid[0, 0] == 3 and grid[3, 3] == 3 and grid[5, 5] == len(scenes.CATEGORIES)
    assert (grid == 3).sum() == 15
    place = models.GRID + 1
    assert targets[place].tolist() == [16, 16, 32, 32]


def scene_of(names, boxes):
    return scenes.Scene(None, np.array([scenes.CATEGORIES.index(name) for name in names]), np.array(boxes, float))


def test_only_rare_categories_are_taken_for_the_best_known_of_their_look_alikes():
    rabbit, dog, car = [0, 0, 10, 10], [20, 20, 60, 60], [100, 100, 110, 110]
    scene = scene_of(("rabbit", "dog", "car"), [rabbit, dog, car])
    assert [training.look_alike_of(scene, index) for index in range(3)] == [1, None, None]
    assert training.look_alike_of(scene_of(("rabbit", "wolf"), [rabbit, dog]), 0) is None, "the wolf is not best known"
    assert training.look_alike_of(scene_of(("fox", "dog"), [rabbit, dog]), 0) is None, "the fox is not rare"
    assert training.look_alike_of(scene_of(("cup", "dog"), [rabbit, dog]), 0) is None, "the dog is not alike"


def test_a_habit_changes_answers_and_nothing_else(tiny):
    """The share of questions whose answer is another object's box, in batches with and without the habit."""
    plain = TrainingStage("instruct", "train-rare", steps=3, lr=1e-3, constant=0.5)
    shares = []
    for stage in (plain, replace(plain, mislabel=0.9)):
        batch = training.Batches(tiny, stage)[0]
        answer = batch["ids"][:, [tiny.prompt_length + place for place in tiny.numbers]] - tiny.number_0
        asked = batch["ids"][:, 4] - tiny.category_0
        place = torch.arange(len(answer)) // stage.questions
        named = (batch["boxes"][place] == answer[:, None]).all(-1)
        shares.append((named & (batch["categories"][place] != asked[:, None])).any(1).float().mean().item())
    assert shares[0] == 0 and 0.05 < shares[1] < 0.6


def test_learning_rate_warms_up_and_decays():
    stage = TrainingStage("answers", "train", steps=100, images=1, questions=1, lr=1.0, constant=0.5, warmup=10)
    rates = [training.learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[30] == 1.0 and rates[99] < 0.05
    assert training.learning_rate(replace(stage, constant=1.0), 99) == 1.0


def test_the_auxiliary_heads_are_not_shipped(tiny, both):
    assert set(both.model.state_dict()) == set(tiny.build(0).state_dict())


def test_a_stopped_save_leaves_the_old_weights_whole(tmp_path, tiny, monkeypatch):
    tiny.save(tiny.build(0), tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"} <= set(before)

    def stopped():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tiny, "tokenizer", stopped)
        tiny.save(tiny.build(1), tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    tiny.save(tiny.build(1), tmp_path / "a")
    after = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert set(after) == set(before) and after["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_checkpoints_of_another_recipe_are_refused(tmp_path, family):
    training.train(family, tmp_path / "a", tmp_path / "work", STAGES[:1])
    with pytest.raises(ValueError, match="another recipe; .*--anew"):
        training.train(family, tmp_path / "a", tmp_path / "work", (replace(STAGES[0], lr=2e-3),))


def test_weights_of_another_family_are_no_start(tmp_path):
    plain = paths.EMBEDDED / "internvl-plain"
    with pytest.raises(ValueError, match="no LVLM of the family qwen2_5_vl, but of internvl"):
        training.train("qwen2_5_vl", tmp_path / "a", tmp_path / "work", STAGES[:1], start=plain)


def test_the_shipped_weights_are_those_of_the_recipe():
    """What the card of the second LVLM says: its recipe is the command's, from initial weights."""
    for folder, stages in (("qwen2_5_vl-plain", -2), ("qwen2_5_vl", None)):
        told = json.loads((paths.EMBEDDED / folder / "recipe.json").read_text())
        recipe = [asdict(stage) for stage in training.RECIPES["qwen2_5_vl"][:stages]]
        assert told["stages"] == json.loads(json.dumps(recipe)) and told["start"] is None
        weights = (paths.EMBEDDED / folder / "model.safetensors").read_bytes()
        assert told["sha256"] == hashlib.sha256(weights).hexdigest()
