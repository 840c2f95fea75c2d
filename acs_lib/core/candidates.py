"""The candidates of one query, as a selector sees them: everything but the ground truth."""

from dataclasses import dataclass, fields, replace

import numpy as np

STATISTICS = ("entropy", "mass", "mass_in_box", "peak")
ENTROPY = STATISTICS.index("entropy")
COORDINATES = ("x1", "y1", "x2", "y2")
PER_TOKEN = ("logprobs", "entropies", "mean_log_vp", "top20_logprob")
Heads = tuple[tuple[int, int], ...]  # (layer, head), counted from 0


@dataclass(frozen=True)
class Candidates:
    """n answers of one LVLM to one query; row 0 is the greedy answer, the others are sampled.

    boxes: [n, 4] xyxy in original pixels, NaN where the answer held no box
    logprobs, entropies, mean_log_vp, top20_logprob: per candidate one float array over its answer's tokens (all at
        temperature 1): log p of the chosen token; entropy H(p_t) in nats; mean over the vocabulary of log(V p);
        mean log-probability of the 20 likeliest tokens
    coordinate_tokens: per candidate the positions in its answer of the tokens that write the four numbers
    statistics: [n, 4, layers, heads, 4] float, last axis as STATISTICS: entropy in nats of the map renormalised over
        the image tokens (0 to ln h*w); attention mass on the image tokens; mass inside the box; the largest share
    maps: [n, 4, layers, heads, h, w] raw attention from each coordinate's tokens to the image tokens, or None
    """

    query_id: str
    category: str
    width: int
    height: int
    boxes: np.ndarray
    logprobs: list[np.ndarray]
    entropies: list[np.ndarray]
    mean_log_vp: list[np.ndarray]
    top20_logprob: list[np.ndarray]
    coordinate_tokens: list[np.ndarray]
    statistics: np.ndarray
    maps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def first(self, n: int) -> "Candidates":
        """The first n rows: the greedy answer and n - 1 sampled ones."""
        return self.part(slice(n))

    def part(self, rows: slice) -> "Candidates":
        """Some neighbouring rows."""
        cut = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), list | np.ndarray)
        }
        return replace(self, **cut)

    @property
    def parsed(self) -> np.ndarray:
        """[n] bool: the answer held a box."""
        return ~np.isnan(self.boxes).any(axis=1)
