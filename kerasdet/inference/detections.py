"""Defines `Detections`, the objects that a predictor found in one image."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from kerasdet import ops, visualize
from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.inference import interop
from kerasdet.inference.images import ImageLike, open_image

if TYPE_CHECKING:
    import supervision

_TABLE_ROWS = 20
_PER_OBJECT = ("boxes", "scores", "class_ids", "mask_probs", "mask_boxes", "keypoints")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Holds the objects that a predictor found in one image, in descending order of score.

    Index with an integer, a slice, a bool mask (N,) or an array of indices to get the `Detections` of the selected
    objects.

    Args:
        boxes: (N, 4) float32, (y1, x1, y2, x2) in pixels of the image.
        scores: (N,) float32 in [0, 1].
        class_ids: (N,) int32, counted from 0.
        image_size: Height and width of the image in pixels.
        class_names: Names of the model's classes, in the order of the class ids. None: the names are unknown.
        mask_probs: (N, S, S): for each of the S x S cells of an object's box, the probability that it shows the object,
            in [0, 1]. None: the model predicts no masks.
        mask_boxes: (N, 4) float32 yxyx in pixels of the image, the areas that `mask_probs` cover instead of the boxes;
            `mask_probs` may then be (N, h, w). None: `mask_probs` cover the boxes.
        keypoints: (N, J, 3) float32, J keypoints (y, x, score) of each object, in pixels of the image. None: the model
            predicts no keypoints.
        mask_convention: Source framework whose pasting of masks is reproduced: "detectron2", "torchvision" or "mmdet";
            required with `mask_probs`.
        skeleton: Pairs of keypoint indices that `draw` connects by a line.
        extras: Further outputs of the model's branches by name, (N, ...) each.

    Raises:
        UserError: If `boxes` are not (N, 4), `image_size` is not (height, width), or a class id has no name.
        ValueError: If the arrays differ in length, or `mask_probs` come without `mask_convention`.

    Example:
        >>> model = kerasdet.load("torchvision/retinanet_resnet50_fpn_v2")
        >>> detections = model.detect("street.jpg").filter(score=0.5, classes=["car", "person"])
        >>> for box, score in zip(detections.boxes, detections.scores):
        ...     print(box, score)
        >>> PIL.Image.fromarray(detections.draw("street.jpg")).save("found.png")
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    image_size: tuple[int, int]
    class_names: tuple[str, ...] | None = None
    mask_probs: np.ndarray | None = None
    mask_boxes: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    mask_convention: str | None = None
    skeleton: tuple[tuple[int, int], ...] = ()
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        types = {"boxes": np.float32, "scores": np.float32, "class_ids": np.int32}
        for name in _PER_OBJECT:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, types.get(name)))  # the class is frozen for others
        if self.boxes.size and (self.boxes.ndim != 2 or self.boxes.shape[1] != 4):
            raise UserError(
                f"boxes have the shape {self.boxes.shape}: expected (N, 4), one row per object. Reshape them."
            )
        if np.shape(self.image_size) != (2,):
            raise UserError(f"image_size is {self.image_size!r}: expected (height, width) in pixels.")
        if self.class_names and self.class_ids.size and not 0 <= self.class_ids.max() < len(self.class_names):
            raise UserError(
                f"The class id {self.class_ids.max()} has no name: expected one of the {len(self.class_names)} "
                "class_names for each class id, counted from 0. Pass all names."
            )
        object.__setattr__(self, "boxes", self.boxes.reshape(-1, 4))
        object.__setattr__(self, "extras", {name: np.asarray(value) for name, value in self.extras.items()})
        object.__setattr__(self, "image_size", tuple(int(length) for length in self.image_size))
        counts = {name: len(value) for name, value in {**self._per_object(), **self.extras}.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"Detections have arrays of different lengths, {counts}: expected one entry per object in each "
                "array. Pass arrays of the same length."
            )
        if self.mask_probs is not None and self.mask_convention is None:
            raise ValueError(
                "mask_probs need a mask_convention: pass the convention of the model that predicted the masks, "
                "'detectron2', 'torchvision' or 'mmdet'."
            )

    def _per_object(self):
        values = {name: getattr(self, name) for name in _PER_OBJECT}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence | np.ndarray) -> "Detections":
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Index {index} is out of range: there are {len(self)} detections, counted from 0.")
            index = [index]
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index.astype(int) if index.size == 0 and index.dtype != bool else index
            if index.dtype.kind not in "biu":
                example = index.item() if index.ndim == 0 and hasattr(self, str(index)) else "scores"
                raise UserError(
                    f"The index of detections is {index.tolist()!r}: expected integers, a slice or a mask. Arrays are "
                    f"attributes, such as detections.{example}."
                )
        extras = {name: value[index] for name, value in self.extras.items()}
        values = {name: value[index] for name, value in self._per_object().items()}
        return dataclasses.replace(self, **values, extras=extras)

    def __repr__(self) -> str:
        height, width = self.image_size
        count = f"{len(self)} object" + "s" * (len(self) != 1)
        lines = [f"Detections: {count} in an image of {height}x{width} (height x width)"]
        if not len(self):
            return lines[0]
        labels = self.labels[:_TABLE_ROWS]
        wide = max(len("class"), *(len(label) for label in labels))
        lines.append(f"  {'class':<{wide}}  score" + "".join(f"{name:>9}" for name in ("y1", "x1", "y2", "x2")))
        for label, score, box in zip(labels, self.scores, self.boxes, strict=False):
            lines.append(f"  {label:<{wide}}  {score:5.3f}" + "".join(f"{value:9.1f}" for value in box))
        if len(self) > _TABLE_ROWS:
            lines.append(f"  ... and {len(self) - _TABLE_ROWS} more")
        maps = [name for name in ("mask_probs", "keypoints") if getattr(self, name) is not None]
        if maps or self.extras:
            words = [*(f"{name} {getattr(self, name).shape}" for name in maps), *self.extras]
            lines.append(f"  with {' and '.join(words)}")
        return "\n".join(lines)

    @property
    def xyxy(self) -> np.ndarray:
        """The boxes, (N, 4) float32 as (x1, y1, x2, y2) in pixels of the image."""
        return self.boxes[:, [1, 0, 3, 2]]

    @property
    def labels(self) -> list[str]:
        """The class name of each object, or its class id as a string if the model has no names."""
        return [self.class_names[k] if self.class_names else str(k) for k in self.class_ids.tolist()]

    @cached_property
    def masks(self) -> np.ndarray | None:
        """The masks (N, H, W) bool of the full image, or None for a model without masks.

        The first access pastes the masks into the image and stores them. Select or filter objects first to paste fewer
        masks.
        """
        if self.mask_probs is None:
            return None
        return np.asarray(ops.paste_masks(*self._mask_arguments()))

    def _mask_arguments(self):
        boxes = self.boxes if self.mask_boxes is None else self.mask_boxes
        return self.mask_probs, boxes, *self.image_size, self.mask_convention

    def filter(
        self, score: float | None = None, classes: int | str | Sequence[int | str] | None = None
    ) -> "Detections":
        """Selects the objects above a score, of some classes, or both.

        Args:
            score: Objects with a score at or below this are dropped, in [0, 1]. None keeps all scores.
            classes: A class id or name, or a sequence of these. None keeps all classes.

        Returns:
            The `Detections` of the remaining objects, in the same order.

        Raises:
            UserError: If a class is unknown, or the score is outside [0, 1].

        Example:
            >>> model = kerasdet.load("torchvision/retinanet_resnet50_fpn_v2")
            >>> cars = model.detect("street.jpg").filter(score=0.5, classes="car")
        """
        keep = np.ones(len(self), bool)
        if score is not None:
            check_numbers("Detections.filter", 0, 1, score=score)
            keep &= self.scores > score
        if classes is not None:
            wanted = [classes] if isinstance(classes, int | np.integer | str) else classes
            if not isinstance(wanted, Iterable) or not all(isinstance(each, int | np.integer | str) for each in wanted):
                raise UserError(f"classes is {classes!r}: expected class names or class ids, such as ['car', 2].")
            keep &= np.isin(self.class_ids, [self._class_id(each) for each in wanted])
        return self[keep]

    def _class_id(self, wanted):
        if isinstance(wanted, str):
            if not self.class_names:
                raise UserError(
                    f"There is no class {wanted!r}: the model has no class names. Pass class ids, integers from 0."
                )
            if wanted not in self.class_names:
                names = ", ".join(self.class_names[:10]) + ", ..." * (len(self.class_names) > 10)
                raise UserError(f"There is no class {wanted!r}: choose from {names}.")
            return self.class_names.index(wanted)
        if wanted < 0 or (self.class_names and wanted >= len(self.class_names)):
            known = f"from 0 to {len(self.class_names) - 1}" if self.class_names else "from 0"
            raise UserError(f"There is no class id {wanted}: expected an integer {known}.")
        return wanted

    def draw(self, image: ImageLike, *, scale: int = 1) -> np.ndarray:
        """Draws boxes, names, scores, masks and keypoints on the image.

        Args:
            image: The image that was passed to `detect`: an RGB array (H, W, 3), a PIL image or a path.
            scale: Integer factor by which the image is enlarged first, so that names are legible on small images.

        Returns:
            The drawing, (H * scale, W * scale, 3) uint8 RGB. `image` is not changed.

        Raises:
            UserError: If the image cannot be opened, or its size is not `image_size`.
            FileNotFoundError: If the file does not exist.
        """
        image = open_image(image)
        if image.shape[:2] != self.image_size:
            raise UserError(
                f"The image has height and width {image.shape[:2]}, but the detections are for {self.image_size}: "
                "pass the image that was passed to detect."
            )
        return visualize.draw_boxes(
            image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8),
            self.boxes,
            self._drawn_labels(),
            self.scores,
            self.class_ids,
            masks=self.masks,
            keypoints=self.keypoints,
            skeleton=self.skeleton,
            scale=scale,
        )

    def _drawn_labels(self):
        """Returns the class names, with the ids of a `Tracker` if there are any."""
        ids = self.extras.get(interop.TRACK_ID, np.full(len(self), -1)).tolist()
        return [f"{label} #{i}" if i >= 0 else label for label, i in zip(self.labels, ids, strict=True)]

    def encode_masks(self) -> list[dict]:
        """Encodes the masks as compressed COCO RLE. With the compiled ops, no full-size bitmap is created.

        Returns:
            One dict {"size": [height, width], "counts": str} per object.

        Raises:
            ValueError: If the detections have no masks.
        """
        if self.mask_probs is None:
            raise ValueError("These detections have no masks: use a model with a MaskBranch, such as MaskRCNN.")
        return ops.encode_masks(*self._mask_arguments())

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict]:
        """Converts the detections to entries of a COCO results file.

        Args:
            image_id: Id of the image in the dataset.
            category_ids: K category ids of the dataset, in the order of the model's class ids.

        Returns:
            One dict per object with `image_id`, `category_id`, `bbox` as (x, y, width, height) in pixels, `score`, and,
            if the model predicts masks or keypoints, `segmentation` as compressed RLE or `keypoints` as (x, y, score,
            x, ...) in pixels, where x and y are 0 at the centre of the first pixel, as in COCO.

        Raises:
            ValueError: If `category_ids` has no entry for a class id.
        """
        for class_id in self.class_ids.tolist():
            if not 0 <= class_id < len(category_ids):
                raise ValueError(
                    f"Image {image_id} has a detection of class {class_id}, but the dataset has {len(category_ids)} "
                    "categories: use a dataset with the classes of the model."
                )
        entries = []
        boxes = self.boxes.astype(np.float64).tolist()
        for (y1, x1, y2, x2), class_id, score in zip(boxes, self.class_ids.tolist(), self.scores.tolist(), strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            category_id = int(category_ids[class_id])
            entries.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})
        if self.mask_probs is not None:
            for entry, code in zip(entries, self.encode_masks(), strict=True):
                entry["segmentation"] = code
        if self.keypoints is not None:
            keypoints = self.keypoints.astype(np.float64)[..., [1, 0, 2]] - [0.5, 0.5, 0.0]
            for entry, points in zip(entries, keypoints, strict=True):
                entry["keypoints"] = points.ravel().tolist()
        return entries

    def to_supervision(self) -> "supervision.Detections":
        """Converts boxes, scores, classes and masks to `supervision.Detections`, for its annotators and trackers.

        Returns:
            A `supervision.Detections`. Its `data` holds the class names under "class_name", and the arrays of `extras`.
            Its `tracker_id` holds the ids of a `kerasdet.inference.Tracker`.

        Raises:
            UserError: If supervision is not installed.
        """
        return interop.to_detections(self)

    def to_supervision_keypoints(self) -> "supervision.KeyPoints":
        """Converts keypoints to `supervision.KeyPoints`, for its annotators.

        Returns:
            A `supervision.KeyPoints`. Its `data` holds the class names under "class_name".

        Raises:
            UserError: If supervision is not installed.
            ValueError: If the detections have no keypoints.
        """
        return interop.to_key_points(self)

    @classmethod
    def from_supervision(
        cls,
        detections: "supervision.Detections",
        image_size: tuple[int, int],
        *,
        class_names: Sequence[str] | None = None,
        key_points: "supervision.KeyPoints | None" = None,
    ) -> "Detections":
        """Converts a `supervision.Detections`, such as the result of its slicer or trackers; masks keep their pixels.

        Args:
            detections: A `supervision.Detections`. Missing scores become 1, missing class ids become 0.
            image_size: Height and width of the image in pixels.
            class_names: Class names, in the order of the class ids. None: the names in ``data["class_name"]``.
            key_points: Keypoints of the same objects, in the same order. None: no keypoints.

        Returns:
            The `Detections`, in descending order of score. Its `extras` holds the ids of a tracker under "track_id",
            and the arrays of `detections.data` that have one entry per object, except the class names.

        Raises:
            UserError: If the sizes or numbers of masks, keypoints or names contradict the detections.

        Example:
            >>> sliced = supervision.InferenceSlicer(lambda image: model.detect(image).to_supervision())(image)
            >>> found = Detections.from_supervision(sliced, image.shape[:2], class_names=model.class_names)
        """
        found = cls(**interop.fields_from_supervision(detections, image_size, class_names, key_points))
        return found[np.argsort(-found.scores, kind="stable")]


def unpad(
    detections: Mapping[str, np.ndarray | tf.Tensor],
    index: int,
    image_size: Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    mask_convention: str | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
) -> Detections:
    """Extracts the detections of one image from padded detections.

    Args:
        detections: Padded detections (`boxes` (B, D, 4) yxyx, `scores` (B, D) and more, see
            `kerasdet.inference.padded`), in pixels of the images.
        index: Position of the image in the batch.
        image_size: Height and width of the image in pixels.
        class_names: Names of the model's classes, in the order of the class ids. None: the names are unknown.
        mask_convention: Source framework whose pasting of masks is reproduced: "detectron2", "torchvision" or "mmdet";
            required with `mask_probs`.
        skeleton: Pairs of keypoint indices that drawings connect by a line.

    Returns:
        The `Detections` of the image, without padding. `extras` holds outputs for which `Detections` has no field.
    """
    count = int(detections["valid"][index])
    values = {name: np.asarray(value[index])[:count] for name, value in detections.items() if name != "valid"}
    return Detections(
        **{name: values.pop(name) for name in _PER_OBJECT if name in values},
        extras=values,
        image_size=tuple(np.asarray(image_size).tolist()),
        class_names=tuple(class_names) if class_names else None,
        mask_convention=mask_convention,
        skeleton=tuple(tuple(pair) for pair in skeleton),
    )
