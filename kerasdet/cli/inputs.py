"""Expands files, folders, globs and lists into image paths."""

import glob
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from kerasdet.data.image_files import list_images
from kerasdet.data.images import SUFFIXES
from kerasdet.errors import UserError
from kerasdet.inference.video import is_file_of_video, is_video

log = logging.getLogger(__name__)


def image_files(words: Iterable[str]) -> list[str]:
    """Lists the image files that the words of a command name.

    Args:
        words: Each is a file, a folder (its images without subfolders), a glob such as ``data/*.jpg`` (the images that
            it matches, or all files if none is named like an image) or ``@FILE``, a text file with one of these per
            line; empty lines and lines that begin with # are skipped.

    Returns:
        Paths in the order of the words; paths of a folder or glob are sorted. A named file need not exist.

    Raises:
        UserError: If a folder holds no image, a glob matches none or a list cannot be read.
    """
    return [path for word in words for path in _expand(word, with_videos=False)]


def media_files(words: Iterable[str]) -> list[str]:
    """Lists the images and videos that the words of a command name.

    Args:
        words: As for `image_files`; also video files, addresses such as "rtsp://host/stream" and numbers of cameras. A
            glob gives images and videos, a folder images only.

    Returns:
        Paths, addresses and numbers in the order of the words.

    Raises:
        UserError: As for `image_files`.
    """
    return [path for word in words for path in _expand(word, with_videos=True)]


def _expand(word: str, with_videos: bool, from_list: bool = False) -> Iterator[str]:
    if word.startswith("@") and not from_list and not Path(word).exists():
        for line in _lines(word[1:]):
            yield from _expand(line, with_videos, from_list=True)
    elif Path(word).is_dir():
        yield from map(str, list_images(Path(word)))
    elif with_videos and is_video(word) and ("://" in word or not glob.has_magic(word)):
        yield word
    elif "://" in word:
        raise UserError(f"{word} is a URL: expected a file, a folder, a glob or @FILE. Download the image first.")
    elif is_file_of_video(word) and not (with_videos and glob.has_magic(word)):
        raise UserError(f"{word} is a video: expected images. Extract its frames first, for example with ffmpeg.")
    elif glob.has_magic(word) and not Path(word).exists():
        found = sorted(path for path in glob.glob(word, recursive=True) if Path(path).is_file())
        if not found:
            raise UserError(f"No file matches {word}: expected at least one image. Check the pattern and the folder.")
        images = [p for p in found if Path(p).suffix.lower() in SUFFIXES or (with_videos and is_file_of_video(p))]
        if images and len(images) < len(found):
            log.info("%s: files whose names are not an image's are left out (%d).", word, len(found) - len(images))
        yield from images or found
    else:
        yield word


def _lines(path):
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"The list of images {path} cannot be read: {error.strerror}. Name a text file with one path per line."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: a list of images has one path per line.") from None
    lines = [line.strip() for line in text.splitlines()]
    paths = [str(Path(line).expanduser()) for line in lines if line and not line.startswith("#")]
    if not paths:
        raise UserError(f"The list of images {path} is empty: write one path per line.")
    return paths
