"""Takeaways of what is not in the paper (notebook 10): verdicts by rule from the tables, whatever these say.

The first sentence answers the section's question; what holds for a single column is in the table. A difference helps
where its 95 % interval, from drawing images, is above 0, harms where it is below, and else is not told apart. Nothing
is corrected for how many differences there are, so one in twenty is told apart by chance.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from acs_lib.core.files import write_text
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.report.sentences import say, spread_of
from acs_lib.report.style import CONDITIONS, told
from acs_lib.study import advice, effort, instances, intervention, label_free, risk, zoom

HELPS, HARMS, NEITHER = "helps", "harms", "not told apart"
OF_ALL = ("sequence log-prob", "ACS-Free", "ACS-Learned")  # the methods that are told of, whichever is best
TITLE = "Beyond the paper: a closer look, all instances, promises, fewer answers, heads without labels"


def verdict(row, value: str) -> str:
    """Of a difference `value` of a row, by its interval."""
    return HELPS if getattr(row, f"{value}_lo") > 0 else HARMS if getattr(row, f"{value}_hi") < 0 else NEITHER


def tally(rows: pd.DataFrame, value: str) -> str:
    """'helps in 3, harms in 1, not told apart in 4 of 8 (-1.0 to +5.2 points)': verdicts, and the range of the
    differences; 'measured nowhere' without rows."""
    if rows.empty:
        return "measured nowhere"
    found = [verdict(row, value) for row in rows.itertuples()]
    counts = ", ".join(f"{name} in {found.count(name)}" for name in (HELPS, HARMS, NEITHER))
    return f"{counts} of {len(found)} ({spread_of(rows[value])} points)"


def answer(rows: pd.DataFrame, value: str) -> str:
    """What the verdicts say to a question whether something helps: 'yes' where it does everywhere, 'in part' where it
    does and harms nowhere, 'it depends' where it does and harms too, 'no' where it only harms, else 'not shown'."""
    found = {verdict(row, value) for row in rows.itertuples()}
    if HELPS in found:
        return "yes" if found == {HELPS} else "it depends" if HARMS in found else "in part"
    return "no" if HARMS in found else "not shown"


def by_method(rows: pd.DataFrame, value: str) -> str:
    """'ACS-Free helps in ...; ACS-Learned ...'."""
    return "; ".join(f"{name} {tally(part, value)}" for name, part in rows.groupby("method", sort=False))


def say_renderings(table: pd.DataFrame) -> Markdown:
    """How much more is found, and how much better told, in scenes with more detail than in the same ones without, from
    renderings.csv."""
    if table.empty:
        return say("there is no other rendering of these images.")
    (finer, own), (coarse, other) = table.groupby("dataset", sort=False)
    r = [f"{rows['pearson'].min():.2f} to {rows['pearson'].max():.2f}" for rows in (own, other)]
    return say(
        f"more detail on disk than a look shows helps by itself: {answer(other, 'delta_greedy')}. {finer} instead of "
        f"{coarse}, the same scenes without it, {tally(other, 'delta_greedy')} for greedy decoding and "
        f"{tally(other, 'delta_oracle')} for the best of the samples (Acc@0.5). Pearson's r of predicted and true IoU "
        f"is {r[0]} instead of {r[1]}, by a regressor that saw {finer} alone."
    )


def say_zoom(table: pd.DataFrame) -> Markdown:
    """Whether a second look around the greedy box helps, at as many answers and at one answer each, from zoom.csv."""
    near, ten = table[table["window"] == zoom.GREEDY], table[table["budget"] == zoom.TEN]
    second = near[(near["budget"] == zoom.ONES) & (near["method"] == zoom.SECOND)]
    even = near[(near["budget"] == zoom.FIVES) & near["method"].isin(OF_ALL)]
    if near.empty:
        return say("no answer held a box to look at.")
    more = near["prompt_tokens"].mean() / ten["prompt_tokens"].mean()
    return say(
        f"a closer look finds more than more answers do: {answer(even, 'delta_vs_ten')}. Around the greedy box, five "
        "answers to each look instead of ten to the whole image, over LVLMs, datasets and zooms: "
        f"{by_method(even, 'delta_vs_ten')}; as many answers, but {more:.1f} times the tokens that are read. The one "
        f"answer to the window instead of the greedy one {tally(second, 'delta_vs_greedy')}."
    )


def say_instances(table: pd.DataFrame) -> Markdown:
    """Whether several lists, scored, find more than the greedy list, from instances.csv; published numbers apart."""
    rest, greedy = (table[(table["method"] == instances.GREEDY) == same] for same in (False, True))
    before, after = (instances.PUBLISHED_AP[name] for name in (instances.GREEDY, instances.MTLA))
    return say(
        f"several lists, scored, are better than the greedy one: {answer(rest, 'delta_ap')}. AP on "
        f"{greedy['n'].max()} images, over LVLMs: {by_method(rest, 'delta_ap')}; the greedy list's is "
        f"{spread_of(greedy['ap'], '.1f')}. Published, another LVLM and other data (arXiv 2607.05978): {before} by the "
        f"greedy list, {after} by {instances.MTLA}."
    )


def kept(row) -> str:
    """Of a promise over random splits: 'kept' where the mean share of wrong answers is at most alpha (wrong of all), or
    where at most a share delta of the splits has a larger one (wrong of the answered); if not, 'broken' where the
    interval of what it bounds is above alpha on the test split, else 'above, not told apart'; 'none' where no threshold
    can keep it, so that nothing is answered."""
    if pd.isna(row.threshold):
        return "none"
    if row.promise == risk.CONFORMAL:
        bounded, holds = "wrong", row.wrong_over_splits <= row.alpha
    else:
        bounded, holds = "selective_risk", row.above_alpha <= row.delta
    if holds:
        return "kept"
    return "broken" if getattr(row, f"{bounded}_lo") > row.alpha else "above, not told apart"


def say_risk(table: pd.DataFrame) -> Markdown:
    """How often the two promises are kept where they were calibrated and elsewhere, and what is answered at the middle
    one of the alphas, from risk.csv."""
    verdicts, counts = table.apply(kept, axis=1), []
    home = table["dataset"] == table["calibrated_on"]
    for place, rows in (("on the dataset that calibrated them", home), ("on another one", ~home)):
        for promise in (risk.CONFORMAL, risk.TESTED):
            found = list(verdicts[rows & (table["promise"] == promise)])
            if found:
                told_of = ", ".join(f"{name} {found.count(name)}" for name in dict.fromkeys(found))
                counts.append(f"'{promise}' {place}: {told_of} of {len(found)}")
    alpha, parts = risk.middle(table["alpha"]), []
    at = table[(table["alpha"] == alpha) & home]
    for name, rows in at[at["method"].isin(OF_ALL)].groupby("method", sort=False):
        given = rows[rows["threshold"].notna()]
        shares = spread_of(given["answered"], ".0f"), spread_of(given["selective_risk"], ".0f")
        parts.append(f"{name} {shares[0]} % of the questions and {shares[1]} % of these wrongly" if len(given) else
                     f"{name} nothing")  # fmt: skip
    kept_where = f"over all scores, alphas and random splits the promises are, {'; '.join(counts)}."
    if at.empty:
        return say(kept_where)
    n, absent = at[["n", "n_absent"]].max()
    return say(
        f"{kept_where} At alpha = {alpha:g}, where "
        f"they were calibrated, over the promises and LVLMs (n = {n}, {absent} of them about absent objects), "
        f"{'; '.join(parts)} is answered."
    )


def say_effort(table: pd.DataFrame) -> Markdown:
    """What stopping at the validation images' threshold saves and costs, from effort.csv."""
    auto, most = table[table["rule"] == effort.AUTO], table.loc[table["rule"] == effort.ALWAYS, "answers"].max()
    means = auto.groupby("method", sort=False)[["answers", "looks"]].mean()
    lossless = [name for name, rows in auto.groupby("method") if (rows["delta_vs_always_hi"] >= 0).all()]
    found = means.loc[lossless, "answers"]
    enough = f"{found.min():.1f}, by {found.idxmin()}" if lossless else "all of them, for every score loses"
    counts = "; ".join(
        f"{name} {means.loc[name, 'answers']:.1f} answers in {means.loc[name, 'looks']:.1f} looks, "
        f"{tally(rows, 'delta_vs_always')}"
        for name, rows in auto.groupby("method", sort=False)
    )
    return say(
        f"of {most:.0f} answers so many are enough where no loss is told apart in any column: {enough}. Stopping as "
        f"soon as the score is enough, against always all at once (means over columns): {counts}. A further look "
        "encodes the image again, so fewer answers need not be fewer seconds (in the table)."
    )


