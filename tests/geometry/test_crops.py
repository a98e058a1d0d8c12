import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared
from pycocotools import mask as coco_rle
from scipy import ndimage

from kerasdet.geometry import crops, masks

SIZE = 112


def box_of(bitmap):
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float32)


def disk(height, width, center, radius):
    y, x = np.mgrid[:height, :width] + 0.5
    return np.hypot((y - center[0]) / radius[0], (x - center[1]) / radius[1]) <= 1


def covered(bitmap, edges):
    """Returns the mean of a bitmap over each cell of a grid, by overlaps of intervals: the definition of a crop."""
    parts = []
    for axis in (0, 1):
        pixels = np.arange(bitmap.shape[axis])
        low, high = edges[axis][:-1, None], edges[axis][1:, None]
        parts.append(np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None) / (high - low))
    return parts[0] @ bitmap.astype(np.float64) @ parts[1].T


def grid(box, size=SIZE):
    return [np.linspace(box[axis], box[axis + 2], size + 1) for axis in (0, 1)]


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def pasted(crop, box, shape):
    probs, boxes = tf.cast(crop, tf.float32)[None] / 255, tf.constant(box, tf.float32)[None]
    return masks.paste_masks(probs, boxes, *shape)[0].numpy()


def test_from_bitmaps_equals_its_definition(rng):
    bitmaps = rng.random((3, 40, 50)) < 0.5
    boxes = np.array([[0, 0, 40, 50], [3.5, 7.25, 20, 41], [10, 10, 11, 12]], np.float32)
    found = crops.from_bitmaps(bitmaps, tf.constant(boxes), 16).numpy()
    expected = [covered(bitmap, grid(box, 16)) * 255 for bitmap, box in zip(bitmaps, boxes, strict=True)]
    np.testing.assert_allclose(found, expected, atol=0.51)
    shared_bitmap = crops.from_bitmaps(bitmaps[:1], tf.constant(boxes), 16).numpy()
    np.testing.assert_array_equal(shared_bitmap[0], found[0])
    assert not crops.from_bitmaps(bitmaps[:1], tf.constant([[60.0, 60, 70, 70]]), 16).numpy().any()


def test_recrop_averages_the_old_cells(rng):
    crop = rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)
    boxes = np.array([[0, 0, 16, 8], [4, 4, 12, 20]], np.float32)
    same = crops.recrop(crop, tf.constant(boxes), tf.constant(boxes))
    np.testing.assert_array_equal(same, crop)
    new = np.array([[2, 1, 11, 6.5], [0, 5, 12, 22]], np.float32)  # the second is partly outside of the old box
    found = crops.recrop(crop, tf.constant(boxes), tf.constant(new)).numpy()
    for i in range(2):
        scale = (boxes[i, 2:] - boxes[i, :2]) / 8
        in_cells = (new[i].reshape(2, 2) - boxes[i, :2]) / scale
        expected = covered(crop[i], grid(in_cells.reshape(-1), 8))
        np.testing.assert_allclose(found[i], expected, atol=0.51)


def test_tight_boxes_keep_touched_sides_exactly():
    crop = np.zeros((3, 10, 10), np.uint8)
    crop[0] = 255
    crop[1, 2:5, 6:] = 255
    boxes = tf.constant([[0.1, 0.2, 7.3, 9.1], [10, 20, 30, 60], [1, 1, 5, 5]])
    found = crops.tight_boxes(crop, boxes).numpy()
    np.testing.assert_array_equal(found[0], boxes[0])
    np.testing.assert_allclose(found[1], [14, 44, 20, 60], rtol=1e-6)
    np.testing.assert_array_equal(found[2], [0, 0, 0, 0])
    np.testing.assert_allclose(crops.areas(crop, boxes), [7.2 * 8.9, 6 * 16, 0], rtol=1e-5)


