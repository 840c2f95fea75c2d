"""How much of a result is luck: the test split's small objects again with other seeds, of two sources of randomness.

sampling: the test answers are drawn anew (the greedy answer is the same), D_c and the regressor stay
regressor: it is trained anew on the same maps from other initial weights and in another order, the answers stay

The first seed of either is the profile's own. What images were drawn is a third source: the intervals over images of
every other table, and acc50_lo and acc50_hi here.
"""

from collections.abc import Iterable, Iterator

import pandas as pd

from acs_lib.evaluation.accuracy import ORACLE, RANDOM, main_table, make_choices
from acs_lib.method import regressor
from acs_lib.profiles import DatasetSpec, LVLMSpec
from acs_lib.runs.store import Run
from acs_lib.study.stages import Study

LEARNED = "ACS-Learned"


METHODS = (
    "greedy", "random", RANDOM, "sequence log-prob", "self-certainty", "ACS-Free", LEARNED, ORACLE,
)  # fmt: skip


COLUMNS = [
    "lvlm", "dataset", "source", "seed", "method", "n_queries", "acc50", "acc50_lo", "acc50_hi", "miou", "pearson",
]  # fmt: skip


def resampled(study: Study, seed: int) -> Study:
    """The study with test answers drawn by another seed, for small objects alone; its runs lie below the profile's."""
    profile = study.profile
    if seed == profile.sampling.seed:
        return study
    datasets = []
    for dataset in profile.datasets:
        test = dataset.splits["test"]
        small = {size: count for size, count in test.queries.items() if size == "small"}
        datasets.append(
            dataset.model_copy(update={"splits": {"test": test.model_copy(update={"queries": small})}}),
        )
    changes = {
        "name": f"{profile.name}/sampling-seed-{seed}",
        "datasets": tuple(datasets),
        "sampling": profile.sampling.model_copy(update={"seed": seed}),
    }
    return type(study)(profile.model_copy(update=changes))


def seeds_table(study: Study) -> pd.DataFrame:
    """COLUMNS (seeds.csv), one row an LVLM, dataset, source, seed and method, for as many seeds as `profile.seeds`
    names; pearson, of predicted and true IoU over the answers to small objects, in ACS-Learned's rows alone."""
    parts = [part for lvlm, dataset in study.columns for part in _column(study, lvlm, dataset)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def _column(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec) -> Iterator[pd.DataFrame]:
    first, own = study.profile.sampling.seed, study.run(lvlm, dataset, "test")
    for seed in range(first, first + study.profile.seeds.sampling):
        run = resampled(study, seed).run(lvlm, dataset, "test")
        yield _rows(study, lvlm, dataset, run, study.predicted(lvlm, run), METHODS, "sampling", seed)
    for seed in range(study.profile.seeds.regressor):
        yield _rows(study, lvlm, dataset, own, study.predicted(lvlm, own, [seed]), [LEARNED], "regressor", seed)


def _rows(
    study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, run: Run, predictions: pd.DataFrame, methods: Iterable[str],
    source: str, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """COLUMNS of `methods` on one run's answers."""
    small = study.test_queries(lvlm, dataset, "small")
    names = set(small["query_id"])
    predictions = predictions[predictions["query_id"].isin(names)]
    selectors = [found for found in study.selectors(lvlm, predictions) if found.name in ("greedy", *methods)]
    candidates = (found for found in run.candidates() if found.query_id in names)
    choices = make_choices(candidates, run.truth, selectors, study.profile.pool)
    rows = main_table(choices, small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
    rows = rows.set_index("method").loc[list(methods)].reset_index().assign(source=source, seed=seed)
    r = regressor.iou_correlation(predictions)["pearson"]
    return rows.assign(pearson=[r if method == LEARNED else float("nan") for method in rows["method"]])[COLUMNS]


def seed_spread(seeds: pd.DataFrame) -> pd.DataFrame:
    """seed_spread.csv: lvlm, dataset, source, method, seeds (how many), and of acc50 and pearson the mean, the standard
    deviation over the seeds (n - 1), the lowest and the highest."""
    groups = seeds.groupby(["lvlm", "dataset", "source", "method"], sort=False)
    summary = groups.agg(
        seeds=("seed", "size"),
        **{
            f"{value}_{name}": (value, how)
            for value in ("acc50", "pearson")
            for name, how in {"mean": "mean", "sd": "std", "lowest": "min", "highest": "max"}.items()
        },
    )
    return summary.reset_index()
