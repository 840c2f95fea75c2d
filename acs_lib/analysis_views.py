"""Tables of a study's confidence, analyses and cost, for notebook 09, and sentences that follow from them; notebooks 03
and 04 use some of both."""

import numpy as np
import pandas as pd
from IPython.display import Markdown

from acs_lib import ablations, analyses, confidence, cost
from acs_lib.ablations import Bench
from acs_lib.heads import Heads
from acs_lib.study import Study
from acs_lib.views import say, small_predictions

SHOWN = ("sequence log-prob", "medoid", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")
DRAWS = 1000  # of the analyses whose draws are costly


def _placed(frame: pd.DataFrame, lvlm, dataset=None) -> pd.DataFrame:
    """The frame with leading columns lvlm and, where one is given, dataset."""
    if dataset is not None:
        frame.insert(0, "dataset", dataset.name)
    frame.insert(0, "lvlm", lvlm.name)
    return frame


def _draws(study: Study) -> int:
    return min(DRAWS, study.profile.bootstrap)


# ----------------------------------------------------------------------------------------------------- confidence


def confidence_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """confidence.csv and risk_coverage.csv: small objects of every test split, every selector but greedy itself."""
    tables, curves = [], []
    for lvlm, dataset in study.columns:
        run, small = study.run(lvlm, dataset, "test"), study.test_queries(lvlm, dataset, "small")
        selectors = study.selectors(lvlm, study.predictions(lvlm, dataset, "test"), study.asked(lvlm, dataset))
        selectors = [selector for selector in selectors if selector.name != "greedy"]
        images = dict(zip(small["query_id"], small["image_id"]))
        candidates = (c for c in run.candidates(maps=True) if c.query_id in images)
        scores = confidence.scored(candidates, run.truth, selectors)
        tables.append(_placed(confidence.table(scores, selectors, images, study.profile.bootstrap), lvlm, dataset))
        curves.append(_placed(confidence.curves(scores, SHOWN, images, _draws(study)), lvlm, dataset))
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)


def say_confidence(table: pd.DataFrame) -> Markdown:
    """The best score as confidence in each column, and ACS's and the published ones, from `confidence_tables`."""
    parts = []
    for (lvlm, dataset), rows in table[table["answers"] == "all"].groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("method")
        if rows["auroc"].isna().all():
            parts.append(f"{lvlm} on {dataset}: there is no AUROC, since all answers are right or all are wrong")
            continue
        best = rows["auroc"].idxmax()
        names = (best, "ACS-Learned", "ACS-Free", "sequence log-prob", *confidence.PUBLISHED_AUROC)
        first, *others = (
            f"{rows['auroc'][name]:.2f} [{rows['auroc_lo'][name]:.2f}, {rows['auroc_hi'][name]:.2f}] ({name})"
            for name in dict.fromkeys(names)
        )
        parts.append(f"{lvlm} on {dataset}: the best is {first}, beside {', '.join(others)}")
    published = "; ".join(f"{name} {numbers}" for name, numbers in confidence.PUBLISHED_AUROC.items())
    return say(
        "AUROC over all answers, for telling boxes with IoU of at least 0.5. Published, other LVLMs and data (arXiv "
        f"2607.05978, 8B parameters): {published}.",
        parts,
    )


def say_risk(curves: pd.DataFrame) -> Markdown:
    """The score with the lowest risk when half of the greedy answers are kept, from `confidence_tables`."""
    parts = []
    for (lvlm, dataset), rows in curves.groupby(["lvlm", "dataset"], sort=False):
        half = rows[rows["coverage"] == 0.5]
        best, every = half.loc[half["risk"].idxmin()], rows.loc[rows["coverage"].idxmax(), "risk"]
        parts.append(
            f"{lvlm} on {dataset}: with {best['method']}, {best['risk']:.0%} [{best['risk_lo']:.0%}, "
            f"{best['risk_hi']:.0%}] instead of {every:.0%} over all answers"
        )
    return say("of the half that a score is surest of, the share of misses is lowest:", parts)


def predicted_answers(study: Study) -> pd.DataFrame:
    """lvlm, dataset, image (its id), query_id, candidate, iou, predicted of every answer to small test objects that
    holds a box."""
    parts = []
    for lvlm, dataset in study.columns:
        image_of = study.test_queries(lvlm, dataset, "small").set_index("query_id")["image_id"]
        found = small_predictions(study, lvlm, dataset, "test")
        parts.append(_placed(found.assign(image=found["query_id"].map(image_of)), lvlm, dataset))
    return pd.concat(parts, ignore_index=True)


