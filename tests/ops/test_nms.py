import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.ops import nms

pytestmark = pytest.mark.usefixtures("implementation")

YXYX = [1, 0, 3, 2]


def kept(boxes, scores, class_ids=None, **options):
    """Returns the indices that NMS keeps in one image."""
    options = {"iou_threshold": 0.5, "max_detections": max(len(boxes), 1), **options}
    class_ids = None if class_ids is None else np.int32(class_ids)[None]
    boxes = np.float32(boxes).reshape(1, -1, 4)
    indices, counts = nms(boxes, np.float32(scores)[None], class_ids, **options)
    assert indices.shape == (1, options["max_detections"]) and indices.dtype == counts.dtype == tf.int32
    count = int(counts[0])
    assert (indices.numpy()[0, :count] >= 0).all() and (indices.numpy()[0, count:] == -1).all()
    return indices.numpy()[0, :count].tolist()


def scalar_nms(boxes, scores, class_ids, iou_threshold, max_detections, score_threshold=-np.inf):
    """Runs greedy NMS pair by pair; also returns the smallest distance of an overlap to the threshold."""
    keep, margin = [], 1.0
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if not scores[i] > score_threshold or len(keep) == max_detections:
            continue
        suppressed = False
        for j in keep:
            if class_ids[i] == class_ids[j]:
                overlap = scalar_iou(boxes[i], boxes[j])
                margin = min(margin, abs(overlap - iou_threshold))
                suppressed |= overlap > iou_threshold
        if not suppressed:
            keep.append(i)
    return keep, margin


def scalar_iou(a, b):
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union > 0 else 0.0


def random_boxes(rng, count, extent, size):
    corner = rng.uniform(0, extent, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, size, (count, 2))], -1).astype(np.float32)


@pytest.mark.parametrize("case", range(6))
def test_kept_boxes_equal_torchvision(case):
    with np.load(shared("reference/ops.npz")) as golden:
        boxes, scores, class_ids, threshold, keep = (
            golden[f"nms_{case}_{name}"] for name in ("boxes_xyxy", "scores", "class_ids", "iou_threshold", "keep")
        )
    assert kept(boxes[:, YXYX], scores, class_ids, iou_threshold=float(threshold)) == keep.tolist()


def test_kept_boxes_equal_mmcv():
    case = json.loads(shared("reference/known_answers.json").read_text())["nms"]
    boxes = np.float32(case["boxes"])[:, YXYX]
    assert kept(boxes, case["scores"], iou_threshold=case["iou"]) == case["keep"]


def test_kept_boxes_equal_the_onnx_reference():
    cases = json.loads(shared("reference/onnx_vectors.json").read_text())
    cases = [case for case in cases if case["attrs"]["op"] == "NonMaxSuppression"]
    assert len(cases) > 5
    for case in cases:
        boxes, scores, (maximum,), (iou_threshold,), (score_threshold,) = map(np.array, case["inputs"])
        if case["attrs"].get("center_point_box"):
            center, half = boxes[..., [1, 0]], boxes[..., [3, 2]] / 2
            boxes = np.concatenate([center - half, center + half], -1)
        selected = []
        for image in range(scores.shape[0]):
            for class_id in range(scores.shape[1]):
                indices = kept(
                    boxes[image],
                    scores[image, class_id],
                    iou_threshold=float(iou_threshold),
                    max_detections=int(maximum),
                    score_threshold=float(score_threshold),
                )
                selected += [[image, class_id, index] for index in indices]
        assert selected == case["outputs"][0], case["name"]


@pytest.mark.parametrize("num_classes", [None, 1, 4])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7])
def test_kept_boxes_equal_a_scalar_loop(rng, num_classes, iou_threshold):
    for _ in range(5):
        boxes = random_boxes(rng, 60, 50, 40)
        scores = rng.integers(0, 12, 60) / 10  # many ties
        class_ids = rng.integers(0, num_classes or 1, 60)
        options = {"iou_threshold": iou_threshold, "max_detections": 25, "score_threshold": 0.15}
        expected, _ = scalar_nms(boxes.astype(float), scores, class_ids, **options)
        assert kept(boxes, scores, None if num_classes is None else class_ids, **options) == expected


def test_nms_with_many_classes_on_a_large_image_keeps_the_right_boxes(rng):
    """Boxes of 1200 classes are shifted far apart; the lost digits must not change which are dropped."""
    boxes = random_boxes(rng, 1000, 1200, 133)
    partners = boxes[rng.integers(0, 1000, 1000)] + rng.uniform(-15, 15, (1000, 4))
    boxes = np.float32(np.concatenate([boxes, partners]))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    scores = rng.random(2000)
    for class_ids in (rng.integers(0, 3, 2000) * 599, np.tile(np.arange(1000), 2) + 199, rng.integers(0, 1200, 2000)):
        expected, margin = scalar_nms(boxes.astype(float), scores, class_ids, 0.5, 2000)
        assert margin > 1e-6
        assert kept(boxes, scores, class_ids) == expected


