"""Ablations: one thing of the method is changed, the rest stays, and small objects of the test split are chosen again.

Everything is found on the train split (heads, regressors) and nothing is chosen by the result: every value of a factor
is a row. Most factors are computed from one run's stored candidates and maps; temperature, the row that is read, more
samples, and training objects of another size or dataset need runs of their own (`variant`).

Rows: factor, value, lvlm, dataset, method, acc50, miou (0-1), n_queries, acc50_lo, acc50_hi (95 %, over images), and
delta, delta_lo, delta_hi: the paired difference of Acc@0.5 with the same method as the profile has it, on the same
queries (NaN where the queries are what is changed). Each ACS-Learned is the mean over regressors of as many seeds as
`profile.seeds.regressor` names: one seed's luck is as large as many a change.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from acs_lib.core.candidates import COORDINATES, STATISTICS, Candidates
from acs_lib.evaluation.accuracy import ORACLE, RANDOM, SIZES, main_table, make_choices
from acs_lib.evaluation.bootstrap import paired_difference
from acs_lib.method import heads, regressor
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.attention import spatial_entropy
from acs_lib.method.heads import HeadSet
from acs_lib.method.maps import box_coverage
from acs_lib.method.selection import Selector, acs_free, acs_learned, statistic, stored_scores
from acs_lib.profiles import DatasetSpec, LVLMSpec
from acs_lib.runs.store import BOX, SHARD, Run
from acs_lib.study.stages import Study

COLUMNS = [
    "factor", "value", "lvlm", "dataset", "method", "acc50", "miou", "n_queries", "acc50_lo", "acc50_hi",
    "delta", "delta_lo", "delta_hi",
]  # fmt: skip


COCO_SMALL = 32**2  # px, COCO's threshold of small


COCO_IMAGE = 640 * 480  # px, its most frequent size of image


SMALL = {"0.5 %": 0.005, "1 %": 0.01, "5 %": 0.05}  # share of the image


STANDARD = "as the profile has it"  # the row group of the method with nothing changed


KEPT = ("greedy", RANDOM, ORACLE)  # what every value of a factor that changes the pool is set against


Named = tuple[str, Selector]  # the value of a factor, and what it makes of a method


@dataclass(frozen=True)
class TransformedRun:
    """A run whose maps are something else: what the regressor is trained on and asked about, shard by shard.

    change: (maps [n, 4, layers, heads, h, w], statistics [n, 4, layers, heads, 4], boxes [n, 4] in 0-1 of the image)
        of one query -> the regressor's input [n, 4, a, b, h', w'], not negative
    most: shards that are used, None for all
    """

    run: Run
    change: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
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
            yield self.change(maps, statistics[rows], shares[rows]).astype(np.float32)
            start += len(maps)


def renormalised(maps: np.ndarray, statistics: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Each map as shares of its attention on the image tokens (they sum to 1), as entropy takes it."""
    maps = maps.astype(np.float32)
    return maps / np.maximum(maps.sum((-1, -2), keepdims=True), 1e-12)


