"""Files of a run: each appears under its name only when it is complete and on the disk, and one process writes them."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what goes wrong with `path` is an OSError of one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise OSError(f"{path} cannot be written: {reason}. What was saved before is untouched.") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within, another path to write to, whose file then takes the place of `path`; raises as `writing`."""
    partial = path.with_name(f".partial_{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            os.replace(partial, path)
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process trains in `folder`; raises ValueError where one does."""
    import fcntl  # which Windows has not

    path = folder / ".lock"
    with writing(path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by another process: let that end, or choose another OUT_DIR (out_dir)."
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): see that no other process trains there.", folder, error.strerror)
        yield


def _flush(path):
    """Onto the disk, so that not even a loss of power can leave half a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
