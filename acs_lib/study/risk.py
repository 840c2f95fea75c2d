"""When to say "not found": scores as a promise about wrong answers, calibrated on images of their own
(`evaluation.risk`).

Questions are about small objects that are there and, as many as the profile says, about objects that are not: to these
every box is wrong. A method's answer is the box that it chooses, its score that box's. A promise is about scores that
were fixed before: D_c and the regressor come from train and validation images, and the images that calibrate
(`beyond.calibration` of the profile) choose nothing else. It holds for questions like those that it was calibrated on,
so it is also tried on other data, where it may break.
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.core.progress import tracked
from acs_lib.evaluation import risk
from acs_lib.evaluation.accuracy import hits
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means, image_counts
from acs_lib.evaluation.confidence import COVERAGES, area_interval, auroc_interval, curve_interval, risk_coverage
from acs_lib.method.baselines import slug
from acs_lib.method.selection import choose
from acs_lib.method.thresholds import RISK, Thresholds
from acs_lib.profiles import DatasetSpec, LVLMSpec, Split
from acs_lib.study.experiment import Experiment, by_first_regressor
from acs_lib.study.stages import Study

METHODS = ("sequence log-prob", "self-certainty", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")
ALPHAS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # that a threshold is kept for
CONFORMAL, TESTED = "wrong of all", "wrong of the answered"  # the two promises
GRID = np.arange(10) / 10  # quantiles of the training images' scores: the thresholds that are tested
SPLITS = 200  # random splits of the images into those that calibrate and those that are asked about
MEASURES = ("answered", "wrong", "selective_risk")


def about_absent(study: Study, dataset: DatasetSpec) -> DatasetSpec:
    """The dataset's test split, asking for `profile.beyond.absent` objects that are not there."""
    spec = dataset.splits["test"].model_copy(update={"queries": {"absent": study.profile.beyond.absent}})
    return dataset.model_copy(update={"splits": {"test": spec}})


def calibration_set(study: Study) -> DatasetSpec:
    """The images that the promises are calibrated on. ValueError for a profile that names none."""
    if study.profile.beyond.calibration is None:
        raise ValueError(f"the profile {study.profile.name} names no images to calibrate on (beyond: calibration)")
    return study.train_set.model_copy(update={"splits": {"calibration": study.profile.beyond.calibration}})


def chosen_scores(e: Experiment, methods: Iterable[str]) -> pd.DataFrame:
    """query_id, image_id, method, score (higher is surer; -inf without a box), hit (bool) and present of what each
    method chooses for the queries about small objects and those about absent ones."""
    queries = e.queries()
    queries = queries[queries["size"].isin(["small", "absent"])].set_index("query_id", drop=False)
    rows = []
    for c in e.candidates(queries):
        iou = bx.iou(c.boxes, e.run.truth[c.query_id])
        for name in methods:
            selector = e.selectors[name]
            scores = np.asarray(selector.score(c), float)
            row = choose(scores, c.parsed, selector.pool or e.profile.pool)
            known = c.parsed[row] and not np.isnan(scores[row])
            rows.append((c.query_id, name, scores[row] if known else -np.inf, hits(iou[row]) == 1))
    found = pd.DataFrame(rows, columns=["query_id", "method", "score", "hit"])
    image, size = (found["query_id"].map(queries[name]) for name in ("image_id", "size"))
    return found.assign(image_id=image, present=size != "absent")


def asked(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, split: Split) -> pd.DataFrame:
    """`chosen_scores` of METHODS on a split, and of a test split also on as many absent objects as the profile says; by
    the first regressor, which is the one that `ground` has."""
    runs = [study.run(lvlm, dataset, split)]
    if study.profile.beyond.absent and split == "test":
        absent = about_absent(study, dataset)
        runs.append(study.with_changes("absent", [absent]).run(lvlm, absent, split))
    found = [chosen_scores(by_first_regressor(study, lvlm, dataset, run), METHODS) for run in runs]
    frame = pd.concat(found, ignore_index=True)
    return frame.assign(image=f"{split}/" + frame["image_id"].astype(str))


