"""From chosen boxes to tables: Acc@t, mIoU, paired bootstrap over images, exact tests, ranks.

The unit of evaluation is a frame of choices, one row a query and method:
    query_id, method, family, candidate (row of the pool, -1 where the box is none of them), iou (0-1), hit (0-1:
    IoU >= 0.5, or the mean of that over a pool)
Queries are a frame with query_id and image_id. Queries of one image share its difficulty, so every interval comes
from drawing images, not queries, and every comparison is paired: all methods meet the same draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from acs_lib import boxes as bx
from acs_lib.candidates import Candidates
from acs_lib.selectors.base import FAMILIES, Fusion, Selector, choose

THRESHOLD = 0.5
INTERVAL = (0.025, 0.975)
RANDOM = "random (mean over N)"
ORACLE = "oracle best of N"
SIZES = ("small", "medium", "large")
TRAINING_FREE = ("likelihood", "consensus", "attention", "acs-free")
CHOICE_COLUMNS = ["query_id", "method", "family", "candidate", "iou", "hit"]
MAIN_COLUMNS = [
    "lvlm", "dataset", "method", "family", "n_queries", "acc50", "acc50_lo", "acc50_hi", "miou", "miou_lo", "miou_hi",
    "delta_vs_greedy", "p_value", "published_acc50",
]  # fmt: skip
SIZE_COLUMNS = [
    "lvlm", "dataset", "method", "size", "n_queries", "acc50", "acc50_lo", "acc50_hi", "miou", "miou_lo", "miou_hi",
]  # fmt: skip
SIGNIFICANCE_COLUMNS = [
    "lvlm", "dataset", "method", "family", "n_queries", "delta_vs_greedy", "delta_lo", "delta_hi", "p_bootstrap",
    "p_bootstrap_holm", "gained", "lost", "odds_ratio", "odds_ratio_lo", "odds_ratio_hi", "p_mcnemar", "p_mcnemar_holm",
]  # fmt: skip
CELLS = 4_000_000  # (draw, image) pairs held at once, 32 bytes each


class Difference(NamedTuple):
    """A paired difference of means, its 95 % bootstrap interval and its two-sided bootstrap p."""

    delta: float
    lo: float
    hi: float
    p: float


def hits(iou: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """1.0 where IoU >= `threshold`, else 0.0; its mean is Acc@threshold."""
    return (np.asarray(iou, float) >= threshold).astype(float)


def chosen(
    candidates: Iterable[Candidates],
    truth: Mapping[str, np.ndarray],
    selectors: Iterable[Selector],
    pool: str = "sampled",
) -> pd.DataFrame:
    """Frame of choices of every selector, and of two controls that no selector could be.

    truth: query id -> [4] xyxy in original pixels; a query without one raises KeyError
    'oracle best of N' takes the box of the pool with the highest IoU. 'random (mean over N)' is the exact expectation
    of a uniform draw from the candidates a selector may choose from: `iou` and `hit` are means over them. Where the
    pool holds no box both fall back to the greedy answer, as every selector does. No box at all: IoU 0.
    """
    selectors, rows = list(selectors), []
    for c in candidates:
        iou = bx.iou(c.boxes, np.asarray(truth[c.query_id], float))
        hit = hits(iou)
        for selector in selectors:
            row = choose(selector.score(c), c.parsed, selector.pool or pool)
            rows.append((c.query_id, selector.name, selector.family, row, iou[row], hit[row]))
        best = choose(iou, c.parsed, pool)
        eligible = c.parsed & (np.arange(len(c)) >= (pool == "sampled"))
        if not eligible.any():
            eligible = np.arange(len(c)) == 0
        rows.append((c.query_id, RANDOM, "control", -1, iou[eligible].mean(), hit[eligible].mean()))
        rows.append((c.query_id, ORACLE, "control", best, iou[best], hit[best]))
    return pd.DataFrame(rows, columns=CHOICE_COLUMNS)


def fused(candidates: Iterable[Candidates], truth: Mapping[str, np.ndarray], fusions: Iterable[Fusion]) -> pd.DataFrame:
    """Frame of choices (candidate -1) of the methods whose box is outside the pool; no box: IoU 0."""
    fusions = list(fusions)
    rows = [
        (c.query_id, fusion.name, fusion.family, -1, float(bx.iou(fusion.fuse(c), np.asarray(truth[c.query_id]))))
        for c in candidates
        for fusion in fusions
    ]
    choices = pd.DataFrame(rows, columns=CHOICE_COLUMNS[:-1])
    return choices.assign(hit=hits(choices["iou"]))


def _per_query(choices: pd.DataFrame, queries: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    """({'hit', 'iou'}: [queries, methods], image code [queries]); ValueError unless every method has every query."""
    wide = {value: choices.pivot(index="query_id", columns="method", values=value) for value in ("hit", "iou")}
    missing = wide["hit"].isna().sum()
    if missing.any():
        raise ValueError(f"every method needs every query; missing: {missing[missing > 0].to_dict()}")
    images = queries.drop_duplicates("query_id").set_index("query_id")["image_id"].reindex(wide["hit"].index)
    if images.isna().any():
        raise ValueError(f"no image_id for queries {list(images.index[images.isna()][:5])}")
    return wide, pd.factorize(images)[0]


def _bootstrap(values: np.ndarray, images: np.ndarray, draws: int, seed: int | Sequence[int]) -> np.ndarray:
    """[draws, columns] means over queries of values [queries, columns] when the images are drawn with replacement.

    images: [queries] codes 0..m-1. A draw takes m images, each with all its queries. The draws depend on the seed and
    the number of images alone, so that two calls on the same queries are paired. Means are rounded to 12 decimals: over
    a pool, nothing comes out as 1e-17, on one processor above 0 and on another below.
    """
    m = int(images.max()) + 1
    sums = np.zeros((m, values.shape[1] + 1))
    np.add.at(sums, images, np.column_stack([values, np.ones(len(values))]))
    rng, parts = np.random.default_rng(seed), []
    for start in range(0, draws, max(1, CELLS // m)):
        rows = min(max(1, CELLS // m), draws - start)
        picks = rng.integers(m, size=(rows, m))
        picks += np.arange(rows)[:, None] * m
        counts = np.bincount(picks.ravel(), minlength=rows * m).reshape(rows, m)
        parts.append(counts @ sums)
    drawn = np.concatenate(parts)
    return (drawn[:, :-1] / drawn[:, -1:]).round(12)


def _p_value(differences: np.ndarray) -> np.ndarray:
    """Two-sided bootstrap p of draws [draws, ...]: twice the smaller tail at 0, each (1 + count) / (1 + draws)."""
    below = 1 + (differences <= 0).sum(axis=0)
    above = 1 + (differences >= 0).sum(axis=0)
    return np.minimum(1, 2 * np.minimum(below, above) / (1 + len(differences)))


def _rates(choices: pd.DataFrame, queries: pd.DataFrame, reference: str, draws: int, seed: int) -> pd.DataFrame:
    """One row a method (control first, then as the families come): rates, intervals, difference with `reference`."""
    wide, images = _per_query(choices, queries)
    methods = choices.drop_duplicates("method")[["method", "family"]]
    methods = methods.sort_values("family", key=lambda family: family.map(FAMILIES.index), kind="stable")
    names = list(methods["method"])
    if reference not in names:
        raise ValueError(f"no choices of the reference method {reference!r}")
    hit, iou = wide["hit"][names].to_numpy(float), wide["iou"][names].to_numpy(float)
    gain = hit - hit[:, [names.index(reference)]]
    drawn = _bootstrap(np.hstack([hit, iou, gain]), images, draws, seed)
    acc, miou, delta = np.split(drawn, 3, axis=1)
    p_values = _p_value(delta)
    p_values[names.index(reference)] = np.nan
    return pd.DataFrame(
        {
            "method": names,
            "family": list(methods["family"]),
            "n_queries": len(hit),
            "acc50": hit.mean(axis=0),
            "acc50_lo": np.quantile(acc, INTERVAL[0], axis=0),
            "acc50_hi": np.quantile(acc, INTERVAL[1], axis=0),
            "miou": iou.mean(axis=0),
            "miou_lo": np.quantile(miou, INTERVAL[0], axis=0),
            "miou_hi": np.quantile(miou, INTERVAL[1], axis=0),
            "delta_vs_greedy": gain.mean(axis=0),
            "p_value": p_values,
        }
    )


def main_table(
    choices: pd.DataFrame,
    queries: pd.DataFrame,
    *,
    lvlm: str,
    dataset: str,
    published: pd.DataFrame | None = None,
    reference: str = "greedy",
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """MAIN_COLUMNS, one row a method: rates in 0-1 with 95 % intervals, paired cluster bootstrap over images.

    delta_vs_greedy is the difference of Acc@0.5 with `reference`, p_value its two-sided bootstrap p (NaN for the
    reference itself; uncorrected, see `holm`). published_acc50 is filled only where (lvlm, dataset, method) is a row
    of `published`. Raises ValueError where a method lacks a query, a query lacks an image, or the reference is absent.
    """
    table = _rates(choices, queries, reference, draws, seed).assign(lvlm=lvlm, dataset=dataset)
    if published is None:
        table["published_acc50"] = np.nan
    else:
        keys = ["lvlm", "dataset", "method"]
        known = published[[*keys, "acc50"]].rename(columns={"acc50": "published_acc50"})
        table = table.merge(known, on=keys, how="left", validate="one_to_one")
    return table[MAIN_COLUMNS]


def paired_difference(
    choices: pd.DataFrame,
    queries: pd.DataFrame,
    method: str,
    reference: str,
    *,
    value: str = "hit",
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Mean of `value` ('hit' for Acc@0.5, 'iou' for mIoU) of `method` minus that of `reference`, over images."""
    wide, images = _per_query(choices[choices["method"].isin([method, reference])], queries)
    gain = (wide[value][method] - wide[value][reference]).to_numpy(float)
    drawn = _bootstrap(gain[:, None], images, draws, seed)[:, 0]
    lo, hi = np.quantile(drawn, INTERVAL)
    return Difference(float(gain.mean()), float(lo), float(hi), float(_p_value(drawn)))


