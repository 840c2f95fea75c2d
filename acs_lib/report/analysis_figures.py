"""Figures of confidence, analyses, ablations and cost, in the style of acs_lib.report.figures."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from acs_lib import ablations
from acs_lib.analyses import ATTRIBUTIONS
from acs_lib.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    VERMILLION,
    _errors,
    _grid,
    _legend_below,
    _looks,
    _panels,
    _styled,
)

ANSWERS = {"all": (BLUE, "o", "all answers"), "greedy": (VERMILLION, "^", "greedy answers alone")}
BARS = dict(zip(ATTRIBUTIONS, ((BLUE, ""), (ORANGE, "///"), (GREEN, "..."))))  # colour, hatch


@_styled
def confidence(frame: pd.DataFrame) -> Figure:
    """AUROC (0-1) of every score for 'IoU at least 0.5', with 95 % intervals; chance is the dotted line.

    frame: columns method, family, answers (all, greedy), auroc, auroc_lo, auroc_hi, and lvlm, dataset (a panel each)
    """
    blocks, methods = _panels(frame, "lvlm", "dataset"), list(dict.fromkeys(frame["method"]))
    figure, grid = _grid(len(blocks), 3.6, 1.5 + 0.3 * len(methods), 2.2)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        for index, (answers, (colour, marker, label)) in enumerate(ANSWERS.items()):
            rows = block[block["answers"] == answers].set_index("method").reindex(methods)
            axes.errorbar(
                rows["auroc"], np.arange(len(methods)) + 0.24 * (index - 0.5),
                xerr=_errors(rows["auroc"], rows["auroc_lo"], rows["auroc_hi"]), fmt=marker, color=colour,
                elinewidth=1.2, label=label,
            )  # fmt: skip
        axes.set(title=title, xlabel="AUROC for IoU >= 0.5", yticks=range(len(methods)))
        axes.set_yticklabels(methods)
        axes.label_outer(remove_inner_ticks=False)
    families = frame.drop_duplicates("method")["family"]
    for label, family in zip(grid[0].get_yticklabels(), families, strict=True):
        label.set_fontweight("bold" if family.startswith("acs") else "normal")
    grid[0].invert_yaxis()
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def risk_coverage(frame: pd.DataFrame) -> Figure:
    """Share of misses (0-1) among the answers that a score is surest of, against how many are kept.

    frame: columns method, coverage, risk, and lvlm, dataset (a panel each)
    """
    blocks, looks = _panels(frame, "lvlm", "dataset"), _looks(dict.fromkeys(frame["method"]))
    figure, grid = _grid(len(blocks), 3.6, 3.6, 1.2)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        for method, rows in block.groupby("method", sort=False):
            colour, marker, line, _ = looks[method]
            axes.plot(
                rows["coverage"], rows["risk"], line, color=colour, marker=marker, markevery=2, markeredgecolor="white",
                markersize=8 if marker == "*" else 5.5, markeredgewidth=0.5, label=method,
            )  # fmt: skip
        axes.set(title=title, xlabel="coverage (share of answers kept)", ylabel="risk (share with IoU < 0.5)")
        axes.label_outer(remove_inner_ticks=False)
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def calibration(bins: pd.DataFrame, errors: pd.DataFrame) -> Figure:
    """Mean true IoU against mean predicted IoU in bins, with 95 % intervals and the diagonal; bars: share of answers.

    bins: columns from, to, n, predicted, iou, iou_lo, iou_hi, and lvlm, dataset (a panel each)
    errors: columns lvlm, dataset, ece, in the same order
    """
    blocks = _panels(bins, "lvlm", "dataset")
    figure, grid = _grid(len(blocks), 3.6, 3.9, 1)
    for axes, (title, block), error in zip(grid, blocks, errors["ece"], strict=True):
        share = block["n"] / block["n"].sum()
        axes.bar(block["from"], share, block["to"] - block["from"], align="edge", color=LIGHT, label="share of answers")
        axes.plot([0, 1], [0, 1], "--", color=BLACK, linewidth=1, label="predicted = true")
        axes.errorbar(
            block["predicted"], block["iou"], _errors(block["iou"], block["iou_lo"], block["iou_hi"]), fmt="o",
            color=VERMILLION, markersize=6, capsize=3, label="mean in bin, 95 % interval",
        )  # fmt: skip
        axes.text(0.03, 0.95, f"ECE = {error:.3f}", transform=axes.transAxes, va="top", fontweight="bold")
        axes.set(title=title, xlabel="predicted IoU", ylabel="true IoU", xlim=(0, 1), ylim=(0, 1))
        axes.label_outer(remove_inner_ticks=False)
    handles = {handle.get_label(): handle for handle in grid[0].get_legend_handles_labels()[0]}
    _legend_below(figure, list(handles.values()))
    return figure


@_styled
def attributions(frame: pd.DataFrame) -> Figure:
    """Share of the attribution (0-1) of every layer by three ways to attribute.

    frame: columns layer and acs_lib.analyses.ATTRIBUTIONS, and lvlm (a panel each)
    """
    blocks = _panels(frame, "lvlm")
    figure, grid = plt.subplots(1, len(blocks), squeeze=False, figsize=(1.2 + 4.4 * len(blocks), 3.3))
    for axes, (title, block) in zip(grid[0], blocks, strict=True):
        for index, (name, (colour, hatch)) in enumerate(BARS.items()):
            axes.bar(
                block["layer"] + 0.27 * (index - 1), block[name], 0.27, color=colour, hatch=hatch, edgecolor="white",
                label=name,
            )  # fmt: skip
        axes.set(title=title, xlabel="decoder layer (from 0)", ylabel="share of the attribution")
        axes.set_xticks(block["layer"])
    _legend_below(figure, grid[0][0].get_legend_handles_labels()[0])
    return figure


@_styled
def stability(frame: pd.DataFrame, most: int = 16) -> Figure:
    """The heads with the highest AUROC, with 95 % intervals over drawn images, and how often a draw selects them.

    frame: columns layer, head, auroc, auroc_lo, auroc_hi, selected, share_of_draws, and lvlm (a row of panels each)
    """
    blocks = _panels(frame, "lvlm")
    height = 0.9 + 0.24 * min(most, len(frame) // len(blocks))
    figure, grid = plt.subplots(len(blocks), 2, squeeze=False, sharey="row", figsize=(7.2, 0.6 + height * len(blocks)))
    for (left, right), (title, block) in zip(grid, blocks, strict=True):
        rows = block.nlargest(most, "auroc").reset_index(drop=True)
        for selected, colour, marker, label in ((True, VERMILLION, "*", "selected on all images"),
                                                (False, GREY, "o", "other heads")):  # fmt: skip
            part = rows[rows["selected"] == selected]
            left.errorbar(
                part["auroc"], part.index, xerr=_errors(part["auroc"], part["auroc_lo"], part["auroc_hi"]), fmt=marker,
                color=colour, markersize=8 if selected else 5, label=label,
            )  # fmt: skip
            right.barh(part.index, part["share_of_draws"], color=colour, hatch="" if selected else "///")
        left.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        left.set(title=title, xlabel="AUROC, IoU > 0.6 against 0", ylabel="layer, head", yticks=rows.index)
        left.set_yticklabels([f"{layer}, {head}" for layer, head in zip(rows["layer"], rows["head"])])
        right.set(xlabel="share of draws that select it", xlim=(0, 1))
        left.invert_yaxis()
    _legend_below(figure, grid[0][0].get_legend_handles_labels()[0])
    return figure


@_styled
def transfer(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) of ACS-Free on each dataset with the heads found on each, with 95 % intervals.

    frame: columns found_on, applied_to, acc50, acc50_lo, acc50_hi, and lvlm
    """
    blocks, names = _panels(frame, "lvlm", "applied_to"), list(dict.fromkeys(frame["found_on"]))
    figure, grid = _grid(len(blocks), 3.2, 1.2 + 0.34 * len(names), 1.8)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        rows = block.set_index("found_on").reindex(names)
        error = _errors(rows["acc50"], rows["acc50_lo"], rows["acc50_hi"])
        axes.errorbar(rows["acc50"], range(len(names)), xerr=error, fmt="P", color=GREEN, markersize=7)
        axes.set(title=title, xlabel="Acc@0.5 of ACS-Free", ylabel="heads found on", yticks=range(len(names)))
        axes.set_yticklabels(names)
        axes.label_outer(remove_inner_ticks=False)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


