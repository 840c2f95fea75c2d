"""The engine against the naive way: time and memory of 11 answers and of their attention rows.

    python -m benchmarks.engine

The naive way is what transformers offers: one `generate` call with its cache for every answer (each encodes the image
and prefills the prompt anew), then for every answer one teacher-forced pass over prompt and answer with eager attention
and `output_attentions=True`. Fairer ones have a column each: one greedy call and one with `num_return_sequences=10`;
continuous batching, which prefills once and forks the cache; rows of the answers' tokens only, behind a cache that SDPA
filled. All ways run one small `Qwen2_5_VLForConditionalGeneration` with random weights and are made to write the same
JSON answer (continuous batching: as many tokens). The naive way's calls are equal work, so its time is that of one
greedy call, ten times one sampled call and eleven times one teacher-forced pass.

Seconds are CPU seconds of one thread, so that other jobs on the machine count little; a ratio is the median of the
ratios of interleaved runs. Peak memory is exact, from torch's own record of allocations. Writes
reports/benchmarks/engine.csv and engine.png.
"""

import gc
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import DynamicCache, GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.generation import ContinuousBatchingConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from acs_lib import paths
from acs_lib.core.files import replacing, write_text
from acs_lib.lvlms.attention_rows import NAME
from acs_lib.lvlms.qwen_vl import Qwen25VL
from acs_lib.method import sampling
from acs_lib.method.maps import box_coverage, head_statistics
from acs_lib.method.selection import acs_free, choose
from acs_lib.profiles import Sampling
from tests.conformance.harness import byte_tokenizer, picture

CLASS = "Qwen2_5_VLForConditionalGeneration"
PITCH = 28  # px an image token
SIDES = {20: 5, 40: 5, 80: 2}  # image tokens a side -> interleaved runs
ANSWER = '[{"bbox_2d": [128, 245, 256, 367], "label": "cup"}]<|im_end|>'
ANSWERS = 11  # greedy + 10
D_C = ((1, 0), (1, 3), (2, 2), (3, 1))  # any heads will do
FAIRER = ["num_return_sequences", "continuous_batching", "rows_of_answers_only"]
NAMES = ["measure", "lvlm_class", "image_tokens", "naive", "ours", "ratio", "unit", *FAIRER]
BLOCKS = 64  # of the cache of continuous batching, 256 tokens each; by default it fills 60 % of the memory with zeros
HOW = Sampling(samples=ANSWERS - 1, temperature=0.7, max_new_tokens=64)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build() -> Qwen25VL:
    """Of the 7B model a seventh of the layers and a fourteenth of the width: 4 layers of 256, 4 heads on 1 key-value
    head, a vocabulary that keeps the output layer's share of the weights (8 %); a tower of 4 blocks of 96, one in four
    with full attention instead of one in eight."""
    tokenizer = byte_tokenizer(TEMPLATE)
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=2048, hidden_size=256, intermediate_size=1352, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=1, max_position_embeddings=32768, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        ),
        vision_config=dict(
            depth=4, hidden_size=96, intermediate_size=256, num_heads=2, out_hidden_size=256, window_size=112,
            fullatt_block_indexes=[3],
        ),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").float()
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)
    return Qwen25VL(model, tokenizer, processor, "benchmark")


