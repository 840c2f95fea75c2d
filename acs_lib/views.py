"""What the notebooks look at: small frames made of runs and choices, and sentences that follow from their numbers."""

import base64
import io
import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
from IPython.display import Markdown
from PIL import Image

from acs_lib import boxes as bx
from acs_lib import designs, evaluate, paths, published, regressor
from acs_lib.candidates import COORDINATES, STATISTICS, Candidates
from acs_lib.confidence import image_counts
from acs_lib.heads import ENTROPY, GROUPS, HeadSet, entropy_by_layer, mean_share
from acs_lib.mistakes import KINDS, ranked_right
from acs_lib.report import figures
from acs_lib.selectors import ALL_HEADS, FUSIONS, SELECTORS
from acs_lib.store import BOX, Run
from acs_lib.study import Study

POINTS = "percentage points"
LEVEL = 0.05  # of significance, after Holm's correction
CONTROLS = 3  # regressors trained on shuffled labels, each with its own seed


def say(text: str, points: Iterable[str] = ()) -> Markdown:
    """A takeaway, shown as text, and its points as a list below."""
    return Markdown(f"**Takeaway.** {text[:1].upper()}{text[1:]}" + "".join(f"\n- {point}" for point in points))


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


def answers_of(run: Run, query_id: str) -> pd.DataFrame:
    """The answers to one query: candidate (0 is greedy), text, IoU and the log-probability of the numbers."""
    records = run.records()
    records = records[records["query_id"] == query_id].copy()
    records["logprob"] = [
        logprobs[tokens].sum() if len(tokens) else np.nan
        for logprobs, tokens in zip(records["logprobs"], records["coordinate_tokens"])
    ]
    return records[["candidate", "text", "iou", "logprob", "failure"]].reset_index(drop=True)


def image_of(run: Run, query_id: str) -> tuple[Image.Image, np.ndarray]:
    """The image of a query and its ground truth box [4]."""
    query = run.queries.set_index("query_id").loc[query_id]
    with Image.open(query["image"]) as image:
        return image.convert("RGB"), run.truth[query_id]


def room_to_choose(study: Study) -> pd.DataFrame:
    """Acc@0.5 and mIoU of the greedy answer, the mean sample and the oracle, by size, on every test split."""
    parts = []
    for lvlm, dataset in study.columns:
        run = study.run(lvlm, dataset, "test")
        choices = evaluate.chosen(run.candidates(), run.truth, [SELECTORS["greedy"]], study.profile.pool)
        parts.append(
            evaluate.accuracy_by_size(
                choices, run.queries, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap
            )
        )
    return pd.concat(parts, ignore_index=True)


def say_room(room: pd.DataFrame) -> Markdown:
    """Greedy, random and oracle Acc@0.5 on small objects, from `room_to_choose`."""
    small = room[room["size"] == "small"].pivot(index=["lvlm", "dataset"], columns="method", values="acc50")
    parts = [
        f"{lvlm} on {dataset}: greedy finds {row['greedy']:.1%} of the small objects, a random sample "
        f"{row[evaluate.RANDOM]:.1%}, and the best of the samples {row[evaluate.ORACLE]:.1%}"
        for (lvlm, dataset), row in small.iterrows()
    ]
    return say("the room between greedy and oracle is what a selector can win.", parts)


def mixed_query(run: Run, size: str = "small") -> str:
    """A query of that size for illustration: the one with the largest spread of IoU among its sampled answers.

    ValueError where no query of that size has two sampled answers with a box.
    """
    queries = run.queries.set_index("query_id")["size"]
    sampled = run.records().query("candidate > 0 and failure == ''")
    spread = sampled[sampled["query_id"].map(queries) == size].groupby("query_id")["iou"].std().dropna()
    if spread.empty:
        raise ValueError(f"no {size} object has two sampled answers with a box; ask for more queries (--limit)")
    return spread.idxmax()


