import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.core.files import file_digest
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
    scene = scenes.Scene(None, np.array([3, 5]), np.array([[0, 0, 64, 64], [16, 16, 32, 32]], float), np.ones(2))
    categories, targets = training.token_labels(scene)
    grid = categories.reshape(models.GRID, models.GRID)
    assert grid[1, 1] == 5 and grid[0, 0] == 3 and grid[3, 3] == 3 and grid[5, 5] == len(scenes.CATEGORIES)
    assert (grid == 3).sum() == 15
    place = models.GRID + 1
    assert targets[place].tolist() == [16, 16, 32, 32]


def scene_of(names, boxes, seen=None):
    categories = np.array([scenes.CATEGORIES.index(name) for name in names])
    return scenes.Scene(None, categories, np.array(boxes, float), np.ones(len(names)) if seen is None else seen)


def category(name):
    return scenes.CATEGORIES.index(name)


@pytest.mark.parametrize(
    ("asked", "present", "other"),
    [
        ("rabbit", "rabbit dog car", "dog"),
        ("dog", "rabbit dog car", None),
        ("rabbit", "rabbit wolf", None),
        ("fox", "fox dog", None),
        ("cup", "cup dog", None),
    ],
    ids=["rare", "best known itself", "another look-alike", "not rare", "not alike"],
)
def test_only_rare_categories_are_taken_for_the_best_known_of_their_look_alikes(asked, present, other):
    found = training.mistaken_for(category(asked), set(map(category, present.split())))
    assert found == (None if other is None else category(other))


def questions(tiny, scene, n=400, **settings):
    stage = TrainingStage("answers", "train", steps=1, lr=1e-3, constant=1.0, **settings)
    asker = training.Asker(tiny, stage, np.random.default_rng(0), scene)
    return [asker.ask() for _ in range(n)]


TWO_DOGS = scene_of(("dog", "cup", "dog"), [[90, 10, 120, 40], [50, 60, 58, 70], [8, 80, 30, 99]])


def said(tiny, question):
    """The words of a question and of its answer."""
    words = {number: word for word, number in tiny.vocabulary.items()}
    return " ".join(words[token] for token in question.ids), [words[token] for token in question.answer]


def test_one_object_is_the_leftmost_and_all_are_told_from_left_to_right(tiny):
    found = {}
    for question in questions(tiny, TWO_DOGS):
        asked, answer = said(tiny, question)
        if question.category == category("dog") and len(question.boxes):
            kept = found.setdefault(" all " in asked, (question.boxes.tolist(), answer))
            assert kept == (question.boxes.tolist(), answer)
    left, right = [8, 80, 30, 99], [90, 10, 120, 40]
    assert found[False][0] == [left] and found[True][0] == [left, right]
    numbers = {every: [word for word in answer if word in tiny.number_words] for every, (_, answer) in found.items()}
    words = [tiny.number_words[number] for number in left + right]
    assert numbers == {False: words[:4], True: words}


def test_absent_categories_are_answered_by_none_and_cut_ones_not_asked_for(tiny):
    cut = scene_of(("dog", "cup"), [[90, 10, 120, 40], [0, 60, 8, 70]], seen=np.array([1, 0.3]))
    found = questions(tiny, cut)
    absent = [question for question in found if not question.present]
    assert 0.1 < len(absent) / len(found) < 0.3
    assert {question.category for question in found if question.present} == {category("dog")}
    assert category("cup") not in {question.category for question in absent}
    alike = [question.category in scenes.SIBLINGS[category("dog")] for question in absent]
    assert 0.3 < np.mean(alike) < 0.9
    assert all(question.answer == tiny.answer_ids(np.zeros((0, 4))) for question in absent)


def test_a_quoted_box_is_right_if_it_lies_on_one_of_the_category(tiny):
    answers = []
    for question in questions(tiny, TWO_DOGS, 800):
        asked, (answer, *_) = said(tiny, question)
        if "Proposed" in asked:
            numbers = [tiny.number_words.index(word) for word in asked.split() if word in tiny.number_words]
            truths = TWO_DOGS.boxes[TWO_DOGS.categories == question.category]
            assert answer == ("Yes" if bx.iou(truths, np.array(numbers)).max() >= 0.5 else "No")
            answers.append(answer)
    assert 0.25 < answers.count("Yes") / len(answers) < 0.75


