"""What the method costs: seconds and memory a query, by stage, measured on this machine.

Memory is how much the process's resident memory grows while a stage works, looked at every few milliseconds; what was
freed before is given back first where the C library can (glibc), else the growth is too small. What lies on a GPU is
not in it. Times are those of a busy machine if it is one: shares travel better than seconds.
"""

import ctypes
import gc
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
import torch

from acs_lib import pipeline, sampling
from acs_lib.heads import Heads
from acs_lib.profiles import LVLMSpec
from acs_lib.regressor import AttentionIoURegressor
from acs_lib.selectors import SELECTORS, acs_free
from acs_lib.store import join_parts, query_key, write_part
from acs_lib.study import Study

EVERY = 0.002  # seconds between two looks at the memory
STAGES = (
    "prompt", "prefill and decoding", "rows", "store", "selection: ACS-Free", "selection: ACS-Learned",
    "selection: all others",
)  # fmt: skip


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """A dictionary that holds `seconds` and `memory` (bytes above those at the start, the peak) when the block ends."""
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
    began = time.perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - began
        done.set()
        thread.join()
        found["memory"] = float(max(peak, process.memory_info().rss) - start)


def stages(
    study: Study, lvlm_spec: LVLMSpec, queries: pd.DataFrame, model: AttentionIoURegressor, heads: Heads
) -> dict[str, dict[str, float]]:
    """Stage -> seconds and memory (bytes) of one batch of queries. 'rows' is what reading the rows and making maps and
    statistics of them takes beyond decoding: a second decoding that does, less the first one (noise may be larger)."""
    lvlm, how = pipeline.load(lvlm_spec), sampling.Sampling(**study.profile.sampling.model_dump())
    keys, found = [query_key(name) for name in queries["query_id"]], {}
    with watched() as found["prompt"]:
        prompts = [
            lvlm.prompt(pipeline.read_image(query.image, query.width, query.height), query.category)
            for query in queries.itertuples()
        ]
    with torch.inference_mode():
        with watched() as found["prefill and decoding"]:
            sampling.generate(lvlm, prompts, keys, how, capture=False)
        with watched() as read:
            answers = sampling.candidates(
                lvlm, prompts, list(queries["query_id"]), keys, list(queries["category"]), how
            )
        found["rows"] = {name: value - found["prefill and decoding"][name] for name, value in read.items()}
    with TemporaryDirectory() as folder, watched() as found["store"]:
        write_part(Path(folder), 0, range(len(answers)), answers)
        join_parts(Path(folder), 0)
    candidates = [c for c, _ in answers]
    free = acs_free(heads)
    with watched() as found["selection: ACS-Free"]:
        for c in candidates:
            free.score(c)
    with torch.inference_mode(), watched() as found["selection: ACS-Learned"]:
        for c in candidates:
            model(torch.from_numpy(np.nan_to_num(c.maps))).cpu()
    with watched() as found["selection: all others"]:
        for c in candidates:
            for selector in SELECTORS.values():
                selector.score(c)
    return found


def table(study: Study, lvlm_spec: LVLMSpec, heads: Heads, batches: int = 8) -> pd.DataFrame:
    """cost.csv of one LVLM, small test objects of the train set's dataset: stage, seconds_per_query (median over
    batches; a first one warms up), share of their sum, peak_mb (growth of memory for a batch), peak_mb_per_query and
    batch_queries."""
    queries, batch = study.test_queries(lvlm_spec, study.train_set, "small"), study.profile.batch_queries
    model = study.fit(lvlm_spec)
    parts = [queries.iloc[start : start + batch] for start in range(0, len(queries), batch)][:batches]
    stages(study, lvlm_spec, parts[0], model, heads)
    measured = [(len(part), stages(study, lvlm_spec, part, model, heads)) for part in parts]
    rows = []
    for stage in STAGES:
        seconds = max(0.0, np.median([found[stage]["seconds"] / n for n, found in measured]))
        grown = max(0.0, *(found[stage]["memory"] for _, found in measured)) / 1e6
        rows.append((lvlm_spec.name, stage, seconds, grown, grown / len(parts[0]), len(parts[0])))
    names = ["lvlm", "stage", "seconds_per_query", "peak_mb", "peak_mb_per_query", "batch_queries"]
    frame = pd.DataFrame(rows, columns=names)
    frame.insert(3, "share", frame["seconds_per_query"] / frame["seconds_per_query"].sum())
    return frame
