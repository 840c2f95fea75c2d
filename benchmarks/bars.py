"""What an embedded LVLM was taught, measured on research images: neither test nor training images of any profile.

    python -m benchmarks.bars data/embedded/internvl-plain data/embedded/internvl

writes reports/benchmarks/bars.csv, a row an LVLM.

Greedy answers only: Acc@0.5 for small and large objects, how many answers hold a box, how often an object that is there
is answered by none and one that is absent is not, AP at IoU 0.5 of lists, and how often a question whether a box is
right is answered rightly.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from PIL import Image
from pycocotools.cocoeval import COCOeval

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.core.files import replacing
from acs_lib.datasets.coco import indexed
from acs_lib.embedded import scenes
from acs_lib.embedded.models import TINY
from acs_lib.embedded.training import Asker, TrainingStage
from acs_lib.grounding.detect import QUESTION as DETECT_ALL
from acs_lib.lvlms.adapter import LVLM
from acs_lib.lvlms.adapter import QUESTION as DETECT
from acs_lib.lvlms.load import load_checkpoint
from acs_lib.method.baselines.p_true import ask_p_true
from acs_lib.method.sampling import generate
from acs_lib.profiles import Sampling

SEED = 31
BATCH = 32
TOKENS = 24  # of a box at most, where numbers are written digit by digit
TEXT = {"internvl": "<box>{} {} {} {}</box>", "qwen2_5_vl": '{{"bbox_2d": [{}, {}, {}, {}]}}'}
SMALL, LARGE = 0.01, 0.05  # share of the image


def answers(lvlm: LVLM, asked: list[tuple[Image.Image, str]], question: str, tokens: int) -> Iterator[tuple]:
    """(prompt, text, log-probabilities) of the greedy answer to each question."""
    lvlm.question, how = question, Sampling(samples=0, max_new_tokens=tokens)
    for begin in range(0, len(asked), BATCH):
        prompts = [lvlm.prompt(image, category) for image, category in asked[begin : begin + BATCH]]
        for prompt, (answer,) in zip(prompts, generate(lvlm, prompts, [0] * len(prompts), how, capture=False)):
            yield prompt, lvlm.decode(answer["token_ids"]), answer["logprobs"]


def says_none(lvlm: LVLM) -> Callable[[str], bool]:
    """Whether a text is the family's own way to say that there is none."""
    tiny = TINY[lvlm.model.config.model_type]
    none = lvlm.decode(tiny.answer_ids(np.empty((0, 4)))).strip()
    return lambda text: text.strip() == none


def drawn(world: scenes.World, images: int) -> Iterator[tuple[Image.Image, scenes.Scene]]:
    """Research images of a world, and the scenes that they show."""
    for index in range(images):
        scene = scenes.render(np.random.default_rng([SEED, index]), world, side=world.side)
        yield Image.fromarray(scene.image), scene


def single(lvlm: LVLM, world: scenes.World, images: int) -> dict[str, float]:
    """One object a category: Acc@0.5 by size, answers that hold a box, and none where there is one."""
    asked, truths = [], []
    for image, scene in drawn(world, images):
        for category, box in zip(scene.categories, scene.boxes):
            if (scene.categories == category).sum() == 1:
                asked.append((image, scenes.CATEGORIES[category]))
                truths.append(box)
    area = bx.area_fraction(np.array(truths), world.side, world.side)
    rows, none = [], says_none(lvlm)
    for (prompt, text, _), truth, share in zip(answers(lvlm, asked, DETECT, TOKENS), truths, area):
        box = lvlm.parse(text, prompt).box
        hit = box is not None and float(bx.iou(box, truth)) >= 0.5
        rows.append((share, box is not None, hit, none(text)))
    frame = pd.DataFrame(rows, columns=["share", "parsed", "hit", "none"])
    small, large = frame[frame["share"] <= SMALL], frame[frame["share"] > LARGE]
    found = {"n_small": len(small), "n_large": len(large), "answered": (frame["parsed"] | frame["none"]).mean()}
    for name, part in {"small": small, "large": large}.items():
        found |= {f"acc50_{name}": part["hit"].mean(), f"none_{name}": part["none"].mean()}
    return found


def asker(scene: scenes.Scene, *seed: int) -> Asker:
    """Who draws questions about a scene."""
    return Asker(TINY["internvl"], TrainingStage("answers", "train", 1, 1.0, 1.0), np.random.default_rng(seed), scene)


