"""Defines errors for mistakes that the user can correct."""

import importlib
from types import ModuleType


class UserError(ValueError):
    """Reports a user's mistake in a command, a configuration, data, an image or a checkpoint.

    The message has three parts: what is wrong (file, item, value), what was expected, and what to do. The command line
    prints it without a stack trace. Bugs of kerasdet raise other types of errors.
    """


class VerificationError(UserError):
    """Reports that the results of an exported or converted model differ from those of the original model."""


def require_extra(package: str, needed_by: str, extra: str) -> ModuleType:
    """Imports an optional package, which ``pip install 'kerasdet[EXTRA]'`` installs.

    Args:
        package: Dotted name of the module to import.
        needed_by: Option, function or file that needs the package, for the error message.
        extra: Name of the extra that installs the package, such as "video".

    Returns:
        The imported module.

    Raises:
        UserError: If the package, or a package that it imports, is not installed.

    Example:
        >>> supervision = require_extra("supervision", "to_supervision", "supervision")
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        if not isinstance(error, ModuleNotFoundError):
            raise UserError(
                f"{missing} cannot be imported ({error}), but {needed_by} needs it: run pip install -U "
                f"'kerasdet[{extra}]'."
            ) from None
        raise UserError(
            f"{missing} is not installed, but {needed_by} needs it: run pip install 'kerasdet[{extra}]'."
        ) from None
