"""Compares the numbers of transforms with references in plain NumPy, written from papers and source frameworks.

A transform draws its random numbers from its seed; the references draw the same ones and compute with scalars.
"""

import colorsys
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasdet.data.transforms import (
    CopyPaste,
    GaussianBlur,
    MixUp,
    Mosaic,
    NumpyTransform,
    PadTo,
    RandomAffine,
    RandomApply,
    RandomErasing,
    RandomFlip,
    RandomHSV,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomRotate90,
    RandomZoomOut,
    ResizeShortestEdge,
    ScaleJitter,
    UntilStep,
)
from kerasdet.data.transforms.affine import rotate_90
from kerasdet.geometry import crops

SEEDS = [tf.constant([11, i]) for i in range(20)]


def example_with(image, boxes=((2, 3, 12, 15),), **others):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "image": tf.constant(image),
        "image_size": tf.constant(image.shape[:2]),
        "boxes": tf.constant(boxes),
        "class_ids": tf.range(len(boxes)),
        "is_crowd": tf.zeros(len(boxes), tf.bool),
        **others,
    }


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)


def uniform(shape, seed):
    return tf.random.stateless_uniform(shape, seed).numpy().astype(np.float64)


def pil_resize(image, height, width):
    columns = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(columns.resize((width, height), Image.Resampling.BILINEAR))


def test_scale_jitter_equals_detectron2_resize_then_crop(image):
    cropped = 0
    for seed in SEEDS:
        found = ScaleJitter((40, 40), (0.1, 2.0))(example_with(image), seed)
        draw = uniform([3], seed)
        factor = (0.1 + draw[0] * 1.9) * min(40 / 24, 40 / 31)
        height, width = max(round(24 * factor), 1), max(round(31 * factor), 1)
        top, left = (round(max(n - 40, 0) * d) for n, d in zip((height, width), draw[1:], strict=True))
        expected = pil_resize(image, height, width)[top : top + 40, left : left + 40]
        np.testing.assert_array_equal(found["image"], expected)
        assert tuple(found["image_size"].numpy()) == expected.shape[:2]
        box = np.array([2 * height / 24 - top, 3 * width / 31 - left, 12 * height / 24 - top, 15 * width / 31 - left])
        box = np.clip(box, 0, [*expected.shape[:2]] * 2)
        if (box[2:] - box[:2]).min() >= 1:
            np.testing.assert_allclose(found["boxes"], [box], atol=1e-3)
        cropped += max(height, width) > 40
    assert 3 < cropped < 17


def test_hsv_adds_whole_numbers_to_opencvs_hsv(image):
    changed = 0
    for seed in SEEDS:
        found = RandomHSV(5, 30, 30)(example_with(image), seed)["image"].numpy()
        draw = uniform([2, 3], seed)
        change = [int((2 * d - 1) * limit) if on < 0.5 else 0 for on, d, limit in zip(*draw, (5, 30, 30), strict=True)]
        changed += any(change)
        for y, x in [(0, 0), (5, 9), (23, 30)]:
            hue, saturation, value = colorsys.rgb_to_hsv(*image[y, x] / 255)
            hue = (round(hue * 180) + change[0]) % 180
            rest = [min(max(round(v * 255) + c, 0), 255) for v, c in zip((saturation, value), change[1:], strict=True)]
            expected = np.array(colorsys.hsv_to_rgb(hue / 180, rest[0] / 255, rest[1] / 255)) * 255
            np.testing.assert_allclose(found[y, x], expected, atol=1)
    assert changed > 10


def test_padding_counts_as_image(image):
    found = PadTo((32, 40), 114)(example_with(image))
    np.testing.assert_array_equal(found["image"][:24, :31], image)
    assert (found["image"].numpy()[24:] == 114).all() and (found["image"].numpy()[:, 31:] == 114).all()
    assert found["image_size"].numpy().tolist() == [32, 40]
    np.testing.assert_array_equal(found["boxes"], [[2, 3, 12, 15]])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"PadTo got an image larger than size=\(20, 40\)"):
        PadTo((20, 40))(example_with(image))


