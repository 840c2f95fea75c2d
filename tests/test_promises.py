"""`ground` with a risk and with as many answers as are needed: thresholds made up for the shipped LVLM."""

import json

import numpy as np
import pytest
from test_cli import SCENE, acs, table

from acs_lib.grounding import api
from acs_lib.grounding.api import ground
from acs_lib.lvlms.load import load_lvlm, loaded_digest
from acs_lib.method.baselines.likelihood import sequence_logprob
from acs_lib.method.heads import HeadSet
from acs_lib.method.origin import Origin
from acs_lib.method.thresholds import Thresholds

SAMPLES = 5
ASKED = {"selector": "sequence-log-prob", "samples": SAMPLES}


@pytest.fixture(scope="module")
def lvlm():
    return load_lvlm()


@pytest.fixture(scope="module")
def scene():
    first = api.samples().iloc[0]
    return first["image"], first["category"]


@pytest.fixture
def files(lvlm, tmp_path):
    """A function that writes the thresholds of one selector beside a head set, whose path it gives."""

    def write(**values):
        path = tmp_path / "head_set.json"
        usual = api.usual_settings(lvlm).model_copy(update={"samples": SAMPLES})
        origin = Origin(weights=loaded_digest(lvlm), question=lvlm.question, sampling=usual)
        HeadSet(lvlm.name, "made up", ((2, 1),), origin=origin).save(path)
        known = {"lvlm": lvlm.name, "found_on": "x", "questions": 9, "absent": 3, "images": 3, "origin": origin}
        for name, of in values.items():
            Thresholds(**known, values={"sequence-log-prob": of}).save(tmp_path / f"{name}.json")
        return path

    return write


@pytest.fixture(scope="module")
def usual(lvlm, scene):
    return ground(lvlm, *scene, **ASKED)


def test_what_cannot_be_promised_is_not_found(lvlm, scene, files, usual):
    """The shipped LVLM gives some box; whether its score is enough is what the file says."""
    assert usual.box is not None, "the LVLM was taught to give one"
    score = usual.score
    heads = files(risk={"0.1": score + 1e-3, "0.2": score - 1e-3, "0.01": None})
    low = ground(lvlm, *scene, **ASKED, head_set=heads, risk=0.1)
    assert low.box is None and low.chosen == usual.chosen and low.promise == (0.1, score + 1e-3)
    assert "not found" in low.summary and "10%" in low.summary
    told = json.loads(json.dumps(low.to_dict(), allow_nan=False))
    assert told["box"] is None and told["risk"] == {"share": 0.1, "threshold": pytest.approx(score + 1e-3)}
    assert low.show().size[0] > 0
    high = ground(lvlm, *scene, **ASKED, head_set=heads, risk=0.25)
    assert np.array_equal(high.box, usual.box) and high.promise[1] == score - 1e-3, "that of 20 %, which is stricter"
    never = ground(lvlm, *scene, **ASKED, head_set=heads, risk=0.05)
    assert never.box is None and never.promise[1] == np.inf and never.to_dict()["risk"]["threshold"] is None
    with pytest.raises(ValueError, match="risk has to be from 0.01 to below 1, not 0.001"):
        ground(lvlm, *scene, **ASKED, head_set=heads, risk=0.001)


def test_an_object_of_several_is_not_found_alone(lvlm, scene, files):
    names = api.samples()["category"].iloc[:3].tolist()
    both = ground(lvlm, scene[0], names, **ASKED)
    scores = [one.score for one in both]
    middle = float(np.median(scores))
    found = ground(lvlm, scene[0], names, **ASKED, head_set=files(risk={"0.1": middle}), risk=0.1)
    assert [one.box is not None for one in found] == [
        one.box is not None and score >= middle for one, score in zip(both, scores)
    ]


def test_what_is_sure_at_once_is_not_sampled(lvlm, scene, files, usual):
    scores = sequence_logprob(usual.candidates)
    at_once = ground(lvlm, *scene, **ASKED, head_set=files(effort={"enough": float(scores[0]) - 1e-3}), effort="auto")
    assert len(at_once.table) == 1 and at_once.chosen == 0 and np.array_equal(at_once.box, usual.candidates.boxes[0])
    never = ground(lvlm, *scene, **ASKED, head_set=files(effort={"enough": None}), effort="auto")
    assert list(never.table["text"]) == list(usual.table["text"])
    assert never.score == pytest.approx(float(np.nanmax(np.where(usual.candidates.parsed, scores, np.nan))), abs=1e-4)
    later = ground(
        lvlm, *scene, **ASKED, head_set=files(effort={"enough": float(scores[:4].max()) - 1e-4}), effort="auto"
    )
    assert len(later.table) in (1, 4) and later.score >= scores[:4].max() - 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 4}, "risk.json was found with samples 5, and holds for these alone"),
        ({"temperature": 0.3}, "was found with temperature 0.8"),
        ({"selector": "medoid"}, "risk.json has no threshold for medoid; take sequence-log-prob"),
        ({"effort": "auto"}, "take one of them"),
        ({"zoom": 2}, "take one of them"),
        ({"effort": "much"}, "effort is 'all' or 'auto', not 'much'"),
        ({"head_set": HeadSet("internvl-embedded", "", ((0, 0),))}, "give these as files of one folder"),
    ],
)
def test_what_no_promise_holds_for(lvlm, scene, files, change, message):
    arguments = {**ASKED, "head_set": files(risk={"0.1": 0.0}), "risk": 0.1} | change
    with pytest.raises(ValueError, match=message):
        ground(lvlm, *scene, **arguments)


def test_without_a_file_it_says_what_writes_one(lvlm, scene, files):
    with pytest.raises(ValueError, match="there is no effort.json for internvl-embedded; acs calibrate --annotations"):
        ground(lvlm, *scene, **ASKED, head_set=files(), effort="auto")


def test_effort_needs_a_score(lvlm, scene, files):
    """A fusion has none that could be enough."""
    with pytest.raises(ValueError, match="coordinate median scores no answer, so that none is enough"):
        ground(lvlm, *scene, **{**ASKED, "selector": "coordinate median"}, head_set=files(), effort="auto")


def test_on_the_command_line(files):
    heads = files(risk={"0.1": 1.0}, effort={"enough": -1e9})
    few = ["--samples", SAMPLES, "--selector", "sequence-log-prob", "--head-set", heads]
    code, out, err = acs("ground", SCENE, "fire truck", "--risk", "0.1", *few)
    assert code == 1 and "not found" in err and table(out)[0]["x1"] == ""
    code, out, _ = acs("ground", SCENE, "fire truck", "--effort", "auto", "--json", *few)
    assert len(json.loads(out)["candidates"]) == 1, "the greedy answer is enough"
    for risk in ("0", "1", "nan"):
        code, _, err = acs("ground", SCENE, "fire truck", "--risk", risk, *few)
        assert code == 2 and "--risk has to be above 0 and below 1" in err
    for given in ([], ["--images", "x"], ["--images", "x", "-o", "dog", "--annotations", "a.json"], ["-o", "dog"]):
        code, _, err = acs("calibrate", *given)
        assert code == 2 and "give --images with --annotations or with --object, or --profile alone" in err
