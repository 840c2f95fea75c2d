"""Samples only where they are needed: the greedy answer's own score says whether to sample, the best one's when to
stop.

Answers are drawn in a few rounds. As soon as the best score is at least a threshold, the answer that has it is given;
else the next round is drawn, up to all samples. Which threshold is enough is found on validation images
(`study.effort`). A score has to be a candidate's own: one that compares answers, like the medoid's, changes with them.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from acs_lib.core.candidates import Candidates
from acs_lib.lvlms.adapter import LVLM, Prompt
from acs_lib.method.sampling import sample_candidates
from acs_lib.method.selection import choose
from acs_lib.method.zoom import joined
from acs_lib.profiles import Sampling

STOPS = (0, 3)  # after so many sampled answers the best score is looked at, before all are drawn


def rounds(samples: int) -> list[int]:
    """How many sampled answers there are after each round, the greedy one aside."""
    return [*(stop for stop in STOPS if stop < samples), samples]


def best(scores: np.ndarray, parsed: np.ndarray) -> tuple[int, float]:
    """The row with the highest score [n] of those that hold a box, the greedy one included, and its score; row 0 and
    -inf where none does."""
    row = choose(scores, parsed, "all")
    known = parsed[row] and not np.isnan(scores[row])
    return row, float(scores[row]) if known else -np.inf


def best_by_round(scores: np.ndarray, parsed: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(answers so far, `best` of them) after each round of the answers with scores [n]."""
    for stop in rounds(len(scores) - 1):
        yield stop + 1, *best(scores[: stop + 1], parsed[: stop + 1])


def sample_until(
    lvlm: LVLM, prompts: Sequence[Prompt], query_ids: Sequence[str], query_keys: Sequence[int],
    categories: Sequence[str], sampling: Sampling, enough: Callable[[Candidates], bool],
) -> list[tuple[Candidates, list[dict]]]:  # fmt: skip
    """What `sample_candidates` gives, but after a round that is `enough` of a question's candidates no more of its
    answers are drawn: the same answers in the same order, fewer of them. Every round encodes the image again."""
    questions, waiting, drawn = list(zip(prompts, query_ids, query_keys, categories)), list(range(len(prompts))), 0
    found: dict[int, tuple[Candidates, list[dict]]] = {}
    for stop in rounds(sampling.samples):
        asked, ids, keys, names = zip(*(questions[place] for place in waiting))
        how = sampling.model_copy(update={"samples": stop})
        answers = sample_candidates(lvlm, asked, ids, keys, names, how, drawn=drawn)
        for place, (candidates, records) in zip(waiting, answers):
            if place in found:  # the greedy answer is there already
                before, told = found[place]
                candidates, records = joined(before, candidates.part(slice(1, None))), told + records[1:]
            found[place] = candidates, records
        waiting, drawn = [place for place in waiting if not enough(found[place][0])], stop
        if not waiting:
            break
    return [found[place] for place in range(len(prompts))]
