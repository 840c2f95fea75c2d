"""One answer as a picture, after the paper's pipeline figure: candidates, and the attention of the chosen box."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from acs_lib.core.candidates import Heads
from acs_lib.core.files import replacing

SIDE, GAP, BAR, EDGE = 640, 24, 220, 26  # px: a panel's longer side, between parts, a scale's length, beside a table
HEAT = ("#1B2A6B", "#1F6FB5", "#2FB5C7", "#C9FFF4")  # from low to high
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}  # that it can be saved as
INK, CASING, CHOSEN, UNSCORED = "#222222", "#000000", "#FF0000", "#56B4E9"


def heat(values: np.ndarray) -> np.ndarray:
    """The colours [..., 3] uint8 of values [...] in 0-1."""
    anchors = np.array([ImageColor.getrgb(colour) for colour in HEAT], float)
    places = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, places, column) for column in anchors.T], -1).round().astype(np.uint8)


def attended(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """The image in dark grey under its attention [h, w] >= 0: over its maximum, up-sampled, the stronger the denser."""
    grid = np.asarray(Image.fromarray(attention.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    share = np.clip(grid, 0, None) / max(np.max(grid), 1e-12)
    grey = 25 + 0.6 * np.asarray(image.convert("L"), float)[..., None]
    density = 0.85 * np.sqrt(share)[..., None]
    return Image.fromarray((grey + density * (heat(share) - grey)).round().astype(np.uint8))


def _panel(image: Image.Image) -> tuple[Image.Image, float]:
    """The image with a longer side of SIDE pixels, and how many times larger it became."""
    scale = SIDE / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS), scale


def candidates_panel(
    image: Image.Image, boxes: np.ndarray, scores: np.ndarray, chosen: int | None, box: np.ndarray | None
) -> tuple[Image.Image, float, float]:
    """The left side of `draw_picture`, whose arguments these are, and the lowest and highest score of a box (0, 0 where
    none has one)."""
    panel, scale = _panel(image)
    finite = np.isfinite(scores) & np.isfinite(boxes).all(1)
    low, high = (scores[finite].min(), scores[finite].max()) if finite.any() else (0.0, 0.0)
    for row in np.argsort(scores, kind="stable"):
        share = (scores[row] - low) / ((high - low) or 1) if finite[row] else None
        if row != chosen:
            _draw_box(panel, boxes[row] * scale, UNSCORED if share is None else tuple(heat(share).tolist()), 3)
    _draw_box(panel, box if box is None else box * scale, CHOSEN, 4)
    return panel, low, high


def attention_panel(image: Image.Image, attention: np.ndarray, box: np.ndarray | None) -> Image.Image:
    """The right side of `draw_picture`, whose arguments these are."""
    panel, scale = _panel(image)
    panel = attended(panel, np.asarray(attention, float))
    _draw_box(panel, box if box is None else box * scale, CHOSEN, 4)
    return panel


def draw_heads(maps: np.ndarray, marked: Heads = ()) -> Image.Image:
    """Maps [layers, heads, h, w] >= 0 as a table of small pictures, one row a layer, one column a head, each over its
    own maximum; `marked` (layer, head) have a red frame. `head_at` tells which one a pixel belongs to."""
    layers, heads, *grid = maps.shape
    cell = _cell(heads)
    page = Image.new("RGB", (EDGE + heads * cell, EDGE + layers * cell), "white")
    draw = ImageDraw.Draw(page)
    for place in range(max(layers, heads)):
        x = EDGE + place * cell + cell // 2
        if place < heads:
            draw.text((x, EDGE - 4), str(place), INK, ImageFont.load_default(min(14, cell // 2 + 3)), "ms")
        if place < layers:
            draw.text((EDGE - 5, x), str(place), INK, ImageFont.load_default(min(14, cell // 2 + 3)), "rm")
    shares = maps / np.maximum(maps.max((-2, -1), keepdims=True), 1e-12)
    for layer, head in np.ndindex(layers, heads):
        small = Image.fromarray(heat(shares[layer, head])).resize((cell - 2, cell - 2), Image.Resampling.NEAREST)
        page.paste(small, (EDGE + head * cell + 1, EDGE + layer * cell + 1))
    for layer, head in marked:
        left, top = EDGE + head * cell, EDGE + layer * cell
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), outline=CHOSEN, width=2)
    return page


def head_at(x: float, y: float, layers: int, heads: int) -> tuple[int, int] | None:
    """The (layer, head) whose map `draw_heads` has at a pixel; None beside the table."""
    layer, head = (int((place - EDGE) // _cell(heads)) for place in (y, x))
    return (layer, head) if 0 <= layer < layers and 0 <= head < heads else None


def _cell(heads: int) -> int:
    """The side of a map in `draw_heads`, in pixels."""
    return int(np.clip((SIDE - EDGE) // heads, 16, 72))


def draw_picture(
    image: Image.Image, boxes: np.ndarray, scores: np.ndarray, chosen: int | None, box: np.ndarray | None,
    attention: np.ndarray, title: str = "", read: str = "attention",
) -> Image.Image:  # fmt: skip
    """The candidates, coloured by score, beside the attention, both with the chosen box in red; RGB.

    image: RGB, enlarged or reduced to panels with a longer side of SIDE pixels
    boxes: [n, 4] xyxy in pixels of the image, NaN rows left out; scores: [n], higher is better, NaN where there is none
    chosen: row of the chosen box, or None where it is none of them; box: [4], or None
    attention: [h, w] >= 0 over the image-token grid; read: what it is, the name of its panel
    """
    left, low, high = candidates_panel(image, boxes, scores, chosen, box)
    right, size = attention_panel(image, attention, box), left.size
    finite = np.isfinite(scores) & np.isfinite(boxes).all(1)
    width = max(size[0], 2 * BAR)
    page = Image.new("RGB", (2 * width + 3 * GAP, size[1] + 178), "white")
    draw = ImageDraw.Draw(page)
    _write(draw, (GAP, 18), title, 24, page.width - 2 * GAP)
    labels = ("score, higher is better", f"{low:.3g}", f"{high:.3g}") if finite.any() else None
    scales = (labels, ("attention / its maximum", "0", "1"))
    for column, (panel, name, told) in enumerate(zip((left, right), ("candidates", read), scales)):
        x, y = GAP + column * (width + GAP), 90
        _write(draw, (x, 60), name, 18, width)
        page.paste(panel, (x, y))
        y += size[1] + 18
        if told:
            page.paste(Image.fromarray(np.tile(heat(np.linspace(0, 1, BAR)), (14, 1, 1))), (x, y))
            _write(draw, (x, y + 20), told[1], 16, BAR // 2)
            _write(draw, (x + BAR, y + 20), told[2], 16, BAR // 2, "ra")
            _write(draw, (x, y + 42), told[0], 16, BAR)
            x += BAR + 40
        if box is not None and column == 0:
            _draw_box(page, (x + 3, y, x + 28, y + 15), CHOSEN, 3)
            _write(draw, (x + 42, y - 3), "chosen", 16, BAR)
    return page


def draw_boxes(image: Image.Image, boxes: np.ndarray, scores: np.ndarray, title: str = "") -> Image.Image:
    """Boxes [n, 4] in pixels of an image, coloured by score [n] (higher is better), with their numbers; RGB."""
    panel, scale = _panel(image)
    size = panel.size
    low, high = (np.nanmin(scores), np.nanmax(scores)) if np.isfinite(scores).any() else (0.0, 0.0)
    draw = ImageDraw.Draw(panel)
    for row in range(len(boxes))[::-1]:
        share = (scores[row] - low) / ((high - low) or 1)
        _draw_box(panel, boxes[row] * scale, tuple(heat(share).tolist()) if np.isfinite(share) else UNSCORED, 3)
        x, y = (boxes[row, :2] * scale).tolist()
        draw.text((x + 3, y + 2), str(row + 1), "white", ImageFont.load_default(16), stroke_width=2, stroke_fill=CASING)
    page = Image.new("RGB", (size[0] + 2 * GAP, size[1] + 60 + GAP), "white")
    _write(ImageDraw.Draw(page), (GAP, 18), title, 24, size[0])
    page.paste(panel, (GAP, 60))
    return page


def write(picture: Image.Image, path: str | Path) -> None:
    """Write a picture; the suffix says the format (one of FORMATS). ValueError for another one."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a picture cannot be written as {path.name!r}; name it {', '.join(FORMATS)}")
    with replacing(path) as aside:
        aside.write_bytes(encode(picture, path.suffix))


def encode(picture: Image.Image, suffix: str) -> bytes:
    """The picture as a file of one of FORMATS."""
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[suffix.lower()], quality=88)
    return buffer.getvalue()


def _draw_box(panel: Image.Image, box: Sequence[float] | np.ndarray | None, colour: str | tuple, width: int) -> None:
    """The frame of a box [4] in pixels of the panel, centred on its edge, between two dark lines; nothing for None or
    NaN."""
    if box is None or not np.isfinite(box).all():
        return
    draw, (x1, y1, x2, y2) = ImageDraw.Draw(panel), np.round(box).astype(int).tolist()
    for margin, line, shade in ((width // 2 + 1, width + 2, CASING), (width // 2, width, colour)):
        corners = (x1 - margin, y1 - margin, max(x1, x2) + margin, max(y1, y2) + margin)
        draw.rectangle(corners, outline=shade, width=line)


def _write(draw: ImageDraw.ImageDraw, place: tuple, text: str, size: int, width: int, anchor: str = "la") -> None:
    """One line of text, cut off where it is wider than `width` pixels."""
    font, text = ImageFont.load_default(size), " ".join(text.split())
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text += "..."
    draw.text(place, text, INK, font, anchor)
