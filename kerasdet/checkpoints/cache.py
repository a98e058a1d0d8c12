"""Stores published weights on this machine: they are downloaded and converted once, then loaded offline.

The folder of the cache is `KERASDET_HOME`, by default ``kerasdet`` in the user's cache folder. ``downloads/`` contains
the published files as ``HOST/PATH``, ``models/`` the converted models. You may delete the folder; files are then
downloaded and converted again.
"""

import hashlib
import logging
import os
import random
import urllib.parse
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kerasdet.checkpoints.convert import to_model
from kerasdet.checkpoints.download import check, download, file_hash, shown
from kerasdet.checkpoints.read import read
from kerasdet.checkpoints.sources import SOURCES
from kerasdet.checkpoints.zoo import Weights, find, is_name
from kerasdet.errors import UserError
from kerasdet.files import replacing, waiting_lock
from kerasdet.paths import cache_home, expand

# Increase it if models that an earlier kerasdet converted no longer load, or would now be converted differently.
_CONVERSION = 2

log = logging.getLogger(__name__)


def local_path(path: str | os.PathLike) -> str | os.PathLike:
    """Resolves the name of published weights to a local folder; downloads and converts the weights if necessary.

    Args:
        path: A path, or the name of published weights, a key of `kerasdet.checkpoints.zoo.ZOO`. An existing file or
            folder takes precedence over a name.

    Returns:
        The folder that contains ``model.keras``, or `path` itself if it is not a name.

    Raises:
        FileNotFoundError: If the path has the form of a name, but neither weights nor a file or folder with this name
            exist.
        UserError: If the weights cannot be downloaded or converted.
    """
    if not is_published(path):
        return path
    return model_folder(find(Path(path).as_posix()))


def is_published(path: str | os.PathLike) -> bool:
    """Tells whether a path is the name of published weights, and no file or folder has this name.

    Args:
        path: A path, or the name of published weights, a key of `kerasdet.checkpoints.zoo.ZOO`.

    Returns:
        True for a name of published weights; False for a path, even if no file exists there.

    Raises:
        FileNotFoundError: If the path has the form of a name, but neither weights nor a file or folder with this name
            exist.
    """
    if not isinstance(path, str | os.PathLike) or not is_name(Path(path).as_posix()) or Path(path).exists():
        return False
    find(Path(path).as_posix())
    return True


def is_cached(weights: Weights) -> bool:
    """Tells whether published weights are in the cache, so that they can be loaded offline.

    Args:
        weights: The published weights, a value of `kerasdet.checkpoints.zoo.ZOO`.

    Returns:
        True if the cache contains the published file or the converted model.
    """
    return (converted_folder(weights) / "model.keras").exists() or published_file(weights).exists()


def model_folder(weights: Weights) -> Path:
    """Returns the folder of the converted model of published weights. The first call downloads and converts them.

    Several processes may call this function at the same time: one process does the work, the others wait. A killed
    process leaves no incomplete model. A converted model that is damaged on disk is converted again.

    Args:
        weights: The published weights, a value of `kerasdet.checkpoints.zoo.ZOO`.

    Returns:
        The folder that contains ``model.keras``.

    Raises:
        UserError: If the weights cannot be downloaded or converted.
    """
    folder = converted_folder(weights)
    model = folder / "model.keras"
    try:
        if _is_intact(model):
            return folder
        with waiting_lock(folder.parent / ".lock", f"Another process prepares {weights.name}: waiting for it."):
            if not _is_intact(model):
                if model.exists():
                    log.warning("%s is damaged: it is converted again.", model)
                _prepare(weights, model)
    except OSError as error:
        raise UserError(
            f"{error.filename or model} cannot be read or written: {error.strerror or error}. Set KERASDET_HOME to a "
            "folder that can be written to."
        ) from None
    return folder