def calibration_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """calibration.csv (bins) and calibration_error.csv (lvlm, dataset, ece, lo, hi, predicted, iou, n): the regressor's
    predicted IoU of all answers to small test objects."""
    bins, errors = [], []
    for column, found in predicted_answers(study).groupby(["lvlm", "dataset"], sort=False):
        predicted, iou = found["predicted"].to_numpy(float), found["iou"].to_numpy(float)
        images = pd.factorize(found["image"])[0]
        frame, error = confidence.reliability(predicted, iou, images, study.profile.bootstrap)
        bins.append(frame.assign(lvlm=column[0], dataset=column[1])[["lvlm", "dataset", *frame]])
        errors.append((*column, *error, predicted.mean(), iou.mean(), len(iou)))
    names = ["lvlm", "dataset", "ece", "ece_lo", "ece_hi", "predicted", "iou", "n"]
    return pd.concat(bins, ignore_index=True), pd.DataFrame(errors, columns=names)


def say_calibration(errors: pd.DataFrame) -> Markdown:
    """Expected calibration error and the direction of the bias, from `calibration_tables`."""
    parts = [
        f"{row.lvlm} on {row.dataset}: predicted IoU is off by {row.ece:.2f} [{row.ece_lo:.2f}, {row.ece_hi:.2f}]; its "
        f"mean is {row.predicted:.2f}, that of the true IoU {row.iou:.2f}"
        for row in errors.itertuples()
    ]
    return say("how far predicted IoU is off, on average over bins:", parts)


# ------------------------------------------------------------------------------------------------------- analyses


def benches(study: Study) -> list[Bench]:
    """What the ablations and analyses of every LVLM share (D_c found once)."""
    return [Bench.open(study, lvlm) for lvlm in study.profile.lvlms]


def say_layers(layers: pd.DataFrame) -> Markdown:
    """The layer with the largest share of the attribution and the shares of D_c's layers, from `Study.head_tables`."""
    parts = []
    for lvlm, rows in layers.groupby("lvlm", sort=False):
        first, own = rows.loc[rows["attribution"].idxmax()], rows[rows["selected"]]
        told = ", ".join(f"layer {row.layer} {row.attribution:.0%}" for row in own.itertuples())
        parts.append(
            f"{lvlm}: the largest share is that of layer {first['layer']}, {first['attribution']:.0%} "
            f"[{first['attribution_lo']:.0%}, {first['attribution_hi']:.0%}]; of the layers with heads in D_c: {told}"
        )
    return say("layers by attribution:", parts)


