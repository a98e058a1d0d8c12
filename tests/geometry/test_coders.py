import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.geometry.anchors import point_squares
from kerasdet.geometry.coders import DeltaCoder, DistanceCoder, centerness

YXYX = [1, 0, 3, 2]


def random_boxes(rng, count):
    corner = rng.uniform(-20, 300, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(4, 200, (count, 2))], -1).astype(np.float32)


@pytest.mark.parametrize("name,weights", [("1111", (1, 1, 1, 1)), ("10_10_5_5", (10, 10, 5, 5))])
def test_equals_detectron2(name, weights):
    coder = DeltaCoder(weights)
    with np.load(shared("reference/geometry.npz")) as golden:
        case = {
            key.removeprefix(f"delta_coder_{name}_"): golden[key][:, YXYX]
            for key in golden.files
            if key.startswith(f"delta_coder_{name}_")
        }
    deltas = coder.encode(case["boxes_xyxy"], case["anchors_xyxy"])
    np.testing.assert_allclose(deltas, case["deltas_dxdydwdh"], rtol=1e-4, atol=1e-5)
    decoded = coder.decode(case["deltas_dxdydwdh"], case["anchors_xyxy"])
    np.testing.assert_allclose(decoded, case["decoded_xyxy"], rtol=1e-5, atol=1e-3)
    clamped = coder.decode(case["clamped_deltas"], case["anchors_xyxy"])
    np.testing.assert_allclose(clamped, case["clamped_decoded_xyxy"], rtol=1e-5, atol=1e-2)


def test_deltas_equal_a_hand_computed_case():
    anchor, box = tf.constant([10.0, 20, 20, 40]), tf.constant([13.0, 30, 23, 80])
    deltas = DeltaCoder((1, 2, 3, 4)).encode(box, anchor)  # centres (15, 30) and (18, 55)
    np.testing.assert_allclose(deltas, [0.3, 2.5, 0, 4 * math.log(2.5)], rtol=1e-6)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 5, 3, 2)])
def test_decode_inverts_encode(rng, weights):
    coder = DeltaCoder(weights)
    anchors, boxes = random_boxes(rng, 100), random_boxes(rng, 300).reshape(3, 100, 4)
    np.testing.assert_allclose(coder.decode(coder.encode(boxes, anchors), anchors), boxes, atol=2e-3)


def test_zero_deltas_decode_to_the_anchor(rng):
    anchors = random_boxes(rng, 20)
    np.testing.assert_allclose(DeltaCoder().decode(tf.zeros([20, 4]), anchors), anchors, atol=1e-4)


def test_decode_bounds_the_scale():
    anchor = tf.constant([[0.0, 0, 16, 16]])
    y1, x1, y2, x2 = DeltaCoder((1, 1, 1, 0.5)).decode(tf.constant([[0.0, 0, 1e6, 100]]), anchor).numpy()[0]
    assert y2 - y1 == pytest.approx(1000, rel=1e-5) and x2 - x1 == pytest.approx(1000, rel=1e-5)
    y1, x1, y2, x2 = DeltaCoder(max_log_scale=math.log(2)).decode(tf.constant([[0.0, 0, -50, 50]]), anchor).numpy()[0]
    assert y2 - y1 == pytest.approx(0, abs=1e-5) and x2 - x1 == pytest.approx(32, rel=1e-5)


def test_lower_bound_of_scales_is_optional():
    deltas, anchor = tf.constant([[0.0, 0, -50, -1]]), tf.constant([[0.0, 0, 8, 8]])
    sizes = [
        np.diff(DeltaCoder(min_log_scale=bound).decode(deltas, anchor)[0].numpy().reshape(2, 2), axis=0)[0]
        for bound in (None, -math.log(2))
    ]
    np.testing.assert_allclose(sizes, [[0, 8 / math.e], [4, 4]], atol=1e-5)


def test_decode_has_no_gradient_beyond_the_bound(rng):
    deltas = tf.Variable([[0.1, -0.2, 0.3, 9.0]])
    with tf.GradientTape() as tape:
        box = DeltaCoder().decode(deltas, tf.constant([[0.0, 0, 10, 20]]))
        height, width = box[0, 2] - box[0, 0], box[0, 3] - box[0, 1]
    gradient = tape.gradient([height, width], deltas).numpy()[0]
    np.testing.assert_allclose(gradient, [0, 0, 10 * math.exp(0.3), 0], atol=1e-4)  # none beyond the bound


def test_config_round_trip():
    coder = DeltaCoder((1, 2, 3, 4), 2.0)
    assert coder.get_config() == {"weights": (1, 2, 3, 4), "max_log_scale": 2.0, "min_log_scale": None}
    assert DeltaCoder.from_config(coder.get_config()).get_config() == coder.get_config()


# -- distances


def test_distances_equal_a_hand_computed_case():
    square, box = tf.constant([8.0, 16, 16, 24]), tf.constant([4.0, 10, 20, 60])  # the point is (12, 20)
    pixels, strides = DistanceCoder(normalize=False), DistanceCoder()
    np.testing.assert_allclose(pixels.encode(box, square), [8, 10, 8, 40])
    np.testing.assert_allclose(strides.encode(box, square), [1, 1.25, 1, 5])
    np.testing.assert_allclose(pixels.decode(tf.constant([1.0, 2, 3, 4]), square), [11, 18, 15, 24])
    np.testing.assert_allclose(strides.decode(tf.constant([1.0, 2, 3, 4]), square), [4, 4, 36, 52])


@pytest.mark.parametrize("normalize", [True, False])
def test_decode_inverts_encode_of_distances(rng, normalize):
    coder = DistanceCoder(normalize)
    squares, boxes = random_boxes(rng, 100), random_boxes(rng, 300).reshape(3, 100, 4)
    np.testing.assert_allclose(coder.decode(coder.encode(boxes, squares), squares), boxes, atol=1e-3)


@pytest.mark.parametrize("center_sampling", [0, 1])
def test_distances_and_centerness_equal_the_reference(center_sampling):
    grids = {f"p{i}": (512 // 2**i, 640 // 2**i) for i in range(3, 8)}
    squares = np.concatenate(list(point_squares()(grids, (512, 640)).values()))
    with np.load(shared("reference/geometry.npz")) as golden:
        prefix = f"fcos_targets_center_sampling_{center_sampling}_"
        case = {key.removeprefix(prefix): golden[key] for key in golden.files if key.startswith(prefix)}
    positive = case["matched_gt"] >= 0
    boxes = case["gt_xyxy"][case["matched_gt"][positive]][:, YXYX]
    distances = DistanceCoder(normalize=False).encode(boxes, squares[positive])
    np.testing.assert_allclose(distances, case["ltrb"][positive][:, YXYX], rtol=1e-6)
    np.testing.assert_allclose(centerness(distances), case["centerness"][positive], rtol=1e-5)
    in_strides = DistanceCoder().encode(boxes, squares[positive])
    np.testing.assert_allclose(centerness(in_strides), case["centerness"][positive], rtol=1e-5)


def test_centerness_equals_a_hand_computed_case():
    np.testing.assert_allclose(centerness(tf.constant([[3.0, 7, 3, 7], [1, 2, 4, 8], [0, 1, 2, 1]])), [1, 0.25, 0])


def test_activate_makes_raw_distances_positive():
    raw = tf.constant([-1.0, 0, 2])
    np.testing.assert_allclose(DistanceCoder().activate(raw), [0, 0, 2])
    np.testing.assert_allclose(DistanceCoder(normalize=False).activate(raw), np.exp([-1, 0, 2]), rtol=1e-6)
