"""What the notebooks look at: small frames made of runs and choices, and sentences that follow from their numbers."""

import numpy as np
import pandas as pd

from acs_lib.core.candidates import COORDINATES, ENTROPY, STATISTICS
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import RANDOM, accuracy_by_size, main_table, make_choices, make_fusions
from acs_lib.evaluation.bootstrap import correlation_interval, image_counts, paired_difference
from acs_lib.evaluation.confidence import (
    confidence_table,
    reliability,
    risk_coverage_table,
    score_frame,
    within_query_r,
)
from acs_lib.evaluation.mistakes import ranked_right
from acs_lib.evaluation.published import BASELINE_FAMILIES, BEST_BASELINE, main_results
from acs_lib.evaluation.significance import holm, mean_ranks, rank_intervals, same_hits, significance
from acs_lib.method import regressor
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.consensus import FUSIONS
from acs_lib.method.heads import GROUPS, in_group
from acs_lib.method.selection import ALL_HEADS
from acs_lib.runs.store import Run
from acs_lib.study.stages import Study

CONTROLS = 3  # regressors trained on shuffled labels, each with its own seed


def answer_rates(study: Study) -> pd.DataFrame:
    """One row an LVLM, dataset and split: queries, those whose image could not be read, answers to the others, and the
    share of answers that hold a box."""
    table = []
    for lvlm, dataset, split, run in study.runs():
        unanswered, records = run.unanswered(), run.records()
        records = records[~records["query_id"].isin(unanswered)]
        parsed = records["failure"] == ""
        greedy = records["candidate"] == 0
        table.append(
            (
                lvlm,
                dataset,
                split,
                len(run.queries),
                len(unanswered),
                len(records),
                parsed[greedy].mean(),
                parsed.mean(),
            )
        )
    names = ["lvlm", "dataset", "split", "queries", "unanswered", "answers", "greedy_parsed", "all_parsed"]
    return pd.DataFrame(table, columns=names)


def failures(study: Study) -> pd.DataFrame:
    """failures.csv: how many answers of an LVLM on a split have no box, by reason; a split without any has one row
    with 0. What follows a colon in a reason is of one query alone and left out."""
    table = []
    for lvlm, dataset, split, run in study.runs():
        reasons = run.records()["failure"].str.split(":").str[0]
        counts = reasons[reasons != ""].value_counts().sort_index()
        table += [(lvlm, dataset, split, *count) for count in counts.items()] or [(lvlm, dataset, split, "none", 0)]
    return pd.DataFrame(table, columns=["lvlm", "dataset", "split", "failure", "answers"])


