"""What the notebooks and the command line share."""

import json
import logging
import shutil
import weakref
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from acs_lib import paths
from acs_lib.datasets import coco, splits
from acs_lib.datasets.splits import data_digest, load_split, split_files
from acs_lib.lvlms import load as loading
from acs_lib.lvlms.load import load_spec
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile
from acs_lib.runs import collect
from acs_lib.runs.answer import collect_p_true
from acs_lib.runs.collect import collect_run, unparsed, warn_if_unparsed
from acs_lib.runs.store import UNREADABLE, locked

BATCHES = [pd.DataFrame({"query_id": range(start, start + 4), "size": "small"}) for start in range(0, 20, 4)]


def test_an_lvlm_is_dropped_before_the_next_one_is_loaded(monkeypatch):
    alive = []

    class Model:
        def __init__(self):
            self.itself = self  # only the collector frees it

        def limit(self, **limits):
            self.limits = limits

    def load(source, name, *rest, **settings):
        assert all(seen() is None for seen in alive), "the one before is still in memory"
        model = Model()
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loading, "load_checkpoint", load)
    monkeypatch.setattr(loading, "_loaded", {})
    one, other = (LVLMSpec(name=name, source=f"a/{name}", revision="1" * 40) for name in ("one", "other"))
    assert load_spec(one) is load_spec(one) and len(alive) == 1
    load_spec(other)
    assert load_spec(other) is alive[1]() and len(alive) == 2
    load_spec(one)
    assert len(alive) == 3
    assert load_spec(LVLMSpec(name="c", source="a/c", revision="1" * 40, max_tiles=6)).limits == {"max_tiles": 6}


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
    queries, _ = load_split(profile, dataset, "train")
    assert 10 < len(queries) < 30
    rest = 40 - len(queries)
    none = r"no query is left of mine, validation: .* \(0.5, 0.5\) holds none of {'small': 40}, .* {'small': 100}"
    with pytest.raises(ValueError, match=none):
        load_split(profile, dataset, "validation")
    with pytest.raises(ValueError, match=rf"mine, test: .* holds {{'small': {rest}}} of .* at most {{'large': 7}}"):
        load_split(profile, dataset, "test")


def test_an_annotation_file_is_not_parsed_to_be_identified(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "read_annotations", None)
    expected = sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    assert data_digest(profile.datasets[0], "test") == expected


def test_a_rendered_split_is_identified_by_its_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    split = {"images": 1, "seed": 3, "queries": {"small": 1}}
    dataset = DatasetSpec(name="scenes", kind="scenes", splits={"test": split})
    known = json.loads(split_files(dataset, "test")[0].read_text())["info"]["digest"]
    assert len(known) == 64 and data_digest(dataset, "test") == known


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two rendered images, of whose objects eight are asked."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    split = {"images": 2, "seed": 3, "queries": {"small": 8}}
    return DatasetSpec(name="scenes", kind="scenes", splits={"test": split})


def make_profile(lvlm: LVLMSpec, dataset: DatasetSpec, **settings) -> Profile:
    return Profile(
        name="small", description="", duration="", train_on=dataset.name, heads={"layers": [1]}, lvlms=[lvlm],
        datasets=[dataset], sampling={"samples": 1, "temperature": 0.5, "max_new_tokens": 16}, **settings,
    )  # fmt: skip


def test_a_run_of_a_hub_lvlm_without_a_revision_records_the_commit(world, offline_hub):
    commit = "1" * 40
    shutil.copytree(paths.EMBEDDED / "internvl", offline_hub("someone/model", commit), dirs_exist_ok=True)
    spec = LVLMSpec(name="mine", source="someone/model", dtype="float32")
    run = collect_run(make_profile(spec, world), spec, world, "test")
    info = json.loads((run.folder / "run.json").read_text())
    assert info["weights"] == f"someone/model@{commit}" and info["lvlm"]["revision"] == commit
    assert load_spec(spec).model.name_or_path == "someone/model" and len(run.records()) == 16
    pinned = spec.model_copy(update={"revision": commit})
    assert collect_run(make_profile(pinned, world), pinned, world, "test").key == run.key, "who pins it keeps the run"


SHIPPED = LVLMSpec(name="internvl-embedded", source="data/embedded/internvl", dtype="float32")


