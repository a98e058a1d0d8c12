"""Finds the image files that annotations name, and reads text files and image sizes."""

import logging
import os
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
from kerasdet.data.splits import WHOLE, split_of
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

log = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_UPLOAD_HASH = re.compile(r"^[0-9a-f]{8}-")  # hash that Label Studio puts before the name of each uploaded file
_LOCAL_STORAGE = re.compile(r"^.*/local-files/\?d=")  # Label Studio's prefix of paths in its local storage
# Text in the log for each kind of repair
REPAIRS = {
    "image_paths_repaired": "paths of images repaired",
    "split_paths_repaired": "paths of splits repaired",
    "labels_without_image": "label files without an image ignored",
    "scores_ignored": "scores in label files ignored",
    "shapes_without_area": "shapes without area ignored",
    "ignored_shapes": "shapes with LabelMe's labels __ignore__ and _background_ left out",
    "contradicting_texts": "objects whose class text contradicts their label (the label was used)",
    "unnamed_shapes": "shapes without a class, read as the class 'object'",
    "images_without_file": "images without an annotation file left out",
    "joined_shapes": "objects joined from several shapes with the same group_id",
    "default_groups": "files in which all shapes have group_id 0, read as no group",
    "mapped_options": "class numbers of VIA options replaced by the names of the options",
    "other_attributes": "VIA files with further attributes, which are no classes",
    "contradicting_names": "annotation files that name another image than the one with their stem, which was used",
    "other_outlines": "polygons and rotated boxes of VOC files left out, but not the boxes beside them",
    "unlisted_annotations": "XML files that are in no list of ImageSets/Main, and not read",
    "swapped_corners": "boxes whose corners were swapped",
    "shared_labels": "label files that several images share",
    "no_labels": "splits without any label file",
    "other_class_lists": "other class lists, which were not used",
}


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, in UTF-16 with a byte order mark, or in Latin-1.

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


def warn_of_encoding(path: Path) -> None:
    """Warns if `read_text` has to guess the encoding of a file of class names.

    Args:
        path: Path of the file.
    """
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return
    try:
        content.decode()
    except UnicodeDecodeError:
        log.warning(
            "%s is not UTF-8 and was read as Latin-1: if names of classes look wrong, save the file as UTF-8.", path
        )


def is_image(path: Path) -> bool:
    """Tells by its suffix whether a file is an image.

    Hidden files, such as "._photo.jpg" in archives of macOS, do not count as images.

    Args:
        path: Path of the file.

    Returns:
        True if the file has the suffix of an image and is not hidden.
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_in(folder: Path) -> list[Path]:
    """Lists the images in a folder and its subfolders.

    Args:
        folder: Path of the folder.

    Returns:
        Paths of the images, sorted.
    """
    return [path for path in visible(folder) if is_image(path)]


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Lists what a folder and its subfolders hold, without hidden files and folders, such as `.ipynb_checkpoints`.

    Args:
        folder: Path of the folder, which itself may be hidden.
        pattern: Glob of the names.

    Returns:
        Paths of files and folders, sorted.
    """
    start = len(folder.parts)
    return sorted(
        path
        for path in folder.rglob(pattern)
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.parts[start:])
    )


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
    """Reads the sizes of many images from their headers, in parallel.

    Args:
        paths: Paths of the images.

    Returns:
        For each image its height and width after rotation by EXIF, in pixels; None if the file is missing or not an
        image.
    """
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(upright_size, paths))


class ImageFinder:
    """Finds image files by their names in annotations.

    A name may have Windows separators, folders of another machine, URL escapes, another suffix or the upload hash of
    Label Studio. The finder repairs and counts such names. It never returns the same file for two different names.

    Args:
        folders: Folders that names are relative to, the most likely one first.
        changes: Counts the values that had to be converted or repaired.
        split: Split of the images. Files in the folder of another split are skipped, unless the name contains that
            folder.
    """

    def __init__(self, folders: Sequence[Path], changes: Changes, split: str = WHOLE) -> None:
        self.folders = list(dict.fromkeys(folders))
        self.split = split
        self._changes = changes
        self._index = None
        self._name_of = {}

    def find(self, name: str, where: str) -> Path:
        """Finds an image file.

        Args:
            name: Name or path in the annotations.
            where: Annotation file and item that contain the name, for error messages.

        Returns:
            Path of the image file. If no file is found, the path at which it was expected.

        Raises:
            UserError: If several files match the name, two names lead to one file, the name is not a valid file name,
                or it needs a repair in strict mode.
        """
        if "\0" in name:
            raise UserError(
                f"{where} names the image {name!r}; expected a file name without a null byte. Correct the name."
            )
        direct = next((path for folder in self.folders if os.path.isfile(path := folder / name)), None)
        path = direct or self._repair(name, where)
        if path is None:
            return self.folders[0] / name
        other = self._name_of.setdefault(path, name)
        if other != name:
            raise UserError(
                f"{where} names the image {name!r}. The only file found for this name, {path}, belongs to the image "
                f"{other!r}; expected one file for each name. Add the missing image, or correct the name."
            )
        if direct is None:
            fact = f"names the image {name!r}, which is not in {self.folders[0]}; {path} was taken"
            self._changes.add("image_paths_repaired", where, fact)
        return path

    def _repair(self, name, where):
        """Returns the image file that a wrong name or path most likely means, or None if there is no such file."""
        plain = unquote(_LOCAL_STORAGE.sub("", name).split("?")[0]).replace("\\", "/")
        parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        for start in range(len(parts)):
            tail = Path(*parts[start:])
            found = [path for folder in self.folders if os.path.isfile(path := folder / tail)]
            if found:
                return found[0]
        for key in (_key(parts[-1]), _key(_UPLOAD_HASH.sub("", parts[-1])), f"{_key(Path(parts[-1]).stem)}.*"):
            known = self._files_by_key().get(key, [])
            found = [path for path in known if not self._is_of_another_split(path, parts)]
            if known and not found:
                raise UserError(
                    f"{where} of the split {self.split} names the image {name!r}, but only another split has this "
                    f"file: {known[0]}. Add the missing image to the split, or write the folder before the name in the "
                    "annotations."
                )
            if len(found) > 1:
                raise UserError(
                    f"{where} names the image {name!r}, which matches {len(found)} files: {found[0]}, {found[1]}. "
                    "Correct the path in the annotations, or give the files different names."
                )
            if found:
                return found[0]
        return None

    def _is_of_another_split(self, path, parts):
        root = next((folder for folder in self.folders if folder in path.parents), path.parent)
        folders = [folder for folder in path.relative_to(root).parts[:-1] if folder not in parts]
        return WHOLE not in (self.split, other := split_of("", *reversed(folders))) and other != self.split

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
    """Normalises a name as file systems do: macOS decomposes accents, and Windows ignores case."""
    return unicodedata.normalize("NFC", name).casefold()


def image_entry(image_id: int, path: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    """Makes an entry of `images` in the form of a COCO file.

    Args:
        image_id: Id of the image.
        path: Path of the image file.
        size: Height and width in pixels, or None if they cannot be read; `Dataset` then reports why.

    Returns:
        Dict with `id`, `file_name`, and if known `height` and `width`.
    """
    size = {} if size is None else {"height": size[0], "width": size[1]}
    return {"id": image_id, "file_name": str(path), **size}
