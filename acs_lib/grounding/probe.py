"""The first thing to run with an LVLM: does it write boxes, is its attention read, how long does a question take?"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from acs_lib.core.images import Picture, read_image
from acs_lib.grounding import api
from acs_lib.lvlms.adapter import LVLM
from acs_lib.method.sampling import sample_candidates
from acs_lib.profiles import sampling_of

FEW = 3  # answers that are shown
PICTURES = 10  # questions about the shipped scenes


@dataclass(frozen=True, eq=False)
class Probe:
    """What an LVLM did when it was asked.

    table: one row a question: image, object, grid ('17x23' image tokens), prompt_tokens, greedy (its text), greedy_box
        (whether it holds one), boxes (the share, 0-1, of the sampled answers that hold one), failure (of the greedy
        answer), seconds
    layers: those whose attention rows hold something in every answer with a box, of n_layers
    memory: GB, the most that this process took: of the GPU if the LVLM is on one, else of the machine; NaN where that
        cannot be told
    """

    lvlm: str
    device: str
    dtype: str
    n_layers: int
    layers: tuple[int, ...]
    memory: float
    table: pd.DataFrame

    @property
    def parsed(self) -> float:
        """Share (0-1, higher is better) of all sampled and greedy answers that hold a box."""
        return float((self.table["boxes"] * self.table["samples"] + self.table["greedy_box"]).sum() / self.answers)

    @property
    def answers(self) -> int:
        """How many answers there were, sampled and greedy."""
        return int((self.table["samples"] + 1).sum())

    @property
    def sound(self) -> bool:
        """It writes boxes, and every layer is read."""
        return self.parsed > 0.5 and len(self.layers) == self.n_layers

    def lines(self) -> list[str]:
        """The report, and what to do next."""
        seconds = self.table["seconds"]
        again = seconds[1:].median() if len(seconds) > 1 else seconds.median()
        told = [
            f"{self.lvlm} on {self.device}, {self.dtype}",
            f"boxes: {self.parsed:.0%} of {self.answers} answers to {len(self.table)} questions hold one "
            f"(greedy: {self.table['greedy_box'].mean():.0%})",
        ]
        for row in self.table.head(FEW).itertuples():
            told.append(f"  {Path(row.image).name}, {row.object}: {row.greedy[:200]!r}")
        told += [
            f"attention: rows from {len(self.layers)} of {self.n_layers} layers",
            f"prompt: {self.table['prompt_tokens'].median():.0f} tokens, an image of {self.table['grid'].mode()[0]}",
            f"time: {again:.1f} s a question with {self.table['samples'].iloc[0]} samples (the first one took "
            f"{seconds.iloc[0]:.1f} s)",
        ]
        if np.isfinite(self.memory):
            told.append(f"memory: {self.memory:.1f} GB at most")
        return [*told, *self.mends()]

    def mends(self) -> list[str]:
        """What to do about what is not as it should be; empty if all is."""
        found = []
        if self.parsed <= 0.5:
            found.append(
                "mend: too few answers hold a box; ask in its makers' own words, the format of the answer included "
                "(--question, or `question:` in a profile)"
            )
        if len(self.layers) < self.n_layers and self.table["greedy_box"].any():
            lacking = sorted(set(range(self.n_layers)) - set(self.layers))
            found.append(f"mend: no attention is read of layers {lacking}; they have none, or an adapter is needed")
        return found


def probe(
    lvlm: LVLM, asked: Sequence[tuple[Picture, str]] | None = None, samples: int = 3, max_new_tokens: int | None = None
) -> Probe:
    """Ask an LVLM for objects in images, by default for PICTURES objects of the shipped scenes, as `ground` asks.

    ValueError and OSError say what is wrong with an image or an object's name.
    """
    if asked is None:
        known = api.samples()
        step = max(1, len(known) // PICTURES)
        asked = list(zip(known["image"], known["category"]))[::step][:PICTURES]
    settings = sampling_of(lvlm.name, samples)
    if max_new_tokens is not None:
        settings = settings.model_copy(update={"max_new_tokens": max_new_tokens})
    if lvlm.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows, read = [], np.ones(lvlm.layers, bool)
    for number, (image, wanted) in enumerate(asked):
        begun = time.perf_counter()
        prompt = lvlm.prompt(read_image(image), api.object_name(lvlm, wanted))
        ((found, records),) = sample_candidates(lvlm, [prompt], ["probe"], [number], [wanted], settings)
        seconds = time.perf_counter() - begun
        assert found.maps is not None
        read &= (found.maps[found.parsed].sum((1, 3, 4, 5)) > 0).all(0)
        rows.append({
            "image": str(image) if isinstance(image, str | Path) else "", "object": wanted,
            "grid": "x".join(map(str, prompt.grid.shape)), "prompt_tokens": prompt.length, "samples": samples,
            "greedy": records[0]["text"], "greedy_box": bool(found.parsed[0]),
            "boxes": float(found.parsed[1:].mean()), "failure": records[0]["failure"], "seconds": seconds,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    any_box = (table["greedy_box"] | (table["boxes"] > 0)).any()
    weights = next(lvlm.model.parameters())
    return Probe(
        lvlm=lvlm.name, device=str(weights.device), dtype=str(weights.dtype).removeprefix("torch."),
        n_layers=lvlm.layers, layers=tuple(np.flatnonzero(read).tolist()) if any_box else (),
        memory=most_memory(weights.device), table=table,
    )  # fmt: skip


def most_memory(device: torch.device) -> float:
    """GB that this process took at most, of a GPU or of the machine; NaN where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return taken / 1e9 if sys.platform == "darwin" else taken * 1024 / 1e9
