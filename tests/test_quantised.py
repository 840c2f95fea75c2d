"""Checkpoints in 4 and 8 bits, where the package of their kind is installed: loaded as they are, and rows are read."""

import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

from acs_lib import paths
from acs_lib.core.images import read_image
from acs_lib.grounding.api import samples
from acs_lib.lvlms.attention_rows import attach
from acs_lib.lvlms.load import load_checkpoint
from acs_lib.method.sampling import generate
from acs_lib.profiles import Sampling

BASE = paths.EMBEDDED / "internvl"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja")


def int8():
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bits(count):
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    return BitsAndBytesConfig(**{f"load_in_{count}bit": True})


@pytest.mark.parametrize("made", [int8, lambda: bits(8), lambda: bits(4)], ids=["torchao", "8-bit", "4-bit"])
def test_rows_of_quantised_weights_are_those_of_eager_attention(made, tmp_path):
    quantised = AutoModelForImageTextToText.from_pretrained(BASE, dtype="float32", quantization_config=made())
    quantised.save_pretrained(tmp_path)
    for name in TOKENIZER:
        if (BASE / name).is_file():
            shutil.copy(BASE / name, tmp_path)
    lvlm = load_checkpoint(tmp_path)
    kinds = {type(module.weight).__name__ for module in lvlm.model.modules() if isinstance(module, torch.nn.Linear)}
    assert kinds - {"Parameter"}, "some weights are quantised"
    scene = samples().iloc[0]
    prompt = lvlm.prompt(read_image(scene["image"]), scene["category"])
    ((greedy, _),) = generate(lvlm, [prompt], [0], Sampling(samples=1, max_new_tokens=16))
    assert len(greedy["rows"]) == 4, "a row for each number"
    ids = torch.cat([prompt.inputs["input_ids"], torch.tensor([greedy["token_ids"]])], 1)
    lvlm.model.set_attn_implementation({"text_config": "eager"})
    with torch.inference_mode():
        output = lvlm.model(
            **{**prompt.inputs, "input_ids": ids}, position_ids=lvlm.positions({"input_ids": ids})[0],
            output_attentions=True, use_cache=False,
        )  # fmt: skip
    attach(lvlm.model)
    eager = torch.stack([layer[0].float() for layer in output.attentions])[..., prompt.grid.cells.flatten()]
    for start, row in greedy["rows"].items():
        meant = eager[:, :, prompt.length + start]
        torch.testing.assert_close(row, meant, atol=0.02, rtol=0)
        assert (row.roll(1, -1) - meant).abs().max() > 0.1, "rows of other cells would be told"
