"""Detects small objects in large images: runs a predictor on overlapping tiles and merges the detections."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.inference.padded import rescale, with_equal_masks
from kerasdet.inference.predictor import Predictor, batch_sizes
from kerasdet.inference.preprocessing import KeepSize
from kerasdet.inference.wrapper import PredictorWrapper

_CUT_MARGIN = 2.0  # pixels from a tile's side within which a box counts as cut by it
_COVERED = 0.5  # a cut box is a piece of an object if more than this fraction of its area lies in the object's box
_SAME = 0.5  # two boxes of a class with an IoU above this are the same object
_TILES_AT_ONCE = 8
_MIN_TILE = 16  # pixels; smaller tiles show no object, and an image has so many that detection seems to hang
_MAX_TILES = 20_000  # per image; detection would take hours


class TiledPredictor(PredictorWrapper):
    """Runs a predictor on overlapping tiles of every image, and on the whole image, and merges the detections.

    The model resizes each tile by its own rule, so objects appear larger in tiles than in the resized whole image.
    Objects that are larger than a tile are found in the whole image. `merge_tiles` removes duplicates. An image that
    fits into one tile runs once, as without a `TiledPredictor`.

    Args:
        model: A Keras model, an export, an `AugmentedPredictor` or any other predictor. It is not changed.
        tile: Height and width of a tile in pixels of the image.
        overlap: Fraction of a tile's side that it shares with the next tile, in [0, 1). Objects up to this length lie
            completely inside at least one tile.

    Raises:
        UserError: If `tile` is below 16 or no integer, or `overlap` is not in [0, 1).

    Example:
        >>> detections = TiledPredictor(model, tile=640, overlap=0.2).detect("aerial.jpg")
    """

    def __init__(self, model: Predictor, tile: int = 640, overlap: float = 0.2):
        if not isinstance(tile, int | np.integer) or isinstance(tile, bool) or tile < _MIN_TILE:
            raise UserError(f"tile is {tile!r}: expected whole pixels, {_MIN_TILE} or more, such as 640.")
        if not isinstance(overlap, int | float) or isinstance(overlap, bool) or not 0 <= overlap < 1:
            raise UserError(f"overlap is {overlap!r}: expected a fraction of 0 or more and less than 1, such as 0.2.")
        super().__init__(model)
        self.tile = int(tile)
        self.overlap = float(overlap)
        self.preprocessing = KeepSize()  # tiles are cut from the original image

    @property
    def mask_convention(self) -> str | None:
        """Source framework whose pasting of masks is reproduced. None: no masks.

        mmdetection's convention only works for masks that begin at the top-left corner of the image. It is replaced by
        detectron2's convention, which may drop half a cell of a mask at the border of a tile.
        """
        return "detectron2" if self.model.mask_convention == "mmdet" else self.model.mask_convention

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detects objects in a batch of images that have not been resized; each image runs separately.

        Args:
            batch: `image` (B, H, W, 3) in the images' own sizes, padded at the bottom right; `image_size` (B, 2),
                heights and widths without padding, and `original_size` (B, 2), heights and widths before resizing, in
                pixels.

        Returns:
            Padded detections in pixels of the original images: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D),
            `class_ids` (B, D) with -1 for padding, `valid` (B,), and masks or keypoints if the model has them. D is the
            largest number of detections of an image in the batch. See `kerasdet.inference.padded`.
        """
        image_size, original_size = batch_sizes(batch)
        found = []
        for image, (height, width) in zip(batch["image"], np.asarray(image_size).tolist(), strict=True):
            found.append(self._detect_one(np.asarray(image)[:height, :width]))
        return rescale(_pad(found), image_size, original_size, self.branch_outputs, clip=False)

    def _detect_one(self, image):
        """Returns the detections of one image as a dict of arrays (N, ...), in descending order of score."""
        tiles = tile_boxes(*image.shape[:2], self.tile, self.overlap)
        groups = [tiles[start : start + _TILES_AT_ONCE] for start in range(0, len(tiles), _TILES_AT_ONCE)]
        if len(tiles) > 1:
            # The whole image is a group of its own, because in one batch the tiles would be padded to its size.
            groups.append(np.int32([[0, 0, *image.shape[:2]]]))
        views = np.concatenate(groups)  # (V, 4)
        found = [part for group in groups for part in self._detect_views(image, group)]
        found = with_equal_masks(found, square=True)
        merged = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        view_index = np.repeat(np.arange(len(views)), [len(part["scores"]) for part in found])
        boxes, scores, class_ids = (merged[name] for name in ("boxes", "scores", "class_ids"))
        keep = merge_tiles(boxes, scores, class_ids, view_index, views, image.shape[:2])
        return {name: value[keep] for name, value in merged.items()}

    def _detect_views(self, image, views):
        """Yields the detections of each view, in coordinates of the image and without padding."""
        batch = self.model.preprocessing.pad_batch([image[y1:y2, x1:x2] for y1, x1, y2, x2 in views])
        found = {name: np.asarray(value) for name, value in self.model.detect_batch(batch).items()}
        for index, (y, x, _, _) in enumerate(views):
            valid = int(found["valid"][index])
            part = {name: value[index, :valid] for name, value in found.items() if name != "valid"}
            yield self._shift(part, np.float32([y, x]))

    def _shift(self, part, corner):
        """Adds the corner (y, x) of a view to boxes and positions."""
        shifted = {**part, "boxes": part["boxes"] + np.tile(corner, 2)}
        for name, output in self.branch_outputs.items():
            if name in part and output.rescaling == "positions":
                shifted[name] = part[name] + np.append(corner, np.float32(0))
            elif name in part and output.rescaling == "swapped_boxes":
                shifted[name] = part[name] + np.tile(corner, 2)
        return shifted


