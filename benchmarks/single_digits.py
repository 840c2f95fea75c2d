"""Trial: an embedded InternVL that writes its numbers digit by digit, as real vocabularies have them.

    python -m benchmarks.single_digits path/to/single-digits
    python -m benchmarks.bars path/to/single-digits data/embedded/internvl-plain
    python -m benchmarks.training_variants "no habit, single digits" path/to/single-digits --lvlm internvl-embedded
        --temperature 0.8 --top-p 0.6 --log path/to/table.csv

It goes on from the shipped LVLM without a habit, with ten digits as new tokens: questions and losses are those of the
recipe's last stages, but the loss that tells places through number embeddings keeps those of whole numbers. A killed
call goes on. What was found is in data/embedded/README.md.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from acs_lib import paths
from acs_lib.embedded.models import TinyInternVL
from acs_lib.embedded.training import Perception, TrainingStage, train_stage

START = paths.EMBEDDED / "internvl-plain"


class Digits(TinyInternVL):
    """`<box>234,562,300,610</box>`; the shipped ids stay, those of whole numbers are no longer written."""

    number_words = [f"#{number}" for number in TinyInternVL.number_words]
    box = ["<box>", "{}", ",", "{}", ",", "{}", ",", "{}", "</box>"]

    def __init__(self):
        super().__init__()
        self.apart, self.known = False, len(self.vocabulary)
        self.vocabulary |= {str(digit): self.known + digit for digit in range(10)}

    def ids(self, tokens: list[str], *filled: int) -> list[int]:
        """As of the shipped LVLM, with the digits of every number."""
        written = []
        for token in super().ids(tokens, *filled):
            pixel = token - self.number_0
            whole = 0 <= pixel < len(self.number_words)
            text = self.number_words[pixel].removeprefix("#") if whole else ""
            written += [self.vocabulary[digit] for digit in text] or [token]
        return written

    def is_number(self, ids: np.ndarray) -> np.ndarray:
        """Which token ids [n] are digits."""
        return ids >= self.known

    def numbered(self, ids: np.ndarray) -> np.ndarray:
        """The how many-th number each of the token ids [n] writes, from its first digit to what is none; else -1."""
        digit = self.is_number(ids)
        begins = digit & ~np.pad(digit, (1, 0))[:-1]
        return np.where(digit, begins.cumsum() - 1, -1)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a digit, and no space between tokens where a text is decoded."""
        wrapped = super().tokenizer()
        wrapped.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"</?box>|[0-9]|[\[\].,:?]"), "isolated")]
        )
        wrapped.backend_tokenizer.decoder = decoders.Fuse()
        return wrapped

    @torch.no_grad()
    def begun(self) -> PreTrainedModel:
        """The shipped LVLM, with initial embeddings of the digits."""
        lvlm, shipped = self.build(0), self.model_class.from_pretrained(START, dtype=torch.float32)
        weights = shipped.state_dict()
        for name, fresh in lvlm.state_dict().items():
            fresh[: len(weights[name])] = weights[name]
        return lvlm.train()


def main(
    folder: Annotated[Path, typer.Argument(help="Where the LVLM is written; the checkpoint stands beside it.")],
    steps: Annotated[int, typer.Option(help="Of 16 images with 6 questions each.")] = 1300,
) -> None:
    """Train, and write the LVLM."""
    torch.set_num_threads(1)
    tiny = Digits()
    stage = TrainingStage("answers", "train", steps=steps, lr=1.2e-3, constant=0.3, seed=7)
    lvlm, perception = tiny.begun(), Perception(tiny)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.with_name(f"{folder.name}.safetensors")
    log = train_stage(lvlm, perception, stage, checkpoint, f"single digits, {steps} steps")
    tiny.save(lvlm, folder)
    typer.echo(f"{folder}: {log[-1]}")


if __name__ == "__main__":
    typer.run(main)