def iou_crop_reference(transform, boxes, height, width, seed):
    """Runs torchvision's loop over the same random numbers; returns the crop as (top, left, bottom, right)."""
    seeds = tf.random.split(seed, 2)
    index = tf.random.stateless_uniform([10], seeds[0], 0, len(transform.min_ious), tf.int32).numpy()
    draw = uniform([10, transform.trials, 2, 2], seeds[1])
    low, high = transform.scale
    for i in range(10):
        min_iou = transform.min_ious[index[i]]
        if min_iou >= 1:
            return 0, 0, height, width
        for trial in draw[i]:
            new_h, new_w = (int(n * (low + d * (high - low))) for n, d in zip((height, width), trial[0], strict=True))
            if not transform.aspect_ratio[0] <= new_w / new_h <= transform.aspect_ratio[1]:
                continue
            top, left = int((height - new_h) * trial[1][0]), int((width - new_w) * trial[1][1])
            best = -1.0
            for y1, x1, y2, x2 in boxes:
                cy, cx = (y1 + y2) / 2, (x1 + x2) / 2
                if top < cy < top + new_h and left < cx < left + new_w:
                    inner = max(min(y2, top + new_h) - max(y1, top), 0) * max(min(x2, left + new_w) - max(x1, left), 0)
                    union = (y2 - y1) * (x2 - x1) + new_h * new_w - inner
                    best = max(best, inner / union)
            if best >= 0 and best >= min_iou:
                return top, left, top + new_h, left + new_w
    return 0, 0, height, width


@pytest.mark.parametrize("boxes", [((2, 3, 12, 15), (5, 20, 22, 30)), ()], ids=["two", "none"])
def test_iou_crop_equals_torchvisions_loop(image, boxes):
    transform = RandomIoUCrop(trials=10)
    windows = set()
    for seed in SEEDS:
        found = transform(example_with(image, boxes), seed)
        y1, x1, y2, x2 = window = iou_crop_reference(transform, boxes, 24, 31, seed)
        windows.add(window)
        np.testing.assert_array_equal(found["image"], image[y1:y2, x1:x2])
        kept = [b for b in boxes if y1 < (b[0] + b[2]) / 2 < y2 and x1 < (b[1] + b[3]) / 2 < x2]
        expected = [np.clip(np.subtract(b, [y1, x1, y1, x1]), 0, [y2 - y1, x2 - x1] * 2) for b in kept]
        np.testing.assert_allclose(found["boxes"], np.reshape(expected, (-1, 4)))
    assert len(windows) > 8 if boxes else windows == {(0, 0, 24, 31)}


@pytest.mark.parametrize("fill", [(123.675, 116.28, 103.53), 7.0])
def test_zoom_out_places_the_image_on_a_canvas(image, fill):
    zoomed = 0
    for seed in SEEDS:
        found = RandomZoomOut((1.0, 4.0), fill)(example_with(image), seed)
        draw = uniform([4], seed)
        if draw[0] >= 0.5:
            np.testing.assert_array_equal(found["image"], image)
            continue
        zoomed += 1
        factor = 1 + draw[1] * 3
        height, width = int(24 * factor), int(31 * factor)
        top, left = int((height - 24) * draw[2]), int((width - 31) * draw[3])
        expected = np.empty((height, width, 3), np.uint8)
        expected[:] = np.round(fill)
        expected[top : top + 24, left : left + 31] = image
        np.testing.assert_array_equal(found["image"], expected)
        np.testing.assert_array_equal(found["boxes"], [[2 + top, 3 + left, 12 + top, 15 + left]])
    assert 4 < zoomed < 16


