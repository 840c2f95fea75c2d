"""Answers of another engine: the lines of a file, and what `score` and `acs score` make of them."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from acs_lib import cli, ground, score
from acs_lib.grounding import api
from acs_lib.grounding.answers import Answer, as_answer, compared, read_questions
from acs_lib.lvlms.load import load_lvlm
from acs_lib.method.baselines import METHODS

FEW = {"samples": 4, "seed": 4}
LVLMS = ("internvl-embedded", "qwen2.5-vl-embedded")


@pytest.fixture(scope="module")
def scene():
    """(path, object) of one shipped scene."""
    first = api.samples().iloc[0]
    return first["image"], first["category"]


@pytest.fixture
def native(scene):
    """What the embedded LVLM says itself."""
    return ground(None, *scene, **FEW)


def token_ids(lvlm, found):
    """The answers' token ids, of their texts."""
    return [as_answer(text).ids(lvlm) for text in found.table["text"]]


@pytest.mark.parametrize("name", LVLMS)
@pytest.mark.parametrize("selector", ["acs-free", "acs-learned"])
def test_the_native_answers_are_scored_as_ground_scored_them(scene, name, selector):
    """As texts, as token ids, and as both with their log-probabilities."""
    lvlm = load_lvlm(name)
    own = ground(lvlm, *scene, selector=selector, **FEW)
    texts, ids = list(own.table["text"]), token_ids(lvlm, own)
    logprobs = [row.tolist() for row in own.candidates.logprobs]
    objects = [{"token_ids": one, "logprobs": row} for one, row in zip(ids, logprobs)]
    for answers in (texts, ids, objects):
        found = score(lvlm, *scene, answers[1:], answers[0], selector=selector)
        assert found.chosen == own.chosen and found.settings is None
        np.testing.assert_allclose(found.box, own.box)
        for column in ("x1", "y1", "x2", "y2", "score", "logprob", "predicted_iou"):
            np.testing.assert_allclose(found.table[column], own.table[column], atol=1e-5)
        for column in ("candidate", "text", "failure"):
            assert list(found.table[column]) == list(own.table[column])
    assert list(found.table["engine_logprobs"]) == logprobs
    told = found.to_dict()
    assert told["settings"] is None and json.loads(json.dumps(told))["candidates"][2]["engine_logprobs"] == logprobs[2]


def test_without_a_greedy_answer_its_row_holds_no_box(scene, native):
    lvlm = load_lvlm()
    answers = token_ids(lvlm, native)[1:]
    for name in METHODS:
        if name == "p-true":
            continue
        found = score(lvlm, *scene, answers, selector=name)
        assert len(found.table) == 5 and found.table["failure"][0] == "no greedy answer was given"
        assert (found.box is None) == (name == "greedy"), name
    assert list(found.table["text"][1:]) == list(native.table["text"][1:])


def test_an_answer_without_an_end_gets_one_if_it_is_a_text():
    lvlm = load_lvlm()
    end = lvlm.end_tokens[0].item()
    ids = as_answer("<box> 0 6 12 19 </box>").ids(lvlm)
    assert ids[-1] == end and as_answer(lvlm.decode(ids)).ids(lvlm) == ids, "not a second one"
    assert as_answer("").ids(lvlm) == [end]
    assert as_answer([9, 16]).ids(lvlm) == [9, 16] and as_answer([]).ids(lvlm) == [], "as they are"


def test_answers_without_a_box_say_why(scene):
    found = score(None, *scene, ["", [], "the dog", "<box> 0 6 12", [9, 16, 17]])
    assert found.box is None and list(found.table["failure"][1:]) == [
        "no box in the answer", "no box in the answer, nor an end: raise the engine's limit of tokens",
        "no box in the answer", "no box in the answer",
        "no box in the answer, nor an end: raise the engine's limit of tokens",
    ]  # fmt: skip


