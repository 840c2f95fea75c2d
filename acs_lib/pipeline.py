"""The stages that the notebooks and the command line share: data -> queries -> a run directory per LVLM and split."""

import functools
import gc
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig

from acs_lib import paths, sampling
from acs_lib.candidates import STATISTICS
from acs_lib.datasets import coco, scenes
from acs_lib.lvlms.base import LVLM, ImageRefused, load_lvlm
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile
from acs_lib.store import NO_FILE, SHARD, UNREADABLE, Answers, Run, collect, query_key, unread

log = logging.getLogger(__name__)
LVLM_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, tokenizer, processor, chat template
NOT_THE_LVLM = ("head_set.json", "regressor.safetensors", "recipe.json")  # what else may lie beside them


def lvlm_source(spec: LVLMSpec) -> str:
    """The folder (under the project's root) or hub name to load from."""
    local = paths.ROOT / spec.source
    return str(local) if local.exists() else spec.source


_loaded: dict[LVLMSpec, LVLM] = {}  # the last one


def load(spec: LVLMSpec) -> LVLM:
    """The LVLM of a profile; kept while the next call asks for the same. Another one is dropped before this one is
    loaded: a GPU need not hold two."""
    if spec not in _loaded:
        _loaded.clear()
        gc.collect()
        torch.cuda.empty_cache()
        lvlm = load_lvlm(lvlm_source(spec), spec.name, spec.revision, spec.dtype, question=spec.question)
        lvlm.limit(**spec.limits)
        _loaded[spec] = lvlm
    return _loaded[spec]


def lvlm_config(spec: LVLMSpec) -> PreTrainedConfig:
    """The LVLM's configuration, without its weights."""
    return AutoConfig.from_pretrained(lvlm_source(spec), revision=spec.revision)


def lvlm_digest(spec: LVLMSpec) -> str:
    """SHA-256 of a local folder's weights and settings, or name and revision of those on a hub."""
    folder = Path(lvlm_source(spec))
    if not folder.is_dir():
        return f"{spec.source}@{spec.revision}"
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in LVLM_FILES or path.name in NOT_THE_LVLM:
            continue
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
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
    """The queries of a split (the first of each size in the file's order, up to the profile's limit) and the funnel.

    Raises ValueError where none is left.
    """
    queries, funnel = coco.load_queries(
        f"{dataset.name}-{split}", *split_files(dataset, split), profile.small, profile.large
    )
    if queries.empty:
        raise ValueError(f"{split_files(dataset, split)[0]} holds no query: no category that occurs once in its image")
    spec, limits = dataset.splits[split], dataset.splits[split].queries
    hashed = queries["image_id"].map(lambda image_id: query_key(str(image_id)) / 2**32)
    shared = queries[(hashed >= spec.share[0]) & (hashed < spec.share[1])]
    place = shared.groupby("size").cumcount()
    kept = shared[place < shared["size"].map(limits).fillna(0).astype(float)].reset_index(drop=True)
    if kept.empty:
        raise ValueError(
            f"no query is left of {dataset.name}, {split}: its images' share {spec.share} holds "
            f"{shared['size'].value_counts().to_dict() or 'none'} of {queries['size'].value_counts().to_dict()}, of "
            f"which the profile takes at most {limits}; change `share` or `queries` in the profile"
        )
    chosen = pd.DataFrame({"step": "queries taken", "count": [len(kept)]})
    return kept, pd.concat([funnel, chosen], ignore_index=True)


def other_boxes(dataset: DatasetSpec, split: str, queries: pd.DataFrame) -> dict[str, np.ndarray]:
    """query_id -> boxes [m, 4] in pixels of all other annotated objects of the query's image."""
    annotations = coco.read_annotations(split_files(dataset, split)[0])
    others = {}
    for query in queries.itertuples():
        own = int(query.query_id.rsplit("/", 1)[1])
        found = [a["bbox"] for a in annotations.imgToAnns[query.image_id] if a["id"] != own]
        boxes = np.array(found, float).reshape(-1, 4)
        others[query.query_id] = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return others