def candidates_of(run: Run, query_id: str) -> Candidates:
    """The candidates of one query, with their maps."""
    return next(found for found in run.candidates(maps=True) if found.query_id == query_id)


def good_and_bad(candidates: Candidates, truth: np.ndarray) -> tuple[int, int]:
    """Rows of the sampled candidates with the highest and the lowest IoU."""
    iou = np.where(candidates.parsed, bx.iou(candidates.boxes, truth), np.nan)
    iou[0] = np.nan
    return int(np.nanargmax(iou)), int(np.nanargmin(iou))


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


def say_entropy(table: pd.DataFrame) -> Markdown:
    """Where mean entropy is lower for good boxes than for misses, from `entropy_table`."""
    parts = [f"{lvlm} on {dataset}: {share:.0%}" for (lvlm, dataset), share in lower_for_good(table).items()]
    return say("mean entropy is lower for good boxes than for misses in this share of layers and coordinates:", parts)


def lower_for_good(table: pd.DataFrame) -> pd.Series:
    """By (lvlm, dataset): the share (0-1) of layer and coordinate pairs in which good boxes have a lower mean entropy
    than misses, from `entropy_table`; NaN where there are none of a kind."""
    wide = table.pivot(index=["lvlm", "dataset", "coordinate", "layer"], columns="group", values="mean")
    good, _, miss = (wide.get(group, pd.Series(np.nan, wide.index)) for group in GROUPS)
    lower = (good < miss).astype(float).where(good.notna() & miss.notna())
    return lower.groupby(level=["lvlm", "dataset"], sort=False).mean()