@pytest.fixture
def next_process(monkeypatch):
    """Called, it forgets what a process keeps, and from then on refuses to parse annotations or to load an LVLM."""

    def refuse(*arguments, **settings):
        raise AssertionError(f"needed: {arguments}")

    def start():
        splits.parsed.cache_clear()
        monkeypatch.setattr(coco, "read_annotations", refuse)
        monkeypatch.setattr(loading, "_loaded", {})
        monkeypatch.setattr(loading, "load_checkpoint", refuse)

    return start


@pytest.fixture
def finished(world):
    """A run of `world`, finished."""
    return collect_run(make_profile(SHIPPED, world), SHIPPED, world, "test")


def test_a_finished_run_opens_without_its_annotations_and_its_lvlm(world, finished, next_process):
    next_process()
    again = collect_run(make_profile(SHIPPED, world), SHIPPED, world, "test")
    assert again.records().equals(finished.records()) and again.queries.equals(finished.queries)


def test_several_processes_read_a_finished_run_at_once(world, finished):
    with locked(finished.folder):
        assert collect_run(make_profile(SHIPPED, world), SHIPPED, world, "test").key == finished.key
    (finished.folder / "00000.parquet").unlink()
    with locked(finished.folder), pytest.raises(RuntimeError, match="another process is writing"):
        collect_run(make_profile(SHIPPED, world), SHIPPED, world, "test")


def test_p_true_that_is_there_is_read_without_the_lvlm(finished, tmp_path, monkeypatch, next_process):
    monkeypatch.setattr("acs_lib.runs.answer.ask_p_true", lambda lvlm, image, category, answers: [0.5] * len(answers))
    first = collect_p_true(SHIPPED, finished, tmp_path / "p-true")
    next_process()
    assert collect_p_true(SHIPPED, finished, tmp_path / "p-true").equals(first)


def test_a_run_from_before_lists_were_recorded_keeps_its_key_and_learns(world, finished, next_process):
    info = finished.folder / "run.json"
    old = json.loads(info.read_text())
    info.write_text(json.dumps({name: value for name, value in old.items() if name != "listed"}))
    splits.parsed.cache_clear()
    assert collect_run(make_profile(SHIPPED, world), SHIPPED, world, "test").key == finished.key
    assert json.loads(info.read_text()) == old
    next_process()
    assert collect_run(make_profile(SHIPPED, world), SHIPPED, world, "test").records().equals(finished.records())


@pytest.mark.parametrize("what", ["an image", "the folder", "the code", "small"])
def test_a_list_is_made_anew_when_something_that_it_follows_from_changed(world, finished, what, monkeypatch, tmp_path):
    settings = {}
    if what == "an image":
        Path(finished.queries["image"][0]).unlink()
    elif what == "the folder":
        shutil.move(tmp_path / "data", tmp_path / "moved")
        monkeypatch.setattr(paths, "DATA", tmp_path / "moved")
    elif what == "the code":
        monkeypatch.setattr(splits, "imported_files", lambda code, library: {tmp_path / "code.py"})
        (tmp_path / "code.py").write_text("")
    else:
        settings["small"] = 0.009
    splits.parsed.cache_clear()
    parsed = []
    read = coco.read_annotations
    monkeypatch.setattr(coco, "read_annotations", lambda path: parsed.append(path) or read(path))
    again = collect_run(make_profile(SHIPPED, world, **settings), SHIPPED, world, "test")
    assert len(parsed) == 1
    if what == "the folder":
        assert all(str(tmp_path / "moved") in image for image in again.queries["image"])


def test_an_annotation_file_is_parsed_once_a_process(profile, tmp_path, monkeypatch):
    read, parsed = coco.read_annotations, []
    monkeypatch.setattr(coco, "read_annotations", lambda path: parsed.append(path) or read(path))
    (dataset,) = profile.datasets
    splits.parsed.cache_clear()
    train, _ = load_split(profile, dataset, "train")
    spec = dataset.splits["test"].model_copy(update={"queries": {"small": 100}})
    dataset = dataset.model_copy(update={"splits": {**dataset.splits, "test": spec}})
    test, funnel = load_split(profile, dataset, "test")
    others = splits.other_boxes(profile, dataset, "test", test)
    assert parsed == [tmp_path / "a.json"]
    assert set(train["query_id"].str.split("/").str[0]) == {"mine-train"} and len(train) + len(test) == 40
    assert set(test["query_id"].str.split("/").str[0]) == {"mine-test"} and set(others) == set(test["query_id"])
    assert funnel.iloc[-1].to_list() == ["queries taken", len(test)]
    write_annotations(tmp_path / "a.json", n=42)
    assert len(load_split(profile, dataset, "train")[0]) + len(load_split(profile, dataset, "test")[0]) == 42


