"""Prepares batches for training and inference, on one device or on many replicas."""

from collections.abc import Mapping

import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_utils import float_dtype
from kerasdet.ops.distribute import global_max, num_replicas


def training_batch(data: Mapping | tuple) -> dict[str, tf.Tensor]:
    """Casts a batch to the dtypes that losses need, and fills in `is_crowd` and `image_size` if they are missing.

    Args:
        data: The batch as Keras passes it to a step: a dict with `image` (B, H, W, 3), `boxes` (B, M, 4) yxyx in pixels
            and `class_ids` (B, M), -1 for padding, or a tuple that starts with the dict. Without `is_crowd` (B, M) no
            object is a crowd; without `image_size` (B, 2), heights and widths in pixels, no image is padded.

    Returns:
        A dict of `image_size` (B, 2) int32, `boxes` (B, M, 4) of `float_dtype()`, `class_ids` (B, M) int32, `is_crowd`
        (B, M) bool, and the other entries of the batch unchanged.

    Raises:
        UserError: If the batch is not a dict, or one of `image`, `boxes` and `class_ids` is missing.
    """
    batch = unpack_batch(data)
    if not isinstance(batch, Mapping):
        raise UserError(
            f"A training batch is a {type(batch).__name__}: expected a dict with 'image' (B, H, W, 3), 'boxes' "
            "(B, M, 4) and 'class_ids' (B, M). Call fit(batch) or fit(dataset of batches) instead of fit(x, y)."
        )
    batch = dict(batch)
    if missing := [name for name in ("image", "boxes", "class_ids") if name not in batch]:
        raise UserError(
            f"A training batch lacks {', '.join(missing)}; it has {', '.join(batch)}. Make batches with "
            "kerasdet.data.pipeline.training_batches, or add the missing keys."
        )
    batch.setdefault("image_size", valid_size(batch))
    batch.setdefault("is_crowd", tf.zeros_like(batch["class_ids"], tf.bool))
    types = {"boxes": float_dtype(), "class_ids": tf.int32, "is_crowd": tf.bool, "image_size": tf.int32}
    return {name: tf.cast(value, types[name]) if name in types else value for name, value in batch.items()}


def equal_parts(replicas: int, micro_batches: int) -> str:
    """Describes how a training step divides its images, for error messages.

    Args:
        replicas: Number of replicas of the strategy.
        micro_batches: Number of micro-batches that each replica's batch is split into.

    Returns:
        A phrase such as "into 4 micro-batches" or "among 2 replicas with 4 micro-batches each".
    """
    if replicas == 1:
        return f"into {micro_batches} micro-batches"
    return f"among {replicas} replicas" + f" with {micro_batches} micro-batches each" * (micro_batches > 1)


def unpack_batch(data: Mapping | tf.Tensor | tuple) -> Mapping | tf.Tensor:
    """Extracts the batch from the data that Keras passes to `train_step` and similar methods.

    Args:
        data: A batch, which Keras passes from a dataset, or a tuple that starts with a batch, from `train_on_batch`.

    Returns:
        The batch, a dict of tensors or an image tensor.
    """
    return data[0] if isinstance(data, tuple) else data


def valid_size(batch: Mapping[str, tf.Tensor] | tf.Tensor) -> tf.Tensor:
    """Returns the heights and widths of a batch's images without padding.

    Args:
        batch: A dict with `image` (B, H, W, 3) and possibly `image_size` (B, 2), heights and widths without padding in
            pixels, or an image tensor without padding.

    Returns:
        Heights and widths, (B, 2) int32 in pixels.
    """
    if isinstance(batch, Mapping):
        if "image_size" in batch:
            return batch["image_size"]
        batch = batch["image"]
    shape = tf.shape(batch)
    return tf.broadcast_to(shape[1:3], [shape[0], 2])


def pad_to_global_max(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Pads images to the largest height and width on any replica, as if the images of all replicas were one batch.

    Images are not padded if their size is known when the graph is traced, because it is then the same on all replicas.

    Args:
        batch: A dict with `image` (B, H, W, 3).

    Returns:
        The dict with the images padded at the bottom right.
    """
    image = tf.convert_to_tensor(batch["image"])
    if num_replicas() == 1 or image.shape[1:3].is_fully_defined():
        return {**batch, "image": image}
    size = tf.shape(image)[1:3]
    missing = tf.pad(tf.stack([tf.zeros(2, tf.int32), global_max(size) - size], 1), [[1, 1], [0, 0]])
    padded = tf.ensure_shape(tf.pad(image, missing), image.shape)
    return {**batch, "image": padded}


def pad_empty_batch(batch: Mapping[str, tf.Tensor] | tf.Tensor) -> tuple[Mapping | tf.Tensor, tf.Tensor | None]:
    """Replaces an empty batch by one black image without objects.

    If the last batch of a dataset has fewer images than there are replicas, some replicas get an empty batch, on which
    convolutions fail.

    Args:
        batch: A dict of tensors (B, ...), or a bare image tensor (B, H, W, 3).

    Returns:
        The batch as a dict, and a flag for `drop_padded_outputs`: a scalar int32, 1 for a real batch, 0 for the added
        image. With one replica, `batch` itself and None, because the batch is never empty.
    """
    if num_replicas() == 1:
        return batch, None
    batch = batch if isinstance(batch, Mapping) else {"image": batch}
    is_real = tf.minimum(tf.shape(batch["image"])[0], 1)
    filled = {}
    for name, value in batch.items():
        smallest = [1, 32, 32, 3] if name == "image" else [1] * value.shape.rank
        missing = tf.maximum((1 - is_real) * smallest - tf.shape(value), 0)
        nothing = tf.cast(-1 if name == "class_ids" else 0, value.dtype)
        padded = tf.pad(value, tf.stack([tf.zeros_like(missing), missing], 1), constant_values=nothing)
        filled[name] = tf.ensure_shape(padded, [None, *value.shape[1:]])
    return filled, is_real


def drop_padded_outputs(outputs: Mapping | tf.Tensor, is_real: tf.Tensor | None) -> Mapping | tf.Tensor:
    """Drops the outputs that a model computed for the image that `pad_empty_batch` added.

    Args:
        outputs: A tensor (B, ...), or a nested dict of tensors. Entries under the key ``anchors`` are unchanged,
            because they have no batch axis.
        is_real: Scalar int32, the flag from `pad_empty_batch`: 1 for a real batch, 0 for the added image. None keeps
            all outputs.

    Returns:
        The outputs, with B = 0 if the batch was empty.
    """
    if is_real is None:
        return outputs
    if isinstance(outputs, Mapping):
        return {
            name: value if name == "anchors" else drop_padded_outputs(value, is_real) for name, value in outputs.items()
        }
    return outputs[: is_real * tf.shape(outputs)[0]]
