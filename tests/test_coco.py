import json
from pathlib import Path

import pytest

from acs_lib.datasets import coco, splits
from acs_lib.profiles import DatasetSpec, load_profile


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


@pytest.mark.parametrize(("side", "size"), [(10, "small"), (10.1, "medium"), (22, "medium"), (23, "large")])
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


@pytest.mark.parametrize(
    ("side", "size"), [((10, 10), "small"), ((20, 25), "small"), ((20, 25.1), "large"), ((25, 25), "large")]
)
def test_one_threshold_leaves_nothing_between_and_counts_as_small(tmp_path, side, size):
    """20x25 px of 100x100 are 5 %."""
    path = write(tmp_path, annotations=[annotation(1, bbox=(0, 0, *side))])
    queries, funnel = coco.load_queries("d", path, tmp_path, 0.05, 0.05)
    assert queries["size"].tolist() == [size]
    assert funnel.set_index("step")["count"][["small", "medium", "large"]].sum() == 1


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "..\\secret.png"])
def test_a_path_that_leaves_its_root_is_looked_for_inside(tmp_path, name):
    (tmp_path / "secret.png").write_text("secret")
    path = write(tmp_path, [{"id": 1, "file_name": name, "width": 99, "height": 99}], [annotation(1)])
    (image,) = coco.load_queries("d", path, tmp_path / "images")[0]["image"]
    assert Path(image).resolve().is_relative_to((tmp_path / "images").resolve()) and not Path(image).exists()


