"""Average precision by hand, its intervals, and detections as files that other tools read."""

import json

import numpy as np
import pandas as pd
import pytest
from test_accuracy import candidates

from acs_lib.datasets import coco
from acs_lib.evaluation import precision
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import DatasetSpec, LVLMSpec, Sampling, SplitSpec
from acs_lib.study import instances as study

CONTENT = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 100} for n in (1, 2)],
    "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [50, 50, 40, 40], "area": 1600, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 4, "image_id": 2, "category_id": 9, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 1},
    ],
}


def row(image, bbox, score, category=7):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


RIGHT = [row(1, [0, 0, 10, 10], 0.9), row(1, [50, 50, 40, 40], 0.8), row(2, [0, 0, 10, 10], 0.7)]


def points(results, small=precision.SMALL):
    found = precision.evaluated(coco.indexed(CONTENT), results, [1, 2], small)
    return dict(zip(precision.MEASURES, precision.measured(found)))


def test_average_precision_by_hand():
    assert points(RIGHT) == {"ap": 1, "ap50": 1, "ap_small": 1}
    assert points([]) == {"ap": 0, "ap50": 0, "ap_small": 0}
    wrong = row(2, [80, 80, 10, 10], 0.95)
    assert points([wrong, *RIGHT])["ap50"] == pytest.approx(3 / 4), "a wrong box before all"
    assert points([*RIGHT, {**wrong, "score": 0.1}])["ap50"] == 1, "one behind all costs nothing"
    assert points(RIGHT[:1])["ap50"] == pytest.approx(34 / 101), "one of three: recall 0 to 0.33 of 101 points"
    half = points([row(1, [0, 0, 10, 7], 0.9), *RIGHT[1:]])
    assert half["ap50"] == 1 and half["ap"] < 1, "an IoU of 0.7"
    assert points(RIGHT[1:2])["ap_small"] == 0 and points(RIGHT[1:2], small=50)["ap_small"] != 0


def test_intervals_draw_images():
    truth = coco.indexed(CONTENT)
    found = precision.evaluated(truth, RIGHT[:2], [1, 2])
    drawn = precision.drawn_precision(found, 2, 60)
    one, two = precision.measured(found, np.array([0, 0])), precision.measured(found, np.array([1, 1]))
    assert one.tolist() == [1, 1, 1] and two.tolist() == [0, 0, 0]
    assert {tuple(each) for each in drawn} == {tuple(each) for each in (one, two, precision.measured(found))}
    assert precision.measured(found).tolist() == precision.measured(found, np.arange(2)).tolist()
    assert (precision.drawn_precision(None, 2, 3) == 0).all()
    with pytest.raises(ValueError, match="in images that are not evaluated, such as 2"):
        precision.evaluated(truth, RIGHT, [1])


