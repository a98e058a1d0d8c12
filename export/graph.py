"""Converts a model's inference to one fast graph: batch norm folded, weights and arithmetic in the chosen precision.

Each pass is a function from a `GraphDef` to a `GraphDef` that does not depend on the model. Several passes undo a
workaround in a layer that only training needs, so their order matters. `rename_functions` comes before all:

1. `drop_gradients` removes the custom gradients of kerasdet's ops, which no other process can look up.
2. `to_float32` converts 16-bit ops of a model trained under a mixed policy to float32. The passes below fold weights;
   they do so in float32, so that weights are rounded only once, at the end.
3. `fold_constants` removes the ops between a weight and its use: reads of variables, casts to the same type (which step
   2 leaves behind), and reshapes of the statistics of batch norms. Steps 4 and 5 recognise a weight only if it is a
   constant that enters the op directly.
4. `fold_batch_norm` merges batch norm into the convolution before it.
5. `fold_strides` undoes the workaround of `kerasdet.layers.conv`, which takes every s-th pixel and convolves without
   strides, because the gradient of a strided 1x1 convolution corrupts the heap in oneDNN (TensorFlow 2.21). Inference
   has no gradient, and the direct form reads the pixels once.
6. In 16 bits `lower_precision` rounds weights and activations. It comes after all folding, so that a folded weight is
   rounded once. Then `widen_strides` works around another bug of oneDNN, which only 16-bit convolutions have. It must
   therefore see the final types, and the strides that step 5 restored.
   In float32 `split_wide_convs` makes wide convolutions faster. It replaces convolution, bias and ReLU by a function
   call that no other pass looks into, so it comes last. TFLite and ONNX do not use oneDNN, so their exports skip
   `widen_strides` and `split_wide_convs`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export.spec import GRAPH_PRECISIONS as PRECISIONS
from kerasdet.keras_compat import freeze_variables
from kerasdet.ops import static_shapes
from kerasdet.ops.dispatch import in_onnx

GraphDef = tf.compat.v1.GraphDef
NodeDef = tf.compat.v1.NodeDef

_WEIGHTED = {"Conv2D": (0, 1), "DepthwiseConv2dNative": (0, 1), "Conv2DBackpropInput": (2, 1), "MatMul": (0, 1)}
_FOLLOWING = {  # op -> indices of its inputs of type T; these ops are as exact in 16 bits as their inputs
    **dict.fromkeys(["BiasAdd", "AddV2"], (0, 1)),
    **dict.fromkeys(["Relu", "Identity", "MaxPool", "Pad", "Reshape", "Squeeze", "ExpandDims", "Tile"], (0,)),
    **dict.fromkeys(["StridedSlice", "Transpose", "ResizeNearestNeighbor", "Max", "GatherV2"], (0,)),
}
_BLIND = ("Shape", "Size")  # ops that read only the shape of their input
_FLOAT = tf.float32.as_datatype_enum
_LARGE = 2048  # bytes; larger constants become variables


class InferenceGraph(tf.Module):
    """Copies a function into a new, optimised graph with its own weights.

    Args:
        function: Function of tensors that returns a dict of tensors.
        signature: `tf.TensorSpec` of each argument of the function.
        precision: Precision of convolutions, of matrix products and of the ops between them, one of `PRECISIONS`.

    Attributes:
        weights: Variables of the graph by name.
        detect: The optimised function, a `tf.function`.
        graph_def: The optimised graph, with a placeholder for each weight.
        inputs: Names of the graph's input tensors, in the order of the arguments.
        outputs: Maps the names of outputs to the names of their tensors.

    Raises:
        UserError: If the precision is unknown.
    """

    def __init__(self, function: Callable, signature: Sequence[tf.TensorSpec], precision: str = "float32"):
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}.")
        concrete = tf.function(function, input_signature=signature).get_concrete_function()
        graph, self.inputs, outputs = freeze_variables(concrete)
        names = sorted(concrete.structured_outputs)  # TensorFlow flattens a dict in the order of its keys
        self.outputs = dict(zip(names, outputs, strict=True))
        ends = [name.split(":")[0] for name in (*self.inputs, *self.outputs.values())]
        for step in (rename_functions, drop_gradients, to_float32, fold_constants, fold_batch_norm, fold_strides):
            graph = step(graph)
        if precision != "float32":
            graph = lower_precision(graph, tf.as_dtype(precision), ends)
            graph = graph if in_onnx() else widen_strides(graph)
        elif not (static_shapes() or in_onnx()):
            graph = split_wide_convs(graph, ends)
        self.graph_def, weights = extract_weights(_in_order(graph, ends), graph)
        self.weights = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        self.detect = tf.function(self._call, input_signature=signature)

    def _call(self, *arguments):
        values = {f"{name}:0": weight.read_value() for name, weight in self.weights.items()}
        results = tf.graph_util.import_graph_def(
            self.graph_def,
            input_map={**dict(zip(self.inputs, arguments, strict=True)), **values},
            return_elements=list(self.outputs.values()),
            name="graph",
        )
        return dict(zip(self.outputs, results, strict=True))


def rename_functions(graph: GraphDef) -> GraphDef:
    """Renames the functions of a graph, such as the bodies of loops.

    TensorFlow knows the functions of all traced graphs by name, and refuses a second definition of the same name. The
    new names differ from those of the traced graph.

    Args:
        graph: The graph to convert.

    Returns:
        The converted graph.
    """
    graph = _copy(graph)
    names = {function.signature.name: f"{function.signature.name}_frozen" for function in graph.library.function}
    for function in graph.library.function:
        function.signature.name = names[function.signature.name]
    for node in _all_nodes(graph):
        node.op = names.get(node.op, node.op)
        for attribute in node.attr.values():
            called = [attribute.func] if attribute.HasField("func") else attribute.list.func
            for each in called:
                each.name = names.get(each.name, each.name)
    return graph


def drop_gradients(graph: GraphDef) -> GraphDef:
    """Removes references to custom gradients, which other processes do not have.

    Args:
        graph: The graph to convert.

    Returns:
        The converted graph.
    """
    graph = _copy(graph)
    del graph.library.gradient[:]
    for node in _all_nodes(graph):
        node.attr.pop("_gradient_op_type", None)
    return graph


def to_float32(graph: GraphDef) -> GraphDef:
    """Converts all float16 and bfloat16 tensors, such as those of a model trained in mixed precision, to float32.

    Args:
        graph: The graph to convert.

    Returns:
        The converted graph.
    """
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
    """Removes copies, casts to the same type and reshapes between a weight and its use, and duplicates of constants.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    constant, first = {}, {}  # node -> constant with the same value; value -> the first constant that has it
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
        # Control inputs ("^name") that name a constant wait for nothing.
        inputs = [name for name in node.input if name.lstrip("^") not in constant or not name.startswith("^")]
        node.input[:] = [constant.get(name, name) for name in inputs]
    return graph


