"""Parsing: no text raises, no box leaves the image, and the odd answers of real models are read as meant."""

import re

import numpy as np
import pytest
from harness import picture, share
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WIDTH, HEIGHT = 320, 240
PIECES = st.sampled_from(
    '0 1 7 12 150 999 1000 1001 99999 1e9 -5 3.75 .5 ٣ ² ( ) [ ] , . : " \' { } bbox_2d "bbox_2d" label <box> </box> '
    "<ref> </ref> <|box_start|> <|box_end|> ```json ``` NaN inf \n \t".split(" ")
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=40).map("".join), st.lists(PIECES).map(" ".join))
NUMBERS = st.one_of(
    st.integers(-(10**15), 10**15).map(str),
    st.decimals(-5000, 5000, places=3, allow_nan=False).map(lambda number: f"{number:f}"),
    st.integers(0, 1100).map(str),
)
BOXES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@pytest.fixture(scope="module")
def prompt(lvlm):
    return lvlm.prompt(picture(WIDTH, HEIGHT), "cat")


def said(family) -> list[str]:
    """The four numbers of most tests, as the family writes them."""
    return [family.number(number) for number in (10, 20, 110, 120)]


def fill(family, numbers) -> str:
    return family.answer.format(**dict(zip(("x1", "y1", "x2", "y2"), numbers, strict=True)))


def check(answer):
    assert (answer.box is None) == bool(answer.failure)
    if answer.box is not None:
        x1, y1, x2, y2 = answer.box
        assert 0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT
        assert len(answer.spans) == 4


fuzzed = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@given(texts=st.lists(TEXTS, min_size=20, max_size=20))
@fuzzed
def test_10000_arbitrary_texts_never_raise_nor_leave_the_image(lvlm, prompt, texts):
    for text in texts:
        check(lvlm.parse(text, prompt))


@given(numbers=BOXES, before=st.text(max_size=10), after=st.text(max_size=10))
@fuzzed
def test_arbitrary_boxes_never_leave_the_image(family, lvlm, prompt, numbers, before, after):
    text = before + fill(family, numbers) + after
    answer = lvlm.parse(text, prompt)
    check(answer)
    if answer.box is not None:
        token_ids = lvlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if lvlm.decode(token_ids) == text:
            tokens = lvlm.coordinate_tokens(token_ids, answer.spans)
            written = [lvlm.decode([token_ids[token] for token in number]) for number in tokens]
            assert written == ["".join(filter(str.isdigit, text[start:stop])) for start, stop in answer.spans]


def parsed(family, lvlm, prompt, numbers, around="{}"):
    return lvlm.parse(around.replace("{}", fill(family, numbers)), prompt)


def test_a_plain_answer(family, lvlm, prompt):
    x, y = family.extent(lvlm.image_processor, WIDTH, HEIGHT)
    unit = np.array([WIDTH / x, HEIGHT / y] * 2)
    plain = parsed(family, lvlm, prompt, (10, 20, 110, 120))
    assert np.allclose(plain.box, [10, 20, 110, 120] * unit)
    decimal = parsed(family, lvlm, prompt, ("10.5", "20.25", "110.0", "120"))
    assert np.allclose(decimal.box, [10.5, 20.25, 110, 120] * unit)
    wordy = parsed(family, lvlm, prompt, (10, 20, 110, 120), "Sure, in picture 1 of 3:\n{}\nIt is at (5) [1, 2].")
    assert np.array_equal(wordy.box, plain.box)
    padded = parsed(family, lvlm, prompt, (" 10 ", "\t20", "110 ", " 120\n"))
    assert np.array_equal(padded.box, plain.box)


def test_a_box_past_the_border_is_cut(family, lvlm, prompt):
    assert parsed(family, lvlm, prompt, (0, 0, 4000, 4000)).box.tolist() == [0, 0, WIDTH, HEIGHT]
    assert parsed(family, lvlm, prompt, (-40, -1, 4000, 4000)).box.tolist() == [0, 0, WIDTH, HEIGHT]


@pytest.mark.parametrize(
    "numbers",
    [(110, 120, 10, 20), (10, 120, 110, 20), (10, 20, 10, 120), (3000, 20, 4000, 40), (0, 0, 0, 0)],
    ids=["inverted", "upside down", "no width", "outside", "zeros"],
)
def test_an_empty_box_is_a_failure_with_a_reason(family, lvlm, prompt, numbers):
    answer = parsed(family, lvlm, prompt, numbers)
    assert answer.box is None and "empty" in answer.failure


