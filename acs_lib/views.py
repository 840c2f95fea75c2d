"""What the notebooks look at: small frames made of runs and choices, and sentences that follow from their numbers."""

import base64
import io
import json

import numpy as np
import pandas as pd
from IPython.display import Markdown
from PIL import Image

from acs_lib import boxes as bx
from acs_lib import designs, evaluate, paths, regressor
from acs_lib.candidates import COORDINATES, STATISTICS, Candidates
from acs_lib.confidence import image_counts
from acs_lib.heads import ENTROPY, GROUPS, HeadSet, entropy_by_layer, mean_share
from acs_lib.mistakes import KINDS, ranked_right
from acs_lib.report import figures
from acs_lib.selectors import FUSIONS, SELECTORS
from acs_lib.store import BOX, Run
from acs_lib.study import Study

POINTS = "percentage points"
CONTROLS = 3  # regressors trained on shuffled labels, each with its own seed


def say(text: str) -> Markdown:
    """A takeaway, shown as text."""
    return Markdown(f"**Takeaway.** {text}")


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
        f"on {dataset} ({lvlm}) greedy finds {row['greedy']:.1%} of the small objects, a random sample "
        f"{row[evaluate.RANDOM]:.1%}, and the best of the samples {row[evaluate.ORACLE]:.1%}"
        for (lvlm, dataset), row in small.iterrows()
    ]
    return say("; ".join(parts) + ". The room between greedy and oracle is what a selector can win.")


def mixed_query(run: Run, size: str = "small") -> str:
    """A query of that size for illustration: the one with the largest spread of IoU among its sampled answers."""
    queries = run.queries.set_index("query_id")["size"]
    sampled = run.records().query("candidate > 0 and failure == ''")
    spread = sampled[sampled["query_id"].map(queries) == size].groupby("query_id")["iou"].std()
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
    high, low, zero = GROUPS
    wide = table.pivot(index=["lvlm", "dataset", "coordinate", "layer"], columns="group", values="mean")
    right = (wide[high] < wide[zero]).groupby(level=["lvlm", "dataset"]).mean()
    parts = [
        f"{share:.0%} of the layer and coordinate pairs on {dataset} ({lvlm})"
        for (lvlm, dataset), share in right.items()
    ]
    return say("mean entropy is lower for good boxes than for misses in " + ", ".join(parts) + ".")


def regressor_table(study: Study) -> pd.DataFrame:
    """regressor.csv, small objects: Pearson, Spearman, MAE and n by split, and the mean of CONTROLS controls on
    shuffled labels, with the standard deviation of their r."""
    table = []
    for lvlm, dataset in study.columns:
        for split in dataset.splits:
            found = small_predictions(study, lvlm, dataset, split)
            table.append((lvlm.name, dataset.name, split, *_quality(found), np.nan))
    for lvlm in study.profile.lvlms:
        controls = [
            _quality(small_predictions(study, lvlm, study.train_set, "test", control=seed)) for seed in range(CONTROLS)
        ]
        *scores, n = np.mean(controls, axis=0)
        spread = np.std([pearson for pearson, *_ in controls], ddof=1)
        table.append((lvlm.name, study.train_set.name, "test, labels shuffled", *scores, int(n), spread))
    names = ["lvlm", "dataset", "split", "pearson", "spearman", "mae", "within_query_pearson", "n", "pearson_sd"]
    return pd.DataFrame(table, columns=names)


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


def say_regressor(table: pd.DataFrame, published: float) -> Markdown:
    """Held-out r of every column against the published bound."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("split")
        text = f"on unseen images of {dataset} ({lvlm}) r = {rows.loc['test', 'pearson']:.3f}"
        if "test, labels shuffled" in rows.index:
            control = rows.loc["test, labels shuffled"]
            text += (
                f", with shuffled labels {control['pearson']:.3f} (mean of {CONTROLS}, SD {control['pearson_sd']:.3f})"
            )
        parts.append(text)
    above = (table.loc[table["split"] == "test", "pearson"] > published).all()
    return say(
        "; ".join(parts)
        + f". The paper states r > {published}; "
        + ("so it is here." if above else "not everywhere here.")
    )


def say_heads(head_sets: list[HeadSet], table: pd.DataFrame) -> Markdown:
    """Each LVLM's D_c and how well its heads separate, from `Study.head_tables`."""
    parts = []
    for head_set in head_sets:
        chosen = table[table["selected"] & (table["lvlm"] == head_set.lvlm)]
        names = ", ".join(f"({layer}, {head})" for layer, head in head_set.heads)
        parts.append(
            f"D_c of {head_set.lvlm} is {{{names}}} as (layer, head), counted from 0, read at "
            f"{', '.join(COORDINATES[index] for index in head_set.coordinates)}; their entropy tells good boxes from "
            f"misses with AUROC {chosen['auroc'].min():.2f} to {chosen['auroc'].max():.2f} over all answers, and "
            f"{chosen['auroc_within_query'].min():.2f} to {chosen['auroc_within_query'].max():.2f} inside queries."
        )
    return say(" ".join(parts))


