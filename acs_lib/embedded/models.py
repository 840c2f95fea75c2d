"""The embedded LVLMs: small models of the real classes, with a vocabulary, a prompt and an answer format of their own.

Both see the image before the question, as the real chat templates have it, and write one token a number, from 0 to the
side of a scene. They answer three questions: where one object of a category is (the first in reading order), where all
of them are, and whether a box is right.
"""

import copy
import math
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from acs_lib.embedded import scenes

PITCH = 16  # px a LLM image token
GRID = scenes.SIZE // PITCH
DETECT = "Detect the {} in the image ."
DETECT_ALL = "Detect all {} in the image ."
VERIFY = "Proposed answer : [ {} , {} , {} , {} ] Is the proposed box of the {} right ? Answer with Yes or No ."


class TinyLVLM(ABC):
    """What one family's embedded LVLM is made of.

    vocabulary: token -> id; number_0 and category_0 are the ids of the first number and the first category
    before, opening: tokens of the prompt before the image, `closing` and the question follow it, then `after`
    image_start, image_stop: positions of the first image token and of the one after the last
    prefix_length: tokens of a prompt before the question
    box: tokens of a box, "{}" for a number; numbers: places of x1, y1, x2, y2 among them
    listed: tokens before, between and after the boxes of a list; none: tokens of an answer that says there is none
    apart: something stands between two numbers of a box
    """

    family: str
    model_class: type[PreTrainedModel]
    width: int  # of the LLM
    special: list[str]
    words: list[str]
    number_words: list[str]
    image_token: str
    before: list[str]
    closing: list[str]
    after: list[str]
    box: list[str]
    listed: tuple[list[str], list[str], list[str]]
    none: list[str]
    end: str
    chat_template: str

    def __init__(self):
        questions = [word for text in (DETECT, DETECT_ALL, VERIFY) for word in text.split() if word != "{}"]
        words = dict.fromkeys([*self.words, *questions, "Yes", "No"])
        tokens = [*self.special, *words, *self.number_words, *scenes.CATEGORIES]
        self.vocabulary = {token: index for index, token in enumerate(tokens)}
        self.number_0 = self.vocabulary[self.number_words[0]]
        self.category_0 = self.vocabulary[scenes.CATEGORIES[0]]
        self.numbers = tuple(place for place, token in enumerate(self.box) if token == "{}")
        self.apart = self.numbers[1] - self.numbers[0] > 1
        self.image_start = len(self.before)
        self.image_stop = self.image_start + GRID**2
        self.prefix_length = self.image_stop + len(self.closing)

    def ids(self, tokens: list[str], *filled: int) -> list[int]:
        """Ids of tokens, with ids in the place of every "{}"."""
        ids = iter(filled)
        return [next(ids) if token == "{}" else self.vocabulary[token] for token in tokens]

    def prefix_ids(self) -> list[int]:
        """Token ids [prefix_length] of what all prompts begin with, as the shipped processor writes it."""
        return self.ids([*self.before, *[self.image_token] * GRID**2, *self.closing])

    def question_ids(self, category: int, every: bool = False) -> list[int]:
        """Token ids of the question where one object of a category is, or every one."""
        words = (DETECT_ALL if every else DETECT).split()
        return self.ids([*words, *self.after], self.category_0 + category)

    def verification_ids(self, category: int, box: np.ndarray) -> list[int]:
        """Token ids of the question whether a box [4] is right, as `acs_lib.method.baselines.p_true` asks it."""
        asked, numbers = self.category_0 + category, [self.number_0 + int(number) for number in box]
        return self.ids([*DETECT.split(), *VERIFY.split(), *self.after], asked, *numbers, asked)

    def answer_ids(self, boxes: np.ndarray, every: bool = False) -> list[int]:
        """Token ids of the answer and of the end of the sequence: one box, or a list if `every` one is asked for, or
        that there is none. `boxes` [n, 4] in whole pixels, in reading order."""
        written = [self.ids(self.box, *(self.number_0 + int(number) for number in box)) for box in boxes]
        if not written:
            return self.ids([*self.none, self.end])
        if not every:
            return [*written[0], *self.ids([self.end])]
        opening, between, closing = map(self.ids, self.listed)
        ids = [*opening, *written[0]]
        for box in written[1:]:
            ids += [*between, *box]
        return [*ids, *closing, *self.ids([self.end])]

    def is_number(self, ids: np.ndarray) -> np.ndarray:
        """Which token ids [n] are numbers."""
        return (ids >= self.number_0) & (ids < self.number_0 + len(self.number_words))

    def numbered(self, ids: np.ndarray) -> np.ndarray:
        """The how many-th number each of the token ids [n] writes, counted from 0; -1 for what is none."""
        number = self.is_number(ids)
        return np.where(number, number.cumsum() - 1, -1)

    def said_ids(self, right: bool) -> list[int]:
        """Token ids of the answer to a question whether a box is right."""
        return self.ids(["Yes" if right else "No", self.end])

    def build(self, seed: int) -> PreTrainedModel:
        """The LVLM with initial weights that let content matching work from the first step."""
        torch.manual_seed(seed)
        lvlm = self.model_class._from_config(self.config(), attn_implementation="sdpa")
        token = {f"{name}_token_id": self.vocabulary[text] for name, text in self.special_roles().items()}
        lvlm.generation_config.update(**token)
        self.initialise(lvlm)
        return lvlm

    def special_roles(self) -> dict[str, str]:
        """Role (pad, bos, eos) -> token."""
        return {"eos": self.end, "pad": self.special[0], "bos": self.special[1]}

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word, a category or a number; `decode(encode(text))` separates them by spaces."""
        tokenizer = Tokenizer(models.WordLevel(self.vocabulary, unk_token=self.special[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"</?box>|[0-9]+|[\[\].,:?]"), "isolated")]
        )
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.special])
        tokenizer.add_tokens(
            [AddedToken(name, normalized=False) for name in [*self.words, *scenes.CATEGORIES] if set(name) & set(" }")]
        )
        roles = {f"{role}_token": token for role, token in self.special_roles().items()}
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=self.special[0], **roles)
        wrapped.chat_template = self.chat_template
        return wrapped

    def save(self, lvlm: PreTrainedModel, folder: Path) -> None:
        """Write weights, tokenizer and image processor, so that `from_pretrained` alone loads them. They are written
        aside and renamed one by one: no file is ever half of one. Weights are rounded to float16, half the size, and
        the configuration says that they are computed with in float32."""
        folder = Path(folder)
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        half, config = copy.deepcopy(lvlm).half(), copy.deepcopy(lvlm.config)
        config.dtype = torch.float32
        try:
            for part in (half, config, self.tokenizer(), self.image_processor()):
                part.save_pretrained(aside)
            folder.mkdir(exist_ok=True)
            for path in aside.iterdir():
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @abstractmethod
    def config(self):
        """Configuration of the real class."""

    @abstractmethod
    def image_processor(self):
        """What makes pixels of an image: scenes of SIZE x SIZE px are not resized."""

    @abstractmethod
    def initialise(self, lvlm: PreTrainedModel) -> None:
        """Replace the default weights by 1/sqrt(fan_in) ones, queries close to keys, Fourier number embeddings."""

    @abstractmethod
    def image_features(self, lvlm: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
        """Image tokens [images, GRID^2, width] as the LLM gets them; `pixels` [images, 3, SIZE, SIZE] in -1 to 1."""

    def position_ids(self, after: torch.Tensor) -> torch.Tensor:
        """Positions [batch, prefix_length + n] or [3, batch, ...] of a prompt's prefix and of tokens that stand
        `after` [batch, n] many others behind it."""
        prefix = torch.arange(self.prefix_length, device=after.device).expand(len(after), -1)
        return torch.cat([prefix, self.prefix_length + after], 1)


@torch.no_grad()
def _initialise_llm(llm: nn.Module, number_0: int, numbers: int) -> None:
    """1/sqrt(fan_in) weights (half of it for output projections), W_q close to W_k, Fourier number embeddings."""
    embedding = llm.embed_tokens.weight.normal_(0, 0.3)
    embedding[number_0 : number_0 + numbers] = 0.3 * fourier(torch.arange(numbers), embedding.shape[1])
    for layer in llm.layers:
        _scale(layer)
        attention = layer.self_attn
        groups = llm.config.num_key_value_heads
        key = attention.k_proj.weight.view(groups, -1, embedding.shape[1])
        key = key.repeat_interleave(llm.config.num_attention_heads // groups, 0).reshape_as(attention.q_proj.weight)
        attention.q_proj.weight.copy_(key + 0.3 * key.std() * torch.randn_like(key))


def fourier(values: torch.Tensor, width: int) -> torch.Tensor:
    """Fourier features [n, width] of the values [n]: random frequencies and phases, cosines and sines."""
    frequency = torch.exp(torch.rand(width // 2) * 4.2) * 0.012 * 128 / scenes.SIZE
    angle = frequency * values[:, None] + torch.rand(width // 2) * 2 * math.pi
    return torch.cat([angle.cos(), angle.sin()], 1)


def _waves(n: int, width: int) -> torch.Tensor:
    """Sines and cosines [n, width] of the places 0 to n - 1, from long waves to one of five places."""
    angle = torch.arange(n)[:, None] * torch.exp(torch.linspace(math.log(0.05), math.log(1.2), width // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


@torch.no_grad()
def _scale(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if weight.dim() == 2:
            gain = 0.5 if "o_proj" in name or "down_proj" in name or ".proj." in name else 1.0
            weight.normal_(0, gain * weight.shape[1] ** -0.5)


class TinyInternVL(TinyLVLM):
    """InternVL: `<box>x1 y1 x2 y2</box>` in 0-1000 of the image, absolute positions in the tower."""

    family = "internvl"
    model_class = InternVLForConditionalGeneration
    width = 128
    special = ["<pad>", "<bos>", "<eos>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<user>", "<assistant>"]
    words = ["<box>", "</box>", "None"]
    number_words = [str(round(1000 * pixel / scenes.SIZE)) for pixel in range(scenes.SIZE + 1)]
    image_token = "<IMG_CONTEXT>"
    before, closing, after = ["<bos>", "<user>", "<img>"], ["</img>"], ["<assistant>"]
    box = ["<box>", "{}", "{}", "{}", "{}", "</box>"]
    listed, none, end = ([], [], []), ["None"], "<eos>"
    chat_template = (
        "<bos>{% for message in messages %}{% if message['role'] == 'user' %}<user>"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>{% endif %}{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% else %}<assistant>{{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    def config(self) -> InternVLConfig:
        """1.7 M parameters."""
        return InternVLConfig(
            vision_config=dict(
                hidden_size=112, num_hidden_layers=3, num_attention_heads=4, intermediate_size=336,
                image_size=[scenes.SIZE] * 2, patch_size=[PITCH // 2] * 2, num_channels=3, use_mean_pooling=True,
                layer_scale_init_value=1.0, hidden_dropout_prob=0.0, attention_dropout=0.0,
            ),
            text_config=Qwen3Config(
                vocab_size=len(self.vocabulary), hidden_size=self.width, intermediate_size=256, num_hidden_layers=6,
                num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=1024,
                tie_word_embeddings=True, pad_token_id=self.vocabulary["<pad>"], bos_token_id=self.vocabulary["<bos>"],
                eos_token_id=self.vocabulary["<eos>"], rope_parameters=dict(rope_type="default", rope_theta=10000.0),
            ).to_dict(),
            image_token_id=self.vocabulary["<IMG_CONTEXT>"], image_seq_length=GRID**2, downsample_ratio=0.5,
            tie_word_embeddings=True,
        )  # fmt: skip

    def image_processor(self) -> GotOcr2ImageProcessorPil:
        return GotOcr2ImageProcessorPil(
            size={"height": scenes.SIZE, "width": scenes.SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
            max_patches=1, resample=Image.Resampling.BILINEAR,
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, lvlm: PreTrainedModel) -> None:
        """In the tower also waves as positions, and W_q close to W_k: so a patch looks at its neighbours from the first
        step, as rotary positions let it in Qwen's. (After four minutes of the first stage 0.36 of the object tokens
        were named, 0.31 with positions of 0.)"""
        tower, llm = lvlm.model.vision_tower, lvlm.model.language_model
        _scale(tower)
        _scale(lvlm.model.multi_modal_projector)
        patches = tower.embeddings.patch_embeddings.projection.weight
        patches.normal_(0, patches[0].numel() ** -0.5)
        side = 2 * GRID
        wave, place = 0.7 * _waves(side, tower.config.hidden_size // 2), torch.arange(side**2)
        tower.embeddings.position_embeddings[0, 1:] = torch.cat([wave[place % side], wave[place // side]], 1)
        for layer in tower.encoder.layer:
            key = layer.attention.k_proj.weight
            layer.attention.q_proj.weight.copy_(1.5 * (key + 0.3 * key.std() * torch.randn_like(key)))
        _initialise_llm(llm, self.number_0, len(self.number_words))
        for layer in llm.layers:
            layer.self_attn.q_norm.weight.fill_(2.0)

    def image_features(self, lvlm: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
        return lvlm.model.get_image_features(
            pixel_values=pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        ).pooler_output


class TinyQwen25VL(TinyLVLM):
    """Qwen2.5-VL: `{"bbox_2d": [x1, y1, x2, y2]}` in pixels of the resized image, no absolute positions in the tower.

    Where an image token lies, the LLM has to read from M-RoPE. Its sections give the high frequencies to height and
    width and the low ones to time, which is the same for all image tokens: so a word finds what it names anywhere.
    """

    family = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    width = 160
    special = [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>",
        "<|video_pad|>",
    ]  # fmt: skip
    words = ['{"bbox_2d": [', ",", "]}", "user", "assistant"]
    number_words = [str(pixel) for pixel in range(scenes.SIZE + 1)]
    image_token = "<|image_pad|>"
    before, closing = ["<|im_start|>", "user", "<|vision_start|>"], ["<|vision_end|>"]
    after = ["<|im_end|>", "<|im_start|>", "assistant"]
    box = ['{"bbox_2d": [', "{}", ",", "{}", ",", "{}", ",", "{}", "]}"]
    listed, none, end = (["["], [","], ["]"]), ["[", "]"], "<|im_end|>"
    chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'user' %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def config(self) -> Qwen2_5_VLConfig:
        """2.3 M parameters."""
        token = self.vocabulary
        return Qwen2_5_VLConfig(
            vision_config=dict(
                depth=3, hidden_size=112, num_heads=4, intermediate_size=224, out_hidden_size=self.width,
                patch_size=PITCH // 2, spatial_merge_size=2, temporal_patch_size=2, window_size=scenes.SIZE,
                fullatt_block_indexes=[0, 1, 2], rope_parameters=dict(rope_type="axial", rope_theta=100.0),
            ),
            text_config=dict(
                vocab_size=len(token), hidden_size=self.width, intermediate_size=320, num_hidden_layers=6,
                num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=1024,
                pad_token_id=token["<|endoftext|>"], bos_token_id=token["<|im_start|>"],
                eos_token_id=token["<|im_end|>"], tie_word_embeddings=True,
                rope_parameters=dict(
                    rope_type="default", rope_theta=1000.0, mrope_section=[0, 2, 2, 0, 2, 2, 8]
                ),
            ),
            image_token_id=token["<|image_pad|>"], video_token_id=token["<|video_pad|>"],
            vision_start_token_id=token["<|vision_start|>"], vision_end_token_id=token["<|vision_end|>"],
            tie_word_embeddings=True,
        )  # fmt: skip

    def image_processor(self) -> Qwen2VLImageProcessorPil:
        return Qwen2VLImageProcessorPil(
            patch_size=PITCH // 2, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
            size={"shortest_edge": scenes.SIZE**2, "longest_edge": scenes.SIZE**2},
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, lvlm: PreTrainedModel) -> None:
        _scale(lvlm.model.visual)
        patches = lvlm.model.visual.patch_embed.proj.weight
        patches.normal_(0, patches[0].numel() ** -0.5)
        _initialise_llm(lvlm.model.language_model, self.number_0, len(self.number_words))
        for layer in lvlm.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(2.0)

    def image_features(self, lvlm: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
        side, patch = 2 * GRID, PITCH // 2
        patches = pixels.view(-1, 3, GRID, 2, patch, GRID, 2, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
        patches = patches.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).flatten(5).flatten(0, 4)
        grid = torch.tensor([[1, side, side]] * len(pixels), device=pixels.device)
        return lvlm.model.visual(patches, grid_thw=grid).pooler_output.view(len(pixels), GRID**2, -1)

    def position_ids(self, after: torch.Tensor) -> torch.Tensor:
        place = torch.arange(GRID**2, device=after.device)
        image = torch.stack([torch.zeros_like(place), place // GRID, place % GRID])
        before = torch.arange(self.image_start, device=after.device).expand(3, -1)
        closing = self.image_start + GRID + torch.arange(len(self.closing), device=after.device).expand(3, -1)
        prefix = torch.cat([before, self.image_start + image, closing], 1)
        following = self.image_start + GRID + len(self.closing) + after
        return torch.cat([prefix[:, None].expand(-1, len(after), -1), following.expand(3, -1, -1)], 2)


TINY = {tiny.family: tiny for tiny in (TinyInternVL(), TinyQwen25VL())}
