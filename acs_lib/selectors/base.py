"""What a selector is, and how its scores choose a candidate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from acs_lib.candidates import Candidates

FAMILIES = ("control", "likelihood", "consensus", "attention", "acs-free", "acs-learned", "fusion")
POOLS = ("sampled", "all")
RESOLUTION = {"rtol": 1e-5, "atol": 1e-6}  # of scores, float32: equal ones differ by 1e-7, on each processor otherwise


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


def above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[...] 1 where score `a` is above `b`, 0.5 where both are equal up to RESOLUTION, else 0; broadcastable arrays."""
    return np.where(np.isclose(a, b, **RESOLUTION), 0.5, np.greater(a, b))


def choose(scores: np.ndarray, parsed: np.ndarray, pool: str = "sampled") -> int:
    """Index of the best-scored candidate among those of the pool that hold a box; the first of those whose scores are
    equal up to RESOLUTION: answers that begin alike have equal scores, and rounding must not choose among them.

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
    return int(rows[np.argmax(np.isclose(scores[rows], scores[rows].max(), **RESOLUTION))])
