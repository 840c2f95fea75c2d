"""What the notebooks and the command line share."""

import json
import weakref
from hashlib import sha256

import pytest

from acs_lib import paths, pipeline
from acs_lib.datasets import coco
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile


def test_an_lvlm_is_dropped_before_the_next_one_is_loaded(monkeypatch):
    alive = []

    class Model:
        def __init__(self):
            self.itself = self  # only the collector frees it

    def load(source, name, *rest, **settings):
        assert all(seen() is None for seen in alive), "the one before is still in memory"
        model = Model()
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(pipeline, "load_lvlm", load)
    monkeypatch.setattr(pipeline, "_loaded", {})
    one, other = LVLMSpec(name="one", source="a/one"), LVLMSpec(name="other", source="a/other")
    assert pipeline.load(one) is pipeline.load(one) and len(alive) == 1
    pipeline.load(other)
    assert pipeline.load(other) is alive[1]() and len(alive) == 2
    pipeline.load(one)
    assert len(alive) == 3


def write_annotations(path, n=40):
    """So many images with one small object each."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(n)]
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 5, 5]} for i in range(n)]
    categories = [{"id": 1, "name": "ball"}]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile whose splits are taken from one annotation file."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    write_annotations(tmp_path / "a.json")
    where = {"annotations": "a.json", "folder": "images"}
    splits = {
        "train": {**where, "share": (0.0, 0.5), "queries": {"small": 100}},
        "validation": {**where, "share": (0.5, 0.5), "queries": {"small": 100}},
        "test": {**where, "share": (0.5, 1.0), "queries": {"large": 7}},
    }
    return Profile(
        name="small", description="", duration="", train_on="mine", heads={"layers": [1]}, lvlms=[],
        datasets=[{"name": "mine", "kind": "coco", "splits": splits}], sampling={"temperature": 0.5},
    )  # fmt: skip


def test_a_split_that_the_profile_leaves_empty_says_why(profile):
    (dataset,) = profile.datasets
    queries, _ = pipeline.load_split(profile, dataset, "train")
    assert 10 < len(queries) < 30
    rest = 40 - len(queries)
    none = r"no query is left of mine, validation: .* \(0.5, 0.5\) holds none of {'small': 40}, .* {'small': 100}"
    with pytest.raises(ValueError, match=none):
        pipeline.load_split(profile, dataset, "validation")
    with pytest.raises(ValueError, match=rf"mine, test: .* holds {{'small': {rest}}} of .* at most {{'large': 7}}"):
        pipeline.load_split(profile, dataset, "test")


def test_an_annotation_file_is_not_parsed_to_be_identified(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "read_annotations", None)
    expected = sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    assert pipeline.data_digest(profile.datasets[0], "test") == expected


def test_a_rendered_split_is_identified_by_its_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    split = {"images": 1, "seed": 3, "queries": {"small": 1}}
    dataset = DatasetSpec(name="scenes", kind="scenes", splits={"test": split})
    known = json.loads(pipeline.split_files(dataset, "test")[0].read_text())["info"]["digest"]
    assert len(known) == 64 and pipeline.data_digest(dataset, "test") == known
