"""Tiles: where they lie, how their detections merge, and that every model runs on them."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from models.models import MODELS, batch, randomized
from scipy import ndimage

from kerasdet.errors import UserError
from kerasdet.inference import KeepSize, Predictor, TiledPredictor
from kerasdet.inference.padded import with_equal_masks
from kerasdet.inference.tiles import merge_tiles, tile_boxes

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
MASKS = ("mask_probs", "mask_boxes")
# Together these have boxes with classes and without, masks of both kinds, and keypoints.
COVERING = ("retinanet", "proposal_network", "mask_keypoint_rcnn", "rtmdet_ins")


class Blobs(Predictor):
    """Finds every connected blob of red (class 0) or green (class 1); the score is the brightness of its pixels."""

    num_classes = 2
    class_names = ("red", "green")
    preprocessing = KeepSize()
    mask_convention = None

    def detect_batch(self, batch):
        found = [self._blobs(image) for image in np.asarray(batch["image"])]
        count = max(len(each) for each in found)
        rows = np.float32([each + [(0, 0, 0, 0, 0, -1)] * (count - len(each)) for each in found])
        rows = rows.reshape(len(found), count, 6)
        return {
            "boxes": rows[..., :4],
            "scores": rows[..., 4],
            "class_ids": rows[..., 5].astype(np.int32),
            "valid": np.int32([len(each) for each in found]),
        }

    def _blobs(self, image):
        found = []
        for class_id in (0, 1):
            labels, _ = ndimage.label(image[..., class_id] > 0)
            for y, x in ndimage.find_objects(labels):
                score = image[y, x, class_id].max() / 255
                found.append((y.start, x.start, y.stop, x.stop, score, class_id))
        return sorted(found, key=lambda row: -row[4])


def scene():
    """An image of 200x300 and its objects: small, between tiles, larger than a tile, at the side."""
    image = np.zeros((200, 300, 3), np.uint8)
    objects = [
        ((5, 5, 15, 20), 0, 250),
        ((40, 60, 60, 90), 1, 240),
        ((70, 20, 190, 140), 0, 200),  # larger than a tile of 100
        ((90, 195, 110, 215), 1, 230),
        ((180, 270, 200, 300), 0, 220),
        ((20, 150, 30, 151), 0, 210),
    ]
    for (y1, x1, y2, x2), class_id, value in objects:
        image[y1:y2, x1:x2, class_id] = value
    return image, objects


@pytest.mark.parametrize("size", [(100, 100), (101, 250), (640, 30), (333, 777), (1, 1)])
@pytest.mark.parametrize(("tile", "overlap"), [(100, 0.0), (100, 0.2), (64, 0.5), (50, 0.9), (1000, 0.2)])
def test_tiles_cover_the_image_and_overlap(size, tile, overlap):
    tiles = tile_boxes(*size, tile, overlap)
    assert (tiles[:, :2] >= 0).all() and (tiles[:, 2:] <= size).all()
    assert (tiles[:, 2:] - tiles[:, :2] == np.minimum(tile, size)).all()
    for axis in (0, 1):
        starts = sorted({*tiles[:, axis].tolist()})
        assert starts[0] == 0 and starts[-1] + min(tile, size[axis]) == size[axis]
        assert all(a + tile - b >= min(int(tile * overlap), tile - 1) for a, b in pairwise(starts))
    assert len(tiles) == len({tuple(row) for row in tiles.tolist()})


def merge_by_hand(boxes, scores, class_ids, view_index, views, size):
    """The rule of `merge_tiles`, one number at a time."""

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    def common(a, b):
        return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])

    def is_cut(index):
        box, view = boxes[index], views[view_index[index]]
        sides = [view[0] > 0, view[1] > 0, view[2] < size[0], view[3] < size[1]]
        return any(side and abs(b - v) <= 2 for side, b, v in zip(sides, box, view, strict=True))

    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: (is_cut(i), -scores[i])):
        rivals = [k for k in kept if class_ids[k] == class_ids[index] and view_index[k] != view_index[index]]
        shared = [common(boxes[k], boxes[index]) for k in rivals]
        if is_cut(index):
            drop = any(s > 0.5 * area(boxes[index]) for s in shared)
        else:
            unions = [area(boxes[k]) + area(boxes[index]) - s for k, s in zip(rivals, shared, strict=True)]
            drop = any(s > 0.5 * u for s, u in zip(shared, unions, strict=True))
        if not drop:
            kept.append(index)
    return sorted(kept, key=lambda i: -scores[i])


@pytest.mark.parametrize("seed", range(8))
def test_merging_equals_the_rule_by_hand(seed):
    rng = np.random.default_rng(seed)
    size = (120, 160)
    views = np.concatenate([tile_boxes(*size, 64, 0.25), [[0, 0, *size]]])
    count = 120
    view_index = rng.integers(0, len(views), count)
    view = views[view_index].astype(np.float64)
    length = view[:, 2:] - view[:, :2]
    low, high = np.sort(rng.random((2, count, 2)), 0)
    low, high = low * (low > 0.1), np.where(high > 0.9, 1, high)  # many end at the sides of their view
    boxes = np.concatenate([view[:, :2] + low * length, view[:, :2] + high * length], 1)
    scores, class_ids = rng.permutation(count) / count, rng.integers(0, 2, count)
    arguments = boxes, scores, class_ids, view_index, views, size
    merged = merge_tiles(*arguments).tolist()
    assert merged == merge_by_hand(*arguments)
    assert 0 < len(merged) < count


def test_each_object_of_a_scene_is_found_once():
    image, objects = scene()
    found = TiledPredictor(Blobs(), tile=100, overlap=0.3).detect(image)
    assert sorted(map(tuple, found.boxes.astype(int).tolist())) == sorted(box for box, _, _ in objects)
    assert found.scores.tolist() == sorted((np.float32(value / 255) for _, _, value in objects), reverse=True)
    assert found.image_size == (200, 300) and set(found.labels) == {"red", "green"}


def test_batches_of_several_sizes_are_padded():
    image, _ = scene()
    tiled, images = TiledPredictor(Blobs(), tile=100), [image, image[:40, :50], image[60:, 100:]]
    for found, each in zip(tiled.detect(images), images, strict=True):
        alone = tiled.detect(each)
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.class_ids, alone.class_ids)


@pytest.fixture(scope="module", params=COVERING)
def model(request):
    return randomized(MODELS[request.param]())


@pytest.fixture(scope="module")
def image():
    return batch()["image"][0, :96, :100].astype(np.uint8)


def test_an_image_that_fits_into_a_tile_runs_as_without(model, image):
    found, expected = TiledPredictor(model, tile=100).detect(image), model.detect(image)
    assert len(found) > 0
    for name in ("boxes", "scores", "class_ids", "keypoints"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    if model.mask_convention == "mmdet":  # pasted by detectron2's rule instead, which takes squares
        assert np.mean(found.masks != expected.masks) < 0.02
    else:
        np.testing.assert_array_equal(found.mask_probs, expected.mask_probs)


def by_detectron2(parts):
    """Lets masks of whole images be pasted by detectron2's rule as tiles do, in squares of one size."""
    if parts[0].mask_convention != "mmdet":
        return parts
    masks = with_equal_masks([{name: getattr(part, name) for name in MASKS} for part in parts], square=True)
    arrays = [{name: np.asarray(each[name]) for name in MASKS} for each in masks]
    return [
        dataclasses.replace(part, **each, mask_convention="detectron2")
        for part, each in zip(parts, arrays, strict=True)
    ]


