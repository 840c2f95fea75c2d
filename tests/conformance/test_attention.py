"""Attention rows: what eager attention would give, without changing what the model says; on the right pixels."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from harness import picture, scripted
from test_prompt import SHAPES, image_tokens_that_change, spot

from acs_lib.lvlms.attention_rows import NAME, Rows
from acs_lib.method.sampling import generate, sample_candidates
from acs_lib.profiles import Sampling

HOW = Sampling(samples=3, temperature=0.8, max_new_tokens=14)


@pytest.fixture
def every_row(lvlm, monkeypatch):
    """Keep the row of every token, each as a number of its own, not of digits only: a random model writes few."""
    monkeypatch.setitem(lvlm.__dict__, "digit_tokens", torch.ones_like(lvlm.digit_tokens))
    monkeypatch.setattr(lvlm, "decode", lambda token_ids: "", raising=True)


def tokens_of(answers):
    return [answer["token_ids"] for answer in answers]


def same_answers(found, expected):
    """The same tokens, and log-probabilities and rows equal up to rounding."""
    assert tokens_of(found) == tokens_of(expected)
    for one, other in zip(found, expected):
        assert np.allclose(one["logprobs"], other["logprobs"], atol=1e-4)
        assert one["rows"].keys() == other["rows"].keys() and one["rows"]
        assert all((row - other["rows"][step]).abs().max() < 1e-5 for step, row in one["rows"].items())


@pytest.mark.parametrize("order", ["image first", "question first"])
def test_questions_about_one_image_answer_as_one_by_one(lvlm, every_row, order, monkeypatch):
    """Its encoding is shared, and, where the template has it first, the prefill, too."""
    if order == "question first":
        template = lvlm.tokenizer.chat_template
        monkeypatch.setattr(lvlm.tokenizer, "chat_template", template.replace("['content']", "['content']|reverse"))
    prompts = lvlm.prompts(picture(320, 240, seed=2), ["dog", "cell phone", "cat"])
    prompts += [lvlm.prompt(picture(100, 130, seed=3), "dog"), *lvlm.prompts(picture(250, 140, seed=4), ["cat", "bus"])]
    keys, seen = list(range(len(prompts))), []
    alone = [generate(lvlm, [prompt], [key], HOW)[0] for prompt, key in zip(prompts, keys)]
    look = lvlm.model.model.get_image_features
    monkeypatch.setattr(
        lvlm.model.model, "get_image_features",
        lambda pixel_values, *others, **kwargs: seen.append(len(pixel_values)) or look(pixel_values, *others, **kwargs),
    )  # fmt: skip
    for found, expected in zip(generate(lvlm, prompts, keys, HOW), alone):
        same_answers(found, expected)
    pixels = {id(prompt.inputs["pixel_values"]): len(prompt.inputs["pixel_values"]) for prompt in prompts}
    assert seen == [sum(pixels.values())] and len(pixels) == 3, "every image is looked at once"


def test_only_the_text_model_reads_rows(lvlm):
    assert lvlm.model.config.get_text_config()._attn_implementation == NAME
    assert lvlm.model.config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answer_equals_transformers_generate(lvlm, shape):
    prompt = lvlm.prompt(picture(*SHAPES[shape], seed=1), "dog")
    ours = generate(lvlm, [prompt], [0], Sampling(samples=2, max_new_tokens=24))[0][0]
    reference = copy.deepcopy(lvlm.model)
    reference.set_attn_implementation("sdpa")
    theirs = reference.generate(
        **prompt.inputs, do_sample=False, max_new_tokens=24, suppress_tokens=lvlm.banned_tokens.tolist(),
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert ours["token_ids"] == theirs.sequences[0, prompt.length :].tolist()
    logprobs = [score[0].float().log_softmax(-1).max().item() for score in theirs.scores]
    assert np.allclose(ours["logprobs"], logprobs, atol=1e-4)


def test_the_checkpoints_repetition_penalty_holds_as_in_generate(lvlm, monkeypatch):
    """Qwen2.5-VL's generation config has one. It counts the prompt, though not what the batch pads it with; the stored
    log-probabilities are the model's own."""
    prompts = [lvlm.prompt(picture(320, 240, seed=1), "dog"), lvlm.prompt(picture(100, 100, seed=2), "cell phone")]
    how = Sampling(samples=2, max_new_tokens=24)
    free = [answers[0]["token_ids"] for answers in generate(lvlm, prompts, [0, 1], how)]
    monkeypatch.setattr(lvlm.model.generation_config, "repetition_penalty", 1.3)
    ours = [answers[0] for answers in generate(lvlm, prompts, [0, 1], how)]
    reference = copy.deepcopy(lvlm.model)
    reference.set_attn_implementation("sdpa")
    for prompt, answer in zip(prompts, ours):
        theirs = reference.generate(
            **prompt.inputs, do_sample=False, max_new_tokens=24, suppress_tokens=lvlm.banned_tokens.tolist(),
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        assert answer["token_ids"] == theirs.sequences[0, prompt.length :].tolist()
        logits = torch.cat(theirs.logits).index_fill(-1, lvlm.banned_tokens, -torch.inf).log_softmax(-1)
        own = logits.gather(1, torch.tensor(answer["token_ids"])[:, None])[:, 0].tolist()
        assert np.allclose(answer["logprobs"], own, atol=1e-4)
    assert free != [answer["token_ids"] for answer in ours], "a penalty that changes nothing proves nothing"


@torch.inference_mode()
def eager_rows(lvlm, prompt, token_ids):
    """Rows [answer, layers, heads, image tokens] of an answer's tokens by transformers' own eager attention, one pass
    over prompt and answer, positions left to the model."""
    model = copy.deepcopy(lvlm.model)
    model.set_attn_implementation("eager")
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([token_ids])], 1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(token_ids)))
    layers = model(**inputs, output_attentions=True).attentions
    assert len(layers) == lvlm.layers
    columns = prompt.grid.cells.flatten()
    return torch.stack([layer[0, :, prompt.length - 1 :][:, :, columns] for layer in layers]).permute(2, 0, 1, 3)


