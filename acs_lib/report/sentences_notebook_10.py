"""Takeaways of what is not in the paper (notebook 10): verdicts by rule from the tables, whatever these say.

A difference helps where its 95 % interval, from drawing images, is above 0, harms where it is below, and else is not
told apart. Nothing is corrected for how many differences there are, so one in twenty is told apart by chance.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from acs_lib.core.files import write_text
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.report.sentences import say
from acs_lib.report.style import told
from acs_lib.study import advice, effort, instances, intervention, label_free, risk, zoom

HELPS, HARMS, NEITHER = "helps", "harms", "not told apart"
OF_ALL = ("sequence log-prob", "ACS-Free", "ACS-Learned")  # the methods that are told of, whichever is best
TITLE = "Beyond the paper: a closer look, all instances, promises, fewer answers, heads without labels"


def verdict(row, value: str) -> str:
    """Of a difference `value` of a row, by its interval."""
    return HELPS if getattr(row, f"{value}_lo") > 0 else HARMS if getattr(row, f"{value}_hi") < 0 else NEITHER


def tally(rows: pd.DataFrame, value: str) -> str:
    """'helps in 3, harms in 1, not told apart in 4 of 8'."""
    found = [verdict(row, value) for row in rows.itertuples()]
    return ", ".join(f"{name} in {found.count(name)}" for name in (HELPS, HARMS, NEITHER)) + f" of {len(found)}"


def judged(row, value: str) -> str:
    """'+1.2 [-0.3, +2.7], not told apart': a difference in points, and its verdict."""
    return f"{estimate(row, value, '+.1f', 100)}, {verdict(row, value)}"


def by_column(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """('<lvlm> on <dataset>', its rows)."""
    for (lvlm, dataset), rows in table.groupby(["lvlm", "dataset"], sort=False):
        yield f"{lvlm} on {dataset}", rows


def say_zoom(table: pd.DataFrame) -> Markdown:
    """Whether a second look around the greedy box helps, at one answer each and at as many answers, from zoom.csv."""
    near = table[table["window"] == zoom.GREEDY]
    second = near[(near["budget"] == zoom.ONES) & (near["method"] == zoom.SECOND)]
    even = near[(near["budget"] == zoom.FIVES) & near["method"].isin(OF_ALL)]
    parts = []
    for name, rows in by_column(table):
        own, pooled = (each.loc[each.index.intersection(rows.index)] for each in (second, even))
        looks = [f"{row.times:g} times closer {judged(row, 'delta_vs_greedy')}" for row in own.itertuples()]
        looks += [
            f"{row.method}, 5 + 5, {row.times:g} times {judged(row, 'delta_vs_ten')}" for row in pooled.itertuples()
        ]
        parts.append(f"{name} (n = {rows['n'].iloc[0]}): {'; '.join(looks) or 'no answer held a box to look at'}")
    counts = "; ".join(f"by {name} {tally(rows, 'delta_vs_ten')}" for name, rows in even.groupby("method", sort=False))
    return say(
        f"the box of a second look at a window around the greedy box, against the greedy box itself: "
        f"{tally(second, 'delta_vs_greedy')} cases (LVLM, dataset, zoom). Five answers to each look against ten to the "
        f"whole image: {counts or 'no window'}. Points of Acc@0.5, paired 95 % intervals:",
        parts,
    )


def say_instances(table: pd.DataFrame) -> Markdown:
    """Whether several lists, scored, find more than the greedy list, from instances.csv; published numbers apart."""
    rest, parts = table[table["method"] != instances.GREEDY], []
    for name, rows in by_column(table):
        greedy, *others = rows.set_index("method", drop=False).loc[[*instances.METHODS]].itertuples()
        gains = "; ".join(f"{row.method} {judged(row, 'delta_ap')}" for row in others)
        parts.append(
            f"{name} ({greedy.n} images): the greedy list's AP is {estimate(greedy, 'ap', '.1f', 100)}; {gains}"
        )
    counts = "; ".join(f"{name} {tally(rows, 'delta_ap')}" for name, rows in rest.groupby("method", sort=False))
    before, after = (instances.PUBLISHED_AP[name] for name in (instances.GREEDY, instances.MTLA))
    return say(
        f"AP of several lists' boxes against that of the greedy list: {counts}. Published, another LVLM and other data "
        f"(arXiv 2607.05978): {before} by the greedy list, {after} by {instances.MTLA}. Measured here, in points with "
        "paired 95 % intervals:",
        parts,
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
    at = table[(table["alpha"] == alpha) & table["method"].isin(OF_ALL)]
    for name, rows in by_column(at):
        said = [
            f"{row.method}, {row.promise}: answers {estimate(row, 'answered', '.1f', 100)} %, "
            f"{estimate(row, 'selective_risk', '.1f', 100)} % of these wrong, {kept(row)}"
            if pd.notna(row.threshold) else f"{row.method}, {row.promise}: no threshold keeps it"
            for row in rows.itertuples()
        ]  # fmt: skip
        n, absent = rows[["n", "n_absent"]].iloc[0]
        parts.append(f"{name} (n = {n}, {absent} of them about absent objects): {'; '.join(said)}")
    return say(f"promises over all scores, alphas and random splits: {'; '.join(counts)}. At alpha = {alpha:g}:", parts)


def say_effort(table: pd.DataFrame) -> Markdown:
    """What stopping at the validation images' threshold saves and costs, from effort.csv."""
    auto, parts = table[table["rule"] == effort.AUTO], []
    most = table.loc[table["rule"] == effort.ALWAYS, "answers"].max()
    for name, rows in by_column(auto):
        said = [
            f"{row.method} {estimate(row, 'answers', '.1f')} answers, {judged(row, 'delta_vs_always')}"
            for row in rows.itertuples()
        ]
        parts.append(f"{name} (n = {rows['n'].iloc[0]}): {'; '.join(said)}")
    counts = "; ".join(
        f"{name} takes {rows['answers'].mean():.1f} of {most:.0f} answers and {tally(rows, 'delta_vs_always')}"
        for name, rows in auto.groupby("method", sort=False)
    )
    return say(
        f"stopping as soon as the score is enough, against always all (means over columns): {counts}. Points of "
        "Acc@0.5, paired 95 % intervals:",
        parts,
    )


