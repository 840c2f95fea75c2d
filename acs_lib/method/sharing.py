"""How the questions about one image, and their answers, share one sequence of the cache, and who sees what.

    prefix | question 1 | question 2 | ... | first token of every answer | second token of every answer | ...

The prefix is what the prompts of an image's questions begin with, the image included; a question is the rest of its
prompt. A question sees the prefix and its own tokens, an answer the prefix, its question and its own tokens: nothing is
copied, and no question's start is computed twice. (A sequence with fewer questions than another of the batch is filled
up with its last one.) Where a family writes the question before the image, or where an image has one
question only, a sequence holds one whole prompt and nothing between it and the answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from acs_lib.lvlms.adapter import LVLM, Prompt
from acs_lib.lvlms.short_convolution import CONVOLUTION, places_in_a_row, places_seen


@dataclass(frozen=True)
class Layout:
    """Where the questions of a batch lie.

    prompts: [sequences, questions] which prompt each place holds; where a sequence has fewer questions than another its
        last one again, whose results nobody reads
    place: ([prompts], [prompts]) the sequence and the place in it of each prompt
    prefix: [sequences] lengths, padded to `longest`
    rest: [sequences, questions] lengths of what follows of each prompt, padded to `widest`; 0 where it is all prefix
    """

    prompts: torch.Tensor
    place: tuple[torch.Tensor, torch.Tensor]
    prefix: torch.Tensor
    longest: int
    rest: torch.Tensor
    widest: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> "Layout":
        """The layout of a batch, on the device of the LVLM."""
        sequences = by_sequence(prompts)
        questions = max(map(len, sequences))
        held = torch.tensor([[row[min(index, len(row) - 1)] for index in range(questions)] for row in sequences])
        place = [(number, index) for number, row in enumerate(sequences) for index in range(len(row))]
        lengths = torch.tensor([prompt.length for prompt in prompts])
        prefix = lengths[held[:, 0]]
        if questions > 1:
            prefix = torch.tensor([common([prompts[index] for index in row]) for row in sequences])
        rest = lengths[held] - prefix[:, None]
        tensors = (held, prefix, rest, *torch.tensor(place).T)
        held, prefix, rest, sequence, question = (tensor.to(device) for tensor in tensors)
        return cls(held, (sequence, question), prefix, int(prefix.max()), rest, int(rest.max()))

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values [..., prompts, n] as [..., sequences, questions x n]."""
        return values[..., self.prompts, :].flatten(-2)

    def collect(self, values: torch.Tensor) -> torch.Tensor:
        """Values [sequences, questions x n, m] as [prompts, n, m]."""
        return values.unflatten(1, (self.prompts.shape[1], -1))[self.place]

    def branches(self, answers: int) -> np.ndarray:
        """Where the answers to every prompt lie, [prompts x answers], among the answers of all sequences."""
        sequence, question = (place.numpy(force=True) for place in self.place)
        first = (sequence * self.prompts.shape[1] + question) * answers
        return (first[:, None] + np.arange(answers)).flatten()