@pytest.mark.parametrize("shape", ["landscape", "portrait"])
@pytest.mark.parametrize("row", ["own", "predicting"])
def test_rows_equal_those_of_eager_attention(lvlm, every_row, row, shape):
    prompt = lvlm.prompt(picture(*SHAPES[shape], seed=2), "dog")
    how = Sampling(samples=1, temperature=0.8, max_new_tokens=14, row=row)
    for answer in generate(lvlm, [prompt], [3], how)[0]:
        expected = eager_rows(lvlm, prompt, answer["token_ids"])[1 if row == "own" else 0 :]
        assert len(answer["rows"]) >= len(answer["token_ids"]) - 1
        for step, found in answer["rows"].items():
            assert (found - expected[step]).abs().max() < 1e-5
            assert (found >= 0).all() and (found.sum(-1) <= 1 + 1e-5).all()
    share = found / found.sum(-1, keepdim=True)
    assert share.max() > 5 / share.shape[-1], "near-uniform attention proves little"


def test_capture_does_not_change_the_answers(lvlm):
    prompt = lvlm.prompt(picture(320, 240, seed=3), "dog")
    assert tokens_of(generate(lvlm, [prompt], [0], HOW)[0]) == tokens_of(
        generate(lvlm, [prompt], [0], HOW, capture=False)[0]
    )