def middle(alphas: Iterable[float]) -> float:
    """The one that is told of where one is: of several the middle one."""
    ordered = sorted(set(alphas))
    return ordered[len(ordered) // 2]


def arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n], hit [n] bool and images [n] of a frame, as `evaluation.risk` takes them."""
    return frame["score"].to_numpy(float), frame["hit"].to_numpy(bool), frame["image"].to_numpy()


def rules(grid: np.ndarray, alpha: float, delta: float) -> dict[str, Callable[..., float]]:
    """The two promises as functions of scores, hits and images that give a threshold; `grid`: those to be tested."""
    return {
        CONFORMAL: functools.partial(risk.conformal_threshold, alpha=alpha),
        TESTED: functools.partial(risk.tested_threshold, alpha=alpha, delta=delta, thresholds=grid),
    }


def outcome_interval(
    scores: np.ndarray, hit: np.ndarray, images: np.ndarray, threshold: float, draws: int
) -> dict[str, float]:
    """`risk.outcome` with the 95 % interval of each of MEASURES (name_lo, name_hi), from drawing images."""
    given = scores >= threshold
    drawn = bootstrap_means(np.column_stack([given, given & ~hit]).astype(float), pd.factorize(images)[0], draws)
    with np.errstate(invalid="ignore"):
        drawn = np.column_stack([drawn, drawn[:, 1] / drawn[:, 0]])
    found = risk.outcome(scores, hit, threshold)
    for name, values in zip(MEASURES, drawn.T):
        ends = np.nanquantile(values, INTERVAL) if np.isfinite(values).any() else (np.nan, np.nan)
        found[f"{name}_lo"], found[f"{name}_hi"] = ends
    return found


def over_splits(
    calibration: pd.DataFrame, test: pd.DataFrame | None, find: Callable[..., float], splits: int = SPLITS
) -> pd.DataFrame:
    """`risk.outcome` of one method over random splits of the images: half of the calibration's choose the threshold,
    and it is tried on `test`, or on the other half where there is none."""
    rng, images, found = np.random.default_rng(0), calibration["image"].unique(), []
    for _ in range(splits):
        half = np.isin(calibration["image"], rng.permutation(images)[: len(images) // 2])
        scores, hit, _ = arrays(calibration[~half] if test is None else test)
        found.append(risk.outcome(scores, hit, find(*arrays(calibration[half]))))
    return pd.DataFrame(found)


def risk_rows(
    train: pd.DataFrame, calibration: pd.DataFrame, test: pd.DataFrame, shifted: bool, alphas: Iterable[float],
    delta: float, draws: int,
) -> pd.DataFrame:  # fmt: skip
    """One row a method, promise and alpha: n, n_absent (questions of the test split), auroc of objects that are there
    against absent ones, aurc (area under the risk-coverage curve), threshold (NaN where no promise can be kept),
    MEASURES on the test split, all with 95 % intervals over images; and over SPLITS splits the mean share of wrong
    answers and of wrong ones among the answered, and the share of splits in which the latter is above alpha.

    Frames as `asked` gives them. `shifted`: the test split is of other data than the images that calibrate, so that
    splits draw from these alone; else they mix both.
    """
    rows = []
    for method in tracked(METHODS, "promises over many splits", unit="methods"):
        parts = [frame[frame["method"] == method] for frame in (train, calibration, test)]
        scores, hit, images = arrays(parts[2])
        codes, names = pd.factorize(images)
        counts, present = image_counts(len(names), draws), parts[2]["present"].to_numpy(bool)
        known = dict(zip(("auroc", "auroc_lo", "auroc_hi"), auroc_interval(scores, present, codes, counts)))
        known |= dict(zip(("aurc", "aurc_lo", "aurc_hi"), area_interval(scores, hit, codes, counts)))
        finite = parts[0]["score"].to_numpy(float)
        grid = np.unique(np.quantile(finite[np.isfinite(finite)], GRID))
        both = parts[1] if shifted else pd.concat(parts[1:])
        for alpha in alphas:
            for promise, find in rules(grid, alpha, delta).items():
                threshold = find(*arrays(parts[1]))
                tried = over_splits(both, parts[2] if shifted else None, find)
                rows.append({
                    "method": method, "promise": promise, "alpha": alpha,
                    "delta": delta if promise == TESTED else np.nan,
                    "n": len(scores), "n_absent": int((~present).sum()),
                    **known, "threshold": threshold if np.isfinite(threshold) else np.nan,
                    **outcome_interval(scores, hit, images, threshold, draws), "splits": len(tried),
                    "wrong_over_splits": tried["wrong"].mean(), "answered_over_splits": tried["answered"].mean(),
                    "above_alpha": (tried["selective_risk"] > alpha).mean(),
                })  # fmt: skip
    return pd.DataFrame(rows)


def coverage_rows(test: pd.DataFrame, draws: int) -> pd.DataFrame:
    """method, coverage (0.05 to 1), risk (0-1: the share of wrong ones among so many of the surest answers) with its
    interval, and n, of a frame as `asked` gives it."""
    rows = []
    for method, part in test.groupby("method", sort=False):
        scores, hit, images = arrays(part)
        codes, names = pd.factorize(images)
        kept = np.ceil(COVERAGES * len(hit)).astype(int)
        ends = curve_interval(scores, hit, codes, image_counts(len(names), draws))
        values = risk_coverage(scores, hit)[kept - 1]
        rows += [(method, *each, len(hit)) for each in zip(COVERAGES, values, *ends)]
    return pd.DataFrame(rows, columns=["method", "coverage", "risk", "risk_lo", "risk_hi", "n"])


def risk_tables(study: Study, experiments: Iterable[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """risk.csv (`risk_rows`, and the dataset whose images calibrated them, that which D_c is from) and risk_curve.csv
    (`coverage_rows`) of every LVLM and dataset."""
    tables, curves, draws, spec = [], [], study.profile.costly_draws, study.profile.beyond
    known = {
        lvlm: [asked(study, lvlm, study.train_set, "train"), asked(study, lvlm, calibration_set(study), "calibration")]
        for lvlm in study.profile.lvlms
    }
    for e in experiments:
        test, shifted = asked(study, e.lvlm, e.dataset, "test"), e.dataset != study.train_set
        rows = risk_rows(*known[e.lvlm], test, shifted, spec.alphas, spec.delta, draws)
        tables.append(e.labelled(rows.assign(calibrated_on=study.train_set.name)))
        curves.append(e.labelled(coverage_rows(test, draws)))
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)


def calibrate_risk(study: Study, lvlm: LVLMSpec) -> Thresholds:
    """Of every method the threshold that keeps the expected share of questions answered wrongly at most each of ALPHAS,
    by the images that calibrate; written as risk.json beside the LVLM's head set in the study's runs."""
    frame, values = asked(study, lvlm, calibration_set(study), "calibration"), {}
    for method, part in frame.groupby("method", sort=False):
        found = {f"{alpha:g}": risk.conformal_threshold(*arrays(part), alpha) for alpha in ALPHAS}
        values[slug(method)] = {alpha: value if np.isfinite(value) else None for alpha, value in found.items()}
    one = frame[frame["method"] == METHODS[0]]
    found = Thresholds(
        lvlm=lvlm.name, found_on=study.train_set.name, questions=len(one), absent=int((~one["present"]).sum()),
        images=one["image"].nunique(), values=values, origin=study.origin(lvlm),
    )  # fmt: skip
    found.save(paths.runs(study.profile.name) / lvlm.name / RISK)
    return found
