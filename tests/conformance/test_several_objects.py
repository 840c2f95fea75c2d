"""`ground` of several objects in one image: what each alone would get, where the chat template has the image first."""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
from harness import picture

from acs_lib.grounding.api import ground
from acs_lib.method import sharing
from acs_lib.method.heads import HeadSet

ANY = "#"  # in an answer: the digit that the model likes best there


@contextlib.contextmanager
def numbers(lvlm, text: str):
    """Within this context every answer is `text`, with digits of the model's own choice; a prefill begins it anew."""
    digits = lvlm.digit_tokens.nonzero()[:, 0]
    any_digit, *ids = lvlm.tokenizer(ANY + text, add_special_tokens=False)["input_ids"]
    script = [digits if token == any_digit else torch.tensor([token]) for token in ids]
    step = [0]

    def restart(module, args, kwargs):
        if "logits_to_keep" in kwargs:
            step[0] = 0

    def force(module, args, logits):
        allowed = torch.zeros(logits.shape[-1], dtype=torch.bool).index_fill_(0, script[step[0]], True)
        step[0] += 1
        return logits.masked_fill(~allowed, -1e4)

    handles = [
        lvlm.model.register_forward_pre_hook(restart, with_kwargs=True),
        lvlm.model.get_output_embeddings().register_forward_hook(force),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("selector", ["acs-free", "sequence-log-prob", "medoid"])
def test_several_objects_are_answered_as_each_alone(family, lvlm, selector, monkeypatch):
    image, objects = picture(320, 240, seed=2), ["dog", "cell phone", "cat", "traffic light"]
    heads = HeadSet(lvlm.name, "made up", ((0, 1), (2, 3)))
    how = dict(selector=selector, samples=4, seed=3, head_set=heads, max_new_tokens=99)
    with numbers(lvlm, family.answer.format(x1="##", y1="##", x2="2##", y2="1##")):
        alone = [ground(lvlm, image, category, **how) for category in objects]
        prefixes, common = [], sharing.common
        monkeypatch.setattr(sharing, "common", lambda prompts: prefixes.append(common(prompts)) or prefixes[-1])
        together = ground(lvlm, image, objects, **how)
    assert prefixes[-1] > together[0].candidates.maps[0, 0, 0, 0].size, "the image is in the shared prefix"
    for found, expected in zip(together, alone, strict=True):
        assert found.category == expected.category and found.chosen == expected.chosen
        assert found.candidates.parsed.all() and list(found.box) == list(expected.box)
        pd.testing.assert_frame_equal(found.table, expected.table, atol=1e-4)
        np.testing.assert_allclose(found.candidates.maps, expected.candidates.maps, atol=1e-5)
    assert len({text for found in together for text in found.table["text"]}) > len(objects)
