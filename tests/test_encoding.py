"""Pictures in few bytes look as before, and are the same bytes every time."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from acs_lib.report.encoding import inlined, small_png, webp


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)


def decoded(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


def drawing(*, colours: int) -> Image.Image:
    """White paper with thin lines of that many random colours, as of a figure."""
    values = np.full((300, 400, 4), 255, np.uint8)
    values[::3, 10:390, :3][:colours] = np.random.default_rng(0).integers(0, 256, (100, 1, 3))[:colours]
    return Image.fromarray(values)


@pytest.mark.parametrize("colours", [7, 100])
def test_thin_lines_keep_their_colours_in_a_palette(colours):
    whole = png(drawing(colours=colours))
    small = small_png(whole)
    assert Image.open(io.BytesIO(small)).mode == "P" and len(small) < len(whole)
    assert abs(pixels(small) - pixels(whole)).max() <= 8
    assert (pixels(small)[1] == 255).all(), "white stays white"
    assert small == small_png(whole) and len(small_png(small)) <= len(small)


def test_a_picture_of_many_colours_is_not_forced_into_a_palette():
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8)))
    small = small_png(whole)
    assert Image.open(io.BytesIO(small)).mode == "RGB" and len(small) < len(whole)
    assert abs(pixels(small) - pixels(whole)).max() <= 8


def test_what_is_transparent_is_white():
    assert (pixels(small_png(png(Image.new("RGBA", (400, 300), (255, 0, 0, 0))))) == 255).all()


def test_figures_are_inlined_without_loss_and_scenes_with_little():
    whole = png(drawing(colours=30))
    assert inlined(whole).startswith("data:image/webp;base64,") and len(decoded(inlined(whole))) < len(whole)
    assert (pixels(decoded(inlined(whole))) == pixels(whole)).all()
    overlay = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 10, 4)).astype(np.uint8))
    assert (np.asarray(Image.open(io.BytesIO(decoded(webp(overlay)))))[..., 3] == np.asarray(overlay)[..., 3]).all()
    scene = drawing(colours=99).convert("RGB")
    assert len(webp(scene, quality=50)) < len(webp(scene, quality=95))