def distort_reference(image, seed):
    """Computes mmdetection's PhotoMetricDistortion pixel by pixel."""
    draw = uniform([11], seed)
    applies = draw[:4] < 0.5
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    result = np.empty_like(image)
    for at in np.ndindex(image.shape[:2]):
        pixel = [float(v) for v in image[at]]
        if applies[0]:
            pixel = [min(max(v - 32 + 64 * draw[4], 0), 255) for v in pixel]
        contrast = 0.5 + draw[5] if applies[1] else 1
        if draw[8] < 0.5:
            pixel = [min(v * contrast, 255) for v in pixel]
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        if applies[2]:
            saturation = min(saturation * (0.5 + draw[6]), 1)
        if applies[3]:
            hue = (hue + (-18 + 36 * draw[7]) / 360) % 1
        pixel = colorsys.hsv_to_rgb(hue, saturation, value)
        if draw[8] >= 0.5:
            pixel = [min(v * contrast, 255) for v in pixel]
        if draw[9] < 0.5:
            pixel = [pixel[i] for i in orders[int(draw[10] * 6)]]
        result[at] = [round(v) for v in pixel]
    return result


def test_photometric_distortion_equals_mmdetections(image):
    for seed in SEEDS[:12]:
        found = RandomPhotometricDistort()(example_with(image), seed)["image"].numpy()
        expected = distort_reference(image, seed)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found != expected).mean() < 0.01  # halves that float32 rounds the other way
    never = RandomPhotometricDistort(probability=0.0, channel_probability=0.0)
    np.testing.assert_array_equal(never(example_with(image), SEEDS[0])["image"], image)
    floats = RandomPhotometricDistort()(example_with(image.astype(np.float32)), SEEDS[1])["image"]
    assert floats.dtype == tf.float32


@pytest.mark.parametrize("shape", [(24, 31, 3), (3, 2, 3), (1, 9, 3)])
def test_blur_equals_a_convolution_with_reflected_borders(rng, shape):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    for seed in SEEDS[:6]:
        found = GaussianBlur(7, (0.3, 2.0), 0.5)(example_with(image), seed)["image"].numpy()
        draw = uniform([2], seed)
        if draw[0] >= 0.5:
            np.testing.assert_array_equal(found, image)
            continue
        sigma = 0.3 + draw[1] * 1.7
        kernel = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(image.astype(float), [(3, 3), (3, 3), (0, 0)], "reflect")
        expected = np.zeros(shape)
        for i in range(7):
            for j in range(7):
                expected += kernel[i] * kernel[j] * padded[i : i + shape[0], j : j + shape[1]]
        np.testing.assert_allclose(found, expected, atol=0.501)


def test_erasing_overwrites_one_rectangle_of_the_drawn_size():
    areas, ratios, erased = [], [], 0
    image = np.full((80, 100, 3), 200, np.uint8)
    for seed in SEEDS:
        found = RandomErasing(0.5, fill=9.0)(example_with(image), seed)["image"].numpy()
        rows, columns = (np.flatnonzero((found != 200).any((1 - axis, 2))) for axis in (0, 1))
        if not len(rows):
            continue
        erased += 1
        assert (found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 9).all()
        assert (found == 9).all(-1).sum() == len(rows) * len(columns)
        areas.append(len(rows) * len(columns) / 8000)
        ratios.append(len(rows) / len(columns))
    assert 4 < erased < 16
    assert min(areas) > 0.015 and max(areas) < 0.34
    assert 0.28 < min(ratios) < 0.9 < 1.1 < max(ratios) < 3.5
    noise = RandomErasing(1.0)(example_with(image), SEEDS[0])["image"].numpy()
    assert len(np.unique(noise)) > 100
    assert (noise == 200).mean() > 0.5


@pytest.mark.parametrize("turns", range(4))
def test_turns_equal_numpys(rng, image, turns):
    bitmap = rng.random((1, 24, 31)) < 0.5
    box = tf.constant([[2.0, 3, 12, 15]])
    others = {"masks": crops.from_bitmaps(bitmap, box, 10)}
    others |= {"keypoints": tf.constant([[[3.5, 4.5, 2], [0, 0, 0]]]), "keypoint_flip": tf.constant([1, 0])}
    found = rotate_90(example_with(image, **others), tf.constant(turns))
    np.testing.assert_array_equal(found["image"], np.rot90(image, turns))
    np.testing.assert_array_equal(found["masks"][0], np.rot90(others["masks"][0].numpy(), turns))
    np.testing.assert_array_equal(found["image_size"], found["image"].shape[:2])
    np.testing.assert_array_equal(found["keypoint_flip"], [1, 0])
    boxes = [[2, 3, 12, 15], [16, 2, 28, 12], [12, 16, 22, 28], [3, 12, 15, 22]]
    points = [[3.5, 4.5], [26.5, 3.5], [20.5, 26.5], [4.5, 20.5]]
    np.testing.assert_array_equal(found["boxes"], [boxes[turns]])
    np.testing.assert_array_equal(found["keypoints"], [[[*points[turns], 2], [0, 0, 0]]])


