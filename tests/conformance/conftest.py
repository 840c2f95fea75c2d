"""The families that the conformance suite runs on: each a tiny, randomly initialised model of the real class.

To put a new adapter under test, add one `Family` to FAMILIES.
"""

import math

import pytest
from harness import Family, Shares, share
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from acs_lib.lvlms.adapter import LVLM
from acs_lib.lvlms.internvl import InternVL
from acs_lib.lvlms.lfm2_vl import Lfm2Images, Lfm2VL
from acs_lib.lvlms.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL

VOCABULARY = 320  # embeddings; the tokenizer knows fewer tokens, as in the published models
LAYERS, HEADS, KEY_VALUE_HEADS, WIDTH, HEAD_DIM = 3, 4, 2, 64, 16
SPREAD = 0.15  # of the random weights: wide enough for attention that is far from uniform
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=8192,
    initializer_range=SPREAD,
)  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TEMPLATE = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
INTERNVL_TEMPLATE = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
LFM2_TEMPLATE = CHATML.replace("IMAGE", "<image>")


def qwen(model_class, config_class, vision: dict, text: dict):
    """A builder of a tiny Qwen-VL model; `text` overrides the rope parameters or adds to the text configuration."""

    def model(tokenizer):
        token = tokenizer.convert_tokens_to_ids
        config = config_class(
            text_config={**TEXT, "rope_parameters": dict(MROPE), **text},
            vision_config={"initializer_range": SPREAD, "depth": 2, "num_heads": 2, **vision},
            image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        )  # fmt: skip
        return model_class._from_config(config, attn_implementation="sdpa")

    return model


def internvl(tokenizer):
    config = InternVLConfig(
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[112, 112],
            patch_size=[14, 14], initializer_range=SPREAD, layer_scale_init_value=1.0,
        ),
        text_config=Qwen3Config(**TEXT, head_dim=HEAD_DIM).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=16,
    )  # fmt: skip
    return InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")


def qwen_tokens(processor, model, width, height):
    pitch = processor.patch_size * processor.merge_size
    sides = smart_resize(height, width, pitch, processor.size["shortest_edge"], processor.size["longest_edge"])
    patches = processor.get_number_of_image_patches(height, width)
    return tuple(side // pitch for side in sides), patches // processor.merge_size**2


def internvl_tokens(processor, model, width, height):
    side = processor.size["height"]
    columns, rows = best_canvas(width, height, processor.min_patches, processor.max_patches, side)
    side = round(model.config.image_seq_length**0.5)
    tiles = processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
    return (rows * side, columns * side), tiles * side**2


def best_canvas(width, height, least, most, side) -> tuple[int, int]:
    """(columns, rows) of the canvas of tiles of `side` px whose aspect ratio is closest; ties go to the larger one that
    the image fills at least half. Written anew from InternVL's own `dynamic_preprocess`."""
    canvases = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    best, difference = (1, 1), float("inf")
    for columns, rows in sorted(canvases, key=lambda canvas: canvas[0] * canvas[1]):
        this = abs(width / height - columns / rows)
        area = side**2 * columns * rows
        if this < difference or (this == difference and width * height > 0.5 * area):
            best, difference = (columns, rows), this
    return best


def lfm2(tokenizer):
    config = Lfm2VlConfig(
        vision_config=dict(
            model_type="siglip2_vision_model", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, patch_size=16, num_patches=16, vision_use_head=False,
        ),
        text_config=Lfm2Config(
            **{**TEXT, "num_hidden_layers": 2 * LAYERS}, block_multiple_of=32,
            layer_types=["conv", "full_attention", "conv", "full_attention", "full_attention", "conv"],
        ).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), projector_hidden_size=48,
    )  # fmt: skip
    return Lfm2VlForConditionalGeneration._from_config(config, attn_implementation="sdpa")


def lfm2_tokens(processor, model, width, height):
    """Written anew from the model cards: native resolution up to a limit of tokens, and then tiles and a thumbnail."""
    pitch, tile = 32, processor.tile_size // 32
    rows, columns = (max(1, round(side / pitch)) for side in (height, width))
    limits = processor.min_image_tokens, processor.max_image_tokens
    if not limits[0] <= rows * columns <= limits[1]:
        fits, rounded = (limits[1], math.floor) if rows * columns > limits[1] else (limits[0], math.ceil)
        scale = math.sqrt(fits / (width * height))
        rows, columns = (max(1, rounded(side * scale)) for side in (height, width))
    large = round(height / pitch) * round(width / pitch) > limits[1] * processor.max_pixels_tolerance
    if not large or processor.max_tiles == 1:
        return (rows, columns), rows * columns
    across, down = best_canvas(width, height, processor.min_tiles, processor.max_tiles, processor.tile_size)
    return (down * tile, across * tile), across * down * tile**2 + rows * columns


def thousand(processor, width, height):
    return 1000, 1000


def resized(processor, width, height):
    (rows, columns), _ = qwen_tokens(processor, None, width, height)
    pitch = processor.patch_size * processor.merge_size
    return columns * pitch, rows * pitch


