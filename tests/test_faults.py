"""Faults: killed processes, a full disk, two runs at once, hostile annotation files; and what they leave behind."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_store import answer, contents, fill, make_queries, missing, noting

from acs_lib.core import files as files_module
from acs_lib.datasets import coco
from acs_lib.runs import store
from acs_lib.runs.answer import answer_batch
from acs_lib.study import results

SHARD, BATCH, QUERIES = 4, 2, 13  # four shards, the last one a single query


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD", SHARD)


def in_a_child(task) -> int:
    """The exit status of a forked process that runs `task`; 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            task()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def counting_lines(act):
    """Call `act(n)` at the n-th line that runs of store.py and files.py."""
    count = [0]
    files = {store.__file__, files_module.__file__}

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count[0] += 1
            act(count[0])
        return trace

    sys.settrace(trace)
    return count


def test_killed_at_20_points_a_run_resumes_and_ends_with_the_same_bytes(tmp_path, small_shards):
    queries = make_queries(QUERIES)
    try:
        lines = counting_lines(lambda line: None)
        fill(tmp_path / "whole", queries, batch=BATCH)
    finally:
        sys.settrace(None)
    whole = contents(tmp_path / "whole")
    finished = set()
    for point in random.Random(0).sample(range(1, lines[0]), 20):
        folder = tmp_path / str(point)

        def killed(point=point, folder=folder):
            counting_lines(lambda line: line == point and os.kill(os.getpid(), signal.SIGKILL))
            fill(folder, queries, batch=BATCH)

        assert os.WTERMSIG(in_a_child(killed)) == signal.SIGKILL
        kept = {path.name: path.stat().st_ino for path in folder.glob("[0-9]*.parquet")}
        left, asked = missing(folder, queries), []
        fill(folder, queries, noting(asked), BATCH)
        assert sum(asked, []) == left, "nothing that is on disk is asked for again"
        assert len(asked) == (len(left) + 1) // BATCH
        assert all((folder / name).stat().st_ino == inode for name, inode in kept.items()), "whole shards are kept"
        assert contents(folder) == whole
        finished.add(len(asked))
    assert len(finished) > 4, "the points are spread over the run"


def incompressible(*shape: int) -> np.ndarray:
    """Maps of which every value from 0 to 1 that a float16 can have is as likely."""
    return np.random.default_rng(0).integers(0, 0x3C00, shape, np.uint16).view(np.float16)


