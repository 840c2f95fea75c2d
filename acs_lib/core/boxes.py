"""Boxes: float arrays [..., 4] of (x1, y1, x2, y2) in pixels of the original image."""

import numpy as np
from numpy.typing import ArrayLike


def area(boxes: ArrayLike) -> np.ndarray:
    """Areas [...] in square pixels; 0 for an empty or inverted box."""
    boxes = np.asarray(boxes, float)
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return sides[..., 0] * sides[..., 1]


def iou(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Intersection over union [...] in 0-1 (higher is better) of broadcastable boxes; 0 where both are empty."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    corner_min = np.maximum(a[..., :2], b[..., :2])
    corner_max = np.minimum(a[..., 2:], b[..., 2:])
    intersection = area(np.concatenate([corner_min, corner_max], axis=-1))
    union = area(a) + area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def clip(boxes: ArrayLike, width: float, height: float) -> np.ndarray:
    """Boxes cut to the image [0, width] x [0, height]."""
    return np.clip(np.asarray(boxes, float), 0, [width, height, width, height])


def scale(boxes: ArrayLike, x: float, y: float) -> np.ndarray:
    """Boxes with x coordinates times `x` and y coordinates times `y`."""
    return np.asarray(boxes, float) * [x, y, x, y]


def as_coco(boxes: ArrayLike, scores: ArrayLike, image_id: int, category_id: int) -> list[dict]:
    """Boxes [n, 4] and their scores [n] in COCO's results format (bbox is x, y, width, height), for COCOeval and other
    tools."""
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for (x1, y1, x2, y2), score in zip(np.asarray(boxes, float).tolist(), np.asarray(scores, float).tolist())
    ]


def area_fraction(boxes: ArrayLike, width: float, height: float) -> np.ndarray:
    """Share [...] of the image's area, 0-1."""
    return area(boxes) / (width * height)
