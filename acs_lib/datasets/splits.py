"""A split of a dataset: its files, rendered if need be; the queries that a profile takes of it; and its digest."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core.files import digest, file_digest, query_key
from acs_lib.core.sources import imported_files
from acs_lib.datasets import coco, phrases
from acs_lib.embedded import scenes
from acs_lib.profiles import DatasetSpec, Profile, Split


def split_files(dataset: DatasetSpec, split: Split) -> tuple[Path, Path]:
    """Annotation file and image folder of a split; a rendered world is rendered if it is not there yet."""
    spec = dataset.splits[split]
    if dataset.kind == "scenes":
        assert spec.images is not None and spec.seed is not None
        folder = paths.DATA / dataset.name / f"{split}-{spec.images}-{spec.seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        scenes.write_split(folder, dataset.name, spec.images, spec.seed)
        return folder / "annotations.json", folder / "images"
    assert spec.annotations is not None and spec.folder is not None
    return paths.ROOT / spec.annotations, paths.ROOT / spec.folder


@functools.cache
def parsed(
    annotations: Path, images: Path, units: str | None, small: float, large: float, states: tuple
) -> tuple[pd.DataFrame, pd.DataFrame, dict[int, list]]:
    """All queries of an annotation file (their ids without the split's name), those about absent objects last, and the
    funnel, see coco.load_queries; and image_id -> (id, bbox) of all that is annotated. A file with `units` is one of
    phrases, of which nobody knows where they would fit as well: there is none about absent objects. Parsed once a
    process, and again if `states`, of the file and the folder, are others."""
    found = phrases.read_phrases(annotations, images, units) if units else coco.read_annotations(annotations)
    boxes = {image_id: [(a["id"], a["bbox"]) for a in objects] for image_id, objects in found.imgToAnns.items()}
    queries, funnel = coco.find_queries("", annotations, found, images, small, large)
    if len(queries) and not units:
        queries = pd.concat([queries, coco.absent_queries(found, queries)], ignore_index=True)
    return queries, funnel, boxes


def _annotated(
    profile: Profile, dataset: DatasetSpec, split: Split
) -> tuple[pd.DataFrame, pd.DataFrame, dict[int, list]]:
    files, units = split_files(dataset, split), dataset.splits[split].units
    states = [path.stat() if path.exists() else None for path in files]
    return parsed(*files, units, profile.small, profile.large, tuple(s and (s.st_mtime_ns, s.st_size) for s in states))


def in_share(image_ids: pd.Series, share: tuple[float, float]) -> pd.Series:
    """Which images [n] are in a split's share, by a hash of their ids."""
    hashed = image_ids.map(lambda image_id: query_key(str(image_id)) / 2**32)
    return (hashed >= share[0]) & (hashed < share[1])


def load_split(profile: Profile, dataset: DatasetSpec, split: Split) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The queries of a split (the first of each size in the file's order, up to the profile's limit) and the funnel.

    Raises ValueError where none is left.
    """
    queries, funnel, _ = _annotated(profile, dataset, split)
    if queries.empty:
        raise ValueError(f"{split_files(dataset, split)[0]} holds no query: no category that occurs once in its image")
    spec, limits = dataset.splits[split], dataset.splits[split].queries
    shared = queries[in_share(queries["image_id"], spec.share)]
    place = shared.groupby("size").cumcount()
    kept = shared[place < shared["size"].map(limits).fillna(0).astype(float)].reset_index(drop=True)
    if kept.empty:
        raise ValueError(
            f"no query is left of {dataset.name}, {split}: its images' share {spec.share} holds "
            f"{shared['size'].value_counts().to_dict() or 'none'} of {queries['size'].value_counts().to_dict()}, of "
            f"which the profile takes at most {limits}; change `share` or `queries` in the profile"
        )
    chosen = pd.DataFrame({"step": "queries taken", "count": [len(kept)]})
    kept["query_id"] = f"{dataset.name}-{split}" + kept["query_id"]
    return kept, pd.concat([funnel, chosen], ignore_index=True)


def other_boxes(profile: Profile, dataset: DatasetSpec, split: Split, queries: pd.DataFrame) -> dict[str, np.ndarray]:
    """query_id -> boxes [m, 4] in pixels of all other annotated objects of the query's image that have a box."""
    _, _, annotated = _annotated(profile, dataset, split)
    others = {}
    for query in queries.itertuples():
        own = int(query.query_id.rsplit("/", 1)[1])
        found = [bbox for name, bbox in annotated[query.image_id] if name != own and bbox]
        boxes = np.array(found, float).reshape(-1, 4)
        others[query.query_id] = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return others


def data_digest(dataset: DatasetSpec, split: Split) -> str:
    """Digest of a rendered split's pixels, or of the annotation file."""
    annotations, _ = split_files(dataset, split)
    if dataset.kind == "scenes":
        return json.loads(annotations.read_text(encoding="utf-8"))["info"]["digest"]
    if not annotations.exists():
        coco.read_annotations(annotations)  # which says what belongs there
    return file_digest(annotations)


def list_digest(profile: Profile, dataset: DatasetSpec, split: Split) -> str:
    """Digest of all that the queries of a split, and where their images are said to lie, follow from: the data, the
    settings, the folder and the code. A list that was stored with it need not be made anew from the annotation file."""
    code = [path.read_text(encoding="utf-8") for path in sorted(imported_files(f"import {__name__}", paths.LIBRARY))]
    settings = [dataset.name, split, dataset.splits[split].model_dump(), profile.small, profile.large]
    return digest([code, settings, data_digest(dataset, split), str(split_files(dataset, split)[1])])
