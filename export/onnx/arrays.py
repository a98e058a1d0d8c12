"""Converts TensorFlow's operations that create, join, repeat, select and move elements.

Each function takes the converter `c` and an operation `op`, and adds ONNX nodes with the same results to the graph.
"""

import numpy as np
import tensorflow as tf

from kerasdet.export.onnx.convert import AXES_CHANNELS_FIRST, Converter, numpy_type


def constant(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Const to ONNX."""
    value = tf.make_ndarray(op.get_attr("value"))
    c.set(op.outputs[0], c.builder.constant(value.astype(numpy_type(op.outputs[0].dtype)), name=_short(op)))


def shape(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Shape to ONNX."""
    x = op.inputs[0]
    if x.shape.is_fully_defined():
        name = c.builder.integers(*x.shape.as_list())
    elif c.is_channels_first(x):
        name = c.builder.add("Gather", c.builder.add("Shape", c.get(x, True)), c.builder.integers(*AXES_CHANNELS_FIRST))
    else:
        name = c.builder.add("Shape", c.get(x))
    c.set(op.outputs[0], name)


def size(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Size to ONNX."""
    c.set(op.outputs[0], c.builder.add("Size", c.get(op.inputs[0])))


def pack(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Pack to ONNX."""
    axis = c.builder.integers(op.get_attr("axis"))
    parts = [c.builder.add("Unsqueeze", c.get(x), axis) for x in op.inputs]
    c.set(op.outputs[0], c.builder.add("Concat", *parts, axis=op.get_attr("axis")))


def unpack(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Unpack to ONNX."""
    x, axis = c.get(op.inputs[0]), op.get_attr("axis")
    for index, output in enumerate(op.outputs):
        c.set(output, c.builder.add("Gather", x, c.builder.constant(index, np.int64), axis=axis))


def concat(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's ConcatV2 to ONNX."""
    *values, axis = op.inputs
    axis, first = int(c.static(axis)), all(c.is_channels_first(x) for x in values)
    if first:
        axis = AXES_CHANNELS_FIRST[axis]
    c.set(op.outputs[0], c.builder.add("Concat", *(c.get(x, first) for x in values), axis=axis), first)


def expand_dims(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's ExpandDims to ONNX."""
    axis = c.builder.integers(int(c.static(op.inputs[1])))
    c.set(op.outputs[0], c.builder.add("Unsqueeze", c.get(op.inputs[0]), axis))


def squeeze(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Squeeze to ONNX."""
    axes = op.get_attr("squeeze_dims") or [i for i, length in enumerate(op.inputs[0].shape) if length == 1]
    c.set(op.outputs[0], c.builder.add("Squeeze", c.get(op.inputs[0]), c.builder.integers(*axes)))


def reshape(c: Converter, op: tf.Operation) -> None:
    """Converts Reshape. In TensorFlow a length of 0 makes an empty axis; in ONNX it does so only with `allowzero`."""
    new_shape = c.static(op.inputs[1])
    allowzero = int(new_shape is None or 0 in new_shape)
    c.set(op.outputs[0], c.builder.add("Reshape", *(c.get(x) for x in op.inputs), allowzero=allowzero))


def transpose(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Transpose to ONNX."""
    c.set(op.outputs[0], c.builder.add("Transpose", c.get(op.inputs[0]), perm=c.static(op.inputs[1]).tolist()))


def tile(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Tile to ONNX."""
    c.set(op.outputs[0], c.builder.add("Tile", *(c.get(x) for x in op.inputs)))


def broadcast_to(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's BroadcastTo to ONNX."""
    c.set(op.outputs[0], c.builder.add("Expand", *(c.get(x) for x in op.inputs)))


def fill(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Fill to ONNX."""
    dims, value = op.inputs
    c.set(op.outputs[0], c.builder.add("Expand", c.get(value), c.get(dims)))


def filled_like(c: Converter, op: tf.Operation) -> None:
    """Converts ZerosLike and OnesLike; for bool tensors, zero is False and one is True."""
    value = c.builder.constant(op.type == "OnesLike", numpy_type(op.inputs[0].dtype))
    c.set(op.outputs[0], c.builder.add("Expand", value, c.builder.add("Shape", c.get(op.inputs[0]))))


def range_(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Range to ONNX."""
    c.set(op.outputs[0], c.builder.add("Range", *(c.get(x) for x in op.inputs)))


def gather(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's GatherV2 to ONNX."""
    x, indices, axis = op.inputs
    batch_dims, axis = op.get_attr("batch_dims"), int(c.static(axis))
    if batch_dims:
        indices = c.builder.add("Unsqueeze", c.get(indices), c.builder.integers(-1))
        c.set(op.outputs[0], c.builder.add("GatherND", c.get(x), indices, batch_dims=batch_dims))
        return
    first = c.is_channels_first(x) and axis == 0 and indices.shape.rank == 1
    c.set(op.outputs[0], c.builder.add("Gather", c.get(x, first), c.get(indices), axis=axis), first)


def split(c: Converter, op: tf.Operation) -> None:
    """Converts Split and SplitV."""
    axis, x = op.inputs if op.type == "Split" else (op.inputs[2], op.inputs[0])
    sizes = [c.get(op.inputs[1])] if op.type == "SplitV" else []
    names = c.builder.add("Split", c.get(x), *sizes, num_outputs=len(op.outputs), axis=int(c.static(axis)))
    for output, name in zip(op.outputs, [names] if len(op.outputs) == 1 else names, strict=True):
        c.set(output, name)


def pad(c: Converter, op: tf.Operation) -> None:
    """Converts Pad and PadV2."""
    x, paddings, *value = op.inputs
    paddings_value, first = c.static(paddings), c.is_channels_first(x)
    if first and paddings_value is not None:
        ends = paddings_value[[0, 3, 1, 2]].T.ravel()
        pads = c.builder.integers(*ends.tolist())
    else:
        first = False
        pads = c.builder.add("Transpose", c.get(paddings), perm=[1, 0])
        pads = c.builder.add("Reshape", pads, c.builder.integers(-1))
    c.set(op.outputs[0], c.builder.add("Pad", c.get(x, first), pads, *(c.get(v) for v in value)), first)


def scatter(c: Converter, op: tf.Operation) -> None:
    """Converts ScatterNd with unique indices."""
    indices, updates, shape = (c.get(x) for x in op.inputs)
    zeros = c.builder.add("Expand", c.builder.constant(0, numpy_type(op.inputs[1].dtype)), shape)
    c.set(op.outputs[0], c.builder.add("ScatterND", zeros, indices, updates))


def one_hot(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's OneHot to ONNX."""
    indices, depth, on, off = (c.get(x) for x in op.inputs)
    values = c.builder.add("Concat", *(c.builder.add("Unsqueeze", v, c.builder.integers(0)) for v in (off, on)), axis=0)
    c.set(op.outputs[0], c.builder.add("OneHot", indices, depth, values, axis=op.get_attr("axis")))


def where(c: Converter, op: tf.Operation) -> None:
    """Converts Where with a single input, which lists the indices of true elements."""
    c.set(op.outputs[0], c.builder.add("Transpose", c.builder.add("NonZero", c.get(op.inputs[0])), perm=[1, 0]))


def _short(op):
    """Returns a readable name for a constant."""
    return "/".join(op.name.split("/")[-3:])


CONVERTERS = {
    "Const": constant,
    "Shape": shape,
    "Size": size,
    "Pack": pack,
    "Unpack": unpack,
    "ConcatV2": concat,
    "ExpandDims": expand_dims,
    "Squeeze": squeeze,
    "Reshape": reshape,
    "Transpose": transpose,
    "Tile": tile,
    "BroadcastTo": broadcast_to,
    "Fill": fill,
    "ZerosLike": filled_like,
    "OnesLike": filled_like,
    "Range": range_,
    "GatherV2": gather,
    "Split": split,
    "SplitV": split,
    "Pad": pad,
    "PadV2": pad,
    "ScatterNd": scatter,
    "OneHot": one_hot,
    "Where": where,
}
