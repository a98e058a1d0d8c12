import numpy as np
import pytest
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.models.postprocess import Postprocessing, best_class_only, compact, top_candidates


def scalar_iou(a, b):
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union > 0 else 0.0


def scalar_detections(boxes, scores, class_ids, size, rule):
    """Computes one image's detections, (box, score, class id) each, by loops."""
    limit = np.array([*size, *size])
    clipped = np.clip(boxes, 0, limit)
    smallest = (clipped[:, 2:] - clipped[:, :2]).min(1)
    if rule.clip_before_nms:
        boxes = clipped
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if rule.empty_boxes == "drop_before_nms" and smallest[i] <= 0:
            continue
        if rule.min_size is not None and smallest[i] < rule.min_size:
            continue
        rivals = [j for j in kept if class_ids[j] == class_ids[i]]
        overlaps = [scalar_iou(boxes[i], boxes[j]) for j in rivals]
        if scores[i] > rule.score_threshold and all(overlap <= rule.nms_threshold for overlap in overlaps):
            kept.append(i)
    found = [(clipped[i], scores[i], class_ids[i]) for i in kept[: rule.max_detections]]
    return [d for d in found if rule.empty_boxes != "drop_after_nms" or (d[0][2:] > d[0][:2]).all()]


def candidates(rng, images=4, count=80, classes=3):
    corner = rng.uniform(-20, 90, (images, count, 2))
    return {
        "boxes": np.concatenate([corner, corner + rng.uniform(1, 50, (images, count, 2))], -1).astype(np.float32),
        "scores": (rng.permutation(images * count).reshape(images, count) / (images * count)).astype(np.float32),
        "class_ids": rng.integers(0, classes, (images, count), dtype=np.int32),
    }


@pytest.mark.parametrize("k", [1, 7, 60, 1000])
@pytest.mark.parametrize("classes", [1, 4])
def test_top_candidates_equal_a_full_sort(rng, k, classes):
    logits = rng.integers(-20, 20, (3, 25, classes)).astype(np.float32) / 8  # with ties
    scores, anchors, class_ids = (x.numpy() for x in top_candidates(logits, k))
    assert scores.shape == anchors.shape == class_ids.shape == (3, min(k, 25 * classes))
    for image in range(3):
        order = np.argsort(-logits[image].reshape(-1), kind="stable")[:k]
        np.testing.assert_array_equal(anchors[image] * classes + class_ids[image], order)
        np.testing.assert_allclose(scores[image], 1 / (1 + np.exp(-logits[image].reshape(-1)[order])), rtol=1e-5)


def test_top_candidates_work_in_a_graph_with_another_score(rng):
    function = tf.function(
        lambda logits: top_candidates(logits, 10, tf.exp), input_signature=[tf.TensorSpec([None, None, None])]
    )
    for anchors in (1, 40):
        logits = rng.normal(size=(2, anchors, 3)).astype(np.float32)
        scores = function(logits)[0]
        expected = -np.sort(-np.exp(logits).reshape(2, -1), 1)[:, :10]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "clip_before_nms,empty_boxes",
    [
        (False, "keep"),
        (False, "drop_after_nms"),
        (True, "keep"),
        (True, "drop_after_nms"),
        (True, "drop_before_nms"),
    ],
)
@pytest.mark.parametrize("score_threshold", [0.0, 0.4])
@pytest.mark.parametrize("max_detections,min_size", [(5, None), (100, None), (100, 12.0)])
def test_detections_equal_a_scalar_loop(rng, clip_before_nms, empty_boxes, score_threshold, max_detections, min_size):
    rule = Postprocessing(
        score_threshold,
        nms_threshold=0.3,
        max_detections=max_detections,
        min_size=min_size,
        clip_before_nms=clip_before_nms,
        empty_boxes=empty_boxes,
    )
    data, sizes = candidates(rng), np.int32([[64, 80], [100, 30], [128, 128], [1, 1]])
    detections = {name: x.numpy() for name, x in rule.apply_nms(data, sizes).items()}
    assert detections["boxes"].shape == (4, max_detections, 4)
    for image, size in enumerate(sizes):
        expected = scalar_detections(*(data[name][image] for name in ("boxes", "scores", "class_ids")), size, rule)
        count = len(expected)
        assert detections["valid"][image] == count
        for index, name in enumerate(("boxes", "scores", "class_ids")):
            values = np.array([d[index] for d in expected]).reshape(detections[name][image, :count].shape)
            np.testing.assert_allclose(detections[name][image, :count], values, atol=1e-4)
            assert (detections[name][image, count:] == (-1 if name == "class_ids" else 0)).all()


