"""Intervals and p-values from drawing images with replacement, each with all its queries (percentile bootstrap).

One generator draws (`drawn_images`); everything else here and elsewhere weights by how often an image was drawn.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

CELLS = 4_000_000  # (draw, image) pairs held at once, 32 bytes each
INTERVAL = (0.025, 0.975)


class Difference(NamedTuple):
    """A paired difference of means, its 95 % bootstrap interval and its two-sided bootstrap p."""

    delta: float
    lo: float
    hi: float
    p: float


def drawn_images(images: int, draws: int, seed: int | Sequence[int] = 0) -> Iterator[np.ndarray]:
    """Parts [some draws, images] of how often each image occurs when as many are drawn with replacement.

    They depend on the arguments alone, so that two statistics of the same images are paired.
    """
    rng, part = np.random.default_rng(seed), max(1, CELLS // images)
    for start in range(0, draws, part):
        rows = min(part, draws - start)
        picks = rng.integers(images, size=(rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(picks.ravel(), minlength=rows * images).reshape(rows, images)


def image_counts(images: int, draws: int) -> np.ndarray:
    """[draws, images] `drawn_images`, all at once."""
    return np.concatenate(list(drawn_images(images, draws)))


def estimate(row, value: str, form: str = ".2f", unit: float = 1) -> str:
    """'0.72 [0.60, 0.80]': `value` of a row of a table with its interval, in the `form`, times `unit`. Of six
    significant digits, as a reference's table has them: 0.35749998 is 35.8 %, as 0.3575 is."""
    values = (float(f"{getattr(row, value + end):.6g}") for end in ("", "_lo", "_hi"))
    point, lo, hi = (format(round(unit * each, 6), form) for each in values)
    return f"{point} [{lo}, {hi}]"


def image_sums(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[m, columns] sums of values [n, columns] over the rows of each image; images: [n] codes 0..m-1."""
    sums = np.zeros((int(images.max()) + 1, values.shape[1]))
    np.add.at(sums, images, values)
    return sums


def bootstrap_means(values: np.ndarray, images: np.ndarray, draws: int, seed: int | Sequence[int] = 0) -> np.ndarray:
    """[draws, columns] means over queries of values [queries, columns] when the images are drawn with replacement.

    images: [queries] codes 0..m-1. Means are rounded to 12 decimals: over a pool, nothing comes out as 1e-17, on one
    processor above 0 and on another below.
    """
    sums = image_sums(np.column_stack([values, np.ones(len(values))]), images)
    drawn = np.concatenate([counts @ sums for counts in drawn_images(len(sums), draws, seed)])
    return (drawn[:, :-1] / drawn[:, -1:]).round(12)


def bootstrap_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided bootstrap p of draws [draws, ...]: twice the smaller tail at 0, each (1 + count) / (1 + draws)."""
    below = 1 + (differences <= 0).sum(axis=0)
    above = 1 + (differences >= 0).sum(axis=0)
    return np.minimum(1, 2 * np.minimum(below, above) / (1 + len(differences)))


def per_query(choices: pd.DataFrame, queries: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    """({'hit', 'hit75', 'iou'}: [queries, methods], image code [queries]); ValueError unless every method has every
    query."""
    values = ("hit", "hit75", "iou")
    wide = {value: choices.pivot(index="query_id", columns="method", values=value) for value in values}
    missing = wide["hit"].isna().sum()
    if missing.any():
        raise ValueError(f"every method needs every query; missing: {missing[missing > 0].to_dict()}")
    images = queries.drop_duplicates("query_id").set_index("query_id")["image_id"].reindex(wide["hit"].index)
    if images.isna().any():
        raise ValueError(f"no image_id for queries {list(images.index[images.isna()][:5])}")
    return wide, pd.factorize(images)[0]


def paired_difference(
    choices: pd.DataFrame, queries: pd.DataFrame, method: str, reference: str, draws: int = 10_000
) -> Difference:
    """Acc@0.5 of `method` minus that of `reference`, images drawn."""
    wide, images = per_query(choices[choices["method"].isin([method, reference])], queries)
    gain = (wide["hit"][method] - wide["hit"][reference]).to_numpy(float)
    drawn = bootstrap_means(gain[:, None], images, draws)[:, 0]
    lo, hi = np.quantile(drawn, INTERVAL)
    return Difference(float(gain.mean()), float(lo), float(hi), float(bootstrap_p(drawn)))


def correlation_interval(x: np.ndarray, y: np.ndarray, images: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of Pearson's r (-1 to 1) of x [n] and y [n] when the images [n], codes 0..m-1, are drawn;
    NaN where one of them is constant."""
    moments = bootstrap_means(np.column_stack([x, y, x * x, y * y, x * y]).astype(float), images, draws)
    mean_x, mean_y, xx, yy, xy = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))
    lo, hi = np.nanquantile(r, INTERVAL) if np.isfinite(r).any() else (np.nan, np.nan)
    return float(lo), float(hi)


def share_interval(values: np.ndarray, images: np.ndarray, draws: int) -> np.ndarray:
    """[2, layers] ends of the interval of each layer's share (0-1) of the total of values [n, layers] >= 0 when the
    images, images [n] ids, are drawn with replacement."""
    sums = image_sums(values, pd.factorize(images)[0])
    drawn = image_counts(len(sums), draws) @ sums
    return np.quantile(drawn / drawn.sum(1, keepdims=True), INTERVAL, axis=0)
