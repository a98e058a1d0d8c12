"""Turns what users give as a path into a `Path`, and prepares files and folders that will be written."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kerasdet.errors import UserError


def expand(path: str | os.PathLike, name: str = "The path") -> Path:
    """Returns a path in which ``~`` and ``~user`` stand for home folders, as in a shell.

    Shells expand ``~`` neither inside quotes nor after ``NAME=``, gin and TensorFlow do not expand it at all. Every
    function that takes a path from a user calls this one.

    Args:
        path: Path of a file or folder.
        name: Name of the setting at the start of an error message, such as "OUT_DIR (out_dir)".

    Raises:
        UserError: If it is no path: a number, None, an empty text or a URL.
    """
    if isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str):
        text = os.fspath(path)
        if not text.strip():
            raise UserError(f"{name} is empty: expected the path of a file or folder. Name one, such as runs/first.")
        if re.match(r"[A-Za-z][\w+.-]+:/", text):  # as a path, gs://bucket/run would be a new folder `gs:`
            raise UserError(f"{name} is {text}, a URL: expected the path of a local file or folder. Mount or copy it.")
        return Path(os.path.expanduser(text))
    is_number = isinstance(path, int | float) and not isinstance(path, bool)
    example = f"./{path} if that is its name" if is_number else "runs/first"
    raise UserError(f"{name} is {path!r}: expected the path of a file or folder. Name one, such as {example}.")


def make_folder(folder: Path, name: str) -> None:
    """Makes a folder with its parents, and tries to write there, so that an error occurs before the work begins.

    Args:
        folder: Folder, which may exist.
        name: Name of the setting at the start of an error message, such as "OUT_DIR (out_dir)".

    Raises:
        OSError: If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(f"{name}: {folder} cannot be written: {reason}. Choose a folder that can be written.") from None


def prepare_file(path: str | os.PathLike, name: str) -> Path:
    """Makes the folder of a file, and checks that the file can be written, before work that may take hours.

    Args:
        path: File that will be written; an existing one stays as it is for now.
        name: Name of the setting at the start of an error message, such as "--json".

    Returns:
        The expanded path.

    Raises:
        UserError: If it is no path.
        OSError: If the file cannot be written.
    """
    path = expand(path, name)
    if path.is_dir():
        raise IsADirectoryError(f"{name}: {path} is a folder: expected a file. Name one, such as {path / 'new.json'}.")
    if path.exists() and not path.is_file():
        return path  # a device, such as /dev/stdout
    make_folder(path.parent, name)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{name}: {path} cannot be written: it is read-only. Choose another file.")
    return path


def prepare_files(
    outputs: Mapping[str, str | os.PathLike | None], inputs: Mapping[str, str | os.PathLike | None]
) -> dict[str, Path]:
    """Runs `prepare_file` for several files, and checks that none is another one or is read.

    Args:
        outputs: Name of the setting -> file that will be written; None for a setting that was not given.
        inputs: The same for files that are read.

    Returns:
        Name of the setting -> expanded path of each file that will be written.

    Raises:
        UserError: If a file would be overwritten, or is no path.
        OSError: If a file cannot be written.
    """
    files = {name: prepare_file(path, name) for name, path in outputs.items() if path is not None}
    owners = {expand(path, name).resolve(): name for name, path in inputs.items() if path}
    for name, path in files.items():
        if (owner := owners.setdefault(path.resolve(), name)) != name:
            raise UserError(f"{name} would overwrite {path}, the file of {owner}: choose another file for {name}.")
    return files


def cache_home() -> Path:
    """Returns the folder of the cache, KERASDET_HOME or one in the user's cache folder; it need not exist."""
    if given := os.environ.get("KERASDET_HOME"):
        return expand(given, "KERASDET_HOME")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kerasdet"
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kerasdet"
