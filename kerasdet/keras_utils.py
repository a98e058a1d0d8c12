"""Defines helpers for Keras classes: configs from constructor arguments, freezing, and the float dtype."""

import contextlib
import inspect
from collections.abc import Iterator

import keras
import tensorflow as tf

from kerasdet.errors import UserError


class ConfigFromInit:
    """Mixin that implements `get_config`: it reads each constructor argument from the attribute of the same name.

    A class must store each constructor argument in an attribute of the same name, and pass ``**kwargs`` to its base
    class. A constructor with ``*args`` cannot be saved. The config also contains arguments with default values, so that
    a saved model does not change when a default changes.

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
        """Returns all constructor arguments by name.

        Returns:
            The serialised arguments, by name.

        Raises:
            UserError: If the object has no attribute for an argument, or a constructor has ``*args``.
        """
        inherited = super().get_config() if isinstance(self, keras.layers.Layer) else {}
        names = constructor_arguments(type(self))
        if missing := [name for name in names if not hasattr(self, name)]:
            raise UserError(
                f"{type(self).__name__} has no attribute {', '.join(missing)}, but it is an argument of the "
                "constructor: store each constructor argument in an attribute of the same name, such as "
                f"self.{missing[0]} = {missing[0]}."
            )
        arguments = {name: getattr(self, name) for name in names}
        return {**inherited, **{name: _serialized(value) for name, value in arguments.items()}}

    @classmethod
    def from_config(cls, config: dict) -> "ConfigFromInit":
        """Creates an object from a config, under the dtype policy of the config. Keras calls this method.

        Args:
            config: Result of `get_config`.

        Returns:
            An object with these constructor arguments.
        """
        arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in config.items()}
        with policy_scope(arguments.get("dtype")):
            made = cls(**arguments)
        return _frozen_as_configured(made)

    def build_from_config(self, config: dict) -> None:
        """Builds a loaded layer under its own dtype policy, and freezes its sublayers if it is not trainable.

        Keras calls this method.

        Args:
            config: Result of `get_build_config`.
        """
        with policy_scope(self.dtype_policy):
            super().build_from_config(config)
        _frozen_as_configured(self)


@contextlib.contextmanager
def policy_scope(policy: keras.DTypePolicy | str | None) -> Iterator[None]:
    """Sets the dtype policy of layers that are created inside the ``with`` block.

    Args:
        policy: Policy or name of a policy, such as "mixed_bfloat16". None: the global policy.

    Yields:
        None.
    """
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy or before)
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _frozen_as_configured(made):
    """Freezes all sublayers if the object is a layer that is not trainable; Keras does not do so when it loads one."""
    if isinstance(made, keras.layers.Layer) and not made.trainable:
        freeze(made)
    return made


def freeze(layer: keras.layers.Layer) -> None:
    """Freezes a layer and all its sublayers: their weights are not trained.

    Keras passes ``trainable`` on to sublayers only if the value changes, so the function sets True first.

    Args:
        layer: Layer or model to freeze.
    """
    layer.trainable = True
    layer.trainable = False


def constructor_arguments(cls: type) -> list[str]:
    """Lists the constructor arguments of a class, including arguments of base classes that ``**kwargs`` passes on.

    Args:
        cls: A subclass of `ConfigFromInit`.

    Returns:
        Argument names without duplicates; the names of the class itself come first.

    Raises:
        UserError: If a constructor has ``*args``, which cannot be stored in a config.
    """
    names = []
    for base in cls.__mro__:
        if not issubclass(base, ConfigFromInit) or "__init__" not in vars(base):
            continue
        _self, *parameters = inspect.signature(base.__init__).parameters.values()
        if args := [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]:
            raise UserError(
                f"The constructor of {base.__name__} has *{args[0]}, which cannot be stored in a config: replace "
                f"*{args[0]} by named arguments."
            )
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in names]
    return names


def _serialized(value):
    if isinstance(value, list | tuple) and any(hasattr(item, "get_config") for item in value):
        return [_serialized(item) for item in value]
    return keras.saving.serialize_keras_object(value) if hasattr(value, "get_config") else value


def check_data_format() -> None:
    """Checks that Keras builds layers for images with their channels last.

    Raises:
        UserError: If Keras' image data format is "channels_first".
    """
    if keras.config.image_data_format() != "channels_last":
        raise UserError(
            "Keras' image data format is channels_first: expected channels_last, because models take images "
            '(B, H, W, 3). Set "image_data_format" to "channels_last" in ~/.keras/keras.json, or call '
            "keras.config.set_image_data_format('channels_last') before making a model."
        )


def float_dtype() -> tf.DType:
    """Returns the dtype in which boxes and losses are computed: Keras' `floatx`.

    Returns:
        float32, also under mixed-precision policies; or float64 after ``keras.config.set_floatx("float64")``.
    """
    return tf.as_dtype(keras.config.floatx())
