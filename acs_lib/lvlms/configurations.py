"""The published configurations of the profiles' LVLMs, so that a run can be planned without fetching anything."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from acs_lib.lvlms.load import lvlm_config
from acs_lib.profiles import LVLMSpec

QWEN2_TEXT = dict(
    vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4,
)  # fmt: skip
QWEN3_TEXT = dict(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128,
)  # fmt: skip

INTERNVIT_300M = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, image_size=[448, 448],
    patch_size=[14, 14], attention_bias=True,
)  # fmt: skip

# What decides the size of a model, from the `config.json` of the checkpoints. The models built from these have the
# published number of parameters to the last one (the Qwen repositories' safetensors index and hub pages; the file of
# InternVL3.5-1B as public projects record it; the 8B's documentation: 8.5 B; LFM2.5-VL's card: 450 M), which a test
# holds.
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-7B-Instruct": dict(
        model_type="qwen2_vl", text_config=QWEN2_TEXT,
        vision_config=dict(depth=32, embed_dim=1280, hidden_size=3584, mlp_ratio=4, num_heads=16, patch_size=14),
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": dict(
        model_type="qwen2_5_vl", text_config=QWEN2_TEXT,
        vision_config=dict(
            depth=32, hidden_size=1280, intermediate_size=3420, out_hidden_size=3584, num_heads=16, patch_size=14,
            window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
        ),
    ),
    "Qwen/Qwen3-VL-8B-Instruct": dict(
        model_type="qwen3_vl", text_config=QWEN3_TEXT,
        vision_config=dict(
            depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=4096, num_heads=16, patch_size=16,
            num_position_embeddings=2304, deepstack_visual_indexes=[8, 16, 24],
        ),
    ),
    "Qwen/Qwen3-VL-2B-Instruct": dict(
        model_type="qwen3_vl", tie_word_embeddings=True,
        text_config=dict(
            QWEN3_TEXT, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=24, hidden_size=1024, intermediate_size=4096, out_hidden_size=2048, num_heads=16, patch_size=16,
            num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17],
        ),
    ),
    "OpenGVLab/InternVL3_5-8B-HF": dict(
        model_type="internvl", image_seq_length=256, vision_config=INTERNVIT_300M,
        text_config=dict(QWEN3_TEXT, model_type="qwen3", tie_word_embeddings=False),
    ),
    "OpenGVLab/InternVL3_5-1B-HF": dict(
        model_type="internvl", image_seq_length=256, vision_config=INTERNVIT_300M,
        text_config=dict(
            QWEN3_TEXT, model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
            num_attention_heads=16, tie_word_embeddings=False,
        ),
    ),
    "LiquidAI/LFM2.5-VL-450M": dict(
        model_type="lfm2_vl", tie_word_embeddings=True, projector_hidden_size=2048, projector_use_layernorm=False,
        text_config=dict(
            model_type="lfm2", vocab_size=65536, hidden_size=1024, intermediate_size=6656, num_hidden_layers=16,
            num_attention_heads=16, num_key_value_heads=8, full_attn_idxs=[2, 5, 8, 10, 12, 14],
        ),
        vision_config=dict(
            model_type="siglip2_vision_model", hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, patch_size=16, num_patches=256, vision_use_head=False,
        ),
    ),
}  # fmt: skip


def published_config(spec: LVLMSpec) -> PreTrainedConfig:
    """The configuration of an LVLM: the published numbers above, or the `config.json` of its folder or repository.

    Raises OSError where it is neither here nor to be had.
    """
    known = CONFIGS.get(spec.source)
    if known is None:
        return lvlm_config(spec)
    settings = {name: value for name, value in known.items() if name != "model_type"}
    return AutoConfig.for_model(known["model_type"], **{"tie_word_embeddings": False, **settings})


def meta_model(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The model of the real class, without weights, as if they were of that number format."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype)