def mirrored(url: str) -> str:
    """Returns the URL to download a file from: on the mirror `KERASDET_MIRROR` if it is set, otherwise `url`.

    A mirror is a server or a folder that holds each file under the ``HOST/PATH`` of its URL, as ``wget -x`` stores it.

    Args:
        url: URL of the file at its publisher.

    Returns:
        The URL to download from.

    Raises:
        UserError: If `KERASDET_MIRROR` is neither a URL nor a local path.
    """
    mirror = os.environ.get("KERASDET_MIRROR")
    if not mirror:
        return url
    if "://" not in mirror:
        mirror = expand(mirror, "KERASDET_MIRROR").absolute().as_uri()
    return f"{mirror.rstrip('/')}/{_host_and_path(url)}"


def _is_intact(model):
    """Tells whether a converted model exists and its contents match their checksums."""
    if not model.exists():
        return False
    try:
        with zipfile.ZipFile(model) as archive:
            return archive.testzip() is None
    except PermissionError:
        raise
    except Exception:  # a damaged archive raises errors of many types
        return False


def _prepare(weights, model):
    """Downloads a published file if necessary, and converts it."""
    file = fetch(weights)
    is_verified = weights.digest is not None or _record(file).exists()
    try:
        convert(weights, file, model)
    except UserError as error:
        if is_verified:
            raise
        file.unlink()  # without a hash, only the conversion detects a wrong file, such as the login page of a network
        raise UserError(f"The file from {shown(mirrored(weights.url))} was removed from the cache. {error}") from None
    if not is_verified:
        with replacing(_record(file)) as record:
            record.write_text(file_hash(file, "sha256"))


def fetch(weights: Weights) -> Path:
    """Downloads a published file if it is missing or damaged.

    Args:
        weights: The published weights, a value of `kerasdet.checkpoints.zoo.ZOO`.

    Returns:
        The path of the file.

    Raises:
        UserError: If the file cannot be downloaded.
    """
    path = published_file(weights)
    digest = weights.digest or _recorded(path)
    if path.exists():
        try:
            check(path, digest, str(path))
            return path
        except UserError:
            pass  # the file in the cache is damaged, and `check` has removed it
    try:
        download(mirrored(weights.url), path, digest)
    except UserError as error:
        raise UserError(
            f"{weights.name} is not in the cache {cache_home()} and cannot be downloaded: {error}"
        ) from None
    return path


def _recorded(path):
    """Returns the hash that was recorded when the file was first converted, or None."""
    record = _record(path)
    return ("sha256", record.read_text()) if record.exists() else None


def _record(path):
    return path.with_name(f"{path.name}.sha256")


def convert(weights: Weights, file: Path, out: Path) -> None:
    """Converts a published file, in a new thread without the caller's strategy and dtype policy.

    Args:
        weights: The published weights, a value of `kerasdet.checkpoints.zoo.ZOO`.
        file: Path of the published file.
        out: Path of the ``.keras`` file to write.

    Raises:
        UserError: If the file cannot be converted.
    """
    # Keras draws its seeds from Python's random state. A first run, which converts weights, must train like later runs.
    state = random.getstate()
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


def published_file(weights: Weights) -> Path:
    """Returns the path of a published file in the cache.

    Args:
        weights: The published weights, a value of `kerasdet.checkpoints.zoo.ZOO`.

    Returns:
        The path of the file, which may not exist yet.
    """
    return cache_home() / "downloads" / _host_and_path(weights.url)


def converted_folder(weights: Weights) -> Path:
    """Returns the folder of a converted model.

    If kerasdet's description of the source model or the URL of the published file changes, the folder changes, too.

    Args:
        weights: The published weights, a value of `kerasdet.checkpoints.zoo.ZOO`.

    Returns:
        The path of the folder, which may not exist yet.
    """
    key = repr((_CONVERSION, SOURCES[weights.source], weights.url))
    return cache_home() / "models" / weights.name / hashlib.sha256(key.encode()).hexdigest()[:12]


def _host_and_path(url):
    parts = urllib.parse.urlsplit(url)
    return f"{parts.netloc}{parts.path}"
