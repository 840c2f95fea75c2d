"""How much of what attention seems to tell is the size of the object, or its category.

In the embedded worlds some categories occur small only, and the habit concerns these alone: there the size of a box
tells its category, and its category how likely it is wrong. So the gain is shown for these categories and the others
apart, beside a regressor that sees nothing but the box's size, and correlations are shown with the sizes held fixed.
"""

import numpy as np
import pandas as pd
from scipy.stats import pearsonr

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.embedded.scenes import CATEGORIES, RARE
from acs_lib.evaluation.accuracy import accuracy_table, hits, make_choices
from acs_lib.evaluation.bootstrap import INTERVAL, image_counts, paired_difference
from acs_lib.evaluation.confidence import auroc_interval, score_frame
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import Selector, over_heads
from acs_lib.study.experiment import Experiment, stacked
from acs_lib.study.robustness import sampled_answers
from acs_lib.study.stages import Study

SIZE, SMALLEST, FREE, LEARNED = "box size, learned", "box area, small first", "ACS-Free", "ACS-Learned"
BINS = 20  # of box area, each with as many answers


def learned_size(share: np.ndarray, iou: np.ndarray) -> Selector:
    """A regressor on the box's size alone: the mean IoU (0-1) of answers of known IoU [n] in BINS bins of their box's
    share [n] of the image, as a function of log share, linear between the bins' medians and constant beyond."""
    log = np.log(np.maximum(share, 1e-9))
    order = np.array_split(np.argsort(log, kind="stable"), min(BINS, len(log)))
    middle, mean = ([float(how(values[part])) for part in order] for how, values in ((np.median, log), (np.mean, iou)))

    def score(c: Candidates) -> np.ndarray:
        known = np.log(np.maximum(bx.area(c.boxes) / (c.width * c.height), 1e-9))
        return np.where(np.isnan(known), np.nan, np.interp(known, middle, mean))

    return Selector(SIZE, "control", score, "control")


def category_groups(e: Experiment) -> dict[str, pd.DataFrame]:
    """The queries for small objects: 'all', and in a rendered world those for the categories that are rare there (they
    occur small only) and for the common ones."""
    groups = {"all": e.small}
    if e.dataset.kind == "scenes":
        rare = e.small["category"].isin([CATEGORIES[index] for index in RARE])
        groups |= {"rare, small only": e.small[rare], "common": e.small[~rare]}
    return {name: queries for name, queries in groups.items() if len(queries)}


def size_and_category(e: Experiment, size: Selector) -> pd.DataFrame:
    """categories, method, n_queries, acc50, difference of Acc@0.5 with greedy and with `size`, each with its interval
    (95 %, paired, over images), and the AUROC of the score for 'IoU at least 0.5' over the n answers."""
    selectors = [*(e.selectors[name] for name in ("greedy", SMALLEST)), size, *map(e.selectors.get, (FREE, LEARNED))]
    choices = make_choices(e.candidates(), e.run.truth, selectors, e.profile.pool)
    scores, table = score_frame(e.candidates(), e.run.truth, selectors), []
    for name, queries in category_groups(e).items():
        chosen = choices[choices["query_id"].isin(queries["query_id"])]
        rates = accuracy_table(chosen, queries, draws=e.profile.bootstrap).set_index("method")
        answers = scores[scores["query_id"].isin(queries["query_id"])]
        images, names = pd.factorize(answers["query_id"].map(queries.set_index("query_id")["image_id"]))
        counts, hit = image_counts(len(names), e.profile.costly_draws), hits(answers["iou"]) == 1
        for selector in selectors:
            row = {"categories": name, "method": selector.name, "n_queries": len(queries)}
            row |= rates.loc[selector.name, ["acc50", "acc50_lo", "acc50_hi"]].to_dict()
            for reference, column in (("greedy", "delta_vs_greedy"), (SIZE, "delta_vs_size")):
                found = paired_difference(chosen, queries, selector.name, reference, e.profile.bootstrap)
                if selector.name != reference:
                    row |= dict(zip((column, f"{column}_lo", f"{column}_hi"), found))
            if selector.name != "greedy":
                found = auroc_interval(answers[selector.name].to_numpy(float), hit, images, counts)
                row |= dict(zip(("auroc", "auroc_lo", "auroc_hi"), found))
            table.append(row | {"n_answers": len(answers)})
    return pd.DataFrame(table)


