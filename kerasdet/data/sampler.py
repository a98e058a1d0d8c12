"""Determines the order in which training visits the images, and how often it visits each.

The order depends only on (seed, epoch). The images of any step can be computed without iterating over the earlier
steps, so a resumed run starts immediately.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kerasdet.data.records import Record
from kerasdet.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSampler:
    """Determines the order of the training images.

    It can repeat images with rare classes, and can group images by aspect ratio.

    Args:
        repeat_threshold: Images with a rare class are repeated (LVIS, https://arxiv.org/abs/1908.03195). A class is
            rare if fewer than this fraction of images contain it. An image is seen ``max(1, sqrt(repeat_threshold /
            fraction))`` times per epoch, where `fraction` is the fraction of images that contain the image's rarest
            class. LVIS uses 0.001. None visits every image once.
        group_by_aspect_ratio: Whether all images of a batch are wider than high, or none is. This reduces padding.

    Raises:
        UserError: If the threshold is not in (0, 1].
    """

    repeat_threshold: float | None = None
    group_by_aspect_ratio: bool = False

    def __post_init__(self) -> None:
        threshold = self.repeat_threshold
        if threshold is not None and not (isinstance(threshold, int | float) and 0 < threshold <= 1):
            raise UserError(
                f"ImageSampler got repeat_threshold={threshold!r}; expected a fraction of the images in (0, 1], or "
                "None. Change repeat_threshold."
            )

    def order(self, records: Sequence[Record], batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
        """Returns the order of the images as an endless dataset.

        Args:
            records: Records of the images, at least one.
            batch_size: Number of images in a batch, over all replicas.
            seed: Seed of the order.
            start_step: Number of batches to skip.

        Returns:
            An endless `tf.data.Dataset` of pairs (position in the run, index of the record), both int64. `batch_size`
            consecutive pairs form a batch.
        """
        repeats = np.ones(len(records))
        if self.repeat_threshold is not None:
            repeats = repeat_factors([record.class_ids for record in records], self.repeat_threshold)
        is_wide = np.array([record.width > record.height for record in records])
        groups = [np.arange(len(records))]
        if self.group_by_aspect_ratio:
            groups = [np.flatnonzero(is_wide), np.flatnonzero(~is_wide)]
        streams = [_Stream(group, repeats[group], seed) for group in groups if len(group)]
        if len(streams) == 1:
            indices = streams[0].indices(start_step * batch_size)
        else:
            indices = _grouped(streams, batch_size, seed, start_step)
        return indices.enumerate(start_step * batch_size)


def repeat_factors(class_ids: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """Computes how often each image is seen per epoch, from the frequency of the rarest class in the image.

    Args:
        class_ids: Class ids of the objects of each of N images.
        threshold: Fraction t of images. Images with a class that is in a fraction f < t of the images are repeated
            sqrt(t / f) times.

    Returns:
        The repeat factors, (N,) float64, at least 1. The factor of an image without objects is 1.
    """
    shown = [np.unique(ids) for ids in class_ids]
    images = np.bincount(np.concatenate([np.zeros(0, np.int64), *shown]).astype(np.int64))
    with np.errstate(divide="ignore"):
        factors = np.maximum(1.0, np.sqrt(threshold * len(class_ids) / images))
    return np.array([factors[ids].max(initial=1.0) for ids in shown])


class _Stream:
    """Repeats a set of images endlessly, in a new order in each epoch.

    Image i comes ``floor(r * (e + 1) + u) - floor(r * e + u)`` times in epoch e, where r is its repeat factor and u in
    [0, 1) is drawn once. So image i occurs floor(r) or ceil(r) times in each epoch, and the total over n epochs differs
    from n * r by at most one.

    Args:
        images: Indices of the images, (N,).
        repeats: Repeat factors of the images, (N,), at least 1.
        seed: Seed of the orders.
    """

    def __init__(self, images, repeats, seed):
        self.images, self.repeats, self.seed = tf.constant(images, tf.int64), tf.constant(repeats), seed
        phase = tf.random.stateless_uniform([len(images)], tf.cast([seed, -1], tf.int32), dtype=tf.float64)
        self.phase = tf.where(self.repeats % 1 > 0, phase, 0.0)

    def starts(self, epochs):
        """Returns how many images come before each epoch: (E,) int64 -> (E,) int64."""
        return tf.cast(tf.reduce_sum(self._visits(epochs), 1), tf.int64)

    def start(self, epoch):
        """Returns how many images come before an epoch, an int."""
        return int(self.starts(tf.constant([epoch], tf.int64))[0])

    def _visits(self, epochs):
        """Returns how often each image comes before each epoch: (E,) int64 -> (E, N) float64."""
        return tf.floor(self.repeats * tf.cast(epochs, tf.float64)[:, tf.newaxis] + self.phase)

    def indices(self, start):
        """Makes the endless order from position `start`."""
        epoch = last_epoch(self.start, start)

        def shuffled(epoch):
            visits = self._visits(tf.stack([epoch, epoch + 1]))
            rows = tf.repeat(self.images, tf.cast(visits[1] - visits[0], tf.int32))
            epoch_seed = tf.cast(tf.stack([self.seed, epoch]), tf.int32)
            return tf.data.Dataset.from_tensor_slices(tf.random.experimental.stateless_shuffle(rows, epoch_seed))

        return tf.data.Dataset.counter(epoch).flat_map(shuffled).skip(start - self.start(epoch))


def _grouped(streams, batch_size, seed, start_step):
    """Joins streams so that all images of a batch come from the same stream.

    In epoch e, a stream contributes the batches that it completes between the start of its epoch e and the start of
    epoch e + 1. The batches of all streams are shuffled.
    """

    def before(epoch):
        return sum(stream.start(epoch) // batch_size for stream in streams)

    def choices(epoch):
        ends = [stream.starts(tf.stack([epoch, epoch + 1])) // batch_size for stream in streams]
        owners = tf.repeat(tf.range(len(streams), dtype=tf.int64), [end[1] - end[0] for end in ends])
        epoch_seed = tf.random.fold_in(tf.cast(tf.stack([seed, epoch]), tf.int32), 1)
        return tf.random.experimental.stateless_shuffle(owners, epoch_seed)

    epoch = last_epoch(before, start_step)
    skipped = choices(tf.constant(epoch, tf.int64))[: start_step - before(epoch)].numpy()
    parts = []
    for i, stream in enumerate(streams):
        first = stream.start(epoch) // batch_size + int((skipped == i).sum())
        parts.append(stream.indices(first * batch_size).batch(batch_size))
    order = tf.data.Dataset.counter(epoch).flat_map(lambda e: tf.data.Dataset.from_tensor_slices(choices(e)))
    return tf.data.Dataset.choose_from_datasets(parts, order.skip(len(skipped)), stop_on_empty_dataset=False).unbatch()


def last_epoch(start: Callable[[int], int], position: int) -> int:
    """Finds the last epoch that starts at or before a position.

    Args:
        start: Function that takes the index of an epoch and returns the epoch's first position. Later epochs never have
            smaller positions, and the positions grow without limit.
        position: Position in the endless order of images, 0 or more.

    Returns:
        The index of the epoch, from 0.
    """
    low, high = 0, 1
    while start(high) <= position:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if start(middle) <= position else (low, middle)
    return low
