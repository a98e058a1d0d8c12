"""Configs for Keras out of constructors, so that no option can be forgotten in one."""

import inspect

import keras


class Configured:
    """Mixin: each constructor argument is kept in an attribute of its name, and the config is read from these.

    Defaults are written out, too: a file keeps its meaning when a default changes.
    """

    def get_config(self) -> dict:
        inherited = super().get_config() if isinstance(self, keras.layers.Layer) else {}
        arguments = inspect.signature(type(self).__init__).parameters
        return {**inherited, **{name: getattr(self, name) for name in arguments if name not in ("self", "kwargs")}}

    @classmethod
    def from_config(cls, config: dict):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})
