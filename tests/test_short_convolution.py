"""Short convolutions whose tokens do not lie beside those that they follow, by hand and against the layer as it is."""

from types import SimpleNamespace

import pytest
import torch
from test_sharing import layout, prompt
from torch import nn
from transformers import DynamicCache, Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from acs_lib.lvlms.short_convolution import ShortConvolution, by_place, places_in_a_row, places_seen
from acs_lib.method.forced import forced_mask
from acs_lib.method.sharing import branch_mask, masks, prefill_mask


def test_the_places_of_what_each_token_follows():
    seen = torch.tensor([[[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]]]).bool()
    assert places_seen(seen, 3).tolist() == [[[3, 1, 0], [5, 0, -1], [2, -1, -1]]]
    assert places_seen(seen[..., :2], 3)[0, 0].tolist() == [1, 0, -1], "more than there are"


def test_tokens_in_a_row_follow_their_neighbours():
    found = places_in_a_row(4, 3, torch.device("cpu"))
    assert found.tolist() == [[[0, -1, -1], [1, 0, -1], [2, 1, 0], [3, 2, 1]]]
    assert torch.equal(found, places_seen(torch.ones(1, 4, 4).tril().bool(), 3))


def test_two_answers_to_each_of_two_questions():
    """The prefix 9 9 is at 0 1, the questions 3 (and filling) and 4 5 at 2 3 and 4 5, the first tokens at 6 to 9, and
    the second tokens, which are asked for, at 10 to 13."""
    pixels = torch.zeros(1)
    found = layout([prompt(pixels, [9, 9, 3]), prompt(pixels, [9, 9, 4, 5])])
    places = places_seen(branch_mask(found, 2, 1)[:, 0], 4)
    assert places.tolist() == [[[10, 6, 2, 1], [11, 7, 2, 1], [12, 8, 5, 4], [13, 9, 5, 4]]]


def test_forced_answers_follow_the_prompt():
    """Two tokens of one answer and one of another behind a prompt of three tokens."""
    mask = forced_mask(3, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))
    assert places_seen(mask[:, 0], 3).tolist() == [[[3, 2, 1], [4, 3, 2], [5, 2, 1]]]


def test_the_masks_of_a_model_name_the_places():
    text = SimpleNamespace(
        num_attention_heads=2, num_key_value_heads=1, conv_L_cache=2, layer_types=["conv", "full_attention"]
    )
    config = SimpleNamespace(get_text_config=lambda: text)
    lvlm = SimpleNamespace(model=SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"), config=config))
    found = layout([prompt(torch.zeros(1), [1, 9, 2])])
    kinds = masks(lvlm, branch_mask, found, 1, 1)
    assert kinds["conv"].tolist() == [[[4, 3]]] and kinds["full_attention"].shape == (1, 1, 2, 5)
    whole = prefill_mask(lvlm, 2)
    assert whole["conv"].tolist() == [[[0, -1], [1, 0]]] and whole["full_attention"] is None
    text.layer_types[0] = "full_attention"
    assert prefill_mask(lvlm, 2) is None


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def layer(request):
    torch.manual_seed(0)
    config = Lfm2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, layer_types=["conv"], conv_bias=request.param
    )
    return Lfm2ShortConv(config, 0)


@torch.inference_mode()
def test_branches_of_one_sequence_come_out_as_each_alone(layer):
    """A prompt of 4 tokens; then answers of 3 and 2 tokens, a token of each a pass, and at last both at once anew."""
    first, *answers = torch.randn(4, 8), torch.randn(3, 8), torch.randn(2, 8)
    alone = [layer(torch.cat([first, answer])[None])[0] for answer in answers]
    by_place(nn.ModuleList([layer]))
    assert type(layer) is ShortConvolution
    cache = DynamicCache()
    found = layer(first[None], cache, places_in_a_row(4, 3, first.device))
    torch.testing.assert_close(found[0], alone[0][:4])
    prompt = torch.ones(2, 4).bool()
    for step in range(2):
        seen = torch.cat([prompt, torch.eye(2).bool().repeat(1, step + 1)], 1)[None]
        now = torch.stack([answer[step] for answer in answers])[None]
        found = layer(now, cache, places_seen(seen, 3))
        torch.testing.assert_close(found[0], torch.stack([one[4 + step] for one in alone]))
    assert cache.get_seq_length() == 8 and cache.layers[0].values.numel() == 0
    cache.crop(-4)
    answer = torch.tensor([0, 0, 0, 1, 1])
    mask = forced_mask(4, answer, torch.tensor([0, 1, 2, 0, 1]))
    found = layer(torch.cat(answers)[None], cache, places_seen(mask[:, 0], 3))
    torch.testing.assert_close(found[0], torch.cat([one[4:] for one in alone]))
    assert cache.layers[0].keys.shape == (1, 1, 9, 8)


@torch.inference_mode()
def test_passes_that_name_no_places_run_as_they_are(layer):
    tokens = torch.randn(1, 6, 8)
    config = layer.config
    expected = layer(tokens)
    by_place(nn.ModuleList([layer]))
    torch.testing.assert_close(layer(tokens), expected)
    cache = DynamicCache(config=config)
    parts = [layer(part, past_key_values=cache) for part in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, 1), expected)
