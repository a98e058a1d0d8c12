"""Tests that operations in the static shapes for TFLite and XLA equal the others."""

import numpy as np
import pytest
import tensorflow as tf

from kerasdet import ops
from kerasdet.ops.levels import assign_levels


def on_both(function):
    with ops.implementation("tensorflow"):
        expected = function()
    with ops.implementation("tflite"):
        return expected, function()


def test_multilevel_roi_align_converts_with_equal_values(rng):
    pyramid = {f"p{level}": rng.normal(size=(1, 2 ** (7 - level), 2 ** (8 - level), 3)) for level in range(2, 6)}
    pyramid = {name: tf.constant(x, tf.float32) for name, x in pyramid.items()}
    low = rng.uniform(-20, 100, (1, 40, 2))
    boxes = np.concatenate([low, low + rng.exponential(60, (1, 40, 2))], -1).astype(np.float32)
    boxes[0, :3] = [[0, 0, 0, 0], [5, 0, 8, 256], [0, 30, 128, 30.5]]  # empty boxes, and long thin ones
    for sampling_ratio, aligned in ((0, True), (2, False), (0, False)):
        expected, found = on_both(
            lambda s=sampling_ratio, a=aligned: ops.multilevel_roi_align(
                pyramid, boxes, output_size=7, sampling_ratio=s, aligned=a, canonical_size=56
            )
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_levels_equal_the_formula_of_the_fpn_paper(rng):
    for epsilon in (0.0, 1e-6, 0.01):
        exact = np.float32(224 * 2.0 ** np.arange(-6, 6))
        near = np.concatenate([exact * np.float32(1 + k * 2.0**-24) for k in range(-40, 41)])
        side = np.concatenate([near, np.exp(rng.uniform(0, 8, 2000)), [0.0]]).astype(np.float32)
        zero = np.zeros_like(side)
        boxes = np.stack([zero, zero, side, side], -1)
        ratio = tf.sqrt(tf.constant(side) * side) / 224 + 1e-8
        with np.errstate(divide="ignore"):
            log2 = np.log2(ratio.numpy().astype(float)).astype(np.float32)
        expected = np.clip(np.floor(np.float32(4) + log2 + np.float32(epsilon)), 2, 5)
        np.testing.assert_array_equal(assign_levels(tf.constant(boxes), 2, 5, 224, 4, epsilon), expected)
    assert assign_levels(tf.constant([[0.0, 0, -5, 5]]), 2, 5, 224, 4, 0.0).numpy().tolist() == [2]
    assert assign_levels(tf.constant(boxes[:4]), 3, 3, 224, 4, 0.0).numpy().tolist() == [3] * 4


def test_nms_converts_with_equal_detections(rng):
    low = rng.uniform(0, 50, (1, 80, 2))
    boxes = tf.constant(np.concatenate([low, low + rng.uniform(5, 30, (1, 80, 2))], -1), tf.float32)
    scores = tf.constant(rng.random((1, 80)), tf.float32)
    class_ids = tf.constant(rng.integers(0, 3, (1, 80)), tf.int32)
    expected, found = on_both(lambda: ops.nms(boxes, scores, class_ids, iou_threshold=0.5, max_detections=30))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nms_in_tflite_selects_an_empty_box_once():
    """TFLite's kernel would select a box again until the box overlaps itself."""
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    boxes = [[[5.0, 5, 5, 9], [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]]

    @tf.function(input_signature=[tf.TensorSpec([1, 4, 4]), tf.TensorSpec([1, 4])])
    def run(boxes, scores):
        with ops.implementation("tflite"):
            return ops.nms(boxes, scores, iou_threshold=0.5, max_detections=4)

    concrete = run.get_concrete_function()
    interpreter = interpreters.Interpreter(
        model_content=tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        value = boxes if len(detail["shape"]) == 3 else [[0.9, 0.8, 0.7, 0.6]]
        interpreter.set_tensor(detail["index"], np.float32(value))
    interpreter.invoke()
    found = [interpreter.get_tensor(detail["index"]).ravel().tolist() for detail in interpreter.get_output_details()]
    assert sorted(found, key=len) == [[3], [0, 1, 3, -1]]
