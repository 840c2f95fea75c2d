"""Scores from the attention of the coordinate tokens on the image tokens: the baselines of ACS.

Scores are [n] floats over one query's candidates, higher is better. Means run over layers, heads and the four
coordinates unless said otherwise.
"""

from collections.abc import Sequence

import numpy as np

from acs_lib.core.candidates import Candidates
from acs_lib.core.extras import load_extra
from acs_lib.method.selection import Selector, entropy_of_heads, statistic


def random_heads(layers: int, heads: int, count: int = 3, seed: int = 0) -> tuple[tuple[int, int], ...]:
    """`count` different (layer, head) pairs, the same for every query: the control for a chosen set of heads."""
    picked = np.random.default_rng(seed).choice(layers * heads, min(count, layers * heads), replace=False)
    return tuple((int(index) // heads, int(index) % heads) for index in sorted(picked))


def attention_mass(c: Candidates) -> np.ndarray:
    """Mean attention mass on the image tokens, 0-1 (visual attention ratio of SVAR, arXiv 2411.16724, all layers)."""
    return statistic(c, "mass").mean(axis=(1, 2, 3))


def mass_in_box(c: Candidates) -> np.ndarray:
    """Mean attention mass on the image tokens inside the candidate's own box, 0-1, over the middle third of layers.

    MTLA (arXiv 2607.05978): attention summed over the proposed region, averaged over the coordinate tokens, the heads
    and a band of middle layers. Layers [L // 3, L - L // 3).
    """
    inside = statistic(c, "mass_in_box")
    layers = inside.shape[2]
    return inside[:, :, layers // 3 : layers - layers // 3].mean(axis=(1, 2, 3))


def entropy_all_heads(c: Candidates) -> np.ndarray:
    """Minus the mean entropy (nats): ACS-Free without its choice of heads."""
    return -statistic(c, "entropy").mean(axis=(1, 2, 3))


def entropy_random_heads(c: Candidates) -> np.ndarray:
    """Minus the mean entropy (nats) of three random heads, the same for every query: ACS-Free's heads by chance."""
    return entropy_of_heads(c, random_heads(*c.statistics.shape[2:4]))


def spatial_entropy_of_map(attention: np.ndarray) -> float:
    """Entropy (nats) of how one map's attention splits into separate blobs; 0 for a single one (arXiv 2503.06287).

    attention: [h, w]. What exceeds the map's mean falls into connected components (8 neighbours); P_i is component
    i's share of that excess, and H = -sum_i P_i log P_i. inf for a map without a component, i.e. an even one.
    ImportError without scipy.
    """
    ndimage = load_extra("scipy.ndimage", "report")
    excess = np.clip(attention - attention.mean(), 0, None)
    excess[excess < 1e-9 * attention.max()] = 0  # the rounding of the mean of an even map
    blobs, count = ndimage.label(excess, structure=np.ones((3, 3)))
    if not count:
        return np.inf
    shares = ndimage.sum_labels(excess, blobs, np.arange(1, count + 1)) / excess.sum()
    return float(-(shares * np.log(shares)).sum())


def spatial_entropy(heads: Sequence[tuple[int, int]]) -> Selector:
    """Minus the mean spatial entropy over the maps of the localization heads and over the coordinates (2503.06287).

    heads: (layer, head) pairs counted from 0, three in the paper. Its score needs `Candidates.maps` and raises
    ValueError without them.
    """

    def score(c: Candidates) -> np.ndarray:
        if c.maps is None:
            raise ValueError(f"query {c.query_id}: spatial entropy needs the attention maps")
        layers, columns = np.asarray(heads, int).T
        maps = np.asarray(c.maps[:, :, layers, columns], float)  # [n, 4, heads, h, w]
        maps = maps.reshape(len(c), -1, *maps.shape[3:])
        return np.array([-np.mean([spatial_entropy_of_map(attention) for attention in row]) for row in maps])

    return Selector("spatial entropy", "attention", score, "arXiv 2503.06287")
