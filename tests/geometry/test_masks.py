import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared
from pycocotools import mask as coco_rle

from kerasdet.geometry import masks, rle


def blob(rng, height, width):
    """Makes a bitmap of a few filled rectangles with a hole."""
    bitmap = np.zeros((height, width), np.uint8)
    for value in (1, 1, 1, 0):
        (y1, y2), (x1, x2) = (np.sort(rng.integers(0, n + 1, 2)) for n in (height, width))
        bitmap[y1:y2, x1:x2] = value
    bitmap[height // 2, width // 2] = 1
    return bitmap


def box_of(bitmap):
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float32)


def runs_of(bitmap):
    return rle.runs_from_segmentation(rle.encode(bitmap[None])[0], *bitmap.shape)


def bitmap_of(runs, height, width):
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T


def overlaps(low, high, edges):
    """Returns the overlap length of each interval between `edges` with each pixel: (len(edges) - 1, pixels)."""
    pixels = np.arange(low, high)
    return np.maximum(0, np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels))


def area_crop(bitmap, box, size):
    """Computes the crop from the bitmap, by its definition."""
    y1, x1, y2, x2 = box.astype(np.float64)
    y = overlaps(0, bitmap.shape[0], np.linspace(y1, y2, size + 1))
    x = overlaps(0, bitmap.shape[1], np.linspace(x1, x2, size + 1))
    return y @ bitmap @ x.T / ((y2 - y1) * (x2 - x1) / size**2)


def objects(name):
    """Yields (bitmap, segmentation, box) of every non-crowd object of a dataset."""
    data = json.loads(shared(f"data/{name}.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for annotation in data["annotations"]:
        if not annotation["iscrowd"]:
            segmentation, (height, width) = annotation["segmentation"], sizes[annotation["image_id"]]
            code = segmentation
            if isinstance(segmentation, list):
                code = coco_rle.merge(coco_rle.frPyObjects(segmentation, height, width))
            x, y, w, h = annotation["bbox"]
            yield coco_rle.decode(code), segmentation, np.array([y, x, y + h, x + w], np.float32)


def test_every_segmentation_form_gives_the_same_runs(rng):
    for _ in range(30):
        height, width = rng.integers(1, 60, 2).tolist()
        bitmap = blob(rng, height, width)
        compressed = coco_rle.encode(np.asfortranarray(bitmap))
        runs = rle.runs_from_segmentation(compressed, height, width)
        assert runs.dtype == np.int32
        np.testing.assert_array_equal(bitmap_of(runs, height, width), bitmap)
        text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
        np.testing.assert_array_equal(rle.runs_from_segmentation(text, height, width), runs)
        listed = {"size": [height, width], "counts": runs.tolist()}
        np.testing.assert_array_equal(rle.runs_from_segmentation(listed, height, width), runs)


def test_polygon_runs_equal_pycocotools():
    for bitmap, segmentation, _ in list(objects("coco_cc/train"))[::7]:
        runs = rle.runs_from_segmentation(segmentation, *bitmap.shape)
        np.testing.assert_array_equal(bitmap_of(runs, *bitmap.shape), bitmap)


def test_segmentation_without_pixels_gives_no_runs():
    empty = [[], [[]], [[1, 2, 3, 4]], [[1, 1, 1, 1, 1, 1]], {"size": [5, 6], "counts": [30]}]
    assert [len(rle.runs_from_segmentation(s, 5, 6)) for s in empty] == [0] * 5
    square = [0, 0, 4, 0, 4, 4, 0, 4]
    odd = rle.runs_from_segmentation([[1, 2, 3], [*square, 9]], 5, 6)
    np.testing.assert_array_equal(odd, rle.runs_from_segmentation([square], 5, 6))


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([1, 2, 3, 4, 5, 6], "polygon that is not a list"),
        ([[1, 2, 3, 4, 5, "a"]], "entries are not all pixel coordinates"),
        ([[1, 2, 3, 4, 5, float("nan")]], "entries are not all pixel coordinates"),
        ({"size": [6, 5], "counts": [30]}, r"size \[6, 5\], but the image has height and width \[5, 6\]"),
        ({"counts": [30]}, "size None"),
        ({"size": [5, 6], "counts": [10, 10]}, "of 20 pixels.* sum to the 30 pixels of the image"),
        ({"size": [5, 6], "counts": [40, -10]}, "RLE mask of 30 pixels"),
        ({"size": [5, 6], "counts": "\x7f"}, 'compressed "counts" are damaged'),
        ({"size": [5, 6], "counts": "P" * 40}, 'compressed "counts" are damaged'),
        ({"size": [5, 6], "counts": None}, "neither a string nor a list"),
    ],
)
def test_invalid_segmentation_raises(segmentation, message):
    with pytest.raises(ValueError, match=message):
        rle.runs_from_segmentation(segmentation, 5, 6)


