"""Collects the objects of a dataset in flat arrays, in pixels of the image files or of the resized images."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kerasdet.data.records import Record
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.ops import resize as resize_ops


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """Holds the N objects of R images, without crowds.

    Args:
        boxes: Boxes in pixels, (N, 4) float32 yxyx.
        class_ids: Class ids in 0..K-1, (N,) int32.
        images: Index of the image of each object, (N,) int64, ascending.
        sizes: Height and width of the images in pixels, (R, 2) int64.
        crowds: Number of crowds that were left out.
    """

    boxes: np.ndarray
    class_ids: np.ndarray
    images: np.ndarray
    sizes: np.ndarray
    crowds: int = 0

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def lengths(self) -> np.ndarray:
        """Heights and widths of the objects in pixels, (N, 2)."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def edges(self) -> np.ndarray:
        """Edge length in pixels of the square with the area of each object, (N,)."""
        return np.sqrt(self.lengths.prod(1))

    @property
    def ratios(self) -> np.ndarray:
        """Height over width of each object, (N,)."""
        return self.lengths[:, 0] / self.lengths[:, 1]

    @property
    def per_image(self) -> np.ndarray:
        """Number of objects of each image, (R,)."""
        return np.bincount(self.images, minlength=len(self.sizes))


def collect(records: Sequence[Record]) -> Objects:
    """Collects the objects of records.

    Args:
        records: Records of R images.

    Returns:
        The objects, in pixels of the files.
    """
    keep = [~record.is_crowd for record in records]
    return Objects(
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(r.boxes[k] for r, k in zip(records, keep, strict=True))]),
        class_ids=np.concatenate(
            [np.zeros(0, np.int32), *(r.class_ids[k] for r, k in zip(records, keep, strict=True))]
        ),
        images=np.repeat(np.arange(len(records)), [int(k.sum()) for k in keep]),
        sizes=np.array([(record.height, record.width) for record in records], np.int64).reshape(-1, 2),
        crowds=sum(int((~k).sum()) for k in keep),
    )


def join(parts: Sequence[Objects]) -> Objects:
    """Joins the objects of several datasets that have the same classes.

    Args:
        parts: Objects of each dataset.

    Returns:
        The joined objects; images are numbered consecutively.
    """
    starts = np.cumsum([0, *(len(part.sizes) for part in parts)])
    return Objects(
        boxes=np.concatenate([part.boxes for part in parts]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
        images=np.concatenate([part.images + start for part, start in zip(parts, starts, strict=False)]),
        sizes=np.concatenate([part.sizes for part in parts]),
        crowds=sum(part.crowds for part in parts),
    )


def of_images(objects: Objects, images: np.ndarray) -> Objects:
    """Selects the objects of some images.

    Args:
        objects: Objects of R images.
        images: Indices of the images to keep, ascending.

    Returns:
        The objects of these images, which are numbered from 0.
    """
    new_index = np.full(len(objects.sizes), -1)
    new_index[images] = np.arange(len(images))
    keep = new_index[objects.images] >= 0
    return Objects(objects.boxes[keep], objects.class_ids[keep], new_index[objects.images[keep]], objects.sizes[images])


def resized(objects: Objects, preprocessing: Preprocessing) -> Objects:
    """Scales objects to the sizes to which a model resizes their images.

    Args:
        objects: Objects in pixels of the files.
        preprocessing: The model's preprocessing, which holds the resize rule.

    Returns:
        The objects and image sizes in pixels of the resized images.
    """
    height, width = objects.sizes.T
    rule = preprocessing.shortest, preprocessing.longest, preprocessing.rounding
    sides = resize_ops.shortest_edge_size(height, width, *rule)  # scalars if all images become squares
    sizes = np.maximum(np.stack([np.broadcast_to(side.numpy(), len(height)) for side in sides], 1), 1)
    factors = (sizes / objects.sizes)[objects.images]  # (N, 2)
    boxes = (objects.boxes * np.concatenate([factors, factors], 1)).astype(np.float32)
    return dataclasses.replace(objects, boxes=boxes, sizes=sizes.astype(np.int64))