@pytest.mark.parametrize("angle", [0, 17, 90, 200])
def test_warp_equals_the_rotated_shape(angle):
    bitmap = disk(200, 200, (90, 110), (60, 35))
    box = box_of(bitmap)
    crop = crops.from_bitmaps(bitmap[None], tf.constant(box[None]), SIZE)
    radians = np.deg2rad(angle)
    linear = 0.8 * np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    matrix = np.c_[linear, np.array([100, 100]) - linear @ [100, 100]].astype(np.float32)
    inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])[:2].astype(np.float32)
    new = crops.affine_boxes(crop, tf.constant(box[None]), tf.constant(matrix))
    found = crops.warp(crop, tf.constant(box[None]), new, tf.constant(inverse))
    y, x = np.mgrid[:200, :200] + 0.5
    old = np.einsum("ij,jhw->ihw", inverse, np.stack([y, x, np.ones_like(y)]))
    expected = np.hypot((old[0] - 90) / 60, (old[1] - 110) / 35) <= 1
    np.testing.assert_allclose(new[0], box_of(expected), atol=1.5)
    assert iou(pasted(found[0], new[0].numpy(), (200, 200)), expected) > 0.975
    if angle == 0:
        scaled = matrix[[0, 1, 0, 1], [0, 1, 0, 1]] * box + matrix[[0, 1, 0, 1], 2]
        np.testing.assert_allclose(new[0], scaled, atol=1e-3)


def test_subtract_and_empty_masks():
    crop = np.array([[[255, 100], [0, 255]]], np.uint8)
    other = np.array([[[0, 255], [255, 102]]], np.uint8)
    np.testing.assert_array_equal(crops.subtract(crop, other), [[[255, 0], [0, 153]]])
    none = tf.zeros([0, 8, 8], tf.uint8)
    boxes = tf.zeros([0, 4])
    matrix = tf.constant([[1.0, 0, 0], [0, 1, 0]])
    assert crops.recrop(none, boxes, boxes).shape == crops.warp(none, boxes, boxes, matrix).shape == (0, 8, 8)
    assert crops.tight_boxes(none, boxes).shape == crops.affine_boxes(none, boxes, matrix).shape == (0, 4)


def coco_masks(name):
    """Yields (bitmap, box) of every non-crowd object of a dataset that is at least 8 pixels wide and high."""
    data = json.loads(shared(f"data/{name}.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for annotation in data["annotations"]:
        if not annotation["iscrowd"]:
            code, size = annotation["segmentation"], sizes[annotation["image_id"]]
            if isinstance(code, list):
                code = coco_rle.merge(coco_rle.frPyObjects(code, *size))
            bitmap = coco_rle.decode(code).astype(bool)
            if bitmap.any() and (box_of(bitmap)[2:] - box_of(bitmap)[:2]).min() >= 8:
                yield bitmap, box_of(bitmap)


def test_cut_and_turned_masks_keep_their_detail():
    """Measures what crops lose against full-size masks; the docstring of `kerasdet.geometry.crops` states it."""
    cut, turned, inner = [], [], []
    for bitmap, box in list(coco_masks("coco_cc/val"))[::10]:
        crop = crops.from_bitmaps(bitmap[None], tf.constant(box[None]), SIZE)
        middle = np.round((box[:2] + box[2:]) / 2)
        window = np.concatenate([box[:2], middle]).astype(np.float32)
        expected = np.zeros_like(bitmap)
        expected[: int(middle[0]), : int(middle[1])] = bitmap[: int(middle[0]), : int(middle[1])]
        if expected.sum() > 20:
            half = crops.recrop(crop, tf.constant(box[None]), tf.constant(window[None]))
            cut.append(iou(pasted(half[0], window, bitmap.shape), expected))

        height, width = bitmap.shape
        radians = np.deg2rad(10)
        linear = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
        center = np.array([height, width]) / 2
        matrix = np.c_[linear, center - linear @ center].astype(np.float32)
        inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])[:2].astype(np.float32)
        new = crops.affine_boxes(crop, tf.constant(box[None]), tf.constant(matrix))
        found = crops.warp(crop, tf.constant(box[None]), new, tf.constant(inverse))
        offset = inverse[:, 2] + inverse[:, :2].sum(1) / 2 - 0.5  # SciPy puts pixel centres at whole numbers
        truth = ndimage.affine_transform(bitmap.astype(np.float64), inverse[:, :2], offset, order=1) >= 0.5
        if truth.sum() > 20:
            turned.append(iou(pasted(found[0], new[0].numpy(), bitmap.shape), truth))
            inner.append(bool((new[0] >= 0).numpy().all() and (new[0, 2:] <= bitmap.shape).numpy().all()))
    assert len(cut) > 30 and len(turned) > 30
    assert np.mean(cut) > 0.995 and np.min(cut) > 0.95, (np.mean(cut), np.min(cut))
    assert np.mean(np.array(turned)[inner]) > 0.98, (np.mean(turned), np.min(turned))