@_styled
def size_effect(frame: pd.DataFrame) -> Figure:
    """Correlation of entropy with IoU of every head, and what is left of it at equal object and box area.

    frame: columns heads ('one head', 'all heads', 'D_c'), r, partial_r, and lvlm, dataset (a panel each)
    """
    blocks = _panels(frame, "lvlm", "dataset")
    looks = {"one head": (GREY, "o", 4), "all heads": (BLUE, "s", 8), "D_c": (VERMILLION, "*", 12)}
    figure, grid = _grid(len(blocks), 3.4, 3.7, 1)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        ends = [block[["r", "partial_r"]].min(axis=None), block[["r", "partial_r"]].max(axis=None)]
        axes.plot(ends, ends, "--", color=BLACK, linewidth=1)
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        for kind, (colour, marker, size) in looks.items():
            rows = block[block["heads"] == kind]
            axes.plot(rows["r"], rows["partial_r"], marker, color=colour, markersize=size, label=kind)
        axes.set(title=title, xlabel="r of entropy and IoU", ylabel="partial r, sizes held fixed")
        axes.label_outer(remove_inner_ticks=False)
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def ablation_panels(frame: pd.DataFrame, methods: Sequence[str] = ("greedy", "ACS-Free", "ACS-Learned")) -> Figure:
    """Acc@0.5 (0-1) on small objects for every value of every factor, a panel each, with 95 % intervals.

    frame: ablations.csv of one LVLM; numbers go along a line, words stand beside each other. The vertical
    line is greedy decoding of the row group 'as the profile has it'.
    """
    base = frame[frame["factor"] == ablations.STANDARD].set_index("method")["acc50"]
    factors = [factor for factor in dict.fromkeys(frame["factor"]) if factor != ablations.STANDARD]
    looks, order = _looks(methods), {factor: list(dict.fromkeys(frame.loc[frame["factor"] == factor, "value"]))
                                     for factor in factors}  # fmt: skip
    numbers = set(ablations.numeric(frame)["factor"])
    rows = -(-len(factors) // 2)
    tallest = [min(13, max(len(order[factor]) for factor in factors[2 * row : 2 * row + 2])) for row in range(rows)]
    figure, grid = plt.subplots(
        rows, 2, squeeze=False, figsize=(9.2, 0.5 + sum(0.9 + 0.26 * count for count in tallest)),
        height_ratios=[2.5 + count for count in tallest],
    )  # fmt: skip
    for axes, factor in zip(grid.flat, factors):
        part = frame[frame["factor"] == factor]
        if factor in numbers:
            order[factor] = sorted(order[factor], key=float)
        place = {value: index for index, value in enumerate(order[factor])}
        if "greedy" in base:
            axes.axvline(base["greedy"], color=GREY, linewidth=1, linestyle="--")
        for index, method in enumerate(methods):
            shown = part[part["method"] == method]
            colour, marker, _, _ = looks[method]
            axes.errorbar(
                shown["acc50"], [place[value] + 0.2 * (index - 1) for value in shown["value"]],
                xerr=_errors(shown["acc50"], shown["acc50_lo"], shown["acc50_hi"]), fmt=marker, color=colour,
                markersize=8 if marker == "*" else 5.5, elinewidth=1,
            )  # fmt: skip
        axes.set(title=textwrap.fill(factor, 30), yticks=range(len(place)), ylim=(len(place) - 0.5, -0.5))
        axes.set_yticklabels([str(value) for value in order[factor]])
    for axes in list(grid.flat)[len(factors) :]:
        axes.set_axis_off()
    for axes in list(grid.flat)[max(0, len(factors) - 2) : len(factors)]:
        axes.set_xlabel("Acc@0.5")
    handles = [Line2D([], [], color=looks[m][0], marker=looks[m][1], linestyle="", label=m) for m in methods]
    _legend_below(figure, handles)
    return figure


@_styled
def cost(frame: pd.DataFrame) -> Figure:
    """Milliseconds a query (with all its answers) by stage, and growth of memory for a batch.

    frame: cost.csv: columns stage, seconds_per_query, peak_mb, and lvlm (a row of panels each)
    """
    blocks = _panels(frame, "lvlm")
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
