"""Scores as confidence: does a method's score tell, over all queries, which boxes are right (IoU at least 0.5)?

Choosing compares the answers to one query; confidence compares answers to different queries, so a score can be good
at one and useless at the other. Intervals are 95 %, from drawing images with replacement, as in evaluation.accuracy.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.evaluation.accuracy import hits
from acs_lib.evaluation.bootstrap import INTERVAL, image_counts
from acs_lib.method.regressor import pearson
from acs_lib.method.selection import Selector

PUBLISHED_AUROC = {  # arXiv 2607.05978, two LVLMs of 8B parameters; other LVLMs and data than those measured here
    "mass inside the box (MTLA)": "0.890 and 0.916",
    "attention mass (SVAR)": "0.763 and 0.803",
}

PART = 100  # draws held at once
COVERAGES = np.arange(1, 21) / 20
BINS = 10  # of predicted IoU


def score_frame(
    candidates: Iterable[Candidates], truth: Mapping[str, np.ndarray], selectors: Iterable[Selector]
) -> pd.DataFrame:
    """query_id, candidate, iou (0-1) and one column of scores a selector (higher is better), one row an answer that
    holds a box; truth: query id -> [4] xyxy in original pixels."""
    selectors, parts = list(selectors), []
    for c in candidates:
        iou = bx.iou(c.boxes, np.asarray(truth[c.query_id], float))
        scores = {selector.name: selector.score(c) for selector in selectors}
        frame = pd.DataFrame({"query_id": c.query_id, "candidate": np.arange(len(c)), "iou": iou, **scores})
        parts.append(frame[c.parsed])
    return pd.concat(parts, ignore_index=True)


def won_by_image(scores: np.ndarray, positive: np.ndarray, images: np.ndarray, m: int) -> np.ndarray:
    """[m, m]: of the pairs of a positive row of image a and a negative row of image b, those in which the positive row
    has the higher score (ties count half). scores [n], positive [n] bool, images [n] codes 0..m-1."""
    won = np.zeros((m, m))
    for image in np.unique(images[~positive]):
        below = np.sort(scores[~positive & (images == image)])
        ranks = np.searchsorted(below, scores[positive]) + np.searchsorted(below, scores[positive], "right")
        won[:, image] = np.bincount(images[positive], ranks / 2, minlength=m)
    return won


def drawn_auroc(scores: np.ndarray, positive: np.ndarray, images: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUROC [draws] over the pairs of rows that each draw of images has; NaN in a draw without one of the kinds.
    scores [n], positive [n] bool, images [n] codes 0..m-1, counts [draws, m] as `image_counts` gives them."""
    m = counts.shape[1]
    won = ((counts @ won_by_image(scores, positive, images, m)) * counts).sum(1)
    kinds = [counts @ np.bincount(images[kind], minlength=m) for kind in (positive, ~positive)]
    with np.errstate(invalid="ignore"):
        return won / (kinds[0] * kinds[1])


def auroc_interval(
    scores: np.ndarray, positive: np.ndarray, images: np.ndarray, counts: np.ndarray
) -> tuple[float, float, float]:
    """AUROC and its interval (0-1; 0.5 is chance): the probability that a positive row's score is above a negative
    row's, over all pairs; counts [draws, m] as `image_counts` gives them. NaN where all rows are of one kind."""
    if positive.all() or not positive.any():
        return (np.nan,) * 3
    all_once = np.ones_like(counts[:1])
    known, *drawn = drawn_auroc(scores, positive, images, np.concatenate([all_once, counts]))
    lo, hi = np.nanquantile(drawn, INTERVAL)
    return known, lo, hi


