"""COCO-format annotation files (COCO, Objects365, the rendered scenes) -> grounding queries.

A query asks for one object whose category occurs once in its image, as the paper's question needs. One row a query:
query_id, image_id, image (path), width, height, category, x1, y1, x2, y2 (pixels), area_fraction (0-1), size
('small', 'medium', 'large'). Questions about what is not in an image (`absent_queries`) have the size 'absent'.
"""

import contextlib
import functools
import io
import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools.coco import COCO

from acs_lib.core import boxes as bx
from acs_lib.core.files import query_key, read_text
from acs_lib.datasets.image_files import GIVEN, MISSING, NOWHERE, find_images

log = logging.getLogger(__name__)

FAR = 1e9  # px; no coordinate is as large
TRUTH = ["x1", "y1", "x2", "y2"]

# Images of Objects365 v2 that are annotated and in none of the archives, as MMDetection's `objv2_ignore_list` has them.
ABSENT = {"objects365_v2_00908726.jpg", "objects365_v1_00320532.jpg", "objects365_v1_00320534.jpg"}


def size_bin(area_fraction: float, small: float = 0.01, large: float = 0.05) -> str:
    """'small' up to and with `small`, 'large' above `large`, else 'medium'; shares of the image's area."""
    return "small" if area_fraction <= small else "large" if area_fraction > large else "medium"


# what an entry needs: whole numbers (1.0 is one), and a text that is not empty
NUMBERS = {
    "images": ("id", "width", "height"), "categories": ("id",), "annotations": ("id", "image_id", "category_id"),
}  # fmt: skip
TEXT = {"images": "file_name", "categories": "name"}


@functools.cache
def warn_once(message: str) -> None:
    """Once, however often a file is read."""
    log.warning(message)


def read_annotations(path: Path) -> COCO:
    """Load a COCO-format file.

    Entries that lack what they need, and annotations of an image or a category that is not there, are left out. Of an
    annotation without four finite numbers the `bbox` is None: its object is in the image, but nobody knows where. A
    warning counts both. ValueError names the file and what is wrong with all of it; UTF-8, see core.files.read_text.
    """
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
    told: list[str] = []
    given: dict[str, set[int]] = {}
    for part, numbers in NUMBERS.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path} has no list {part!r}; is it a COCO annotation file?")
        lack = f"lack one of {', '.join(numbers)} (whole numbers)" + (f", {TEXT[part]!r}" if part in TEXT else "")
        content[part] = _left(path, part, rows, [_sound(part, row) for row in rows], lack, told)
        given[part] = {row["id"] for row in content[part]}
        if len(given[part]) < len(content[part]):
            raise ValueError(f"{path}: an id occurs twice in {part!r}")
    rows = content["annotations"]
    owned = [row["image_id"] in given["images"] and row["category_id"] in given["categories"] for row in rows]
    absent = "are of an image or a category that is not in the file, or was left out"
    rows = content["annotations"] = _left(path, "annotations", rows, owned, absent, told)
    if no_box := [row for row in rows if not is_box(row.get("bbox"))]:
        told.append(_counted(no_box, len(rows), "annotations", "have no box of four finite numbers"))
        for row in no_box:
            row["bbox"] = None
    if told:
        warn_once(f"{path}: {'; '.join(told)}")
    return indexed(content)


def indexed(content: dict) -> COCO:
    """The content of a COCO-format file (images, annotations, categories), indexed in silence."""
    dataset = COCO()
    dataset.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset


def _sound(part: str, row: object) -> bool:
    """The entry has what it needs; its whole numbers are ints from then on."""
    if not isinstance(row, dict):
        return False
    for key in NUMBERS[part]:
        value = row.get(key)
        if type(value) is not int:  # True is none
            if not (isinstance(value, float) and value.is_integer()):
                return False
            row[key] = int(value)
    return part not in TEXT or (isinstance(row.get(TEXT[part]), str) and bool(row[TEXT[part]].strip()))


def is_box(bbox: object) -> bool:
    """Whether it is a list of four finite numbers."""
    return (
        isinstance(bbox, list) and len(bbox) == 4
        and all(type(value) in (int, float) and abs(value) < FAR for value in bbox)  # NaN is not
    )  # fmt: skip


def _counted(rows: list, of: int, part: str, what: str) -> str:
    return f"{len(rows)} of {of} {part} {what} (the first: {str(rows[0])[:120]})"


def _left(path: Path, part: str, rows: list, kept: list[bool], what: str, told: list[str]) -> list:
    """The rows that are kept; the others are told, or refused where they are all."""
    if all(kept):
        return rows
    if not any(kept):
        raise ValueError(f"{path}: all {len(rows)} {part} {what}; the first: {str(rows[0])[:120]}")
    left_out = [row for row, keep in zip(rows, kept) if not keep]
    told.append(_counted(left_out, len(rows), part, f"{what}: left out"))
    return [row for row, keep in zip(rows, kept) if keep]


def asked_for(name: str) -> str:
    """What a question by that name asks for, whatever its case and spaces."""
    return " ".join(name.split()).casefold()


def _flag(value: object) -> bool:
    """A flag of an annotation, also if it is written as a text."""
    return value.strip().lower() not in ("", "0", "false", "no") if isinstance(value, str) else bool(value)


def _is_crowd(annotation: dict) -> bool:
    return _flag(annotation.get("iscrowd")) or _flag(annotation.get("ignore"))


def _image_files(annotations: Path, root: Path, names: list[str]) -> dict[str, Path | None]:
    """Where the images lie (see image_files), with a warning if names were understood otherwise than as given."""
    found = find_images(root, names)
    counts: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for name, (_, how) in found.items():
        counts[how] += 1
        firsts.setdefault(how, name)
    if counts.keys() - {GIVEN, MISSING}:
        ways = [
            f"{counts[how]} {how} ({firsts[how]!r})" + (", which is left out" if how == NOWHERE else "")
            for how in counts
            if how != GIVEN
        ]
        warn_once(
            f"{annotations}: {counts[GIVEN]} of {len(found)} file names lead as given to an image under {root}, "
            f"{', '.join(ways)}"
        )
    return {name: path for name, (path, _) in found.items()}


def load_queries(
    name: str, annotations: Path, images: Path, small: float = 0.01, large: float = 0.05
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All queries of an annotation file, and the funnel (step, count) that led to them.

    Ambiguity goes by the name that is asked for, whatever its case and spaces, and whatever the category's id. Crowds
    (`iscrowd`, `ignore`) are no queries, and a category that also occurs as a crowd, or without a usable box, is
    ambiguous. A box that is annotated twice (same image, name and numbers, as in Objects365) counts once. Images known
    to be in no archive (`ABSENT`), and those whose file name can lead to nothing under `images`, are left out. Boxes
    are clipped to the image; those that are empty, or of an image of no size, or of one that Pillow would refuse as too
    large, are dropped and counted. Images are looked for by `find_images`; whether they are there is not asked here.
    """
    return find_queries(name, annotations, read_annotations(annotations), images, small, large)


def find_queries(
    name: str, annotations: Path, coco: COCO, images: Path, small: float = 0.01, large: float = 0.05
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`load_queries` of a file that is read already."""
    steps = ("images", "instances", "instances in the archives", "annotated once", "unambiguous", "usable boxes")
    counts = dict.fromkeys(steps, 0)
    counts["images"], counts["instances"] = len(coco.imgs), len(coco.anns)
    asked = {category_id: asked_for(category["name"]) for category_id, category in coco.cats.items()}
    with_objects = [
        image for image_id, image in coco.imgs.items()
        if image_id in coco.imgToAnns and Path(image["file_name"]).name not in ABSENT
    ]  # fmt: skip
    files = _image_files(annotations, images, [image["file_name"] for image in with_objects])
    rows = []
    for image in with_objects:
        path, annotated = files[image["file_name"]], coco.imgToAnns[image["id"]]
        if path is None:
            continue
        found = {}
        for row in annotated[::-1]:
            box = tuple(row["bbox"]) if row["bbox"] else row["id"]
            found[asked[row["category_id"]], box, _is_crowd(row)] = row
        once = list(found.values())[::-1]  # the first of equal ones, in the file's order
        counts["instances in the archives"] += len(annotated)
        counts["annotated once"] += len(once)
        per_name = Counter(asked[annotation["category_id"]] for annotation in once)
        for annotation in once:
            if per_name[asked[annotation["category_id"]]] > 1 or _is_crowd(annotation):
                continue
            counts["unambiguous"] += 1
            box = _clipped(annotation["bbox"], image)
            if box is None:
                continue
            counts["usable boxes"] += 1
            share = float(bx.area_fraction(box, image["width"], image["height"]))
            rows.append({
                "query_id": f"{name}/{image['id']}/{annotation['id']}", "image_id": image["id"], "image": str(path),
                "width": image["width"], "height": image["height"],
                "category": coco.cats[annotation["category_id"]]["name"].strip(), **dict(zip(TRUTH, box.tolist())),
                "area_fraction": share, "size": size_bin(share, small, large),
            })  # fmt: skip
    queries = pd.DataFrame(rows)
    for size in ("small", "medium", "large"):
        counts[size] = int((queries["size"] == size).sum()) if len(queries) else 0
    return queries, pd.DataFrame({"step": counts.keys(), "count": counts.values()})


def absent_queries(coco: COCO, queries: pd.DataFrame) -> pd.DataFrame:
    """One question an image of `queries` about an object that is not in it: rows of the same columns, without a box
    (NaN) and of the size 'absent'. Its category is drawn, the same every time, of those that the image has not: of the
    kin (`supercategory`) of one that it has, if there are such, which is where a wrong box is likeliest."""
    names = {key: category["name"].strip() for key, category in coco.cats.items()}
    kin, rows = {key: category.get("supercategory") for key, category in coco.cats.items()}, []
    for row in queries.drop_duplicates("image_id").to_dict("records"):
        there = {a["category_id"] for a in coco.imgToAnns[row["image_id"]]}
        said, near = {asked_for(names[key]) for key in there}, {kin[key] for key in there} - {None}
        absent = [key for key in sorted(names) if asked_for(names[key]) not in said]
        absent = [key for key in absent if kin[key] in near] or absent
        if absent:
            category = names[absent[query_key(str(row["image_id"])) % len(absent)]]
            name = row["query_id"].rpartition("/")[0] + "/absent"
            nowhere = dict.fromkeys([*TRUTH, "area_fraction"], math.nan)
            rows.append({**row, **nowhere, "query_id": name, "category": category, "size": "absent"})
    return pd.DataFrame(rows, columns=list(queries))


def _clipped(bbox: list[float] | None, image: dict[str, Any]) -> np.ndarray | None:
    if (
        bbox is None
        or min(image["width"], image["height"]) < 1
        or image["width"] * image["height"] > 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
    ):
        return None
    x, y, w, h = bbox
    box = bx.clip([x, y, x + w, y + h], image["width"], image["height"])
    return box if bx.area(box) > 0 else None