def test_log_probabilities_of_another_model_are_warned_of(scene, native, recwarn):
    lvlm = load_lvlm()
    ids = token_ids(lvlm, native)
    own = [row.tolist() for row in native.candidates.logprobs]
    score(lvlm, *scene, [{"token_ids": one, "logprobs": row[:-1]} for one, row in zip(ids, own)])
    assert not recwarn.list, "the end token's may be missing"
    other = [{"token_ids": one, "logprobs": [value - 1 for value in row]} for one, row in zip(ids, own)]
    with pytest.warns(UserWarning, match="differ from those of internvl-embedded by 1.00 nats a token; it may have"):
        score(lvlm, *scene, other)
    with pytest.warns(UserWarning, match="not as many as the tokens of 2 answers"):
        score(lvlm, *scene, [{"text": lvlm.decode(one), "logprobs": [-1.0]} for one in ids[:2]])
    far = compared("x", "y", [Answer(text="a", logprobs=[-9999.0])], [np.array([-np.inf])])
    assert far is None, "both say that it is impossible"


LINES = {
    '{"image": "a.png", "object": "dog"}': "answers: Field required",
    '{"image": "a.png", "object": "dog", "answers": []}': "answers: List should have at least 1 item",
    '{"image": "a.png", "object": "dog", "answers": [{"text": "a", "token_ids": [1]}]}': "give text or token_ids",
    '{"image": "a.png", "object": "dog", "answers": [{}]}': "answers.0: give text or token_ids",
    '{"image": "a.png", "object": "dog", "answers": ["a", [1.5]]}': "answers.1.token_ids.0: Input should be",
    '{"image": "a.png", "object": "dog", "answers": ["a", 7]}': "answers.1: Input should be a valid dictionary",
    '{"image": "a.png", "object": "dog", "answers": ["a"], "greddy": "a"}': "greddy: Extra inputs are not permitted",
    '{"image": 7, "object": "dog", "answers": ["a"]}': "image: Input should be a valid string",
    '["a.png"]': "Input should be a valid dictionary",
    '{"image": "a.png"': "this is no JSON",
}


def test_every_broken_line_is_named_with_what_is_wrong(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("\n\n".join(LINES))
    found = list(read_questions(file))
    for index, ((where, error), told) in enumerate(zip(found, LINES.values(), strict=True)):
        assert where == f"{file}, line {2 * index + 1}" and told in str(error), where
        assert "\n" not in str(error)
    with pytest.raises(ValueError, match="an answer is no text"):
        as_answer(7)


def acs(*arguments):
    """(exit code, standard output, standard error); an exception that reaches the shell fails the test."""
    result = CliRunner().invoke(cli.app, ["score", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_a_file_of_answers_in_the_shell(scene, native, tmp_path):
    """Images lie relative to the file; broken lines do not stop the others; every line is told by its number."""
    (tmp_path / "pictures").mkdir()
    shutil.copy(scene[0], tmp_path / "pictures" / "a.png")
    good = {"image": "pictures/a.png", "object": scene[1].upper(), "answers": list(native.table["text"][1:])}
    lines = [
        json.dumps(good), "{", json.dumps({**good, "image": "none.png"}), json.dumps({**good, "object": "quasar"}),
        json.dumps({**good, "answers": [[9, 3]]}), "", json.dumps({**good, "greedy": native.table["text"][0]}),
    ]  # fmt: skip
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(lines))
    code, out, err = acs(file, "--json")
    first, last = map(json.loads, out.splitlines())
    assert code == 1 and first["box"] == last["box"] == native.to_dict()["box"] and first["category"] == scene[1]
    assert first["image"] == str(tmp_path / "pictures" / "a.png") and len(first["candidates"]) == 5
    for number, told in {
        2: "this is no JSON", 3: f"there is no image {tmp_path / 'none.png'}",
        4: "internvl-embedded has no word for 'quasar'", 5: "the token 3 is none of internvl-embedded's answers",
    }.items():  # fmt: skip
        assert f"error: {file}, line {number}: {told}" in err, err
    file.write_text(lines[-1])
    code, out, err = acs(file)
    head, row = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and head == cli.COLUMNS and row[1] == scene[1] and err == ""


def test_what_is_wrong_with_all_lines_is_told_once(tmp_path, scene):
    file = tmp_path / "answers.jsonl"
    code, _, err = acs(file)
    assert code == 1 and "No such file or directory" in err and str(file) in err
    file.write_text("\n".join([json.dumps({"image": scene[0], "object": scene[1], "answers": ["a"]})] * 2))
    code, out, err = acs(file, "--selector", "acs-fre")
    assert code == 2 and "there is no selector 'acs-fre'" in err
    (tmp_path / "heads.json").write_text("{}")
    code, out, err = acs(file, "--head-set", tmp_path / "heads.json")
    assert code == 1 and out == "" and err.count("holds no head set") == 1
