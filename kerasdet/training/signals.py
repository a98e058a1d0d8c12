"""SIGTERM, by which schedulers ask a process to end."""

import signal
import threading


def handle_sigterm(handler):
    """Installs a handler where Python allows it, and returns the one before, None where it does not."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)
