"""What a head set or a regressor belongs to: the weights that gave the answers it was found on, and how these were
asked for, drawn and read."""

import warnings
from collections.abc import Iterable

from pydantic import Field

from acs_lib.profiles import Sampling, Strict

SMALL = 0.01  # share of the image, of files that do not say


class Origin(Strict):
    """weights: `lvlm_digest` of the LVLM; question: its question, with {object}; sampling: how its answers were drawn,
    and which attention row was read; map_side: to how many rows and columns maps were averaged, None the grid's own;
    small: up to which share of the image the objects went."""

    weights: str
    question: str
    sampling: Sampling
    map_side: int | None = None
    small: float = Field(SMALL, exclude_if=lambda share: share == SMALL)


def is_of(recorded: str, lvlm: str, origin: Origin | None) -> bool:
    """Whether a file that records the LVLM `recorded` belongs to the one named `lvlm`. Files of earlier versions, which
    have no origin, record a hub's owner/model as model."""
    return recorded == lvlm or (origin is None and "/" in lvlm and recorded == lvlm.rpartition("/")[2])


def check_origin(what: str, origin: Origin, lvlm: str, weights: str, question: str) -> None:
    """ValueError if `what` (such as 'the head set') was found with other weights or another question than those of the
    LVLM of that name."""
    if origin.weights != weights:
        raise ValueError(
            f"{what} was found with other weights or settings than {lvlm} has here ({origin.weights[:60]}, not "
            f"{weights[:60]}); acs calibrate finds one for these"
        )
    if origin.question != question:
        raise ValueError(
            f"{what} was found with the question {origin.question!r}, and {lvlm} is asked {question!r}; ask the "
            "former, or let acs calibrate find one for the latter"
        )


def usual_sampling(origins: Iterable[Origin]) -> Sampling | None:
    """How the answers are drawn and read that D_c and regressor are made for: the first one's settings, None without
    any. ValueError if they read different rows."""
    found = [origin.sampling for origin in origins]
    if len({how.row for how in found}) > 1:
        raise ValueError(
            f"head set and regressor read different attention rows ({', '.join(repr(how.row) for how in found)}); take "
            "both from one run of acs calibrate"
        )
    return found[0] if found else None


def warn_of_other_sampling(origins: Iterable[Origin], how: Sampling) -> None:
    """A warning if answers are drawn at another temperature or top-p than those that D_c or regressor was found on."""
    for usual in (origin.sampling for origin in origins):
        if (usual.temperature, usual.top_p) != (how.temperature, how.top_p):
            warnings.warn(
                f"D_c and regressor were found at temperature {usual.temperature:g} and top-p {usual.top_p:g}; at "
                f"{how.temperature:g} and {how.top_p:g} their choices may be worse",
                stacklevel=3,
            )
            return
