import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.geometry import boxes as box_ops

YXYX = [1, 0, 3, 2]
PAIRED = {"giou": box_ops.paired_giou, "diou": box_ops.paired_diou, "ciou": box_ops.paired_ciou}


def random_boxes(rng, count, extent=100.0):
    corner = rng.uniform(0, extent, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.1, extent / 2, (count, 2))], -1).astype(np.float32)


def scalar_iou(a, b):
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union > 0 else 0.0


@pytest.fixture(scope="module")
def torchvision():
    answers = json.loads(shared("reference/known_answers.json").read_text())["torchvision"]
    to_yxyx = {name: np.float32(answers[name])[:, YXYX] for name in ("boxes1", "boxes2")}
    return {**answers, **to_yxyx}


def test_iou_equals_torchvision(torchvision):
    np.testing.assert_allclose(box_ops.iou(torchvision["boxes1"], torchvision["boxes2"]), torchvision["iou"], atol=1e-6)


@pytest.mark.parametrize("name", ["giou", "diou"])
def test_paired_functions_equal_torchvision(torchvision, name):
    expected = np.float32(torchvision[name])  # (N, M)
    boxes1 = np.repeat(torchvision["boxes1"][:, None], expected.shape[1], 1)
    boxes2 = np.repeat(torchvision["boxes2"][None], expected.shape[0], 0)
    np.testing.assert_allclose(PAIRED[name](boxes1, boxes2), expected, atol=1e-4)


def test_area_is_height_times_width():
    np.testing.assert_array_equal(box_ops.area(tf.constant([[[1.0, 2, 4, 9]], [[3, 3, 3, 8]]])), [[21], [0]])


def test_iou_equals_a_scalar_loop(rng):
    boxes1, boxes2 = random_boxes(rng, 23), random_boxes(rng, 17)
    expected = [[scalar_iou(a, b) for b in boxes2.astype(float)] for a in boxes1.astype(float)]
    actual = box_ops.iou(boxes1, boxes2)
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.count_nonzero(expected) > 50


def test_iou_is_symmetric_and_one_on_the_diagonal(rng):
    boxes = random_boxes(rng, 30)
    overlap = box_ops.iou(boxes, boxes).numpy()
    np.testing.assert_array_equal(overlap, overlap.T)
    np.testing.assert_allclose(np.diag(overlap), 1, atol=1e-6)


def test_iou_is_invariant_to_translation(rng):
    boxes1, boxes2 = random_boxes(rng, 9).round(), random_boxes(rng, 9).round()
    np.testing.assert_array_equal(box_ops.iou(boxes1, boxes2), box_ops.iou(boxes1 + 4096, boxes2 + 4096))


def test_iou_broadcasts_anchors_over_a_batch(rng):
    anchors, gt = random_boxes(rng, 7), random_boxes(rng, 6).reshape(2, 3, 4)
    overlap = box_ops.iou(anchors, gt)
    assert overlap.shape == (2, 7, 3)
    for image in range(2):
        np.testing.assert_array_equal(overlap[image], box_ops.iou(anchors, gt[image]))


def test_iou_with_an_empty_box_is_zero():
    empty, full = tf.zeros([2, 4]), tf.constant([[0.0, 0, 5, 5]])
    np.testing.assert_array_equal(box_ops.iou(empty, empty), np.zeros([2, 2]))
    np.testing.assert_array_equal(box_ops.iou(empty, full), np.zeros([2, 1]))
    assert box_ops.iou(tf.zeros([0, 4]), full).shape == (0, 1)


