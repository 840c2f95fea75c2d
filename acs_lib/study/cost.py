"""What the method costs: seconds and memory a query, by stage, measured on this machine.

Memory is how much the process's resident memory grows while a stage works, looked at every few milliseconds; what was
freed before is given back first where the C library can (glibc), else the growth is too small. What lies on a GPU is
not in it. Since memory that was given back is slow to get, times come from passes of their own. They are those of a
busy machine if it is one: shares travel better than seconds.
"""

import ctypes
import gc
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
import torch

from acs_lib.core.files import query_key
from acs_lib.core.images import read_annotated_image
from acs_lib.lvlms.load import load_spec
from acs_lib.method import sampling
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import acs_free
from acs_lib.runs.store import join_parts, write_part
from acs_lib.study.experiment import Experiment

EVERY = 0.002  # seconds between two looks at the memory
BATCHES, MEMORY_BATCHES = 8, 2  # that are timed, and whose memory is watched
STAGES = (
    "prompt", "prefill and decoding", "rows", "store", "selection: ACS-Free", "selection: ACS-Learned",
    "selection: all others",
)  # fmt: skip
Measure = Callable[[], AbstractContextManager[dict[str, float]]]  # a dictionary that holds `value` when the block ends


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """`value`: the block's seconds."""
    found, began = {}, time.perf_counter()
    yield found
    found["value"] = time.perf_counter() - began


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """`value`: bytes of resident memory above those at the start, the peak."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    process, done, found = psutil.Process(), threading.Event(), {}
    start = peak = process.memory_info().rss

    def look():
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    found["value"] = float(max(peak, process.memory_info().rss) - start)


def stages(e: Experiment, queries: pd.DataFrame, model: AttentionIoURegressor, measure: Measure) -> pd.Series:
    """STAGES -> seconds (`timed`) or bytes (`peak_memory`) of one batch of queries. 'rows' is what reading the rows and
    making maps and statistics of them takes beyond decoding: a second decoding that does, less the first one."""
    lvlm, how = load_spec(e.lvlm), e.profile.sampling
    keys, found = [query_key(name) for name in queries["query_id"]], {}
    with measure() as found["prompt"]:
        prompts = [
            lvlm.prompt(read_annotated_image(query.image, query.width, query.height), query.category)
            for query in queries.itertuples()
        ]
    with torch.inference_mode():
        with measure() as found["prefill and decoding"]:
            sampling.generate(lvlm, prompts, keys, how, capture=False)
        with measure() as read:
            answers = sampling.sample_candidates(
                lvlm, prompts, list(queries["query_id"]), keys, list(queries["category"]), how
            )
        found["rows"] = {"value": read["value"] - found["prefill and decoding"]["value"]}
    with TemporaryDirectory() as folder, measure() as found["store"]:
        write_part(Path(folder), 0, range(len(answers)), answers)
        join_parts(Path(folder), 0)
    candidates, free = [c for c, _ in answers], acs_free(e.head_set.heads, e.head_set.coordinates)
    with measure() as found["selection: ACS-Free"]:
        for c in candidates:
            free.score(c)
    with torch.inference_mode(), measure() as found["selection: ACS-Learned"]:
        for c in candidates:
            model(torch.from_numpy(np.nan_to_num(c.maps))).cpu()
    with measure() as found["selection: all others"]:
        for c in candidates:
            for selector in SELECTORS.values():
                selector.score(c)
    return pd.Series({stage: found[stage]["value"] for stage in STAGES})


def cost_table(experiments: list[Experiment], models: list[AttentionIoURegressor]) -> pd.DataFrame:
    """cost.csv, small test objects: lvlm, stage, seconds_per_query (median over BATCHES; a first one warms up),
    share_of_seconds (of their sum), peak_mb (growth of memory for a batch, the largest of MEMORY_BATCHES),
    peak_mb_per_query and batch_queries. A difference that noise makes negative is 0.

    models: the regressor of each experiment's LVLM
    """
    tables = []
    for e, model in zip(experiments, models, strict=True):
        batch = min(len(e.small), e.profile.batch_queries)
        parts = [e.small.iloc[start : start + batch] for start in range(0, len(e.small), batch)][:BATCHES]
        measured = [stages(e, part, model, timed) / len(part) for part in (parts[0], *parts)][1:]
        seconds = pd.DataFrame(measured).median().clip(lower=0)[list(STAGES)].to_numpy()
        peak = pd.DataFrame([stages(e, part, model, peak_memory) for part in parts[:MEMORY_BATCHES]])
        peak = peak.max().clip(lower=0)[list(STAGES)].to_numpy() / 1e6
        tables.append(pd.DataFrame({
            "lvlm": e.lvlm.name, "stage": STAGES, "seconds_per_query": seconds,
            "share_of_seconds": seconds / seconds.sum(), "peak_mb": peak, "peak_mb_per_query": peak / batch,
            "batch_queries": batch,
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)
