"""Passes that fold constants, batch norms and strides into the weights and attributes of convolutions."""

import numpy as np

from kerasdet.export.graph_nodes import GraphDef, NodeDef, constant_node, copied, dtype_of, in_order, value_of


def fold_constants(graph: GraphDef) -> GraphDef:
    """Bypasses copies, casts to the same type and reshapes of constants, and replaces equal constants by the first one.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph. The bypassed nodes are still in it, but no other node needs them.
    """
    graph = copied(graph)
    nodes = {node.name: node for node in graph.node}
    constant, first = {}, {}  # node -> constant with the same value; value -> the first constant that has it
    for name, node in nodes.items():
        if node.op == "Const":
            constant[name] = first.setdefault(node.attr["value"].tensor.SerializeToString(deterministic=True), name)
    for node in in_order(graph):
        data = [name for name in node.input if not name.startswith("^")]
        if node.name in constant or not data or any(name not in constant for name in data):
            continue
        sources = [nodes[constant[name]] for name in data]
        if node.op == "Identity" or (node.op == "Cast" and dtype_of(node, "SrcT") == dtype_of(node, "DstT")):
            constant[node.name] = sources[0].name
        elif node.op in ("Reshape", "Squeeze"):
            values = [value_of(source) for source in sources]
            if node.op == "Squeeze":
                axes = tuple(node.attr["squeeze_dims"].list.i) or None
                node.CopyFrom(constant_node(node.name, np.squeeze(values[0], axes)))
            else:
                node.CopyFrom(constant_node(node.name, values[0].reshape(values[1])))
            constant[node.name] = node.name
    for node in graph.node:
        # Control inputs ("^name") that name a constant wait for nothing.
        inputs = [name for name in node.input if name.lstrip("^") not in constant or not name.startswith("^")]
        node.input[:] = [constant.get(name, name) for name in inputs]
    return graph


def fold_batch_norm(graph: GraphDef) -> GraphDef:
    """Merges batch norms with stored statistics into the Conv2D ops before them, as scaled weights and a bias.

    Batch norms after other ops, such as depthwise convolutions, do not change.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
    graph = copied(graph)
    nodes = {node.name: node for node in graph.node}
    for norm in [node for node in graph.node if node.op == "FusedBatchNormV3" and not node.attr["is_training"].b]:
        conv = nodes.get(norm.input[0])
        if conv is None or conv.op != "Conv2D":
            continue
        weights = [nodes.get(name) for name in (conv.input[1], *norm.input[1:5])]
        if any(weight is None or weight.op != "Const" for weight in weights):
            continue
        kernel, gamma, beta, mean, variance = (value_of(weight).astype(np.float64) for weight in weights)
        scale = gamma / np.sqrt(variance + norm.attr["epsilon"].f)
        folded = copied(conv)
        folded.name, folded.input[1] = f"{norm.name}/folded", f"{norm.name}/kernel"
        bias_add = NodeDef(name=norm.name, op="BiasAdd", input=[folded.name, f"{norm.name}/bias"])
        bias_add.attr["T"].CopyFrom(norm.attr["T"])
        bias_add.attr["data_format"].CopyFrom(norm.attr["data_format"])
        norm.CopyFrom(bias_add)
        kernel, bias = (kernel * scale).astype(np.float32), (beta - mean * scale).astype(np.float32)
        graph.node.extend([folded, constant_node(folded.input[1], kernel), constant_node(bias_add.input[1], bias)])
    return graph


def fold_strides(graph: GraphDef) -> GraphDef:
    """Replaces a slice of every s-th pixel and a 1x1 convolution by one convolution with strides, which is faster.

    Args:
        graph: A graph whose weights are constants.

    Returns:
        The converted graph.
    """
    graph = copied(graph)
    nodes = {node.name: node for node in graph.node}
    for conv in [node for node in graph.node if node.op == "Conv2D"]:
        pixels, kernel = (nodes.get(name) for name in conv.input)
        if pixels is None or pixels.op != "StridedSlice" or kernel is None or kernel.op != "Const":
            continue
        steps = nodes.get(pixels.input[3])
        masks = {name: attr.i for name, attr in pixels.attr.items() if "mask" in name}
        whole = masks.pop("begin_mask") == masks.pop("end_mask") == 0b111 and not any(masks.values())
        plain = list(conv.attr["strides"].list.i) == [1] * 4 and conv.attr["padding"].s in (b"SAME", b"VALID")
        if whole and plain and steps is not None and steps.op == "Const" and value_of(kernel).shape[:2] == (1, 1):
            steps = value_of(steps).tolist()
            if len(steps) == 3 and steps[0] == 1 and min(steps) > 0:
                conv.input[0] = pixels.input[0]
                conv.attr["strides"].list.i[1:3] = steps[1:]
    return graph
