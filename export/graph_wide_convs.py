"""The pass that makes wide convolutions of single images faster on CPUs."""

import functools
from collections import Counter
from collections.abc import Collection

import tensorflow as tf

from kerasdet.export.graph_nodes import FLOAT, GraphDef, NodeDef, copied, dtype_of, value_of


def split_wide_convs(graph: GraphDef, ends: Collection[str]) -> GraphDef:
    """Splits single images into two halves for wide float32 3x3 convolutions, which are then faster on CPUs.

    A convolution is wide if its number of output channels is a multiple of 256. The pass changes wide convolutions with
    padding "SAME", without strides and dilation, whose result goes only to a BiasAdd. TensorFlow 2.21 reorders the
    weights of a convolution for two images, but not for one image; with the original order, oneDNN takes 1.5 times as
    long. Inputs of at most 16 rows are not split. The results are equal to the last bit.

    Args:
        graph: A graph whose weights are constants.
        ends: Names of the graph's input and output nodes. Each stays in the graph and keeps its value.

    Returns:
        The converted graph.
    """
    graph = copied(graph)
    nodes = {node.name: node for node in graph.node}
    uses = Counter(name.lstrip("^").split(":")[0] for node in graph.node for name in node.input)
    followers = {node.input[0]: node for node in graph.node if node.input}
    for conv in [node for node in graph.node if node.op == "Conv2D"]:
        bias_add = followers.get(conv.name)
        if not _is_wide(conv, nodes) or uses[conv.name] != 1 or bias_add is None or bias_add.op != "BiasAdd":
            continue
        last, relu = bias_add, followers.get(bias_add.name)
        if relu is not None and relu.op == "Relu" and uses[bias_add.name] == 1 and bias_add.name not in ends:
            last = relu
        last.CopyFrom(_call(_split_conv(last is relu), last.name, [*conv.input, bias_add.input[1]], graph))
    return graph


def _is_wide(conv, nodes):
    """Returns whether `split_wide_convs` makes a convolution faster."""
    kernel = nodes.get(conv.input[1])
    if kernel is None or kernel.op != "Const" or dtype_of(conv, "T") != FLOAT or conv.attr["padding"].s != b"SAME":
        return False
    *size, _, channels = value_of(kernel).shape
    steps = [*conv.attr["strides"].list.i, *conv.attr["dilations"].list.i]
    return size == [3, 3] and channels % 256 == 0 and set(steps) == {1}


@functools.cache
def _split_conv(relu):
    """Builds a function for a 3x3 convolution with bias and optional ReLU that splits a single image into halves."""

    def convolve(x, kernel, bias, padding):
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, padding), bias)
        return tf.nn.relu(y) if relu else y

    def halved(x, kernel, bias):
        _, height, width, channels = tf.unstack(tf.shape(x))
        half = (height + 1) // 2
        zeros = tf.zeros([2 * half - height + 1, width, channels])
        rows = tf.concat([zeros[:1], x[0, : half + 1], x[0, half - 1 :], zeros], 0)  # each half and one more row
        halves = tf.reshape(rows, [2, half + 2, width, channels])
        y = convolve(halves, kernel, bias, [[0, 0], [0, 0], [1, 1], [0, 0]])
        return tf.reshape(y, [1, 2 * half, width, tf.size(bias)])[:, :height]

    def function(x, kernel, bias):
        return tf.cond(
            (tf.shape(x)[0] == 1) & (tf.shape(x)[1] > 16),
            lambda: halved(x, kernel, bias),
            lambda: convolve(x, kernel, bias, "SAME"),
        )

    specs = [tf.TensorSpec(shape) for shape in ([None] * 4, [3, 3, None, None], [None])]
    # Without inlining, the function that splits a convolution is stored once, not once per convolution.
    attributes = {"_noinline": True}
    return tf.function(function, input_signature=specs, experimental_attributes=attributes).get_concrete_function()


def _call(function, name, inputs, graph):
    """Returns a node that calls a function, after adding the function to the graph's library."""
    library = graph.library.function
    known = {each.signature.name for each in library}
    nested = function.graph.as_graph_def().library.function
    library.extend(each for each in [*nested, function.function_def] if each.signature.name not in known)
    node = NodeDef(name=name, op="PartitionedCall", input=inputs)
    node.attr["Tin"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in function.inputs)
    node.attr["Tout"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in function.outputs)
    node.attr["f"].func.name = function.function_def.signature.name
    return node
