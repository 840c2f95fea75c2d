"""One profile's study, as the notebooks tell it: runs, regressors, D_c, choices, and where tables and figures go."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from acs_lib import paths
from acs_lib.core.candidates import ENTROPY, Heads
from acs_lib.core.files import digest, write_text
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import accuracy_by_size, main_table, make_choices
from acs_lib.evaluation.bootstrap import share_interval
from acs_lib.lvlms.load import load_spec, lvlm_source
from acs_lib.method import heads, regressor
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines import p_true as p_true_
from acs_lib.method.baselines.attention import spatial_entropy
from acs_lib.method.baselines.likelihood import p_true
from acs_lib.method.heads import HeadSet
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import Selector, acs_free, acs_learned, all_heads, stored_scores
from acs_lib.profiles import DatasetSpec, LVLMSpec, Profile, load_profile
from acs_lib.runs.collect import collect_p_true, collect_run, run_folder
from acs_lib.runs.store import Run


@dataclass(frozen=True)
class Study:
    """The stages of one profile. Runs, regressors and P(True) are kept on disk and redone when something that they
    depend on changed. D_c has no key: `head_table` finds and writes it at every call, `head_set` reads the last one."""

    profile: Profile
    _runs: dict[tuple[str, str, str], Run] = field(default_factory=dict, repr=False)  # checked once a process

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
        return [(lvlm, dataset) for lvlm in self.profile.lvlms for dataset in self.profile.datasets]

    def runs(self, engine: Callable = map) -> Iterator[tuple[str, str, str, Run]]:
        """(lvlm, dataset, split, run) of every split of every dataset; sampled now unless they are there."""
        for lvlm, dataset in self.columns:
            for split in dataset.splits:
                yield lvlm.name, dataset.name, split, self.run(lvlm, dataset, split, engine)

    def run(self, lvlm: LVLMSpec, dataset: DatasetSpec, split: str, engine: Callable = map) -> Run:
        """The run of one split; sampled now by `engine` (see store.collect) unless it is there."""
        name = lvlm.name, dataset.name, split
        if name not in self._runs:
            self._runs[name] = collect_run(self.profile, lvlm, dataset, split, engine)
        return self._runs[name]

    def fit(self, lvlm: LVLMSpec, seed: int = 0, shuffle_labels: bool = False) -> AttentionIoURegressor:
        """The attention-IoU regressor of an LVLM, trained on the train split of `train_set` (or read from disk).

        The control on shuffled labels has nothing to learn and gets two epochs.
        """
        train, validation = (self.run(lvlm, self.train_set, split) for split in ("train", "validation"))
        settings = self.profile.regressor.model_dump(exclude={"seeds"})
        if shuffle_labels:
            settings["epochs"] = 2
        labels = "drawn from the whole run" if shuffle_labels else False
        key = digest([settings, seed, labels, train.key, validation.key, regressor.FORMAT])
        stem = f"regressor{'-shuffled' if shuffle_labels else ''}-{seed}"
        folder = paths.runs(self.profile.name) / lvlm.name
        path, info = folder / f"{stem}.safetensors", folder / f"{stem}.json"
        if path.exists() and info.exists() and json.loads(info.read_text())["key"] == key:
            return regressor.load(path, lvlm.name)
        model, history = regressor.train(train, validation, **settings, seed=seed, shuffle_labels=shuffle_labels)
        info.unlink(missing_ok=True)  # if this process ended here, an old key would speak for the new weights
        regressor.save(model, path, lvlm.name)
        write_text(info, json.dumps({"key": key, "history": history.to_dict("records")}, indent=1))
        return model

    def fit_history(self, lvlm: LVLMSpec) -> pd.DataFrame:
        """epoch, train_mse, pearson, spearman, mae, n on the validation split, of the first regressor."""
        info = paths.runs(self.profile.name) / lvlm.name / "regressor-0.json"
        return pd.DataFrame(json.loads(info.read_text())["history"])

    def predictions(self, lvlm: LVLMSpec, dataset: DatasetSpec, split: str, control: int | None = None) -> pd.DataFrame:
        """query_id, candidate, iou, predicted of every answer with a box; the mean over the profile's seeds, or those
        of the control on shuffled labels with the seed `control`."""
        run = self.run(lvlm, dataset, split)
        if control is not None:
            return regressor.predict(self.fit(lvlm, control, shuffle_labels=True), run)
        return self.predicted(lvlm, run)

    def predicted(self, lvlm: LVLMSpec, run: Run, seeds: Iterable[int] | None = None) -> pd.DataFrame:
        """query_id, candidate, iou, predicted of every answer of a run that holds a box: the mean over the regressors
        of `seeds`, by default the profile's."""
        seeds = range(self.profile.regressor.seeds) if seeds is None else seeds
        frames = [regressor.predict(self.fit(lvlm, seed), run) for seed in seeds]
        return frames[0].assign(predicted=np.mean([frame["predicted"] for frame in frames], axis=0))

    def head_table(self, lvlm: LVLMSpec) -> tuple[pd.DataFrame, pd.DataFrame, HeadSet]:
        """(layers, heads, D_c): attribution by layer with 95 % intervals over images, separation by head over D_c's
        coordinates, and D_c.

        Attribution, separation and the coordinates (those at which the best head separates best inside queries) come
        from the train split; of the sets that the profile's `heads` names, the one with the best Acc@0.5 of ACS-Free
        on the validation split is D_c.
        """
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
        head_set = HeadSet(lvlm.name, self.train_set.name, best, coordinates)
        head_set.save(paths.runs(self.profile.name) / lvlm.name / "head_set.json")
        layers = pd.DataFrame(
            {"lvlm": lvlm.name, "layer": range(len(scores)), "attribution": scores.sum(1) / scores.sum()}
        )
        ends = share_interval(each, images, min(2000, self.profile.bootstrap))
        layers["attribution_lo"], layers["attribution_hi"] = ends
        layers["rank"] = layers["attribution"].rank(ascending=False, method="first").astype(int)
        grid = [(layer, head) for layer in range(scores.shape[0]) for head in range(scores.shape[1])]
        table = pd.DataFrame(
            {
                "lvlm": lvlm.name,
                "layer": [layer for layer, _ in grid],
                "head": [head for _, head in grid],
                "attribution": (scores / scores.sum()).ravel(),
                "auroc": separations["pooled"].ravel(),
                "auroc_within_query": separations["within"].ravel(),
                "selected": [pair in best for pair in grid],
            }
        )
        return layers, table, head_set

    def head_tables(self) -> tuple[pd.DataFrame, pd.DataFrame, list[HeadSet]]:
        """`head_table` of every LVLM, one under the other; layers with heads in D_c are `selected`."""
        layers, tables, head_sets = zip(*(self.head_table(lvlm) for lvlm in self.profile.lvlms))
        table = pd.concat(tables, ignore_index=True)
        chosen = table.groupby(["lvlm", "layer"])["selected"].any().rename("selected")
        return pd.concat(layers, ignore_index=True).join(chosen, on=["lvlm", "layer"]), table, list(head_sets)

    def head_set(self, lvlm: LVLMSpec) -> HeadSet:
        """D_c as notebook 04 found it."""
        return HeadSet.load(paths.runs(self.profile.name) / lvlm.name / "head_set.json", lvlm.name)

    def _most_accurate(self, run: Run, sets: list[Heads], coordinates: tuple[int, ...]) -> Heads:
        """The head set with which ACS-Free has the best Acc@0.5; the first on ties."""
        selectors = [replace(acs_free(chosen, coordinates), name=str(index)) for index, chosen in enumerate(sets)]
        choices = make_choices(run.candidates(), run.truth, selectors, self.profile.pool)
        accuracy = choices.groupby("method")["hit"].mean()
        return sets[max(range(len(sets)), key=lambda index: accuracy[str(index)])]

    @functools.cached_property
    def unasked(self) -> dict[str, str]:
        """LVLM's name -> why P(True) has no row for it; only those LVLMs that are not asked."""
        reasons = {}
        for lvlm in self.profile.lvlms:
            try:
                p_true_.yes_no_tokens(AutoTokenizer.from_pretrained(lvlm_source(lvlm), revision=lvlm.revision))
            except p_true_.CannotBeAsked as error:
                reasons[lvlm.name] = str(error)
            else:
                if not self.profile.p_true:
                    reasons[lvlm.name] = f"the profile {self.profile.name} does not ask"
        return reasons

    def asked(self, lvlm: LVLMSpec, dataset: DatasetSpec) -> pd.DataFrame | None:
        """query_id, candidate, p_true of every answer to the test split; None for an LVLM that is not asked."""
        if lvlm.name in self.unasked:
            return None
        folder = run_folder(self.profile, lvlm, dataset, "test")
        run = self.run(lvlm, dataset, "test")
        return collect_p_true(load_spec(lvlm), run, folder.with_name(f"{folder.name}-p-true"))

    def selectors(self, lvlm: LVLMSpec, predictions: pd.DataFrame, asked: pd.DataFrame | None = None) -> list[Selector]:
        """All methods of the main table; `predictions` are those of the split that they will choose on, and so is
        `asked`, without which P(True) is left out."""
        chosen = self.head_set(lvlm)
        return [
            *SELECTORS.values(),
            *([] if asked is None else [p_true(stored_scores(asked, "p_true"))]),
            spatial_entropy(chosen.heads),
            all_heads(chosen.coordinates),
            acs_free(chosen.heads, chosen.coordinates),
            acs_learned(stored_scores(predictions, "predicted")),
        ]

    def choices(self, lvlm: LVLMSpec, dataset: DatasetSpec) -> pd.DataFrame:
        """The choice of every method on every test query (all sizes): see acs_lib.evaluation.accuracy.make_choices."""
        run = self.run(lvlm, dataset, "test")
        selectors = self.selectors(lvlm, self.predictions(lvlm, dataset, "test"), self.asked(lvlm, dataset))
        return make_choices(run.candidates(maps=True), run.truth, selectors, self.profile.pool)

    def all_choices(self) -> list[tuple[LVLMSpec, DatasetSpec, pd.DataFrame]]:
        """(lvlm, dataset, choices) of every column of the main table."""
        return [(lvlm, dataset, self.choices(lvlm, dataset)) for lvlm, dataset in self.columns]

    def sizes(self, lvlm: LVLMSpec, dataset: DatasetSpec, choices: pd.DataFrame) -> pd.DataFrame:
        """by_size.csv of one column."""
        return accuracy_by_size(
            choices, self.test_queries(lvlm, dataset), lvlm=lvlm.name, dataset=dataset.name,
            draws=self.profile.bootstrap,
        )  # fmt: skip

    def main_table(self, lvlm: LVLMSpec, dataset: DatasetSpec, choices: pd.DataFrame) -> pd.DataFrame:
        """main_results.csv of one column: small objects of the test split."""
        small = self.test_queries(lvlm, dataset, "small")
        return main_table(
            choices[choices["query_id"].isin(small["query_id"])], small, lvlm=lvlm.name, dataset=dataset.name,
            published=published.main_results(), draws=self.profile.bootstrap,
        )  # fmt: skip

    def test_queries(self, lvlm: LVLMSpec, dataset: DatasetSpec, size: str | None = None) -> pd.DataFrame:
        """The test queries whose image could be read, of one size or of all."""
        run = self.run(lvlm, dataset, "test")
        queries = run.queries[~run.queries["query_id"].isin(run.unanswered())]
        return queries if size is None else queries[queries["size"] == size]