def greedy_to_oracle(study: Study) -> pd.DataFrame:
    """Acc@0.5 and mIoU of the greedy answer, the mean sample and the oracle, by size, on every test split."""
    parts = []
    for lvlm, dataset in study.columns:
        run = study.run(lvlm, dataset, "test")
        choices = make_choices(run.candidates(), run.truth, [SELECTORS["greedy"]], study.profile.pool)
        parts.append(
            accuracy_by_size(choices, run.queries, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        )
    return pd.concat(parts, ignore_index=True)


def entropy_by_layer(entropy: np.ndarray, iou: np.ndarray, images: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    """The paper's entropy figure: coordinate, layer, group, mean with its 95 % interval mean_lo and mean_hi, q25, q75,
    n of the entropy averaged over heads.

    entropy [n, 4, layers, heads] in nats, iou [n], images [n] codes 0..m-1; counts [draws, m] how often each draw holds
    each image.
    """
    per_layer = entropy.mean(-1)
    table = []
    for group in GROUPS:
        kept = in_group(iou, group)
        chosen, place = per_layer[kept], images[kept]
        answers = counts @ np.bincount(place, minlength=counts.shape[1])
        for index, coordinate in enumerate(COORDINATES):
            for layer in range(per_layer.shape[2]):
                values = chosen[:, index, layer]
                if len(values):
                    q25, mean, q75 = np.quantile(values, 0.25), values.mean(), np.quantile(values, 0.75)
                    sums = counts @ np.bincount(place, values, minlength=counts.shape[1])
                    lo, hi = np.quantile(sums[answers > 0] / answers[answers > 0], (0.025, 0.975))
                    table.append((coordinate, layer, group, mean, lo, hi, q25, q75, len(values)))
    return pd.DataFrame(
        table, columns=["coordinate", "layer", "group", "mean", "mean_lo", "mean_hi", "q25", "q75", "n"]
    )


def entropy_table(study: Study) -> pd.DataFrame:
    """entropy_by_layer.csv: small objects of every test split, sampled and greedy answers together."""
    parts = []
    for lvlm, dataset in study.columns:
        run = study.run(lvlm, dataset, "test")
        records = run.records()
        image_of = study.test_queries(lvlm, dataset, "small").set_index("query_id")["image_id"]
        kept = ((records["failure"] == "") & records["query_id"].isin(image_of.index)).to_numpy()
        images, names = pd.factorize(records["query_id"][kept].map(image_of))
        counts = image_counts(max(1, len(names)), min(1000, study.profile.bootstrap))
        entropy, iou = run.statistics()[kept][..., ENTROPY], records["iou"].to_numpy()[kept]
        table = entropy_by_layer(entropy, iou, images, counts)
        table.insert(0, "dataset", dataset.name)
        table.insert(0, "lvlm", lvlm.name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def regressor_table(study: Study) -> pd.DataFrame:
    """regressor.csv, small objects: Pearson with its 95 % interval over images, Spearman, MAE, r inside queries and n
    by split, and the mean of CONTROLS controls on shuffled labels, with the standard deviation of their r."""
    table = []
    for lvlm, dataset in study.columns:
        for split in dataset.splits:
            found = small_predictions(study, lvlm, dataset, split)
            images = study.run(lvlm, dataset, split).queries.set_index("query_id")["image_id"]
            interval = correlation_interval(
                found["predicted"].to_numpy(float), found["iou"].to_numpy(float),
                pd.factorize(found["query_id"].map(images))[0], draws=study.profile.bootstrap,
            )  # fmt: skip
            table.append((lvlm.name, dataset.name, split, *_quality(found), *interval, np.nan))
    for lvlm in study.profile.lvlms:
        controls = [
            _quality(small_predictions(study, lvlm, study.train_set, "test", control=seed)) for seed in range(CONTROLS)
        ]
        *scores, n = np.mean(controls, axis=0)
        spread = np.std([pearson for pearson, *_ in controls], ddof=1)
        numbers = (*scores, int(n), np.nan, np.nan, spread)
        table.append((lvlm.name, study.train_set.name, "test, labels shuffled", *numbers))
    names = ["pearson", "spearman", "mae", "within_query_pearson", "n", "pearson_lo", "pearson_hi", "pearson_sd"]
    found = pd.DataFrame(table, columns=["lvlm", "dataset", "split", *names])
    return found[["lvlm", "dataset", "split", "pearson", "pearson_lo", "pearson_hi", *names[1:5], "pearson_sd"]]


def small_predictions(study: Study, lvlm, dataset, split: str, control: int | None = None) -> pd.DataFrame:
    """Study.predictions for small objects alone, which is what the regressor is trained on."""
    queries = study.run(lvlm, dataset, split).queries.set_index("query_id")["size"]
    found = study.predictions(lvlm, dataset, split, control)
    return found[found["query_id"].map(queries) == "small"]


def _quality(predictions: pd.DataFrame) -> tuple:
    scores = regressor.iou_correlation(predictions)
    return (
        *(scores[name] for name in ("pearson", "spearman", "mae")),
        within_query_r(predictions),
        scores["n"],
    )


def comparisons(study: Study, columns: list[tuple]) -> pd.DataFrame:
    """Paired differences of Acc@0.5 that the paper's claims rest on, 95 % bootstrap over images, and Holm's correction
    over the comparisons of a column.

    On small test objects, one on large ones. The best sampling baseline is the one with the highest Acc@0.5 on these
    very objects, as in the paper's table, which favours it.
    """
    pairs = [
        ("ACS-Learned", "greedy", "small"),
        ("ACS-Learned", RANDOM, "small"),
        ("ACS-Learned", published.BEST_BASELINE, "small"),
        ("ACS-Learned", "greedy", "large"),
        ("ACS-Free", "greedy", "small"),
        ("ACS-Free", RANDOM, "small"),
        ("ACS-Free", "entropy, all heads", "small"),
        ("ACS-Free", ALL_HEADS, "small"),
    ]
    table = []
    for size in ("small", "large"):
        for lvlm, dataset, frame, queries in _sized(study, columns, size):
            best = _best_baseline(frame)
            for method, reference, _ in (pair for pair in pairs if pair[2] == size and len(frame)):
                name = best if reference == published.BEST_BASELINE else reference
                found = paired_difference(frame, queries, method, name, draws=study.profile.bootstrap)
                told = f"{reference}: {name}" if reference == published.BEST_BASELINE else reference
                table.append((lvlm.name, dataset.name, size, method, told, *found, len(queries)))
    names = ["lvlm", "dataset", "size", "method", "reference", "delta", "delta_lo", "delta_hi", "p_value", "n_queries"]
    compared = pd.DataFrame(table, columns=names)
    compared["p_holm"] = compared.groupby(["lvlm", "dataset"])["p_value"].transform(holm)
    return compared


def _best_baseline(choices: pd.DataFrame) -> str | None:
    """The likelihood or consensus method with the highest Acc@0.5; None without choices."""
    baselines = choices[choices["family"].isin(published.BASELINE_FAMILIES)]
    return baselines.groupby("method", sort=False)["hit"].mean().idxmax() if len(baselines) else None


def _sized(study: Study, columns: list[tuple], size: str = "small") -> list[tuple]:
    """(lvlm, dataset, choices, queries) of the test objects of a size, of every column (lvlm, dataset, choices)."""
    found = []
    for lvlm, dataset, frame in columns:
        queries = study.test_queries(lvlm, dataset, size)
        found.append((lvlm, dataset, frame[frame["query_id"].isin(queries["query_id"])], queries))
    return found


def significance_table(study: Study, columns: list[tuple]) -> pd.DataFrame:
    """significance.csv: evaluate.significance of every column, small test objects."""
    parts = [
        significance(frame, small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        for lvlm, dataset, frame, small in _sized(study, columns)
    ]
    return pd.concat(parts, ignore_index=True)


def rank_table(study: Study, main: pd.DataFrame, columns: list[tuple]) -> pd.DataFrame:
    """ranks.csv: evaluate.mean_ranks of the main table, with the interval of the mean rank. A method that is not in
    every column (P(True), where one LVLM cannot be asked) has no rank; methods that hit the same queries everywhere
    have one rank together (`same` names the others)."""
    main = main[main.groupby("method")["method"].transform("size") == len(columns)]
    drawn = [(dataset.name, frame, small) for _, dataset, frame, small in _sized(study, columns)]
    first = same_hits(frame[frame["method"].isin(main["method"])] for _, frame, _ in drawn)
    ranks = mean_ranks(main[main["method"].map(first) == main["method"]])
    found = rank_intervals(ranks, drawn, draws=study.profile.bootstrap)
    others = [", ".join(m for m, of in first.items() if of == method != m) for method in found["method"]]
    found.insert(1, "same", others)
    return found


def fusion_table(study: Study) -> pd.DataFrame:
    """The methods whose box is outside the pool against greedy; columns and statistics of main_results.csv."""
    parts = []
    for lvlm, dataset in study.columns:
        run = study.run(lvlm, dataset, "test")
        small = study.test_queries(lvlm, dataset, "small")
        names = set(small["query_id"])
        candidates = [found for found in run.candidates() if found.query_id in names]
        choices = [
            make_choices(candidates, run.truth, [SELECTORS["greedy"]], study.profile.pool),
            make_fusions(candidates, run.truth, FUSIONS.values()),
        ]
        parts.append(
            main_table(pd.concat(choices), small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        )
    return pd.concat(parts, ignore_index=True)


def candidates_sweep(study: Study, lvlm, dataset, methods=("ACS-Free", "ACS-Learned", "sequence log-prob", "medoid")):
    """candidates_sweep.csv: Acc@0.5 on small test objects when only the first N sampled answers are there."""
    run = study.run(lvlm, dataset, "test")
    small = study.test_queries(lvlm, dataset, "small")
    names = set(small["query_id"])
    selectors = [
        selector
        for selector in study.selectors(lvlm, study.predictions(lvlm, dataset, "test"))
        if selector.name in ("greedy", *methods)
    ]
    candidates = [found for found in run.candidates() if found.query_id in names]
    parts = []
    for n in range(1, study.profile.sampling.samples + 1):
        choices = make_choices((found.first(n + 1) for found in candidates), run.truth, selectors, study.profile.pool)
        table = main_table(choices, small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        parts.append(table.assign(n=n))
    kept = ["lvlm", "dataset", "n", "method", "n_queries", "acc50", "acc50_lo", "acc50_hi", "miou"]
    return pd.concat(parts, ignore_index=True)[kept]


def statistics_by_layer(run: Run) -> pd.DataFrame:
    """Layer, the mean of each head statistic over the n answers with a box, coordinates and heads, and n."""
    kept = (run.records()["failure"] == "").to_numpy()
    means = run.statistics()[kept].mean((0, 1, 3))
    return pd.DataFrame(means, columns=list(STATISTICS)).rename_axis("layer").reset_index().assign(n=kept.sum())


def ranked_table(study: Study, lvlm, dataset, kinds: pd.DataFrame) -> pd.DataFrame:
    """ranked_right.csv of one column: mistakes.ranked_right of size, a likelihood, a consensus and the ACS scores."""
    run = study.run(lvlm, dataset, "test")
    names = (
        "box area, small first", "sequence log-prob", "medoid", "entropy, all heads", "ACS-Free", "ACS-Learned",
    )  # fmt: skip
    found = {s.name: s for s in study.selectors(lvlm, study.predictions(lvlm, dataset, "test"))}
    wanted = set(kinds["query_id"])
    table = ranked_right(
        (c for c in run.candidates() if c.query_id in wanted), kinds, [found[name] for name in names],
        dict(zip(run.queries["query_id"], run.queries["image_id"])), draws=study.profile.bootstrap,
    )  # fmt: skip
    table.insert(0, "dataset", dataset.name)
    table.insert(0, "lvlm", lvlm.name)
    return table


SHOWN = ("sequence log-prob", "medoid", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")


DRAWS = 1000  # of the analyses whose draws are costly


def placed(frame: pd.DataFrame, lvlm, dataset=None) -> pd.DataFrame:
    """The frame with leading columns lvlm and, where one is given, dataset."""
    if dataset is not None:
        frame.insert(0, "dataset", dataset.name)
    frame.insert(0, "lvlm", lvlm.name)
    return frame


def costly_draws(study: Study) -> int:
    return min(DRAWS, study.profile.bootstrap)


def confidence_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """confidence.csv and risk_coverage.csv: small objects of every test split, every selector but greedy itself."""
    tables, curves = [], []
    for lvlm, dataset in study.columns:
        run, small = study.run(lvlm, dataset, "test"), study.test_queries(lvlm, dataset, "small")
        selectors = study.selectors(lvlm, study.predictions(lvlm, dataset, "test"), study.asked(lvlm, dataset))
        selectors = [selector for selector in selectors if selector.name != "greedy"]
        images = dict(zip(small["query_id"], small["image_id"]))
        candidates = (c for c in run.candidates(maps=True) if c.query_id in images)
        scores = score_frame(candidates, run.truth, selectors)
        tables.append(placed(confidence_table(scores, selectors, images, study.profile.bootstrap), lvlm, dataset))
        curves.append(placed(risk_coverage_table(scores, SHOWN, images, costly_draws(study)), lvlm, dataset))
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)


def predicted_answers(study: Study) -> pd.DataFrame:
    """lvlm, dataset, image (its id), query_id, candidate, iou, predicted of every answer to small test objects that
    holds a box."""
    parts = []
    for lvlm, dataset in study.columns:
        image_of = study.test_queries(lvlm, dataset, "small").set_index("query_id")["image_id"]
        found = small_predictions(study, lvlm, dataset, "test")
        parts.append(placed(found.assign(image=found["query_id"].map(image_of)), lvlm, dataset))
    return pd.concat(parts, ignore_index=True)


def calibration_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """calibration.csv (bins) and calibration_error.csv (lvlm, dataset, ece, lo, hi, predicted, iou, n): the regressor's
    predicted IoU of all answers to small test objects."""
    bins, errors = [], []
    for column, found in predicted_answers(study).groupby(["lvlm", "dataset"], sort=False):
        predicted, iou = found["predicted"].to_numpy(float), found["iou"].to_numpy(float)
        images = pd.factorize(found["image"])[0]
        frame, error = reliability(predicted, iou, images, study.profile.bootstrap)
        bins.append(frame.assign(lvlm=column[0], dataset=column[1])[["lvlm", "dataset", *frame]])
        errors.append((*column, *error, predicted.mean(), iou.mean(), len(iou)))
    names = ["lvlm", "dataset", "ece", "ece_lo", "ece_hi", "predicted", "iou", "n"]
    return pd.concat(bins, ignore_index=True), pd.DataFrame(errors, columns=names)


def measured_text(rate: float, lo: float, hi: float, n: int) -> str:
    """A rate in 0-1 with its interval as text in %."""
    return f"{100 * rate:.1f} [{100 * lo:.1f}, {100 * hi:.1f}], n = {n}"


def published_and_measured(main_table: pd.DataFrame) -> pd.DataFrame:
    """The paper's table again, with what was measured beside it, one row a published number.

    main_table: rows of `evaluate.main_table`, of any columns of the paper's table, or none
    Returns lvlm, dataset, method, published_acc50 (%), measured_acc50 ('49.1 [45.6, 52.7], n = 816', %, or 'not run'),
    measured_method: for the best sampling baseline the best measured one, by Acc@0.5 of the same column, as in the
    paper; else the method itself, empty where it was not run.
    """
    rows = []
    for cell in main_results().itertuples():
        part = main_table[(main_table["lvlm"] == cell.lvlm) & (main_table["dataset"] == cell.dataset)]
        if cell.method == BEST_BASELINE:
            part = part[part["family"].isin(BASELINE_FAMILIES)].sort_values("acc50", kind="stable").tail(1)
        else:
            part = part[part["method"] == cell.method]
        text, method = "not run", ""
        for row in part.itertuples():
            text, method = measured_text(row.acc50, row.acc50_lo, row.acc50_hi, row.n_queries), row.method
        rows.append((cell.lvlm, cell.dataset, cell.method, round(100 * cell.acc50, 1), text, method))
    names = ["lvlm", "dataset", "method", "published_acc50", "measured_acc50", "measured_method"]
    return pd.DataFrame(rows, columns=names)
