"""The stages of one profile, each kept on disk: runs, regressors, the discriminative heads (D_c), P(True)."""

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from acs_lib import paths
from acs_lib.core.candidates import ENTROPY, Heads
from acs_lib.core.files import digest, replacing, write_text
from acs_lib.core.progress import progress
from acs_lib.evaluation.accuracy import make_choices
from acs_lib.evaluation.bootstrap import share_interval
from acs_lib.lvlms.checkpoint import lvlm_digest
from acs_lib.method import heads, regressor
from acs_lib.method.heads import HeadSet
from acs_lib.method.origin import Origin
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import acs_free
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile, load_profile
from acs_lib.runs.collect import collect_run, run_folder
from acs_lib.runs.local import one_thread, processes
from acs_lib.runs.store import Run


@dataclass(frozen=True)
class HeadFinding:
    """How D_c was found. layers: attribution by layer with its interval, rank, selected (has heads in D_c), over n
    answers of n_images images; heads: attribution and AUROC by head, selected; head_set: D_c."""

    layers: pd.DataFrame
    heads: pd.DataFrame
    head_set: HeadSet

    @property
    def layer_scores(self) -> np.ndarray:
        """Share [layers] of the gradient attribution."""
        return self.layers["attribution"].to_numpy()

    @property
    def auroc(self) -> np.ndarray:
        """AUROC [layers, heads] of low entropy for good boxes, over all answers of the train split."""
        return self.heads.pivot(index="layer", columns="head", values="auroc").to_numpy()


def frame_digest(frame: pd.DataFrame) -> str:
    """SHA-256 of a frame's columns and values."""
    values = pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()
    return hashlib.sha256(repr(list(frame)).encode() + values).hexdigest()


