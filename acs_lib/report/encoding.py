"""Pictures in few bytes: PNG for files and notebooks, WebP for pages. The same picture gives the same bytes."""

import base64
import io

import numpy as np
from PIL import Image

STEP = 17  # of a channel's 256 values: 16 shades, none off by more than 8, and white stays white


def small_png(png: bytes) -> bytes:
    """A PNG of the same look on white: channels in steps of `STEP`, and one byte a pixel where at most 256 colours are
    left, or where 256 come within one of them on average and within three steps everywhere (the average alone would let
    thin lines lose their colour). As it was where that is no smaller."""
    whole = _on_white(Image.open(io.BytesIO(png)))
    steps = whole.point([round(value / STEP) * STEP for value in range(256)] * 3)
    colours = steps.getcolors(256)
    palette = steps.quantize(len(colours) if colours else 256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    off = np.abs(np.asarray(palette.convert("RGB"), np.int16) - np.asarray(steps, np.int16))
    small = _bytes(palette if off.mean() < 1 and off.max() <= 3 * STEP else steps, "PNG", optimize=True)
    return min(small, png, key=len)


def webp(image: Image.Image, quality: int | None = None) -> str:
    """An image as a data address for a page: WebP without loss, or of a quality up to 100."""
    settings = {"lossless": True} if quality is None else {"quality": quality}
    return data_address("webp", _bytes(image, "WEBP", **settings))


def data_address(kind: str, content: bytes) -> str:
    """`data:image/<kind>;base64,...`"""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def inlined(png: bytes) -> str:
    """A PNG as a data address, as lossless WebP where that is shorter."""
    return min(webp(Image.open(io.BytesIO(png)).convert("RGBA")), data_address("png", png), key=len)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _bytes(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
