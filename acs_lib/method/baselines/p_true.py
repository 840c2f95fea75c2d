"""P(True): the LVLM is asked about each of its own answers whether the box is right (arXiv 2207.05221).

The score is P(Yes) / (P(Yes) + P(No)) of the first token after the question, at temperature 1. The question quotes the
four numbers as the answer wrote them, in the LVLM's own units. The paper asks for (A) True or (B) False in text alone;
Yes and No are what chat models answer with.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from acs_lib.lvlms.adapter import LVLM, Prompt
from acs_lib.method.sharing import Layout, new_cache, prefill

VERIFICATION = "{question}\nProposed answer: [{box}]\nIs the proposed box of the {object} right? Answer with Yes or No."
YES, NO = "Yes", "No"


class CannotBeAsked(ValueError):
    """This LVLM has no words to answer with."""


def yes_no_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the first tokens of 'Yes' and of 'No'; CannotBeAsked where the vocabulary does not tell them apart."""
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][:1] for word in (YES, NO)]
    begun = [tokenizer.decode(ids).strip() for ids in first]
    written = all(text and word.startswith(text) for word, text in zip((YES, NO), begun))
    if not written or first[0] == first[1]:
        raise CannotBeAsked(f"its vocabulary has no {YES} and {NO}")
    return first[0][0], first[1][0]


def verification_prompts(lvlm: LVLM, image: Image.Image, category: str, boxes: Sequence[str]) -> list[Prompt]:
    """The question whether a box, four numbers as the LVLM wrote them, is right, as the family's adapter asks."""
    asker = copy.copy(lvlm)
    asker.question = "{object}"  # the adapter puts the whole question in its place
    question = lvlm.question.format(object=category)
    return asker.prompts(image, [VERIFICATION.format(question=question, box=box, object=category) for box in boxes])


@torch.inference_mode()
def ask_p_true(lvlm: LVLM, image: Image.Image, category: str, answers: Sequence[str]) -> np.ndarray:
    """[n] score in 0-1 of each answer (raw text) to the question for one object; NaN for one without a box.

    Equal boxes are asked about once. Raises CannotBeAsked.
    """
    yes, no = yes_no_tokens(lvlm.tokenizer)
    found = [lvlm.box_pattern.search(answer) for answer in answers]
    boxes = [", ".join(match.groups()) if match else None for match in found]
    different = [box for box in dict.fromkeys(boxes) if box is not None]
    if not different:
        return np.full(len(boxes), np.nan)
    prompts = verification_prompts(lvlm, image, category, different)
    logits, _ = prefill(lvlm, prompts, Layout.of(prompts, lvlm.model.device), new_cache())
    scores = {box: float(torch.sigmoid(row[yes] - row[no])) for box, row in zip(different, logits.float(), strict=True)}
    return np.array([np.nan if box is None else scores[box] for box in boxes])