def test_crop_cell_equals_its_covered_fraction(rng):
    crop = tf.function(masks.crops_from_runs, reduce_retracing=True)
    for size in (7, 28, 112):
        height, width = rng.integers(20, 90, 2).tolist()
        bitmaps = [blob(rng, height, width) for _ in range(4)]
        boxes = np.stack([box_of(bitmap) for bitmap in bitmaps])
        boxes[2] += [0.25, 0.1, -0.3, -0.4]
        boxes[3] = [0, 0, height, width]
        runs = [runs_of(bitmap) for bitmap in bitmaps]
        crops = crop(np.concatenate(runs), np.int32([len(r) for r in runs]), boxes, np.int32([height, width]), size)
        assert crops.dtype == tf.uint8 and crops.shape == (4, size, size)
        for result, bitmap, box in zip(crops.numpy(), bitmaps, boxes, strict=True):
            np.testing.assert_allclose(result / 255, area_crop(bitmap, box, size), atol=0.5 / 255 + 1e-5)


def test_crops_of_zero_objects_and_of_a_one_pixel_object():
    none = masks.crops_from_runs(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 4), np.float32), [9, 8])
    assert none.shape == (0, 112, 112)
    bitmap = np.zeros((5, 6), np.uint8)
    bitmap[4, 5] = 1
    runs = runs_of(bitmap)
    assert (masks.crops_from_runs(runs, [len(runs)], np.float32([[4, 5, 5, 6]]), [5, 6]).numpy() == 255).all()


@pytest.mark.parametrize(
    "name, step, mean, large, least",
    [
        ("coco_cc/train", 3, 0.9995, 0.998, 0.99),
        ("coco_cc/val", 3, 0.9995, 0.998, 0.99),
        ("dsb_small/val", 3, 1, None, 1),
    ],
)
def test_crop_pasted_back_keeps_the_mask(name, step, mean, large, least):
    """Compares a crop pasted back into its box with the original mask.

    `kerasdet.geometry.masks` states the figures over all objects.
    """
    crop = tf.function(masks.crops_from_runs, reduce_retracing=True)
    overlap, sides = [], []
    for bitmap, segmentation, box in list(objects(name))[::step]:
        runs = rle.runs_from_segmentation(segmentation, *bitmap.shape)
        crops = crop(runs, np.int32([len(runs)]), box[None], np.int32(bitmap.shape))
        back = masks.paste_masks(tf.cast(crops, tf.float32) / 255, box[None], *bitmap.shape)[0].numpy()
        overlap.append((back & (bitmap > 0)).sum() / (back | (bitmap > 0)).sum())
        sides.append(max(box[2:] - box[:2]))
    overlap = np.array(overlap)
    assert overlap.mean() >= mean and overlap.min() >= least
    assert large is None or overlap[np.array(sides) >= 224].mean() >= large


def bilinear(bitmap, y, x):
    """Samples a bitmap at (y, x) like ROIAlign, which repeats the border outside the last pixel centres."""
    height, width = bitmap.shape
    if y < -1 or x < -1 or y > height or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    v, u = y - top, x - left
    a, b, c, d = bitmap[top : top + 2, left : left + 2].ravel()
    return (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)


def roi_align(bitmap, roi, size, aligned):
    """Pools one box with adaptive sampling; `aligned` puts pixel centres at 0.5."""
    y1, x1, y2, x2 = roi - 0.5 * aligned
    height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
    rows, columns = max(int(np.ceil(height / size)), 1), max(int(np.ceil(width / size)), 1)
    result = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        ys = y1 + (i + (np.arange(rows) + 0.5) / rows) * height / size
        xs = x1 + (j + (np.arange(columns) + 0.5) / columns) * width / size
        result[i, j] = np.mean([bilinear(bitmap, y, x) for y in ys for x in xs])
    return result


@pytest.mark.parametrize("convention", masks.CONVENTIONS)
def test_targets_equal_roi_align_of_the_full_bitmap(rng, convention):
    """No crop cell straddles two pixels here, so the crop loses nothing and targets must be equal."""
    bitmap = np.zeros((40, 44), np.uint8)
    bitmap[4:32, 30:44] = rng.integers(0, 2, (7, 7)).repeat(4, 0).repeat(2, 1)
    box = np.float32([4, 30, 32, 44])
    runs = runs_of(bitmap)
    crops = masks.crops_from_runs(runs, [len(runs)], box[None], bitmap.shape)
    rois = np.float32(
        [
            box,
            [0, 20, 40, 44],
            [7.3, 31.2, 29.9, 41.7],
            [10, 33, 11, 34],
            [8, 35, 8.2, 43],
            [4, 38, 33, 44],
            [0, 0, 3, 9],
        ]
    )
    matched = np.zeros((1, len(rois)), np.int32)
    found = masks.crop_masks_for_rois(crops[None], box[None, None], rois[None], matched, 8, convention, [bitmap.shape])[
        0
    ]
    expected = np.stack([roi_align(bitmap, roi, 8, aligned=convention == "detectron2") for roi in rois])
    if convention == "detectron2":
        clear = np.abs(expected - 0.5) > 3e-3
        np.testing.assert_array_equal(found.numpy()[clear], (expected >= 0.5)[clear])
        assert clear.mean() > 0.9 and set(np.unique(found)) == {0, 1}
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_targets_use_the_matched_object(rng):
    crops = tf.constant(np.stack([np.zeros((16, 16)), np.full((16, 16), 255)]).astype(np.uint8))[None]
    boxes = np.float32([[[0, 0, 20, 20], [10, 10, 30, 30]]])
    rois = np.float32([[[10, 10, 30, 30]] * 3 + [[10, 10, 50, 30]]])
    targets = masks.crop_masks_for_rois(crops, boxes, rois, np.int32([[0, 1, -1, 1]]), size=4)
    assert targets.shape == (1, 4, 4, 4)
    assert targets.numpy().mean((0, 2, 3)).tolist() == [0, 1, 0, 0.5]
    assert targets[0, 3].numpy().tolist() == [[1] * 4] * 2 + [[0] * 4] * 2
    none = masks.crop_masks_for_rois(crops, boxes, rois[:, :0], np.zeros((1, 0), np.int32))
    assert none.shape == (1, 0, 28, 28)


