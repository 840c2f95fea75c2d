"""`--engine ray`: sampling and extraction on many workers, by Ray Data's `map_batches` over stateful actors.

Each actor keeps one warm LVLM and answers batches with the very function that one process alone calls; the answers come
back in order, and `store.fill` keeps each batch at once and writes the same shards. So one process writes (no shared
disk is needed for results; images and weights must be readable on every node), a run that was stopped goes on with the
batches that it had not received, with Ray or without, and the run directories of both are equal.

An actor that dies is started again and its batch is given to another one. A batch that takes longer than the time
limit ends its actor, whatever hangs in it, and counts as such a death.
"""

import contextlib
import itertools
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from acs_lib.core.errors import UserError
from acs_lib.runs.store import CandidatesWithRecords

SECONDS = 1800  # a batch may take, and so may the loading of the LVLM before the first one
ATTEMPTS = 3  # at a batch, before the run stops
MEND = 'python -m pip install "acs-kit[ray]"'


class Worker:
    """One actor: answers one batch a call."""

    def __init__(self, answer: Callable[[pd.DataFrame], list[CandidatesWithRecords]], seconds: float):
        self.answer, self.seconds = answer, seconds
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # that answers travel as objects needs no warning

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """rows: `queries` [1], a batch; returns `answers` [1], CandidatesWithRecords, or the error instead."""
        import ray

        batch, answers = rows["queries"][0], np.empty(1, object)
        try:
            _refuse_cpu(ray.get_gpu_ids())
            for part in batch.iloc[:0], batch:  # to answer no query, the LVLM is loaded, in a time of its own
                with self._limited():
                    answers[0] = self.answer(part)
        except Exception as error:
            answers[0] = error
        return {"answers": answers}

    @contextlib.contextmanager
    def _limited(self):
        """The process ends if this context takes too long."""
        overdue = threading.Timer(self.seconds, os._exit, [1])
        overdue.daemon = True
        overdue.start()
        try:
            yield
        finally:
            overdue.cancel()


def _refuse_cpu(gpus: Sequence) -> None:
    """UserError where Ray has given a worker GPUs that PyTorch cannot use: it would compute on the CPU."""
    if gpus and not torch.cuda.is_available():
        raise UserError(
            f"Ray has given a worker on {socket.gethostname()} a GPU that PyTorch {torch.__version__} cannot use: its "
            "driver is too old for that PyTorch, or the PyTorch is one without CUDA; update the driver, or install a "
            "PyTorch that fits it"
        )


def _check_reachable(address: str) -> None:
    """OSError where nobody answers at 'host:port': Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _start(ray) -> None:
    """A cluster of this machine alone: never one that somebody left, which Ray would take, or wait for.

    Raises UserError where it is not up after ATTEMPTS times the 30 s that Ray gives it.
    """
    for _ in range(ATTEMPTS):
        try:
            ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error):
                raise
            cause = error
    raise UserError(f"Ray does not start here ({cause}); stop other programs, then start again") from cause


@contextlib.contextmanager
def cluster(workers: int | None = None):
    """Within this context: the backend of `store.fill`, on the Ray cluster that RAY_ADDRESS names or on this
    machine.

    One worker a GPU, or a CPU where the cluster has no GPU, unless `workers` says how many. Raises UserError where
    Ray is not installed or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray, which is not installed here; {MEND}") from error
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _check_reachable(address)
            ray.init(address, logging_level=logging.ERROR)
        except OSError as error:
            raise UserError(f"no Ray cluster at {address} ({error}); start one: ray start --head") from error
    else:
        _start(ray)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the run has its own
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resource = "num_gpus" if ray.cluster_resources().get("GPU", 0) >= 1 else "num_cpus"
    count = workers or int(ray.cluster_resources().get("GPU" if resource == "num_gpus" else "CPU", 1))

    def backend(
        answer: Callable[[pd.DataFrame], list[CandidatesWithRecords]],
        batches: Sequence[pd.DataFrame],
        seconds: float = SECONDS,
    ) -> Iterator[list[CandidatesWithRecords]]:
        if not batches:
            return
        rows = ray.data.from_items([{"queries": part} for part in batches], override_num_blocks=len(batches))
        # Of two batches waiting at one actor, Ray may run the second first, and the first would be held back behind it.
        pool = ray.data.ActorPoolStrategy(size=min(count, len(batches)), max_tasks_in_flight_per_actor=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60 warns of the arguments for restarts
            rows = rows.map_batches(
                Worker, batch_size=1, fn_constructor_args=[answer, seconds], compute=pool, max_restarts=-1,
                max_task_retries=ATTEMPTS - 1, **{resource: 1},
            )  # fmt: skip
        try:
            # With prefetching a batch would be held back until the next one is answered, and lost with the driver.
            blocks = rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
            with contextlib.closing(iter(blocks)) as blocks:
                for answers in itertools.chain.from_iterable(block["answers"] for block in blocks):
                    if isinstance(answers, Exception):
                        raise answers
                    yield answers
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"{ATTEMPTS} workers died one after the other, or took longer than {seconds:.0f} s, over one batch; "
                "what is finished is kept. Mend what the workers' logs say (often memory: lower `batch_queries`), "
                "then start again"
            ) from error

    try:
        yield backend
    finally:
        ray.shutdown()
