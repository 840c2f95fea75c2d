"""Is a method better than greedy decoding, or is it chance? McNemar, the bootstrap, Holm over all rows; and ranks."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from acs_lib.evaluation.accuracy import ORACLE, RANDOM, families_of
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means, bootstrap_p, per_query

TRAINING_FREE = ("likelihood", "consensus", "attention", "acs-free")


def mean_ranks(main: pd.DataFrame) -> pd.DataFrame:
    """Rank by Acc@0.5 (1 is best, ties share the average) in each (lvlm, dataset) column of main_results.csv, and the
    mean of the ranks, of greedy and the methods of TRAINING_FREE families.

    Returns method, family, mean_rank, n_columns and one column '<lvlm>, <dataset>' each, best first. Raises ValueError
    where a method is missing from a column.
    """
    table = main[main["family"].isin(TRAINING_FREE) | (main["method"] == "greedy")]
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
    ranks: pd.DataFrame, columns: Iterable[tuple[str, pd.DataFrame, pd.DataFrame]], draws: int = 10_000
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
        drawn = bootstrap_means(wide["hit"][methods].to_numpy(float), images, draws, [0, datasets.index(dataset)])
        total = total + stats.rankdata(-drawn, method="average", axis=1)
    lo, hi = np.quantile(total / len(columns), INTERVAL, axis=0)
    names = list(ranks)
    after = names.index("mean_rank") + 1
    ends = ["mean_rank_lo", "mean_rank_hi"]
    return ranks.assign(mean_rank_lo=lo, mean_rank_hi=hi)[names[:after] + ends + names[after:]]


def significance(choices: pd.DataFrame, queries: pd.DataFrame, draws: int = 10_000) -> pd.DataFrame:
    """One row a method that chooses one answer: its Acc@0.5 against greedy, tested twice; method, family, n_queries and

    delta_vs_greedy, delta_lo, delta_hi, p_bootstrap: as `paired_difference`, images drawn
    gained, lost: queries that only the method hits, and that only greedy hits
    odds_ratio, odds_ratio_lo, odds_ratio_hi, p_mcnemar: as `mcnemar`, from 0 to inf, 1 is no effect; it takes queries
        of one image as independent, p_bootstrap does not
    p_*_holm: `holm` over the rows, those that hit the same queries as one test. Greedy, the oracle and the mean over
        the samples are no row.

    Raises ValueError without choices of greedy, or where a hit is neither 0 nor 1.
    """
    wide, images = per_query(choices, queries)
    if "greedy" not in wide["hit"]:
        raise ValueError("no choices of the reference method 'greedy'")
    families = families_of(choices).drop(["greedy", RANDOM, ORACLE], errors="ignore")
    hit, greedy = wide["hit"][list(families.index)].to_numpy(float), wide["hit"][["greedy"]].to_numpy(float)
    if not np.isin(np.hstack([hit, greedy]), (0, 1)).all():
        raise ValueError("McNemar's test needs hits of 0 or 1, not means over a pool")
    gain = hit - greedy
    drawn = bootstrap_means(gain, images, draws)
    lo, hi = np.quantile(drawn, INTERVAL, axis=0)
    gained, lost = (gain > 0).sum(axis=0), (gain < 0).sum(axis=0)
    exact = np.array([mcnemar(*counts) for counts in zip(gained, lost)]).reshape(-1, 4)
    odds, odds_lo, odds_hi, p_mcnemar = exact.T
    p_bootstrap = bootstrap_p(drawn)
    _, tests, test_of = np.unique(gain, axis=1, return_index=True, return_inverse=True)
    columns = {
        "n_queries": len(gain), "delta_vs_greedy": gain.mean(axis=0), "delta_lo": lo, "delta_hi": hi,
        "p_bootstrap": p_bootstrap, "p_bootstrap_holm": holm(p_bootstrap[tests])[test_of],
        "gained": gained, "lost": lost, "odds_ratio": odds, "odds_ratio_lo": odds_lo, "odds_ratio_hi": odds_hi,
        "p_mcnemar": p_mcnemar, "p_mcnemar_holm": holm(p_mcnemar[tests])[test_of],
    }  # fmt: skip
    return families.reset_index().assign(**columns)


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
