"""Makes small JPEG pictures as data URIs: images of a dataset and augmented training samples."""

import base64
import dataclasses
import io
import types
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet import visualize
from kerasdet.data.dataset import Dataset
from kerasdet.data.pipeline import Transform, training_batches
from kerasdet.data.records import Record
from kerasdet.data.transforms import objects

SAMPLE_EDGE = 440  # longer side of a sample, in pixels
MAX_NAMES = 8  # a sample with more objects shows no names, which would hide the objects
_QUALITY = 80


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Holds a training sample.

    Args:
        picture: The image with its objects drawn, (H, W, 3) uint8.
        image_id: Id of the image in the dataset.
        class_ids: Class ids of the objects, (M,) int32.
    """

    picture: np.ndarray
    image_id: int
    class_ids: np.ndarray


def data_uri(picture: np.ndarray) -> str:
    """Encodes an image as a JPEG in a data URI.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Returns:
        The data URI.
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def thumbnail(record: Record, edge: int) -> str:
    """Reads an image at a reduced size.

    Args:
        record: Record of the image.
        edge: Limit of the longer side in pixels.

    Returns:
        The reduced image as a data URI.
    """
    image = Image.fromarray(record.image())
    image.thumbnail((edge, edge))
    return data_uri(np.array(image))


def samples(dataset: Dataset, transforms: Sequence[Transform], count: int, seed: int) -> Iterator[Sample]:
    """Draws training samples with their boxes, masks and keypoints.

    Args:
        dataset: Dataset to draw images from.
        transforms: Training transforms. If empty, the images are shown unchanged.
        count: Maximum number of samples.
        seed: Seed of the choice of images and of the transforms.

    Yields:
        One `Sample` per drawn image.
    """
    records = _choose(dataset, count, seed)
    if not records:
        return
    chosen = types.SimpleNamespace(records=records, keypoint_flip=dataset.keypoint_flip)
    batches = training_batches(chosen, 1, transforms, seed=seed, size_divisor=1)
    for batch in batches.take(len(records)):
        example = {name: value[0].numpy() for name, value in batch.items()}
        real = example["class_ids"] >= 0
        yield Sample(_draw(example, real, dataset), int(example["image_id"]), example["class_ids"][real])


def _choose(dataset, count, seed):
    """Chooses images at random, but first one image of every class, starting with the rarest class."""
    order = np.random.default_rng(seed).permutation(len(dataset.records)).tolist()
    images_of = {}
    for index in order:
        for class_id in np.unique(dataset.records[index].class_ids).tolist():
            images_of.setdefault(class_id, []).append(index)
    rarest = sorted(images_of.values(), key=len)
    chosen = dict.fromkeys([images[0] for images in rarest] + order)
    return [dataset.records[index] for index in list(chosen)[:count]]


def _draw(example, real, dataset):
    height, width = example["image_size"]
    image = np.clip(np.round(example["image"][:height, :width]), 0, 255).astype(np.uint8)
    factor = SAMPLE_EDGE / max(height, width)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    image = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    scale = np.array(size) / (height, width)
    example = objects.scale(objects.select(example, real), tf.constant(scale, tf.float32))
    class_ids = example["class_ids"].numpy()
    named = len(class_ids) <= MAX_NAMES and dataset.num_classes > 1
    names = [dataset.class_names[k] for k in class_ids] if named else None
    return visualize.draw_boxes(
        image,
        example["boxes"],
        names,
        class_ids=class_ids,
        masks=objects.full_masks(example, *size),
        keypoints=example.get("keypoints"),
        skeleton=dataset.skeleton,
    )
