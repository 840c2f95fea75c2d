"""P(True): what is asked, from which logits the score comes, and that sharing the image changes nothing."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from harness import picture, written

from acs_lib.method.baselines import p_true

IMAGE = picture(320, 240, seed=4)
BOXES = [[20.0, 30.0, 90.0, 110.0], [130.0, 20.0, 310.0, 236.0], [4.0, 4.0, 8.0, 9.0]]


@pytest.fixture
def answers(lvlm, family):
    """Three boxes whose numbers have different lengths, the first one twice, and an answer without a box."""
    texts = [written(family, np.array(box), lvlm.image_processor, *IMAGE.size)[0] for box in BOXES]
    return [texts[0], texts[1], "I see no cat 12", texts[2], texts[0]]


@contextlib.contextmanager
def passes(lvlm, change=None):
    """The inputs of every forward pass; `change` (number of the pass, logits) -> logits."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs)

    handles = [lvlm.model.register_forward_pre_hook(note, with_kwargs=True)]
    if change is not None:
        head = lvlm.model.get_output_embeddings()
        handles.append(head.register_forward_hook(lambda module, args, logits: change(len(seen), logits)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_the_score_by_hand(lvlm, answers):
    """First pass: what the questions share. Then all boxes: Yes 3 times as likely as No; equally; a ninth."""
    yes, no = p_true.yes_no_tokens(lvlm.tokenizer)
    odds = torch.tensor([3.0, 1.0, 1 / 9])

    def change(number, logits):
        changed = torch.full_like(logits, 5.0)  # other tokens may well be likelier
        changed[..., yes], changed[..., no] = 1 + math.log(1e6), 1.0
        if number == 2:
            ends = logits.shape[1] - torch.arange(len(odds), 0, -1)  # one a box
            changed[:, ends, yes] = 1 + odds.log()
        return changed

    with passes(lvlm, change) as seen:
        scores = p_true.ask_p_true(lvlm, IMAGE, "cat", answers)
    np.testing.assert_allclose(scores, [0.75, 0.5, np.nan, 0.1, 0.75], atol=1e-6)
    assert [kwargs.get("pixel_values") is not None for kwargs in seen] == [True, False], (
        "the image, then every question"
    )


@torch.inference_mode()
def whole(lvlm, answers):
    """Scores from one pass over the whole prompt of each answer, positions and mask left to transformers."""
    model = copy.deepcopy(lvlm.model)
    model.set_attn_implementation("sdpa")
    yes, no = p_true.yes_no_tokens(lvlm.tokenizer)
    scores = []
    for match in map(lvlm.box_pattern.search, answers):
        if match is None:
            scores.append(np.nan)
            continue
        (prompt,) = p_true.verification_prompts(lvlm, IMAGE, "cat", [", ".join(match.groups())])
        logits = model(**prompt.inputs).logits[0, -1].softmax(-1)
        scores.append(float(logits[yes] / (logits[yes] + logits[no])))
    return np.array(scores)


def test_sharing_the_image_changes_no_score(lvlm, answers):
    scores = p_true.ask_p_true(lvlm, IMAGE, "cat", answers)
    np.testing.assert_allclose(scores, whole(lvlm, answers), atol=1e-4)
    assert np.nanstd(scores) > 1e-3, "equal scores prove little"


def test_an_image_behind_the_question_is_seen_by_every_question(lvlm, answers, monkeypatch):
    template = lvlm.tokenizer.chat_template
    monkeypatch.setattr(lvlm.tokenizer, "chat_template", template.replace("['content']", "['content']|reverse"))
    with passes(lvlm) as seen:
        scores = p_true.ask_p_true(lvlm, IMAGE, "cat", answers)
    assert len(seen) == 1 and len(seen[0]["input_ids"]) == 3, "three prompts side by side, one look at the image"
    np.testing.assert_allclose(scores, whole(lvlm, answers), atol=1e-4)


def test_the_question_quotes_the_numbers_as_they_were_written(lvlm, answers):
    numbers = ", ".join(lvlm.box_pattern.search(answers[1]).groups())
    (prompt,) = p_true.verification_prompts(lvlm, IMAGE, "cat", [numbers])
    text = lvlm.tokenizer.decode(prompt.inputs["input_ids"][0])
    assert f"Detect the cat in the image.\nProposed answer: [{numbers}]\nIs the proposed box of the cat right?" in text
    assert text.endswith("<|im_start|>assistant\n") and text.count("<|im_end|>") == 1
    assert lvlm.question == "Detect the {object} in the image.", "the LVLM itself is left as it was"


def test_nothing_is_asked_without_a_box(lvlm):
    with passes(lvlm) as seen:
        assert np.isnan(p_true.ask_p_true(lvlm, IMAGE, "cat", ["no box", ""])).all()
    assert not seen