BATCHES = {
    "same": ((320, 240), (320, 240)),
    "turned": ((320, 240), (240, 320)),
    "longer": ((224, 168), (336, 112)),
    "other lengths, grids and tiles": ((320, 240), (100, 100)),
}


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_candidates_do_not_depend_on_what_else_is_in_the_batch(lvlm, every_row, sizes):
    prompts = [
        lvlm.prompt(picture(*size, seed=seed), category)
        for seed, (size, category) in enumerate(zip(sizes, ("dog", "cell phone")))
    ]
    together = generate(lvlm, prompts, [7, 8], HOW)
    alone = [generate(lvlm, [prompt], [key], HOW)[0] for prompt, key in zip(prompts, [7, 8], strict=True)]
    for one, other in zip(sum(together, []), sum(alone, []), strict=True):
        assert one["token_ids"] == other["token_ids"]
        assert one["rows"].keys() == other["rows"].keys()
        for step, found in one["rows"].items():
            assert torch.allclose(found, other["rows"][step], atol=1e-5)
    assert tokens_of(together[0]) != tokens_of(together[1])


@contextlib.contextmanager
def planted(lvlm, positions):
    """All queries attend to the keys at `positions` of the prompt: query and key are set along the axis that the
    rotary embedding turns slowest."""

    def plant(module, args, output):
        heads = output.view(*output.shape[:2], -1, HEAD_DIM)
        heads.zero_()
        if module in queries:
            heads[..., -1] = 12.0
        elif heads.shape[1] > max(positions):  # the prompt; keys of the answer stay zero
            heads[:, positions, :, -1] = 12.0
        return output

    layers = [lvlm.model.model.language_model.layers[index].self_attn for index in lvlm.attention_layers]
    HEAD_DIM = layers[0].head_dim
    name = next(name for name in ("{}_norm", "{}_layernorm", "{}_proj") if hasattr(layers[0], name.format("q")))
    queries = [getattr(layer, name.format("q")) for layer in layers]
    keys = [getattr(layer, name.format("k")) for layer in layers]
    handles = [module.register_forward_hook(plant) for module in queries + keys]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_to_the_token_of_an_object_lights_up_the_objects_pixels(family, lvlm, shape):
    """Which token sees the bright spot is found without `Grid`; all heads are made to attend to it; the maps of all
    four numbers must then peak where the spot is in the image."""
    width, height = SHAPES[shape]
    grid = lvlm.prompt(picture(width, height), "cat").grid
    rows, columns = grid.cells.shape
    row, column = rows // 4, columns - 2
    images = spot((width, height), (rows, columns), row, column)
    change = image_tokens_that_change(lvlm, images)
    seers = (change > 0.25 * change[grid.cells].max()).nonzero()[:, 0].tolist()
    assert len(seers) == (1 if not len(grid.thumbnail) else len(seers)) and seers
    prompt = lvlm.prompt(images[1], "cat")
    text = family.answer.format(x1=10, y1=20, x2=90, y2=80)
    with scripted(lvlm, text), planted(lvlm, seers):
        found, _ = sample_candidates(lvlm, [prompt], ["a"], [0], ["cat"], Sampling(samples=1, max_new_tokens=99))[0]
    maps = found.maps.reshape(-1, rows * columns)
    assert (maps.argmax(-1) == row * columns + column).all()
    assert (maps.max(-1) > 0.9 * maps.sum(-1)).all()
    assert (maps.sum(-1) > (0.99 if len(seers) == 1 else 0.2)).all()
    x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
    assert images[1].getpixel((int(x), int(y))) == (255, 255, 255), "the peak's cell holds the bright pixels"


