import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from acs_lib.core.candidates import PER_TOKEN
from acs_lib.embedded import scenes
from acs_lib.embedded.models import TINY
from acs_lib.lvlms.adapter import ParsedAnswer
from acs_lib.lvlms.attention_rows import Rows, attach, reading
from acs_lib.method import sampling
from acs_lib.method.maps import box_coverage, coordinate_maps, head_statistics
from acs_lib.profiles import Sampling


def scene_prompt(lvlm, seed, category=None):
    scene = scenes.render(np.random.default_rng(seed), scenes.WORLDS["train"])
    return lvlm.prompt(Image.fromarray(scene.image), category or scenes.CATEGORIES[scene.categories[0]])


def test_the_statistics_of_a_token_by_hand():
    """Three tokens with p = 1/2, 1/4, 1/4, and one that is banned, the first one written."""
    p = torch.tensor([0.5, 0.25, 0.25])
    logits = torch.cat([p.log() + 3, torch.tensor([-torch.inf])])  # logits are free up to a constant
    found = dict(zip(PER_TOKEN, sampling.describe_tokens(logits, torch.tensor(0), 3).tolist(), strict=True))
    ln2 = np.log(2)
    assert found["logprobs"] == pytest.approx(-ln2)
    assert found["entropies"] == pytest.approx(0.5 * ln2 + 2 * 0.25 * 2 * ln2)
    assert found["mean_log_vp"] == pytest.approx((np.log(3 / 2) + 2 * np.log(3 / 4)) / 3)  # mean of log(V p)
    assert found["top20_logprob"] == pytest.approx(-(ln2 + 2 * ln2 + 2 * ln2) / 3)  # fewer than 20 tokens: all of them


def test_the_adapter_writes_the_prompt_that_training_saw(tiny, both):
    for category in ("fire truck", "dog"):
        prompt = scene_prompt(both, 0, category)
        question = tiny.question_ids(scenes.CATEGORIES.index(category))
        assert prompt.inputs["input_ids"][0].tolist() == tiny.prefix_ids() + question
    assert prompt.grid.cells.flatten().tolist() == list(range(tiny.image_start, tiny.image_stop))
    positions, following = both.positions(prompt.inputs)
    meant = tiny.position_ids(torch.arange(len(question) + 1)[None])
    assert torch.equal(positions, meant[..., :-1]) and torch.equal(following, meant[..., -1:])


def test_the_adapter_sees_the_pixels_that_training_saw(tiny, both):
    scene = scenes.render(np.random.default_rng(0), scenes.WORLDS["train"])
    inputs = both.prompt(Image.fromarray(scene.image), "dog").inputs
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 127.5 - 1
    names = {"pixel_values", "image_grid_thw"} & set(inputs)
    with torch.inference_mode():
        shown = both.model.model.get_image_features(**{name: inputs[name] for name in names}).pooler_output
        meant = tiny.image_features(both.model, pixels)
    assert torch.allclose(torch.cat(tuple(shown)).view(meant.shape), meant, atol=1e-5)


def test_answers_are_parsed_back_to_the_pixels_that_training_meant(tiny, both):
    prompt = scene_prompt(both, 0)
    box = np.array([3, 0, 77, 160])
    ids = tiny.answer_ids(box[None])
    answer = both.parse(both.decode(ids), prompt)
    assert np.abs(answer.box - box).max() <= 0.08 + 1e-9  # half a unit of 0-1000
    assert both.coordinate_tokens(ids, answer.spans) == [[place] for place in tiny.numbers]


@pytest.mark.parametrize(
    "text", ["", "<box>", "<box> 1 2 3 </box>", "<box> 5 5 5 5 </box>", "<box> 900 0 100 9 </box>"]
)
def test_an_answer_without_a_box_says_why(untrained, text):
    answer = untrained.parse(text, scene_prompt(untrained, 0))
    assert answer.box is None and answer.failure


def test_sampling_depends_on_seed_and_query_not_on_the_batch(untrained):
    prompts = [scene_prompt(untrained, seed) for seed in range(3)]
    how = Sampling(samples=3, temperature=1.0, max_new_tokens=8)
    together = sampling.generate(untrained, prompts, [11, 12, 13], how)
    alone = sampling.generate(untrained, prompts[1:2], [12], how)[0]
    for one, same in zip(alone, together[1]):
        assert one["token_ids"] == same["token_ids"]
        assert np.allclose(one["logprobs"], same["logprobs"], atol=1e-4)
    other = sampling.generate(untrained, prompts[1:2], [99], how)[0]
    assert [a["token_ids"] for a in other[1:]] != [a["token_ids"] for a in alone[1:]]
    assert other[0]["token_ids"] == alone[0]["token_ids"], "the greedy answer does not depend on noise"