def read_image(path: str, width: int, height: int) -> Image.Image:
    """An RGB image of the size that the annotations say; OSError, naming the file, for anything else."""
    try:
        with Image.open(path) as image:
            if image.size != (width, height):
                raise OSError(f"it has {image.width}x{image.height} px, the annotations say {width}x{height}")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise OSError(f"{path}: {NO_FILE}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error


def answer_batch(
    lvlm: LVLM, how: sampling.Sampling, queries: pd.DataFrame, map_side: int | None = None
) -> list[Answers]:
    """Candidates and records of a batch of queries (`map_side`: see sampling.candidates). An image that cannot be read
    or shown to the LVLM gives one row that says why (see store.unread)."""
    prompts, found = {}, {}
    for query in queries.itertuples():
        try:
            image = read_image(query.image, query.width, query.height)
            prompts[query.query_id] = lvlm.prompt(image, query.category)
        except (OSError, ImageRefused) as error:
            log.warning("no answer to %s: %s", query.query_id, error)
            found[query.query_id] = unread(
                query.query_id, query.category, query.width, query.height, lvlm.layers, lvlm.heads, str(error)
            )
    if prompts:
        category = dict(zip(queries["query_id"], queries["category"]))
        answers = sampling.candidates(
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


def answer_stored(spec: LVLMSpec, how: sampling.Sampling, map_side: int | None, queries: pd.DataFrame) -> list[Answers]:
    """`answer_batch` as a run keeps it, a function of plain settings, so that a process elsewhere computes the same;
    the LVLM is loaded once a process. Maps are float16, so that a worker sends no more than what is stored."""
    return [
        (replace(found, maps=found.maps.astype(np.float16)), records)
        for found, records in answer_batch(load(spec), how, queries, map_side)
    ]


def bytes_per_query(samples: int, layers: int, heads: int, cells: float) -> int:
    """Disk that the answers to a query take: maps of four numbers in float16, and their statistics in float32."""
    return round((samples + 1) * 4 * layers * heads * (2 * cells + 4 * len(STATISTICS)))


def collect_run(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str, engine: Callable = map) -> Run:
    """Answers and attention of one LVLM on one split; finished batches are reused if nothing they depend on changed.

    `engine`: see store.collect. Raises ValueError if no image of the split is on disk.
    """
    queries, _ = load_split(profile, dataset, split)
    if not any(Path(image).is_file() for image in queries["image"]):
        raise ValueError(
            f"no image of {dataset.name}, {split} is under {split_files(dataset, split)[1]}; `acs data` fetches them "
            "or links those that you have"
        )
    how = sampling.Sampling(**profile.sampling.model_dump())
    cells = profile.map_side**2 if profile.map_side else mean_cells(load(lvlm_spec), queries)
    config = lvlm_config(lvlm_spec).get_text_config()
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
        bytes_per_query=bytes_per_query(how.samples, config.num_hidden_layers, config.num_attention_heads, cells),
        batch=profile.batch_queries,
        progress=f"{lvlm_spec.name} on {dataset.name}, {split}", engine=watched(engine, lvlm_spec.name),
    )  # fmt: skip


def data_digest(dataset: DatasetSpec, split: str) -> str:
    """Digest of a rendered split's pixels, or of the annotation file."""
    annotations, _ = split_files(dataset, split)
    if dataset.kind == "scenes":
        return json.loads(annotations.read_text())["info"]["digest"]
    with annotations.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def watched(engine: Callable, name: str, first: int = SHARD) -> Callable:
    """The engine (see store.collect), which warns, once, if the answers to its first queries are `unparsed`."""

    def watching(answer: Callable, batches: list[pd.DataFrame]) -> Iterator[list[Answers]]:
        seen = []
        enough = min(first, sum(len(batch) for batch in batches))
        for answers in engine(answer, batches):
            if len(seen) < enough:
                seen += [records for _, records in answers]
                if len(seen) >= enough and (warning := unparsed(list(itertools.chain(*seen)), name)):
                    log.warning(warning)
            yield answers

    return watching


def run_folder(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str) -> Path:
    return paths.RUNS / profile.name / lvlm_spec.name / f"{dataset.name}-{split}"