def affine_reference(transform, size, seed):
    """Computes torchvision's matrix as a product of its parts, for (x, y, 1); returns it for (y, x, 1)."""
    draw = uniform([7], seed)[1:]
    angle, shear_x, shear_y = np.deg2rad((2 * draw[:3] - 1) * [transform.degrees, transform.shear, transform.shear])
    factor = transform.scale[0] + draw[3] * (transform.scale[1] - transform.scale[0])
    shift_y, shift_x = (2 * draw[4:] - 1) * transform.translate * size
    center_y, center_x = np.array(size) / 2

    def moved(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shear_in_y = np.array([[1, 0, 0], [-np.tan(shear_y), 1, 0], [0, 0, 1]])
    shear_in_x = np.array([[1, -np.tan(shear_x), 0], [0, 1, 0], [0, 0, 1]])
    scaling = np.diag([factor, factor, 1])
    matrix = moved(shift_x + center_x, shift_y + center_y) @ rotation @ shear_in_y @ shear_in_x @ scaling
    matrix = matrix @ moved(-center_x, -center_y)
    return matrix[:2][::-1][:, [1, 0, 2]]


def test_affine_samples_at_torchvisions_matrix(image):
    transform = RandomAffine(30, 0.2, (0.7, 1.4), 15, fill=50)
    for seed in SEEDS[:4]:
        found = transform(example_with(image, ((8, 10, 15, 20),)), seed)
        matrix = affine_reference(transform, (24, 31), seed)
        inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])
        padded = np.pad(image.astype(float), [(1, 1), (1, 1), (0, 0)], constant_values=50)
        expected = np.full(image.shape, 50.0)
        for i, j in np.ndindex(24, 31):
            y, x = (inverse @ [i + 0.5, j + 0.5, 1])[:2] - 0.5
            if -1 < y < 24 and -1 < x < 31:
                top, left = math.floor(y), math.floor(x)
                weights = np.outer([top + 1 - y, y - top], [left + 1 - x, x - left])
                expected[i, j] = np.einsum("ij,ijc->c", weights, padded[top + 1 : top + 3, left + 1 : left + 3])
        np.testing.assert_allclose(found["image"], expected, atol=1)
        corners = np.array([matrix @ [y, x, 1] for y in (8, 15) for x in (10, 20)])
        box = np.concatenate([corners.min(0), corners.max(0)])
        clipped = np.clip(box, 0, [24, 31, 24, 31])
        if np.prod(clipped[2:] - clipped[:2]) > 0.2 * np.prod(box[2:] - box[:2]):
            np.testing.assert_allclose(found["boxes"], [clipped], atol=1e-3)


def other_image(rng, height, width):
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return example_with(image, ((1, 2, height - 3, width - 4), (0, 0, 4, 5)))


def test_mosaic_equals_mmdetections(rng, image):
    others = [other_image(rng, 20 + 9 * i, 35 - 6 * i) for i in range(3)]
    for seed in SEEDS[:6]:
        remaining = iter(others)
        found = Mosaic((30, 36), min_size=0).bind(lambda _: next(remaining))(example_with(image), seed)  # noqa: B023
        draw = uniform([3], tf.random.split(seed, 4)[0])
        cy, cx = (int(n * (0.5 + d)) for n, d in zip((30, 36), draw[1:], strict=True))
        canvas = np.full((60, 72, 3), 114, np.uint8)
        boxes = []
        for i, part in enumerate([example_with(image), *others]):
            picture = part["image"].numpy()
            h, w = picture.shape[:2]
            ratio = min(30 / h, 36 / w)
            nh, nw = int(h * ratio + 1e-4), int(w * ratio + 1e-4)
            picture = pil_resize(picture, nh, nw)
            top, left = (cy - nh if i < 2 else cy), (cx - nw if i % 2 == 0 else cx)
            y1, x1, y2, x2 = max(top, 0), max(left, 0), min(top + nh, 60), min(left + nw, 72)
            canvas[y1:y2, x1:x2] = picture[y1 - top : y2 - top, x1 - left : x2 - left]
            for b in part["boxes"].numpy():
                b = b * np.array([nh / h, nw / w] * 2) + [top, left, top, left]
                b = np.clip(b, 0, [60, 72, 60, 72])
                if (b[2:] > b[:2]).all():
                    boxes.append(b)
        np.testing.assert_array_equal(found["image"], canvas)
        np.testing.assert_allclose(found["boxes"], boxes, atol=1e-3)


