"""When to say "not found": scores as a promise about wrong answers, calibrated on validation images
(`evaluation.risk`).

Questions are about small objects that are there and, as many as the profile says, about objects that are not: to these
every box is wrong. A method's answer is the box that it chooses, its score that box's. The promise holds for questions
like those that it was calibrated on.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.evaluation import risk
from acs_lib.evaluation.accuracy import hits
from acs_lib.method.baselines import slug
from acs_lib.method.selection import choose
from acs_lib.method.thresholds import RISK, Thresholds
from acs_lib.profiles import DatasetSpec, LVLMSpec
from acs_lib.study.experiment import Experiment, by_first_regressor
from acs_lib.study.stages import Study

METHODS = ("sequence log-prob", "self-certainty", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")
ALPHAS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # that a threshold is kept for


def about_absent(study: Study, dataset: DatasetSpec) -> DatasetSpec:
    """The dataset's validation split, asking for `profile.beyond.absent` objects that are not there."""
    asking = dataset.splits["validation"].model_copy(update={"queries": {"absent": study.profile.beyond.absent}})
    return dataset.model_copy(update={"splits": {"validation": asking}})


def chosen_scores(e: Experiment, size: str, methods: Iterable[str]) -> pd.DataFrame:
    """query_id, image_id, method, score (higher is surer; -inf without a box), hit (bool) and present of what each
    method chooses for the queries of a size, or for 'absent' ones."""
    rows = []
    for c in e.candidates(e.queries(size)):
        iou = bx.iou(c.boxes, e.run.truth[c.query_id])
        for name in methods:
            selector = e.selectors[name]
            scores = np.asarray(selector.score(c), float)
            row = choose(scores, c.parsed, selector.pool or e.profile.pool)
            known = c.parsed[row] and not np.isnan(scores[row])
            rows.append((c.query_id, name, scores[row] if known else -np.inf, hits(iou[row]) == 1))
    found = pd.DataFrame(rows, columns=["query_id", "method", "score", "hit"])
    images = e.run.queries.set_index("query_id")["image_id"]
    return found.assign(image_id=found["query_id"].map(images), present=size != "absent")


def asked(study: Study, lvlm: LVLMSpec) -> pd.DataFrame:
    """`chosen_scores` of METHODS on the validation split of the dataset that D_c is from: small objects and absent
    ones, if the profile asks for any."""
    parts = [("small", study, study.train_set)]
    if study.profile.beyond.absent:
        absent = about_absent(study, study.train_set)
        parts.append(("absent", study.with_changes("absent", [absent]), absent))
    found = []
    for size, of, dataset in parts:
        e = by_first_regressor(study, lvlm, dataset, of.run(lvlm, dataset, "validation"))
        found.append(chosen_scores(e, size, METHODS))
    return pd.concat(found, ignore_index=True)


def arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n], hit [n] bool and images [n] of a frame, as `evaluation.risk` takes them."""
    return frame["score"].to_numpy(float), frame["hit"].to_numpy(bool), frame["image_id"].to_numpy()


def calibrate_risk(study: Study, lvlm: LVLMSpec) -> Thresholds:
    """Of every method the threshold that keeps the expected share of questions answered wrongly at most each of ALPHAS,
    by the validation images; written as risk.json beside the LVLM's head set in the study's runs."""
    frame, values = asked(study, lvlm), {}
    for method, part in frame.groupby("method", sort=False):
        found = {f"{alpha:g}": risk.conformal_threshold(*arrays(part), alpha) for alpha in ALPHAS}
        values[slug(method)] = {alpha: value if np.isfinite(value) else None for alpha, value in found.items()}
    one = frame[frame["method"] == METHODS[0]]
    found = Thresholds(
        lvlm=lvlm.name, found_on=study.train_set.name, questions=len(one), absent=int((~one["present"]).sum()),
        images=one["image_id"].nunique(), values=values, origin=study.origin(lvlm),
    )  # fmt: skip
    found.save(paths.runs(study.profile.name) / lvlm.name / RISK)
    return found