def test_greedy_equals_transformers_generate_and_capture_changes_nothing(untrained):
    prompt = scene_prompt(untrained, 1)
    how = Sampling(samples=2, temperature=1.0, max_new_tokens=8)
    with_rows = sampling.generate(untrained, [prompt], [5], how)[0]
    without = sampling.generate(untrained, [prompt], [5], how, capture=False)[0]
    assert [a["token_ids"] for a in with_rows] == [a["token_ids"] for a in without]
    reference = untrained.model.generate(
        **prompt.inputs, do_sample=False, max_new_tokens=8, bad_words_ids=[[untrained.image_token_id]]
    )
    assert with_rows[0]["token_ids"] == reference[0, prompt.length :].tolist()


def test_rows_equal_eager_attention(untrained):
    prompt = scene_prompt(untrained, 2)
    ids = TINY["internvl"].answer_ids(np.array([[10, 20, 60, 80]]))
    full = torch.cat([prompt.inputs["input_ids"], torch.tensor([ids])], 1)
    untrained.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            eager = untrained.model(
                input_ids=full, pixel_values=prompt.inputs["pixel_values"], output_attentions=True
            ).attentions
    finally:
        attach(untrained.model)
    rows = force(untrained, prompt, ids)
    columns = prompt.grid.cells.flatten()
    for step in range(1, 6):
        reference = torch.stack([layer[0, :, prompt.length + step - 1, columns] for layer in eager])
        assert (rows[step - 1] - reference).abs().max() < 1e-5


@torch.inference_mode()
def force(lvlm, prompt, ids):
    """Rows [layers, heads, image tokens] of each forced token but the last."""
    output = lvlm.model(**prompt.inputs, use_cache=True)
    reader = Rows(prompt.grid.cells.flatten()[None], 1, lvlm.attention_layers, lvlm.heads)
    found = []
    for token in ids[:-1]:
        with reading(reader):
            output = lvlm.model(
                input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )
        found.append(reader.take()[0, 0].clone())
    return found


def test_a_layer_that_gives_nothing_is_an_error(untrained):
    with pytest.raises(RuntimeError, match=r"layers \[0, 1, 2, 3, 4, 5\]"):
        Rows(torch.arange(4)[None], 1, range(6), 8).take()


def test_draw_inverts_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7]])).repeat(4, 1)
    uniform = torch.tensor([0.05, 0.15, 0.35, 0.999], dtype=torch.double)
    assert sampling.sample_tokens(logits, uniform, 1.0, 1.0).tolist() == [0, 1, 2, 2]
    assert sampling.sample_tokens(logits, uniform, 1.0, 0.7).tolist() == [2, 2, 2, 2], "top-p keeps the likeliest only"


def test_a_draw_in_float32_is_never_a_token_of_no_probability():
    logits = torch.tensor([[1.0, 2.0, -torch.inf, 1.0, -torch.inf]]).repeat(2, 1)
    uniform = torch.tensor([np.nextafter(1, 0), 0.0]).float()
    assert uniform[0] == 1, "rounded up"
    assert sampling.sample_tokens(logits, uniform, 1.0, 1.0).tolist() == [3, 0]


def test_draws_are_in_float64_where_the_device_has_it():
    found = {name: sampling.precision(torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert found == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32}


class Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for its device, transfers apart."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(one is not None and one.dtype == torch.bool for one in args[1])
        self.count += masked or name in ("item", "is_nonzero", "nonzero", "masked_select", "equal", "unique2")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("row", ["own", "last", "after", "predicting"])
def test_no_token_makes_the_host_wait_but_for_its_id(both, row):
    """Neither in this module nor in the model: as many waits for a few tokens as for many."""
    prompts, counts = [scene_prompt(both, seed) for seed in range(2)], []
    _ = both.digit_tokens
    for tokens in (4, 16):
        how = Sampling(samples=4, temperature=3.0, max_new_tokens=tokens, row=row)
        with Waits() as waits:
            answers = sampling.generate(both, prompts, [7, 8], how)
        assert max(len(one["token_ids"]) for one in sum(answers, [])) == tokens
        assert tokens == 4 or any(one["rows"] for one in sum(answers, []))
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_statistics_of_hand_made_maps():
    maps = np.zeros((1, 4, 1, 1, 2, 2), np.float32)
    maps[0, 0, 0, 0] = [[0.5, 0], [0, 0]]  # all on one cell
    maps[0, 1, 0, 0] = 0.1  # even
    coverage = box_coverage(np.array([[0, 0, 10, 5]]), 20, 20, (2, 2))
    assert coverage[0].tolist() == [[0.5, 0], [0, 0]]
    found = head_statistics(maps, coverage)[0, :2, 0, 0]
    assert found[0] == pytest.approx([0, 0.5, 0.25, 1], abs=1e-5)
    assert found[1] == pytest.approx([np.log(4), 0.4, 0.05, 0.25], abs=1e-5)


def test_statistics_do_not_depend_on_where_they_are_computed():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 4, 2, 5, 6, 7)).astype(np.float32) ** 8 / 42
    maps[1] = np.nan  # an answer without a box
    coverage = box_coverage(np.array([[0, 0, 33, 5], [0, 0, 0, 0], [4, 4, 50, 60]]), 70, 60, (6, 7))
    array, tensor = head_statistics(maps, coverage), head_statistics(torch.from_numpy(maps), coverage)
    assert isinstance(array, np.ndarray) and array.dtype == np.float32 and tensor.dtype == torch.float32
    assert np.allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-7, equal_nan=True)
    assert np.isnan(array[1]).all() and np.isfinite(array[[0, 2]]).all()


