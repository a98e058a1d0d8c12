"""Writes files safely (a file gets its name only when it is complete and on disk), and locks files and folders."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from kerasdet.errors import UserError
from kerasdet.paths import is_device

log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Replaces an OSError of the ``with`` block by one whose message names the file and the cause.

    Args:
        path: Path of the file that the block writes.

    Yields:
        None.

    Raises:
        OSError: If the block cannot write the file. Files that were saved earlier are intact.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise OSError(f"{path} cannot be written: {reason}. Files that were saved earlier are intact.") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replaces a file atomically by the file that the ``with`` block writes.

    Args:
        path: Path of the file to replace or to create. Its folder is created if necessary.

    Yields:
        Temporary path for the block to write to. It is renamed to `path` if the block succeeds, and deleted if the
        block raises. For a device such as /dev/stdout it is `path` itself.

    Raises:
        OSError: If the file cannot be written. An old file at `path` is kept.
    """
    if is_device(path):
        with writing(path):
            yield path
        return
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
def removing_on_failure(path: Path) -> Iterator[None]:
    """Removes what the ``with`` block wrote to a path if the block fails, also after Ctrl-C. Existing files are kept.

    Args:
        path: Path of the file or folder that the block writes. A folder may exist if it is empty.

    Yields:
        None.
    """
    was_folder = path.is_dir()
    is_ours = not path.exists() or (was_folder and not any(path.iterdir()))
    try:
        yield
    except BaseException:
        if is_ours and path.is_dir():
            shutil.rmtree(path)
            if was_folder:
                path.mkdir()
        elif is_ours:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder inside the ``with`` block, so that no other process trains there.

    On a file system without locks, a warning is logged and the block runs without a lock.

    Args:
        folder: Existing folder of a training run.

    Yields:
        None.

    Raises:
        UserError: If another process holds the lock.
        OSError: If the lock file cannot be created in the folder.
    """
    import fcntl  # Windows does not have this module

    path = folder / ".lock"
    with writing(path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is training in {folder}: wait until it ends, or choose another OUT_DIR (Python: "
                "out_dir=)."
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning(
                "%s cannot be locked (%s): make sure that no other process trains there.", folder, error.strerror
            )
        yield


def _flush(path):
    """Waits until a file is on disk, so that not even a power failure can leave a partial file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def waiting_lock(path: Path, message: str) -> Iterator[None]:
    """Holds the lock of a file inside the ``with`` block; waits until no other process holds it.

    If a process crashes, the operating system releases its locks. On a file system without locks, a warning is logged
    and the block runs without a lock.

    Args:
        path: Path of the file to lock. The file and its folder are created if necessary, and the file is not deleted
            afterwards.
        message: Message to log if another process holds the lock.

    Yields:
        None.

    Raises:
        OSError: If the file cannot be created.
    """
    import fcntl  # Windows does not have this module

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s", message)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): make sure that no other process writes there.", path, error.strerror)
        yield
