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


def spatial_entropy_of_maps(attention: np.ndarray) -> np.ndarray:
    """Entropies [n] (nats) of how each map's attention [n, h, w] splits into separate blobs; 0 for a single one (arXiv
    2503.06287).

    What exceeds the map's mean falls into connected components (8 neighbours); P_i is component i's share of that
    excess, and H = -sum_i P_i log P_i. inf for a map without a component, i.e. an even one; NaN for one of NaN.
    ImportError without scipy.
    """
    ndimage = load_extra("scipy.ndimage", "report")
    maps = np.nan_to_num(attention)
    excess = np.clip(maps - maps.mean((1, 2), keepdims=True), 0, None)
    excess[excess < 1e-9 * maps.max((1, 2), keepdims=True)] = 0  # the rounding of the mean of an even map
    within = np.zeros((3, 3, 3))
    within[1] = 1  # cells of one map touch, those of two do not
    blobs, count = ndimage.label(excess, structure=within)
    of_map = np.zeros(count + 1, int)
    of_map[blobs] = np.arange(len(maps))[:, None, None]
    total = excess.sum((1, 2))
    shares = np.bincount(blobs.ravel(), excess.ravel(), minlength=count + 1)[1:] / total[of_map[1:]]
    entropy = np.bincount(of_map[1:], -shares * np.log(shares), minlength=len(maps))
    return np.where(np.isnan(attention).any((1, 2)), np.nan, np.where(total > 0, entropy, np.inf))


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
        return -spatial_entropy_of_maps(maps.reshape(-1, *maps.shape[2:])).reshape(len(c), -1).mean(1)

    return Selector("spatial entropy", "attention", score, "arXiv 2503.06287")