def test_maps_are_averaged_and_statistics_are_not(untrained, monkeypatch):
    monkeypatch.setattr(type(untrained), "parse", lambda *_: ParsedAnswer(np.array([10.0, 20, 60, 80]), ((0, 1),) * 4))
    monkeypatch.setattr(type(untrained), "coordinate_tokens", lambda *_: [[0]] * 4)
    monkeypatch.setitem(untrained.__dict__, "digit_tokens", torch.ones_like(untrained.digit_tokens))
    prompt, how = scene_prompt(untrained, 0), Sampling(samples=2, temperature=1.0, max_new_tokens=4)
    asked = untrained, [prompt], ["a"], [1], ["dog"], how
    [(whole, _)], [(small, _)] = sampling.sample_candidates(*asked), sampling.sample_candidates(*asked, map_side=5)
    assert whole.parsed.all() and whole.maps.shape[-2:] == (10, 10) and small.maps.dtype == np.float32
    means = whole.maps.reshape(*whole.maps.shape[:4], 5, 2, 5, 2).mean((-3, -1))
    assert np.allclose(small.maps, means, rtol=1e-5)
    assert np.array_equal(small.statistics, whole.statistics)
    [(same, _)] = sampling.sample_candidates(*asked, map_side=16)
    assert np.array_equal(same.maps, whole.maps), "a small grid is not blown up"


def test_the_image_token_is_banned(untrained):
    assert untrained.banned_tokens.tolist() == [TINY["internvl"].vocabulary["<IMG_CONTEXT>"]]
    how = Sampling(samples=20, temperature=50.0, max_new_tokens=12)
    answers = sampling.generate(untrained, [scene_prompt(untrained, 3)], [1], how)[0]
    assert untrained.image_token_id not in sum((answer["token_ids"] for answer in answers), [])


def test_the_row_that_predicts_a_digit_is_the_row_of_the_token_before(untrained):
    prompt = scene_prompt(untrained, 4)
    own, predicting = (
        sampling.generate(untrained, [prompt], [7], Sampling(samples=8, temperature=3.0, max_new_tokens=16, row=row))[0]
        for row in ("own", "predicting")
    )
    compared = 0
    for one, other in zip(own, predicting):
        assert one["token_ids"] == other["token_ids"]
        digits = untrained.digit_tokens[torch.tensor(one["token_ids"])].tolist()
        assert sorted(other["rows"]) == [place for place, digit in enumerate(digits) if digit and place]
        for place in other["rows"].keys() & {earlier + 1 for earlier in one["rows"]}:
            assert torch.equal(other["rows"][place], one["rows"][place - 1])
            compared += 1
    assert compared


def test_a_number_that_another_follows_at_once_has_no_row_after_it():
    rows = {place: torch.full((2, 3, 4), float(place)) for place in (2, 5, 6)}
    tokens = [[1, 2], [5], [6], [6]]
    maps = coordinate_maps(rows, tokens, (2, 2), "after")
    assert maps.shape == (4, 2, 3, 2, 2) and maps[:, 0, 0, 0, 0].tolist() == [2, 5, 6, 6]
    assert coordinate_maps(rows, [[1, 2], [3], [5], [6]], (2, 2), "after") is None
    assert coordinate_maps(rows, [[1, 2], [5], [6], [6]], (2, 2))[0, 0, 0, 0, 0] == 1, "a sum by two digits"
