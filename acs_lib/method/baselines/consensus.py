"""Agreement between the sampled boxes: a choice among them (medoid), and boxes made of them (fusions).

Only sampled candidates (rows 1 on) that hold a box have a voice.
"""

import numpy as np

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.core.extras import load_extra
from acs_lib.method.baselines.likelihood import mean_token_logprob
from acs_lib.method.selection import Fusion


def _voters(c: Candidates) -> np.ndarray:
    """Rows of the sampled candidates that hold a box."""
    return 1 + np.flatnonzero(c.parsed[1:])


def medoid(c: Candidates) -> np.ndarray:
    """[n] sum over the sampled boxes j of IoU(b_i, b_j), 0 to N, higher is better; b_i itself counts where sampled.

    Self-consistency (arXiv 2203.11171) with IoU in place of equality of answers.
    """
    return bx.iou(c.boxes[:, None], c.boxes[None, _voters(c)]).sum(axis=1)


def coordinate_median(c: Candidates) -> np.ndarray:
    """[4] median of each coordinate over the sampled boxes; self-consistency (arXiv 2203.11171) by coordinate."""
    voters = _voters(c)
    return np.median(c.boxes[voters], axis=0) if len(voters) else np.full(4, np.nan)


def weighted_box_fusion(c: Candidates, threshold: float = 0.55) -> np.ndarray:
    """[4] box of the heaviest cluster of sampled boxes (arXiv 1910.13302).

    A box weighs exp(mean coordinate log-probability). From the heaviest to the lightest, each one joins the cluster
    whose fused box it overlaps best, where IoU > `threshold`, or opens its own; a cluster's fused box is the weighted
    mean of its members. The paper's cluster score, mean weight times members over N, is the summed weight up to 1/N.
    """
    voters = _voters(c)
    if not len(voters):
        return np.full(4, np.nan)
    weights = np.clip(np.exp(mean_token_logprob(c)), 1e-12, None)
    clusters: list[list[int]] = []
    fused: list[np.ndarray] = []
    for row in voters[np.argsort(-weights[voters], kind="stable")]:
        overlaps = bx.iou(np.array(fused).reshape(-1, 4), c.boxes[row])
        best = int(np.argmax(overlaps)) if len(fused) else 0
        if len(fused) and overlaps[best] > threshold:
            clusters[best].append(row)
            fused[best] = np.average(c.boxes[clusters[best]], axis=0, weights=weights[clusters[best]])
        else:
            clusters.append([row])
            fused.append(c.boxes[row])
    return fused[int(np.argmax([weights[cluster].sum() for cluster in clusters]))]


def pixel_vote(c: Candidates) -> np.ndarray:
    """[4] bounding box of the largest connected region of the pixels with the most votes (GUI-RC, arXiv 2508.05615).

    Each sampled box votes for the pixels of the image whose centres it covers; regions are connected by edges, and
    the first in reading order wins a tie in size. NaN also where no box covers a pixel's centre. ImportError without
    scipy.
    """
    ndimage = load_extra("scipy.ndimage", "report")
    votes = np.zeros((c.height, c.width), np.int32)
    for x1, y1, x2, y2 in np.ceil(bx.clip(c.boxes[_voters(c)], c.width, c.height) - 0.5).astype(int):
        votes[y1:y2, x1:x2] += 1
    if not votes.any():
        return np.full(4, np.nan)
    regions, _ = ndimage.label(votes == votes.max())
    largest = int(np.argmax(np.bincount(regions.ravel())[1:]))
    rows, columns = ndimage.find_objects(regions)[largest]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], float)


FUSIONS: dict[str, Fusion] = {
    fusion.name: fusion
    for fusion in (
        Fusion("coordinate median", coordinate_median, "arXiv 2203.11171, for boxes"),
        Fusion("weighted box fusion", weighted_box_fusion, "arXiv 1910.13302"),
        Fusion("pixel vote", pixel_vote, "arXiv 2508.05615"),
    )
}
