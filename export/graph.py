"""A model's inference as one graph, made fast: batch norm folded, weights and arithmetic in the chosen precision.

The steps are functions from a `GraphDef` to a `GraphDef`, which know nothing of the model it came from.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

from kerasdet.ops import static_shapes

PRECISIONS = ("float32", "bfloat16", "float16")

_WEIGHTED = {"Conv2D": (0, 1), "DepthwiseConv2dNative": (0, 1), "Conv2DBackpropInput": (2, 1), "MatMul": (0, 1)}
_FOLLOWING = {  # op -> its inputs of type T; none of them needs more bits than what it is given
    **dict.fromkeys(["BiasAdd", "AddV2"], (0, 1)),
    **dict.fromkeys(["Relu", "Identity", "MaxPool", "Pad", "Reshape", "Squeeze", "ExpandDims", "Tile"], (0,)),
    **dict.fromkeys(["StridedSlice", "Transpose", "ResizeNearestNeighbor", "Max", "GatherV2"], (0,)),
}
_BLIND = ("Shape", "Size")  # to values
_FLOAT = tf.float32.as_datatype_enum
_LARGE = 2048  # bytes


class InferenceGraph(tf.Module):
    """A function as a graph of its own, with weights that it no longer shares with the model.

    Args:
        function: From tensors to a dict of tensors.
        signature: Of its arguments.
        precision: One of `PRECISIONS`, of convolutions, matrix products and what lies between them.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(self, function: Callable, signature: Sequence[tf.TensorSpec], precision: str = "float32"):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"There is no precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
        concrete = tf.function(function, input_signature=signature).get_concrete_function()
        frozen, graph = convert_variables_to_constants_v2_as_graph(concrete, lower_control_flow=False)
        self._names = sorted(concrete.structured_outputs)  # as a dict is flattened
        self._inputs = [tensor.name for tensor in frozen.inputs]
        self._outputs = [tensor.name for tensor in frozen.outputs]
        ends = [name.split(":")[0] for name in (*self._inputs, *self._outputs)]
        graph = fold_strides(fold_batch_norm(fold_constants(in_float32(without_gradients(graph)))))
        if precision != "float32":
            graph = widen_strides(lower_precision(graph, tf.as_dtype(precision), ends))
        elif not static_shapes():
            graph = halve_images(graph, ends)
        self._graph, weights = split_weights(_in_order(graph, ends), graph)
        self.weights = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        self.detect = tf.function(self._call, input_signature=signature)

    def _call(self, *arguments):
        values = {f"{name}:0": weight.read_value() for name, weight in self.weights.items()}
        results = tf.graph_util.import_graph_def(
            self._graph,
            input_map={**dict(zip(self._inputs, arguments, strict=True)), **values},
            return_elements=self._outputs,
            name="graph",
        )
        return dict(zip(self._names, results, strict=True))


def without_gradients(graph: GraphDef) -> GraphDef:
    """The graph without references to custom gradients, which only this process knows."""
    graph = _copy(graph)
    for node in _all_nodes(graph):
        node.attr.pop("_gradient_op_type", None)
    return graph


def in_float32(graph: GraphDef) -> GraphDef:
    """The graph with all that has 16 bits, as in a model trained in mixed precision, in float32."""
    graph = _copy(graph)
    low = {tf.bfloat16.as_datatype_enum, tf.float16.as_datatype_enum}
    for node in _all_nodes(graph):
        if node.op == "Const" and node.attr["dtype"].type in low:
            node.CopyFrom(_constant(node.name, _value(node).astype(np.float32)))
        for attribute in node.attr.values():
            if attribute.type in low:
                attribute.type = _FLOAT
            for index, dtype in enumerate(attribute.list.type):
                if dtype in low:
                    attribute.list.type[index] = _FLOAT
    return graph


