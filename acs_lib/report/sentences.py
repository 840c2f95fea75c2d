"""Sentences that follow from the numbers of a table: takeaways of the notebooks, captions, the page's headline.

A notebook asks one question and ends with one takeaway, a verdict over the columns (LVLMs on datasets) by rule; what
holds for a single column is in the tables.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from acs_lib.core.files import write_text
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.evaluation.claims import LEVEL, lower_for_good, verdict
from acs_lib.evaluation.confidence import PUBLISHED_AUROC
from acs_lib.method.heads import ATTRIBUTIONS, HeadSet
from acs_lib.report.style import CONDITIONS, without_condition
from acs_lib.study import ablations
from acs_lib.study.experiment import Experiment
from acs_lib.study.results import CONTROLS, unfiltered

POINTS = "percentage points"
COLUMN = ["lvlm", "dataset"]
WITH = {condition: f" {told}".rstrip() for condition, told in CONDITIONS.items()}  # condition -> how it is told


def say(text: str, points: Iterable[str] = ()) -> Markdown:
    """A takeaway, shown as text, and its points as a list below."""
    return Markdown(f"**Takeaway.** {text[:1].upper()}{text[1:]}" + "".join(f"\n- {point}" for point in points))


def in_columns(so: Iterable[bool], unit: str = "columns") -> str:
    """'in all 8 columns', 'in 3 of 8 columns' or 'in none of 8 columns': where something is so."""
    so = list(so)
    count = "all" if so and all(so) else f"{sum(so) or 'none'} of"
    return f"in {count} {len(so)} {unit}"


def spread_of(values: Iterable[float], form: str = "+.1f", unit: float = 100) -> str:
    """'-1.0 to +5.2': the lowest and the highest of some numbers times `unit`; missing ones are left out."""
    values = (unit * pd.Series(values, dtype=float).dropna()).round(6)
    return f"{values.min():{form}} to {values.max():{form}}" if len(values) else "not measured"


def above_and_below(rows: pd.DataFrame, value: str = "delta") -> str:
    """'above in 3, below in 1, not told apart in 4 of 8 (-1.0 to +5.2)': where paired intervals of a difference lie,
    and its range in percentage points."""
    above, below = (rows[f"{value}_lo"] > 0).sum(), (rows[f"{value}_hi"] < 0).sum()
    neither = len(rows) - above - below
    return f"above in {above}, below in {below}, not told apart in {neither} of {len(rows)} ({spread_of(rows[value])})"


def say_greedy_to_oracle(room: pd.DataFrame) -> Markdown:
    """Whether there are better boxes among the samples than the greedy one, from `greedy_to_oracle`."""
    small = room[room["size"] == "small"]
    greedy, random, oracle = (
        small[small["method"] == name].set_index(COLUMN) for name in ("greedy", RANDOM, ORACLE)
    )  # fmt: skip
    better = in_columns(oracle["acc50_lo"] > greedy["acc50_hi"])
    return say(
        f"the LVLMs have better boxes than the ones they say first {better}: there the best of the samples finds more "
        "small objects than the greedy answer, with intervals that do not touch. The room that choosing can win is "
        f"{spread_of(oracle['acc50'] - greedy['acc50'])} {POINTS} of Acc@0.5; a sample at random wins "
        f"{spread_of(random['acc50'] - greedy['acc50'])}."
    )


def say_statistics(table: pd.DataFrame) -> Markdown:
    """Where coordinate tokens look, and the sharpest and the most diffuse layer, from `statistics_by_layer` with the
    column `even`, the entropy of an even map."""
    sharpest, widest = table.loc[table["entropy"].idxmin()], table.loc[table["entropy"].idxmax()]
    return say(
        f"while it writes a number the LVLM spends {spread_of(table['mass'], '.1f')} % of its attention on the image, "
        f"by layer, and {spread_of(table['mass_in_box'], '.1f')} % inside the box. Layer {sharpest['layer']:.0f} is "
        f"the sharpest with {sharpest['entropy']:.2f} nats on average, layer {widest['layer']:.0f} the most diffuse "
        f"with {widest['entropy']:.2f}; an even map has {table['even'].iloc[0]:.2f}."
    )


def say_regressor(table: pd.DataFrame, bound: float = published.REGRESSOR_PEARSON) -> Markdown:
    """Held-out r against the published bound, from `regressor_table`."""
    test, control = (table[table["split"] == split] for split in ("test", "test, labels shuffled"))
    return say(
        f"attention tells how good a box is as the paper states it, r > {bound}, with the whole interval "
        f"{in_columns(test['pearson_lo'] > bound)}. On unseen images r is {spread_of(test['pearson'], '.3f', 1)}, and "
        f"{spread_of(test['within_query_pearson'], '.3f', 1)} inside queries, where a selector has to choose. With "
        f"shuffled labels it is {spread_of(control['pearson'], '.3f', 1)} (means of {CONTROLS} an LVLM, SD up to "
        f"{control['pearson_sd'].max():.3f})."
    )


def say_attributions(table: pd.DataFrame, agreement: pd.DataFrame) -> Markdown:
    """Whether the attributions agree, from `attribution_tables`."""
    same = [rows[list(ATTRIBUTIONS)].idxmax().nunique() == 1 for _, rows in table.groupby("lvlm", sort=False)]
    return say(
        f"all attributions put the same layer first {in_columns(same, 'LVLMs')}; their rank correlations over the "
        f"layers are {spread_of(agreement['spearman'], '+.2f', 1)}."
    )


def say_entropy(table: pd.DataFrame) -> Markdown:
    """Where mean entropy is lower for good boxes than for misses, from `entropy_table`."""
    return say(
        f"averaged over all heads, entropy is lower for good boxes than for misses in "
        f"{spread_of(lower_for_good(table), '.0f')} % of layers and coordinates."
    )


def say_signal(heads: pd.DataFrame, attributions: pd.DataFrame, entropy: pd.DataFrame) -> Markdown:
    """Where in the LVLM the signal is, from `head_tables`, `attribution_tables` and `entropy_table`."""
    chosen = heads[heads["selected"]]
    first, same = [], []
    for lvlm, rows in attributions.groupby("lvlm", sort=False):
        ranks = rows[list(ATTRIBUTIONS)].rank(ascending=False, method="first")[rows["selected"]]
        first.append((ranks <= len(rows) / 2).all(axis=None))
        own = chosen[chosen["lvlm"] == lvlm]
        d_c = HeadSet(lvlm, "", tuple(zip(own["layer"].tolist(), own["head"].tolist())))
        same.append(set(d_c.heads) in map(set, unfiltered(d_c, heads)))
    counts = chosen["lvlm"].value_counts()
    return say(
        f"the signal is in few heads: D_c has {counts.min()} to {counts.max()} an LVLM, whose entropy tells good boxes "
        f"from misses with AUROC {spread_of(chosen['auroc'], '.2f', 1)} over all answers and "
        f"{spread_of(chosen['auroc_within_query'], '.2f', 1)} inside queries. Every attribution puts their layers into "
        f"the first half {in_columns(first, 'LVLMs')}; without the paper's filter by layer they would be the same "
        f"heads {in_columns(same, 'LVLMs')}. {say_entropy(entropy).data.removeprefix('**Takeaway.** ')}"
    )


def say_acs_free(compared: pd.DataFrame) -> Markdown:
    """ACS-Free against its references on small objects, from `comparisons` (or its rows of ACS-Free)."""
    rows = compared[(compared["method"] == "ACS-Free") & (compared["size"] == "small")]
    greedy = rows[rows["reference"] == "greedy"]
    counts = "; ".join(f"{name} {above_and_below(part)}" for name, part in rows.groupby("reference", sort=False))
    return say(
        f"sharp attention in D_c is a better box than the greedy one {in_columns(greedy['delta_lo'] > 0)}. ACS-Free "
        f"against each reference, columns by their paired 95 % interval, in {POINTS} of Acc@0.5: {counts}."
    )


def say_significance(table: pd.DataFrame) -> Markdown:
    """Which methods differ from greedy by both tests after Holm's correction, from `significance_table`."""
    sure = table[table[["p_bootstrap_holm", "p_mcnemar_holm"]].max(axis=1) < LEVEL]
    told = []
    for word, sign in (("above", 1), ("below", -1)):
        counts = sure.loc[sign * sure["delta_vs_greedy"] > 0, "method"].value_counts()
        told.append(f"{word}: " + ("; ".join(f"{name} ({count})" for name, count in counts.items()) or "none"))
    return say(
        f"told apart from greedy by the paired bootstrap and by McNemar's test, both p < {LEVEL} after Holm's "
        f"correction, in how many of {len(table[COLUMN].drop_duplicates())} columns, {', '.join(told)}."
    )


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
    gains = "; ".join(
        f"{WITH[condition].strip()} {above_and_below(part)}"
        for condition, part in rows.groupby("condition", sort=False)
    )
    return (
        "The embedded LVLMs were taught a habit on purpose, to answer many questions about rare small categories with "
        "a well-known look-alike, and so miss more than they need; ACS-Learned against greedy decoding, columns by "
        f"their paired 95 % interval, in {POINTS}: {gains}."
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
        f"{card['title']}: " + ", ".join(f"{part['verdict']} {part['under']}".strip() for part in card["parts"])
        for card in found
    ]
    return say(" ".join([f"{'; '.join(verdicts)}.", *sentences]))


