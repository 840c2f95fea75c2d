"""`--engine ray`: two CPU actors on the embedded LVLM give the local engine's bytes, also when an actor dies."""

import contextlib
import functools
import itertools
import os
import socket
import time
import types
from pathlib import Path

import pytest
import torch

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "acs-kit[ray]"')

from test_store import answer, contents, make_queries, missing, noting  # noqa: E402

from acs_lib import paths  # noqa: E402
from acs_lib.profiles import LVLMSpec, Profile  # noqa: E402
from acs_lib.runs import ray_cluster, store  # noqa: E402
from acs_lib.runs.collect import collect_run  # noqa: E402
from acs_lib.runs.workers import backend  # noqa: E402


@pytest.fixture(scope="module")
def two_workers():
    """The engine, on a cluster of this machine that the tests of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        # workers import the functions of this file, and the library that is tested
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(paths.ROOT)]))
        with ray_cluster.cluster(workers=2) as engine:
            yield engine


def fill(folder, answer, engine=map, n=150):
    """150 made-up queries are three shards of four batches (the last shard: two)."""
    return store.fill(folder, make_queries(n), answer, {}, bytes_per_query=100, batch=16, backend=engine)


def once(folder: Path, query_id: str) -> bool:
    """True the first time that any process asks."""
    try:
        (folder / query_id).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def noted(folder: Path, part):
    """Leaves a file for every query that it is asked for."""
    for query_id in part["query_id"]:
        (folder / query_id).touch()
    return answer(part)


def first(part) -> str | None:
    """The id of a batch's first query; None of the batch without queries that a worker begins with."""
    return next(iter(part["query_id"]), None)


def dies_once(folder: Path, answer, part):
    """Ends the process of the worker that gets the third batch first."""
    if 16 in part.index[:1] and once(folder, "died"):
        os._exit(1)
    return answer(part)


def always_dies(part):
    if first(part) == "q80":
        os._exit(1)
    return answer(part)


def fails(part):
    if first(part) == "q80":
        raise ValueError("something is wrong with q80")
    return answer(part)


def waits_for_the_first(run: Path, part):
    """Does not answer the second batch before the first one is on disk."""
    deadline = time.monotonic() + 60
    while first(part) == "q16" and not (run / "part-00000-00000-00016.safetensors").exists():
        if time.monotonic() > deadline:
            raise RuntimeError("the first batch is not on disk")
        time.sleep(0.1)
    return answer(part)


def loads_slowly(part):
    """Takes 4 s to load and 4 s to answer the first batch."""
    if first(part) in (None, "q0"):
        time.sleep(4)
    return answer(part)


def hangs_once(folder: Path, part):
    if first(part) == "q0" and once(folder, "q0"):
        time.sleep(600)
    return answer(part)


def test_a_batch_that_kills_every_worker_stops_the_run_and_the_next_one_resumes(tmp_path, two_workers):
    fill(tmp_path / "local", answer)
    with pytest.raises(RuntimeError, match="3 workers died .* what is finished is kept"):
        fill(tmp_path / "ray", always_dies, two_workers)
    assert (tmp_path / "ray" / "00000.parquet").exists() and not (tmp_path / "ray" / "00001.parquet").exists()
    left = missing(tmp_path / "ray", make_queries(150))
    (tmp_path / "asked").mkdir()
    fill(tmp_path / "ray", functools.partial(noted, tmp_path / "asked"), two_workers)
    assert {path.name for path in (tmp_path / "asked").iterdir()} == set(left)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_driver_that_is_stopped_keeps_every_batch_that_it_received(tmp_path, two_workers):
    """Six of ten batches: a shard of four, and two parts of the next one, with which the local engine goes on."""

    def stopped(answer, batches):
        yield from itertools.islice(two_workers(answer, batches), 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "ray", answer, stopped)
    asked = []
    fill(tmp_path / "ray", noting(asked))
    assert sum(asked, []) == [f"q{n}" for n in range(96, 150)] and len(asked) == 4
    fill(tmp_path / "local", answer)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_batch_is_on_disk_before_the_next_one_is_answered(tmp_path, two_workers):
    run = fill(tmp_path, functools.partial(waits_for_the_first, tmp_path), two_workers, n=32)
    assert run.records()["query_id"].nunique() == 32


