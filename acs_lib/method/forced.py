"""Answers that are known already, by teacher forcing: their statistics and attention rows from one pass.

The prompt is prefilled once. Then the tokens of all answers follow at once, as branches of one sequence: a mask lets a
token see the prompt and its own answer up to itself. So the pass says of answers that another engine sampled what
`sampling.generate` says of its own.

Memory: rows are read only of the tokens that stand for the four numbers of a box, and those of one number are added up
layer by layer, so that what is kept are answers x 4 x layers x heads x image tokens float32, as large as the maps. With
more than PASS tokens several passes take some of the answers each. A pass holds its logits, in the LVLM's own type, and
describes them DESCRIBED tokens at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from acs_lib.core.candidates import PER_TOKEN, Candidates
from acs_lib.lvlms.adapter import LVLM, NO_BOX, Prompt
from acs_lib.lvlms.attention_rows import Rows, reading
from acs_lib.method.sampling import candidates_of, describe_tokens
from acs_lib.method.sharing import Layout, masks, new_cache, prefill

PASS = 1024  # tokens
DESCRIBED = 64  # tokens
NO_END = f"{NO_BOX}, nor an end: raise the engine's limit of tokens"  # why an answer without an end has no box


def forced_mask(length: int, answer: torch.Tensor, step: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Mask [1, 1, n, length + n] bool (True: seen) of the pass over n tokens behind a prompt of `length` tokens: token
    i is the one at step[i] of answer[i]; with a window only the last `window` tokens are seen."""
    own = (answer[:, None] == answer) & (step <= step[:, None])
    seen = torch.cat([own.new_ones(len(own), length), own], 1)
    if window is not None:
        place = torch.cat([torch.arange(length, device=step.device), length + step])
        seen &= place > (length + step)[:, None] - window
    return seen[None, None]


def numbers_of(lvlm: LVLM, prompt: Prompt, token_ids: list[int]) -> list[list[int]]:
    """The places in an answer of the tokens that write each of the four numbers of its box; empty without a box."""
    spans = lvlm.parse(lvlm.decode(token_ids), prompt).spans
    try:
        return lvlm.coordinate_tokens(token_ids, spans) if spans else []
    except ValueError:
        return []


def tokens_read(number: list[int], digit: Sequence[bool] | torch.Tensor, row: str) -> list[int]:
    """The places in an answer of the tokens whose rows stand for a number (see Sampling), which the tokens at `number`
    write; `digit`: of each token of the answer, whether it writes digits. Empty where none does: another number follows
    at once, or nothing."""
    if row == "predicting":
        return [token - 1 for token in number]
    if row == "after":
        return [token + 1 for token in number[-1:] if token + 1 < len(digit) and not digit[token + 1]]
    return number[-1:] if row == "last" else number


@torch.inference_mode()
def force(lvlm: LVLM, prompt: Prompt, answers: Sequence[list[int]], row: str) -> list[dict]:
    """Of each answer (token ids) to a prompt what `sampling.generate` gives, rows of the numbers of its box alone: in
    `rows`, [layers, heads, image tokens], the place of a number's last token stands for the number.

    ValueError for a token that the LVLM does not have or that no answer may hold.
    """
    size = len(lvlm.digit_tokens)
    for token in set(sum(map(list, answers), [])):
        if not 0 <= token < size or token in lvlm.banned_tokens:
            raise ValueError(
                f"the token {token} is none of {lvlm.name}'s answers (its vocabulary has {size}, and the image's own "
                "token is no answer); give the answers as text if their engine has another vocabulary"
            )
    layout, cache = Layout.of([prompt], lvlm.model.device), new_cache()
    logits, position = prefill(lvlm, [prompt], layout, cache)
    found = []
    for some in _passes(answers):
        found += _read(lvlm, prompt, some, row, logits, position, cache)
        if extra := cache.get_seq_length() - prompt.length:
            cache.crop(-extra)
    return found


def _passes(answers: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """The answers, in turn, as many at once as have PASS tokens together."""
    some: list[list[int]] = []
    for answer in answers:
        if some and sum(map(len, some)) + len(answer) > PASS:
            yield some
            some = []
        some.append(answer)
    if some:
        yield some


def _read(
    lvlm: LVLM, prompt: Prompt, answers: list[list[int]], row: str, logits: torch.Tensor, position: torch.Tensor,
    cache: DynamicCache,
) -> list[dict]:  # fmt: skip
    """`force` of some answers, behind a prompt that is in the cache; `logits`, `position`: of its next token."""
    device, lengths = lvlm.model.device, [len(answer) for answer in answers]
    begins = [sum(lengths[:index]) for index in range(len(answers))]
    described = torch.empty(len(PER_TOKEN), 0)
    rows: list[dict[int, torch.Tensor]] = [{} for _ in answers]
    if sum(lengths):
        ids = torch.tensor(sum(answers, []), device=device)
        answer = torch.arange(len(answers), device=device).repeat_interleave(torch.tensor(lengths, device=device))
        step = torch.arange(len(ids), device=device) - torch.tensor(begins, device=device)[answer]
        numbers = [(index, each) for index, one in enumerate(answers) for each in numbers_of(lvlm, prompt, one)]
        chosen = [
            (begins[index] + token, slot)
            for slot, (index, number) in enumerate(numbers)
            for token in tokens_read(number, lvlm.digit_tokens[torch.tensor(answers[index])], row)
        ]
        reader = None
        if chosen:
            columns = prompt.grid.cells.flatten()[None].to(device)
            where = tuple(torch.tensor(chosen, device=device).T)
            reader = Rows(columns, len(numbers), lvlm.attention_layers, lvlm.heads, where)
        with reading(reader):
            output = lvlm.model(
                input_ids=ids[None], attention_mask=masks(lvlm, forced_mask, prompt.length, answer, step),
                position_ids=position + step, past_key_values=cache, use_cache=True,
            )  # fmt: skip
        described = torch.cat([
            _describe(lvlm, torch.where(step[places, None] == 0, logits, output.logits[0, places - 1]), ids[places])
            for places in torch.arange(len(ids), device=device).split(DESCRIBED)
        ], -1).cpu()  # fmt: skip
        if reader is not None:
            values, read = reader.take()[0], {slot for _, slot in chosen}
            for slot, (index, number) in enumerate(numbers):
                if slot in read:
                    rows[index][number[-1]] = values[slot]
    return [
        {
            "token_ids": one,
            **{name: values[begin : begin + len(one)].tolist() for name, values in zip(PER_TOKEN, described)},
            "rows": of,
        }
        for one, begin, of in zip(answers, begins, rows)
    ]


def _describe(lvlm: LVLM, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The statistics of tokens [n] and of the logits [n, vocabulary] that they were drawn from, as of sampling."""
    banned = lvlm.banned_tokens.to(logits.device)
    return describe_tokens(logits.float().index_fill(-1, banned, -torch.inf), ids, logits.shape[-1] - len(banned))


def force_candidates(
    lvlm: LVLM, prompt: Prompt, query_id: str, category: str, answers: Sequence[list[int]], row: str = "own"
) -> tuple[Candidates, list[dict]]:
    """`Candidates` and records of answers that are known, as `sampling.sample_candidates` gives them of its own; the
    first one is the greedy answer, [] where there is none. ValueError as `force`."""
    found = force(lvlm, prompt, answers, row)
    return candidates_of(lvlm, [prompt], [query_id], [category], [found], row, NO_END)[0]
