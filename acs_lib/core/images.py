"""Images as an LVLM sees them: RGB of 8 bits, read in one way for `ground`, for runs and for calibration.

- 16-bit greys (also 32-bit integers in 0-65535) keep their upper 8 bits, as Pillow's 16-bit colours do. Floating-point
  and other integer images have no known range and are refused.
- Transparent areas lie on white: the colour under them is what an editor left there.
- Orientation tags: `read_image` turns an image as a viewer does; `read_annotated_image` turns it only where the
  annotated size says so.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

NO_FILE = "no such file"  # how the error ends where there was no image
Picture = str | Path | Image.Image | np.ndarray

CHANNELS = ((), (3,), (4,))

Turn = Image.Transpose
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, and the others are mended by
TURNS = {
    2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE, 6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90,
}  # fmt: skip
BACK = {**TURNS, 6: TURNS[8], 8: TURNS[6]}


def read_image(image: Picture) -> Image.Image:
    """An RGB image from a path, a PIL image or an array ([h, w] or [h, w, 3 or 4], uint8 or uint16), turned as its
    orientation tag says. FileNotFoundError or ValueError with what is wrong."""
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.shape[2:] not in CHANNELS:
            raise ValueError(
                "an image array has to be uint8 or uint16 and [h, w] or [h, w, 3 or 4], not "
                f"{image.dtype} {list(image.shape)}"
            )
        image = Image.fromarray(image if image.dtype == np.uint8 else _upper_8_bits(image))
    if isinstance(image, Image.Image):
        with _one_sentence("the image"):
            return _turned(image)
    path = Path(image).expanduser()
    try:
        with _opened(path) as opened:
            return _turned(opened)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None


def read_annotated_image(path: str, width: int, height: int) -> Image.Image:
    """An RGB image of the size that the annotations say: the pixels as they are stored, or turned as the orientation
    tag says where the turned image alone has that size. OSError, naming the file, for anything else."""
    try:
        with _opened(Path(path)) as image:
            tag = _tag(image)
            stored, turned = _sizes(image, tag)
            if (width, height) not in (stored, turned):
                raise _Refused(f"has {stored[0]}x{stored[1]} px, the annotations say {width}x{height}")
            return _turned(image) if (width, height) != stored else _stored(image)[0]
    except FileNotFoundError as error:
        raise OSError(f"{path}: {NO_FILE}") from error
    except ValueError as error:
        raise OSError(str(error)) from error


def picture_id(picture: Image.Image) -> str:
    """Name of an image that no annotation file numbers: 8 hexadecimal digits that follow from its pixels (CRC-32),
    wherever it lies, so that the noise of a question about it does, too."""
    return f"{zlib.crc32(picture.tobytes()):08x}"


def tags_told(images: Iterable[tuple[str | Path, int, int]]) -> str | None:
    """What `read_annotated_image` makes of the orientation tags of (path, width, height), in one sentence with counts;
    None if there are none. What cannot be read has none."""
    images, turned, stored, unknown = list(images), 0, 0, 0
    for path, width, height in images:
        try:
            with _opened(Path(path)) as image:
                if (tag := _tag(image)) == 1:
                    continue
                as_stored, as_turned = _sizes(image, tag)
        except (OSError, ValueError):
            continue
        turned += (width, height) == as_turned != as_stored
        stored += (width, height) == as_stored
        unknown += (width, height) == as_stored == as_turned
    if not turned + stored:
        return None
    return (
        f"{turned + stored} of {len(images)} images have an orientation tag: {turned} turned, as the annotated size "
        f"says; {stored} left as stored, since boxes belong to the stored pixels unless the size says otherwise (of "
        f"{unknown} of these the size does not tell: look at some boxes)"
    )


def _turned(image: Image.Image) -> Image.Image:
    stored, tag = _stored(image)
    return stored.transpose(TURNS[tag]) if tag in TURNS else stored


def _stored(image: Image.Image) -> tuple[Image.Image, int]:
    """RGB pixels as they are stored, without the tag, and the tag. Pillow turns TIFF itself while it reads it."""
    tag = _tag(image)
    pixels = _rgb(image)
    pixels.info.clear()  # or what is turned could be turned again
    return (pixels.transpose(BACK[tag]) if image.format == "TIFF" and tag in BACK else pixels), tag


def _tag(image: Image.Image) -> int:
    """The orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of many kinds; damaged notes are no damaged pixels
        return 1
    return tag if tag in TURNS else 1


def _sizes(image: Image.Image, tag: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) as stored and as turned, of an image whose pixels were not read yet."""
    size, swapped = image.size, image.size[::-1] if tag >= 5 else image.size
    return (swapped, size) if image.format == "TIFF" else (size, swapped)


def _rgb(image: Image.Image) -> Image.Image:
    """A copy in 8-bit RGB; refused if the range of the pixels is not known."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            kind = "of floating point" if image.mode == "F" else "of 32 bits outside 0-65535"
            raise _Refused(f"has pixels {kind}, whose range is not known; save it with 8 or 16 bits")
        return Image.fromarray(_upper_8_bits(values)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _upper_8_bits(values: np.ndarray) -> np.ndarray:
    return (values >> 8).astype(np.uint8)


class _Refused(ValueError):
    """What is wrong with an image, to be said after its name."""


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """FileNotFoundError goes on; whatever else is wrong with an image is a ValueError of one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _Refused as error:
        raise ValueError(f"{name} {error}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that can be read; give a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{name} has more than {most} million pixels; make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, struct.error) as error:
        raise ValueError(f"{name} cannot be read ({error}); save or fetch it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, while it is read, too: see `_one_sentence`."""
    with _one_sentence(str(path)):
        if path.is_dir():
            raise _Refused("is a folder; give an image in it")
        with Image.open(path) as image:
            yield image