def test_tiles_of_a_model_merge_in_the_image(model, image):
    """The views one by one, moved and merged by hand, give the same boxes, keypoints and pixels of masks."""
    views = np.concatenate([tile_boxes(96, 100, 64, 0.2), [[0, 0, 96, 100]]])
    parts = [model.detect(image[y1:y2, x1:x2]) for y1, x1, y2, x2 in views]
    boxes = np.concatenate(
        [part.boxes + np.float32([y, x, y, x]) for part, (y, x, _, _) in zip(parts, views, strict=True)]
    )
    scores, class_ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "class_ids"))
    view_index = np.repeat(np.arange(len(views)), [len(part) for part in parts])
    keep = merge_by_hand(boxes, scores, class_ids, view_index, views, (96, 100))
    found = TiledPredictor(model, tile=64, overlap=0.2).detect(image)
    assert len(found) == len(keep) > len(parts[-1]) / 2
    np.testing.assert_allclose(found.boxes, boxes[keep], atol=2e-3)
    np.testing.assert_allclose(found.scores, scores[keep], atol=1e-4)
    if parts[0].keypoints is not None:
        points = [part.keypoints + np.float32([y, x, 0]) for part, (y, x, _, _) in zip(parts, views, strict=True)]
        np.testing.assert_allclose(found.keypoints, np.concatenate(points)[keep], atol=2e-2)
    if parts[0].masks is not None:
        full = np.zeros((len(boxes), 96, 100), bool)
        for index, (part, (y1, x1, y2, x2)) in enumerate(zip(by_detectron2(parts), views, strict=True)):
            full[view_index == index, y1:y2, x1:x2] = part.masks
        theirs, ours = full[keep], found.masks
        for index, (y1, x1, y2, x2) in enumerate(views[view_index[keep]]):  # beyond its view a mask is not compared
            ours_there = ours[index, y1:y2, x1:x2]
            assert np.mean(ours_there != theirs[index, y1:y2, x1:x2]) <= 0.003


def test_it_describes_itself_like_its_model(model):
    tiled = TiledPredictor(model)
    for name in ("num_classes", "class_names", "skeleton", "branch_outputs"):
        assert getattr(tiled, name) == getattr(model, name)
    assert (tiled.mask_convention is None) == (model.mask_convention is None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, "tile is 0: expected whole pixels, 16 or more"),
        ({"tile": 1}, "tile is 1: expected whole pixels, 16 or more"),
        ({"tile": 64.5}, r"tile is 64\.5"),
        ({"overlap": 1.0}, r"overlap is 1\.0: expected a fraction of 0 or more"),
        ({"overlap": -0.1}, r"overlap is -0\.1"),
        ({"overlap": "0.2"}, "overlap is '0.2'"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(UserError, match=message):
        TiledPredictor(Blobs(), **arguments)


def test_too_many_tiles_raise():
    with pytest.raises(
        UserError, match=r"tile=32 with overlap=0\.99 cuts an image of 400x300 pixels into 99,2.* tiles"
    ):
        TiledPredictor(Blobs(), tile=32, overlap=0.99).detect(np.zeros((400, 300, 3), np.uint8))