def test_empty_boxes_convention_decides_on_boxes_outside_the_image():
    """detectron2 lets it suppress others, mmdetection drops it first, torchvision keeps it as an empty box."""
    data = {
        "boxes": tf.constant([[[0.0, 200, 10, 210], [0, 0, 10, 10], [20, 20, 30, 30]]]),
        "scores": tf.constant([[0.9, 0.8, 0.7]]),
        "class_ids": tf.constant([[0, 0, 0]]),
    }
    cases = {"drop_after_nms": [[0.8, 0]], "drop_before_nms": [[0.8, 0.7]], "keep": [[0.9, 0.8]]}
    for empty_boxes, scores in cases.items():
        rule = Postprocessing(0.1, max_detections=2, clip_before_nms=True, empty_boxes=empty_boxes)
        found = rule.apply_nms(data, tf.constant([[50, 50]]))
        np.testing.assert_allclose(found["scores"], scores)
        assert found["valid"].numpy().tolist() == [np.count_nonzero(scores)]


def test_score_threshold_of_the_call_overrides_the_default():
    data = {"boxes": tf.constant([[[0.0, 0, 9, 9]]]), "scores": tf.constant([[0.3]]), "class_ids": tf.constant([[0]])}
    rule, size = Postprocessing(score_threshold=0.5), tf.constant([[50, 50]])
    assert rule.apply_nms(data, size)["valid"].numpy().tolist() == [0]
    assert rule.apply_nms(data, size, score_threshold=0.0)["valid"].numpy().tolist() == [1]


def test_invalid_arguments_raise_user_error():
    with pytest.raises(UserError, match="empty_boxes is 'drop': choose one of 'drop_after_nms'"):
        Postprocessing(empty_boxes="drop")
    with pytest.raises(UserError, match="without clipping before NMS: set clip_before_nms=True"):
        Postprocessing(empty_boxes="drop_before_nms")


def test_best_class_only_keeps_the_best_class_and_ties():
    least = np.finfo(np.float32).min
    scores = tf.constant([[[1.0, 3, 2], [-5, -5, -6]]])
    np.testing.assert_array_equal(best_class_only(scores), [[[least, 3, least], [-5, -5, least]]])


@pytest.mark.parametrize("clip_before_nms", [False, True])
@pytest.mark.parametrize("empty_boxes", ["keep", "drop_after_nms"])
def test_scores_at_or_below_the_threshold_are_dropped(clip_before_nms, empty_boxes):
    data = {
        "boxes": tf.constant([[[0.0, 0, 4, 4]], [[1, 1, 3, 3]]]),
        "scores": tf.constant([[0.1], [0.05]]),
        "class_ids": tf.constant([[1], [2]]),
    }
    rule = Postprocessing(0.1, max_detections=3, clip_before_nms=clip_before_nms, empty_boxes=empty_boxes)
    detections = rule.apply_nms(data, tf.constant([[5, 5], [6, 6]]))
    assert detections["valid"].numpy().tolist() == [0, 0]
    assert (detections["class_ids"].numpy() == -1).all() and detections["boxes"].shape == (2, 3, 4)


def test_compact_moves_kept_detections_first_and_pads_the_rest(rng):
    data = {
        "boxes": tf.constant(rng.random((2, 4, 4)), tf.float32),
        "scores": tf.constant([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]]),
        "class_ids": tf.constant([[5, 6, 7, 8], [1, 2, 3, 4]]),
        "mask_probs": tf.constant(rng.random((2, 4, 3, 3)), tf.float32),
    }
    compacted = compact(data, tf.constant([[False, True, False, True], [False] * 4]))
    np.testing.assert_allclose(compacted["scores"], [[0.8, 0.6, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(compacted["class_ids"], [[6, 8, -1, -1], [-1] * 4])
    np.testing.assert_array_equal(compacted["valid"], [2, 0])
    np.testing.assert_array_equal(compacted["boxes"][0, :2], data["boxes"].numpy()[0, [1, 3]])
    np.testing.assert_array_equal(compacted["mask_probs"][0, 1], data["mask_probs"][0, 3])
    assert not compacted["mask_probs"].numpy()[0, 2:].any() and not compacted["boxes"].numpy()[1].any()
