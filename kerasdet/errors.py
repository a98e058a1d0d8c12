"""Errors for mistakes that the user made and can correct."""


class UserError(ValueError):
    """Reports a mistake in a command, a configuration, data, an image or a checkpoint.

    The message is one sentence with three parts: what is wrong (file, item, value), what was expected and what to do.
    The command line prints it without a stack trace. Every other error is a bug of kerasdet and keeps its own type.
    """


class VerificationError(UserError):
    """Reports that an exported or converted model differs from the model that it was made from."""