def by_sequence(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The prompts' places, those that share a sequence together: neighbours about one image whose common start holds
    all of its tokens."""
    sequences: list[list[int]] = []
    for place, prompt in enumerate(prompts):
        first = prompts[sequences[-1][0]] if sequences else None
        if first and first.inputs["pixel_values"] is prompt.inputs["pixel_values"] and _image_end(prompt) <= common(
            [first, prompt]
        ):  # fmt: skip
            sequences[-1].append(place)
        else:
            sequences.append([place])
    return sequences


def _image_end(prompt: Prompt) -> int:
    """The place behind the last image token."""
    return 1 + int(torch.cat([prompt.grid.cells.flatten(), prompt.grid.thumbnail]).max())


def common(prompts: Sequence[Prompt]) -> int:
    """How many tokens the prompts begin alike with; at least the last token of each is its own."""
    length = min(prompt.length for prompt in prompts) - 1
    first = prompts[0].ids[:length]
    for prompt in prompts[1:]:
        other = (first != prompt.ids[:length]).nonzero()
        length = int(other[0]) if len(other) else length
        first = first[:length]
    return length


def question_mask(layout: Layout, window: int | None = None) -> torch.Tensor:
    """Mask [sequences, 1, questions x widest, keys] bool (True: seen) of the pass that reads all questions; with a
    window only the last `window` tokens are seen."""
    prefix, longest, widest = layout.prefix[:, None, None], layout.longest, layout.widest
    token = torch.arange(layout.rest.shape[1] * widest, device=prefix.device)[:, None]
    key = torch.arange(longest + len(token), device=prefix.device)
    at = key - longest
    own = (at // widest == token // widest) & (at % widest <= token % widest)
    seen = torch.where(key < longest, key < prefix, own)
    if window is not None:
        place = torch.where(key < longest, key, prefix + at % widest)
        seen = seen & (place > prefix + token % widest - window)
    return seen[:, None]


def branch_mask(layout: Layout, answers: int, step: int, window: int | None = None) -> torch.Tensor:
    """Mask [sequences, 1, questions x answers, keys] bool (True: seen) of the pass that decodes token `step` of
    `answers` answers to each question; with a window only the last `window` tokens are seen."""
    prefix, rest, longest, widest = layout.prefix[:, None, None], layout.rest, layout.longest, max(1, layout.widest)
    branch = torch.arange(rest.shape[1] * answers, device=prefix.device)
    key = torch.arange(longest + rest.shape[1] * layout.widest, device=prefix.device)  # of the prompts
    at, after = key - longest, rest.repeat_interleave(answers, 1)[..., None]
    question = (at // widest == branch[:, None] // answers) & (at % widest < after)
    prompt = torch.where(key < longest, key < prefix, question)
    own = torch.eye(len(branch), dtype=torch.bool, device=prefix.device).repeat(1, step + 1)
    if window is not None:
        place = torch.where(key < longest, key, prefix + at % widest)
        prompt = prompt & (place > prefix + after + step - window)
        said = torch.arange(step + 1, device=prefix.device).repeat_interleave(len(branch))
        own = own & (said > step - window)
    return torch.cat([prompt, own.expand(len(prompt), -1, -1)], -1)[:, None]


def masks(lvlm: LVLM, mask: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask of a pass, as the model takes it: one a kind of layer where some see a window of the last tokens only,
    or are short convolutions, which take the places of what they mix. Additive, in the model's dtype, and repeated for
    the query heads that share a key head: made ready once, not by every layer."""
    text, dtype = lvlm.model.config.get_text_config(), lvlm.model.dtype

    def ready(**window: int) -> torch.Tensor:
        additive = 1 - mask(*arguments, **window).to(dtype).reciprocal_()  # 0 where seen, else minus infinity
        return additive.repeat(1, 1, text.num_attention_heads // text.num_key_value_heads, 1)

    kinds = getattr(text, "layer_types", None) or ()
    if CONVOLUTION in kinds:
        return {"full_attention": ready(), CONVOLUTION: places_seen(mask(*arguments)[:, 0], text.conv_L_cache)}
    if "sliding_attention" in kinds:
        return {"full_attention": ready(), "sliding_attention": ready(window=text.sliding_window)}
    return ready()


def prefill_mask(lvlm: LVLM, length: int) -> dict[str, torch.Tensor | None] | None:
    """The mask of the pass over the `length` tokens of prompts: the model makes its own, but for short convolutions."""
    text = lvlm.model.config.get_text_config()
    if CONVOLUTION not in (getattr(text, "layer_types", None) or ()):
        return None
    return {"full_attention": None, CONVOLUTION: places_in_a_row(length, text.conv_L_cache, lvlm.model.device)}


def new_cache() -> DynamicCache:
    """A cache that keeps all keys: one made of the configuration would count others' tokens into a window."""
    return DynamicCache()


def padded(values: Sequence[torch.Tensor], length: int, dim: int) -> torch.Tensor:
    """The values joined along `dim`, each filled up to `length` by repeating its last column."""

    def filled(value: torch.Tensor) -> torch.Tensor:
        last = value[..., -1:].expand(*value.shape[:-1], length - value.shape[-1])
        return torch.cat([value, last], -1)

    return torch.cat([filled(value) for value in values], dim)


@torch.inference_mode()
def prefill(
    lvlm: LVLM, prompts: Sequence[Prompt], layout: Layout, cache: DynamicCache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill the empty cache with the prompts, as the layout has them; the logits [prompts, vocabulary] of the first
    token of their answers, and its position [..., prompts, 1]."""
    device, first = lvlm.model.device, [prompts[index] for index in layout.prompts[:, 0].tolist()]
    lengths = layout.prefix.tolist()
    inputs: dict[str, Any] = {}
    for name in first[0].inputs:
        values = [prompt.inputs[name] for prompt in first]
        if name in first[0].by_token:
            cut = [value[:, :length] for value, length in zip(values, lengths)]
            inputs[name] = padded(cut, layout.longest, 0).to(device)
        elif name != "pixel_values":
            inputs[name] = torch.cat(values).to(device)
    if len({id(prompt.inputs["pixel_values"]) for prompt in first}) < len(first):
        inputs["mm_encoder_outputs"] = lvlm.encoded(first)
    else:
        inputs["pixel_values"] = torch.cat([prompt.inputs["pixel_values"] for prompt in first]).to(device)
    positions, answer_at = zip(*(lvlm.positions(prompt.inputs) for prompt in prompts))
    of_first = [positions[index][..., :length] for index, length in zip(layout.prompts[:, 0].tolist(), lengths)]
    last, place = layout.prefix.unique(return_inverse=True)
    output = lvlm.model(
        **inputs, attention_mask=prefill_mask(lvlm, layout.longest), past_key_values=cache, use_cache=True,
        position_ids=padded(of_first, layout.longest, -2).to(device), logits_to_keep=last - 1,
    )  # fmt: skip
    following = torch.cat(answer_at, -2).to(device)
    if not layout.widest:
        return output.logits[torch.arange(len(prompts), device=device), place], following
    begin = layout.prefix[layout.place[0]].tolist()
    ids = padded([prompt.ids[None, start:] for prompt, start in zip(prompts, begin)], layout.widest, 0).to(device)
    where = [position[..., start:] for position, start in zip(positions, begin)]
    ends, place = (layout.place[1] * layout.widest + layout.rest[layout.place] - 1).unique(return_inverse=True)
    output = lvlm.model(
        input_ids=layout.spread(ids), attention_mask=masks(lvlm, question_mask, layout),
        position_ids=layout.spread(padded(where, layout.widest, -2).to(device)), past_key_values=cache,
        use_cache=True, logits_to_keep=ends,
    )  # fmt: skip
    return output.logits[layout.place[0], place], following