def test_equal_boxes_of_different_classes_are_kept(rng):
    boxes = np.tile([[100.25, 200.5, 300.75, 400.1]], (1200, 1))
    assert kept(boxes, np.linspace(1, 0.1, 1200), np.arange(1200)) == list(range(1200))


def test_negative_and_fractional_coordinates_work(rng):
    boxes = random_boxes(rng, 80, 2, 1) - 5
    scores, class_ids = rng.random(80), rng.integers(0, 3, 80)
    expected, _ = scalar_nms(boxes.astype(float), scores, class_ids, 0.4, 80)
    assert kept(boxes, scores, class_ids, iou_threshold=0.4) == expected


def test_equal_scores_keep_the_first():
    boxes = [[0, 0, 10, 10]] * 5 + [[50, 50, 60, 60]] * 5
    assert kept(boxes, [0.5] * 10) == [0, 5]


def test_box_at_the_iou_threshold_is_kept():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5]]  # IoU 0.5
    assert kept(boxes, [0.9, 0.8], iou_threshold=0.5) == [0, 1]
    assert kept(boxes, [0.9, 0.8], iou_threshold=0.49) == [0]


def test_score_at_the_threshold_is_dropped():
    boxes = [[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]
    assert kept(boxes, [0.5, 0.25, 0.75], score_threshold=0.5) == [2]
    assert kept(boxes, [0.5, 0.25, 0.75], score_threshold=0.75) == []


def test_negative_scores_are_kept_without_a_threshold():
    assert kept([[0, 0, 1, 1], [5, 5, 6, 6]], [-3.0, -2.0]) == [1, 0]


def test_max_detections_keeps_the_highest_scores():
    boxes = [[10 * i, 0, 10 * i + 5, 5] for i in range(6)]
    assert kept(boxes, [1, 6, 2, 5, 3, 4], max_detections=3) == [1, 3, 5]
    assert kept(boxes[:2], [1, 6], max_detections=4) == [1, 0]


@pytest.mark.parametrize("class_ids", [None, np.zeros(0)])
def test_zero_boxes_give_zero_detections(class_ids):
    assert kept(np.zeros([0, 4]), np.zeros(0), class_ids, max_detections=3) == []


def test_empty_boxes_do_not_change_other_boxes():
    assert kept([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 4, 4]], [0.1, 0.2, 0.3], [0, 0, 1]) == [2, 1, 0]


def test_images_of_a_batch_do_not_affect_each_other(rng):
    boxes = random_boxes(rng, 4 * 30, 60, 40).reshape(4, 30, 4)
    boxes[2] += 5000
    scores, class_ids = rng.random((4, 30)), rng.integers(0, 3, (4, 30))
    class_ids[3] += 40
    indices, counts = nms(boxes, scores, np.int32(class_ids), iou_threshold=0.5, max_detections=30)
    for image in range(4):
        alone = kept(boxes[image], scores[image], class_ids[image])
        assert indices[image, : counts[image]].numpy().tolist() == alone
    assert len(set(counts.numpy())) > 1


def test_nms_runs_in_a_graph_with_unknown_shapes(rng):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None]),
            tf.TensorSpec([None, None], tf.int32),
        ]
    )
    def function(boxes, scores, class_ids):
        indices, counts = nms(boxes, scores, class_ids, iou_threshold=0.5, max_detections=7)
        assert indices.shape.as_list() == [None, 7]
        return indices, counts

    for count in (0, 1, 40):
        boxes, scores, class_ids = random_boxes(rng, count, 30, 20), rng.random(count), rng.integers(0, 3, count)
        indices, counts = function(boxes[None], scores[None], class_ids[None])
        assert indices[0, : counts[0]].numpy().tolist() == kept(boxes, scores, class_ids, max_detections=7)


def test_half_precision_is_computed_in_float32():
    boxes = tf.constant([[[0.0, 0, 1000, 1000], [0, 0, 1000, 504]]], tf.bfloat16)  # IoU 0.504
    indices, counts = nms(boxes, tf.constant([[0.9, 0.8]], tf.bfloat16), iou_threshold=0.5, max_detections=2)
    assert indices.numpy().tolist() == [[0, -1]] and counts.numpy().tolist() == [1]
