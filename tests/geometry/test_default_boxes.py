"""Default boxes and matching of SSD against numbers computed by hand; tests/checkpoints compares with torchvision."""

import numpy as np
import pytest

from kerasdet.errors import UserError
from kerasdet.geometry.default_boxes import DefaultBoxes, SSDMatcher


def test_boxes_of_a_cell():
    boxes = DefaultBoxes((0.25, 0.64, 1.0), ((4,), ()), ("p3", "p4"), strides=None)
    assert boxes.num_anchors == (4, 2)
    found = boxes({"p3": (2, 1), "p4": (1, 1)}, (200, 100))
    # a square of 0.25, one of sqrt(0.25 * 0.64) = 0.4, a wide and a high box; in an image twice as high as wide
    expected = [[25, 37.5, 75, 62.5], [10, 30, 90, 70], [37.5, 25, 62.5, 75], [0, 43.75, 100, 56.25]]
    np.testing.assert_allclose(found["p3"][:4], expected, atol=1e-4)
    np.testing.assert_allclose(found["p3"][4:], np.add(expected, [100, 0, 100, 0]), atol=1e-4)
    np.testing.assert_allclose(found["p4"], [[36, 18, 164, 82], [20, 10, 180, 90]], atol=1e-4)  # 0.64 and 0.8


def test_strides_place_the_cells():
    boxes = DefaultBoxes((0.1, 0.1), ((),), ("p3",), strides=(30,))({"p3": (1, 2)}, (100, 100))["p3"].numpy()
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:])[::2] / 2, [[15, 15], [15, 45]], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": (0.1, 0.2)}, r"scales has 2 entries: expected 7 for 6 levels \(p3, "),
        ({"aspect_ratios": ((2,),)}, "aspect_ratios has 1 entries: expected 6"),
        ({"strides": (8, 16)}, "strides has 2 entries: expected 6"),
    ],
)
def test_wrong_numbers_raise(arguments, message):
    with pytest.raises(UserError, match=message):
        DefaultBoxes(**arguments)


ANCHORS = np.float32([[0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60], [80, 80, 90, 90]])


def matched(boxes, class_ids, is_crowd=None, **options):
    batch = {
        "boxes": np.float32([boxes]).reshape(1, -1, 4),
        "class_ids": np.int32([class_ids]),
        "is_crowd": np.array([is_crowd or [False] * len(class_ids)], bool),
    }
    return SSDMatcher(**options)(ANCHORS, batch).numpy()[0].tolist()


def test_objects_own_their_best_box_however_small_the_overlap():
    assert matched([[55, 55, 95, 58], [0, 0, 10, 11]], [3, 4]) == [1, 1, 0, -1]


def test_last_object_gets_a_box_that_two_own():
    assert matched([[0, 0, 10, 9], [0, 0, 9, 10], [0, 0, 0, 0]], [0, 1, -1]) == [1, -1, -1, -1]


def test_images_without_objects_match_nothing():
    assert matched([], []) == [-1] * 4
    assert matched([[0, 0, 10, 10]], [-1]) == [-1] * 4


def test_crowds_are_ignored_on_request():
    crowd = {"boxes": [[40, 40, 95, 95], [0, 0, 10, 10]], "class_ids": [1, 0], "is_crowd": [True, False]}
    assert matched(**crowd) == [1, 1, -1, -1]
    assert matched(**crowd, ignore_crowd_iof=0.5) == [1, 1, -2, -2]
