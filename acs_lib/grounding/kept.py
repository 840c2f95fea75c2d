"""Answers kept as JSON lines of a file as they come, so that the same call goes on where it was stopped."""

import json
import os
from pathlib import Path

BEGIN = b'{"image": '  # every line


def lacks_box(answer: dict) -> bool:
    """Whether it is an answer about one object, and that was not found; lists of instances may be empty."""
    return answer.get("box", answer) is None


def keep(path: Path, image: Path, answers: list[dict], asked: dict) -> None:
    """Append the answers about one image to a file, with what they were asked with."""
    lines = [json.dumps({"image": str(image), **answer, "asked": asked}) + "\n" for answer in answers]
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(lines))


def read_kept(path: Path, asked: dict) -> dict[tuple[str, str], dict]:
    """(image, category) -> the answer in a file, its candidates left out; none where there is no file. A last line that
    was cut off is taken out of the file.

    ValueError where a line is no answer, or was asked for with other settings than `asked`.
    """
    answers: dict[tuple[str, str], dict] = {}
    end = 0
    if not path.exists():
        return answers
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and (line.startswith(BEGIN) or BEGIN.startswith(line)):
                os.truncate(path, end)
                break
            try:
                answer = json.loads(line)
                before, key = answer["asked"], (answer["image"], answer["category"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} of {path} is no answer kept there; name another file") from error
            if others := [name for name in {**asked, **before} if asked.get(name) != before.get(name)]:
                told, wanted = (", ".join(f"{name} {given.get(name)}" for name in others) for given in (before, asked))
                raise ValueError(f"{path} holds answers asked with {told}, not {wanted}; name another file")
            answers[key] = {name: value for name, value in answer.items() if name != "candidates"}
            end += len(line)
    return answers
