"""Tests that gradients are bit-identical in every run, on GPUs if determinism is enabled."""

import numpy as np
import tensorflow as tf
from ops.test_agreement import wild_boxes

from kerasdet import ops


def test_repeated_gradients_are_bit_identical(rng, implementation, request):
    if implementation == "gpu":
        request.getfixturevalue("deterministic")
    features = tf.constant(rng.normal(size=(1, 40, 50, 48)), tf.float32)
    boxes = wild_boxes(rng, (1, 300), 160.0)
    arguments = [tf.constant(rng.normal(size=s), tf.float32) for s in ((1, 20, 30, 48), (3, 3, 48, 8), (1, 20, 30, 18))]

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch([features, *arguments])
            pooled = ops.roi_align(features, boxes, output_size=7, spatial_scale=0.25)
            loss = tf.reduce_sum(pooled**2) + tf.reduce_sum(ops.deform_conv2d(*arguments, padding=1) ** 2)
        return tape.gradient(loss, [features, *arguments])

    first = gradients()
    for _ in range(5 if implementation == "gpu" else 30):
        for one, other in zip(first, gradients(), strict=True):
            np.testing.assert_array_equal(one, other)
