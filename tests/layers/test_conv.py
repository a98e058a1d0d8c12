import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdet.layers import ConvNorm


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("size", [(10, 2), (9, 1), (20, 3), (7, 8)])
def test_strides_in_16_bits_where_one_column_is_left(policy, size, rng):
    """TensorFlow 2.21's oneDNN gives garbage there on AMX."""
    x = rng.normal(0, 1, (1, *size, 64)).astype(np.float32)
    exact = ConvNorm(64, 3, strides=2)
    keras.mixed_precision.set_global_policy(policy)
    try:
        rounded = ConvNorm(64, 3, strides=2)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for layer in (exact, rounded):
        layer.build((None, None, None, 64))
    expected = exact(x)
    rounded.set_weights(exact.get_weights())
    for _ in range(4):
        with tf.GradientTape() as tape:
            found = tf.cast(rounded(x), tf.float32)
            loss = tf.reduce_sum(tf.square(found))
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
        gradient = tape.gradient(loss, rounded.trainable_variables[0].value)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(exact(x)))
        exactly = tape.gradient(loss, exact.trainable_variables[0].value)
        np.testing.assert_allclose(gradient, exactly, atol=0.03 * np.abs(exactly).max())
