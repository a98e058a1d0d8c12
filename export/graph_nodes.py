"""Reads and makes nodes of a `GraphDef`."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import tensorflow as tf

GraphDef = tf.compat.v1.GraphDef
NodeDef = tf.compat.v1.NodeDef
FLOAT = tf.float32.as_datatype_enum
Message = TypeVar("Message", GraphDef, NodeDef)


def all_nodes(graph: GraphDef) -> list[NodeDef]:
    """Lists the nodes of a graph and of the functions in its library.

    Args:
        graph: A graph.

    Returns:
        The nodes themselves, not copies.
    """
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def in_order(graph: GraphDef, ends: Iterable[str] | None = None) -> list[NodeDef]:
    """Lists nodes of a graph, each after its inputs.

    Args:
        graph: A graph.
        ends: Names of nodes. Only these nodes and the nodes that they depend on are listed. None for all nodes.

    Returns:
        The nodes themselves, not copies.
    """
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


def dtype_of(node: NodeDef, name: str) -> int | None:
    """Returns a dtype attribute of a node.

    Args:
        node: A node.
        name: Name of the attribute, such as "T".

    Returns:
        A number of TensorFlow's enumeration of types, or None if the node has no such attribute.
    """
    return node.attr[name].type if name in node.attr else None


def value_of(node: NodeDef) -> np.ndarray:
    """Returns the value of a constant.

    Args:
        node: A node whose op is "Const".

    Returns:
        The value.
    """
    return tf.make_ndarray(node.attr["value"].tensor)


def constant_node(name: str, value: np.ndarray) -> NodeDef:
    """Makes a constant.

    Args:
        name: Name of the new node.
        value: Value of the constant.

    Returns:
        The node.
    """
    node = NodeDef(name=name, op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    node.attr["dtype"].type = node.attr["value"].tensor.dtype
    return node


def copied(message: Message) -> Message:
    """Copies a graph or node.

    Args:
        message: A graph or node.

    Returns:
        The copy.
    """
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