def say_label_free(table: pd.DataFrame) -> Markdown:
    """Whether heads found without annotations choose better than random ones and as well as D_c, from
    label_free_heads.csv: those of the most images."""
    free = table[table["method"] == label_free.FREE]
    free = free[free["images"] == free.groupby(["lvlm", "dataset"])["images"].transform("max")]
    columns = len(table[["lvlm", "dataset"]].drop_duplicates())
    if free.empty:
        return say("no heads without annotations: no question has answers that agree and others that do not.")
    return say(
        f"heads found without one annotated box are better than random ones: {answer(free, 'delta_vs_random')}. Found "
        f"in {len(free)} of {columns} columns, ACS-Free with them {tally(free, 'delta_vs_random')} against random "
        f"heads, {tally(free, 'delta_vs_d_c')} against D_c, and {tally(free, 'delta_vs_greedy')} against greedy. Their "
        f"overlap with the labelled heads (Jaccard) is {free['jaccard'].min():.2f} to {free['jaccard'].max():.2f}."
    )


def say_intervention(table: pd.DataFrame) -> Markdown:
    """Whether the LVLM needs D_c's heads, and more than random ones, for its greedy answers, from intervention.csv."""
    methods = {name: rows.set_index(["lvlm", "dataset"]) for name, rows in table.groupby("method")}
    chosen, random = methods[intervention.CHOSEN], methods[intervention.RANDOM]
    more = int((chosen["delta_acc50_hi"] < random.loc[chosen.index, "delta_acc50_lo"]).sum())
    needed = "yes" if more == len(chosen) else "in part" if more else "not shown"
    others = table[~table["method"].isin([intervention.NONE, intervention.CHOSEN])]
    return say(
        f"the LVLM needs D_c's heads more than random ones: {needed}, for in {more} of {len(chosen)} columns surely "
        f"more is lost without them (intervals that do not touch). Losing them {tally(chosen, 'delta_acc50')}. Losing "
        f"{by_method(others, 'delta_acc50')}."
    )