JSON_ANSWER = '```json\n[\n\t{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "cell 7 phone"}}\n]\n```<|im_end|>'
SMALL = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 120}
QWEN_VISION = dict(patch_size=14, spatial_merge_size=2, temporal_patch_size=2)
QWEN3_VISION = dict(
    hidden_size=32, intermediate_size=64, out_hidden_size=WIDTH, patch_size=16, spatial_merge_size=2,
    temporal_patch_size=2, num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
)  # fmt: skip
QWEN3_TEXT = {"head_dim": HEAD_DIM, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
QWEN3_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", "size": SMALL,
    "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
}  # fmt: skip
SMALL_TILES = dict(
    tile_size=128, min_tiles=2, max_tiles=6, min_image_tokens=4, max_image_tokens=64, max_pixels_tolerance=0.5
)
FAMILIES = [
    Family(
        "qwen2-vl", Qwen2VL, QWEN_TEMPLATE,
        model=qwen(
            Qwen2VLForConditionalGeneration, Qwen2VLConfig,
            dict(QWEN_VISION, embed_dim=32, hidden_size=WIDTH, mlp_ratio=2), {},
        ),
        image_processor=lambda: Qwen2VLImageProcessorPil(size=SMALL),
        published_processor=lambda: Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056),
        hub_processor={
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
            "min_pixels": SMALL["shortest_edge"], "max_pixels": SMALL["longest_edge"], "patch_size": 14,
            "temporal_patch_size": 2, "merge_size": 2,
        },
        extent=thousand, tokens=qwen_tokens,
        answer="<|object_ref_start|>cat 9<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|><|im_end|>",
    ),
    Family(
        "qwen2.5-vl", Qwen25VL, QWEN_TEMPLATE,
        model=qwen(
            Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig,
            dict(
                QWEN_VISION, hidden_size=32, intermediate_size=64, out_hidden_size=WIDTH, window_size=56,
                fullatt_block_indexes=[1],
            ), {},
        ),
        image_processor=lambda: Qwen2VLImageProcessorPil(size=SMALL),
        published_processor=lambda: Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056),
        hub_processor={
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": SMALL["shortest_edge"], "max_pixels": SMALL["longest_edge"], "patch_size": 14,
            "temporal_patch_size": 2, "merge_size": 2,
        },
        extent=resized, tokens=qwen_tokens, answer=JSON_ANSWER,
    ),
    Family(
        "qwen3-vl", Qwen3VL, QWEN_TEMPLATE,
        model=qwen(
            Qwen3VLForConditionalGeneration, Qwen3VLConfig, QWEN3_VISION, QWEN3_TEXT,
        ),
        image_processor=lambda: Qwen2VLImageProcessorPil(size=SMALL, patch_size=16),
        published_processor=lambda: Qwen2VLImageProcessorPil(
            size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16
        ),
        hub_processor=QWEN3_PROCESSOR, extent=thousand, tokens=qwen_tokens, answer=JSON_ANSWER,
    ),
    Family(
        "qwen3-vl-moe", Qwen3VL, QWEN_TEMPLATE,
        model=qwen(
            Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, QWEN3_VISION,
            {**QWEN3_TEXT, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        ),
        image_processor=lambda: Qwen2VLImageProcessorPil(size=SMALL, patch_size=16),
        published_processor=lambda: Qwen2VLImageProcessorPil(
            size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16
        ),
        hub_processor=QWEN3_PROCESSOR, extent=thousand, tokens=qwen_tokens, answer=JSON_ANSWER,
    ),
    Family(
        "internvl", InternVL, INTERNVL_TEMPLATE,
        model=internvl,
        image_processor=lambda: GotOcr2ImageProcessorPil(size={"height": 112, "width": 112}, max_patches=6),
        published_processor=lambda: GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, max_patches=12),
        hub_processor={
            "image_processor_type": "GotOcr2ImageProcessorFast", "processor_class": "InternVLProcessor",
            "size": {"height": 112, "width": 112}, "crop_to_patches": False, "min_patches": 1, "max_patches": 6,
        },
        extent=thousand, tokens=internvl_tokens,
        answer="<ref>cat 9</ref><box>[[{x1}, {y1}, {x2}, {y2}]]</box><|im_end|>",
    ),
    Family(
        "lfm2-vl", Lfm2VL, LFM2_TEMPLATE,
        model=lfm2,
        image_processor=lambda: Lfm2Images(**SMALL_TILES),
        published_processor=Lfm2Images,
        hub_processor={
            "image_processor_type": "Lfm2VlImageProcessorFast", "processor_class": "Lfm2VlProcessor",
            "do_image_splitting": True, "image_mean": [0.5, 0.5, 0.5], "max_num_patches": 1024, **SMALL_TILES,
        },
        extent=thousand, tokens=lfm2_tokens, number=share,
        answer=Shares('[{{"label": "cell 7 phone", "bbox": [{x1}, {y1}, {x2}, {y2}]}}]<|im_end|>'),
    ),
]  # fmt: skip


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(scope="session")
def lvlm(family) -> LVLM:
    """The tiny model, shared by all tests of a family: leave it as it was."""
    return family.build()
