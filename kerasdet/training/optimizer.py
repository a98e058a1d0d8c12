"""Implements optimizers with the update rules of PyTorch, for which published detection recipes are tuned."""

import keras
import tensorflow as tf
from keras import ops

from kerasdet.arguments import check_numbers
from kerasdet.keras_compat import WarmedUpAverages, optimizer_variable

NORM_PARAMETERS = ("gamma", "beta")


@keras.saving.register_keras_serializable(package="kerasdet")
class SGD(keras.optimizers.SGD):
    """Implements SGD with momentum and an L2 penalty in the gradient, and detectron2's exceptions for norms and biases.

    One step is `g = gradient + weight_decay * w; m = momentum * m + g; w -= learning_rate * m`, or `w -= learning_rate
    * (g + momentum * m)` with Nesterov. Keras' own SGD differs in two ways: its momentum buffer contains the learning
    rate (so a lower rate takes effect with a delay) and its weight decay bypasses the momentum. Clipping acts on the
    raw gradient, before the penalty is added.

    The optimizer recognises parameters by the names that Keras gives them: `gamma` and `beta` in norms, `bias`
    elsewhere. `exclude_from_weight_decay` works as in Keras.

    Args:
        learning_rate: A float or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: Decay factor of the momentum buffer per step, in [0, 1].
        nesterov: Whether to use Nesterov momentum.
        weight_decay: L2 penalty: each weight times this factor is added to its gradient.
        norm_weight_decay: Weight decay of scales and offsets of norms.
        bias_weight_decay: Weight decay of biases. None: `weight_decay`.
        bias_lr_factor: Factor by which the learning rate of biases is multiplied.
        **kwargs: Remaining arguments of `keras.optimizers.SGD`: clipnorm, clipvalue, global_clipnorm, use_ema, ...

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        norm_weight_decay: float = 0.0,
        bias_weight_decay: float | None = None,
        bias_lr_factor: float = 1.0,
        **kwargs,
    ):
        if not isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            check_numbers("SGD", 0, learning_rate=learning_rate)
        check_numbers("SGD", 0, 1, momentum=momentum)
        check_numbers("SGD", 0, weight_decay=weight_decay, norm_weight_decay=norm_weight_decay)
        check_numbers("SGD", 0, bias_weight_decay=bias_weight_decay, bias_lr_factor=bias_lr_factor)
        # Keras would apply `self.weight_decay` itself, outside the gradient: it stays None.
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **kwargs)
        self.l2 = weight_decay
        self.norm_l2 = norm_weight_decay
        self.bias_l2 = bias_weight_decay
        self.bias_lr_factor = bias_lr_factor

    def _l2_of(self, variable):
        if variable.name in NORM_PARAMETERS:
            return self.norm_l2
        if variable.name == "bias" and self.bias_l2 is not None:
            return self.bias_l2
        return self.l2

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable. Overrides Keras; do not call it directly.

        Args:
            gradient: Clipped gradient, with the shape of the variable.
            variable: Variable to update.
            learning_rate: Learning rate of this step, a scalar.
        """
        index, parameter, decays = optimizer_variable(self, variable)
        dtype = variable.dtype
        gradient = ops.convert_to_tensor(gradient, dtype)
        learning_rate = ops.cast(learning_rate, dtype)
        if parameter.name == "bias":
            learning_rate = ops.multiply(learning_rate, self.bias_lr_factor)
        l2 = self._l2_of(parameter)
        if l2 and decays:
            gradient = ops.add(gradient, ops.multiply(variable, l2))
        if self.momentum:
            buffer = ops.add(ops.multiply(self.momentums[index], self.momentum), gradient)
            self.assign(self.momentums[index], buffer)
            gradient = ops.add(gradient, ops.multiply(buffer, self.momentum)) if self.nesterov else buffer
        self.assign_sub(variable, ops.multiply(gradient, learning_rate))

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "weight_decay": self.l2,
            "norm_weight_decay": self.norm_l2,
            "bias_weight_decay": self.bias_l2,
            "bias_lr_factor": self.bias_lr_factor,
        }


@keras.saving.register_keras_serializable(package="kerasdet")
class AdamW(WarmedUpAverages, keras.optimizers.AdamW):
    """Implements AdamW with two options of mmdetection: no decay of norms and biases, and a warmup of averaged weights.

    Args:
        learning_rate: A float or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: Each step multiplies every weight by 1 minus the product of this factor and the learning rate.
        beta_1: Decay factor of the running mean of gradients, in [0, 1).
        beta_2: Decay factor of the running mean of squared gradients, in [0, 1).
        epsilon: Constant added to the root of the mean of squared gradients.
        decay_norms_and_biases: Whether scales and offsets of norms, and all biases, decay like other weights. False in
            mmdetection's RTMDet.
        ema_warmup: With `use_ema`: time constant, in steps, of the warmup in which the averages follow the weights
            closely (mmengine's ``gamma``). 0: no warmup.
        **kwargs: Remaining arguments of `keras.optimizers.AdamW`: clipnorm, global_clipnorm, use_ema, ema_momentum, ...
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        decay_norms_and_biases: bool = True,
        ema_warmup: float = 0,
        **kwargs,
    ):
        super().__init__(learning_rate, weight_decay, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **kwargs)
        self.decay_norms_and_biases = decay_norms_and_biases
        self.ema_warmup = ema_warmup
        if not decay_norms_and_biases:
            # Keras searches for these in the names of variables; TensorFlow's names end in ":0"
            names = [rf"(^|/){name}(:0)?$" for name in (*NORM_PARAMETERS, "bias")]
            self.exclude_from_weight_decay(var_names=names)

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "ema_warmup": self.ema_warmup,
        }
