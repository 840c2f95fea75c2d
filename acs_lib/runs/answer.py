"""What an LVLM is asked, batch by batch: the answers to queries, and P(True) of answers.

Its own module, since it brings transformers, which takes seconds: who reads a finished run needs no LVLM.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import AutoTokenizer

from acs_lib.core.candidates import STATISTICS
from acs_lib.core.files import digest, query_key, replacing
from acs_lib.core.images import read_annotated_image
from acs_lib.core.progress import progress
from acs_lib.lvlms.adapter import LVLM, ImageRefused
from acs_lib.lvlms.attention_rows import attention_layers
from acs_lib.lvlms.checkpoint import lvlm_source, model_files
from acs_lib.lvlms.load import load_spec, lvlm_config
from acs_lib.method import sampling
from acs_lib.method.baselines.p_true import NO, VERIFICATION, YES, CannotBeAsked, ask_p_true, yes_no_tokens
from acs_lib.profiles import LVLMSpec, Sampling
from acs_lib.runs.store import CandidatesWithRecords, Run, unread


def answer_batch(
    lvlm: LVLM, how: Sampling, queries: pd.DataFrame, map_side: int | None = None
) -> list[CandidatesWithRecords]:
    """Candidates and records of a batch of queries (`map_side`: see sample_candidates). Each image is read once. One
    that cannot be read or shown to the LVLM gives one row a query that says why (see store.unread)."""
    prompts, found = {}, {}
    for (path, width, height), asked in queries.groupby(["image", "width", "height"], sort=False):
        try:
            image = read_annotated_image(path, width, height)
            prompts |= zip(asked["query_id"], lvlm.prompts(image, list(asked["category"])))
        except (OSError, ImageRefused) as error:
            for name, category in zip(asked["query_id"], asked["category"]):
                found[name] = unread(name, category, width, height, lvlm.layers, lvlm.heads, str(error))
    if prompts:
        category = dict(zip(queries["query_id"], queries["category"]))
        answers = sampling.sample_candidates(
            lvlm, list(prompts.values()), list(prompts), [query_key(name) for name in prompts],
            [category[name] for name in prompts], how, map_side,
        )  # fmt: skip
        found.update(zip(prompts, answers))
    return [found[name] for name in queries["query_id"]]


def answer_stored(
    spec: LVLMSpec, how: Sampling, map_side: int | None, queries: pd.DataFrame
) -> list[CandidatesWithRecords]:
    """`answer_batch` as a run keeps it, a function of plain settings, so that a process elsewhere computes the same;
    the LVLM is loaded once a process. Maps are float16, so that a worker sends no more than what is stored."""
    return [
        (replace(found, maps=torch.from_numpy(found.maps).half().numpy()), records)  # numpy needs 70 times as long
        for found, records in answer_batch(load_spec(spec), how, queries, map_side)
    ]


def bytes_per_query(samples: int, layers: int, heads: int, cells: float) -> int:
    """Disk that the answers to a query take: maps of four numbers in float16, and their statistics in float32."""
    return round((samples + 1) * 4 * layers * heads * (2 * cells + 4 * len(STATISTICS)))


def mean_cells(lvlm: LVLM, queries: pd.DataFrame, sizes: int = 20) -> float:
    """Cells of an image's grid, the mean over queries whose images have the most frequent sizes."""
    counts = queries[["width", "height"]].value_counts().head(sizes)
    cells = []
    for size in counts.index:
        try:
            cells.append(lvlm.prompt(Image.new("RGB", size), "object").grid.cells.numel())
        except ImageRefused:
            cells.append(0)
    return float(np.average(cells, weights=counts))


def stored_bytes(spec: LVLMSpec, how: Sampling, map_side: int | None, queries: pd.DataFrame) -> int:
    """Disk that the answers to one of these queries take, the mean over them."""
    cells = map_side**2 if map_side else mean_cells(load_spec(spec), queries)
    config = lvlm_config(spec).get_text_config()
    return bytes_per_query(how.samples, len(attention_layers(config)), config.num_attention_heads, cells)


def cannot_be_asked(spec: LVLMSpec) -> str | None:
    """Why P(True) cannot be asked of an LVLM; None if it can be."""
    try:
        source, revision = model_files(lvlm_source(spec), spec.revision)
        yes_no_tokens(AutoTokenizer.from_pretrained(source, revision=revision))
    except CannotBeAsked as error:
        return str(error)


def collect_p_true(spec: LVLMSpec, run: Run, folder: Path) -> pd.DataFrame:
    """query_id, candidate, p_true of every answer of a run, asked shard by shard; finished shards are read again, and
    the LVLM is loaded only for others.

    `folder` gets one Parquet file a shard, in a folder named by the run's key and the question.
    """
    folder = Path(folder) / digest([run.key, VERIFICATION, YES, NO])[:16]
    folder.mkdir(parents=True, exist_ok=True)
    queries, files = run.queries.set_index("query_id"), {shard: folder / f"{shard:05d}.parquet" for shard in run.shards}
    missing = {shard: run.records(shard) for shard, path in files.items() if not path.exists()}
    left = sum(records["query_id"].nunique() for records in missing.values())
    with progress(f"P(True) of {spec.name}", len(queries), len(queries) - left) as told:
        for shard, records in missing.items():
            frames = []
            for name, rows in records.groupby("query_id", sort=False):
                frames.append(_ask_query(load_spec(spec), queries.loc[name], rows))
                told.update()
            with replacing(files[shard]) as aside:
                pd.concat(frames, ignore_index=True).to_parquet(aside, index=False)
    return pd.concat(map(pd.read_parquet, files.values()), ignore_index=True)


def _ask_query(lvlm: LVLM, query: pd.Series, rows: pd.DataFrame) -> pd.DataFrame:
    """query_id, candidate, p_true of the answers to one query; an answer that failed is not asked about."""
    answers = rows["text"].where(rows["failure"] == "", "")
    scores = np.full(len(rows), np.nan)
    if answers.any():
        image = read_annotated_image(query["image"], query["width"], query["height"])
        scores = ask_p_true(lvlm, image, query["category"], list(answers))
    return rows[["query_id", "candidate"]].assign(p_true=scores)
