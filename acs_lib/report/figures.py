"""Figures of the report: pure functions from frames and arrays to a matplotlib Figure, in one style.

Rates are drawn in 0-1 with 95 % intervals. Frames may hold several LVLMs and data sets (columns `lvlm`, `dataset`):
each pair gets a panel of its own.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from acs_lib.core.candidates import COORDINATES
from acs_lib.evaluation import published
from acs_lib.method.heads import ATTRIBUTIONS
from acs_lib.report.style import (
    BLACK,
    BLUE,
    DIAGONAL,
    EDGED,
    FAMILIES,
    GREEN,
    GREY,
    HOLLOW,
    LIGHT,
    METHOD_LOOKS,
    ORANGE,
    VERMILLION,
    bars,
    cased,
    forest,
    layer_ticks,
    legend_below,
    looks_of,
    marks,
    name_rows,
    offsets,
    panel_grid,
    panels,
    points,
    styled,
)

GROUP_LOOKS = {  # IoU group -> label, colour, marker, line style, hatch of the band
    "high": ("high IoU (> 0.6)", BLUE, "o", "-", "//"),
    "low": ("low IoU (0-0.3)", ORANGE, "s", "--", ""),
    "zero": ("zero IoU (0)", VERMILLION, "^", ":", ""),
}
BARS = dict(zip(ATTRIBUTIONS, ((BLUE, ""), (ORANGE, "///"), (GREEN, "..."))))  # colour, hatch
BANDS = ("high", "zero")  # groups whose quartiles are drawn: three bands would merge in greyscale
RATES = {"acc50": "Acc@0.5", "acc75": "Acc@0.75", "miou": "mean IoU"}
SIZES = {"large": (BLUE, "s"), "medium": (ORANGE, "D"), "small": (VERMILLION, "o")}  # colour, marker


@styled
def entropy_by_layer(frame: pd.DataFrame) -> Figure:
    """The paper's entropy figure: mean attention entropy (nats) by layer, one row of panels a coordinate, three groups
    of IoU; narrow enough for a phone.

    frame: of one LVLM: columns coordinate (x1, y1, x2, y2), layer, group (high, IoU > 0.6; low, 0-0.3; zero, 0), mean
        with its 95 % interval mean_lo and mean_hi, q25, q75, and optionally dataset (a column of panels each)
    Bands run from the first to the third quartile of the groups high (hatched) and zero; bars are the intervals.
    """
    blocks = panels(frame, "dataset")
    size = (0.8 + 1.9 * max(len(blocks), 2), 7.2)
    figure, grid = plt.subplots(len(COORDINATES), len(blocks), squeeze=False, sharex="col", figsize=size)
    for column, (title, block) in zip(grid.T, blocks, strict=True):
        column[0].set_title(title)
        for axes, coordinate in zip(column, COORDINATES, strict=True):
            here = block[block["coordinate"] == coordinate]
            for group, (label, colour, marker, line, hatch) in GROUP_LOOKS.items():
                rows = here[here["group"] == group].sort_values("layer")
                if group in BANDS:
                    axes.fill_between(
                        rows["layer"], rows["q25"], rows["q75"], facecolor=(colour, 0.14), edgecolor=(colour, 0.6),
                        hatch=hatch, linewidth=0.6, label=f"quartiles, {group}",
                    )  # fmt: skip
                look = {"linestyle": line, "capsize": 2.5, "label": label, **marks(colour, marker, 5), **EDGED}
                points(axes, rows, "mean", x=rows["layer"], **look)
            layer_ticks(axes, block["layer"])
            axes.margins(x=0.1)
        column[-1].set_xlabel("decoder layer (from 0)")
    for axes, coordinate in zip(grid[:, 0], COORDINATES, strict=True):
        axes.set_ylabel(f"{coordinate}: nats")
    figure.align_ylabels(grid[:, 0])
    return legend_below(figure)


@styled
def entropy_by_head(frame: pd.DataFrame) -> Figure:
    """The entropy figure on the discriminative heads alone: mean attention entropy (nats) of each head of D_c, and of
    all together, which is R, in three groups of IoU.

    frame: columns heads ('3, 5' as layer and head; R), group (high, low, zero), mean with its 95 % interval mean_lo and
        mean_hi, q25, q75, lvlm (a row of panels each), dataset (a column each)
    Thin lines run from the first to the third quartile, thick ones are the intervals of the means.
    """
    rows, columns = (list(dict.fromkeys(frame[name])) for name in ("lvlm", "dataset"))
    size = (0.8 + 1.9 * max(len(columns), 2), 0.9 + 1.7 * len(rows))
    figure, grid = plt.subplots(len(rows), len(columns), squeeze=False, sharex="row", sharey="row", figsize=size)
    for (lvlm, dataset), block in frame.groupby(["lvlm", "dataset"], sort=False):
        axes = grid[rows.index(lvlm), columns.index(dataset)]
        places = {name: place for place, name in enumerate(dict.fromkeys(block["heads"]))}
        for shift, (group, (label, colour, marker, _, _)) in zip(offsets(3, 0.2), GROUP_LOOKS.items()):
            part = block[block["group"] == group]
            x = part["heads"].map(places) + shift
            axes.vlines(x, part["q25"], part["q75"], color=colour, linewidth=0.8)
            points(axes, part, "mean", x=x, label=label, **marks(colour, marker, 5) | EDGED | {"elinewidth": 3})
        axes.set_title(f"{lvlm},\n{dataset}", fontsize=8)
        axes.set_xticks(list(places.values()), places)
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.label_outer(remove_inner_ticks=False)
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("entropy (nats)")
    for axes in grid[-1]:
        axes.set_xlabel("$D_c$ (layer, head), and R")
    return legend_below(figure)


@styled
def by_size(frame: pd.DataFrame) -> Figure:
    """The paper's teaser in numbers: Acc@0.5, Acc@0.75 and mean IoU (0-1) of one method on large, medium and small
    objects, 95 % intervals; a row a column (an LVLM on a dataset).

    frame: size (small, medium, large), acc50, acc75, miou, each with _lo and _hi, lvlm, dataset; of one method
    The last row is the published numbers of greedy decoding, Qwen2.5-VL-7B on COCO.
    """
    known = published.by_size().query("lvlm == 'Qwen2.5-VL-7B'").assign(row="published: Qwen2.5-VL-7B, COCO")
    frame = frame.assign(row=frame["lvlm"] + ", " + frame["dataset"])
    places = {name: -y for y, name in enumerate(dict.fromkeys([*frame["row"], *known["row"]]))}
    figure, grid = plt.subplots(len(RATES), 1, sharex=True, figsize=(5.2, 1 + len(RATES) * (0.5 + 0.2 * len(places))))
    for axes, (rate, label) in zip(grid, RATES.items()):
        for size, (colour, marker) in SIZES.items():
            rows, told = frame[frame["size"] == size], known[known["size"] == size]
            points(
                axes, rows, rate, y=rows["row"].map(places), label=f"{size} objects", **marks(colour, marker), **EDGED
            )
            if rate in told:
                look = marks(colour, marker) | {"linestyle": "", "markerfacecolor": "white", "gid": "published"}
                axes.plot(told[rate], told["row"].map(places), **look)
        axes.set(title=label, xlim=(0, 1.02))
        axes.set_yticks(list(places.values()), places)
    return legend_below(figure)


@styled
def main_results(frame: pd.DataFrame) -> Figure:
    """The paper's main table as a dot plot: Acc@0.5 and, small and hollow, Acc@0.75 (0-1) of every method with 95 %
    intervals, best on top.

    frame: rows of main_results.csv: method, family, acc50, acc75, each with _lo and _hi, and optionally lvlm, dataset
        (a panel each), n_queries and published_acc50 (hollow diamonds)
    The vertical lines are greedy decoding; the oracle stands apart, above a rule.
    """
    gap, oracle = 0.6, frame["method"].str.startswith("oracle")
    frame = frame.assign(family=frame["family"].mask(oracle, "oracle"))
    order = frame.assign(oracle=oracle).groupby("method", sort=False)[["oracle", "acc50"]].mean()
    order = order.sort_values(["oracle", "acc50"], kind="stable")
    height = dict(zip(order.index, np.arange(len(order)) + gap * order["oracle"]))
    figure, grid = panel_grid(
        frame, 3.6, 1.6 + 0.26 * len(order), 3.6, xlabel="Acc@0.5 and, grey, Acc@0.75; small objects"
    )
    for axes, block in grid:
        for family, rows in block.groupby("family", sort=False, dropna=False):
            look = marks(*FAMILIES.get(family, (BLACK, "X")), 6.5) | EDGED
            points(axes, rows, "acc50", y=rows["method"].map(height), capsize=2.5, zorder=3, label=family, **look)
        look = {"marker": ".", "color": GREY, "markerfacecolor": "white", "elinewidth": 0.8, "zorder": 2}
        points(axes, block, "acc75", y=block["method"].map(height), label="Acc@0.75", **look)
        for rate in block.loc[block["method"] == "greedy", ["acc50", "acc75"]].to_numpy().ravel():
            look = {"color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 1, "gid": "greedy"}
            axes.axvline(rate, label="greedy decoding", **look)
        if "published_acc50" in block and block["published_acc50"].notna().any():
            known = block.dropna(subset="published_acc50")
            look = {"linestyle": "", "zorder": 4, "gid": "published", "label": "published", **HOLLOW}
            axes.plot(known["published_acc50"], known["method"].map(height), **look)
        if oracle.any() and not oracle.all():
            axes.axhline((order["oracle"] == 0).sum() - 0.5 + gap / 2, color="#888888", linewidth=0.8)
        if "n_queries" in block:
            axes.set_title(f"{axes.get_title()}\n(n = {int(block['n_queries'].max())} queries)".strip())
        axes.set_ylim(-0.7, max(height.values()) + 0.7)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
    name_rows([axes for axes, _ in grid], height)
    return legend_below(figure)


@styled
def differences(frame: pd.DataFrame) -> Figure:
    """What choosing brings over greedy decoding: paired differences of Acc@0.5 (points, 95 % intervals) of ACS-Learned,
    ACS-Free and the best sampling baseline, which is named; with the habit and without.

    frame: significance.csv: method, family, delta_vs_greedy, delta_lo, delta_hi (-1 to 1), lvlm, dataset, condition
    """
    baselines = frame[frame["family"].isin(published.BASELINE_FAMILIES)]
    best = baselines.loc[baselines.groupby(["lvlm", "dataset"], sort=False)["delta_vs_greedy"].idxmax()]
    best = best.assign(row=published.BEST_BASELINE, note=best["method"], method=published.BEST_BASELINE)
    ours = frame[frame["method"].isin(("ACS-Learned", "ACS-Free"))]
    ours = ours.sort_values("method", ascending=False, kind="stable").assign(row=lambda rows: rows["method"], note="")
    rows = pd.concat([ours, best]).rename(columns={"delta_vs_greedy": "delta"})
    rows = rows.sort_values(["lvlm", "dataset"], kind="stable", key=lambda names: names.map(_order(frame)))
    looks = {name: METHOD_LOOKS[name][:2] for name in ("ACS-Learned", "ACS-Free")}
    return forest(rows, "delta", looks | {published.BEST_BASELINE: (BLUE, "s")}, "Acc@0.5 against greedy (points)")


def _order(frame: pd.DataFrame) -> dict[str, int]:
    """The place at which each LVLM and dataset comes."""
    return {name: place for place, name in enumerate(dict.fromkeys([*frame["lvlm"], *frame["dataset"]]))}


@styled
def layer_attribution(frame: pd.DataFrame) -> Figure:
    """The paper's 'discovering localization-critical patterns', first half: attribution by layer (share, 0-1), in each
    of the ways of method.heads.ATTRIBUTIONS, with 95 % intervals; layers with heads in D_c stand on grey.

    frame: attributions.csv: columns layer, selected, the ATTRIBUTIONS, each also with _lo and _hi, and optionally lvlm
        (a panel each)
    """
    width, names = max(4.6, 0.3 * frame["layer"].nunique() + 2), ("decoder layer (from 0)", "share of the attribution")
    figure, grid = panel_grid(frame, width, 3.1, 0, ["lvlm"], xlabel=names[0], ylabel=names[1])
    for axes, block in grid:
        for layer in block.loc[block["selected"], "layer"]:
            axes.axvspan(layer - 0.45, layer + 0.45, color=LIGHT, zorder=0, label="layers with heads in $D_c$")
        for shift, (name, (colour, hatch)) in zip(offsets(len(BARS), 0.27), BARS.items()):
            bars(axes, block, name, block["layer"] + shift, 0.25, color=colour, hatch=hatch, label=name)
        axes.grid(axis="x", visible=False)
        layer_ticks(axes, frame["layer"])
    return legend_below(figure)


@styled
def head_heatmap(heads: pd.DataFrame) -> Figure:
    """The paper's 'discovering localization-critical patterns', second half: which heads' entropy tells good from bad.

    heads: columns layer, head, auroc (0-1; 0.5 is chance, higher: low entropy goes with good boxes), selected (bool),
        and optionally lvlm (a panel each)
    """
    blocks = panels(heads, "lvlm")
    reach = max((heads["auroc"] - 0.5).abs().max(), 0.05)  # the colours are even about chance
    width, height = 0.3 * heads["head"].nunique() + 1.8, 0.3 * heads["layer"].nunique() + 1.5
    columns = min(len(blocks), 2)
    rows = -(-len(blocks) // columns)
    size = (max(4.2, width) * columns, np.clip(height, 2.8, 8) * rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=size)
    for axes in grid.flat[len(blocks) :]:
        axes.set_visible(False)
    for axes, (title, block) in zip(grid.flat, blocks, strict=False):
        table = block.pivot(index="layer", columns="head", values="auroc")
        sns.heatmap(
            table, ax=axes, vmin=0.5 - reach, vmax=0.5 + reach, cmap="PuOr_r", linewidths=0.4, linecolor="white",
            annot=table.size <= 72, fmt=".2f", annot_kws={"fontsize": 7}, cbar=axes in grid[:, -1],
            cbar_kws={"label": "AUROC of entropy (0.5: chance)", "pad": 0.02},
        )  # fmt: skip
        for row in block[block["selected"].astype(bool)].itertuples():
            place = (table.columns.get_loc(row.head), table.index.get_loc(row.layer))
            look = {"edgecolor": BLACK, "linewidth": 2.2, "path_effects": cased(4.5, "white"), "clip_on": False}
            axes.add_patch(Rectangle(place, 1, 1, fill=False, zorder=3, label="discriminative heads ($D_c$)", **look))
        axes.set(xlabel="head (from 0)", ylabel="decoder layer (from 0)", title=title)
        axes.tick_params(length=0, rotation=0)
        axes.grid(visible=False)
    return legend_below(figure)


@styled
def predicted_vs_true(answers: pd.DataFrame, bins: pd.DataFrame) -> Figure:
    """The paper's regressor result (r > 0.67): IoU predicted from attention against true IoU.

    answers: one row an answer: image (its id), predicted_iou, iou (0-1), and optionally lvlm, dataset (a panel each);
        rows with a NaN are left out
    bins: predicted_iou, iou (means in bins of the same answers), iou_lo, iou_hi, and lvlm, dataset where `answers` has
        them (see study.results.reliability_tables)
    Grey: number of answers (log scale). Points: the bins, with 95 % intervals over images. Points on the diagonal: a
    predicted IoU can be taken at its word. Pearson's r stands in the panel.
    """
    answers = answers.dropna(subset=["predicted_iou", "iou"])
    means = dict(panels(bins, "lvlm", "dataset"))
    lowest, highest = min(0.0, answers["predicted_iou"].min()), max(1.0, answers["predicted_iou"].max())
    figure, grid = panel_grid(answers, 3.6, 3.5, 1.6, xlabel="predicted IoU", ylabel="true IoU")
    shade = mpl.colors.LinearSegmentedColormap.from_list("greys", ["#EDEDED", "#4D4D4D"])
    sides = {"bins": (40, 40), "range": [[lowest, highest], [0, 1]]}
    counts = [np.histogram2d(block["predicted_iou"], block["iou"], **sides) for _, block in grid]
    norm = LogNorm(1, max(2, *(count.max() for count, _, _ in counts)))
    titles = [title for title, _ in panels(answers, "lvlm", "dataset")]
    for (axes, block), title, (count, *edges) in zip(grid, titles, counts, strict=True):
        mesh = axes.pcolormesh(*edges, np.ma.masked_equal(count, 0).T, cmap=shade, norm=norm, rasterized=True)
        axes.plot([0, 1], [0, 1], label="predicted = true", **DIAGONAL)
        rows = means[title]
        look = {"elinewidth": 1.5, "capsize": 3, **marks(VERMILLION, "o", 7), **EDGED}
        points(axes, rows, "iou", x=rows["predicted_iou"], label="mean in bin, 95 % interval over images", **look)
        r, images = block["predicted_iou"].corr(block["iou"]), block["image"].nunique()
        patch = {"facecolor": "white", "edgecolor": "#BBBBBB", "alpha": 0.9, "pad": 3}
        axes.text(
            0.03, 0.97, f"Pearson r = {r:.3f}\n{len(block):,} answers, {images} images", bbox=patch, va="top",
            fontweight="bold", transform=axes.transAxes, zorder=5,
        )  # fmt: skip
        axes.set(xlim=(lowest, highest), ylim=(-0.02, 1.02))
        axes.grid(visible=False)
    figure.colorbar(mesh, ax=[axes for axes, _ in grid], label="answers", pad=0.02)
    return legend_below(figure)


@styled
def candidates_sweep(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) on small objects against the number N of sampled candidates (the paper's N is 10).

    frame: columns n_samples, method, acc50, acc50_lo, acc50_hi, and optionally lvlm, dataset (a panel each)
    Bars are 95 % intervals; of the ACS methods alone, side by side, so that they can be told apart.
    """
    methods = list(dict.fromkeys(frame["method"]))
    looks, barred = looks_of(methods), [method for method in methods if method.startswith("ACS")]
    shifts = dict(zip(barred, offsets(len(barred), 0.16)))
    figure, grid = panel_grid(frame, 3.4, 2.9, 1.2, xlabel="sampled candidates N", ylabel="Acc@0.5, small objects")
    for axes, block in grid:
        for method in methods:
            rows = block[block["method"] == method].sort_values("n_samples")
            colour, marker, line, _ = looks[method]
            reference = method == "greedy" or method.startswith("oracle")  # a line to compare with: no markers
            place = rows["n_samples"] + shifts.get(method, 0)
            label = f"{method}, 95 % interval" if method in shifts else method
            axes.plot(place, rows["acc50"], line, label=label, **marks(colour, "" if reference else marker), **EDGED)
            if method in shifts:
                points(axes, rows, "acc50", x=place, fmt="none", ecolor=colour)
        axes.set_xticks(sorted(block["n_samples"].unique()))
    return legend_below(figure)