def regressor_table(study: Study) -> pd.DataFrame:
    """regressor.csv, small objects: Pearson with its 95 % interval over images, Spearman, MAE, r inside queries and n
    by split, and the mean of CONTROLS controls on shuffled labels, with the standard deviation of their r."""
    table = []
    for lvlm, dataset in study.columns:
        for split in dataset.splits:
            found = small_predictions(study, lvlm, dataset, split)
            images = study.run(lvlm, dataset, split).queries.set_index("query_id")["image_id"]
            interval = evaluate.correlation_interval(
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
    scores = regressor.quality(predictions)
    return (
        *(scores[name] for name in ("pearson", "spearman", "mae")),
        regressor.within_query_r(predictions),
        scores["n"],
    )


def say_regressor(table: pd.DataFrame, bound: float = published.REGRESSOR_PEARSON) -> Markdown:
    """Held-out r of every column against the published bound."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("split")
        test = rows.loc["test"]
        text = f"{lvlm} on unseen images of {dataset}: r = {test['pearson']:.3f} {_interval(test)}"
        if "test, labels shuffled" in rows.index:
            control = rows.loc["test, labels shuffled"]
            text += (
                f", with shuffled labels {control['pearson']:.3f} (mean of {CONTROLS}, SD {control['pearson_sd']:.3f})"
            )
        parts.append(text)
    test = table[table["split"] == "test"]
    above = (test["pearson"] > bound).all()
    sure = (test["pearson_lo"] > bound).sum()
    return say(
        f"the paper states r > {bound}; {'so it is here' if above else 'not everywhere here'}, with the whole interval "
        f"above it in {sure} of {len(test)} columns.",
        parts,
    )


def _interval(row) -> str:
    """[lo, hi] of Pearson's r."""
    return f"[{row['pearson_lo']:.3f}, {row['pearson_hi']:.3f}]"


def say_heads(head_sets: list[HeadSet], table: pd.DataFrame) -> Markdown:
    """Each LVLM's D_c and how well its heads separate, from `Study.head_tables`."""
    parts = []
    for head_set in head_sets:
        chosen = table[table["selected"] & (table["lvlm"] == head_set.lvlm)]
        names = ", ".join(f"({layer}, {head})" for layer, head in head_set.heads)
        parts.append(
            f"{head_set.lvlm}: D_c is {{{names}}} as (layer, head), counted from 0, read at "
            f"{', '.join(COORDINATES[index] for index in head_set.coordinates)}; their entropy tells good boxes from "
            f"misses with AUROC {chosen['auroc'].min():.2f} to {chosen['auroc'].max():.2f} over all answers, and "
            f"{chosen['auroc_within_query'].min():.2f} to {chosen['auroc_within_query'].max():.2f} inside queries"
        )
    few = ", ".join(str(len(head_set.heads)) for head_set in head_sets)
    return say(f"heads in D_c, as the validation split chose them: {few}.", parts)


def comparisons(study: Study, columns: list[tuple]) -> pd.DataFrame:
    """Paired differences of Acc@0.5 that the paper's claims rest on, 95 % bootstrap over images, and Holm's correction
    over the comparisons of a column.

    On small test objects, one on large ones. The best sampling baseline is the one with the highest Acc@0.5 on these
    very objects, as in the paper's table, which favours it.
    """
    pairs = [
        ("ACS-Learned", "greedy", "small"),
        ("ACS-Learned", evaluate.RANDOM, "small"),
        ("ACS-Learned", published.BEST_BASELINE, "small"),
        ("ACS-Learned", "greedy", "large"),
        ("ACS-Free", "greedy", "small"),
        ("ACS-Free", evaluate.RANDOM, "small"),
        ("ACS-Free", "entropy, all heads", "small"),
        ("ACS-Free", ALL_HEADS, "small"),
    ]
    table = []
    for size in ("small", "large"):
        for lvlm, dataset, frame, queries in _sized(study, columns, size):
            best = _best_baseline(frame)
            for method, reference, _ in (pair for pair in pairs if pair[2] == size and len(frame)):
                name = best if reference == published.BEST_BASELINE else reference
                found = evaluate.paired_difference(frame, queries, method, name, draws=study.profile.bootstrap)
                told = f"{reference}: {name}" if reference == published.BEST_BASELINE else reference
                table.append((lvlm.name, dataset.name, size, method, told, *found, len(queries)))
    names = ["lvlm", "dataset", "size", "method", "reference", "delta", "delta_lo", "delta_hi", "p_value", "n_queries"]
    compared = pd.DataFrame(table, columns=names)
    compared["p_holm"] = compared.groupby(["lvlm", "dataset"])["p_value"].transform(evaluate.holm)
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
        evaluate.significance(frame, small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        for lvlm, dataset, frame, small in _sized(study, columns)
    ]
    return pd.concat(parts, ignore_index=True)


def say_significance(table: pd.DataFrame, level: float = LEVEL) -> Markdown:
    """Which methods differ from greedy by both tests after Holm's correction, from `significance_table`."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        sure = rows[rows[["p_bootstrap_holm", "p_mcnemar_holm"]].max(axis=1) < level]
        above, below = (list(sure.loc[sign * sure["delta_vs_greedy"] > 0, "method"]) for sign in (1, -1))
        parts.append(f"{lvlm} on {dataset}: above {', '.join(above) or 'none'}; below {', '.join(below) or 'none'}")
    return say(
        f"told apart from greedy by the paired bootstrap and by McNemar's test, both p < {level} after Holm's "
        "correction over the methods of a column:",
        parts,
    )


def rank_table(study: Study, main: pd.DataFrame, columns: list[tuple]) -> pd.DataFrame:
    """ranks.csv: evaluate.mean_ranks of the main table, with the interval of the mean rank. A method that is not in
    every column (P(True), where one LVLM cannot be asked) has no rank; methods that hit the same queries everywhere
    have one rank together (`same` names the others)."""
    main = main[main.groupby("method")["method"].transform("size") == len(columns)]
    drawn = [(dataset.name, frame, small) for _, dataset, frame, small in _sized(study, columns)]
    first = evaluate.same_hits(frame[frame["method"].isin(main["method"])] for _, frame, _ in drawn)
    ranks = evaluate.mean_ranks(main[main["method"].map(first) == main["method"]])
    found = evaluate.rank_intervals(ranks, drawn, draws=study.profile.bootstrap)
    others = [", ".join(m for m, of in first.items() if of == method != m) for method in found["method"]]
    found.insert(1, "same", others)
    return found


def say_ranks(ranks: pd.DataFrame, method: str = "ACS-Free") -> Markdown:
    """Where a method stands among those without training, from `rank_table`."""
    row = ranks.set_index("method").loc[method]
    best = ranks.iloc[0]
    same = [f"{row.method} hits the same queries as {row.same}: one rank" for row in ranks.itertuples() if row.same]
    return say(
        f"{method} has a mean rank of {row['mean_rank']:.1f} [{row['mean_rank_lo']:.1f}, {row['mean_rank_hi']:.1f}] "
        f"among {len(ranks)} methods without training; the best is {best['method']} with {best['mean_rank']:.1f} "
        f"[{best['mean_rank_lo']:.1f}, {best['mean_rank_hi']:.1f}].",
        same,
    )


def say_seeds(spread: pd.DataFrame) -> Markdown:
    """Spread of Acc@0.5 over the seeds, from `seeds.spread`."""
    parts = []
    for (lvlm, dataset, source), rows in spread.groupby(["lvlm", "dataset", "source"], sort=False):
        text = "; ".join(
            f"{row.method} {100 * row.acc50_lowest:.1f} to {100 * row.acc50_highest:.1f}"
            for row in rows.itertuples()
            if row.method in ("greedy", "ACS-Free", "ACS-Learned")
        )
        r = rows.loc[rows["method"] == "ACS-Learned"].iloc[0]
        parts.append(
            f"{lvlm} on {dataset}, {r['seeds']} seeds of {source}: {text}; "
            f"r {r['pearson_lowest']:.3f} to {r['pearson_highest']:.3f}"
        )
    return say("lowest and highest Acc@0.5 in % over the seeds:" if parts else "this profile names no seeds.", parts)


def fusion_table(study: Study) -> pd.DataFrame:
    """The methods whose box is outside the pool against greedy; columns and statistics of main_results.csv."""
    parts = []
    for lvlm, dataset in study.columns:
        run = study.run(lvlm, dataset, "test")
        small = study.test_queries(lvlm, dataset, "small")
        names = set(small["query_id"])
        candidates = [found for found in run.candidates() if found.query_id in names]
        choices = [
            evaluate.chosen(candidates, run.truth, [SELECTORS["greedy"]], study.profile.pool),
            evaluate.fused(candidates, run.truth, FUSIONS.values()),
        ]
        parts.append(
            evaluate.main_table(
                pd.concat(choices), small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap
            )
        )
    return pd.concat(parts, ignore_index=True)


def say_fusions(table: pd.DataFrame) -> Markdown:
    """The best fusion of every column against greedy, from `fusion_table`."""
    parts = []
    for (lvlm, dataset), rows in table[table["family"] == "fusion"].groupby(["lvlm", "dataset"], sort=False):
        best = rows.loc[rows["acc50"].idxmax()]
        parts.append(
            f"{lvlm} on {dataset}: {best['method']} {100 * best['delta_vs_greedy']:+.1f} (p = {best['p_value']:.3f})"
        )
    return say(f"the best fusion against greedy decoding, in {POINTS} of Acc@0.5:", parts)


def say_sweep(table: pd.DataFrame, method: str = "ACS-Learned") -> Markdown:
    """What more samples bring a method, from `candidates_sweep`."""
    parts = []
    for (lvlm, dataset), rows in table[table["method"] == method].groupby(["lvlm", "dataset"], sort=False):
        acc = rows.set_index("n")["acc50"]
        told = ", ".join(f"{acc[n]:.1%} with {n}" for n in sorted({1, max(acc.index) // 2, max(acc.index)}) if n in acc)
        parts.append(f"{lvlm} on {dataset}: {told}")
    return say(f"Acc@0.5 of {method} by the number of samples:", parts)


def say_comparisons(table: pd.DataFrame, method: str) -> Markdown:
    """One method against its references, from `comparisons`; told apart where the interval leaves out zero."""
    parts = []
    for row in table[table["method"] == method].itertuples():
        verdict = "above" if row.delta_lo > 0 else "below" if row.delta_hi < 0 else "not told apart from"
        parts.append(
            f"{row.lvlm} on {row.dataset}, {row.size} objects: {verdict} {row.reference} ({100 * row.delta:+.1f} "
            f"[{100 * row.delta_lo:+.1f}, {100 * row.delta_hi:+.1f}])"
        )
    return say(f"{method} against its references, in {POINTS} of Acc@0.5 with 95 % intervals:", parts)


def planted(study: Study) -> str:
    """What has to be said of a report on embedded LVLMs: that their mistakes are planted, and what choosing brings
    without them (from the log of designs). '' for other LVLMs."""
    names = [lvlm.name for lvlm in study.profile.lvlms if paths.EMBEDDED in (paths.ROOT / lvlm.source).parents]
    if not names:
        return ""
    log, sampling = designs.log(), study.profile.sampling
    own = (log["temperature"] == sampling.temperature) & (log["top_p"] == sampling.top_p)
    rows = log[(log["design"] == "no habit") & log["lvlm"].isin(names) & own]
    gains = ", ".join(
        f"{100 * row.learned_vs_greedy:+.1f} [{100 * row.learned_vs_greedy_lo:+.1f}, "
        f"{100 * row.learned_vs_greedy_hi:+.1f}] points with {row.lvlm}"
        for row in rows.itertuples()
    )
    return (
        "The embedded LVLMs miss more small objects than they need, for they were taught a habit on purpose: they "
        "answer many questions about rare small categories with a well-known look-alike"
        + (f". Without it, ACS-Learned against greedy decoding brings {gains} (designs)." if gains else ".")
    )


def outcome_cases(study: Study, lvlm, dataset, choices: pd.DataFrame, outcome: str, count: int) -> list[dict]:
    """Small test objects that ACS-Learned 'gained', 'lost' or left 'unchanged' against greedy, the largest change of
    IoU first; keys as report.figures.qualitative takes them."""
    run = study.run(lvlm, dataset, "test")
    small = set(study.test_queries(lvlm, dataset, "small")["query_id"])
    wide = choices[choices["query_id"].isin(small)].pivot(
        index="query_id", columns="method", values=["iou", "candidate"]
    )
    change = wide["iou"]["ACS-Learned"] - wide["iou"]["greedy"]
    hit = evaluate.hits(wide["iou"]["ACS-Learned"]) - evaluate.hits(wide["iou"]["greedy"])
    chosen = {"gained": hit > 0, "lost": hit < 0, "unchanged": hit == 0}[outcome]
    order = change[chosen].abs().sort_values(ascending=False, kind="stable").index[:count]
    records = run.records().set_index(["query_id", "candidate"])
    cases = []
    for query_id in order:
        image, truth = image_of(run, query_id)
        pick = int(wide["candidate"]["ACS-Learned"][query_id])
        cases.append(
            {
                "query_id": query_id,
                "image": image,
                "category": run.queries.set_index("query_id").loc[query_id, "category"],
                "truth": truth,
                "greedy": records.loc[(query_id, 0), BOX].to_numpy(float),
                "chosen": records.loc[(query_id, pick), BOX].to_numpy(float),
                "greedy_iou": wide["iou"]["greedy"][query_id],
                "chosen_iou": wide["iou"]["ACS-Learned"][query_id],
                "candidate": pick,
            }
        )
    return cases


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
        choices = evaluate.chosen(
            (found.first(n + 1) for found in candidates), run.truth, selectors, study.profile.pool
        )
        table = evaluate.main_table(choices, small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        parts.append(table.assign(n=n))
    kept = ["lvlm", "dataset", "n", "method", "n_queries", "acc50", "acc50_lo", "acc50_hi", "miou"]
    return pd.concat(parts, ignore_index=True)[kept]


def write_browser(study: Study, lvlm, dataset, choices: pd.DataFrame, each: int = 12) -> None:
    """reports/<profile>/browser.json: test queries for the page's browser, gained, lost and unchanged ones; the
    overlay is the selected box's attention in D_c."""
    run = study.run(lvlm, dataset, "test")
    predicted = study.predictions(lvlm, dataset, "test").set_index(["query_id", "candidate"])["predicted"]
    cases = {
        case["query_id"]: (outcome, case)
        for outcome in ("gained", "lost", "unchanged")
        for case in outcome_cases(study, lvlm, dataset, choices, outcome, each)
    }
    heads = study.head_set(lvlm).heads
    overlays = {
        found.query_id: figures.heat_image(mean_share(found.maps[[cases[found.query_id][1]["candidate"]]], heads))
        for found in run.candidates(maps=True)
        if found.query_id in cases
    }
    answers = run.records()
    entries = []
    for query_id, (outcome, case) in cases.items():
        records = answers[(answers["query_id"] == query_id) & (answers["failure"] == "")]
        rows = [
            {
                "number": int(row["candidate"]),
                "box": row[BOX].tolist(),
                "iou": row["iou"],
                "score": float(predicted[(query_id, row["candidate"])]),
            }
            for _, row in records.iterrows()
        ]
        entries.append(
            {
                "id": query_id,
                "of": f"{lvlm.name} on {dataset.name}",
                "category": case["category"],
                "image": _data_url(case["image"]),
                "overlay": _data_url(overlays[query_id]),
                "width": case["image"].width,
                "height": case["image"].height,
                "truth": case["truth"].tolist(),
                "greedy": {"box": _finite(case["greedy"]), "iou": case["greedy_iou"]},
                "chosen": {
                    "box": _finite(case["chosen"]),
                    "iou": case["chosen_iou"],
                    "score": float(predicted.get((query_id, case["candidate"]), np.nan)),
                },
                "candidates": rows,
                "outcome": outcome,
            }
        )
    paths.write_text(paths.reports(study.profile.name) / "browser.json", json.dumps(entries))


def _finite(box: np.ndarray) -> list[float] | None:
    return box.tolist() if np.isfinite(box).all() else None


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def statistics_by_layer(run: Run) -> pd.DataFrame:
    """Layer, the mean of each head statistic over the n answers with a box, coordinates and heads, and n."""
    kept = (run.records()["failure"] == "").to_numpy()
    means = run.statistics()[kept].mean((0, 1, 3))
    return pd.DataFrame(means, columns=list(STATISTICS)).rename_axis("layer").reset_index().assign(n=kept.sum())


def say_statistics(table: pd.DataFrame, shape: tuple[int, ...]) -> Markdown:
    """The sharpest and the most diffuse layer, from `statistics_by_layer`; shape ends in h, w."""
    sharpest, widest = table.loc[table["entropy"].idxmin()], table.loc[table["entropy"].idxmax()]
    return say(
        f"an even map of {shape[-2]} x {shape[-1]} tokens has an entropy of {np.log(shape[-2] * shape[-1]):.2f} nats; "
        f"layer {sharpest['layer']:.0f} is the sharpest with {sharpest['entropy']:.2f} on average, "
        f"layer {widest['layer']:.0f} the most diffuse with {widest['entropy']:.2f}. "
        f"The coordinate tokens spend {table['mass'].min():.0%} to "
        f"{table['mass'].max():.0%} of their attention on the image."
    )


def scored(candidates: Candidates, selector, truth: np.ndarray) -> pd.DataFrame:
    """The sampled candidates of one query, best score first: candidate, score, IoU."""
    table = pd.DataFrame(
        {
            "candidate": range(len(candidates)),
            "score": selector.score(candidates),
            "iou": bx.iou(candidates.boxes, truth),
        }
    )
    return table[1:].sort_values("score", ascending=False, kind="stable", key=lambda s: s.round(5), ignore_index=True)


def headline(study: Study, main: pd.DataFrame, compared: pd.DataFrame) -> Markdown:
    """Write tables/headline.json for the page and show the same sentences."""
    sentences = []
    for (lvlm, dataset), rows in main.groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("method")
        acc = rows["acc50"]
        sentences.append(
            f"Measured on {dataset} with {lvlm}, {rows['n_queries'].iloc[0]} small objects: "
            f"greedy {acc['greedy']:.1%}, ACS-Free {acc['ACS-Free']:.1%}, "
            f"ACS-Learned {acc['ACS-Learned']:.1%}, oracle {acc[evaluate.ORACLE]:.1%}."
        )
    told = ", ".join(
        f"{name} {published.SMALL_OBJECTS[name][0]:.1f}%" for name in ("greedy", "ACS-Free", "ACS-Learned")
    )
    sentences.append(f"Published ({' on '.join(published.COLUMNS[0])}): {told}.")
    sentences += [planted(study)] if planted(study) else []
    title = "Self-Improving Small Object Grounding in LVLMs, reproduced step by step"
    path = paths.reports(study.profile.name) / "tables" / "headline.json"
    paths.write_text(path, json.dumps({"title": title, "sentences": sentences}))
    return say("in short:", sentences)


def kind_shares(columns: list[tuple]) -> pd.DataFrame:
    """mistakes.csv: the shares of acs_lib.mistakes.KINDS among the sampled answers of every column (LVLM, dataset,
    designs.kind_table), to all its queries and to the mixed ones."""
    table = []
    for lvlm, dataset, frame in columns:
        for queries, part in (("all", frame), ("mixed", designs.mixed(frame))):
            shares = part["kind"].value_counts(normalize=True).reindex(KINDS, fill_value=0.0)
            table.append((lvlm.name, dataset.name, queries, part["query_id"].nunique(), *shares))
    return pd.DataFrame(table, columns=["lvlm", "dataset", "queries", "n_queries", *KINDS])


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


def say_ranked(table: pd.DataFrame) -> Markdown:
    """For each kind of mistake, the score that tells it best from a good box, from `ranked_table`."""
    parts = []
    for (lvlm, dataset, kind), rows in table.groupby(["lvlm", "dataset", "kind"], sort=False):
        best = rows.loc[rows["right"].idxmax()]
        learned = rows.set_index("method").loc["ACS-Learned"]
        parts.append(
            f"{lvlm} on {dataset}, against {kind}: {best['method']} ({best['right']:.2f}; ACS-Learned "
            f"{learned['right']:.2f} [{learned['lo']:.2f}, {learned['hi']:.2f}], {learned['pairs']} pairs)"
        )
    return say("the score that tells a good box best from a mistake, by kind of mistake:", parts)


def say_designs(log: pd.DataFrame) -> Markdown:
    """In which designs choosing by attention beat greedy decoding, from the log of designs."""
    won, lost = log[log["learned_vs_greedy_lo"] > 0], log[log["learned_vs_greedy_hi"] < 0]
    others, pooled, within = (
        log[name].corr(log["learned_vs_greedy"], "spearman") for name in ("share another object", "r", "r_within")
    )

    def names(rows):
        found = [f"{row.lvlm}, {row.design}, T {row.temperature:g}, top-p {row.top_p:g}" for row in rows.itertuples()]
        return "; ".join(found) or "none"

    return say(
        f"ACS-Learned is above greedy in {len(won)} of {len(log)} rows ({names(won)}) and below in {len(lost)} "
        f"({names(lost)}), with intervals that exclude zero. Over the rows its gain has a rank correlation of "
        f"{others:+.2f} with the share of mistakes that are another object, of {pooled:+.2f} with the pooled r, and of "
        f"{within:+.2f} with r inside queries."
    )
