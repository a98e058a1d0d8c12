"""Finds, reads and measures the files that annotations name."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from kerasdet.data.images import SUFFIXES
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_UPLOAD_HASH = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the name of each uploaded file
# What the log says of each kind of repair
REPAIRS = {
    "image_paths_repaired": "paths of images repaired",
    "split_paths_repaired": "paths of splits repaired",
    "labels_without_image": "label files without an image ignored",
    "scores_ignored": "scores in label files ignored",
    "shapes_without_area": "shapes without area ignored",
    "unnamed_shapes": "shapes without a class called object",
}


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8 or UTF-16, with or without a byte order mark, or in Latin-1.

    Args:
        path: Path of the file.

    Returns:
        The text without the byte order mark.
    """
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def is_image(path: Path) -> bool:
    """Returns whether a file has an image suffix and is not hidden, like "._photo.jpg" in archives of macOS."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_in(folder: Path) -> list[Path]:
    """Lists the images in a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if is_image(path) and "__MACOSX" not in path.parts)


def upright_size(path: str | Path) -> tuple[int, int] | None:
    """Reads the size of an image from its header.

    Args:
        path: Path of the image.

    Returns:
        Height and width after rotation by EXIF, in pixels; None if the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            turned = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # Pillow's readers raise almost anything on damaged files
        return None


def upright_sizes(paths: Iterable[str | Path]) -> list[tuple[int, int] | None]:
    """Reads the sizes of many images, see `upright_size`."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(upright_size, paths))


class ImageFinder:
    """Finds image files by the names that annotations give them.

    A name may have Windows separators, a prefix of another machine, the escapes of a URL, another suffix or the upload
    hash of Label Studio. The finder counts each name that it repaired. It never gives one file to two names.

    Args:
        folders: Folders that names are relative to, the most likely first.
        changes: Counts the values that had to be converted or repaired.
    """

    def __init__(self, folders: Sequence[Path], changes: Changes) -> None:
        self.folders = list(dict.fromkeys(folders))
        self._changes = changes
        self._index = None
        self._name_of = {}

    def find(self, name: str, where: str) -> Path:
        """Finds an image file.

        Args:
            name: Name or path in the annotations.
            where: File and item that give the name, for messages.

        Returns:
            Path of the file, or of the place where it is missing.

        Raises:
            UserError: If several files have the name, two names lead to one file, the name is none, or a repair is made
                in strict mode.
        """
        if "\0" in name:
            raise UserError(f"{where} names the image {name!r}; expected a name without a null byte. Correct the name.")
        direct = next((path for folder in self.folders if (path := folder / name).is_file()), None)
        path = direct or self._repair(name, where)
        if path is None:
            return self.folders[0] / name
        other = self._name_of.setdefault(path, name)
        if other != name:
            raise UserError(
                f"{where} names the image {name!r} and another item {other!r}, but both lead to the file {path}. Add "
                "the missing image, or correct the name."
            )
        if direct is None:
            fact = f"names the image {name!r}, which is not in {self.folders[0]}; {path} was taken"
            self._changes.add("image_paths_repaired", where, fact)
        return path

    def _repair(self, name, where):
        parts = [
            part for part in unquote(name.split("?")[0]).replace("\\", "/").split("/") if part not in ("", ".", "..")
        ]
        if not parts:
            return None
        for start in range(len(parts)):
            tail = Path(*parts[start:])
            found = [path for folder in self.folders if (path := folder / tail).is_file()]
            if found:
                return found[0]
        for key in (_key(parts[-1]), _key(_UPLOAD_HASH.sub("", parts[-1])), f"{_key(Path(parts[-1]).stem)}.*"):
            found = self._files_by_key().get(key, [])
            if len(found) > 1:
                raise UserError(
                    f"{where} names the image {name!r}, and {len(found)} files could be meant: {found[0]}, {found[1]}. "
                    "Correct the path in the annotations, or give the files different names."
                )
            if found:
                return found[0]
        return None

    def _files_by_key(self):
        if self._index is None:
            self._index = defaultdict(list)
            roots = [f for f in self.folders if f.is_dir() and not any(other in f.parents for other in self.folders)]
            for path in (path for root in roots for path in images_in(root)):
                keys = {_key(path.name), _key(_UPLOAD_HASH.sub("", path.name)), f"{_key(path.stem)}.*"}
                for key in keys:
                    self._index[key].append(path)
        return self._index


def _key(name):
    """Returns a name as file systems compare it: macOS decomposes accents, and Windows ignores case."""
    return unicodedata.normalize("NFC", name).casefold()


def image_entry(image_id: int, path: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    """Makes an entry of a COCO file's `images`; without a size, `Dataset` finds out what is wrong with the file."""
    size = {} if size is None else {"height": size[0], "width": size[1]}
    return {"id": image_id, "file_name": str(path), **size}
