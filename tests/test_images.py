"""One reader of images: the same pixels for `ground`, for runs and for calibration, or one sentence."""

import numpy as np
import pytest
from PIL import Image

from acs_lib.core.images import NO_FILE, read_annotated_image, read_image, tags_told

GREY = np.array([[0, 255, 256, 4095], [32768, 40000, 65280, 65535]])
EIGHT = [[0, 0, 1, 15], [128, 156, 255, 255]]


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def both(path):
    """The pixels that `ground` and a run see, which are the same."""
    with Image.open(path) as image:
        size = image.size
    seen, annotated = pixels(read_image(path)), pixels(read_annotated_image(str(path), *size))
    np.testing.assert_array_equal(seen, annotated)
    return seen


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a32.tif"])
def test_16_bit_greys_keep_their_upper_8_bits(tmp_path, name):
    kind = np.int32 if name == "a32.tif" else np.uint16
    Image.fromarray(GREY.astype(kind)).save(tmp_path / name)
    assert both(tmp_path / name)[..., 0].tolist() == EIGHT


def test_arrays_and_images_of_16_bits_are_scaled_likewise():
    assert pixels(read_image(GREY.astype(np.uint16)))[..., 1].tolist() == EIGHT
    assert pixels(read_image(np.stack([GREY] * 3, -1).astype(np.uint16)))[..., 2].tolist() == EIGHT
    for mode in ("I;16", "I;16B"):
        image = Image.fromarray(GREY.astype(np.uint16)).convert("I").convert(mode) if mode != "I;16" else None
        image = image or Image.fromarray(GREY.astype(np.uint16))
        assert image.mode == mode and pixels(read_image(image))[..., 0].tolist() == EIGHT


@pytest.mark.parametrize("array", [np.full((3, 4), 0.5, np.float32), np.full((3, 4), 70000), np.full((3, 4), -1)])
def test_values_without_a_known_range_are_refused_everywhere(tmp_path, array):
    path = tmp_path / "a.tif"
    Image.fromarray(array.astype(np.float32 if array.dtype == np.float32 else np.int32)).save(path)
    told = "a.tif has pixels .* whose range is not known; save it with 8 or 16 bits"
    with pytest.raises(ValueError, match=told):
        read_image(path)
    with pytest.raises(OSError, match=told):
        read_annotated_image(str(path), 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """The colour under a transparent pixel is what an editor left there; nobody sees it."""
    image = Image.new("RGBA", (3, 1), (10, 10, 10, 255))
    image.putpixel((0, 0), (200, 200, 200, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    if mode in ("PA", "P"):
        image = Image.new("P", (3, 1), 1)
        image.putpalette([200, 200, 200, 10, 10, 10])
        image.putpixel((0, 0), 0)
        image.info["transparency"] = 0
        image.save(tmp_path / "a.png", transparency=0)
        expected = [255, 10, 10]
    else:
        image.convert(mode).save(tmp_path / "a.png")
        expected = [255, 127, 10]
    assert both(tmp_path / "a.png")[0, :, 0].tolist() == expected
    if mode == "RGBA":
        assert pixels(read_image(np.asarray(image)))[0, :, 2].tolist() == expected


def test_an_image_that_is_too_large_says_what_to_do(tmp_path):
    """20,000 x 20,000 px in a file of some bytes: its header alone is read."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    told = r"large.png has more than \d+ million pixels; make it smaller"
    with pytest.raises(ValueError, match=told):
        read_image(tmp_path / "large.png")
    with pytest.raises(OSError, match=told):
        read_annotated_image(str(tmp_path / "large.png"), 20_000, 20_000)


def tagged(path, orientation, size=(90, 40)):
    """An image whose left half is black, with an orientation tag: 6 stands for a quarter turn, 3 for a half."""
    image = Image.new("RGB", size, "white")
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_annotated_boxes_belong_to_the_stored_pixels_unless_the_size_says_otherwise(tmp_path, suffix):
    path = tagged(tmp_path / f"a{suffix}", 6)
    stored = pixels(read_annotated_image(str(path), 90, 40))
    assert stored.shape == (40, 90, 3) and stored[20, 10, 0] < 50 < 200 < stored[20, 80, 0]
    turned = pixels(read_annotated_image(str(path), 40, 90))
    assert turned.shape == (90, 40, 3) and turned[10, 20, 0] < 50 < 200 < turned[80, 20, 0]
    np.testing.assert_array_equal(turned, pixels(read_image(path)))
    np.testing.assert_array_equal(turned, pixels(read_image(read_image(path))), "it is turned once")
    with pytest.raises(OSError, match="has 90x40 px, the annotations say 90x41"):
        read_annotated_image(str(path), 90, 41)


@pytest.mark.parametrize(("orientation", "size"), [(6, (60, 60)), (3, (90, 40))])
def test_where_the_size_does_not_tell_the_stored_pixels_count(tmp_path, orientation, size):
    path = tagged(tmp_path / "a.jpg", orientation, size)
    assert pixels(read_annotated_image(str(path), *size))[20, 10, 0] < 50
    assert pixels(read_image(path))[10, -10, 0] < 50 or pixels(read_image(path))[10, 20, 0] < 50


def test_tags_are_counted(tmp_path):
    sizes = {"as_stored": (90, 40), "turned": (40, 90), "square": (60, 60), "none": (90, 40), "gone": (9, 9)}
    for name in ("as_stored", "turned"):
        tagged(tmp_path / f"{name}.jpg", 6)
    tagged(tmp_path / "square.jpg", 8, (60, 60))
    tagged(tmp_path / "none.jpg", 1)
    images = [(tmp_path / f"{name}.jpg", *size) for name, size in sizes.items()]
    told = tags_told(images)
    assert "3 of 5 images have an orientation tag" in told
    assert "1 turned, as the annotated size" in told and "2 left as stored" in told
    assert "of 1 of these the size does not tell" in told
    assert tags_told(images[3:]) is None


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"]
)
def test_a_damaged_tag_does_not_cost_the_image(tmp_path, damage):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.jpg", exif=damage)
    assert both(tmp_path / "a.jpg").shape == (10, 20, 3)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "no.png").write_text("no image")
    for path, told in (
        (tmp_path / "gone.png", f"gone.png: {NO_FILE}$"),
        (tmp_path / "no.png", "no.png is not an image that can be read; give a PNG, JPEG or WebP file"),
        (tmp_path, "is a folder"),
        (tmp_path / "a\0b.png", "cannot be read"),
    ):
        with pytest.raises(OSError, match=told):
            read_annotated_image(str(path), 4, 4)
        with pytest.raises((ValueError, FileNotFoundError)):
            read_image(path)
