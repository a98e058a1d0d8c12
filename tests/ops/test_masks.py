import numpy as np
import pytest
import tensorflow as tf
from conftest import shared
from pycocotools import mask as coco_rle

from kerasdet import ops
from kerasdet.geometry import masks, rle
from kerasdet.ops import crops_from_runs, encode_masks, paste_masks

pytestmark = [
    pytest.mark.usefixtures("implementation"),
    pytest.mark.parametrize("implementation", ["tensorflow", "compiled"], indirect=True),  # no GPU kernels exist
]

BOXES = np.array(
    [
        [3, 4, 30, 21],
        [-5.3, -2.2, 9.1, 50],
        [20, 30, 60, 70],  # beyond the border
        [5.5, 5.5, 5.9, 5.9],  # within a pixel
        [0, 0, 40, 52],  # the whole image
        [-90, -80, 200, 300],
        [39.5, 3, 39.8, 51],
        [-9, -9, -3, -3],  # outside
        [0, 0, 0, 0],  # padding
        [30, 20, 10, 5],  # inverted
        [10, 10, 11, 11],  # one pixel
    ],
    np.float32,
)


def random_cases(rng, count):
    """Makes masks with boxes of every kind, and the size of their image."""
    for _ in range(count):
        height, width, cells = *rng.integers(1, 90, 2).tolist(), int(rng.integers(1, 30))
        low = rng.uniform(-30, 80, (6, 2))
        boxes = np.concatenate([low, low + rng.uniform(-2, 90, (6, 2))], 1).astype(np.float32)
        probs = rng.uniform(0, 1, (6, cells, cells)) ** rng.uniform(0.2, 3)
        yield probs.astype(np.float32), boxes, height, width


def test_pasted_masks_equal_detectron2():
    golden = np.load(shared("reference/geometry.npz"))
    boxes = golden["paste_masks_boxes_xyxy"][:, [1, 0, 3, 2]]
    found = paste_masks(golden["paste_masks_probs"], boxes, *golden["paste_masks_image_size"])
    np.testing.assert_array_equal(found, golden["paste_masks_output"])


@pytest.mark.parametrize("convention", masks.CONVENTIONS)
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_masks_equal_the_stock_ops_and_encode_like_pycocotools(rng, convention, threshold):
    probs = rng.uniform(0, 1, (len(BOXES), 7, 7)).astype(np.float32)
    cases = [(probs, BOXES, 40, 52), *random_cases(rng, 25)]
    different = total = 0
    for probs, boxes, height, width in cases:
        pasted = paste_masks(probs, boxes, height, width, convention, threshold).numpy()
        expected = masks.paste_masks(probs, boxes, height, width, convention, threshold).numpy()
        different += (pasted != expected).sum()
        total += expected.sum()
        codes = encode_masks(probs, boxes, height, width, convention, threshold)
        assert codes == rle.encode(pasted)
    assert different <= 2 and total > 10_000  # a value may fall on the threshold


def test_full_and_empty_masks_encode(rng):
    probs = np.stack([np.ones((4, 4)), np.zeros((4, 4))]).astype(np.float32)
    boxes = np.float32([[-50, -50, 90, 90], [0, 0, 12, 9]])
    full, empty = encode_masks(probs, boxes, 12, 9)
    assert coco_rle.area([full, empty]).tolist() == [108, 0] and coco_rle.decode(full).all()
    assert encode_masks(probs[:0], boxes[:0], 12, 9) == []
    assert paste_masks(probs[:0], boxes[:0], 12, 9).shape == (0, 12, 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_box_gives_an_empty_mask_and_does_not_change_others(rng, bad):
    probs = rng.uniform(0.6, 1, (2, 5, 5)).astype(np.float32)
    boxes = np.float32([[1, 1, bad, 9], [2, 2, 8, 8]])
    for convention in masks.CONVENTIONS:
        pasted = paste_masks(probs, boxes, 12, 12, convention).numpy()
        assert not pasted[0].any() and pasted[1].any()


def test_paste_masks_runs_in_a_graph_with_unknown_shapes(rng):
    signature = [tf.TensorSpec([None, None, None]), tf.TensorSpec([None, 4]), *[tf.TensorSpec([], tf.int32)] * 2]
    paste = tf.function(paste_masks, input_signature=signature)
    probs = rng.uniform(0, 1, (len(BOXES), 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(paste(probs, BOXES, 15, 20), paste_masks(probs, BOXES, 15, 20))


def test_unknown_convention_raises(rng):
    for function in (paste_masks, encode_masks):
        with pytest.raises(ValueError, match="expected 'detectron2' or 'torchvision'"):
            function(np.ones((1, 2, 2)), BOXES[:1], 4, 4, "caffe")


def test_crops_equal_their_definition_and_the_stock_ops(rng):
    """A cell holds the fraction of its area that the object covers; halves, where rounding could differ, are common."""
    for case in range(30):
        height, width, count = *rng.integers(1, 40, 2).tolist(), int(rng.integers(0, 5))
        bitmaps = rng.random((count, height, width)) < rng.uniform(0.05, 0.95)
        low = rng.uniform(0, 0.9, (count, 2)) * [height, width]
        high = low + rng.uniform(0.05, 1, (count, 2)) * ([height, width] - low)
        boxes = np.concatenate([low, high], 1).astype(np.float32)
        if case % 2:  # boxes on the pixel grid
            boxes = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1).astype(np.float32)
        boxes = np.minimum(boxes, np.float32([height, width] * 2))
        runs = [rle.runs_from_segmentation(rle.encode(bitmap[None])[0], height, width) for bitmap in bitmaps]
        runs = [part if len(part) else np.int32([height * width]) for part in runs]
        flat = np.concatenate([np.zeros(0, np.int32), *runs]).astype(np.int32)
        arguments = flat, np.int32([len(part) for part in runs]).reshape(-1), boxes, np.int32([height, width]), 8
        found = crops_from_runs(*arguments).numpy()
        with ops.implementation("tensorflow"):
            np.testing.assert_array_equal(found, crops_from_runs(*arguments))
        for crop, bitmap, (y1, x1, y2, x2) in zip(found, bitmaps, boxes.astype(np.float64), strict=True):
            y, x = (_overlaps(low, high, n) for low, high, n in ((y1, y2, height), (x1, x2, width)))
            np.testing.assert_allclose(crop, y @ bitmap @ x.T * 255, atol=0.501)


def _overlaps(low, high, pixels):
    """Returns the part of each of 8 cells that lies in each pixel, along one axis."""
    edges = np.linspace(low, high, 9)
    pixel = np.arange(pixels)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(inside, 0) / ((high - low) / 8)


def test_crops_of_bad_inputs_raise(implementation):
    if implementation == "tensorflow":
        pytest.skip("the stock ops trust their inputs")
    runs, size = np.int32([2, 2]), np.int32([2, 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Box 0 is not inside its image of 2x2"):
        crops_from_runs(runs, np.int32([2]), np.float32([[0, 0, 2, 3]]), size, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="counts more runs"):
        crops_from_runs(runs, np.int32([3]), np.float32([[0, 0, 2, 2]]), size, 4)
