"""Ablations: one thing of the method is changed, the rest stays, and small objects of the test split are chosen again.

Everything is found on the train split (heads, regressors) and nothing is chosen by the result: every value of a factor
is a row. Most factors are computed from one run's stored candidates and maps; temperature, the row that is read, more
samples, and training objects of another size or dataset need runs of their own (`changed`).

Rows: factor, value, lvlm, dataset, condition, method, acc50, miou (0-1), n_queries, acc50_lo, acc50_hi (95 %, over
images), and delta, delta_lo, delta_hi: the paired difference of Acc@0.5 with the same method as the profile has it, on
the same queries (NaN where the queries are what is changed). Each ACS-Learned is the mean over regressors of as many
seeds as `profile.seeds.regressor` names: one seed's luck is as large as many a change.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from acs_lib.core.candidates import COORDINATES, STATISTICS, Candidates
from acs_lib.core.files import digest
from acs_lib.core.stored import StoredAnswers
from acs_lib.evaluation.accuracy import ORACLE, RANDOM, SIZES, accuracy_table, make_choices
from acs_lib.evaluation.bootstrap import paired_difference
from acs_lib.method import heads, regressor
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.attention import spatial_entropy
from acs_lib.method.heads import HeadSet
from acs_lib.method.maps import box_coverage
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import Selector, acs_free, acs_learned, over_heads, statistic, stored_scores
from acs_lib.profiles import LVLMSpec
from acs_lib.runs.store import BOX, SHARD, Run
from acs_lib.study.experiment import Experiment, code_of
from acs_lib.study.stages import HeadFinding, Study, kept, restricted

COLUMNS = [
    "factor", "value", "lvlm", "dataset", "condition", "method", "acc50", "miou", "n_queries", "acc50_lo", "acc50_hi",
    "delta", "delta_lo", "delta_hi",
]  # fmt: skip
COCO_SMALL = 32**2  # px, COCO's threshold of small
COCO_IMAGE = 640 * 480  # px, its most frequent size of image
SMALL = {"0.5 %": 0.005, "1 %": 0.01, "5 %": 0.05}  # share of the image
STANDARD = "as the profile has it"  # the row group of the method with nothing changed
KEPT = ("greedy", RANDOM, ORACLE)  # what every value of a factor that changes the pool is set against
SPATIAL = "spatial entropy"
Named = tuple[str, Selector]  # the value of a factor, and what it makes of a method
Change = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # see TransformedRun


@dataclass(frozen=True)
class TransformedRun:
    """A run whose maps are something else: what the regressor is trained on and asked about, shard by shard.

    change: (maps [n, 4, layers, heads, h, w], statistics [n, 4, layers, heads, 4], boxes [n, 4] in 0-1 of the image)
        of one query, float32 -> the regressor's input [n, 4, a, b, h', w'] float32, not negative
    most: shards that are used, None for all
    """

    run: Run
    change: Change | None = None
    most: int | None = None

    @property
    def shards(self) -> list[int]:
        return self.run.shards[: self.most]

    def records(self, shard: int) -> pd.DataFrame:
        return self.run.records(shard)

    def maps(self, shard: int) -> Iterator[np.ndarray]:
        """See Run.maps."""
        if self.change is None:
            yield from self.run.maps(shard)
            return
        sizes = self.run.queries.set_index("query_id")[["width", "height"]]
        records, statistics, start = self.run.records(shard), self.run.statistics(shard), 0
        shares = records[BOX].to_numpy() / np.tile(sizes.loc[records["query_id"]].to_numpy(), 2)
        for maps in self.run.maps(shard):
            rows = slice(start, start + len(maps))
            maps = torch.from_numpy(maps).float().numpy()  # numpy needs four times as long
            yield self.change(maps, statistics[rows], shares[rows])
            start += len(maps)


def renormalised(maps: np.ndarray, statistics: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Each map as shares of its attention on the image tokens (they sum to 1), as entropy takes it."""
    return maps / np.maximum(maps.sum((-1, -2), keepdims=True), 1e-12)