def with_box_mask(maps: np.ndarray, statistics: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The maps and, as one more layer, the share of every cell that the answer's box covers."""
    mask = box_coverage(np.nan_to_num(boxes), 1, 1, maps.shape[-2:])[:, None, None, None]
    shape = (*maps.shape[:2], 1, *maps.shape[3:])
    return np.concatenate([maps, np.broadcast_to(mask, shape)], axis=2)


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


def on_heads(head_set: HeadSet, values: Callable[[Candidates], np.ndarray]) -> Callable[[Candidates], np.ndarray]:
    """Candidates -> [n] mean of values [n, 4, layers, heads] over D_c and its coordinates."""
    layers, columns = np.array(head_set.heads).T

    def score(c: Candidates) -> np.ndarray:
        return values(c)[:, list(head_set.coordinates)][:, :, layers, columns].mean((1, 2))

    return score


def coordinates(head_set: HeadSet, options: Iterable[tuple[int, ...]]) -> list[Named]:
    """The same heads, read at other coordinates."""
    return [(" ".join(COORDINATES[index] for index in option), acs_free(head_set.heads, option)) for option in options]


def signals(head_set: HeadSet) -> list[Named]:
    """Other measures of the same heads' maps than entropy, each with the sign that its source gives it."""

    def share_in_box(c):
        return statistic(c, "mass_in_box") / np.maximum(statistic(c, "mass"), 1e-12)

    measures = {
        "entropy of the raw map": lambda c: -raw_entropy(c),
        "maximum of the renormalised map": lambda c: statistic(c, "peak"),
        "mass on the image": lambda c: statistic(c, "mass"),
        "mass inside the box": lambda c: statistic(c, "mass_in_box"),
        "share of the mass inside the box": share_in_box,
    }
    found = [(name, replace(acs_free(head_set.heads), score=on_heads(head_set, f))) for name, f in measures.items()]
    at = np.eye(len(COORDINATES), dtype=bool)[list(head_set.coordinates)].any(0)

    def spatial(c):
        return spatial_entropy(head_set.heads).score(replace(c, maps=c.maps[:, at]))

    free = acs_free(head_set.heads, head_set.coordinates)
    return [("entropy", free), *found, ("spatial entropy", replace(acs_free(head_set.heads), score=spatial))]


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
    """Threshold -> the queries below it: SMALL, and COCO's 32 x 32 px; in rendered scenes, whose images are smaller,
    the share of the image that these are in COCO's most frequent size of image."""
    area = queries["area_fraction"]
    if photographs:
        found = {"COCO's 32^2 px": queries[area * queries["width"] * queries["height"] < COCO_SMALL]}
    else:
        share = COCO_SMALL / COCO_IMAGE
        found = {f"{100 * share:.2f} % (COCO's 32^2)": queries[area < share]}
    return found | {value: queries[area < share] for value, share in SMALL.items()}


def choices_by_method(
    candidates: Iterable[Candidates], run: Run, selectors: Iterable[Selector], pool: str
) -> pd.DataFrame:
    """`make_choices` with greedy and the controls, where selectors of one name count as one method: the mean
    of their IoUs and hits."""
    choices = make_choices(candidates, run.truth, [SELECTORS["greedy"], *selectors], pool)
    groups = choices.groupby(["query_id", "method", "family"], sort=False, as_index=False)
    return groups.agg(candidate=("candidate", "first"), iou=("iou", "mean"), hit=("hit", "mean"))


def rows(
    factor: str, named: Iterable[Named], candidates: Iterable[Candidates], run: Run, queries: pd.DataFrame,
    study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, kept: Iterable[str] = (),
    standard: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """COLUMNS of one factor over `queries`: one row a value and method (the mean over those named alike), and of the
    controls `kept` with value '-'.

    standard: choices (see evaluation.accuracy) of the same methods as the profile has them, on these queries or more
    """
    selectors = [replace(selector, name=f"{value}\t{selector.name}") for value, selector in named]
    choices, draws = choices_by_method(candidates, run, selectors, study.profile.pool), study.profile.bootstrap
    table = main_table(choices, queries, lvlm=lvlm.name, dataset=dataset.name, draws=draws)
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
    table = table.assign(factor=factor, value=parts.map(lambda part: part[0] if len(part) > 1 else "-"))
    table[["delta", "delta_lo", "delta_hi"]] = gains
    return table.assign(method=parts.str[-1])[COLUMNS]


@dataclass(frozen=True)
class Bench:
    """What the factors of one LVLM share: the test split's small objects, D_c, and the regressor's settings."""

    study: Study
    lvlm: LVLMSpec
    head_set: HeadSet
    layers: pd.DataFrame
    head_table: pd.DataFrame

    @classmethod
    def open(cls, study: Study, lvlm: LVLMSpec) -> "Bench":
        layers, table, head_set = study.head_table(lvlm)
        return cls(study, lvlm, head_set, layers, table)

    @property
    def separation(self) -> np.ndarray:
        """AUROC [layers, heads] of low entropy for good boxes, over all answers of the train split."""
        return self.head_table.pivot(index="layer", columns="head", values="auroc").to_numpy()

    def run(self, split: str) -> Run:
        """The run of a split of the dataset that D_c comes from."""
        return self.study.run(self.lvlm, self.study.train_set, split)

    def candidates(self, queries: pd.DataFrame, maps: bool = False) -> list[Candidates]:
        """The candidates of test queries."""
        names = set(queries["query_id"])
        return [c for c in self.run("test").candidates(maps) if c.query_id in names]

    def small(self) -> pd.DataFrame:
        """The test queries for small objects of that dataset."""
        return self.study.test_queries(self.lvlm, self.study.train_set, "small")

    def rows(self, factor: str, named: list[Named], queries: pd.DataFrame | None = None, **settings) -> pd.DataFrame:
        """`rows` on test queries, by default the small objects and against this bench's own standard."""
        queries = self.small() if queries is None else queries
        needs_maps = any(value == "spatial entropy" for value, _ in named)
        return rows(
            factor, named, self.candidates(queries, needs_maps), self.run("test"), queries, self.study, self.lvlm,
            self.study.train_set, **{"standard": self.choices, **settings},
        )  # fmt: skip

    @functools.cached_property
    def choices(self) -> pd.DataFrame:
        """`standard_choices` on the test split."""
        return self.standard_choices(self.run("test"))

    def standard_choices(self, run: Run) -> pd.DataFrame:
        """Choices (see evaluation.accuracy) of the methods as the profile has them, and of the controls, on a run."""
        return choices_by_method(run.candidates(), run, self.standard(run), self.study.profile.pool)

    @property
    def seeds(self) -> range:
        """Of the regressors that each ACS-Learned is the mean over."""
        return range(max(1, self.study.profile.seeds.regressor))

    def learned(self, change: Callable | None = None, most: int | None = None, **settings) -> list[Selector]:
        """ACS-Learned with regressors of another input, training set or width, one a seed; with fewer shards they get
        more epochs (at most four times as many), so that few queries do not mean few steps."""
        known = self.study.profile.regressor.model_dump(exclude={"seeds"}) | settings
        train = TransformedRun(self.run("train"), change, most)
        known["epochs"] = min(4 * known["epochs"], known["epochs"] * len(self.run("train").shards) // len(train.shards))
        validation, test = TransformedRun(self.run("validation"), change), TransformedRun(self.run("test"), change)
        models = (regressor.train(train, validation, **known, seed=seed)[0] for seed in self.seeds)
        return [acs_learned(stored_scores(regressor.predict(model, test), "predicted")) for model in models]

    def standard(self, run: Run | None = None) -> list[Selector]:
        """ACS-Free and ACS-Learned, one a seed, as the profile has them, for a run (by default the test split's)."""
        run = run or self.run("test")
        predicted = (regressor.predict(self.study.fit(self.lvlm, seed), run) for seed in self.seeds)
        free = acs_free(self.head_set.heads, self.head_set.coordinates)
        return [free, *(acs_learned(stored_scores(frame, "predicted")) for frame in predicted)]


def _named(options: Mapping[object, Iterable[Selector]]) -> list[Named]:
    """Each value of a factor with each of its selectors."""
    return [(str(value), selector) for value, selectors in options.items() for selector in selectors]


def stored(bench: Bench) -> pd.DataFrame:
    """COLUMNS of the factors that need no new sampling, one LVLM, the dataset that it was calibrated on."""
    study, spec = bench.study, bench.study.profile.ablations
    free, *learned = bench.standard()
    by_count = counts_of_heads(bench.layers["attribution"].to_numpy(), bench.separation, bench.head_set)
    inputs = {"maps (the paper's)": learned} | {name: bench.learned(change) for name, change in INPUTS.items()}
    widths = {width: bench.learned(width=width) for width in spec.widths} | {study.profile.regressor.width: learned}
    run = bench.run("train")
    fewer = [shards for shards in spec.train_shards if shards < len(run.shards)]
    sizes = {shards * SHARD: bench.learned(most=shards) for shards in fewer} | {len(run.queries): learned}
    parts = [
        bench.rows(STANDARD, [("-", selector) for selector in (free, *learned)], kept=KEPT),
        bench.rows("coordinates", coordinates(bench.head_set, study.profile.heads.coordinates)),
        *(bench.rows(factor, named) for factor, named in by_count.items()),
        bench.rows("signal of the same heads", signals(bench.head_set)),
        bench.rows("regressor's input", _named(inputs)),
    ]
    if spec.widths:
        parts.append(bench.rows("regressor's width", _named(dict(sorted(widths.items())))))
    if fewer:
        parts.append(bench.rows("training queries", _named(sizes)))
    queries = study.test_queries(bench.lvlm, study.train_set)
    by_size = {size: queries[queries["size"] == size] for size in SIZES}
    by_threshold = small_parts(queries, study.train_set.kind == "coco")
    for factor, groups in (("threshold of small", by_threshold), ("applied to size", by_size)):
        for value, part in groups.items():
            if len(part):
                found = bench.rows(factor, _named({value: [free, *learned]}), part, kept=KEPT, standard=None)
                parts.append(found.assign(value=value))
    return pd.concat(parts, ignore_index=True)


def variant(
    study: Study, name: str, sampling: dict | None = None, size: str | None = None, train_on: str | None = None
) -> Study:
    """The study with other settings of sampling, with training and validation objects of another size, or with another
    dataset to train on; its runs and regressors lie in a folder of their own below the profile's."""
    profile = study.profile
    changes = {"name": f"{profile.name}/{name}", "train_on": train_on or profile.train_on}
    if sampling:
        changes["sampling"] = profile.sampling.model_copy(update=sampling)
    datasets = []
    for dataset in profile.datasets:
        if dataset.name != changes["train_on"]:
            continue
        splits = dict(dataset.splits)
        for split, spec in splits.items():
            small = spec.queries.get("small", 0)
            sizes = {size: small} if size and split != "test" else {"small": small}
            splits[split] = spec.model_copy(update={"queries": sizes})
        datasets.append(dataset.model_copy(update={"splits": splits}))
    return type(study)(profile.model_copy(update=changes | {"datasets": tuple(datasets)}))


def unread_rows(records: pd.DataFrame) -> dict[str, str]:
    """Row (see method.sampling.Sampling) -> why it is no row of its own for an LVLM; records of a run whose rows are
    the numbers' own."""
    tokens = records.loc[records["failure"] == "", "coordinate_tokens"]
    reasons = {}
    if (tokens.map(len) == len(COORDINATES)).all():
        reasons["last"] = "a number is one token, so that its last digit's row is its own row"
    if tokens.map(lambda places: places[-1] - places[0] + 1 == len(places)).all():
        reasons["after"] = "no token stands between the numbers of an answer"
    return reasons


def counted(bench: Bench) -> pd.DataFrame:
    """COLUMNS of the number of samples, 1 to `ablations.samples` (at least the profile's own number): the first so many
    answers, whose noise does not depend on how many follow. Heads and regressor are the profile's."""
    study, own = bench.study, bench.study.profile.sampling.samples
    most = max(own, study.profile.ablations.samples)
    if most > own:
        study = variant(study, f"samples-{most}", {"samples": most})
    run, small = study.run(bench.lvlm, study.train_set, "test"), bench.small()
    names, selectors = set(small["query_id"]), bench.standard(run)
    candidates = [c for c in run.candidates() if c.query_id in names]
    parts = []
    for n in range(1, most + 1):
        found = rows(
            "samples", [(str(n), selector) for selector in selectors], (c.first(n + 1) for c in candidates), run, small,
            study, bench.lvlm, study.train_set, kept=KEPT, standard=bench.choices,
        )  # fmt: skip
        parts.append(found.assign(value=str(n)))
    return pd.concat(parts, ignore_index=True)


def crossed(bench: Bench) -> pd.DataFrame:
    """COLUMNS of heads and regressor found on the train split of one dataset and applied to the test split of each;
    only the dataset that the profile trains on has to have a train split."""
    study, lvlm = bench.study, bench.lvlm
    benches = {study.train_set.name: bench}
    for dataset in study.profile.datasets:
        if dataset.name not in benches and "train" in dataset.splits:
            other = variant(study, f"found-on-{dataset.name}", train_on=dataset.name)
            benches[dataset.name] = Bench.open(other, lvlm)
    parts = []
    for dataset in study.profile.datasets if len(study.profile.datasets) > 1 else ():
        run, small = study.run(lvlm, dataset, "test"), study.test_queries(lvlm, dataset, "small")
        candidates = [c for c in run.candidates() if c.query_id in set(small["query_id"])]
        standard = bench.standard_choices(run)
        for found_on, other in benches.items():
            value = f"{found_on}, on {dataset.name}"
            named = [(value, selector) for selector in other.standard(run)]
            found = rows(
                "found on one dataset, applied to another", named, candidates, run, small, study, lvlm, dataset,
                kept=KEPT, standard=standard,
            )  # fmt: skip
            parts.append(found.assign(value=value))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def sampled(bench: Bench) -> pd.DataFrame:
    """COLUMNS of temperature, top-p, row read and training size; heads and regressor are found anew in each case. A row
    that `unread_rows` names is left out."""
    study, spec, parts = bench.study, bench.study.profile.ablations, []
    sampling = study.profile.sampling
    own = {"temperature": f"{sampling.temperature:g}", "top-p": f"{sampling.top_p:g}", "row read": sampling.row}
    left_out = unread_rows(bench.run("test").records())
    cases = [("temperature", f"{t:g}", {"temperature": t}) for t in spec.temperatures]
    cases += [("top-p", f"{p:g}", {"top_p": p}) for p in spec.top_ps]
    cases += [("row read", row, {"row": row}) for row in spec.rows if row not in left_out]
    for factor in dict.fromkeys(factor for factor, _, _ in cases):
        named = [(own[factor], selector) for selector in bench.standard()]
        parts.append(bench.rows(factor, named, kept=KEPT).assign(value=own[factor]))
    for factor, value, changed in cases:
        other = Bench.open(variant(study, f"{factor.split()[0]}-{value}", changed), bench.lvlm)
        named = [(value, selector) for selector in other.standard()]
        parts.append(other.rows(factor, named, kept=KEPT, standard=bench.choices).assign(value=value))
    if spec.trained_on:
        parts.append(bench.rows("trained on size", [("small", selector) for selector in bench.standard()]))
    for size in spec.trained_on:
        other = Bench.open(variant(study, f"trained-on-{size}", size=size), bench.lvlm)
        parts.append(
            bench.rows("trained on size", [(size, selector) for selector in other.standard(bench.run("test"))])
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def numeric(table: pd.DataFrame) -> pd.DataFrame:
    """The factors whose values are numbers, with `value` as one."""
    value = pd.to_numeric(table["value"], errors="coerce")
    whole = value.notna().groupby(table["factor"]).transform("all")
    return table.assign(value=value)[whole]


def ablation_table(benches: list[Bench]) -> pd.DataFrame:
    """ablations.csv: every factor of study.ablations, for every LVLM, on the dataset that it was calibrated on (and
    on the others where a factor says so)."""
    factors = (stored, counted, sampled, crossed)
    parts = [part(bench) for bench in benches for part in factors]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def benches(study: Study) -> list[Bench]:
    """What the ablations and analyses of every LVLM share (D_c found once)."""
    return [Bench.open(study, lvlm) for lvlm in study.profile.lvlms]
