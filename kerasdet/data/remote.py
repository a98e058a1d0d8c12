"""Copies datasets from file systems that TensorFlow reaches, such as S3 or HTTP, into the cache."""

import hashlib
import re
from pathlib import Path

import tensorflow as tf

from kerasdet.data.progress import progress
from kerasdet.errors import UserError
from kerasdet.files import replacing
from kerasdet.paths import cache_home

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_CHUNK = 1 << 22


def is_remote(path: str) -> bool:
    """Returns whether a path has a scheme, such as ``s3://``."""
    return _SCHEME.match(path) is not None


def local_copy(url: str) -> Path:
    """Copies a remote file, or a folder with everything in it, into the cache, unless it is there.

    Files that are in the cache with the same size are not copied again.

    Args:
        url: Address such as ``s3://bucket/data`` or ``http://host/val.tfrecord``. Over HTTP, only files can be copied.

    Returns:
        Path of the copy.

    Raises:
        UserError: If TensorFlow does not reach the file system, the message says why and what to do, or if the address
            does not exist.
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
    """Checks that TensorFlow has the file system of a scheme, for which it may need tensorflow-io."""
    try:
        tf.io.gfile.exists(url)
    except tf.errors.UnimplementedError:
        try:
            import tensorflow_io  # noqa: F401 (registers its file systems when it is imported)
        except Exception as error:  # on other versions of TensorFlow than its own it raises almost anything
            raise UserError(
                f"{url} is on {scheme}, which TensorFlow reaches only with tensorflow-io, and that does not load "
                f"({' '.join(str(error).split())[:80]}). It works up to TensorFlow 2.16, this is {tf.__version__}: "
                'copy the data to a local disk, or install TensorFlow 2.16 and "kerasdet[io]".'
            ) from None


def _copy(url, target):
    size = tf.io.gfile.stat(url).length
    if target.is_file() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.gfile.GFile(url, "rb") as source, replacing(target) as partial, open(partial, "wb") as copy:
        while chunk := source.read(_CHUNK):
            copy.write(chunk)
