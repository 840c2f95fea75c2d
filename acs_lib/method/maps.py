"""Attention maps of the four coordinates (paper, step 2): from rows to maps, what a map says, and the mean map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import STATISTICS, Heads


def coordinate_maps(
    rows: dict[int, torch.Tensor], tokens: list[list[int]], grid_shape: Sequence[int], row: str = "own"
) -> torch.Tensor | None:
    """Maps [4, layers, heads, h, w] float32 of the four numbers: the mean of the rows of a number's tokens, or the last
    row (see Sampling). None if a number has no row: no token stands between it and the next."""
    found = [[rows[token] for token in number if token in rows] for number in tokens]
    if row == "after" and not all(number[-1] in rows for number in tokens):
        return None
    if row in ("last", "after"):
        maps = torch.stack([number[-1] for number in found])
    else:
        maps = torch.stack([sum(read[1:], read[0]) / len(number) for read, number in zip(found, tokens)])
    return maps.unflatten(-1, tuple(grid_shape))


def pool_maps(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Maps [n, 4, layers, heads, h, w] as means over the windows of a grid (rows, columns), whatever their own shape.
    Where h and w are no multiples of the grid's, neighbouring windows share cells. NaN (an answer without a box)
    stays."""
    if maps.shape[-2:] == grid:
        return maps
    return functional.adaptive_avg_pool2d(maps.flatten(1, 3).float(), grid).view(*maps.shape[:4], *grid).to(maps.dtype)


def box_coverage(boxes: np.ndarray, width: int, height: int, grid_shape: Sequence[int]) -> np.ndarray:
    """Share [n, h, w] in 0-1 of every grid cell that each box [n, 4] covers."""
    rows, columns = grid_shape
    scaled = bx.scale(boxes, columns / width, rows / height)
    x, y = np.arange(columns), np.arange(rows)
    overlap_x = np.minimum(scaled[:, 2:3], x + 1) - np.maximum(scaled[:, 0:1], x)
    overlap_y = np.minimum(scaled[:, 3:4], y + 1) - np.maximum(scaled[:, 1:2], y)
    return np.clip(overlap_y, 0, 1)[:, :, None] * np.clip(overlap_x, 0, 1)[:, None, :]


def head_statistics(maps: np.ndarray | torch.Tensor, coverage: np.ndarray) -> np.ndarray | torch.Tensor:
    """Per-head statistics [n, 4, layers, heads, 4] (see candidates.STATISTICS) of maps [n, 4, layers, heads, h, w]
    float32 and the boxes' cell coverage [n, h, w]; an array of an array, a tensor of a tensor, on its device. Entropy
    is that of the map renormalised over the image tokens (paper, section on ACS-Free; nats)."""
    cells = maps.shape[4] * maps.shape[5]
    flat: Any = maps.reshape(*maps.shape[:4], cells)
    covered: Any = coverage.reshape(len(coverage), cells).astype(np.float32)
    xp: Any = np
    if isinstance(maps, torch.Tensor):
        covered, xp = torch.from_numpy(covered).to(maps.device), torch
    mass = flat.sum(-1)
    share = flat / mass.clip(1e-12)[..., None]
    entropy = -(share * xp.log(share.clip(1e-12))).sum(-1)
    inside = xp.einsum("nclhg,ng->nclh", flat, covered)
    result = xp.stack([entropy, mass, inside, xp.amax(share, -1)], -1)
    assert result.shape[-1] == len(STATISTICS)
    return result


def mean_share(maps: np.ndarray, heads: Heads, coordinates: Sequence[int]) -> np.ndarray:
    """Where some heads look at some coordinates: [h, w] share (sums to 1) of their attention on the image tokens, each
    map counting alike.

    maps [n, 4, layers, heads, h, w]; `heads` as (layer, head), all if empty; `coordinates` as indices 0-3 of x1, y1,
    x2, y2. Zeros without an answer, or a box.
    """
    if not len(maps):
        return np.zeros(maps.shape[-2:])
    layers, columns = np.array(heads or list(np.ndindex(maps.shape[2:4]))).T
    picked = np.nan_to_num(np.asarray(maps[:, list(coordinates)][:, :, layers, columns], float))
    return (picked / np.maximum(picked.sum((-2, -1), keepdims=True), 1e-12)).mean((0, 1, 2))
