"""Converts a detector to an ONNX model in memory."""

from collections.abc import Callable, Sequence

import onnx
import tensorflow as tf
from onnx import helper

from kerasdet.export.graph import InferenceGraph
from kerasdet.export.onnx import arrays, elementwise, layers, loops, reductions, slices
from kerasdet.export.onnx.convert import Converter
from kerasdet.ops import implementation

_ROOMS = (arrays, elementwise, layers, loops, reductions, slices)
_CONVERTERS = {name: converter for room in _ROOMS for name, converter in room.CONVERTERS.items()}


def convert(
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    image: tf.TensorSpec,
    precision: str,
    output_order: Sequence[str] = (),
) -> onnx.ModelProto:
    """Converts a function of images to an ONNX model.

    Args:
        function: Function of images (B, H, W, 3) that returns a dict of outputs.
        image: Dtype, shape and name of the images.
        precision: "float32" or "float16", see `kerasdet.export.graph.InferenceGraph`.
        output_order: Names of the outputs that come first, in this order; all other outputs follow.

    Returns:
        The ONNX model, which has passed ONNX's checker and strict shape inference.

    Raises:
        UserError: If the export to ONNX does not support an op of the function.
    """
    with implementation("onnx"):
        inference = InferenceGraph(function, [image], precision)
    definition = inference.graph_def
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(definition, name="")
    library = {each.signature.name: each for each in definition.library.function}
    converter = Converter(library, _CONVERTERS)
    [source] = inference.inputs
    converter.set(graph.get_tensor_by_name(source), image.name)
    for name, weight in inference.weights.items():
        converter.set(graph.get_tensor_by_name(f"{name}:0"), converter.builder.constant(weight.numpy(), name=name))
    converter.convert(graph.get_operations())
    tensors = {name: graph.get_tensor_by_name(tensor) for name, tensor in inference.outputs.items()}
    outputs = []
    for name in sorted(tensors, key=lambda name: output_order.index(name) if name in output_order else len(tensors)):
        converter.builder.rename(converter.builder.copy(converter.get(tensors[name])), name)
        outputs.append(_value_info(converter, name, tensors[name], tensors[name].shape.as_list()))
    inputs = [_value_info(converter, image.name, image, image.shape.as_list())]
    model = converter.builder.model("kerasdet", inputs, outputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def set_properties(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Replaces the ``metadata_props`` of a model.

    Args:
        model: The model, whose properties are replaced.
        properties: Strings by name.
    """
    del model.metadata_props[:]
    helper.set_model_props(model, properties)


def _value_info(converter, name, tensor, shape):
    """Describes an input or output; the first unknown length is the batch size."""
    names = ["batch", "height", "width"] if name == "image" else ["batch", *(f"{name}_{i}" for i in range(1, 9))]
    shape = [names[i] if length is None else length for i, length in enumerate(shape)]
    return helper.make_tensor_value_info(name, converter.type_of(tensor.dtype), shape)
