"""Phrases and boxes as JSON lines (referring expressions, as RefCOCO's) -> the same queries as of COCO files.

    {"image": "street/1.jpg", "phrase": "the man with the red hat", "box": [12, 30, 48, 96]}

A phrase stands where a category stands: it is what the LVLM is asked for, a query if it occurs once in its image. The
units of all boxes of a file are stated once, beside the file: xyxy or xywh, in pixels, in 0-1 or in 0-1000 of the
image. A line may state the image's width and height, in pixels; otherwise they are read off the image.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from acs_lib.core.files import read_text
from acs_lib.datasets.coco import indexed, is_box, warn_once
from acs_lib.datasets.image_files import find_images

Units = Literal["xyxy px", "xywh px", "xyxy 0-1", "xywh 0-1", "xyxy 0-1000", "xywh 0-1000"]
UNITS = get_args(Units)


def read_phrases(path: Path, images: Path, units: str) -> COCO:
    """The file as the COCO file that says the same: a phrase is a category, a line an annotation with its number.

    Lines that are no JSON object with an image, a phrase and a box of four finite numbers, and those of an image whose
    size is neither stated nor to be read, are left out and counted by a warning. ValueError names the file where none
    is left, or where the units are none of UNITS; FileNotFoundError where there is no file.
    """
    if units not in UNITS:
        raise ValueError(f"units {units!r} of {path} are not known; say one of {', '.join(UNITS)}")
    try:
        lines = [line for line in enumerate(read_text(path).splitlines(), 1) if line[1].strip()]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file of phrases at {path}") from error
    rows = dict(_rows(lines))
    paths = {name: found for name, (found, _) in find_images(images, [row["image"] for row in rows.values()]).items()}
    sizes: dict[str, tuple[int, int] | None] = {}
    content: dict[str, list[dict]] = {"images": [], "categories": [], "annotations": []}
    numbers: dict[str, dict[str, int]] = {"images": {}, "categories": {}}
    for number, row in rows.items():
        name, phrase = row["image"], row["phrase"].strip()
        if name not in sizes:
            sizes[name] = _size(row, paths[name])
        if (size := sizes[name]) is None:
            continue
        width, height = size
        entries = {"images": {"file_name": name, "width": width, "height": height}, "categories": {"name": phrase}}
        for (part, entry), key in zip(entries.items(), (name, phrase)):
            if key not in numbers[part]:
                numbers[part][key] = len(numbers[part]) + 1
                content[part].append({"id": numbers[part][key], **entry})
        content["annotations"].append({
            "id": number, "image_id": numbers["images"][name], "category_id": numbers["categories"][phrase],
            "bbox": _in_pixels(row["box"], units, width, height),
        })  # fmt: skip
    left_out = len(lines) - len(content["annotations"])
    if left_out:
        kept = {annotation["id"] for annotation in content["annotations"]}
        first = next(text for number, text in lines if number not in kept)
        told = (
            f"{path}: {left_out} of {len(lines)} lines have no image, phrase and box of four finite numbers, or no "
            f"image whose size is known (the first: {first[:120]}): left out"
        )
        if not kept:
            raise ValueError(told)
        warn_once(told)
    elif not lines:
        raise ValueError(f'{path} is empty; each line is {{"image": ..., "phrase": ..., "box": [...]}}')
    return indexed(content)


def _rows(lines: list[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, line) of those that hold what they need."""
    for number, text in lines:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        texts = [row.get("image"), row.get("phrase")] if isinstance(row, dict) else [None]
        if all(isinstance(value, str) and value.strip() for value in texts) and is_box(row.get("box")):
            yield number, row


def _size(row: dict[str, Any], path: Path | None) -> tuple[int, int] | None:
    """Width and height in pixels as the line states them, else as the image has them; None if neither can be had."""
    width, height = row.get("width"), row.get("height")
    if type(width) is int and type(height) is int and min(width, height) > 0:
        return width, height
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _in_pixels(box: list[float], units: str, width: int, height: int) -> list[float]:
    """The box as x, y, width, height in pixels."""
    corners, scale = units.split()
    sides = np.array([width, height, width, height], float)
    found = np.array(box, float) * {"px": 1, "0-1": sides, "0-1000": sides / 1000}[scale]
    if corners == "xyxy":
        found[2:] -= found[:2]
    return found.tolist()
