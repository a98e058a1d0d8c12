"""Tests that operations under XLA, which uses forms of static shapes, equal the others."""

import numpy as np
import pytest
import tensorflow as tf
from ops.test_agreement import random_convolution, random_pyramid, wild_boxes

from kerasdet import ops


def with_gradients(function, *arguments):
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        result = function(*arguments)
        loss = tf.reduce_sum(tf.sin(result))
    return result, *tape.gradient(loss, arguments)


def agree(function, *arguments):
    """Asserts equal values and gradients with and without XLA."""
    under_xla = tf.function(with_gradients, jit_compile=True)(function, *arguments)
    for found, expected in zip(under_xla, with_gradients(function, *arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_nms_compiles_with_equal_detections(rng):
    low = rng.uniform(0, 50, (2, 60, 2))
    boxes = tf.constant(np.concatenate([low, low + rng.uniform(5, 30, (2, 60, 2))], -1), tf.float32)
    scores, class_ids = tf.constant(rng.random((2, 60)), tf.float32), tf.constant(rng.integers(0, 3, (2, 60)), tf.int32)
    for most in (10, 100):
        run = lambda most=most: ops.nms(boxes, scores, class_ids, iou_threshold=0.5, max_detections=most)  # noqa: E731
        for one, other in zip(tf.function(run, jit_compile=True)(), run(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("count", [0, 11])
def test_roi_align_compiles_with_equal_values_and_gradients(rng, sampling_ratio, aligned, count):
    maps = random_pyramid(rng, 3)
    boxes = tf.constant(wild_boxes(rng, (maps[0].shape[0], count), 4.0 * max(maps[0].shape[1:3])))
    options = {"output_size": (2, 3), "sampling_ratio": sampling_ratio, "aligned": aligned}

    def pooled(*maps):
        pyramid = {f"p{level}": x for level, x in enumerate(maps, 2)}
        return ops.multilevel_roi_align(pyramid, boxes, canonical_size=60, **options)

    agree(pooled, *maps)
    agree(lambda x: ops.roi_align(x, boxes, spatial_scale=0.25, **options), maps[0])


def test_deform_conv2d_compiles_with_equal_values_and_gradients(rng):
    for _ in range(4):
        arguments, options = random_convolution(rng)
        agree(lambda *arguments, o=options: ops.deform_conv2d(*arguments, **o), *arguments)


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_paste_masks_compiles_with_equal_masks(rng, convention):
    probs, boxes = rng.random((30, 14, 14)).astype(np.float32), wild_boxes(rng, (30,), 50.0)
    run = lambda: ops.paste_masks(probs, boxes, 50, 60, convention)  # noqa: E731
    found, expected = tf.function(run, jit_compile=True)().numpy(), run().numpy()
    assert np.mean(expected) > 0.01
    assert np.mean(found != expected) < 1e-4  # values may round to either side of the threshold
