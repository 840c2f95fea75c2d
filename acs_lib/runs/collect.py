"""The stages that the notebooks and the command line share: data -> queries -> a run directory per LVLM and split."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from acs_lib import paths
from acs_lib.core.candidates import STATISTICS
from acs_lib.core.files import digest, query_key, replacing
from acs_lib.core.images import read_annotated_image, tags_told
from acs_lib.datasets.splits import data_digest, list_digest, load_split, split_files
from acs_lib.lvlms.adapter import LVLM, ImageRefused
from acs_lib.lvlms.checkpoint import lvlm_digest, pinned
from acs_lib.lvlms.load import load_spec, lvlm_config
from acs_lib.method import sampling
from acs_lib.method.baselines.p_true import NO, VERIFICATION, YES, ask_p_true
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile, Sampling
from acs_lib.runs.store import SHARD, UNREADABLE, CandidatesWithRecords, Run, fill, finished, stored_queries, unread

log = logging.getLogger(__name__)


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


def collect_run(
    profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str, backend: Callable = map
) -> Run:
    """Answers and attention of one LVLM on one split; finished batches are reused if nothing they depend on changed.
    A finished run needs neither the annotations parsed nor the LVLM loaded.

    `backend`: see runs.store.fill. Raises ValueError if no image of the split is on disk.
    """
    lvlm_spec = pinned(lvlm_spec)  # in the key too, and for workers elsewhere
    how = profile.sampling
    key_parts = {
        "lvlm": lvlm_spec.model_dump(), "weights": lvlm_digest(lvlm_spec),
        "sampling": how.model_dump(), "data": data_digest(dataset, split),
    }  # fmt: skip
    if profile.map_side:
        key_parts["map_side"] = profile.map_side
    folder, listed = run_folder(profile, lvlm_spec, dataset, split), list_digest(profile, dataset, split)
    queries = stored_queries(folder, key_parts, listed)
    if loaded := queries is None:
        queries, _ = load_split(profile, dataset, split)
        images = queries.drop_duplicates("image")[["image", "width", "height"]]
        if dataset.kind == "coco" and (told := tags_told(images.itertuples(index=False))):
            log.warning("%s, %s: %s", dataset.name, split, told)
    if not any(Path(image).is_file() for image in queries["image"]):
        raise ValueError(
            f"no image of {dataset.name}, {split} is under {split_files(dataset, split)[1]}, for instance no "
            f"{queries['image'].iloc[0]}; give the folder that they lie in (those of COCO and Objects365 "
            "`acs data` fetches or links)"
        )

    if not loaded and finished(folder, queries):  # nothing is written, so other processes may read it, too
        return Run(folder)

    def disk() -> int:
        cells = profile.map_side**2 if profile.map_side else mean_cells(load_spec(lvlm_spec), queries)
        config = lvlm_config(lvlm_spec).get_text_config()
        return bytes_per_query(how.samples, config.num_hidden_layers, config.num_attention_heads, cells)

    return fill(
        folder, queries, functools.partial(answer_stored, lvlm_spec, how, profile.map_side), key_parts, disk,
        batch=profile.batch_queries, progress=f"{lvlm_spec.name} on {dataset.name}, {split}",
        backend=warn_if_unparsed(backend, lvlm_spec.name), listed=listed,
    )  # fmt: skip


def unparsed(records: list[dict], name: str) -> str | None:
    """A warning with three raw answers, if fewer than half of an LVLM's answers to images that it saw hold a box."""
    records = [record for record in records if not record["failure"].startswith(UNREADABLE)]
    failed = [record["text"] for record in records if record["failure"]]
    if 2 * len(failed) <= len(records):
        return None
    share = 1 - len(failed) / len(records)
    return (
        f"warning: of the first {len(records)} answers of {name} only {share:.0%} hold a box. If it did not "
        "understand, set its `question:` in the profile to its makers' own words, the format of the answer included, "
        "and start again. It says, for instance:\n  " + "\n  ".join(repr(text[:200]) for text in failed[:3])
    )


def warn_if_unparsed(backend: Callable, name: str, first: int = SHARD) -> Callable:
    """The backend (see runs.store.fill), which warns of every query whose image could not be read, and, once, if the
    answers to its first queries are `unparsed`."""

    def watching(answer: Callable, batches: list[pd.DataFrame]) -> Iterator[list[CandidatesWithRecords]]:
        seen = []
        enough = min(first, sum(len(batch) for batch in batches))
        for answers in backend(answer, batches):
            for candidates, (record, *_) in answers:
                if record["failure"].startswith(UNREADABLE):
                    log.warning("no answer to %s: %s", candidates.query_id, record["failure"])
            if len(seen) < enough:
                seen += [records for _, records in answers]
                if len(seen) >= enough and (warning := unparsed(list(itertools.chain(*seen)), name)):
                    log.warning(warning)
            yield answers

    return watching


def run_folder(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str) -> Path:
    """The run directory of one LVLM on one split."""
    return paths.RUNS / profile.name / lvlm_spec.name / f"{dataset.name}-{split}"


def collect_p_true(spec: LVLMSpec, run: Run, folder: Path) -> pd.DataFrame:
    """query_id, candidate, p_true of every answer of a run, asked shard by shard; finished shards are read again, and
    the LVLM is loaded only for others.

    `folder` gets one Parquet file a shard, in a folder named by the run's key and the question.
    """
    folder = Path(folder) / digest([run.key, VERIFICATION, YES, NO])[:16]
    folder.mkdir(parents=True, exist_ok=True)
    queries, parts = run.queries.set_index("query_id"), []
    for shard in run.shards:
        path = folder / f"{shard:05d}.parquet"
        if not path.exists():
            records = run.records(shard)
            groups = records.groupby("query_id", sort=False)
            frames = [_ask_query(load_spec(spec), queries.loc[name], rows) for name, rows in groups]
            with replacing(path) as aside:
                pd.concat(frames, ignore_index=True).to_parquet(aside, index=False)
        parts.append(pd.read_parquet(path))
    return pd.concat(parts, ignore_index=True)


def _ask_query(lvlm: LVLM, query: pd.Series, rows: pd.DataFrame) -> pd.DataFrame:
    """query_id, candidate, p_true of the answers to one query; an answer that failed is not asked about."""
    answers = rows["text"].where(rows["failure"] == "", "")
    scores = np.full(len(rows), np.nan)
    if answers.any():
        image = read_annotated_image(query["image"], query["width"], query["height"])
        scores = ask_p_true(lvlm, image, query["category"], list(answers))
    return rows[["query_id", "candidate"]].assign(p_true=scores)
