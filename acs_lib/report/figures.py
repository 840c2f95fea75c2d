"""Figures of the report: pure functions from frames and arrays to a matplotlib Figure, in one style.

Colours are Okabe and Ito's (told apart by colour-blind readers), and nothing is said by colour alone: groups also have
their own marker, line style or hatch, so that every figure survives a greyscale print. Rates are drawn in 0-1 with 95 %
intervals. Boxes follow the paper's pages: ground truth yellow, prediction red.

Frames may hold several LVLMs and data sets (columns `lvlm`, `dataset`): each pair gets a panel of its own.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from acs_lib.core.candidates import COORDINATES
from acs_lib.evaluation import published
from acs_lib.evaluation.confidence import reliability
from acs_lib.report.style import (
    BANDS,
    BLACK,
    CASED,
    FAMILIES,
    GREY,
    GROUPS,
    HOLLOW,
    KEY_METHODS,
    VERMILLION,
    error_lengths,
    layer_ticks,
    legend_below,
    looks_of,
    name_rows,
    panel_grid,
    panels,
    plain_text,
    styled,
)


@styled
def entropy_by_layer(frame: pd.DataFrame) -> Figure:
    """The paper's entropy figure: mean attention entropy (nats) by layer, one row of panels a coordinate, three groups
    of IoU.

    frame: columns coordinate (x1, y1, x2, y2), layer, group (high, IoU > 0.6; low, 0-0.3; zero, 0), mean with its 95 %
        interval mean_lo and mean_hi, q25, q75, and optionally lvlm, dataset (a column of panels each)
    Bands run from the first to the third quartile of the groups high (hatched) and zero; bars are the intervals.
    """
    blocks = panels(frame, "lvlm", "dataset")
    size = (1.4 + 2.9 * len(blocks), 8.4)
    figure, grid = plt.subplots(len(COORDINATES), len(blocks), squeeze=False, sharex="col", figsize=size)
    for column, (title, block) in zip(grid.T, blocks, strict=True):
        column[0].set_title(title.replace(", ", ",\n"))
        for axes, coordinate in zip(column, COORDINATES, strict=True):
            here = block[block["coordinate"] == coordinate]
            for group, (label, colour, marker, line, hatch) in GROUPS.items():
                rows = here[here["group"] == group].sort_values("layer")
                if group in BANDS:
                    axes.fill_between(
                        rows["layer"], rows["q25"], rows["q75"], facecolor=(colour, 0.14), edgecolor=(colour, 0.6),
                        hatch=hatch, linewidth=0.6, label=f"quartiles, {group}",
                    )  # fmt: skip
                axes.errorbar(
                    rows["layer"], rows["mean"], error_lengths(rows["mean"], rows["mean_lo"], rows["mean_hi"]),
                    linestyle=line, color=colour, marker=marker, markeredgecolor="white", markeredgewidth=0.6,
                    markersize=5, elinewidth=1.2, capsize=2.5, label=label,
                )  # fmt: skip
            layer_ticks(axes, block["layer"])
        column[-1].set_xlabel("decoder layer (from 0)")
    for axes, coordinate in zip(grid[:, 0], COORDINATES, strict=True):
        axes.set_ylabel(f"{coordinate}: entropy (nats)")
    figure.align_ylabels(grid[:, 0])
    legend_below(figure, grid[0, 0].get_legend_handles_labels()[0])
    return figure


@styled
def size_bars(by_size: pd.DataFrame) -> Figure:
    """The paper's teaser: Acc@0.5 and mean IoU (0-1) of large against medium and small objects, 95 % intervals.

    by_size: columns method, size (small, medium, large), n_queries, acc50, acc50_lo, acc50_hi, miou, miou_lo, miou_hi,
        and optionally lvlm, dataset (a row of panels each); of more than five methods KEY_METHODS alone are drawn
    Hollow diamonds are the published numbers of greedy decoding, for Qwen2.5-VL-7B on COCO.
    """
    methods = list(dict.fromkeys(by_size["method"]))
    if len(methods) > 5:
        methods = [method for method in KEY_METHODS if method in methods]
    by_size = by_size[by_size["method"].isin(methods)]
    looks, width = looks_of(methods), 0.8 / max(len(methods), 1)
    known = published.by_size()
    known = known[(known["lvlm"] == "Qwen2.5-VL-7B") & (known["dataset"] == "COCO")].set_index("size")
    blocks = panels(by_size, "lvlm", "dataset")
    figure = plt.figure(figsize=(7.2, 3.2 * len(blocks) + 0.5))
    parts = np.atleast_1d(figure.subfigures(len(blocks), 1))
    for part, (title, block) in zip(parts, blocks, strict=True):
        if title:
            part.suptitle(title)
        sizes = [size for size in ("large", "medium", "small") if (block["size"] == size).any()]
        counts = block.groupby("size")["n_queries"].max()
        for axes, (metric, label) in zip(
            part.subplots(1, 2), (("acc50", "Acc@0.5"), ("miou", "mean IoU")), strict=True
        ):
            for i, method in enumerate(methods):
                rows = block[block["method"] == method].set_index("size").reindex(sizes)
                x = np.arange(len(sizes)) + (i - (len(methods) - 1) / 2) * width
                colour, _, _, hatch = looks[method]
                axes.bar(x, rows[metric], 0.92 * width, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                axes.errorbar(
                    x,
                    rows[metric],
                    error_lengths(rows[metric], rows[f"{metric}_lo"], rows[f"{metric}_hi"]),
                    fmt="none",
                    ecolor="#222222",
                    elinewidth=1,
                    capsize=2.5,
                )
                if len(methods) * len(sizes) <= 6:
                    for place, value in zip(x, rows[metric], strict=True):
                        patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                        if np.isfinite(value):
                            axes.text(place, 0.04, f"{value:.3f}", ha="center", fontsize=8, bbox=patch)
            at = (methods.index("greedy") - (len(methods) - 1) / 2) * width if "greedy" in methods else 0
            shown = [(i + at, known.loc[size, metric]) for i, size in enumerate(sizes) if size in known.index]
            if shown:
                axes.plot(*zip(*shown, strict=True), "D", color="none", path_effects=CASED, gid="published", **HOLLOW)
            ticks = [f"{size}\n(n = {int(counts[size])})" for size in sizes]
            axes.set(title=label, ylim=(0, 1.08), ylabel=label, xticks=range(len(sizes)), xticklabels=ticks)
            axes.set_yticks(np.arange(0, 1.01, 0.2))
            axes.grid(axis="x", visible=False)
    handles = [Patch(facecolor=looks[m][0], hatch=looks[m][3], edgecolor="white", label=m) for m in methods]
    handles.append(Line2D([], [], marker="D", color="none", label="published, Qwen2.5-VL-7B, COCO", **HOLLOW))
    legend_below(figure, handles)
    return figure


@styled
def main_results(frame: pd.DataFrame) -> Figure:
    """The paper's main table as a dot plot: Acc@0.5 (0-1) of every method with its 95 % interval, best on top.

    frame: rows of main_results.csv: method, family, acc50, acc50_lo, acc50_hi, and optionally lvlm, dataset (a panel
        each), n_queries and published_acc50 (hollow diamonds)
    The vertical line is greedy decoding; the oracle stands apart, above a rule.
    """
    blocks = panels(frame, "lvlm", "dataset")
    mean = frame.groupby("method", sort=False)["acc50"].mean().sort_values(kind="stable")
    is_oracle = mean.index.str.startswith("oracle")
    order = [*mean.index[~is_oracle], *mean.index[is_oracle]]
    gap = 0.6
    height = {method: i + gap * method.startswith("oracle") for i, method in enumerate(order)}
    figure, grid = panel_grid(len(blocks), 3.6, 1.6 + 0.26 * len(order), 3.6)
    has_published = "published_acc50" in frame and frame["published_acc50"].notna().any()
    for axes, (title, block) in zip(grid, blocks, strict=True):
        greedy = block.loc[block["method"] == "greedy", "acc50"]
        if len(greedy):
            axes.axvline(greedy.iloc[0], color=GREY, linestyle="--", linewidth=1.2, zorder=1, gid="greedy")
        for row in block.itertuples():
            oracle = row.method.startswith("oracle")
            colour, marker = (BLACK, "p") if oracle else FAMILIES.get(row.family, (BLACK, "X"))
            axes.errorbar(
                row.acc50,
                height[row.method],
                xerr=error_lengths([row.acc50], [row.acc50_lo], [row.acc50_hi]),
                fmt=marker,
                color=colour,
                ecolor=colour,
                elinewidth=1.3,
                capsize=2.5,
                markersize=10 if marker == "*" else 6.5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                zorder=3,
            )
            if has_published and pd.notna(row.published_acc50):
                axes.plot(
                    row.published_acc50, height[row.method], "D", color="none", zorder=4, gid="published", **HOLLOW
                )
        if is_oracle.any() and not is_oracle.all():
            axes.axhline((~is_oracle).sum() - 0.5 + gap / 2, color="#888888", linewidth=0.8)
        count = f"\n(n = {int(block['n_queries'].max())} queries)" if "n_queries" in block else ""
        axes.set(xlabel="Acc@0.5, small objects")
        axes.set_title(title + count if title else count.strip())
        axes.set_ylim(-0.7, max(height.values()) + 0.7)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
    name_rows(grid, height)
    families = dict.fromkeys(frame.loc[~frame["method"].str.startswith("oracle"), "family"])
    handles = [
        Line2D([], [], linestyle="", color=colour, marker=marker, markersize=9 if marker == "*" else 6, label=family)
        for family in families
        for colour, marker in [FAMILIES.get(family, (BLACK, "X"))]
    ]
    if is_oracle.any():
        handles.append(Line2D([], [], linestyle="", marker="p", color=BLACK, markersize=6, label="oracle"))
    handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.2, label="greedy decoding"))
    if has_published:
        handles.append(Line2D([], [], linestyle="", marker="D", color="none", label="published", **HOLLOW))
    legend_below(figure, handles)
    return figure


@styled
def layer_attribution(layers: pd.DataFrame) -> Figure:
    """The paper's 'discovering localization-critical patterns', first half: gradient attribution by layer.

    layers: layers.csv: columns layer, attribution (share of the total, 0-1) with its 95 % interval attribution_lo and
        attribution_hi, selected (the layer has heads in D_c: hatched), and optionally lvlm (a panel each)
    """
    blocks = panels(layers, "lvlm")
    figure, grid = plt.subplots(
        1, len(blocks), squeeze=False, figsize=(max(4.6, 0.24 * layers["layer"].nunique() + 2) * len(blocks), 3.1)
    )
    for axes, (title, block) in zip(grid[0], blocks, strict=True):
        block = block.sort_values("layer")
        chosen = block["selected"].astype(bool)
        for mask, colour, hatch, label in (
            (chosen, VERMILLION, "///", "layers with heads in $D_c$"),
            (~chosen, "#B5B5B5", "", "other layers"),
        ):
            if mask.any():
                axes.bar(
                    block.loc[mask, "layer"],
                    block.loc[mask, "attribution"],
                    0.8,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0,
                    label=label,
                )
        lengths = error_lengths(block["attribution"], block["attribution_lo"], block["attribution_hi"])
        axes.errorbar(block["layer"], block["attribution"], lengths, fmt="none", ecolor="#222222", capsize=2)
        axes.set(xlabel="decoder layer (from 0)", ylabel="share of the gradient attribution", title=title)
        axes.grid(axis="x", visible=False)
        layer_ticks(axes, block["layer"])
    handles = {
        label: handle for axes in grid[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend_below(figure, list(handles.values()))
    return figure


@styled
def head_heatmap(heads: pd.DataFrame) -> Figure:
    """The paper's 'discovering localization-critical patterns', second half: which heads' entropy tells good from bad.

    heads: columns layer, head, auroc (0-1; 0.5 is chance, higher: low entropy goes with good boxes), selected (bool),
        and optionally lvlm (a panel each)
    """
    blocks = panels(heads, "lvlm")
    reach = max((heads["auroc"] - 0.5).abs().max(), 0.05)  # the colours are even about chance
    rows = heads["layer"].nunique()
    figure, grid = plt.subplots(
        1,
        len(blocks),
        squeeze=False,
        figsize=((max(4.2, 0.3 * heads["head"].nunique() + 1.8)) * len(blocks), min(8, max(2.8, 0.3 * rows + 1.5))),
    )
    for axes, (title, block) in zip(grid[0], blocks, strict=True):
        table = block.pivot(index="layer", columns="head", values="auroc")
        annotated = table.size <= 72
        sns.heatmap(
            table,
            ax=axes,
            vmin=0.5 - reach,
            vmax=0.5 + reach,
            cmap="PuOr_r",
            linewidths=0.4,
            linecolor="white",
            annot=annotated,
            fmt=".2f",
            annot_kws={"fontsize": 7},
            cbar=axes is grid[0][-1],
            cbar_kws={"label": "AUROC of entropy (0.5: chance)", "pad": 0.02},
        )
        chosen = block[block["selected"].astype(bool)]
        for row in chosen.itertuples():
            place = (table.columns.get_loc(row.head), table.index.get_loc(row.layer))
            for colour, width in (("white", 4.5), (BLACK, 2.2)):
                axes.add_patch(
                    Rectangle(place, 1, 1, fill=False, edgecolor=colour, linewidth=width, clip_on=False, zorder=3)
                )
        axes.set(xlabel="head (from 0)", ylabel="decoder layer (from 0)", title=title)
        axes.tick_params(length=0)
        axes.set_yticks(axes.get_yticks(), axes.get_yticklabels(), rotation=0)
        axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=0)
        axes.grid(visible=False)
    legend_below(figure, [Patch(facecolor="none", edgecolor=BLACK, linewidth=2, label="discriminative heads ($D_c$)")])
    return figure


@styled
def predicted_vs_true(answers: pd.DataFrame, draws: int = 2000) -> Figure:
    """The paper's regressor result (r > 0.67): IoU predicted from attention against true IoU.

    answers: one row an answer: image (its id), predicted, iou (0-1), and optionally lvlm, dataset (a panel each); rows
        with a NaN are left out
    draws: how often the images are drawn with replacement
    Grey: number of answers (log scale). Points: mean true IoU in bins of predicted IoU, with 95 % intervals over images
    (see `reliability`). Points on the diagonal: a predicted IoU can be taken at its word. Pearson's r
    stands in the panel.
    """
    answers = answers.dropna(subset=["predicted", "iou"])
    blocks = panels(answers, "lvlm", "dataset")
    lowest, highest = min(0.0, answers["predicted"].min()), max(1.0, answers["predicted"].max())
    counts = [
        np.histogram2d(block["predicted"], block["iou"], bins=(40, 40), range=[[lowest, highest], [0, 1]])
        for _, block in blocks
    ]
    shade = mpl.colors.LinearSegmentedColormap.from_list("greys", ["#EDEDED", "#4D4D4D"])
    norm = LogNorm(1, max(2, *(count.max() for count, _, _ in counts)))
    figure, grid = panel_grid(len(blocks), 3.6, 3.5, 1.6)
    for axes, (title, block), (count, *edges) in zip(grid, blocks, counts, strict=True):
        mesh = axes.pcolormesh(*edges, np.ma.masked_equal(count, 0).T, cmap=shade, norm=norm, rasterized=True)
        axes.plot([0, 1], [0, 1], "--", color=BLACK, linewidth=1, label="predicted = true")
        images, r = pd.factorize(block["image"])[0], block["predicted"].corr(block["iou"])
        table, _ = reliability(block["predicted"].to_numpy(), block["iou"].to_numpy(), images, draws)
        axes.errorbar(
            table["predicted"], table["iou"], error_lengths(table["iou"], table["iou_lo"], table["iou_hi"]), fmt="o",
            color=VERMILLION, markeredgecolor="white", markersize=7, elinewidth=1.5, capsize=3,
            label="mean in bin, 95 % interval over images",
        )  # fmt: skip
        axes.text(
            0.03,
            0.97,
            f"Pearson r = {r:.3f}\n{len(block):,} answers, {images.max() + 1} images",
            transform=axes.transAxes,
            va="top",
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "#BBBBBB", "alpha": 0.9, "pad": 3},
            zorder=5,
        )
        axes.set(title=plain_text(title), xlabel="predicted IoU", ylabel="true IoU")
        axes.set(xlim=(lowest, highest), ylim=(-0.02, 1.02))
        axes.label_outer(remove_inner_ticks=False)
        axes.grid(visible=False)
    figure.colorbar(mesh, ax=grid, label="answers", pad=0.02)
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@styled
def candidates_sweep(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) on small objects against the number N of sampled candidates (the paper's N is 10).

    frame: columns n, method, acc50, acc50_lo, acc50_hi, and optionally lvlm, dataset (a panel each)
    Bars are 95 % intervals; of the ACS methods alone, side by side, so that they can be told apart.
    """
    methods = list(dict.fromkeys(frame["method"]))
    looks, barred = looks_of(methods), [method for method in methods if method.startswith("ACS")]
    blocks = panels(frame, "lvlm", "dataset")
    figure, grid = panel_grid(len(blocks), 4.2, 3.7, 1.2)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        for method in methods:
            rows = block[block["method"] == method].sort_values("n")
            colour, marker, line, _ = looks[method]
            reference = method == "greedy" or method.startswith("oracle")  # a line to compare with: no markers
            place = rows["n"]
            if method in barred:
                place = place + 0.16 * (barred.index(method) - (len(barred) - 1) / 2)
                lengths = error_lengths(rows["acc50"], rows["acc50_lo"], rows["acc50_hi"])
                axes.errorbar(place, rows["acc50"], lengths, fmt="none", ecolor=colour, elinewidth=1.1)
            axes.plot(
                place,
                rows["acc50"],
                line,
                color=colour,
                marker="" if reference else marker,
                linewidth=1 if method.startswith("oracle") else 1.6,
                markersize=9 if marker == "*" else 5.5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=f"{method}, 95 % interval" if method in barred else method,
            )
        numbers = sorted(block["n"].unique())
        axes.set(title=title, xlabel="sampled candidates N", ylabel="Acc@0.5, small objects", xticks=numbers)
        axes.label_outer(remove_inner_ticks=False)
    legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure
