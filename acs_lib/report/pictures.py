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

from acs_lib.report.style import (
    GREEN,
    HEAT,
    ORANGE,
    PREDICTION,
    SKY,
    TRUTH,
    VERMILLION,
    cased,
    legend_below,
    plain_text,
    styled,
)

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
def check_and_cross(case: Mapping, answers: Sequence[Mapping]) -> Figure:
    """Two answers to one question as in the paper's pipeline figure, side by side: where each looks, its box, and the
    object enlarged, the same neighbourhood for both.

    case: image (PIL), category, truth (xyxy box in pixels)
    answers: two of name, score (text), box (xyxy; None or NaN where the answer held none), iou (0-1), map [h, w] >= 0
    The check is for a box that is right (IoU of at least 0.5), the cross for one that is wrong.
    """
    image, truth = case["image"].convert("RGB"), case["truth"]
    size = (4.8, 2.2 * (image.height / image.width + 1) + 0.9)
    figure, grid = plt.subplots(2, 2, layout="compressed", figsize=size)
    _looked(grid[0], image, truth, answers)
    window = _window([answer["box"] for answer in answers], truth, *image.size)
    for axes, zoom, answer in zip(*grid, answers, strict=True):
        show_image(zoom, image)
        _truth_and_prediction(zoom, truth, answer["box"], 2.0)
        _enlarge(axes, zoom, window, below=True)
        zoom.set_xlabel(f"IoU {answer['iou']:.2f}" if is_box(answer["box"]) else "no box", labelpad=3)
    grid[0, 0].set_ylabel(plain_text(str(case["category"])), fontweight="bold")
    return legend_below(figure, box_handles())


@styled
def large_and_small(case: Mapping, answers: Sequence[Mapping]) -> Figure:
    """The paper's teaser: a large object that greedy decoding finds, a small one of the same image that it misses,
    enlarged, and where the two answers to the small one look.

    case, answers: as `check_and_cross` takes them, the greedy answer first, and case['large']: category, truth, greedy
        (its box), greedy_iou
    """
    image, truth, large = case["image"].convert("RGB"), case["truth"], case["large"]
    size = (4.8, 4.4 * image.height / image.width + 1.3)
    figure, grid = plt.subplots(2, 2, layout="compressed", figsize=size)
    whole, zoom = grid[0]
    for axes in grid[0]:
        show_image(axes, image)
    _truth_and_prediction(whole, large["truth"], large["greedy"], 1.2)
    whole.set_title(f"large: {plain_text(large['category'])}\ngreedy IoU {large['greedy_iou']:.2f}", fontsize=9)
    zoom.set_title(f"small: {plain_text(case['category'])}\nenlarged", fontsize=9)
    draw_box(zoom, truth, TRUTH, 4.4, "truth")
    for answer, colour in zip(answers, (SKY, PREDICTION)):
        draw_box(zoom, answer["box"], colour, 2.0, "prediction")
    _enlarge(whole, zoom, _window([answer["box"] for answer in answers], truth, *image.size), below=False)
    _looked(grid[1], image, truth, answers)
    for axes, answer in zip(grid[1], answers):
        axes.set_xlabel(f"IoU {answer['iou']:.2f}" if is_box(answer["box"]) else "no box", labelpad=3)
    rejected = Patch(edgecolor=SKY, label="greedy (enlarged)", facecolor="none", linewidth=1.8, path_effects=cased(3))
    return legend_below(figure, [*box_handles(), rejected])


def _looked(row: Sequence[Axes], image: Image.Image, truth: np.ndarray, answers: Sequence[Mapping]) -> None:
    """The attention of each answer with its box, under a check or a cross, its name and its score."""
    for axes, answer in zip(row, answers, strict=True):
        draw_heat(axes, image, np.asarray(answer["map"], float))
        _truth_and_prediction(axes, truth, answer["box"], 1.2)
        mark, colour = ("✓", GREEN) if answer["iou"] >= 0.5 else ("✗", VERMILLION)
        axes.set_title(f"{mark} {answer['name']}\n{answer['score']}", fontsize=9, color=colour)


def _enlarge(axes: Axes, zoom: Axes, window: tuple[float, ...], below: bool) -> None:
    """Show the window (x1, y1, x2, y2) of `axes` in `zoom`, which lies below it or at its right, with two dashed lines
    between them."""
    x1, y1, x2, y2 = window
    ends = {(x1, y2): (0, 1), (x2, y2): (1, 1)} if below else {(x2, y2): (0, 0), (x2, y1): (0, 1)}
    dashed = {"edgecolor": ORANGE, "linestyle": "--"}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1, **dashed))
    for corner, end in ends.items():
        line = ConnectionPatch(corner, end, axes.transData, zoom.transAxes, linewidth=1.2, clip_on=False, **dashed)
        axes.add_artist(line).set_in_layout(False)
    zoom.set(xlim=(x1, x2), ylim=(y2, y1))
    zoom.spines[:].set(color=ORANGE, linewidth=1.4)


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
