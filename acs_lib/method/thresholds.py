"""Thresholds on selectors' scores that were found on images with known boxes, as files beside D_c: `risk.json` and
`effort.json`."""

import json
from pathlib import Path

from pydantic import ValidationError

from acs_lib.core.files import read_text, write_text
from acs_lib.method.origin import Origin, check_origin
from acs_lib.profiles import Sampling, Strict

RISK, EFFORT = "risk.json", "effort.json"


class Thresholds(Strict):
    """lvlm, found_on: on whose answers to which data they were found; questions, absent, images: on how many questions,
    how many of these about objects that are not there, and images; values: selector (as on the command line) -> what
    the threshold is for -> threshold, None where nothing reaches it; origin: what else they belong to."""

    lvlm: str
    found_on: str
    questions: int
    absent: int
    images: int
    values: dict[str, dict[str, float | None]]
    origin: Origin

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")

    def of(self, selector: str, path: Path) -> dict[str, float | None]:
        """Those of one selector; ValueError names the file and those that it has."""
        if selector not in self.values:
            raise ValueError(f"{path} has no threshold for {selector}; take {', '.join(self.values)}")
        return self.values[selector]


def load_thresholds(path: Path, lvlm: str, weights: str, question: str) -> Thresholds:
    """Read thresholds; ValueError for a file that holds none, or that belongs to other weights or another question."""
    try:
        found = Thresholds.model_validate(json.loads(read_text(path)))
    except (json.JSONDecodeError, ValidationError) as error:
        raise ValueError(f"{path} holds no thresholds; make it anew with acs calibrate") from error
    check_origin(str(path), found.origin, lvlm, weights, question)
    return found


def check_sampling(what: str, usual: Sampling, how: Sampling) -> None:
    """ValueError if answers are drawn in another way than those that thresholds were found with: scores of the best of
    other samples are others."""
    names = ("samples", "temperature", "top_p", "row")
    if other := [name for name in names if getattr(usual, name) != getattr(how, name)]:
        wanted = ", ".join(f"{name} {getattr(usual, name)}" for name in other)
        raise ValueError(f"{what} was found with {wanted}, and holds for these alone; leave them as they are")
