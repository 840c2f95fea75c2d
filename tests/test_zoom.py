"""Windows by hand, and boxes that find their way back."""

import numpy as np
import pytest
from PIL import Image

from acs_lib.core.candidates import PER_TOKEN, Candidates
from acs_lib.method import zoom


@pytest.mark.parametrize(
    ("box", "factor", "window"),
    [
        ((90, 40, 110, 60), 2, (50, 25, 150, 75)),
        ((90, 40, 110, 60), 4, (75, 38, 125, 63)),
        ((0, 0, 10, 10), 2, (0, 0, 100, 50)),
        ((190, 90, 200, 100), 2, (100, 50, 200, 100)),
        ((20, 10, 170, 40), 2, (20, 0, 170, 50)),
    ],
    ids=["middle", "closer", "corner", "other corner", "wider than the window"],
)
def test_windows_by_hand(box, factor, window):
    found = zoom.window_around(np.array(box, float), factor, 200, 100)
    assert found == window and all(isinstance(side, int) for side in found)
    left, top, right, bottom = found
    assert left <= box[0] and top <= box[1] and right >= box[2] and bottom >= box[3]


@pytest.mark.parametrize("factor", [1, 0.5, float("nan")])
def test_no_window_is_larger_than_the_image(factor):
    with pytest.raises(ValueError, match="the factor has to be above 1"):
        zoom.window_around(np.array([0, 0, 1, 1.0]), factor, 10, 10)


def made(boxes, width=100, height=100, grid=(2, 2), maps=None):
    n = len(boxes)
    per_token = {name: [np.full(3, index, float) for index in range(n)] for name in PER_TOKEN}
    shape = (n, 4, 1, 2, *grid)
    return Candidates(
        query_id="q", category="cup", width=width, height=height, boxes=np.array(boxes, float), **per_token,
        coordinate_tokens=[np.arange(3)] * n, statistics=np.random.default_rng(0).random((n, 4, 1, 2, 4)),
        maps=np.random.default_rng(1).random(shape).astype(np.float32) if maps is None else maps,
    )  # fmt: skip


def test_boxes_of_a_window_are_those_of_the_image_again():
    """The window is shown at twice its size."""
    found = zoom.mapped_back(made([[0, 0, 100, 50], [20, 10, 40, 30], [np.nan] * 4]), (50, 30, 100, 80), 400, 300)
    assert found.boxes[:2].tolist() == [[50, 30, 100, 55], [60, 35, 70, 45]] and np.isnan(found.boxes[2]).all()
    assert (found.width, found.height) == (400, 300)


def test_a_window_of_an_image_shows_what_is_there_enlarged():
    image = Image.new("RGB", (200, 100))
    image.paste((90, 90, 90), (70, 40, 80, 50))
    shown = zoom.cut_out(image, (50, 25, 150, 75))
    assert (
        shown.size == (200, 100) and shown.getpixel((50, 40)) == (90, 90, 90) and shown.getpixel((30, 40)) == (0,) * 3
    )
    assert zoom.cut_out(image, (0, 0, 100, 20)).size == (200, 40)


def test_attention_on_a_window_lies_where_the_window_lies():
    share = np.array([[0.1, 0.2], [0.3, 0.4]])
    found = zoom.placed(share, (100, 50, 200, 100), 200, 100)
    assert found.shape == (4, 4) and np.array_equal(found[2:, 2:], share) and found.sum() == share.sum()
    whole = zoom.placed(share, (0, 0, 200, 100), 200, 100)
    assert np.array_equal(whole, share)


def test_both_looks_are_candidates_of_one_question():
    first, second = made([[1, 1, 9, 9], [2, 2, 8, 8]], grid=(2, 2)), made([[3, 3, 7, 7]], grid=(4, 6))
    both = zoom.joined(first, second)
    assert both.boxes.tolist() == [*first.boxes.tolist(), *second.boxes.tolist()] and len(both) == 3
    assert both.maps.shape == (3, 4, 1, 2, 2, 2) and np.array_equal(both.maps[:2], first.maps)
    assert np.allclose(both.maps[2].mean(), second.maps.mean())
    assert both.logprobs[2].tolist() == [0, 0, 0] and both.logprobs[1].tolist() == [1, 1, 1]
    assert np.array_equal(both.statistics[2], second.statistics[0])
    with pytest.raises(ValueError, match="map the second one back first"):
        zoom.joined(first, made([[1, 1, 2, 2]], width=50))


def test_the_peak_is_where_the_chosen_heads_look():
    maps = np.zeros((2, 4, 1, 2, 2, 4), np.float32)
    maps[0, :, 0, 0, 1, 2], maps[0, :, 0, 1, 0, 0], maps[1, ..., 1, 3] = 1, 3, 9
    c = made([[1, 1, 9, 9], [2, 2, 8, 8]], maps=maps)
    assert zoom.peak_box(c, ((0, 0),), (0, 1)).tolist() == [50, 50, 75, 100]
    assert zoom.peak_box(c, ((0, 1),), (0, 1)).tolist() == [0, 0, 25, 50]
    without = made([[np.nan] * 4, [2, 2, 8, 8]], maps=maps)
    assert zoom.peak_box(without, (), (0,)).tolist() == [75, 50, 100, 100], "the sampled answers have a voice"
    assert np.isnan(zoom.peak_box(made([[np.nan] * 4], maps=maps[:1]), (), (0,))).all()