def kept(path: Path, key: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame that `make` gives, kept in `path`.parquet; made anew where the file there has another key."""
    path = path.with_suffix(".parquet")
    with contextlib.suppress(OSError, ValueError):
        if pq.read_schema(path).metadata.get(b"acs-kit key") == key.encode():
            return pd.read_parquet(path)
    frame = make()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with replacing(path) as aside:
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"acs-kit key": key.encode()}), aside)
    return frame


@dataclass(frozen=True)
class _Fitting:
    """A regressor to be trained, as any process can: two run directories, settings of `regressor.train`, the key of all
    that it follows from, and where it goes."""

    train_folder: Path
    validation_folder: Path
    settings: dict
    key: str
    path: Path
    lvlm: str
    origin: Origin

    @property
    def info(self) -> Path:
        return self.path.with_suffix(".json")

    def done(self) -> bool:
        """Whether the regressor is there."""
        if not (self.path.exists() and self.info.exists()):
            return False
        return json.loads(self.info.read_text(encoding="utf-8"))["key"] == self.key

    def train(self) -> None:
        """Train it and write it."""
        train, validation = Run(self.train_folder), Run(self.validation_folder)
        with one_thread():
            model, history = regressor.train(train, validation, **self.settings)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.info.unlink(missing_ok=True)  # if this process ended here, an old key would speak for the new weights
        regressor.save(model, self.path, self.lvlm, self.origin)
        write_text(self.info, json.dumps({"key": self.key, "history": history.to_dict("records")}, indent=1))

    def predictions(self, run: Run) -> pd.DataFrame:
        """`regressor.predict` by the trained regressor, kept beside the run."""
        path, key = run.folder / f"predicted-{self.settings['seed']}", digest([run.key, self.key])
        with one_thread():
            return kept(path, key, lambda: regressor.predict(regressor.load(self.path, self.lvlm), run))


def _predict(asked: tuple[_Fitting, Path]) -> None:
    fitting, folder = asked
    fitting.predictions(Run(folder))


@dataclass(frozen=True)
class Study:
    """The stages of one profile. Runs, regressors and P(True) are redone when something that they depend on changed.
    D_c has no key: `find_heads` finds and writes it, `head_set` reads the last one."""

    profile: Profile
    _runs: dict[tuple[str, str, str], Run] = field(default_factory=dict, repr=False)  # checked once a process
    _found: dict[str, HeadFinding] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, name: str) -> "Study":
        """The study of the profile of that name; ValueError lists the valid ones."""
        return cls(load_profile(name))

    @property
    def train_set(self) -> DatasetSpec:
        """The dataset that regressor and heads come from."""
        return next(dataset for dataset in self.profile.datasets if dataset.name == self.profile.train_on)

    @property
    def columns(self) -> list[tuple[LVLMSpec, DatasetSpec]]:
        """The (LVLM, dataset) columns of the main table."""
        return list(itertools.product(self.profile.lvlms, self.profile.datasets))

    def runs(self, backend: Callable = map) -> list[tuple[str, str, str, Run]]:
        """(lvlm, dataset, split, run) of every split of every dataset; sampled now unless they are there."""
        return [
            (lvlm.name, dataset.name, split, self.run(lvlm, dataset, split, backend))
            for lvlm, dataset in self.columns
            for split in dataset.splits
        ]

    def run(self, lvlm: LVLMSpec, dataset: DatasetSpec, split: str, backend: Callable = map) -> Run:
        """The run of one split; sampled now by `backend` (see runs.store.fill) unless it is there."""
        name = lvlm.name, dataset.name, split
        if name not in self._runs:
            self._runs[name] = collect_run(self.profile, lvlm, dataset, split, backend)
        return self._runs[name]

    def origin(self, lvlm: LVLMSpec) -> Origin:
        """What D_c and the regressors of an LVLM belong to."""
        profile = self.profile
        return Origin(
            weights=lvlm_digest(lvlm), question=lvlm.question, sampling=profile.sampling, map_side=profile.map_side,
            small=profile.small,
        )  # fmt: skip

    def fit(self, lvlm: LVLMSpec, seed: int = 0, shuffle_labels: bool = False) -> AttentionIoURegressor:
        """The attention-IoU regressor of an LVLM, trained on the train split of `train_set` (or read from disk).

        The control on shuffled labels has nothing to learn and gets two epochs.
        """
        fitting = self._fitted(lvlm, seed, shuffle_labels)
        model = regressor.load(fitting.path, lvlm.name)
        if model.origin is None:  # trained by an earlier version; the key says that it is this one
            regressor.save(model, fitting.path, lvlm.name, fitting.origin)
        return model

    def fit_all(self, controls: int) -> list[AttentionIoURegressor]:
        """The first regressor of every LVLM, after all that the profile's tables ask for, `controls` on shuffled labels
        among them, were trained side by side, one a core or GPU, and what they predict is kept beside the runs."""
        used = max(1, self.profile.regressor.seeds)
        seeds = max(used, self.profile.seeds.regressor)
        wanted = [(seed, False) for seed in range(seeds)] + [(seed, True) for seed in range(controls)]
        fittings = [self._fitting(lvlm, *each) for lvlm in self.profile.lvlms for each in wanted]
        missing = [fitting for fitting in fittings if not fitting.done()]
        if missing:
            asked = [
                (self._fitting(lvlm, seed), self.run(lvlm, dataset, split).folder)
                for lvlm, dataset in self.columns
                for split in dataset.splits
                for seed in range(seeds if split == "test" else used)
            ]
            with processes() as run:
                for what, function, items in (
                    ("training regressors", _Fitting.train, missing), ("predicting", _predict, asked)
                ):  # fmt: skip
                    with progress(what, len(items), unit="done") as told:
                        for _ in run(function, items):
                            told.update()
        return [self.fit(lvlm) for lvlm in self.profile.lvlms]

    def _fitted(self, lvlm: LVLMSpec, seed: int, shuffle_labels: bool = False) -> _Fitting:
        fitting = self._fitting(lvlm, seed, shuffle_labels)
        if not fitting.done():
            fitting.train()
        return fitting

    def _fitting(self, lvlm: LVLMSpec, seed: int, shuffle_labels: bool = False) -> _Fitting:
        train, validation = (self.run(lvlm, self.train_set, split) for split in ("train", "validation"))
        settings = self.profile.regressor.model_dump(exclude={"seeds"})
        if shuffle_labels:
            settings["epochs"] = 2
        labels = "drawn from the whole run" if shuffle_labels else False
        key = digest([settings, seed, labels, train.key, validation.key, regressor.FORMAT])
        settings |= {"seed": seed, "shuffle_labels": shuffle_labels}
        path = paths.runs(self.profile.name) / lvlm.name / f"regressor{'-shuffled' * shuffle_labels}-{seed}.safetensors"
        return _Fitting(train.folder, validation.folder, settings, key, path, lvlm.name, self.origin(lvlm))

    def fit_history(self, lvlm: LVLMSpec) -> pd.DataFrame:
        """epoch, train_mse, pearson, spearman, mae, n on the validation split, of the first regressor."""
        info = paths.runs(self.profile.name) / lvlm.name / "regressor-0.json"
        return pd.DataFrame(json.loads(info.read_text(encoding="utf-8"))["history"])

    def predicted(self, lvlm: LVLMSpec, run: Run, seeds: Iterable[int] | None = None) -> pd.DataFrame:
        """query_id, candidate, iou, predicted_iou of every answer of a run that holds a box: the mean over the
        regressors of `seeds`, by default the profile's."""
        seeds = range(self.profile.regressor.seeds) if seeds is None else seeds
        frames = [self._fitted(lvlm, seed).predictions(run) for seed in seeds]
        return frames[0].assign(predicted_iou=np.mean([frame["predicted_iou"] for frame in frames], axis=0))

    def find_heads(self, lvlm: LVLMSpec) -> HeadFinding:
        """D_c, and what it was found by: attribution by layer with 95 % intervals over images, AUROC by head over D_c's
        coordinates. Found once a process, and written to where `head_set` reads it.

        Attribution, AUROC and the coordinates (those at which the best head separates best inside queries) come from
        the train split; of the sets that the profile's `heads` names, the one with the best Acc@0.5 of ACS-Free on the
        validation split is D_c.
        """
        if lvlm.name not in self._found:
            self._found[lvlm.name] = self._find_heads(lvlm)
        return self._found[lvlm.name]

    def _find_heads(self, lvlm: LVLMSpec) -> HeadFinding:
        train, validation = (self.run(lvlm, self.train_set, split) for split in ("train", "validation"))
        scores, each, images = heads.attribution(self.fit(lvlm), train)
        records, statistics = train.records(), train.statistics()
        kept = (records["failure"] == "").to_numpy() & (records["candidate"] > 0).to_numpy()
        entropy = statistics[kept][..., ENTROPY]
        iou, query = records["iou"].to_numpy()[kept], records["query_id"].to_numpy()[kept]
        spec, read = self.profile.heads, {c: entropy[:, list(c)].mean(1) for c in self.profile.heads.coordinates}
        within = {c: heads.within_query_auroc(values, iou, query) for c, values in read.items()}
        coordinates = max(spec.coordinates, key=lambda c: np.nan_to_num(within[c]).max())
        separations = {"pooled": heads.entropy_auroc(read[coordinates], iou), "within": within[coordinates]}
        sets = {
            heads.select_heads(scores.sum(1), separations[separation], layers, count): None
            for separation, layers, count in itertools.product(spec.separations, spec.layers, spec.counts)
        }
        best = self._most_accurate(validation, list(sets), coordinates)
        head_set = HeadSet(lvlm.name, self.train_set.name, best, coordinates, self.origin(lvlm))
        head_set.save(self._head_set_file(lvlm))
        draws = min(2000, self.profile.bootstrap)
        share = scores.sum(1) / scores.sum()
        layers = pd.DataFrame({"lvlm": lvlm.name, "layer": range(len(scores)), "attribution": share})
        layers["attribution_lo"], layers["attribution_hi"] = share_interval(each, images, draws)
        layers["rank"] = layers["attribution"].rank(ascending=False, method="first").astype(int)
        layers["selected"] = layers["layer"].isin([layer for layer, _ in best])
        layers["n"], layers["n_images"] = len(images), len(np.unique(images))
        layer, head = np.indices(scores.shape).reshape(2, -1)
        table = pd.DataFrame({
            "lvlm": lvlm.name, "layer": layer, "head": head, "attribution": (scores / scores.sum()).ravel(),
            "auroc": separations["pooled"].ravel(), "auroc_within_query": separations["within"].ravel(),
            "selected": [pair in best for pair in zip(layer, head)],
        })  # fmt: skip
        write_text(self._head_set_file(lvlm).with_name("heads.csv"), table.to_csv(index=False, float_format="%.6g"))
        return HeadFinding(layers, table, head_set)

    def _most_accurate(self, run: Run, sets: list[Heads], coordinates: tuple[int, ...]) -> Heads:
        """The head set with which ACS-Free has the best Acc@0.5; the first on ties."""
        selectors = [replace(acs_free(chosen, coordinates), name=str(index)) for index, chosen in enumerate(sets)]
        choices = make_choices(run.candidates(), run.truth, selectors, self.profile.pool)
        accuracy = choices.groupby("method")["hit"].mean()
        return sets[max(range(len(sets)), key=lambda index: accuracy[str(index)])]

    def _head_set_file(self, lvlm: LVLMSpec):
        return paths.runs(self.profile.name) / lvlm.name / "head_set.json"

    def head_set(self, lvlm: LVLMSpec) -> HeadSet | None:
        """D_c as notebook 04 found it; None before that."""
        path = self._head_set_file(lvlm)
        return HeadSet.load(path, lvlm.name) if path.exists() else None

    @functools.cached_property
    def p_true_unavailable(self) -> dict[str, str]:
        """LVLM's name -> why P(True) has no row for it; only those LVLMs that are not asked."""
        if not self.profile.p_true:
            return {lvlm.name: f"the profile {self.profile.name} does not ask" for lvlm in self.profile.lvlms}
        from acs_lib.runs.answer import cannot_be_asked  # late: it brings transformers

        reasons = {lvlm.name: cannot_be_asked(lvlm) for lvlm in self.profile.lvlms}
        return {name: reason for name, reason in reasons.items() if reason}

    def p_true(self, lvlm: LVLMSpec, dataset: DatasetSpec) -> pd.DataFrame | None:
        """query_id, candidate, p_true of every answer to the test split; None for an LVLM that is not asked."""
        if lvlm.name in self.p_true_unavailable:
            return None
        from acs_lib.runs.answer import collect_p_true  # late: it brings transformers

        folder = run_folder(self.profile, lvlm, dataset, "test-p-true")
        return collect_p_true(lvlm, self.run(lvlm, dataset, "test"), folder)

    def with_changes(
        self, name: str, datasets: Iterable[DatasetSpec], train_on: str | None = None, **sampling
    ) -> "Study":
        """The study with other data, another dataset to train on, or other settings of sampling; its runs and
        regressors lie in a folder of their own, `name` below the profile's."""
        changes = {
            "name": f"{self.profile.name}/{name}",
            "datasets": tuple(datasets),
            "train_on": train_on or self.profile.train_on,
            "sampling": self.profile.sampling.model_copy(update=sampling),
        }
        return type(self)(self.profile.model_copy(update=changes))


def restricted(dataset: DatasetSpec, sizes: Mapping[str, str]) -> DatasetSpec:
    """The dataset with the splits of `sizes` (split -> size of object) that it has, each asking for objects of that
    size alone, as often as it has queries for small ones."""
    splits = {
        split: spec.model_copy(update={"queries": {sizes[split]: spec.queries.get("small", 0)}})
        for split, spec in dataset.splits.items()
        if split in sizes
    }
    return dataset.model_copy(update={"splits": splits})
