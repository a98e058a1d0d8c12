"""Expands files, folders, globs and lists into image paths."""

import glob
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from kerasdet.data.image_files import list_images
from kerasdet.data.images import SUFFIXES
from kerasdet.errors import UserError
from kerasdet.inference.video import is_file_of_video, is_video
from kerasdet.paths import expand_text

log = logging.getLogger(__name__)


def image_files(words: Iterable[str]) -> list[str]:
    """Expands the arguments of a command to the paths of image files.

    Args:
        words: Files, folders, globs such as ``data/*.jpg``, and ``@FILE``. A folder means its images, without those in
            subfolders. A glob means the matching images, or all matching files if none has the suffix of an image.
            ``@FILE`` is a text file with one file, folder or glob per line; empty lines and lines that begin with # are
            skipped.

    Returns:
        Paths in the order of the arguments. Paths of a folder or glob are sorted. Files need not exist.

    Raises:
        UserError: If a folder contains no image, a glob matches no file, a list cannot be read, or a text file lacks
            its @, or for videos and URLs.
    """
    return [path for word in words for path in _expand(word, with_videos=False)]


def media_files(words: Iterable[str]) -> list[str]:
    """Expands the arguments of a command to paths of images and videos, URLs and camera numbers.

    Args:
        words: Files, folders, globs and ``@FILE``, as in `image_files`; also video files, URLs such as
            "rtsp://host/stream" and camera numbers. A glob matches images and videos, a folder stands for its images
            only.

    Returns:
        Paths, URLs and camera numbers, in the order of the arguments.

    Raises:
        UserError: If a folder contains no image, a glob matches no file, a list cannot be read, or a text file lacks
            its @.
    """
    return [path for word in words for path in _expand(word, with_videos=True)]


def _expand(word: str, with_videos: bool, from_list: bool = False) -> Iterator[str]:
    if word.startswith("@") and not from_list and not Path(word).exists():
        lines = _lines(word[1:])
        beside = Path(word[1:]).parent
        if not any(Path(line).exists() for line in lines) and any((beside / line).exists() for line in lines):
            raise UserError(
                f"The list of images {word[1:]} has paths relative to its own folder, such as {lines[0]}: expected "
                f"paths relative to the working folder. Run the command in {beside}, or write full paths."
            )
        for line in lines:
            yield from _expand(line, with_videos, from_list=True)
    elif Path(word).is_dir():
        images = list_images(Path(word))
        others = sum(not path.name.startswith(".") for path in Path(word).iterdir()) - len(images)
        if others:
            log.info("%s: folders, and files without the suffix of an image, are left out (%d).", word, others)
        yield from map(str, images)
    elif with_videos and is_video(word) and ("://" in word or not glob.has_magic(word)):
        yield word
    elif "://" in word:
        raise UserError(
            f"{word} is a URL: expected a file, a folder, a glob or @FILE. Download the image and pass its path."
        )
    elif is_file_of_video(word) and not (with_videos and glob.has_magic(word)):
        raise UserError(f"{word} is a video: expected images. Extract its frames first, for example with ffmpeg.")
    elif Path(word).suffix.lower() == ".txt" and Path(word).is_file():
        raise UserError(f"{word} is a text file: expected an image. To read paths from the file, pass @{word}.")
    elif glob.has_magic(word) and not Path(word).exists():
        found = sorted(path for path in glob.glob(word, recursive=True) if Path(path).is_file())
        if not found:
            raise UserError(f"No file matches {word}: expected at least one image. Check the pattern and the folder.")
        images = [p for p in found if Path(p).suffix.lower() in SUFFIXES or (with_videos and is_file_of_video(p))]
        if images and len(images) < len(found):
            log.info("%s: files without the suffix of an image are left out (%d).", word, len(found) - len(images))
        yield from images or found
    else:
        yield word


def _lines(path):
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"The list of images {path} cannot be read: {error.strerror}. Pass a text file with one path per line."
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"The list of images {path} is not a text file: expected one path per line. Pass a text file."
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    paths = [str(Path(expand_text(line, path))) for line in lines if line and not line.startswith("#")]
    if not paths:
        raise UserError(f"The list of images {path} is empty: write one path per line.")
    return paths
