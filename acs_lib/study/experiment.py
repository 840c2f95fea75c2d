"""One LVLM on one dataset, resolved once: what every table, figure and ablation is a function of."""

import functools
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from acs_lib import paths
from acs_lib.core.candidates import Candidates
from acs_lib.core.files import digest
from acs_lib.core.progress import telling
from acs_lib.core.sources import imported_files
from acs_lib.evaluation.accuracy import make_choices
from acs_lib.method.baselines import SELECTORS, spatial_entropy
from acs_lib.method.baselines.likelihood import p_true
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import Selector, acs_free, acs_learned, all_heads, stored_scores
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile
from acs_lib.runs.local import backend
from acs_lib.runs.store import Run
from acs_lib.study.stages import Study, frame_digest, kept

Frames = pd.DataFrame | tuple[pd.DataFrame, ...]
NEEDS_MAPS = spatial_entropy(()).name  # of the selectors, this one


def labelled(frame: pd.DataFrame, lvlm: LVLMSpec, dataset: DatasetSpec) -> pd.DataFrame:
    """The frame with leading columns lvlm, dataset and condition ('' for an LVLM without one)."""
    names = {"lvlm": lvlm.name, "dataset": dataset.name, "condition": lvlm.condition or ""}
    return frame.assign(**names)[[*names, *frame]]


@dataclass(frozen=True)
class Experiment:
    """The answers of one LVLM to the test split of one dataset, and what was learned to choose among them with.

    profile: whose settings hold (pool, draws of the bootstrap)
    run: the answers
    predictions: query_id, candidate, iou, predicted_iou of every answer with a box; None before a regressor is trained
    head_set: D_c; None before it was found
    p_true: query_id, candidate, p_true; None for an LVLM that is not asked
    folder: where the choices of every method are kept, so that every notebook need not make them; None: nowhere
    """

    profile: Profile
    lvlm: LVLMSpec
    dataset: DatasetSpec
    run: Run
    predictions: pd.DataFrame | None = None
    head_set: HeadSet | None = None
    p_true: pd.DataFrame | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.lvlm.name} on {self.dataset.name}"

    def labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the names of this experiment."""
        return labelled(frame, self.lvlm, self.dataset)

    def queries(self, size: str | None = None) -> pd.DataFrame:
        """The queries whose image could be read, of one size or of all."""
        queries = self.run.queries[~self.run.queries["query_id"].isin(self.run.unanswered())]
        return queries if size is None else queries[queries["size"] == size]

    @functools.cached_property
    def small(self) -> pd.DataFrame:
        """The queries for small objects."""
        return self.queries("small")

    def candidates(self, queries: pd.DataFrame | None = None, maps: bool = False) -> Iterator[Candidates]:
        """The candidates of some queries (by default of those for small objects), one query after the other."""
        names = set((self.small if queries is None else queries)["query_id"])
        return (found for found in self.run.candidates(maps) if found.query_id in names)

    @functools.cached_property
    def selectors(self) -> dict[str, Selector]:
        """All methods of the main table by name; ValueError before the regressor is trained and D_c is found."""
        if self.predictions is None or self.head_set is None:
            raise ValueError(f"{self}: no regressor or no D_c yet; run the notebooks up to 04 first")
        chosen = self.head_set
        found = [
            *SELECTORS.values(),
            *([] if self.p_true is None else [p_true(stored_scores(self.p_true, "p_true"))]),
            spatial_entropy(chosen.heads),
            all_heads(chosen.coordinates),
            acs_free(chosen.heads, chosen.coordinates),
            acs_learned(stored_scores(self.predictions, "predicted_iou")),
        ]
        return {selector.name: selector for selector in found}

    def choose(self, methods: Container[str], queries: pd.DataFrame) -> pd.DataFrame:
        """The choices (see evaluation.accuracy) of the named methods and of the controls, on some queries."""
        selectors = [selector for name, selector in self.selectors.items() if name in methods]
        candidates = self.candidates(queries, NEEDS_MAPS in methods)
        return make_choices(candidates, self.run.truth, selectors, self.profile.pool)

    @functools.cached_property
    def choices(self) -> pd.DataFrame:
        """The choices of every method on every query (all sizes)."""

        def choose() -> pd.DataFrame:
            return self.choose(self.selectors, self.queries())

        if self.folder is None:
            return choose()
        frames = [None if frame is None else frame_digest(frame) for frame in (self.predictions, self.p_true)]
        head_set = None if self.head_set is None else asdict(self.head_set)
        return kept(
            self.folder / "choices",
            digest([self.run.key, self.profile.pool, head_set, frames, code_of(__name__)]),
            choose,
        )

    def choices_on(self, size: str) -> pd.DataFrame:
        """The choices of every method on the queries of one size."""
        return self.choices[self.choices["query_id"].isin(self.queries(size)["query_id"])]


@functools.cache
def code_of(module: str) -> list[str]:
    """The text of a module of the library and of all that it imports: what a kept frame follows from besides its
    inputs."""
    files = imported_files(f"import {module}", paths.LIBRARY)
    return [path.read_text(encoding="utf-8") for path in sorted(files)]


def resolve(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec) -> Experiment:
    """What a study has of one LVLM on one dataset; sampled and trained now unless it is there, D_c as found last."""
    run = study.run(lvlm, dataset, "test")
    predictions, asked = study.predicted(lvlm, run), study.p_true(lvlm, dataset)
    return Experiment(study.profile, lvlm, dataset, run, predictions, study.head_set(lvlm), asked, run.folder)


def by_first_regressor(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, run: Run) -> Experiment:
    """The experiment of any run by the first regressor, which is the one that `ground` has."""
    return Experiment(study.profile, lvlm, dataset, run, study.predicted(lvlm, run, [0]), study.head_set(lvlm))


def stacked(experiments: list[Experiment], table: Callable[[Experiment], pd.DataFrame]) -> pd.DataFrame:
    """A table of every experiment, with leading columns lvlm, dataset and condition, one below the other."""
    return pd.concat([e.labelled(table(e)) for e in experiments], ignore_index=True)


def experiments(study: Study, learned: bool = True) -> list[Experiment]:
    """Every (LVLM, dataset) column of a study, resolved; without `learned` the answers alone."""
    if learned:
        return [resolve(study, *column) for column in study.columns]
    return [Experiment(study.profile, *column, study.run(*column, "test")) for column in study.columns]


def by_lvlm(study: Study, table: Callable[[Study, list[Experiment]], Frames]) -> Frames:
    """A table, or several, of a study and its experiments, made of each LVLM alone, one below the other: side by side
    where their LVLMs are also sampled so (`local.backend`). Every process reads from disk what the study has."""
    with backend(study.profile.lvlms) as run:
        parts = list(run(functools.partial(_of_lvlm, table, study.profile), study.profile.lvlms))
    if isinstance(parts[0], tuple):
        return tuple(pd.concat(each, ignore_index=True) for each in zip(*parts))
    return pd.concat(parts, ignore_index=True)


def _of_lvlm(table: Callable, profile: Profile, lvlm: LVLMSpec) -> Frames:
    study = Study(profile.model_copy(update={"lvlms": (lvlm,)}))
    with telling():
        return table(study, experiments(study))
