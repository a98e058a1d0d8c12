"""Helpers for Keras classes: configs read from constructor arguments, freezing, and the float type."""

import contextlib
import inspect
from collections.abc import Iterator

import keras
import tensorflow as tf

from kerasdet.errors import UserError


class ConfigFromInit:
    """Mixin that reads a Keras config from constructor arguments, so that no option can be missing in it.

    A class must store each constructor argument in an attribute of the same name. ``**kwargs``, under any name, go to
    the base class instead. A constructor with ``*args`` cannot be saved. The config includes arguments at
    their default, so a file keeps its meaning when a default changes.

    Example:
        >>> @keras.saving.register_keras_serializable(package="my_package")
        ... class Scale(ConfigFromInit, keras.layers.Layer):
        ...     def __init__(self, factor=2.0, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.factor = factor
        >>> Scale(3.0).get_config()["factor"]
        3.0
    """

    def get_config(self) -> dict:
        """Returns all constructor arguments, serialised, by name.

        Raises:
            UserError: If the object has no attribute for an argument.
        """
        inherited = super().get_config() if isinstance(self, keras.layers.Layer) else {}
        names = constructor_arguments(type(self))
        if missing := [name for name in names if not hasattr(self, name)]:
            raise UserError(
                f"{type(self).__name__} has no attribute {', '.join(missing)}, from which its config is read: store "
                f"each constructor argument in an attribute of its name, as in self.{missing[0]} = {missing[0]}."
            )
        arguments = {name: getattr(self, name) for name in names}
        return {**inherited, **{name: _serialized(value) for name, value in arguments.items()}}

    @classmethod
    def from_config(cls, config: dict) -> "ConfigFromInit":
        """Creates an object from the result of `get_config`, under the dtype policy of the config."""
        arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in config.items()}
        with policy_scope(arguments.get("dtype")):
            made = cls(**arguments)
        return _frozen_as_configured(made)

    def build_from_config(self, config: dict) -> None:
        """Builds a loaded layer under its own dtype policy, and freezes its sublayers if it is not trainable."""
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
    """Freezes all sublayers if the object is a layer that is not trainable: Keras does not do so when loading."""
    if isinstance(made, keras.layers.Layer) and not made.trainable:
        freeze(made)
    return made


def freeze(layer: keras.layers.Layer) -> None:
    """Makes a layer and all its sublayers untrainable.

    Keras passes ``trainable`` on to sublayers only if its value changes, so it is set to True first.

    Args:
        layer: Layer or model to freeze.
    """
    layer.trainable = True
    layer.trainable = False


def constructor_arguments(cls: type) -> list[str]:
    """Lists the constructor arguments of a class, and those that its ``**kwargs`` pass on to kerasdet's base classes.

    Args:
        cls: A subclass of `ConfigFromInit`.

    Returns:
        Argument names without duplicates, those of the class itself first.

    Raises:
        UserError: If a constructor has ``*args``, which no attribute holds.
    """
    names = []
    for base in cls.__mro__:
        if not issubclass(base, ConfigFromInit) or "__init__" not in vars(base):
            continue
        _self, *parameters = inspect.signature(base.__init__).parameters.values()
        if args := [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]:
            raise UserError(
                f"The constructor of {base.__name__} has *{args[0]}, which its config cannot hold: name each argument."
            )
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in names]
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