class Ways:
    """The same query answered in several ways, on the same weights."""

    def __init__(self, lvlm: Qwen25VL, side: int):
        self.lvlm, self.model = lvlm, lvlm.model
        self.prompt = lvlm.prompt(picture(side * PITCH, side * PITCH), "cup")
        self.script = lvlm.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
        self.step = len(self.script)
        ids = torch.cat([self.prompt.inputs["input_ids"], torch.tensor([self.script])], 1)
        self.whole = {
            **self.prompt.inputs, "input_ids": ids, "mm_token_type_ids": (ids == lvlm.image_token_id).int()
        }  # fmt: skip
        self.digits = [place for place, token in enumerate(self.script) if lvlm.digit_tokens[token]][1:]  # not 2d's

    def write(self, module, args, logits):
        """A forward hook of the output layer: the next token is the script's."""
        if self.step < len(self.script):
            logits = torch.full_like(logits, -30.0).index_fill_(-1, torch.tensor(self.script[self.step]), 30.0)
            self.step += 1
        return logits

    def attend(self, name: str) -> None:
        self.model.set_attn_implementation({"text_config": name})

    def generate(self, sampled: int = 0) -> None:
        """One greedy answer by transformers' own `generate`, or some sampled ones by one call."""
        self.attend("sdpa")
        self.step = 0
        how = dict(do_sample=False)
        if sampled:
            how = dict(do_sample=True, temperature=HOW.temperature, top_k=0, num_return_sequences=sampled)
        ids = self.model.generate(**self.prompt.inputs, max_new_tokens=HOW.max_new_tokens, **how)
        assert ids.shape == (sampled or 1, self.prompt.length + len(self.script))

    def continuous(self) -> None:
        """All answers, sampled, by transformers' continuous batching, which prefills the prompt once and forks its
        cache. It takes token ids alone: the tower's pass is made beside it, and no answer sees the image."""
        self.attend("sdpa")
        with torch.inference_mode():
            self.lvlm.encoded([self.prompt])
        how = GenerationConfig(
            do_sample=True, temperature=HOW.temperature, top_k=0, num_return_sequences=ANSWERS, eos_token_id=-1,
            max_new_tokens=len(self.script), pad_token_id=self.lvlm.tokenizer.pad_token_id,
        )  # fmt: skip
        found = self.model.generate_batch(
            [self.prompt.ids.tolist()], how, ContinuousBatchingConfig(num_blocks=BLOCKS), warmup=False
        )
        assert [len(answer.generated_tokens) for answer in found.values()] == [len(self.script)] * ANSWERS

    @torch.inference_mode()
    def teacher_forced(self, name: str = "eager", rows: bool = True):
        """The rows [layers, heads, digits, image tokens] of one answer from all attention matrices."""
        self.attend(name)
        output = self.model(**self.whole, use_cache=False, output_attentions=rows, logits_to_keep=1)
        if rows:
            places = torch.tensor(self.digits)[:, None] + self.prompt.length
            columns = self.prompt.grid.cells.flatten()[None]
            return torch.stack([layer[0][:, places, columns] for layer in output.attentions])

    @torch.inference_mode()
    def answers_only(self, answers: int = ANSWERS, name: str = "eager", rows: bool = True) -> list[torch.Tensor]:
        """`teacher_forced` of some answers, behind one prefill by SDPA: attention matrices of their tokens alone."""
        self.attend("sdpa")
        cache, found = DynamicCache(), []
        self.model(**self.prompt.inputs, past_key_values=cache, logits_to_keep=1)
        self.attend(name)
        _, position = self.lvlm.positions(self.prompt.inputs)
        position = position + torch.arange(len(self.script))
        for _ in range(answers):
            output = self.model(
                input_ids=torch.tensor([self.script]), position_ids=position, past_key_values=cache,
                output_attentions=rows, logits_to_keep=1,
            )  # fmt: skip
            cache.crop(-len(self.script))
            if rows:
                places, columns = torch.tensor(self.digits)[:, None], self.prompt.grid.cells.flatten()[None]
                found.append(torch.stack([layer[0][:, places, columns] for layer in output.attentions]))
        return found

    def ours(self, capture: bool, how: Sampling = HOW) -> list[dict]:
        """All answers to the query."""
        self.attend(NAME)
        self.step = 0
        (answers,) = sampling.generate(self.lvlm, [self.prompt], [0], how, capture)
        assert all(answer["token_ids"] == self.script for answer in answers)
        return answers

    @torch.inference_mode()
    def floor(self) -> None:
        """The forward passes alone, by transformers: one prefill and one batched decode."""
        self.attend("sdpa")
        cache = DynamicCache()
        self.model(**self.prompt.inputs, past_key_values=cache, logits_to_keep=1)
        token = torch.full((1, ANSWERS), self.script[0])
        _, position = self.lvlm.positions(self.prompt.inputs)
        for step in range(len(self.script) - 1):
            self.model(input_ids=token, past_key_values=cache, position_ids=(position + step).expand(3, 1, ANSWERS))

    def candidates(self):
        self.attend(NAME)
        self.step = 0
        return sampling.sample_candidates(self.lvlm, [self.prompt], ["a"], [0], ["cup"], HOW)[0][0]


def seconds(call: Callable) -> float:
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def interleaved(calls: dict[str, Callable], repeats: int) -> dict[str, np.ndarray]:
    """CPU seconds [repeats] of every call, one after the other and then in the opposite order, so that what else the
    machine does falls on all of them."""
    found = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: 1 if repeat % 2 else -1]:
            found[name].append(seconds(calls[name]))
    return {name: np.array(values) for name, values in found.items()}


def peak(call: Callable, decoding: bool = False) -> int:
    """The most bytes that `call` holds at once on the CPU; `decoding`: once the prompt is prefilled."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    held, highest, counts = 0, 0, not decoding
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        counts = counts or event.name() == "decoding"
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held) if counts else highest
    return highest


def mark_decoding(module, args, kwargs) -> None:
    """A forward pre-hook of the model, which leaves a record where the prefill is over."""
    if kwargs.get("pixel_values") is None:
        with record_function("decoding"):
            pass


def check_rows(ways: Ways) -> None:
    """All ways give the same rows."""
    ours = list(ways.ours(True)[-1]["rows"].values())[1:]
    for theirs in (ways.teacher_forced(), *ways.answers_only(1)):
        for number, row in zip(torch.split(theirs, 3, dim=2), ours, strict=True):  # three digits each
            assert (number.sum(2) - row).abs().max() < 1e-5


def row(measure: str, tokens: int, naive, ours, unit: str, **fairer) -> dict:
    """One line of the table: medians, and the median of the pairs' ratios ours / naive."""
    ratio = statistics.median(np.atleast_1d(ours) / np.atleast_1d(naive))
    values = {name: float(np.median(value)) for name, value in dict(naive=naive, ours=ours, **fairer).items()}
    return {"measure": measure, "lvlm_class": CLASS, "image_tokens": tokens, "ratio": ratio, "unit": unit, **values}


