import numpy as np
import pytest
import tensorflow as tf

from kerasdet.data import RandomFlip, ResizeShortestEdge


def example_with(box, height=60, width=90):
    """Makes a black image with a white rectangle on `box`."""
    y1, x1, y2, x2 = box
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return {
        "image": tf.constant(image),
        "image_size": tf.constant([height, width]),
        "boxes": tf.constant([box], tf.float32),
        "class_ids": tf.constant([4]),
    }


def white_rectangle(image):
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def seeds(count):
    return [tf.constant([5, i]) for i in range(count)]


@pytest.mark.parametrize("kernel, dtype", [("pil", tf.uint8), ("bilinear", tf.float32), ("opencv", tf.uint8)])
@pytest.mark.parametrize("rounding", ["detectron2", "torchvision", "mmdetection"])
def test_boxes_follow_the_image(kernel, dtype, rounding):
    transforms = [ResizeShortestEdge((37, 80, 100), 140, rounding=rounding, kernel=kernel), RandomFlip(0.5, 0.5)]
    for seed in seeds(12):
        example = example_with((7, 11, 30, 64))
        for transform in transforms:
            example = transform(example, seed)
        assert example["image"].dtype == dtype
        assert example["image"].shape[:2] == example["image_size"].numpy().tolist()
        np.testing.assert_allclose(white_rectangle(example["image"]), example["boxes"][0], atol=1)
        assert example["class_ids"].numpy().tolist() == [4]


def test_boxes_scale_with_the_rounded_size():
    example = ResizeShortestEdge(37, 1000)(example_with((6, 9, 60, 90), 61, 90))
    assert example["image_size"].numpy().tolist() == [37, 55]
    expected = np.array([6 * 37 / 61, 9 * 55 / 90, 60 * 37 / 61, 55])
    np.testing.assert_allclose(example["boxes"][0], expected, rtol=1e-6)


def test_sampling_draws_from_choices_or_range():
    def heights(transform):
        return {int(transform(example_with((0, 0, 5, 5)), seed)["image_size"][0]) for seed in seeds(60)}

    assert heights(ResizeShortestEdge((20, 30, 40))) == {20, 30, 40}
    assert heights(ResizeShortestEdge((20, 23), sampling="range")) == {20, 21, 22, 23}
    example = example_with((0, 0, 5, 5))
    assert ResizeShortestEdge((20, 30, 40))(example)["image_size"].numpy().tolist() == [20, 30]
    assert ResizeShortestEdge((20,), 24)(example)["image_size"].numpy().tolist() == [16, 24]


def test_scales_multiply_both_lengths():
    def sizes(transform):
        drawn = (transform(example_with((0, 0, 5, 5)), seed)["image_size"] for seed in seeds(60))  # of 60 x 90 pixels
        return {tuple(size.numpy().tolist()) for size in drawn}

    assert sizes(ResizeShortestEdge((20,), 1000, scales=(1.0, 0.9, 1.1))) == {(18, 27), (20, 30), (22, 33)}
    assert sizes(ResizeShortestEdge((40,), 30, scales=(1.0, 2.0))) == {(20, 30), (40, 60)}
    assert sizes(ResizeShortestEdge((20, 21), 1000, "range", scales=(2.0,))) == {(40, 60), (41, 62), (42, 63)}
    unscaled = ResizeShortestEdge((20,), 1000, scales=(1.0, 0.9))(example_with((0, 0, 5, 5)))
    assert unscaled["image_size"].numpy().tolist() == [20, 30]


def test_flips_are_involutions_and_equal_numpy(rng):
    example = example_with((3, 4, 20, 50))
    example["image"] = tf.constant(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    cases = [
        (RandomFlip(1.0, 0.0), example["image"].numpy()[:, ::-1], [3, 90 - 50, 20, 90 - 4]),
        (RandomFlip(0.0, 1.0), example["image"].numpy()[::-1], [60 - 20, 4, 60 - 3, 50]),
        (RandomFlip(0.0, 0.0), example["image"].numpy(), [3, 4, 20, 50]),
    ]
    for flip, image, box in cases:
        once = flip(example, tf.constant([0, 0]))
        np.testing.assert_array_equal(once["image"], image)
        np.testing.assert_array_equal(once["boxes"][0], box)
        twice = flip(once, tf.constant([1, 1]))
        np.testing.assert_array_equal(twice["image"], example["image"])
        np.testing.assert_array_equal(twice["boxes"], example["boxes"])


def test_flips_are_independent():
    outcomes = []
    for seed in seeds(60):
        y1, x1, _, _ = RandomFlip(0.5, 0.5)(example_with((0, 0, 5, 5)), seed)["boxes"][0].numpy()
        outcomes.append((bool(x1), bool(y1)))
    assert set(outcomes) == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ResizeShortestEdge(sampling="all"), "sampling"),
        (lambda: ResizeShortestEdge(kernel="cubic"), "kernel"),
        (lambda: ResizeShortestEdge(rounding="up"), "rounding"),
        (lambda: ResizeShortestEdge((640, 672, 800), sampling="range"), "low, high"),
        (lambda: ResizeShortestEdge(()), "lengths"),
        (lambda: ResizeShortestEdge((0,)), "lengths"),
        (lambda: ResizeShortestEdge(scales=()), "factor above 0"),
        (lambda: ResizeShortestEdge(scales=(0.0,)), "factor above 0"),
        (lambda: ResizeShortestEdge((640, 800), sampling="range", scales=(0.9, 1.1)), "exactly one"),
        (lambda: RandomFlip(1.5), "expected probabilities"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_masks_and_keypoints_follow_the_image(rng):
    crop = rng.integers(0, 256, (1, 4, 4), dtype=np.uint8)
    example = example_with((10, 20, 30, 60)) | {
        "masks": tf.constant(crop),
        "keypoints": tf.constant([[[10, 20, 2], [30, 45, 1], [0, 0, 0]]], tf.float32),
        "keypoint_flip": tf.constant([0, 2, 1]),
    }
    resized = ResizeShortestEdge(30)(example)
    np.testing.assert_array_equal(resized["masks"], crop)
    np.testing.assert_array_equal(resized["keypoints"], [[[5, 10, 2], [15, 22.5, 1], [0, 0, 0]]])
    mirrored = RandomFlip(1.0)(example, tf.constant([0, 0]))
    np.testing.assert_array_equal(mirrored["masks"], crop[:, :, ::-1])
    np.testing.assert_array_equal(mirrored["keypoints"], [[[10, 70, 2], [0, 0, 0], [30, 45, 1]]])
    turned = RandomFlip(1.0, 1.0)(example, tf.constant([0, 0]))
    np.testing.assert_array_equal(turned["masks"], crop[:, ::-1, ::-1])
    np.testing.assert_array_equal(turned["keypoints"], [[[50, 70, 2], [30, 45, 1], [0, 0, 0]]])
    kept = RandomFlip(0.0)(example, tf.constant([0, 0]))
    np.testing.assert_array_equal(kept["keypoints"], example["keypoints"])
