import subprocess
import sys
from textwrap import dedent

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdet.layers import NORMS, BatchNorm, make_norm

BATCH_NORMS = tuple(norm for norm in NORMS if norm != "gn")


def features(rng, shape=(3, 5, 7, 4)):
    return (rng.normal(size=shape) * [1, 2, 0.5, 3] + [0, 1, -2, 4]).astype(np.float32)


def randomized(norm, rng, channels=4, **kwargs):
    """Builds a layer whose weights are all far from their initial values."""
    layer = make_norm(norm, **kwargs)
    layer.build((None, None, None, channels))
    layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])
    return layer


def by_statistics(x, layer, mean, variance, epsilon=1e-5):
    return (x - mean) / np.sqrt(variance + epsilon) * layer.gamma.numpy() + layer.beta.numpy()


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_inference_uses_stored_statistics(rng, norm):
    layer, x = randomized(norm, rng), features(rng)
    expected = by_statistics(x, layer, layer.moving_mean.numpy(), layer.moving_variance.numpy())
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["frozen_bn", "bn_inference"])
def test_frozen_norms_keep_their_statistics_in_training(rng, norm):
    layer, x = randomized(norm, rng), features(rng)
    before = [w.numpy() for w in layer.weights]
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False), rtol=1e-5, atol=1e-5)
    for value, weight in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(value, weight)


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_training_uses_the_batch_and_keeps_unbiased_averages(rng, norm):
    layer, x = randomized(norm, rng), features(rng)
    old_mean, old_variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    y = layer(x, training=True)
    rows = x.reshape(-1, 4)
    np.testing.assert_allclose(y, by_statistics(x, layer, rows.mean(0), rows.var(0)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, 0.9 * old_mean + 0.1 * rows.mean(0), rtol=1e-4, atol=1e-5)
    unbiased = rows.var(0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * old_variance + 0.1 * unbiased, rtol=1e-4)


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_running_variance_is_unbiased(norm):
    layer = make_norm(norm)
    layer(tf.constant([1.0, 3.0], shape=[2, 1, 1, 1]), training=True)  # variance 1, unbiased 2
    assert float(layer.moving_variance[0]) == pytest.approx(0.9 * 1 + 0.1 * 2, rel=1e-5)
    assert float(layer.moving_mean[0]) == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_single_sample_stays_finite(norm):
    layer = make_norm(norm)
    y = layer(tf.fill([1, 1, 1, 3], 5.0), training=True)
    np.testing.assert_allclose(y, np.zeros([1, 1, 1, 3]), atol=1e-5)
    assert np.isfinite(layer.moving_variance).all()


def test_sync_bn_equals_bn_on_one_replica(rng):
    x, upstream = features(rng), features(rng)
    results = []
    for norm in ("bn", "sync_bn"):
        layer = randomized(norm, np.random.default_rng(1))
        variable = tf.Variable(x)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(variable, training=True) * upstream)
        gradients = tape.gradient(total, [variable, layer.gamma.value, layer.beta.value])
        results.append([total, *gradients, *layer.weights])
    for bn, sync_bn in zip(*results, strict=True):
        np.testing.assert_allclose(bn, sync_bn, rtol=1e-3, atol=1e-4)


def test_sync_bn_of_two_replicas_equals_bn_of_the_whole_batch():
    script = """
        import numpy as np
        import tensorflow as tf
        from kerasdet.layers import make_norm

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        rng = np.random.default_rng(0)
        x, upstream = (rng.normal(size=(4, 3, 5, 2)).astype("float32") + 1 for _ in range(2))

        def step(layer, x, upstream):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                total = tf.reduce_sum(y * upstream)
            return y, tape.gradient(total, x)

        layer = make_norm("bn")
        layer.build((None, None, None, 2))
        expected = [value.numpy() for value in step(layer, tf.constant(x), tf.constant(upstream))]
        with strategy.scope():
            sync = make_norm("sync_bn")
            sync.build((None, None, None, 2))

        def part(values):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(np.split(values, 2)[context.replica_id_in_sync_group]))

        replicas = tf.function(lambda x, upstream: strategy.run(step, (sync, x, upstream)))(part(x), part(upstream))
        for actual, value in zip(replicas, expected):
            actual = np.concatenate([v.numpy() for v in strategy.experimental_local_results(actual)])
            np.testing.assert_allclose(actual, value, rtol=1e-3, atol=1e-4)
        for actual, value in zip(sync.weights, layer.weights):
            np.testing.assert_allclose(actual.numpy(), value.numpy(), rtol=1e-4, atol=1e-5)
    """
    run = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("norm", ["frozen_bn", "bn_inference", "bn"])
