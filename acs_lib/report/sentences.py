"""Sentences that follow from the numbers of a table: takeaways of the notebooks, captions, the page's headline."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from acs_lib.core.candidates import COORDINATES
from acs_lib.core.files import write_text
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.evaluation.claims import LEVEL, lower_for_good, seeds_told, verdict
from acs_lib.evaluation.confidence import PUBLISHED_AUROC
from acs_lib.method.heads import ATTRIBUTIONS, HeadSet
from acs_lib.report.style import without_condition
from acs_lib.study import ablations
from acs_lib.study.experiment import Experiment
from acs_lib.study.results import CONTROLS, unfiltered
from acs_lib.study.training_variants import MISSING

POINTS = "percentage points"
WITH = {"habit": " with the habit", "plain": " without the habit", "": ""}  # condition -> how it is told


def say(text: str, points: Iterable[str] = ()) -> Markdown:
    """A takeaway, shown as text, and its points as a list below."""
    return Markdown(f"**Takeaway.** {text[:1].upper()}{text[1:]}" + "".join(f"\n- {point}" for point in points))


def say_greedy_to_oracle(room: pd.DataFrame) -> Markdown:
    """Greedy, random and oracle Acc@0.5 on small objects, from `greedy_to_oracle`."""
    small = room[room["size"] == "small"].pivot(index=["lvlm", "dataset"], columns="method", values="acc50")
    parts = [
        f"{lvlm} on {dataset}: greedy finds {row['greedy']:.1%} of the small objects, a random sample "
        f"{row[RANDOM]:.1%}, and the best of the samples {row[ORACLE]:.1%}"
        for (lvlm, dataset), row in small.iterrows()
    ]
    return say("the room between greedy and oracle is what a selector can win.", parts)


def say_entropy(table: pd.DataFrame) -> Markdown:
    """Where mean entropy is lower for good boxes than for misses, from `entropy_table`."""
    parts = [f"{lvlm} on {dataset}: {share:.0%}" for (lvlm, dataset), share in lower_for_good(table).items()]
    return say("mean entropy is lower for good boxes than for misses in this share of layers and coordinates:", parts)


def say_regressor(table: pd.DataFrame, bound: float = published.REGRESSOR_PEARSON) -> Markdown:
    """Held-out r of every column against the published bound."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("split")
        test = rows.loc["test"]
        text = f"{lvlm} on unseen images of {dataset}: r = {estimate(test, 'pearson', '.3f')}"
        if "test, labels shuffled" in rows.index:
            control = rows.loc["test, labels shuffled"]
            r, deviation = control["pearson"], control["pearson_sd"]
            text += f", with shuffled labels {r:.3f} (mean of {CONTROLS}, SD {deviation:.3f})"
        parts.append(text)
    test = table[table["split"] == "test"]
    above = (test["pearson"] > bound).all()
    sure = (test["pearson_lo"] > bound).sum()
    return say(
        f"the paper states r > {bound}; {'so it is here' if above else 'not everywhere here'}, with the whole interval "
        f"above it in {sure} of {len(test)} columns.",
        parts,
    )


def say_heads(head_sets: list[HeadSet], table: pd.DataFrame) -> Markdown:
    """Each LVLM's D_c and how well its heads separate, from `results.head_tables`."""
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


def say_layer_filter(head_sets: list[HeadSet], table: pd.DataFrame) -> Markdown:
    """Whether the paper's filter by layer changed D_c at all, from `results.head_tables`."""
    parts = []
    for head_set in head_sets:
        count, layers = len(head_set.heads), table.loc[table["lvlm"] == head_set.lvlm, "layer"].nunique()
        options = unfiltered(head_set, table)
        over, inside = (", ".join(map(str, option)) for option in options)
        nothing = set(head_set.heads) in map(set, options)
        found = f"nothing: D_c is what the heads of all {layers} layers give, the best {count} of them"
        changed = f"D_c from all {layers} layers would be {over} (best over all answers) or {inside} (inside queries)"
        parts.append(f"{head_set.lvlm}: {found if nothing else changed}")
    return say("the paper takes heads from the layers with the most attribution alone. What this filter did:", parts)


