import importlib
import math

import numpy as np
import pytest
import tensorflow as tf
from ops.test_roi_align import BOXES, golden, in_batch

from kerasdet.ops import roi_pool


def reference(image, box, output_size, scale):
    """Pools one box like torchvision's `roi_pool`: values, and the cell of each maximum or None."""
    top, left, bottom, right = (int(math.copysign(math.floor(abs(v * scale) + 0.5), v)) for v in box.astype(float))
    bins = np.float32([max(bottom - top + 1, 1), max(right - left + 1, 1)]) / np.float32(output_size)
    values = np.zeros((*output_size, image.shape[2]), np.float32)
    cells = np.empty(values.shape, object)
    for i, j, c in np.ndindex(*values.shape):
        rows = (int(np.floor(np.float32(i) * bins[0])) + top, int(np.ceil(np.float32(i + 1) * bins[0])) + top)
        columns = (int(np.floor(np.float32(j) * bins[1])) + left, int(np.ceil(np.float32(j + 1) * bins[1])) + left)
        inside = [
            (y, x)
            for y in range(max(rows[0], 0), min(rows[1], image.shape[0]))
            for x in range(max(columns[0], 0), min(columns[1], image.shape[1]))
        ]
        if inside:
            cells[i, j, c] = max(inside, key=lambda cell: image[(*cell, c)])
            values[i, j, c] = image[(*cells[i, j, c], c)]
    return values, cells


def test_values_and_gradients_equal_a_loop_over_cells_with_ties(rng):
    features = np.maximum(rng.integers(-2, 3, (2, 12, 15, 3)), 0).astype(np.float32)
    boxes = np.stack([BOXES, BOXES[::-1]])
    upstream = rng.normal(size=(2, len(BOXES), 3, 2, 3)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])])
    def run(features, boxes):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_pool(features, boxes, output_size=(3, 2), spatial_scale=0.25)
        return pooled, tape.gradient(pooled, features, upstream)

    pooled, gradient = run(features, boxes)
    expected = np.zeros_like(features)
    for image, number in np.ndindex(2, len(BOXES)):
        values, cells = reference(features[image], boxes[image, number], (3, 2), 0.25)
        np.testing.assert_array_equal(pooled[image, number], values)
        for place in np.ndindex(*values.shape):
            if cells[place] is not None:
                expected[(image, *cells[place], place[2])] += upstream[(image, number, *place)]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("case", range(2))
@pytest.mark.parametrize("values_at_once", [2**25, 1000])
def test_values_and_gradients_equal_torchvision(case, values_at_once, monkeypatch):
    monkeypatch.setattr(importlib.import_module("kerasdet.ops.roi_pool"), "_MAX_VALUES_PER_CHUNK", values_at_once)
    values = golden(f"roi_pool_{case}_")
    boxes, places = in_batch(values)
    features = tf.constant(values["input_nhwc"])
    with tf.GradientTape() as tape:
        tape.watch(features)
        size, scale = tuple(values["output_size"].tolist()), values["spatial_scale"].item()
        pooled = tf.gather_nd(roi_pool(features, boxes, output_size=size, spatial_scale=scale), places)
    np.testing.assert_array_equal(pooled, values["output_nhwc"])
    gradient = tape.gradient(pooled, features, values["grad_output_nhwc"])
    np.testing.assert_allclose(gradient, values["grad_input_nhwc"], atol=1e-5)


def test_zero_boxes_give_an_empty_result_and_zero_gradients():
    features = tf.ones([2, 4, 5, 3])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = roi_pool(features, tf.zeros([2, 0, 4]), output_size=(2, 3), spatial_scale=0.5)
    assert pooled.shape == (2, 0, 2, 3, 3)
    np.testing.assert_array_equal(tape.gradient(pooled, features), tf.zeros_like(features))
