"""P(True): the LVLM is asked about each of its own answers whether the box is right (arXiv 2207.05221).

The score is P(Yes) / (P(Yes) + P(No)) of the first token after the question, at temperature 1. The question quotes the
four numbers as the answer wrote them, in the LVLM's own units. The paper asks for (A) True or (B) False in text alone;
Yes and No are what chat models answer with.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

from acs_lib.lvlms.adapter import LVLM, Prompt

VERIFICATION = "{question}\nProposed answer: [{box}]\nIs the proposed box of the {object} right? Answer with Yes or No."
YES, NO = "Yes", "No"


class CannotBeAsked(ValueError):
    """This LVLM has no words to answer with."""


def yes_no_tokens(tokenizer) -> tuple[int, int]:
    """Ids of the first tokens of 'Yes' and of 'No'; CannotBeAsked where the vocabulary does not tell them apart."""
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][:1] for word in (YES, NO)]
    begun = [tokenizer.decode(ids).strip() for ids in first]
    written = all(text and word.startswith(text) for word, text in zip((YES, NO), begun))
    if not written or first[0] == first[1]:
        raise CannotBeAsked(f"its vocabulary has no {YES} and {NO}")
    return first[0][0], first[1][0]


def verification_prompt(lvlm: LVLM, image: Image.Image, category: str, box: str) -> Prompt:
    """The question whether `box`, four numbers as the LVLM wrote them, is right, as the family's adapter asks."""
    asker = copy.copy(lvlm)
    asker.question = "{object}"  # the adapter puts the whole question in its place
    question = lvlm.question.format(object=category)
    return asker.prompt(image, VERIFICATION.format(question=question, box=box, object=category))


@torch.inference_mode()
def ask_p_true(lvlm: LVLM, image: Image.Image, category: str, answers: Sequence[str]) -> np.ndarray:
    """[n] score in 0-1 of each answer (raw text) to the question for one object; NaN for one without a box.

    Equal boxes are asked about once. Raises CannotBeAsked.
    """
    yes, no = yes_no_tokens(lvlm.tokenizer)
    found = [lvlm.box_pattern.search(answer) for answer in answers]
    boxes = [", ".join(match.groups()) if match else None for match in found]
    different = [box for box in dict.fromkeys(boxes) if box is not None]
    logits = next_logits(lvlm, [verification_prompt(lvlm, image, category, box) for box in different])
    scores = {box: float(torch.sigmoid(row[yes] - row[no])) for box, row in zip(different, logits, strict=True)}
    return np.array([scores.get(box, np.nan) for box in boxes])


def next_logits(lvlm: LVLM, prompts: Sequence[Prompt]) -> Iterator[torch.Tensor]:
    """For each prompt the logits [vocabulary] float32 of the token after it; all prompts show the same image.

    What the prompts begin with alike is prefilled once, image included; where a template puts the image behind the
    question, every prompt is prefilled whole.
    """
    if not prompts:
        return
    device, ids = lvlm.model.device, [prompt.inputs["input_ids"][0] for prompt in prompts]
    shortest = min(map(len, ids)) - 1  # at least one token is each prompt's own
    alike = torch.stack([row[:shortest] for row in ids]).eq(ids[0][:shortest]).all(0)
    shared = int(alike.long().cumprod(0).sum())
    if (ids[0][shared:] == lvlm.image_token_id).any():
        shared = 0
    cache = DynamicCache()

    def ask(inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        inputs = {name: value.to(device) for name, value in inputs.items()}
        output = lvlm.model(
            **inputs, position_ids=positions.to(device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[0, -1].float()

    for number, prompt in enumerate(prompts):
        inputs, (positions, _) = prompt.inputs, lvlm.positions(prompt.inputs)
        if shared and not number:
            shape = inputs["input_ids"].shape
            head = {name: value[:, :shared] if value.shape == shape else value for name, value in inputs.items()}
            ask(head, positions[..., :shared])
        rest = {"input_ids": inputs["input_ids"][:, shared:]} if shared else inputs
        yield ask(rest, positions[..., shared:])
        cache.crop(shared - prompt.length)  # negative: so many tokens are taken off the end