def test_mixup_averages_with_the_resized_flipped_and_cropped_image(rng, image):
    other = other_image(rng, 28, 20)
    for seed in SEEDS[:6]:
        found = MixUp((32, 40), min_size=0).bind(lambda _: other)(example_with(image), seed)
        draw = uniform([5], tf.random.split(seed, 2)[0])
        factor = 0.5 + draw[1]
        ratio = min(32 / 28, 40 / 20)
        height, width = int(int(28 * ratio) * factor), int(int(20 * ratio) * factor)
        canvas = np.full((int(32 * factor), int(40 * factor), 3), 114, np.uint8)
        canvas[:height, :width] = pil_resize(other["image"].numpy(), height, width)
        boxes = other["boxes"].numpy() * np.array([height / 28, width / 20] * 2)
        if draw[2] < 0.5:
            canvas, boxes = canvas[:, ::-1], boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, canvas.shape[1]] * 2
        spare = [max(canvas.shape[i] - image.shape[i], 0) for i in (0, 1)]
        top, left = (min(int((s + 1) * d), s) for s, d in zip(spare, draw[3:], strict=True))
        second = np.full(image.shape, 114, np.uint8)
        part = canvas[top : top + 24, left : left + 31]
        second[: part.shape[0], : part.shape[1]] = part
        np.testing.assert_array_equal(found["image"], (image.astype(int) + second) // 2)
        boxes = np.clip(boxes - [top, left, top, left], 0, [24, 31, 24, 31])
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        np.testing.assert_allclose(found["boxes"], [[2, 3, 12, 15], *boxes], atol=1e-3)
    empty = example_with(image // 2, ())
    unchanged = MixUp().bind(lambda _: empty)(example_with(image), SEEDS[0])
    np.testing.assert_array_equal(unchanged["image"], image)


def test_copy_paste_covers_pixels_masks_and_keypoints(rng, image):
    """Pastes a square onto three objects: one untouched, one half covered, one hidden."""

    def with_masks(image, boxes, points=None):
        bitmaps = np.zeros((len(boxes), *image.shape[:2]), bool)
        for bitmap, (y1, x1, y2, x2) in zip(bitmaps, boxes, strict=True):
            bitmap[y1:y2, x1:x2] = True
        example = example_with(image, boxes)
        example["masks"] = crops.from_bitmaps(bitmaps, example["boxes"], 20)
        points = np.array([[[y1 + 1.5, x1 + 1.5, 2]] for y1, x1, _, _ in boxes] if points is None else points)
        return example | {"keypoints": tf.constant(points, tf.float32), "keypoint_flip": tf.constant([0])}

    below = with_masks(image, [(0, 0, 5, 6), (10, 8, 18, 16), (12, 17, 16, 22)])
    above = with_masks(rng.integers(0, 256, (30, 28, 3), dtype=np.uint8), [(10, 12, 20, 24)])
    paste = CopyPaste(box_tolerance=3, min_area=20.0).bind(lambda _: above)
    counts = set()
    for seed in SEEDS[:8]:
        found = paste(below, seed)
        counts.add(len(found["boxes"]))
        if len(found["boxes"]) == 3 and found["class_ids"][-1] == 2:  # no object was drawn
            np.testing.assert_array_equal(found["image"], image)
            continue
        expected = image.copy()
        expected[10:20, 12:24] = above["image"].numpy()[10:20, 12:24]
        np.testing.assert_array_equal(found["image"], expected)
        np.testing.assert_allclose(found["boxes"], [[0, 0, 5, 6], [10, 8, 18, 12], [10, 12, 20, 24]], atol=1e-4)
        np.testing.assert_array_equal(found["class_ids"], [0, 1, 0])
        assert (found["masks"].numpy() == 255).all()
        np.testing.assert_array_equal(found["keypoints"][:, 0, 2], [2, 2, 2])
    assert counts == {3}
    hidden = with_masks(image, [(10, 8, 18, 16)], [[[12, 14, 2]]])
    shown = [paste(hidden, seed) for seed in SEEDS[:8]]
    assert {tuple(each["keypoints"].numpy()[0, 0]) for each in shown} == {(12, 14, 1), (12, 14, 2)}
    crowd = above | {"is_crowd": tf.constant([True])}
    found = CopyPaste().bind(lambda _: crowd)(below, SEEDS[0])
    np.testing.assert_array_equal(found["image"], image)


def test_objects_that_lose_too_much_are_dropped(image):
    boxes = ((0, 0, 10, 10), (0, 0, 24, 31), (0, 20, 10, 31))
    for seed in SEEDS[:8]:
        strict = ScaleJitter((20, 20), (2.0, 2.0), min_visible=0.5)(example_with(image, boxes), seed)
        loose = ScaleJitter((20, 20), (2.0, 2.0), min_size=0)(example_with(image, boxes), seed)
        factor = 40 / 31
        for box, class_id in zip(loose["boxes"].numpy(), loose["class_ids"].numpy(), strict=True):
            full = np.prod(np.subtract(boxes[class_id][2:], boxes[class_id][:2])) * factor**2
            share = np.prod(box[2:] - box[:2]) / full
            if abs(share - 0.5) > 0.02:
                assert (class_id in strict["class_ids"].numpy()) == (share > 0.5)


def test_probability_of_random_apply(image):
    changed = 0
    for i in range(200):
        found = RandomApply([RandomFlip(1.0), RandomRotate90(1.0)], 0.3)(example_with(image), tf.constant([i, 5]))
        is_same = found["image"].shape == image.shape and (found["image"].numpy() == image).all()
        changed += not is_same
    assert 40 < changed < 80


def test_numpy_function_gets_arrays_and_a_seed(image):
    calls = []

    def record(arrays, seed):
        calls.append(({name: (a.dtype, a.shape) for name, a in arrays.items()}, seed))
        return {"image": 255 - arrays["image"]}

    masks = {"masks": tf.fill([1, 10, 10], tf.constant(255, tf.uint8))}
    found = NumpyTransform(record)(example_with(image, **masks), SEEDS[0])
    NumpyTransform(record, image_only=True)(example_with(image), SEEDS[0])
    NumpyTransform(record, image_only=True)(example_with(image), SEEDS[1])
    np.testing.assert_array_equal(found["image"], 255 - image)
    np.testing.assert_array_equal(found["masks"], masks["masks"])
    assert calls[0][0] == {
        "image": (np.uint8, (24, 31, 3)),
        "boxes": (np.float32, (1, 4)),
        "class_ids": (np.int32, (1,)),
        "is_crowd": (bool, (1,)),
        "masks": (bool, (1, 24, 31)),
    }
    assert calls[1][0].keys() == {"image"}
    assert calls[0][1] == calls[1][1] != calls[2][1]
    assert type(calls[0][1]) is int


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda arrays, seed: None, "NoneType; expected a dict"),
        (lambda arrays, seed: {"labels": [1]}, "labels; expected only image, boxes"),
        (lambda arrays, seed: {"boxes": np.zeros((0, 4))}, "arrays with different numbers of objects"),
        (lambda arrays, seed: {"image": np.zeros((5, 5))}, r"image of shape \(5, 5\)"),
        (lambda arrays, seed: {"boxes": np.zeros((1, 5))}, r"boxes of shape \(1, 5\)"),
    ],
)
def test_wrong_results_of_a_numpy_function_raise(image, function, message):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        NumpyTransform(function)(example_with(image), SEEDS[0])