def comparisons(study: Study, columns: list[tuple]) -> pd.DataFrame:
    """Paired differences of Acc@0.5 that the paper's claims rest on, small objects, 95 % bootstrap over images."""
    pairs = [
        ("ACS-Learned", "greedy"),
        ("ACS-Learned", evaluate.RANDOM),
        ("ACS-Learned", "sequence log-prob"),
        ("ACS-Free", "greedy"),
        ("ACS-Free", evaluate.RANDOM),
        ("ACS-Free", "entropy, all heads"),
    ]
    table = []
    for lvlm, dataset, frame, small in _small(study, columns):
        for method, reference in pairs:
            found = evaluate.paired_difference(frame, small, method, reference, draws=study.profile.bootstrap)
            table.append((lvlm.name, dataset.name, method, reference, *found, len(small)))
    names = ["lvlm", "dataset", "method", "reference", "delta", "delta_lo", "delta_hi", "p_value", "n_queries"]
    compared = pd.DataFrame(table, columns=names)
    compared["p_holm"] = compared.groupby(["lvlm", "dataset"])["p_value"].transform(evaluate.holm)
    return compared


def _small(study: Study, columns: list[tuple]) -> list[tuple]:
    """(lvlm, dataset, choices, queries) of the small test objects, of every column (lvlm, dataset, choices)."""
    found = []
    for lvlm, dataset, frame in columns:
        queries = study.test_queries(lvlm, dataset, "small")
        found.append((lvlm, dataset, frame[frame["query_id"].isin(queries["query_id"])], queries))
    return found


def significance_table(study: Study, columns: list[tuple]) -> pd.DataFrame:
    """significance.csv: evaluate.significance of every column, small test objects."""
    parts = [
        evaluate.significance(frame, small, lvlm=lvlm.name, dataset=dataset.name, draws=study.profile.bootstrap)
        for lvlm, dataset, frame, small in _small(study, columns)
    ]
    return pd.concat(parts, ignore_index=True)


