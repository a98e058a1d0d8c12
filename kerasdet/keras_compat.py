"""Private hooks of Keras and TensorFlow."""

from collections.abc import Sequence

import keras


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> list[keras.layers.Layer]:
    """Lists a layer and all layers inside it, at any depth.

    Private name: `Layer._flatten_layers`. Keras' public `Model.layers` lists direct children only. Seen in Keras
    3.15.1.
    """
    return list(layer._flatten_layers(include_self=include_self))


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Lists the random generators inside a model, such as those of dropout layers.

    Private name: `Layer._seed_generators`. Keras neither saves their states in a ``.keras`` file nor lists them
    publicly, and a resumed run must draw the same numbers as an uninterrupted one. Seen in Keras 3.15.1.
    """
    return [generator for layer in flatten_layers(model) for generator in layer._seed_generators]


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside a `LossScaleOptimizer`, or the optimizer itself.

    `LossScaleOptimizer.inner_optimizer` is public but undocumented. Seen in Keras 3.15.1.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def average_pairs(optimizer: keras.optimizers.Optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs each trained variable with its exponential moving average, for a built optimizer with `use_ema`.

    Private names: `Optimizer._trainable_variables` and `Optimizer._model_variables_moving_average`. Keras' public
    `finalize_variable_values` only overwrites the weights, with no way back. Seen in Keras 3.15.1.
    """
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))


def optimizer_variable(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> tuple[int, keras.Variable, bool]:
    """Looks up a variable that `Optimizer.update_step` received.

    Private names: `Optimizer._get_variable_index`, `_trainable_variables` and `_use_weight_decay`. `update_step` may
    receive a backend variable whose name is not the one that the layer gave it. Seen in Keras 3.15.1.

    Returns:
        The variable's index, the layer's variable, and whether `exclude_from_weight_decay` lets it decay.
    """
    index = optimizer._get_variable_index(variable)
    known: Sequence[keras.Variable] = optimizer._trainable_variables
    return index, known[index], optimizer._use_weight_decay(known[index])