def fold_constants(graph: GraphDef) -> GraphDef:
    """Takes away what stands between a weight and its use, which are copies, casts to its own type and changes of its
    shape, and all but one of equal constants."""
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    constant, first = {}, {}  # what is as good as which constant; the first of each value
    for name, node in nodes.items():
        if node.op == "Const":
            constant[name] = first.setdefault(node.attr["value"].tensor.SerializeToString(deterministic=True), name)
    for node in _in_order(graph):
        data = [name for name in node.input if not name.startswith("^")]
        if node.name in constant or not data or any(name not in constant for name in data):
            continue
        sources = [nodes[constant[name]] for name in data]
        if node.op == "Identity" or (node.op == "Cast" and _type(node, "SrcT") == _type(node, "DstT")):
            constant[node.name] = sources[0].name
        elif node.op in ("Reshape", "Squeeze"):
            values = [_value(source) for source in sources]
            if node.op == "Squeeze":
                axes = tuple(node.attr["squeeze_dims"].list.i) or None
                node.CopyFrom(_constant(node.name, np.squeeze(values[0], axes)))
            else:
                node.CopyFrom(_constant(node.name, values[0].reshape(values[1])))
            constant[node.name] = node.name
    for node in graph.node:
        waited = [name for name in node.input if name.lstrip("^") not in constant or not name.startswith("^")]
        node.input[:] = [constant.get(name, name) for name in waited]  # nothing need wait for a constant
    return graph


def fold_batch_norm(graph: GraphDef) -> GraphDef:
    """Batch norm with stored statistics as part of the convolution before it: other weights, and a bias."""
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    for norm in [node for node in graph.node if node.op == "FusedBatchNormV3" and not node.attr["is_training"].b]:
        conv = nodes.get(norm.input[0])
        if conv is None or conv.op != "Conv2D":
            continue
        weights = [nodes.get(name) for name in (conv.input[1], *norm.input[1:5])]
        if any(weight is None or weight.op != "Const" for weight in weights):
            continue
        kernel, gamma, beta, mean, variance = (_value(weight).astype(np.float64) for weight in weights)
        scale = gamma / np.sqrt(variance + norm.attr["epsilon"].f)
        folded = _copy(conv)
        folded.name, folded.input[1] = f"{norm.name}/folded", f"{norm.name}/kernel"
        bias_add = NodeDef(name=norm.name, op="BiasAdd", input=[folded.name, f"{norm.name}/bias"])
        bias_add.attr["T"].CopyFrom(norm.attr["T"])
        bias_add.attr["data_format"].CopyFrom(norm.attr["data_format"])
        norm.CopyFrom(bias_add)
        kernel, bias = (kernel * scale).astype(np.float32), (beta - mean * scale).astype(np.float32)
        graph.node.extend([folded, _constant(folded.input[1], kernel), _constant(bias_add.input[1], bias)])
    return graph


def fold_strides(graph: GraphDef) -> GraphDef:
    """A 1x1 convolution of every s-th pixel as one with strides, for which the pixels need not be gathered first."""
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    for conv in [node for node in graph.node if node.op == "Conv2D"]:
        pixels, kernel = (nodes.get(name) for name in conv.input)
        if pixels is None or pixels.op != "StridedSlice" or kernel is None or kernel.op != "Const":
            continue
        steps = nodes.get(pixels.input[3])
        masks = {name: attr.i for name, attr in pixels.attr.items() if "mask" in name}
        whole = masks.pop("begin_mask") == masks.pop("end_mask") == 0b111 and not any(masks.values())
        plain = list(conv.attr["strides"].list.i) == [1] * 4 and conv.attr["padding"].s in (b"SAME", b"VALID")
        if whole and plain and steps is not None and steps.op == "Const" and _value(kernel).shape[:2] == (1, 1):
            steps = _value(steps).tolist()
            if len(steps) == 3 and steps[0] == 1 and min(steps) > 0:
                conv.input[0] = pixels.input[0]
                conv.attr["strides"].list.i[1:3] = steps[1:]
    return graph


