"""Who sees what where questions and answers share a sequence, by hand."""

from types import SimpleNamespace

import torch

from acs_lib.lvlms.adapter import Grid, Prompt
from acs_lib.method.sharing import Layout, branch_mask, by_sequence, common, masks, question_mask

IMAGE = 9


def prompt(pixels: torch.Tensor, ids: list[int]) -> Prompt:
    cells = torch.tensor([[place for place, token in enumerate(ids) if token == IMAGE]])
    return Prompt({"input_ids": torch.tensor([ids]), "pixel_values": pixels}, Grid(cells), 10, 10)


def layout(prompts):
    return Layout.of(prompts, torch.device("cpu"))


def test_prompts_of_one_image_share_a_sequence_where_they_begin_alike():
    a, b = torch.zeros(1), torch.zeros(1)
    asked = [prompt(a, [1, 9, 9, 2, 3]), prompt(a, [1, 9, 9, 4]), prompt(b, [1, 9, 9, 2, 3]), prompt(b, [5, 9, 9, 2])]
    assert by_sequence(asked) == [[0, 1], [2], [3]], "equal pixels of another image are another image"
    assert common(asked[:2]) == 3 and common(asked[:1]) == 4 and common(asked[2:]) == 0
    longer = [prompt(a, [1, 9, 9, 2]), prompt(a, [1, 9, 9, 2, 3])]
    assert common(longer) == 3, "the last token of each is its own"


def test_one_question_an_image_leaves_nothing_between_prompt_and_answers():
    found = layout([prompt(torch.zeros(1), [1, 9, 2]), prompt(torch.zeros(1), [9, 2])])
    assert (found.prefix.tolist(), found.longest, found.rest.tolist(), found.widest) == ([3, 2], 3, [[0], [0]], 0)
    assert branch_mask(found, 2, 1)[:, 0].int().tolist() == [
        [[1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0, 1]],
        [[1, 1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0, 1]],
    ], "their second token"
    assert branch_mask(found, 2, 1, window=3)[:, 0, 0].int().tolist() == [
        [0, 0, 1, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1, 0],
    ]


def test_two_questions_of_one_image_and_one_of_another():
    pixels = torch.zeros(1)
    found = layout([prompt(pixels, [9, 9, 3]), prompt(pixels, [9, 9, 4, 5]), prompt(torch.zeros(1), [9, 2])])
    assert found.prompts.tolist() == [[0, 1], [2, 2]] and found.prefix.tolist() == [2, 1]
    assert found.rest.tolist() == [[1, 2], [1, 1]] and (found.longest, found.widest) == (2, 2)
    assert question_mask(found)[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1]],
        [[1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]],
    ], "a padded token sees more than any other, and none sees it"
    assert question_mask(found, window=2)[0, 0].int().tolist() == [
        [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert branch_mask(found, 1, 0)[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1, 0, 1]],
        [[1, 0, 1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0, 0, 1]],
    ], "the first token of one answer each"
    assert branch_mask(found, 1, 1, window=3)[0, 0].int().tolist() == [
        [0, 0, 1, 0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 0, 1, 0, 1],
    ], "and the second, which sees three tokens"


def test_values_go_to_their_places_and_back():
    pixels = torch.zeros(1)
    found = layout([prompt(pixels, [9, 9, 3]), prompt(pixels, [9, 9, 4, 5]), prompt(torch.zeros(1), [9, 2])])
    values = torch.arange(6).view(3, 2)
    spread = found.spread(values)
    assert spread.tolist() == [[0, 1, 2, 3], [4, 5, 4, 5]]
    assert torch.equal(found.collect(spread[..., None])[..., 0], values)
    assert spread.flatten()[found.branches(2)].tolist() == values.flatten().tolist()


def test_a_mask_is_additive_and_repeated_for_the_heads_that_share_a_key_head():
    text = SimpleNamespace(
        num_attention_heads=6, num_key_value_heads=2, sliding_window=3, layer_types=["full_attention"] * 2
    )
    model = SimpleNamespace(dtype=torch.bfloat16, config=SimpleNamespace(get_text_config=lambda: text))
    found, lvlm = layout([prompt(torch.zeros(1), [1, 9, 2])]), SimpleNamespace(model=model)
    full, window = (branch_mask(found, 2, 1, window=window)[0, 0] for window in (None, 3))
    ready = masks(lvlm, branch_mask, found, 2, 1)
    assert ready.dtype == torch.bfloat16 and ready.shape == (1, 1, 3 * 2, 7)
    for group in ready[0, 0].split(2):
        assert torch.equal(group == 0, full) and torch.equal(group == -torch.inf, ~full)
    text.layer_types[0] = "sliding_attention"
    kinds = masks(lvlm, branch_mask, found, 2, 1)
    assert torch.equal(kinds["full_attention"], ready)
    assert torch.equal(kinds["sliding_attention"][0, 0, 4:] == 0, window)
