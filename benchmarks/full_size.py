"""The laptop profile's LVLMs at full size on this machine: what a query takes, and that every step after it works.

    python -m benchmarks.full_size photographs --tokenizer folder
    python -m benchmarks.full_size photographs --tiny --out folder    # the same steps with tiny models

Models have the published configurations, random weights and the profile's limits on the image; nothing is fetched. The
photographs and the objects asked for are those of an annotation file in COCO's format in the folder. Random weights
write no boxes, so eleven answers are written for them: at each step the next token of an answer's script is made the
likely one, and everything else is the model's own: its time, its attention rows, what it thinks of the other tokens.
Accuracy means nothing here. From there on all is as in any run: maps, statistics, the run store, every selector, D_c
(made up) and a regressor (not trained), tables and the page. One teacher-forced pass over the same answers
(`method.forced`) has to find the same rows.

Writes reports/benchmarks/full_size.csv: seconds_per_query is the mean over the photographs, with all answers and the
image's own pass; peak_gb the most memory that the process took so far.
"""

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from transformers import PreTrainedTokenizerFast

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.core.images import read_annotated_image
from acs_lib.datasets import coco
from acs_lib.grounding.probe import most_memory
from acs_lib.lvlms.adapter import LVLM, Prompt
from acs_lib.method import regressor
from acs_lib.method.forced import force_candidates
from acs_lib.method.heads import HeadSet
from acs_lib.method.regressor import MAP_SIDE, AttentionIoURegressor
from acs_lib.profiles import LVLMSpec, Profile, load_profile
from acs_lib.report import page
from acs_lib.report.browser import write_browser
from acs_lib.report.tables import write_table
from acs_lib.runs import plan, store
from acs_lib.runs.answer import answer_batch, bytes_per_query
from acs_lib.runs.local import cores
from acs_lib.study import results
from acs_lib.study.experiment import Experiment
from benchmarks.gpu import CPU, FAMILIES, build

COLUMNS = (
    "lvlm parameters dtype image_tokens prompt_tokens answers answer_tokens seconds_per_query peak_gb cores".split()
)
LAPTOP = load_profile("laptop")
LIKELY = 20.0  # added to the logit of the script's token: it is drawn, and the others keep some probability
OTHER = 1e-3  # nats or shares by which a head statistic of the two ways may differ in float32
INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]


