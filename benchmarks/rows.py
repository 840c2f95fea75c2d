"""Attention rows while `generate` writes: time and memory against the other ways to read them.

    python -m benchmarks.rows

One small `LlavaForConditionalGeneration` with random weights, a class that the kit has no adapter for, writes an answer
of TOKENS tokens to a question about an image, greedily, by transformers' own `generate`. Its rows (the attention of
each token to the image tokens) are read

- naive: `output_attentions=True`, which needs eager attention, from the matrices that `generate` returns
- hooks: by forward hooks of the attention modules, also eager, which keep only the columns of the image
- ours: by `attention_rows.following`, beside SDPA

Seconds are CPU seconds of one thread, interleaved; memory is what a way holds at its peak beyond `generate` without
rows, with SDPA. Measures and ratios as in `benchmarks.engine`; `hooks` has a column of its own. Writes
reports/benchmarks/rows.csv.
"""

import contextlib
import functools

import pandas as pd
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.lvlms import attention_rows
from benchmarks.engine import interleaved, peak, row

CLASS = "LlavaForConditionalGeneration"
NAMES = ["measure", "lvlm_class", "image_tokens", "naive", "ours", "ratio", "unit", "hooks"]
SIDES = {20: 5, 40: 3, 80: 2}  # image tokens a side -> interleaved runs
TOKENS, IMAGE, PATCH = 16, 99, 4


def build(side: int) -> LlavaForConditionalGeneration:
    """4 layers of 256 with 4 heads on 1 key-value head; a tower of one block, since it is no part of the question."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=side * PATCH,
        patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=8192,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=side**2,
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


class Ways:
    """The same answer to the same question; each way gives its rows [tokens - 1, layers, heads, image tokens]."""

    def __init__(self, side: int):
        self.model = build(side)
        ids = torch.tensor([[5, 6, *[IMAGE] * side**2, 7, 8]])
        pixels = torch.randn(1, 3, side * PATCH, side * PATCH)
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        self.columns = (ids == IMAGE).nonzero()[:, 1][None]

    def write(self, attention: str, **how):
        self.model.set_attn_implementation({"text_config": attention})
        return self.model.generate(
            **self.inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, **how
        )  # fmt: skip

    def none(self) -> None:
        self.write("sdpa")

    def naive(self) -> torch.Tensor:
        written = self.write("eager", output_attentions=True, return_dict_in_generate=True)
        steps = [torch.stack([layer[0, :, -1] for layer in step]) for step in written.attentions[1:]]
        return torch.stack([step[..., self.columns[0]] for step in steps])

    def hooks(self) -> torch.Tensor:
        kept: list[torch.Tensor] = []

        def keep(module, inputs, output) -> None:
            if output[1].shape[2] == 1:  # no prefill
                kept.append(output[1][0, :, -1, self.columns[0]])

        with contextlib.ExitStack() as hooked:
            for layer in self.model.model.language_model.layers:
                hooked.callback(layer.self_attn.register_forward_hook(keep).remove)
            self.write("eager")
        return torch.stack(kept).unflatten(0, (TOKENS - 1, -1))

    def ours(self) -> torch.Tensor:
        with attention_rows.following(self.model, self.columns) as rows:
            self.write(attention_rows.NAME)
        return torch.cat(rows)


def measure(side: int, repeats: int) -> list[dict]:
    """All lines of one image size, once the ways were seen to give the same rows."""
    ways, tokens = Ways(side), side**2
    ours = ways.ours()
    for other in (ways.naive(), ways.hooks()):
        assert other.shape == ours.shape and (other - ours).abs().max() < 1e-5
    calls = {name: getattr(ways, name) for name in ("none", "naive", "hooks", "ours")}
    times = interleaved(calls, repeats)
    plain = peak(ways.none)
    extra = {name: (peak(call) - plain) / 1e6 for name, call in calls.items() if name != "none"}
    line = functools.partial(row, tokens=tokens)
    return [
        line("answer and rows", naive=times["naive"], ours=times["ours"], unit="s", hooks=times["hooks"]),
        line("answer and rows, to none", naive=times["none"], ours=times["ours"], unit="s"),
        line("memory of the rows", naive=extra["naive"], ours=extra["ours"], unit="MB", hooks=extra["hooks"]),
    ]


def table(sides: dict[int, int]) -> pd.DataFrame:
    """The lines of all image sizes (image tokens a side -> interleaved runs)."""
    lines = [line for side, repeats in sides.items() for line in measure(side, repeats)]
    return pd.DataFrame(lines).assign(lvlm_class=CLASS)[NAMES]


def main() -> None:
    torch.set_num_threads(1)
    found = table(SIDES)
    write_text(paths.reports("benchmarks") / "rows.csv", found.to_csv(index=False, float_format="%.5g"))
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
