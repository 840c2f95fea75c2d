"""TODO report.sentences."""

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
from IPython.display import Markdown

from acs_lib import paths
from acs_lib.core.candidates import COORDINATES
from acs_lib.core.files import write_text
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.claims import LEVEL, lower_for_good
from acs_lib.evaluation.confidence import PUBLISHED_AUROC
from acs_lib.method.heads import HeadSet
from acs_lib.study import ablations, robustness
from acs_lib.study.ablations import Bench
from acs_lib.study.results import CONTROLS
from acs_lib.study.stages import Study
from acs_lib.study.training_variants import variant_log

POINTS = "percentage points"


def say(text: str, points: Iterable[str] = ()) -> Markdown:
    """A takeaway, shown as text, and its points as a list below."""
    return Markdown(f"**Takeaway.** {text[:1].upper()}{text[1:]}" + "".join(f"\n- {point}" for point in points))


def say_greedy_to_oracle(room: pd.DataFrame) -> Markdown:
    """Greedy, random and oracle Acc@0.5 on small objects, from `room_to_choose`."""
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
    log, sampling = variant_log(), study.profile.sampling
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


def headline(study: Study, main: pd.DataFrame, compared: pd.DataFrame) -> Markdown:
    """Write tables/headline.json for the page and show the same sentences."""
    sentences = []
    for (lvlm, dataset), rows in main.groupby(["lvlm", "dataset"], sort=False):
        rows = rows.set_index("method")
        acc = rows["acc50"]
        sentences.append(
            f"Measured on {dataset} with {lvlm}, {rows['n_queries'].iloc[0]} small objects: "
            f"greedy {acc['greedy']:.1%}, ACS-Free {acc['ACS-Free']:.1%}, "
            f"ACS-Learned {acc['ACS-Learned']:.1%}, oracle {acc[ORACLE]:.1%}."
        )
    told = ", ".join(
        f"{name} {published.SMALL_OBJECTS[name][0]:.1f}%" for name in ("greedy", "ACS-Free", "ACS-Learned")
    )
    sentences.append(f"Published ({' on '.join(published.COLUMNS[0])}): {told}.")
    sentences += [planted(study)] if planted(study) else []
    title = "Self-Improving Small Object Grounding in LVLMs, reproduced step by step"
    path = paths.reports(study.profile.name) / "tables" / "headline.json"
    write_text(path, json.dumps({"title": title, "sentences": sentences}))
    return say("in short:", sentences)


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


def say_training_variants(log: pd.DataFrame) -> Markdown:
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
        first, *others = (
            f"{rows['auroc'][name]:.2f} [{rows['auroc_lo'][name]:.2f}, {rows['auroc_hi'][name]:.2f}] ({name})"
            for name in dict.fromkeys(names)
        )
        parts.append(f"{lvlm} on {dataset}: the best is {first}, beside {', '.join(others)}")
    published = "; ".join(f"{name} {numbers}" for name, numbers in PUBLISHED_AUROC.items())
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


def say_calibration(errors: pd.DataFrame) -> Markdown:
    """Expected calibration error and the direction of the bias, from `calibration_tables`."""
    parts = [
        f"{row.lvlm} on {row.dataset}: predicted IoU is off by {row.ece:.2f} [{row.ece_lo:.2f}, {row.ece_hi:.2f}]; its "
        f"mean is {row.predicted:.2f}, that of the true IoU {row.iou:.2f}"
        for row in errors.itertuples()
    ]
    return say("how far predicted IoU is off, on average over bins:", parts)


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


def say_attributions(table: pd.DataFrame, agreement: pd.DataFrame) -> Markdown:
    """Whether the attributions agree on the order of the layers and on D_c, from `attribution_tables`."""
    parts = []
    for lvlm, rows in table.groupby("lvlm", sort=False):
        tops = ", ".join(f"{rows['layer'][rows[name].idxmax()]} by {name}" for name in robustness.ATTRIBUTIONS)
        pairs = agreement[agreement["lvlm"] == lvlm]
        told = ", ".join(f"{row.spearman:+.2f} ({row.a} and {row.b})" for row in pairs.itertuples())
        shared = ", ".join(f"{row.jaccard:.0%}" for row in pairs.itertuples())
        parts.append(
            f"{lvlm}: the first layer is {tops}; rank correlations over the layers are {told}, and of the heads "
            f"with the best AUROC inside the first {pairs['layers'].iloc[0]} layers the same pairs share {shared}"
        )
    return say("three ways to attribute, compared:", parts)


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


def say_cost(table: pd.DataFrame) -> Markdown:
    """Milliseconds a query by stage, from `cost_table`."""
    parts = []
    for lvlm, rows in table.groupby("lvlm", sort=False):
        told = ", ".join(f"{row.stage} {1000 * row.seconds_per_query:.1f} ms" for row in rows.itertuples())
        parts.append(f"{lvlm}: {told}")
    return say("milliseconds a query with all its answers, on this machine:", parts)
