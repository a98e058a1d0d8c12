"""Makes `tf.data` batches for training and evaluation from the records of a dataset.

The pipeline looks records up by position, and all randomness depends only on (seed, position). A run that resumes at
step s therefore starts at position ``s * batch_size`` and sees the same batches as an uninterrupted run, without
decoding the earlier ones.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.data import images
from kerasdet.data.records import Record
from kerasdet.data.sampler import ImageSampler
from kerasdet.data.transforms.compose import Transform, apply_all, bind
from kerasdet.data.transforms.objects import OBJECT_KEYS
from kerasdet.errors import UserError
from kerasdet.geometry import masks as mask_ops
from kerasdet.ops import crops_from_runs
from kerasdet.ops import resize as resize_ops

_PADDING = {"class_ids": -1}

# To delete an iterator waits until its autotuner wakes up, as long as the iterator lived and at most a minute, with
# Python blocked (TensorFlow 2.21). Without autotuner a map runs on as many threads as there are cores, at most 16.
_OPTIONS = tf.data.Options()
_OPTIONS.autotune.enabled = False


class Dataset(Protocol):
    """Defines the attributes of a dataset that the pipeline reads, such as those of `CocoDataset` and `VocDataset`.

    Attributes:
        records: Records of the images, at least one.
        keypoint_flip: J indices: keypoint j of the mirrored image is keypoint ``keypoint_flip[j]`` of the image. Read
            only if the records have keypoints.
        extra_shapes: Shapes of the extra values of one object by key, see `kerasdet.data.extra_values`. Read only if
            the records have extra values.
    """

    records: Sequence[Record]
    keypoint_flip: tuple[int, ...]
    extra_shapes: Mapping[str, tuple[int, ...]]


def training_batches(
    dataset: Dataset,
    batch_size: int,
    transforms: Sequence[Transform] = (),
    *,
    sampler: ImageSampler | None = None,
    seed: int = 0,
    start_step: int = 0,
    size_divisor: int = 32,
    pad_to: tuple[int, int] | None = None,
    max_boxes: int | None = None,
    mask_size: int = mask_ops.CROP_SIZE,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Makes endless shuffled batches for training.

    Each epoch visits every image once, in a new order, unless `sampler` repeats images. A batch may span two epochs.

    Example:
        >>> model = kerasdet.loading.pretrained("torchvision/retinanet_resnet50_fpn_v2", num_classes=5)
        >>> model.compile(optimizer=keras.optimizers.AdamW(1e-4))
        >>> dataset = CocoDataset("mine/train.json")
        >>> transforms = [ResizeShortestEdge((640, 800), 1333), RandomFlip()]
        >>> batches = training_batches(dataset, batch_size=2, transforms=transforms)
        >>> history = model.fit(batches, steps_per_epoch=len(dataset) // 2, epochs=12, shuffle=False)

    Args:
        dataset: A `CocoDataset`, a `VocDataset` or another object with `records`.
        batch_size: Number of images in a batch, over all replicas.
        transforms: Callables ``(example, seed) -> example``, applied in order; see `kerasdet.data.transforms`.
        sampler: Object that repeats images with rare classes, or groups images by aspect ratio. None: every image is
            seen once per epoch, without grouping.
        seed: Seed of the image order and of the transforms.
        start_step: Number of batches to skip. The remaining batches are the same as in a run that starts at step 0.
        size_divisor: The pipeline pads image height and width to multiples of this number of pixels.
        pad_to: Fixed (height, width) in pixels to pad images to. None: images are padded to multiples of
            `size_divisor`.
        max_boxes: Fixed number of rows M for the objects of an image. None: the largest number of objects in each
            batch.
        mask_size: Side S of the cropped masks, in cells. Ignored if the dataset was read without masks.
        input_context: The `tf.distribute.InputContext` of a worker. The worker then decodes only its part of each
            batch, and gets it as one smaller batch per replica, in the order of its replicas. None: there is only one
            worker.

    Returns:
        Endless batches: dicts of `image` (B, H, W, 3) uint8 or float32, depending on the transforms; `image_size`
        (B, 2) int32, heights and widths without padding in pixels; `boxes` (B, M, 4) float32 yxyx in pixels;
        `class_ids` (B, M) int32, -1 for padding; `is_crowd` (B, M) bool; `image_id` (B,) int64; `original_size` (B, 2)
        int32, heights and widths before resizing in pixels; and if the dataset has them `masks` (B, M, S, S) uint8, the
        covered fraction of each cell times 255, `keypoints` (B, M, J, 3) float32 as (y, x, visibility), in pixels, and
        the keys of `extra_annotation_keys`, (B, M) float32, or (B, M, n) for lists of n numbers. M is at least 1.

    Raises:
        UserError: If the dataset has no images, an image has more than `max_boxes` boxes, or a number is out of range.
        tf.errors.InvalidArgumentError: During iteration, if an image is larger than `pad_to`, or mixed images have more
            than `max_boxes` objects.
    """
    _check("training_batches", batch_size, size_divisor, pad_to, mask_size, max_boxes)
    check_numbers("training_batches", 0, start_step=start_step)
    records = _records(dataset)
    most = max(len(record.boxes) for record in records)
    if max_boxes is not None and most > max_boxes:
        raise UserError(
            f"max_boxes is {max_boxes}, but an image has {most} boxes; expected at least as many rows as boxes. "
            f"Increase max_boxes to {most} or more (gin: StepOptions.max_boxes)."
        )
    read = _reader(dataset, mask_size)

    def draw(seed):
        return read(tf.random.stateless_uniform([], seed, 0, len(records), tf.int64))

    @tf.autograph.experimental.do_not_convert
    def example(position, index):
        step = position // step_size
        result = {**read(index), "step": step}
        bound = bind(transforms, lambda seed: {**draw(seed), "step": step})
        result = apply_all(bound, result, tf.cast(tf.stack([seed, position]), tf.int32))
        del result["step"]
        return _split_extra_values(_pad(result, size_divisor, pad_to, max_boxes), dataset)

    step_size = batch_size
    order = (sampler or ImageSampler()).order(records, batch_size, seed, start_step)
    if input_context is not None:
        per_worker = batch_size // input_context.num_input_pipelines
        worker = input_context.input_pipeline_id
        order = order.filter(lambda position, _: position % batch_size // per_worker == worker)
        batch_size = input_context.get_per_replica_batch_size(batch_size)
    examples = order.map(example, tf.data.AUTOTUNE, deterministic=True)
    batches = _batches(examples, batch_size, drop_remainder=True)
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def evaluation_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    resize: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    size_divisor: int = 32,
    pad_to: tuple[int, int] | None = None,
    mask_size: int = mask_ops.CROP_SIZE,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Makes batches with every image once, in the order of the records; the last batch may be smaller.

    Args:
        dataset: A `CocoDataset`, a `VocDataset` or another object with `records`.
        batch_size: Number of images in a batch.
        resize: Callable ``example -> example``, such as `ResizeShortestEdge`, which without a seed uses its first
            length. None keeps the size of the images.
        size_divisor: The pipeline pads image height and width to multiples of this number of pixels.
        pad_to: Fixed (height, width) in pixels to pad images to. None: images are padded to multiples of
            `size_divisor`.
        mask_size: Side S of the cropped masks, in cells. Ignored if the dataset was read without masks.
        shard: (i, n) selects every n-th image, starting with image i.

    Returns:
        Finite batches: dicts with the keys that `training_batches` describes. Boxes and keypoints are in pixels of the
        resized image.

    Raises:
        UserError: If the dataset has no images, or a number is not positive.
        tf.errors.InvalidArgumentError: During iteration, if an image is larger than `pad_to`.
    """
    _check("evaluation_batches", batch_size, size_divisor, pad_to, mask_size)
    records = _records(dataset)
    read = _reader(dataset, mask_size)

    @tf.autograph.experimental.do_not_convert
    def example(index):
        result = read(index)
        return _split_extra_values(_pad(resize(result) if resize else result, size_divisor, pad_to), dataset)

    index, count = shard
    examples = tf.data.Dataset.range(index, len(records), count).map(example, tf.data.AUTOTUNE, deterministic=True)
    return _batches(examples, batch_size, drop_remainder=False)


def _check(owner, batch_size, size_divisor, pad_to, mask_size, max_boxes=None):
    check_positive(owner, batch_size=batch_size, size_divisor=size_divisor, mask_size=mask_size, max_boxes=max_boxes)
    if pad_to is not None and not (isinstance(pad_to, Sequence) and len(pad_to) == 2):
        raise UserError(f"{owner}.pad_to is {pad_to!r}: expected (height, width) in pixels. Change pad_to.")
    for side in pad_to or ():
        check_positive(owner, pad_to=side)


def _records(dataset):
    if not dataset.records:
        raise UserError(
            "The dataset has no images; expected at least one. Its `counts` hold the number of dropped images by "
            "reason. Repair the bad_images, keep the images_without_objects with keep_images_without_objects=True, or "
            "use other annotations."
        )
    return dataset.records


def _reader(dataset, mask_size):
    """Returns a graph function that maps an index to an example with its decoded image."""
    lookup, encoded = _lookup(dataset, mask_size), _encoded(dataset.records)

    # One function in the graph, however many images a transform mixes
    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec([], tf.int64)], experimental_attributes={"_noinline": True}
    )
    def read(index):
        example = lookup(index)
        encoded_image = encoded(example.pop("path"), index)
        image = images.load(encoded_image, example.pop("exif", False), example.pop("by_pil", None))
        return {"image": image, "image_size": tf.shape(image)[:2], **example}

    return read


def _lookup(dataset, mask_size):
    """Holds the records as flat tensors; returns a graph function that maps an index to an example without image."""
    records = dataset.records
    per_image = {
        "path": tf.constant([os.fsencode(record.path) for record in records]),  # names may not be UTF-8
        "image_id": tf.constant([record.image_id for record in records], tf.int64),
        "original_size": tf.constant([(record.height, record.width) for record in records], tf.int32),
    }
    for name in ("exif", "by_pil"):  # skipping them saves time, and most datasets need neither
        if any(getattr(record, name) for record in records):
            per_image[name] = tf.constant([getattr(record, name) for record in records])
    optional = [name for name in ("num_runs", "keypoints", "extra_values") if getattr(records[0], name) is not None]
    objects_of = _slices(records, ["boxes", "class_ids", "is_crowd", *optional])
    runs_of = _slices(records, ["runs"]) if "num_runs" in optional else None

    def lookup(index):
        example = {**{name: values[index] for name, values in per_image.items()}, **objects_of(index)}
        if runs_of:
            runs, num_runs = runs_of(index)["runs"], example.pop("num_runs")
            size = example["original_size"]
            example["masks"] = crops_from_runs(runs, num_runs, example["boxes"], size, mask_size)
        if "keypoints" in example:
            example["keypoint_flip"] = tf.constant(dataset.keypoint_flip)
        return example

    return lookup


def _slices(records, names):
    """Concatenates the arrays of all records; returns a graph function that maps an index to the arrays of a record."""
    flat = {name: tf.constant(np.concatenate([getattr(record, name) for record in records])) for name in names}
    starts = tf.constant(np.cumsum([0] + [len(getattr(record, names[0])) for record in records]))

    def slices_of(index):
        return {name: values[starts[index] : starts[index + 1]] for name, values in flat.items()}

    return slices_of


def _encoded(records):
    """Returns a graph function that reads the bytes of an image by the path and the index of its record.

    Images inside TFRecords and in memory are read by Python, because TensorFlow has no op that reads a part of a file.
    """
    if all(record.content is None for record in records):
        return lambda path, index: tf.io.read_file(path)

    def encoded(index):
        return records[index].encoded()

    return lambda path, index: tf.ensure_shape(tf.numpy_function(encoded, [index], tf.string, stateful=False), ())


def _pad(example, size_divisor, pad_to=None, max_boxes=None):
    """Pads the image of an example at the bottom right, and its objects to `max_boxes` rows or at least one row."""
    size, checks = example["image_size"], []
    if pad_to is None:
        height, width = tf.unstack(-(-size // size_divisor) * size_divisor)
    else:
        height, width = pad_to
        message = (
            f"An image is larger than pad_to={tuple(pad_to)}. Increase pad_to, or resize the images to fit. Image id:"
        )
        checks = [tf.debugging.Assert(tf.reduce_all(size <= pad_to), [message, example["image_id"], "size:", size])]
    with tf.control_dependencies(checks):
        image = resize_ops.pad_to(example["image"], height, width)
    rows = tf.maximum(tf.shape(example["boxes"])[0], 1)
    if max_boxes is not None:
        message = f"Mixed images have more objects than max_boxes={max_boxes}. Increase max_boxes to at least:"
        check = tf.debugging.Assert(rows <= max_boxes, [message, rows, "image id:", example["image_id"]])
        with tf.control_dependencies([check]):
            rows = tf.constant(max_boxes)
    present = [name for name in OBJECT_KEYS if name in example]
    objects = {name: _pad_rows(example[name], rows, _PADDING.get(name, 0)) for name in present}
    objects = {name: tf.ensure_shape(value, (max_boxes, *value.shape[1:])) for name, value in objects.items()}
    example.pop("keypoint_flip", None)
    return {**example, "image": tf.ensure_shape(image, (*(pad_to or (None, None)), 3)), **objects}


def _split_extra_values(example, dataset):
    """Replaces the extra values of an example by one tensor for each key."""
    if "extra_values" not in example:
        return example
    values = example.pop("extra_values")  # (M, V)
    for key, shape in dataset.extra_shapes.items():
        width = math.prod(shape)
        example[key] = tf.reshape(values[:, :width], [-1, *shape])
        example[key].set_shape((values.shape[0], *shape))
        values = values[:, width:]
    return example


def _pad_rows(value, rows, padding):
    paddings = [[0, rows - tf.shape(value)[0]]] + [[0, 0]] * (value.shape.rank - 1)
    return tf.pad(value, paddings, constant_values=tf.cast(padding, value.dtype))


def _batches(examples, batch_size, drop_remainder):
    spec = examples.element_spec
    padding = {name: tf.cast(_PADDING.get(name, 0), spec[name].dtype) for name in spec}
    batches = examples.padded_batch(batch_size, padding_values=padding, drop_remainder=drop_remainder)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(_OPTIONS)
