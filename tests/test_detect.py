"""`detect` and its answer: what it writes, and what it says to wrong input."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import acs_lib
from acs_lib.grounding import api, detect
from acs_lib.lvlms.load import load_lvlm
from acs_lib.profiles import Sampling


@pytest.fixture
def found():
    table = pd.DataFrame({
        "x1": [10.0, 50.0], "y1": [20.0, 60.0], "x2": [30.0, 90.0], "y2": [60.0, 70.0], "score": [0.75, 0.25],
        "votes": [0.75, 0.25], "boxes": [3, 1],
    })  # fmt: skip
    texts = ["a", "b", "c", "d"]
    return detect.Detections(Image.new("RGB", (100, 80)), "dog", "one", "votes", Sampling(samples=3), table, texts)


def test_it_is_one_of_the_public_names():
    assert acs_lib.detect is detect.detect and acs_lib.Detections is detect.Detections


def test_cocos_results_and_json(found):
    assert found.to_coco(7, 18) == [
        {"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": 7, "category_id": 18, "bbox": [50, 60, 40, 10], "score": 0.25},
    ]
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["instances"][1] == {"x1": 50, "y1": 60, "x2": 90, "y2": 70, "score": 0.25, "votes": 0.25, "boxes": 1}
    assert (told["category"], told["width"], told["height"], told["selector"]) == ("dog", 100, 80, "votes")


def test_it_says_how_many_and_shows_them(found, tmp_path):
    assert found.summary == "2 of 'dog', the surest with votes 0.75" and len(found) == 2
    picture = np.asarray(found.show().convert("RGB"), int)
    colourful = (picture.max(-1) - picture.min(-1) > 60).sum()
    none = detect.Detections(found.image, "dog", "one", "votes", found.settings, found.table[:0], ["None"])
    empty = np.asarray(none.show(), int)
    assert none.summary == "one found no 'dog'" and colourful > 500
    assert (empty.max(-1) - empty.min(-1) > 60).sum() == 0 and none.to_coco(1, 1) == []
    found.save(tmp_path / "a.webp")
    assert Image.open(tmp_path / "a.webp").size == found.show().size
    assert "dog" in found._repr_html_() and found._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="cannot be written as 'a.txt'"):
        found.save(tmp_path / "a.txt")


def test_lists_without_a_box_are_no_instances(monkeypatch):
    lvlm = load_lvlm()
    monkeypatch.setattr(lvlm, "parse_all", lambda text, prompt: [])
    image, category = api.samples().iloc[0][["image", "category"]]
    for selector in ("votes", "sequence-log-prob"):
        none = detect.detect(lvlm, image, category, selector, samples=1)
        assert len(none) == 0 and none.to_dict()["instances"] == [] and len(none.texts) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": " "}, "name the objects to look for"),
        ({"selector": "medoid"}, "'medoid' scores no single boxes; choose one of votes, acs-free, "),
        ({"selector": "weighted-box-fusion"}, "'weighted-box-fusion' scores no single boxes"),
        ({"selector": "best"}, "'best' scores no single boxes"),
        ({"category": "giraffe"}, "has no word for 'giraffe'"),
        ({"samples": 0}, "at least 1 sample"),
    ],
)
def test_wrong_arguments(change, message):
    image, category = api.samples().iloc[0][["image", "category"]]
    with pytest.raises(ValueError, match=message):
        detect.detect(None, image, **{"category": category, **change})
