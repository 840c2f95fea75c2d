"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one image of free size, one token per merged patch square, M-RoPE positions."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from acs_lib.lvlms.adapter import COMMA, LVLM, NUMBER, ImageRefused, ImageTokens, Prompt

POINTS = re.compile(rf"\(\s*{NUMBER}{COMMA}{NUMBER}\s*\)\s*,?\s*\(\s*{NUMBER}{COMMA}{NUMBER}\s*\)")
JSON_BOX = re.compile(rf"[\"']bbox_2d[\"']\s*:\s*\[\s*{COMMA.join([NUMBER] * 4)}\s*\]")


class _QwenVL(LVLM):
    """What the three generations share; coordinates are 0-1000 of the image unless a generation says otherwise."""

    image_token = "<|image_pad|>"
    limits = ("max_pixels",)
    pixels = 3136, 12845056  # of the resized image, at least and at most, of `preprocessor_config.json` as published

    @classmethod
    def count_tokens(cls, config: PreTrainedConfig, width: int, height: int, **limits: int) -> ImageTokens:
        cls.check_limits(limits)
        merge, (least, most) = config.vision_config.spatial_merge_size, cls.pixels
        pitch = config.vision_config.patch_size * merge
        rows, columns = smart_resize(height, width, pitch, least, limits.get("max_pixels", most))
        tokens = (rows // pitch) * (columns // pitch)
        return ImageTokens(tokens * merge**2, 1, tokens, tokens)

    def limit(self, **limits: int) -> None:
        """ValueError also for fewer pixels than the image processor's least."""
        super().limit(**limits)
        most, size = limits.get("max_pixels"), dict(self.image_processor.size)
        if most is None:
            return
        if most < size["shortest_edge"]:
            raise ValueError(
                f"{self.name}: max_pixels is {most}, fewer than the {size['shortest_edge']} px that the smallest image "
                "gets; raise it in the profile"
            )
        self.image_processor.size = {**size, "longest_edge": most}

    def prompts(self, image: Image.Image, categories: Sequence[str]) -> list[Prompt]:
        """Raises ImageRefused for an aspect ratio over 200, ValueError for a chat template that shows no image."""
        try:
            processed = self.image_processor(images=[image], return_tensors="pt")
        except ValueError as error:
            raise ImageRefused(str(error)) from error
        _, *patches = processed["image_grid_thw"][0].tolist()
        rows, columns = (side // self.image_processor.merge_size for side in patches)
        cells = torch.arange(rows * columns).view(rows, columns)
        inputs = {name: processed[name] for name in ("pixel_values", "image_grid_thw")}
        found = self.written(image, categories, self.image_token * cells.numel(), cells, inputs)
        for prompt in found:
            prompt.inputs["mm_token_type_ids"] = (prompt.inputs["input_ids"] == self.image_token_id).int()
        return found

    def positions(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """M-RoPE positions (temporal, height, width): [3, batch, length] and [3, batch, 1]."""
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        positions, delta = self.model.model.get_rope_index(**{name: inputs[name] for name in names})
        return positions, (delta + inputs["input_ids"].shape[1]).expand(3, -1, -1)


class Qwen2VL(_QwenVL):
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, 0-1000 of the image (arXiv 2409.12191)."""

    model_types = ("qwen2_vl",)
    box_pattern = POINTS


class Qwen25VL(_QwenVL):
    """`"bbox_2d": [x1, y1, x2, y2]` in pixels of the resized image (arXiv 2502.13923)."""

    model_types = ("qwen2_5_vl",)
    makers_question = "Locate the {object}, output its bbox coordinates using JSON format."  # cookbook on grounding
    box_pattern = JSON_BOX

    def to_pixels(self, coordinates: np.ndarray, prompt: Prompt) -> np.ndarray:
        _, rows, columns = prompt.inputs["image_grid_thw"][0].tolist()
        x = prompt.width / (columns * self.image_processor.patch_size)
        y = prompt.height / (rows * self.image_processor.patch_size)
        return coordinates * [x, y, x, y]


class Qwen3VL(_QwenVL):
    """`"bbox_2d": [x1, y1, x2, y2]`, 0-1000 of the image (arXiv 2511.21631); dense, or a mixture of experts."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    makers_question = (  # of the cookbook on 2D grounding, with one category
        'locate every instance that belongs to the following categories: "{object}". Report bbox coordinates in JSON '
        "format."
    )
    pixels = 65536, 16777216
    box_pattern = JSON_BOX