def say_when(contrast: pd.DataFrame, ranked: pd.DataFrame, correlations: pd.DataFrame, log: pd.DataFrame) -> Markdown:
    """When attention is worth choosing by, from habit.csv, `ranked_table`, `partial_correlation_table` and the log of
    training variants, of which an LVLM, edition and design is one model."""
    gains = "; ".join(
        f"{WITH[condition].strip()} {above_and_below(rows, 'delta_learned_vs_greedy')}".strip()
        for condition, rows in contrast.groupby("condition", sort=False)
    )
    learned = ranked[ranked["method"] == "ACS-Learned"].pivot(index=COLUMN, columns="kind", values="pair_auroc")
    other, near = (
        learned.get(kind, pd.Series(float("nan"), learned.index)) for kind in ("another object", "near miss")
    )
    left = correlations.loc[correlations["score"] == "ACS-Learned", "partial_pearson_category"]
    models = log[["lvlm", "edition", "design"]].drop_duplicates()
    told = [
        f"{log[name].corr(log['delta_learned_vs_greedy'], 'spearman'):+.2f} with {what}"
        for name, what in (
            ("share another object", "the share of mistakes that are another object"), ("pearson", "the pooled r"),
            ("within_query_pearson", "r inside queries"),
        )
    ]  # fmt: skip
    return say(
        f"ACS-Learned against greedy decoding, in {POINTS} of Acc@0.5: {gains}. Attention tells *which object* a "
        f"box is about better than *where its edges are* {in_columns(other > near)}: it ranks a good box before one of "
        f"another object with probability {spread_of(other, '.2f', 1)}, before a near miss with "
        f"{spread_of(near, '.2f', 1)}, and at equal size and category its score still correlates with IoU by "
        f"{spread_of(left, '+.2f', 1)}. Over {len(models)} models, {len(log)} with "
        f"their settings of sampling, its gain has a rank correlation of "
        f"{', '.join(told)}."
    )


