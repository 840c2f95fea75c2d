"""Files of phrases: the same queries as of the COCO file that says the same."""

import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from acs_lib.datasets import coco, phrases, splits
from acs_lib.profiles import DatasetSpec, SplitSpec, load_profile


@pytest.fixture
def images(tmp_path):
    for name, size in {"a.png": (200, 100), "street/b.png": (100, 100)}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "images" / name)
    return tmp_path / "images"


def write(folder, *lines):
    path = folder / "asked.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def line(phrase="the red cup", box=(10, 20, 30, 60), image="a.png", **more):
    return {"image": image, "phrase": phrase, "box": list(box), **more}


def queries(path, images, units):
    return coco.find_queries("d", path, phrases.read_phrases(path, images, units), images)[0]


@pytest.mark.parametrize(
    ("units", "box"),
    [
        ("xyxy px", (10, 20, 30, 60)),
        ("xywh px", (10, 20, 20, 40)),
        ("xyxy 0-1", (0.05, 0.2, 0.15, 0.6)),
        ("xywh 0-1", (0.05, 0.2, 0.1, 0.4)),
        ("xyxy 0-1000", (50, 200, 150, 600)),
        ("xywh 0-1000", (50, 200, 100, 400)),
    ],
)
def test_boxes_in_any_units_are_the_same_pixels(tmp_path, images, units, box):
    (query,) = queries(write(tmp_path, line(box=box)), images, units).to_dict("records")
    assert np.allclose([query[side] for side in coco.TRUTH], [10, 20, 30, 60])
    assert (query["category"], query["width"], query["height"]) == ("the red cup", 200, 100)
    assert query["query_id"] == "d/1/1" and query["image"].endswith("images/a.png")
    assert query["area_fraction"] == pytest.approx(0.04)


def test_every_unit_is_tested():
    assert len(phrases.UNITS) == 6


def test_a_phrase_of_two_boxes_in_one_image_is_no_query_and_one_said_twice_is_one(tmp_path, images):
    path = write(
        tmp_path, line("a cup"), line("A  Cup", box=(100, 20, 130, 60)), line("the left cup"), line("the left cup"),
        line("a cup", image="street/b.png"),
    )  # fmt: skip
    found = queries(path, images, "xyxy px")
    assert list(zip(found["category"], found["width"])) == [("the left cup", 200), ("a cup", 100)]


def test_bad_lines_are_counted_once_and_the_others_kept(tmp_path, images, caplog):
    bad = [
        "{", "[1]", line(phrase=" "), line(box=(1, 2, 3)), line(box=("1", 2, 3, 4)), line(box=(1, 2, 3, float("nan"))),
        {"image": "a.png", "box": [1, 2, 3, 4]}, line(image="gone.png"), line(image="../asked.jsonl"),
    ]  # fmt: skip
    path = write(tmp_path, *bad, line(), "")
    for _ in range(2):
        assert len(queries(path, images, "xyxy px")) == 1
    (told,) = [text for text in caplog.messages if "lines" in text]
    assert f"{len(bad)} of {len(bad) + 1} lines" in told and "(the first: {)" in told
    with pytest.raises(ValueError, match="asked.jsonl: 9 of 9 lines"):
        phrases.read_phrases(write(tmp_path, *bad), images, "xyxy px")


def test_a_stated_size_stands_for_an_image_that_is_not_there_yet(tmp_path, images):
    path = write(tmp_path, line(image="gone.png", width=400, height=200, box=(0.1, 0.1, 0.2, 0.2)))
    (query,) = queries(path, images, "xyxy 0-1").to_dict("records")
    assert [query[side] for side in coco.TRUTH] == [40, 20, 80, 40] and not (images / "gone.png").exists()


def test_what_cannot_be_read_says_why(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="no file of phrases at .*none.jsonl"):
        phrases.read_phrases(tmp_path / "none.jsonl", images, "xyxy px")
    with pytest.raises(ValueError, match="units 'pixels' of .* are not known; say one of xyxy px, xywh px"):
        phrases.read_phrases(write(tmp_path, line()), images, "pixels")
    with pytest.raises(ValueError, match='is empty; each line is {"image"'):
        phrases.read_phrases(write(tmp_path), images, "xyxy px")


def test_a_profile_takes_phrases(tmp_path, images):
    path = write(tmp_path, line("the cup", box=(1, 1, 9, 9)), line("the hat", box=(50, 50, 58, 58)))
    spec = SplitSpec(annotations=str(path), folder=str(images), units="xyxy px", queries={"small": 9})
    dataset = DatasetSpec(name="asked", kind="phrases", splits={"test": spec})
    found, funnel = splits.load_split(load_profile("smoke"), dataset, "test")
    assert found["query_id"].tolist() == ["asked-test/1/1", "asked-test/1/2"] and funnel["count"].iloc[-1] == 2
    others = splits.other_boxes(load_profile("smoke"), dataset, "test", found)
    assert others["asked-test/1/1"].tolist() == [[50, 50, 58, 58]]
    for kind, units in (("phrases", None), ("coco", "xyxy px")):
        with pytest.raises(ValidationError, match="kind phrases says the units"):
            DatasetSpec(name="x", kind=kind, splits={"test": spec.model_copy(update={"units": units})})
