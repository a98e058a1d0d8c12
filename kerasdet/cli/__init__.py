"""Runs the command line: ``kerasdet train | eval | predict | export | convert | inspect | analyze | zoo | data``.

`parser` defines the options, `commands` runs the commands, `report` prints errors. TensorFlow is imported only after
the arguments are parsed, so that ``--help`` and usage errors respond immediately.
"""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from kerasdet.cli.parser import make_parser
from kerasdet.cli.report import report_error
from kerasdet.cli.stderr import hidden_stderr
from kerasdet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Command-line arguments after ``kerasdet``; None: the arguments in `sys.argv`.

    Returns:
        The exit code. 0: success. 2: a mistake of the user, which one line on standard error explains. 1: a bug of
        kerasdet. 130: Ctrl-C. 141: the program that reads the output, such as ``head``, has ended.

    Raises:
        SystemExit: For ``--help`` and ``--version`` (code 0) and usage errors (2), after SIGTERM (143), and with the
            exit code of a worker of ``train --workers`` that failed.
    """
    options = make_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have letters that the terminal cannot show
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kerasdet").setLevel(logging.INFO)
    try:
        if (backend := os.environ.get("KERAS_BACKEND") or "tensorflow") != "tensorflow":
            raise UserError(
                f"KERAS_BACKEND is {backend!r}: expected tensorflow, which kerasdet needs. Unset KERAS_BACKEND."
            )
        if not options.debug:
            _import_tensorflow_quietly()
        from kerasdet.cli import commands

        with _exiting_on_sigterm(), _without_repeated_lines():
            commands.run(options)
        if sys.stdout is not None:  # `kerasdet ... >&-`
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"kerasdet {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `kerasdet predict ... | head`: otherwise Python prints another error when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return report_error(error, options.command, debug=options.debug)
    return 0


@contextlib.contextmanager
def _exiting_on_sigterm():
    """Turns SIGTERM into SystemExit inside the block, so that incomplete files and folders are removed.

    `kerasdet.train` replaces the handler during training, to save a checkpoint.
    """
    is_main = threading.current_thread() is threading.main_thread()  # Python sets handlers only there
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _without_repeated_lines():
    """Logs each line about datasets once inside the block, because a command may open several splits of a dataset."""
    logged = set()

    def is_new(record):
        message = record.getMessage()
        return message not in logged and not logged.add(message)

    logger = logging.getLogger("kerasdet.data")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _import_tensorflow_quietly():
    """Imports TensorFlow and lists its devices, without the messages that TensorFlow then prints.

    TF_CPP_MIN_LOG_LEVEL=2 hides the advice of cpu_feature_guard and oneDNN, but not "All log messages before
    absl::InitializeLog()" and "failed call to cuInit", which `tensorflow` 2.21 prints on machines without a GPU.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with hidden_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()