def measure(lvlm: Qwen25VL, side: int, repeats: int) -> list[dict]:
    """All lines of one image size."""
    ways, tokens = Ways(lvlm, side), side**2
    hook = ways.model.get_output_embeddings().register_forward_hook(ways.write)
    check_rows(ways)
    times = interleaved(
        {
            "greedy": ways.generate, "sampling": lambda: ways.ours(False), "capture": lambda: ways.ours(True),
            "floor": ways.floor, "sampled": lambda: ways.generate(1), "forced": ways.teacher_forced,
            "several": lambda: ways.generate(ANSWERS - 1), "continuous": ways.continuous,
            "answers only": ways.answers_only,
        },
        repeats,
    )  # fmt: skip
    naive, several = times["greedy"] + (ANSWERS - 1) * times["sampled"], times["greedy"] + times["several"]
    table = [
        row(
            "11 answers",
            tokens,
            naive,
            times["sampling"],
            "s",
            num_return_sequences=several,
            continuous_batching=times["continuous"],
        ),
        row(
            "11 answers and rows",
            tokens,
            naive + ANSWERS * times["forced"],
            times["capture"],
            "s",
            rows_of_answers_only=several + times["answers only"],
        ),
        row("11 answers, to one greedy", tokens, times["greedy"], times["sampling"], "s"),
        row("11 answers, to the floor", tokens, times["floor"], times["sampling"], "s"),
        row("capture, to none", tokens, times["sampling"], times["capture"], "s"),
    ]
    marker = ways.model.register_forward_pre_hook(mark_decoding, with_kwargs=True)
    full = peak(ways.teacher_forced) - peak(lambda: ways.teacher_forced("sdpa", rows=False))
    one, all_ = (
        peak(lambda how=how: ways.ours(True, how), decoding=True)
        - peak(lambda how=how: ways.ours(False, how), decoding=True)
        for how in (Sampling(samples=0, max_new_tokens=64), HOW)
    )
    part = peak(lambda: ways.answers_only(1), decoding=True) - peak(
        lambda: ways.answers_only(1, "sdpa", rows=False), decoding=True
    )
    table += [
        row("memory of one answer's rows", tokens, full / 1e6, one / 1e6, "MB", rows_of_answers_only=part / 1e6),
        row("memory of 11 answers' rows", tokens, full / 1e6, all_ / 1e6, "MB", rows_of_answers_only=part / 1e6),
    ]
    found = ways.candidates()
    coverage = box_coverage(found.boxes, found.width, found.height, found.maps.shape[-2:])
    selector = acs_free(D_C)
    choices = interleaved(
        {
            "maps": lambda: head_statistics(found.maps, coverage),
            "choice": lambda: choose(selector.score(found), found.parsed),
        },
        25,
    )
    milliseconds = {name: 1000 * values / ANSWERS for name, values in choices.items()}
    table.append(row("ACS-Free, a candidate", tokens, milliseconds["maps"], milliseconds["choice"], "ms"))
    hook.remove(), marker.remove()
    return table


def plot(table: pd.DataFrame):
    """Seconds and megabytes by image tokens, both axes logarithmic."""
    series = {
        "naive": ("11 answers and rows", "naive"), "ours, with rows": ("11 answers and rows", "ours"),
        "one greedy answer": ("11 answers, to one greedy", "naive"),
        "floor": ("11 answers, to the floor", "naive"),
        "num_return_sequences, rows of answers only": ("11 answers and rows", "rows_of_answers_only"),
    }  # fmt: skip
    memory = {
        "output_attentions, one answer": ("memory of one answer's rows", "naive"),
        "ours, one answer": ("memory of one answer's rows", "ours"),
        "ours, 11 answers": ("memory of 11 answers' rows", "ours"),
        "output_attentions, its tokens only": ("memory of one answer's rows", "rows_of_answers_only"),
    }
    sns.set_theme(style="whitegrid", palette="colorblind")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, lines, label in zip(axes, (series, memory), ("CPU seconds a query", "peak extra memory, MB")):
        for (name, (measured, column)), marker in zip(lines.items(), "osD^v"):
            part = table[table["measure"] == measured]
            axis.plot(part["image_tokens"], part[column], marker=marker, label=name)
        axis.set(xscale="log", yscale="log", xlabel="image tokens", ylabel=label)
        axis.set_xticks([400, 1600, 6400], ["400", "1,600", "6,400"])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    lvlm, table, folder = build(), [], paths.reports("benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    for side, repeats in SIDES.items():
        table += measure(lvlm, side, repeats)
        frame = pd.DataFrame(table, columns=NAMES).sort_values(["measure", "image_tokens"])
        write_text(folder / "engine.csv", frame.to_csv(index=False, float_format="%.5g"))
    with replacing(folder / "engine.png") as aside:
        plot(frame).savefig(aside, dpi=160, format="png")


if __name__ == "__main__":
    main()
