import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from acs_lib.core import candidates
from acs_lib.core.candidates import Candidates
from acs_lib.core.files import query_key
from acs_lib.core.images import NO_FILE
from acs_lib.method import regressor
from acs_lib.runs import store


def make_queries(n):
    return pd.DataFrame(
        {
            "query_id": [f"q{i}" for i in range(n)], "image_id": range(n), "image": "none.png", "width": 100,
            "height": 100, "category": "ball", "x1": 10.0, "y1": 10.0, "x2": 30.0, "y2": 30.0, "area_fraction": 0.04,
            "size": "medium",
        }
    )  # fmt: skip


def answer(part):
    """A made-up LVLM: three answers a query, the last without a box; a function of the query alone."""
    answers = []
    for query_id in part["query_id"]:
        rng = np.random.default_rng(query_key(query_id))
        boxes = np.array([[10, 10, 30, 30], [10, 10, 20, 30], [np.nan] * 4])
        maps = rng.random((3, 4, 2, 2, 3, 3)).astype(np.float32)
        tokens = [np.arange(4), np.arange(4), np.array([], int)]
        numbers = {name: [rng.random(5) for _ in range(3)] for name in candidates.PER_TOKEN}
        found = Candidates(
            query_id=query_id, category="ball", width=100, height=100, boxes=boxes, **numbers,
            coordinate_tokens=tokens, statistics=rng.random((3, 4, 2, 2, 4)), maps=maps,
        )  # fmt: skip
        records = [{"text": "t", "token_ids": [1, 2], "failure": ""}] * 2
        answers.append((found, [*records, {"text": "", "token_ids": [], "failure": "no box in the answer"}]))
    return answers


def fill(folder, queries, answer=answer, batch=16, **key):
    return store.fill(folder, queries, answer, {"lvlm": "made up", **key}, bytes_per_query=100, batch=batch)


def stopping(calls):
    """An LVLM that is interrupted after so many batches."""
    done = []

    def stops(part):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(part)
        return answer(part)

    return stops


def noting(asked):
    """An LVLM that appends the ids of every batch to a list."""
    return lambda part: asked.append(part["query_id"].tolist()) or answer(part)


def missing(folder, queries):
    """The ids of the queries whose answers are in no finished shard and no part, in order."""
    kept = [(int(path.stem), 0, store.SHARD) for path in folder.glob("0*.parquet")]
    kept += [tuple(map(int, path.stem.split("-")[1:])) for path in folder.glob("part-*")]
    rows = {store.SHARD * number + row for number, start, stop in kept for row in range(start, stop)}
    return [query_id for row, query_id in enumerate(queries["query_id"]) if row not in rows]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_packed_maps_come_back_to_the_last_bit_and_attention_takes_less():
    rng = np.random.default_rng(0)
    maps = (rng.random((3, 4, 2, 3, 5, 7)) ** 8).astype(np.float16)
    maps[1] = np.nan
    packed = store.pack(maps)
    found = store.unpack(packed)
    assert packed.dtype == np.uint8 and len(packed) < 0.7 * maps.nbytes
    assert found.shape == maps.shape and found.tobytes() == maps.tobytes() and found.flags.writeable
    assert store.unpack(store.pack(maps[:0])).shape == (0, *maps.shape[1:])
    assert store.pack(maps.astype(np.float32)).tobytes() == packed.tobytes()


