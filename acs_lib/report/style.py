"""How every figure looks, the helpers that draw points, bars and panels, and how figures are written to files.

Colours are Okabe and Ito's (told apart by colour-blind readers), and nothing is said by colour alone: groups also have
their own marker, line style or hatch, so that every figure survives a greyscale print. Columns that are drawn with
their 95 % intervals are named as in all tables: `value`, `value`_lo, `value`_hi.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike
from PIL import Image

from acs_lib.core.files import replacing, write_text

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, LIGHT = "#6B6B6B", "#D9D9D9"
TRUTH, PREDICTION = "#FFFF00", "#FF0000"

FAMILIES = {  # family -> colour, marker
    "control": (GREY, "o"),
    "likelihood": (SKY, "s"),
    "consensus": (ORANGE, "D"),
    "attention": (PURPLE, "v"),
    "acs-free": (GREEN, "P"),
    "acs-learned": (VERMILLION, "*"),
    "fusion": (BLACK, "X"),
    "oracle": (BLACK, "p"),
}
METHOD_LOOKS = {  # method -> colour, marker, line style, hatch; the others take theirs from OTHERS in turn
    "greedy": (GREY, "o", "--", ""),
    "ACS-Free": (GREEN, "P", "-", "///"),
    "ACS-Learned": (VERMILLION, "*", "-", "\\\\\\"),
    "oracle best of N": (BLACK, "p", ":", "xxx"),
    "random (mean over N)": (SKY, "s", ":", "..."),
}
OTHERS = (
    (BLUE, "v", "-.", "---"),
    (PURPLE, "D", "-.", "+++"),
    (ORANGE, "X", "--", "ooo"),
    (BLACK, "<", "-.", "|||"),
    (SKY, ">", "--", "***"),
    (BLUE, "h", ":", "OO"),
)

CONDITIONS = {"habit": "with the habit", "plain": "without the habit", "": ""}  # the plain ones are drawn hollow

# Heat maps and scores on images: away from the boxes' yellow and red, and lighter means more in greyscale, too.
HEAT = mpl.colors.LinearSegmentedColormap.from_list("heat", ["#1B2A6B", "#1F6FB5", "#2FB5C7", "#C9FFF4"])

EDGED = {"markeredgecolor": "white", "markeredgewidth": 0.5}  # markers that may lie on one another
HOLLOW = {"marker": "D", "color": "none", "markeredgecolor": BLACK, "markersize": 7, "markeredgewidth": 1.2}
CHANCE = {"color": GREY, "linewidth": 1, "linestyle": ":"}
DIAGONAL = {"color": BLACK, "linewidth": 1, "linestyle": "--"}

VECTOR = 200_000  # bytes of a PDF at most
IMAGE = 700  # px of a picture's longer side at most

RC = {
    "font.family": "DejaVu Sans", "font.size": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "figure.titlesize": 11, "figure.titleweight": "bold", "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.labelcolor": "#222222", "xtick.color": "#333333", "ytick.color": "#333333", "axes.edgecolor": "#444444",
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6,
    "lines.linewidth": 1.6, "lines.markersize": 5, "hatch.linewidth": 0.6, "image.interpolation": "nearest",
    "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.07,
    "figure.constrained_layout.h_pad": 0.06, "savefig.dpi": 150, "pdf.fonttype": 42, "svg.hashsalt": "acs-kit",
}  # fmt: skip


def style() -> AbstractContextManager:
    """The kit's rcParams as a context; every figure here is drawn and saved in it."""
    kept = ("backend", "backend_fallback", "interactive")  # the caller's: they say where a figure is shown, not how
    return mpl.rc_context({key: value for key, value in mpl.rcParamsDefault.items() if key not in kept} | RC)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
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


def told(takeaway: Markdown) -> list[str]:
    """The text of a takeaway (see report.sentences.say), then its points."""
    return takeaway.data.removeprefix("**Takeaway.** ").split("\n- ")


def save_figure(
    figure: Figure | Image.Image, folder: str | Path, stem: str, caption: str, seen: Markdown | None = None
) -> None:
    """Write `folder`/figures/`stem`.png (150 dpi), and .pdf where it is small, each whole or not at all; of an image
    the PNG alone.

    seen: a takeaway (see report.sentences.say), which ends the caption with what is seen

    The same figure gives the same bytes: no dates, no versions. The caption goes into figures/captions.json,
    where the page finds it for captions and alternative texts.
    """
    if seen is not None:
        text, *points = told(seen)
        caption = " ".join([caption, text, *(["; ".join(points) + "."] if points else [])])
    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    png, pdf = io.BytesIO(), io.BytesIO()
    if isinstance(figure, Image.Image):
        figure = figure.copy()
        figure.thumbnail((IMAGE, IMAGE))
        figure.save(png, "png")
    else:
        with style():
            figure.savefig(png, format="png", metadata={"Software": None})
            figure.savefig(pdf, format="pdf", metadata=dict.fromkeys(("CreationDate", "Producer", "Creator")))
    for suffix, content in (("png", png.getvalue()), ("pdf", pdf.getvalue())):
        path = figures / f"{stem}.{suffix}"
        if not 0 < len(content) <= (VECTOR if suffix == "pdf" else math.inf):
            path.unlink(missing_ok=True)
            continue
        with replacing(path) as aside:
            aside.write_bytes(content)
    path = figures / "captions.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get(stem) != caption:
        write_text(path, json.dumps({**known, stem: caption}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def panels(frame: pd.DataFrame, *keys: str) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each combination of the `keys` the frame has, in order of appearance."""
    if frame.empty:
        raise ValueError("nothing to draw: the frame is empty")
    keys = [key for key in keys if key in frame]
    if not keys:
        return [("", frame)]
    return [(", ".join(map(str, values)), part) for values, part in frame.groupby(keys, sort=False, dropna=False)]


def panel_grid(
    frame: pd.DataFrame, width: float, height: float, margin: float, keys: Sequence[str] = ("lvlm", "dataset"),
    across: int = 2, **labels,
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:  # fmt: skip
    """A figure with a panel of `width` x `height` inches for each combination of `keys`, up to `across` side by side,
    all on one scale, and its (axes, rows of the frame); the `margin` is for the names at the left, labels are xlabel,
    ylabel, and what else Axes.set takes."""
    blocks = panels(frame, *keys)
    columns = min(len(blocks), across)
    rows = -(-len(blocks) // columns)
    size = (margin + width * columns, height * rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, figsize=size)
    for axes in grid.flat[len(blocks) :]:
        axes.set_visible(False)
    for axes, (title, _) in zip(grid.flat, blocks, strict=False):
        axes.set(title=plain_text(title), **labels)
        axes.label_outer(remove_inner_ticks=False)
    return figure, [(axes, block) for axes, (_, block) in zip(grid.flat, blocks, strict=False)]


def row_grid(
    frame: pd.DataFrame, column: str, width: float, height: float, margin: float, base: float = 1.4, **grid
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]], dict[str, int]]:
    """A `panel_grid` with a row of `height` inches for each name in the `column`, the first on top, and the rows' y;
    `base`: inches of a panel for all else."""
    places = {name: y for y, name in enumerate(dict.fromkeys(frame[column]))}
    figure, grid = panel_grid(frame, width, base + height * len(places), margin, **grid)
    name_rows([axes for axes, _ in grid], places)
    grid[0][0].set_ylim(len(places) - 0.4, -0.6)
    return figure, grid, places


def without_condition(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a `condition` ('' where there is none), and with one name in `lvlm` for an LVLM in all conditions:
    'tiny' for 'tiny' and 'tiny-plain'."""
    condition = frame["condition"].fillna("") if "condition" in frame else pd.Series("", frame.index)
    names = [name.removesuffix(f"-{told}") for name, told in zip(frame["lvlm"], condition)]
    return frame.assign(condition=condition, lvlm=names)


def forest(frame: pd.DataFrame, value: str, looks: Mapping[str, tuple[str, str]], xlabel: str) -> Figure:
    """A panel a column (an LVLM on a dataset), one below the other, that a phone shows in full width; in it a row for
    each name of the column `row`, and the `value` in percentage points with its interval: filled, or hollow without the
    habit. Zero is the dashed line.

    frame: row, method, lvlm, dataset, optionally condition and note (written beside the point), the value (-1 to 1),
        its _lo and _hi; looks: method -> colour, marker
    """
    frame = without_condition(frame)
    ends = [value + end for end in ("", "_lo", "_hi")]
    frame[ends] = 100 * frame[ends]
    conditions = [condition for condition in CONDITIONS if (frame["condition"] == condition).any()]
    faces = {condition: {"markerfacecolor": "white"} if condition == "plain" else {} for condition in conditions}
    grid = {"across": 1, "xlabel": xlabel}
    figure, grid, places = row_grid(frame, "row", 3.2, 0.14 + 0.15 * len(conditions), 1.7, base=0.6, **grid)
    for axes, block in grid:
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
        axes.label_outer()
        for shift, condition in zip(offsets(len(conditions), 0.4), conditions):
            part = block[block["condition"] == condition]
            for method, rows in part.groupby("method", sort=False):
                look = marks(*looks[method]) | faces[condition]
                points(axes, rows, value, y=rows["row"].map(places) + shift, **look)
            for row in part[part["note"] != ""].itertuples() if "note" in part else ():
                place = (getattr(row, ends[2]), places[row.row] + shift)
                axes.annotate(f" {row.note}", place, va="center", fontsize=7, color=GREY)
        axes.margins(x=0.2)
    look = {"color": GREY, "marker": "o", "linestyle": ""}
    handles = [Line2D([], [], label=CONDITIONS[told], **look, **faces[told]) for told in conditions if told]
    return legend_below(figure, handles) if handles else figure


def name_rows(grid: Sequence[Axes], places: Mapping[str, float]) -> None:
    """Write the names {name: y} at the left of panels that share the axis, those of ACS bold."""
    grid[0].set_yticks(list(places.values()), [formula(name) for name in places])
    for axes in (axes for axes in grid if axes.get_subplotspec().is_first_col()):
        for name, label in zip(places, axes.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name.startswith("ACS") else "normal")


def looks_of(methods: Iterable[str]) -> dict[str, tuple[str, str, str, str]]:
    """Colour, marker, line style and hatch of each method; the same for a well-known method in every figure."""
    others = [method for method in methods if method not in METHOD_LOOKS]
    return METHOD_LOOKS | {method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}


def marks(colour: str, marker: str, size: float = 6) -> dict:
    """Colour and marker as plot and errorbar take them; a star is drawn larger, so that it looks as large."""
    return {"color": colour, "marker": marker, "markersize": size * (1.5 if marker == "*" else 1)}


def offsets(n: int, step: float) -> np.ndarray:
    """[n] places round 0, `step` apart, for things that stand side by side."""
    return step * (np.arange(n) - (n - 1) / 2)


def points(axes: Axes, rows: pd.DataFrame, value: str, x: ArrayLike = None, y: ArrayLike = None, **look) -> None:
    """Draw the column `value` with its intervals: upwards at the places x, or to the right at the places y."""
    ends = [rows[value] - rows[f"{value}_lo"], rows[f"{value}_hi"] - rows[value]]
    lengths = np.clip(np.nan_to_num(np.asarray(ends, float)), 0, None)
    place = {"x": x, "y": rows[value], "yerr": lengths} if y is None else {"x": rows[value], "y": y, "xerr": lengths}
    axes.errorbar(**place, **{"linestyle": "", "elinewidth": 1.2} | look)


def bars(axes: Axes, rows: pd.DataFrame, value: str, x: ArrayLike, width: float, **look) -> None:
    """Draw the column `value` as bars at the places x, with its intervals."""
    axes.bar(x, rows[value], width, edgecolor="white", linewidth=0, **look)
    points(axes, rows, value, x=x, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)


def legend_below(figure: Figure, handles: Sequence | None = None) -> Figure:
    """The figure with one legend under all panels, in as few and as even rows as its width allows; without handles, of
    all that has a label in a panel."""
    if handles is None:
        found = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
        handles = list({handle.get_label(): handle for handle in found}.values())
    inches = [0.6 + 0.06 * len(handle.get_label()) for handle in handles]  # of an entry, at 8 points
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)  # matplotlib fills column by column
        if sum(max(inches[i : i + rows]) for i in range(0, len(handles), rows)) <= figure.bbox.width / figure.dpi:
            break
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.4)
    return figure


def layer_ticks(axes: Axes, layers: Iterable[int]) -> None:
    """Puts ticks on the x axis at whole `layers` (one or more), at most 14 of them."""
    layers = sorted(set(map(int, layers)))
    step = -(-len(layers) // 14)
    axes.set_xticks(layers[::step])


def cased(width: float, colour: str = "black") -> list[patheffects.AbstractPathEffect]:
    """Path effects of a line with a wider one below it, so that it shows on any background."""
    return [patheffects.Stroke(linewidth=width, foreground=colour), patheffects.Normal()]


def plain_text(text: str) -> str:
    """Text that matplotlib takes literally: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def formula(text: str) -> str:
    """D_c as the paper sets it."""
    return text.replace("D_c", "$D_c$")
