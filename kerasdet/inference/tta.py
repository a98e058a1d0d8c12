"""Test-time augmentation: what a model finds in several sizes and mirror images of a picture, merged."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.models.detector import Detector, image_list
from kerasdet.ops import resize as resize_ops

FACTORS = (0.75, 1.0, 1.25)


class AugmentedDetector:
    """A detector that looks at every picture several times.

    The candidates of all views are suppressed together, class by class. Masks and keypoint heatmaps of what remains
    are averaged over the views, left and right keypoints having changed places in the mirror images
    (Mask R-CNN, https://arxiv.org/abs/1703.06870, appendix A).

    Args:
        model: The detector, which stays as it is.
        shortest: Shorter sides of the views in pixels; by default 0.75, 1 and 1.25 times the model's own. The longer
            side's limit grows with them.
        mirror: Whether to look at each size in the mirror as well.

    Raises:
        ValueError: If a side is not a whole number of pixels from 1.
    """

    preprocessing = None  # pictures come in their own size

    def __init__(self, model: Detector, shortest: Sequence[int] = (), mirror: bool = True):
        rule = model.preprocessing
        self.model = model
        self.shortest = tuple(shortest) or tuple(round(rule.shortest * factor) for factor in FACTORS)
        self.mirror = mirror
        for length in self.shortest:
            if not isinstance(length, int | np.integer) or isinstance(length, bool) or length < 1:
                raise ValueError(f"A view's shorter side is {length!r}: give whole pixels, such as {rule.shortest}.")
        self._looks = [self._look_at(length, round(rule.longest * length / rule.shortest)) for length in self.shortest]

    @property
    def num_classes(self) -> int | None:
        return self.model.num_classes

    @property
    def class_names(self) -> Sequence[str] | None:
        return self.model.class_names

    @property
    def encode_masks(self):
        return self.model.encode_masks

    @property
    def paste_masks(self):
        return self.model.paste_masks

    def detect(self, images: np.ndarray | tf.Tensor | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Detects objects; images and results are those of `Detector.detect`."""
        found = [self._detect_one(tf.cast(image, tf.float32)) for image in image_list(images)]
        return {name: np.concatenate([detections[name] for detections in found]) for name in found[0]}

    def predict_on_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Detections in padded pictures of their own size, ``image`` (B, H, W, 3) and ``image_size`` (B, 2)."""
        sizes = np.asarray(batch["image_size"]).tolist()
        return self.detect(
            [image[:height, :width] for image, (height, width) in zip(batch["image"], sizes, strict=True)]
        )

    def _look_at(self, shortest, longest):
        """A graph function: a picture (H, W, 3) to what the model makes of it and its mirror image, the views V."""

        def look(image):
            rule = self.model.preprocessing
            resized = rule.resize(image, shortest, longest)
            views = tf.stack([resized, tf.reverse(resized, [1])] if self.mirror else [resized])  # (V, h, w, 3)
            size = tf.shape(resized)[:2]
            height, width = tf.unstack(rule.padded_size(size))
            image_size = tf.broadcast_to(size, [tf.shape(views)[0], 2])
            outputs = self.model(
                {"image": resize_ops.pad_to(views, height, width), "image_size": image_size}, training=False
            )
            candidates = self.model.decode(outputs, image_size)
            factor = tf.cast(tf.shape(image)[:2], tf.float32) / tf.cast(size, tf.float32)
            boxes = box_ops.scale(self._mirrored(candidates["boxes"], size[1]), factor)
            return {"candidates": {**candidates, "boxes": boxes}, "pyramid": outputs.get("pyramid", {}), "size": size}

        return tf.function(look, input_signature=[tf.TensorSpec([None, None, 3], tf.float32)])

    def _detect_one(self, image):
        size = tf.shape(image)[:2]
        views = [look(image) for look in self._looks]
        candidates = [view["candidates"] for view in views]
        merged = {  # (1, V * N, ...): all views are one image's
            name: tf.concat([tf.reshape(c[name], [1, -1, *c[name].shape[2:]]) for c in candidates], 1)
            for name in candidates[0]
        }
        detections = self.model.apply_nms(merged, size[None])
        for branch in self.model.branches:
            maps = [self._maps(branch, view, detections, size) for view in views]
            detections = {
                **detections,
                **branch.detect(tf.reduce_mean(tf.concat(maps, 0), 0, keepdims=True), detections),
            }
        boxes = box_ops.clip(detections["boxes"], size[None])
        return {name: value.numpy() for name, value in {**detections, "boxes": boxes}.items()}

    def _maps(self, branch, view, detections, size):
        """A branch's maps (V, D, ...) of the detections, none of them in the mirror any more."""
        factor = tf.cast(view["size"], tf.float32) / tf.cast(size, tf.float32)
        count = 2 if self.mirror else 1
        boxes = tf.repeat(box_ops.scale(detections["boxes"], factor), count, axis=0)  # (V, D, 4)
        class_ids = tf.repeat(detections["class_ids"], count, axis=0)
        maps = self.model.branch_maps(branch, view["pyramid"], self._mirrored(boxes, view["size"][1]), class_ids)
        return tf.concat([maps[:1], *([branch.mirror(maps[1:])] if self.mirror else [])], 0)

    def _mirrored(self, boxes, width):
        """Boxes (V, N, 4), those of the second view mirrored."""
        if not self.mirror:
            return boxes
        return tf.stack([boxes[0], box_ops.flip_left_right(boxes[1], width)])
