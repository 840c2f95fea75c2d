"""When an answer's own score is enough (`method.effort`): found in finished runs, whose answers in their order are what
would have been drawn."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.evaluation.accuracy import hits
from acs_lib.method.baselines import slug
from acs_lib.method.effort import best_by_round
from acs_lib.method.thresholds import EFFORT, Thresholds
from acs_lib.profiles import LVLMSpec
from acs_lib.study.experiment import Experiment, by_first_regressor
from acs_lib.study.stages import Study

METHODS = ("sequence log-prob", "self-certainty", "ACS-Free", "ACS-Learned")
TRIED = 101  # thresholds among which the one that is `enough` is found


def by_round(e: Experiment, methods: Iterable[str]) -> pd.DataFrame:
    """query_id, method, answers (1 and on), score (higher is surer), iou and hit (IoU at least 0.5) of the best answer
    so far, one row a query for a small object, method and round of `method.effort`."""
    rows = []
    for c in e.candidates():
        iou = bx.iou(c.boxes, e.run.truth[c.query_id])
        for name in methods:
            for answers, row, score in best_by_round(np.asarray(e.selectors[name].score(c), float), c.parsed):
                rows.append((c.query_id, name, answers, score, iou[row]))
    found = pd.DataFrame(rows, columns=["query_id", "method", "answers", "score", "iou"])
    return found.assign(hit=hits(found["iou"]))


def spent(rounds: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Of one method's `by_round` the round at which each question stops: the first with a score of at least
    `threshold`, else the last one; in the questions' order."""
    ordered = rounds.sort_values("answers", kind="stable")
    last = ordered["answers"] == ordered.groupby("query_id")["answers"].transform("max")
    return ordered[(ordered["score"] >= threshold) | last].drop_duplicates("query_id").set_index("query_id")


def enough(rounds: pd.DataFrame) -> float:
    """The threshold of one method with the fewest answers of those whose accuracy is at least that of always drawing
    all; of equally few the highest. Infinite where that is drawing all."""
    finite = rounds["score"][np.isfinite(rounds["score"])]
    tried = [np.inf, *np.unique(np.quantile(finite, np.linspace(0, 1, TRIED)))[::-1]] if len(finite) else [np.inf]
    outcomes = [spent(rounds, threshold)[["hit", "answers"]].mean() for threshold in tried]
    good = [place for place, found in enumerate(outcomes) if found["hit"] >= outcomes[0]["hit"]]
    return float(tried[min(good, key=lambda place: outcomes[place]["answers"])])


def calibrate_effort(study: Study, lvlm: LVLMSpec) -> Thresholds:
    """Of every method the threshold that is `enough` on the validation images; written as effort.json beside the LVLM's
    head set in the study's runs."""
    e = by_first_regressor(study, lvlm, study.train_set, study.run(lvlm, study.train_set, "validation"))
    frame, values = by_round(e, METHODS), {}
    for method, rounds in frame.groupby("method", sort=False):
        threshold = enough(rounds)
        values[slug(method)] = {"enough": threshold if np.isfinite(threshold) else None}
    found = Thresholds(
        lvlm=lvlm.name, found_on=study.train_set.name, questions=len(e.small), absent=0,
        images=e.small["image_id"].nunique(), values=values, origin=study.origin(lvlm),
    )  # fmt: skip
    found.save(paths.runs(study.profile.name) / lvlm.name / EFFORT)
    return found
