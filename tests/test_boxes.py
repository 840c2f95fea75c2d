"""Boxes: hand-worked overlaps, and properties that hold for every box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acs_lib.core import boxes as bx

numbers = st.integers(-50, 250).map(lambda quarter: quarter / 4)
any_box = st.tuples(numbers, numbers, numbers, numbers).map(np.array)  # inverted ones among them
full_box = st.tuples(numbers, numbers, st.integers(1, 99), st.integers(1, 99)).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]], float)
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),  # 1 shared, 4 + 4 - 1 in all
        ([0, 0, 4, 2], [0, 0, 2, 2], 1 / 2),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0),  # an edge in common is no area
        ([0, 0, 2, 2], [5, 5, 6, 6], 0),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0),  # both empty
        ([3, 3, 1, 1], [0, 0, 4, 4], 0),  # inverted
        ([np.nan] * 4, [0, 0, 4, 4], 0),  # no box
    ],
)
def test_iou_by_hand(a, b, expected):
    assert bx.iou(np.array(a), np.array(b)) == pytest.approx(expected)


def test_iou_broadcasts():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [9, 9, 10, 10]], float)
    matrix = bx.iou(boxes[:, None], boxes[None])
    np.testing.assert_allclose(matrix, [[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]])


def test_area_clip_scale_and_fraction_by_hand():
    box = np.array([-2.0, 1.0, 6.0, 5.0])
    assert bx.area(box) == 32
    np.testing.assert_array_equal(bx.clip(box, 4, 4), [0, 1, 4, 4])
    np.testing.assert_array_equal(bx.scale(box, 0.5, 2), [-1, 2, 3, 10])
    assert bx.area_fraction([0, 0, 16, 16], 160, 160) == pytest.approx(0.01)


@given(any_box, any_box)
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    assert bx.iou(a, b) == bx.iou(b, a)
    assert 0 <= bx.iou(a, b) <= 1


@given(full_box)
def test_iou_with_itself_is_1(box):
    assert bx.iou(box, box) == pytest.approx(1)


@given(full_box, full_box, st.floats(0.1, 10), st.floats(0.1, 10))
def test_iou_does_not_change_with_the_resolution(a, b, x, y):
    assert bx.iou(bx.scale(a, x, y), bx.scale(b, x, y)) == pytest.approx(bx.iou(a, b), abs=1e-9)


@given(full_box, full_box)
def test_iou_of_a_box_with_one_inside_it_is_the_ratio_of_areas(a, b):
    hull = np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])
    assert bx.iou(a, hull) == pytest.approx(bx.area(a) / bx.area(hull))


@given(any_box, st.integers(1, 60), st.integers(1, 60))
def test_clip_stays_in_the_image_and_is_idempotent(box, width, height):
    clipped = bx.clip(box, width, height)
    assert (clipped >= 0).all() and (clipped <= [width, height, width, height]).all()
    np.testing.assert_array_equal(bx.clip(clipped, width, height), clipped)
    assert 0 <= bx.area_fraction(clipped, width, height) <= 1
