"""Keeps a line of LiteRT's C++ code off the terminal."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

_NOISE = b"Created TensorFlow Lite XNNPACK delegate for CPU"


@contextlib.contextmanager
def without_delegate_line() -> Iterator[None]:
    """Removes LiteRT's line about its XNNPACK delegate from what the block writes to standard error.

    ai-edge-litert 2.3.0 writes it when it allocates tensors, below Python's `sys.stderr`, and reads no option or
    environment variable that turns it off. Everything else appears after the block.
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
