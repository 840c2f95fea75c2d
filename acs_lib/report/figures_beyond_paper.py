"""Figures of confidence, analyses, ablations and cost, in the style of acs_lib.report.figures."""

import itertools
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from acs_lib.report.style import (
    BLUE,
    CHANCE,
    DIAGONAL,
    EDGED,
    GREEN,
    GREY,
    LIGHT,
    METHOD_LOOKS,
    ORANGE,
    VERMILLION,
    forest,
    formula,
    legend_below,
    looks_of,
    marks,
    offsets,
    panel_grid,
    panels,
    points,
    row_grid,
    styled,
)
from acs_lib.study import ablations

MISTAKES = {  # kind -> colour, marker, label
    "near miss": (BLUE, "o", "against near miss"),
    "another object": (VERMILLION, "^", "against another object"),
    "nothing": (GREY, "s", "against nothing"),
}
ANSWERS = {"all": (BLUE, "o", "all answers"), "greedy": (VERMILLION, "^", "greedy answers alone")}
SEEDS = {"sampling": (BLUE, "o"), "regressor": (VERMILLION, "^")}  # source of randomness -> colour, marker
SCORES = {  # score -> colour, marker, size
    "entropy, one head": (GREY, "o", 4),
    "entropy, all heads": (BLUE, "s", 8),
    "entropy, D_c": (GREEN, "P", 8),
    "ACS-Learned": (VERMILLION, "*", 10),
}
SIZED = {"ACS-Learned": (VERMILLION, "*"), "ACS-Free": (GREEN, "P"), "box size, learned": (BLUE, "s")}  # as marks
FOREST = ("ACS-Learned", "ACS-Free")
ROWS = 8  # of the values of a factor, where there are more numbers


def _methods_by_group(frame: pd.DataFrame, value: str, column: str, groups: Mapping[str, tuple], xlabel: str) -> Figure:
    """A row a method, and in it the `value` (0.5 is chance) in each of the `groups`, which the `column` names."""
    groups = {name: look for name, look in groups.items() if (frame[column] == name).any()}
    figure, grid, places = row_grid(frame, "method", 3.6, 0.1 + 0.1 * len(groups), 2.2, xlabel=xlabel)
    for axes, block in grid:
        axes.axvline(0.5, **CHANCE)
        for shift, (name, (colour, marker, label)) in zip(offsets(len(groups), 0.24), groups.items()):
            rows = block[block[column] == name]
            heights = rows["method"].map(places).astype(float) + shift  # a panel may have none of a group
            points(axes, rows, value, y=heights, label=label, **marks(colour, marker))
    return legend_below(figure)


@styled
def ranked_right(frame: pd.DataFrame) -> Figure:
    """How often each score puts a good box above a mistake of the same query, by kind (no figure of the paper).

    frame: columns method, kind, pair_auroc, _lo, _hi (0-1), pairs, and optionally lvlm, dataset (a panel each); see
        acs_lib.evaluation.mistakes.ranked_right
    """
    return _methods_by_group(frame, "pair_auroc", "kind", MISTAKES, "pairs ranked right (0.5 is chance)")


@styled
def confidence(frame: pd.DataFrame) -> Figure:
    """AUROC (0-1) of every score for 'IoU at least 0.5', with 95 % intervals; chance is the dotted line.

    frame: columns method, answers (all, greedy), auroc, auroc_lo, auroc_hi, and lvlm, dataset (a panel each)
    """
    return _methods_by_group(frame, "auroc", "answers", ANSWERS, "AUROC for IoU >= 0.5")


