"""Configs for Keras out of constructors, so that no option can be forgotten in one."""

import inspect

import keras


class Configured:
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
        policy = keras.config.dtype_policy()
        try:  # the layers inside take the global policy
            keras.config.set_dtype_policy(arguments.get("dtype", policy))
            return cls(**arguments)
        finally:
            keras.config.set_dtype_policy(policy)


def constructor_arguments(cls: type) -> list[str]:
    """Names of a constructor's arguments, and of those that its ``**kwargs`` hand on to kerasdet's classes."""
    names = []
    for base in cls.__mro__:
        if not issubclass(base, Configured) or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.name not in ("self", "kwargs", *names)]
    return names


def _serialized(value):
    if isinstance(value, list | tuple) and any(hasattr(item, "get_config") for item in value):
        return [_serialized(item) for item in value]
    return keras.saving.serialize_keras_object(value) if hasattr(value, "get_config") else value