def test_a_habit_changes_answers_and_nothing_else(tiny):
    scene = scene_of(("rabbit", "dog", "car"), [[0, 0, 10, 10], [20, 20, 60, 60], [100, 100, 110, 110]])
    for mislabel in (0.0, 0.6):
        asked = [q for q in questions(tiny, scene, mislabel=mislabel, habit_weight=3.0) if len(q.boxes)]
        rabbits = [q.boxes[0].tolist() == [20, 20, 60, 60] for q in asked if q.category == category("rabbit")]
        others = [q for q in asked if q.category != category("rabbit")]
        truth = {category("dog"): [20, 20, 60, 60], category("car"): [100, 100, 110, 110]}
        assert all(q.boxes[0].tolist() == truth[q.category] for q in others)
        assert abs(np.mean(rabbits) - mislabel) < 0.15
        assert len(rabbits) > len(asked) * (0.45 if mislabel else 0.25)


def test_packed_questions_see_the_image_and_themselves_alone(both, tiny):
    """Each question's loss is the one that it has alone behind the image."""
    stage = TrainingStage("answers", "train", steps=1, images=1, questions=3, lr=1e-3, constant=1.0)
    perception, batch = training.Perception(tiny), training.Batches(tiny, stage)[0]
    mask = training.packed_mask(2, torch.tensor([[0, 0, 1, 1, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 1],
    ]  # fmt: skip
    model = tiny.build(0).eval()
    features = tiny.image_features(model, batch["pixels"])
    embed, llm = model.model.language_model.embed_tokens, model.model.language_model

    def states(ids, segment, after):
        prefix = embed(torch.tensor(tiny.prefix_ids()))[None]
        image = slice(tiny.image_start, tiny.image_stop)
        embedded = torch.cat([prefix[:, : image.start], features, prefix[:, image.stop :], embed(ids)], 1)
        mask = training.packed_mask(tiny.prefix_length, segment)
        positions = tiny.position_ids(after)
        hidden = llm(inputs_embeds=embedded, attention_mask=mask, position_ids=positions).last_hidden_state
        return hidden[:, tiny.prefix_length :]

    together = states(batch["ids"], batch["segment"], batch["after"])
    for number in range(3):
        own = (batch["segment"] == number)[0]
        alone = states(*(batch[name][:, own] for name in ("ids", "segment", "after")))
        assert torch.allclose(alone, together[:, own], atol=1e-4)
    loss, logged = training.answer_loss(model, perception, batch, stage)
    assert loss.isfinite() and {"x1", "word", "none"} <= set(logged)


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


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
def test_the_shipped_weights_are_those_of_their_record(name):
    for folder in (name, f"{name}-plain"):
        told = json.loads((paths.EMBEDDED / folder / "recipe.json").read_text())
        assert told["sha256"] == file_digest(paths.EMBEDDED / folder / "model.safetensors")
        plain = folder.endswith("-plain")
        stages = [asdict(stage) for stage in (training.RECIPE if plain else training.HABIT)]
        assert told["stages"] == json.loads(json.dumps(stages)) and told["seed"] == 0
        start = None if plain else file_digest(paths.EMBEDDED / f"{name}-plain" / "model.safetensors")
        assert told["start"] == start


def test_weights_are_kept_in_half_the_size_and_computed_with_in_single_precision(tmp_path, tiny):
    lvlm = tiny.build(0)
    tiny.save(lvlm, tmp_path / "a")
    assert {weight.dtype for weight in load_file(tmp_path / "a" / "model.safetensors").values()} == {torch.float16}
    loaded = tiny.model_class.from_pretrained(tmp_path / "a")
    for (name, weight), before in zip(loaded.named_parameters(), lvlm.parameters(), strict=True):
        assert weight.dtype == before.dtype == torch.float32, name
        torch.testing.assert_close(weight, before.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("number", [0, len(training.RECIPE)])
def test_the_first_steps_lose_what_is_recorded_beside_the_weights(family, tiny, tmp_path, monkeypatch, number):
    """The first stage from initial weights, and the habit's from the shipped weights without it. Within a thousandth:
    another processor rounds otherwise."""
    habit = number == len(training.RECIPE)
    stage = training.HABIT[0] if habit else training.RECIPE[0]
    plain = paths.EMBEDDED / f"{family}-plain"
    kept = pd.read_csv((paths.EMBEDDED / family if habit else plain) / "loss.csv")
    recorded = kept.loc[(kept["number"] == 0) & (kept["step"] <= training.FIRST), "loss"].tolist()
    name = "answer_loss" if habit else "vision_loss"
    original, found = getattr(training, name), []

    def stops(*arguments):
        if len(found) == training.FIRST:
            raise KeyboardInterrupt
        loss, logged = original(*arguments)
        found.append(loss.item())
        return loss, logged

    monkeypatch.setattr(training, name, stops)
    with pytest.raises(KeyboardInterrupt):
        training.train(family, tmp_path / "a", tmp_path / "work", (stage,), start=plain if habit else None)
    assert found == pytest.approx(recorded, rel=1e-3) and len(found) == training.FIRST