def photographs(folder: Path, count: int) -> pd.DataFrame:
    """Queries about small objects (up to the laptop profile's share) in so many photographs of a folder with an
    annotation file in COCO's format; FileNotFoundError or ValueError where there are fewer."""
    file = next(iter(sorted(folder.glob("annotations/*.json"))), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no annotations/*.json; give a folder as COCO's, such as coco128")
    queries, _ = coco.load_queries("full-size", file, folder, LAPTOP.small, LAPTOP.large)
    found = queries[(queries["size"] == "small") & queries["image"].map(lambda path: Path(path).is_file())]
    found = found.drop_duplicates("image").head(count).reset_index(drop=True)
    if len(found) < count:
        raise ValueError(f"{folder} has {len(found)} photographs with a small object of its own kind, not {count}")
    return found


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Qwen's tokenizer from a folder with tokenizer.json, with the tokens that InternVL adds."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": INTERNVL_TOKENS}, replace_extra_special_tokens=False)
    return tokenizer


def scripts(lvlm: LVLM, answer: str, query, count: int) -> list[list[int]]:
    """Token ids of so many answers in the family's words: the annotated box, and it moved further and further away."""
    true = np.array([query.x1, query.y1, query.x2, query.y2]) / ([query.width, query.height] * 2)
    begin, size = true[:2], np.maximum(true[2:] - true[:2], 0.01)
    written = []
    for number in range(count):
        corner = np.clip(begin + number * 0.1 * size, 0, np.maximum(0, 1 - size))
        box = np.round(1000 * np.concatenate([corner, corner + size])).astype(int)
        text = answer.replace("128, 245, 256, 367", ", ".join(map(str, box))).replace("cup", query.category)
        written.append(lvlm.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert len({ids[0] for ids in written}) == 1, "all answers are drawn from the prompt's last token"
    return written


@contextlib.contextmanager
def writing(lvlm: LVLM, written: Sequence[list[int]]) -> Iterator[None]:
    """Within this context the answers to the one prompt of a batch are these, token by token."""
    step, end = [0], lvlm.tokenizer.eos_token_id

    def add(module, arguments, logits):
        tokens = [ids[step[0]] if step[0] < len(ids) else end for ids in written]
        if logits.shape[1] == 1:  # the prompt, whose last token all answers begin with
            tokens = tokens[:1]
        step[0] += 1
        place = torch.tensor(tokens, device=logits.device)[None, :, None]
        return logits.scatter_add(-1, place, torch.full_like(place, LIKELY, dtype=logits.dtype))

    handle = lvlm.model.get_output_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def filled(lvlm: LVLM, spec: LVLMSpec, queries: pd.DataFrame, folder: Path) -> tuple[store.Run, list[float]]:
    """The run of the scripted answers, and what each query took in seconds."""
    how, answer, taken = LAPTOP.sampling.model_copy(update={"max_new_tokens": 160}), FAMILIES[spec.source]["answer"], []

    def ask(batch: pd.DataFrame) -> list[store.CandidatesWithRecords]:
        written = scripts(lvlm, answer, next(batch.itertuples()), how.samples + 1)
        begun = time.perf_counter()
        with writing(lvlm, written):
            found = answer_batch(lvlm, how, batch, LAPTOP.map_side)
        taken.append(time.perf_counter() - begun)
        assert [record["token_ids"] for record in found[0][1]] == written, "another token was drawn"
        print(f"{spec.name}: {batch['query_id'].iloc[0]} in {taken[-1]:.1f} s", flush=True)
        return found

    need = bytes_per_query(how.samples, lvlm.layers, lvlm.heads, LAPTOP.map_side**2)
    run = store.fill(folder, queries, ask, {"lvlm": spec.model_dump(), "made": time.time()}, need, batch=1)
    return run, taken


def asked(lvlm: LVLM, query) -> Prompt:
    return lvlm.prompt(read_annotated_image(query.image, query.width, query.height), query.category)


def forced_apart(lvlm: LVLM, run: store.Run, query) -> float:
    """The largest difference of any head statistic (nats, shares) between the stored answers to a query and one
    teacher-forced pass over them."""
    records = run.records()
    answers = [list(ids) for ids in records.loc[records["query_id"] == query.query_id, "token_ids"]]
    prompt = asked(lvlm, query)
    found, _ = force_candidates(lvlm, prompt, query.query_id, query.category, answers)
    kept = next(each for each in run.candidates() if each.query_id == query.query_id)
    assert kept.parsed.all() and np.abs(found.boxes - kept.boxes).max() < 1e-3
    return float(np.abs(found.statistics - kept.statistics).max())


def experiment(lvlm: LVLM, profile: Profile, spec: LVLMSpec, run: store.Run) -> Experiment:
    """The answers with D_c made up and a regressor that was not trained, so that every selector has a say."""
    torch.manual_seed(0)
    model = AttentionIoURegressor(lvlm.layers, lvlm.heads, grid=(MAP_SIDE, MAP_SIDE))
    with torch.inference_mode():
        predictions = regressor.predict(model, run)
    heads = tuple((layer, layer % lvlm.heads) for layer in range(lvlm.layers // 2, lvlm.layers, 4))
    return Experiment(profile, spec, profile.datasets[0], run, predictions, HeadSet(spec.name, "made up", heads))


def measure(spec: LVLMSpec, queries: pd.DataFrame, work: Path, tiny: bool, tokenizer: Path | None) -> dict:
    """One line of the table; the tables and the page of its answers go to `work`."""
    read = read_tokenizer(tokenizer) if tokenizer else None
    lvlm = build(spec.source, CPU, torch.float32, two_layers=False, tiny=tiny, tokenizer=read)
    lvlm.name = spec.name
    lvlm.limit(**spec.limits)
    run, taken = filled(lvlm, spec, queries, work / "runs" / spec.name)
    first = next(queries.itertuples())
    apart = forced_apart(lvlm, run, first)
    assert apart < OTHER, f"rows differ by {apart:.2g} from those of one teacher-forced pass"
    print(f"{spec.name}: rows as of one teacher-forced pass, but for {apart:.1e}", flush=True)
    profile = LAPTOP.model_copy(update={"name": f"full-size-{spec.name}", "bootstrap": 100})
    e, report = experiment(lvlm, profile, spec, run), work / "reports" / spec.name
    main = results.main_results([e])
    assert set(e.selectors) <= set(main["method"]) and main["acc50"].notna().all()
    write_table(main, report, "main_results", "Scripted answers of random weights: these numbers mean nothing.")
    write_table(results.fusion_table([e]), report, "fusions", "Scripted answers of random weights.")
    write_browser([e], report)
    print(f"{spec.name}: {page.build(profile.name, report)}", flush=True)
    prompts = [asked(lvlm, query) for query in queries.itertuples()]
    image = [int((prompt.ids == lvlm.image_token_id).sum()) for prompt in prompts]
    parameters = sum(parameter.numel() for parameter in lvlm.model.parameters())
    lengths = run.records()["token_ids"].map(len)
    here = plan.here()
    tokens = type(lvlm).count_tokens(lvlm.model.config, int(first.width), int(first.height), **spec.limits)
    planned = plan.seconds(lvlm.model, tokens, LAPTOP.sampling.samples + 1, int(lengths.max()), 1, here)
    print(f"{spec.name}: {np.mean(taken):.1f} s a query; the plan says {planned:.1f} s ({here.name})", flush=True)
    values = (
        spec.name, parameters, "float32", np.mean(image), np.mean([prompt.length for prompt in prompts]),
        LAPTOP.sampling.samples + 1, lengths.mean(), np.mean(taken), most_memory(CPU), cores(),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def main(
    folder: Annotated[Path, typer.Argument(help="Photographs with annotations/*.json in COCO's format.")],
    count: Annotated[int, typer.Option("--photographs", min=1, help="How many are asked about.")] = 2,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with Qwen3's tokenizer.json; without it one token a byte.")
    ] = None,
    lvlm: Annotated[list[str] | None, typer.Option(help="Only these of the laptop profile.")] = None,
    tiny: Annotated[bool, typer.Option(help="With tiny models: to see every step work.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of full_size.csv; reports/benchmarks by default.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of runs, tables and pages.")] = paths.DATA / "full-size",
) -> None:
    """Ask the laptop profile's LVLMs, at full size with random weights, about some photographs."""
    if tiny and out is None:
        raise typer.BadParameter("give --out with --tiny, whose numbers belong in no report")
    queries, lines = photographs(folder, count), []
    file = (out or paths.reports("benchmarks")) / "full_size.csv"
    for spec in LAPTOP.lvlms:
        if lvlm and spec.name not in lvlm:
            continue
        lines.append(measure(spec, queries, work, tiny, tokenizer))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, pd.DataFrame(lines, columns=COLUMNS).to_csv(index=False, float_format="%.5g"))
        gc.collect()
    print(pd.DataFrame(lines, columns=COLUMNS).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
