"""What the probe says of an LVLM that writes boxes, of one that does not, and of one whose attention is not read."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from acs_lib import paths
from acs_lib.cli import app
from acs_lib.grounding import probe as probe_
from acs_lib.grounding.probe import Probe, probe
from acs_lib.lvlms.internvl import InternVL
from acs_lib.lvlms.load import asked_with, families, load_lvlm
from acs_lib.profiles import LVLMSpec


def made(parsed=(True, True), boxes=(1.0, 0.5), layers=(0, 1), n_layers=2):
    rows = [
        {"image": f"/a/{n}.png", "object": "dog", "grid": "2x3", "prompt_tokens": 20 + n, "samples": 4,
         "greedy": f"box {n}", "greedy_box": box, "boxes": share, "failure": "", "seconds": 9.0 - 4 * n}
        for n, (box, share) in enumerate(zip(parsed, boxes))
    ]  # fmt: skip
    return Probe("one", "cpu", "float32", n_layers, tuple(layers), 1.25, pd.DataFrame(rows))


def test_what_it_says_by_hand():
    found = made()
    assert (found.answers, found.parsed, found.sound) == (10, 0.8, True) and found.mends() == []
    assert found.lines() == [
        "one on cpu, float32",
        "boxes: 80% of 10 answers to 2 questions hold one (greedy: 100%)",
        "  0.png, dog: 'box 0'",
        "  1.png, dog: 'box 1'",
        "attention: rows from 2 of 2 layers",
        "prompt: 20 tokens, an image of 2x3",
        "time: 5.0 s a question with 4 samples (the first one took 9.0 s)",
        "memory: 1.2 GB at most",
    ]


@pytest.mark.parametrize(
    ("found", "mend"),
    [
        (made(parsed=(True, False), boxes=(0.25, 0.25)), "ask in its makers' own words"),
        (made(layers=(1,)), r"no attention is read of layers [0]"),
    ],
    ids=["no boxes", "no rows"],
)
def test_what_is_not_as_it_should_be_comes_with_a_mend(found, mend):
    assert not found.sound and mend in found.lines()[-1]


def test_the_shipped_lvlm_is_sound():
    found = probe(load_lvlm(), samples=2)
    assert found.sound and len(found.table) == probe_.PICTURES and found.table["image"].nunique() == 4
    assert found.layers == tuple(range(load_lvlm().layers)) and found.memory > 0.2
    assert (found.table["seconds"] > 0).all() and (found.table["grid"] == "10x10").all()


def test_own_pictures_and_another_question(monkeypatch):
    image = next((paths.EMBEDDED / "samples" / "images").glob("*.png"))
    run = CliRunner().invoke(app, ["probe", str(image), "-o", "dog", "-o", "car", "--samples", "2"])
    assert "answers to 2 questions" in run.output and f"{image.name}, dog" in run.output
    for arguments, told in (
        ([str(image)], "give images and, with -o,"),
        (["-o", "dog"], "give images and, with -o,"),
        (["--question", "Where is it?"], "it has to have {object}"),
        ([str(image), "-o", "giraffe"], "has no word for 'giraffe'"),
    ):
        result = CliRunner().invoke(app, ["probe", *arguments])
        assert result.exit_code in (1, 2) and told in " ".join(result.output.split())


def test_the_question_is_asked_as_given(monkeypatch):
    asked = []
    monkeypatch.setattr(probe_, "probe", lambda lvlm, *rest: asked.append(lvlm.question) or made())
    result = CliRunner().invoke(app, ["probe", "--question", "Detect the {object} in the image."])
    assert result.exit_code == 0 and asked == ["Detect the {object} in the image."]


def test_makers_stands_for_the_familys_own_question(tmp_path, untrained):
    untrained.model.config.save_pretrained(tmp_path)
    spec = LVLMSpec(name="mine", source=str(tmp_path))
    asked = asked_with(spec, "makers").question
    assert asked == InternVL.makers_question and asked.format(object="cup").endswith("describes: <ref>cup</ref>")
    assert asked_with(spec, None) is spec and asked_with(spec, "Where is {object}?").question == "Where is {object}?"
    known = {name: adapter.makers_question for name, adapter in families().items()}
    assert all("{object}" in text for text in known.values() if text) and known["qwen2_vl"] is None


def test_makers_who_say_nothing_are_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ValueError, match="how the makers of mine ask for boxes is not known here; give the question"):
        asked_with(LVLMSpec(name="mine", source=str(tmp_path)), "makers")
