"""Heads by intervention: what an LVLM writes without some of its heads.

While coordinates are decoded, a head's output, before it is mixed into the layer's by `o_proj`, is set to zero. The
prompt is read with all heads, and so are the tokens of an answer that write words.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from acs_lib.core.candidates import Heads
from acs_lib.lvlms.adapter import LVLM

COORDINATE = re.compile(r"[0-9,()\[\]{}<>]")  # what the tokens hold that write numbers, and what stands between them


def coordinate_tokens(lvlm: LVLM) -> torch.Tensor:
    """[vocabulary] bool: the token's text holds a digit, a comma or a bracket, as those do from which the next number
    is decoded, or which write one."""
    size = lvlm.model.get_output_embeddings().weight.shape[0]
    texts = lvlm.tokenizer.batch_decode([[index] for index in range(min(size, len(lvlm.tokenizer)))])
    found = torch.zeros(size, dtype=torch.bool)
    found[: len(texts)] = torch.tensor([bool(COORDINATE.search(text)) for text in texts])
    return found


def output_projections(lvlm: LVLM) -> dict[int, nn.Linear]:
    """Layer -> the `o_proj` of its attention. ValueError where a layer has none of that name."""
    modules = [each for each in lvlm.model.modules() if hasattr(each, "layer_idx") and hasattr(each, "o_proj")]
    found = {each.layer_idx: each.o_proj for each in modules}
    if sorted(found) != list(range(lvlm.layers)):
        raise ValueError(f"{lvlm.name}: its attention layers have no o_proj each, so that no head can be knocked out")
    return found


@contextlib.contextmanager
def knocked_out(lvlm: LVLM, heads: Heads) -> Iterator[None]:
    """Within this context the LVLM decodes coordinates without some (layer, head) pairs, counted from 0.

    A pass over a prompt, which asks for some logits alone (`logits_to_keep`), is left as it is. ValueError for a head
    that the LVLM does not have.
    """
    if not all(0 <= layer < lvlm.layers and 0 <= head < lvlm.heads for layer, head in heads):
        raise ValueError(f"{lvlm.name} has {lvlm.layers} layers x {lvlm.heads} heads, not all of {heads}")
    told, projections = coordinate_tokens(lvlm).to(lvlm.model.device), output_projections(lvlm)
    where: list[torch.Tensor] = []  # [sequences, tokens] bool, of the pass that is computed; empty in one over a prompt

    def look(module: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        where[:] = [] if "logits_to_keep" in named else [told[named["input_ids"]]]

    def silence(columns: torch.Tensor) -> Callable[[nn.Module, tuple], tuple | None]:
        def hook(module: nn.Module, arguments: tuple) -> tuple | None:
            hidden = arguments[0]
            if not where:
                return None
            silent = where[0].to(hidden.device)[..., None] & columns.to(hidden.device)
            return (hidden.masked_fill(silent, 0), *arguments[1:])

        return hook

    handles = [lvlm.model.register_forward_pre_hook(look, with_kwargs=True)]
    for layer in {layer for layer, _ in heads}:
        width = projections[layer].in_features // lvlm.heads
        columns = torch.zeros(lvlm.heads, width, dtype=torch.bool)
        columns[[head for other, head in heads if other == layer]] = True
        handles.append(projections[layer].register_forward_pre_hook(silence(columns.flatten())))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