@pytest.mark.parametrize("empty", [[4, 4, 4, 4], [9, 9, 4, 4], [4, 4, 9, 4]])
def test_boxes_without_area_of_a_numpy_function_are_dropped(image, empty):
    boxes = np.array([empty, [2, 2, 9, 9]], np.float32)
    two = {"boxes": boxes, "class_ids": np.array([0, 1], np.int32), "is_crowd": np.zeros(2, bool)}
    found = NumpyTransform(lambda arrays, _: two)(example_with(image), SEEDS[0])
    np.testing.assert_array_equal(found["boxes"], boxes[1:])
    np.testing.assert_array_equal(found["class_ids"], [1])


def test_image_only_function_must_keep_the_size(image):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="because image_only is True"):
        NumpyTransform(lambda arrays, _: {"image": arrays["image"][1:]}, image_only=True)(example_with(image), SEEDS[0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ScaleJitter(size=(0, 5)), "size"),
        (lambda: ScaleJitter(scale=(2.0, 0.1)), "scale"),
        (lambda: ScaleJitter(kernel="cubic"), "kernel"),
        (lambda: ScaleJitter(min_visible=2.0), "min_visible"),
        (lambda: RandomIoUCrop(min_ious=()), "min_ious"),
        (lambda: RandomIoUCrop(scale=(0.3, 1.5)), "between 0.01 and 1"),
        (lambda: RandomZoomOut(side=(0.5, 2)), "side"),
        (lambda: RandomZoomOut(fill=(1, 2)), "fill"),
        (lambda: RandomPhotometricDistort(probability=-1), "probability=-1"),
        (lambda: RandomPhotometricDistort(contrast=1.5), "contrast"),
        (lambda: GaussianBlur(4), "odd"),
        (lambda: RandomErasing(scale=(0.5, 0.1)), "scale"),
        (lambda: RandomPhotometricDistort(hue=720), "hue=720; expected a number from 0 to 360"),
        (lambda: RandomAffine(shear=95), "shear=95"),
        (lambda: RandomAffine(fill=(1, 2)), "three for red, green and blue"),
        (lambda: RandomRotate90(3), "probability"),
        (lambda: Mosaic(size=640), "size"),
        (lambda: MixUp(ratio=(0, 1)), "ratio"),
        (lambda: CopyPaste(max_objects=0), "max_objects"),
        (lambda: CopyPaste(max_objects=1.5), "max_objects=1.5; expected a positive integer"),
        (lambda: RandomIoUCrop(trials=2.5), "trials=2.5; expected a positive integer"),
        (lambda: RandomApply([], 1.1), "probability"),
        (lambda: UntilStep(-1, []), "step"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_misuse_of_transforms_raises(image):
    example = example_with(image)
    with pytest.raises(ValueError, match="Mosaic was called without a source of further images"):
        Mosaic()(example, SEEDS[0])
    with pytest.raises(ValueError, match="CopyPaste got examples without masks"):
        CopyPaste().bind(lambda _: example)(example, SEEDS[0])
    with pytest.raises(ValueError, match="without 'step'"):
        UntilStep(3, [RandomFlip()])(example, SEEDS[0])

    @tf.function(autograph=False)
    def mixed_types(seed):
        return RandomApply([ResizeShortestEdge((20,), kernel="bilinear")], 0.5)(example, seed)

    with pytest.raises(ValueError, match="type of 'image': it is float32 with the transform and uint8 without"):
        mixed_types(SEEDS[0])


def test_affine_fills_each_channel_with_its_own_value():
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    example = {"image": image, "boxes": tf.zeros([0, 4]), "class_ids": tf.zeros([0], tf.int32)}
    example["is_crowd"] = tf.zeros([0], bool)
    fills = (10, 20, 30)
    whole = RandomAffine(45, fill=fills)(example, tf.constant([1, 2]))["image"].numpy()
    for channel, fill in enumerate(fills):
        expected = RandomAffine(45, fill=fill)(example, tf.constant([1, 2]))["image"].numpy()
        np.testing.assert_allclose(whole[..., channel], expected[..., channel], atol=1)
    assert whole[0, 0].tolist() == [*fills]
