"""Processes of this machine: in order, with one thread, stopped at once, and the bytes of one process alone."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_collect import SHIPPED, make_profile, world  # noqa: F401 (a fixture)
from test_store import answer, contents, make_queries

from acs_lib import paths
from acs_lib.profiles import LVLMSpec
from acs_lib.runs import store, workers
from acs_lib.runs.collect import collect_run
from acs_lib.runs.local import memory_limits, processes


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The processes import the functions of this file, and the library that is tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(paths.ROOT)]))


def fill(folder: Path, answer, engine=map):
    """150 made-up queries are three shards of four batches (the last shard: two)."""
    return store.fill(folder, make_queries(150), answer, {}, bytes_per_query=100, batch=16, backend=engine)


def described(number: int) -> tuple[int, int, int]:
    time.sleep(0.2 if number == 0 else 0.02)
    return number, os.getpid(), torch.get_num_threads()


def fails(part: pd.DataFrame):
    if part["query_id"].iloc[0] == "q80":
        raise ValueError("something is wrong with q80")
    return answer(part)


def dies(part: pd.DataFrame):
    if part["query_id"].iloc[0] == "q80":
        os._exit(1)
    return answer(part)


def sleeps(number: int) -> None:
    time.sleep(600)


def test_results_come_in_order_from_processes_of_one_thread():
    with processes(2) as run:
        numbers, pids, threads = zip(*run(described, range(12)))
    assert numbers == tuple(range(12)) and len(set(pids) - {os.getpid()}) == 2 and set(threads) == {1}


def test_the_bytes_do_not_depend_on_the_number_of_processes(world, monkeypatch, tmp_path):  # noqa: F811
    runs = []
    for count in (1, 2):
        monkeypatch.setattr(paths, "RUNS", tmp_path / str(count))
        with processes(count) as engine:
            profile = make_profile(SHIPPED, world, batch_queries=3)
            runs.append(collect_run(profile, SHIPPED, world, "test", engine))
    assert contents(runs[0].folder) == contents(runs[1].folder) and len(runs[0].records()) == 16


def test_an_error_in_a_process_is_raised_here_and_what_is_finished_is_kept(tmp_path):
    with processes(2) as engine, pytest.raises(ValueError, match="something is wrong with q80"):
        fill(tmp_path / "run", fails, engine)
    assert (tmp_path / "run" / "00000.parquet").exists()


def test_a_process_that_dies_stops_the_run_with_the_mend_and_the_next_one_resumes(tmp_path):
    fill(tmp_path / "whole", answer)
    with processes(2) as engine, pytest.raises(RuntimeError, match="ended from outside.* what is finished is kept"):
        fill(tmp_path / "run", dies, engine)
    with processes(2) as engine:
        fill(tmp_path / "run", answer, engine)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_memory_is_what_a_limit_leaves(tmp_path):
    files = {
        "process/limits": "Limit  Soft Limit  Hard Limit  Units\nMax address space     3000      unlimited   bytes\n",
        "process/cgroup": "4:memory:/a/b\n3:cpu:/a\n0::/c\n",
        "groups/memory/a/memory.limit_in_bytes": "2000\n", "groups/memory/memory.limit_in_bytes": "9000\n",
        "groups/c/memory.max": "1000\n", "groups/memory.max": "max\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(memory_limits(tmp_path / "process", tmp_path / "groups")) == [1000, 2000, 3000, 9000]
    assert list(memory_limits(tmp_path / "nobody", tmp_path / "groups")) == []


def test_ctrl_c_waits_for_nobody():
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it
    try:
        with contextlib.suppress(KeyboardInterrupt), processes(1) as run:
            threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            next(run(sleeps, [0]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 120, "not the 600 s that the process had in hand"


ORPHANS = """
import os, sys
from test_local import sleeps
from acs_lib.runs.local import processes
if __name__ == "__main__":
    with processes(1) as run:
        found = run(sleeps, [0])
        import threading
        threading.Timer(0.1, lambda: (print(*open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split(),
                                            flush=True), os.kill(os.getpid(), 9))).start()
        next(found)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed in /proc on Linux only")
def test_processes_end_with_one_that_is_killed(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    found = subprocess.run([sys.executable, tmp_path / "orphans.py"], stdout=subprocess.PIPE, text=True, timeout=300)
    children = list(map(int, found.stdout.split()))
    assert found.returncode == -signal.SIGKILL and children
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a process outlived the one that began it"
        time.sleep(0.2)


def test_large_lvlms_are_sampled_by_this_process_and_tiny_ones_by_others():
    with workers.backend("local", [SHIPPED, LVLMSpec(name="x", source="owner/x")]) as engine:
        assert engine is map
    with workers.backend("local", [SHIPPED]) as engine:
        assert engine is not map