def test_results_come_back_from_their_file(tmp_path):
    path = tmp_path / "results.json"
    precision.write_results(path, [{**each, "more": 1} for each in RIGHT])
    assert precision.read_results(path) == RIGHT
    for text, message in (
        ("no", "is not JSON"),
        ("{}", "holds no list of detections"),
        (json.dumps([RIGHT[0], {"image_id": 1}]), r"entry 1 \(.*\) has not image_id, category_id, bbox, score"),
        (json.dumps([row(1, [0, 0, 1], 1)]), "entry 0"),
        (json.dumps([row(1, [0, 0, 1, "a"], 1)]), "entry 0"),
        (json.dumps([row(1, [0, 0, 1, 1], "high")]), "entry 0"),
        (json.dumps(["box"]), "entry 0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            precision.read_results(path)


def test_every_category_of_an_image_is_asked_for(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "2.png").touch()
    found = study.list_questions(coco.indexed(CONTENT), tmp_path)
    assert found[["image_id", "category"]].to_numpy().tolist() == [[1, "dog"], [2, "dog"]], "cup is there as a crowd"
    (tmp_path / "2.png").unlink()
    assert study.small_area(coco.indexed(CONTENT), type("P", (), {"small": 0.02})) == 200


BOXES = pd.DataFrame(
    [(1, 7, 0, 0, 0, 10, 10, -1.0, 0.1), (1, 7, 1, 0, 0, 10, 9, -0.5, 0.9), (1, 7, 1, 50, 50, 90, 90, -2.0, 0.2),
     (1, 7, 2, 50, 50, 90, 90, -3.0, np.nan), (2, 7, 0, 80, 80, 90, 90, -0.1, 0.5)],
    columns=["image_id", "category_id", "answer", "x1", "y1", "x2", "y2", study.LIKELIHOOD, study.FREE],
)  # fmt: skip


def test_detections_of_each_method_by_hand():
    greedy = study.results_of(BOXES, study.GREEDY, 3)
    assert greedy == [row(1, [0, 0, 10, 10], -1), row(2, [80, 80, 10, 10], -0.1)]
    votes = study.results_of(BOXES, study.VOTES, 3)
    assert [(each["bbox"], each["score"]) for each in votes] == [
        ([0, 0, 10, 9], pytest.approx(2 / 3)), ([50, 50, 40, 40], pytest.approx(2 / 3)),
        ([80, 80, 10, 10], pytest.approx(1 / 3)),
    ]  # fmt: skip
    free = study.results_of(BOXES, study.FREE, 3)
    assert [each["score"] for each in free] == [0.9, 0.2, 0.5]


def test_the_table_by_hand():
    truth = coco.indexed(CONTENT)
    results = {study.GREEDY: RIGHT[:1], "votes": RIGHT, "nothing": []}
    rows, curves = study.precision_tables(truth, results, [1, 2], precision.SMALL, 40)
    table = rows.set_index("method")
    assert table.loc["votes", ["ap50", "boxes", "objects", "n"]].tolist() == [1, 3, 3, 2]
    assert table.loc["votes", "delta_ap50"] == pytest.approx(1 - 34 / 101) and table.loc["nothing", "ap"] == 0
    assert table.loc[study.GREEDY, ["delta_ap", "delta_ap_lo", "delta_ap_hi"]].tolist() == [0, 0, 0]
    low, high = table.loc["votes", ["delta_ap50_lo", "delta_ap50_hi"]]
    assert high - low == pytest.approx(51 / 101), "one image alone: a gain of 1, or of 50 / 101"
    assert 0 < low < table.loc["votes", "delta_ap50"] < high


def test_listed_boxes_are_scored_by_every_method():
    c = candidates("q", [[0, 0, 10, 10], [0, 0, 5, 5]])
    maps = np.random.default_rng(0).random((2, 4, 3, 2, 4, 4)).astype(np.float32)
    c = type(c)(**{**c.__dict__, "maps": maps})
    model = study.regressor.AttentionIoURegressor(3, 2, width=4, grid=(4, 4)).eval()
    found = study.scored(c, HeadSet("one", "x", ((1, 1),)), model)
    assert set(found) == set(study.SCORES) and all(len(scores) == 2 for scores in found.values())
    assert ((found["ACS-Learned"] > 0) & (found["ACS-Learned"] < 1)).all()
    none = study.scored(c.first(0), HeadSet("one", "x", ((1, 1),)), model)
    assert all(len(scores) == 0 for scores in none.values())


def test_another_detectors_boxes_count_where_it_was_asked(tmp_path, monkeypatch):
    """Its box of a category that the image does not hold is left out, as no list was asked for."""
    truth, mine = coco.indexed(CONTENT), tmp_path / "mine.json"
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    precision.write_results(mine, [*RIGHT, row(2, [0, 0, 10, 10], 1.0, category=9), row(3, [0, 0, 10, 10], 1.0)])
    spec = DatasetSpec(name="lists", kind="coco", splits={"test": SplitSpec(queries={})})
    beyond = type("Beyond", (), {"lists": spec})
    profile = type("P", (), {"name": "p", "beyond": beyond, "small": 0.02, "bootstrap": 20, "sampling": Sampling()})
    lvlm = LVLMSpec(name="one", source="x")
    monkeypatch.setattr(study, "split_files", lambda dataset, split: (tmp_path / "a.json", tmp_path))
    monkeypatch.setattr(study, "data_digest", lambda dataset, split: "d")
    monkeypatch.setattr(study.coco, "read_annotations", lambda path: truth)
    monkeypatch.setattr(study, "listed_boxes", lambda *_: BOXES.assign(**dict.fromkeys(study.SCORES, 0.5)))
    monkeypatch.setattr(study.paths, "runs", lambda name: tmp_path)
    e = type("E", (), {"lvlm": lvlm})
    table, curves = study.instances_tables(type("S", (), {"profile": profile}), [e], {"mine": mine})
    assert table.set_index("method").loc["mine", ["ap", "boxes"]].tolist() == [1, 3]
    assert set(curves["method"]) == {*study.METHODS, "mine"}
