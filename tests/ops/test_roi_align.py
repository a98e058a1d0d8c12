import importlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.ops import multilevel_roi_align, multilevel_roi_pool, roi_align

pytestmark = pytest.mark.usefixtures("implementation")


def bilinear(image, y, x):
    """Samples an image (H, W, C) like detectron2's `bilinear_interpolate`."""
    height, width = image.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = image[top, left] * (1 - dx) + image[top, right] * dx
    below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
    return above * (1 - dy) + below * dy


def reference(image, box, output_size, scale, sampling_ratio, aligned):
    """Pools one box (4,) of an image (H, W, C) sample by sample."""
    box = np.asarray(box, np.float64) * scale - (0.5 if aligned else 0)
    size = box[2:] - box[:2] if aligned else np.maximum(box[2:] - box[:2], 1)
    samples = [sampling_ratio or math.ceil(length / bins) for length, bins in zip(size, output_size, strict=True)]
    step = size / output_size
    result = np.zeros((*output_size, image.shape[2]))
    for i in range(output_size[0]):
        for j in range(output_size[1]):
            for k in range(samples[0]):
                for m in range(samples[1]):
                    y = box[0] + (i + (k + 0.5) / samples[0]) * step[0]
                    x = box[1] + (j + (m + 0.5) / samples[1]) * step[1]
                    result[i, j] += bilinear(image, y, x) / (samples[0] * samples[1])
    return result


