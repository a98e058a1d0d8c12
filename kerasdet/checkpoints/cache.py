"""Keeps published weights on this machine: each is downloaded once, converted once, and then found without a network.

The folder is `KERASDET_HOME`, by default ``kerasdet`` in the user's cache folder. ``downloads/`` has the published
files as ``HOST/PATH``, ``models/`` their conversions. Deleting any of it only costs another download or conversion.
"""

import hashlib
import os
import random
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kerasdet.checkpoints.convert import to_model
from kerasdet.checkpoints.download import check, download, file_hash
from kerasdet.checkpoints.read import read
from kerasdet.checkpoints.sources import SOURCES
from kerasdet.checkpoints.zoo import Weights, find, is_name
from kerasdet.errors import UserError
from kerasdet.files import replacing, waiting_lock
from kerasdet.paths import cache_home, expand

_CONVERSION = 1  # raise it if models of an earlier kerasdet no longer load, or are converted differently


def local_path(path: str | os.PathLike) -> str | os.PathLike:
    """Returns the folder of published weights, if a path is their name; fetches and converts them if necessary.

    Args:
        path: Path, or a name of `kerasdet.checkpoints.zoo.ZOO`. An existing file or folder wins over a name.

    Returns:
        The folder of ``model.keras``, or `path` if it is no name.

    Raises:
        FileNotFoundError: If the path has the form of a name, and neither exists.
        UserError: If the weights cannot be fetched or converted.
    """
    if not is_published(path):
        return path
    return model_folder(find(Path(path).as_posix()))


def is_published(path: str | os.PathLike) -> bool:
    """Returns whether a path is a name of published weights, and no file or folder.

    Args:
        path: Path or name.

    Raises:
        FileNotFoundError: If the path has the form of a name, and neither exists.
    """
    if not isinstance(path, str | os.PathLike) or not is_name(Path(path).as_posix()) or Path(path).exists():
        return False
    find(Path(path).as_posix())
    return True


def is_cached(weights: Weights) -> bool:
    """Returns whether published weights are here, so that they load without a network."""
    return (_folder(weights) / "model.keras").exists() or _file(weights).exists()


def model_folder(weights: Weights) -> Path:
    """Returns the folder of the converted model of published weights, which the first call downloads and converts.

    Several processes may call it at once: one works, the others wait. A process that is killed leaves nothing that
    another would take for a model.

    Args:
        weights: Value of `kerasdet.checkpoints.zoo.ZOO`.

    Raises:
        UserError: If the weights cannot be fetched or converted.
    """
    folder = _folder(weights)
    if (folder / "model.keras").exists():
        return folder
    try:
        with waiting_lock(folder.parent / ".lock", f"Another process prepares {weights.name}: waiting for it."):
            if not (folder / "model.keras").exists():
                _convert(weights, _fetch(weights), folder / "model.keras")
    except OSError as error:
        raise UserError(f"{error} Set KERASDET_HOME to a folder that can be written.") from None
    return folder


def mirrored(url: str) -> str:
    """Returns the address to fetch a file from: below `KERASDET_MIRROR` if that is set, otherwise the publisher's.

    A mirror is a server or a folder with the files under ``HOST/PATH`` of their addresses, as ``wget -x`` stores them.

    Args:
        url: Address at the publisher.
    """
    mirror = os.environ.get("KERASDET_MIRROR")
    if not mirror:
        return url
    if "://" not in mirror:
        mirror = expand(mirror, "KERASDET_MIRROR").absolute().as_uri()
    return f"{mirror.rstrip('/')}/{_host_and_path(url)}"


def _fetch(weights):
    """Returns the published file, downloaded if it is not here or damaged."""
    path = _file(weights)
    digest = weights.digest or _recorded(path)
    if path.exists():
        try:
            check(path, digest, str(path))
            return path
        except UserError:
            pass  # the disk damaged it, and it was removed
    try:
        download(mirrored(weights.url), path, digest)
    except UserError as error:
        raise UserError(f"{weights.name} is not in the cache {cache_home()} and cannot be fetched: {error}") from None
    if digest is None:
        with replacing(_record(path)) as file:
            file.write_text(file_hash(path, "sha256"))
    return path


def _recorded(path):
    """Returns the hash of the first download of a file whose publisher tells none: later ones must be the same."""
    record = _record(path)
    return ("sha256", record.read_text()) if record.exists() else None


def _record(path):
    return path.with_name(f"{path.name}.sha256")


def _convert(weights, file, out):
    """Converts a published file. A thread of its own knows neither the caller's strategy, nor its dtype policy."""
    state = random.getstate()  # Keras draws its seeds from it: the first run of a training must not differ from others
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_convert_here, weights, file, out).result()
    finally:
        random.setstate(state)


def _convert_here(weights, file, out):
    model = to_model(read(file), weights.source)
    if weights.class_names and len(weights.class_names) == model.num_classes:
        model.class_names = weights.class_names
    with replacing(out) as partial:
        model.save(partial)


def _file(weights):
    return cache_home() / "downloads" / _host_and_path(weights.url)


def _folder(weights):
    """Returns the folder of a conversion. A new one is made if the source's table or the published file changes."""
    key = repr((_CONVERSION, SOURCES[weights.source], weights.url))
    return cache_home() / "models" / weights.name / hashlib.sha256(key.encode()).hexdigest()[:12]


def _host_and_path(url):
    parts = urllib.parse.urlsplit(url)
    return f"{parts.netloc}{parts.path}"
