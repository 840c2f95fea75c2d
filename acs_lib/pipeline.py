"""The stages that the notebooks and the command line share: data -> queries -> a run directory per LVLM and split."""

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig

from acs_lib import paths, sampling
from acs_lib.datasets import coco, scenes
from acs_lib.lvlms.base import LVLM, load_lvlm
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile
from acs_lib.store import Answers, Run, collect, query_key

log = logging.getLogger(__name__)


def lvlm_source(spec: LVLMSpec) -> str:
    """The folder (under the project's root) or hub name to load from."""
    local = paths.ROOT / spec.source
    return str(local) if local.exists() else spec.source


@functools.lru_cache(maxsize=1)
def load(spec: LVLMSpec) -> LVLM:
    """The LVLM of a profile; kept while the next call asks for the same."""
    return load_lvlm(lvlm_source(spec), spec.name, spec.revision, spec.dtype, question=spec.question)


def lvlm_config(spec: LVLMSpec) -> PreTrainedConfig:
    """The LVLM's configuration, without its weights."""
    return AutoConfig.from_pretrained(lvlm_source(spec), revision=spec.revision)


def lvlm_digest(spec: LVLMSpec) -> str:
    """SHA-256 of local weights, or name and revision of those on a hub."""
    folder = Path(lvlm_source(spec))
    if not folder.is_dir():
        return f"{spec.source}@{spec.revision}"
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.read_bytes())
    return total.hexdigest()


def split_files(dataset: DatasetSpec, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split; a rendered world is rendered if it is not there yet."""
    spec = dataset.splits[split]
    if dataset.kind == "scenes":
        folder = paths.DATA / dataset.name / f"{split}-{spec.images}-{spec.seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        scenes.write_split(folder, dataset.name, spec.images, spec.seed)
        return folder / "annotations.json", folder / "images"
    return paths.ROOT / spec.annotations, paths.ROOT / spec.folder


def load_split(profile: Profile, dataset: DatasetSpec, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The queries of a split (the first of each size in the file's order, up to the profile's limit) and the funnel."""
    queries, funnel = coco.load_queries(
        f"{dataset.name}-{split}", *split_files(dataset, split), profile.small, profile.large
    )
    spec, limits = dataset.splits[split], dataset.splits[split].queries
    hashed = queries["image_id"].map(lambda image_id: query_key(str(image_id)) / 2**32)
    queries = queries[(hashed >= spec.share[0]) & (hashed < spec.share[1])]
    place = queries.groupby("size").cumcount()
    kept = queries[place < queries["size"].map(limits).fillna(0)].reset_index(drop=True)
    chosen = pd.DataFrame({"step": "queries taken", "count": [len(kept)]})
    return kept, pd.concat([funnel, chosen], ignore_index=True)


def answer_batch(lvlm: LVLM, how: sampling.Sampling, queries: pd.DataFrame) -> list[Answers]:
    """Candidates and records of a batch of queries. Queries whose prompts have the same length and grid decode
    together. An image that cannot be read is logged and gives no answers; its query stays in queries.parquet."""
    prompts = {}
    for query in queries.itertuples():
        try:
            with Image.open(query.image) as image:
                prompts[query.query_id] = lvlm.prompt(image.convert("RGB"), query.category)
        except (OSError, UnidentifiedImageError) as error:
            log.warning("no answer to %s: %s (%s)", query.query_id, query.image, error)
    category = dict(zip(queries["query_id"], queries["category"]))
    alike: dict[tuple, list[str]] = {}
    for query_id, prompt in prompts.items():
        alike.setdefault((prompt.length, tuple(prompt.grid.cells.flatten().tolist())), []).append(query_id)
    found = {}
    for group in alike.values():
        answers = sampling.candidates(
            lvlm, [prompts[name] for name in group], group, [query_key(name) for name in group],
            [category[name] for name in group], how,
        )  # fmt: skip
        found.update(zip(group, answers))
    return [found[name] for name in queries["query_id"] if name in found]


def answer_stored(spec: LVLMSpec, how: sampling.Sampling, map_side: int | None, queries: pd.DataFrame) -> list[Answers]:
    """`answer_batch` as a run keeps it, a function of plain settings, so that a process elsewhere computes the same;
    the LVLM is loaded once a process."""
    answers = answer_batch(load(spec), how, queries)
    if map_side is None:
        return answers
    return [(replace(found, maps=averaged(found.maps, map_side)), records) for found, records in answers]


def averaged(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps [n, 4, L, H, side, side] float32: means over equal parts of the image of maps [n, 4, L, H, h, w], whatever
    the shape of their grid. NaN (an answer without a box) stays."""
    pooled = functional.adaptive_avg_pool2d(torch.from_numpy(maps).flatten(1, 3), side)
    return pooled.unflatten(1, maps.shape[1:4]).numpy()


def collect_run(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str, engine: Callable = map) -> Run:
    """Answers and attention of one LVLM on one split; finished shards are reused if nothing they depend on changed.

    `engine`: see store.collect. Raises ValueError if no image of the split is on disk.
    """
    queries, _ = load_split(profile, dataset, split)
    shown = next((query for query in queries.itertuples() if Path(query.image).is_file()), None)
    if shown is None:
        raise ValueError(
            f"no image of {dataset.name}, {split} is under {split_files(dataset, split)[1]}; `acs data` fetches them "
            "or links those that you have"
        )
    how = sampling.Sampling(**profile.sampling.model_dump())
    if profile.map_side:
        cells = profile.map_side**2
    else:
        with Image.open(shown.image) as image:
            cells = load(lvlm_spec).prompt(image.convert("RGB"), shown.category).grid.cells.numel()
    config = lvlm_config(lvlm_spec).get_text_config()
    maps = (how.samples + 1) * 4 * config.num_hidden_layers * config.num_attention_heads
    key_parts = {
        "lvlm": lvlm_spec.model_dump(),
        "weights": lvlm_digest(lvlm_spec),
        "sampling": profile.sampling.model_dump(),
        "data": data_digest(dataset, split),
    }
    if profile.map_side:
        key_parts["map_side"] = profile.map_side
    return collect(
        run_folder(profile, lvlm_spec, dataset, split), queries,
        functools.partial(answer_stored, lvlm_spec, how, profile.map_side), key_parts,
        bytes_per_query=maps * (2 * cells + 4 * 4), batch=profile.batch_queries,
        progress=f"{lvlm_spec.name} on {dataset.name}, {split}", engine=engine,
    )  # fmt: skip


def data_digest(dataset: DatasetSpec, split: str) -> str:
    """Digest of a rendered split's pixels, or of the annotation file."""
    annotations, _ = split_files(dataset, split)
    content = coco.read_annotations(annotations).dataset
    return content.get("info", {}).get("digest") or hashlib.sha256(annotations.read_bytes()).hexdigest()


def run_folder(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str) -> Path:
    return paths.RUNS / profile.name / lvlm_spec.name / f"{dataset.name}-{split}"
