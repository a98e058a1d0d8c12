import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.training.optimizer import SGD, AdamW
from kerasdet.training.schedules import WarmupMultiStep


def small_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            keras.layers.Conv2D(4, 3),
            keras.layers.GroupNormalization(2),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def random_gradients(model, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables] for _ in range(steps)]


def kernel(values):
    return keras.Variable(np.asarray(values, "float32"), name="kernel")


class Reference:
    """torch.optim.SGD for one parameter, in float64."""

    def __init__(self, weight, momentum=0.9, nesterov=False):
        self.weight = np.asarray(weight, np.float64)
        self.buffer = np.zeros_like(self.weight)
        self.momentum, self.nesterov = momentum, nesterov

    def step(self, gradient, lr, weight_decay):
        gradient = gradient + weight_decay * self.weight
        self.buffer = self.momentum * self.buffer + gradient
        self.weight = self.weight - lr * (gradient + self.momentum * self.buffer if self.nesterov else self.buffer)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torch_at_every_step(nesterov):
    case = json.loads(shared("reference/schedules.json").read_text())[f"sgd_momentum_l2_nesterov_{int(nesterov)}"]
    weight, scale = kernel(case["start"]), tf.constant([1.0, 0.5, 0.25])
    sgd = SGD(case["lr"], case["momentum"], nesterov, case["weight_decay"])
    sgd.build([weight])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = 0.5 * tf.reduce_sum((weight * scale) ** 2)
        sgd.apply(tape.gradient(loss, [weight.value]))

    for expected in case["weights_after_each_step"]:
        step()
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("bias_weight_decay", [None, 0.0, 0.3])
def test_norm_and_bias_options_and_a_schedule_equal_torch(nesterov, bias_weight_decay):
    model = small_model()
    schedule = WarmupMultiStep(0.05, [4, 6], warmup_steps=3, warmup_factor=0.1)
    sgd = SGD(
        schedule,
        nesterov=nesterov,
        weight_decay=0.1,
        norm_weight_decay=0.02,
        bias_weight_decay=bias_weight_decay,
        bias_lr_factor=2.0,
    )
    bias_l2 = 0.1 if bias_weight_decay is None else bias_weight_decay
    l2 = {"kernel": 0.1, "bias": bias_l2, "gamma": 0.02, "beta": 0.02}
    references = [Reference(v.numpy(), nesterov=nesterov) for v in model.trainable_variables]
    for step, gradients in enumerate(random_gradients(model, 8)):
        sgd.apply([tf.constant(g) for g in gradients], model.trainable_variables)
        for variable, gradient, reference in zip(model.trainable_variables, gradients, references, strict=True):
            factor = 2.0 if variable.name == "bias" else 1.0
            reference.step(gradient, float(schedule(step)) * factor, l2[variable.name])
            np.testing.assert_allclose(variable.numpy(), reference.weight, rtol=1e-5, atol=1e-6, err_msg=variable.path)


def test_norms_and_excluded_weights_do_not_decay():
    model = small_model()
    before = [v.numpy() for v in model.trainable_variables]
    sgd = SGD(0.5, weight_decay=0.1)
    sgd.exclude_from_weight_decay(var_list=[model.layers[-1].kernel])
    sgd.apply([tf.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    for variable, start in zip(model.trainable_variables, before, strict=True):
        kept = variable.name in ("gamma", "beta") or variable is model.layers[-1].kernel
        np.testing.assert_allclose(variable.numpy(), start if kept else start * 0.95, rtol=1e-6)


@pytest.mark.parametrize(
    "clipping, clipped",
    [({"clipvalue": 1.0}, [1.0, -1.0]), ({"clipnorm": 1.0}, [0.6, -0.8]), ({"global_clipnorm": 2.5}, [1.5, -2.0])],
)
def test_clipping_precedes_weight_decay(clipping, clipped):
    weight = kernel([10.0, 10.0])
    SGD(1.0, weight_decay=0.5, **clipping).apply([tf.constant([3.0, -4.0])], [weight])
    np.testing.assert_allclose(weight.numpy(), 10 - (np.array(clipped) + 5.0), rtol=1e-6)


def test_zero_momentum_creates_no_buffer():
    weight = kernel([2.0])
    sgd = SGD(0.5, momentum=0.0, weight_decay=0.1)
    sgd.apply([tf.constant([1.0])], [weight])
    np.testing.assert_allclose(weight.numpy(), [2.0 - 0.5 * 1.2], rtol=1e-6)
    assert len(sgd.variables) == 2  # iteration, learning rate


def test_sparse_gradient_equals_dense_gradient():
    sparse, dense = kernel([[1.0], [2.0], [3.0]]), kernel([[1.0], [2.0], [3.0]])
    for _ in range(2):
        for weight, sgd in ((sparse, SGD(0.1, weight_decay=0.1)), (dense, SGD(0.1, weight_decay=0.1))):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(weight.value, [0, 2, 2]) ** 2)
            gradient = tape.gradient(loss, weight.value)
            assert isinstance(gradient, tf.IndexedSlices)
            sgd.apply([gradient if weight is sparse else tf.convert_to_tensor(gradient)], [weight])
    np.testing.assert_allclose(sparse.numpy(), dense.numpy())


def test_sgd_config_round_trip():
    sgd = SGD(0.1, 0.8, True, 0.2, 0.3, 0.4, 5.0, clipnorm=1.0, use_ema=True, ema_momentum=0.5, name="mine")
    for restored in (
        SGD.from_config(sgd.get_config()),
        keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(sgd)))),
    ):
        assert type(restored) is SGD
        assert restored.get_config() == sgd.get_config()
        assert restored.weight_decay is None  # otherwise Keras would decay the weights a second time


