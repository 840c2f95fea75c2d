"""Answers that another engine sampled: the lines of a file, and what the LVLM here makes of them.

    {"image": "street.jpg", "object": "dog", "greedy": ..., "answers": [..., ...]}

An answer is a text, a list of token ids, or {"text" or "token_ids": ..., "logprobs": [one a token]}.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from acs_lib.core.files import read_text
from acs_lib.lvlms.adapter import LVLM
from acs_lib.profiles import Strict

FAR = 0.25  # nats a token, mean over an answer: more than what another precision makes of one model's log-probabilities


class Answer(Strict):
    """text or token_ids: what the engine wrote; logprobs: the engine's own, one a token, natural logarithms."""

    model_config = ConfigDict(strict=True)

    text: str | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else {"token_ids": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("give text or token_ids")
        return self

    def ids(self, lvlm: LVLM) -> list[int]:
        """Token ids: as they are given, or those of the text by the LVLM's tokenizer, with its end token behind them
        unless the text ends with one."""
        if self.token_ids is not None:
            return self.token_ids
        ids = lvlm.tokenizer(self.text, add_special_tokens=False)["input_ids"]
        ends = lvlm.end_tokens.tolist()
        return ids if ids[-1:] and ids[-1] in ends else [*ids, ends[0]]


class Question(Strict):
    """One line. image: a path, relative to the file's folder; greedy: the greedy answer, if there is one; answers: the
    sampled ones."""

    model_config = ConfigDict(strict=True)

    image: str
    object: str
    answers: list[Answer] = Field(min_length=1)
    greedy: Answer | None = None


def as_answer(given: Answer | str | list[int] | dict) -> Answer:
    """An answer in any of its forms; ValueError of one sentence for anything else."""
    try:
        return Answer.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"an answer is no text, list of token ids, or object of these: {_told(error)}") from None


def read_questions(path: Path) -> Iterator[tuple[str, Question | ValueError]]:
    """Of every line of a file that is not empty where it stands ('answers.jsonl, line 3') and its question, or what is
    wrong with it. OSError or ValueError for a file that cannot be read."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, Question.model_validate(json.loads(line))
        except ValidationError as error:
            yield where, ValueError(f"{_told(error)}; docs/other_engines.md shows a line")
        except ValueError as error:
            yield where, ValueError(f"this is no JSON ({getattr(error, 'msg', error)}); write one JSON object a line")


def _told(error: ValidationError) -> str:
    """The first thing that is wrong, in words, and where."""
    first = error.errors()[0]
    where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def compared(lvlm: str, what: str, answers: Sequence[Answer], logprobs: Sequence[np.ndarray]) -> str | None:
    """A warning where an engine's log-probabilities are not those [tokens] of the LVLM here; None where they are, or
    where there are none. The end token's may be missing."""
    far, other = 0.0, 0
    for answer, own in zip(answers, logprobs, strict=True):
        given = answer.logprobs or []
        if len(own) - len(given) not in (0, 1):
            other += bool(given)
        elif given:
            difference = np.maximum(given, -100) - np.maximum(own[: len(given)], -100)  # some engines write -9999
            far = max(far, np.abs(difference).mean())
    told = []
    if far > FAR:
        told.append(f"differ from those of {lvlm} by {far:.2f} nats a token")
    if other:
        told.append(f"are not as many as the tokens of {other} answers")
    if not told:
        return None
    return (
        f"{what}: the engine's log-probabilities {' and '.join(told)}; it may have other weights, another question, "
        "template or image size, or tell them after the temperature"
    )
