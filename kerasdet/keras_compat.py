"""Wraps the private names of Keras and TensorFlow that kerasdet needs. No other module uses private names.

Each function states the private name, why no public name suffices, and the versions that have it.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    import tensorflow as tf


class SkipSymbolicBuild:
    """Mixin for a `keras.Model`: `fit` and `evaluate` build only the optimizer before the first step.

    The model defines `build_optimizer`. The mixin overrides the private `Trainer._maybe_symbolic_build`. Keras' own
    version calls the model on the mean of all replicas' batches, which fails for integers and masks and with several
    workers. On one device, Keras builds the optimizer in the first step, whose graph TensorFlow then traces twice.
    kerasdet's models have all their variables after construction. Seen in TensorFlow 2.21.0, Keras 3.15.1.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.build_optimizer()


def disable_gradient_reduction(optimizer: keras.optimizers.Optimizer) -> None:
    """Disables an optimizer's sum of gradients over the replicas, because kerasdet sums the gradients itself.

    Replaces the private `TFOptimizer._all_reduce_sum_gradients` by `list`, which returns the gradients unchanged. Keras
    3 clips the gradients of each replica before the sum, so N replicas would train differently from one device, and it
    has no option to skip the sum. Seen in TensorFlow 2.21.0, Keras 3.15.1.

    Args:
        optimizer: A Keras optimizer, or a `LossScaleOptimizer` around one.

    Raises:
        NotImplementedError: If this version of Keras has no such method.
    """
    inner = inner_optimizer(optimizer)
    if not hasattr(inner, "_all_reduce_sum_gradients"):
        raise NotImplementedError(
            f"{type(inner).__name__} of Keras {keras.__version__} cannot train on several replicas: expected Keras "
            "3.15.1, with which kerasdet was tested. Install that version, or train on one device."
        )
    inner._all_reduce_sum_gradients = list


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> list[keras.layers.Layer]:
    """Lists a layer and all layers inside it, at any depth.

    Uses the private `Layer._flatten_layers`. Keras' public `Model.layers` lists direct children only. Seen in Keras
    3.15.1.

    Args:
        layer: Layer or model.
        include_self: Whether the list contains `layer` itself.

    Returns:
        The list of layers.
    """
    return list(layer._flatten_layers(include_self=include_self))


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Lists the random generators inside a model, such as those of dropout layers.

    Uses the private `Layer._seed_generators`. A resumed run must draw the same random numbers as an uninterrupted run,
    but Keras does not save the states of generators in a ``.keras`` file, and has no public list of generators. Seen in
    Keras 3.15.1.

    Args:
        model: A Keras model.

    Returns:
        The list of random generators.
    """
    return [generator for layer in flatten_layers(model) for generator in layer._seed_generators]


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Unwraps a `LossScaleOptimizer`.

    `LossScaleOptimizer.inner_optimizer` is public but undocumented. Seen in Keras 3.15.1.

    Args:
        optimizer: A Keras optimizer.

    Returns:
        The optimizer inside a `LossScaleOptimizer`; any other optimizer unchanged.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def average_pairs(optimizer: keras.optimizers.Optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs each trained variable with its exponential moving average.

    Uses the private `Optimizer._trainable_variables` and `_model_variables_moving_average`. Keras' public
    `finalize_variable_values` only overwrites the weights, and cannot restore them. Seen in Keras 3.15.1.

    Args:
        optimizer: A built optimizer with ``use_ema=True``.

    Returns:
        Pairs of a variable and its average.
    """
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))


class WarmedUpAverages:
    """Mixin for a Keras optimizer: its moving averages follow the weights closely at first (mmengine's ExpMomentumEMA).

    Overrides the private `Optimizer._update_model_variables_moving_average`. Keras has no public way to change the
    momentum with the steps. Seen in Keras 3.15.1.

    Attributes:
        ema_warmup: Time constant of the warmup, in steps. The fraction of the new weights in an average starts at 1 and
            decays exponentially to ``1 - ema_momentum``; after this many steps, 1/e of the difference remains. 0: no
            warmup.
    """

    ema_warmup: float = 0

    def _update_model_variables_moving_average(self, trainable_variables):
        if not self.ema_warmup:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        step = keras.ops.cast(self.iterations, keras.config.floatx())
        last = 1 - self.ema_momentum
        share = (1 - last) * keras.ops.exp(-(1 + step) / self.ema_warmup) + last
        share = keras.ops.where(step > 0, share, keras.ops.ones_like(share))  # the first step copies the weights
        for variable, (_, average) in zip(trainable_variables, average_pairs(self), strict=True):
            average.assign(average + keras.ops.cast(share, average.dtype) * (variable - average))


