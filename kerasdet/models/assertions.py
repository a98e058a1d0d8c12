"""Asserts in the graph of a step that the objects of every batch are valid, and explains failed assertions."""

import re
from collections.abc import Mapping

import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_utils import float_dtype
from kerasdet.models.batch import training_batch, unpack_batch


def with_valid_objects(data: Mapping | tuple, num_classes: int | None) -> dict[str, tf.Tensor]:
    """Makes a training batch, with assertions on its class ids, boxes and flags of crowds.

    Args:
        data: A training batch (see `training_batch`), or a tuple that starts with one.
        num_classes: Number of classes K. None: the model has no classes.

    Returns:
        The result of `training_batch`. In a graph, computing `boxes` or `class_ids` runs the assertions.

    Raises:
        UserError: If the batch is not a dict, or lacks a required key.
    """
    batch = training_batch(data)
    boxes, class_ids = batch["boxes"], batch["class_ids"]
    wrong_class = class_ids < -1
    if num_classes is not None:
        wrong_class |= class_ids >= num_classes
    in_order = tf.reduce_all(boxes[..., 2:] >= boxes[..., :2], -1)
    finite = tf.reduce_all(tf.math.is_finite(boxes), -1)
    wrong_box = (class_ids >= 0) & ~(in_order & finite)  # (B, M); a box of padding may be anything
    # Like `are_fractions`, but never true for a single box, which a crop may have cut to less than a pixel
    is_object = (class_ids >= 0)[..., None]
    in_unit = tf.reduce_all(~is_object | ((boxes >= 0) & (boxes <= 1)))
    fractions = in_unit & tf.reduce_any(is_object & (boxes != tf.round(boxes)))
    fractions &= tf.math.count_nonzero(is_object) > 1
    expected = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
    checks = [
        _assert_no_object(
            wrong_class, batch, f"A class id must be {expected}, or -1 for padding; found the class id", class_ids
        ),
        _assert_no_object(
            wrong_box,
            batch,
            "A box is inverted or not finite; expected (y1, x1, y2, x2) in pixels, y1 < y2, x1 < x2. Found the box",
            boxes,
        ),
        _assert_no_object(
            fractions & (class_ids >= 0),
            batch,
            "A box has no number above 1, like all boxes of its batch; expected (y1, x1, y2, x2) in pixels, not "
            "fractions. Found the box",
            boxes,
        ),
    ]
    crowd = tf.convert_to_tensor(unpack_batch(data).get("is_crowd", batch["is_crowd"]))
    if crowd.dtype != tf.bool:
        wrong = (crowd != 0) & (crowd != 1)
        checks.append(_assert_no_object(wrong, batch, "A value of is_crowd must be 0 or 1; found", crowd))
    with tf.control_dependencies(checks):
        return {**batch, "boxes": tf.identity(boxes), "class_ids": tf.identity(class_ids)}


def _assert_no_object(wrong, batch, message, values):
    """Returns an assertion that no object is wrong, whose message shows the first wrong object.

    Args:
        wrong: (B, M) bool.
        batch: Training batch. If it has `image_id` (B,), the message names the image.
        message: Text before the value.
        values: (B, M, ...), the value of each object, such as its box.
    """
    # One more row and image, because B or M may be 0: the graph gathers an object even if no object is wrong
    wrong = tf.pad(tf.cast(wrong, float_dtype()), [[0, 1], [0, 1]])
    values = tf.pad(values, [[0, 1], [0, 1]] + [[0, 0]] * (values.shape.rank - 2))
    first = tf.argmax(tf.reshape(wrong, [-1]), output_type=tf.int32)
    image, row = first // tf.shape(wrong)[1], first % tf.shape(wrong)[1]
    data = [message, values[image, row], "of object", row, "in image", image, "of the batch"]
    if "image_id" in batch:
        data += ["with the image id", tf.pad(tf.convert_to_tensor(batch["image_id"]), [[0, 1]])[image]]
    return tf.debugging.Assert(tf.reduce_max(wrong) < 0.5, data, summarize=4)


def user_error(error: tf.errors.InvalidArgumentError) -> Exception:
    """Converts the error of a failed assertion of a step to an error of one sentence.

    Args:
        error: Error of a function that ran a step.

    Returns:
        A UserError or FloatingPointError; `error` itself if it is not from such an assertion.
    """
    failed = re.search(r"assertion failed: (.*)", error.message)
    if not failed:
        return error
    # TensorFlow writes the facts as a list of bracketed values
    text = " ".join(re.findall(r"\[([^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*)\]", failed.group(1))) or failed.group(1)
    if "is not finite at iteration" in text:
        return FloatingPointError(text)
    return (
        UserError(f"{text}. Correct the batch.")
        if text.startswith(("A class id", "A box", "A value of is_crowd"))
        else error
    )
