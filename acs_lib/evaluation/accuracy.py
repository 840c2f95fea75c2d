"""From scores to chosen boxes, and from these to Acc@0.5, Acc@0.75 and mIoU with their intervals.

The unit of evaluation is a frame of choices, one record a query and method:
    query_id, method, family, candidate (its number, -1 where the box is none of them), iou (0-1), hit and
    hit75 (0-1: IoU >= 0.5 and 0.75, or the mean of that over a pool)
Queries are a frame with query_id and image_id. Queries of one image share its difficulty, so every interval comes
from drawing images, not queries, and every comparison is paired: all methods meet the same draws.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means, bootstrap_p, per_query
from acs_lib.method.selection import FAMILIES, Fusion, Selector, choose

RANDOM = "random (mean over N)"
ORACLE = "oracle best of N"
SIZES = ("small", "medium", "large")
CHOICE_COLUMNS = ["query_id", "method", "family", "candidate", "iou", "hit", "hit75"]

RATES = [f"{rate}{end}" for rate in ("acc50", "acc75", "miou") for end in ("", "_lo", "_hi")]


def hits(iou: np.ndarray, least: float = 0.5) -> np.ndarray:
    """1.0 where IoU >= `least`, else 0.0; its mean is Acc@0.5, or at another IoU."""
    return (np.asarray(iou, float) >= least).astype(float)


def make_choices(
    candidates: Iterable[Candidates], truth: Mapping[str, np.ndarray], selectors: Iterable[Selector],
    pool: str = "sampled",
) -> pd.DataFrame:  # fmt: skip
    """Frame of choices of every selector, and of two controls that no selector could be.

    truth: query id -> [4] xyxy in original pixels; a query without one raises KeyError
    'oracle best of N' takes the box of the pool with the highest IoU. 'random (mean over N)' is the exact expectation
    of a uniform draw from the candidates a selector may choose from: `iou` and hits are means over them. Where the
    pool holds no box both fall back to the greedy answer, as every selector does. No box at all: IoU 0.
    """
    selectors, rows = list(selectors), []
    for c in candidates:
        iou = bx.iou(c.boxes, np.asarray(truth[c.query_id], float))
        hit, hit75 = hits(iou), hits(iou, 0.75)
        for selector in selectors:
            row = choose(selector.score(c), c.parsed, selector.pool or pool)
            rows.append((c.query_id, selector.name, selector.family, row, iou[row], hit[row], hit75[row]))
        best = choose(iou, c.parsed, pool)
        eligible = c.parsed & (np.arange(len(c)) >= (pool == "sampled"))
        if not eligible.any():
            eligible = np.arange(len(c)) == 0
        rows.append((c.query_id, RANDOM, "control", -1, *(v[eligible].mean() for v in (iou, hit, hit75))))
        rows.append((c.query_id, ORACLE, "control", best, iou[best], hit[best], hit75[best]))
    return pd.DataFrame(rows, columns=CHOICE_COLUMNS)


def make_fusions(
    candidates: Iterable[Candidates], truth: Mapping[str, np.ndarray], fusions: Iterable[Fusion]
) -> pd.DataFrame:
    """Frame of choices (candidate -1) of the methods whose box is outside the pool; no box: IoU 0."""
    fusions = list(fusions)
    rows = [
        (c.query_id, fusion.name, fusion.family, -1, float(bx.iou(fusion.fuse(c), np.asarray(truth[c.query_id]))))
        for c in candidates
        for fusion in fusions
    ]
    choices = pd.DataFrame(rows, columns=CHOICE_COLUMNS[:-2])
    return choices.assign(hit=hits(choices["iou"]), hit75=hits(choices["iou"], 0.75))


def families_of(choices: pd.DataFrame) -> pd.Series:
    """Method -> family: controls first, then as FAMILIES come."""
    families = choices.drop_duplicates("method").set_index("method")["family"]
    return families.sort_values(key=lambda family: family.map(FAMILIES.index), kind="stable")


def accuracy_table(
    choices: pd.DataFrame, queries: pd.DataFrame, reference: str = "greedy", draws: int = 10_000
) -> pd.DataFrame:
    """method, family, n_queries, RATES, delta_vs_greedy, p_value, one row a method, in the order of `families_of`.

    Rates in 0-1 with 95 % intervals, paired cluster bootstrap over images. delta_vs_greedy is the difference of Acc@0.5
    with `reference`, p_value its two-sided bootstrap p (NaN for the reference itself; uncorrected, see `holm`). Raises
    ValueError where a method lacks a query, a query lacks an image, or the reference is absent.
    """
    wide, images = per_query(choices, queries)
    families = families_of(choices)
    names = list(families.index)
    if reference not in names:
        raise ValueError(f"no choices of the reference method {reference!r}")
    hit, hit75, iou = (wide[value][names].to_numpy(float) for value in ("hit", "hit75", "iou"))
    gain = hit - hit[:, [names.index(reference)]]
    *drawn, delta = np.split(bootstrap_means(np.hstack([hit, hit75, iou, gain]), images, draws), 4, axis=1)
    p_values = bootstrap_p(delta)
    p_values[names.index(reference)] = np.nan
    rates = [
        rate
        for values, means in zip((hit, hit75, iou), drawn)
        for rate in (values.mean(axis=0), *np.quantile(means, INTERVAL, axis=0))
    ]
    table = pd.DataFrame({"method": names, "family": list(families), "n_queries": len(hit), **dict(zip(RATES, rates))})
    return table.assign(delta_vs_greedy=gain.mean(axis=0), p_value=p_values)


def accuracy_by_size(choices: pd.DataFrame, queries: pd.DataFrame, draws: int = 10_000) -> pd.DataFrame:
    """method, size, n_queries, RATES as `accuracy_table` has them, one row a method and object size; `queries` has a
    column `size`, and of a size without choices there is no row."""
    tables = []
    for size in SIZES:
        part = choices[choices["query_id"].isin(queries.loc[queries["size"] == size, "query_id"])]
        if len(part):
            tables.append(accuracy_table(part, queries, part["method"].iloc[0], draws).assign(size=size))
    if not tables:
        raise ValueError("no choice belongs to a query of known size")
    return pd.concat(tables, ignore_index=True)[["method", "size", "n_queries", *RATES]]