def test_iof_is_intersection_over_the_first_area(rng):
    boxes1, boxes2 = random_boxes(rng, 23), random_boxes(rng, 17)
    overlap, areas = box_ops.iou(boxes1, boxes2).numpy(), box_ops.area(boxes1).numpy()[:, None]
    intersection = overlap * (areas + box_ops.area(boxes2).numpy()) / (1 + overlap)
    np.testing.assert_allclose(box_ops.iof(boxes1, boxes2), intersection / areas, atol=1e-5)
    inner, outer = tf.constant([[2.0, 2, 4, 4]]), tf.constant([[0.0, 0, 100, 100]])
    np.testing.assert_allclose(box_ops.iof(inner, outer), [[1]])
    np.testing.assert_allclose(box_ops.iof(outer, inner), [[4e-4]])
    np.testing.assert_array_equal(box_ops.iof(tf.zeros([1, 4]), outer), [[0]])


def test_iou_of_touching_boxes_is_zero():
    assert box_ops.iou(tf.constant([[0.0, 0, 5, 5]]), tf.constant([[5.0, 0, 9, 5]])).numpy() == 0


def test_paired_functions_equal_their_definitions(rng):
    boxes1, boxes2 = random_boxes(rng, 200), random_boxes(rng, 200)
    overlap = np.array([scalar_iou(a, b) for a, b in zip(boxes1.astype(float), boxes2.astype(float), strict=True)])
    y1, x1, y2, x2 = boxes1.T.astype(float)
    v1, u1, v2, u2 = boxes2.T.astype(float)
    height, width = np.maximum(y2, v2) - np.minimum(y1, v1), np.maximum(x2, u2) - np.minimum(x1, u1)
    sum_of_areas = (y2 - y1) * (x2 - x1) + (v2 - v1) * (u2 - u1)
    union = sum_of_areas / (1 + overlap)
    giou = overlap - (height * width - union) / (height * width)
    distance = ((y1 + y2 - v1 - v2) ** 2 + (x1 + x2 - u1 - u2) ** 2) / 4
    diou = overlap - distance / (height**2 + width**2)
    aspect = 4 / np.pi**2 * (np.arctan((x2 - x1) / (y2 - y1)) - np.arctan((u2 - u1) / (v2 - v1))) ** 2
    ciou = diou - aspect**2 / (1 - overlap + aspect)
    for name, expected in {"giou": giou, "diou": diou, "ciou": ciou}.items():
        np.testing.assert_allclose(PAIRED[name](boxes1, boxes2), expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(PAIRED[name](boxes2, boxes1), expected, atol=1e-5, err_msg=name)
    assert giou.min() < -0.5 and giou.max() > 0.3


@pytest.mark.parametrize("name", PAIRED)
def test_equal_boxes_have_value_one_and_zero_gradient(rng, name):
    boxes = tf.Variable(random_boxes(rng, 20))
    with tf.GradientTape() as tape:
        value = PAIRED[name](boxes, tf.constant(boxes.numpy()))
    np.testing.assert_allclose(value, 1, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(value, boxes), np.zeros([20, 4]), atol=1e-6)


@pytest.mark.parametrize("name", PAIRED)
def test_gradients_equal_finite_differences(rng, name):
    boxes, target = random_boxes(rng, 40), random_boxes(rng, 40)
    boxes[:5, 1] = target[:5, 1] - 3  # some edges outside the target, some inside
    variable = tf.Variable(boxes)
    with tf.GradientTape() as tape:
        value = PAIRED[name](variable, target)
    gradient = tape.gradient(value, variable).numpy()

    def ciou_weight_held(a):
        """Computes CIoU with a constant aspect weight, because its gradient is stopped."""
        overlap = np.array([scalar_iou(p, q) for p, q in zip(boxes.astype(float), target.astype(float), strict=True)])

        def aspect(b):
            ratio, other = (
                (b[:, 3] - b[:, 1]) / (b[:, 2] - b[:, 0]),
                (target[:, 3] - target[:, 1]) / (target[:, 2] - target[:, 0]),
            )
            return 4 / np.pi**2 * (np.arctan(ratio) - np.arctan(other)) ** 2

        weight = aspect(boxes) / (1 - overlap + aspect(boxes))
        return PAIRED["diou"](tf.constant(a, tf.float64), tf.constant(target, tf.float64)).numpy() - weight * aspect(a)

    def function(a):
        if name == "ciou":
            return ciou_weight_held(a)
        return PAIRED[name](tf.constant(a, tf.float64), tf.constant(target, tf.float64)).numpy()

    for edge in range(4):
        step = np.zeros(4)
        step[edge] = 1e-5
        numeric = (function(boxes.astype(float) + step) - function(boxes.astype(float) - step)) / 2e-5
        np.testing.assert_allclose(gradient[:, edge], numeric, atol=2e-5)


@pytest.mark.parametrize("name", ["giou", "diou"])
@pytest.mark.parametrize(
    "box,target",
    [
        ([0, 0, 4, 4], [50, 60, 54, 64]),  # disjoint
        ([3, 3, 3, 3], [0, 0, 9, 9]),  # a point inside the other box
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # padding against padding
        ([0, 0, 4, 4], [4, 0, 8, 4]),  # touching
        ([5, 5, 2, 2], [0, 0, 9, 9]),  # inverted corners
    ],
)
def test_gradients_of_degenerate_boxes_are_finite(name, box, target):
    box = tf.Variable([box], dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = PAIRED[name](box, tf.constant([target], tf.float32))
    assert np.isfinite(value).all() and np.isfinite(tape.gradient(value, box)).all()


def test_gradients_pull_disjoint_boxes_together():
    box = tf.Variable([[0.0, 0, 4, 4]])
    for name in PAIRED:
        with tf.GradientTape() as tape:
            value = PAIRED[name](box, tf.constant([[50.0, 60, 54, 64]]))
        assert (tape.gradient(value, box).numpy() @ [1, 1, 1, 1] > 0).all(), name


def test_clip_limits_boxes_to_each_image():
    boxes = tf.constant([[[-5.0, -6, 20, 30], [1, 2, 3, 4]], [[50.0, 60, 70, 80], [1, 2, 13, 14]]])
    clipped = box_ops.clip(boxes, tf.constant([[10, 25], [12, 8]]))
    np.testing.assert_array_equal(clipped, [[[0, 0, 10, 25], [1, 2, 3, 4]], [[12, 8, 12, 8], [1, 2, 12, 8]]])
    np.testing.assert_array_equal(box_ops.clip(boxes[0], (10, 25)), clipped[0])


def test_scale_multiplies_boxes_per_image():
    boxes = tf.constant([[[1.0, 2, 3, 4]], [[1, 2, 3, 4]]])
    np.testing.assert_array_equal(
        box_ops.scale(boxes, tf.constant([[2.0, 10], [1, 0.5]])), [[[2, 20, 6, 40]], [[1, 1, 3, 2]]]
    )


def test_centers_are_midpoints():
    np.testing.assert_array_equal(box_ops.centers(tf.constant([[1.0, 2, 3, 10]])), [[2, 6]])


def test_flips_match_flipped_pixels():
    image = np.zeros([10, 16])
    image[2:5, 1:7] = 1
    box = tf.constant([2.0, 1, 5, 7])
    y1, x1, y2, x2 = box_ops.flip_left_right(box, 16).numpy().astype(int)
    assert image[:, ::-1][y1:y2, x1:x2].sum() == image.sum() == (y2 - y1) * (x2 - x1)
    y1, x1, y2, x2 = box_ops.flip_up_down(box, 10).numpy().astype(int)
    assert image[::-1][y1:y2, x1:x2].sum() == image.sum() == (y2 - y1) * (x2 - x1)


def test_flipping_twice_returns_the_box(rng):
    boxes = random_boxes(rng, 12).round().reshape(3, 4, 4)
    for flip in (box_ops.flip_left_right, box_ops.flip_up_down):
        np.testing.assert_array_equal(flip(flip(boxes, 333), 333), boxes)
        assert np.all(box_ops.area(flip(boxes, 333)) > 0)