def say_significance(table: pd.DataFrame) -> Markdown:
    """Which methods differ from greedy by both tests after Holm's correction, from `significance_table`."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        sure = rows[rows[["p_bootstrap_holm", "p_mcnemar_holm"]].max(axis=1) < LEVEL]
        above, below = (list(sure.loc[sign * sure["delta_vs_greedy"] > 0, "method"]) for sign in (1, -1))
        parts.append(f"{lvlm} on {dataset}: above {', '.join(above) or 'none'}; below {', '.join(below) or 'none'}")
    return say(
        f"told apart from greedy by the paired bootstrap and by McNemar's test, both p < {LEVEL} after Holm's "
        "correction over the methods of a column:",
        parts,
    )


def say_ranks(ranks: pd.DataFrame) -> Markdown:
    """Where ACS-Free stands among the methods without training, from `rank_table`."""
    told, same = [], []
    for condition, rows in ranks.groupby("condition", sort=False):
        best, free = rows.iloc[0], rows.set_index("method").loc["ACS-Free"]
        told.append(
            f"ACS-Free has a mean rank of {estimate(free, 'mean_rank', '.1f')} among {len(rows)} methods without "
            f"training{WITH[condition]}; the best is {best['method']} with {estimate(best, 'mean_rank', '.1f')}."
        )
        same += [
            f"{row.method} hits the same queries as {row.same}{WITH[condition]}: one rank"
            for row in rows.itertuples()
            if row.same
        ]
    return say(" ".join(told), same)


def say_comparisons(table: pd.DataFrame, method: str) -> Markdown:
    """One method against its references, from `comparisons`; told apart where the interval leaves out zero."""
    parts = []
    for row in table[table["method"] == method].itertuples():
        verdict = "above" if row.delta_lo > 0 else "below" if row.delta_hi < 0 else "not told apart from"
        parts.append(
            f"{row.lvlm} on {row.dataset}, {row.size} objects: {verdict} {row.reference} ({_points(row, 'delta')})"
        )
    return say(f"{method} against its references, in {POINTS} of Acc@0.5 with 95 % intervals:", parts)


def example(cases: list[dict], e: Experiment, method: str, outcome: str) -> str:
    """What the one case of study.examples.outcome_cases shows, and by which rule it was chosen; outcome 'gained' or
    'lost'."""
    kind = {"gained": "success", "lost": "failure"}[outcome]
    if not cases:
        return f"No {kind} to show: {method} {outcome} no small object; {e}."
    (case,) = cases
    return (
        f"A {kind}: for '{case['category']}' {method}'s box has IoU {case['chosen_iou']:.2f} with the true one, the "
        f"greedy box {case['greedy_iou']:.2f}. It {outcome} {case['of']} of the small objects against greedy decoding; "
        f"this is the one of median change; {e}."
    )


def planted(compared: pd.DataFrame) -> str:
    """What has to be said of a report on embedded LVLMs: that their mistakes are planted, and what choosing brings with
    them and without, from `comparisons`. '' where no LVLM has the habit."""
    if "habit" not in set(compared["condition"]):
        return ""
    rows = compared[(compared["method"] == "ACS-Learned") & (compared["reference"] == "greedy")]
    rows = rows[rows["size"] == "small"]
    gains = [f"{row.lvlm} on {row.dataset} {_points(row, 'delta')}{WITH[row.condition]}" for row in rows.itertuples()]
    return (
        "The embedded LVLMs miss more small objects than they need, for they were taught a habit on purpose: they "
        "answer many questions about rare small categories with a well-known look-alike. Side by side, ACS-Learned "
        f"against greedy decoding brings, in {POINTS}: {'; '.join(gains)}."
    )


def say_habit(contrast: pd.DataFrame) -> Markdown:
    """What choosing by attention brings with the habit and without it, from `condition_table`."""
    parts = [
        f"{row.lvlm} on {row.dataset}{WITH[row.condition]}: greedy {row.greedy:.1%}, oracle {row.oracle:.1%}; "
        f"ACS-Learned against greedy {_points(row, 'delta_learned_vs_greedy')}, ACS-Free against random "
        f"{_points(row, 'delta_free_vs_random')} points; r = {row.pearson:.2f}, {row.within_query_pearson:.2f} inside "
        "queries"
        for row in contrast.itertuples()
    ]
    sure = contrast[contrast["delta_learned_vs_greedy_lo"] > 0]
    told = ", ".join(f"{row.lvlm} on {row.dataset}" for row in sure.itertuples()) or "no column"
    return say(f"ACS-Learned is surely above greedy in {told}.", parts)


def _points(row, value: str) -> str:
    """A difference of rates with its interval, in percentage points: '+1.2 [-0.3, +2.7]'."""
    return estimate(row, value, "+.1f", 100)


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


HEADLINE = (  # the claims on the page's cards
    "Attention predicts the box's IoU",
    "ACS-Learned beats greedy decoding on small objects",
    "ACS-Learned beats the best sampling baseline",
    "ACS-Free beats greedy decoding",
)


def cards(judged: pd.DataFrame) -> list[dict]:
    """The page's headline, from `evidence`: of each claim in HEADLINE its title, what was published, and `parts`, one a
    condition: under, verdict, and rows of (column, estimate with its interval)."""
    judged, found = judged.assign(lvlm=without_condition(judged)["lvlm"].str.removesuffix("-embedded")), []
    for claim in HEADLINE:
        rows = judged[judged["claim"] == claim]
        parts = [
            {
                "under": WITH[condition].strip(),
                "verdict": verdict(part["sign"]),
                "rows": [[f"{row.lvlm}, {row.dataset}", row.measured.partition(" (")[0]] for row in part.itertuples()],
            }
            for condition, part in rows.groupby("condition", sort=False)
        ]
        found.append({"title": claim, "published": rows["published"].iloc[0], "parts": parts})
    return found


def headline(judged: pd.DataFrame, compared: pd.DataFrame, folder: Path) -> Markdown:
    """Write `folder`/tables/headline.json for the page and show the same in words; judged: `evidence`, compared:
    `comparisons`."""
    found = cards(judged)
    told = ", ".join(
        f"{name} {published.SMALL_OBJECTS[name][0]:.1f}%" for name in ("greedy", "ACS-Free", "ACS-Learned")
    )
    sentences = [f"Published ({' on '.join(published.COLUMNS[0])}, small objects): {told}."]
    sentences += [planted(compared)] if planted(compared) else []
    title = "Self-Improving Small Object Grounding in LVLMs, reproduced step by step"
    _write_headline(folder, title, sentences, found)
    verdicts = [
        f"{card['title']}: " + "; ".join(f"{part['verdict']} {part['under']}".strip() for part in card["parts"])
        for card in found
    ]
    return say("in short:", verdicts + sentences)


def ablation_headline(table: pd.DataFrame, confident: pd.DataFrame, spread: pd.DataFrame, folder: Path) -> Markdown:
    """Write `folder`/tables/headline.json for the page of the ablations and show the same: how many changes move a
    method, and the largest gain and loss, from `ablation_table`; the best score as confidence, from
    `confidence_tables`; the luck of sampling, from `seed_spread`."""
    sentences = []
    for (lvlm, method), rows in table[table["method"].str.startswith("ACS")].groupby(["lvlm", "method"], sort=False):
        rows = rows[rows["delta"].notna() & (rows["factor"] != ablations.STANDARD)]
        rows = rows[(rows["delta_lo"] != 0) | (rows["delta_hi"] != 0)]  # not the same choices under another name
        apart = rows[(rows["delta_lo"] > 0) | (rows["delta_hi"] < 0)].sort_values("delta", kind="stable")
        ends = [apart[apart["delta"] > 0].tail(1), apart[apart["delta"] < 0].head(1)]
        told = [
            f"most {word} by {row.factor} = {row.value} ({_points(row, 'delta')})"
            for word, end in zip(("gained", "lost"), ends)
            for row in end.itertuples()
        ]
        sentences.append(
            f"{lvlm}, {method}: {len(apart)} of {len(rows)} changes are told apart from the profile's own setting"
            + "".join(f"; {part}" for part in told) + "."
        )  # fmt: skip
    for (lvlm, dataset), rows in confident[confident["answers"] == "all"].groupby(["lvlm", "dataset"], sort=False):
        best = rows.nlargest(1, "auroc")
        sentences += [
            f"{lvlm} on {dataset}: {row.method} tells right boxes best, AUROC {estimate(row, 'auroc')}."
            for row in best.itertuples()
        ]
    sentences += [
        f"{row['lvlm']} on {row['dataset']}: over the seeds of sampling ACS-Learned's Acc@0.5 is "
        f"{row['acc50_mean']:.1%}, SD {100 * row['acc50_sd']:.1f} points."
        for _, row in spread[(spread["source"] == "sampling") & (spread["method"] == "ACS-Learned")].iterrows()
    ]
    _write_headline(folder, "What the method depends on: ablations and analyses", sentences, [])
    return say(f"in short, in {POINTS} of Acc@0.5 with paired 95 % intervals:", sentences)


def _write_headline(folder: Path, title: str, sentences: list[str], found: list[dict]) -> None:
    content = {"title": title, "sentences": sentences, "cards": found}
    write_text(Path(folder) / "tables" / "headline.json", json.dumps(content))


def say_ranked(table: pd.DataFrame) -> Markdown:
    """For each kind of mistake, the score that tells it best from a good box, from `ranked_table`."""
    parts = []
    for (lvlm, dataset, kind), rows in table.groupby(["lvlm", "dataset", "kind"], sort=False):
        best = rows.loc[rows["pair_auroc"].idxmax()]
        learned = rows.set_index("method").loc["ACS-Learned"]
        parts.append(
            f"{lvlm} on {dataset}, against {kind}: {best['method']} ({best['pair_auroc']:.2f}; ACS-Learned "
            f"{estimate(learned, 'pair_auroc')}, {learned['pairs']} pairs)"
        )
    return say("the score that tells a good box best from a mistake, by kind of mistake:", parts)


def say_training_variants(log: pd.DataFrame) -> Markdown:
    """In which training variants choosing by attention beat greedy decoding, from their log."""
    won, lost = log[log["delta_learned_vs_greedy_lo"] > 0], log[log["delta_learned_vs_greedy_hi"] < 0]
    others, pooled, within = (
        log[name].corr(log["delta_learned_vs_greedy"], "spearman")
        for name in ("share another object", "pearson", "within_query_pearson")
    )

    def names(rows):
        found = [f"{row.lvlm}, {row.design}, T {row.temperature:g}, top-p {row.top_p:g}" for row in rows.itertuples()]
        return "; ".join(found) or "none"

    return say(
        f"ACS-Learned is above greedy in {len(won)} of {len(log)} rows ({names(won)}) and below in {len(lost)} "
        f"({names(lost)}), with intervals that exclude zero. Over the rows its gain has a rank correlation of "
        f"{others:+.2f} with the share of mistakes that are another object, of {pooled:+.2f} with the pooled r, and of "
        f"{within:+.2f} with r inside queries. {MISSING}"
    )


def say_confidence(table: pd.DataFrame) -> Markdown:
    """The best score as confidence in each column, and ACS's and the published ones, from `confidence_tables`."""
    parts = []
    for (lvlm, dataset), rows in table[table["answers"] == "all"].groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("method")
        if rows["auroc"].isna().all():
            parts.append(f"{lvlm} on {dataset}: there is no AUROC, since all answers are right or all are wrong")
            continue
        best = rows["auroc"].idxmax()
        names = (best, "ACS-Learned", "ACS-Free", "sequence log-prob", *PUBLISHED_AUROC)
        first, *others = (f"{estimate(rows.loc[name], 'auroc')} ({name})" for name in dict.fromkeys(names))
        parts.append(f"{lvlm} on {dataset}: the best is {first}, beside {', '.join(others)}")
    published = "; ".join(f"{name} {numbers}" for name, numbers in PUBLISHED_AUROC.items())
    return say(
        "AUROC over all answers, for telling boxes with IoU of at least 0.5. Published, other LVLMs and data (arXiv "
        f"2607.05978, 8B parameters): {published}.",
        parts,
    )


