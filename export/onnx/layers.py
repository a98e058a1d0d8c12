"""Converts convolutions, pooling, resizing and kerasdet's composite functions to ONNX operators.

Each function takes the converter `c` and an operation `op`, and adds ONNX nodes with the same results to the graph.
"""

import math

import numpy as np
import tensorflow as tf

from kerasdet.export.onnx.convert import Converter


def conv(c: Converter, op: tf.Operation) -> None:
    """Converts Conv2D. If the kernel has fewer input channels than the image, the convolution is grouped."""
    x, kernel = op.inputs
    weights = c.static(kernel).transpose(3, 2, 0, 1)  # (out, in, h, w)
    _set_conv(c, op, x, weights, group=x.shape[-1] // weights.shape[1])


def depthwise_conv(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's DepthwiseConv2dNative to ONNX."""
    x, kernel = op.inputs
    weights = c.static(kernel)  # the graph does not always know the shape of the kernel
    height, width, channels, multiplier = weights.shape
    weights = weights.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    _set_conv(c, op, x, weights, group=channels)


def _set_conv(c, op, x, weights, group):
    strides, dilations = op.get_attr("strides")[1:3], op.get_attr("dilations")[1:3]
    extent = [dilation * (length - 1) for dilation, length in zip(dilations, weights.shape[2:], strict=True)]
    padding = _padding(op, extent, strides)
    name = c.builder.add(
        "Conv",
        c.get(x, True),
        c.builder.constant(np.ascontiguousarray(weights), name="kernel"),
        strides=strides,
        dilations=dilations,
        group=group,
        kernel_shape=weights.shape[2:],
        **padding,
    )
    c.set(op.outputs[0], name, True)


def _padding(op, extent, strides):
    """Returns ONNX's padding attribute for an op whose window is `extent` cells longer than one cell."""
    padding = op.get_attr("padding")
    if padding == b"EXPLICIT":
        pads = op.get_attr("explicit_paddings")
        return {"pads": [pads[2], pads[4], pads[3], pads[5]]}
    if padding == b"VALID":
        return {"pads": [0] * 4}
    if max(strides) > 1:
        return {"auto_pad": "SAME_UPPER"}
    before = [length // 2 for length in extent]
    return {"pads": [*before, *(length - low for length, low in zip(extent, before, strict=True))]}


def transposed_conv(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Conv2DBackpropInput, the operation of Keras' Conv2DTranspose, to ONNX."""
    _, kernel, x = op.inputs
    weights = c.static(kernel).transpose(3, 2, 0, 1)  # (in, out, h, w)
    strides = op.get_attr("strides")[1:3]
    surplus = [max(length - step, 0) for length, step in zip(weights.shape[2:], strides, strict=True)]
    before = [length // 2 for length in surplus]
    after = [length - low for length, low in zip(surplus, before, strict=True)]
    name = c.builder.add(
        "ConvTranspose",
        c.get(x, True),
        c.builder.constant(np.ascontiguousarray(weights), name="kernel"),
        strides=strides,
        kernel_shape=weights.shape[2:],
        pads=[*before, *after] if op.get_attr("padding") == b"SAME" else [0] * 4,
    )
    c.set(op.outputs[0], name, True)


def pool(c: Converter, op: tf.Operation) -> None:
    """Converts MaxPool and AvgPool; the average of TensorFlow's AvgPool excludes the padding."""
    window, strides = op.get_attr("ksize")[1:3], op.get_attr("strides")[1:3]
    padding = _padding(op, [length - 1 for length in window], strides)
    kind = {"MaxPool": "MaxPool", "AvgPool": "AveragePool"}[op.type]
    name = c.builder.add(kind, c.get(op.inputs[0], True), kernel_shape=window, strides=strides, **padding)
    c.set(op.outputs[0], name, True)


def batch_norm(c: Converter, op: tf.Operation) -> None:
    """Converts FusedBatchNormV3 with stored statistics that does not follow a convolution."""
    names = [c.get(op.inputs[0], True), *(c.get(x) for x in op.inputs[1:5])]
    name = c.builder.add("BatchNormalization", *names, epsilon=op.get_attr("epsilon"))
    c.set(op.outputs[0], name, True)


def resize(c: Converter, op: tf.Operation) -> None:
    """Converts ResizeBilinear and ResizeNearestNeighbor, with half-pixel centres or, as in TensorFlow 1, without."""
    x, size = op.inputs
    image = c.get(x, True)
    leading = c.builder.add("Slice", c.builder.add("Shape", image), c.builder.integers(0), c.builder.integers(2))
    sizes = c.builder.add("Concat", leading, c.get(size), axis=0)
    mode = "linear" if op.type == "ResizeBilinear" else "nearest"
    centres = "half_pixel" if op.get_attr("half_pixel_centers") else "asymmetric"
    nearest = "round_prefer_ceil" if centres == "half_pixel" else "floor"  # rounding of positions in the input
    rounding = {} if mode == "linear" else {"nearest_mode": nearest}
    name = c.builder.add("Resize", image, "", "", sizes, mode=mode, coordinate_transformation_mode=centres, **rounding)
    c.set(op.outputs[0], name, True)


def doubling(c: Converter, op: tf.Operation) -> None:
    """Converts kerasdet's `composite` that doubles height and width by repeating rows and columns."""
    scales = c.builder.constant([1, 1, 2, 2], np.float32)
    name = c.builder.add(
        "Resize",
        c.get(op.inputs[0], True),
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    c.set(op.outputs[0], name, True)


def group_norm(c: Converter, op: tf.Operation) -> None:
    """Converts kerasdet's `composite` of group norm: InstanceNormalization of (B, groups, size), scale and offset."""
    attributes = c.composite(op)[1]
    x, gamma, beta = op.inputs
    image, groups = c.get(x, True), attributes["groups"]
    ones, zeros = (c.builder.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    grouped = c.builder.add("Reshape", image, c.builder.integers(0, groups, -1))
    normal = c.builder.add("InstanceNormalization", grouped, ones, zeros, epsilon=attributes["epsilon"])
    normal = c.builder.add("Reshape", normal, c.builder.add("Shape", image))
    scale, offset = (c.builder.constant(c.static(v).reshape(-1, 1, 1)) for v in (gamma, beta))
    c.set(op.outputs[0], c.builder.add("Add", c.builder.add("Mul", normal, scale), offset), True)


def roi_align(c: Converter, op: tf.Operation) -> None:
    """Converts kerasdet's `composite` of ROIAlign. Boxes are (y1, x1, y2, x2) in kerasdet, (x1, y1, x2, y2) in ONNX."""
    attributes = c.composite(op)[1]
    features, boxes, images = op.inputs
    rois = c.builder.add("Gather", c.get(boxes), c.builder.integers(1, 0, 3, 2), axis=1)
    name = c.builder.add(
        "RoiAlign",
        c.get(features, True),
        rois,
        c.get(images),
        mode="avg",
        output_height=attributes["output_height"],
        output_width=attributes["output_width"],
        sampling_ratio=attributes["sampling_ratio"],
        spatial_scale=1.0,  # the boxes are already in cells of the feature map
        coordinate_transformation_mode="half_pixel" if attributes["aligned"] else "output_half_pixel",
    )
    c.set(op.outputs[0], name, True)


def non_max_suppression(c: Converter, op: tf.Operation) -> None:
    """Converts kerasdet's `composite` of NMS on boxes (B, N, 4) and scores (B, N) to indices (B, D) and counts (B,).

    ONNX lists the kept boxes of all images without a guaranteed order. Their scores are written into a table (B, N)
    that is -inf elsewhere. Its D highest entries are the kept boxes in descending order of score; of equal scores, the
    first box comes first.
    """
    attributes, add = c.composite(op)[1], c.builder.add
    # OpenVINO 2026.4 must infer that boxes have four coordinates, and fails to do so in quantised models.
    boxes, scores = add("Reshape", c.get(op.inputs[0]), c.builder.integers(0, -1, 4)), c.get(op.inputs[1])
    limit = attributes["max_detections"]
    threshold = attributes["score_threshold"]
    selected = add(
        "NonMaxSuppression",
        boxes,
        add("Unsqueeze", scores, c.builder.integers(1)),
        c.builder.integers(limit),
        c.builder.constant([attributes["iou_threshold"]], np.float32),
        *([c.builder.constant([threshold], np.float32)] if math.isfinite(threshold) else []),
    )  # (S, 3) as (image, class, box)
    places = add("Gather", selected, c.builder.integers(0, 2), axis=1)  # (S, 2)
    nothing = c.builder.constant(-np.inf, np.float32)
    table = add("ScatterND", add("Expand", nothing, add("Shape", scores)), places, add("GatherND", scores, places))
    best, indices = add("TopK", table, c.builder.integers(limit), num_outputs=2)
    kept = add("Greater", best, c.builder.constant(threshold if math.isfinite(threshold) else -np.inf, np.float32))
    c.set(op.outputs[0], add("Where", kept, indices, c.builder.constant(-1, np.int64)))
    counted = add("Cast", kept, to=c.type_of(tf.int32))
    c.set(op.outputs[1], add("ReduceSum", counted, c.builder.integers(1), keepdims=0))


CONVERTERS = {
    "Conv2D": conv,
    "DepthwiseConv2dNative": depthwise_conv,
    "Conv2DBackpropInput": transposed_conv,
    "MaxPool": pool,
    "AvgPool": pool,
    "FusedBatchNormV3": batch_norm,
    "ResizeBilinear": resize,
    "ResizeNearestNeighbor": resize,
    "kerasdet>Doubling": doubling,
    "kerasdet>GroupNormalization": group_norm,
    "kerasdet>RoiAlign": roi_align,
    "kerasdet>NonMaxSuppression": non_max_suppression,
}