def say_ablations(table: pd.DataFrame) -> Markdown:
    """How many changes tell a method apart from itself as the profile has it, by paired difference, and the largest
    gain and loss, from `ablation_table`."""
    told = []
    for method, rows in table[table["method"].str.startswith("ACS")].groupby("method", sort=False):
        rows = rows[rows["delta"].notna() & (rows["factor"] != ablations.STANDARD)]
        rows = rows[(rows["delta_lo"] != 0) | (rows["delta_hi"] != 0)]  # not the same choices under another name
        apart = rows[(rows["delta_lo"] > 0) | (rows["delta_hi"] < 0)].sort_values("delta", kind="stable")
        ends = {"gained": apart[apart["delta"] > 0].tail(1), "lost": apart[apart["delta"] < 0].head(1)}
        most = [
            f"{word} most by {row.factor} = {row.value} ({row.lvlm} on {row.dataset}, {_points(row, 'delta')})"
            for word, end in ends.items()
            for row in end.itertuples()
        ]
        told.append("; ".join([f"{method} depends on {len(apart)} of {len(rows)} changes to it", *most]) + ".")
    return say(" ".join([*told, f"In {POINTS} of Acc@0.5, paired 95 % intervals; one in twenty is so by chance."]))


def rows_left_out(experiments: list[Experiment]) -> str:
    """Which attention rows the LVLMs' answers do not have and why, a sentence each, from `ablations.unread_rows`."""
    return " ".join(
        f"{e.lvlm.name}: row '{row}' is left out, since {reason}."
        for e in experiments
        for row, reason in ablations.unread_rows(e.run.records()).items()
    )


