"""Shows the progress of a download on standard error."""

import sys
import time

_WIDTH = 30
_INTERVAL = 0.2  # seconds between two updates of the bar


class ProgressBar:
    """Draws a progress bar if standard error is a terminal; otherwise writes one line at the start and one at the end.

    Args:
        name: Name of the file.
        start: Number of bytes that an earlier download received.
        total: Number of bytes of the whole file. None: unknown.
    """

    def __init__(self, name: str, start: int, total: int | None):
        self._name = name
        self._start = self._done = start
        self._total = total
        self._begin = time.monotonic()
        self._drawn = 0.0
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> "ProgressBar":
        """Shows the bar at its start."""
        if self._is_terminal:
            self._draw()
        else:
            more = f", from {_megabytes(self._start)} on" if self._start else ""
            print(f"Downloading {self._name} ({_megabytes(self._total)}{more})", file=sys.stderr, flush=True)
        return self

    def add(self, count: int) -> None:
        """Counts received bytes and redraws the bar.

        Args:
            count: Number of new bytes.
        """
        self._done += count
        if self._is_terminal and time.monotonic() - self._drawn > _INTERVAL:
            self._draw()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Shows the number of received bytes, and ends the line."""
        if self._is_terminal:
            self._draw()
            print(file=sys.stderr, flush=True)
        else:
            seconds = time.monotonic() - self._begin
            text = f"Downloaded {_megabytes(self._done)} of {self._name} in {seconds:.0f} s"
            print(text, file=sys.stderr, flush=True)

    def _draw(self):
        self._drawn = time.monotonic()
        rate = (self._done - self._start) / max(self._drawn - self._begin, 1e-6)
        text = f"{_megabytes(self._done)} of {_megabytes(self._total)}, {_megabytes(rate)}/s"
        if self._total:
            filled = _WIDTH * self._done // self._total
            left = f", {(self._total - self._done) / rate:.0f} s left" if rate and self._done < self._total else ""
            text = f"[{'=' * filled}{' ' * (_WIDTH - filled)}] {100 * self._done // self._total:3d}%  {text}{left}"
        print(f"\r{self._name}  {text}\033[K", end="", file=sys.stderr, flush=True)


def _megabytes(count):
    return "unknown size" if count is None else f"{count / 1e6:.1f} MB"
