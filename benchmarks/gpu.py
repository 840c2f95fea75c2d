"""What the engine does on a GPU, in one command and a given time.

    python -m benchmarks.gpu --minutes 8         # on a machine with CUDA: the paper's two LVLMs at full size
    python -m benchmarks.gpu --tiny --out folder # the same steps on the CPU, with tiny models: numbers mean nothing

Models have the published configurations and random weights; nothing is fetched. Two layers of full width in float32
first: rows against eager attention, and greedy tokens against `generate`. Then the embedded LVLMs, on the GPU against
the CPU and the committed tables. Then the same checks in bfloat16 at full size, and what it costs, with every answer
made to be one text with 12 digits. gpu.csv is written after every line, so that a run which is cut keeps what it has; a
step that no longer fits into the minutes is left out, and its line says so, as does that of one which fails.
"""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import transformers
import typer
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.core.files import query_key, write_text
from acs_lib.core.images import read_image
from acs_lib.datasets import coco
from acs_lib.datasets.splits import load_split
from acs_lib.grounding.api import samples
from acs_lib.lvlms.adapter import LVLM, Prompt
from acs_lib.lvlms.attention_rows import attach
from acs_lib.lvlms.configurations import CONFIGS
from acs_lib.lvlms.load import adapter_of, load_checkpoint
from acs_lib.method import sampling
from acs_lib.profiles import Sampling, load_profile
from tests.conformance.harness import byte_tokenizer, picture, scripted

NAMES = ["measure", "lvlm_class", "image_tokens", "naive", "ours", "ratio", "unit", "tolerance", "card", "dtype"]
NAMES += ["torch", "transformers", "note"]
ANSWERS, REPEATS = 11, 3
HOW = Sampling(samples=ANSWERS - 1, temperature=0.7, max_new_tokens=64)
GREEDY = 24  # tokens that are compared with those of `generate`
# The share of a number's attention that eager may put elsewhere, in any layer and head. On a CPU a narrow model of 28
# layers in bfloat16 had 0.07, growing with depth; rows of the cells one to the right would have 0.34 and more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# a model's image in the chat, its answer, its image processor, and what the published settings lack or a tiny one has
QWEN = dict(
    image="<|vision_start|><|image_pad|><|vision_end|>",
    answer='[{"bbox_2d": [128, 245, 256, 367], "label": "cup"}]<|im_end|>',
    tiny=dict(hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64),
)  # fmt: skip
INTERNVL = dict(
    image="<IMG_CONTEXT>\n", answer="<ref>cup</ref><box>[[128, 245, 256, 367]]</box><|im_end|>",
    processor=lambda: GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, max_patches=12),
    mrope_section=None, two_layers=dict(num_hidden_layers=2),
    tiny=dict(hidden_size=32, intermediate_size=64, num_attention_heads=2),
)  # fmt: skip
SOURCES = "Qwen/Qwen2.5-VL-7B-Instruct", "OpenGVLab/InternVL3_5-8B-HF"  # the paper's
FAMILIES = {
    SOURCES[0]: dict(
        QWEN, processor=lambda: Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056),
        mrope_section=[16, 24, 24], two_layers=dict(depth=2, fullatt_block_indexes=[1]),
    ),
    "Qwen/Qwen3-VL-2B-Instruct": dict(
        QWEN, processor=lambda: Qwen2VLImageProcessorPil(min_pixels=65536, max_pixels=16777216, patch_size=16),
        mrope_section=[24, 20, 20], two_layers=dict(depth=2, deepstack_visual_indexes=[0]),
    ),
    SOURCES[1]: INTERNVL,
    "OpenGVLab/InternVL3_5-1B-HF": INTERNVL,
}  # fmt: skip
TINY_TEXT = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)


def configuration(source: str, token: Callable, two_layers: bool, tiny: bool) -> PreTrainedConfig:
    """The published configuration, or one of two layers, or of two tiny ones; `token`: its text -> its id."""
    family, known = FAMILIES[source], CONFIGS[source]
    text, vision = dict(known["text_config"]), dict(known["vision_config"])
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    if family["mrope_section"]:
        text["rope_parameters"]["mrope_section"] = [2, 3, 3] if tiny else family["mrope_section"]
    if two_layers or tiny:
        text["num_hidden_layers"] = 2
        vision |= family["two_layers"]
    if tiny:
        text |= TINY_TEXT
        vision |= family["tiny"]
    ids = {"image_token_id": token("<IMG_CONTEXT>")}
    if family["mrope_section"]:
        marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        ids = {f"{name}_token_id": token(f"<|{mark}|>") for name, mark in marks.items()}
    rest = {name: value for name, value in known.items() if name not in ("model_type", "text_config", "vision_config")}
    rest = {"tie_word_embeddings": False} | rest | ids
    return AutoConfig.for_model(known["model_type"], text_config=text, vision_config=vision, **rest)