def test_paste_equals_detectron2():
    golden = np.load(shared("reference/geometry.npz"))
    boxes = golden["paste_masks_boxes_xyxy"][:, [1, 0, 3, 2]]
    found = masks.paste_masks(golden["paste_masks_probs"], boxes, *golden["paste_masks_image_size"])
    np.testing.assert_array_equal(found, golden["paste_masks_output"])


def torchvision_paste(probs, box, height, width, threshold):
    """Pastes pixel by pixel: pads mask and box, truncates the box to whole pixels, resizes bilinearly."""
    size = len(probs) + 2
    padded = np.pad(probs, 1)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * np.float32(size / (size - 2))
    (y1, x1), (y2, x2) = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
    rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    result = np.zeros((height, width), bool)
    for i, j in np.ndindex(rows, columns):
        if 0 <= y1 + i < height and 0 <= x1 + j < width:
            y, x = max((i + 0.5) * size / rows - 0.5, 0), max((j + 0.5) * size / columns - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
            upper = padded[top, left] * (1 - x + left) + padded[top, right] * (x - left)
            lower = padded[bottom, left] * (1 - x + left) + padded[bottom, right] * (x - left)
            result[y1 + i, x1 + j] = upper * (1 - y + top) + lower * (y - top) > threshold
    return result


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_paste_equals_torchvision(rng, threshold):
    probs = rng.uniform(0, 1, (8, 6, 6)).astype(np.float32)
    boxes = [[3, 4, 30, 21], [-5.3, -2.2, 9.1, 50], [20, 30, 60, 70], [5.5, 5.5, 5.9, 5.9], [0, 0, 40, 52]]
    boxes = np.float32([*boxes, [39.5, 3, 39.8, 51], [-9, -9, -3, -3], [0, 0, 0, 0]])
    found = masks.paste_masks(probs, boxes, 40, 52, "torchvision", threshold).numpy()
    expected = np.stack([torchvision_paste(p, b, 40, 52, threshold) for p, b in zip(probs, boxes, strict=True)])
    assert (found != expected).sum() <= 2  # a value may fall on the threshold
    assert expected.any((1, 2)).sum() >= 5


def test_paste_works_in_a_graph_and_with_zero_masks(rng):
    probs, boxes = (
        rng.uniform(0, 1, (3, 5, 5)).astype(np.float32),
        np.float32([[1, 2, 12, 19], [0, 0, 0, 0], [5, 5, 9, 9]]),
    )
    for convention in masks.CONVENTIONS:
        paste = tf.function(
            lambda p, b, h, w, convention=convention: masks.paste_masks(p, b, h, w, convention),
            input_signature=[tf.TensorSpec([None, None, None]), tf.TensorSpec([None, 4])]
            + [tf.TensorSpec([], tf.int32)] * 2,
        )
        np.testing.assert_array_equal(paste(probs, boxes, 15, 20), masks.paste_masks(probs, boxes, 15, 20, convention))
        assert masks.paste_masks(probs[:0], boxes[:0], 15, 20, convention).shape == (0, 15, 20)
    with pytest.raises(ValueError, match="expected 'detectron2' or 'torchvision'"):
        masks.paste_masks(probs, boxes, 15, 20, "caffe")
    with pytest.raises(ValueError, match="expected 'detectron2' or 'torchvision'"):
        masks.crop_masks_for_rois(None, None, None, None, convention="caffe")


def test_rle_round_trip(rng):
    bitmaps = np.stack([blob(rng, 30, 41) for _ in range(3)]).astype(bool)
    codes = rle.encode(bitmaps)
    json.dumps(codes)
    np.testing.assert_array_equal(rle.decode(codes), bitmaps)
    assert coco_rle.area(codes).tolist() == bitmaps.sum((1, 2)).tolist()
    assert rle.encode(bitmaps[:0]) == []
