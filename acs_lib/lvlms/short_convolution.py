"""Short causal convolutions (LFM2) of a text model whose sequence holds several answers side by side.

Such a layer mixes each token with the few before it. Where answers share a sequence, those before a token are not its
neighbours but the last ones that it sees. So a pass says for every token which these are (`places_seen`), the cache
keeps the convolution's inputs of all tokens, as if they were keys, and they are gathered by place.

Passes that say nothing of the kind (transformers' own `generate`, say) run as they are.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

CONVOLUTION = "conv"  # the name of these layers among the `layer_types` of a configuration


def places_seen(seen: torch.Tensor, count: int) -> torch.Tensor:
    """Places [sequences, tokens, count] of the last `count` keys that each token sees, its own first and -1 where it
    sees fewer, of a mask [sequences, tokens, keys] bool (True: seen) whose keys lie in the order of time."""
    keys = torch.arange(seen.shape[-1], device=seen.device)
    last = torch.where(seen, keys, -1).topk(min(count, len(keys)), -1).values
    return torch.nn.functional.pad(last, (0, count - last.shape[-1]), value=-1)


def places_in_a_row(length: int, count: int, device: torch.device) -> torch.Tensor:
    """`places_seen` [1, length, count] of tokens that see all before them and are the first in the cache."""
    token = torch.arange(length, device=device)[:, None]
    return (token - torch.arange(count, device=device)).clamp(min=-1)[None]


class ShortConvolution(Lfm2ShortConv):
    """The layer with `places_seen` [sequences or 1, tokens, kernel] long in the place of its attention mask."""

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Any = None, attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        if attention_mask is None or attention_mask.dtype != torch.long or attention_mask.ndim != 3:
            return super().forward(
                hidden_states, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
            )
        gate, gate_after, value = self.in_proj(hidden_states).chunk(3, -1)
        inputs = (gate * value)[:, None]  # keys of one head
        inputs = past_key_values.update(inputs, inputs[..., :0], self.layer_idx)[0][:, 0]
        sequence, weight = torch.arange(len(inputs), device=inputs.device)[:, None], self.conv.weight[:, 0].float()
        mixed = torch.zeros_like(gate, dtype=torch.float32)
        for back, place in enumerate(attention_mask.unbind(-1)):
            mixed += inputs[sequence, place] * weight[:, -1 - back] * (place >= 0)[..., None]
        if self.conv.bias is not None:
            mixed += self.conv.bias
        return self.out_proj(gate_after * mixed.to(gate.dtype))


def by_place(model: PreTrainedModel) -> None:
    """Let the short convolutions of a model take their inputs by place where a pass names the places."""
    for module in model.modules():
        if type(module) is Lfm2ShortConv:
            module.__class__ = ShortConvolution
