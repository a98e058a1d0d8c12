"""Copies datasets from remote file systems that TensorFlow can read, such as S3 or HTTP, into the cache."""

import hashlib
import re
from pathlib import Path
from typing import Any

import tensorflow as tf

from kerasdet.data.progress import progress
from kerasdet.errors import UserError
from kerasdet.files import replacing
from kerasdet.paths import cache_home

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_CHUNK = 1 << 22


def is_remote(path: Any) -> bool:
    """Tells whether a path is on a remote file system.

    Args:
        path: Path or URL, or a value that is neither.

    Returns:
        True if the path begins with a scheme, such as ``s3://``.
    """
    return isinstance(path, str) and _SCHEME.match(path) is not None


def local_copy(url: str) -> Path:
    """Copies a remote file, or a folder with all its contents, into the cache.

    Files that are already in the cache with the same size are not copied again.

    Args:
        url: URL such as ``s3://bucket/data`` or ``http://host/val.tfrecord``. Over HTTP, only files can be copied, not
            folders.

    Returns:
        Path of the local copy.

    Raises:
        UserError: If TensorFlow cannot read from the file system, or the address does not exist. The message gives the
            reason and a remedy.
    """
    url = url.rstrip("/")
    scheme = _SCHEME.match(url)[1].lower()
    target = cache_home() / "data" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[1]
    try:
        _reach(scheme, url)
        if scheme not in ("http", "https") and tf.io.gfile.isdir(url):
            files = [f"{folder.rstrip('/')}/{name}" for folder, _, names in tf.io.gfile.walk(url) for name in names]
        else:
            files = [url]
        for file in progress(files, f"Copying {url}"):
            _copy(file, target / file[len(url) + 1 :] if file != url else target)
    except (tf.errors.OpError, OSError, RuntimeError) as error:  # Azure's file system raises RuntimeError
        raise UserError(
            f"{url} cannot be copied to {target}: {' '.join(str(error).split())[:300]}. Check the address, the "
            "credentials and the free space, or copy the data yourself."
        ) from None
    return target


def _reach(scheme, url):
    """Checks that TensorFlow, if needed with tensorflow-io, can read the file system of a URL scheme."""
    try:
        tf.io.gfile.exists(url)
    except tf.errors.UnimplementedError:
        try:
            import tensorflow_io  # noqa: F401 (registers its file systems when it is imported)
        except Exception as error:  # on other versions of TensorFlow than its own it raises almost anything
            raise UserError(
                f"{url} is on {scheme}, which TensorFlow can read only with tensorflow-io, but tensorflow-io cannot "
                "be imported "
                f"({' '.join(str(error).split())[:80]}). tensorflow-io works up to TensorFlow 2.16; this "
                f"is {tf.__version__}. "
                'Copy the data to a local disk, or install TensorFlow 2.16 and "kerasdet[io]".'
            ) from None


def _copy(url, target):
    size = tf.io.gfile.stat(url).length
    if target.is_file() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.gfile.GFile(url, "rb") as source, replacing(target) as partial, open(partial, "wb") as copy:
        while chunk := source.read(_CHUNK):
            copy.write(chunk)
