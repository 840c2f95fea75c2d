"""Figures of what is not in the paper (notebook 10), in the style of acs_lib.report.figures: a panel for each LVLM and
dataset, Acc@0.5 in 0-1 on small test objects, 95 % intervals."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from acs_lib.evaluation.confidence import COVERAGES
from acs_lib.report.style import (
    BLACK,
    BLUE,
    CHANCE,
    EDGED,
    GREEN,
    GREY,
    LIGHT,
    VERMILLION,
    forest,
    legend_below,
    looks_of,
    marks,
    offsets,
    panel_grid,
    points,
    row_grid,
    styled,
)
from acs_lib.study import effort as stops
from acs_lib.study import intervention, label_free, risk
from acs_lib.study import zoom as closer

ACCURACY = "Acc@0.5, small objects"
LOOKS = {  # budget -> how much of a marker is filled, label
    closer.TEN: ("full", "10 + 1 answers to the whole image (greedy: 1)"),
    closer.FIVES: ("left", "5 + 1 to the whole, 5 to a window"),
    closer.ONES: ("none", "1 to the whole, 1 to a window"),
}
ZOOMED = (closer.GREEDY, closer.SECOND, "sequence log-prob", "ACS-Free", "ACS-Learned")
PROMISED = ("sequence log-prob", "ACS-Free", "ACS-Learned")
PROMISES = {risk.CONFORMAL: ("none", ":"), risk.TESTED: ("full", "--")}  # promise -> fill of its marker, its bound
FOUND = {  # heads -> colour, marker, line
    label_free.FREE: (GREEN, "P", "-"),
    label_free.LABELLED: (BLUE, "s", "--"),
}
KNOCKED = {"acc50": (VERMILLION, "o", "Acc@0.5"), "miou": (BLUE, "s", "mean IoU")}
HANDLE = {"linestyle": "", "color": GREY}


def _log(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


@styled
def zoom(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 against seconds a question (log scale): one look at the whole image, or a second one at a window around
    the greedy box; the larger the marker, the closer.

    frame: zoom.csv: columns budget, window, times, method, acc50 with its interval, seconds, and lvlm, dataset
    """
    frame = frame[frame["method"].isin(ZOOMED) & frame["window"].fillna("").isin(["", closer.GREEDY])]
    looks, shifts = looks_of(ZOOMED), dict(zip(ZOOMED, 1 + offsets(len(ZOOMED), 0.06)))
    figure, grid = panel_grid(frame, 3.6, 3.4, 1.2, xlabel="seconds a question", ylabel=ACCURACY)
    for axes, block in grid:
        _log(axes)
        for (method, budget, times), rows in block.groupby(["method", "budget", "times"], sort=False, dropna=False):
            look = marks(*looks[method][:2], 4 + np.nan_to_num(times)) | {"fillstyle": LOOKS[budget][0]}
            points(axes, rows, "acc50", x=rows["seconds"] * shifts[method], **look)
    methods = [name for name in ZOOMED if name in set(frame["method"])]
    handles = [Line2D([], [], linestyle="", label=name, **marks(*looks[name][:2])) for name in methods]
    handles += [Line2D([], [], marker="o", fillstyle=fill, label=label, **HANDLE) for fill, label in LOOKS.values()]
    return legend_below(figure, handles)


@styled
def zoom_forest(frame: pd.DataFrame) -> Figure:
    """What a second look brings over one (points of Acc@0.5, paired 95 % intervals): the greedy box of a window over
    that of the whole image, and what ACS-Learned chooses of both over what it chooses of as many answers to the whole;
    at the smallest zoom, by what the window lies around.

    frame: zoom.csv: columns budget, window, times, method, delta_vs_ten, _lo, _hi (-1 to 1), lvlm, dataset, condition
    """
    wanted = {closer.ONES: closer.SECOND, closer.FIVES: "ACS-Learned"}
    rows = frame[(frame["method"] == frame["budget"].map(wanted)) & (frame["times"] == frame["times"].min())]
    named = rows["budget"] + ", " + rows["times"].map("{:g}x ".format) + rows["window"]
    looks = {method: looks_of(wanted.values())[method][:2] for method in wanted.values()}
    return forest(rows.assign(row=named), "delta_vs_ten", looks, "Acc@0.5 against one look (points)")


