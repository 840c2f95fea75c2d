"""What the kit needs of a large vision-language model (LVLM). A family is one subclass in one file.

A subclass says how its family writes a prompt (`prompts`), where the image tokens lie (`Grid`) and how many there are
(`count_tokens`), how an answer is read (`parse`) and in which units its coordinates are. Nothing else in the kit knows
a family.
"""

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from acs_lib.core import boxes as bx
from acs_lib.lvlms.attention_rows import attach, attention_layers

NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?)"  # one number of an answer, as a group
COMMA = r"\s*,\s*"
QUESTION = "Detect the {object} in the image."
NO_BOX = "no box in the answer"
FAR = 100  # times the image's size
_NAMED = rf"(?:[xy][12]?\s*[:=]\s*)?{NUMBER}"  # a number, with its name or without
_POINT = rf"\(\s*{_NAMED}{COMMA}{_NAMED}\s*\)"
WORDS = (  # a box in other words than the family's: four numbers in one pair of brackets (JSON's, too); two corners
    re.compile(rf"[\[(]\s*{COMMA.join([_NAMED] * 4)}\s*[\])]"),
    re.compile(rf"{_POINT}[^0-9]{{0,80}}(?:corner|\(x2, y2\))[^0-9]{{0,60}}{_POINT}"),
)
_THOUGHT = re.compile(r".*(?:</think>|<answer>)", re.DOTALL)  # what stands before the answer


@dataclass(frozen=True)
class Grid:
    """Where the image tokens of a prompt lie.

    cells: [h, w] long, position in the prompt of the token that sees each cell of the image, row 0 at the top;
        cells are of equal size and cover the whole image
    thumbnail: [m] long, positions of image tokens that see the whole image once more (InternVL's last tile); they are
        not part of the map
    """

    cells: torch.Tensor
    thumbnail: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        rows, columns = self.cells.shape
        return rows, columns


@dataclass(frozen=True)
class ImageTokens:
    """What one image becomes: patches that the vision tower sees, sequences that they attend in (tiles; a Qwen tower
    sees one), image tokens of the prompt, cells of the map."""

    patches: int
    sequences: int
    image: int
    cells: int


@dataclass(frozen=True)
class Prompt:
    """One question about one image, ready for the LVLM: its inputs (batch of one), the grid, the image's size in px.
    Prompts about one image hold the very same tensor `pixel_values`."""

    inputs: dict[str, torch.Tensor]
    grid: Grid
    width: int
    height: int

    @property
    def ids(self) -> torch.Tensor:
        """Token ids [length]."""
        return self.inputs["input_ids"][0]

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def by_token(self) -> list[str]:
        """The names of the inputs that hold a value a token; the others are about the image."""
        shape = self.inputs["input_ids"].shape
        return [name for name, value in self.inputs.items() if value.shape == shape and not name.startswith("pixel")]


@dataclass(frozen=True)
class ParsedAnswer:
    """A parsed answer: the box [4] in original pixels, clipped to the image, and for each coordinate the characters
    [start, stop) of the text that write it; or the reason why there is none."""

    box: np.ndarray | None = None
    spans: tuple[tuple[int, int], ...] = ()
    failure: str = ""


class ImageRefused(ValueError):
    """This LVLM cannot be shown this image."""


