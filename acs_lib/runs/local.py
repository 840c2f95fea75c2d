"""`--engine local`: sampling in processes of this machine, one a core or one a GPU, each with one thread.

Small matrices do not pay for a second thread: two threads of one process spin while they wait for each other, and with
another busy core they wait long. So processes work side by side, on whole batches, with the very function that one
process alone would call; answers come back in order, and `store.fill` keeps each batch at once. As every process has
one thread, the bytes are the same whatever the number of processes. Each takes about 0.6 GB besides what it has in
hand.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from acs_lib.core.errors import UserError
from acs_lib.lvlms.checkpoint import is_embedded
from acs_lib.profiles import LVLMSpec

AHEAD = 2  # batches given out for every process


def cores() -> int:
    """How many processes this one may run side by side."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> float:
    """GB that this process may take: this machine's, or less where a limit says so (of a container or another control
    group, or `ulimit -v`); NaN where the system does not tell."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("nan")
    return min([there, *memory_limits()]) / 1e9


def memory_limits(process: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that a process of Linux may take, by `ulimit -v` and by each control group that it is in, of version 2 or
    1; none where nothing is said."""
    values = []
    if (process / "limits").is_file():
        lines = (process / "limits").read_text(encoding="utf-8").splitlines()
        values += [line.split()[3] for line in lines if line.startswith("Max address space")]
    if (process / "cgroup").is_file():
        for line in (process / "cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            place, name = (groups / kinds, "memory.limit_in_bytes") if kinds else (groups, "memory.max")
            inside = Path(path.lstrip("/"))
            files = [place / folder / name for folder in (inside, *inside.parents)]
            values += [file.read_text(encoding="utf-8").strip() for file in files if file.is_file()]
    yield from map(int, filter(str.isdigit, values))


def _begin(gpus, parent: Connection) -> None:
    """What a process does first. `gpus`: a queue that holds the GPU of each process, empty without GPUs; `parent`: it
    ends where the process at the other end closes it, or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gives out the work
    threading.Thread(target=lambda: (parent.poll(None), os._exit(1)), daemon=True).start()
    if not gpus.empty():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    torch.set_num_threads(1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within this context torch computes with one thread, as in `processes`: with two, sums have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def processes(count: int | None = None) -> Iterator[Callable]:
    """Within this context: `run(function, items)` yields what `function` gives for each item, in order, from `count`
    processes (by default one a GPU, or one a core where there is none). An exception of `function` is raised here.
    When the context is left by an exception, Ctrl-C included, nobody waits for what the processes have in hand.

    UserError where a process dies.
    """
    visible = [str(number) for number in range(torch.cuda.device_count())]
    context = multiprocessing.get_context("spawn" if visible else "forkserver")
    if not visible:  # imports take seconds, and where they see a GPU it could no longer be chosen
        context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == "acs_lib"])
    gpus, count, (theirs, ours) = context.SimpleQueue(), count or len(visible) or cores(), context.Pipe(duplex=False)
    for number in range(count if visible else 0):
        gpus.put(visible[number % len(visible)])
    pool = ProcessPoolExecutor(count, context, _begin, (gpus, theirs))
    try:
        yield lambda function, items: _in_order(pool, AHEAD * count, function, items)
        pool.shutdown()
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def backend(lvlms: Sequence[LVLMSpec]) -> Iterator[Callable]:
    """Within this context: what runs a function on items that need some LVLMs, one after the other or side by side.

    Tiny LVLMs are sampled by a process a core, and any by a process a GPU where there are several. A large one on the
    CPU or on one GPU is sampled by this process: on the CPU it needs all threads, and memory for one.
    """
    if torch.cuda.device_count() > 1 or all(map(is_embedded, lvlms)):
        with processes() as found:
            yield found
    else:
        yield map


def _in_order(pool: ProcessPoolExecutor, ahead: int, function: Callable, items: Sequence) -> Iterator:
    rest, waiting = iter(items), collections.deque[Future]()
    try:
        while True:
            for item in itertools.islice(rest, ahead - len(waiting)):
                waiting.append(pool.submit(function, item))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that samples was ended from outside, most often for want of memory; what is finished is kept. "
            "Close other programs or lower `batch_queries` in the profile, then start again"
        ) from error