@styled
def precision_recall(frame: pd.DataFrame) -> Figure:
    """Precision against recall of all instances, at IoU 0.5, by what boxes are scored with; a panel for each LVLM.

    frame: instances_curve.csv: columns method, recall, precision, and lvlm, dataset
    """
    methods = list(dict.fromkeys(frame["method"]))
    looks, labels = looks_of(methods), {"xlabel": "recall", "ylabel": "precision (IoU at least 0.5)"}
    figure, grid = panel_grid(frame, 3.6, 3.6, 1.2, ylim=(-0.03, 1.03), **labels)
    for axes, block in grid:
        for method, rows in block.groupby("method", sort=False):
            colour, marker, line, _ = looks[method]
            every = (methods.index(method), len(methods))
            look = {"linestyle": line, "markevery": every, "label": method, **marks(colour, marker), **EDGED}
            axes.plot(rows["recall"], rows["precision"], **look)
    return legend_below(figure)


@styled
def promises(curves: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Risk against coverage, questions about absent objects among them, and where the thresholds of the two promises
    come to lie, at the middle one of the alphas: under its own line each is kept.

    curves: risk_curve.csv: columns method, coverage, risk with its interval, and lvlm, dataset
    table: risk.csv: columns method, promise, alpha, answered, selective_risk, and lvlm, dataset
    """
    alpha = risk.middle(table["alpha"])
    table = table[(table["alpha"] == alpha) & table["method"].isin(PROMISED)]
    labels = {"xlabel": "coverage (share of questions answered)", "ylabel": "risk (share of the answers wrong)"}
    figure, grid = panel_grid(curves[curves["method"].isin(PROMISED)], 3.6, 3.6, 1.2, **labels)
    looks = looks_of(PROMISED)
    for axes, block in grid:
        axes.plot(COVERAGES, np.minimum(1, alpha / COVERAGES), color=BLACK, linewidth=1, linestyle=":")
        axes.axhline(alpha, color=BLACK, linewidth=1, linestyle="--")
        own = table[(table[["lvlm", "dataset"]] == block[["lvlm", "dataset"]].iloc[0]).all(axis=1)]
        for place, (method, rows) in enumerate(block.groupby("method", sort=False)):
            colour, marker, line, _ = looks[method]
            look = {"linestyle": line, "errorevery": (place, len(PROMISED)), "label": method}
            points(axes, rows, "risk", x=rows["coverage"], color=colour, **look)
            for promise, (fill, _) in PROMISES.items():
                at = own[(own["promise"] == promise) & (own["method"] == method)]
                axes.plot(at["answered"], at["selective_risk"], fillstyle=fill, zorder=3, **marks(colour, marker, 9))
    handles = [Line2D([], [], linestyle=looks[name][2], label=name, **marks(*looks[name][:2])) for name in PROMISED]
    for promise, (fill, line) in PROMISES.items():
        label = f"{promise} at most {alpha:g}: bound, threshold"
        handles.append(Line2D([], [], color=BLACK, linestyle=line, marker="o", fillstyle=fill, label=label))
    return legend_below(figure, handles)


@styled
def effort(frame: pd.DataFrame, cost: str = "answers") -> Figure:
    """Acc@0.5 against a mean cost, answers or seconds: thresholds between the greedy answer alone and always all, the
    one that validation chose (large), and who knows which is the first round that holds a hit. Always all is one look,
    so that of seconds no line leads there.

    frame: effort.csv: columns method, rule, answers, seconds, acc50 with its interval, and lvlm, dataset
    """
    methods = list(dict.fromkeys(frame["method"]))
    looks, apart = looks_of(methods), [stops.AUTO, stops.ORACLE, *([stops.ALWAYS] if cost == "seconds" else [])]
    figure, grid = panel_grid(frame, 3.6, 3.6, 1.2, xlabel=f"{cost} a question, mean", ylabel=ACCURACY)
    for axes, block in grid:
        for method, rows in block.groupby("method", sort=False):
            colour, marker, line, _ = looks[method]
            path = rows[~rows["rule"].isin(apart)].sort_values("answers", kind="stable")
            axes.plot(path[cost], path["acc50"], line, label=method, **marks(colour, marker, 4))
            always, auto = (rows[rows["rule"] == rule] for rule in (stops.ALWAYS, stops.AUTO))
            axes.plot(always[cost], always["acc50"], linestyle="", **marks(colour, marker, 4))
            axes.plot(always[cost], always["acc50"], "s", color=colour, fillstyle="none", markersize=10)
            points(axes, auto, "acc50", x=auto[cost], zorder=3, **marks(colour, marker, 9), **EDGED)
        best = block[block["rule"] == stops.ORACLE].head(1)
        axes.plot(best[cost], best["acc50"], linestyle="", label="oracle", **marks(BLACK, "p", 8))
    handles = list({handle.get_label(): handle for handle in grid[0][0].get_legend_handles_labels()[0]}.values())
    handles.append(Line2D([], [], marker="s", fillstyle="none", markersize=9, label="always all answers", **HANDLE))
    handles.append(Line2D([], [], marker="o", markersize=9, label="large: threshold from validation", **HANDLE))
    return legend_below(figure, handles)


@styled
def found_heads(frame: pd.DataFrame) -> Figure:
    """Acc@0.5 of ACS-Free against the number of images (log scale) that its heads were found on, with annotations and
    without; D_c is the line, random heads the band.

    frame: label_free_heads.csv: columns method, images, acc50 with its interval, and lvlm, dataset
    """
    labels = {"xlabel": "images that heads are found on", "ylabel": f"{ACCURACY}, ACS-Free"}
    figure, grid = panel_grid(frame, 3.6, 3.4, 1.2, **labels)
    for axes, block in grid:
        _log(axes)
        for row in block[block["method"] == label_free.RANDOM].itertuples():
            axes.axhspan(row.acc50_lo, row.acc50_hi, color=LIGHT, zorder=0, label=label_free.RANDOM)
            axes.axhline(row.acc50, **CHANCE)
        for row in block[block["method"] == label_free.CHOSEN].itertuples():
            axes.axhline(row.acc50, color=BLACK, linewidth=1, linestyle="-.", label="$D_c$")
        for shift, (method, (colour, marker, line)) in zip((0.97, 1.03), FOUND.items()):
            rows = block[block["method"] == method].sort_values("images")
            look = {"linestyle": line, "label": method, **marks(colour, marker), **EDGED}
            points(axes, rows, "acc50", x=rows["images"] * shift, **look)
    return legend_below(figure)


@styled
def knock_out(frame: pd.DataFrame) -> Figure:
    """What Acc@0.5 and mean IoU (points) of the greedy answers lose without some heads.

    frame: intervention.csv: columns method (the heads), delta_acc50 and delta_miou (0-1) with their intervals, and
        lvlm, dataset
    """
    frame = frame[frame["method"] != intervention.NONE]
    figure, grid, places = row_grid(frame, "method", 3.4, 0.4, 2.6, xlabel="change without these heads (points)")
    for axes, block in grid:
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
        for shift, (name, (colour, marker, label)) in zip(offsets(len(KNOCKED), 0.3), KNOCKED.items()):
            change = pd.DataFrame({f"change{end}": 100 * block[f"delta_{name}{end}"] for end in ("", "_lo", "_hi")})
            place = block["method"].map(places) + shift
            points(axes, change, "change", y=place, label=label, **marks(colour, marker))
    return legend_below(figure)