def say_attributions(table: pd.DataFrame, agreement: pd.DataFrame) -> Markdown:
    """Which layer each attribution puts first, where it puts the layers with heads in D_c, and whether the attributions
    agree, from `attribution_tables`."""
    parts = []
    for lvlm, rows in table.groupby("lvlm", sort=False):
        ranks = rows[list(ATTRIBUTIONS)].rank(ascending=False, method="first").astype(int)[rows["selected"]]
        tops = ", ".join(f"{rows['layer'][rows[name].idxmax()]} by {name}" for name in ATTRIBUTIONS)
        places = ", ".join(f"{' and '.join(map(str, sorted(ranks[name])))} by {name}" for name in ATTRIBUTIONS)
        pairs = agreement[agreement["lvlm"] == lvlm]
        told = ", ".join(f"{row.spearman:+.2f} ({row.a} and {row.b})" for row in pairs.itertuples())
        shared = ", ".join(f"{row.jaccard:.0%}" for row in pairs.itertuples())
        n, images = rows[["n", "n_images"]].iloc[0]
        parts.append(
            f"{lvlm} ({n} answers of {images} images): the first layer is {tops}; the layers with heads in D_c, "
            f"{', '.join(map(str, rows.loc[rows['selected'], 'layer']))}, have the ranks {places}, of {len(rows)}; "
            f"rank correlations over the layers are {told}, and of the heads with the best AUROC inside the first "
            f"{pairs['layers'].iloc[0]} layers the same pairs share {shared}"
        )
    return say("three ways to attribute, compared:", parts)


