"""Converts a model's inference to one fast graph: batch norm folded, weights and arithmetic in the chosen precision.

The passes are here and in `graph_folding`, `graph_precision` and `graph_wide_convs`. Each is a function from a
`GraphDef` to a `GraphDef` that does not depend on the model. Some passes undo workarounds in layers that only training
needs. `rename_functions` runs first, then:

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

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export.graph_folding import fold_batch_norm, fold_constants, fold_strides
from kerasdet.export.graph_nodes import GraphDef, NodeDef, all_nodes, copied, in_order, value_of
from kerasdet.export.graph_precision import lower_precision, to_float32, widen_strides
from kerasdet.export.graph_wide_convs import split_wide_convs
from kerasdet.export.spec import GRAPH_PRECISIONS as PRECISIONS
from kerasdet.keras_compat import freeze_variables
from kerasdet.ops import static_shapes
from kerasdet.ops.dispatch import in_onnx, stock_unless_chosen

_LARGE = 2048  # bytes; larger constants become variables


class InferenceGraph(tf.Module):
    """Copies a function into a new, optimised graph with its own weights.

    The graph contains stock TensorFlow ops, unless it is made inside a ``with`` block of `kerasdet.ops.implementation`
    that chooses others.

    Args:
        function: Function of tensors that returns a dict of tensors.
        signature: `tf.TensorSpec` of each argument of the function.
        precision: Precision of convolutions and matrix products with constant weights, and of simple ops that follow
            them, see `kerasdet.export.graph_precision.lower_precision`. One of `PRECISIONS`.

    Attributes:
        weights: Variables that hold the constants of more than 2048 bytes, by name.
        detect: The optimised function.
        graph_def: The optimised graph, with a placeholder ``NAME:0`` for each weight. A process that imports it by
            `tf.graph_util.import_graph_def` needs `tf.compat.v1.wrap_function` around the import: a `tf.function` does
            not find the bodies of the graph's loops.
        inputs: Names of the graph's input tensors, in the order of the arguments.

    Raises:
        UserError: If the precision is unknown.
    """

    def __init__(self, function: Callable, signature: Sequence[tf.TensorSpec], precision: str = "float32"):
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}.")
        with stock_unless_chosen():
            concrete = tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
        graph, self.inputs, outputs = freeze_variables(concrete)
        names = sorted(concrete.structured_outputs)  # TensorFlow flattens a dict in the order of its keys
        self._outputs = tuple(zip(names, outputs, strict=True))
        ends = [name.split(":")[0] for name in (*self.inputs, *outputs)]
        for step in (rename_functions, drop_gradients, to_float32, fold_constants, fold_batch_norm, fold_strides):
            graph = step(graph)
        if precision != "float32":
            graph = lower_precision(graph, tf.as_dtype(precision), ends)
            graph = graph if in_onnx() else widen_strides(graph)
        elif not (static_shapes() or in_onnx()):
            graph = split_wide_convs(graph, ends)
        self.graph_def, weights = extract_weights(in_order(graph, ends), graph)
        self.weights = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        # A `tf.function` would not find the functions of the graph, such as the bodies of loops
        self.detect = tf.compat.v1.wrap_function(self._call, signature)

    @property
    def outputs(self) -> dict[str, str]:
        """Maps the names of outputs to the names of their tensors."""
        return dict(self._outputs)  # a dict in an attribute would become a wrapper, which json cannot write

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
    graph = copied(graph)
    names = {function.signature.name: f"{function.signature.name}_frozen" for function in graph.library.function}
    for function in graph.library.function:
        function.signature.name = names[function.signature.name]
    for node in all_nodes(graph):
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
    graph = copied(graph)
    del graph.library.gradient[:]
    for node in all_nodes(graph):
        node.attr.pop("_gradient_op_type", None)
    return graph


def extract_weights(nodes: Sequence[NodeDef], graph: GraphDef) -> tuple[GraphDef, dict[str, np.ndarray]]:
    """Replaces constants of more than 2048 bytes by placeholders.

    Constants would be copied with the graph at each step of loading: loading a ResNet-50 would take 5 GB of memory
    instead of 1 GB.

    Args:
        nodes: Nodes of the new graph, each after its inputs.
        graph: Graph that contains the nodes. The new graph gets the function library of this graph.

    Returns:
        The new graph, and a dict from the name of each placeholder to its constant.
    """
    result = GraphDef(node=nodes, library=graph.library, versions=graph.versions)
    weights = {}
    for node in result.node:
        if node.op == "Const" and node.ByteSize() > _LARGE:
            weights[node.name] = value_of(node)
            placeholder = NodeDef(name=node.name, op="Placeholder")
            placeholder.attr["dtype"].CopyFrom(node.attr["dtype"])
            # From the shapes of kernels and biases TensorFlow infers the number of channels.
            placeholder.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
            node.CopyFrom(placeholder)
    return result, weights
