"""Figures of confidence, analyses, ablations and cost, in the style of acs_lib.report.figures."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from acs_lib.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    METHODS,
    MISTAKES,
    ORANGE,
    OTHERS,
    SEEDS,
    VERMILLION,
    error_lengths,
    formula,
    legend_below,
    looks_of,
    name_rows,
    panel_grid,
    panels,
    styled,
)
from acs_lib.study import ablations
from acs_lib.study.robustness import ATTRIBUTIONS


@styled
def ranked_right(frame: pd.DataFrame) -> Figure:
    """How often each score puts a good box above a mistake of the same query, by kind (no figure of the paper).

    frame: columns method, kind, right, lo, hi (0-1), pairs, and optionally lvlm, dataset (a panel each); see
        acs_lib.evaluation.mistakes.ranked_right
    """
    blocks = panels(frame, "lvlm", "dataset")
    methods = list(dict.fromkeys(frame["method"]))
    kinds = [kind for kind in MISTAKES if kind in set(frame["kind"])]
    height = 1.4 + 0.42 * len(methods)
    figure, grid = panel_grid(len(blocks), 3.9, height, 1.6)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        for index, kind in enumerate(kinds):
            colour, marker = MISTAKES[kind]
            rows = block[block["kind"] == kind].set_index("method").reindex(methods)
            place = np.arange(len(methods)) + 0.22 * (index - (len(kinds) - 1) / 2)
            axes.errorbar(
                rows["right"], place, xerr=error_lengths(rows["right"], rows["lo"], rows["hi"]), fmt=marker,
                color=colour, markersize=6, elinewidth=1.2, label=f"against {kind}",
            )  # fmt: skip
        axes.set(title=title, xlabel="pairs ranked right (0.5 is chance)")
    name_rows(grid, {method: place for place, method in enumerate(methods)})
    grid[0].invert_yaxis()
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@styled
def seeds(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 of every seed, and how wide the interval over images is beside it (no figure of the paper).

    frame: columns source, seed, method, acc50, acc50_lo, acc50_hi (0-1), and optionally lvlm, dataset (a panel each);
        see acs_lib.study.seeds
    """
    blocks = panels(frame, "lvlm", "dataset")
    methods = list(dict.fromkeys(frame["method"]))
    height = 1.4 + 0.36 * len(methods)
    figure, grid = panel_grid(len(blocks), 3.6, height, 1.9)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        own = block.drop_duplicates("method")
        places = own["method"].map(methods.index)
        axes.hlines(places, own["acc50_lo"], own["acc50_hi"], color=LIGHT, linewidth=7, label="95 % over images")
        for index, (source, (colour, marker)) in enumerate(SEEDS.items()):
            rows = block[block["source"] == source]
            place = rows["method"].map(methods.index) + 0.3 * (index - 0.5)
            axes.plot(rows["acc50"], place, marker, color=colour, alpha=0.8, label=f"seeds of {source}")
        axes.set(title=title, xlabel="Acc@0.5, small objects")
    name_rows(grid, {method: place for place, method in enumerate(methods)})
    grid[0].invert_yaxis()
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@styled
def training_variants(frame: pd.DataFrame) -> Figure:
    """What choosing by attention gained over greedy in every design of an LVLM that was tried, against how many of
    the mistakes in mixed queries are other objects (no figure of the paper).

    frame: columns design, dataset, share another object, learned_vs_greedy, learned_vs_greedy_lo, _hi (0-1), and
        optionally lvlm (a panel each)
    """
    blocks = panels(frame, "lvlm", "dataset")
    figure, grid = plt.subplots(1, len(blocks), squeeze=False, sharey=True, figsize=(1.2 + 4.2 * len(blocks), 3.9))
    names = list(dict.fromkeys(frame["design"]))
    looks = dict(zip(names, OTHERS * (1 + len(names) // len(OTHERS))))
    for axes, (title, block) in zip(grid[0], blocks, strict=True):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        for row in block.to_dict("records"):
            colour, marker, _, _ = looks[row["design"]]
            y, lo, hi = (100 * row[f"learned_vs_greedy{end}"] for end in ("", "_lo", "_hi"))
            axes.errorbar(
                row["share another object"], y, yerr=[[y - lo], [hi - y]], fmt=marker, color=colour, markersize=7,
                label=row["design"],
            )  # fmt: skip
        axes.set(title=title, xlabel="mistakes that are another object, share", ylabel="ACS-Learned - greedy (points)")
        axes.label_outer(remove_inner_ticks=False)
    handles = {handle.get_label(): handle for axes in grid[0] for handle in axes.get_legend_handles_labels()[0]}
    legend_below(figure, list(handles.values()))
    return figure


ANSWERS = {"all": (BLUE, "o", "all answers"), "greedy": (VERMILLION, "^", "greedy answers alone")}
ABLATED = ("greedy", "ACS-Free", "ACS-Learned")
ROWS = 8  # values of a factor that stand one below the other; more numbers than that go along a line
BARS = dict(zip(ATTRIBUTIONS, ((BLUE, ""), (ORANGE, "///"), (GREEN, "..."))))  # colour, hatch


@styled
def confidence(frame: pd.DataFrame) -> Figure:
    """AUROC (0-1) of every score for 'IoU at least 0.5', with 95 % intervals; chance is the dotted line.

    frame: columns method, answers (all, greedy), auroc, auroc_lo, auroc_hi, and lvlm, dataset (a panel each)
    """
    blocks, methods = panels(frame, "lvlm", "dataset"), list(dict.fromkeys(frame["method"]))
    figure, grid = panel_grid(len(blocks), 3.6, 1.5 + 0.3 * len(methods), 2.2)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        for index, (answers, (colour, marker, label)) in enumerate(ANSWERS.items()):
            rows = block[block["answers"] == answers].set_index("method").reindex(methods)
            axes.errorbar(
                rows["auroc"], np.arange(len(methods)) + 0.24 * (index - 0.5),
                xerr=error_lengths(rows["auroc"], rows["auroc_lo"], rows["auroc_hi"]), fmt=marker, color=colour,
                elinewidth=1.2, label=label,
            )  # fmt: skip
        axes.set(title=title, xlabel="AUROC for IoU >= 0.5")
    name_rows(grid, {method: place for place, method in enumerate(methods)})
    grid[0].invert_yaxis()
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@styled
def risk_coverage(frame: pd.DataFrame) -> Figure:
    """Share of misses (0-1) among the answers that a score is surest of, against how many are kept.

    frame: columns method, coverage, risk, risk_lo, risk_hi, and lvlm, dataset (a panel each)
    Markers carry 95 % intervals; each method has them at coverages of its own, so that they do not overlap.
    """
    blocks, methods = panels(frame, "lvlm", "dataset"), list(dict.fromkeys(frame["method"]))
    looks = looks_of(methods)
    figure, grid = panel_grid(len(blocks), 3.6, 3.6, 1.2)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        for method, rows in block.groupby("method", sort=False):
            colour, marker, line, _ = looks[method]
            every = (methods.index(method), len(methods))
            axes.errorbar(
                rows["coverage"], rows["risk"], error_lengths(rows["risk"], rows["risk_lo"], rows["risk_hi"]),
                errorevery=every, markevery=every, linestyle=line, color=colour, marker=marker, elinewidth=1.1,
                capsize=2, markeredgecolor="white", markersize=8 if marker == "*" else 5.5, markeredgewidth=0.5,
                label=method,
            )  # fmt: skip
        axes.set(title=title, xlabel="coverage (share of answers kept)", ylabel="risk (share with IoU < 0.5)")
        axes.label_outer(remove_inner_ticks=False)
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@styled
def calibration(bins: pd.DataFrame, errors: pd.DataFrame) -> Figure:
    """Mean true IoU against mean predicted IoU in bins, with 95 % intervals and the diagonal; bars: share of answers.

    bins: columns from, to, n, predicted, iou, iou_lo, iou_hi, and lvlm, dataset (a panel each)
    errors: columns lvlm, dataset, ece, in the same order
    """
    blocks = panels(bins, "lvlm", "dataset")
    figure, grid = panel_grid(len(blocks), 3.6, 3.9, 1)
    for axes, (title, block), error in zip(grid, blocks, errors["ece"], strict=True):
        share = block["n"] / block["n"].sum()
        axes.bar(block["from"], share, block["to"] - block["from"], align="edge", color=LIGHT, label="share of answers")
        axes.plot([0, 1], [0, 1], "--", color=BLACK, linewidth=1, label="predicted = true")
        axes.errorbar(
            block["predicted"], block["iou"], error_lengths(block["iou"], block["iou_lo"], block["iou_hi"]), fmt="o",
            color=VERMILLION, markersize=6, capsize=3, label="mean in bin, 95 % interval",
        )  # fmt: skip
        axes.text(0.03, 0.95, f"ECE = {error:.3f}", transform=axes.transAxes, va="top", fontweight="bold")
        axes.set(title=title, xlabel="predicted IoU", ylabel="true IoU", xlim=(0, 1), ylim=(0, 1))
        axes.label_outer(remove_inner_ticks=False)
    handles = {handle.get_label(): handle for handle in grid[0].get_legend_handles_labels()[0]}
    legend_below(figure, list(handles.values()))
    return figure


@styled
def attributions(frame: pd.DataFrame) -> Figure:
    """Share of the attribution (0-1) of every layer by three ways to attribute, with 95 % intervals.

    frame: columns layer and study.robustness.ATTRIBUTIONS, each also with _lo and _hi, and lvlm (a panel each)
    """
    blocks = panels(frame, "lvlm")
    figure, grid = plt.subplots(1, len(blocks), squeeze=False, figsize=(1.2 + 4.4 * len(blocks), 3.3))
    for axes, (title, block) in zip(grid[0], blocks, strict=True):
        for index, (name, (colour, hatch)) in enumerate(BARS.items()):
            place = block["layer"] + 0.27 * (index - 1)
            axes.bar(place, block[name], 0.27, color=colour, hatch=hatch, edgecolor="white", label=name)
            lengths = error_lengths(block[name], block[f"{name}_lo"], block[f"{name}_hi"])
            axes.errorbar(place, block[name], lengths, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        axes.set(title=title, xlabel="decoder layer (from 0)", ylabel="share of the attribution")
        axes.set_xticks(block["layer"])
    legend_below(figure, grid[0][0].get_legend_handles_labels()[0])
    return figure


@styled
def stability(frame: pd.DataFrame, most: int = 16) -> Figure:
    """The heads with the highest AUROC, with 95 % intervals over drawn images, and how often a draw selects them.

    frame: columns layer, head, auroc, auroc_lo, auroc_hi, selected, share_of_draws, and lvlm (a row of panels each)
    """
    blocks = panels(frame, "lvlm")
    height = 0.9 + 0.24 * min(most, len(frame) // len(blocks))
    figure, grid = plt.subplots(len(blocks), 2, squeeze=False, sharey="row", figsize=(7.2, 0.6 + height * len(blocks)))
    for (left, right), (title, block) in zip(grid, blocks, strict=True):
        rows = block.nlargest(most, "auroc").reset_index(drop=True)
        for selected, colour, marker, label in ((True, VERMILLION, "*", "selected on all images"),
                                                (False, GREY, "o", "other heads")):  # fmt: skip
            part = rows[rows["selected"] == selected]
            left.errorbar(
                part["auroc"], part.index, xerr=error_lengths(part["auroc"], part["auroc_lo"], part["auroc_hi"]),
                fmt=marker, color=colour, markersize=8 if selected else 5, label=label,
            )  # fmt: skip
            right.barh(part.index, part["share_of_draws"], color=colour, hatch="" if selected else "///")
        left.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        left.set(title=title, xlabel="AUROC, IoU > 0.6 against 0", ylabel="layer, head", yticks=rows.index)
        left.set_yticklabels([f"{layer}, {head}" for layer, head in zip(rows["layer"], rows["head"])])
        right.set(xlabel="share of draws that select it", xlim=(0, 1))
        left.invert_yaxis()
    legend_below(figure, grid[0][0].get_legend_handles_labels()[0])
    return figure


@styled
def transfer(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) of ACS-Free on each dataset with the heads found on each, with 95 % intervals.

    frame: columns found_on, applied_to, acc50, acc50_lo, acc50_hi, and lvlm
    """
    blocks, names = panels(frame, "lvlm", "applied_to"), list(dict.fromkeys(frame["found_on"]))
    figure, grid = panel_grid(len(blocks), 3.2, 1.2 + 0.34 * len(names), 1.8)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        rows = block.set_index("found_on").reindex(names)
        error = error_lengths(rows["acc50"], rows["acc50_lo"], rows["acc50_hi"])
        axes.errorbar(rows["acc50"], range(len(names)), xerr=error, fmt="P", color=GREEN, markersize=7)
        axes.set(title=title, xlabel="Acc@0.5 of ACS-Free", ylabel="heads found on")
    name_rows(grid, {formula(name): place for place, name in enumerate(names)})
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


@styled
def size_effect(frame: pd.DataFrame) -> Figure:
    """Correlation of entropy with IoU of every head, and what is left of it at equal object and box area.

    frame: columns heads ('one head', 'all heads', 'D_c'), r, partial_r, the 95 % interval partial_r_lo, partial_r_hi
        (of all heads and D_c), and lvlm, dataset (a panel each)
    """
    blocks = panels(frame, "lvlm", "dataset")
    looks = {"one head": (GREY, "o", 4), "all heads": (BLUE, "s", 8), "D_c": (VERMILLION, "*", 12)}
    figure, grid = panel_grid(len(blocks), 3.4, 3.7, 1)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        ends = [block[["r", "partial_r"]].min(axis=None), block[["r", "partial_r"]].max(axis=None)]
        axes.plot(ends, ends, "--", color=BLACK, linewidth=1)
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        for kind, (colour, marker, size) in looks.items():
            rows = block[block["heads"] == kind]
            axes.errorbar(
                rows["r"], rows["partial_r"],
                error_lengths(rows["partial_r"], rows["partial_r_lo"], rows["partial_r_hi"]),
                fmt=marker, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.5, zorder=3,
                label=formula(kind),
            )  # fmt: skip
        axes.set(title=title, xlabel="r of entropy and IoU", ylabel="partial r, sizes held fixed")
        axes.label_outer(remove_inner_ticks=False)
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@styled
def ablation_panels(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) on small objects for every value of every factor, a panel each, with 95 % intervals.

    frame: ablations.csv of one LVLM; more than ROWS numbers go along a line, other values stand one below the other.
    Filled markers: the paired difference with the method as the profile has it is told apart from 0. The dashed line is
    greedy decoding as the profile has it, where all values have its queries.
    """
    base = frame[frame["factor"] == ablations.STANDARD]
    greedy, queries = base.loc[base["method"] == "greedy", "acc50"], set(zip(base["dataset"], base["n_queries"]))
    numbers = set(ablations.numeric(frame)["factor"])
    order = {
        factor: sorted(set(part["value"]), key=float) if factor in numbers else list(dict.fromkeys(part["value"]))
        for factor, part in frame.groupby("factor", sort=False)
        if factor != ablations.STANDARD
    }
    tall = [min(ROWS, len(values)) for values in order.values()]
    heights = [max(tall[start : start + 2]) for start in range(0, len(tall), 2)]
    figure, grid = plt.subplots(
        len(heights), 2, squeeze=False, figsize=(9.2, 0.8 + sum(1.1 + 0.26 * height for height in heights)),
        height_ratios=[3.5 + height for height in heights],
    )  # fmt: skip
    for axes, (factor, values) in zip(grid.flat, order.items()):
        part = frame[frame["factor"] == factor]
        along = factor in numbers and len(values) > ROWS
        if len(greedy) and set(zip(part["dataset"], part["n_queries"])) == queries:
            (axes.axhline if along else axes.axvline)(greedy.iloc[0], color=GREY, linewidth=1, linestyle="--")
            if along:
                part = part[part["method"] != "greedy"]  # the line is enough
        _ablated(axes, part, values, along)
        axes.set_title(formula(textwrap.fill(factor, 30)))
        rate = axes.yaxis if along else axes.xaxis
        rate.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        rate.set_major_formatter("{x:.2f}")
        rate.set_label_text("Acc@0.5")
    for axes in list(grid.flat)[len(order) :]:
        axes.set_axis_off()
    looks = {"linestyle": "", "markeredgewidth": 1.2}
    handles = [Line2D([], [], color=METHODS[m][0], marker=METHODS[m][1], label=m, **looks) for m in ABLATED]
    for face, label in ((GREY, "filled: told apart from the profile's own setting"),
                        ("white", "hollow: not told apart, or other queries")):  # fmt: skip
        handles.append(Line2D([], [], color=GREY, marker="s", markerfacecolor=face, label=label, **looks))
    legend_below(figure, handles)
    return figure


def _ablated(axes: Axes, part: pd.DataFrame, values: list[str], along: bool) -> None:
    """Draw the methods of one factor side by side at each of the values, which go along x or down y."""
    methods = [method for method in ABLATED if method in set(part["method"])]
    for index, method in enumerate(methods):
        colour, marker, line, _ = METHODS[method]
        rows = part[part["method"] == method]
        told = (rows["delta_lo"] > 0) | (rows["delta_hi"] < 0)
        at = rows["value"].map(float if along else values.index) + 0.2 * (index - (len(methods) - 1) / 2)
        if along:
            axes.plot(at, rows["acc50"], line, color=colour, linewidth=1)
        for shown, face in ((told, colour), (~told, "white")):
            here, place = rows[shown], at[shown]
            lengths = error_lengths(here["acc50"], here["acc50_lo"], here["acc50_hi"])
            axes.errorbar(
                *((place, here["acc50"]) if along else (here["acc50"], place)),
                **{"yerr" if along else "xerr": lengths}, fmt=marker, color=colour, markerfacecolor=face, elinewidth=1,
                markersize=8 if marker == "*" else 5.5,
            )  # fmt: skip
    if along:
        axes.set_xlabel(part["factor"].iloc[0])
    else:
        axes.set(yticks=range(len(values)), ylim=(len(values) - 0.5, -0.5))
        axes.set_yticklabels(values)


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
        left.set(title=title, xlabel="ms a query", yticks=place)
        left.set_yticklabels(block["stage"])
        right.set(xlabel="growth of memory, MB")
        left.invert_yaxis()
    return figure
