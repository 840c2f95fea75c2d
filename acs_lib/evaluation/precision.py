"""Average precision of boxes with scores, as COCO measures it (pycocotools), with intervals over images."""

import contextlib
import copy
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from acs_lib.core.files import read_text, write_text
from acs_lib.datasets.coco import is_box
from acs_lib.evaluation.bootstrap import image_counts

MEASURES = ("ap", "ap50", "ap_small")  # mean over IoU 0.5 to 0.95; at 0.5; the first of small objects alone
SMALL = 32**2  # px, the area below which COCO calls an object small
RECALLS = np.arange(21) / 20
RESULT = ("image_id", "category_id", "bbox", "score")


def read_results(path: Path) -> list[dict]:
    """Detections in COCO's results format, a JSON list of objects with RESULT (bbox: x, y, width, height in pixels).
    ValueError names the file and what is wrong with it."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); write a list of detections in COCO's results format"
        ) from error
    if not isinstance(found, list):
        raise ValueError(f"{path} holds no list of detections; write COCO's results format")
    for place, row in enumerate(found):
        numbers = [row.get("score"), row.get("image_id"), row.get("category_id")] if isinstance(row, dict) else [None]
        if not all(type(number) in (int, float) and np.isfinite(number) for number in numbers) or not is_box(
            row.get("bbox")
        ):
            raise ValueError(
                f"{path}: entry {place} ({str(row)[:80]}) has not {', '.join(RESULT)}, all finite numbers; write "
                "COCO's results format"
            )
    return found


def write_results(path: Path, results: Iterable[dict]) -> None:
    """Write detections in COCO's results format, for any tool that reads it."""
    write_text(path, json.dumps([{name: row[name] for name in RESULT} for row in results]) + "\n")


def evaluated(truth: COCO, results: Sequence[dict], images: Sequence[int], small: float = SMALL) -> COCOeval | None:
    """The matches of detections with the annotated objects of some images; None where there is no detection. `small`:
    below which area in pixels an object is small.

    ValueError for a detection in an image that is none of these.
    """
    if not results:
        return None
    if strange := {row["image_id"] for row in results} - set(images):
        raise ValueError(f"there are detections in images that are not evaluated, such as {min(strange)}")
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCOeval(truth, truth.loadRes(copy.deepcopy(list(results))), "bbox")
        found.params.imgIds = list(images)
        found.params.maxDets = [100]
        found.params.areaRng, found.params.areaRngLbl = [[0, 1e10], [0, small]], ["all", "small"]
        found.evaluate()
    return found


def measured(matches: COCOeval | None, images: np.ndarray | None = None) -> np.ndarray:
    """MEASURES [3] (0-1, higher is better), of the images at some places alone, as often as they are named. 0 without a
    detection; NaN where there is no object of the kind."""
    if matches is None:
        return np.zeros(len(MEASURES))
    all_matches, count = matches.evalImgs, len(matches.params.imgIds)
    try:
        if images is not None:
            by_image = [all_matches[start : start + count] for start in range(0, len(all_matches), count)]
            matches.evalImgs = [part[place] for part in by_image for place in images]
        with contextlib.redirect_stdout(io.StringIO()):
            matches.accumulate()
    finally:
        matches.evalImgs = all_matches
    precision = matches.eval["precision"][..., -1]  # [IoU, recall, category, area], the most detections
    picked = (precision[..., 0], precision[:1, ..., 0], precision[..., 1])
    return np.array([part[part > -1].mean() if (part > -1).any() else np.nan for part in picked])


def curve(matches: COCOeval | None) -> np.ndarray:
    """Precision [21] (0-1) at RECALLS and IoU 0.5, as COCO reads it: the highest one at that recall or above, mean over
    the categories that are there. 0 without a detection."""
    if matches is None:
        return np.zeros(len(RECALLS))
    with contextlib.redirect_stdout(io.StringIO()):
        matches.accumulate()
    precision = matches.eval["precision"][0, ::5, :, 0, -1]  # [recall, category]
    return precision[:, (precision > -1).any(0)].mean(1)


def drawn_precision(matches: COCOeval | None, images: int, draws: int) -> np.ndarray:
    """MEASURES [draws, 3] when the images are drawn with replacement: the same draws for the same number of images, so
    that two methods on the same images are paired."""
    places = np.arange(images)
    return np.array([measured(matches, np.repeat(places, count)) for count in image_counts(images, draws)])
