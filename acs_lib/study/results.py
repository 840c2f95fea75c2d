"""The tables of the paper: frames that are functions of experiments (see study.experiment)."""

import numpy as np
import pandas as pd

from acs_lib.core.candidates import COORDINATES, ENTROPY, STATISTICS, Heads
from acs_lib.datasets.splits import other_boxes
from acs_lib.evaluation import confidence, published
from acs_lib.evaluation.accuracy import RANDOM, accuracy_by_size, accuracy_table, make_choices, make_fusions
from acs_lib.evaluation.bootstrap import correlation_interval, image_counts, paired_difference
from acs_lib.evaluation.mistakes import KINDS, makeup, mixed_only, ranked_right
from acs_lib.evaluation.significance import holm, mean_ranks, rank_intervals, same_hits, significance
from acs_lib.method import regressor
from acs_lib.method.baselines import FUSIONS, SELECTORS
from acs_lib.method.heads import IOU_GROUPS, HeadSet, in_group, select_heads
from acs_lib.method.selection import ALL_HEADS, over_heads
from acs_lib.profiles import DatasetSpec, LVLMSpec
from acs_lib.runs.store import Run
from acs_lib.study.experiment import Experiment, stacked
from acs_lib.study.stages import Study

CONTROLS = 3  # regressors trained on shuffled labels, each with its own seed
COMPARED = (  # method, reference, size: what the paper's claims rest on
    ("ACS-Learned", "greedy", "small"),
    ("ACS-Learned", RANDOM, "small"),
    ("ACS-Learned", published.BEST_BASELINE, "small"),
    ("ACS-Free", "greedy", "small"),
    ("ACS-Free", RANDOM, "small"),
    ("ACS-Free", "entropy, all heads", "small"),
    ("ACS-Free", ALL_HEADS, "small"),
    ("ACS-Learned", "greedy", "large"),
)
SWEPT = ("greedy", "ACS-Free", "ACS-Learned", "sequence log-prob", "medoid")
RANKED = ("box area, small first", "sequence log-prob", "medoid", "entropy, all heads", "ACS-Free", "ACS-Learned")
RISKED = ("sequence log-prob", "medoid", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")


def _rates(e: Experiment, choices: pd.DataFrame) -> pd.DataFrame:
    """evaluation.accuracy.accuracy_table of choices on small objects."""
    return accuracy_table(choices, e.small, draws=e.profile.bootstrap)


# -------------------------------------------------------------------------------------------------------- answers


def answer_rates(runs: list[tuple[str, str, str, Run]]) -> pd.DataFrame:
    """One row an LVLM, dataset and split of `Study.runs`: queries, those whose image could not be read, answers to the
    others, and the share of answers that hold a box."""
    table = []
    for lvlm, dataset, split, run in runs:
        unanswered, records = run.unanswered(), run.records()
        records = records[~records["query_id"].isin(unanswered)]
        parsed = records["failure"] == ""
        counts = len(run.queries), len(unanswered), len(records)
        table.append((lvlm, dataset, split, *counts, parsed[records["candidate"] == 0].mean(), parsed.mean()))
    names = ["lvlm", "dataset", "split", "n_queries", "unanswered", "n_answers", "greedy_parsed", "all_parsed"]
    return pd.DataFrame(table, columns=names)


def failures(runs: list[tuple[str, str, str, Run]]) -> pd.DataFrame:
    """failures.csv: how many answers of an LVLM on a split have no box, by reason; a split without any has one row
    with 0. What follows a colon in a reason is of one query alone and left out."""
    table = []
    for lvlm, dataset, split, run in runs:
        reasons = run.records()["failure"].str.split(":").str[0]
        counts = reasons[reasons != ""].value_counts().sort_index()
        table += [(lvlm, dataset, split, *count) for count in counts.items()] or [(lvlm, dataset, split, "none", 0)]
    return pd.DataFrame(table, columns=["lvlm", "dataset", "split", "failure", "n_answers"])


def greedy_to_oracle(experiments: list[Experiment]) -> pd.DataFrame:
    """greedy_to_oracle.csv: Acc@0.5 and mIoU of the greedy answer, the mean sample and the oracle, by size."""

    def rates(e: Experiment) -> pd.DataFrame:
        choices = make_choices(e.run.candidates(), e.run.truth, [SELECTORS["greedy"]], e.profile.pool)
        return accuracy_by_size(choices, e.queries(), e.profile.bootstrap)

    return stacked(experiments, rates)


def statistics_by_layer(run: Run) -> pd.DataFrame:
    """Layer, the mean of each head statistic over the n answers with a box, coordinates and heads, and n."""
    kept = (run.records()["failure"] == "").to_numpy()
    means = run.statistics()[kept].mean((0, 1, 3))
    return pd.DataFrame(means, columns=list(STATISTICS)).rename_axis("layer").reset_index().assign(n=kept.sum())


# ------------------------------------------------------------------------------------------- regressor and entropy


def regressor_table(study: Study) -> pd.DataFrame:
    """regressor.csv, small objects: Pearson with its 95 % interval over images, Spearman, MAE, r inside queries and n
    by split, and the mean of CONTROLS controls on shuffled labels, with the standard deviation of their r."""
    table = []
    for lvlm, dataset in study.columns:
        for split in dataset.splits:
            run = study.run(lvlm, dataset, split)
            found = _of_small(study.predicted(lvlm, run), run)
            images = pd.factorize(found["query_id"].map(run.queries.set_index("query_id")["image_id"]))[0]
            predicted, iou = found["predicted_iou"].to_numpy(float), found["iou"].to_numpy(float)
            ends = correlation_interval(predicted, iou, images, study.profile.bootstrap)
            row = _column(lvlm, dataset) | {"split": split, **_quality(found)}
            table.append(row | dict(zip(("pearson_lo", "pearson_hi"), ends)))
    for lvlm in study.profile.lvlms:
        run = study.run(lvlm, study.train_set, "test")
        models = (study.fit(lvlm, seed, shuffle_labels=True) for seed in range(CONTROLS))
        controls = pd.DataFrame([_quality(_of_small(regressor.predict(model, run), run)) for model in models])
        row = _column(lvlm, study.train_set) | {"split": "test, labels shuffled"}
        row |= {**controls.mean(skipna=False), "n": int(controls["n"].mean())}
        table.append(row | {"pearson_sd": controls["pearson"].std(skipna=False)})
    names = ["pearson", "pearson_lo", "pearson_hi", "spearman", "mae", "within_query_pearson", "n", "pearson_sd"]
    return pd.DataFrame(table)[["lvlm", "dataset", "condition", "split", *names]]


def _column(lvlm: LVLMSpec, dataset: DatasetSpec) -> dict[str, str]:
    return {"lvlm": lvlm.name, "dataset": dataset.name, "condition": lvlm.condition or ""}


def _of_small(predictions: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The rows about small objects, which are what the regressor is trained on."""
    return predictions[predictions["query_id"].map(run.queries.set_index("query_id")["size"]) == "small"]


def _quality(predictions: pd.DataFrame) -> dict[str, float]:
    """`iou_correlation`, and r inside queries."""
    return regressor.iou_correlation(predictions) | {"within_query_pearson": confidence.within_query_r(predictions)}


def predicted_answers(experiments: list[Experiment]) -> pd.DataFrame:
    """lvlm, dataset, image (its id), query_id, candidate, iou, predicted_iou of every answer to small test objects that
    holds a box."""

    def answers(e: Experiment) -> pd.DataFrame:
        found, image_of = _of_small(e.predictions, e.run), e.small.set_index("query_id")["image_id"]
        return found.assign(image=found["query_id"].map(image_of))

    return stacked(experiments, answers)


def reliability_tables(experiments: list[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """reliability.csv (bins) and reliability_error.csv (lvlm, dataset, condition, ece, lo, hi, predicted_iou, iou, n):
    the regressor's predicted IoU of all answers to small test objects."""
    bins, errors = [], []
    for e in experiments:
        found = predicted_answers([e])
        predicted, iou = found["predicted_iou"].to_numpy(float), found["iou"].to_numpy(float)
        frame, error = confidence.reliability(predicted, iou, pd.factorize(found["image"])[0], e.profile.bootstrap)
        bins.append(e.labelled(frame))
        errors.append((*_column(e.lvlm, e.dataset).values(), *error, predicted.mean(), iou.mean(), len(iou)))
    names = ["lvlm", "dataset", "condition", "ece", "ece_lo", "ece_hi", "predicted_iou", "iou", "n"]
    return pd.concat(bins, ignore_index=True), pd.DataFrame(errors, columns=names)


def head_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame, list]:
    """layers.csv, heads.csv and the D_c of every LVLM (see study.stages.HeadFinding)."""
    found = [study.find_heads(lvlm) for lvlm in study.profile.lvlms]
    layers, heads = (pd.concat(parts, ignore_index=True) for parts in zip(*((f.layers, f.heads) for f in found)))
    return layers, heads, [finding.head_set for finding in found]


def unfiltered(head_set: HeadSet, table: pd.DataFrame) -> list[Heads]:
    """The sets of as many heads that D_c could be without the paper's filter by layer: the best of all layers by AUROC
    over all answers, and inside queries. table: the heads of `head_tables`."""
    rows = table[table["lvlm"] == head_set.lvlm]
    found = [rows.pivot(index="layer", columns="head", values=name) for name in ("auroc", "auroc_within_query")]
    return [select_heads(np.zeros(len(s)), s.to_numpy(), len(s), len(head_set.heads)) for s in found]


def entropy_table(experiments: list[Experiment]) -> pd.DataFrame:
    """entropy_by_layer.csv: small objects of every test split, sampled and greedy answers together."""
    return stacked(experiments, lambda e: entropy_by_layer(*_entropy_of_small(e)))


def head_entropy_table(experiments: list[Experiment]) -> pd.DataFrame:
    """entropy_by_head.csv: the same answers' entropy in the heads of D_c alone."""
    return stacked(experiments, lambda e: entropy_by_head(*_entropy_of_small(e), e.head_set))


def _entropy_of_small(e: Experiment) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """entropy [n, 4, layers, heads], iou [n], images [n] and counts [draws, m], as `entropy_by_layer` takes them."""
    records, image_of = e.run.records(), e.small.set_index("query_id")["image_id"]
    kept = ((records["failure"] == "") & records["query_id"].isin(image_of.index)).to_numpy()
    images, names = pd.factorize(records["query_id"][kept].map(image_of))
    counts = image_counts(max(1, len(names)), e.profile.costly_draws)
    return e.run.statistics()[kept][..., ENTROPY], records["iou"].to_numpy()[kept], images, counts


def entropy_by_layer(entropy: np.ndarray, iou: np.ndarray, images: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    """The paper's entropy figure: coordinate, layer, group, mean with its 95 % interval mean_lo and mean_hi, q25, q75,
    n of the entropy averaged over heads.

    entropy [n, 4, layers, heads] in nats, iou [n], images [n] codes 0..m-1; counts [draws, m] how often each draw holds
    each image.
    """
    layers = entropy.shape[2]
    found = _by_group(entropy.mean(-1).reshape(len(entropy), -1), iou, images, counts)
    found.insert(0, "coordinate", [COORDINATES[place // layers] for place in found["place"]])
    found.insert(1, "layer", found.pop("place") % layers)
    return found


def entropy_by_head(
    entropy: np.ndarray, iou: np.ndarray, images: np.ndarray, counts: np.ndarray, head_set: HeadSet
) -> pd.DataFrame:
    """heads, group and the statistics of `entropy_by_layer`, of the entropy of each head of D_c ('3, 5': layer and
    head) at D_c's coordinates, and of their mean, which is R."""
    sets = {f"{layer}, {head}": ((layer, head),) for layer, head in head_set.heads} | {"R": head_set.heads}
    values = [over_heads(entropy, heads, head_set.coordinates) for heads in sets.values()]
    found, names = _by_group(np.column_stack(values), iou, images, counts), list(sets)
    found.insert(0, "heads", [names[place] for place in found.pop("place")])
    return found


def _by_group(values: np.ndarray, iou: np.ndarray, images: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    """place (column of values [n, k]), group, mean with its interval, quartiles and n, group after group."""
    table = []
    for group in IOU_GROUPS:
        kept = in_group(iou, group)
        chosen, image = values[kept], images[kept]
        answers = counts @ np.bincount(image, minlength=counts.shape[1])
        for place, column in enumerate(chosen.T if len(chosen) else ()):
            sums = counts @ np.bincount(image, column, minlength=counts.shape[1])
            lo, hi = np.quantile(sums[answers > 0] / answers[answers > 0], (0.025, 0.975))
            ends = np.quantile(column, (0.25, 0.75))
            table.append((place, group, column.mean(), lo, hi, *ends, len(column)))
    names = ["place", "group", "mean", "mean_lo", "mean_hi", "q25", "q75", "n"]
    return pd.DataFrame(table, columns=names)


# ----------------------------------------------------------------------------------------------------- main table


def main_results(experiments: list[Experiment]) -> pd.DataFrame:
    """main_results.csv: every method on the small objects of every test split."""
    return published.beside(stacked(experiments, lambda e: _rates(e, e.choices_on("small"))))


def by_size(experiments: list[Experiment]) -> pd.DataFrame:
    """by_size.csv: every method, by object size."""
    return stacked(experiments, lambda e: accuracy_by_size(e.choices, e.queries(), e.profile.bootstrap))


def comparisons(experiments: list[Experiment]) -> pd.DataFrame:
    """Paired differences of Acc@0.5 that the paper's claims rest on, 95 % bootstrap over images, and Holm's correction
    over the comparisons of a column.

    On small test objects, one on large ones. The best sampling baseline is the one with the highest Acc@0.5 on these
    very objects, as in the paper's table, which favours it.
    """

    def compared(e: Experiment) -> pd.DataFrame:
        table = []
        for method, reference, size in COMPARED:
            choices, queries = e.choices_on(size), e.queries(size)
            if queries.empty:
                continue
            told = name = reference
            if reference == published.BEST_BASELINE:
                baselines = choices[choices["family"].isin(published.BASELINE_FAMILIES)]
                name = baselines.groupby("method", sort=False)["hit"].mean().idxmax()
                told = f"{reference}: {name}"
            found = paired_difference(choices, queries, method, name, e.profile.bootstrap)
            table.append((size, method, told, *found, len(queries)))
        names = ["size", "method", "reference", "delta", "delta_lo", "delta_hi", "p_value", "n_queries"]
        compared = pd.DataFrame(table, columns=names)
        return compared.assign(p_holm=holm(compared["p_value"]))

    return stacked(experiments, compared)


def significance_table(experiments: list[Experiment]) -> pd.DataFrame:
    """significance.csv: evaluation.significance of every column, small test objects."""
    return stacked(experiments, lambda e: significance(e.choices_on("small"), e.small, e.profile.bootstrap))


def rank_table(experiments: list[Experiment], main: pd.DataFrame) -> pd.DataFrame:
    """ranks.csv: mean ranks of the methods in main_results.csv, with their intervals, over the columns of each
    condition. A method that is not in every column (P(True), where one LVLM cannot be asked) has no rank; methods that
    hit the same queries everywhere have one rank together (`same` names the others)."""
    parts = []
    for condition in dict.fromkeys(e.lvlm.condition or "" for e in experiments):
        alike = [e for e in experiments if (e.lvlm.condition or "") == condition]
        ranks = _ranks(alike, main[main["lvlm"].isin([e.lvlm.name for e in alike])])
        ranks.insert(0, "condition", condition)
        parts.append(ranks)
    return pd.concat(parts, ignore_index=True)


def _ranks(experiments: list[Experiment], main: pd.DataFrame) -> pd.DataFrame:
    main = main[main.groupby("method")["method"].transform("size") == len(experiments)]
    columns = [(e.dataset.name, e.choices_on("small"), e.small) for e in experiments]
    first = same_hits(frame[frame["method"].isin(main["method"])] for _, frame, _ in columns)
    ranks = mean_ranks(main[main["method"].map(first) == main["method"]])
    found = rank_intervals(ranks, columns, draws=experiments[0].profile.bootstrap)
    others = [", ".join(m for m, of in first.items() if of == method != m) for method in found["method"]]
    found.insert(1, "same", others)
    return found


def fusion_table(experiments: list[Experiment]) -> pd.DataFrame:
    """The methods whose box is outside the pool against greedy; columns and statistics of main_results.csv."""

    def rates(e: Experiment) -> pd.DataFrame:
        fused = make_fusions(e.candidates(), e.run.truth, FUSIONS.values())
        return _rates(e, pd.concat([e.choose(["greedy"], e.small), fused]))

    return published.beside(stacked(experiments, rates))


def candidates_sweep(experiments: list[Experiment]) -> pd.DataFrame:
    """candidates_sweep.csv: Acc@0.5 on small test objects when only the first n_samples sampled answers are there."""

    def rates(e: Experiment) -> pd.DataFrame:
        candidates, selectors, parts = list(e.candidates()), [e.selectors[name] for name in SWEPT], []
        for n in range(1, e.profile.sampling.samples + 1):
            first = (found.first(n + 1) for found in candidates)
            parts.append(_rates(e, make_choices(first, e.run.truth, selectors, e.profile.pool)).assign(n_samples=n))
        kept = ["n_samples", "method", "n_queries", "acc50", "acc50_lo", "acc50_hi", "miou"]
        return pd.concat(parts)[kept]

    return stacked(experiments, rates)


# ------------------------------------------------------------------------------------------ mistakes and confidence


def kind_table(e: Experiment) -> pd.DataFrame:
    """Kind of mistake (see evaluation.mistakes.makeup) of every sampled answer to a small test object."""
    return makeup(e.candidates(), e.run.truth, other_boxes(e.profile, e.dataset, "test", e.small))


def kind_shares(experiments: list[Experiment]) -> pd.DataFrame:
    """mistakes.csv: the shares of evaluation.mistakes.KINDS among the sampled answers, to all queries for small objects
    and to the mixed ones."""

    def shares(e: Experiment) -> pd.DataFrame:
        kinds, table = kind_table(e), []
        for queries, part in (("all", kinds), ("mixed", mixed_only(kinds))):
            found = part["kind"].value_counts(normalize=True).reindex(KINDS, fill_value=0.0)
            table.append((queries, part["query_id"].nunique(), *found))
        return pd.DataFrame(table, columns=["queries", "n_queries", *KINDS])

    return stacked(experiments, shares)


def ranked_table(experiments: list[Experiment]) -> pd.DataFrame:
    """ranked_right.csv: evaluation.mistakes.ranked_right of size, a likelihood, a consensus and the ACS scores."""

    def ranked(e: Experiment) -> pd.DataFrame:
        images = dict(zip(e.run.queries["query_id"], e.run.queries["image_id"]))
        scores = [e.selectors[name] for name in RANKED]
        return ranked_right(e.candidates(), kind_table(e), scores, images, draws=e.profile.bootstrap)

    return stacked(experiments, ranked)


def confidence_tables(experiments: list[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """confidence.csv and risk_coverage.csv: small objects of every test split, every selector but greedy itself."""
    tables, curves = [], []
    for e in experiments:
        selectors = [selector for name, selector in e.selectors.items() if name != "greedy"]
        images = dict(zip(e.small["query_id"], e.small["image_id"]))
        scores = confidence.score_frame(e.candidates(maps=True), e.run.truth, selectors)
        tables.append(e.labelled(confidence.confidence_table(scores, selectors, images, e.profile.bootstrap)))
        curves.append(e.labelled(confidence.risk_coverage_table(scores, RISKED, images, e.profile.costly_draws)))
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)
