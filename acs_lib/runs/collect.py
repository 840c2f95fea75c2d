"""The stages that the notebooks and the command line share: data -> queries -> a run directory per LVLM and split.

What is finished is read without an LVLM and without transformers, which takes seconds to import.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from acs_lib import paths
from acs_lib.core.images import tags_told
from acs_lib.datasets.splits import data_digest, list_digest, load_split, split_files
from acs_lib.lvlms.checkpoint import lvlm_digest, pinned
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile
from acs_lib.runs.store import SHARD, UNREADABLE, CandidatesWithRecords, Run, fill, finished, stored_queries

log = logging.getLogger(__name__)


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
        if dataset.kind != "scenes" and (told := tags_told(images.itertuples(index=False))):
            log.warning("%s, %s: %s", dataset.name, split, told)
    if not any(Path(image).is_file() for image in queries["image"]):
        raise ValueError(
            f"no image of {dataset.name}, {split} is under {split_files(dataset, split)[1]}, for instance no "
            f"{queries['image'].iloc[0]}; give the folder that they lie in (those of COCO and Objects365 "
            "`acs data` fetches or links)"
        )

    if not loaded and finished(folder, queries):  # nothing is written, so other processes may read it, too
        return Run(folder)

    from acs_lib.runs import answer  # late: a finished run needs no LVLM

    settings = lvlm_spec, how, profile.map_side
    return fill(
        folder, queries, functools.partial(answer.answer_stored, *settings), key_parts,
        functools.partial(answer.stored_bytes, *settings, queries),
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
    answers to its first queries are `unparsed`; those about absent objects are to hold no box."""

    def watching(answer: Callable, batches: list[pd.DataFrame]) -> Iterator[list[CandidatesWithRecords]]:
        seen = []
        enough = min(first, sum((batch["size"] != "absent").sum() for batch in batches))
        for answers, batch in zip(backend(answer, batches), batches):
            for candidates, (record, *_) in answers:
                if record["failure"].startswith(UNREADABLE):
                    log.warning("no answer to %s: %s", candidates.query_id, record["failure"])
            if len(seen) < enough:
                seen += [records for (_, records), size in zip(answers, batch["size"]) if size != "absent"]
                if len(seen) >= enough and (warning := unparsed(list(itertools.chain(*seen)), name)):
                    log.warning(warning)
            yield answers

    return watching


def run_folder(profile: Profile, lvlm_spec: LVLMSpec, dataset: DatasetSpec, split: str) -> Path:
    """The run directory of one LVLM on one split."""
    return paths.RUNS / profile.name / lvlm_spec.name / f"{dataset.name}-{split}"