@pytest.mark.parametrize(
    "broken",
    [(110, 120, 10, 20), (10, 20, 110, "1 20"), (10, 20, 110, "?"), (3000, 20, 4000, 40), (".21", 0, 1, 1)],
    ids=["inverted", "slipped", "no number", "outside", "other numbers"],
)
def test_the_first_sound_box_counts_after_broken_ones(family, lvlm, prompt, broken):
    sound = fill(family, (10, 20, 110, 120))
    text = "\n".join([fill(family, broken), sound, fill(family, (1, 2, 3, 4))])
    answer = lvlm.parse(text, prompt)
    assert np.array_equal(answer.box, lvlm.parse(sound, prompt).box)
    assert [text[start:stop] for start, stop in answer.spans] == said(family)


def test_of_broken_boxes_alone_the_first_ones_failure_is_told(family, lvlm, prompt):
    if family.number is share:
        pytest.skip("it writes shares")
    empty, shares = fill(family, (110, 120, 10, 20)), fill(family, ("0.21", "0.27", "0.76", "0.92"))
    assert lvlm.parse(empty + shares, prompt).failure == "the box is empty inside the image"
    assert "0 to 1" in lvlm.parse(shares + empty, prompt).failure


@pytest.mark.parametrize("numbers", [("0.21", "0.27", "0.76", "0.92"), ("0.0", "0", "1", "1.0")])
def test_shares_of_the_image_are_a_failure_where_the_family_writes_none(family, lvlm, prompt, numbers):
    if family.number is share:
        pytest.skip("it writes shares")
    answer = parsed(family, lvlm, prompt, numbers)
    assert answer.box is None and "0 to 1" in answer.failure


def test_shares_of_the_image_are_read_where_the_family_writes_them(family, lvlm, prompt, monkeypatch):
    monkeypatch.setattr(lvlm, "to_pixels", lambda numbers, prompt: numbers * [WIDTH, HEIGHT, WIDTH, HEIGHT])
    text = str.format(family.answer, x1="0.25", y1="0.5", x2="0.75", y2="1")
    assert np.allclose(lvlm.parse(text, prompt).box, [80, 120, 240, 240])


def test_the_first_of_two_boxes_counts(family, lvlm, prompt):
    both = fill(family, (10, 20, 110, 120)) + "\n" + fill(family, (1, 2, 3, 4))
    assert np.array_equal(lvlm.parse(both, prompt).box, parsed(family, lvlm, prompt, (10, 20, 110, 120)).box)


def test_an_answer_cut_short_is_a_failure(family, lvlm, prompt):
    text = fill(family, (10, 20, 110, 120))
    for stop in range(text.index("120") + 4):
        assert lvlm.parse(text[:stop], prompt).box is None


def test_digits_of_other_scripts_are_no_coordinates(family, lvlm, prompt):
    """They are several tokens each, none of which `coordinate_tokens` would take for a digit."""
    assert parsed(family, lvlm, prompt, ("١٠", "٢٠", "١١٠", "١٢٠")).box is None


BARE = {
    "internvl": (
        "[[10, 20, 110, 120]]",
        "The cat is at [ [10,20,110,120], [1, 2, 3, 4]].",
        "<ref>cat 9</ref>\n```\n[[10 20 110 120]]\n```",
        "<box>10 20 110 120</box>",
        "<box>[10, 20, 110, 120]</box> of [[1, 2, 3, 4]]",
    ),
}
WORDS = (  # read of every family where its own format is missing
    '```json\n[{"bbox_2d": [10, 20, 110, 120], "label": "cat 9"}]\n```',
    '[{"finding": "cat", "bounding_box": [\n10,\n20,\n110,\n120\n]}]',
    "It is at [10, 20, 110, 120].",
    "The box of the 2 cats is about `(10,20,110,120)`, not (1, 2, 3, 4).",
    "The cat is at (x1: 10, y1: 20, x2: 110, y2: 120).",
    "- **Top-left corner**: (10, 20)\n- **Bottom-right corner (x, y)**: about (110, 120)",
    "from (x1, y1) = (10, 20) to (x2, y2) = (110, 120)",
    "- Top-left corner: (x=10, y=20),\n- Bottom-right corner: (x=110, y=120)",
)
NO_BOX = (
    "[[10, 20, 110, 12", "[[10, 20, 110]]", "[[[10, 20], [110, 120]]]", "(10, 20, 110, 120, 5)",
    "The cats are at (10, 20) and at (110, 120).", "(x=10, y=20, width=100, height=100)", "(x1, y1) to (x2, y2)",
    "<think>It may be [10, 20, 110, 120], or", "<think>It is at [10, 20, 110, 120].</think>There is none.",
)  # fmt: skip