def test_how_file_names_were_resolved_is_told_once(tmp_path, caplog):
    names = ["a.jpg", "C:\\data\\b%20b.jpg", "q/d.jpg", "gone.jpg", "a\0b"]
    images = [{"id": n, "file_name": name, "width": 99, "height": 99} for n, name in enumerate(names)]
    path = write(tmp_path, images, [annotation(n, image=n) for n in range(5)])
    for name in ("a.jpg", "b b.jpg", "deep/d.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_text("")
    for _ in range(2):
        queries, funnel = coco.load_queries("d", path, tmp_path / "images")
    paths = [Path(image).relative_to(tmp_path.resolve() / "images").as_posix() for image in queries["image"]]
    assert paths == ["a.jpg", "b b.jpg", "deep/d.jpg", "gone.jpg"]
    assert funnel["count"][:3].tolist() == [5, 5, 4]
    (told,) = caplog.messages
    assert "1 of 5 file names lead as given to an image" in told and "1 normalised ('C:\\\\data" in told
    assert "1 by a base name that is unique ('q/d.jpg')" in told and "1 to no file ('gone.jpg')" in told
    assert "1 out of the folder or nowhere ('a\\x00b'), which is left out" in told


@pytest.mark.parametrize("there", [True, False])
def test_names_as_they_should_be_are_not_told(tmp_path, caplog, there):
    """Nor that nothing is there yet: `acs data` asks before it fetches."""
    path = write(tmp_path, annotations=[annotation(1)])
    if there:
        (tmp_path / "a.jpg").write_text("")
    assert len(coco.load_queries("d", path, tmp_path)[0]) == 1 and not caplog.messages


def test_whole_numbers_written_as_floats_are_whole_numbers(tmp_path):
    images = [{"id": 1.0, "file_name": "a.jpg", "width": 200.0, "height": 100.0}]
    categories = [{"id": 3.0, "name": "ball"}]
    path = write(tmp_path, images, [annotation(4.0, category=3, image=1)], categories)
    queries, _ = coco.load_queries("d", path, tmp_path)
    assert queries.loc[0, ["query_id", "image_id", "width", "height"]].tolist() == ["d/1/4", 1, 200, 100]
    assert all(kind.kind == "i" for kind in queries[["image_id", "width", "height"]].dtypes)


NO_BOX = [None, [], [1, 2, 3], [1, 2, float("nan"), 4], [1, 2, float("inf"), 4], ["1", 2, 3, 4], {"x": 1}, [True] * 4]


@pytest.mark.parametrize("bbox", [*NO_BOX, "missing"])
def test_an_annotation_without_a_box_does_not_block_the_file(tmp_path, caplog, bbox):
    bad = {**annotation(2, category=7), "bbox": bbox}
    if bbox == "missing":
        del bad["bbox"]
    path = write(tmp_path, annotations=[annotation(1), bad, annotation(3, category=7, bbox=(40, 40, 5, 5))])
    queries, funnel = coco.load_queries("d", path, tmp_path)
    assert queries["category"].tolist() == ["ball"], "the other cup is there, so that 'cup' is ambiguous"
    assert funnel["count"][1] == 3
    (told,) = caplog.messages
    assert "annotations.json: 1 of 3 annotations have no box of four finite numbers" in told and "'id': 2" in told
    spec = DatasetSpec(name="d", kind="coco", splits={"test": {"annotations": str(path), "folder": "", "queries": {}}})
    assert splits.other_boxes(load_profile("smoke"), spec, "test", queries)["d/1/1"].tolist() == [[40, 40, 45, 45]]


@pytest.mark.parametrize(
    "bad",
    [
        annotation(9, image=5), annotation(9, category=5), annotation(9, category=None), annotation("x"), None,
        annotation(1.5), annotation(True), {"id": 9},
    ],
)  # fmt: skip
def test_an_orphan_or_a_broken_entry_is_left_out_and_counted(tmp_path, caplog, bad):
    path = write(tmp_path, annotations=[bad, annotation(1), annotation(3, category=7)])
    queries, funnel = coco.load_queries("d", path, tmp_path)
    assert queries["category"].tolist() == ["ball", "cup"] and funnel["count"][1] == 2
    (told,) = caplog.messages
    assert "1 of 3 annotations" in told and str(bad)[:40] in told


def test_broken_images_and_categories_are_left_out_and_counted(tmp_path, caplog):
    images = [
        {"id": 1, "file_name": "a.jpg", "width": 100, "height": 100},
        {"id": 2, "file_name": None, "width": 9, "height": 9},
        {"id": 3, "file_name": "b.jpg", "width": None, "height": 9},
    ]  # fmt: skip
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": " "}, {"name": "cup"}]
    found = [annotation(1), annotation(2, image=2), annotation(3, image=3), annotation(4, category=2)]
    queries, _ = coco.load_queries("d", write(tmp_path, images, found, categories), tmp_path)
    assert queries["query_id"].tolist() == ["d/1/1"]
    (told,) = caplog.messages
    for part in ("2 of 3 images lack", "2 of 3 categories lack", "3 of 4 annotations are of an image or a category"):
        assert part in told


def test_what_makes_a_file_meaningless_is_refused(tmp_path):
    with pytest.raises(ValueError, match="annotations.json: all 2 annotations are of an image or a category that is"):
        coco.read_annotations(write(tmp_path, annotations=[annotation(1, image=8), annotation(2, image=9)]))
    with pytest.raises(ValueError, match="annotations.json: all 1 images lack one of id, width, height .*'file_name'"):
        coco.read_annotations(write(tmp_path, [{"file_name": "a.jpg"}]))
    with pytest.raises(ValueError, match="twice in 'images'"):
        coco.read_annotations(write(tmp_path, [{"id": n, "file_name": "a", "width": 9, "height": 9} for n in (1, 1.0)]))


@pytest.mark.parametrize("name", ["ball", "Ball", " ball ", "BALL\t"])
def test_categories_of_one_name_are_one_category(tmp_path, name):
    """The question asks by name: 'ball' stands for both."""
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": name}, {"id": 3, "name": "tennis ball"}]
    path = write(tmp_path, None, [annotation(n, category=n, bbox=(n, n, 5, 5)) for n in (1, 2, 3)], categories)
    assert coco.load_queries("d", path, tmp_path)[0]["category"].tolist() == ["tennis ball"]


def test_twins_are_one_box_however_their_numbers_and_names_are_written(tmp_path):
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "Ball "}]
    twins = [annotation(1), annotation(2, bbox=(10.0, 10, 5.0, 5)), annotation(3, category=2)]
    queries, funnel = coco.load_queries("d", write(tmp_path, None, twins, categories), tmp_path)
    assert queries["query_id"].tolist() == ["d/1/1"]
    assert funnel.set_index("step")["count"]["annotated once"] == 1


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value", [1, True, 1.0, "1", "true", 0, False, None, "0", "false", ""])
def test_flags_mean_what_they_say(tmp_path, flag, value):
    path = write(tmp_path, annotations=[annotation(1, **{flag: value}), annotation(3, category=7)])
    names = coco.load_queries("d", path, tmp_path)[0]["category"].tolist()
    assert names == (["cup"] if value in (1, "1", "true") else ["ball", "cup"])


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
    with pytest.raises(ValueError, match="all 1 annotations lack one of"):
        coco.read_annotations(write(tmp_path, annotations=[{"id": 1}]))
