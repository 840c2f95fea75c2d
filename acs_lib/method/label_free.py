"""D_c without annotations: an answer is taken for as good as it agrees with the answers to the same question.

The box that agrees best with the others (the medoid; self-consistency, arXiv 2203.11171) stands for the ground truth.
Where an LVLM is often right its answers agree on what is right; where it is wrong in the same way again and again, the
consensus is wrong as well, and heads that follow the consensus are found.
"""

from collections.abc import Iterable

import numpy as np

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.method.baselines.consensus import medoid
from acs_lib.method.selection import choose, statistic

COUNT = 3  # heads; nothing tells how many are best without annotations
LEAST = 2  # sampled boxes, below which there is no consensus


def consensus_iou(c: Candidates) -> np.ndarray:
    """[n] IoU (0-1) of each box with the medoid of the sampled ones; NaN of the greedy answer and of the medoid itself,
    which have no say, of an answer without a box, and of all where fewer than LEAST sampled answers hold one."""
    found = np.full(len(c), np.nan)
    if c.parsed[1:].sum() >= LEAST:
        middle = choose(medoid(c), c.parsed)
        found[1:] = np.where(c.parsed[1:], bx.iou(c.boxes[1:], c.boxes[middle]), np.nan)
        found[middle] = np.nan
    return found


def agreeing(candidates: Iterable[Candidates]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `heads.separating_heads` asks for, of the answers that have a `consensus_iou`: entropy [n, 4, layers, heads]
    in nats, that IoU [n], and the ids [n] of their queries. ValueError without any."""
    entropy, iou, query = [], [], []
    for c in candidates:
        overlap = consensus_iou(c)
        known = ~np.isnan(overlap)
        entropy.append(statistic(c, "entropy")[known])
        iou.append(overlap[known])
        query += [c.query_id] * int(known.sum())
    if not query:
        raise ValueError(f"no question has {LEAST} answers with a box to agree on; give other images or objects")
    return np.concatenate(entropy), np.concatenate(iou), np.array(query)
