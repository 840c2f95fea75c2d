"""Looking again, closer: cut out a window around a first box, ask again, and map the new boxes back.

A window shows the LVLM detail that it did not see at first, where the image has more pixels than the LVLM looks at. It
can lie around a box (the greedy one, the medoid, the one that ACS chooses) or where the LVLM's attention is highest
(ViCrop, arXiv 2502.17422). Boxes of both looks are candidates of one question, so that any selector chooses between
them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import PER_TOKEN, Candidates, Heads
from acs_lib.method.maps import mean_share, pool_maps

Window = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the image


def window_around(box: np.ndarray, factor: float, width: int, height: int) -> Window:
    """The window of 1 / `factor` of the image's sides with the middle of a box [4] in its own, moved into the image
    where it would reach over the edge. Where the box is larger, the window is as large as the box. ValueError for a
    factor that is not above 1."""
    if not factor > 1:
        raise ValueError(f"to look closer the factor has to be above 1, not {factor}")
    found = []
    for low, high, side in ((box[0], box[2], width), (box[1], box[3], height)):
        length = min(side, max(1, round(side / factor), int(np.ceil(high - low))))
        begin = round((low + high - length) / 2)
        begin = min(max(0, begin), side - length)
        found.append((begin, begin + length))
    (left, right), (top, bottom) = found
    return left, top, right, bottom


def peak_box(candidates: Candidates, heads: Heads, coordinates: Sequence[int]) -> np.ndarray:
    """The cell [4], in pixels of the image, with the most attention of the greedy answer's coordinates, mean over some
    heads (all if empty); of all answers where the greedy one holds no box. NaN without any box."""
    parsed = np.flatnonzero(candidates.parsed)
    if not len(parsed):
        return np.full(4, np.nan)
    assert candidates.maps is not None
    rows = [0] if candidates.parsed[0] else parsed
    share = mean_share(candidates.maps[rows], heads, coordinates)
    row, column = np.unravel_index(share.argmax(), share.shape)
    x, y = candidates.width / share.shape[1], candidates.height / share.shape[0]
    return np.array([column * x, row * y, (column + 1) * x, (row + 1) * y])


def cut_out(image: Image.Image, window: Window) -> Image.Image:
    """The window of an image, enlarged until it is as wide or as high as the image: some LVLMs spend as many tokens on
    an image as it has pixels."""
    left, top, right, bottom = window
    scale = min(image.width / (right - left), image.height / (bottom - top))
    size = [max(1, round(side * scale)) for side in (right - left, bottom - top)]
    return image.crop(window).resize(size, Image.Resampling.BICUBIC)


def mapped_back(candidates: Candidates, window: Window, width: int, height: int) -> Candidates:
    """Candidates that were found in a window, in pixels of the whole image, clipped to the window. Maps and statistics
    stay those of the window."""
    left, top, right, bottom = window
    x, y = (right - left) / candidates.width, (bottom - top) / candidates.height
    boxes = bx.scale(candidates.boxes, x, y) + [left, top, left, top]
    return replace(candidates, boxes=boxes, width=width, height=height)


def placed(share: np.ndarray, window: Window, width: int, height: int) -> np.ndarray:
    """A share of attention [h, w] on a window as one on the whole image, on a grid of about the same cells; 0 outside
    the window."""
    left, top, right, bottom = window
    rows, columns = (
        max(cells, round(cells * whole / part))
        for cells, whole, part in zip(share.shape, (height, width), (bottom - top, right - left))
    )
    row = min(round(top / height * rows), rows - share.shape[0])
    column = min(round(left / width * columns), columns - share.shape[1])
    found = np.zeros((rows, columns))
    found[row : row + share.shape[0], column : column + share.shape[1]] = share
    return found


def joined(first: Candidates, second: Candidates) -> Candidates:
    """The candidates of both looks at one image, those of the first one first: row 0 is the first look's greedy answer.
    Maps are averaged onto the smaller grid of both."""
    if (first.width, first.height) != (second.width, second.height):
        raise ValueError("both looks have to be in pixels of the same image; map the second one back first")
    parts: dict[str, Any] = {
        name: getattr(first, name) + getattr(second, name) for name in (*PER_TOKEN, "coordinate_tokens")
    }
    for name in ("boxes", "statistics"):
        parts[name] = np.concatenate([getattr(first, name), getattr(second, name)])
    maps = None
    if first.maps is not None and second.maps is not None:
        grid = tuple(np.minimum(first.maps.shape[-2:], second.maps.shape[-2:]).tolist())
        maps = np.concatenate([pool_maps(torch.from_numpy(one.maps), grid).numpy() for one in (first, second)])
    return replace(first, **parts, maps=maps)
