"""One greedy and N sampled answers from one prefill, with the attention rows of their coordinate tokens.

The image is encoded and the prompt prefilled once a query; all answers then decode as one batch over that cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from acs_lib import boxes as bx
from acs_lib.attention import Rows, reading
from acs_lib.candidates import STATISTICS, Candidates
from acs_lib.lvlms.base import LVLM, Prompt

TOP_K = 20  # of the confidence


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `row` says which attention row stands for a number: that of its own tokens ('own'), or
    those of the tokens that predict them ('predicting'); several tokens are averaged."""

    samples: int = 10
    temperature: float = 0.5
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0
    row: str = "own"


def noise(sampling: Sampling, query_key: int) -> np.ndarray:
    """Uniform numbers [samples, max_new_tokens] of one query, whatever else is in the batch."""
    return np.random.default_rng([sampling.seed, query_key]).random((sampling.samples, sampling.max_new_tokens))


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Token ids [rows] by inverting the cumulative distribution at `uniform` [rows]; logits [rows, vocabulary]."""
    probability = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        probability = torch.zeros_like(probability).scatter_(-1, order, ordered)
    cumulative = probability.cumsum(-1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp_max(
        logits.shape[-1] - 1
    )


@torch.inference_mode()
def generate(
    lvlm: LVLM, prompts: Sequence[Prompt], query_keys: Sequence[int], sampling: Sampling, capture: bool = True
) -> list[list[dict]]:
    """Answers of a batch of prompts of equal length and grid: for each prompt 1 + samples dictionaries (greedy first).

    Keys: token_ids, logprobs, entropies, self_certainty, confidence (a value a token, at temperature 1), and rows, a
    dict answer position -> [layers, heads, image tokens] float32 of the tokens that 'own' or 'predicting' asks for.
    """
    if any(not torch.equal(prompt.grid.cells.flatten(), prompts[0].grid.cells.flatten()) for prompt in prompts):
        raise ValueError("the prompts of a batch must have their image tokens at the same positions")
    width = sampling.samples + 1
    rows_in_batch = len(prompts) * width
    device = lvlm.model.device
    names = prompts[0].inputs.keys()
    inputs = {name: torch.cat([prompt.inputs[name] for prompt in prompts]).to(device) for name in names}
    positions, next_position = lvlm.positions(inputs)
    output = lvlm.model(
        **inputs, position_ids=positions, past_key_values=DynamicCache(config=lvlm.model.config.get_text_config()),
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    cache = output.past_key_values
    cache.batch_repeat_interleave(width)
    logits = output.logits[:, -1].repeat_interleave(width, 0)
    position = next_position.repeat_interleave(width, -2)
    uniform = np.stack([np.vstack([np.zeros(sampling.max_new_tokens), noise(sampling, key)]) for key in query_keys])
    uniform = torch.from_numpy(uniform.reshape(rows_in_batch, -1)).to(device)
    greedy = torch.arange(rows_in_batch, device=device) % width == 0
    reader = values = None
    if capture:
        columns = prompts[0].grid.cells.flatten().to(device)
        reader = Rows(columns, lvlm.layers, lvlm.heads, rows_in_batch)
    digit, end = lvlm.digit_tokens.to(device), lvlm.end_tokens.to(device)
    answers = [
        {"token_ids": [], "logprobs": [], "entropies": [], "self_certainty": [], "confidence": [], "rows": {}}
        for _ in range(rows_in_batch)
    ]
    running = torch.ones(rows_in_batch, dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        logits = logits.float()
        logits[:, lvlm.banned_tokens] = -torch.inf
        logprob = logits.log_softmax(-1)
        token = torch.where(
            greedy, logits.argmax(-1), draw(logits, uniform[:, step], sampling.temperature, sampling.top_p)
        )
        _note(answers, running, token, logprob, logits.shape[-1] - len(lvlm.banned_tokens))
        if step and capture and sampling.row == "predicting":
            _keep(answers, running & digit[token], step, values)
        running = running & ~torch.isin(token, end)
        if not running.any() or step == sampling.max_new_tokens - 1:
            break
        with reading(reader):
            output = lvlm.model(
                input_ids=token[:, None], position_ids=position + step, past_key_values=cache, use_cache=True
            )
        logits = output.logits[:, -1]
        if capture:
            values = reader.take()
            if sampling.row == "own":
                _keep(answers, running & digit[token], step, values)
    return [answers[start : start + width] for start in range(0, rows_in_batch, width)]


def _note(answers, running, token, logprob, vocabulary: int) -> None:
    """Append each running answer's token and its statistics."""
    probability = logprob.exp()
    finite = logprob.masked_fill(~logprob.isfinite(), 0)
    columns = {
        "token_ids": token,
        "logprobs": logprob.gather(1, token[:, None])[:, 0],
        "entropies": -(probability * finite).sum(-1),
        "self_certainty": finite.sum(-1) / vocabulary + np.log(vocabulary),
        "confidence": logprob.topk(min(TOP_K, vocabulary)).values.mean(-1),
    }
    columns = {name: values.tolist() for name, values in columns.items()}
    for index in running.nonzero()[:, 0].tolist():
        for name, values in columns.items():
            answers[index][name].append(values[index])


