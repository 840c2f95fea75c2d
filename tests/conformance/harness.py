"""What the conformance tests share: a tokenizer of bytes, the description of a family, and scripted answers."""

import contextlib
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from acs_lib.lvlms.adapter import LVLM

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> "
    "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <img> </img> <IMG_CONTEXT> <ref> </ref> <box> "
    "</box> <image> <|image_start|> <|image_end|> <|img_thumbnail|>"
).split() + [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 10 // row + 1)]


@functools.cache
def byte_tokenizer(chat_template: str) -> PreTrainedTokenizerFast:
    """One token a byte, so one a digit, and the special tokens of every family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def share(number) -> str:
    """How a family that answers in 0-1 of the image writes thousandths: 12 as 0.012, and 10.5 as 0.0105. Whatever else
    is in the text stays; a # stands for a digit."""

    def written(found: re.Match) -> str:
        whole = found[1].zfill(4)
        return f"{whole[:-3]}.{whole[-3:]}{found[2] or ''}"

    return re.sub(r"([0-9#]+)(?:\.([0-9]+))?", written, str(number))


class Shares(str):
    """The answer of a family that writes 0-1 of the image; its `format` takes thousandths."""

    def format(self, **numbers):
        return super().format(**{name: share(number) for name, number in numbers.items()})


@dataclass(frozen=True)
class Family:
    """One adapter under test.

    model: tokenizer -> tiny random model of the family's real class
    image_processor: -> the family's own image processor, small enough for the tiny model
    published_processor: -> the image processor with the settings of the published models
    hub_processor: `preprocessor_config.json` as the hub has it (the small one's settings)
    extent: (image processor, width, height) -> (x, y), what the answer writes for the image's lower right corner
    tokens: (image processor, model, width, height) -> ((rows, columns) of the map, image tokens in the prompt)
    answer: an answer with the box in {x1} {y1} {x2} {y2}
    number: how the answer writes one of these
    """

    name: str
    adapter: type[LVLM]
    chat_template: str
    model: Callable
    image_processor: Callable
    published_processor: Callable
    hub_processor: dict
    extent: Callable
    tokens: Callable
    answer: str
    number: Callable = str

    def build(self) -> LVLM:
        tokenizer = byte_tokenizer(self.chat_template)
        torch.manual_seed(0)
        model = self.model(tokenizer).float()
        model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        return self.adapter(model, tokenizer, self.image_processor(), self.name)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful photograph-like image: smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@contextlib.contextmanager
def scripted(lvlm: LVLM, text: str):
    """Within this context the model is certain of every next token of `text`, whatever it sees; its attention is its
    own. The script starts again with every prefill."""
    script = lvlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    step = [0]

    def restart(module, args, kwargs):
        if any(kwargs.get(name) is not None for name in ("pixel_values", "mm_encoder_outputs")):
            step[0] = 0

    def force(module, args, logits):
        forced = torch.full_like(logits, -30.0)
        forced[..., script[step[0]]] = 30.0
        step[0] += 1
        return forced

    handles = [
        lvlm.model.register_forward_pre_hook(restart, with_kwargs=True),
        lvlm.model.get_output_embeddings().register_forward_hook(force),
    ]
    try:
        yield script
    finally:
        for handle in handles:
            handle.remove()


def written(family: Family, box, image_processor, width: int, height: int) -> tuple[str, np.ndarray]:
    """The answer that names `box` [4] (original pixels) in the family's units, rounded to integers, and half a unit
    in pixels [4]."""
    x, y = family.extent(image_processor, width, height)
    unit = np.array([width / x, height / y] * 2)
    numbers = np.round(box / unit).astype(int)
    return family.answer.format(**dict(zip(("x1", "y1", "x2", "y2"), numbers, strict=True))), unit / 2