def say_label_free(table: pd.DataFrame) -> Markdown:
    """Whether heads found without annotations choose better than random ones and as well as D_c, from
    label_free_heads.csv: those of the most images."""
    free, parts = table[table["method"] == label_free.FREE], []
    free = free[free["images"] == free.groupby(["lvlm", "dataset"])["images"].transform("max")]
    for name, rows in by_column(table):
        own = free.loc[free.index.intersection(rows.index)]
        parts += [f"{name}: no heads, for no question has answers that agree and others that do not"] * own.empty
        parts += [
            f"{name} (n = {row.n}, {row.images} images): against random heads {judged(row, 'delta_vs_random')}; "
            f"against D_c {judged(row, 'delta_vs_d_c')}; against greedy {judged(row, 'delta_vs_greedy')}; "
            f"overlap with the labelled heads {row.jaccard:.2f}"
            for row in own.itertuples()
        ]
    return say(
        f"ACS-Free with heads from the LVLM's own consensus, without one annotation: against random heads it "
        f"{tally(free, 'delta_vs_random')}, against D_c it {tally(free, 'delta_vs_d_c')} columns. Points of Acc@0.5, "
        "paired 95 % intervals:",
        parts,
    )


def say_intervention(table: pd.DataFrame) -> Markdown:
    """Whether the LVLM needs D_c's heads, and more than random ones, for its greedy answers, from intervention.csv."""
    parts, more = [], 0
    for name, rows in by_column(table):
        by_heads = rows.set_index("method", drop=False)
        chosen, random = (by_heads.loc[method] for method in (intervention.CHOSEN, intervention.RANDOM))
        apart = chosen["delta_acc50_hi"] < random["delta_acc50_lo"]
        more += apart
        without = "; ".join(
            f"without {row.method} {judged(row, 'delta_acc50')}"
            for row in rows.itertuples()
            if row.method != intervention.NONE
        )
        verdict_here = "surely more is lost" if apart else "it is not told that more is lost"
        parts.append(f"{name} (n = {chosen['n']}): {without}; {verdict_here} without D_c than without random heads")
    chosen = table[table["method"] == intervention.CHOSEN]
    return say(
        f"greedy answers without D_c's heads: losing them {tally(chosen, 'delta_acc50')} columns, and in {more} "
        "surely more than losing as many random heads (intervals that do not touch). Points of Acc@0.5, paired 95 % "
        "intervals:",
        parts,
    )


