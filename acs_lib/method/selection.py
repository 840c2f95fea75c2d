"""What a selector is, and how its scores choose a candidate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from acs_lib.core.candidates import COORDINATES, STATISTICS, Candidates

FAMILIES = ("control", "likelihood", "consensus", "attention", "acs-free", "acs-learned", "fusion")
POOLS = ("sampled", "all")
RELATIVE, ABSOLUTE = 1e-5, 1e-6  # of scores, float32: equal ones differ by 1e-7, on each processor otherwise


@dataclass(frozen=True)
class Selector:
    """A score for every candidate of one query, computed without the ground truth.

    name: the method's name in every table
    family: one of FAMILIES
    score: Candidates -> [n] float, higher is better; NaN never wins
    source: the paper it comes from
    pool: 'sampled' or 'all' where the method fixes its own pool, else None
    """

    name: str
    family: str
    score: Callable[[Candidates], np.ndarray]
    source: str
    pool: str | None = None


@dataclass(frozen=True)
class Fusion:
    """A box made of several sampled ones; it need not be one of the candidates.

    fuse: Candidates -> [4] xyxy in original pixels, NaN where no sampled candidate held a box
    """

    name: str
    fuse: Callable[[Candidates], np.ndarray]
    source: str
    family: str = "fusion"


def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[...] bool: scores that differ by no more than rounding, of broadcastable arrays; numpy's `isclose`, many times
    as fast on the few scores of a query."""
    with np.errstate(invalid="ignore"):
        return (a == b) | (np.isfinite(b) & (np.abs(a - b) <= ABSOLUTE + RELATIVE * np.abs(b)))


def above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[...] 1 where score `a` is above `b`, 0.5 where both are `equal`, else 0; broadcastable arrays."""
    return np.where(equal(a, b), 0.5, np.greater(a, b))


def choose(scores: np.ndarray, parsed: np.ndarray, pool: str = "sampled") -> int:
    """Index of the best-scored candidate among those of the pool that hold a box; the first of those whose scores are
    `equal`: answers that begin alike have equal scores, and rounding must not choose among them.

    scores: [n] float, higher is better; NaN never wins
    parsed: [n] bool
    pool: 'sampled' is rows 1 on, 'all' also has the greedy row 0
    Without a candidate to choose from it is row 0, the greedy answer, whether that holds a box or not.
    Raises ValueError for an unknown pool or for arrays of different lengths.
    """
    scores, parsed = np.asarray(scores, float), np.asarray(parsed, bool)
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is not one of {POOLS}")
    if scores.shape != parsed.shape:
        raise ValueError(f"{scores.shape} scores for {parsed.shape} candidates")
    eligible = parsed & ~np.isnan(scores)
    if pool == "sampled":
        eligible[:1] = False
    rows = np.flatnonzero(eligible)
    if not len(rows):
        return 0
    return int(rows[np.argmax(equal(scores[rows], scores[rows].max()))])


ALL_COORDINATES = tuple(range(len(COORDINATES)))


def statistic(c: Candidates, name: str) -> np.ndarray:
    """[n, 4, layers, heads] of one of STATISTICS."""
    return np.asarray(c.statistics[..., STATISTICS.index(name)], float)


def over_heads(
    values: np.ndarray, heads: Sequence[tuple[int, int]], coordinates: Sequence[int] = ALL_COORDINATES
) -> np.ndarray:
    """[n] mean of values [n, 4, layers, heads] over (layer, head) pairs, counted from 0, and over the coordinates."""
    layers, columns = np.asarray(heads, int).T
    return values[:, list(coordinates)][:, :, layers, columns].mean(axis=(1, 2))


def entropy_of_heads(
    c: Candidates, heads: Sequence[tuple[int, int]], coordinates: Sequence[int] = ALL_COORDINATES
) -> np.ndarray:
    """[n] minus the mean entropy (nats) over (layer, head) pairs, counted from 0, and over the coordinates.

    Between -ln(h w), attention spread evenly over the image, and 0, all of it on one image token.
    Raises ValueError without heads.
    """
    if not len(heads):
        raise ValueError("no heads to average over")
    return -over_heads(statistic(c, "entropy"), heads, coordinates)


ALL_HEADS = "entropy, all heads at D_c's coordinates"


def acs_free(heads: Sequence[tuple[int, int]], coordinates: Sequence[int] = ALL_COORDINATES) -> Selector:
    """ACS-Free: argmin_i R(b_i), R the mean attention entropy (nats) over the localization-critical heads D_c.

    heads: D_c as (layer, head) pairs counted from 0, found on training queries
    coordinates: which of x1, y1, x2, y2 to average over, as indices 0-3
    The score is -R, from -ln(h w) to 0. Raises ValueError without heads.
    """
    heads, coordinates = tuple((layer, head) for layer, head in heads), tuple(coordinates)
    if not heads:
        raise ValueError("ACS-Free needs at least one (layer, head) pair")

    def score(c: Candidates) -> np.ndarray:
        return entropy_of_heads(c, heads, coordinates)

    return Selector("ACS-Free", "acs-free", score, "arXiv 2606.01612")


def all_heads(coordinates: Sequence[int]) -> Selector:
    """ACS-Free's own ablation: the same coordinates, the mean over all heads instead of D_c."""

    def score(c: Candidates) -> np.ndarray:
        return entropy_of_heads(c, list(np.ndindex(c.statistics.shape[2:4])), coordinates)

    return Selector(ALL_HEADS, "attention", score, "ablation of arXiv 2606.01612")


def acs_learned(predictor: Callable[[Candidates], np.ndarray]) -> Selector:
    """ACS-Learned: argmax_i f_theta(A_i), the IoU the regressor predicts from the candidate's attention alone.

    predictor: Candidates -> [n] predicted IoU
    """
    return Selector("ACS-Learned", "acs-learned", predictor, "arXiv 2606.01612")


def stored_scores(frame: pd.DataFrame, value: str) -> Callable[[Candidates], np.ndarray]:
    """Candidates -> [n] of a column of a frame with query_id and candidate; NaN for an answer that is not in it."""
    places, values = frame["candidate"].to_numpy(), frame[value].to_numpy(float)
    by_query = {query_id: (places[rows], values[rows]) for query_id, rows in frame.groupby("query_id").indices.items()}

    def scores(candidates: Candidates) -> np.ndarray:
        found = np.full(len(candidates), np.nan)
        place, score = by_query.get(candidates.query_id, (places[:0], values[:0]))
        there = place < len(candidates)
        found[place[there]] = score[there]
        return found

    return scores