def accuracy_by_size(
    choices: pd.DataFrame,
    queries: pd.DataFrame,
    *,
    lvlm: str,
    dataset: str,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """SIZE_COLUMNS, one row a method and object size; `queries` has a column `size`, small before medium and large."""
    sizes = list(dict.fromkeys([*SIZES, *queries["size"]]))
    tables = []
    for size in sizes:
        part = choices[choices["query_id"].isin(queries.loc[queries["size"] == size, "query_id"])]
        if len(part):
            tables.append(_rates(part, queries, part["method"].iloc[0], draws, seed).assign(size=size))
    if not tables:
        raise ValueError("no choice belongs to a query of known size")
    return pd.concat(tables, ignore_index=True).assign(lvlm=lvlm, dataset=dataset)[SIZE_COLUMNS]


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


def correlation_interval(
    x: np.ndarray, y: np.ndarray, images: np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of Pearson's r (-1 to 1) of x [n] and y [n] when the images [n], codes 0..m-1, are drawn;
    NaN where one of them is constant."""
    moments = _bootstrap(np.column_stack([x, y, x * x, y * y, x * y]).astype(float), images, draws, seed)
    mean_x, mean_y, xx, yy, xy = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))
    lo, hi = np.nanquantile(r, INTERVAL) if np.isfinite(r).any() else (np.nan, np.nan)
    return float(lo), float(hi)


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
        wide, images = _per_query(choices[choices["method"].isin(methods)], queries)
        drawn = _bootstrap(wide["hit"][methods].to_numpy(float), images, draws, [seed, datasets.index(dataset)])
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
    odds_ratio: gained / lost, with its exact 95 % interval (Clopper-Pearson of gained / (gained + lost)); from 0 to
        inf, 1 is no effect, NaN without a query that they differ on
    p_mcnemar: as `mcnemar`, which takes queries of one image as independent; p_bootstrap does not
    p_*_holm: `holm` over the rows, those that hit the same queries as one test. The reference, the oracle and the mean
        over the samples are no row.
    """
    wide, images = _per_query(choices, queries)
    if reference not in wide["hit"]:
        raise ValueError(f"no choices of the reference method {reference!r}")
    methods = choices.drop_duplicates("method").set_index("method")["family"]
    methods = methods.drop([reference, RANDOM, ORACLE], errors="ignore")
    methods = methods.sort_values(key=lambda family: family.map(FAMILIES.index), kind="stable")
    hit, other = wide["hit"][list(methods.index)].to_numpy(float), wide["hit"][reference].to_numpy(float)
    gain = hit - other[:, None]
    drawn = _bootstrap(gain, images, draws, seed)
    lo, hi = np.quantile(drawn, INTERVAL, axis=0)
    gained, lost = (gain > 0).sum(axis=0), (gain < 0).sum(axis=0)
    odds = np.array([_odds(*counts) for counts in zip(gained, lost)]).reshape(-1, 3)
    _, tests, test_of = np.unique(gain, axis=1, return_index=True, return_inverse=True)
    p_bootstrap, p_mcnemar = _p_value(drawn), np.array([mcnemar(column, other) for column in hit.T])
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
            "odds_ratio": odds[:, 0],
            "odds_ratio_lo": odds[:, 1],
            "odds_ratio_hi": odds[:, 2],
            "p_mcnemar": p_mcnemar,
            "p_mcnemar_holm": holm(p_mcnemar[tests])[test_of],
        }
    )
    return table[SIGNIFICANCE_COLUMNS]