class LVLM(ABC):
    """A model of one family with its tokenizer and image processor.

    The text model's attention runs through `acs_lib.lvlms.attention_rows`, which is SDPA plus the reading of rows.
    """

    image_token: str  # text of one image token
    model_types: tuple[str, ...]  # `config.model_type`s that this adapter serves
    image_processors: Any = AutoImageProcessor  # whose `from_pretrained` reads a checkpoint's image processor
    box_pattern: re.Pattern[str]  # four groups: x1, y1, x2, y2
    makers_question: str | None = None  # how its makers ask for a box, with {object}; None where they say nothing
    limits: tuple[str, ...] = ()  # the settings that `limit` takes: max_tiles, max_pixels
    revision: str | None = None  # of a hub, if one was asked for
    digest: str | None = None  # see load.loaded_digest

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any, name: str,
        question: str = QUESTION,
    ):  # fmt: skip
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor
        self.name, self.question = name, question
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        attach(model)

    @classmethod
    def count_tokens(cls, config: PreTrainedConfig, width: int, height: int, **limits: int) -> ImageTokens:
        """What an image of width x height px becomes, without a model: by the family's own resizing with the published
        settings of the image processor, or with `limits` (see profiles.LVLMSpec).

        Raises ValueError for a setting that the family does not have, or where the adapter cannot count.
        """
        raise ValueError(
            f"the adapter {cls.__name__} does not say how many tokens an image has: write its `count_tokens`, or leave "
            "`gpu` and `plan_here` out of the profile"
        )

    @classmethod
    def check_limits(cls, limits: Iterable[str]) -> None:
        """ValueError for a setting that the family does not have."""
        for name in limits:
            if name not in cls.limits:
                raise ValueError(
                    f"the profile sets {name}, which LVLMs of the type {cls.model_types[0]} do not have; they have "
                    f"{', '.join(cls.limits) or 'none'}"
                )

    def limit(self, **limits: int) -> None:
        """Set how large an image may become (see profiles.LVLMSpec); ValueError for what the family does not have."""
        self.check_limits(limits)

    @abstractmethod
    def prompts(self, image: Image.Image, categories: Sequence[str]) -> list[Prompt]:
        """The question about one object of each category, with the image, as the family's chat template writes it.

        Raises ImageRefused for an image that the family cannot be shown.
        """

    def prompt(self, image: Image.Image, category: str) -> Prompt:
        """`prompts` of a single question."""
        return self.prompts(image, [category])[0]

    def written(
        self, image: Image.Image, categories: Sequence[str], tokens: str, cells: torch.Tensor,
        inputs: dict[str, torch.Tensor],
    ) -> list[Prompt]:  # fmt: skip
        """Prompts in which `tokens` stand for the image.

        cells: [h, w] long, which of the image tokens, counted from 0, sees each cell; those behind them are the
            thumbnail's
        inputs: what the model takes of the image; all prompts hold these very tensors
        """
        found = []
        for category in categories:
            text = self.chat(category).replace(self.image_token, tokens)
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            places = (ids[0] == self.image_token_id).nonzero()[:, 0]
            grid = Grid(cells=places[cells], thumbnail=places[cells.numel() :])
            found.append(Prompt({"input_ids": ids, **inputs}, grid, *image.size))
        return found

    def encoded(self, prompts: Sequence[Prompt]) -> dict:
        """What the vision tower makes of the images of some prompts, for the model's `mm_encoder_outputs`; an image
        that several of them are about is looked at once."""
        images = {id(prompt.inputs["pixel_values"]): prompt.inputs for prompt in prompts}
        place = {image: index for index, image in enumerate(images)}
        order = [place[id(prompt.inputs["pixel_values"])] for prompt in prompts]
        names = [name for name in prompts[0].inputs if name not in prompts[0].by_token]
        inputs = {name: torch.cat([one[name] for one in images.values()]).to(self.model.device) for name in names}
        output = self.model.model.get_image_features(**inputs, return_dict=True)
        parts, tiles = output.pooler_output, [len(one["pixel_values"]) for one in images.values()]
        places: list[int] = order
        if len(parts) == sum(tiles):  # one a tile
            ends = np.cumsum(tiles)
            places = [place for index in order for place in range(ends[index] - tiles[index], ends[index])]
        joined = isinstance(parts, torch.Tensor)
        output.pooler_output = parts[places] if joined else tuple(parts[place] for place in places)
        if getattr(output, "deepstack_features", None):  # of Qwen3-VL, by layer
            output.deepstack_features = [[layer[index] for index in order] for layer in output.deepstack_features]
        return {"image": output}

    def chat(self, category: str) -> str:
        """The question about one object in the chat template, one image token standing for the image.

        ValueError for a template that shows no image.
        """
        content = [{"type": "image"}, {"type": "text", "text": self.question.format(object=category)}]
        messages = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if text.count(self.image_token) != 1:
            raise ValueError(
                f"{self.name}: the chat template writes {text.count(self.image_token)} {self.image_token} for one "
                "image; set tokenizer.chat_template to that of the model's processor"
            )
        return text

    def to_pixels(self, coordinates: np.ndarray, prompt: Prompt) -> np.ndarray:
        """The box [4] in pixels of the original image, of coordinates [4] as the answer writes them: 0-1000 of the
        image, unless a family says otherwise."""
        return coordinates / 1000 * [prompt.width, prompt.height, prompt.width, prompt.height]

    def positions(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Position ids of the prompt, [..., batch, length], and of the first generated token, [..., batch, 1]."""
        batch, length = inputs["input_ids"].shape
        positions = torch.arange(length + 1, device=inputs["input_ids"].device).expand(batch, -1)
        return positions[:, :-1], positions[:, -1:]

    def parse(self, text: str, prompt: Prompt) -> ParsedAnswer:
        """The first sound box of an answer (raw text, special tokens kept); never raises.

        What stands before the last `</think>` or `<answer>` is no answer. A box is looked for in the family's own
        format first, then in other words (`WORDS`), though not in a thought without an end; its units are the
        family's all the same. One that is not complete, is empty inside the image, or holds numbers of other units
        (from 0 to 1 where the family writes others, or far outside the image), is passed over. The failure is that of
        the first complete one, or NO_BOX.
        """
        failure = ""
        for found in self._boxes(text, prompt):
            if found.box is not None:
                return found
            failure = failure or found.failure
        return ParsedAnswer(failure=failure or NO_BOX)

    def parse_all(self, text: str, prompt: Prompt) -> list[ParsedAnswer]:
        """All sound boxes of an answer, in the order in which it writes them; what `parse` passes over is left out."""
        kept: list[ParsedAnswer] = []
        for found in self._boxes(text, prompt):
            begin, end = found.spans[0][0], found.spans[-1][1]
            apart = (end <= other.spans[0][0] or other.spans[-1][1] <= begin for other in kept)
            if found.box is not None and all(apart):
                kept.append(found)
        return sorted(kept, key=lambda found: found.spans)

    def _boxes(self, text: str, prompt: Prompt) -> Iterator[ParsedAnswer]:
        """The complete boxes of an answer, sound or with a failure: those in the family's format first."""
        thought = _THOUGHT.match(text)
        begin = thought.end() if thought else 0
        matches = list(self.box_pattern.finditer(text, begin))
        if "<think>" not in text[begin:] and (thought or not self.thinks):
            matches += [match for words in WORDS for match in words.finditer(text, begin)]
        for match in matches:
            spans = tuple(match.span(group) for group in (1, 2, 3, 4))
            numbers = np.array([float(group[:12]) for group in match.groups()])
            pixels = self.to_pixels(numbers, prompt)
            box = bx.clip(pixels, prompt.width, prompt.height)
            if (pixels > FAR * np.array([prompt.width, prompt.height] * 2)).any():
                yield ParsedAnswer(spans=spans, failure="its numbers lie far outside the image: not this LVLM's units")
            elif not bx.area(box) > 0:
                yield ParsedAnswer(spans=spans, failure="the box is empty inside the image")
            elif numbers.max() <= 1 and (self.to_pixels(np.ones(4), prompt) < [prompt.width, prompt.height] * 2).any():
                yield ParsedAnswer(spans=spans, failure="its numbers go from 0 to 1, which are not this LVLM's units")
            else:
                yield ParsedAnswer(box=box, spans=spans)

    @functools.cached_property
    def thinks(self) -> bool:
        """An answer begins inside a thought, which the chat template opens."""
        return self.chat("").rstrip().endswith("<think>")

    def decode(self, token_ids: list[int]) -> str:
        """Raw text of an answer, special tokens kept."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def coordinate_tokens(self, token_ids: list[int], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
        """For each coordinate the positions in the answer of the tokens that write it, found by character offsets.

        Raises ValueError if a coordinate has no token that holds only its digits.
        """
        digits = self.digit_tokens[torch.tensor(token_ids)].nonzero()[:, 0].tolist()
        begins = {place: len(self.decode(token_ids[:place])) for digit in digits for place in (digit, digit + 1)}
        found = [
            [digit for digit in digits if begins[digit] < stop and begins[digit + 1] > start] for start, stop in spans
        ]
        if not all(found):
            raise ValueError(f"{self.name}: no token writes one of the coordinates in {self.decode(token_ids)!r}")
        return found

    @functools.cached_property
    def digit_tokens(self) -> torch.Tensor:
        """[vocabulary] bool: the token's text is digits and white space only."""
        size = self.model.get_output_embeddings().out_features
        texts = self.tokenizer.batch_decode([[index] for index in range(min(size, len(self.tokenizer)))])
        digits = torch.zeros(size, dtype=torch.bool)
        digits[: len(texts)] = torch.tensor([text.strip().isascii() and text.strip().isdigit() for text in texts])
        return digits

    @functools.cached_property
    def banned_tokens(self) -> torch.Tensor:
        """Ids of tokens that no answer may hold: the image token."""
        return torch.tensor([self.image_token_id])

    @functools.cached_property
    def end_tokens(self) -> torch.Tensor:
        """Ids of the tokens that end an answer."""
        return torch.tensor(self.model.generation_config.eos_token_id).reshape(-1)

    @functools.cached_property
    def attention_layers(self) -> list[int]:
        """The text model's layers that have rows. Maps, D_c and tables count these alone: layer k is the k-th."""
        return attention_layers(self.model.config.get_text_config())

    @property
    def layers(self) -> int:
        return len(self.attention_layers)

    @property
    def heads(self) -> int:
        return self.model.config.get_text_config().num_attention_heads
