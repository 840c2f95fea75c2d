"""How much of a result is luck: the test split's small objects again with other seeds, of two sources of randomness.

sampling: the test answers are drawn anew (the greedy answer is the same), D_c and the regressor stay
regressor: it is trained anew on the same maps from other initial weights and in another order, the answers stay

The first seed of either is the profile's own. What images were drawn is a third source: the intervals over images of
every other table, and acc50_lo and acc50_hi here.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from acs_lib.evaluation.accuracy import ORACLE, RANDOM, accuracy_table
from acs_lib.method import regressor
from acs_lib.study.experiment import Experiment
from acs_lib.study.stages import Study, restricted

LEARNED = "ACS-Learned"
SEEDED = (
    "greedy", "random", RANDOM, "sequence log-prob", "self-certainty", "ACS-Free", LEARNED, ORACLE,
)  # fmt: skip
COLUMNS = [
    "lvlm", "dataset", "condition", "source", "seed", "method", "n_queries", "acc50", "acc50_lo", "acc50_hi",
    "delta_vs_greedy", "miou", "pearson",
]  # fmt: skip


def resampled(study: Study, seed: int) -> Study:
    """The study with test answers drawn by another seed, for small objects alone; its runs lie below the profile's."""
    if seed == study.profile.sampling.seed:
        return study
    datasets = [restricted(dataset, {"test": "small"}) for dataset in study.profile.datasets]
    return study.with_changes(f"sampling-seed-{seed}", datasets, seed=seed)


def sampling_seeds(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """COLUMNS (sampling_seeds.csv), one row an LVLM, dataset, seed and method, for as many seeds as
    `profile.seeds.sampling`; pearson, of predicted and true IoU over the answers to small objects, for ACS-Learned."""
    parts, first = [], study.profile.sampling.seed
    for e in experiments:
        for seed in range(first, first + study.profile.seeds.sampling):
            run = resampled(study, seed).run(e.lvlm, e.dataset, "test")
            drawn = replace(e, run=run, predictions=study.predicted(e.lvlm, run))
            parts.append(_rows(drawn, e.small, SEEDED, "sampling", seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def regressor_seeds(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """COLUMNS (seeds.csv) of ACS-Learned, one row an LVLM, dataset and seed, for as many seeds as
    `profile.seeds.regressor` (at least one)."""
    parts = []
    for e in experiments:
        for seed in range(max(1, study.profile.seeds.regressor)):
            trained = replace(e, predictions=study.predicted(e.lvlm, e.run, [seed]))
            parts.append(_rows(trained, e.small, [LEARNED], "regressor", seed))
    return pd.concat(parts, ignore_index=True)


def _rows(e: Experiment, small: pd.DataFrame, methods: Iterable[str], source: str, seed: int) -> pd.DataFrame:
    """COLUMNS of `methods` on one run's answers to the small objects."""
    rows = accuracy_table(e.choose(("greedy", *methods), small), small, draws=e.profile.bootstrap)
    rows = rows.set_index("method").loc[list(methods)].reset_index().assign(source=source, seed=seed)
    r = regressor.iou_correlation(e.predictions[e.predictions["query_id"].isin(small["query_id"])])["pearson"]
    return e.labelled(rows.assign(pearson=np.where(rows["method"] == LEARNED, r, np.nan)))[COLUMNS]


def seed_spread(seeds: pd.DataFrame) -> pd.DataFrame:
    """lvlm, dataset, source, method, seeds (how many), and of acc50, delta_vs_greedy and pearson the mean, the standard
    deviation over the seeds (n - 1), the lowest and the highest."""
    groups = seeds.groupby(["lvlm", "dataset", "source", "method"], sort=False)
    summary = groups.agg(
        seeds=("seed", "size"),
        **{
            f"{value}_{name}": (value, how)
            for value in ("acc50", "delta_vs_greedy", "pearson")
            for name, how in {"mean": "mean", "sd": "std", "lowest": "min", "highest": "max"}.items()
        },
    )
    return summary.reset_index()
