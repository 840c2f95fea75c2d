"""When to answer: a threshold on a score, with a promise about how often what is answered is wrong.

Two promises, each about questions like those that it was calibrated on, and about nothing else:

- `conformal_threshold`: of all questions, the expected share that is answered and wrong is at most alpha (conformal
  risk control, arXiv 2208.02814). The expectation is over the calibration images, too.
- `tested_threshold`: of the questions that are answered, the share of wrong answers is at most alpha, with probability
  1 - delta over the calibration images (Learn then Test, arXiv 2110.01052).

Questions about one image are not exchangeable, so the unit is the image, and images are what is drawn at random: with
W wrong answers to the Q questions about an image, W - alpha Q is to be at most 0 on average. Divided by Q_max, the most
questions about one image, which is taken to bound those about images to come, it is a loss in a range of 1. An object
that is absent is a question whose every answer is wrong.
"""

from collections.abc import Sequence

import numpy as np

NEVER = np.inf  # the threshold that nothing reaches: no promise can be kept


def image_shares(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Sums [m, ...] over the questions of each image, of values [n, ...] and the image [n] of every question, divided
    by the most questions about one image."""
    _, codes = np.unique(images, return_inverse=True)
    sums = np.zeros((codes.max() + 1, *values.shape[1:]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes).max()


def conformal_threshold(scores: np.ndarray, hit: np.ndarray, images: np.ndarray, alpha: float) -> float:
    """The lowest threshold that keeps the expected share of questions answered wrongly at most `alpha`; NEVER if none
    does.

    scores [n] (higher is surer; -inf for a question without a box), hit [n] bool, images [n]. An answer is given where
    its score is at least the threshold. The loss of an image, (W - alpha Q) / Q_max + alpha, grows as the threshold
    falls, and lies in 0-1, so with m images and mean loss R it is enough that m / (m + 1) R + 1 / (m + 1) <= alpha
    (arXiv 2208.02814, equation 4): that (W + Q_max) / (Q + Q_max) <= alpha, both summed over all images.
    """
    order = np.argsort(-scores, kind="stable")
    _, sizes = np.unique(images, return_counts=True)
    wrong = np.cumsum(~hit[order])  # of the k surest questions
    ends = np.append(scores[order][1:] < scores[order][:-1], True)  # equal scores are answered together
    most = sizes.max()
    kept = ends & ((wrong + most) / (len(hit) + most) <= alpha) & np.isfinite(scores[order])
    return float(scores[order][kept.nonzero()[0][-1]]) if kept.any() else NEVER


def p_value(losses: np.ndarray, alpha: float, delta: float) -> float:
    """Of the hypothesis that independent losses [n] in 0-1 have an expectation of at least `alpha`, by betting against
    it (arXiv 2010.09686, as Learn then Test proposes, arXiv 2110.01052): valid for any n, and small where losses vary
    little. The stakes are best for a p of `delta`. Losses are bet on in their order."""
    before = np.arange(1, len(losses) + 1)
    means = (0.5 + np.cumsum(losses)) / (before + 1)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (before + 1)
    known = np.concatenate([[0.25], variances[:-1]])  # of the losses before each
    stakes = np.minimum(1, np.sqrt(2 * np.log(1 / delta) / (len(losses) * known)))
    capital = np.cumsum(np.log1p(-stakes * (losses - alpha)))
    return float(np.exp(-max(0.0, capital.max(initial=0.0))))


def tested_threshold(
    scores: np.ndarray, hit: np.ndarray, images: np.ndarray, alpha: float, delta: float, thresholds: Sequence[float]
) -> float:
    """The lowest of some thresholds, chosen beforehand from other images, at which the share of wrong answers among
    those that are given is at most `alpha` with probability 1 - `delta`; NEVER if that can be said of none.

    The share is a ratio, so what is tested is its numerator against it: an image's wrong answers less alpha times its
    given ones, divided by Q_max, from -alpha to 1 - alpha, whose expectation has to be negative. Over the
    thresholds delta is divided (Bonferroni). scores, hit and images as in `conformal_threshold`.
    """
    given = scores[:, None] >= np.asarray(thresholds)
    losses = image_shares(given * (~hit[:, None] - alpha), images) + alpha
    level = delta / len(thresholds)
    sure = [p_value(column, alpha, level) <= level for column in losses.T]
    return min((float(threshold) for threshold, kept in zip(thresholds, sure) if kept), default=NEVER)


def outcome(scores: np.ndarray, hit: np.ndarray, threshold: float) -> dict[str, float]:
    """What a threshold gives: `answered`, the share of questions; `wrong`, the share of questions that are answered and
    wrong; `selective_risk`, the share of wrong ones among the answered (NaN of none). All 0-1."""
    given = scores >= threshold
    wrong = float((given & ~hit).mean())
    return {
        "answered": float(given.mean()),
        "wrong": wrong,
        "selective_risk": wrong / given.mean() if given.any() else np.nan,
    }
