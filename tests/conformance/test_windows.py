"""Text models whose layers see a window of the last tokens only (Qwen2-VL, Qwen2.5-VL and InternVL's may have some)."""

import copy

import pytest
from harness import picture
from test_attention import HOW, eager_rows, every_row, same_answers, tokens_of  # noqa: F401 (a fixture)

from acs_lib.method.sampling import generate
from acs_lib.profiles import Sampling

WINDOW = 9  # shorter than the question after the image, and than the answer


@pytest.fixture(scope="module")
def lvlm(family):
    """The tiny model with windows in every layer but one."""
    full = family.build()
    config = copy.deepcopy(full.model.config)
    text = config.get_text_config()
    if not hasattr(text, "use_sliding_window"):
        pytest.skip("the class has no windows")
    text.use_sliding_window, text.sliding_window = True, WINDOW
    text.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    model = type(full.model)._from_config(config, attn_implementation="sdpa")
    model.load_state_dict(full.model.state_dict())
    model.generation_config = full.model.generation_config
    return family.adapter(model, full.tokenizer, full.image_processor, family.name)


def test_rows_equal_those_of_eager_attention(lvlm, every_row):  # noqa: F811
    prompt = lvlm.prompt(picture(320, 240, seed=2), "dog")
    for answer in generate(lvlm, [prompt], [3], Sampling(samples=2, temperature=0.8, max_new_tokens=14))[0]:
        expected = eager_rows(lvlm, prompt, answer["token_ids"])[1:]
        for step, found in answer["rows"].items():
            assert (found - expected[step]).abs().max() < 1e-5
        assert (found[0] == 0).all() and found[1].sum() > 0, "the image is out of the first layer's window"


def test_greedy_answer_equals_transformers_generate(lvlm):
    prompt = lvlm.prompt(picture(300, 300, seed=1), "dog")
    ours = generate(lvlm, [prompt], [0], Sampling(samples=2, max_new_tokens=24))[0][0]
    reference = copy.deepcopy(lvlm.model)
    reference.set_attn_implementation("sdpa")
    theirs = reference.generate(
        **prompt.inputs, do_sample=False, max_new_tokens=24, suppress_tokens=lvlm.banned_tokens.tolist()
    )
    assert ours["token_ids"] == theirs[0, prompt.length :].tolist()


def test_candidates_do_not_depend_on_what_else_is_in_the_batch(lvlm):
    prompts = [lvlm.prompt(picture(320, 240), "dog"), lvlm.prompt(picture(100, 100), "cell phone")]
    together = generate(lvlm, prompts, [7, 8], HOW)
    for prompt, key, answers in zip(prompts, [7, 8], together):
        assert tokens_of(answers) == tokens_of(generate(lvlm, [prompt], [key], HOW)[0])


def test_questions_that_share_their_image_answer_as_one_by_one(lvlm, every_row):  # noqa: F811
    prompts = lvlm.prompts(picture(320, 240, seed=2), ["dog", "cell phone", "cat"])
    for prompt, key, answers in zip(prompts, [7, 8, 9], generate(lvlm, prompts, [7, 8, 9], HOW)):
        same_answers(answers, generate(lvlm, [prompt], [key], HOW)[0])