def build(source: str, device: torch.device, dtype: torch.dtype, two_layers: bool, tiny: bool, tokenizer=None) -> LVLM:
    """A model of the real class with random weights, made on the device; without a tokenizer one of bytes."""
    family = FAMILIES[source]
    chat = CHAT.replace("IMAGE", family["image"])
    if tokenizer is None:
        tokenizer = byte_tokenizer(chat)
    tokenizer.chat_template = chat
    config = configuration(source, tokenizer.convert_tokens_to_ids, two_layers, tiny)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return adapter_of(config.model_type, source)(model, tokenizer, family["processor"](), source)


def on_device(lvlm: LVLM, prompt: Prompt) -> dict[str, torch.Tensor]:
    return {name: value.to(lvlm.model.device) for name, value in prompt.inputs.items()}


def theirs(lvlm: LVLM, prompt: Prompt, answers: int = 1, tokens: int = HOW.max_new_tokens, **how) -> torch.Tensor:
    """Token ids [answers, ...] by transformers' own `generate`, with SDPA."""
    lvlm.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        ids = lvlm.model.generate(
            **on_device(lvlm, prompt), max_new_tokens=tokens, bad_words_ids=[[lvlm.image_token_id]],
            num_return_sequences=answers, **how,
        )  # fmt: skip
    finally:
        attach(lvlm.model)
    return ids[:, prompt.length :]


@torch.inference_mode()
def eager_rows(lvlm: LVLM, prompt: Prompt, script: list[int]) -> torch.Tensor:
    """The rows [layers, heads, tokens, image tokens] float32 of an answer's tokens, from all attention matrices."""
    inputs = on_device(lvlm, prompt)
    ids = torch.cat([inputs["input_ids"], torch.tensor([script], device=lvlm.model.device)], 1)
    inputs["input_ids"] = ids
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (ids == lvlm.image_token_id).int()
    lvlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        output = lvlm.model(**inputs, use_cache=False, output_attentions=True, logits_to_keep=1)
    finally:
        attach(lvlm.model)
    columns = prompt.grid.cells.flatten().to(lvlm.model.device)
    return torch.stack([layer[0, :, prompt.length :][..., columns].float() for layer in output.attentions])


def rows_off(lvlm: LVLM, prompt: Prompt, answer: str) -> float:
    """The largest share (0-1) of a number's attention, of one layer and head, that eager puts on other image tokens."""
    with scripted(lvlm, answer) as script:
        how = HOW.model_copy(update={"samples": 1})
        (ours, _) = sampling.generate(lvlm, [prompt], [0], how)[0]
    assert ours["token_ids"] == script
    eager, off = eager_rows(lvlm, prompt, script), []
    for start, row in ours["rows"].items():
        stop = start
        while lvlm.digit_tokens[script[stop]]:
            stop += 1
        meant = eager[:, :, start:stop].sum(2)
        off.append(float(((row - meant).abs().sum(-1) / meant.sum(-1)).max()))
    assert len(off) >= 4
    return max(off)


def greedy_alike(lvlm: LVLM, prompt: Prompt) -> int:
    """How many of GREEDY greedy tokens are those of `generate`, up to the first other one; a shorter answer's end
    counts on."""
    (answers,) = sampling.generate(lvlm, [prompt], [0], Sampling(samples=1, max_new_tokens=GREEDY), capture=False)
    ours, meant = answers[0]["token_ids"], theirs(lvlm, prompt, tokens=GREEDY, do_sample=False)[0].tolist()
    if ours == meant:
        return GREEDY
    return next(
        (place for place, pair in enumerate(zip(ours, meant)) if pair[0] != pair[1]), min(len(ours), len(meant))
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable, device: torch.device, repeats: int) -> float:
    """Median wall seconds of a call, after a first one that does not count."""
    found = []
    for _ in range(1 + repeats):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def peak(call: Callable) -> float:
    """GB of the GPU that a call holds at its fullest, weights included."""
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 1e9