def risk_coverage(scores: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Risk [n] (0-1, lower is better) at coverage 1/n, 2/n, ..., 1: the share of misses among the k answers with the
    highest scores, where ties are in random order (the expectation over their orders)."""
    return _errors_in_order(scores, hit)[1].cumsum() / np.arange(1, len(hit) + 1)


def _errors_in_order(scores: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, errors): rows by falling score, and their expected errors in that order."""
    order = np.argsort(-scores, kind="stable")
    errors = pd.Series(1.0 - hit).groupby(scores).transform("mean").to_numpy()
    return order, errors[order]


def area_interval(
    scores: np.ndarray, hit: np.ndarray, images: np.ndarray, counts: np.ndarray
) -> tuple[float, float, float]:
    """Area under the risk-coverage curve (mean risk over all coverages, 0-1, lower is better) and its interval; an
    uninformative score's area is the share of misses."""
    order, errors = _errors_in_order(scores, hit)
    place, drawn = images[order], []
    for start in range(0, len(counts), PART):
        weights = counts[start : start + PART, place].astype(float)
        total = weights.cumsum(1)
        risk = (weights * errors).cumsum(1) / np.maximum(total, 1)
        drawn.append((weights * risk).sum(1) / total[:, -1])
    lo, hi = np.quantile(np.concatenate(drawn), INTERVAL)
    return float(risk_coverage(scores, hit).mean()), lo, hi


def confidence_table(
    scores: pd.DataFrame, selectors: Iterable[Selector], image_of: Mapping[str, int], draws: int
) -> pd.DataFrame:
    """confidence.csv of one LVLM and dataset, one row a method and kind of answer ('all': greedy and sampled,
    'greedy': greedy alone): n, acc50 (share of hits), auroc and aurc with intervals, and the published AUROC.

    scores: as `score_frame` gives them; image_of: query id -> image
    """
    rows = []
    for answers, part in (("all", scores), ("greedy", scores[scores["candidate"] == 0])):
        images = pd.factorize(part["query_id"].map(image_of))[0]
        counts, hit = image_counts(images.max() + 1, draws), hits(part["iou"])
        for selector in selectors:
            values = part[selector.name].to_numpy(float)
            known = auroc_interval(values, hit == 1, images, counts)
            area = area_interval(values, hit, images, counts[:1000])
            published = PUBLISHED_AUROC.get(selector.name)
            rows.append((selector.name, selector.family, answers, len(hit), hit.mean(), *known, *area, published))
    names = ["method", "family", "answers", "n", "acc50", "auroc", "auroc_lo", "auroc_hi", "aurc", "aurc_lo", "aurc_hi"]
    return pd.DataFrame(rows, columns=[*names, "published_auroc"])


def curve_interval(scores: np.ndarray, hit: np.ndarray, images: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[2, coverages] ends of the interval of the risk at COVERAGES; arguments as in `area_interval`."""
    order, errors = _errors_in_order(scores, hit)
    drawn = []
    for count in counts:
        weights = count[images[order]]
        kept = np.ceil(COVERAGES * weights.sum())
        missed = np.interp(kept, np.append(0, weights.cumsum()), np.append(0, (weights * errors).cumsum()))
        drawn.append(missed / kept)
    return np.quantile(drawn, INTERVAL, axis=0)


def risk_coverage_table(
    scores: pd.DataFrame, methods: Iterable[str], image_of: Mapping[str, int], draws: int
) -> pd.DataFrame:
    """risk_coverage.csv of one LVLM and dataset: method, answers ('greedy'), coverage (0.05 to 1), risk (0-1) with its
    interval risk_lo and risk_hi, and accuracy, over the greedy answers; image_of: query id -> image."""
    part = scores[scores["candidate"] == 0]
    hit, rows = hits(part["iou"]), []
    images = pd.factorize(part["query_id"].map(image_of))[0]
    counts, kept = image_counts(images.max() + 1, draws), np.ceil(COVERAGES * len(hit)).astype(int)
    for method in methods:
        values = part[method].to_numpy(float)
        risk, ends = risk_coverage(values, hit)[kept - 1], curve_interval(values, hit, images, counts)
        rows += [(method, "greedy", *found) for found in zip(COVERAGES, risk, *ends, 1 - risk)]
    return pd.DataFrame(rows, columns=["method", "answers", "coverage", "risk", "risk_lo", "risk_hi", "accuracy"])


def reliability(
    predicted: np.ndarray, iou: np.ndarray, images: np.ndarray, draws: int
) -> tuple[pd.DataFrame, tuple[float, float, float]]:
    """Reliability of predicted IoU: (bins, expected calibration error with its interval).

    bins: from, to, n, predicted_iou and iou (means in the bin), iou_lo, iou_hi; BINS of equal width in 0-1, empty ones
    left out. The error (0-1, lower is better) is sum_b n_b / n |mean predicted - mean IoU|.
    """
    m, edges = int(images.max()) + 1, np.linspace(0, 1, BINS + 1)
    place = np.clip(np.digitize(predicted, edges) - 1, 0, BINS - 1)
    sums = np.zeros((m, BINS, 3))
    np.add.at(sums, (images, place), np.column_stack([np.ones(len(iou)), predicted, iou]))
    drawn = np.tensordot(image_counts(m, draws), sums, 1)

    def error(totals):
        return np.abs(totals[..., 1] - totals[..., 2]).sum(-1) / totals[..., 0].sum(-1)

    total, filled = sums.sum(0), sums.sum(0)[:, 0] > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        means, drawn_iou = total[:, 1:] / total[:, :1], drawn[:, filled, 2] / drawn[:, filled, 0]
    lo, hi = np.nanquantile(drawn_iou, INTERVAL, axis=0)
    frame = pd.DataFrame({
        "from": edges[:-1][filled], "to": edges[1:][filled], "n": total[filled, 0].astype(int),
        "predicted_iou": means[filled, 0], "iou": means[filled, 1], "iou_lo": lo, "iou_hi": hi,
    })  # fmt: skip
    return frame, (float(error(total)), *np.quantile(error(drawn), INTERVAL))


def within_query_r(predictions: pd.DataFrame) -> float:
    """Pearson r of predicted and true IoU after the mean of each query is taken off, over the sampled answers of
    queries whose IoUs differ (a standard deviation above 0.05): what choosing inside a query can use. NaN
    where there is no such query."""
    sampled = predictions[predictions["candidate"] > 0]
    differing = sampled[sampled.groupby("query_id")["iou"].transform("std") > 0.05]
    both = differing[["iou", "predicted_iou"]]
    centred = both - both.groupby(differing["query_id"]).transform("mean")
    return pearson(centred["predicted_iou"], centred["iou"])
