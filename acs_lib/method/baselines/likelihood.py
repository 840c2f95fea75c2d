"""Scores from the token distributions the LVLM wrote its answer with.

Sums and means run over the coordinate tokens, t in T, unless said otherwise: they are what differs between two boxes.
Scores are [n] floats over one query's candidates, higher is better; -inf where an answer has no coordinate token.
"""

from collections.abc import Callable

import numpy as np

from acs_lib.core.candidates import Candidates
from acs_lib.method.selection import Selector

P_TRUE = "P(True)"
WINDOW = 4  # tokens of a DeepConf group; the paper's 2,048 are for traces of thousands of tokens


def _over_coordinates(
    c: Candidates, values: list[np.ndarray], reduce: Callable[[np.ndarray], float] = np.mean
) -> np.ndarray:
    picked = [np.asarray(row, float)[tokens] for row, tokens in zip(values, c.coordinate_tokens, strict=True)]
    return np.array([reduce(row) if len(row) else -np.inf for row in picked])


def sequence_logprob(c: Candidates) -> np.ndarray:
    """Sum over T of l_t = log p(token t), <= 0."""
    return _over_coordinates(c, c.logprobs, np.sum)


def sequence_logprob_all(c: Candidates) -> np.ndarray:
    """Sum of l_t over all tokens of the answer, <= 0."""
    return np.array([np.sum(row) if len(row) else -np.inf for row in c.logprobs])


def mean_token_logprob(c: Candidates) -> np.ndarray:
    """Mean over T of l_t, <= 0: minus the log of the perplexity."""
    return _over_coordinates(c, c.logprobs)


def min_token_probability(c: Candidates) -> np.ndarray:
    """Minimum over T of p(token t), 0-1: an answer is as sure as its least sure digit."""
    return _over_coordinates(c, c.logprobs, lambda row: np.exp(row.min()))


def token_entropy(c: Candidates) -> np.ndarray:
    """Minus the mean over T of H(p_t) in nats, <= 0."""
    return _over_coordinates(c, [-np.asarray(row, float) for row in c.entropies])


def self_certainty(c: Candidates) -> np.ndarray:
    """-mean over T and the vocabulary of log(V p_t(j)), >= 0: KL divergence of uniform from p_t (arXiv 2502.18581).

    The candidates hold the mean of log(V p), which falls as the distribution sharpens; hence the minus.
    """
    return _over_coordinates(c, [-np.asarray(row, float) for row in c.mean_log_vp])


def deepconf_mean(c: Candidates) -> np.ndarray:
    """Mean over T of C_t = -mean of the k largest log p_t(j), >= 0 (arXiv 2508.15260, average trace confidence).

    A sharp distribution leaves the k - 1 next tokens very little, so that C_t is high.
    """
    return _over_coordinates(c, [-np.asarray(row, float) for row in c.top20_logprob])


def deepconf_lowest_window(c: Candidates, window: int = WINDOW) -> np.ndarray:
    """Smallest mean of C_t over `window` neighbours in T (arXiv 2508.15260, lowest group confidence).

    With `window` coordinate tokens or fewer there is one group, and the score is `deepconf_mean`.
    """

    def lowest(confidence: np.ndarray) -> float:
        size = min(window, len(confidence))
        return np.lib.stride_tricks.sliding_window_view(confidence, size).mean(axis=1).min()

    return _over_coordinates(c, [-np.asarray(row, float) for row in c.top20_logprob], lowest)


def p_true(asked: Callable[[Candidates], np.ndarray]) -> Selector:
    """P(Yes) / (P(Yes) + P(No)) when the LVLM is asked whether the box is right, 0-1 (arXiv 2207.05221).

    asked: Candidates -> [n] scores, NaN for an answer without a box; see acs_lib.method.baselines.p_true
    """
    return Selector(P_TRUE, "likelihood", asked, "arXiv 2207.05221")
