import numpy as np
import pytest
import tensorflow as tf

from kerasdet.geometry import keypoints as ops

NAMES = ("nose", "left_eye", "right_eye", "tail_left", "tail_right", "left_only")


def points(rng, *shape):
    visibility = rng.integers(0, 3, (*shape, 1))
    return (np.concatenate([rng.uniform(0, 40, (*shape, 2)), visibility], -1) * (visibility > 0)).astype(np.float32)


def cubic(x):
    x = abs(x)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1
    return ((-0.75 * x + 3.75) * x - 6) * x + 3 if x < 2 else 0.0


def bicubic(image, height, width):
    """Resizes like PyTorch: a = -0.75, no antialiasing, indices clipped to the image."""
    result = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        y, x = (i + 0.5) * image.shape[0] / height - 0.5, (j + 0.5) * image.shape[1] / width - 0.5
        for v in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
            for u in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                value = image[np.clip(v, 0, image.shape[0] - 1), np.clip(u, 0, image.shape[1] - 1)]
                result[i, j] += cubic(y - v) * cubic(x - u) * value
    return result


def test_flip_order_swaps_left_and_right_names():
    order = ops.flip_order(NAMES)
    assert order == (0, 2, 1, 4, 3, 5)
    assert ops.flip_order(()) == ()
    for names in (
        ("nose", "Eye_L", "Eye_R"),
        ("bright", "l_eye", "r_eye"),
        ("L", "LEar", "REar"),
        ("", "EarLeft", "EarRight"),
    ):
        assert ops.flip_order(names) == (0, 2, 1)
    assert ops.flip_order(("left_eye", "Left_Eye", "a", "A")) == (0, 1, 2, 3)


def test_flips_swap_sides_and_keep_unlabelled_keypoints_zero(rng):
    order, before = ops.flip_order(NAMES), points(rng, 3, 6)
    after = ops.flip_left_right(before, 40, order).numpy()
    for i, j in np.ndindex(3, 6):
        y, x, visibility = before[i, order[j]]
        np.testing.assert_array_equal(after[i, j], [y, 40 - x, visibility] if visibility else [0, 0, 0])
    after = ops.flip_up_down(before, 50, order).numpy()
    np.testing.assert_allclose(after[..., 0], (50 - before[:, order, 0]) * (before[:, order, 2] > 0))
    np.testing.assert_array_equal(after[..., 1:], before[:, order, 1:])
    for flip in (ops.flip_left_right, ops.flip_up_down):
        np.testing.assert_allclose(flip(flip(before, 40, order), 40, order), before, atol=1e-5)


def test_scale_multiplies_coordinates_and_keeps_visibility(rng):
    before = points(rng, 2, 3, 4)
    after = ops.scale(before, np.float32([[2, 3], [0.5, 1]]))
    np.testing.assert_allclose(after[1], before[1] * [0.5, 1, 1])
    np.testing.assert_allclose(after[0], before[0] * [2, 3, 1])


def test_heatmap_targets_equal_a_scalar_loop(rng):
    keypoints, rois = points(rng, 2, 20, 5), rng.uniform(0, 30, (2, 20, 4)).astype(np.float32)
    rois[..., 2:] = rois[..., :2] + rng.uniform(1, 30, (2, 20, 2))
    cells, valid = ops.heatmap_targets(keypoints, rois, size=14)
    assert cells.dtype == tf.int32 and valid.dtype == tf.bool
    for b, p, j in np.ndindex(2, 20, 5):
        (y, x, visibility), (y1, x1, y2, x2) = keypoints[b, p, j].tolist(), rois[b, p].tolist()
        row, column = np.floor((y - y1) * 14 / (y2 - y1)), np.floor((x - x1) * 14 / (x2 - x1))
        inside = visibility > 0 and 0 <= row < 14 and 0 <= column < 14
        assert bool(valid[b, p, j]) == inside
        assert int(cells[b, p, j]) == (row * 14 + column if inside else 0)
    assert 10 < valid.numpy().sum() < 190


def test_keypoint_on_the_far_border_belongs_to_the_last_cell():
    keypoints = np.float32([[[4, 6, 2], [10, 26, 1], [10.01, 20, 2], [3.99, 20, 2], [7, 16, 0]]])
    cells, valid = ops.heatmap_targets(keypoints, np.float32([[4, 6, 10, 26]]), size=56)
    assert valid.numpy().tolist() == [[True, True, False, False, False]]
    assert cells.numpy().tolist() == [[0, 56 * 56 - 1, 0, 0, 0]]
    cells, valid = ops.heatmap_targets(keypoints[:0], np.zeros((0, 4), np.float32))
    assert cells.shape == valid.shape == (0, 5)
    _, valid = ops.heatmap_targets(np.float32([[[5, 5, 2]]]), np.float32([[3, 3, 3, 3]]))
    assert not valid.numpy().any()


@pytest.mark.parametrize("convention", ops.CONVENTIONS)
def test_keypoints_from_heatmaps_equal_a_scalar_loop(rng, convention):
    heatmaps = rng.normal(0, 2, (2, 3, 9, 9, 4)).astype(np.float32)
    rois = np.float32([[1.5, 2.25, 31.9, 14.5], [0, 0, 0.2, 3], [10, 10, 17, 33]])
    rois = np.stack([rois, rois + 3])
    read = tf.function(
        lambda h, r: ops.keypoints_from_heatmaps(h, r, convention),
        input_signature=[tf.TensorSpec([None, None, None, None, 4]), tf.TensorSpec([None, None, 4])],
    )
    found = read(heatmaps, rois).numpy()
    assert found.shape == (2, 3, 4, 3)
    for b, p, j in np.ndindex(2, 3, 4):
        heatmap, roi = heatmaps[b, p, :, :, j].astype(np.float64), rois[b, p]
        height, width = np.maximum(roi[2:] - roi[:2], 1)
        resized = bicubic(heatmap, int(np.ceil(height)), int(np.ceil(width)))
        i, k = np.unravel_index(resized.argmax(), resized.shape)
        place = (i + 0.5) * height / np.ceil(height) + roi[0], (k + 0.5) * width / np.ceil(width) + roi[1]
        np.testing.assert_allclose(found[b, p, j, :2], place, rtol=1e-5)
        best = resized.max()
        score = best if convention == "torchvision" else 1 / np.exp(heatmap - best).sum()
        np.testing.assert_allclose(found[b, p, j, 2], score, rtol=1e-4)


def test_decoding_inverts_heatmap_targets_within_one_cell():
    """A cell of this heatmap covers 1 x 2 pixels."""
    keypoint, roi = np.float32([[[23.2, 57.9, 2]]]), np.float32([[10, 20, 66, 132]])
    cells, _ = ops.heatmap_targets(keypoint, roi)
    heatmap = 20 * tf.reshape(tf.one_hot(cells[0], 56 * 56), (1, 56, 56, 1))
    y, x, _ = ops.keypoints_from_heatmaps(heatmap, roi)[0, 0].numpy()
    assert 23 <= y <= 24 and 56 <= x <= 58


def test_zero_regions_give_zero_keypoints_and_an_unknown_convention_raises():
    heatmaps, rois = np.zeros((0, 56, 56, 17), np.float32), np.zeros((0, 4), np.float32)
    assert ops.keypoints_from_heatmaps(heatmaps, rois).shape == (0, 17, 3)
    with pytest.raises(ValueError, match="expected 'detectron2' or 'torchvision'"):
        ops.keypoints_from_heatmaps(heatmaps, rois, "caffe")
