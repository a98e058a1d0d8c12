"""The type of box arithmetic and losses."""

import keras
import tensorflow as tf


def real() -> tf.DType:
    """Keras' `floatx`: float32 under every policy of mixed precision, float64 where that was set first."""
    return tf.as_dtype(keras.config.floatx())
