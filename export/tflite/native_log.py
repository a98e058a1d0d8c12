"""Suppresses a log line of LiteRT's C++ code."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

_NOISE = b"Created TensorFlow Lite XNNPACK delegate for CPU"


@contextlib.contextmanager
def without_delegate_line() -> Iterator[None]:
    """Suppresses LiteRT's line about its XNNPACK delegate on standard error inside the ``with`` block.

    ai-edge-litert 2.3.0 writes the line from C++ when it allocates tensors, and has no option or environment variable
    to turn it off. All other output of the block to standard error appears after the block.

    Yields:
        None.
    """
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file:
                if _NOISE not in line:
                    os.write(2, line)