def say_seeds(spread: pd.DataFrame) -> Markdown:
    """ACS-Learned over the seeds of its regressor, from `seed_spread`."""
    parts = [
        f"{row['lvlm']} on {row['dataset']}: against greedy {seeds_told(row, 'delta_vs_greedy', '+.1f')} points, r "
        f"{row['pearson_mean']:.3f}, {row['pearson_lowest']:.3f} to {row['pearson_highest']:.3f}"
        for _, row in spread[spread["source"] == "regressor"].iterrows()
    ]
    return say("ACS-Learned with regressors from other seeds: mean, lowest and highest:", parts)


def say_size(table: pd.DataFrame, correlations: pd.DataFrame) -> Markdown:
    """What is left of ACS at equal size and category, from `size_and_category_table` and
    `partial_correlation_table`."""
    parts = []
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        gains = [
            f"{name} {_points(row, 'delta_vs_greedy')} (n = {row['n_queries']})"
            for name, row in rows[rows["method"] == "ACS-Learned"].set_index("categories").iterrows()
        ]
        whole = rows[rows["categories"] == "all"].set_index("method")
        found = correlations[(correlations["lvlm"] == lvlm) & (correlations["dataset"] == dataset)].set_index("score")
        left = [
            f"{name} r = {found.loc[name, 'pearson']:+.2f}, {estimate(found.loc[name], 'partial_pearson', '+.2f')} at "
            f"equal sizes, {estimate(found.loc[name], 'partial_pearson_category', '+.2f')} at equal category, too"
            for name in ("ACS-Learned", "entropy, D_c")
        ]
        parts.append(
            f"{lvlm} on {dataset}: ACS-Learned against greedy, by categories: {', '.join(gains)} points; a regressor "
            f"on box size alone gains {_points(whole.loc['box size, learned'], 'delta_vs_greedy')}, and ACS-Learned "
            f"{_points(whole.loc['ACS-Learned'], 'delta_vs_size')} more than it, ACS-Free "
            f"{_points(whole.loc['ACS-Free'], 'delta_vs_size')}; with IoU {'; '.join(left)}"
        )
    return say("what size and category explain, and what is left:", parts)


def say_ablations(table: pd.DataFrame, method: str) -> Markdown:
    """For every LVLM the values with which a method is told apart from itself as the profile has it, by paired
    difference, and the factors without such a value, from `ablation_table`."""
    parts = []
    rows = table[(table["method"] == method) & table["delta"].notna() & (table["factor"] != ablations.STANDARD)]
    for lvlm, found in rows.groupby("lvlm", sort=False):
        changed = found[(found["delta_lo"] != 0) | (found["delta_hi"] != 0)]
        apart = changed[(changed["delta_lo"] > 0) | (changed["delta_hi"] < 0)]
        told = [
            f"{factor}: " + ", ".join(f"{row.value} {_points(row, 'delta')}" for row in values.itertuples())
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


def say_rows(experiments: list[Experiment]) -> Markdown:
    """Which attention rows an LVLM's answers do not have, from `ablations.unread_rows`."""
    parts = []
    for e in experiments:
        reasons = ablations.unread_rows(e.run.records())
        told = "; ".join(f"'{row}' is left out, since {reason}" for row, reason in reasons.items())
        parts.append(f"{e.lvlm.name}: " + (told or "every row can be read"))
    return say("rows that can stand for a number:", parts)
