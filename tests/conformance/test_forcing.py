"""Answers of another engine, forced: what the family's own decoding gives, token by token."""

import numpy as np
import pytest
from harness import picture, scripted
from test_windows import lvlm as windowed  # noqa: F401 (a fixture)

from acs_lib.core.candidates import PER_TOKEN
from acs_lib.method.forced import force, force_candidates
from acs_lib.method.sampling import generate, sample_candidates
from acs_lib.profiles import Sampling

BOXES = ((12, 34, 156, 178), (7, 8, 99, 105), (100, 90, 110, 99))
NONE = "I see no cat 9.<|im_end|>"


@pytest.fixture(params=["full attention", "windows"])
def either(request, family):
    """The tiny model, and the one whose layers see a window of the last tokens only."""
    return request.getfixturevalue("lvlm" if request.param == "full attention" else "windowed")


def test_every_token_is_told_as_by_the_engine(either):
    prompt = either.prompt(picture(320, 240, seed=2), "dog")
    answers = generate(either, [prompt], [3], Sampling(samples=3, temperature=0.8, max_new_tokens=14))[0]
    for found, expected in zip(force(either, prompt, [answer["token_ids"] for answer in answers], "own"), answers):
        for name in PER_TOKEN:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", ["own", "predicting", "last", "after"])
def test_rows_equal_those_read_while_decoding(family, either, row):
    """Three boxes, an answer without one and an empty one, forced together, and each one decoded alone."""
    prompt = either.prompt(picture(320, 240, seed=2), "cat")
    texts = [family.answer.format(**dict(zip(("x1", "y1", "x2", "y2"), box))) for box in BOXES] + [NONE]
    how, decoded = Sampling(samples=1, max_new_tokens=99, row=row), []
    for text in texts:
        with scripted(either, text):
            decoded += sample_candidates(either, [prompt], ["a"], [0], ["cat"], how)
    answers = [records[0]["token_ids"] for _, records in decoded]
    found, records = force_candidates(either, prompt, "a", "cat", [*answers, []], row)
    assert list(found.parsed) == [True, True, True, False, False]
    for index, (expected, (record, _)) in enumerate(decoded):
        assert records[index] == record
        np.testing.assert_array_equal(found.boxes[index], expected.boxes[0])
        np.testing.assert_allclose(found.maps[index], expected.maps[0], atol=1e-5)
        np.testing.assert_allclose(found.statistics[index], expected.statistics[0], atol=1e-5)
    share = found.maps[0].reshape(-1, found.maps[0][0, 0, 0].size)
    assert (share.max(-1) > 2 * share.mean(-1)).any(), "near-uniform attention proves little"