def test_an_error_is_the_local_engines(tmp_path, two_workers):
    for name, engine in (("local", map), ("ray", two_workers)):
        with pytest.raises(ValueError, match="^something is wrong with q80$"):
            fill(tmp_path / name, fails, engine)
        assert (tmp_path / name / "00000.parquet").exists()


def test_a_batch_over_its_time_limit_ends_its_worker_and_is_tried_again(tmp_path, two_workers):
    (tmp_path / "hung").mkdir()
    fill(tmp_path / "local", answer, n=40)
    engine = functools.partial(two_workers, seconds=15)
    fill(tmp_path / "ray", functools.partial(hangs_once, tmp_path / "hung"), engine, n=40)
    assert (tmp_path / "hung" / "q0").exists()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_loading_takes_none_of_a_batchs_time(tmp_path, two_workers):
    run = fill(tmp_path, loads_slowly, functools.partial(two_workers, seconds=6), n=16)
    assert run.records()["query_id"].nunique() == 16


def test_a_worker_whose_gpu_pytorch_cannot_use_is_an_error(monkeypatch):
    asked, rows = [], {"queries": [make_queries(2)]}
    monkeypatch.setattr(ray_cluster.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    (error,) = ray_cluster.Worker(noting(asked), 60)(rows)["answers"]
    with pytest.raises(RuntimeError, match="a GPU that PyTorch .* cannot use: .*; update the driver, or install"):
        raise error
    assert not asked
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
    (answers,) = ray_cluster.Worker(noting(asked), 60)(rows)["answers"]
    assert len(answers) == 2 and asked == [[], ["q0", "q1"]]


@pytest.fixture
def small_profile(tmp_path, monkeypatch) -> Profile:
    """The embedded LVLM on 12 scenes, in a data folder of its own."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "local")
    return Profile(
        name="small", description="", duration="", train_on="scenes", heads={"layers": [1]}, batch_queries=8,
        lvlms=[{"name": "internvl-embedded", "source": "data/embedded/internvl", "dtype": "float32"}],
        datasets=[
            {
                "name": "scenes", "kind": "scenes",
                "splits": {"test": {"images": 16, "seed": 5, "queries": {"small": 32}}},
            }
        ],
        sampling={"samples": 3, "temperature": 0.5, "max_new_tokens": 16},
    )  # fmt: skip


@pytest.fixture
def one_thread():
    """One thread, as Ray's workers have: two add up in another order, which some processors' last digits show."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_embedded_lvlm_answers_alike_though_a_worker_is_killed(small_profile, monkeypatch, tmp_path, two_workers):
    monkeypatch.setattr(store, "SHARD", 16)
    column = small_profile, small_profile.lvlms[0], small_profile.datasets[0], "test"
    local = collect_run(*column)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "ray")

    def engine(answer, batches):
        return two_workers(functools.partial(dies_once, tmp_path, answer), batches)

    run = collect_run(*column, backend=engine)
    assert (tmp_path / "died").exists()
    assert len(run.queries) == 32 and run.shards == [0, 1]
    assert run.records().equals(local.records())
    assert (run.records()["failure"] == "").mean() > 0.5
    assert contents(run.folder) == contents(local.folder)


def test_engines_go_by_their_names():
    with backend("local", [LVLMSpec(name="x", source="owner/x")]) as engine:
        assert list(engine(str, [1, 2])) == ["1", "2"]
    with pytest.raises(ValueError, match="unknown engine 'spark'; choose local or ray"):
        with backend("spark", []):
            pass


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"no Ray cluster at {address} .*; start one: ray start --head"):
        with ray_cluster.cluster():
            pass
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("failures", [2, 3])
def test_a_start_that_takes_too_long_is_tried_again(failures):
    starts = []

    def init(*arguments, **settings):
        starts.append(arguments)
        if len(starts) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")

    ray = types.SimpleNamespace(init=init)
    with contextlib.nullcontext() if failures < 3 else pytest.raises(RuntimeError, match="stop other programs"):
        ray_cluster._start(ray)
    assert starts == [("local",)] * 3
