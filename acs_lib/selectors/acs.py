"""Attention-based candidate selection: the paper's two methods (arXiv 2606.01612)."""

from collections.abc import Callable, Sequence

import numpy as np

from acs_lib.candidates import Candidates
from acs_lib.selectors.attention import ALL_COORDINATES, entropy_of_heads
from acs_lib.selectors.base import Selector

ALL_HEADS = "entropy, all heads at D_c's coordinates"


def acs_free(heads: Sequence[tuple[int, int]], coordinates: Sequence[int] = ALL_COORDINATES) -> Selector:
    """ACS-Free: argmin_i R(b_i), R the mean attention entropy (nats) over the localization-critical heads D_c.

    heads: D_c as (layer, head) pairs counted from 0, found on training queries
    coordinates: which of x1, y1, x2, y2 to average over, as indices 0-3
    The score is -R, from -ln(h w) to 0. Raises ValueError without heads.
    """
    heads, coordinates = tuple(map(tuple, heads)), tuple(coordinates)
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
