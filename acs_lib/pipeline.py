"""The stages that the notebooks and the command line share: data -> queries -> a run directory per LVLM and split."""

import functools
import hashlib
import logging
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

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


def lvlm_digest(spec: LVLMSpec) -> str:
    """SHA-256 of local weights, or name and revision of those on a hub."""
    folder = Path(lvlm_source(spec))
    if not folder.is_dir():
        return f"{spec.source}@{spec.revision}"
    total = hashlib.sha256()
    for path in sorted(folder.glob("model*.safetensors")):
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


def collect_run(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str) -> Run:
    """Answers and attention of one LVLM on one split; finished shards are reused if nothing they depend on changed."""
    queries, _ = load_split(profile, dataset, split)
    lvlm = load(lvlm_spec)
    how = sampling.Sampling(**profile.sampling.model_dump())
    with Image.open(queries["image"].iloc[0]) as image:
        cells = lvlm.prompt(image.convert("RGB"), queries["category"].iloc[0]).grid.cells.numel()
    answers = (how.samples + 1) * 4 * lvlm.layers * lvlm.heads
    key_parts = {
        "lvlm": lvlm_spec.model_dump(),
        "weights": lvlm_digest(lvlm_spec),
        "sampling": profile.sampling.model_dump(),
        "data": data_digest(dataset, split),
    }
    return collect(
        run_folder(profile, lvlm_spec, dataset, split), queries, functools.partial(answer_batch, lvlm, how), key_parts,
        bytes_per_query=answers * (2 * cells + 4 * 4), batch=profile.batch_queries,
        progress=f"{lvlm_spec.name} on {dataset.name}, {split}",
    )  # fmt: skip


def data_digest(dataset: DatasetSpec, split: str) -> str:
    """Digest of a rendered split's pixels, or of the annotation file."""
    annotations, _ = split_files(dataset, split)
    content = coco.read_annotations(annotations).dataset
    return content.get("info", {}).get("digest") or hashlib.sha256(annotations.read_bytes()).hexdigest()


def run_folder(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str) -> Path:
    return paths.RUNS / profile.name / lvlm_spec.name / f"{dataset.name}-{split}"