def fold_batch_norm(graph: GraphDef) -> GraphDef:
    """Merges batch norms with stored statistics into the convolutions before them, as scaled weights and a bias.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
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
    """Replaces a slice of every s-th pixel and a 1x1 convolution by one convolution with strides, which is faster.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
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


def split_wide_convs(graph: GraphDef, ends: Collection[str]) -> GraphDef:
    """Splits single images into two halves for wide float32 3x3 convolutions, which are then faster on CPUs.

    A convolution is wide if its number of output channels is a multiple of 256. TensorFlow 2.21 reorders the weights of
    a convolution for two images, but not for one image; with the original order, oneDNN takes 1.5 times as long. The
    results are equal to the last bit.

    Args:
        graph: A graph whose weights are constants.
        ends: Names of the graph's inputs and outputs, which must remain.

    Returns:
        The converted graph.
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
        last.CopyFrom(_call(_split_conv(last is relu), last.name, [*conv.input, bias_add.input[1]], graph))
    return graph


def lower_precision(graph: GraphDef, dtype: tf.DType, ends: Collection[str]) -> GraphDef:
    """Converts convolutions and matrix products with constant weights, and the ops between two of them, to 16 bits.

    Everything else, such as the decoding of boxes, stays in float32. The casts are part of the graph and the weights
    are stored in `dtype`, so neither a server's settings nor another processor changes the precision of any op.

    Args:
        graph: A graph in float32 whose weights are constants.
        dtype: `tf.bfloat16` or `tf.float16`.
        ends: Names of the graph's inputs and outputs, which must remain.

    Returns:
        The converted graph.
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
    """Makes strided 16-bit 3x3 convolutions compute one more column and drop it, to avoid a bug of oneDNN.

    In TensorFlow 2.21 oneDNN returns garbage on AMX if such a convolution has a single output column and several rows.
    The pass finds convolutions that follow a `Pad` by constants, as all strided convolutions of `kerasdet.layers` do.
    Remove this pass once tests/export/test_graph.py passes without it on a processor with AMX.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
    graph = _copy(graph)
    nodes = {node.name: node for node in graph.node}
    for conv in [node for node in graph.node if node.op == "Conv2D" and _type(node, "T") != _FLOAT]:
        step, pad = conv.attr["strides"].list.i[2], nodes.get(conv.input[0])
        if step == 1 or pad is None or pad.op != "Pad" or nodes[pad.input[1]].op != "Const":
            continue
        kernel = nodes.get(conv.input[1])
        if kernel is None or kernel.op != "Const" or _value(kernel).shape[:2] != (3, 3):
            continue  # the 7x7 stem reads the image, which is never so narrow
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


def extract_weights(nodes: Sequence[NodeDef], graph: GraphDef) -> tuple[GraphDef, dict[str, np.ndarray]]:
    """Replaces large constants by placeholders.

    Constants would be copied with the graph at each step of loading: loading a ResNet-50 would take 5 GB of memory
    instead of 1 GB.

    Args:
        nodes: Nodes of the new graph, each after its inputs.
        graph: Graph that contains the nodes. The new graph gets its function library.

    Returns:
        The new graph, and a dict from the name of each placeholder to its constant.
    """
    result = GraphDef(node=nodes, library=graph.library, versions=graph.versions)
    weights = {}
    for node in result.node:
        if node.op == "Const" and node.ByteSize() > _LARGE:
            weights[node.name] = _value(node)
            placeholder = NodeDef(name=node.name, op="Placeholder")
            placeholder.attr["dtype"].CopyFrom(node.attr["dtype"])
            # From the shapes of kernels and biases TensorFlow infers the number of channels.
            placeholder.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
            node.CopyFrom(placeholder)
    return result, weights


def _is_wide(conv, nodes):
    """Returns whether `split_wide_convs` makes a convolution faster."""
    kernel = nodes.get(conv.input[1])
    if kernel is None or kernel.op != "Const" or _type(conv, "T") != _FLOAT or conv.attr["padding"].s != b"SAME":
        return False
    *size, _, channels = _value(kernel).shape
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


def _weighted_inputs(node, is_constant):
    """Returns the typed inputs of a convolution or matrix product with constant weights, otherwise nothing."""
    typed = _WEIGHTED.get(node.op, ())
    return typed if typed and is_constant(node.input[typed[1]]) else ()


def _following_inputs(node, is_constant, low):
    """Returns the typed inputs of an op that can stay in 16 bits because all its inputs do, otherwise nothing."""
    typed = _FOLLOWING.get(node.op, ())
    if node.op == "ConcatV2":
        typed = tuple(range(node.attr["N"].i))
    names = [node.input[index] for index in typed]
    follows = any(name in low for name in names) and all(name in low or is_constant(name) for name in names)
    return typed if follows else ()


def _all_nodes(graph):
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def _in_order(graph, ends=None):
    """Lists the nodes that `ends` depend on (all nodes if `ends` is None), each after its inputs."""
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
    """Returns a dtype attribute of a node, or None."""
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
