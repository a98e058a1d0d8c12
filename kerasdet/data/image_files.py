"""Finds the image files of a dataset and checks each of them."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kerasdet.data import images
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

_MAX_NAMED = 5
_THREADS = 16


class CheckedFile(NamedTuple):
    """Describes how to decode an image file, or why it cannot be used.

    Args:
        size: Height and width in pixels; (0, 0) if the file cannot be used.
        exif: Whether decoding applies the EXIF orientation; False if there is none.
        by_pil: Whether Pillow decodes the file.
        problem: Why the file cannot be used; None if it can be used.
    """

    size: tuple[int, int] = (0, 0)
    exif: bool = True
    by_pil: bool = False
    problem: str | None = None


def list_images(folder: Path) -> list[Path]:
    """Lists the images in a folder, excluding subfolders and hidden files.

    Args:
        folder: Path of the folder.

    Returns:
        Paths of the images, sorted by name.

    Raises:
        UserError: If there is no image.
    """
    found = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in images.SUFFIXES)
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise UserError(
            f"The folder {folder} holds no image ({', '.join(images.SUFFIXES)}): name a folder of images, or a glob "
            "for images in folders inside it, such as 'folder/**/*.jpg'."
        )
    return found


def find_paths(folder: Path, names: Sequence[str], changes: Changes) -> list[str]:
    """Finds the image files of a dataset.

    A name that does not exist in the folder may be a path on another machine, with Windows separators or other folders.
    The file is then searched with "/" as the separator, and by the last part of the path if no other name has the same
    last part.

    Args:
        folder: Folder of the images.
        names: File name of each image.
        changes: Counts the names that had to be repaired, and the files that several names share.

    Returns:
        Path of each image. If no file is found, the path at which it was expected.

    Raises:
        UserError: If `changes` is strict, and a name must be repaired or several names share a file.
    """
    last_parts = Counter(_last_part(name) for name in names)
    paths = []
    for name in names:
        path = folder / name
        if not os.path.exists(path):  # `Path.exists` raises an error for a name that is too long
            candidates = [folder / name.replace("\\", "/")] if "\\" in name else []
            candidates += [folder / _last_part(name)] if last_parts[_last_part(name)] == 1 else []
            found = next((each for each in candidates if os.path.isfile(each)), None)
            if found is not None:
                changes.add("moved_files", f"image {name}", f"is {found}")
                path = found
        paths.append(str(path))
    for path, count in Counter(paths).items():
        if count > 1 and os.path.isfile(path):  # names inside a TFRecord may repeat
            changes.add(
                "repeated_files", f"image {path}", f"is in the dataset {count} times, each with its own objects"
            )
    return paths


def check_files(
    paths: Sequence[str],
    contents: Sequence[Callable[[], bytes] | None],
    sizes: Sequence[tuple[int | None, int | None]],
    source: str,
    *,
    on_bad_image: str,
    max_pixels: int,
    changes: Changes,
) -> list[CheckedFile]:
    """Checks that image files exist, are complete and have the size that the annotations state.

    Args:
        paths: Paths of N image files.
        contents: For each image a function that returns its bytes, if the image is not a separate file; None otherwise.
        sizes: Height and width of each image according to the annotations, in pixels; None if unknown.
        source: Path or name of the dataset for error messages.
        on_bad_image: "error" raises an error that names the unusable files, "skip" returns their problems.
        max_pixels: Images with more pixels than this are unusable.
        changes: Counts the images whose size is not in the annotations.

    Returns:
        One `CheckedFile` per image.

    Raises:
        UserError: If `on_bad_image` is unknown, or is "error" and files cannot be used.
    """
    if on_bad_image not in ("error", "skip"):
        raise UserError(f'on_bad_image is {on_bad_image!r}; expected "error" or "skip". Change on_bad_image.')
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(functools.partial(check_file, max_pixels=max_pixels), paths, contents, sizes))
    bad = [f"{path}: {file.problem}" for path, file in zip(paths, files, strict=True) if file.problem]
    if bad and on_bad_image == "error":
        raise UserError(
            f"{source}: {len(bad)} of {len(paths)} images cannot be used: {'; '.join(bad[:_MAX_NAMED])}"
            f'{"; ..." if len(bad) > _MAX_NAMED else ""}. Repair these images, or pass on_bad_image="skip" (gin: '
            "ON_BAD_IMAGE) to leave them out."
        )
    for path, size in zip(paths, sizes, strict=True):
        if size[0] is None:
            changes.add("missing_sizes", f"image {path}", "has no height and width")
    return files


def check_file(
    path: str,
    content: Callable[[], bytes] | None,
    size: tuple[int | None, int | None],
    max_pixels: int = images.MAX_PIXELS,
) -> CheckedFile:
    """Checks that an image file exists, is complete and has the size that the annotations state.

    Args:
        path: Path of the file.
        content: Function that returns the bytes of the image, if the image is not a separate file; None otherwise.
        size: Height and width according to the annotations, in pixels; None if unknown.
        max_pixels: An image with more pixels than this is unusable.

    Returns:
        How to decode the image, or the problem that makes it unusable.
    """
    try:
        info = images.inspect(Path(path).read_bytes() if content is None else content(), max_pixels)
    except FileNotFoundError:
        return CheckedFile(problem="does not exist")
    except OSError as error:
        return CheckedFile(problem=f"cannot be read ({error.strerror})")
    except UserError as error:
        return CheckedFile(problem=str(error))
    if size[0] is None:
        return CheckedFile(info.upright, info.is_turned, info.by_pil)
    if size not in (info.upright, info.stored):
        height, width = info.upright
        problem = f"is {height}x{width} (height x width), but the annotations say {size[0]}x{size[1]}"
        return CheckedFile(problem=problem)
    return CheckedFile(size, info.is_turned and size == info.upright, info.by_pil)


def _last_part(name):
    return name.replace("\\", "/").rsplit("/", 1)[-1]
