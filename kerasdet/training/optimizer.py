"""Stochastic gradient descent as PyTorch has it, which is what published detection recipes are tuned for."""

import keras
from keras import ops

NORM_PARAMETERS = ("gamma", "beta")


@keras.saving.register_keras_serializable(package="kerasdet")
class SGD(keras.optimizers.SGD):
    """SGD with momentum, an L2 penalty inside the gradient and detectron2's exceptions for norm and bias.

    One step is `g = gradient + weight_decay * w; m = momentum * m + g; w -= learning_rate * m`, or
    `w -= learning_rate * (g + momentum * m)` with Nesterov. Keras' own SGD differs in two ways: its momentum buffer
    contains the learning rate (so a lower rate takes effect late) and its weight decay bypasses the momentum.
    Clipping acts on the raw gradient, before the penalty is added.

    Parameters are told apart by the names Keras gives them: `gamma` and `beta` of a norm, `bias`.
    `exclude_from_weight_decay` works as in Keras.

    Args:
        learning_rate: A float or a schedule.
        momentum: Share of the buffer kept from step to step.
        nesterov: Whether to look one step of momentum ahead.
        weight_decay: Factor of the L2 penalty's gradient.
        norm_weight_decay: The same for scale and offset of norms.
        bias_weight_decay: The same for biases; None for `weight_decay`.
        bias_lr_factor: Factor on the learning rate of biases.
        **kwargs: Keras' remaining arguments: clipnorm, clipvalue, global_clipnorm, use_ema, name, ...
    """

    def __init__(
        self,
        learning_rate=0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        norm_weight_decay: float = 0.0,
        bias_weight_decay: float | None = None,
        bias_lr_factor: float = 1.0,
        **kwargs,
    ):
        # Keras would apply `self.weight_decay` itself, outside the gradient: it stays None.
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **kwargs)
        self.l2 = weight_decay
        self.norm_l2 = norm_weight_decay
        self.bias_l2 = bias_weight_decay
        self.bias_lr_factor = bias_lr_factor

    def _l2_of(self, variable) -> float:
        if not self._use_weight_decay(variable):
            return 0.0
        if variable.name in NORM_PARAMETERS:
            return self.norm_l2
        if variable.name == "bias" and self.bias_l2 is not None:
            return self.bias_l2
        return self.l2

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        # `variable` may be a backend variable, whose name is not the one the layer gave.
        parameter = self._trainable_variables[index]
        dtype = variable.dtype
        gradient = ops.convert_to_tensor(gradient, dtype)
        learning_rate = ops.cast(learning_rate, dtype)
        if parameter.name == "bias":
            learning_rate = ops.multiply(learning_rate, self.bias_lr_factor)
        l2 = self._l2_of(parameter)
        if l2:
            gradient = ops.add(gradient, ops.multiply(variable, l2))
        if self.momentum:
            buffer = ops.add(ops.multiply(self.momentums[index], self.momentum), gradient)
            self.assign(self.momentums[index], buffer)
            gradient = ops.add(gradient, ops.multiply(buffer, self.momentum)) if self.nesterov else buffer
        self.assign_sub(variable, ops.multiply(gradient, learning_rate))

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": self.l2,
            "norm_weight_decay": self.norm_l2,
            "bias_weight_decay": self.bias_l2,
            "bias_lr_factor": self.bias_lr_factor,
        }
