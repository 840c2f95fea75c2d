"""What it saves that the questions about one image share its encoding and prefill: time by number of questions.

    python -m benchmarks.questions

To k questions about one image 11 answers each are sampled with their attention rows, all in one call, as `ground` does
for a list of objects. That is set against k greedy answers by transformers' own `generate`, one question after the
other; so is the engine without sharing, a call for each question. Calls for one question are equal work, so one of them
is timed and multiplied. Model, answer and timing are those of `benchmarks.engine`: CPU seconds of one thread; a ratio
is the median of the ratios of interleaved runs. Writes reports/benchmarks/questions.csv.
"""

import functools
import statistics

import numpy as np
import pandas as pd
import torch

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.lvlms.adapter import Prompt
from acs_lib.lvlms.attention_rows import NAME
from acs_lib.lvlms.qwen_vl import Qwen25VL
from acs_lib.method import sampling
from benchmarks.engine import CLASS, HOW, PITCH, SIDES, Ways, build, interleaved
from tests.conformance.harness import picture

OBJECTS = "cup", "traffic light", "dog", "car", "sports ball", "person", "kite", "fire truck"
QUESTIONS = 1, 2, 4, 8
NAMES = "measure lvlm_class image_tokens questions one_by_one_s unshared_s shared_s unshared_ratio ratio".split()


class Asked(Ways):
    """Several questions about one image; the other ways ask the first of them."""

    def __init__(self, lvlm: Qwen25VL, side: int):
        super().__init__(lvlm, side)
        self.prompts = lvlm.prompts(picture(side * PITCH, side * PITCH), OBJECTS)

    def together(self, prompts: list[Prompt]) -> list[list[dict]]:
        """All answers to some of the questions, with their rows, in one call."""
        self.attend(NAME)
        self.step = 0 if len(prompts) == 1 else -1  # a shared prefix is a pass of its own, before the script
        found = sampling.generate(self.lvlm, prompts, range(len(prompts)), HOW)
        assert all(answer["token_ids"] == self.script for answers in found for answer in answers)
        return found


def check_rows(asked: Asked) -> None:
    """A question gets the same rows together with others as alone."""
    for prompt, together in zip(asked.prompts[:2], asked.together(asked.prompts[:2])):
        (alone,) = asked.together([prompt])
        for one, other in zip(alone, together):
            assert one["rows"].keys() == other["rows"].keys() and one["rows"]
            assert all((row - other["rows"][start]).abs().max() < 1e-5 for start, row in one["rows"].items())


def measure(lvlm: Qwen25VL, side: int, repeats: int, questions: tuple[int, ...] = QUESTIONS) -> list[tuple]:
    """A line for each number of questions about an image of side x side tokens."""
    asked = Asked(lvlm, side)
    hook = asked.model.get_output_embeddings().register_forward_hook(asked.write)
    check_rows(asked)
    calls = {"alone": 1, **{count: count for count in questions}}
    calls = {name: functools.partial(asked.together, asked.prompts[:count]) for name, count in calls.items()}
    times = interleaved({"greedy": asked.generate, **calls}, repeats)
    hook.remove()
    table = []
    for count in questions:
        each = [count * times["greedy"], count * times["alone"], times[count]]
        ratios = [statistics.median(way / each[0]) for way in each[1:]]
        table.append(("11 answers and rows", CLASS, side**2, count, *map(np.median, each), *ratios))
    return table


def main() -> None:
    torch.set_num_threads(1)
    lvlm, table, folder = build(), [], paths.reports("benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    for side, repeats in SIDES.items():
        table += measure(lvlm, side, repeats)
        frame = pd.DataFrame(table, columns=NAMES)
        write_text(folder / "questions.csv", frame.to_csv(index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()
