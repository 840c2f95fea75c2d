"""One greedy and N sampled answers from one prefill, with the attention rows of their coordinate tokens.

An image is encoded once, and what the prompts of its questions begin with is prefilled once. The answers then decode as
branches of one sequence (`method.sharing`): each pass appends one token of every answer to the cache, and a mask lets
an answer see its own prompt and its own tokens. So the prompt's keys and values are neither copied nor read once an
answer. The host waits for the device once a token: for the token ids. What they decide (who has ended, whose rows are
read, to which number a digit belongs) is decided on the host, and rows stay on the device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from acs_lib.core.candidates import PER_TOKEN, Candidates
from acs_lib.lvlms.adapter import LVLM, NO_BOX, ParsedAnswer, Prompt
from acs_lib.lvlms.attention_rows import Rows, reading
from acs_lib.method.maps import box_coverage, coordinate_maps, head_statistics, pool_maps
from acs_lib.method.sharing import Layout, branch_mask, masks, new_cache, padded, prefill
from acs_lib.profiles import Sampling

TOP_K = 20  # of top20_logprob
CUT = f"{NO_BOX}, cut at max_new_tokens"  # why an answer without an end has no box


def noise(sampling: Sampling, query_key: int) -> np.ndarray:
    """Uniform numbers [samples, max_new_tokens] of one query, whatever else is in the batch."""
    return np.random.default_rng([sampling.seed, query_key]).random((sampling.samples, sampling.max_new_tokens))


def sample_tokens(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Token ids [...] by inverting the cumulative distribution at `uniform` [...], in its precision; logits
    [..., vocabulary]."""
    probability = (logits.to(uniform.dtype) / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        probability = torch.zeros_like(probability).scatter_(-1, order, ordered)
    cumulative = probability.cumsum(-1)
    whole = cumulative[..., -1:].contiguous()
    token = torch.searchsorted(cumulative, uniform[..., None] * whole, right=True)
    return token.minimum(torch.searchsorted(cumulative, whole))[..., 0]  # float32 rounds the largest numbers to 1


def precision(device: torch.device) -> torch.dtype:
    """In which draws are computed: float64, float32 where the device has no other (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.inference_mode()
def generate(
    lvlm: LVLM, prompts: Sequence[Prompt], query_keys: Sequence[int], sampling: Sampling, capture: bool = True,
    drawn: int = 0,
) -> list[list[dict]]:  # fmt: skip
    """Answers to a batch of prompts, of any lengths and grids: for each 1 + samples dictionaries (greedy first).

    `drawn`: so many of the samples were drawn before; after the greedy answer only the others follow.

    Of the checkpoint's own generation config the end tokens and the repetition penalty hold, as in transformers'
    `generate` (Qwen2.5-VL's has 1.05, over prompt and answer, for greedy decoding as well); temperature and top-p are
    those of `sampling`.
    Keys: token_ids, logprobs, entropies, mean_log_vp, top20_logprob (a value a token, at temperature 1 and before the
    penalty: what the LVLM itself holds likely), and rows, a
    dict with an entry for every number of the answer, [layers, heads, image tokens] float32: position of its first
    token -> sum of the rows of its tokens ('own') or of the tokens before them ('predicting'), or the row of its last
    token ('last'); position of its last token -> row of the token after it ('after', without an entry where another
    number follows at once).
    """
    answers, steps, device = sampling.samples - drawn + 1, sampling.max_new_tokens, lvlm.model.device
    layout, cache = Layout.of(prompts, device), new_cache()
    logits, position = prefill(lvlm, prompts, layout, cache)
    logits = logits[:, None].expand(-1, answers, -1)

    uniform = torch.from_numpy(np.stack([noise(sampling, key)[drawn:] for key in query_keys]))
    uniform = uniform.to(precision(device)).to(device)
    banned, is_digit, ends = lvlm.banned_tokens.to(device), lvlm.digit_tokens.numpy(), lvlm.end_tokens.numpy()
    reader, numbers = None, None
    if capture:
        cells = [prompts[index].grid.cells.flatten()[None] for index in layout.prompts[:, 0].tolist()]
        columns = padded(cells, max(one.shape[1] for one in cells), 0).to(device)
        reader = Rows(columns, layout.rest.shape[1] * answers, lvlm.attention_layers, lvlm.heads)
        numbers = _Numbers(lvlm, layout.branches(answers), sampling.row == "last")
    penalise, said = _penalty(lvlm), None
    if penalise is not None:
        ids = [prompt.inputs["input_ids"] for prompt in prompts]
        said = padded(ids, max(prompt.length for prompt in prompts), 0).to(device).repeat_interleave(answers, 0)
    running = np.ones(len(prompts) * answers, bool)
    written, described, lives = [], [], []
    for step in range(steps):
        logits = logits.float().index_fill(-1, banned, -torch.inf)
        wished = logits
        if penalise is not None:
            wished = penalise(said, logits.flatten(0, 1)).view_as(logits)
        token = wished.argmax(-1)
        token[:, 1:] = sample_tokens(wished[:, 1:], uniform[:, :, step], sampling.temperature, sampling.top_p)
        if said is not None:
            said = torch.cat([said, token.view(-1, 1)], 1)
        described.append(describe_tokens(logits, token, logits.shape[-1] - len(banned)))
        written.append(token.flatten().cpu().numpy())  # here the host waits
        lives.append(running)
        digit = is_digit[written[-1]]
        wanted = running & digit
        if sampling.row == "after":
            wanted = running & ~digit & (is_digit[written[-2]] if step else False)
        if step and reader and numbers and sampling.row == "predicting":
            numbers.add(written, wanted, reader.take())
        running = running & ~np.isin(written[-1], ends)
        if not running.any() or step == steps - 1:
            break
        active = reader if sampling.row == "predicting" or wanted.any() else None
        with reading(active):
            output = lvlm.model(
                input_ids=layout.spread(token), attention_mask=masks(lvlm, branch_mask, layout, answers, step),
                position_ids=layout.spread((position + step).expand(*position.shape[:-1], answers)),
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        logits = layout.collect(output.logits)
        if active and numbers and sampling.row == "after":
            numbers.begin(step - 1, wanted.nonzero()[0], active.take())
        elif active and numbers and sampling.row != "predicting":
            numbers.add(written, wanted, active.take())
    texts, counts = np.stack(written, -1), np.sum(lives, 0)
    told = torch.stack(described, -1).flatten(1, 2).cpu()
    return [
        [
            {
                "token_ids": texts[place, : counts[place]].tolist(),
                **{name: values[place, : counts[place]].tolist() for name, values in zip(PER_TOKEN, told)},
                "rows": {
                    start: row[..., : prompt.grid.cells.numel()]
                    for start, row in (numbers.of(place).items() if numbers else ())
                },
            }
            for place in range(query * answers, (query + 1) * answers)
        ]
        for query, prompt in enumerate(prompts)
    ]


def _penalty(lvlm: LVLM) -> RepetitionPenaltyLogitsProcessor | None:
    """The repetition penalty of the checkpoint's generation config; None without one."""
    penalty = lvlm.model.generation_config.repetition_penalty
    return None if penalty in (None, 1) else RepetitionPenaltyLogitsProcessor(float(penalty))


def describe_tokens(logits: torch.Tensor, token: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The statistics of PER_TOKEN, [4, ...], of tokens [...] and their logits [..., vocabulary + banned tokens]."""
    logprob = logits.log_softmax(-1)
    finite = logprob.masked_fill(logprob == -torch.inf, 0)
    return torch.stack(
        [
            logprob.gather(-1, token[..., None])[..., 0],
            -(logprob.exp() * finite).sum(-1),
            finite.sum(-1) / vocabulary + np.log(vocabulary),
            logprob.topk(min(TOP_K, vocabulary)).values.mean(-1),
        ]
    )


class _Numbers:
    """The rows of the numbers of all answers, out of a buffer that the next pass overwrites: kept together on the
    device, one tensor for all numbers whose first row is that of the same step.

    branches: [answers of all prompts] the place of each answer in the buffer, its first two axes as one
    last: a number's later digits replace its row, instead of adding theirs
    """

    def __init__(self, lvlm: LVLM, branches: np.ndarray, last: bool):
        self.lvlm, self.branches, self.last = lvlm, branches, last
        self.rows: dict[int, torch.Tensor] = {}  # step -> [numbers, layers, heads, image tokens]
        self.places: list[dict[int, int]] = [{} for _ in branches]  # of an answer: step -> place in its tensor
        self.goes_on: dict[tuple, bool] = {}  # of a text, often that of other answers as well

    def of(self, answer: int) -> dict[int, torch.Tensor]:
        """The rows [layers, heads, image tokens] of an answer's numbers, by the step of the first one."""
        return {step: self.rows[step][place] for step, place in self.places[answer].items()}

    def begin(self, step: int, answers: Sequence[int] | np.ndarray, values: torch.Tensor) -> None:
        """Rows of numbers that begin, of these answers."""
        if len(answers):
            self.rows[step] = self._picked(answers, values)
        for place, answer in enumerate(answers):
            self.places[answer][step] = place

    def add(self, written: list[np.ndarray], wanted: np.ndarray, values: torch.Tensor) -> None:
        """Rows of the last digit of the wanted answers [answers]: each belongs to the number before it or begins one.
        `written`: the token ids [answers] of every step."""
        begins, texts = [], np.stack(written, -1)
        goes_on: dict[int, list[int]] = {}
        for answer in wanted.nonzero()[0].tolist():
            start = max(self.places[answer], default=None)
            if start is not None and self._one_number(texts[answer, start:].tolist()):
                goes_on.setdefault(start, []).append(answer)
            else:
                begins.append(answer)
        self.begin(len(written) - 1, begins, values)
        for start, answers in goes_on.items():
            rows, places = self.rows[start], [self.places[answer][start] for answer in answers]
            put = rows.index_copy_ if self.last else rows.index_add_
            put(0, _index(places, rows.device), self._picked(answers, values))

    def _picked(self, answers: Sequence[int] | np.ndarray, values: torch.Tensor) -> torch.Tensor:
        return values.flatten(0, 1)[_index(self.branches[answers], values.device)]

    def _one_number(self, text: list[int]) -> bool:
        if tuple(text) not in self.goes_on:
            self.goes_on[tuple(text)] = self.lvlm.decode(text).strip().isdigit()
        return self.goes_on[tuple(text)]


def _index(places: Sequence[int] | np.ndarray, device: torch.device) -> torch.Tensor:
    """Places as an index on the device, without waiting for what it computes."""
    return torch.as_tensor(places).to(device, non_blocking=True)


def sample_candidates(
    lvlm: LVLM, prompts: Sequence[Prompt], query_ids: Sequence[str], query_keys: Sequence[int],
    categories: Sequence[str], sampling: Sampling, map_side: int | None = None, drawn: int = 0,
) -> list[tuple[Candidates, list[dict]]]:  # fmt: skip
    """For each prompt its `Candidates` (maps included) and one record an answer: text, token ids, failure. `drawn`: see
    `generate`.

    With `map_side` the maps, not their statistics, are averaged to at most that many rows and columns. What is computed
    of the maps of an LVLM on a GPU is computed there, and only the results are copied. An answer without a box keeps
    its place with NaN box and NaN maps, so that nothing is lost.
    """
    cut = f"{CUT}: raise it from {sampling.max_new_tokens} (acs ground --max-new-tokens)"
    batch = generate(lvlm, prompts, query_keys, sampling, drawn=drawn)
    return candidates_of(lvlm, prompts, query_ids, categories, batch, sampling.row, cut, map_side)


def read_box(
    lvlm: LVLM, answer: dict, parsed: ParsedAnswer, shape: tuple[int, int], row: str
) -> tuple[str, list[int], torch.Tensor | None]:
    """Of one box that an answer (as `generate` gives it) holds: why it cannot be read ('' if it can), the positions of
    the tokens that write its four numbers, and its maps [4, layers, heads, h, w]."""
    try:
        tokens = lvlm.coordinate_tokens(answer["token_ids"], parsed.spans)
    except ValueError:
        return "a coordinate without tokens of its own", [], None
    maps = coordinate_maps(answer["rows"], tokens, shape, row)
    if maps is None:
        return "no token after one of the numbers", [], None
    if not maps.sum().isfinite():
        return "non-finite attention", [], None
    return "", sum(tokens, []), maps


def candidates_of(
    lvlm: LVLM, prompts: Sequence[Prompt], query_ids: Sequence[str], categories: Sequence[str],
    batch: Sequence[list[dict]], row: str, cut: str, map_side: int | None = None,
) -> list[tuple[Candidates, list[dict]]]:  # fmt: skip
    """What `sample_candidates` gives, of answers as `generate` gives them; `row`: see Sampling; `cut`: why an answer
    without an end token has no box."""
    results = []
    for prompt, query_id, category, answers in zip(prompts, query_ids, categories, batch):
        shape = prompt.grid.shape
        boxes = np.full((len(answers), 4), np.nan)
        maps = torch.full((len(answers), 4, lvlm.layers, lvlm.heads, *shape), np.nan, device=lvlm.model.device)
        numbers, records = [], []
        for index, answer in enumerate(answers):
            text = lvlm.decode(answer["token_ids"])
            parsed = lvlm.parse(text, prompt)
            failure = parsed.failure
            tokens: list[int] = []
            if failure == NO_BOX and not torch.isin(torch.tensor(answer["token_ids"][-1:]), lvlm.end_tokens).any():
                failure = cut
            if parsed.box is not None:
                failure, tokens, found = read_box(lvlm, answer, parsed, shape, row)
                if found is not None:
                    boxes[index], maps[index] = parsed.box, found
            numbers.append(np.array(tokens, int))
            records.append({"text": text, "token_ids": answer["token_ids"], "failure": failure})
        candidates = described_candidates(prompt, query_id, category, boxes, maps, answers, numbers, map_side)
        results.append((candidates, records))
    return results


def described_candidates(
    prompt: Prompt, query_id: str, category: str, boxes: np.ndarray, maps: torch.Tensor, told: Sequence[dict],
    numbers: list[np.ndarray], map_side: int | None = None,
) -> Candidates:  # fmt: skip
    """`Candidates` of boxes [n, 4] in pixels and maps [n, 4, layers, heads, h, w], on any device, where the statistics
    are computed; told [n]: PER_TOKEN of each; numbers [n]: its coordinate tokens."""
    shape = tuple(maps.shape[-2:])
    coverage = box_coverage(np.nan_to_num(boxes), prompt.width, prompt.height, shape)
    described = head_statistics(maps.numpy() if maps.device.type == "cpu" else maps, coverage)
    if map_side is not None:
        maps = pool_maps(maps, (min(shape[0], map_side), min(shape[1], map_side)))
    return Candidates(
        query_id=query_id, category=category, width=prompt.width, height=prompt.height, boxes=boxes,
        **{name: [np.array(one[name], float) for one in told] for name in PER_TOKEN},
        coordinate_tokens=numbers, statistics=torch.as_tensor(described).numpy(force=True),
        maps=maps.numpy(force=True),
    )  # fmt: skip
