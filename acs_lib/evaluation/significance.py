"""Is a method better than greedy decoding, or is it chance? McNemar, the bootstrap, Holm over all rows; and ranks."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means, bootstrap_p, per_query
from acs_lib.method.selection import FAMILIES

TRAINING_FREE = ("likelihood", "consensus", "attention", "acs-free")
SIGNIFICANCE_COLUMNS = [
    "lvlm", "dataset", "method", "family", "n_queries", "delta_vs_greedy", "delta_lo", "delta_hi", "p_bootstrap",
    "p_bootstrap_holm", "gained", "lost", "odds_ratio", "odds_ratio_lo", "odds_ratio_hi", "p_mcnemar", "p_mcnemar_holm",
]  # fmt: skip


def mean_ranks(
    main_tables: pd.DataFrame | Iterable[pd.DataFrame],
    families: Sequence[str] = TRAINING_FREE,
    also: Sequence[str] = ("greedy",),
) -> pd.DataFrame:
    """Rank by Acc@0.5 (1 is best, ties share the average) in each (lvlm, dataset) column, and the mean of the ranks.

    families: those that compete; also: further methods by name. Returns method, family, mean_rank, n_columns and one
    column '<lvlm>, <dataset>' each, best first. Raises ValueError where a method is missing from a column.
    """
    table = main_tables if isinstance(main_tables, pd.DataFrame) else pd.concat(list(main_tables), ignore_index=True)
    table = table[table["family"].isin(families) | table["method"].isin(also)]
    table = table.assign(column=table["lvlm"] + ", " + table["dataset"])
    accuracy = table.pivot(index="method", columns="column", values="acc50")[list(dict.fromkeys(table["column"]))]
    if accuracy.isna().any(axis=None):
        raise ValueError(f"not in every column: {list(accuracy.index[accuracy.isna().any(axis=1)])}")
    ranks = accuracy.round(12).rank(ascending=False, method="average")
    family = table.drop_duplicates("method").set_index("method")["family"]
    summary = pd.DataFrame({"family": family, "mean_rank": ranks.mean(axis=1), "n_columns": ranks.shape[1]})
    order = summary.loc[family.index].sort_values("mean_rank", kind="stable").index
    return summary.join(ranks).loc[order].rename_axis("method").reset_index()


def same_hits(choices: Iterable[pd.DataFrame]) -> dict[str, str]:
    """Method -> the first method that hits the same queries in every frame of choices; one that none equals is its own.

    Two scores can be one in disguise: with as many tokens in every answer, perplexity ranks as the sum does.
    """
    choices = list(choices)
    wide = pd.concat([frame.pivot(index="query_id", columns="method", values="hit") for frame in choices])
    first: dict[bytes, str] = {}
    order = dict.fromkeys(method for frame in choices for method in frame["method"])
    return {method: first.setdefault(wide[method].to_numpy(float).tobytes(), method) for method in order}


def rank_intervals(
    ranks: pd.DataFrame,
    columns: Iterable[tuple[str, pd.DataFrame, pd.DataFrame]],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """`mean_ranks` with mean_rank_lo and mean_rank_hi, the 95 % interval of the mean rank (percentile bootstrap).

    columns: (dataset, choices, queries) of every column that was ranked. In a column each draw takes images for all
    methods together and ranks the methods anew; columns of one dataset meet the same draws, other datasets their own.
    Raises ValueError where `columns` are not as many as were ranked.
    """
    methods, total, columns = list(ranks["method"]), 0.0, list(columns)
    datasets = list(dict.fromkeys(dataset for dataset, _, _ in columns))
    if len(columns) != ranks["n_columns"].iloc[0]:
        raise ValueError(f"{len(columns)} columns of choices for ranks over {ranks['n_columns'].iloc[0]}")
    for dataset, choices, queries in columns:
        wide, images = per_query(choices[choices["method"].isin(methods)], queries)
        drawn = bootstrap_means(wide["hit"][methods].to_numpy(float), images, draws, [seed, datasets.index(dataset)])
        total = total + stats.rankdata(-drawn, method="average", axis=1)
    lo, hi = np.quantile(total / len(columns), INTERVAL, axis=0)
    ranks = ranks.copy()
    ranks.insert(ranks.columns.get_loc("mean_rank") + 1, "mean_rank_lo", lo)
    ranks.insert(ranks.columns.get_loc("mean_rank_lo") + 1, "mean_rank_hi", hi)
    return ranks


def significance(
    choices: pd.DataFrame,
    queries: pd.DataFrame,
    *,
    lvlm: str,
    dataset: str,
    reference: str = "greedy",
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """SIGNIFICANCE_COLUMNS, one row a method that chooses one answer: its Acc@0.5 against `reference`, tested twice.

    delta_vs_greedy, delta_lo, delta_hi, p_bootstrap: as `paired_difference`, images drawn
    gained, lost: queries that only the method hits, and that only the reference hits
    odds_ratio, odds_ratio_lo, odds_ratio_hi, p_mcnemar: as `mcnemar`, from 0 to inf, 1 is no effect; it takes queries
        of one image as independent, p_bootstrap does not
    p_*_holm: `holm` over the rows, those that hit the same queries as one test. The reference, the oracle and the mean
        over the samples are no row.

    Raises ValueError without choices of `reference`, or where a hit is neither 0 nor 1.
    """
    wide, images = per_query(choices, queries)
    if reference not in wide["hit"]:
        raise ValueError(f"no choices of the reference method {reference!r}")
    methods = choices.drop_duplicates("method").set_index("method")["family"]
    methods = methods.drop([reference, RANDOM, ORACLE], errors="ignore")
    methods = methods.sort_values(key=lambda family: family.map(FAMILIES.index), kind="stable")
    hit, other = wide["hit"][list(methods.index)].to_numpy(float), wide["hit"][[reference]].to_numpy(float)
    if not np.isin(np.hstack([hit, other]), (0, 1)).all():
        raise ValueError("McNemar's test needs hits of 0 or 1, not means over a pool")
    gain = hit - other
    drawn = bootstrap_means(gain, images, draws, seed)
    lo, hi = np.quantile(drawn, INTERVAL, axis=0)
    gained, lost = (gain > 0).sum(axis=0), (gain < 0).sum(axis=0)
    exact = np.array([mcnemar(*counts) for counts in zip(gained, lost)]).reshape(-1, 4)
    _, tests, test_of = np.unique(gain, axis=1, return_index=True, return_inverse=True)
    p_bootstrap, p_mcnemar = bootstrap_p(drawn), exact[:, 3]
    table = pd.DataFrame(
        {
            "lvlm": lvlm,
            "dataset": dataset,
            "method": methods.index,
            "family": methods.to_numpy(),
            "n_queries": len(gain),
            "delta_vs_greedy": gain.mean(axis=0),
            "delta_lo": lo,
            "delta_hi": hi,
            "p_bootstrap": p_bootstrap,
            "p_bootstrap_holm": holm(p_bootstrap[tests])[test_of],
            "gained": gained,
            "lost": lost,
            "odds_ratio": exact[:, 0],
            "odds_ratio_lo": exact[:, 1],
            "odds_ratio_hi": exact[:, 2],
            "p_mcnemar": p_mcnemar,
            "p_mcnemar_holm": holm(p_mcnemar[tests])[test_of],
        }
    )
    return table[SIGNIFICANCE_COLUMNS]


def mcnemar(gained: int, lost: int) -> tuple[float, float, float, float]:
    """(odds ratio, lo, hi, p) of the exact McNemar test: are the queries that only one of two methods hits split
    evenly? The odds ratio is gained / lost, inf where nothing was lost; lo and hi are the ends of its 95 % interval
    (Clopper-Pearson), p is two-sided. NaN and p = 1 where nothing differs."""
    if not gained + lost:
        return np.nan, np.nan, np.nan, 1.0
    test = stats.binomtest(int(gained), int(gained + lost))
    shares = test.statistic, *test.proportion_ci(INTERVAL[1] - INTERVAL[0], "exact")
    return *(np.inf if share == 1 else share / (1 - share) for share in shares), test.pvalue


def holm(p_values: Sequence[float]) -> np.ndarray:
    """[k] p-values adjusted for the family-wise error (Holm), in the order given; NaN stays and is no test."""
    rising = pd.Series(p_values, dtype=float).reset_index(drop=True).dropna().sort_values()
    steps = (rising * np.arange(len(rising), 0, -1)).cummax().clip(upper=1)
    return steps.reindex(range(len(p_values))).to_numpy()