def say_significance(table: pd.DataFrame, level: float = 0.05) -> Markdown:
    """Which methods differ from greedy by both tests after Holm's correction, from `significance_table`."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        sure = rows[rows[["p_bootstrap_holm", "p_mcnemar_holm"]].max(axis=1) < level]
        above, below = (list(sure.loc[sign * sure["delta_vs_greedy"] > 0, "method"]) for sign in (1, -1))
        parts.append(f"on {dataset} ({lvlm}) above: {', '.join(above) or 'none'}; below: {', '.join(below) or 'none'}")
    return say(
        f"told apart from greedy by the paired bootstrap and by McNemar's test, both p < {level} after Holm's "
        "correction over the methods of a column: " + ". ".join(parts) + "."
    )


def rank_table(study: Study, main: pd.DataFrame, columns: list[tuple]) -> pd.DataFrame:
    """ranks.csv: evaluate.mean_ranks of the main table, with the interval of the mean rank. A method that is not in
    every column (P(True), where one LVLM cannot be asked) has no rank."""
    main = main[main.groupby("method")["method"].transform("size") == len(columns)]
    drawn = [(frame, small) for _, _, frame, small in _small(study, columns)]
    return evaluate.rank_intervals(evaluate.mean_ranks(main), drawn, draws=study.profile.bootstrap)


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
            f"over {r['seeds']} seeds of {source} ({lvlm} on {dataset}) Acc@0.5 in % is: {text}; "
            f"r {r['pearson_lowest']:.3f} to {r['pearson_highest']:.3f}"
        )
    return say(". ".join(parts) + "." if parts else "this profile names no seeds.")


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


def say_comparisons(table: pd.DataFrame, method: str) -> Markdown:
    """One method against its references, from `comparisons`; told apart where the interval leaves out zero."""
    parts = []
    for row in table[table["method"] == method].itertuples():
        verdict = "above" if row.delta_lo > 0 else "below" if row.delta_hi < 0 else "not told apart from"
        parts.append(
            f"{verdict} {row.reference} on {row.dataset} with {row.lvlm} ({100 * row.delta:+.1f} {POINTS}, "
            f"95 % interval {100 * row.delta_lo:+.1f} to {100 * row.delta_hi:+.1f})"
        )
    return say(f"{method} is " + "; ".join(parts) + ".")


def claims(
    regressors: pd.DataFrame, compared: pd.DataFrame, entropy: pd.DataFrame, sizes: pd.DataFrame
) -> pd.DataFrame:
    """claims.csv: each claim of the paper, the published evidence, the measured evidence and a verdict from it."""
    test = regressors[regressors["split"] == "test"]
    learned = compared[(compared["method"] == "ACS-Learned") & (compared["reference"] == "greedy")]
    free = compared[(compared["method"] == "ACS-Free") & (compared["reference"] == "greedy")]
    heads = compared[compared["reference"] == "entropy, all heads"]
    greedy = sizes[sizes["method"] == "greedy"].pivot(index=["lvlm", "dataset"], columns="size", values="acc50")
    high, _, zero = GROUPS
    wide = entropy.pivot(index=["lvlm", "dataset", "coordinate", "layer"], columns="group", values="mean")

    def differences(rows):
        return "; ".join(
            f"{row.lvlm} on {row.dataset} {100 * row.delta:+.1f} [{100 * row.delta_lo:+.1f}, {100 * row.delta_hi:+.1f}]"
            for row in rows.itertuples()
        )

    def verdict(rows):
        above = rows["delta_lo"] > 0
        if above.all():
            return "reproduced"
        if (rows["delta_hi"] < 0).any():
            return "contradicted"
        return f"in part: in {above.sum()} of {len(rows)} columns" if above.any() else "not shown"

    lower = (wide[high] < wide[zero]).mean()
    table = [
        (
            "LVLMs find large objects and miss small ones",
            "greedy Acc@0.5 0.872 large, 0.614 small (Qwen2.5-VL-7B, COCO)",
            "; ".join(
                f"{lvlm} on {dataset} {row['large']:.3f} large, {row['small']:.3f} small"
                for (lvlm, dataset), row in greedy.iterrows()
            ),
            "reproduced" if (greedy["large"] > greedy["small"]).all() else "contradicted",
        ),
        (
            "Attention predicts the box's IoU",
            "Pearson r > 0.67",
            "; ".join(f"{row.lvlm} on {row.dataset} r = {row.pearson:.3f}" for row in test.itertuples()),
            "reproduced" if (test["pearson"] > 0.67).all() else "not shown",
        ),
        (
            "Good boxes have lower attention entropy",
            "in every layer and coordinate of the entropy figure",
            f"in {lower:.0%} of the layer and coordinate pairs",
            "reproduced" if lower == 1 else "in part" if lower > 0.5 else "contradicted",
        ),
        (
            "ACS-Learned beats greedy decoding on small objects",
            "+2.1 to +9.5 points in the four columns",
            differences(learned),
            verdict(learned),
        ),
        (
            "ACS-Free beats greedy decoding, or ties with it",
            "0.0 to +4.0 points in the four columns",
            differences(free),
            verdict(free),
        ),
        (
            "Few discriminative heads serve better than all heads",
            "an ablation of the paper, no number at hand",
            differences(heads),
            verdict(heads),
        ),
    ]  # fmt: skip
    return pd.DataFrame(table, columns=["claim", "published", "measured", "verdict"])


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
        table = evaluate.main_table(
            choices, small, lvlm=lvlm.name, dataset=dataset.name, draws=min(2000, study.profile.bootstrap)
        )
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
    """Layer and the mean of each head statistic over answers with a box, coordinates and heads."""
    kept = (run.records()["failure"] == "").to_numpy()
    means = run.statistics()[kept].mean((0, 1, 3))
    return pd.DataFrame(means, columns=list(STATISTICS)).rename_axis("layer").reset_index()


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
    return table[1:].sort_values("score", ascending=False, ignore_index=True)


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
    sentences.append("Published (Qwen2.5-VL-7B on COCO): greedy 61.4 %, ACS-Free 63.4 %, ACS-Learned 65.3 %.")
    title = "Self-Improving Small Object Grounding in LVLMs, reproduced step by step"
    path = paths.reports(study.profile.name) / "tables" / "headline.json"
    paths.write_text(path, json.dumps({"title": title, "sentences": sentences}))
    return say(" ".join(sentences))


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
        draws=min(2000, study.profile.bootstrap),
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
            f"with {lvlm} on {dataset}, against {kind}, {best['method']} is best ({best['right']:.2f}; ACS-Learned "
            f"{learned['right']:.2f} [{learned['lo']:.2f}, {learned['hi']:.2f}], {learned['pairs']} pairs)"
        )
    return say("; ".join(parts) + ".")


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