def halve_images(graph: GraphDef, ends: Collection[str]) -> GraphDef:
    """The 3x3 convolutions to many channels, of one image as of its two halves, as long as they are in float32.

    On CPUs TensorFlow reorders a convolution's weights for two images, not for one, and without that oneDNN takes half
    as long again where there are 256 channels or a multiple. The results are the same to the last bit.

    Args:
        graph: With constants where weights are used.
        ends: Names of nodes that stay as they are: the inputs and outputs of the graph.
    """
    graph = _copy(graph)
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
        last.CopyFrom(_calling(_halving(last is relu), last.name, [*conv.input, bias_add.input[1]], graph))
    return graph


def lower_precision(graph: GraphDef, dtype: tf.DType, ends: Collection[str]) -> GraphDef:
    """Convolutions and matrix products by constant weights in 16 bits, and what lies between two of them.

    All else, such as the decoding of boxes, stays in float32. The casts are part of the graph and the weights are
    stored in `dtype`, so that no setting of a server and no other processor changes what is computed where.

    Args:
        graph: In float32, with constants where weights are used.
        dtype: `tf.bfloat16` or `tf.float16`.
        ends: Names of nodes that stay as they are: the inputs and outputs of the graph.
    """
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    low, added = set(), {}

    def is_constant(name):
        return name in nodes and nodes[name].op == "Const"

    def cast(name, source, target):
        node = NodeDef(name=f"{name.replace(':', '_')}/{target.name}", op="Cast", input=[name])
        node.attr["SrcT"].type, node.attr["DstT"].type = source.as_datatype_enum, target.as_datatype_enum
        if is_constant(name):
            node = _constant(node.name, _value(nodes[name]).astype(target.as_numpy_dtype))
        added[node.name] = node
        return node.name

    for node in _in_order(graph):
        if node.op in _BLIND and node.input[0] in low:
            node.attr["T"].type = dtype.as_datatype_enum
            continue
        key = "Tparams" if node.op == "GatherV2" else "T"
        typed = _weighted_inputs(node, is_constant) or _following_inputs(node, is_constant, low)
        if typed and _type(node, key) in (_FLOAT, None) and node.name not in ends:
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
    """3x3 convolutions of 16 bits with strides with another column of outputs, which is cut off again.

    TensorFlow 2.21's oneDNN gives garbage on AMX where there is but one column, and several rows. All have a pad by
    constants before them, as those of this package have.
    """
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    for conv in [node for node in graph.node if node.op == "Conv2D" and _type(node, "T") != _FLOAT]:
        step, pad = conv.attr["strides"].list.i[2], nodes.get(conv.input[0])
        if step == 1 or pad is None or pad.op != "Pad" or nodes[pad.input[1]].op != "Const":
            continue
        kernel = nodes.get(conv.input[1])
        if kernel is None or kernel.op != "Const" or _value(kernel).shape[:2] != (3, 3):  # 7x7 ones have wide inputs
            continue
        paddings = np.add(_value(nodes[pad.input[1]]), [[0, 0], [0, 0], [0, step], [0, 0]])
        wide, wide_pad = _copy(conv), _copy(pad)
        wide.name, wide_pad.name = f"{conv.name}/wide", f"{pad.name}/wide"
        wide.input[0], wide_pad.input[1] = wide_pad.name, f"{pad.name}/wide/paddings"
        cut = NodeDef(name=conv.name, op="StridedSlice", input=[wide.name])
        cut.attr["T"].CopyFrom(conv.attr["T"])
        cut.attr["Index"].type = tf.int32.as_datatype_enum
        cut.attr["begin_mask"].i, cut.attr["end_mask"].i = 0b111, 0b011
        for name, values in {"begin": [0, 0, 0], "end": [0, 0, -1], "strides": [1, 1, 1]}.items():
            cut.input.append(f"{conv.name}/{name}")
            graph.node.append(_constant(cut.input[-1], np.int32(values)))
        conv.CopyFrom(cut)
        graph.node.extend([wide, wide_pad, _constant(wide_pad.input[1], paddings.astype(np.int32))])
    return graph