def test_what_is_written_is_read_back(tmp_path):
    run = fill(tmp_path, make_queries(70))
    records = run.records()
    assert len(records) == 210 and run.shards == [0, 1]
    assert records["iou"].tolist()[:3] == [1.0, 0.5, 0.0]
    expected = dict(zip(run.queries["query_id"], answer(run.queries)))
    for found in run.candidates(maps=True):
        same, _ = expected[found.query_id]
        assert np.array_equal(found.boxes, same.boxes, equal_nan=True)
        assert np.allclose(found.maps, same.maps, atol=1e-3) and np.allclose(found.statistics, same.statistics)
        assert all(np.allclose(a, b) for a, b in zip(found.logprobs, same.logprobs))
    assert run.statistics().shape == (210, 4, 2, 2, 4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a run of 150 queries: three shards, of four, four and two batches of 16."""
    return contents(fill(tmp_path_factory.mktemp("undisturbed"), make_queries(150)).folder)


@pytest.mark.parametrize("calls", [0, 2, 4, 6, 9])
def test_a_stopped_run_asks_only_for_the_missing_batches_and_ends_with_the_same_bytes(tmp_path, undisturbed, calls):
    queries, asked = make_queries(150), []
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, queries, stopping(calls))
    assert missing(tmp_path, queries) == [f"q{n}" for n in range(16 * calls, 150)]
    fill(tmp_path, queries, noting(asked))
    assert len(asked) == 10 - calls and sum(asked, []) == [f"q{n}" for n in range(16 * calls, 150)]
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize(("before", "after"), [(16, 5), (16, 64), (5, 16), (7, 1)])
def test_finished_batches_are_of_use_to_a_run_with_batches_of_another_size(tmp_path, undisturbed, before, after):
    queries, asked = make_queries(150), []
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, queries, stopping(2), before)
    fill(tmp_path, queries, noting(asked), after)
    assert sum(asked, []) == [f"q{n}" for n in range(2 * before, 150)] and max(map(len, asked)) <= after
    assert contents(tmp_path) == undisturbed


def test_only_the_batch_of_a_damaged_part_is_asked_for_again(tmp_path, undisturbed):
    queries = make_queries(150)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "first", queries, stopping(3))
    part = "part-00000-00016-00032.safetensors"
    whole = (tmp_path / "first" / part).read_bytes()
    flipped = [bytes([*whole[:at], whole[at] ^ 0x10, *whole[at + 1 :]]) for at in (3, 40, len(whole) // 2, -9)]
    for number, damaged in enumerate([b"", whole[:40], whole[:-1], *flipped]):
        folder, asked = shutil.copytree(tmp_path / "first", tmp_path / str(number)), []
        (folder / part).write_bytes(damaged)
        fill(folder, queries, noting(asked), 64)  # gaps are filled one by one, whatever the size of a batch
        expected = [range(16, 32), range(48, 64), range(64, 128), range(128, 150)]
        assert asked == [[f"q{n}" for n in numbers] for numbers in expected]
        assert contents(folder) == undisturbed


def test_parts_that_are_of_no_use_are_deleted(tmp_path, undisturbed):
    queries, asked = make_queries(150), []
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "other", queries, stopping(3), temperature=0.7)
    (part,) = (tmp_path / "other").glob("part-00000-00016-*")
    fill(tmp_path / "whole", queries)
    for name in (part.name, "part-00007-00000-00004.safetensors", "part-of-nothing"):
        shutil.copy(part, tmp_path / "whole" / name)
    fill(tmp_path / "whole", queries, noting(asked))
    assert not asked and contents(tmp_path / "whole") == undisturbed
    fill(tmp_path / "other", queries, noting(asked))
    assert len(asked) == 10, "answers under another key count for nothing"
    assert contents(tmp_path / "other") == undisturbed


def test_a_run_reads_shards_and_never_parts(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, make_queries(150), stopping(6))
    assert len(list(tmp_path.glob("part-*"))) == 2
    run = store.Run(tmp_path)
    assert run.shards == [0] and run.records()["query_id"].nunique() == 64 and len(run.statistics()) == 3 * 64


def test_parts_hold_failures_too(tmp_path):
    """A part of nothing but failures has columns of empty lists; joined with others it makes no difference."""

    def blind_to_some(part):
        blind = part.index < 20
        unread = [store.unread(name, "ball", 100, 100, 2, 2, "gone") for name in part["query_id"][blind]]
        return unread + answer(part[~blind])

    sizes = [fill(tmp_path / str(batch), make_queries(40), blind_to_some, batch).folder for batch in (1, 16, 64)]
    assert contents(sizes[0]) == contents(sizes[1]) == contents(sizes[2])


def test_a_changed_setting_makes_a_run_stale_and_an_equal_one_does_not(tmp_path):
    queries, calls = make_queries(5), []

    def counted(part):
        calls.append(1)
        return answer(part)

    fill(tmp_path, queries, counted)
    fill(tmp_path, queries, counted)
    assert len(calls) == 1
    fill(tmp_path, queries, counted, temperature=0.7)
    assert len(calls) == 2
    fill(tmp_path, queries.iloc[:4], counted, temperature=0.7)
    assert len(calls) == 3


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_damaged_shard_is_made_anew(tmp_path, suffix):
    queries = make_queries(5)
    before = fill(tmp_path, queries) and contents(tmp_path)
    damaged = tmp_path / f"00000.{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:40])
    fill(tmp_path, queries)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_flipped_byte_is_named_when_it_is_read(tmp_path, suffix):
    fill(tmp_path, make_queries(5))
    whole, named = contents(tmp_path), []
    path = tmp_path / f"00000.{suffix}"
    for place in (0.3, 0.5, 0.7):
        content = bytearray(whole[path.name])
        content[int(place * len(content))] ^= 0x10
        path.write_bytes(content)
        run = fill(tmp_path, make_queries(5))  # the headers are whole, or it is made anew here
        if contents(tmp_path) != whole:
            with pytest.raises(ValueError, match=rf"00000\.{suffix} is damaged .*; delete it and run again"):
                list(run.candidates(maps=True))
            named.append(place)
            path.unlink()
            fill(tmp_path, make_queries(5))
        assert contents(tmp_path) == whole, "the advice helps"
    assert named


def test_images_have_grids_of_their_own(tmp_path):
    sides = {"q0": (3, 3), "q1": (2, 7), "q2": (5, 4)}

    def of_all_shapes(part):
        return [
            (replace(found, maps=np.resize(found.maps, (3, 4, 2, 2, *sides[found.query_id]))), records)
            for found, records in answer(part)
        ]

    run = fill(tmp_path, make_queries(3), of_all_shapes)
    expected = [found.maps for found, _ in of_all_shapes(run.queries)]
    for found, same in zip(run.candidates(maps=True), expected):
        assert found.maps.shape[-2:] == sides[found.query_id] and np.allclose(found.maps, same, atol=1e-3)


def test_too_little_disk_is_refused_before_it_starts(tmp_path):
    with pytest.raises(OSError, match="free some"):
        store.fill(tmp_path, make_queries(5), answer, {}, bytes_per_query=10**15)


def test_the_disk_must_hold_what_is_missing_and_one_shard_twice(tmp_path, monkeypatch):
    queries = make_queries(150)
    free = SimpleNamespace(free=100 * (150 + 64) - 1)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match="free some"):
        fill(tmp_path, queries)
    free.free += 1
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, queries, stopping(9))
    free.free = 100 * (6 + 22) - 1
    with pytest.raises(OSError, match="free some"):
        fill(tmp_path, queries)
    free.free += 1
    fill(tmp_path, queries)
    free.free = 0
    fill(tmp_path, queries)


def test_a_second_writer_is_refused(tmp_path):
    with store.locked(tmp_path), pytest.raises(RuntimeError, match="another process"), store.locked(tmp_path):
        pass


def test_no_query_is_lost(tmp_path):
    with pytest.raises(ValueError, match="4 answers to 5 queries"):
        fill(tmp_path, make_queries(5), lambda part: answer(part.iloc[1:]))


def test_a_query_without_answers_keeps_its_place(tmp_path):
    def blind_to_the_first(part):
        return [store.unread("q0", "ball", 100, 100, 2, 2, "a.png: no such file"), *answer(part.iloc[1:])]

    run = fill(tmp_path, make_queries(5), blind_to_the_first)
    records = run.records()
    assert records["query_id"].nunique() == 5 and run.unanswered() == {"q0"}
    first = records.iloc[0]
    assert (first["candidate"], first["failure"], first["iou"]) == (0, "unreadable image: a.png: no such file", 0)
    assert [found.query_id for found in run.candidates(maps=True)] == ["q1", "q2", "q3", "q4"]
    assert [len(maps) for maps in run.maps(0)] == [1, 3, 3, 3, 3] and len(run.statistics()) == 13
    for found, same in zip(run.candidates(maps=True), answer(run.queries.iloc[1:])):
        assert np.allclose(found.maps, same[0].maps, atol=1e-3), "the maps of the others are still their own"
    maps, iou, frame = regressor.maps_with_iou(run, 0, (3, 3))
    assert maps.shape == (8, 4, 2, 2, 3, 3) and len(iou) == 8 and set(frame["query_id"]) == {"q1", "q2", "q3", "q4"}


def test_a_shard_of_nothing_but_failures(tmp_path):
    def blind(part):
        return [store.unread(name, "ball", 100, 100, 2, 2, "gone") for name in part["query_id"]]

    run = fill(tmp_path, make_queries(store.SHARD + 2), lambda part: blind(part) if len(part) == 2 else answer(part))
    assert len(run.unanswered()) == 2 and len(list(run.candidates())) == store.SHARD
    assert regressor.maps_with_iou(run, 1, (3, 3))[0].shape == (0, 4, 2, 2, 3, 3)
    model = regressor.AttentionIoURegressor(2, 2, 4, (3, 3))
    assert len(regressor.predict(model, run)) == 2 * store.SHARD


def seeing(asked):
    """A made-up LVLM that answers where there is an image that begins with 'whole', and notes what it is asked for."""

    def look(part):
        answers = dict(zip(part["query_id"], answer(part)))
        for query_id, image in zip(part["query_id"], map(Path, part["image"])):
            asked.append(query_id)
            if not image.exists() or not image.read_text().startswith("whole"):
                reason = "cannot identify it" if image.exists() else NO_FILE
                answers[query_id] = store.unread(query_id, "ball", 100, 100, 2, 2, f"{image}: {reason}")
        return list(answers.values())

    return look


def with_images(folder, n):
    """Queries with an image file each."""
    folder.mkdir()
    queries = make_queries(n)
    queries["image"] = [str(folder / f"{name}.png") for name in queries["query_id"]]
    for image in queries["image"]:
        Path(image).write_text("whole")
    return queries


def test_queries_whose_image_was_unreadable_are_asked_for_once_it_has_changed(tmp_path):
    queries, asked = with_images(tmp_path / "images", 150), []
    images = {number: tmp_path / "images" / f"q{number}.png" for number in (3, 70, 71, 100, 149)}
    expected = contents(fill(tmp_path / "whole", queries, seeing([])).folder)
    for number in (3, 70, 71):
        images[number].unlink()
    images[100].write_text("half")
    images[149].write_text("half")
    before = fill(tmp_path / "run", queries, seeing([]))
    assert before.unanswered() == {"q3", "q70", "q71", "q100", "q149"}
    fill(tmp_path / "run", queries, seeing(asked))
    assert not asked, "nothing has changed"
    for number in (70, 71, 100):
        images[number].write_text("whole")
    after = fill(tmp_path / "run", queries, seeing(asked))
    assert asked == ["q70", "q71", "q100"] and after.unanswered() == {"q3", "q149"}
    assert after.key != before.key, "what was made of the answers is stale"
    for number in (3, 149):
        images[number].write_text("whole")
    run = fill(tmp_path / "run", queries, seeing(asked))
    assert asked[3:] == ["q3", "q149"] and run.unanswered() == set()
    assert contents(tmp_path / "run") == expected and run.key == store.Run(tmp_path / "whole").key


def test_a_part_that_says_that_an_image_is_missing_counts_for_nothing_once_it_is_there(tmp_path):
    queries, asked = with_images(tmp_path / "images", 40), []
    expected = contents(fill(tmp_path / "whole", queries, seeing([])).folder)
    missing = tmp_path / "images" / "q20.png"
    missing.unlink()
    look, calls = seeing([]), []

    def stops(part):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(part)
        return look(part)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "run", queries, stops)
    missing.write_text("whole")
    fill(tmp_path / "run", queries, seeing(asked))
    assert asked == [f"q{number}" for number in range(16, 40)]
    assert contents(tmp_path / "run") == expected


def test_parts_left_beside_a_shard_are_not_joined_with_those_it_is_taken_apart_to(tmp_path, monkeypatch):
    queries = with_images(tmp_path / "images", 40)
    expected = contents(fill(tmp_path / "whole", queries, seeing([])).folder)
    (tmp_path / "images" / "q20.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(store, "join_parts", lambda folder, number: None)
        fill(tmp_path / "run", queries, seeing([]))
    parts = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("part-*")}
    store.join_parts(tmp_path / "run", 0)
    for name, content in parts.items():
        (tmp_path / "run" / name).write_bytes(content)  # as if killed before they were deleted
    (tmp_path / "images" / "q20.png").write_text("whole")
    fill(tmp_path / "run", queries, seeing([]))
    assert len(parts) == 3 and contents(tmp_path / "run") == expected


def test_a_damaged_shard_with_an_unreadable_image_is_made_anew(tmp_path):
    queries, asked = with_images(tmp_path / "images", 5), []
    expected = contents(fill(tmp_path / "whole", queries, seeing([])).folder)
    (tmp_path / "images" / "q2.png").unlink()
    fill(tmp_path / "run", queries, seeing([]))
    shard = tmp_path / "run" / "00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-9] ^= 0x10
    shard.write_bytes(content)
    (tmp_path / "images" / "q2.png").write_text("whole")
    fill(tmp_path / "run", queries, seeing(asked))
    assert asked == [f"q{number}" for number in range(5)] and contents(tmp_path / "run") == expected


def test_images_may_be_moved(tmp_path):
    """Another root is no reason to ask again; later readers find the images where they are now."""
    run, asked = fill(tmp_path / "run", with_images(tmp_path / "here", 70), seeing([])), []
    before = contents(run.folder)
    (tmp_path / "here").rename(tmp_path / "there")
    queries = make_queries(70)
    queries["image"] = [str(tmp_path / "there" / f"{name}.png") for name in queries["query_id"]]
    moved = fill(tmp_path / "run", queries, seeing(asked))
    after = contents(tmp_path / "run")
    assert not asked and moved.key == run.key
    assert moved.queries.equals(queries)
    assert {name for name in before if after[name] != before[name]} == {"queries.parquet"}
    changed = queries.assign(category="dog")
    fill(tmp_path / "run", changed, seeing(asked))
    assert len(asked) == 70, "anything else of a query is a reason"
