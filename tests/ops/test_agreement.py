"""Compares the compiled CPU and GPU ops with stock ops and scalar NumPy on more than a thousand random cases."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ops.test_deform_conv import reference as scalar_deform_conv
from ops.test_nms import scalar_nms
from ops.test_roi_align import reference as scalar_roi_align

from kerasdet import ops


@pytest.fixture
def cases(rng):
    """Returns the generator of random cases."""
    return rng


def result_and_gradients(function, arguments):
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        result = function(*arguments)
        loss = tf.reduce_sum(tf.sin(result)) if isinstance(result, tf.Tensor) else None
    return result, [] if loss is None else tape.gradient(loss, arguments)


def with_stock_ops(kernels, function, *arguments):
    """Yields a name, results and gradients of the stock ops, and those of the kernels, for each kind of kernels."""
    with ops.implementation("tensorflow"):
        expected = result_and_gradients(function, arguments)
    for name, kernel in kernels.items():
        with kernel():
            yield name, expected, result_and_gradients(function, arguments)


def wild_boxes(rng, shape, extent):
    """Makes usual boxes and every odd kind: empty, inverted, under a pixel, outside, long and thin, non-finite."""
    low = rng.uniform(-0.2, 1, (*shape, 2)) * extent
    boxes = np.concatenate([low, low + rng.uniform(0, 0.6, (*shape, 2)) * extent], -1)
    odd = rng.integers(0, 30, shape)
    boxes[odd == 0, 2:] = boxes[odd == 0, :2]
    boxes[odd == 1] = boxes[odd == 1][:, [2, 3, 0, 1]]
    boxes[odd == 2, 2:] = boxes[odd == 2, :2] + 0.3
    boxes[odd == 3] += 10 * extent
    boxes[odd == 4, 3] = boxes[odd == 4, 1] + 0.1
    boxes[odd == 5, rng.integers(0, 4)] = rng.choice([np.nan, np.inf, -np.inf])
    boxes[odd == 6] = 0
    return boxes.astype(np.float32)


def test_nms_of_odd_boxes_agrees(kernels, cases):
    for case in range(400):
        batch, count = int(cases.integers(0, 3)), int(cases.integers(0, 60))
        boxes = tf.constant(np.round(wild_boxes(cases, (batch, count), 30) * 4) / 4)
        scores = cases.integers(-3, 12, (batch, count)).astype(np.float32) / 10
        scores[cases.random(scores.shape) < 0.03] = cases.choice([np.nan, np.inf, -np.inf])
        options = {
            "iou_threshold": float(cases.choice([0, 0.3, 0.5, 0.7, 1])),
            "max_detections": int(cases.integers(1, 70)),
        }
        options["score_threshold"] = float(cases.choice([-math.inf, 0, 0.5]))
        for name, (expected, _), (found, _) in with_stock_ops(
            kernels, lambda b, s=scores, o=options: ops.nms(b, s, **o), boxes
        ):
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"{name} {case}")


def test_class_aware_nms_of_random_boxes_agrees(kernels, cases):
    for _ in range(300):
        count, classes = int(cases.integers(1, 80)), int(cases.integers(1, 6))
        low = cases.uniform(0, 30, (count, 2))
        boxes = np.concatenate([low, low + cases.uniform(1, 20, (count, 2))], 1).astype(np.float32)
        scores, class_ids = cases.random(count).astype(np.float32), cases.integers(-1, classes, count)
        expected, margin = scalar_nms(boxes.astype(float), scores, class_ids, 0.5, count)
        if margin < 1e-6:
            continue
        for name, kernel in kernels.items():
            with kernel():
                indices, counts = ops.nms(
                    boxes[None], scores[None], class_ids[None], iou_threshold=0.5, max_detections=count
                )
            assert indices[0, : counts[0]].numpy().tolist() == expected, name


def test_nms_of_many_boxes_with_ties_agrees(kernels, rng):
    """Uses more candidates than the kernel sorts at once, with ties and close scores."""
    for scores in (rng.random(40_000), rng.integers(0, 3, 40_000) / 2, 0.5 + rng.random(40_000) * 1e-3):
        low = rng.uniform(0, 400, (40_000, 2))
        boxes = tf.constant(np.concatenate([low, low + 30], 1)[None], tf.float32)
        for name, (expected, _), (found, _) in with_stock_ops(
            kernels, lambda b, s=scores: ops.nms(b, s[None], iou_threshold=0.5, max_detections=300), boxes
        ):
            np.testing.assert_array_equal(found[0], expected[0], err_msg=name)


def random_pyramid(rng, channels):
    batch, height, width = (int(n) for n in rng.integers(1, [3, 40, 40]))
    sizes = [(math.ceil(height / 2**i), math.ceil(width / 2**i)) for i in range(3)]
    return [tf.constant(rng.normal(size=(batch, *size, channels)), tf.float32) for size in sizes]


def test_roi_align_of_odd_boxes_agrees(kernels, cases):
    for case in range(250):
        maps = random_pyramid(cases, int(cases.choice([1, 3, 16, 20])))
        boxes = wild_boxes(cases, (maps[0].shape[0], int(cases.integers(0, 12))), 4.0 * max(maps[0].shape[1:3]))
        options = {"output_size": tuple(cases.integers(1, 5, 2).tolist()), "sampling_ratio": int(cases.integers(0, 4))}
        options |= {"aligned": bool(cases.integers(0, 2))}

        def pooled(*maps, b=boxes, o=options):
            pyramid = {f"p{level}": x for level, x in enumerate(maps, 2)}
            return ops.multilevel_roi_align(pyramid, b, canonical_size=60, **o)

        for name, (expected, gradients), (found, found_gradients) in with_stock_ops(kernels, pooled, *maps):
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{name} {case}")
            for one, other in zip(gradients, found_gradients, strict=True):
                np.testing.assert_allclose(other, one, atol=1e-4, err_msg=f"{name} {case}")


def test_roi_align_of_random_boxes_equals_a_loop_over_samples(kernels, cases):
    for _ in range(150):
        image = cases.normal(size=cases.integers(1, [20, 20, 6])).astype(np.float32)
        low = cases.uniform(-10, 60, 2)
        box = np.concatenate([low, low + cases.uniform(0, 60, 2)]).astype(np.float32)
        size, ratio, aligned = (
            tuple(cases.integers(1, 4, 2).tolist()),
            int(cases.integers(1, 4)),
            bool(cases.integers(0, 2)),
        )
        expected = scalar_roi_align(image, box, size, 0.25, ratio, aligned)
        options = {"output_size": size, "spatial_scale": 0.25, "sampling_ratio": ratio, "aligned": aligned}
        for name, kernel in kernels.items():
            with kernel():
                found = ops.roi_align(image[None], box[None, None], **options)
            np.testing.assert_allclose(found[0, 0], expected, atol=2e-5, err_msg=name)


def random_convolution(rng):
    """Makes arguments and options of `deform_conv2d`, with offsets from small to far outside."""
    groups, deformable_groups, taps = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(1, 4))
    channels = groups * deformable_groups * int(rng.integers(1, 10))
    batch, height, width, rows, columns = (int(n) for n in rng.integers(1, [3, 8, 8, 6, 6]))
    shape = (batch, rows, columns, deformable_groups * taps * taps)
    arguments = [
        rng.normal(size=(batch, height, width, channels)),
        rng.normal(size=(taps, taps, channels // groups, groups * int(rng.integers(1, 4)))),
        rng.normal(0, rng.choice([0.3, 3, 30]), (*shape[:3], 2 * shape[3])),
        rng.uniform(size=shape),
    ][: int(rng.integers(3, 5))]
    options = {"strides": int(rng.integers(1, 3)), "padding": int(rng.integers(0, 3))}
    options |= {"dilations": int(rng.integers(1, 3)), "groups": groups, "deformable_groups": deformable_groups}
    return [tf.constant(value, tf.float32) for value in arguments], options


def test_deform_conv_of_random_shapes_agrees(kernels, cases):
    for case in range(150):
        arguments, options = random_convolution(cases)
        for name, (expected, gradients), (found, found_gradients) in with_stock_ops(
            kernels, lambda *arguments, o=options: ops.deform_conv2d(*arguments, **o), *arguments
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5, err_msg=f"{name} {case}")
            for one, other in zip(gradients, found_gradients, strict=True):
                np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4, err_msg=f"{name} {case}")


def test_deform_conv_of_random_shapes_equals_a_loop_over_taps(kernels, cases):
    for _ in range(20):
        arguments, options = random_convolution(cases)
        values = [argument.numpy().astype(float) for argument in arguments]
        mask = values[3] if len(values) == 4 else np.ones_like(values[2][..., ::2])
        expected = scalar_deform_conv(*values[:3], mask, *options.values())
        for name, kernel in kernels.items():
            with kernel():
                found = ops.deform_conv2d(*arguments, **options)
            np.testing.assert_allclose(found, expected, atol=5e-5, err_msg=name)


def test_non_finite_offsets_sample_zero(kernels, rng):
    arguments, options = random_convolution(rng)
    offsets = arguments[2].numpy()
    offsets.flat[::3], offsets.flat[1::7] = np.nan, np.inf
    arguments[2] = tf.constant(offsets)
    for name, (expected, _), (found, _) in with_stock_ops(
        kernels, lambda *a: ops.deform_conv2d(*a, **options), *arguments
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_rounds_once(kernels, rng, dtype):
    features = tf.cast(rng.normal(size=(2, 9, 11, 35)), dtype)
    boxes = wild_boxes(rng, (2, 40), 40.0)
    options = {"output_size": 3, "spatial_scale": 0.25, "sampling_ratio": 2}
    ulp = 2.0 ** (-10 if dtype == tf.float16 else -7)
    for name, (expected, [gradient]), (found, [found_gradient]) in with_stock_ops(
        kernels, lambda x: tf.cast(ops.roi_align(x, boxes, **options), tf.float32), features
    ):
        np.testing.assert_allclose(found, expected, rtol=ulp, atol=1e-6, err_msg=name)
        assert found_gradient.dtype == dtype
        gradient, found_gradient = (tf.cast(each, tf.float32) for each in (gradient, found_gradient))
        np.testing.assert_allclose(found_gradient, gradient, rtol=ulp, atol=1e-3, err_msg=name)
