"""The error for a mistake that the user made and can mend."""


class UserError(ValueError):
    """Says in one sentence what is wrong (file, item, value), what was expected and what to do.

    The command line prints it without a stack trace. Raise it for bad configuration, data, images and checkpoints;
    let every other error, which is a bug of kerasdet, keep its own type.
    """
