"""Runs the GPU kernels, compiled as C++, in place of the compiled ops."""

import functools
import shutil
import subprocess
import types

import numpy as np
import tensorflow as tf
import without_tensorflow

GPUS = tf.config.list_physical_devices("GPU")  # if TensorFlow sees real GPUs, tests use them instead


@functools.cache
def library():
    """Builds and opens the ops for an emulated GPU; returns None if make or g++ is missing."""
    if not all(map(shutil.which, ("make", "g++"))):
        return None
    subprocess.run(["make", "-C", without_tensorflow.FOLDER, "emulation"], check=True, capture_output=True)
    return without_tensorflow.open_emulated()


def run(name, inputs, outputs, dtype="float32", **attributes):
    """Runs an op and returns its outputs; `outputs` lists their (shape, dtype)."""
    results = [np.empty(shape, dtype) for shape, dtype in outputs]
    library().op(name, dtype=dtype, **attributes)([np.ascontiguousarray(value) for value in inputs], results)
    return results


def in_graph(function, inputs, dtypes):
    """Wraps `tf.numpy_function` for inputs that are arrays and lists of arrays."""
    return tf.nest.flatten(tf.numpy_function(function, tf.nest.flatten(inputs), dtypes))


def nms(boxes, scores, class_ids, **attributes):
    def on_arrays(*inputs):
        batch = inputs[0].shape[0]
        return run("Nms", inputs, [((batch, attributes["max_detections"]), "int32"), ((batch,), "int32")], **attributes)

    return in_graph(on_arrays, [boxes, scores, class_ids], [tf.int32, tf.int32])


def roi_align(features, boxes, **attributes):
    size, dtype = (attributes["output_height"], attributes["output_width"]), features[0].dtype

    def on_arrays(*inputs):
        shape = (*inputs[-1].shape[:2], *size, inputs[0].shape[3])
        return run("RoiAlign", inputs, [(shape, inputs[0].dtype)], inputs[0].dtype.name, **attributes)

    def to_features(*inputs):
        *shapes, _, upstream = inputs
        outputs = [(shape, upstream.dtype) for shape in shapes]
        return run("RoiAlignGrad", inputs, outputs, upstream.dtype.name, **attributes)

    @tf.custom_gradient
    def pool(*features):
        def gradient(upstream):
            inputs = [*map(tf.shape, features), boxes, upstream]
            found = in_graph(to_features, inputs, [dtype] * len(features))
            return [tf.ensure_shape(x, like.shape) for x, like in zip(found, features, strict=True)]

        return in_graph(on_arrays, [*features, boxes], [dtype])[0], gradient

    return pool(*features)


def _columns_shape(x, offsets, attributes):
    taps = attributes["kernel_height"] * attributes["kernel_width"]
    return (attributes["groups"], int(np.prod(offsets.shape[:3])), taps * (x.shape[3] // attributes["groups"]))


def deform_columns(x, offsets, mask, **attributes):
    def on_arrays(*inputs):
        return run("DeformColumns", inputs, [(_columns_shape(*inputs[:2], attributes), "float32")], **attributes)

    return in_graph(on_arrays, [x, offsets, mask], [tf.float32])[0]


def deform_columns_grad(x, offsets, mask, grad, **attributes):
    def on_arrays(*inputs):
        shapes = [*(value.shape for value in inputs[:3]), _columns_shape(*inputs[:2], attributes)]
        return run("DeformColumnsGrad", inputs, [(shape, "float32") for shape in shapes], **attributes)

    return in_graph(on_arrays, [x, offsets, mask, grad], [tf.float32] * 4)


RAW_OPS = types.SimpleNamespace(
    kerasdet_nms=nms,
    kerasdet_roi_align=roi_align,
    kerasdet_deform_columns=deform_columns,
    kerasdet_deform_columns_grad=deform_columns_grad,
)