@pytest.mark.parametrize(
    ("limit", "what", "parts"),
    [(1000, "the list of queries", 0), (40_000, "a part of shard 0", 0), (150_000, "shard 0", 2)],
)
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, small_shards, limit, what, parts):
    """The limit of a file's size stands for the end of the disk: writing fails in the middle of a file."""
    queries = make_queries(QUERIES)

    def large(part):
        return [(replace(one, maps=incompressible(3, 4, 2, 2, 24, 24)), records) for one, records in answer(part)]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=f"full: {what} could not be written .*; free some disk and run the same"):
            fill(tmp_path / "full", queries, large, BATCH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = {path.name for path in (tmp_path / "full").iterdir()} - {".lock", "queries.parquet", "run.json"}
    assert left == {f"part-00000-{n:05d}-{n + BATCH:05d}.safetensors" for n in range(0, parts * BATCH, BATCH)}
    asked = []
    fill(tmp_path / "full", queries, lambda part: asked.extend(part["query_id"]) or large(part), BATCH)
    assert len(asked) == QUERIES - parts * BATCH
    assert contents(tmp_path / "full") == contents(fill(tmp_path / "whole", queries, large).folder)


def test_two_runs_on_one_directory(tmp_path, small_shards):
    """The second one is refused while the first one works, and does it no harm."""
    queries, (read, write) = make_queries(QUERIES), os.pipe()
    began, begin = os.pipe()

    def slow(part):
        os.write(begin, b".")
        os.read(read, 1)
        return answer(part)

    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            fill(tmp_path / "shared", queries, slow)
            os._exit(0)
        finally:
            os._exit(1)
    os.read(began, 1)
    with pytest.raises(RuntimeError, match="another process is writing to .*shared; wait for it, or stop it"):
        fill(tmp_path / "shared", queries)
    os.write(write, b"." * 99)
    assert os.waitpid(child, 0)[1] == 0
    assert contents(tmp_path / "shared") == contents(fill(tmp_path / "whole", queries).folder)


class Sees:
    """An LVLM that is only asked for its prompt."""

    layers = heads = 2

    def prompts(self, image, categories):
        return [SimpleNamespace(size=image.size) for _ in categories]


def test_an_unreadable_image_is_one_failure_row_that_the_report_counts(tmp_path, monkeypatch, small_shards):
    queries = make_queries(6)
    for number in range(6):
        path = tmp_path / f"{number}.png"
        queries.loc[number, "image"] = str(path)
        Image.new("RGB", (100, 100) if number != 3 else (90, 100), "red").save(path)
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes((tmp_path / "4.png").read_bytes()[:60])
    (tmp_path / "2.png").write_text("no image")

    def answered(lvlm, prompts, query_ids, query_keys, categories, how, map_side):
        return answer(pd.DataFrame({"query_id": query_ids}))

    monkeypatch.setattr("acs_lib.method.sampling.sample_candidates", answered)
    run = fill(tmp_path / "run", queries, lambda part: answer_batch(Sees(), None, part))
    records = run.records()
    reasons = records.groupby("query_id")["failure"].first()
    assert records.groupby("query_id").size().tolist() == [1, 1, 1, 1, 3, 3]
    for number, reason in enumerate(
        [
            "0.png: no such file",
            "1.png cannot be read",
            "2.png is not an image",
            "3.png has 90x100 px, the annotations say 100x100",
        ]
    ):
        assert reasons.iloc[number].startswith(store.UNREADABLE) and reason in reasons.iloc[number]
    runs = [("lvlm", "scenes", "test", run)]
    counted = results.failures(runs).set_index("failure")["n_answers"].to_dict()
    assert counted == {store.UNREADABLE: 4, "no box in the answer": 2}
    assert results.answer_rates(runs).iloc[0][["n_queries", "unanswered", "n_answers"]].tolist() == [6, 4, 6]


REGRESSOR_MEMORY = """
import resource, sys
from pathlib import Path
from acs_lib.method import regressor
from acs_lib.runs.store import Run

for name in ("few", "few", "many"):
    run = Run(Path(sys.argv[1]) / name)
    regressor.train(run, run, width=4, epochs=1, batch=32, lr=1e-3, seed=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_the_regressors_memory_does_not_grow_with_the_number_of_candidates(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD", 8)

    def large(part):
        return [
            (replace(one, maps=incompressible(3, 4, 4, 8, 16, 16), statistics=np.zeros((3, 4, 4, 8, 4))), rows)
            for one, rows in answer(part)
        ]

    fill(tmp_path / "few", make_queries(8 * 4), large)
    fill(tmp_path / "many", make_queries(8 * 32), large)
    stored = sum(path.stat().st_size for path in (tmp_path / "many").glob("*.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", REGRESSOR_MEMORY, tmp_path], capture_output=True, text=True, check=True, timeout=300
    )
    _, few, many = (int(line) for line in done.stdout.split())
    assert stored > 40e6 and many - few < stored / 4, f"{few / 1e6:.0f} MB with 4 shards, {many / 1e6:.0f} with 32"


# annotation files: one sentence that names the file and what is wrong, or queries that can be trusted

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NUMBER = st.integers(-20, 120) | st.floats(-20, 120) | st.sampled_from([np.nan, np.inf, 10**400, 1e308, True])
ID = st.integers(1, 3)
NAMES = st.sampled_from(["a.jpg", "../a.jpg", "/etc/passwd", "x/../../y.png", "", "a\0b", "a" * 300, ".", "b/c.png"])


def mostly(usual):
    """What the format asks for, and now and then anything else."""
    return st.integers(0, 11).flatmap(lambda number: ANY if number == 0 else usual)


def entries(**fields):
    row = st.fixed_dictionaries({}, optional={"junk": ANY}).flatmap(
        lambda more: st.fixed_dictionaries({name: mostly(value) for name, value in fields.items()}).map(
            lambda found: {**found, **more}
        )
    )
    return mostly(st.lists(row, max_size=4, unique_by=lambda row: str(row.get("id"))))


SIDE = st.sampled_from([0, -1, 1, 50, 100, 10**5, 10**9, 10**30])
FILES = st.fixed_dictionaries(
    {
        "images": entries(id=ID, file_name=NAMES, width=SIDE, height=SIDE),
        "annotations": entries(
            id=st.integers(1, 9), image_id=ID, category_id=ID, bbox=st.lists(NUMBER, min_size=4, max_size=4)
        ),
        "categories": entries(id=ID, name=st.text(max_size=5)),
    }
)
fuzzed = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check_queries(folder, content: str):
    path = folder / "annotations.json"
    path.write_text(content)
    try:
        queries, funnel = coco.load_queries("d", path, folder / "images")
    except ValueError as error:
        assert "annotations.json" in str(error) or "annotation file" in str(error)
        return None
    for query in queries.itertuples():
        assert 0 <= query.x1 < query.x2 <= query.width and 0 <= query.y1 < query.y2 <= query.height
        assert query.width * query.height <= 2 * Image.MAX_IMAGE_PIXELS and 0 < query.area_fraction <= 1
        assert query.image.startswith(str((folder / "images").resolve()))
    assert queries.empty or queries["query_id"].is_unique
    return queries


@given(content=FILES)
@fuzzed
def test_no_annotation_file_gives_a_query_that_cannot_be(tmp_path_factory, content):
    check_queries(tmp_path_factory.getbasetemp(), json.dumps(content))


@given(content=ANY.map(json.dumps) | st.text(st.characters(codec="utf-8"), max_size=40))
@settings(fuzzed, max_examples=100)
def test_what_is_no_annotation_file_is_refused(tmp_path_factory, content):
    assert check_queries(tmp_path_factory.getbasetemp(), content) is None


def test_deeply_nested_json_is_refused(tmp_path):
    assert check_queries(tmp_path, "[" * 100_000) is None


@pytest.mark.parametrize("side", [10**9, 10**30, 0, -5])
def test_an_absurd_size_is_no_query_and_is_counted(tmp_path, side):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": side, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 1, "name": "ball"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    queries, funnel = coco.load_queries("d", tmp_path / "a.json", tmp_path)
    assert queries.empty and funnel.set_index("step")["count"]["usable boxes"] == 0