def size_and_category_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """size_and_category.csv: `size_and_category` of every column; the regressor on size is fitted, like the other one,
    on the answers of the train split."""
    fitted = {}
    for e in experiments:
        if e.lvlm not in fitted:
            records, _ = sampled_answers(study.run(e.lvlm, study.train_set, "train"))
            fitted[e.lvlm] = learned_size(records["box_area"].to_numpy(), records["iou"].to_numpy())
    return stacked(experiments, lambda e: size_and_category(e, fitted[e.lvlm]))


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Pearson correlation of x [n] and y [n] after both are cleared of their least-squares fit on given [n, k] and a
    constant, or a constant for each of the groups [n] (codes from 0); NaN if nothing is left of one of them."""
    groups = np.zeros(len(x), int) if groups is None else groups
    count = np.maximum(np.bincount(groups), 1)
    columns = np.column_stack([x, y, given]).astype(float)
    columns -= np.column_stack([np.bincount(groups, column) / count for column in columns.T])[groups]
    design = columns[:, 2:]
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in columns[:, :2].T]
    if min(part.std() for part in rest) < 1e-12:
        return float("nan")
    return float(pearsonr(*rest)[0])


PARTIAL = ("partial_pearson", "partial_pearson_category")


def size_effect(
    records: pd.DataFrame, entropy: np.ndarray, predicted: np.ndarray, head_set: HeadSet, draws: int
) -> pd.DataFrame:
    """partial_correlation.csv of one run: correlation (pearson) of a score with IoU, what is left of it with log object
    area and log box area held fixed (partial_pearson), and with these and the category held fixed
    (partial_pearson_category). Scores: predicted IoU, entropy in nats over D_c (at its own coordinates) and over all
    heads, all with 95 % intervals over images, and entropy of one head (mean over the four coordinates) after another.

    records and entropy [n, 4, layers, heads] as `sampled_answers` gives them, predicted [n] IoU (0-1), `category` in
    the records. Boxes without area are left out.
    """
    kept = (records["box_area"] > 0).to_numpy()
    records, read = records[kept], entropy[kept].mean(1)
    iou, groups = records["iou"].to_numpy(), pd.factorize(records["category"])[0]
    given = np.log(records[["object_area", "box_area"]].to_numpy())
    chosen = over_heads(entropy[kept], head_set.heads, head_set.coordinates)
    named = [("ACS-Learned", None, None, predicted[kept]), ("entropy, D_c", None, None, chosen)]
    named += [("entropy, all heads", None, None, read.mean((1, 2)))]
    named += [("entropy, one head", layer, head, read[:, layer, head]) for layer, head in np.ndindex(read.shape[1:])]
    images, names = pd.factorize(records["image"])
    drawn = [np.repeat(np.arange(len(iou)), count[images]) for count in image_counts(len(names), draws)]
    table = []
    for name, layer, head, values in named:
        row = {"score": name, "layer": layer, "head": head, "pearson": float(pearsonr(values, iou)[0])}
        for column, fixed in zip(PARTIAL, (np.zeros_like(groups), groups)):
            row[column] = partial_correlation(values, iou, given, fixed)
            if layer is None:
                found = [partial_correlation(values[rows], iou[rows], given[rows], fixed[rows]) for rows in drawn]
                row[f"{column}_lo"], row[f"{column}_hi"] = np.nanquantile(found, INTERVAL)
        table.append(row | {"n": len(iou)})
    return pd.DataFrame(table).astype({"layer": "Int64", "head": "Int64"})


def partial_correlation_table(experiments: list[Experiment]) -> pd.DataFrame:
    """partial_correlation.csv: small objects of every test split, sampled answers."""

    def effect(e: Experiment) -> pd.DataFrame:
        records, entropy = sampled_answers(e.run)
        predicted = records.merge(e.predictions, on=["query_id", "candidate"], how="left")["predicted_iou"]
        return size_effect(records, entropy, predicted.to_numpy(), e.head_set, min(200, e.profile.bootstrap))

    return stacked(experiments, effect)