def test_what_else_public_adapters_read_as_a_box(family, lvlm, prompt):
    for text in (*BARE.get(family.name, ()), *WORDS):
        text = re.sub(r"\b(10|20|110|120)\b", lambda found: family.number(found[0]), text)
        answer = lvlm.parse(text, prompt)
        assert np.array_equal(answer.box, parsed(family, lvlm, prompt, (10, 20, 110, 120)).box), text
        assert [text[start:stop] for start, stop in answer.spans] == said(family)
        token_ids = lvlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = lvlm.coordinate_tokens(token_ids, answer.spans)
        digits = [number.replace(".", "") for number in said(family)]
        assert [lvlm.decode([token_ids[token] for token in number]) for number in tokens] == digits
    for text in NO_BOX:
        assert lvlm.parse(text, prompt).failure == "no box in the answer", text


def test_the_familys_own_format_is_read_before_any_other(family, lvlm, prompt):
    both = parsed(family, lvlm, prompt, (10, 20, 110, 120), "[1, 2, 3, 4] or {}")
    assert np.array_equal(both.box, parsed(family, lvlm, prompt, (10, 20, 110, 120)).box)


def test_a_thought_is_not_the_answer(family, lvlm, prompt, monkeypatch):
    draft, final = fill(family, (1, 2, 3, 4)), fill(family, (10, 20, 110, 120))
    box = lvlm.parse(final, prompt).box
    for text in (
        f"<think>{draft}</think>{final}",
        f"{draft}</think>\n{final}",
        f"<think>{draft}<answer>{final}</answer>",
    ):
        answer = lvlm.parse(text, prompt)
        assert np.array_equal(answer.box, box), text
        assert [text[start:stop] for start, stop in answer.spans] == said(family)
    assert lvlm.parse(f"<think>{draft}</think>There is none.", prompt).failure == "no box in the answer"
    maybe = f"Maybe [{', '.join(said(family))}], but"
    assert lvlm.parse(maybe, prompt).box is not None
    monkeypatch.setattr(lvlm.tokenizer, "chat_template", lvlm.tokenizer.chat_template + "<think>\n")
    monkeypatch.delitem(vars(lvlm), "thinks", raising=False)
    assert lvlm.parse(maybe, prompt).failure == "no box in the answer", "a cut thought"
    assert np.array_equal(lvlm.parse(f"Maybe [1, 2, 3, 4].</think>{final}", prompt).box, box)
    monkeypatch.delitem(vars(lvlm), "thinks", raising=False)


TWO_INSTANCES = {
    "qwen2-vl": "<|box_start|>(10,20),(110,120)<|box_end|><|box_start|>(1,2),(3,4)<|box_end|>",
    "qwen2.5-vl": '[{"bbox_2d": [10, 20, 110, 120], "label": "a"}, {"bbox_2d": [1, 2, 3, 4], "label": "a"}]',
    "qwen3-vl": '[\n{"label": "a 7", "bbox_2d": [10,20,110,120]}, {"bbox_2d": [1,2,3,4], "label": "a"}]',
    "internvl": "<ref>a</ref><box>[[10, 20, 110, 120], [1, 2, 3, 4]]</box>",
    "lfm2-vl": '[{"label": "a 7", "bbox": [0.01, 0.02, 0.11, 0.12]}, {"label": "a", "bbox": [0.001, 0, 0.3, 0.4]}]',
}


def test_several_instances_in_the_familys_own_format(family, lvlm, prompt):
    if family.name not in TWO_INSTANCES:
        pytest.skip("no example")
    answer = lvlm.parse(TWO_INSTANCES[family.name], prompt)
    assert np.array_equal(answer.box, parsed(family, lvlm, prompt, (10, 20, 110, 120)).box)


def test_numbers_far_outside_the_image_are_a_failure(family, lvlm, prompt):
    answer = parsed(family, lvlm, prompt, (0, 0, 200_000, 200_000))
    assert answer.box is None and "far outside" in answer.failure