def attribution_tables(benches: list[Bench]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """attributions.csv and attribution_agreement.csv: the regressor of every LVLM, answers of the train split,
    intervals over its images. Heads are compared inside as few layers as D_c may be taken from."""
    tables, agreements = [], []
    for bench in benches:
        table = analyses.attributions(bench.study.fit(bench.lvlm), bench.run("train"), _draws(bench.study))
        layers, count = min(bench.study.profile.heads.layers), len(bench.head_set.heads)
        agreement = analyses.agreement(table, bench.separation, layers, count).assign(layers=layers)
        agreements.append(_placed(agreement, bench.lvlm))
        tables.append(_placed(table, bench.lvlm))
    return pd.concat(tables, ignore_index=True), pd.concat(agreements, ignore_index=True)


def say_attributions(table: pd.DataFrame, agreement: pd.DataFrame) -> Markdown:
    """Whether the attributions agree on the order of the layers and on D_c, from `attribution_tables`."""
    parts = []
    for lvlm, rows in table.groupby("lvlm", sort=False):
        tops = ", ".join(f"{rows['layer'][rows[name].idxmax()]} by {name}" for name in analyses.ATTRIBUTIONS)
        pairs = agreement[agreement["lvlm"] == lvlm]
        told = ", ".join(f"{row.spearman:+.2f} ({row.a} and {row.b})" for row in pairs.itertuples())
        shared = ", ".join(f"{row.jaccard:.0%}" for row in pairs.itertuples())
        parts.append(
            f"{lvlm}: the first layer is {tops}; rank correlations over the layers are {told}, and of the heads "
            f"with the best AUROC inside the first {pairs['layers'].iloc[0]} layers the same pairs share {shared}"
        )
    return say("three ways to attribute, compared:", parts)


def stability_tables(benches: list[Bench]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """head_stability.csv and head_set_stability.csv (lvlm, kept, lo, hi): train split, images drawn anew."""
    tables, sets = [], []
    for bench in benches:
        study, lvlm, head_set = bench.study, bench.lvlm, bench.head_set
        records, entropy = analyses.sampled_answers(bench.run("train"))
        entropy = entropy[:, list(head_set.coordinates)].mean(1)
        table, kept = analyses.stability(
            entropy, records, bench.layers["attribution"].to_numpy(), max(study.profile.heads.layers),
            len(head_set.heads), _draws(study),
        )  # fmt: skip
        tables.append(_placed(table, lvlm))
        sets.append({"lvlm": lvlm.name, "heads": len(head_set.heads), **kept})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(sets)


def say_stability(table: pd.DataFrame, sets: pd.DataFrame) -> Markdown:
    """How sure the heads are, from `stability_tables`."""
    parts = []
    for row in sets.itertuples():
        chosen = table[(table["lvlm"] == row.lvlm) & table["selected"]]
        width = (chosen["auroc_hi"] - chosen["auroc_lo"]).max()
        parts.append(
            f"{row.lvlm}: a draw of the training images selects {row.kept:.0%} [{row.lo:.0%}, {row.hi:.0%}] of the "
            f"{row.heads} heads again; their AUROC is {chosen['auroc'].min():.2f} to {chosen['auroc'].max():.2f}, with "
            f"intervals up to {width:.2f} wide"
        )
    return say("how sure the heads are:", parts)


def transfer_tables(benches: list[Bench]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """head_overlap.csv and head_transfer.csv: D_c's counterpart found on the test images of each dataset.

    overlap: lvlm, a, b, jaccard (0-1), spearman of the heads' AUROCs. transfer: lvlm, found_on, applied_to, acc50,
    acc50_lo, acc50_hi, n_queries. Where a dataset's own images found the heads, each half of the images is served by
    those found on the other half. This reads test images for analysis alone; nothing is chosen by it.
    """
    overlaps, transfers = [], []
    for bench in benches:
        study, lvlm, head_set = bench.study, bench.lvlm, bench.head_set
        settings = (bench.layers["attribution"].to_numpy(), max(study.profile.heads.layers), len(head_set.heads))
        runs = {"train split": bench.run("train")}
        runs |= {f"{dataset.name}, test": study.run(lvlm, dataset, "test") for dataset in study.profile.datasets}
        found = {name: analyses.found_on(run, *settings, head_set.coordinates) for name, run in runs.items()}
        names = list(found)
        for index, a in enumerate(names):
            for b in names[index + 1 :]:
                both = pd.Series(found[a]["auroc"].ravel()).corr(pd.Series(found[b]["auroc"].ravel()), "spearman")
                overlaps.append((lvlm.name, a, b, analyses.jaccard(found[a]["all"], found[b]["all"]), both))
        for dataset in study.profile.datasets:
            own = f"{dataset.name}, test"
            sets: dict[str, Heads | dict[str, Heads]] = {"D_c": head_set.heads}
            sets |= {name: found[name]["crossed"] if name == own else found[name]["all"] for name in names}
            table = analyses.transfer_rows(
                runs[own], study.test_queries(lvlm, dataset, "small"), sets, head_set.coordinates, study.profile.pool,
                _draws(study),
            )  # fmt: skip
            table.insert(1, "applied_to", dataset.name)
            transfers.append(_placed(table, lvlm))
    overlap = pd.DataFrame(overlaps, columns=["lvlm", "a", "b", "jaccard", "spearman"])
    return overlap, pd.concat(transfers, ignore_index=True)


def say_transfer(overlap: pd.DataFrame, transfer: pd.DataFrame) -> Markdown:
    """Overlap of the sets and what each brings on each dataset, from `transfer_tables`."""
    parts = [
        f"{row.lvlm}: {row.a} and {row.b} share {row.jaccard:.0%} of their heads (rank correlation of AUROCs "
        f"{row.spearman:+.2f})"
        for row in overlap.itertuples()
    ]
    for (lvlm, dataset), rows in transfer.groupby(["lvlm", "applied_to"], sort=False):
        told = ", ".join(f"{row.acc50:.1%} (found on {row.found_on})" for row in rows.itertuples())
        parts.append(f"{lvlm} on {dataset}: ACS-Free reaches {told.replace('found on D_c', 'D_c')}")
    return say("test images were read for this analysis and for no choice.", parts)


def size_table(study: Study) -> pd.DataFrame:
    """partial_correlation.csv: small objects of every test split, sampled answers."""
    parts = []
    for lvlm, dataset in study.columns:
        records, entropy = analyses.sampled_answers(study.run(lvlm, dataset, "test"))
        found = analyses.size_effect(records, entropy, study.head_set(lvlm), min(200, _draws(study)))
        parts.append(_placed(found, lvlm, dataset))
    return pd.concat(parts, ignore_index=True)


def say_size(table: pd.DataFrame) -> Markdown:
    """What is left of the correlation of entropy with IoU at equal size, from `size_table`."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        means = rows[rows["heads"] != "one head"]
        told = ", ".join(
            f"from {row.r:+.2f} to {row.partial_r:+.2f} [{row.partial_r_lo:+.2f}, {row.partial_r_hi:+.2f}] "
            f"({row.heads})"
            for row in means.itertuples()
        )
        single = rows[rows["heads"] == "one head"]
        flipped = (np.sign(single["r"]) != np.sign(single["partial_r"])).mean()
        parts.append(f"{lvlm} on {dataset}: it goes {told}, and changes its sign in {flipped:.0%} of the heads")
    return say("correlation of entropy with IoU when log object area and log box area are held fixed:", parts)


# --------------------------------------------------------------------------------------------- ablations and cost


def ablation_table(benches: list[Bench]) -> pd.DataFrame:
    """ablations.csv: every factor of acs_lib.ablations, for every LVLM, on the dataset that it was calibrated on (and
    on the others where a factor says so)."""
    factors = (ablations.stored, ablations.counted, ablations.sampled, ablations.crossed)
    parts = [part(bench) for bench in benches for part in factors]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def say_ablations(table: pd.DataFrame, method: str) -> Markdown:
    """For every LVLM the values with which a method is told apart from itself as the profile has it, by paired
    difference, and the factors without such a value, from `ablation_table`."""
    parts = []
    rows = table[(table["method"] == method) & table["delta"].notna() & (table["factor"] != ablations.STANDARD)]
    for lvlm, found in rows.groupby("lvlm", sort=False):
        changed = found[(found["delta_lo"] != 0) | (found["delta_hi"] != 0)]
        apart = changed[(changed["delta_lo"] > 0) | (changed["delta_hi"] < 0)]
        told = [
            f"{factor}: "
            + ", ".join(
                f"{row.value} {100 * row.delta:+.1f} [{100 * row.delta_lo:+.1f}, {100 * row.delta_hi:+.1f}]"
                for row in values.itertuples()
            )
            for factor, values in apart.groupby("factor", sort=False)
        ]
        quiet = [factor for factor in dict.fromkeys(found["factor"]) if factor not in set(apart["factor"])]
        parts.append(
            f"{lvlm}: {len(apart)} of {len(changed)} changes are told apart from {method} as the profile has it "
            f"(points of Acc@0.5, paired 95 % intervals; by chance alone one in twenty would be)"
            + (": " + "; ".join(told) if told else "")
            + (f". No change is told apart under {', '.join(quiet)}" if quiet else "")
        )
    count = rows["n_queries"].max()
    return say(f"{method}, up to {count} small objects a value.", parts)


def say_rows(benches: list[Bench]) -> Markdown:
    """Which attention rows an LVLM's answers do not have, from acs_lib.ablations.unread_rows."""
    parts = []
    for bench in benches:
        reasons = ablations.unread_rows(bench.run("test").records())
        told = "; ".join(f"'{row}' is left out, since {reason}" for row, reason in reasons.items())
        parts.append(f"{bench.lvlm.name}: " + (told or "every row can be read"))
    return say("rows that can stand for a number:", parts)


def cost_table(study: Study) -> pd.DataFrame:
    """cost.csv: see acs_lib.cost.table."""
    return pd.concat(
        [cost.table(study, lvlm, study.head_set(lvlm).heads) for lvlm in study.profile.lvlms], ignore_index=True
    )


def say_cost(table: pd.DataFrame) -> Markdown:
    """Milliseconds a query by stage, from `cost_table`."""
    parts = []
    for lvlm, rows in table.groupby("lvlm", sort=False):
        told = ", ".join(f"{row.stage} {1000 * row.seconds_per_query:.1f} ms" for row in rows.itertuples())
        parts.append(f"{lvlm}: {told}")
    return say("milliseconds a query with all its answers, on this machine:", parts)