def test_a_missing_annotation_file_says_what_belongs_there(profile, tmp_path):
    (tmp_path / "a.json").unlink()
    (dataset,) = profile.datasets
    with pytest.raises(FileNotFoundError, match="no annotation file at .*a.json; the README"):
        collect_run(make_profile(SHIPPED, dataset), SHIPPED, dataset, "test")


def test_a_folder_without_the_images_is_told_with_the_mend(profile):
    with pytest.raises(
        ValueError, match=r"no image of mine, train is under .*images, .*\.jpg; give the folder that they"
    ):
        collect.collect_run(
            profile, LVLMSpec(name="one", source="a/one", revision="1" * 40), profile.datasets[0], "train"
        )


def records(*boxes: bool) -> list[dict]:
    """One answer each: with a box, or a refusal."""
    return [
        {"text": "[[1, 2, 3, 4]]", "failure": ""} if box else {"text": f"Sorry, {n}.\n", "failure": "no box"}
        for n, box in enumerate(boxes)
    ]


def test_fewer_than_half_is_told_with_three_answers_and_the_mend():
    assert unparsed(records(True, False), "x") is None, "half"
    told = unparsed(records(True, *[False] * 4), "x")
    assert "of the first 5 answers of x only 20% hold a box" in told and "`question:` in the profile" in told
    assert told.splitlines()[1:] == [r"  'Sorry, 1.\n'", r"  'Sorry, 2.\n'", r"  'Sorry, 3.\n'"]
    unread = [{"text": "", "failure": f"{UNREADABLE}: gone"}] * 9
    assert unparsed(unread, "x") is None and unparsed(records(True) + unread, "x") is None
    assert "of the first 1 answers" in unparsed(records(False) + unread, "x")


@pytest.mark.parametrize(("first", "after"), [(8, 2), (9, 3), (64, 5)], ids=["two batches", "three", "few queries"])
def test_it_comes_once_and_as_early_as_the_first_queries_are_answered(caplog, first, after):
    told = []
    engine = warn_if_unparsed(map, "x", first)
    with caplog.at_level(logging.WARNING):
        found = iter(engine(lambda batch: [(None, records(False))] * len(batch), BATCHES))
        for batch in BATCHES:
            assert len(next(found)) == len(batch)
            told.append(len(caplog.records))
    assert told == [0] * (after - 1) + [1] * (6 - after)


def test_what_comes_after_the_first_queries_is_not_looked_at(caplog):
    engine = warn_if_unparsed(map, "x", 8)
    answers = engine(lambda batch: [(None, records(batch["query_id"].min() < 8))] * len(batch), BATCHES)
    assert len(list(answers)) == 5 and not caplog.records


def test_of_absent_objects_no_box_is_right(caplog):
    batches = [batch.assign(size="absent" if number < 2 else "small") for number, batch in enumerate(BATCHES)]
    engine = warn_if_unparsed(map, "x", 8)
    answers = engine(lambda batch: [(None, records(batch["query_id"].min() >= 8))] * len(batch), batches)
    assert len(list(answers)) == 5 and not caplog.records
    answers = warn_if_unparsed(map, "x", 8)(lambda batch: [(None, records(False))] * len(batch), batches[:3])
    assert len(list(answers)) == 3 and "of the first 4 answers of x only 0% hold a box" in caplog.text


def test_what_becomes_of_orientation_tags_is_told_before_anything_is_asked(profile, tmp_path, monkeypatch, caplog):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(40):
        size = (100, 90) if number == 0 else (100, 100)  # the annotations say 100x100 of all
        Image.new("RGB", size).save(tmp_path / "images" / f"{number}.jpg", exif=exif if number % 2 else b"")
    spec = LVLMSpec(name="one", source="a/one", revision="1" * 40)
    monkeypatch.setattr(collect, "lvlm_digest", lambda spec: "x")
    monkeypatch.setattr(collect, "fill", lambda *arguments, **settings: "filled")
    profile = profile.model_copy(update={"map_side": 4})
    queries, _ = load_split(profile, profile.datasets[0], "train")
    tagged = sum(int(image_id) % 2 for image_id in queries["image_id"])
    assert collect.collect_run(profile, spec, profile.datasets[0], "train") == "filled"
    (told,) = caplog.messages
    assert told.startswith(f"mine, train: {tagged} of {len(queries)} images have an orientation tag: 0 turned")
    assert f"of {tagged} of these the size does not tell" in told