def say_confidence(table: pd.DataFrame) -> Markdown:
    """How well ACS's scores and the best score of each column tell right boxes, from `confidence_tables`."""
    rows = table[(table["answers"] == "all") & table["auroc"].notna()]
    best = rows.loc[rows.groupby(COLUMN, sort=False)["auroc"].idxmax()]
    names = [
        f"{name} {spread_of(rows.loc[rows['method'] == name, 'auroc'], '.2f', 1)}"
        for name in ("ACS-Learned", "ACS-Free")
    ]
    known = "; ".join(f"{name} {numbers}" for name, numbers in PUBLISHED_AUROC.items())
    return say(
        f"over all answers a score tells right boxes with AUROC {', '.join(names)}; the best of each column, "
        f"{', '.join(dict.fromkeys(best['method'])) or 'none'}, with {spread_of(best['auroc'], '.2f', 1)} (published, "
        f"other LVLMs and data, arXiv 2607.05978: {known})."
    )


def trust_headline(
    table: pd.DataFrame, confident: pd.DataFrame, sets: pd.DataFrame, spread: pd.DataFrame, folder: Path
) -> Markdown:
    """Write `folder`/tables/headline.json for the page of the ablations, from `ablation_table`, and show how far
    scores, heads and numbers hold, from `confidence_tables`, `stability_tables` and `seed_spread`."""
    learned = spread[(spread["source"] == "sampling") & (spread["method"] == "ACS-Learned")]
    told = [
        say_confidence(confident).data.removeprefix("**Takeaway.** "),
        f"Other images of the same split select {spread_of(sets['kept'], '.0f')} % of the heads again.",
        f"Over the seeds of sampling ACS-Learned's Acc@0.5 has a standard deviation of "
        f"{spread_of(learned['acc50_sd'], '.1f')} points, and its difference with greedy decoding goes from "
        f"{spread_of([*learned['delta_vs_greedy_lowest'], *learned['delta_vs_greedy_highest']])}.",
    ]
    sentences = [say_ablations(table).data.removeprefix("**Takeaway.** "), *told]
    _write_headline(folder, "What the method depends on: ablations and analyses", sentences, [])
    return say(" ".join(told))


def _write_headline(folder: Path, title: str, sentences: list[str], found: list[dict]) -> None:
    content = {"title": title, "sentences": sentences, "cards": found}
    write_text(Path(folder) / "tables" / "headline.json", json.dumps(content))


def _points(row, value: str) -> str:
    """A difference of rates with its interval, in percentage points: '+1.2 [-0.3, +2.7]'."""
    return estimate(row, value, "+.1f", 100)
