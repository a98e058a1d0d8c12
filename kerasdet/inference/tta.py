"""Merges the detections of a model on several sizes and mirror images of an image (test-time augmentation)."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.inference.padded import rescale
from kerasdet.inference.predictor import Predictor, batch_sizes
from kerasdet.inference.preprocessing import KeepSize
from kerasdet.inference.wrapper import PredictorWrapper
from kerasdet.ops.resize import pad_to

SCALES = (0.75, 1.0, 1.25)


class AugmentedPredictor(PredictorWrapper):
    """Runs a Keras detector on several views (resized and mirrored copies) of every image and merges the results.

    Non-maximum suppression runs once, on the candidates of all views. Masks and keypoint heatmaps of the remaining
    objects are averaged over the views; in mirror images left and right keypoints are swapped (Mask R-CNN,
    https://arxiv.org/abs/1703.06870, appendix A).

    Args:
        model: The detector, a Keras model of kerasdet. It is not changed.
        shortest: Lengths of the shorter sides of the views, in pixels; by default 0.75, 1 and 1.25 times `shortest` of
            the model's preprocessing. The limit of the longer side is scaled in proportion.
        hflip: Whether to add the mirror image of each view.

    Raises:
        UserError: If `model` is not a Keras model, or a length is not a positive integer.

    Example:
        >>> detections = AugmentedPredictor(model, shortest=(600, 800, 1000)).detect("street.jpg")
    """

    def __init__(self, model: Predictor, shortest: Sequence[int] = (), hflip: bool = True):
        if not isinstance(model, keras.Model):
            raise UserError(
                f"The model is of type {type(model).__name__}, but test-time augmentation (--tta) needs a Keras model: "
                "exports return detections after NMS. Pass the run or the .keras file, or leave out the augmentation."
            )
        rule = model.preprocessing
        super().__init__(model)
        self.shortest = tuple(shortest) or tuple(round(rule.shortest * scale) for scale in SCALES)
        self.hflip = hflip
        self.preprocessing = KeepSize()  # each view resizes the original image
        for length in self.shortest:
            if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 1:
                raise UserError(
                    f"shortest has the length {length!r}: expected the shorter side of each view in whole pixels, "
                    f"such as {rule.shortest}."
                )
        longest = [round(rule.longest * length / rule.shortest) for length in self.shortest]
        self._views = [self._make_view(*lengths) for lengths in zip(self.shortest, longest, strict=True)]

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detects objects in a batch of images that have not been resized; each image runs separately.

        Args:
            batch: `image` (B, H, W, 3) in the images' own sizes, padded at the bottom right; `image_size` (B, 2),
                heights and widths without padding, and `original_size` (B, 2), heights and widths before resizing, in
                pixels.

        Returns:
            Padded detections in pixels of the original images: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D),
            `class_ids` (B, D) with -1 for padding, `valid` (B,), and masks or keypoints if the model has them. See
            `kerasdet.inference.padded`.
        """
        image_size, original_size = batch_sizes(batch)
        found = []
        for image, (height, width) in zip(batch["image"], np.asarray(image_size).tolist(), strict=True):
            found.append(self._detect_one(tf.cast(image[:height, :width], tf.float32)))
        detections = {name: tf.concat([each[name] for each in found], 0) for name in found[0]}
        return rescale(detections, image_size, original_size, self.branch_outputs)

    def _make_view(self, shortest, longest):
        """Returns a `tf.function` that maps an image (H, W, 3) to the candidates of a view.

        V is 2 with `hflip`, for the view and its mirror image, otherwise 1.
        """

        def run_view(image):
            rule = self.model.preprocessing
            resized = rule.resize(image, shortest, longest)  # (h, w, 3)
            views = tf.stack([resized, tf.reverse(resized, [1])] if self.hflip else [resized])  # (V, h, w, 3)
            size = tf.shape(views)[1:3]
            image_size = tf.broadcast_to(size, [tf.shape(views)[0], 2])  # (V, 2)
            views = pad_to(views, *tf.unstack(rule.batch_size(size, (shortest, longest))))
            inputs = rule.network_input(views, image_size)
            outputs = self.model(inputs, training=False)
            candidates = self.model.decode(outputs, inputs["image_size"])
            factor = tf.cast(tf.shape(image)[:2], tf.float32) / tf.cast(size, tf.float32)
            boxes = box_ops.scale(self._unflip(candidates["boxes"], size[1]), factor)  # (V, N, 4)
            inputs = self.model.branch_inputs(outputs, image_size)
            return {"candidates": {**candidates, "boxes": boxes}, "branch_inputs": inputs, "size": size}

        return tf.function(run_view, input_signature=[tf.TensorSpec([None, None, 3], tf.float32)], autograph=False)

    def _detect_one(self, image):
        size = tf.shape(image)[:2]
        views = [run_view(image) for run_view in self._views]
        candidates = [view["candidates"] for view in views]
        merged = {  # (1, candidates of all views, ...), because all views show the same image
            name: tf.concat([tf.reshape(c[name], [1, -1, *c[name].shape[2:]]) for c in candidates], 1)
            for name in candidates[0]
        }
        detections = self.model.apply_nms(merged, size[None])
        for branch in self.model.branches:
            maps = [self._class_maps(branch, view, detections, size) for view in views]
            mean = tf.reduce_mean(tf.concat(maps, 0), 0, keepdims=True)  # (1, D, S, S, ...)
            detections = {**detections, **branch.postprocess(mean, {**detections, "image_size": size[None]})}
        return detections

    def _class_maps(self, branch, view, detections, size):
        """Returns a branch's maps (V, D, ...) of the detections in a view and its mirror image, flipped back."""
        factor = tf.cast(view["size"], tf.float32) / tf.cast(size, tf.float32)
        count = 2 if self.hflip else 1
        boxes = tf.repeat(box_ops.scale(detections["boxes"], factor), count, axis=0)  # (V, D, 4)
        class_ids = tf.repeat(detections["class_ids"], count, axis=0)  # (V, D)
        maps = self.model.branch_maps(branch, view["branch_inputs"], self._unflip(boxes, view["size"][1]), class_ids)
        return tf.concat([maps[:1], *([branch.hflip(maps[1:])] if self.hflip else [])], 0)

    def _unflip(self, boxes, width):
        """Mirrors the boxes (V, N, 4) of the second view; applying it twice changes nothing."""
        if not self.hflip:
            return boxes
        return tf.stack([boxes[0], box_ops.flip_left_right(boxes[1], width)])