def say_sinks(table: pd.DataFrame, masked: pd.DataFrame) -> Markdown:
    """Whether the image's border draws more attention than its share, and whether ACS-Free is better without it, from
    sinks.csv and sinks_masked.csv."""
    parts = []
    for name, rows in by_column(table[table["method"] == "border"]):
        above = rows[rows["share_lo"] > rows["even_share"]]
        top = rows.loc[rows["share"].idxmax()]
        parts.append(
            f"{name} ({top['n']} answers): surely more than its even share ({top['even_share']:.0%}) in "
            f"{len(above)} of {len(rows)} layers, at most {estimate(top, 'share')} (layer {top['layer']})"
        )
    for name, rows in by_column(masked[masked["delta_vs_free"].notna()]):
        said = "; ".join(
            f"{row.method} ({row.masked} cells) {judged(row, 'delta_vs_free')}" for row in rows.itertuples()
        )
        parts.append(f"{name} (n = {rows['n'].iloc[0]}): {said}")
    counts = "; ".join(
        f"{name} {tally(rows, 'delta_vs_free')}"
        for name, rows in masked[masked["delta_vs_free"].notna()].groupby("method", sort=False)
    )
    return say(f"attention on the border, and ACS-Free without it, against ACS-Free as it is: {counts}.", parts)


def say_advice(table: pd.DataFrame) -> Markdown:
    """In every column the most accurate of the ways that are told apart above greedy, and of those among them that need
    neither annotations, training nor attention; and the ways that are so in all columns, from advice.csv."""
    above = table[table["delta_vs_greedy_lo"] > 0]
    columns, parts = table[["lvlm", "dataset"]].drop_duplicates(), []
    for name, rows in by_column(table):
        sure = rows[rows.index.isin(above.index)].sort_values("acc50", ascending=False, kind="stable")
        bare = sure[
            (sure["labels"] == advice.NOTHING) & ~sure["training"].astype(bool) & ~sure["attention"].astype(bool)
        ]
        best = [
            f"{what} {row.method} ({judged(row, 'delta_vs_greedy')}, {row.answers:.1f} answers, n = {row.n})"
            for what, part in (("the best is", sure), ("the best that needs answers alone is", bare))
            for row in part.head(1).itertuples()
        ]
        parts.append(f"{name}: {'; '.join(best) or 'greedy, for no way is told apart above it'}")
    everywhere = [name for name, rows in above.groupby("method", sort=False) if len(rows) == len(columns)]
    return say(
        f"ways that are above greedy with their whole interval in all {len(columns)} columns: "
        f"{'; '.join(everywhere) or 'none'}. The best of many looks better than it is, and no way was chosen "
        "beforehand; in points of Acc@0.5:",
        parts,
    )


def headline(takeaways: Iterable[Markdown], folder: Path) -> Markdown:
    """Write `folder`/tables/headline.json for the page, the first sentences of some takeaways, and show them."""
    sentences = [told(takeaway)[0].rstrip(":") for takeaway in takeaways]
    write_text(Path(folder) / "tables" / "headline.json", json.dumps({"title": TITLE, "sentences": sentences}))
    return say("in short:", sentences)
