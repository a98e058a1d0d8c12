import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.matching import IGNORE, NEGATIVE, gather_gt, match_iou

YXYX = [1, 0, 3, 2]
RULES = {
    "retinanet": {"foreground_iou": 0.5, "background_iou": 0.4, "low_quality": True},
    "rpn": {"foreground_iou": 0.7, "background_iou": 0.3, "low_quality": True},
    "roi": {"foreground_iou": 0.5, "background_iou": 0.5, "low_quality": False},
    "retinanet_far": {"foreground_iou": 0.95, "background_iou": 0.95, "low_quality": True},
}


def match(anchors, gt_boxes, valid=None, **rule):
    """One image's matches, NumPy in and out."""
    gt_boxes = np.float32(gt_boxes).reshape(1, -1, 4)
    valid = np.ones(gt_boxes.shape[:2], bool) if valid is None else np.array([valid])
    return match_iou(np.float32(anchors), gt_boxes, valid, **{**RULES["retinanet"], **rule}).numpy()[0]


def scalar_iou(a, b):
    height = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), np.float32(0))
    width = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), np.float32(0))
    return height * width / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width)


def scalar_match(anchors, gt_boxes, valid, foreground_iou, background_iou, low_quality):
    indices = [index for index, ok in enumerate(valid) if ok]
    table = [[scalar_iou(anchor, gt_boxes[index]) for index in indices] for anchor in anchors]
    matches = []
    for row in table:
        best = max(row, default=-1)
        if best >= foreground_iou:
            matches.append(indices[row.index(best)])
        else:
            matches.append(NEGATIVE if best < background_iou else IGNORE)
    if low_quality:
        for column in range(len(indices)):
            best = max(row[column] for row in table)
            for i, row in enumerate(table):
                if row[column] == best:
                    matches[i] = indices[row.index(max(row))]
    return matches


@pytest.mark.parametrize("name", RULES)
def test_equals_detectron2(name):
    with np.load(shared("reference/geometry.npz")) as golden:
        prefix = f"matcher_{name}_"
        case = {key.removeprefix(prefix): golden[key] for key in golden.files if key.startswith(prefix)}
    expected = np.where(case["labels"] == 1, case["matches"], np.where(case["labels"] == 0, NEGATIVE, IGNORE))
    actual = match(case["anchors_xyxy"][:, YXYX], case["gt_xyxy"][:, YXYX], **RULES[name])
    np.testing.assert_array_equal(actual, expected)
    assert (expected >= 0).any()


@pytest.mark.parametrize("name", RULES)
def test_equals_a_scalar_loop(rng, name):
    def grid_boxes(*shape):  # on a coarse grid, so that ties are common
        corner = rng.integers(0, 8, (*shape, 2)) * 4
        return np.concatenate([corner, corner + rng.integers(1, 5, (*shape, 2)) * 4], -1).astype(np.float32)

    anchors, gt_boxes = grid_boxes(50), grid_boxes(20, 5)
    valid = rng.random((20, 5)) < 0.7
    valid[0] = False
    actual = match_iou(anchors, gt_boxes, valid, **RULES[name]).numpy()
    for image in range(20):
        expected = scalar_match(anchors, gt_boxes[image], valid[image], **RULES[name])
        np.testing.assert_array_equal(actual[image], expected)


def test_an_image_without_objects_is_all_negative():
    anchors = [[0, 0, 8, 8], [0, 0, 0, 0]]
    np.testing.assert_array_equal(match(anchors, np.zeros([3, 4]), [False] * 3), [NEGATIVE] * 2)


def test_no_ground_truth_rows_at_all():
    matched = match_iou(tf.zeros([3, 4]), tf.zeros([2, 0, 4]), tf.zeros([2, 0], tf.bool), **RULES["retinanet"])
    np.testing.assert_array_equal(matched, np.full([2, 3], NEGATIVE))


def test_padding_and_crowd_change_nothing():
    anchors = [[0, 0, 8, 8], [0, 0, 8, 7], [100, 100, 108, 108], [50, 50, 60, 60]]
    alone = match(anchors, [[0, 0, 8, 8]])
    together = match(anchors, [[0, 0, 0, 0], [0, 0, 8, 8], [50, 50, 60, 60]], [False, True, False])
    np.testing.assert_array_equal(together, np.where(alone == 0, 1, alone))


def test_thresholds_include_the_foreground_and_exclude_the_background():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 3]]  # IoU 1, 0.5, 0.4, 0.3
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 10]], low_quality=False), [0, 0, IGNORE, NEGATIVE])


def test_low_quality_finds_an_anchor_for_every_object():
    anchors = [[0, 0, 10, 1], [0, 0, 10, 2], [90, 90, 99, 99]]
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 10]], low_quality=True), [NEGATIVE, 0, NEGATIVE])
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 10]], low_quality=False), [NEGATIVE] * 3)


def test_low_quality_takes_every_tied_anchor():
    np.testing.assert_array_equal(match([[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1]], [[0, 0, 10, 10]]), [0, 0, -1])


def test_a_low_quality_anchor_answers_for_its_own_best():
    anchors = [[0, 0, 10, 10]]  # the best there is for both, 0.3 and 0.2
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 2], [0, 0, 10, 3]]), [1])


def test_anchors_of_each_image(rng):
    anchors = rng.uniform(0, 50, (2, 30, 4)).astype(np.float32)
    anchors[..., 2:] += anchors[..., :2]
    gt = anchors[:, :4] + 1
    matched = match_iou(anchors, gt, np.ones([2, 4], bool), **RULES["retinanet"]).numpy()
    for image in range(2):
        np.testing.assert_array_equal(matched[image], match(anchors[image], gt[image]))


def test_shapes_and_types_in_a_graph():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None], tf.bool),
        ]
    )
    def function(anchors, gt_boxes, valid):
        return match_iou(anchors, gt_boxes, valid, **RULES["retinanet"])

    matched = function(tf.zeros([5, 4]), tf.zeros([2, 3, 4]), tf.zeros([2, 3], tf.bool))
    assert matched.shape == (2, 5) and matched.dtype == tf.int32


def test_gather_gt():
    values = tf.constant([[[1.0], [2]], [[3], [4]]])
    gathered = gather_gt(values, tf.constant([[1, NEGATIVE, 0], [IGNORE, 1, 1]]))
    np.testing.assert_array_equal(gathered[..., 0], [[2, 0, 1], [0, 4, 4]])
    assert gather_gt(tf.zeros([2, 0, 4]), tf.fill([2, 5], NEGATIVE)).shape == (2, 5, 4)
