"""Finds and reads gin files."""

import inspect
import os
import re
from pathlib import Path

import gin

from kerasdet.errors import UserError
from kerasdet.paths import expand, expand_text

GIN_CONFIGS = Path(inspect.getfile(__import__("kerasdet.gin_configs", fromlist=["x"]))).parent


def find_file(config: str | Path) -> Path:
    """Finds a gin file.

    Args:
        config: Path of a file or of a run's folder, or the name of a file inside kerasdet, with or without ``.gin``.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If `config` is a URL or cannot be a path.
    """
    packaged = [GIN_CONFIGS / f"{config}{suffix}" for suffix in ("", ".gin")]
    candidates = [expand(config), expand(config) / "config.gin", *packaged] if str(config) else packaged
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.stem for path in GIN_CONFIGS.glob("*.gin"))
    raise FileNotFoundError(
        f"There is no configuration {config}: expected the path of a gin file or of a run's folder, or one of "
        f"{', '.join(known)}."
    )


def read_text(path: str | Path) -> str:
    """Reads a gin file.

    Args:
        path: Path of the file.

    Returns:
        The contents of the file.

    Raises:
        UserError: If the file is not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not a text file: expected a gin configuration. Pass a gin file or a recipe."
        ) from None


def find_included(name: str) -> str | None:
    """Finds an included file in the first folder of gin's search path that contains it.

    Args:
        name: Name of the file, as the line with `include` writes it.

    Returns:
        The path of the file, or None if there is no such file.
    """
    places = [_expand_included(os.path.join(prefix, name)) for prefix in gin.config._LOCATION_PREFIXES]
    return next((place for place in places if os.path.isfile(place)), None)


def _expand_included(path):
    """Expands ``~`` and variables in the path of an included file, which gin joins to a folder of its search path."""
    found = re.search(r"(?<![^/])(?:~/|\$).*", path)
    if found is None or os.path.exists(path):
        return path
    return os.path.join(path[: found.start()], expand_text(found[0], "The path in `include`"))


def _open_included(path):
    return open(_expand_included(path), encoding="utf-8-sig")  # Windows' editors begin a file with a byte order mark


# gin 0.5.0 also takes the folder of an included file for a Python package, and raises a TypeError if the folder has no
# __init__.py, such as a user's folder `dataset` in the working folder. It has no public way to drop a reader.
gin.config._FILE_READERS[:] = [(_open_included, lambda path: os.path.isfile(_expand_included(path)))]