def split_weights(nodes: Sequence[NodeDef], graph: GraphDef) -> tuple[GraphDef, dict[str, np.ndarray]]:
    """A graph of `nodes` with placeholders for its large constants, and these.

    As constants they would be copied with the graph at each step of loading it: 5 GB in place of 1 for a ResNet-50.
    """
    result = GraphDef(node=nodes, library=graph.library, versions=graph.versions)
    weights = {}
    for node in result.node:
        if node.op == "Const" and node.ByteSize() > _LARGE:
            weights[node.name] = _value(node)
            placeholder = NodeDef(name=node.name, op="Placeholder")
            placeholder.attr["dtype"].CopyFrom(node.attr["dtype"])
            node.CopyFrom(placeholder)
    return result, weights


def _is_wide(conv, nodes):
    """Whether a convolution is one that `halve_images` is for."""
    kernel = nodes.get(conv.input[1])
    if kernel is None or kernel.op != "Const" or _type(conv, "T") != _FLOAT or conv.attr["padding"].s != b"SAME":
        return False
    *size, _, channels = _value(kernel).shape
    steps = [*conv.attr["strides"].list.i, *conv.attr["dilations"].list.i]
    return size == [3, 3] and channels % 256 == 0 and set(steps) == {1}


@functools.cache
def _halving(relu):
    """A 3x3 convolution with bias, and ReLU, as a function that halves a single image."""

    def convolve(x, kernel, bias, padding):
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, padding), bias)
        return tf.nn.relu(y) if relu else y

    def halved(x, kernel, bias):
        _, height, width, channels = tf.unstack(tf.shape(x))
        half = (height + 1) // 2
        zeros = tf.zeros([2 * half - height + 1, width, channels])
        rows = tf.concat([zeros[:1], x[0, : half + 1], x[0, half - 1 :], zeros], 0)  # each half and what it borders on
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
    once = {"_noinline": True}  # in memory, and not for each convolution
    return tf.function(function, input_signature=specs, experimental_attributes=once).get_concrete_function()


def _calling(function, name, inputs, graph):
    """A node that calls a function, which the graph's library then has."""
    library = graph.library.function
    known = {each.signature.name for each in library}
    nested = function.graph.as_graph_def().library.function
    library.extend(each for each in [*nested, function.function_def] if each.signature.name not in known)
    node = NodeDef(name=name, op="PartitionedCall", input=inputs)
    node.attr["Tin"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in function.inputs)
    node.attr["Tout"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in function.outputs)
    node.attr["f"].func.name = function.function_def.signature.name
    return node


def _weighted_inputs(node, is_constant):
    """Indices of the inputs of a convolution or matrix product whose weights are constant, else none."""
    typed = _WEIGHTED.get(node.op, ())
    return typed if typed and is_constant(node.input[typed[1]]) else ()


def _following_inputs(node, is_constant, low):
    """Indices of the inputs of an operation that stays in 16 bits if what it is given has no more, else none."""
    typed = _FOLLOWING.get(node.op, ())
    if node.op == "ConcatV2":
        typed = tuple(range(node.attr["N"].i))
    names = [node.input[index] for index in typed]
    follows = any(name in low for name in names) and all(name in low or is_constant(name) for name in names)
    return typed if follows else ()


def _all_nodes(graph):
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def _in_order(graph, ends=None):
    """The nodes that `ends` need, or all, each after its inputs."""
    nodes = {node.name: node for node in graph.node}
    done, order = set(), []
    for root in nodes if ends is None else ends:
        stack = [(nodes[root], False)]
        while stack:
            node, inputs_done = stack.pop()
            if inputs_done:
                order.append(node)
            elif node.name not in done:
                done.add(node.name)
                stack.append((node, True))
                stack += [(nodes[name.lstrip("^").split(":")[0]], False) for name in node.input]
    return order


def _type(node, name):
    """A type attribute, or None."""
    return node.attr[name].type if name in node.attr else None


def _value(node):
    return tf.make_ndarray(node.attr["value"].tensor)


def _constant(name, value):
    node = NodeDef(name=name, op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    node.attr["dtype"].type = node.attr["value"].tensor.dtype
    return node


def _copy(message):
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