@styled
def seeds(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 of every seed, and how wide the interval over images is beside it (no figure of the paper).

    frame: columns source, seed, method, acc50, acc50_lo, acc50_hi (0-1), and optionally lvlm, dataset (a panel each);
        see acs_lib.study.seeds
    """
    figure, grid, places = row_grid(frame, "method", 3.6, 0.36, 1.9, xlabel="Acc@0.5, small objects")
    sources = {source: look for source, look in SEEDS.items() if (frame["source"] == source).any()}
    for axes, block in grid:
        own = block.drop_duplicates("method")
        look = {"color": LIGHT, "linewidth": 7, "label": "95 % over images"}
        axes.hlines(own["method"].map(places), own["acc50_lo"], own["acc50_hi"], **look)
        for shift, (source, (colour, marker)) in zip(offsets(len(sources), 0.3), sources.items()):
            rows = block[block["source"] == source]
            look = {"linestyle": "", "alpha": 0.8, "label": f"seeds of {source}", **marks(colour, marker)}
            axes.plot(rows["acc50"], rows["method"].map(places) + shift, **look)
    return legend_below(figure)


@styled
def transfer(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) of ACS-Free on each dataset with the heads found on each, with 95 % intervals.

    frame: columns found_on, applied_to, acc50, acc50_lo, acc50_hi, and lvlm
    """
    labels = {"xlabel": "Acc@0.5 of ACS-Free", "ylabel": "heads found on"}
    figure, grid, places = row_grid(frame, "found_on", 3.2, 0.3, 1.8, keys=("lvlm", "applied_to"), **labels)
    for axes, block in grid:
        points(axes, block, "acc50", y=block["found_on"].map(places), **marks(GREEN, "P", 7))
    return figure


@styled
def training_variants(frame: pd.DataFrame) -> Figure:
    """What choosing by attention gained over greedy in every design of an LVLM that the log holds, against how many of
    the mistakes in mixed queries are other objects (no figure of the paper).

    frame: columns design, edition, dataset, share another object, delta_learned_vs_greedy, _lo, _hi (0-1), and
        optionally lvlm (a panel each)
    """
    frame = frame.assign(design=frame["design"] + ", edition " + frame["edition"].astype(str))
    frame = frame.assign(**{f"gain{end}": 100 * frame[f"delta_learned_vs_greedy{end}"] for end in ("", "_lo", "_hi")})
    labels = {"xlabel": "mistakes that are another object, share", "ylabel": "ACS-Learned - greedy (points)"}
    figure, grid = panel_grid(frame, 4.2, 3.9, 1.2, **labels)
    looks = looks_of(dict.fromkeys(frame["design"]))
    for axes, block in grid:
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        for design, rows in block.groupby("design", sort=False):
            points(axes, rows, "gain", x=rows["share another object"], label=design, **marks(*looks[design][:2], 7))
    return legend_below(figure)


@styled
def risk_coverage(frame: pd.DataFrame) -> Figure:
    """Share of misses (0-1) among the answers that a score is surest of, against how many are kept.

    frame: columns method, coverage, risk, risk_lo, risk_hi, and lvlm, dataset (a panel each)
    Markers carry 95 % intervals; each method has them at coverages of its own, so that they do not overlap.
    """
    methods = list(dict.fromkeys(frame["method"]))
    looks = looks_of(methods)
    labels = {"xlabel": "coverage (share of answers kept)", "ylabel": "risk (share with IoU < 0.5)"}
    figure, grid = panel_grid(frame, 3.6, 3.6, 1.2, **labels)
    for axes, block in grid:
        for method, rows in block.groupby("method", sort=False):
            colour, marker, line, _ = looks[method]
            every = (methods.index(method), len(methods))
            look = {"linestyle": line, "errorevery": every, "markevery": every, "capsize": 2, "label": method}
            points(axes, rows, "risk", x=rows["coverage"], **look, **marks(colour, marker), **EDGED)
    return legend_below(figure)


@styled
def reliability_diagram(bins: pd.DataFrame, errors: pd.DataFrame) -> Figure:
    """Mean true IoU against mean predicted IoU in bins, with 95 % intervals and the diagonal; bars: share of answers.

    bins: columns from, to, n, predicted_iou, iou, iou_lo, iou_hi, and lvlm, dataset (a panel each)
    errors: columns lvlm, dataset, ece, in the same order
    """
    labels = {"xlabel": "predicted IoU", "ylabel": "true IoU", "xlim": (0, 1), "ylim": (0, 1)}
    figure, grid = panel_grid(bins, 3.6, 3.9, 1, **labels)
    for (axes, block), error in zip(grid, errors["ece"], strict=True):
        share = block["n"] / block["n"].sum()
        axes.bar(block["from"], share, block["to"] - block["from"], align="edge", color=LIGHT, label="share of answers")
        axes.plot([0, 1], [0, 1], label="predicted = true", **DIAGONAL)
        look = {"capsize": 3, "label": "mean in bin, 95 % interval", **marks(VERMILLION, "o", 6)}
        points(axes, block, "iou", x=block["predicted_iou"], **look)
        axes.text(0.03, 0.95, f"ECE = {error:.3f}", transform=axes.transAxes, va="top", fontweight="bold")
    return legend_below(figure)


@styled
def stability(frame: pd.DataFrame, most: int = 16) -> Figure:
    """The heads with the highest AUROC, with 95 % intervals over drawn images, and how often a draw selects them.

    frame: columns layer, head, auroc, auroc_lo, auroc_hi, selected, share_of_draws, and lvlm (a row of panels each)
    """
    blocks = panels(frame, "lvlm")
    height = 0.9 + 0.24 * min(most, len(frame) // len(blocks))
    figure, grid = plt.subplots(len(blocks), 2, squeeze=False, sharey="row", figsize=(7.2, 0.6 + height * len(blocks)))
    looks = ((True, VERMILLION, "*", "", "selected on all images"), (False, GREY, "o", "///", "other heads"))
    for (left, right), (title, block) in zip(grid, blocks, strict=True):
        rows = block.nlargest(most, "auroc").reset_index(drop=True)
        for selected, colour, marker, hatch, label in looks:
            part = rows[rows["selected"] == selected]
            points(left, part, "auroc", y=part.index, label=label, **marks(colour, marker))
            right.barh(part.index, part["share_of_draws"], color=colour, hatch=hatch)
        left.axvline(0.5, **CHANCE)
        left.set(title=title, xlabel="AUROC, IoU > 0.6 against 0", ylabel="layer, head")
        left.set_yticks(rows.index, [f"{layer}, {head}" for layer, head in zip(rows["layer"], rows["head"])])
        right.set(xlabel="share of draws that select it", xlim=(0, 1))
        left.invert_yaxis()
    return legend_below(figure)


@styled
def size_effect(frame: pd.DataFrame) -> Figure:
    """Correlation of scores with IoU, and what is left of it at equal object and box area and category.

    frame: partial_correlation.csv: columns score, pearson, partial_pearson_category with its 95 % interval _lo and _hi
        (but for single heads), and lvlm, dataset (a panel each)
    """
    labels = {"xlabel": "r of score and IoU", "ylabel": "partial r, sizes and category held fixed"}
    figure, grid = panel_grid(frame, 3.4, 3.7, 1, **labels)
    for axes, block in grid:
        both = block[["pearson", "partial_pearson_category"]]
        ends = both.min(axis=None), both.max(axis=None)
        axes.plot(ends, ends, **DIAGONAL)
        axes.axhline(0, **CHANCE)
        for score, look in SCORES.items():
            rows = block[block["score"] == score]
            look = {"zorder": 3, "label": formula(score), **marks(*look), **EDGED}
            points(axes, rows, "partial_pearson_category", x=rows["pearson"], **look)
    return legend_below(figure)


@styled
def gains_by_category(frame: pd.DataFrame) -> Figure:
    """What choosing brings over greedy decoding (points of Acc@0.5, paired 95 % intervals) in rare categories, which
    occur small only, and in common ones: by attention, and by size alone (no figure of the paper).

    frame: size_and_category.csv: columns categories, method, delta_vs_greedy, _lo, _hi (-1 to 1), lvlm, dataset,
        condition; without groups of categories (data that is not rendered) all objects are one
    """
    groups = [name for name in dict.fromkeys(frame["categories"]) if name != "all"] or ["all"]
    order = {(group, method): place for place, (group, method) in enumerate(itertools.product(groups, SIZED))}
    rows = frame[frame["categories"].isin(groups) & frame["method"].isin(SIZED)]
    place = [order[key] for key in zip(rows["categories"], rows["method"])]
    rows = rows.assign(row=rows["categories"].str.split(",").str[0] + ": " + rows["method"], place=place)
    rows = rows.sort_values("place", kind="stable")
    return forest(rows, "delta_vs_greedy", SIZED, "Acc@0.5 against greedy (points)")


@styled
def ablation_forest(frame: pd.DataFrame) -> Figure:
    """What changing one thing of the method does: paired differences of Acc@0.5 (points) with the method as the profile
    has it, with 95 % intervals; a row a value, a panel an LVLM. Filled: told apart from 0.

    frame: ablations.csv; values with other queries than the profile's have no difference and no row, and of more than
    ROWS numbers a few stand for all
    """
    rows = frame[frame["method"].isin(FOREST) & frame["delta"].notna() & (frame["factor"] != ablations.STANDARD)]
    kept = [(factor, value) for factor, part in rows.groupby("factor", sort=False) for value in _few(part["value"])]
    rows = rows[[each in set(kept) for each in zip(rows["factor"], rows["value"])]]
    ends = ["delta", "delta_lo", "delta_hi"]
    rows = rows.assign(row=list(zip(rows["factor"], rows["value"])), **{end: 100 * rows[end] for end in ends})
    places, y = {}, 0.0
    for before, each in zip([kept[0], *kept], kept):
        y += 1.7 if each[0] != before[0] else 1.0  # a gap between factors
        places[each] = y
    blocks = panels(rows, "lvlm")
    size = (3.4 + 2.9 * len(blocks), 1.4 + 0.2 * y)
    figure, grid = plt.subplots(1, len(blocks), squeeze=False, sharey=True, sharex=True, figsize=size)
    for axes, (title, block) in zip(grid.flat, blocks, strict=True):
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
        for shift, method in zip(offsets(len(FOREST), 0.36), FOREST):
            part = block[block["method"] == method]
            told = (part["delta_lo"] > 0) | (part["delta_hi"] < 0)
            colour, marker = METHOD_LOOKS[method][:2]
            for shown, face in ((told, colour), (~told, "white")):
                at = part.loc[shown, "row"].map(places) + shift
                points(axes, part[shown], "delta", y=at, markerfacecolor=face, **marks(colour, marker, 4.5))
        axes.set(title=title, xlabel="change of Acc@0.5 (points)")
    firsts = {factor: value for factor, value in reversed(kept)}
    names = [f"{factor}: {value}" if firsts[factor] == value else value for factor, value in kept]
    grid[0][0].set_yticks(list(places.values()), map(formula, names))
    grid[0][0].set_ylim(y + 0.8, 0.2)
    looks = {"linestyle": "", "markeredgewidth": 1.2}
    handles = [Line2D([], [], color=METHOD_LOOKS[m][0], marker=METHOD_LOOKS[m][1], label=m, **looks) for m in FOREST]
    for face, label in ((GREY, "filled: told apart from 0"), ("white", "hollow: not")):
        handles.append(Line2D([], [], color=GREY, marker="s", markerfacecolor=face, label=label, **looks))
    return legend_below(figure, handles)


def _few(values: Iterable[str]) -> list[str]:
    """The values in their order, numbers in theirs; of more than ROWS numbers the first, the last and some evenly
    between."""
    values = list(dict.fromkeys(values))
    if not all(value.replace(".", "", 1).isdigit() for value in values):
        return values
    values.sort(key=float)
    shown = np.linspace(0, len(values) - 1, min(ROWS, len(values))).round().astype(int)
    return [values[place] for place in shown]


@styled
def cost(frame: pd.DataFrame) -> Figure:
    """Milliseconds a query (with all its answers) by stage, and growth of memory for a batch.

    frame: cost.csv: columns stage, seconds_per_query, peak_mb, and lvlm (a row of panels each)
    """
    blocks = panels(frame, "lvlm")
    figure, grid = plt.subplots(len(blocks), 2, squeeze=False, sharey="row", figsize=(7.6, 0.5 + 2.4 * len(blocks)))
    for (left, right), (title, block) in zip(grid, blocks, strict=True):
        place = np.arange(len(block))
        left.barh(place, 1000 * block["seconds_per_query"], color=BLUE)
        right.barh(place, block["peak_mb"], color=ORANGE, hatch="///", edgecolor="white")
        left.set(title=title, xlabel="ms a query")
        left.set_yticks(place, block["stage"])
        right.set(xlabel="growth of memory, MB")
        left.invert_yaxis()
    return figure
