"""In bfloat16, as the published models run on a GPU: rows are reduced in float32, and answers become boxes and maps."""

import json

import numpy as np
import pytest
import torch
from harness import picture, scripted

from acs_lib.lvlms.attention_rows import Rows
from acs_lib.lvlms.load import load_checkpoint
from acs_lib.method.sampling import generate, sample_candidates
from acs_lib.profiles import Sampling


@pytest.fixture(scope="module")
def half(family, tmp_path_factory):
    """The tiny model as it is published, loaded in bfloat16."""
    tiny, folder = family.build(), tmp_path_factory.mktemp("published")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(family.hub_processor))
    return load_checkpoint(folder, dtype="bfloat16", device="cpu")


def test_rows_are_reduced_in_float32(half, monkeypatch):
    """Against the softmax in float64 of the same queries and keys; in bfloat16 it would be off by its 8 bits."""
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    off, coarse = [], []
    add = Rows.add

    def compared(rows, layer, query, key, attention_mask, scaling):
        assert query.dtype == key.dtype == torch.bfloat16
        add(rows, layer, query, key, attention_mask, scaling)
        groups = query.shape[1] // key.shape[1]
        keys = key.repeat_interleave(groups, 1)
        mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
        columns = rows.columns[:, None, None].expand(*query.shape[:3], -1)

        def reduced(dtype):
            scores = (query.to(dtype) @ keys.to(dtype).transpose(-1, -2) * scaling).masked_fill(~mask, -torch.inf)
            return scores.softmax(-1).gather(-1, columns).transpose(1, 2).double()

        exact = reduced(torch.float64)
        off.append((rows.values[:, :, rows.place[layer]].double() - exact).abs().max())
        coarse.append((reduced(torch.bfloat16) - exact).abs().max())

    monkeypatch.setattr(Rows, "add", compared)
    monkeypatch.setitem(half.__dict__, "digit_tokens", torch.ones_like(half.digit_tokens))
    generate(half, [half.prompt(picture(320, 240), "dog")], [0], Sampling(samples=2, max_new_tokens=6))
    assert len(off) >= half.layers
    assert max(off) < 1e-6 < 1e-4 < max(coarse), "and the difference would have been seen"


def test_an_answer_becomes_a_box_and_maps(family, half):
    prompt = half.prompt(picture(320, 240), "cat")
    text = family.answer.format(x1=12, y1=34, x2=156, y2=178)
    with scripted(half, text):
        found, records = sample_candidates(half, [prompt], ["a"], [0], ["cat"], Sampling(samples=2, max_new_tokens=99))[
            0
        ]
    assert [record["failure"] for record in records] == [""] * 3
    assert found.maps.dtype == np.float32 and np.isfinite(found.maps).all()
    mass = found.maps.sum((-1, -2))
    assert (mass > 0).all() and (mass <= 1 + 1e-5).all()
    assert np.isfinite(found.statistics).all()
    assert all(np.isfinite(values).all() for values in found.logprobs)
