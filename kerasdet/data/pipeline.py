"""From records to batches: `tf.data` datasets of the dicts that models train on and are evaluated on.

Records are looked up by position, and everything random depends on (seed, position) alone. A run that resumes at
step s therefore starts at position ``s * batch_size`` and sees what it would have seen, without decoding the rest.
"""

import numpy as np
import tensorflow as tf

from kerasdet.data import images
from kerasdet.geometry import masks as mask_ops
from kerasdet.ops import resize as resize_ops

_OBJECT_KEYS = ("boxes", "class_ids", "is_crowd", "masks", "keypoints")
_PADDING = {"class_ids": -1}


def training_batches(
    dataset,
    batch_size,
    transforms=(),
    *,
    seed=0,
    start_step=0,
    size_divisor=32,
    pad_to=None,
    max_boxes=None,
    mask_size=mask_ops.CROP_SIZE,
    input_context=None,
):
    """Endless shuffled batches; every image once per epoch, in a new order each, batches running across epochs.

    Args:
        dataset: a `CocoDataset`, or anything with `records` like it.
        batch_size: images per batch, of all replicas together.
        transforms: callables ``(example, seed) -> example``, applied in order.
        seed: decides the orders and the transforms.
        start_step: the batch to begin with: the same batches follow as in a run from step 0.
        size_divisor: height and width are padded to multiples of this.
        pad_to: a fixed (height, width) instead.
        max_boxes: a fixed M; by default the batch's own maximum.
        mask_size: S of the masks, where the data set was read with masks.
        input_context: the `tf.distribute.InputContext` of a worker, which then gets its part of each batch, replica by
            replica, and decodes no other images.

    Returns:
        A `tf.data.Dataset` of batches (DESIGN, "A batch") with `image_id` and `original_size`; M is at least 1. `masks`
        are uint8, the covered share of each cell times 255, so they cost M * S * S bytes an image whatever its size.

    Raises:
        ValueError: where there is nothing to train on, or a record has more than `max_boxes` boxes.
    """
    records = _records(dataset)
    most = max(len(record.boxes) for record in records)
    if max_boxes is not None and most > max_boxes:
        raise ValueError(f"max_boxes={max_boxes}, but an image has {most} boxes: raise it to {most} or more.")
    lookup = _lookup(dataset, mask_size)

    def example(position, index):
        result = _decode(lookup(index))
        example_seed = tf.cast(tf.stack([seed, position]), tf.int32)
        for i, transform in enumerate(transforms):
            result = transform(result, tf.random.fold_in(example_seed, i))
        return _pad(result, size_divisor, pad_to, max_boxes)

    order = _endless_order(len(records), seed, start_step * batch_size)
    if input_context is not None:
        share = batch_size // input_context.num_input_pipelines
        order = order.filter(lambda position, _: position % batch_size // share == input_context.input_pipeline_id)
        batch_size = input_context.get_per_replica_batch_size(batch_size)
    examples = order.map(example, tf.data.AUTOTUNE, deterministic=True)
    batches = _batches(examples, batch_size, drop_remainder=True)
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def evaluation_batches(
    dataset, batch_size, *, resize=None, size_divisor=32, mask_size=mask_ops.CROP_SIZE, shard=(0, 1)
):
    """Every image once, in the order of the records, the last batch as small as it comes.

    Args:
        dataset: a `CocoDataset`, or anything with `records` like it.
        batch_size: images per batch.
        resize: a callable ``example -> example`` such as `ResizeShortestEdge`, which then takes its first length;
            None keeps the images as they are.
        size_divisor: height and width are padded to multiples of this.
        mask_size: S of the masks, where the data set was read with masks.
        shard: (i, n): only every n-th image, from the i-th on.

    Returns:
        A finite `tf.data.Dataset` of batches (DESIGN, "A batch") with `image_id` (B,) int64, `original_size` (B, 2)
        int32, and the annotations in the coordinates of the resized image.

    Raises:
        ValueError: where there is nothing to evaluate on.
    """
    records = _records(dataset)
    lookup = _lookup(dataset, mask_size)

    def example(index):
        result = _decode(lookup(index))
        return _pad(resize(result) if resize else result, size_divisor)

    index, count = shard
    examples = tf.data.Dataset.range(index, len(records), count).map(example, tf.data.AUTOTUNE, deterministic=True)
    return _batches(examples, batch_size, drop_remainder=False)


def _endless_order(count, seed, start):
    """Pairs (position, index) from position `start` on: each epoch of `count` positions is a permutation of its own."""

    def permutation(epoch):
        epoch_seed = tf.cast(tf.stack([seed, epoch]), tf.int32)
        return tf.data.Dataset.from_tensor_slices(tf.random.experimental.stateless_shuffle(tf.range(count), epoch_seed))

    return tf.data.Dataset.counter(start // count).flat_map(permutation).skip(start % count).enumerate(start)


def _records(dataset):
    if not dataset.records:
        raise ValueError("The data set has no images left to make batches of: see its `counts`.")
    return dataset.records


def _lookup(dataset, mask_size):
    """Holds the records as flat tensors; returns a graph function from an index to one example without its image."""
    records = dataset.records
    per_image = {
        "path": tf.constant([record.path for record in records]),
        "exif": tf.constant([record.exif for record in records]),
        "image_id": tf.constant([record.image_id for record in records], tf.int64),
        "original_size": tf.constant([(record.height, record.width) for record in records], tf.int32),
    }
    optional = [name for name in ("num_runs", "keypoints") if getattr(records[0], name) is not None]
    objects_of = _slices(records, ["boxes", "class_ids", "is_crowd", *optional])
    runs_of = _slices(records, ["runs"]) if "num_runs" in optional else None

    def lookup(index):
        example = {**{name: values[index] for name, values in per_image.items()}, **objects_of(index)}
        if runs_of:
            runs, num_runs = runs_of(index)["runs"], example.pop("num_runs")
            size = example["original_size"]
            example["masks"] = mask_ops.crops_from_runs(runs, num_runs, example["boxes"], size, mask_size)
        if "keypoints" in example:
            example["keypoint_flip"] = tf.constant(dataset.keypoint_flip)
        return example

    return lookup


def _slices(records, names):
    """Arrays of all records one after the other; returns a graph function from an index to those of one record."""
    flat = {name: tf.constant(np.concatenate([getattr(record, name) for record in records])) for name in names}
    starts = tf.constant(np.cumsum([0] + [len(getattr(record, names[0])) for record in records]))

    def of(index):
        return {name: values[starts[index] : starts[index + 1]] for name, values in flat.items()}

    return of


def _decode(example):
    """Replaces `path` and `exif` by `image` and `image_size`."""
    image = images.decode(tf.io.read_file(example.pop("path")), example.pop("exif"))
    return {"image": image, "image_size": tf.shape(image)[:2], **example}


def _pad(example, size_divisor, pad_to=None, max_boxes=None):
    """Pads the image of one example at the bottom right, and its objects to `max_boxes` or at least one row."""
    size, checks = example["image_size"], []
    if pad_to is None:
        height, width = tf.unstack(-(-size // size_divisor) * size_divisor)
    else:
        height, width = pad_to
        message = f"An image is larger than pad_to={tuple(pad_to)}: enlarge it or resize the images to fit. Image id:"
        checks = [tf.debugging.Assert(tf.reduce_all(size <= pad_to), [message, example["image_id"], "size:", size])]
    with tf.control_dependencies(checks):
        image = resize_ops.pad_to(example["image"], height, width)
    rows = tf.maximum(tf.shape(example["boxes"])[0], 1) if max_boxes is None else max_boxes
    present = [name for name in _OBJECT_KEYS if name in example]
    objects = {name: _pad_rows(example[name], rows, _PADDING.get(name, 0)) for name in present}
    objects = {name: tf.ensure_shape(value, (max_boxes, *value.shape[1:])) for name, value in objects.items()}
    example.pop("keypoint_flip", None)
    return {**example, "image": tf.ensure_shape(image, (*(pad_to or (None, None)), 3)), **objects}


def _pad_rows(value, rows, padding):
    paddings = [[0, rows - tf.shape(value)[0]]] + [[0, 0]] * (value.shape.rank - 1)
    return tf.pad(value, paddings, constant_values=tf.cast(padding, value.dtype))


def _batches(examples, batch_size, drop_remainder):
    spec = examples.element_spec
    padding = {name: tf.cast(_PADDING.get(name, 0), spec[name].dtype) for name in spec}
    batches = examples.padded_batch(batch_size, padding_values=padding, drop_remainder=drop_remainder)
    return batches.prefetch(tf.data.AUTOTUNE)
