"""Rows of classes that the kit has no adapter for, while transformers' own `generate` writes."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from acs_lib.lvlms import attention_rows
from acs_lib.lvlms.short_convolution import by_place

IMAGE, VOCABULARY = 99, 120
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=12, initializer_range=0.2,
)  # fmt: skip


def llava():
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration, config, 16


def gemma():
    """Every layer but the last sees a window of 8 tokens."""
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    text = Gemma3TextConfig(
        **TEXT, sliding_window=8, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    )
    places = dict(image_token_index=IMAGE, image_token_id=IMAGE, boi_token_index=97, eoi_token_index=98)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **places)
    return Gemma3ForConditionalGeneration, config, 4


@pytest.mark.parametrize("made", [llava, gemma])
def test_rows_are_those_of_eager_attention_and_the_answer_is_the_same(made):
    torch.manual_seed(0)
    kind, config, tokens = made()
    model = kind._from_config(config, attn_implementation="sdpa").eval()
    ids = torch.tensor([[5, 6, *[IMAGE] * tokens, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 28, 28)}
    if made is gemma:
        inputs["token_type_ids"] = (ids == IMAGE).long()
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(**inputs, **how)

    attention_rows.attach(model)
    image = (ids == IMAGE).nonzero()[:, 1][None]
    with attention_rows.following(model, image) as rows:
        answer = model.generate(**inputs, **how)
    assert torch.equal(answer, plain) and len(rows) == 5

    model.set_attn_implementation("eager")
    eager = model.generate(**inputs, **how, output_attentions=True, return_dict_in_generate=True)
    assert torch.equal(eager.sequences, plain)
    windowed = False
    for step, row in enumerate(rows):
        for layer, attention in enumerate(eager.attentions[step + 1]):
            keys, seen = attention.shape[-1], image[0]
            offset = ids.shape[1] + step + 1 - keys  # a sliding layer's cache holds the last keys alone
            inside, expected = seen >= offset, torch.zeros(4, tokens)
            expected[:, inside] = attention[0, :, 0, (seen - offset)[inside]]
            assert (row[0, layer] - expected).abs().max() < 1e-5
            windowed |= bool((~inside).any()) and bool(inside.any())
    assert windowed == (made is gemma), "some image tokens have left a window, and others not"


def test_nothing_is_read_outside_the_context():
    kind, config, tokens = llava()
    model = kind._from_config(config, attn_implementation="sdpa").eval()
    attention_rows.attach(model)
    ids = torch.tensor([[5, *[IMAGE] * tokens, 7]])
    image = (ids == IMAGE).nonzero()[:, 1][None]
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28)}
    with attention_rows.following(model, image) as rows:
        pass
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert rows == [] and not model._forward_hooks


def test_a_hybrids_rows_are_those_of_its_attention_layers_alone():
    """LFM2-VL: two of its three layers are short convolutions. Its own `generate` works as well where the engine has
    put its convolutions in."""
    torch.manual_seed(0)
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = Lfm2VlConfig(
        text_config=Lfm2Config(**text, layer_types=["conv", "full_attention", "conv"]).to_dict(),
        vision_config=dict(model_type="siglip2_vision_model", hidden_size=32, num_hidden_layers=1,
                           num_attention_heads=2),
        image_token_id=IMAGE,
    )  # fmt: skip
    model = Lfm2VlForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    ids = torch.tensor([[5, 6, 11, 12, 13, 14, 7, 8]])  # some words stand for the image
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    columns = torch.tensor([[2, 3, 4, 5]])
    plain = model.generate(input_ids=ids, **how)
    attention_rows.attach(model)
    by_place(model)
    with attention_rows.following(model, columns) as rows:
        answer = model.generate(input_ids=ids, **how)
    assert torch.equal(answer, plain)
    model.set_attn_implementation("eager")
    eager = model.generate(input_ids=ids, **how, output_attentions=True, return_dict_in_generate=True)
    assert torch.equal(eager.sequences, answer) and len(rows) == 4
    for step, row in enumerate(rows):
        (attention,) = eager.attentions[step + 1]
        assert (row[0, 1] - attention[0, :, 0, columns[0]]).abs().max() < 1e-5
        assert row[0, [0, 2]].isnan().all(), "a convolution has none"
