"""Accuracy against the number of answers, where the answers' own scores say when to stop (`method.effort`): computed
from finished runs, whose answers in their order are what would have been drawn."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.evaluation.accuracy import hits
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means
from acs_lib.method import effort
from acs_lib.method.baselines import slug
from acs_lib.method.thresholds import EFFORT, Thresholds
from acs_lib.profiles import DatasetSpec, LVLMSpec, Split
from acs_lib.study.experiment import Experiment, by_first_regressor, stacked
from acs_lib.study.looks import Look, look_seconds
from acs_lib.study.stages import Study

METHODS = ("sequence log-prob", "self-certainty", "ACS-Free", "ACS-Learned")
COLUMNS = ("answers", "acc50", "delta_vs_greedy", "delta_vs_always")
ALWAYS, AUTO, ORACLE, GREEDY = "always", "auto", "oracle", "greedy"
SHARES = np.arange(1, 10) / 10  # of validation questions whose greedy answer is enough
TRIED = 101  # thresholds among which `auto` is found


def by_round(e: Experiment, methods: Iterable[str]) -> pd.DataFrame:
    """query_id, method, answers (1 and on), score, iou, hit, first_hit (how many answers the first hit takes, NaN
    without one), one row a query for a small object, method and round of `method.effort`."""
    rows = []
    for c in e.candidates():
        iou = bx.iou(c.boxes, e.run.truth[c.query_id])
        right = np.flatnonzero(hits(iou))
        first = right[0] + 1 if len(right) else np.nan
        for name in methods:
            for answers, row, score in effort.best_by_round(np.asarray(e.selectors[name].score(c), float), c.parsed):
                rows.append((c.query_id, name, answers, score, iou[row], first))
    found = pd.DataFrame(rows, columns=["query_id", "method", "answers", "score", "iou", "first_hit"])
    return found.assign(hit=hits(found["iou"]))


def spent(rounds: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Of one method's `by_round` the round at which each question stops: the first with a score of at least
    `threshold`, else the last one; in the questions' order."""
    ordered = rounds.sort_values("answers", kind="stable")
    last = ordered["answers"] == ordered.groupby("query_id")["answers"].transform("max")
    return ordered[(ordered["score"] >= threshold) | last].drop_duplicates("query_id").set_index("query_id")


def oracle(rounds: pd.DataFrame) -> pd.DataFrame:
    """`spent` of who knows the truth: the first round that holds a hit, and the first of all where none does."""
    ordered = rounds.sort_values("answers", kind="stable")
    found = ordered["answers"] >= ordered["first_hit"]
    first = ordered[found | (ordered["first_hit"].isna() & (ordered["answers"] == 1))].drop_duplicates("query_id")
    return first.assign(hit=first["first_hit"].notna().astype(float)).set_index("query_id")


def enough(rounds: pd.DataFrame) -> float:
    """The threshold of one method with the fewest answers of those whose accuracy is at least that of always drawing
    all; of equally few the highest. Infinite where that is drawing all."""
    finite = rounds["score"][np.isfinite(rounds["score"])]
    tried = [np.inf, *np.unique(np.quantile(finite, np.linspace(0, 1, TRIED)))[::-1]] if len(finite) else [np.inf]
    outcomes = [spent(rounds, threshold)[["hit", "answers"]].mean() for threshold in tried]
    good = [place for place, found in enumerate(outcomes) if found["hit"] >= outcomes[0]["hit"]]
    return float(tried[min(good, key=lambda place: outcomes[place]["answers"])])


def costs(seconds: Mapping[Look, float], samples: int) -> pd.DataFrame:
    """looks and seconds (of all looks together) of a question that stops at so many answers, the index, round by
    round."""
    stops = effort.rounds(samples)
    took = np.cumsum([seconds[look] for look in zip([0, *stops], stops)])
    return pd.DataFrame({"looks": np.arange(1, len(stops) + 1), "seconds": took}, index=[1 + stop for stop in stops])


def effort_rows(
    test: pd.DataFrame, validation: pd.DataFrame, image_of: pd.Series, seconds: Mapping[Look, float], draws: int
) -> pd.DataFrame:
    """One row a method and rule: GREEDY, ALWAYS (all answers at once), AUTO (`enough` of the validation images),
    thresholds that so many of the validation questions' greedy answers reach, and ORACLE: threshold, n and COLUMNS
    (answers: the mean; acc50: 0-1), with 95 % intervals over images, differences paired; and the means of looks and
    seconds. Frames as `by_round` gives them; image_of: query_id -> image; seconds: of each look, see
    `looks.look_seconds`."""
    rows, samples = [], int(test["answers"].max()) - 1
    paid, at_once = costs(seconds, samples), pd.Series({"looks": 1.0, "seconds": seconds[0, samples]})
    for method in test["method"].unique():
        own, known = (frame[frame["method"] == method] for frame in (test, validation))
        first = known.loc[known["answers"] == 1, "score"]
        stops = {GREEDY: -np.inf, ALWAYS: np.inf, AUTO: enough(known)}
        stops |= {f"greedy of {share:.0%}": float(np.quantile(first, 1 - share, method="higher")) for share in SHARES}
        always, greedy = spent(own, np.inf), spent(own, -np.inf)["hit"]
        images = pd.factorize(image_of.loc[always.index])[0]
        for rule, threshold in [*stops.items(), (ORACLE, np.nan)]:
            found = (oracle(own) if rule == ORACLE else spent(own, threshold)).loc[always.index]
            gains = [found["hit"] - greedy.loc[always.index], found["hit"] - always["hit"]]
            values = np.column_stack([found["answers"], found["hit"], *gains]).astype(float)
            ends = np.quantile(bootstrap_means(values, images, draws), INTERVAL, axis=0)
            row = {"method": method, "rule": rule, "threshold": threshold, "n": len(found)}
            row |= (at_once if rule == ALWAYS else paid.loc[found["answers"]].mean()).to_dict()
            for name, mean, (lo, hi) in zip(COLUMNS, values.mean(0), ends.T):
                row |= {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}
            rows.append(row)
    return pd.DataFrame(rows)


def _on(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, split: Split) -> Experiment:
    return by_first_regressor(study, lvlm, dataset, study.run(lvlm, dataset, split))


def effort_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """effort.csv: `effort_rows` of every LVLM and dataset by the first regressor; thresholds come from the validation
    images of the dataset that D_c is from."""
    known = {lvlm: by_round(_on(study, lvlm, study.train_set, "validation"), METHODS) for lvlm in study.profile.lvlms}

    def rows(e: Experiment) -> pd.DataFrame:
        test, images = by_round(_on(study, e.lvlm, e.dataset, "test"), METHODS), e.small.set_index("query_id")
        return effort_rows(test, known[e.lvlm], images["image_id"], look_seconds(e), study.profile.bootstrap)

    return stacked(experiments, rows)


def calibrate_effort(study: Study, lvlm: LVLMSpec) -> Thresholds:
    """Of every method the threshold that is `enough` on the validation images; written as effort.json beside the LVLM's
    head set in the study's runs."""
    e = _on(study, lvlm, study.train_set, "validation")
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
