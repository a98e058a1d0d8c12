"""Configs for Keras out of constructors, so that no option can be forgotten in one."""

import contextlib
import inspect
from collections.abc import Iterator

import keras
import tensorflow as tf


class ConfigFromInit:
    """Mixin: each constructor argument is kept in an attribute of its name, and the config is read from these.

    Defaults are written out, too: a file keeps its meaning when a default changes.
    """

    def get_config(self) -> dict:
        inherited = super().get_config() if isinstance(self, keras.layers.Layer) else {}
        arguments = {name: getattr(self, name) for name in constructor_arguments(type(self))}
        return {**inherited, **{name: _serialized(value) for name, value in arguments.items()}}

    @classmethod
    def from_config(cls, config: dict):
        arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in config.items()}
        with policy_scope(arguments.get("dtype")):
            made = cls(**arguments)
        return _frozen_as_configured(made)

    def build_from_config(self, config: dict) -> None:
        with policy_scope(self.dtype_policy):
            super().build_from_config(config)
        _frozen_as_configured(self)


@contextlib.contextmanager
def policy_scope(policy: keras.DTypePolicy | str | None) -> Iterator[None]:
    """Gives layers that are made inside the block this precision policy; None leaves the global one."""
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy or before)
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _frozen_as_configured(made):
    """What is not to be trained, with all the layers inside it, to which Keras does not hand it down."""
    if isinstance(made, keras.layers.Layer) and not made.trainable:
        freeze(made)
    return made


def freeze(layer: keras.layers.Layer) -> None:
    """Makes a layer untrainable with all that is inside it; Keras hands nothing down where the layer is so already."""
    layer.trainable = True
    layer.trainable = False


def constructor_arguments(cls: type) -> list[str]:
    """Names of a constructor's arguments, and of those that its ``**kwargs`` hand on to kerasdet's classes."""
    names = []
    for base in cls.__mro__:
        if not issubclass(base, ConfigFromInit) or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.name not in ("self", "kwargs", *names)]
    return names


def _serialized(value):
    if isinstance(value, list | tuple) and any(hasattr(item, "get_config") for item in value):
        return [_serialized(item) for item in value]
    return keras.saving.serialize_keras_object(value) if hasattr(value, "get_config") else value


def float_dtype() -> tf.DType:
    """Returns the type of box arithmetic and losses: Keras' `floatx`.

    It is float32 under every mixed-precision policy, and float64 if `keras.config.set_floatx` asked for it.
    """
    return tf.as_dtype(keras.config.floatx())
