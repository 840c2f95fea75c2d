"""InternVL-3 and 3.5 (transformers' own `-HF` classes): 448 px tiles and a thumbnail, 0-1000 of the original image."""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from acs_lib.lvlms.adapter import LVLM, NUMBER, ImageTokens, Prompt

SEPARATOR = r"[\s,]+"


def tile_grid(width: int, height: int, tile: tuple[int, int], min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of tiles that the image processor cuts an image of this size into; `tile` is (height, width)."""
    if max_tiles <= 1:
        return 1, 1
    return get_optimal_tiled_canvas((height, width), tile, min_tiles, max_tiles)


def global_cells(columns: int, rows: int, side: int) -> np.ndarray:
    """Index [rows*side, columns*side] into the image tokens (tiles row-major, each side x side, row-major) of every
    cell of the whole image."""
    tiles = np.arange(rows * columns * side * side).reshape(rows, columns, side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


class InternVL(LVLM):
    """Of an image of several tiles the LVLM sees the thumbnail, too. Its attention rows are dropped: maps are those of
    the tiles, and entropy and mass are over these alone (`Grid.thumbnail` keeps the thumbnail's positions).

    `<ref>X</ref><box>[[x1, y1, x2, y2]]</box>` or `[[x1, y1, x2, y2]]` alone, 0-1000 of the image.
    """

    image_token = "<IMG_CONTEXT>"
    model_types = ("internvl",)
    # of the model card's section on grounding, for RefCOCO
    makers_question = (
        "Please provide the bounding box coordinates of the region this sentence describes: <ref>{object}</ref>"
    )
    limits = ("max_tiles",)
    tiles = 1, 12  # at least and at most, of `preprocessor_config.json` as published
    box_pattern = re.compile(rf"(?:<box>[\s\[]*|\[\s*\[\s*){SEPARATOR.join([NUMBER] * 4)}\s*(?:\]|</box>)")

    @classmethod
    def count_tokens(cls, config: PreTrainedConfig, width: int, height: int, **limits: int) -> ImageTokens:
        cls.check_limits(limits)
        vision, (least, most), length = config.vision_config, cls.tiles, config.image_seq_length
        columns, rows = tile_grid(width, height, tuple(vision.image_size), least, limits.get("max_tiles", most))
        tiles = columns * rows + (columns * rows > 1)
        patches = 1 + math.prod(side // patch for side, patch in zip(vision.image_size, vision.patch_size))
        return ImageTokens(tiles * patches, tiles, tiles * length, columns * rows * length)

    def limit(self, **limits: int) -> None:
        super().limit(**limits)
        self.image_processor.max_patches = limits.get("max_tiles", self.image_processor.max_patches)

    def prompts(self, image: Image.Image, categories: Sequence[str]) -> list[Prompt]:
        processed = self.image_processor(images=[image], crop_to_patches=True, return_tensors="pt")
        size = self.image_processor.size
        columns, rows = tile_grid(
            *image.size, (size["height"], size["width"]), self.image_processor.min_patches,
            self.image_processor.max_patches,
        )  # fmt: skip
        tiles = len(processed["pixel_values"])
        tokens = self.model.config.image_seq_length
        cells = torch.from_numpy(global_cells(columns, rows, round(tokens**0.5)))
        inputs = {"pixel_values": processed["pixel_values"]}
        return self.written(image, categories, f"<img>{self.image_token * tokens * tiles}</img>", cells, inputs)
