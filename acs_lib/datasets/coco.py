"""COCO-format annotation files (COCO, Objects365, the rendered scenes) -> grounding queries.

A query asks for one object whose category occurs once in its image, as the paper's question needs. One row a query:
query_id, image_id, image (path), width, height, category, x1, y1, x2, y2 (pixels), area_fraction (0-1), size
('small', 'medium', 'large').
"""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd
from PIL import Image
from pycocotools.coco import COCO

from acs_lib.core import boxes as bx
from acs_lib.core.files import read_text

FAR = 1e9  # px; no coordinate is as large
TRUTH = ["x1", "y1", "x2", "y2"]

# Images of Objects365 v2 that are annotated and in none of the archives, as MMDetection's `objv2_ignore_list` has them.
ABSENT = {"objects365_v2_00908726.jpg", "objects365_v1_00320532.jpg", "objects365_v1_00320534.jpg"}


def size_bin(area_fraction: float, small: float = 0.01, large: float = 0.05) -> str:
    """'small' below `small`, 'large' above `large`, else 'medium'; shares of the image's area."""
    return "small" if area_fraction < small else "large" if area_fraction > large else "medium"


def image_path(root: Path, file_name: str) -> Path:
    """The image's path under `root`; ValueError if the name leads out of it."""
    try:
        path = (Path(root) / file_name).resolve()
        path.is_file()
    except (OSError, ValueError) as error:
        raise ValueError(f"file name {file_name[:80]!r} cannot be one ({error}); mend the annotation file") from error
    if not path.is_relative_to(Path(root).resolve()):
        raise ValueError(f"file name {file_name!r} leads out of {root}; mend the annotation file")
    return path


def find_image(root: Path, file_name: str) -> Path:
    """The image's path under `root` where it is: as the annotation file says, or without leading folders of that.

    Objects365 v2 names `images/v1/patch8/objects365_v1_00420917.jpg`; its archives unpack to `patch8/...`, some people
    keep `v1/patch8/...`, others all images in one folder. Where there is none of these the first one is returned.
    """
    path, parts = image_path(root, file_name), Path(file_name).parts
    if path.is_file():
        return path
    shorter = (str(Path(*parts[start:])) for start in range(1, len(parts)))
    return next((image_path(root, name) for name in shorter if (Path(root) / name).is_file()), path)


def read_annotations(path: Path) -> COCO:
    """Load a COCO-format file; ValueError names the file and what is wrong with it."""
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no annotation file at {path}; the README's section on the paper profile says what belongs there"
        ) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch or export it again") from error
    needed = {
        "images": {"id": int, "file_name": str, "width": int, "height": int},
        "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
        "categories": {"id": int, "name": str},
    }
    for part, kinds in needed.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path} has no list {part!r}; is it a COCO annotation file?")
        for row in rows:
            if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
                wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
                raise ValueError(f"{path}: an entry of {part!r} lacks one of {wanted}: {str(row)[:120]}")
        if len({row["id"] for row in rows}) < len(rows):
            raise ValueError(f"{path}: an id occurs twice in {part!r}")
    images, categories = ({row["id"] for row in content[part]} for part in ("images", "categories"))
    for row in content["annotations"]:
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise ValueError(f"{path}: annotation {row['id']} is of an image or a category that is not in the file")
    dataset = COCO()
    dataset.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset


def load_queries(
    name: str, annotations: Path, images: Path, small: float = 0.01, large: float = 0.05
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All queries of an annotation file, and the funnel (step, count) that led to them.

    Crowd boxes are no queries, and a category that also occurs as a crowd is ambiguous. A box that is annotated twice
    (same image, category and numbers, as in Objects365) counts once. Images known to be in no archive (`ABSENT`) are
    left out. Boxes are clipped to the image; those that are empty, not finite or of an image of no size, or of one that
    Pillow would refuse as too large, are dropped and counted. Images are looked for by `find_image`; whether they are
    there is not asked here.
    """
    coco = read_annotations(annotations)
    steps = ("images", "instances", "instances in the archives", "annotated once", "unambiguous", "usable boxes")
    counts = dict.fromkeys(steps, 0)
    counts["images"], counts["instances"] = len(coco.imgs), len(coco.anns)
    rows = []
    for image_id, image in coco.imgs.items():
        if Path(image["file_name"]).name in ABSENT:
            continue
        annotated = coco.imgToAnns.get(image_id, [])
        found = {(row["category_id"], str(row["bbox"]), bool(row.get("iscrowd"))): row for row in annotated[::-1]}
        found = list(found.values())[::-1]  # the first of equal ones, in the file's order
        counts["instances in the archives"] += len(annotated)
        counts["annotated once"] += len(found)
        per_category = Counter(annotation["category_id"] for annotation in found)
        path = str(find_image(images, image["file_name"]))
        for annotation in found:
            if per_category[annotation["category_id"]] > 1 or annotation.get("iscrowd"):
                continue
            counts["unambiguous"] += 1
            box = _clipped(annotation["bbox"], image)
            if box is None:
                continue
            counts["usable boxes"] += 1
            share = float(bx.area_fraction(box, image["width"], image["height"]))
            rows.append({
                "query_id": f"{name}/{image_id}/{annotation['id']}", "image_id": image_id, "image": path,
                "width": image["width"], "height": image["height"],
                "category": coco.cats[annotation["category_id"]]["name"].strip(), **dict(zip(TRUTH, box.tolist())),
                "area_fraction": share, "size": size_bin(share, small, large),
            })  # fmt: skip
    queries = pd.DataFrame(rows)
    for size in ("small", "medium", "large"):
        counts[size] = int((queries["size"] == size).sum()) if len(queries) else 0
    return queries, pd.DataFrame({"step": counts.keys(), "count": counts.values()})


def _clipped(bbox, image):
    if len(bbox) != 4 or not all(isinstance(v, int | float) and abs(v) < FAR for v in bbox):  # NaN is not
        return None
    if min(image["width"], image["height"]) < 1 or image["width"] * image["height"] > 2 * Image.MAX_IMAGE_PIXELS:
        return None
    x, y, w, h = bbox
    box = bx.clip([x, y, x + w, y + h], image["width"], image["height"])
    return box if bx.area(box) > 0 else None
