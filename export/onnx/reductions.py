"""Converts TensorFlow's operations that compute an element from many elements: sums, maxima, sorting, products.

Each function takes the converter `c` and an operation `op`, and adds ONNX nodes with the same results to the graph.
"""

import numpy as np
import tensorflow as tf

from kerasdet.export.onnx.convert import Converter

_REDUCTIONS = {"Max": "ReduceMax", "Min": "ReduceMin", "Sum": "ReduceSum", "Mean": "ReduceMean", "Prod": "ReduceProd"}


def reduce(c: Converter, op: tf.Operation) -> None:
    """Converts reductions over constant axes."""
    x, axes = c.get(op.inputs[0]), np.atleast_1d(c.static(op.inputs[1])).tolist()
    keep = int(op.get_attr("keep_dims"))
    if op.type == "Sum":  # the only one whose axes are an input in opset 17
        c.set(op.outputs[0], c.builder.add("ReduceSum", x, c.builder.integers(*axes), keepdims=keep))
    else:
        c.set(op.outputs[0], c.builder.add(_REDUCTIONS[op.type], x, axes=axes, keepdims=keep))


def reduce_bool(c: Converter, op: tf.Operation) -> None:
    """Converts All and Any, by the minimum or maximum of integers."""
    x = c.builder.add("Cast", c.get(op.inputs[0]), to=c.type_of(tf.int32))
    axes = np.atleast_1d(c.static(op.inputs[1])).tolist()
    kind = "ReduceMin" if op.type == "All" else "ReduceMax"
    reduced = c.builder.add(kind, x, axes=axes, keepdims=int(op.get_attr("keep_dims")))
    c.set(op.outputs[0], c.builder.add("Cast", reduced, to=c.type_of(tf.bool)))


def top_k(c: Converter, op: tf.Operation) -> None:
    """Converts TopKV2. Of equal values, the first comes first in TensorFlow and in ONNX's specification.

    OpenVINO 2026.4 does not keep this order, which matters for integers, such as the 0 and 1 of `compact`. The
    converter therefore ranks each integer by ``value * length - position``, so that no two are equal.
    """
    x, k = op.inputs
    values, k = c.get(x), c.builder.add("Reshape", c.get(k), c.builder.integers(1))
    keys = values
    if x.dtype.is_integer:
        length = c.builder.add("Gather", c.builder.add("Shape", values), c.builder.constant(-1, np.int64), axis=0)
        zero, one = (c.builder.constant(number, np.int64) for number in (0, 1))
        positions = c.builder.add("Range", zero, length, one)
        keys = c.builder.add("Sub", c.builder.add("Mul", values, length), positions)
    best, indices = c.builder.add("TopK", keys, k, num_outputs=2)
    if x.dtype.is_integer:
        best = c.builder.add("GatherElements", values, indices, axis=-1)
    c.set(op.outputs[0], best)
    c.set(op.outputs[1], indices)


def cumsum(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Cumsum to ONNX."""
    flags = {name: int(op.get_attr(name)) for name in ("exclusive", "reverse")}
    c.set(op.outputs[0], c.builder.add("CumSum", *(c.get(x) for x in op.inputs), **flags))


def arg_max(c: Converter, op: tf.Operation) -> None:
    """Converts ArgMax and ArgMin."""
    axis = int(c.static(op.inputs[1]))
    c.set(op.outputs[0], c.builder.add(op.type, c.get(op.inputs[0]), axis=axis, keepdims=0))


def softmax(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Softmax to ONNX."""
    c.set(op.outputs[0], c.builder.add("Softmax", c.get(op.inputs[0]), axis=-1))


def matmul(c: Converter, op: tf.Operation) -> None:
    """Converts MatMul and BatchMatMulV2."""
    flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    names = []
    for x, flag in zip(op.inputs, flags, strict=True):
        name = c.get(x)
        if op.get_attr(flag):
            order = list(range(x.shape.rank))
            name = c.builder.add("Transpose", name, perm=[*order[:-2], order[-1], order[-2]])
        names.append(name)
    c.set(op.outputs[0], c.builder.add("MatMul", *names))


def einsum(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Einsum to ONNX."""
    equation = op.get_attr("equation").decode()
    c.set(op.outputs[0], c.builder.add("Einsum", *(c.get(x) for x in op.inputs), equation=equation))


CONVERTERS = {
    **dict.fromkeys(_REDUCTIONS, reduce),
    "All": reduce_bool,
    "Any": reduce_bool,
    "TopKV2": top_k,
    "Cumsum": cumsum,
    "ArgMax": arg_max,
    "ArgMin": arg_max,
    "MatMul": matmul,
    "BatchMatMulV2": matmul,
    "Einsum": einsum,
    "Softmax": softmax,
}