def test_an_answer_is_read_from_end_to_end(family, lvlm):
    """A scripted answer becomes a box in pixels, four numbers' tokens and maps."""
    prompt = lvlm.prompt(picture(320, 240), "cat")
    text = family.answer.format(x1=12, y1=34, x2=156, y2=178)
    with scripted(lvlm, text) as script:
        found, records = sample_candidates(lvlm, [prompt], ["a"], [0], ["cat"], Sampling(samples=2, max_new_tokens=99))[
            0
        ]
    assert found.parsed.all() and [record["text"] for record in records] == [text] * 3
    x, y = family.extent(lvlm.image_processor, 320, 240)
    assert np.allclose(found.boxes, np.array([12, 34, 156, 178]) * np.tile([320 / x, 240 / y], 2))
    numbers = lvlm.decode([script[token] for token in found.coordinate_tokens[0]])
    expected = "".join(family.number(number) for number in (12, 34, 156, 178))
    assert "".join(numbers.split()) == expected.replace(".", "")
    cells = prompt.grid.cells.shape
    assert found.maps.shape == (3, 4, lvlm.layers, lvlm.heads, *cells) and np.isfinite(found.maps).all()
    assert np.allclose(found.maps[0], found.maps[1], atol=1e-6), "the same tokens have the same rows"
    expected = eager_rows(lvlm, prompt, script)[1:]
    tokens = lvlm.coordinate_tokens(script, lvlm.parse(text, prompt).spans)
    for coordinate, number in enumerate(tokens):
        mean = expected[number].mean(0).unflatten(-1, tuple(cells)).numpy()
        assert np.abs(found.maps[0, coordinate] - mean).max() < 1e-5


def test_an_answer_that_the_limit_cut_before_its_box_says_so(family, lvlm):
    prompt = lvlm.prompt(picture(320, 240), "cat")

    def failures(text, limit):
        with scripted(lvlm, text):
            how = Sampling(samples=1, max_new_tokens=limit)
            return [record["failure"] for record in sample_candidates(lvlm, [prompt], ["a"], [0], ["cat"], how)[0][1]]

    box = family.answer.format(x1=12, y1=34, x2=156, y2=178)
    cut = "no box in the answer, cut at max_new_tokens: raise it from 9 (acs ground --max-new-tokens)"
    assert failures("I think that " + box, 9) == [cut] * 2
    assert failures("None here<|im_end|>", 10) == ["no box in the answer"] * 2, "its end is its tenth token"
    ids = lvlm.tokenizer(box, add_special_tokens=False)["input_ids"]
    assert failures(box, len(ids) - 1) == [""] * 2, "cut behind its box"


@pytest.mark.parametrize("row", ["predicting", "last", "after"])
def test_a_numbers_other_rows_are_those_of_its_last_digit_and_of_its_neighbours(family, lvlm, row):
    """Every digit of the script is a token, and every number is followed by a comma or a bracket."""
    prompt = lvlm.prompt(picture(320, 240), "cat")
    text = family.answer.format(x1=2, y1=34, x2=156, y2=178)
    how = Sampling(samples=1, max_new_tokens=99, row=row)
    with scripted(lvlm, text) as script:
        found, _ = sample_candidates(lvlm, [prompt], ["a"], [0], ["cat"], how)[0]
    assert found.parsed.all()
    expected = eager_rows(lvlm, prompt, script)[1:]
    for coordinate, number in enumerate(lvlm.coordinate_tokens(script, lvlm.parse(text, prompt).spans)):
        wanted = {"predicting": [token - 1 for token in number], "last": number[-1:], "after": [number[-1] + 1]}[row]
        mean = expected[wanted].mean(0).unflatten(-1, tuple(prompt.grid.cells.shape)).numpy()
        assert np.abs(found.maps[:, coordinate] - mean).max() < 1e-5


def test_non_finite_attention_is_the_failure_of_its_answer_alone(family, lvlm, monkeypatch):
    prompt = lvlm.prompt(picture(320, 240), "cat")
    text = family.answer.format(x1=12, y1=34, x2=156, y2=178)
    take = Rows.take

    def spoilt(self):
        rows = take(self)
        rows[:, 1, 0, 0, 3] = torch.nan  # the first sampled answer
        return rows

    monkeypatch.setattr(Rows, "take", spoilt)
    with scripted(lvlm, text):
        found, records = sample_candidates(lvlm, [prompt], ["a"], [0], ["cat"], Sampling(samples=2, max_new_tokens=99))[
            0
        ]
    assert [record["failure"] for record in records] == ["", "non-finite attention", ""]
    assert found.parsed.tolist() == [True, False, True] and np.isfinite(found.maps[[0, 2]]).all()