def test_input_gradient_equals_finite_differences(rng, norm):
    layer, x, upstream = randomized(norm, rng), features(rng, (1, 2, 2, 4)), features(rng, (1, 2, 2, 4))
    moving = layer.get_weights()

    def total(x):
        layer.set_weights(moving)
        return tf.reduce_sum(layer(x, training=True) * upstream)

    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = total(variable)
    gradient = tape.gradient(value, variable).numpy()
    for index in [(0, 0, 0, 0), (0, 1, 0, 2), (0, 1, 1, 3)]:
        step = np.zeros_like(x)
        step[index] = 1e-2
        numeric = float(total(x + step) - total(x - step)) / 2e-2
        assert gradient[index] == pytest.approx(numeric, rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    "norm,trainable", [("frozen_bn", []), ("bn_inference", ["gamma", "beta"]), ("bn", ["gamma", "beta"])]
)
def test_mode_determines_the_trainable_weights(norm, trainable):
    layer = make_norm(norm)
    layer.build((None, None, None, 3))
    assert [w.name for w in layer.trainable_weights] == trainable
    assert sorted(w.name for w in layer.weights) == ["beta", "gamma", "moving_mean", "moving_variance"]
    layer.trainable = False
    assert not layer.trainable_weights
    layer.trainable = True
    assert [w.name for w in layer.trainable_weights] == trainable


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_untrainable_layer_keeps_its_statistics(rng, norm):
    layer, x = randomized(norm, rng), features(rng)
    layer.trainable = False
    before = layer.moving_mean.numpy()
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, before)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
@pytest.mark.parametrize("training", [False, True])
def test_epsilon_is_added_to_the_variance(rng, epsilon, training):
    layer, x = randomized("frozen_bn", rng, epsilon=epsilon), features(rng)
    expected = by_statistics(x, layer, layer.moving_mean.numpy(), layer.moving_variance.numpy(), epsilon)
    np.testing.assert_allclose(layer(x, training=training), expected, rtol=1e-4, atol=1e-5)


def test_group_norm_equals_pytorch_grouping(rng):
    layer, x = randomized("gn", rng, channels=64, epsilon=1e-3), rng.normal(2, 3, (2, 5, 3, 64)).astype(np.float32)
    groups = x.reshape(2, 15, 32, 2).astype(float)  # neighbouring channels form a group, as in PyTorch
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    normal = ((groups - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape)
    expected = normal * layer.gamma.numpy() + layer.beta.numpy()
    for training in (False, True):
        np.testing.assert_allclose(layer(x, training=training), expected, rtol=1e-3, atol=1e-4)


def test_group_norm_is_accurate_far_from_zero(rng):
    layer, x = randomized("gn", rng, channels=64), rng.normal(100, 1, (2, 40, 30, 64)).astype(np.float32)
    rows = x.astype(float).reshape(2, -1, 32, 2)
    mean, variance = rows.mean((1, 3), keepdims=True), rows.var((1, 3), keepdims=True)
    normalized = ((rows - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(layer(x), normalized * layer.gamma.numpy() + layer.beta.numpy(), atol=2e-4)


def test_group_norm_in_half_precision_sums_in_float32(rng):
    layer = randomized("gn", rng, channels=64)
    x = tf.cast(rng.normal(3, 1, (1, 100, 100, 64)), tf.bfloat16)
    np.testing.assert_allclose(tf.cast(layer(x), tf.float32), layer(tf.cast(x, tf.float32)), rtol=2**-7, atol=1e-2)


def test_make_norm_passes_the_number_of_groups():
    assert make_norm("gn", groups=8).groups == 8


def test_none_gives_no_norm_and_an_unknown_name_raises():
    assert make_norm(None) is None
    with pytest.raises(ValueError, match=r"Unknown norm 'batch': choose one of frozen_bn, .*gn, or None"):
        make_norm("batch")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_activations_keep_float32_weights(rng, norm, training):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = make_norm(norm)
        layer.build((None, None, None, 32))
    finally:
        keras.config.set_dtype_policy(policy)
    x = rng.normal(1, 2, (2, 4, 4, 32)).astype(np.float32)
    y = layer(tf.cast(x, tf.bfloat16), training=training)
    assert y.dtype == tf.bfloat16
    assert all(w.dtype == "float32" for w in layer.weights)
    reference = make_norm(norm)
    np.testing.assert_allclose(tf.cast(y, tf.float32), reference(x, training=training), atol=0.08)


def test_config_rebuilds_an_equal_layer():
    layer = BatchNorm("sync_bn", epsilon=1e-3, momentum=0.5, name="n")
    clone = BatchNorm.from_config(layer.get_config())
    assert clone.get_config() == layer.get_config() and clone.epsilon == 1e-3 and clone.momentum == 0.5