def optimizer_variable(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> tuple[int, keras.Variable, bool]:
    """Looks up a variable that `Optimizer.update_step` received.

    Uses the private `Optimizer._get_variable_index`, `_trainable_variables` and `_use_weight_decay`. `update_step` may
    receive a backend variable whose name differs from the name that the layer gave. Seen in Keras 3.15.1.

    Args:
        optimizer: A built optimizer.
        variable: Variable that `update_step` received.

    Returns:
        The index of the variable among the optimizer's variables, the layer's own variable, and whether weight decay
        applies to it according to `exclude_from_weight_decay`.
    """
    index = optimizer._get_variable_index(variable)
    known: Sequence[keras.Variable] = optimizer._trainable_variables
    return index, known[index], optimizer._use_weight_decay(known[index])


def in_xla_context() -> bool:
    """Tells whether the code that is being traced will be compiled by XLA.

    Uses the private `tensorflow.python.ops.control_flow_util.GraphOrParentsInXlaContext`. TensorFlow has no public way
    to find this out in time: an op without an XLA kernel fails only when the function is compiled. Seen in TensorFlow
    2.16.1 and 2.21.0.
    """
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def kernel_devices(op: str) -> set[str]:
    """Lists the types of devices for which an op has kernels.

    Uses the private `tensorflow.python.framework.kernels`. TensorFlow lists the kernels of an op publicly only in C++.
    Seen in TensorFlow 2.16.1 and 2.21.0.

    Args:
        op: Name of the op, such as "Kerasdet>Nms".

    Returns:
        A set of device types such as {"CPU", "GPU"}; empty for an unknown op.
    """
    from tensorflow.python.framework import kernels

    return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}


def freeze_variables(function: "tf.types.experimental.ConcreteFunction") -> tuple[Any, list[str], list[str]]:
    """Converts the variables of a concrete function to constants.

    Uses the private `tensorflow.python.framework.convert_to_constants`. The public `tf.compat.v1.graph_util` does this
    for sessions only. The module's `convert_variables_to_constants_v2_as_graph` also converts the result to a function,
    which takes longer than the rest. Seen in TensorFlow 2.16.1 and 2.21.0.

    Args:
        function: The concrete function.

    Returns:
        The frozen `GraphDef`, in which control flow stays functional (not lowered to switches), and the names of its
        input and output tensors.
    """
    from tensorflow.python.framework import convert_to_constants as private

    data = private._FunctionConverterDataInEager(function, lower_control_flow=False, aggressive_inlining=False)
    graph, frozen = private._replace_variables_by_constants(data)
    weights = {function.graph.internal_captures[index].name for index in frozen}
    inputs = [tensor.name for tensor in function.inputs if tensor.name not in weights]
    return graph, inputs, [tensor.name for tensor in function.outputs]


def function_graph(graph: "tf.Graph", definition: Any) -> "tf.Graph":
    """Converts the definition of a function, such as the body of a loop, to a graph.

    Uses the private `tensorflow.python.framework.function_def_to_graph`. The public API cannot read a function from a
    `GraphDef`. Seen in TensorFlow 2.21.0.

    Args:
        graph: A graph whose library contains the functions that `definition` calls.
        definition: The `FunctionDef`.

    Returns:
        The graph, with `inputs` and `outputs`.
    """
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

    with graph.as_default():
        return function_def_to_graph(definition)


def tflite_schema() -> ModuleType:
    """Returns the module with the classes of TFLite's flatbuffer, such as `ModelT`.

    Uses the private `tensorflow.lite.python.schema_py_generated`. The public `flatbuffers` package needs a schema, and
    TensorFlow has no public one. Seen in TensorFlow 2.21.0.
    """
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def tflite_to_bytes(model: Any) -> bytearray:
    """Writes a `ModelT` of `tflite_schema` as a flatbuffer.

    Uses the private `tensorflow.lite.tools.flatbuffer_utils`. There is no public function for this. Seen in TensorFlow
    2.21.0.

    Args:
        model: A `ModelT` object.

    Returns:
        The bytes of the ``.tflite`` file.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    return flatbuffer_utils.convert_object_to_bytearray(model)


def tflite_converter_error() -> type[Exception]:
    """Returns the error that `tf.lite.TFLiteConverter.convert` raises for a graph that TFLite does not support.

    Uses the private `tensorflow.lite.python.convert_phase.ConverterError`. The converter does not document its errors.
    Seen in TensorFlow 2.21.0.
    """
    from tensorflow.lite.python.convert_phase import ConverterError

    return ConverterError
