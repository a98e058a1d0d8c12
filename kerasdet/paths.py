"""Checks and expands paths that users pass, and prepares files and folders that will be written."""

import errno
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kerasdet.errors import UserError


def expand(path: str | os.PathLike, name: str = "The path") -> Path:
    """Expands ``~``, ``~user`` and variables such as ``$DATA`` and ``${DATA}`` in a path, like a shell.

    Shells do not expand ``~`` inside quotes or after ``NAME=``, nor variables inside single quotes; gin and TensorFlow
    expand neither. Every function that takes a path from a user calls this one.

    Args:
        path: Path of a file or folder.
        name: Name of the setting, such as "OUT_DIR (Python: out_dir=)", for the beginning of error messages.

    Returns:
        The expanded path.

    Raises:
        UserError: If `path` is not a local path: another type, an empty string, a URL, a path with a null byte, a new
            path with control characters, or a symbolic link that points to itself; or if it names a variable that is
            not set.
    """
    if isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str):
        text = os.fspath(path)
        if not text.strip():
            raise UserError(f"{name} is empty: expected the path of a file or folder. Pass a path such as runs/first.")
        if "\0" in text:
            raise UserError(f"{name} is {text!r}: expected a path without a null byte. Correct the path.")
        if re.search(r"[\x01-\x1f]", text) and not os.path.lexists(text):
            raise UserError(
                f"{name} is {text!r}: expected a path without control characters. In quotes, gin and Python read a "
                "backslash and a letter as one character: write / instead."
            )
        if re.match(r"[A-Za-z][\w+.-]+:/", text):  # otherwise gs://bucket/run would become a local folder `gs:`
            raise UserError(
                f"{name} is {text}, a URL: expected the path of a local file or folder. Mount the remote "
                f"folder, or copy the files."
            )
        path = Path(expand_text(text, name))
        try:
            path.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:  # in Python 3.12 and earlier `Path.resolve` raises a RuntimeError
                raise UserError(
                    f"{name} is {path}, a symbolic link that points to itself: expected the path of a file or "
                    "folder. Correct the link."
                ) from None
        return path
    is_number = isinstance(path, int | float) and not isinstance(path, bool)
    example = f"./{path} if that is its name" if is_number else "runs/first"
    raise UserError(f"{name} is {path!r}: expected the path of a file or folder. Pass a path such as {example}.")