BOXES = np.array(
    [
        [0, 0, 0, 0],  # padding
        [-9.3, -7.1, 21.7, 30.2],
        [3.2, 4.1, 4.0, 5.2],  # under a pixel
        [8, 12, 12, 16],  # one cell
        [40.3, 1.2, 90.1, 80.3],  # beyond the border
        [200, 200, 240, 230],  # outside
        [17.3, 0.5, 18.1, 59.5],  # long and thin
        [0, 0, 48, 60],
    ],
    np.float32,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_values_equal_a_loop_over_samples(rng, aligned, sampling_ratio):
    features = rng.normal(size=(2, 12, 15, 3)).astype(np.float32)
    boxes = np.stack([BOXES, BOXES[::-1]])
    options = {"output_size": (3, 2), "spatial_scale": 0.25, "sampling_ratio": sampling_ratio, "aligned": aligned}
    pooled = roi_align(features, boxes, **options)
    for image in range(2):
        for number in range(len(BOXES)):
            expected = reference(features[image], boxes[image, number], (3, 2), 0.25, sampling_ratio, aligned)
            np.testing.assert_allclose(pooled[image, number], expected, atol=2e-6)


def golden(case):
    data = np.load(shared("reference/ops.npz"))
    values = {name.removeprefix(case): data[name] for name in data if name.startswith(case)}
    values["boxes"] = values["boxes_xyxy"][:, [1, 0, 3, 2]]
    return values


def in_batch(values):
    """Groups boxes by image: boxes (B, P, 4) with padding, and the image and position of each box."""
    image = values["batch_index"]
    place = np.array([np.sum(image[:i] == image[i]) for i in range(len(image))])
    boxes = np.zeros((len(values["input_nhwc"]), place.max() + 1, 4), np.float32)
    boxes[image, place] = values["boxes"]
    return boxes, np.stack([image, place], 1)


@pytest.mark.parametrize("case", range(6))
def test_values_and_gradients_equal_torchvision_and_detectron2(case):
    values = golden(f"roi_align_{case}_")
    boxes, places = in_batch(values)

    @tf.function(input_signature=[tf.TensorSpec([None] * 4), tf.TensorSpec([None, None, 4])])
    def run(features, boxes):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(
                features,
                boxes,
                output_size=tuple(values["output_size"].tolist()),
                spatial_scale=values["spatial_scale"].item(),
                sampling_ratio=values["sampling_ratio"].item(),
                aligned=values["aligned"].item(),
            )
            pooled = tf.gather_nd(pooled, places)
        return pooled, tape.gradient(pooled, features, values["grad_output_nhwc"])

    pooled, gradient = run(values["input_nhwc"], boxes)
    np.testing.assert_allclose(pooled, values["output_nhwc"], atol=2e-5)
    np.testing.assert_allclose(gradient, values["grad_input_nhwc"], atol=3e-5)


def test_values_equal_published_ones():
    for case in json.loads(shared("reference/known_answers.json").read_text())["roi_align"]:
        image = np.arange(25).reshape(5, 5) if isinstance(case["x"], str) else np.array(case["x"])
        image = tf.constant(image[None, ..., None], tf.float32)
        box = np.array([[[case["roi"][i] for i in (1, 0, 3, 2)]]], np.float32)
        with tf.GradientTape() as tape:
            tape.watch(image)
            pooled = roi_align(
                image,
                box,
                output_size=case["out"],
                spatial_scale=1.0,
                sampling_ratio=case["sampling_ratio"],
                aligned=case["aligned"],
            )
        np.testing.assert_allclose(pooled[0, 0, ..., 0], case["y"], atol=1e-5)
        if "grad_of_sum" in case:
            np.testing.assert_allclose(tape.gradient(pooled, image)[0, ..., 0], case["grad_of_sum"], atol=1e-6)


def test_values_equal_the_onnx_reference():
    vectors = json.loads(shared("reference/onnx_vectors.json").read_text())
    cases = [v for v in vectors if v["attrs"]["op"] == "RoiAlign" and v["attrs"].get("mode", "avg") == "avg"]
    assert cases
    for case in cases:
        attributes, (image, boxes, _) = case["attrs"], case["inputs"]
        pooled = roi_align(
            np.transpose(image, (0, 2, 3, 1)).astype(np.float32),
            np.array(boxes, np.float32)[None, :, [1, 0, 3, 2]],
            output_size=(attributes["output_height"], attributes["output_width"]),
            spatial_scale=attributes["spatial_scale"],
            sampling_ratio=attributes["sampling_ratio"],
            aligned=attributes.get("coordinate_transformation_mode", "half_pixel") == "half_pixel",
        )
        np.testing.assert_allclose(np.moveaxis(pooled[0].numpy(), -1, 1), case["outputs"][0], atol=1e-4)


def test_multilevel_values_equal_the_reference():
    values = golden_pyramid()
    pooled = multilevel_roi_align(values["pyramid"], values["boxes"], output_size=7)
    np.testing.assert_allclose(pooled[0], values["output"][:20], atol=1e-5)
    np.testing.assert_allclose(pooled[1, :15], values["output"][20:], atol=1e-5)


def golden_pyramid():
    data = np.load(shared("reference/ops.npz"))
    boxes = np.zeros((2, 20, 4), np.float32)
    for image in range(2):
        xyxy = data[f"multilevel_boxes_{image}_xyxy"]
        boxes[image, : len(xyxy)] = xyxy[:, [1, 0, 3, 2]]
    pyramid = {f"p{level}": data[f"multilevel_feature_p{level}_nhwc"] for level in range(2, 6)}
    return {"pyramid": pyramid, "boxes": boxes, "output": data["multilevel_output_nhwc"]}


@pytest.mark.parametrize(
    ("side", "epsilon", "level"),
    [
        (1, 0, 2),
        (0, 0, 2),
        (111.9999, 0, 2),
        (112, 0, 3),
        (224, 0, 4),
        (223.9999, 0, 3),
        (223.9999, 1e-6, 4),
        (448, 0, 5),
        (9000, 0, 5),
    ],
)
def test_box_size_determines_the_level(side, epsilon, level):
    pyramid = {f"p{i}": tf.fill([1, 2, 2, 1], float(i)) for i in range(2, 6)}
    box = tf.constant([[[0.0, 0.0, side, side]]])
    pooled = multilevel_roi_align(pyramid, box, output_size=1, sampling_ratio=1, level_epsilon=epsilon)
    assert pooled[0, 0, 0, 0, 0] in (level, 0)  # 0 outside the map
    gradient_of = _levels_with_gradient(pyramid, box, epsilon)
    assert gradient_of in ([f"p{level}"], [])


def _levels_with_gradient(pyramid, box, epsilon):
    with tf.GradientTape() as tape:
        tape.watch(pyramid)
        pooled = multilevel_roi_align(pyramid, box, output_size=1, sampling_ratio=2, level_epsilon=epsilon)
    return [name for name, value in tape.gradient(pooled, pyramid).items() if np.any(value)]


@pytest.mark.parametrize("op", [multilevel_roi_align, multilevel_roi_pool])
def test_missing_level_raises(op):
    with pytest.raises(ValueError, match=f"The pyramid of {op.__name__} has the levels p2, p4: .* without a gap"):
        op({"p2": tf.ones([1, 4, 4, 1]), "p4": tf.ones([1, 1, 1, 1])}, tf.ones([1, 1, 4]), output_size=1)


@pytest.mark.parametrize("op", [multilevel_roi_align, multilevel_roi_pool])
def test_order_of_the_levels_does_not_matter(op):
    pyramid = {f"p{level}": tf.fill([1, 64 >> level, 64 >> level, 1], float(level)) for level in (2, 3, 4)}
    boxes = tf.constant([[[0.0, 0, 60, 60], [0, 0, 250, 250]]])
    expected = op(pyramid, boxes, output_size=1)
    np.testing.assert_array_equal(op(dict(reversed(pyramid.items())), boxes, output_size=1), expected)


def test_zero_boxes_give_an_empty_result_and_zero_gradients():
    features = tf.ones([2, 4, 5, 3])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = roi_align(features, tf.zeros([2, 0, 4]), output_size=(2, 3), spatial_scale=0.5)
    assert pooled.shape == (2, 0, 2, 3, 3)
    np.testing.assert_array_equal(tape.gradient(pooled, features), tf.zeros_like(features))


@pytest.mark.parametrize("bad", [np.nan, 1e9, np.inf])
def test_non_finite_box_does_not_change_other_boxes(rng, bad):
    features = rng.normal(size=(1, 6, 7, 2)).astype(np.float32)
    boxes = np.array([[[1, 1, 5, 4], [0, 0, bad, bad]]], np.float32)
    pooled = roi_align(features, boxes, output_size=2, spatial_scale=1.0)
    np.testing.assert_allclose(pooled[0, 0], reference(features[0], boxes[0, 0], (2, 2), 1, 0, True), atol=1e-6)


def test_bin_of_whole_cells_has_no_extra_sample():
    features = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype(np.float32)
    run = tf.function(lambda x, b: roi_align(x, b, output_size=7, spatial_scale=1.0, aligned=False))
    for size in range(7, 57, 7):
        box = np.array([2.3, 1.7, 2.3 + size, 1.7 + size], np.float32)
        start = box[:2]
        if np.any(box[2:] - start != size):
            continue
        expected = reference(features[0], box, (7, 7), 1, size // 7, False)
        np.testing.assert_allclose(run(features, box[None, None])[0, 0], expected, atol=2e-5)


def test_half_precision_features_are_pooled_in_float32(rng):
    features = tf.cast(rng.normal(size=(1, 6, 7, 2)), tf.bfloat16)
    pooled = roi_align(features, BOXES[None], output_size=2, spatial_scale=0.25)
    assert pooled.dtype == tf.bfloat16
    exact = roi_align(tf.cast(features, tf.float32), BOXES[None], output_size=2, spatial_scale=0.25)
    np.testing.assert_array_equal(pooled, tf.cast(exact, tf.bfloat16))


def test_chunk_size_does_not_change_the_result(rng, monkeypatch):
    features = tf.constant(rng.normal(size=(2, 12, 15, 3)), tf.float32)
    boxes = np.stack([BOXES, BOXES[::-1]])

    def run():
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, boxes, output_size=3, spatial_scale=0.25)
            squares = pooled**2
        return pooled, tape.gradient(squares, features)

    pooled, gradient = run()
    monkeypatch.setattr(importlib.import_module("kerasdet.ops.roi_align"), "_MAX_CELLS_PER_CHUNK", 500)
    chunked, chunked_gradient = run()
    np.testing.assert_allclose(chunked, pooled, atol=1e-6)
    np.testing.assert_allclose(chunked_gradient, gradient, atol=1e-5)


def test_gradient_sums_every_update():
    features = tf.zeros([1, 8, 8, 4])
    boxes = tf.tile([[[0.0, 0.0, 8.0, 8.0]]], [1, 3000, 1])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = roi_align(features, boxes, output_size=4, spatial_scale=1.0)
    np.testing.assert_allclose(tape.gradient(pooled, features), np.full([1, 8, 8, 4], 3000 / 4), rtol=1e-5)


PEAK = """
import resource, sys
import tensorflow as tf
from kerasdet import ops
features = tf.random.normal([1, 200, 336, 256])
boxes = tf.tile([[[400.2, 20.3, 401.2, 1320.3], [2.1, 7.2, 790.1, 8.2]]], [1, 50, 1])
def run(boxes):
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = ops.roi_align(features, boxes, output_size=14, spatial_scale=0.25)
    return tf.reduce_sum(tape.gradient(pooled, features)).numpy()
with ops.implementation(sys.argv[1]):
    run(boxes[:, :2] / 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(boxes)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("implementation", ["tensorflow", "compiled"], indirect=True)
def test_long_thin_boxes_use_little_memory(implementation):
    run = subprocess.run([sys.executable, "-c", PEAK, implementation], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 300  # MiB; the grid of samples would take 100 * 14 * 14 * 24 * 256 floats, 460 MiB