def host_waits(call: Callable) -> int:
    """How often the host waits for the GPU in a call, by PyTorch's own count."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


class Bench:
    """The steps and their time: `records` is the table so far."""

    def __init__(self, device: torch.device, minutes: float, out: Path, tiny: bool):
        self.device, self.out, self.tiny = device, out, tiny
        self.card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        self.end, self.records = time.monotonic() + 60 * minutes, []
        self.repeats, self.batches, self.side = (1, (1, 2), 224) if tiny else (REPEATS, (1, 4, 8), 1120)

    def step(self, name: str, need: float, found: Callable[[], Iterator[dict]]) -> bool:
        """Add a step's records, each as soon as it is there, or one that says why they are not; whether it was whole.
        `need`: seconds that it may take, a guess."""
        left = self.end - time.monotonic()
        if left < need:
            self.add(measure=name, note=f"left out: it may take {need:.0f} s, and {max(left, 0):.0f} s were left")
            return False
        try:
            for record in found():
                self.add(**record)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            self.add(measure=name, note=f"failed: {reason}")
            return False
        return True

    def add(self, **record) -> None:
        if "ours" in record and "naive" in record:
            record["ratio"] = record["ours"] / record["naive"] if record["naive"] else np.nan
        versions = dict(card=self.card, torch=torch.__version__, transformers=transformers.__version__)
        self.records.append(record | versions)
        print(
            f"{record['measure']}: {record.get('ours', '')} {record.get('unit', '')} {record.get('note', '')}",
            flush=True,
        )
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / "gpu.csv", self.table().to_csv(index=False, float_format="%.5g"))

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.records, columns=NAMES)

    def family(self, source: str, two_layers: bool) -> None:
        """The steps of one model; whatever happens, the GPU is empty afterwards."""
        dtype = torch.float32 if two_layers else torch.bfloat16
        made = {}

        def build_it() -> Iterator[dict]:
            made["lvlm"] = build(source, self.device, dtype, two_layers, self.tiny)
            made["prompt"] = made["lvlm"].prompt(picture(self.side, self.side), "cup")
            count = sum(parameter.numel() for parameter in made["lvlm"].model.parameters())
            yield self.of(made, "parameters", ours=count / 1e9, unit="billion")

        size = "two layers" if two_layers else "full size"
        if self.step(f"{source}, {size}: build", 30 if two_layers else 60, build_it):
            self.step(f"{source}, {size}: checks", 20, lambda: self.checks(made, FAMILIES[source]["answer"]))
            if not two_layers:
                with scripted(made["lvlm"], FAMILIES[source]["answer"]):
                    self.step(f"{source}: costs", 60, lambda: self.costs(made))
                    for batch in self.batches:
                        name = f"{source}: batch {batch}"
                        self.step(name, 20 + 2 * batch, lambda batch=batch: self.throughput(made, batch))
        made.clear()
        gc.collect()
        torch.cuda.empty_cache()

    def of(self, made: dict, measure: str, **record) -> dict:
        model, prompt = made["lvlm"].model, made["prompt"]
        tokens = int((prompt.ids == made["lvlm"].image_token_id).sum())
        dtype = str(model.dtype).removeprefix("torch.")
        return dict(measure=measure, lvlm_class=type(model).__name__, image_tokens=tokens, dtype=dtype, **record)

    def checks(self, made: dict, answer: str) -> Iterator[dict]:
        lvlm, prompt = made["lvlm"], made["prompt"]
        bar, exact = TOLERANCE[lvlm.model.dtype], lvlm.model.dtype == torch.float32
        yield self.of(made, "rows, off eager", ours=rows_off(lvlm, prompt, answer), unit="share", tolerance=bar)
        alike = greedy_alike(lvlm, prompt)  # in bfloat16 near ties fall as kernels round: told, without a bar
        other = dict(ours=GREEDY - alike, unit=f"of {GREEDY}", tolerance=0 if exact else np.nan)
        yield self.of(made, "greedy tokens, other than generate's", **other)

    def costs(self, made: dict) -> Iterator[dict]:
        lvlm, prompt = made["lvlm"], made["prompt"]
        draw = dict(do_sample=True, temperature=HOW.temperature, top_k=0)
        calls = {
            "greedy": lambda: theirs(lvlm, prompt, do_sample=False),
            "sampled": lambda: theirs(lvlm, prompt, **draw),
            "several": lambda: theirs(lvlm, prompt, ANSWERS - 1, **draw),
            "ours": lambda: sampling.generate(lvlm, [prompt], [0], HOW, capture=False),
            "capture": lambda: sampling.generate(lvlm, [prompt], [0], HOW),
        }
        took = {name: seconds(call, self.device, self.repeats) for name, call in calls.items()}
        naive, several = took["greedy"] + (ANSWERS - 1) * took["sampled"], took["greedy"] + took["several"]
        for measure, base, ours in (
            ("11 answers, to one greedy", took["greedy"], took["ours"]),
            ("11 answers", naive, took["ours"]),
            ("11 answers, to num_return_sequences", several, took["ours"]),
            ("capture, to none", took["ours"], took["capture"]),
        ):
            yield self.of(made, measure, naive=base, ours=ours, unit="s")
        if self.device.type == "cuda":
            base, ours = peak(calls["greedy"]), peak(calls["capture"])
            yield self.of(made, "peak memory, to one greedy", naive=base, ours=ours, unit="GB")
            (answers,) = sampling.generate(lvlm, [prompt], [0], HOW)
            waits = host_waits(calls["capture"]) / len(answers[0]["token_ids"])
            yield self.of(made, "waits of the host", ours=waits, unit="a token")

    def throughput(self, made: dict, batch: int) -> Iterator[dict]:
        """Queries with 11 answers and their rows, a picture each; images are ready, as in a run with spare cores."""
        lvlm = made["lvlm"]
        prompts = [lvlm.prompt(picture(self.side, self.side, seed), "cup") for seed in range(batch)]
        took = seconds(lambda: sampling.generate(lvlm, prompts, range(batch), HOW), self.device, self.repeats)
        yield self.of(made, f"queries a minute, batch {batch}", ours=60 * batch / took, unit="1/min")

    def embedded(self, count: int) -> Iterator[dict]:
        """The embedded LVLMs' sampling here and on the CPU, the same queries; and greedy in the committed table."""
        profile = load_profile("embedded")
        queries = samples() if self.tiny else load_split(profile, profile.datasets[0], "test")[0]
        queries = queries[queries["size"] == "small"].head(count).reset_index(drop=True)
        table = pd.read_csv(paths.reference(profile.name) / "tables" / "main_results.csv")
        for spec in profile.lvlms:
            texts, boxes = zip(*(answered(spec, queries, profile.sampling, each) for each in (CPU, self.device)))
            right = [bx.iou(found, queries[list(coco.TRUTH)].to_numpy()[:, None]) >= 0.5 for found in boxes]
            known = dict(lvlm_class=spec.name, image_tokens=100, dtype="float32", unit="share")
            other = np.mean(np.array(texts[0]) != np.array(texts[1]))
            note = f"{len(queries)} queries"
            yield dict(measure="embedded: answers other than the CPU's", ours=other, note=note, **known)
            for name, part in (("greedy", slice(0, 1)), ("random", slice(1, None))):
                cpu, here = (float(found[:, part].mean()) for found in right)
                yield dict(
                    measure=f"embedded: Acc@0.5, {name}", naive=cpu, ours=here, note=f"naive: CPU; {note}", **known
                )
                stored = table[
                    (table["lvlm"] == spec.name) & (table["dataset"] == "scenes") & (table["method"] == name)
                ].iloc[0]
                table_note = f"naive: the table, {stored['n_queries']:,}; {note}"
                record = dict(naive=float(stored["acc50"]), ours=here, note=table_note)
                yield dict(measure=f"embedded: Acc@0.5, {name}, to the table", **record, **known)