def expand_text(text: str, name: str = "The path") -> str:
    """Expands ``~`` and variables in text that may also be a URL, a glob or the name of published weights.

    Args:
        text: Text that a user passed. A URL is returned as it is, and a part between slashes keeps its ``$`` if a file
            or folder of this name exists.
        name: Name of the setting, for the beginning of error messages.

    Returns:
        The expanded text.

    Raises:
        UserError: If a variable is not set.
    """
    if "://" in text:
        return text
    expanded = ""
    for part in re.split("(/)", os.path.expanduser(text)):
        if "$" in part and not os.path.lexists(expanded + part):
            part = re.sub(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", lambda found: _variable(found, text, name), part)
        expanded += part
    return expanded


def _variable(found, text, name):
    variable = found[1] or found[2]
    if variable not in os.environ:
        raise UserError(
            f"{name} is {text}, and the environment variable {variable} is not set: expected a path. Set the variable, "
            "or write the path without it."
        )
    return os.environ[variable]


def make_folder(folder: Path, name: str) -> None:
    """Creates a folder with its parents, and checks that it is writable, before work that may take hours.

    Args:
        folder: Path of the folder, which may exist.
        name: Name of the setting, such as "OUT_DIR (Python: out_dir=)", for the beginning of error messages.

    Raises:
        OSError: If the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file or a broken link" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(f"{name}: {folder} cannot be written: {reason}. Choose a writable folder.") from None


def prepare_file(path: str | os.PathLike, name: str, *, may_be_coco: bool = False) -> Path:
    """Creates the folder of a file, and checks that the file can be written, before work that may take hours.

    Args:
        path: Path of the file that will be written. An existing file is not changed yet.
        name: Name of the setting, such as "--json", for the beginning of error messages.
        may_be_coco: Whether a COCO dataset with scores may be replaced, because the setting writes one.

    Returns:
        The expanded path.

    Raises:
        UserError: If `path` is not a local path, or an existing file is neither empty nor an output of kerasdet.
        OSError: If `path` is a folder, or the file cannot be written.
    """
    path = expand(path, name)
    if path.is_dir():
        raise IsADirectoryError(f"{name}: {path} is a folder: expected a file. Add the name of a file in it.")
    if is_device(path):
        return path
    make_folder(path.parent, name)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{name}: {path} cannot be written: it is read-only. Choose another file.")
    if path.exists() and not _is_output(path, may_be_coco):
        raise UserError(f"{name} would overwrite {path}, which is not an output of kerasdet: choose another file.")
    return path


def _is_output(path, may_be_coco):
    """Returns whether a file may be one that a command wrote: detections, metrics or a page, or an empty file.

    Images, models and annotations are not: annotations have no scores.

    Args:
        path: Path of the file.
        may_be_coco: Whether a COCO dataset with scores counts as an output.
    """
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start or start.lower().startswith(b"<!doctype html"):
        return True
    try:
        content = json.loads(path.read_bytes()) if start[:1] in (b"[", b"{") else None
    except ValueError:
        return False
    if isinstance(content, dict) and content.keys() != {"images", "categories", "annotations"}:
        parts = (part for part in (content, *content.values()) if isinstance(part, dict))
        return "findings" in content or any("summary" in part for part in parts)
    if isinstance(content, dict) and not may_be_coco:
        return False
    detections = content["annotations"] if isinstance(content, dict) else content
    return isinstance(detections, list) and all(isinstance(each, dict) and "score" in each for each in detections)


def is_device(path: Path) -> bool:
    """Tells whether a path is a device, a pipe or an open file, such as /dev/stdout, which no new file may replace.

    Args:
        path: Path of a file, which need not exist.

    Returns:
        True if the path must be written to directly.
    """
    folder = os.path.realpath(path.parent)
    return folder == "/dev" or folder.startswith("/proc/") or (path.exists() and not (path.is_file() or path.is_dir()))


def why_no_file(path: Path) -> str | None:
    """Tells why a file cannot be read as a whole.

    Args:
        path: Path of a file to read.

    Returns:
        "does not exist", "is a folder", or "is a pipe or a device"; None for a file.
    """
    if path.is_file():
        return None
    if path.is_dir():
        return "is a folder"
    return "is a pipe or a device" if path.exists() else "does not exist"


def prepare_files(
    outputs: Mapping[str, str | os.PathLike | None], inputs: Mapping[str, str | os.PathLike | None]
) -> dict[str, Path]:
    """Runs `prepare_file` for several output files, and checks that none overwrites an input or another output.

    Args:
        outputs: Maps the name of each setting to the path of the file to write; None for a setting that was not given.
        inputs: Maps the name of each setting to the path of the file to read; None for a setting that was not given.

    Returns:
        A dict from the name of a setting to the expanded path of the file to write.

    Raises:
        UserError: If an input or another output would be overwritten, or a path is not a local path.
        OSError: If a file cannot be written.
    """
    files = {name: expand(path, name) for name, path in outputs.items() if path is not None}
    owners = {os.path.realpath(expand(path, name)): name for name, path in inputs.items() if path}
    for name, path in files.items():
        if (owner := owners.setdefault(os.path.realpath(path), name)) != name:
            raise UserError(f"{name} would overwrite {path}, the file of {owner}: choose another file for {name}.")
    return {name: prepare_file(path, name) for name, path in files.items()}


def cache_home() -> Path:
    """Returns the folder of kerasdet's cache, which need not exist.

    Returns:
        The folder in the environment variable KERASDET_HOME. By default `kerasdet` in the user's cache folder:
        ``~/Library/Caches`` on macOS, otherwise ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        UserError: If the variable does not hold a local path.
    """
    if given := os.environ.get("KERASDET_HOME"):
        return expand(given, "KERASDET_HOME")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kerasdet"
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kerasdet"
