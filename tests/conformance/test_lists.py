"""Answers that list several boxes: all are read, each with maps and probabilities of its own."""

import re

import numpy as np
import pytest
from harness import picture, scripted, written

from acs_lib.grounding.detect import detect
from acs_lib.method import sampling
from acs_lib.method.baselines.likelihood import sequence_logprob
from acs_lib.method.instances import listed
from acs_lib.profiles import Sampling

WIDTH, HEIGHT = 320, 240
BOXES = np.array([[10, 20, 110, 120], [200, 30, 300, 100], [40, 150, 60, 220]], float)
HOW = Sampling(samples=1, temperature=1.0, max_new_tokens=250)


def listing(family, processor, boxes=BOXES):
    """An answer with all boxes in the family's format, and half a unit in pixels."""
    texts, units = zip(*(written(family, box, processor, WIDTH, HEIGHT) for box in boxes))
    ends = [text.removesuffix("<|im_end|>") for text in texts]
    return "\n".join(ends) + "<|im_end|>", max(unit.max() for unit in units)


def test_all_boxes_are_read_in_their_order(family, lvlm):
    prompt = lvlm.prompt(picture(WIDTH, HEIGHT), "cat")
    text, unit = listing(family, lvlm.image_processor)
    found = lvlm.parse_all(text, prompt)
    assert np.abs(np.array([one.box for one in found]) - BOXES).max() <= unit + 1e-9
    assert np.array_equal(found[0].box, lvlm.parse(text, prompt).box)
    assert [one.spans for one in found] == sorted(one.spans for one in found)


def test_what_a_single_box_is_passed_over_for_is_left_out_of_a_list(family, lvlm):
    prompt = lvlm.prompt(picture(WIDTH, HEIGHT), "cat")
    text, _ = listing(family, lvlm.image_processor, BOXES[[0, 1]])
    numbers = dict(zip(("x1", "y1", "x2", "y2"), (110, 120, 10, 20)))
    assert len(lvlm.parse_all(family.answer.format(**numbers) + text, prompt)) == 2
    assert lvlm.parse_all("There is none.", prompt) == []


@pytest.mark.parametrize(
    "text",
    [
        "<ref>cat</ref><box>[[10, 20, 110, 120], [200, 30, 300, 100]]</box>",
        '[{"bbox_2d": [10, 20, 110, 120], "label": "cat"}, {"bbox_2d": [200, 30, 300, 100], "label": "cat"}]',
        "[10, 20, 110, 120], [200, 30, 300, 100]",
    ],
)
def test_lists_in_other_words_are_read_as_well(family, lvlm, text):
    text = re.sub("[0-9]+(?=[],])", lambda found: family.number(found[0]), text)
    found = lvlm.parse_all(text, lvlm.prompt(picture(WIDTH, HEIGHT), "cat"))
    assert len(found) == 2 and found[0].box[0] < found[1].box[0]


def test_each_box_has_maps_and_probabilities_of_its_own(family, lvlm):
    prompt = lvlm.prompt(picture(WIDTH, HEIGHT), "cat")
    text, unit = listing(family, lvlm.image_processor)
    with scripted(lvlm, text):
        (answers,) = sampling.generate(lvlm, [prompt], [0], HOW)
        ((single, _),) = sampling.sample_candidates(lvlm, [prompt], ["q"], [0], ["cat"], HOW)
    found, origin = listed(lvlm, prompt, "q", "cat", answers, HOW.row)
    assert origin.tolist() == [0, 0, 0, 1, 1, 1] and len(found) == 6
    assert np.abs(found.boxes - np.concatenate([BOXES, BOXES])).max() <= unit + 1e-9
    np.testing.assert_array_equal(found.maps[[0, 3]], single.maps)
    np.testing.assert_array_equal(found.statistics[[0, 3]], single.statistics)
    assert np.isfinite(found.maps).all() and not np.allclose(found.maps[0], found.maps[1])
    for row, place in enumerate(origin):
        tokens = answers[place]["logprobs"]
        assert len(found.logprobs[row]) < len(tokens) and set(found.logprobs[row]) <= set(tokens)
        assert (found.coordinate_tokens[row] < len(found.logprobs[row])).all()
    assert np.allclose(sequence_logprob(found)[[0, 3]], sequence_logprob(single))
    assert sum(len(found.logprobs[row]) for row in range(3)) <= len(answers[0]["logprobs"])


def test_equal_lists_agree_on_every_object(family, lvlm):
    text, unit = listing(family, lvlm.image_processor)
    for selector in ("votes", "mass-inside-the-box-mtla", "entropy-all-heads", "sequence-log-prob"):
        with scripted(lvlm, text):
            found = detect(lvlm, picture(WIDTH, HEIGHT), "cat", selector, samples=2, max_new_tokens=250)
        assert len(found) == 3 and found.table["votes"].tolist() == [1, 1, 1]
        ordered = found.boxes[np.argsort(found.boxes[:, 0])]
        assert np.abs(ordered - BOXES[np.argsort(BOXES[:, 0])]).max() <= unit + 1e-9
        assert found.table["score"].is_monotonic_decreasing and len(found.texts) == 3
    assert lvlm.question == "Detect the {object} in the image."
