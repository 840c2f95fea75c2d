"""Attention rows from generated tokens to image tokens, read beside SDPA.

`output_attentions=True` needs eager attention, which materialises every matrix and changes what a model says
(transformers#35749). Here the text model keeps SDPA; while a token is decoded its query (one row a head) is also
multiplied with the keys, and only the image columns of the softmax are kept: rows x image tokens x heads x layers.
"""

import contextlib
from contextvars import ContextVar

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "acs_sdpa"


class Rows:
    """The attention rows of the token that is being decoded.

    columns: [m] positions of the image tokens, the same in every row of the batch
    values: [batch, layers, heads, m] float32 after each forward pass of one token; raw attention, 0-1
    """

    def __init__(self, columns: torch.Tensor, layers: int, heads: int, batch: int):
        self.columns = columns
        self.values = torch.empty(batch, layers, heads, len(columns), device=columns.device)
        self.filled = torch.zeros(layers, dtype=torch.bool)

    def add(self, layer: int, query, key, attention_mask, scaling: float) -> None:
        """Store the rows of one layer: query [batch, heads, 1, d], key [batch, key-value heads, keys, d]."""
        batch, heads, _, width = query.shape
        grouped = query.view(batch, key.shape[1], heads // key.shape[1], width).float()
        scores = (grouped @ key.float().transpose(-1, -2)).view(batch, heads, -1) * scaling
        if attention_mask is not None:
            mask = attention_mask[..., -1, : scores.shape[-1]]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        torch.index_select(scores.softmax(-1), 2, self.columns, out=self.values[:, layer])
        self.filled[layer] = True

    def take(self) -> torch.Tensor:
        """The rows of the last token, [batch, layers, heads, m]; the next forward pass overwrites them.

        Raises RuntimeError if a layer gave nothing: its attention did not run through this module.
        """
        if not self.filled.all():
            missing = (~self.filled).nonzero()[:, 0].tolist()
            raise RuntimeError(f"no attention rows from layers {missing}: load the LVLM through acs_lib.load_lvlm")
        self.filled.zero_()
        return self.values


_active: ContextVar[Rows | None] = ContextVar("rows", default=None)


@contextlib.contextmanager
def reading(rows: Rows | None):
    """Within this context every one-token forward pass fills `rows`."""
    token = _active.set(rows)
    try:
        yield rows
    finally:
        _active.reset(token)


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    rows = _active.get()
    if rows is not None and query.shape[2] == 1:
        rows.add(module.layer_idx, query, key, attention_mask, scaling or query.shape[-1] ** -0.5)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attach(model) -> None:
    """Let the text model's attention run through this module; the vision tower keeps what it has."""
    model.set_attn_implementation({"text_config": NAME})
