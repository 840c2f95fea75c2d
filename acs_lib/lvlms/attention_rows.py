"""Attention rows from generated tokens to image tokens, read beside SDPA, of any transformers model with a text model.

    attach(model)
    image = (inputs["input_ids"] == model.config.image_token_id).nonzero()[:, 1][None]
    with following(model, image) as rows:
        answer = model.generate(**inputs, max_new_tokens=64)
    rows = torch.stack(rows, 1)  # [batch, tokens, layers, heads, image tokens]

`output_attentions=True` needs eager attention, which materialises every matrix and changes what a model says
(transformers#35749). Here the text model keeps SDPA; while a token is decoded its query (one row a head) is also
multiplied with the keys, and only the image columns of the softmax are kept: rows x image tokens x heads x layers.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from acs_lib.core.errors import UserError

NAME = "acs_sdpa"


def attention_layers(text: PreTrainedConfig) -> list[int]:
    """Which layers of a text model are attention, counted from 0: all, but of a hybrid's short convolutions."""
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return [layer for layer, kind in enumerate(kinds[: text.num_hidden_layers]) if kind != "conv"]


class Rows:
    """The attention rows of the tokens that are being decoded.

    columns: [batch, m] positions of the image tokens among the keys
    layers: the text model's layers that are read, in the order that they have in `values`
    values: [batch, tokens, layers, heads, m] float32 after each forward pass of `tokens` tokens; raw attention, 0-1
    chosen: where only some tokens of a pass are read, their places in it [n], and for each the place [n] in `values`
        where its row is added
    """

    def __init__(
        self, columns: torch.Tensor, tokens: int, layers: Sequence[int], heads: int,
        chosen: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):  # fmt: skip
        batch, m = columns.shape
        self.columns, self.chosen = columns, chosen
        make = torch.empty if chosen is None else torch.zeros
        self.values = make(batch, tokens, len(layers), heads, m, device=columns.device)
        self.place = {layer: place for place, layer in enumerate(layers)}
        self.missing = self.layers = frozenset(layers)

    def add(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
    ) -> None:
        """Store the rows of one layer: query [batch, heads, tokens, d], key [batch, key-value heads, keys, d]; a mask
        is [batch, 1, tokens, keys], bool (True: seen) or additive."""
        if self.chosen is not None:
            query = query[:, :, self.chosen[0]]
            attention_mask = None if attention_mask is None else attention_mask[:, :, self.chosen[0]]
        scores = (_by_key_head(query, key).float() * scaling) @ key.float().transpose(-1, -2)
        scores = scores.view(*query.shape[:3], -1)
        if attention_mask is not None:
            if attention_mask.dtype == torch.bool:
                scores.masked_fill_(~attention_mask, -torch.inf)
            else:
                scores += attention_mask
        columns = self.columns.to(scores.device)[:, None, None].expand(*query.shape[:3], -1)
        rows = scores.softmax(-1).gather(-1, columns).transpose(1, 2)
        if self.chosen is None:
            self.values[:, :, self.place[layer]] = rows
        else:
            self.values[:, :, self.place[layer]].index_add_(1, self.chosen[1], rows)
        self.missing -= {layer}

    def take(self) -> torch.Tensor:
        """The rows of the last pass, [batch, tokens, layers, heads, m]; the next forward pass overwrites them.

        Raises UserError if a layer gave nothing: its attention did not run through this module.
        """
        if self.missing:
            missing = sorted(self.missing)
            raise UserError(f"no attention rows from layers {missing}: load the LVLM through acs_lib.load_lvlm")
        self.missing = self.layers
        return self.values


_active: ContextVar[Rows | None] = ContextVar("rows", default=None)


@contextlib.contextmanager
def reading(rows: Rows | None) -> Iterator[Rows | None]:
    """Within this context every forward pass fills `rows`."""
    token = _active.set(rows)
    try:
        yield rows
    finally:
        _active.reset(token)


class _Decoded(Rows):
    """Rows of passes of one token a sequence; a prefill gives none. Layers without attention (a hybrid's) stay NaN, and
    what a layer's cache has dropped, since it sees a window alone, is 0."""

    def __init__(self, columns: torch.Tensor, layers: int, heads: int):
        super().__init__(columns, 1, range(layers), heads)
        self.values.fill_(torch.nan)
        self.passed = [0] * layers  # tokens

    def add(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
    ) -> None:
        self.passed[layer] += query.shape[2]
        if query.shape[2] > 1:
            return
        whole, dropped = self.columns, max(0, self.passed[layer] - key.shape[2])
        self.columns = (whole - dropped).clamp_min(0)
        super().add(layer, query, key, attention_mask, scaling)
        self.columns = whole
        self.values[:, 0, layer].masked_fill_((whole < dropped)[:, None], 0)


@contextlib.contextmanager
def following(model: PreTrainedModel, columns: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Within this context every token that `model` decodes appends its row to the list that is given.

    model: a transformers model that was `attach`ed to; its `generate` may be used, with a cache that begins empty
    columns: [batch, m] places of the image tokens (or any others) among those of the prompt, padding included
    Each entry is [batch, layers, heads, m] float32 on the model's device: the raw attention (0-1) of a token that was
    written to those columns, while the next one is computed. So the last token of an answer has none.
    """
    text = model.config.get_text_config()
    reader = _Decoded(columns.to(model.device), text.num_hidden_layers, text.num_attention_heads)
    kept: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: object) -> None:
        if reader.missing != reader.layers:
            kept.append(reader.values[:, 0].clone())
            reader.missing = reader.layers

    handle = model.register_forward_hook(keep)
    try:
        with reading(reader):
            yield kept
    finally:
        handle.remove()


def _by_key_head(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Queries [batch, heads, tokens, d] as [batch, key-value heads, heads of a group x tokens, d]: all that meet the
    same keys side by side, so that grouped-query attention needs no copies of the keys."""
    return query.reshape(len(query), key.shape[1], -1, query.shape[-1])


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """A mask of a decoding pass is [batch, 1, tokens, keys], or repeated for the query heads that share a key head."""
    scaling = scaling or query.shape[-1] ** -0.5
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    rows = _active.get()
    if rows is not None:
        seen = None if attention_mask is None else attention_mask[:, :, :tokens]
        rows.add(module.layer_idx, query, key, seen, scaling)
    if attention_mask is None or tokens == key.shape[2]:  # the prefill
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if attention_mask.shape[2] != groups * tokens:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(_by_key_head(query, key), key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(query.shape).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attach(model: PreTrainedModel) -> None:
    """Let the text model's attention run through this module; the vision tower keeps what it has."""
    model.set_attn_implementation({"text_config": NAME})