def test_saved_model_trains_on_like_the_original(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(8, 6, 6, 4)), np.zeros((8, 3))
    model = small_model()
    schedule = WarmupMultiStep(0.05, [2], warmup_steps=0)
    model.compile(SGD(schedule, weight_decay=0.1, norm_weight_decay=0.05, bias_lr_factor=2.0), loss="mse")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored.optimizer) is SGD
    for each in (model, restored):
        each.fit(x, y, epochs=3, verbose=0)
    assert restored.optimizer.iterations == 4
    for ours, theirs in zip(model.weights, restored.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6, err_msg=ours.path)


def test_loss_scaling_does_not_change_steps():
    plain, scaled = kernel([1.0, -2.0]), kernel([1.0, -2.0])
    sgd = SGD(0.1, weight_decay=0.1, clipvalue=2.0)
    wrapped = keras.optimizers.LossScaleOptimizer(SGD(0.1, weight_decay=0.1, clipvalue=2.0), initial_scale=8.0)
    wrapped = keras.optimizers.deserialize(keras.optimizers.serialize(wrapped))
    for gradient in ([1.0, 3.0], [0.5, -1.0]):
        sgd.apply([tf.constant(gradient)], [plain])
        wrapped.apply([8.0 * tf.constant(gradient)], [scaled])
    wrapped.apply([tf.constant([np.inf, 0.0])], [scaled])
    np.testing.assert_allclose(scaled.numpy(), plain.numpy(), rtol=1e-6)


def test_mixed_float16_fit_lowers_the_loss():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(SGD(0.01), loss="mse")
    x, y = np.random.default_rng(0).normal(size=(8, 6, 6, 4)), np.ones((8, 3))
    history = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history[-1] < history[0]


def test_accumulated_gradients_apply_their_mean():
    accumulated, plain = kernel([1.0, -2.0]), kernel([1.0, -2.0])
    sgd = SGD(0.1, weight_decay=0.1, gradient_accumulation_steps=2)
    for gradient in ([1.0, 3.0], [2.0, -1.0]):
        sgd.apply([tf.constant(gradient)], [accumulated])
    SGD(0.1, weight_decay=0.1).apply([tf.constant([1.5, 1.0])], [plain])
    np.testing.assert_allclose(accumulated.numpy(), plain.numpy(), rtol=1e-6)


def test_moving_average_follows_the_weights():
    weight = kernel([1.0])
    sgd = SGD(0.1, momentum=0.0, weight_decay=0.0, use_ema=True, ema_momentum=0.5)
    for _ in range(3):
        sgd.apply([tf.constant([1.0])], [weight])
    sgd.finalize_variable_values([weight])
    np.testing.assert_allclose(weight.numpy(), [0.5 * (0.5 * 0.9 + 0.5 * 0.8) + 0.5 * 0.7], rtol=1e-6)


def test_adamw_spares_norms_and_biases():
    """Without gradients only decay changes weights: those of kernels, depthwise ones included."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            keras.layers.DepthwiseConv2D(3),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(4, 3),
        ]
    )
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    optimizer = AdamW(0.1, weight_decay=0.5, decay_norms_and_biases=False)
    restored = AdamW.from_config(optimizer.get_config())  # the exceptions survive
    restored.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for variable in model.trainable_variables:
        expected = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable, np.full(variable.shape, expected), err_msg=variable.path)


def test_averages_warm_up_like_mmengine():
    weight, optimizer = kernel([0.0]), AdamW(0.1, weight_decay=0.0, use_ema=True, ema_momentum=0.9998, ema_warmup=3)
    average, values = None, []
    for step in range(6):
        optimizer.apply([tf.constant([1.0])], [weight])
        values.append(float(weight.numpy()[0]))
        share = 1.0 if step == 0 else (1 - 0.0002) * np.exp(-(1 + step) / 3) + 0.0002
        average = values[-1] if step == 0 else average + share * (values[-1] - average)
    optimizer.finalize_variable_values([weight])
    assert weight.numpy()[0] == pytest.approx(average, rel=1e-5) and average != pytest.approx(values[-1], rel=1e-2)
