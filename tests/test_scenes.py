import json

import numpy as np
import pytest

from acs_lib.core import boxes as bx
from acs_lib.datasets import coco
from acs_lib.embedded import scenes
from acs_lib.profiles import available, load_profile
from benchmarks import bars


def test_at_least_40_categories_in_groups_of_look_alikes():
    assert len(scenes.CATEGORIES) == len(set(scenes.CATEGORIES)) >= 40
    assert len(scenes.LOOKALIKES) == 6
    assert all(len(siblings) >= 4 for siblings in scenes.SIBLINGS.values())


@pytest.mark.parametrize("world", scenes.WORLDS)
def test_a_scene_depends_on_its_seed_alone(world):
    first, again, other = (scenes.render(np.random.default_rng(seed), scenes.WORLDS[world]) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, other.image)
    assert first.image.shape == (scenes.SIZE, scenes.SIZE, 3)


def test_boxes_lie_inside_and_categories_occur_once():
    for seed in range(20):
        scene = scenes.render(np.random.default_rng(seed), scenes.WORLDS["scenes"])
        assert len(set(scene.categories.tolist())) == len(scene.categories) == len(scene.boxes)
        assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, 2:] <= scenes.SIZE).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()


def test_a_window_shows_its_part_of_the_scene_larger():
    """The same draws, looked at whole and through a window: boxes are those of the whole, moved and scaled."""
    world, cut = scenes.World(objects=(6, 9)), 0
    for seed in range(8):
        whole, part = (
            scenes.render(np.random.default_rng(seed), world, window=window) for window in ((0, 0, 1), (0.25, 0.5, 0.5))
        )
        moved = (whole.boxes - np.array([40, 80, 40, 80])) * 2
        clipped = moved.clip(0, scenes.SIZE)
        inside = (clipped[:, 2:] > clipped[:, :2]).all(1)
        assert part.categories.tolist() == whole.categories[inside].tolist() and inside.sum() < len(inside)
        assert np.array_equal(part.boxes, clipped[inside])
        assert np.allclose(part.seen, bx.area(clipped[inside]) / bx.area(moved[inside]))
        assert part.image.shape == whole.image.shape and (whole.seen == 1).all()
        cut += (part.seen < 1).sum()
    assert cut > 3


def test_a_larger_image_is_the_same_scene_with_more_detail():
    small, large = (scenes.render(np.random.default_rng(3), scenes.WORLDS["train"], side=side) for side in (160, 480))
    assert large.image.shape == (480, 480, 3) and (large.boxes == 3 * small.boxes).all()
    assert large.categories.tolist() == small.categories.tolist()


def test_every_rendered_dataset_of_a_profile_is_a_world_and_none_holds_research_images():
    """What the embedded LVLMs were chosen by is drawn from a seed that no profile has (benchmarks.bars)."""
    for name in available():
        profile = load_profile(name)
        datasets = [*profile.datasets, *filter(None, [profile.beyond.lists, profile.beyond.rendered])]
        for dataset in (each for each in datasets if each.kind == "scenes"):
            assert dataset.name in scenes.WORLDS, name
            seeds = {split.seed for split in dataset.splits.values()}
            assert len(seeds) == len(dataset.splits) and bars.SEED not in seeds, f"{name}: {dataset.name}"


def test_categories_repeat_where_the_world_says_so():
    world = scenes.World(objects=(12, 13), sides=(6, 12), repeats=0.6)
    counts = [np.bincount(scenes.render(np.random.default_rng(seed), world).categories).max() for seed in range(40)]
    assert 1 < np.mean(counts) and max(counts) <= scenes.INSTANCES


