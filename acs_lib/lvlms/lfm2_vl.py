"""LFM2-VL and LFM2.5-VL: 512 px tiles and a thumbnail, or one image of free size; boxes in 0-1 of the image. Most
layers of the text model are short convolutions, which have no attention rows (see `short_convolution`)."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedConfig

from acs_lib.lvlms.adapter import COMMA, LVLM, NUMBER, ImageRefused, ImageTokens, Prompt
from acs_lib.lvlms.internvl import global_cells, tile_grid
from acs_lib.lvlms.short_convolution import by_place


@dataclasses.dataclass
class Lfm2Images:
    """The family's image processor, with Pillow: transformers' own exists for torchvision alone.

    An image is one piece, each side a multiple of the pitch (the pixels of a token) and within the least and the most
    tokens, or, where it is much larger than that, tiles, and that piece behind them as their thumbnail. The settings
    are those of `preprocessor_config.json`, by default as published.
    """

    downsample_factor: int = 2
    do_image_splitting: bool = True
    min_tiles: int = 2
    max_tiles: int = 10
    use_thumbnail: bool = True
    min_image_tokens: int = 64
    max_image_tokens: int = 256
    encoder_patch_size: int = 16
    tile_size: int = 512
    max_pixels_tolerance: float = 2.0
    resample: int = Image.Resampling.BILINEAR
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_pretrained(cls, source: str, revision: str | None = None, **_: Any) -> "Lfm2Images":
        """The settings of a folder or a hub's repository; OSError where there are none."""
        settings, _ = BaseImageProcessor.get_image_processor_dict(source, revision=revision)
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in known})

    @property
    def pitch(self) -> int:
        return self.encoder_patch_size * self.downsample_factor

    @property
    def patches(self) -> int:
        """As many patches as every piece is filled up to."""
        tile = (self.tile_size // self.encoder_patch_size) ** 2 if self.do_image_splitting else 0
        return max(self.max_image_tokens * self.downsample_factor**2, tile)

    def piece(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of the image's tokens in one piece."""
        pitch, most, least = self.pitch, self.max_image_tokens, self.min_image_tokens
        columns, rows = (max(1, round(side / pitch)) for side in (width, height))
        if columns * rows > most:
            shrink = math.sqrt(width * height / (most * pitch**2))
            columns, rows = (max(1, math.floor(side / shrink / pitch)) for side in (width, height))
        elif columns * rows < least:
            grow = math.sqrt(least * pitch**2 / (width * height))
            columns, rows = (math.ceil(side * grow / pitch) for side in (width, height))
        return columns, rows

    def tiles(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of tiles; (1, 1) for an image in one piece."""
        sides = [max(self.encoder_patch_size, round(side / self.pitch) * self.pitch) for side in (width, height)]
        large = math.prod(sides) > self.max_image_tokens * self.pitch**2 * self.max_pixels_tolerance
        if not (large and self.do_image_splitting):
            return 1, 1
        return tile_grid(width, height, (self.tile_size, self.tile_size), self.min_tiles, self.max_tiles)

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """pixel_values [pieces, patches, numbers], pixel_attention_mask [pieces, patches] (1: no filling),
        spatial_shapes [pieces, 2] (rows and columns of patches): tiles row by row, then the whole image.

        Raises ImageRefused for an image so narrow that it has too many tokens even in one row.
        """
        image, (columns, rows), tile = image.convert("RGB"), self.tiles(*image.size), self.tile_size
        pieces = []
        if columns * rows > 1:
            canvas = image.resize((columns * tile, rows * tile), self.resample)
            corners = [(tile * column, tile * row) for row in range(rows) for column in range(columns)]
            pieces = [canvas.crop((x, y, x + tile, y + tile)) for x, y in corners]
        if not pieces or self.use_thumbnail:
            across, down = self.piece(*image.size)
            if across * down > self.max_image_tokens:
                raise ImageRefused(f"the aspect ratio must be at most {self.max_image_tokens}, got {image.size}")
            pieces.append(image.resize((across * self.pitch, down * self.pitch), self.resample))
        patch, mean, std = self.encoder_patch_size, *np.array([self.image_mean, self.image_std], np.float32)
        shapes = [(piece.height // patch, piece.width // patch) for piece in pieces]
        values = torch.zeros(len(pieces), self.patches, 3 * patch**2)
        mask = torch.zeros(len(pieces), self.patches, dtype=torch.int32)
        for number, (piece, (down, across)) in enumerate(zip(pieces, shapes)):
            pixels = (np.asarray(piece, np.float32) / 255 - mean) / std
            squares = pixels.reshape(down, patch, across, patch, 3).transpose(0, 2, 1, 3, 4)
            values[number, : down * across] = torch.from_numpy(squares.reshape(down * across, -1))
            mask[number, : down * across] = 1
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}


class Lfm2VL(LVLM):
    """`{"label": ..., "bbox": [x1, y1, x2, y2]}` in 0-1 of the image. Attention rows of the thumbnail are dropped, as
    InternVL's are."""

    image_token = "<image>"
    model_types = ("lfm2_vl",)
    image_processors = Lfm2Images
    makers_question = (  # of LFM2.5-VL's model cards, on grounding, as public code quotes them
        "Detect all instances of: {object}. Response must be a JSON array: "
        '[{{"label": ..., "bbox": [x1, y1, x2, y2]}}, ...]. Coordinates are normalized to [0,1].'
    )
    limits = ("max_tiles",)
    box_pattern = re.compile(rf"[\"']bbox[\"']\s*:\s*\[\s*{COMMA.join([NUMBER] * 4)}\s*\]")

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        by_place(self.model)

    @classmethod
    def count_tokens(cls, config: PreTrainedConfig, width: int, height: int, **limits: int) -> ImageTokens:
        cls.check_limits(limits)
        images = Lfm2Images(
            encoder_patch_size=config.vision_config.patch_size, downsample_factor=config.downsample_factor,
            max_tiles=limits.get("max_tiles", Lfm2Images.max_tiles),
        )  # fmt: skip
        tiles, whole = math.prod(images.tiles(width, height)), math.prod(images.piece(width, height))
        cells = tiles * (images.tile_size // images.pitch) ** 2 if tiles > 1 else whole
        pieces = tiles + (tiles > 1)
        return ImageTokens(pieces * images.patches, pieces, cells + whole * (tiles > 1), cells)

    def limit(self, **limits: int) -> None:
        super().limit(**limits)
        self.image_processor = dataclasses.replace(self.image_processor, **limits)

    def prompts(self, image: Image.Image, categories: Sequence[str]) -> list[Prompt]:
        images: Lfm2Images = self.image_processor
        processed, (columns, rows) = images(image), images.tiles(*image.size)
        tokens = (processed["spatial_shapes"] // images.downsample_factor).prod(-1).tolist()
        if columns * rows == 1:
            marks, cells = [""], torch.arange(tokens[0]).view(images.piece(*image.size)[::-1])
        else:
            cells = torch.from_numpy(global_cells(columns, rows, images.tile_size // images.pitch))
            marks = [f"<|img_row_{row + 1}_col_{column + 1}|>" for row in range(rows) for column in range(columns)]
            marks += ["<|img_thumbnail|>"] * images.use_thumbnail
        pieces = "".join(mark + self.image_token * count for mark, count in zip(marks, tokens, strict=True))
        return self.written(image, categories, f"<|image_start|>{pieces}<|image_end|>", cells, processed)

    def to_pixels(self, coordinates: np.ndarray, prompt: Prompt) -> np.ndarray:
        return coordinates * [prompt.width, prompt.height, prompt.width, prompt.height]
