import json

import pytest

from acs_lib.datasets import coco


def write(folder, images=None, annotations=None, categories=None, **more):
    content = {
        "images": images if images is not None else [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": annotations or [],
        "categories": categories or [{"id": 1, "name": "ball"}, {"id": 7, "name": "cup"}],
        **more,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def annotation(number, category=1, bbox=(10, 10, 5, 5), image=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def test_a_category_that_occurs_twice_is_no_query(tmp_path):
    path = write(tmp_path, annotations=[annotation(1), annotation(2, bbox=(50, 50, 9, 9)), annotation(3, category=7)])
    queries, funnel = coco.load_queries("d", path, tmp_path)
    assert queries["category"].tolist() == ["cup"]
    assert funnel.set_index("step")["count"][["instances", "unambiguous", "usable boxes"]].tolist() == [3, 1, 1]


def test_crowds_are_no_queries_and_make_their_category_ambiguous(tmp_path):
    path = write(tmp_path, annotations=[annotation(1, iscrowd=1), annotation(2), annotation(3, category=7, iscrowd=1)])
    assert coco.load_queries("d", path, tmp_path)[0].empty


@pytest.mark.parametrize(("side", "size"), [(9.9, "small"), (10, "medium"), (22, "medium"), (23, "large")])
def test_size_bins(tmp_path, side, size):
    path = write(tmp_path, annotations=[annotation(1, bbox=(0, 0, side, side))])
    query = coco.load_queries("d", path, tmp_path)[0].iloc[0]
    assert query["size"] == size and query["area_fraction"] == pytest.approx(side**2 / 1e4)


def test_boxes_are_clipped_and_useless_ones_dropped(tmp_path):
    path = write(
        tmp_path,
        annotations=[annotation(1, bbox=(90, 90, 50, 50)), annotation(2, category=7, bbox=(120, 10, 5, 5))],
    )
    queries, _ = coco.load_queries("d", path, tmp_path)
    assert queries[coco.TRUTH].to_numpy().tolist() == [[90, 90, 100, 100]]
    for bad in ([float("nan"), 0, 5, 5], [0, 0, 5], [0, 0, -5, 5], ["0", 0, 5, 5]):
        path = write(tmp_path, annotations=[annotation(1, bbox=bad)])
        assert coco.load_queries("d", path, tmp_path)[0].empty


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_path_that_leaves_its_root_is_refused(tmp_path, name):
    path = write(tmp_path, [{"id": 1, "file_name": name, "width": 9, "height": 9}], [annotation(1)])
    with pytest.raises(ValueError, match="leads out"):
        coco.load_queries("d", path, tmp_path / "images")


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        coco.read_annotations(tmp_path / "absent.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(ValueError, match="bad.json is not JSON"):
        coco.read_annotations(bad)
    bad.write_text("[]")
    with pytest.raises(ValueError, match="no list 'images'"):
        coco.read_annotations(bad)
    with pytest.raises(ValueError, match="twice in 'annotations'"):
        coco.read_annotations(write(tmp_path, annotations=[annotation(1), annotation(1)]))
    with pytest.raises(ValueError, match="lacks one of"):
        coco.read_annotations(write(tmp_path, annotations=[{"id": 1}]))
