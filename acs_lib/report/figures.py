"""Figures of the report: pure functions from frames and arrays to a matplotlib Figure, in one style.

Colours are Okabe and Ito's (told apart by colour-blind readers), and nothing is said by colour alone: groups also have
their own marker, line style or hatch, so that every figure survives a greyscale print. Rates are drawn in 0-1 with 95 %
intervals. Boxes follow the paper's pages: ground truth yellow, prediction red.

Frames may hold several LVLMs and data sets (columns `lvlm`, `dataset`): each pair gets a panel of its own.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from PIL import Image

from acs_lib import published
from acs_lib.candidates import COORDINATES
from acs_lib.confidence import reliability
from acs_lib.paths import replacing, write_text

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, LIGHT = "#6B6B6B", "#D9D9D9"
TRUTH, PREDICTION = "#FFFF00", "#FF0000"

GROUPS = {  # IoU group -> label, colour, marker, line style, hatch of the band
    "high": ("high IoU (> 0.6)", BLUE, "o", "-", "////"),
    "low": ("low IoU (0-0.3)", ORANGE, "s", "--", ""),
    "zero": ("zero IoU (0)", VERMILLION, "^", ":", ""),
}
BANDS = ("high", "zero")  # groups whose quartiles are drawn: three bands would merge in greyscale
FAMILIES = {  # family -> colour, marker
    "control": (GREY, "o"),
    "likelihood": (SKY, "s"),
    "consensus": (ORANGE, "D"),
    "attention": (PURPLE, "v"),
    "acs-free": (GREEN, "P"),
    "acs-learned": (VERMILLION, "*"),
    "fusion": (BLACK, "X"),
}
METHODS = {  # method -> colour, marker, line style, hatch; the others take theirs from OTHERS in turn
    "greedy": (GREY, "o", "--", ""),
    "ACS-Free": (GREEN, "P", "-", "///"),
    "ACS-Learned": (VERMILLION, "*", "-", "\\\\\\"),
    "oracle best of N": (BLACK, "p", ":", "xxx"),
    "random (mean over N)": (SKY, "s", ":", "..."),
}
SEEDS = {"sampling": (BLUE, "o"), "regressor": (VERMILLION, "^")}  # source of randomness -> colour, marker
MISTAKES = {"near miss": (BLUE, "o"), "another object": (VERMILLION, "^"), "nothing": (GREY, "s")}  # colour, marker
OTHERS = (
    (BLUE, "v", "-.", "---"),
    (PURPLE, "D", "-.", "+++"),
    (ORANGE, "X", "--", "ooo"),
    (BLACK, "<", "-.", "|||"),
    (SKY, ">", "--", "***"),
    (BLUE, "h", ":", "OO"),
)
KEY_METHODS = ("greedy", "ACS-Free", "ACS-Learned", "oracle best of N")

# Heat maps and scores on images: away from the boxes' yellow and red, and lighter means more in greyscale, too.
HEAT = mpl.colors.LinearSegmentedColormap.from_list("heat", ["#1B2A6B", "#1F6FB5", "#2FB5C7", "#C9FFF4"])

# Published numbers: hollow, and cased in white where they may lie on a bar.
HOLLOW = {"markeredgecolor": BLACK, "markersize": 7, "markeredgewidth": 1.2}
CASED = [patheffects.Stroke(linewidth=3.2, foreground="white"), patheffects.Normal()]

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlepad": 6,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.07,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "pdf.fonttype": 42,
    "svg.hashsalt": "acs-kit",
    "text.usetex": False,
}


def style() -> AbstractContextManager:
    """The kit's rcParams as a context; every figure here is drawn and saved in it."""
    kept = ("backend", "backend_fallback", "interactive")  # the caller's: they say where a figure is shown, not how
    return mpl.rc_context({key: value for key, value in mpl.rcParamsDefault.items() if key not in kept} | RC)


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the kit's style. A notebook shows the figure under its cell, once; elsewhere the caller owns it and
    nothing is left open in pyplot."""

    @wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        plt.draw_if_interactive()  # loads the notebook's backend, which switches pyplot to interactive
        in_notebook, opened, figure = "inline" in mpl.get_backend(), set(plt.get_fignums()), None
        with style():
            try:
                figure = draw(*args, **kwargs)
                figure.draw_without_rendering()
                return figure
            finally:
                if figure is None or not in_notebook:
                    for number in set(plt.get_fignums()) - opened:
                        plt.close(number)

    return styled


def save(figure: Figure, folder: str | Path, stem: str, caption: str) -> dict[str, Path]:
    """Write `folder`/figures/`stem`.pdf and .png (150 dpi), each whole or not at all. Returns suffix -> path.

    The same figure gives the same bytes: no dates, no versions. The caption goes into figures/captions.json,
    where the page finds it for captions and alternative texts.
    """
    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    metadata = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}
    paths = {}
    with style():
        for suffix, fields in metadata.items():
            paths[suffix] = figures / f"{stem}.{suffix}"
            with replacing(paths[suffix]) as aside:
                figure.savefig(aside, format=suffix, metadata=fields)
    path = figures / "captions.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get(stem) != caption:
        write_text(path, json.dumps({**known, stem: caption}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return paths


def _panels(frame: pd.DataFrame, *keys: str) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each combination of the `keys` the frame has, in order of appearance."""
    if frame.empty:
        raise ValueError("nothing to draw: the frame is empty")
    keys = [key for key in keys if key in frame]
    if not keys:
        return [("", frame)]
    return [(", ".join(map(str, values)), part) for values, part in frame.groupby(keys, sort=False, dropna=False)]


