"""One answer as a picture, after the paper's pipeline figure: candidates, and the attention of the chosen box."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from acs_lib.core.files import replacing

SIDE, GAP, BAR = 640, 24, 220  # px: a panel's longer side, between its parts, the length of a scale
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
    grid = Image.fromarray(attention.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    share = np.clip(grid, 0, None) / max(np.max(grid), 1e-12)
    grey = 25 + 0.6 * np.asarray(image.convert("L"), float)[..., None]
    density = 0.85 * np.sqrt(share)[..., None]
    return Image.fromarray((grey + density * (heat(share) - grey)).round().astype(np.uint8))


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
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    large = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    left, right = large.copy(), attended(large, np.asarray(attention, float))
    finite = np.isfinite(scores) & np.isfinite(boxes).all(1)
    low, high = (scores[finite].min(), scores[finite].max()) if finite.any() else (0.0, 0.0)
    for row in np.argsort(scores, kind="stable"):
        share = (scores[row] - low) / ((high - low) or 1) if finite[row] else None
        if row != chosen:
            _draw_box(left, boxes[row] * scale, UNSCORED if share is None else tuple(heat(share).tolist()), 3)
    for panel in (left, right):
        _draw_box(panel, box if box is None else box * scale, CHOSEN, 4)

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
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    panel = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
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


def _draw_box(panel: Image.Image, box: Sequence[float] | None, colour: str | tuple, width: int) -> None:
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
