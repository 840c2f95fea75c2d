"""Controls: what a selector has to beat before its signal means anything.

Scores are [n] floats over one query's candidates, higher is better.
"""

import zlib

import numpy as np

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates


def greedy(c: Candidates) -> np.ndarray:
    """1 for row 0 and NaN elsewhere: always the greedy answer, parsed or not (with pool 'all')."""
    return np.where(np.arange(len(c)) == 0, 1.0, np.nan)


def random(c: Candidates) -> np.ndarray:
    """Uniform in 0-1, seeded with the CRC-32 of the query id: the same draw in every run and on every machine."""
    return np.random.default_rng(zlib.crc32(str(c.query_id).encode())).random(len(c))


def area_large(c: Candidates) -> np.ndarray:
    """log of the box area in square pixels: the prior that a larger box overlaps more. -inf for an empty box."""
    with np.errstate(divide="ignore"):
        return np.log(bx.area(c.boxes))


def area_small(c: Candidates) -> np.ndarray:
    """-log of the box area in square pixels: the prior that the smallest box is the best. -inf for an empty box."""
    scores = area_large(c)
    return np.where(np.isneginf(scores), -np.inf, -scores)