def test_the_box_holds_the_object():
    """Where nothing but one object is drawn, pixels differ from the empty background inside the box only."""
    world = scenes.World(objects=(1, 2), noise=(0, 1e-9), blur=(0, 0), saturation=(1, 1))
    scene = scenes.render(np.random.default_rng(1), world)
    rng = np.random.default_rng(1)
    empty = np.asarray(scenes.background(rng, world.background))
    rows, columns = np.nonzero((scene.image.astype(int) != empty).any(-1))
    x1, y1, x2, y2 = scene.boxes[0]
    assert columns.min() >= x1 and columns.max() < x2 and rows.min() >= y1 and rows.max() < y2
    assert columns.max() - columns.min() >= 0.8 * (x2 - x1)


def test_a_split_is_rebuilt_byte_for_byte_and_kept(tmp_path):
    digest = scenes.write_split(tmp_path / "a", "scenes", 3, 5)
    assert scenes.write_split(tmp_path / "b", "scenes", 3, 5) == digest
    assert scenes.write_split(tmp_path / "c", "scenes", 3, 6) != digest
    before = (tmp_path / "a" / "annotations.json").stat().st_mtime_ns
    scenes.write_split(tmp_path / "a", "scenes", 3, 5)
    assert (tmp_path / "a" / "annotations.json").stat().st_mtime_ns == before
    assert scenes.write_split(tmp_path / "a", "scenes", 2, 5) != digest, "another request renders anew"


def test_a_split_whose_replacement_was_stopped_is_rendered_by_the_next_call(tmp_path, monkeypatch):
    def stopped(folder, ignore_errors=False):
        if (folder / "annotations.json").exists():
            (folder / "annotations.json").unlink()
            raise KeyboardInterrupt

    digest = scenes.write_split(tmp_path / "other", "scenes", 2, 5)
    scenes.write_split(tmp_path / "a", "scenes", 3, 5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scenes.shutil, "rmtree", stopped)
        scenes.write_split(tmp_path / "a", "scenes", 2, 5)
    assert scenes.write_split(tmp_path / "a", "scenes", 2, 5) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]


def test_of_two_processes_that_render_the_same_split_the_first_is_kept(tmp_path, monkeypatch):
    render, other = scenes.render, []

    def slowly(*arguments, **named):
        with monkeypatch.context() as patch:  # a whole other process, meanwhile
            patch.setattr(scenes, "render", render)
            patch.setattr(scenes.os, "getpid", lambda: 1)
            other.append(scenes.write_split(tmp_path / "a", "scenes", 1, 5))
        return render(*arguments, **named)

    monkeypatch.setattr(scenes, "render", slowly)
    assert other == [] and [scenes.write_split(tmp_path / "a", "scenes", 1, 5)] == other
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_may_replace_an_old_split_at_once(tmp_path, monkeypatch):
    digest = scenes.write_split(tmp_path / "other", "scenes", 2, 5)
    scenes.write_split(tmp_path / "a", "scenes", 3, 5)
    rename, tried = type(tmp_path).rename, []

    def later(path, target):
        if path == tmp_path / "a" and not tried:  # the other process was there between the look and the renaming
            tried.append(target)
            scenes.shutil.rmtree(path)
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", later)
    assert scenes.write_split(tmp_path / "a", "scenes", 2, 5) == digest and tried
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]


def test_a_split_reads_back_through_the_coco_loader(tmp_path):
    scenes.write_split(tmp_path / "s", "scenes-shift", 4, 5)
    queries, funnel = coco.load_queries("s", tmp_path / "s/annotations.json", tmp_path / "s/images")
    written = json.loads((tmp_path / "s/annotations.json").read_text())
    assert len(queries) == len(written["annotations"])
    for query in queries.itertuples():
        scene = scenes.render(np.random.default_rng([5, query.image_id - 1]), scenes.WORLDS["scenes-shift"])
        place = [scenes.CATEGORIES[category] for category in scene.categories].index(query.category)
        assert scene.boxes[place].tolist() == [query.x1, query.y1, query.x2, query.y2]


def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match="patches"):
        scenes.background(np.random.default_rng(0), "marble")
