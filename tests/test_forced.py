"""Answers that are known get by one teacher-forced pass what the engine gives to its own."""

import numpy as np
import pytest
import torch

from acs_lib.core.candidates import PER_TOKEN
from acs_lib.core.images import read_image
from acs_lib.grounding.api import samples
from acs_lib.lvlms.load import load_lvlm
from acs_lib.method import forced
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.forced import force, force_candidates, forced_mask, tokens_read
from acs_lib.method.sampling import generate, sample_candidates
from acs_lib.profiles import Sampling

ROWS = ("own", "predicting", "last", "after")
NAMES = {"internvl": "internvl-embedded", "qwen2_5_vl": "qwen2.5-vl-embedded"}


def same_candidates(found, expected, atol=1e-5):
    """Equal `Candidates`, numbers up to rounding."""
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-9)
    for name in PER_TOKEN:
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(one, other, atol=atol, rtol=1e-5)
    for one, other in zip(found.coordinate_tokens, expected.coordinate_tokens, strict=True):
        assert list(one) == list(other)
    np.testing.assert_allclose(found.maps, expected.maps, atol=atol)
    np.testing.assert_allclose(found.statistics, expected.statistics, atol=atol)


@pytest.fixture(scope="module")
def questions():
    """(image, object) of three shipped scenes."""
    rows = samples().drop_duplicates("image").iloc[:3]
    return [(read_image(row.image), row.category) for row in rows.itertuples()]


def test_a_token_sees_the_prompt_and_its_own_answer_so_far():
    answer, step = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    mask = forced_mask(2, answer, step)
    assert mask.shape == (1, 1, 5, 7) and mask[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]
    assert forced_mask(2, answer, step, window=2)[0, 0].int().tolist() == [
        [0, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_the_tokens_whose_rows_stand_for_a_number():
    digit = [False] * 4 + [True] * 3 + [False] + [True] * 2
    read = {row: tokens_read([4, 5, 6], digit, row) for row in ROWS}
    assert read == {"own": [4, 5, 6], "predicting": [3, 4, 5], "last": [6], "after": [7]}
    assert tokens_read([4, 5, 6], digit[:7], "after") == [], "the answer ends with the number"
    assert tokens_read([4, 5, 6], [True] * 9, "after") == [], "another number follows at once"


@pytest.mark.parametrize("row", ROWS)
def test_the_engines_own_answers_get_the_engines_numbers(family, questions, row):
    """Maps, statistics, what is told of every token, and so every selector's scores."""
    lvlm, boxes = load_lvlm(NAMES[family]), 0
    how = Sampling(samples=10, temperature=1.2, max_new_tokens=16, row=row)
    none = family == "internvl" and row == "after"  # its numbers follow one another at once
    for key, (picture, category) in enumerate(questions):
        prompt = lvlm.prompt(picture, category)
        [(expected, records)] = sample_candidates(lvlm, [prompt], ["a"], [key], [category], how)
        answers = [record["token_ids"] for record in records]
        found, again = force_candidates(lvlm, prompt, "a", category, answers, row)
        same_candidates(found, expected)
        assert again == records
        for selector in SELECTORS.values():
            np.testing.assert_allclose(selector.score(found), selector.score(expected), atol=1e-5)
        boxes += found.parsed.sum()
    assert boxes == 0 if none else boxes > 20, "answers without a box prove little"


def test_answers_of_any_length_and_none_are_told_beside_one_another(both, family, questions):
    """Random answers of random lengths: each alone, all in one pass, and in several."""
    prompt = both.prompt(*questions[0])
    rng = np.random.default_rng(0)
    answers = [rng.integers(7, 200, size).tolist() for size in (5, 0, 90, 1, 0, 33)]
    together = force(both, prompt, answers, "own")
    assert [len(answer["logprobs"]) for answer in together] == [5, 0, 90, 1, 0, 33]
    for answer, one in zip(answers, together):
        [alone] = force(both, prompt, [answer], "own")
        for name in PER_TOKEN:
            np.testing.assert_allclose(one[name], alone[name], atol=1e-5, rtol=1e-5)
    found, records = force_candidates(both, prompt, "a", "dog", answers)
    assert not found.parsed[1] and records[1]["failure"] == forced.NO_END and len(found.logprobs[4]) == 0
    assert force(both, prompt, [], "own") == []


@pytest.mark.parametrize("most", [1, 20])
def test_many_tokens_take_several_passes(family, questions, monkeypatch, most):
    lvlm, (picture, category) = load_lvlm(NAMES[family]), questions[0]
    prompt = lvlm.prompt(picture, category)
    how = Sampling(samples=4, temperature=1.2, max_new_tokens=16)
    answers = [answer["token_ids"] for answer in generate(lvlm, [prompt], [3], how)[0]]
    once, _ = force_candidates(lvlm, prompt, "a", category, answers)
    monkeypatch.setattr(forced, "PASS", most)
    monkeypatch.setattr(forced, "DESCRIBED", 3)
    several, _ = force_candidates(lvlm, prompt, "a", category, answers)
    same_candidates(several, once)


def test_a_token_that_no_answer_can_hold_is_named(both, questions):
    prompt = both.prompt(*questions[0])
    for token in (both.image_token_id, 9999, -1):
        with pytest.raises(ValueError, match=f"the token {token} is none of"):
            force(both, prompt, [[12, 13], [12, token]], "own")


def test_rows_are_read_of_the_numbers_alone(family, questions):
    """Memory: as many rows as the maps hold, however long the answers are."""
    lvlm, (picture, category) = load_lvlm(NAMES[family]), questions[0]
    prompt = lvlm.prompt(picture, category)
    answers = [answer["token_ids"] for answer in generate(lvlm, [prompt], [3], Sampling(samples=4))[0]]
    for answer, one in zip(answers, force(lvlm, prompt, answers, "own")):
        numbers = forced.numbers_of(lvlm, prompt, answer)
        assert list(one["rows"]) == [number[-1] for number in numbers]
