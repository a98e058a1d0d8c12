"""Prints errors: one line for a mistake of the user, and a request to report a bug of kerasdet."""

import dis
import re
import sys
import traceback
from pathlib import Path

import kerasdet
from kerasdet.errors import UserError

_GIN_NOTE = "\n  In call to configurable"
_PACKAGE = Path(kerasdet.__file__).parent
# `kerasdet.export` is a link to another folder in a working tree
_FOLDERS = tuple(f"{folder}/" for folder in {_PACKAGE, _PACKAGE.resolve(), (_PACKAGE / "export").resolve()})
_RAISE = dis.opmap["RAISE_VARARGS"]
# gin appends the name of the function that it was calling to an error. These functions run for long, so a TypeError in
# one of them need not come from a wrong argument.
_LONG_CALLS = ("train", "evaluate")


def report_error(error: Exception, command: str, *, debug: bool) -> int:
    """Prints an error on standard error.

    Args:
        error: The error that the command raised.
        command: Name of the command, for the beginning of the line.
        debug: Whether to print the stack trace as well.

    Returns:
        The exit code: 2 for a mistake of the user, 1 for a bug.
    """
    if debug:
        traceback.print_exception(error)
    if is_users_mistake(error):
        print(f"kerasdet {command}: {_sentence(error)}", file=sys.stderr)
        return 2
    print(f"kerasdet {command}: {type(error).__name__}: {str(error).split(_GIN_NOTE)[0].strip()}", file=sys.stderr)
    print("This is a bug in kerasdet, or in a module that your configuration imports. ", end="", file=sys.stderr)
    if debug:
        print("Please report this error with the stack trace above.", file=sys.stderr)
    else:
        print("Please report this error with the stack trace, which `kerasdet --debug ...` shows.", file=sys.stderr)
    return 1


def is_users_mistake(error: Exception) -> bool:
    """Decides whether an error is a mistake that the user can fix: in a command, configuration, file or machine.

    Args:
        error: The error that a command raised.

    Returns:
        True for a user's mistake, False for a bug of kerasdet.
    """
    if isinstance(error, UserError | OSError | MemoryError | FloatingPointError):
        return True  # FloatingPointError: training reports a loss that is not finite
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return True
    if _is_tensorflow_error(error):
        errors = sys.modules["tensorflow"].errors
        environment = (
            errors.NotFoundError,
            errors.PermissionDeniedError,
            errors.DataLossError,
            errors.ResourceExhaustedError,
            errors.UnavailableError,
            errors.AbortedError,
        )
        return isinstance(error, environment) or _reason_of_data(error) is not None
    if isinstance(error, ValueError | TypeError | AttributeError) and _configured(error) not in (None, *_LONG_CALLS):
        return True
    return isinstance(error, ValueError | TypeError | RuntimeError) and _raised_by_kerasdet(error)


def _sentence(error):
    """Returns the message as one line, without the internal details that gin and TensorFlow add."""
    text = str(error).split(_GIN_NOTE)[0]
    if isinstance(error, OSError) and error.strerror:  # the system's message starts with "[Errno 2]"
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, UnicodeEncodeError):
        name = re.search(r"[^\s\"']*[\ud800-\udfff][^\s\"']*", error.object)[0]
        name = name.encode("utf-8", "backslashreplace").decode()
        text = f"{name} is not valid UTF-8: expected a path whose bytes are text. Rename the file or the folder."
    if isinstance(error, MemoryError):
        text = f"The memory is full{f': {text}' if text else ''}. Choose smaller batches or images."
    if _is_tensorflow_error(error):
        text = _reason_of_data(error) or text
        if isinstance(error, sys.modules["tensorflow"].errors.ResourceExhaustedError):
            text += " The memory or the disk is full: choose smaller batches or images, or free some space."
    if isinstance(error, TypeError | AttributeError) and (name := _configured(error)):
        text = f"in an argument of {name}: {text}"
    return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", text).split())


def _is_tensorflow_error(error):
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.OpError)


def _reason_of_data(error):
    """Returns the message of an error that kerasdet raised inside a tf.data pipeline, or None for other errors."""
    found = re.search(r"Iterator::\S+ (.*)", str(error))
    return found and found.group(1)


def _configured(error):
    """Returns the name of the innermost class or function that gin was calling, or None for errors without gin."""
    found = re.search(rf"{_GIN_NOTE} '(\w+)'", str(error))
    return found and found.group(1)


def _raised_by_kerasdet(error):
    """Returns whether a `raise` statement of kerasdet, that is a check, raised the error. Any other error is a bug."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    code, position = frames[-1][0].f_code, _last_instruction(error.__traceback__)
    return code.co_filename.startswith(_FOLDERS) and code.co_code[position] == _RAISE


def _last_instruction(trace):
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_lasti