def _keep(answers, wanted, step: int, values) -> None:
    """Copy the rows of the wanted answers, out of a buffer that the next token overwrites."""
    for index, row in zip(wanted.nonzero()[:, 0].tolist(), values[wanted].cpu()):
        answers[index]["rows"][step] = row


def coordinate_maps(rows: dict[int, torch.Tensor], tokens: list[list[int]], grid_shape) -> np.ndarray:
    """Maps [4, layers, heads, h, w] float32 of the four numbers: the mean of the rows of a number's tokens."""
    maps = torch.stack([torch.stack([rows[token] for token in number]).mean(0) for number in tokens])
    return maps.unflatten(-1, tuple(grid_shape)).numpy()


def cell_coverage(boxes: np.ndarray, width: int, height: int, grid_shape) -> np.ndarray:
    """Share [n, h, w] in 0-1 of every grid cell that each box [n, 4] covers."""
    rows, columns = grid_shape
    scaled = bx.scale(boxes, columns / width, rows / height)
    x, y = np.arange(columns), np.arange(rows)
    overlap_x = np.minimum(scaled[:, 2:3], x + 1) - np.maximum(scaled[:, 0:1], x)
    overlap_y = np.minimum(scaled[:, 3:4], y + 1) - np.maximum(scaled[:, 1:2], y)
    return np.clip(overlap_y, 0, 1)[:, :, None] * np.clip(overlap_x, 0, 1)[:, None, :]


def statistics(maps: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Per-head statistics [n, 4, layers, heads, 4] (see candidates.STATISTICS) of maps [n, 4, layers, heads, h, w]
    and the boxes' cell coverage [n, h, w]. Entropy is that of the map renormalised over the image tokens (paper,
    section on ACS-Free; nats)."""
    flat = maps.reshape(*maps.shape[:4], -1)
    mass = flat.sum(-1)
    share = flat / np.maximum(mass, 1e-12)[..., None]
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(-1)
    inside = np.einsum("nclhg,ng->nclh", flat, coverage.reshape(len(coverage), -1).astype(flat.dtype))
    result = np.stack([entropy, mass, inside, share.max(-1)], axis=-1)
    assert result.shape[-1] == len(STATISTICS)
    return result


def candidates(
    lvlm: LVLM, prompts: Sequence[Prompt], query_ids: Sequence[str], query_keys: Sequence[int],
    categories: Sequence[str], sampling: Sampling,
) -> list[tuple[Candidates, list[dict]]]:  # fmt: skip
    """For each prompt its `Candidates` (maps included) and one record an answer: text, token ids, failure.

    An answer without a box keeps its place with NaN box and NaN maps, so that nothing is lost.
    """
    results = []
    batch = generate(lvlm, prompts, query_keys, sampling)
    for prompt, query_id, category, answers in zip(prompts, query_ids, categories, batch):
        shape = tuple(prompt.grid.cells.shape)
        boxes = np.full((len(answers), 4), np.nan)
        maps = np.full((len(answers), 4, lvlm.layers, lvlm.heads, *shape), np.nan, np.float32)
        numbers, records = [], []
        for index, answer in enumerate(answers):
            text = lvlm.decode(answer["token_ids"])
            parsed = lvlm.parse(text, prompt)
            failure, tokens = parsed.failure, []
            if parsed.box is not None:
                tokens = lvlm.coordinate_tokens(answer["token_ids"], parsed.spans)
                one = coordinate_maps(answer["rows"], tokens, shape)
                if np.isfinite(one).all():
                    boxes[index], maps[index] = parsed.box, one
                else:
                    failure = "non-finite attention"
            numbers.append(np.array(sum(tokens, []), int))
            records.append({"text": text, "token_ids": answer["token_ids"], "failure": failure})
        coverage = cell_coverage(np.nan_to_num(boxes), prompt.width, prompt.height, shape)
        found = Candidates(
            query_id=query_id, category=category, width=prompt.width, height=prompt.height, boxes=boxes,
            **{
                name: [np.array(answer[name], float) for answer in answers]
                for name in ("logprobs", "entropies", "self_certainty", "confidence")
            },
            coordinate_tokens=numbers, statistics=statistics(maps, coverage), maps=maps,
        )  # fmt: skip
        results.append((found, records))
    return results