def tile_boxes(height: int, width: int, tile: int, overlap: float) -> np.ndarray:
    """Covers an image with overlapping tiles; the last tile of a row or column ends at the side of the image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        tile: Height and width of a tile in pixels.
        overlap: Fraction of a tile's side that it shares with the next tile, in [0, 1). The last tile may share more.

    Returns:
        The T tiles, (T, 4) int32 yxyx in pixels, row by row. If a side of the image is shorter than `tile`, the tiles
        are as long as this side.

    Raises:
        UserError: If there are more than 20,000 tiles.

    Example:
        >>> tile_boxes(100, 250, 100, 0.0)[:, 1]
        array([  0, 100, 150], dtype=int32)
    """
    step = max(int(tile * (1 - overlap)), 1)
    starts = []
    for length in (height, width):
        last = max(length - tile, 0)
        starts.append([*range(0, last, step), last])
    if (count := len(starts[0]) * len(starts[1])) > _MAX_TILES:
        raise UserError(
            f"tile={tile} with overlap={overlap:g} cuts an image of {height}x{width} pixels into {count:,} tiles: "
            f"expected at most {_MAX_TILES:,}. Choose larger tiles or a smaller overlap."
        )
    return np.int32([[y, x, min(y + tile, height), min(x + tile, width)] for y in starts[0] for x in starts[1]])


def merge_tiles(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    view_index: np.ndarray,
    views: np.ndarray,
    image_size: Sequence[int],
) -> np.ndarray:
    """Drops duplicate detections of overlapping views (tiles), by an NMS that accounts for cut objects.

    A box is cut if it ends within 2 pixels of a side of its view that is not a side of the image. The function first
    processes boxes that are not cut, in descending order of score: a box is dropped if its IoU with a kept box of its
    class from another view is above 0.5. Then it processes cut boxes, in descending order of score: a box is dropped if
    more than half of its area is inside a kept box of its class from another view. Boxes of the same view never drop
    each other, because the model has already removed duplicates within a view.

    Args:
        boxes: (N, 4) yxyx in pixels of the image.
        scores: (N,) scores.
        class_ids: (N,) int class ids.
        view_index: (N,) int, the row of `views` in which each box was found.
        views: (V, 4) yxyx in pixels of the image, the part of the image that each view shows.
        image_size: Height and width of the image in pixels.

    Returns:
        Indices of the M remaining boxes, (M,), in descending order of score.
    """
    view, limits = views[view_index], np.tile(image_size, 2)
    gap = np.abs(boxes - view)
    inside = np.concatenate([view[:, :2] > 0, view[:, 2:] < limits[2:]], 1)  # sides that are not the image's
    cut = (inside & (gap <= _CUT_MARGIN)).any(1)
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), 1)
    kept = np.zeros(len(boxes), bool)
    for index in np.lexsort((-scores, cut)):
        others = np.flatnonzero(kept & (class_ids == class_ids[index]) & (view_index != view_index[index]))
        low = np.maximum(boxes[others, :2], boxes[index, :2])
        high = np.minimum(boxes[others, 2:], boxes[index, 2:])
        common = np.prod(np.maximum(high - low, 0), 1)
        if cut[index]:
            kept[index] = not (common > _COVERED * area[index]).any()
        else:
            kept[index] = not (common > _SAME * (area[others] + area[index] - common)).any()
    indices = np.flatnonzero(kept)
    return indices[np.argsort(-scores[indices], kind="stable")]


def _pad(found):
    """Pads detections of single images, dicts of arrays (N, ...), to a batch; class ids are padded with -1."""
    found = [{name: np.asarray(value) for name, value in each.items()} for each in with_equal_masks(found)]
    counts = [len(each["scores"]) for each in found]
    padded = {"valid": np.int32(counts)}
    for name in found[0]:
        shape = (len(found), max(counts), *found[0][name].shape[1:])
        padded[name] = np.full(shape, -1 if name == "class_ids" else 0, found[0][name].dtype)
        for index, each in enumerate(found):
            padded[name][index, : counts[index]] = each[name]
    return {name: tf.convert_to_tensor(value) for name, value in padded.items()}
