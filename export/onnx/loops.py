"""Converts `tf.map_fn` to ONNX's Loop.

In TensorFlow, `tf.map_fn` is a While loop whose variables are counters, lists of inputs and lists of outputs. A list
that the body only reads becomes the tensor of all its elements. A list that the body writes becomes a scan output,
which ONNX stacks in the order of the iterations; map_fn writes in that order.
"""

import tensorflow as tf
from onnx import TensorProto, helper

from kerasdet.errors import UserError
from kerasdet.export.onnx.convert import Converter


def list_from_tensor(c: Converter, op: tf.Operation) -> None:
    """Converts TensorListFromTensor: a list is represented by the tensor of all its elements."""
    c.set(op.outputs[0], c.get(op.inputs[0]))


def reserve(c: Converter, op: tf.Operation) -> None:
    """Converts TensorListReserve: a new list has no ONNX value; the loop that fills the list defines its value."""
    c.set(op.outputs[0], "")


def get_item(c: Converter, op: tf.Operation) -> None:
    """Converts TensorListGetItem, which reads an element of a list."""
    elements, index = op.inputs[:2]
    c.set(op.outputs[0], c.builder.add("Gather", c.get(elements), c.get(index), axis=0))


def set_item(c: Converter, op: tf.Operation) -> None:
    """Converts TensorListSetItem: the list is represented by its new element, the scan output of this iteration."""
    c.set(op.outputs[0], c.get(op.inputs[2]))


def stack(c: Converter, op: tf.Operation) -> None:
    """Converts TensorListStack: the list is already represented by the stacked tensor."""
    c.set(op.outputs[0], c.get(op.inputs[0]))


def loop(c: Converter, op: tf.Operation) -> None:
    """Converts While, the operation of a loop, to ONNX's Loop."""
    body, condition = (c.function(op.graph, op.get_attr(name).name) for name in ("body", "cond"))
    results = [_source(tensor) for tensor in body.outputs]
    kinds = [_kind(argument, result) for argument, result in zip(body.inputs, results, strict=True)]
    carried = [i for i, kind in enumerate(kinds) if kind == "carried"]
    written = [i for i, kind in enumerate(kinds) if kind == "written"]
    outer = [c.get(tensor) for tensor in op.inputs]

    def test(names):
        for argument, name in zip(condition.inputs, names, strict=True):
            c.set(argument, name)
        c.convert(condition.get_operations())
        return c.get(condition.outputs[0])

    first_test = test(outer)
    arguments = {i: c.builder.new_name("carried") for i in carried}
    with c.builder.body() as nodes:
        for i, argument in enumerate(body.inputs):
            c.set(argument, arguments.get(i, outer[i]))
        c.convert(body.get_operations())
        names = [c.get(tensor) for tensor in body.outputs]
        next_test = test([names[i] if i in arguments else outer[i] for i in range(len(names))])
        # An output of the body must be computed in it, and must not be named twice.
        ends = [c.builder.copy(name) for name in (next_test, *(names[i] for i in (*carried, *written)))]
    types = [tensor.dtype for tensor in (body.inputs[i] for i in carried)]
    types += [results[i].op.inputs[2].dtype for i in written]
    inputs = [
        helper.make_tensor_value_info(c.builder.new_name("iteration"), TensorProto.INT64, []),
        helper.make_tensor_value_info(c.builder.new_name("continue"), TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(arguments[i], c.type_of(body.inputs[i].dtype), None) for i in carried),
    ]
    outputs = [helper.make_tensor_value_info(ends[0], TensorProto.BOOL, [])]
    outputs += [
        helper.make_tensor_value_info(name, c.type_of(dtype), None) for name, dtype in zip(ends[1:], types, strict=True)
    ]
    graph = helper.make_graph(nodes, "body", inputs, outputs)
    wanted = len(carried) + len(written)
    values = c.builder.add("Loop", "", first_test, *(outer[i] for i in carried), num_outputs=wanted, body=graph)
    values = dict(zip((*carried, *written), [values] if wanted == 1 else values, strict=True))
    for i, tensor in enumerate(op.outputs):
        c.set(tensor, values.get(i, outer[i]))


def _source(tensor):
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _kind(argument, result):
    """Returns the kind of a loop variable: "constant", "written" (a list) or "carried"."""
    if result is argument:
        return "constant"
    if result.op.type == "TensorListSetItem":
        return "written"
    if result.dtype == tf.variant:
        raise UserError(
            f"The model has a loop that changes a list by {result.op.type}, which the export to ONNX does not "
            "support: replace the layer that uses it, or export a SavedModel."
        )
    return "carried"


CONVERTERS = {
    "TensorListFromTensor": list_from_tensor,
    "TensorListReserve": reserve,
    "TensorListGetItem": get_item,
    "TensorListSetItem": set_item,
    "TensorListStack": stack,
    "StatelessWhile": loop,
    "While": loop,
}