def absent(lvlm: LVLM, world: scenes.World, images: int) -> dict[str, float]:
    """Share of absent categories, half of them look-alikes of one that is there, that are answered by none."""
    asked = []
    for index, (image, scene) in enumerate(drawn(world, images)):
        asks = asker(scene, SEED, index, 1)
        asked += [(image, scenes.CATEGORIES[asks.absent_category()]) for _ in range(2)]
    none = [*map(says_none(lvlm), (text for _, text, _ in answers(lvlm, asked, DETECT, TOKENS)))]
    return {"n_absent": len(none), "none_absent": np.mean(none)}


def lists(lvlm: LVLM, world: scenes.World, images: int) -> dict[str, float]:
    """COCO's AP at IoU 0.5 of the boxes of greedy lists, scored by their tokens' mean log-probability."""
    asked, annotations, results = [], [], []
    for index, (image, scene) in enumerate(drawn(world, images)):
        for category, (x1, y1, x2, y2) in zip(scene.categories.tolist(), scene.boxes.tolist()):
            annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": category, "iscrowd": 0,
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})  # fmt: skip
        asked += [(image, scenes.CATEGORIES[c], index, c) for c in sorted(set(scene.categories.tolist()))]
    pairs = [each[:2] for each in asked]
    for (prompt, text, logprobs), (_, _, index, category) in zip(answers(lvlm, pairs, DETECT_ALL, 6 * TOKENS), asked):
        for x1, y1, x2, y2 in (found.box for found in lvlm.parse_all(text, prompt)):
            results.append({"image_id": index, "category_id": category, "score": float(np.mean(logprobs)),
                            "bbox": [x1, y1, x2 - x1, y2 - y1]})  # fmt: skip
    truth = indexed({"images": [{"id": index} for index in range(images)], "annotations": annotations,
                     "categories": [{"id": index} for index in range(len(scenes.CATEGORIES))]})  # fmt: skip
    found = {"n_boxes": len(annotations), "ap": 0.0, "ap50_lists": 0.0}
    if results:  # pycocotools takes no empty list
        with contextlib.redirect_stdout(io.StringIO()):
            evaluated = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluated.evaluate()
            evaluated.accumulate()
            evaluated.summarize()
        found |= {"ap": evaluated.stats[0], "ap50_lists": evaluated.stats[1]}
    return found


def right(lvlm: LVLM, world: scenes.World, images: int) -> dict[str, float]:
    """Share of questions whether a box is right that are answered rightly."""
    lvlm.question = DETECT
    told, family = [], lvlm.model.config.model_type
    for index, (image, scene) in enumerate(drawn(world, images)):
        asks = asker(scene, SEED, index, 2)
        category, boxes = asks.annotated()
        quoted = np.array([asks.quoted(category, boxes) for _ in range(4)])
        numbers = np.rint(quoted / scenes.SIZE * 1000).astype(int) if family == "internvl" else quoted
        texts = [TEXT[family].format(*box) for box in numbers]
        scores = ask_p_true(lvlm, image, scenes.CATEGORIES[category], texts)
        told += list((scores > 0.5) == [bx.iou(boxes, box).max() >= 0.5 for box in quoted])
    return {"n_right": len(told), "right": np.mean(told)}


def main(
    weights: Annotated[list[Path], typer.Argument(help="Folders of LVLMs.", exists=True, file_okay=False)],
    world: Annotated[str, typer.Option(help="The world of the research images.")] = "scenes",
    images: int = 200,
    out: Annotated[Path, typer.Option(help="The table.")] = paths.REPORTS / "benchmarks" / "bars.csv",
) -> None:
    torch.manual_seed(0)
    look, rows = scenes.WORLDS[world], []
    for folder in weights:
        lvlm = load_checkpoint(folder, dtype="float32")
        rows.append({
            "lvlm": folder.name, "world": world, **single(lvlm, look, images), **absent(lvlm, look, images // 2),
            **right(lvlm, look, images // 4), **lists(lvlm, replace(look, repeats=0.4), images // 2),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    typer.echo(table.round(3).T.to_string(header=False))
    if out.exists():
        table = pd.concat([pd.read_csv(out), table]).drop_duplicates(["lvlm", "world"], keep="last")
    with replacing(out) as aside:
        table.to_csv(aside, index=False)


if __name__ == "__main__":
    typer.run(main)