def say_sinks(table: pd.DataFrame, masked: pd.DataFrame) -> Markdown:
    """Whether the image's border draws more attention than its share, and whether ACS-Free is better without it, from
    sinks.csv and sinks_masked.csv."""
    border, tried = table[table["method"] == "border"], masked[masked["delta_vs_free"].notna()]
    above, top = int((border["share_lo"] > border["even_share"]).sum()), border.loc[border["share"].idxmax()]
    return say(
        f"ACS-Free is better without the cells that draw attention anyway: {answer(tried, 'delta_vs_free')}. Against "
        f"ACS-Free as it is, {by_method(tried, 'delta_vs_free')}. The border draws surely more than its even share in "
        f"{above} of {len(border)} layers, at most {estimate(top, 'share')} ({top['lvlm']}, layer {top['layer']}; "
        f"even: {top['even_share']:.0%})."
    )


def say_advice(table: pd.DataFrame) -> Markdown:
    """With the habit and without, where LVLMs have a condition: the most accurate of the ways that are told apart above
    greedy in all columns, and of those among them that need neither annotations, training nor attention; from
    advice.csv."""
    best, alone = [], []
    for condition, rows in table.groupby(table["condition"].fillna(""), sort=False):
        columns = len(rows[["lvlm", "dataset"]].drop_duplicates())
        above = rows[rows["delta_vs_greedy_lo"] > 0]
        sure = above[above.groupby("method")["method"].transform("size") == columns]
        needy = sure["training"].astype(bool) | sure["attention"].astype(bool) | (sure["labels"] != advice.NOTHING)
        for found, ways in ((best, sure), (alone, sure[~needy])):
            found.append(f"{CONDITIONS[condition]} {best_way(ways)}".strip())
    return say(
        f"the most accurate way of those that are above greedy in all columns is {', '.join(best)}. Of those among "
        f"them that need answers alone it is {', '.join(alone)}. The best of many looks better than it is, and no way "
        "was chosen beforehand."
    )


def best_way(ways: pd.DataFrame) -> str:
    """'ACS-Learned (+7.1 points, 11.0 answers)': the way with the highest mean difference with greedy, and its means;
    'none' of none."""
    if ways.empty:
        return "none"
    means = ways.groupby("method", sort=False)[["delta_vs_greedy", "answers"]].mean()
    best = means.loc[means["delta_vs_greedy"].idxmax()]
    return f"{best.name} ({100 * best['delta_vs_greedy']:+.1f} points, {best['answers']:.1f} answers)"


def headline(takeaways: Iterable[Markdown], folder: Path) -> Markdown:
    """Write `folder`/tables/headline.json for the page, the first sentence of each of some takeaways, and show them."""
    sentences = [told(takeaway)[0].partition(". ")[0].rstrip(".:") + "." for takeaway in takeaways]
    write_text(Path(folder) / "tables" / "headline.json", json.dumps({"title": TITLE, "sentences": sentences}))
    return say("in short:", sentences)
