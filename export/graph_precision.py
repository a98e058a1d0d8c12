"""Passes that change the precision of a graph: to float32, and from float32 to 16 bits."""

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from kerasdet.export.graph_nodes import (
    FLOAT,
    GraphDef,
    NodeDef,
    all_nodes,
    constant_node,
    copied,
    dtype_of,
    in_order,
    value_of,
)

# op -> indices of its data input and its weight
_WEIGHTED = {"Conv2D": (0, 1), "DepthwiseConv2dNative": (0, 1), "Conv2DBackpropInput": (2, 1), "MatMul": (0, 1)}
_FOLLOWING = {  # op -> indices of its inputs of type T; these ops add little to the error of 16-bit inputs
    **dict.fromkeys(["BiasAdd", "AddV2"], (0, 1)),
    **dict.fromkeys(["Relu", "Identity", "MaxPool", "Pad", "Reshape", "Squeeze", "ExpandDims", "Tile"], (0,)),
    **dict.fromkeys(["StridedSlice", "Transpose", "ResizeNearestNeighbor", "Max", "GatherV2"], (0,)),
}
_BLIND = ("Shape", "Size")  # ops that read only the shape of their input


def to_float32(graph: GraphDef) -> GraphDef:
    """Converts all float16 and bfloat16 tensors, such as those of a model trained in mixed precision, to float32.

    Args:
        graph: The graph to convert.

    Returns:
        The converted graph.
    """
    graph = copied(graph)
    low = {tf.bfloat16.as_datatype_enum, tf.float16.as_datatype_enum}
    for node in all_nodes(graph):
        if node.op == "Const" and node.attr["dtype"].type in low:
            node.CopyFrom(constant_node(node.name, value_of(node).astype(np.float32)))
        for attribute in node.attr.values():
            if attribute.type in low:
                attribute.type = FLOAT
            for index, dtype in enumerate(attribute.list.type):
                if dtype in low:
                    attribute.list.type[index] = FLOAT
    return graph


def lower_precision(graph: GraphDef, dtype: tf.DType, ends: Collection[str]) -> GraphDef:
    """Converts convolutions and matrix products with constant weights, and simple ops that follow them, to 16 bits.

    Ops that follow, such as Relu and Reshape, are converted if all their floating-point inputs are 16-bit or constants.
    Everything else, such as the decoding of boxes, stays in float32. The casts are part of the graph and the weights
    are stored in `dtype`, so neither a server's settings nor another processor changes the precision of any op.

    Args:
        graph: A graph in float32 whose weights are constants.
        dtype: `tf.bfloat16` or `tf.float16`.
        ends: Names of the graph's input and output nodes, which stay in float32.

    Returns:
        The converted graph.
    """
    graph = copied(graph)
    nodes = {node.name: node for node in graph.node}
    low, added = set(), {}

    def is_constant(name):
        return name in nodes and nodes[name].op == "Const"

    def cast(name, source, target):
        node = NodeDef(name=f"{name.replace(':', '_')}/{target.name}", op="Cast", input=[name])
        node.attr["SrcT"].type, node.attr["DstT"].type = source.as_datatype_enum, target.as_datatype_enum
        if is_constant(name):
            node = constant_node(node.name, value_of(nodes[name]).astype(target.as_numpy_dtype))
        added[node.name] = node
        return node.name

    for node in in_order(graph):
        if node.op in _BLIND and node.input[0] in low:
            node.attr["T"].type = dtype.as_datatype_enum
            continue
        key = "Tparams" if node.op == "GatherV2" else "T"
        typed = _weighted_inputs(node, is_constant) or _following_inputs(node, is_constant, low)
        if typed and dtype_of(node, key) in (FLOAT, None) and node.name not in ends:
            node.attr[key].type = dtype.as_datatype_enum
            low.add(node.name)
        else:
            typed = ()
        for index, name in enumerate(node.input):
            if index in typed and name not in low:
                node.input[index] = cast(name, tf.float32, dtype)
            elif index not in typed and name in low:
                node.input[index] = cast(name, dtype, tf.float32)
    graph.node.extend(added.values())
    return graph


def widen_strides(graph: GraphDef) -> GraphDef:
    """Makes strided 16-bit 3x3 convolutions compute one more column and drop it, to avoid a bug of oneDNN.

    In TensorFlow 2.21 oneDNN returns garbage on AMX if such a convolution has a single output column and several rows.
    The pass finds convolutions that follow a `Pad` by constants, as all strided convolutions of `kerasdet.layers` do.
    Remove this pass once tests/export/test_graph.py passes without it on a processor with AMX.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
    graph = copied(graph)
    nodes = {node.name: node for node in graph.node}
    for conv in [node for node in graph.node if node.op == "Conv2D" and dtype_of(node, "T") != FLOAT]:
        step, pad = conv.attr["strides"].list.i[2], nodes.get(conv.input[0])
        if step == 1 or pad is None or pad.op != "Pad" or nodes[pad.input[1]].op != "Const":
            continue
        kernel = nodes.get(conv.input[1])
        if kernel is None or kernel.op != "Const" or value_of(kernel).shape[:2] != (3, 3):
            continue  # the 7x7 stem reads the image, which is never so narrow
        paddings = np.add(value_of(nodes[pad.input[1]]), [[0, 0], [0, 0], [0, step], [0, 0]])
        wide, wide_pad = copied(conv), copied(pad)
        wide.name, wide_pad.name = f"{conv.name}/wide", f"{pad.name}/wide"
        wide.input[0], wide_pad.input[1] = wide_pad.name, f"{pad.name}/wide/paddings"
        cut = NodeDef(name=conv.name, op="StridedSlice", input=[wide.name])
        cut.attr["T"].CopyFrom(conv.attr["T"])
        cut.attr["Index"].type = tf.int32.as_datatype_enum
        cut.attr["begin_mask"].i, cut.attr["end_mask"].i = 0b111, 0b011
        for name, values in {"begin": [0, 0, 0], "end": [0, 0, -1], "strides": [1, 1, 1]}.items():
            cut.input.append(f"{conv.name}/{name}")
            graph.node.append(constant_node(cut.input[-1], np.int32(values)))
        conv.CopyFrom(cut)
        graph.node.extend([wide, wide_pad, constant_node(wide_pad.input[1], paddings.astype(np.int32))])
    return graph


def _weighted_inputs(node, is_constant):
    """Returns the indices of data and weight of a convolution or matrix product with constant weights, otherwise ()."""
    typed = _WEIGHTED.get(node.op, ())
    return typed if typed and is_constant(node.input[typed[1]]) else ()


def _following_inputs(node, is_constant, low):
    """Returns the indices of the floating-point inputs of an op of `_FOLLOWING` or a ConcatV2, otherwise ().

    Returns () also if none of these inputs is 16-bit, or if one is neither 16-bit nor constant.
    """
    typed = _FOLLOWING.get(node.op, ())
    if node.op == "ConcatV2":
        typed = tuple(range(node.attr["N"].i))
    names = [node.input[index] for index in typed]
    follows = any(name in low for name in names) and all(name in low or is_constant(name) for name in names)
    return typed if follows else ()
