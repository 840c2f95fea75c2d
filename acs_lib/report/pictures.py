"""Boxes, attention and answers drawn on images. Boxes follow the paper's pages: ground truth yellow, prediction red."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from PIL import Image

from acs_lib.report.style import HEAT, ORANGE, PREDICTION, SKY, TRUTH, cased, legend_below, plain_text, styled

COLUMNS = 4  # of attention maps side by side, at most


def is_box(box: np.ndarray | None) -> bool:
    """Whether `box` [4] is there and all its numbers are finite."""
    return box is not None and bool(np.isfinite(np.asarray(box, float)).all())


def draw_box(axes: Axes, box: np.ndarray | None, colour: str, width: float, gid: str) -> None:
    """Draw one xyxy box with a dark casing, so that it shows on any background; nothing for a missing box."""
    if is_box(box):
        x1, y1, x2, y2 = np.asarray(box, float)
        look = {"edgecolor": colour, "linewidth": width, "path_effects": cased(width + 0.7), "gid": gid}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))


def _truth_and_prediction(axes: Axes, truth: np.ndarray | None, prediction: np.ndarray | None, width: float) -> None:
    """Ground truth in yellow, wider and below; prediction in red: both show where they coincide."""
    draw_box(axes, truth, TRUTH, 2.2 * width, "truth")
    draw_box(axes, prediction, PREDICTION, width, "prediction")


def box_handles(truth: bool = True, prediction: str | None = "prediction") -> list[Patch]:
    """Legend entries of the boxes, cased as in the picture."""
    shown = [(TRUTH, "ground truth")] * truth + [(PREDICTION, prediction)] * (prediction is not None)
    look = {"facecolor": "none", "linewidth": 1.8, "path_effects": cased(3)}
    return [Patch(edgecolor=colour, label=label, **look) for colour, label in shown]


def show_image(axes: Axes, image: Image.Image) -> None:
    """Draws `image` on `axes` in its own pixels, origin at the upper left, without ticks."""
    width, height = image.size
    axes.imshow(np.asarray(image), extent=(0, width, height, 0), aspect="equal")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)


def _to_its_maximum(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, None) / max(values.max(), 1e-12)


def draw_heat(axes: Axes, image: Image.Image, values: np.ndarray) -> mpl.cm.ScalarMappable:
    """A map [h, w] divided by its maximum, up-sampled bilinearly, over the dimmed image; the scale of its colours."""
    dimmed = Image.fromarray((25 + 0.6 * np.asarray(image.convert("L"), float)).astype(np.uint8)).convert("RGB")
    fine = Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    fine = _to_its_maximum(np.asarray(fine))
    show_image(axes, dimmed)
    look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "alpha": 0.85 * np.sqrt(fine), "rasterized": True}
    shown = axes.imshow(fine, extent=(0, image.width, image.height, 0), **look)
    return mpl.cm.ScalarMappable(shown.norm, shown.cmap)


def heat_image(values: np.ndarray) -> Image.Image:
    """A map [h, w] as an RGBA picture of h x w pixels to lay over an image: `HEAT`, the more opaque the stronger."""
    values = _to_its_maximum(values)
    shade = HEAT(values)
    shade[..., 3] = 0.85 * np.sqrt(values)
    return Image.fromarray((255 * shade).round().astype(np.uint8))


@styled
def attention_overlay(
    image: Image.Image, maps: np.ndarray, titles: Sequence[str], box: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> Figure:  # fmt: skip
    """The heat maps of the paper's pipeline figure: attention over the image, one panel a map.

    maps: [k, h, w] attention >= 0 over the image-token grid, up-sampled bilinearly to the image, each divided by its
        maximum
    titles: [k], e.g. 'x1, layer 3, head 4'
    box: the candidate's box (red), or one a map [k, 4]; truth: ground truth (yellow); xyxy in pixels of the image
    """
    maps = np.asarray(maps, float)
    if maps.ndim != 3 or len(maps) != len(titles) or not len(maps):
        raise ValueError(f"maps must be [k, h, w] with k = {len(titles)} titles, at least one; got {maps.shape}")
    rows = -(-len(maps) // COLUMNS)
    columns = -(-len(maps) // rows)  # even rows: six maps are 3 + 3
    side = 9.0 / max(columns, 3)
    size = (side * columns + 0.9, (side * image.height / image.width + 0.5) * rows + 0.4)
    figure, grid = plt.subplots(rows, columns, squeeze=False, layout="compressed", figsize=size)
    drawn = [None] * len(maps) if box is None else np.broadcast_to(np.asarray(box, float), (len(maps), 4))
    for axes, values, title, prediction in zip(grid.flat, maps, titles, drawn, strict=False):
        shade = draw_heat(axes, image, values)
        _truth_and_prediction(axes, truth, prediction, 1.2)
        axes.set_title(plain_text(title), fontsize=9)
    for axes in list(grid.flat)[len(maps) :]:
        axes.set_visible(False)
    figure.colorbar(shade, ax=grid, label="attention / its maximum", pad=0.01, fraction=0.03, aspect=20 * rows)
    handles = box_handles(is_box(truth), "prediction" if any(map(is_box, drawn)) else None)
    return legend_below(figure, handles) if handles else figure


def _window(boxes: Iterable[np.ndarray | None], truth: np.ndarray, width: int, height: int) -> tuple[float, ...]:
    """A square (x1, y1, x2, y2) inside the image round the truth and those boxes that lie near it."""
    truth = np.asarray(truth, float)
    near = [truth]
    size = max(truth[2] - truth[0], truth[3] - truth[1], 1.0)
    for box in boxes:
        if is_box(box):
            both = np.stack([truth, np.asarray(box, float)])
            if max(np.ptp(both[:, [0, 2]]), np.ptp(both[:, [1, 3]])) <= max(4 * size, 0.35 * max(width, height)):
                near.append(both[1])
    corners = np.stack(near)
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    side = min(max(1.5 * (high - low).max(), 2 * size, 12.0), width, height)
    x, y = np.clip((low + high) / 2 - side / 2, 0, [width - side, height - side])
    return x, y, x + side, y + side


@styled
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
    size = (8.4, len(cases) * (8.1 / (2 * ratio + 2) + 0.28) + 0.4)
    widths = [ratio, 1, ratio, 1]
    figure, grid = plt.subplots(len(cases), 4, squeeze=False, width_ratios=widths, layout="compressed", figsize=size)
    dashed = {"edgecolor": ORANGE, "linestyle": "--"}
    for row, case in zip(grid, cases, strict=True):
        image = case["image"].convert("RGB")
        x1, y1, x2, y2 = _window([case["greedy"], case["chosen"]], case["truth"], *image.size)
        for axes, zoom, name, method in ((*row[:2], "greedy", "greedy"), (*row[2:], "ACS-Learned", "chosen")):
            box = case[method]
            for panel, width in ((axes, 1.0), (zoom, 2.0)):
                show_image(panel, image)
                _truth_and_prediction(panel, case["truth"], box, width)
            zoom.set(xlim=(x1, x2), ylim=(y2, y1))
            zoom.spines[:].set(color=ORANGE, linewidth=1.4)
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1, **dashed))
            for y, corner in ((y1, 1), (y2, 0)):
                ends = ((x2, y), (0, corner), axes.transData, zoom.transAxes)
                line = ConnectionPatch(*ends, linewidth=1.2, clip_on=False, **dashed)
                axes.add_artist(line).set_in_layout(False)
            answered = f"IoU={case[f'{method}_iou']:.2f}" if is_box(box) else "no box"
            axes.set_title(f"{name}, {answered}", fontsize=9)
        row[0].set_ylabel(plain_text(str(case["category"])), fontsize=9, fontweight="bold")
    figure.get_layout_engine().set(wspace=0.05, w_pad=0.04, h_pad=0.04, hspace=0.02)
    return legend_below(figure, box_handles())


def draw_candidates(axes: Axes, boxes: np.ndarray, scores: np.ndarray | None, chosen: int | None) -> Line2D:
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
            draw_box(axes, boxes[i], colour, width, "candidate")
    return Line2D([], [], color=HEAT(0.6) if finite.any() else SKY, linewidth=1.4, label="candidates")


@styled
def candidate_boxes(
    image: Image.Image, boxes: np.ndarray, scores: np.ndarray | None = None, truth: np.ndarray | None = None,
    chosen: int | None = None, label: str = "chosen",
) -> Figure:  # fmt: skip
    """The candidates b_1 to b_N of the paper's pipeline figure on one image.

    boxes: [n, 4] xyxy in pixels, NaN rows (no box in the answer) left out
    scores: [n], higher is better, shown as colour and width, or None
    truth: ground truth, yellow; chosen: index of the chosen box, red; label: what the legend calls it
    """
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    height = 5.0 * min(1.4, image.height / image.width) + 0.5
    figure, axes = plt.subplots(layout="compressed", figsize=(5.2 if scores is None else 5.9, height))
    show_image(axes, image.convert("RGB"))
    draw_box(axes, truth, TRUTH, 3.6, "truth")
    others = draw_candidates(axes, boxes, scores, chosen)
    if chosen is not None:
        draw_box(axes, boxes[chosen], PREDICTION, 2.0, "prediction")
    shown = label if chosen is not None and is_box(boxes[chosen]) else None
    return legend_below(figure, [*box_handles(is_box(truth), shown), others])