def with_box_mask(maps: np.ndarray, statistics: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The maps and, as one more layer, the share of every cell that the answer's box covers."""
    mask = box_coverage(np.nan_to_num(boxes), 1, 1, maps.shape[-2:])[:, None, None, None]
    shape = (*maps.shape[:2], 1, *maps.shape[3:])
    return np.concatenate([maps, np.broadcast_to(mask.astype(np.float32), shape)], axis=2)


def statistics_alone(maps: np.ndarray, statistics: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Entropy, mass, mass inside the box and peak of every head, and no place: [n, 4, layers, heads * 4, 1, 1]."""
    return statistics.reshape(*statistics.shape[:3], -1, 1, 1)


def statistics_without_box(maps: np.ndarray, statistics: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The same without the mass inside the box, which tells of the box what the maps do not."""
    return statistics_alone(maps, np.delete(statistics, STATISTICS.index("mass_in_box"), axis=-1), boxes)


INPUTS = {
    "maps and box mask": with_box_mask,
    "statistics of heads alone": statistics_alone,
    "the same but the mass inside the box": statistics_without_box,
    "maps renormalised": renormalised,
}


def raw_entropy(c: Candidates) -> np.ndarray:
    """[n, 4, layers, heads] of -sum a log a (nats) of the raw attention a on the image tokens, which sums to the mass m
    instead of 1: m H - m log m, H the entropy of the renormalised map."""
    mass = np.maximum(statistic(c, "mass"), 1e-12)
    return mass * (statistic(c, "entropy") - np.log(mass))


def coordinates(head_set: HeadSet, options: Iterable[tuple[int, ...]]) -> list[Named]:
    """The same heads, read at other coordinates."""
    return [(" ".join(COORDINATES[index] for index in option), acs_free(head_set.heads, option)) for option in options]


def signals(head_set: HeadSet) -> list[Named]:
    """Other measures of the same heads' maps than entropy, each with the sign that its source gives it."""

    measures = {
        "entropy of the raw map": lambda c: -raw_entropy(c),
        "maximum of the renormalised map": lambda c: statistic(c, "peak"),
        "mass on the image": lambda c: statistic(c, "mass"),
        "mass inside the box": lambda c: statistic(c, "mass_in_box"),
        "share of the mass inside the box": lambda c: (
            statistic(c, "mass_in_box") / np.maximum(statistic(c, "mass"), 1e-12)
        ),
    }

    def on_heads(values: Callable[[Candidates], np.ndarray]) -> Selector:
        chosen = head_set.heads, head_set.coordinates
        return replace(acs_free(head_set.heads), score=lambda c: over_heads(values(c), *chosen))

    found = [(name, on_heads(values)) for name, values in measures.items()]
    at = np.eye(len(COORDINATES), dtype=bool)[list(head_set.coordinates)].any(0)

    def spatial(c):
        return spatial_entropy(head_set.heads).score(replace(c, maps=c.maps[:, at]))

    free = acs_free(head_set.heads, head_set.coordinates)
    return [("entropy", free), *found, (SPATIAL, replace(acs_free(head_set.heads), score=spatial))]


def counts_of_heads(layer_scores: np.ndarray, head_scores: np.ndarray, head_set: HeadSet) -> dict[str, list[Named]]:
    """{factor: (value, selector)}: D_c from the best 1, 2, ... layers, and of the best 1, 2, 3, 5, 8, 16 and all heads
    in all layers. layer_scores [layers], head_scores [layers, heads], both of the train split."""
    layers, total = len(layer_scores), head_scores.size

    def made(kept: int, count: int) -> Selector:
        count = min(count, kept * head_scores.shape[1])
        return acs_free(heads.select_heads(layer_scores, head_scores, kept, count), head_set.coordinates)

    counts = sorted({min(count, total) for count in (1, 2, 3, 5, 8, 16, total)})
    few = len(head_set.heads)
    return {
        "layers that D_c is taken from": [(str(kept), made(kept, few)) for kept in range(1, layers + 1)],
        "heads in D_c": [(str(count), made(layers, count)) for count in counts],
    }


def small_parts(queries: pd.DataFrame, photographs: bool) -> dict[str, pd.DataFrame]:
    """Threshold -> the queries up to and with it: SMALL, and COCO's 32 x 32 px; in rendered scenes, whose images are
    smaller, the share of the image that these are in COCO's most frequent size of image."""
    area = queries["area_fraction"]
    if photographs:
        found = {"COCO's 32^2 px": queries[area <= COCO_SMALL / (queries["width"] * queries["height"])]}
    else:
        share = COCO_SMALL / COCO_IMAGE
        found = {f"{100 * share:.2f} % (COCO's 32^2)": queries[area <= share]}
    return found | {value: queries[area <= share] for value, share in SMALL.items()}


def choices_by_method(e: Experiment, selectors: Iterable[Selector], candidates: Iterable[Candidates]) -> pd.DataFrame:
    """`make_choices` with greedy and the controls, where selectors of one name count as one method: the mean of their
    IoUs and hits."""
    choices = make_choices(candidates, e.run.truth, [SELECTORS["greedy"], *selectors], e.profile.pool)
    groups = choices.groupby(["query_id", "method", "family"], sort=False, as_index=False)
    return groups.agg({"candidate": "first", "iou": "mean", "hit": "mean", "hit75": "mean"})


def rows(
    e: Experiment, factor: str, named: Iterable[Named], queries: pd.DataFrame | None = None, *,
    standard: pd.DataFrame | None = None, kept: Iterable[str] = (), candidates: Iterable[Candidates] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """COLUMNS of one factor over `queries` (the small objects): one row a value and method (the mean over those named
    alike), and of the controls `kept`, with the first value.

    standard: choices (see evaluation.accuracy) of the same methods as the profile has them, on these queries or more
    candidates: the queries' own, unless others are given
    """
    queries, named = e.small if queries is None else queries, list(named)
    if candidates is None:
        candidates = e.candidates(queries, maps=any(value == SPATIAL for value, _ in named))
    selectors = [replace(selector, name=f"{value}\t{selector.name}") for value, selector in named]
    choices, draws = choices_by_method(e, selectors, candidates), e.profile.bootstrap
    table = e.labelled(accuracy_table(choices, queries, draws=draws))
    table = table[table["method"].str.contains("\t") | table["method"].isin(list(kept))]
    parts = table["method"].str.split("\t")
    gains = np.full((len(table), 3), np.nan)
    if standard is not None:
        standard = standard[standard["query_id"].isin(queries["query_id"])]
        choices = pd.concat([choices, standard.assign(method=STANDARD + standard["method"])])
        gains = [
            paired_difference(choices, queries, name, STANDARD + part[-1], draws=draws)[:3]
            for name, part in zip(table["method"], parts)
        ]
    table = table.assign(factor=factor, value=parts.map(lambda part: part[0] if len(part) > 1 else named[0][0]))
    table[["delta", "delta_lo", "delta_hi"]] = gains
    return table.assign(method=parts.str[-1])[COLUMNS]


@dataclass(frozen=True)
class Training:
    """What one LVLM's choosing was learned from and with: the runs of the train and the validation split, how D_c was
    found, and regressors of as many seeds as `profile.seeds.regressor` names."""

    train: Run
    validation: Run
    finding: HeadFinding
    models: tuple[AttentionIoURegressor, ...]

    @classmethod
    def of(cls, study: Study, lvlm: LVLMSpec) -> "Training":
        """That of a study; trained and found now unless it was."""
        runs = (study.run(lvlm, study.train_set, split) for split in ("train", "validation"))
        seeds = range(max(1, study.profile.seeds.regressor))
        return cls(*runs, study.find_heads(lvlm), tuple(study.fit(lvlm, seed) for seed in seeds))


def as_trained(training: Training, e: Experiment) -> list[Selector]:
    """ACS-Free and ACS-Learned, one a seed, for an experiment's answers."""
    head_set = training.finding.head_set
    return [acs_free(head_set.heads, head_set.coordinates), *(_learned(model, e.run) for model in training.models)]


def retrained(
    training: Training, e: Experiment, change: Change | None = None, most: int | None = None, **settings
) -> list[Selector]:
    """ACS-Learned with regressors of another input, training set or width, one a seed; with fewer shards they get more
    epochs (at most four times as many), so that few queries do not mean few steps. What they predict is kept beside
    the experiment's run."""
    known = e.profile.regressor.model_dump(exclude={"seeds"}) | settings
    train, validation = TransformedRun(training.train, change, most), TransformedRun(training.validation, change)
    known["epochs"] = min(4 * known["epochs"], known["epochs"] * len(training.train.shards) // len(train.shards))
    what = [change.__name__ if change else "maps", len(train.shards), known]
    runs = [training.train.key, training.validation.key, e.run.key]

    def predict(seed: int) -> pd.DataFrame:
        model, _ = regressor.train(train, validation, **known, seed=seed)
        return regressor.predict(model, TransformedRun(e.run, change))

    found = []
    for seed in range(len(training.models)):
        key, name = digest([*runs, *what, seed, code_of(__name__)]), digest([*what, seed])[:16]
        found.append(kept(e.run.folder / f"retrained-{name}", key, functools.partial(predict, seed)))
    return [acs_learned(stored_scores(frame, "predicted_iou")) for frame in found]


def _learned(model: AttentionIoURegressor, run: StoredAnswers) -> Selector:
    return acs_learned(stored_scores(regressor.predict(model, run), "predicted_iou"))


def _named(options: Mapping[object, Iterable[Selector]]) -> list[Named]:
    """Each value of a factor with each of its selectors."""
    return [(str(value), selector) for value, selectors in options.items() for selector in selectors]


def stored(training: Training, e: Experiment, own: list[Selector], standard: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The factors that need no new sampling. own, standard: the selectors as the profile has them and their choices."""
    spec, finding, learned = e.profile.ablations, training.finding, own[1:]

    def against(factor: str, named: Iterable[Named], **settings) -> pd.DataFrame:
        return rows(e, factor, named, standard=standard, **settings)

    yield against(STANDARD, [("-", selector) for selector in own], kept=KEPT)
    yield against("coordinates", coordinates(finding.head_set, e.profile.heads.coordinates))
    for factor, named in counts_of_heads(finding.layer_scores, finding.auroc, finding.head_set).items():
        yield against(factor, named)
    yield against("signal of the same heads", signals(finding.head_set))
    inputs = {name: retrained(training, e, change) for name, change in INPUTS.items()}
    yield against("regressor's input", _named({"maps (the paper's)": learned} | inputs))
    if spec.widths:
        widths = {width: retrained(training, e, width=width) for width in spec.widths}
        widths[e.profile.regressor.width] = learned
        yield against("regressor's width", _named(dict(sorted(widths.items()))))
    if fewer := [shards for shards in spec.train_shards if shards < len(training.train.shards)]:
        sizes = {shards * SHARD: retrained(training, e, most=shards) for shards in fewer}
        yield against("training queries", _named(sizes | {len(training.train.queries): learned}))
    by_threshold = small_parts(e.queries(), e.dataset.kind == "coco")
    by_size = {size: e.queries(size) for size in SIZES}
    for factor, groups in (("threshold of small", by_threshold), ("applied to size", by_size)):
        for value, part in groups.items():
            if len(part):
                yield rows(e, factor, _named({value: own}), part, kept=KEPT)


def unread_rows(records: pd.DataFrame) -> dict[str, str]:
    """Row (see profiles.Sampling) -> why it is no row of its own for an LVLM; records of a run whose rows are the
    numbers' own."""
    tokens = records.loc[records["failure"] == "", "coordinate_tokens"]
    reasons = {}
    if (tokens.map(len) == len(COORDINATES)).all():
        reasons["last"] = "a number is one token, so that its last digit's row is its own row"
    if tokens.map(lambda places: places[-1] - places[0] + 1 == len(places)).all():
        reasons["after"] = "no token stands between the numbers of an answer"
    return reasons


def changed(study: Study, name: str, size: str = "small", train_on: str | None = None, **sampling) -> Study:
    """The study with other settings of sampling, training and validation objects of another size, or another dataset
    to train on: that dataset alone, and of its test split the small objects."""
    sizes = {"train": size, "validation": size, "test": "small"}
    datasets = [restricted(d, sizes) for d in study.profile.datasets if d.name == (train_on or study.profile.train_on)]
    return study.with_changes(name, datasets, train_on, **sampling)


def _answers(study: Study, e: Experiment) -> Experiment:
    """The same LVLM's answers to the test split of another study's train set."""
    return Experiment(study.profile, e.lvlm, study.train_set, study.run(e.lvlm, study.train_set, "test"))


def counted(training: Training, answered: Experiment, e: Experiment, standard: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The number of samples, 1 to that of `answered`, about the queries of `e`: the first so many answers, whose noise
    does not depend on how many follow. Heads and regressor are the profile's."""
    selectors, candidates = as_trained(training, answered), list(answered.candidates(e.small))
    for n in range(1, answered.profile.sampling.samples + 1):
        first = (c.first(n + 1) for c in candidates)
        named = [(str(n), selector) for selector in selectors]
        yield rows(answered, "samples", named, e.small, standard=standard, kept=KEPT, candidates=first)


def sampled(study: Study, e: Experiment, own: list[Selector], standard: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Temperature, top-p, row read and training size; heads and regressor are found anew in each case. A row that
    `unread_rows` names is left out."""
    spec, sampling = study.profile.ablations, study.profile.sampling
    profiled = {"temperature": f"{sampling.temperature:g}", "top-p": f"{sampling.top_p:g}", "row read": sampling.row}
    left_out = unread_rows(e.run.records())
    cases = [("temperature", f"{t:g}", {"temperature": t}) for t in spec.temperatures]
    cases += [("top-p", f"{p:g}", {"top_p": p}) for p in spec.top_ps]
    cases += [("row read", row, {"row": row}) for row in spec.rows if row not in left_out]
    for factor in dict.fromkeys(factor for factor, _, _ in cases):
        yield rows(e, factor, _named({profiled[factor]: own}), standard=standard, kept=KEPT)
    for factor, value, settings in cases:
        other = changed(study, f"{factor.split()[0]}-{value}", **settings)
        answered = _answers(other, e)
        named = _named({value: as_trained(Training.of(other, e.lvlm), answered)})
        yield rows(answered, factor, named, e.small, standard=standard, kept=KEPT)
    if spec.trained_on:
        yield rows(e, "trained on size", _named({"small": own}), standard=standard)
    for size in spec.trained_on:
        other = Training.of(changed(study, f"trained-on-{size}", size=size), e.lvlm)
        yield rows(e, "trained on size", _named({size: as_trained(other, e)}), standard=standard)


def crossed(trainings: Mapping[str, Training], experiments: list[Experiment]) -> Iterator[pd.DataFrame]:
    """Heads and regressor found on the train split of one dataset and applied to the test split of each.

    trainings: dataset -> what was found on it, the profile's own first; experiments: those of the same LVLM
    """
    for e in experiments:
        own, *_ = trainings.values()
        standard = choices_by_method(e, as_trained(own, e), e.candidates())
        for name, training in trainings.items():
            named = _named({f"{name}, on {e.dataset.name}": as_trained(training, e)})
            yield rows(e, "found on one dataset, applied to another", named, standard=standard, kept=KEPT)


def trainings_by_dataset(study: Study, lvlm: LVLMSpec) -> dict[str, Training]:
    """Dataset -> what is found on its train split, the one that the profile trains on first; only that one has to have
    a train split."""
    others = [d.name for d in study.profile.datasets if "train" in d.splits and d.name != study.train_set.name]
    found = {name: changed(study, f"found-on-{name}", train_on=name) for name in others}
    return {name: Training.of(other, lvlm) for name, other in ({study.train_set.name: study} | found).items()}


def ablation_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """ablations.csv: every factor, for every LVLM, on the dataset that it was calibrated on (and on the others where a
    factor says so)."""
    parts, own_samples = [], study.profile.sampling.samples
    for e in (e for e in experiments if e.dataset.name == study.profile.train_on):
        training = Training.of(study, e.lvlm)
        own = as_trained(training, e)
        standard = choices_by_method(e, own, e.candidates())
        parts += stored(training, e, own, standard)
        most = max(own_samples, study.profile.ablations.samples)
        more = e if most == own_samples else _answers(changed(study, f"samples-{most}", samples=most), e)
        parts += counted(training, more, e, standard)
        parts += sampled(study, e, own, standard)
        if len(study.profile.datasets) > 1:
            same = [other for other in experiments if other.lvlm == e.lvlm]
            parts += crossed(trainings_by_dataset(study, e.lvlm), same)
    return pd.concat(parts, ignore_index=True)


def numeric(table: pd.DataFrame) -> pd.DataFrame:
    """The factors whose values are numbers, with `value` as one."""
    value = pd.to_numeric(table["value"], errors="coerce")
    whole = value.notna().groupby(table["factor"]).transform("all")
    return table.assign(value=value)[whole]