def _grid(panels: int, width: float, height: float, margin: float) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels of `width` x `height` inches in one or two columns, all on one scale, and its axes
    in order."""
    columns = min(panels, 2)
    rows = -(-panels // columns)
    size = (margin + width * columns, height * rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, figsize=size)
    for axes in grid.flat[panels:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:panels])


def _name_rows(grid: Sequence[Axes], places: Mapping[str, float]) -> None:
    """Write the names {name: y} at the left of panels that share the axis, those of ACS bold."""
    grid[0].set_yticks(list(places.values()), list(places))
    for axes in grid:
        axes.label_outer(remove_inner_ticks=False)
    for axes in grid[::2]:
        for name, label in zip(places, axes.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name.startswith("ACS") else "normal")


def _looks(methods: Iterable[str]) -> dict[str, tuple[str, str, str, str]]:
    """Colour, marker, line style and hatch of each method; the same for a well-known method in every figure."""
    others = [method for method in methods if method not in METHODS]
    return METHODS | {method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}


def _errors(values: pd.Series, lo: pd.Series, hi: pd.Series) -> np.ndarray:
    """[2, n] lengths of the intervals below and above the values, for errorbar."""
    values, lo, hi = (np.asarray(v, float) for v in (values, lo, hi))
    return np.clip(np.nan_to_num([values - lo, hi - values]), 0, None)


def _legend_below(figure, handles: Sequence) -> None:
    """One legend under all panels, in as few and as even rows as its width allows."""
    inches = [0.6 + 0.06 * len(handle.get_label()) for handle in handles]  # of an entry, at 8 points
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)  # matplotlib fills column by column
        if sum(max(inches[i : i + rows]) for i in range(0, len(handles), rows)) <= figure.bbox.width / figure.dpi:
            break
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.4)


def _layer_ticks(axes: Axes, layers: Iterable[int]) -> None:
    layers = sorted(set(map(int, layers)))
    step = -(-len(layers) // 14)
    axes.set_xticks(layers[::step])


@_styled
def entropy_by_layer(frame: pd.DataFrame) -> Figure:
    """The paper's entropy figure: mean attention entropy (nats) by layer, one row of panels a coordinate, three groups
    of IoU.

    frame: columns coordinate (x1, y1, x2, y2), layer, group (high, IoU > 0.6; low, 0-0.3; zero, 0), mean with its 95 %
        interval mean_lo and mean_hi, q25, q75, and optionally lvlm, dataset (a column of panels each)
    Bands run from the first to the third quartile of the groups high (hatched) and zero; bars are the intervals.
    """
    blocks = _panels(frame, "lvlm", "dataset")
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
                    rows["layer"], rows["mean"], _errors(rows["mean"], rows["mean_lo"], rows["mean_hi"]),
                    linestyle=line, color=colour, marker=marker, markeredgecolor="white", markeredgewidth=0.6,
                    markersize=5, elinewidth=1.2, capsize=2.5, label=label,
                )  # fmt: skip
            _layer_ticks(axes, block["layer"])
        column[-1].set_xlabel("decoder layer (from 0)")
    for axes, coordinate in zip(grid[:, 0], COORDINATES, strict=True):
        axes.set_ylabel(f"{coordinate}: entropy (nats)")
    figure.align_ylabels(grid[:, 0])
    _legend_below(figure, grid[0, 0].get_legend_handles_labels()[0])
    return figure


@_styled
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
    looks, width = _looks(methods), 0.8 / max(len(methods), 1)
    known = published.by_size()
    known = known[(known["lvlm"] == "Qwen2.5-VL-7B") & (known["dataset"] == "COCO")].set_index("size")
    blocks = _panels(by_size, "lvlm", "dataset")
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
                    _errors(rows[metric], rows[f"{metric}_lo"], rows[f"{metric}_hi"]),
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
    _legend_below(figure, handles)
    return figure


@_styled
def main_results(frame: pd.DataFrame) -> Figure:
    """The paper's main table as a dot plot: Acc@0.5 (0-1) of every method with its 95 % interval, best on top.

    frame: rows of main_results.csv: method, family, acc50, acc50_lo, acc50_hi, and optionally lvlm, dataset (a panel
        each), n_queries and published_acc50 (hollow diamonds)
    The vertical line is greedy decoding; the oracle stands apart, above a rule.
    """
    blocks = _panels(frame, "lvlm", "dataset")
    mean = frame.groupby("method", sort=False)["acc50"].mean().sort_values(kind="stable")
    is_oracle = mean.index.str.startswith("oracle")
    order = [*mean.index[~is_oracle], *mean.index[is_oracle]]
    gap = 0.6
    height = {method: i + gap * method.startswith("oracle") for i, method in enumerate(order)}
    figure, grid = _grid(len(blocks), 3.6, 1.6 + 0.26 * len(order), 3.6)
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
                xerr=_errors([row.acc50], [row.acc50_lo], [row.acc50_hi]),
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
    _name_rows(grid, height)
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
    _legend_below(figure, handles)
    return figure


@_styled
def layer_attribution(layers: pd.DataFrame) -> Figure:
    """The paper's 'discovering localization-critical patterns', first half: gradient attribution by layer.

    layers: layers.csv: columns layer, attribution (share of the total, 0-1) with its 95 % interval attribution_lo and
        attribution_hi, selected (the layer has heads in D_c: hatched), and optionally lvlm (a panel each)
    """
    blocks = _panels(layers, "lvlm")
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
        lengths = _errors(block["attribution"], block["attribution_lo"], block["attribution_hi"])
        axes.errorbar(block["layer"], block["attribution"], lengths, fmt="none", ecolor="#222222", capsize=2)
        axes.set(xlabel="decoder layer (from 0)", ylabel="share of the gradient attribution", title=title)
        axes.grid(axis="x", visible=False)
        _layer_ticks(axes, block["layer"])
    handles = {
        label: handle for axes in grid[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    _legend_below(figure, list(handles.values()))
    return figure


@_styled
def head_heatmap(heads: pd.DataFrame) -> Figure:
    """The paper's 'discovering localization-critical patterns', second half: which heads' entropy tells good from bad.

    heads: columns layer, head, auroc (0-1; 0.5 is chance, higher: low entropy goes with good boxes), selected (bool),
        and optionally lvlm (a panel each)
    """
    blocks = _panels(heads, "lvlm")
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
    _legend_below(figure, [Patch(facecolor="none", edgecolor=BLACK, linewidth=2, label="discriminative heads $D_c$")])
    return figure


@_styled
def predicted_vs_true(answers: pd.DataFrame, draws: int = 2000) -> Figure:
    """The paper's regressor result (r > 0.67): IoU predicted from attention against true IoU.

    answers: one row an answer: image (its id), predicted, iou (0-1), and optionally lvlm, dataset (a panel each); rows
        with a NaN are left out
    draws: how often the images are drawn with replacement
    Grey: number of answers (log scale). Points: mean true IoU in bins of predicted IoU, with 95 % intervals over images
    (see acs_lib.confidence.reliability). Points on the diagonal: a predicted IoU can be taken at its word. Pearson's r
    stands in the panel.
    """
    answers = answers.dropna(subset=["predicted", "iou"])
    blocks = _panels(answers, "lvlm", "dataset")
    lowest, highest = min(0.0, answers["predicted"].min()), max(1.0, answers["predicted"].max())
    counts = [
        np.histogram2d(block["predicted"], block["iou"], bins=(40, 40), range=[[lowest, highest], [0, 1]])
        for _, block in blocks
    ]
    shade = mpl.colors.LinearSegmentedColormap.from_list("greys", ["#EDEDED", "#4D4D4D"])
    norm = LogNorm(1, max(2, *(count.max() for count, _, _ in counts)))
    figure, grid = _grid(len(blocks), 3.6, 3.5, 1.6)
    for axes, (title, block), (count, *edges) in zip(grid, blocks, counts, strict=True):
        mesh = axes.pcolormesh(*edges, np.ma.masked_equal(count, 0).T, cmap=shade, norm=norm, rasterized=True)
        axes.plot([0, 1], [0, 1], "--", color=BLACK, linewidth=1, label="predicted = true")
        images, r = pd.factorize(block["image"])[0], block["predicted"].corr(block["iou"])
        table, _ = reliability(block["predicted"].to_numpy(), block["iou"].to_numpy(), images, draws)
        axes.errorbar(
            table["predicted"], table["iou"], _errors(table["iou"], table["iou_lo"], table["iou_hi"]), fmt="o",
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
        axes.set(title=_plain(title), xlabel="predicted IoU", ylabel="true IoU")
        axes.set(xlim=(lowest, highest), ylim=(-0.02, 1.02))
        axes.label_outer(remove_inner_ticks=False)
        axes.grid(visible=False)
    figure.colorbar(mesh, ax=grid, label="answers", pad=0.02)
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def candidates_sweep(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 (0-1) on small objects against the number N of sampled candidates (the paper's N is 10).

    frame: columns n, method, acc50, acc50_lo, acc50_hi, and optionally lvlm, dataset (a panel each)
    Bars are 95 % intervals; of the ACS methods alone, side by side, so that they can be told apart.
    """
    methods = list(dict.fromkeys(frame["method"]))
    looks, barred = _looks(methods), [method for method in methods if method.startswith("ACS")]
    blocks = _panels(frame, "lvlm", "dataset")
    figure, grid = _grid(len(blocks), 4.2, 3.7, 1.2)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        for method in methods:
            rows = block[block["method"] == method].sort_values("n")
            colour, marker, line, _ = looks[method]
            reference = method == "greedy" or method.startswith("oracle")  # a line to compare with: no markers
            place = rows["n"]
            if method in barred:
                place = place + 0.16 * (barred.index(method) - (len(barred) - 1) / 2)
                lengths = _errors(rows["acc50"], rows["acc50_lo"], rows["acc50_hi"])
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
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def ranked_right(frame: pd.DataFrame) -> Figure:
    """How often each score puts a good box above a mistake of the same query, by kind (no figure of the paper).

    frame: columns method, kind, right, lo, hi (0-1), pairs, and optionally lvlm, dataset (a panel each); see
        acs_lib.mistakes.ranked_right
    """
    blocks = _panels(frame, "lvlm", "dataset")
    methods = list(dict.fromkeys(frame["method"]))
    kinds = [kind for kind in MISTAKES if kind in set(frame["kind"])]
    height = 1.4 + 0.42 * len(methods)
    figure, grid = _grid(len(blocks), 3.9, height, 1.6)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
        for index, kind in enumerate(kinds):
            colour, marker = MISTAKES[kind]
            rows = block[block["kind"] == kind].set_index("method").reindex(methods)
            place = np.arange(len(methods)) + 0.22 * (index - (len(kinds) - 1) / 2)
            axes.errorbar(
                rows["right"], place, xerr=_errors(rows["right"], rows["lo"], rows["hi"]), fmt=marker, color=colour,
                markersize=6, elinewidth=1.2, label=f"against {kind}",
            )  # fmt: skip
        axes.set(title=title, xlabel="pairs ranked right (0.5 is chance)")
    _name_rows(grid, {method: place for place, method in enumerate(methods)})
    grid[0].invert_yaxis()
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def seeds(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 of every seed, and how wide the interval over images is beside it (no figure of the paper).

    frame: columns source, seed, method, acc50, acc50_lo, acc50_hi (0-1), and optionally lvlm, dataset (a panel each);
        see acs_lib.seeds
    """
    blocks = _panels(frame, "lvlm", "dataset")
    methods = list(dict.fromkeys(frame["method"]))
    height = 1.4 + 0.36 * len(methods)
    figure, grid = _grid(len(blocks), 3.6, height, 1.9)
    for axes, (title, block) in zip(grid, blocks, strict=True):
        own = block.drop_duplicates("method")
        places = own["method"].map(methods.index)
        axes.hlines(places, own["acc50_lo"], own["acc50_hi"], color=LIGHT, linewidth=7, label="95 % over images")
        for index, (source, (colour, marker)) in enumerate(SEEDS.items()):
            rows = block[block["source"] == source]
            place = rows["method"].map(methods.index) + 0.3 * (index - 0.5)
            axes.plot(rows["acc50"], place, marker, color=colour, alpha=0.8, label=f"seeds of {source}")
        axes.set(title=title, xlabel="Acc@0.5, small objects")
    _name_rows(grid, {method: place for place, method in enumerate(methods)})
    grid[0].invert_yaxis()
    _legend_below(figure, grid[0].get_legend_handles_labels()[0])
    return figure


@_styled
def designs(frame: pd.DataFrame) -> Figure:
    """What choosing by attention gained over greedy in every design of an LVLM that was tried, against how many of
    the mistakes in mixed queries are other objects (no figure of the paper).

    frame: columns design, dataset, share another object, learned_vs_greedy, learned_vs_greedy_lo, _hi (0-1), and
        optionally lvlm (a panel each)
    """
    blocks = _panels(frame, "lvlm", "dataset")
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
    _legend_below(figure, list(handles.values()))
    return figure


def _box(axes: Axes, box: np.ndarray | None, colour: str, width: float, **kwargs) -> None:
    """Draw one xyxy box with a dark casing, so that it shows on any background; nothing for a missing box."""
    if box is None or not np.isfinite(np.asarray(box, float)).all():
        return
    x1, y1, x2, y2 = np.asarray(box, float)
    patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, **kwargs)
    patch.set_path_effects([patheffects.Stroke(linewidth=width + 0.7, foreground="black"), patheffects.Normal()])
    axes.add_patch(patch)


def _truth_and_prediction(
    axes: Axes, truth: np.ndarray | None, prediction: np.ndarray | None, width: float = 1.6
) -> None:
    """Ground truth in yellow, wider and below; prediction in red: both show where they coincide."""
    _box(axes, truth, TRUTH, 2.2 * width, gid="truth")
    _box(axes, prediction, PREDICTION, width, gid="prediction")


def _picture(axes: Axes, image: Image.Image | np.ndarray) -> None:
    width, height = image.size
    axes.imshow(np.asarray(image), extent=(0, width, height, 0), aspect="equal")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)


def _box_handles(truth: bool = True, prediction: str | None = "prediction") -> list[Patch]:
    """Legend entries of the boxes, cased as in the picture."""
    handles = []
    for shown, colour, label in ((truth, TRUTH, "ground truth"), (prediction, PREDICTION, prediction)):
        if shown:
            patch = Patch(facecolor="none", edgecolor=colour, linewidth=1.8, label=label)
            patch.set_path_effects([patheffects.Stroke(linewidth=3, foreground="black"), patheffects.Normal()])
            handles.append(patch)
    return handles


def _given(box: np.ndarray | None) -> bool:
    return box is not None and bool(np.isfinite(np.asarray(box, float)).all())


def _heat(axes: Axes, image: Image.Image, values: np.ndarray):
    """A map [h, w] divided by its maximum, up-sampled bilinearly, over the dimmed image; the artist of its colours."""
    dimmed = Image.fromarray((25 + 0.6 * np.asarray(image.convert("L"), float)).astype(np.uint8)).convert("RGB")
    fine = np.asarray(Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    fine = np.clip(fine, 0, None) / max(fine.max(), 1e-12)
    _picture(axes, dimmed)
    return axes.imshow(
        fine,
        cmap=HEAT,
        vmin=0,
        vmax=1,
        alpha=0.85 * np.sqrt(fine),
        extent=(0, image.width, image.height, 0),
        rasterized=True,
    )


def heat_image(values: np.ndarray) -> Image.Image:
    """A map [h, w] as an RGBA picture of h x w pixels to lay over an image: `HEAT`, the more opaque the stronger."""
    values = np.clip(values, 0, None) / max(values.max(), 1e-12)
    shade = HEAT(values)
    shade[..., 3] = 0.85 * np.sqrt(values)
    return Image.fromarray((255 * shade).round().astype(np.uint8))


@_styled
def attention_overlay(
    image: Image.Image,
    maps: np.ndarray,
    titles: Sequence[str],
    box: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    columns: int = 4,  # at most
) -> Figure:
    """The heat maps of the paper's pipeline figure: attention over the image, one panel a map.

    maps: [k, h, w] attention >= 0 over the image-token grid, up-sampled bilinearly to the image, each divided by its
        maximum
    titles: [k], e.g. 'x1, layer 3, head 4'
    box: the candidate's box (red); truth: ground truth (yellow); xyxy in pixels of the image
    """
    maps = np.asarray(maps, float)
    if maps.ndim != 3 or len(maps) != len(titles) or not len(maps):
        raise ValueError(f"maps must be [k, h, w] with k = {len(titles)} titles, at least one; got {maps.shape}")
    rows = -(-len(maps) // columns)
    columns = -(-len(maps) // rows)  # even rows: six maps are 3 + 3
    side = 9.0 / max(columns, 3)
    aspect = image.height / image.width
    figure, grid = plt.subplots(
        rows,
        columns,
        squeeze=False,
        layout="compressed",
        figsize=(side * columns + 0.9, (side * aspect + 0.5) * rows + 0.4),
    )
    for axes, values, title in zip(grid.flat, maps, titles, strict=False):
        shown = _heat(axes, image, values)
        _truth_and_prediction(axes, truth, box, 1.2)
        axes.set_title(_plain(title), fontsize=9)
    for axes in list(grid.flat)[len(maps) :]:
        axes.set_visible(False)
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(shown.norm, shown.cmap), ax=grid, pad=0.01, fraction=0.03, aspect=20 * rows
    )
    bar.set_label("attention / its maximum")
    if handles := _box_handles(_given(truth), "prediction" if _given(box) else None):
        _legend_below(figure, handles)
    return figure


def _window(boxes: Iterable[np.ndarray | None], truth: np.ndarray, width: int, height: int) -> tuple[float, ...]:
    """A square (x1, y1, x2, y2) inside the image round the truth and those boxes that lie near it."""
    truth = np.asarray(truth, float)
    near = [truth]
    size = max(truth[2] - truth[0], truth[3] - truth[1], 1.0)
    for box in boxes:
        if _given(box):
            both = np.stack([truth, np.asarray(box, float)])
            if max(np.ptp(both[:, [0, 2]]), np.ptp(both[:, [1, 3]])) <= max(4 * size, 0.35 * max(width, height)):
                near.append(both[1])
    corners = np.stack(near)
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    side = min(max(1.5 * (high - low).max(), 2 * size, 12.0), width, height)
    x, y = np.clip((low + high) / 2 - side / 2, 0, [width - side, height - side])
    return x, y, x + side, y + side


@_styled
def qualitative(cases: Sequence[Mapping]) -> Figure:
    """The paper's qualitative comparison (and its teaser): greedy decoding against ACS-Learned, one row a case.

    cases: dicts with image (PIL), category, truth, greedy, chosen (xyxy boxes in pixels; greedy and chosen may be None
        or NaN where the answer held no box), greedy_iou, chosen_iou (0-1)
    Each picture has its neighbourhood of the object enlarged beside it, the same one for both methods. No cases: a
    figure that says 'none'.
    """
    if not cases:
        figure, axes = plt.subplots(figsize=(8.4, 1.0))
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes, fontstyle="italic")
        axes.set_axis_off()
        return figure
    ratio = float(np.mean([case["image"].width / case["image"].height for case in cases]))
    figure, grid = plt.subplots(
        len(cases),
        4,
        squeeze=False,
        width_ratios=[ratio, 1, ratio, 1],
        layout="compressed",
        figsize=(8.4, len(cases) * (8.1 / (2 * ratio + 2) + 0.28) + 0.4),
    )
    for row, case in zip(grid, cases, strict=True):
        image = case["image"].convert("RGB")
        x1, y1, x2, y2 = _window([case["greedy"], case["chosen"]], case["truth"], *image.size)
        for axes, zoom, name, box, iou in (
            (row[0], row[1], "greedy", case["greedy"], case["greedy_iou"]),
            (row[2], row[3], "ACS-Learned", case["chosen"], case["chosen_iou"]),
        ):
            for panel, width in ((axes, 1.0), (zoom, 2.0)):
                _picture(panel, image)
                _truth_and_prediction(panel, case["truth"], box, width)
            zoom.set(xlim=(x1, x2), ylim=(y2, y1))
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ORANGE, linestyle="--", linewidth=1)
            )
            for y, corner in ((y1, 1), (y2, 0)):
                axes.add_artist(
                    ConnectionPatch(
                        (x2, y),
                        (0, corner),
                        axes.transData,
                        zoom.transAxes,
                        color=ORANGE,
                        linestyle="--",
                        linewidth=1.2,
                        clip_on=False,
                    )
                ).set_in_layout(False)
            for spine in zoom.spines.values():
                spine.set(color=ORANGE, linewidth=1.4)
            answered = f"IoU={iou:.2f}" if _given(box) else "no box"
            axes.set_title(f"{name}, {answered}", fontsize=9)
        row[0].set_ylabel(_plain(str(case["category"])), fontsize=9, fontweight="bold")
    figure.get_layout_engine().set(wspace=0.05, w_pad=0.04, h_pad=0.04, hspace=0.02)
    _legend_below(figure, _box_handles())
    return figure


def _plain(text: str) -> str:
    """Text that matplotlib takes literally: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _scored(axes: Axes, boxes: np.ndarray, scores: np.ndarray | None, chosen: int | None) -> Line2D:
    """Draw all boxes [n, 4] but the chosen one, the score [n] as colour and width; returns their legend entry."""
    values = np.full(len(boxes), np.nan) if scores is None else np.asarray(scores, float)
    finite = np.isfinite(values)
    if finite.any():
        lowest, highest = values[finite].min(), values[finite].max()
        norm = mpl.colors.Normalize(lowest, highest if highest > lowest else lowest + 1)
        shade = mpl.cm.ScalarMappable(norm, HEAT)
        axes.figure.colorbar(shade, ax=axes, label="score (higher is better)", pad=0.02)
    for i in np.argsort(values, kind="stable"):
        if i != chosen:
            colour, width = (shade.to_rgba(values[i]), 0.9 + 0.7 * norm(values[i])) if finite[i] else (SKY, 1.1)
            _box(axes, boxes[i], colour, width, gid="candidate")
    return Line2D([], [], color=HEAT(0.6) if finite.any() else SKY, linewidth=1.4, label="candidates")


@_styled
def candidate_boxes(
    image: Image.Image,
    boxes: np.ndarray,
    scores: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    chosen: int | None = None,
    label: str = "chosen",
) -> Figure:
    """The candidates b_1 to b_N of the paper's pipeline figure on one image.

    boxes: [n, 4] xyxy in pixels, NaN rows (no box in the answer) left out
    scores: [n], higher is better, shown as colour and width, or None
    truth: ground truth, yellow; chosen: index of the chosen box, red; label: what the legend calls it
    """
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    height = 5.0 * min(1.4, image.height / image.width) + 0.5
    figure, axes = plt.subplots(layout="compressed", figsize=(5.2 if scores is None else 5.9, height))
    _picture(axes, image.convert("RGB"))
    _box(axes, truth, TRUTH, 3.6, gid="truth")
    others = _scored(axes, boxes, scores, chosen)
    if chosen is not None:
        _box(axes, boxes[chosen], PREDICTION, 2.0, gid="prediction")
    shown = label if chosen is not None and _given(boxes[chosen]) else None
    _legend_below(figure, [*_box_handles(_given(truth), shown), others])
    return figure


@_styled
def grounding(
    image: Image.Image,
    boxes: np.ndarray,
    scores: np.ndarray,
    chosen: int | None,
    box: np.ndarray | None,
    attention: np.ndarray,
    title: str = "",
) -> Figure:
    """One answer about one image, after the paper's pipeline figure: the candidates and the chosen box (red), and the
    attention that goes with it.

    boxes: [n, 4] xyxy in pixels, NaN rows left out; scores: [n], higher is better, NaN where there is none
    chosen: row of the chosen box, or None where it is none of them; box: [4], or None
    attention: [h, w] >= 0 over the image-token grid
    """
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    height = 4.4 * min(1.6, max(0.5, image.height / image.width)) + 0.9
    figure, (left, right) = plt.subplots(1, 2, layout="compressed", figsize=(9.6, height))
    _picture(left, image)
    others = _scored(left, boxes, scores, chosen)
    shade = _heat(right, image, np.asarray(attention, float))
    figure.colorbar(mpl.cm.ScalarMappable(shade.norm, shade.cmap), ax=right, label="attention / its maximum", pad=0.02)
    for axes, name in ((left, "candidates"), (right, "attention")):
        _box(axes, box, PREDICTION, 2.0, gid="prediction")
        axes.set_title(name)
    figure.suptitle(_plain(title))
    _legend_below(figure, [*_box_handles(False, "chosen" if _given(box) else None), others])
    return figure
