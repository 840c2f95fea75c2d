"""LFM2-VL's image processor: pieces, patches and filling, by hand; sizes as transformers' own has them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from acs_lib.lvlms.adapter import ImageRefused
from acs_lib.lvlms.lfm2_vl import Lfm2Images

AS_PUBLISHED = Lfm2Images()
SIZES = {  # in px -> (columns, rows) of tiles, (rows, columns) of the whole image's patches
    (640, 480): ((1, 1), [26, 36]),
    (800, 640): ((1, 1), [28, 34]),
    (16, 16): ((1, 1), [16, 16]),
    (33, 700): ((1, 1), [74, 4]),
    (10, 2000): ((1, 1), [228, 2]),
    (1024, 768): ((3, 2), [26, 36]),
    (1280, 1024): ((3, 3), [28, 34]),
    (724, 724): ((2, 2), [32, 32]),
    (1500, 400): ((4, 1), [16, 60]),
    (3000, 200): ((10, 1), [8, 122]),
}


@pytest.mark.parametrize("size", SIZES)
def test_pieces_have_the_sizes_of_the_original(size):
    """As transformers 5.23 with torchvision cuts them, at the published settings: tiles, and the whole."""
    tiles, patches = SIZES[size]
    processed = AS_PUBLISHED(Image.new("RGB", size))
    assert AS_PUBLISHED.tiles(*size) == tiles
    assert processed["spatial_shapes"][-1].tolist() == patches
    assert (processed["spatial_shapes"][:-1] == 32).all()
    count = tiles[0] * tiles[1]
    assert len(processed["pixel_values"]) == count + (count > 1)


def test_patches_are_filled_up_and_hold_the_pixels_row_by_row():
    """Patches of 1 px, tokens of 2 x 2; an image of 4 x 2 px stays as it is."""
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    small = Lfm2Images(encoder_patch_size=1, min_image_tokens=1, max_image_tokens=3, do_image_splitting=False)
    found = small(image)
    assert found["spatial_shapes"].tolist() == [[2, 4]] and found["pixel_values"].shape == (1, 12, 3)
    assert found["pixel_attention_mask"].tolist() == [[1] * 8 + [0] * 4]
    expected = torch.arange(24).view(8, 3) * 10 / 255 * 2 - 1
    torch.testing.assert_close(found["pixel_values"][0, :8], expected)
    assert not found["pixel_values"][0, 8:].any()
    square = Lfm2Images(encoder_patch_size=2, downsample_factor=1, min_image_tokens=1, max_image_tokens=2)
    pixels = square(image)["pixel_values"][0, 1]
    torch.testing.assert_close(pixels, expected.view(2, 4, 3)[:, 2:].flatten(), msg="the right half, row by row")


def test_tiles_are_cut_row_by_row_and_the_whole_comes_last():
    colours = np.array([[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]]], np.uint8)
    image = Image.fromarray(colours.repeat(4, 0).repeat(4, 1))  # 8 x 8 px in four colours
    four = Lfm2Images(
        encoder_patch_size=1, downsample_factor=2, tile_size=4, min_tiles=4, max_tiles=4, min_image_tokens=1,
        max_image_tokens=4,
    )  # fmt: skip
    found = four(image)
    assert four.tiles(8, 8) == (2, 2) and found["spatial_shapes"].tolist() == [[4, 4]] * 5
    for tile, colour in zip(found["pixel_values"], colours.reshape(4, 3)):
        assert (tile == torch.from_numpy(colour / 255 * 2 - 1)).all()
    assert len(Lfm2Images(**{**vars(four), "use_thumbnail": False})(image)["pixel_values"]) == 4
    assert len(Lfm2Images(**{**vars(four), "max_tiles": 1})(image)["pixel_values"]) == 1, "no splitting"


def test_an_image_that_is_too_narrow_is_refused():
    assert AS_PUBLISHED.piece(25600, 100) == (256, 1)
    with pytest.raises(ImageRefused, match=r"at most 256, got \(26000, 100\)"):
        AS_PUBLISHED(Image.new("RGB", (26000, 100)))


@pytest.mark.parametrize("nested", [True, False])
def test_the_settings_are_those_of_the_checkpoint(tmp_path, nested):
    settings = {"image_processor_type": "Lfm2VlImageProcessorFast", "max_tiles": 4, "image_mean": [0.4, 0.5, 0.6]}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": settings} if nested else settings))
    found = Lfm2Images.from_pretrained(str(tmp_path))
    assert found == Lfm2Images(max_tiles=4, image_mean=[0.4, 0.5, 0.6])