CPU = torch.device("cpu")


def answered(spec, queries: pd.DataFrame, how: Sampling, device: torch.device) -> tuple[list, np.ndarray]:
    """Texts [queries x answers] and boxes [queries, answers, 4] (NaN without one) of an embedded LVLM."""
    lvlm = load_checkpoint(paths.place(spec.source), spec.name, dtype=spec.dtype, device=str(device))
    texts, boxes = [], []
    for first in range(0, len(queries), 32):
        part = queries.iloc[first : first + 32]
        prompts = [lvlm.prompt(read_image(query.image), query.category) for query in part.itertuples()]
        names = [f"{query.image}/{query.category}" for query in part.itertuples()]
        keys = [query_key(f"{Path(query.image).name}/{query.category}") for query in part.itertuples()]
        for found, records in sampling.sample_candidates(lvlm, prompts, names, keys, list(part["category"]), how):
            texts += [record["text"] for record in records]
            boxes.append(found.boxes)
    return texts, np.stack(boxes)


def main(
    minutes: Annotated[float, typer.Option(help="Steps that no longer fit into them are left out.")] = 8,
    tiny: Annotated[bool, typer.Option(help="On the CPU, with tiny models: to see every step work.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of gpu.csv; reports/benchmarks by default.")] = None,
) -> None:
    """Check and measure the engine on a GPU; the table goes to gpu.csv. Ends with 1 if a step failed or a check did."""
    if tiny == (out is None):
        raise typer.BadParameter("give --out with --tiny, whose numbers belong in no report, and only with it")
    if not tiny and not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU that PyTorch can use; --tiny --out FOLDER runs every step on the CPU")
    bench = Bench(CPU if tiny else torch.device("cuda"), minutes, out or paths.reports("benchmarks"), tiny)
    for source in SOURCES:
        bench.family(source, two_layers=True)
    bench.step("embedded", 60, lambda: bench.embedded(4 if tiny else 256))
    for source in SOURCES:
        bench.family(source, two_layers=False)
    table = bench.table()
    print(table.drop(columns=["card", "torch", "transformers"]).to_string(index=False, na_rep=""))
    missed = (table["ours"] > table["tolerance"]) | table["note"].fillna("").str.startswith("failed")
    raise typer.Exit(int(missed.any()))


if __name__ == "__main__":
    typer.run(main)