def _odds(gained: int, lost: int) -> tuple[float, float, float]:
    """gained / lost and its exact 95 % interval; inf where nothing was lost, NaN where nothing differs."""
    if not gained + lost:
        return (np.nan,) * 3
    shares = stats.binomtest(int(gained), int(gained + lost)).proportion_ci(INTERVAL[1] - INTERVAL[0], "exact")
    return tuple(np.inf if share == 1 else share / (1 - share) for share in (gained / (gained + lost), *shares))


def mcnemar(hit_a: np.ndarray, hit_b: np.ndarray) -> float:
    """Exact two-sided McNemar p: are the queries that only one of two methods hits split evenly? 1 without any.

    hit_a, hit_b: [queries] of 0 and 1; anything else raises ValueError.
    """
    a, b = np.asarray(hit_a, float), np.asarray(hit_b, float)
    if not np.isin([a, b], (0, 1)).all():
        raise ValueError("McNemar's test needs hits of 0 or 1, not means over a pool")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """[k] p-values adjusted for the family-wise error (Holm), in the order given; NaN stays and is no test."""
    p_values = np.asarray(p_values, float)
    adjusted, tests = np.full(p_values.shape, np.nan), np.flatnonzero(~np.isnan(p_values))
    order = tests[np.argsort(p_values[tests], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted
