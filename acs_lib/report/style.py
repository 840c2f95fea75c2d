"""TODO report.style."""

import json
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
from PIL import Image

from acs_lib.core.files import replacing, write_text

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


def save_figure(
    figure: Figure | Image.Image, folder: str | Path, stem: str, caption: str, seen: Markdown | None = None
) -> dict[str, Path]:
    """Write `folder`/figures/`stem`.pdf and .png (150 dpi), each whole or not at all; of an image the PNG alone.
    Returns suffix -> path.

    seen: a takeaway (see report.sentences.say), which ends the caption with what is seen

    The same figure gives the same bytes: no dates, no versions. The caption goes into figures/captions.json,
    where the page finds it for captions and alternative texts.
    """
    if seen is not None:
        text, *points = seen.data.removeprefix("**Takeaway.** ").split("\n- ")
        caption = " ".join([caption, text, *(["; ".join(points) + "."] if points else [])])
    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    metadata = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}
    drawn = isinstance(figure, Image.Image)
    paths = {suffix: figures / f"{stem}.{suffix}" for suffix in metadata if suffix == "png" or not drawn}
    with style():
        for suffix, place in paths.items():
            with replacing(place) as aside:
                if drawn:
                    figure.save(aside, suffix)
                else:
                    figure.savefig(aside, format=suffix, metadata=metadata[suffix])
    path = figures / "captions.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get(stem) != caption:
        write_text(path, json.dumps({**known, stem: caption}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return paths


def panels(frame: pd.DataFrame, *keys: str) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each combination of the `keys` the frame has, in order of appearance."""
    if frame.empty:
        raise ValueError("nothing to draw: the frame is empty")
    keys = [key for key in keys if key in frame]
    if not keys:
        return [("", frame)]
    return [(", ".join(map(str, values)), part) for values, part in frame.groupby(keys, sort=False, dropna=False)]


def panel_grid(panels: int, width: float, height: float, margin: float) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels of `width` x `height` inches in one or two columns, all on one scale, and its axes
    in order."""
    columns = min(panels, 2)
    rows = -(-panels // columns)
    size = (margin + width * columns, height * rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, figsize=size)
    for axes in grid.flat[panels:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:panels])


def name_rows(grid: Sequence[Axes], places: Mapping[str, float]) -> None:
    """Write the names {name: y} at the left of panels that share the axis, those of ACS bold."""
    grid[0].set_yticks(list(places.values()), list(places))
    for axes in grid:
        axes.label_outer(remove_inner_ticks=False)
    for axes in grid[::2]:
        for name, label in zip(places, axes.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name.startswith("ACS") else "normal")


def looks_of(methods: Iterable[str]) -> dict[str, tuple[str, str, str, str]]:
    """Colour, marker, line style and hatch of each method; the same for a well-known method in every figure."""
    others = [method for method in methods if method not in METHODS]
    return METHODS | {method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}


def error_lengths(values: pd.Series, lo: pd.Series, hi: pd.Series) -> np.ndarray:
    """[2, n] lengths of the intervals below and above the values, for errorbar."""
    values, lo, hi = (np.asarray(v, float) for v in (values, lo, hi))
    return np.clip(np.nan_to_num([values - lo, hi - values]), 0, None)


def legend_below(figure, handles: Sequence) -> None:
    """One legend under all panels, in as few and as even rows as its width allows."""
    inches = [0.6 + 0.06 * len(handle.get_label()) for handle in handles]  # of an entry, at 8 points
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)  # matplotlib fills column by column
        if sum(max(inches[i : i + rows]) for i in range(0, len(handles), rows)) <= figure.bbox.width / figure.dpi:
            break
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.4)


def layer_ticks(axes: Axes, layers: Iterable[int]) -> None:
    layers = sorted(set(map(int, layers)))
    step = -(-len(layers) // 14)
    axes.set_xticks(layers[::step])


def plain_text(text: str) -> str:
    """Text that matplotlib takes literally: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def formula(text: str) -> str:
    """D_c as the paper sets it."""
    return text.replace("D_c", "$D_c$")
