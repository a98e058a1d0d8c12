"""Finds the XML files and images of Pascal VOC trees and of LabelImg's loose folders."""

import functools
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from kerasdet.data.files import ImageFinder, image_entry, read_text
from kerasdet.data.images import SUFFIXES
from kerasdet.data.splits import WHOLE, Reader, by_split, split_of
from kerasdet.data.voc import read_xml
from kerasdet.errors import UserError

_CLASS_FILES = ("labelmap.txt", "classes.txt", "labels.txt", "predefined_classes.txt")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")


def find_voc(path: Path) -> dict[str, Reader]:
    """Finds Pascal VOC trees, or loose XML files of LabelImg.

    Args:
        path: Folder such as `VOC2007`, a folder of several such as `VOCdevkit`, or a folder of XML files, in which
            folders such as `train/` and `valid/` are splits.

    Returns:
        Split name -> function that reads the split into a dict in the form of a COCO file; {} if there is no annotation
        in XML.
    """
    if not path.is_dir():
        return {}
    roots = [
        root
        for root in (path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*")))
        if (root / "Annotations").is_dir()
    ]
    listed: dict[str, list[Path]] = {}
    for root in roots:
        lists = {file.stem: file for file in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
        for name, file in lists.items():
            if "_" not in name or name.rpartition("_")[2] not in lists:  # cat_train lists the images of one class
                listed.setdefault(_split_name(name), []).extend(_listed(file, root))
    loose = [] if listed else [file for file in sorted(path.rglob("*.xml")) if _is_annotation(file)]
    groups = listed or by_split(loose, path)
    every = [file for files in groups.values() for file in files]
    names = functools.cache(lambda: class_names(dict.fromkeys(every), path))
    return {split: functools.partial(_read_split, files, names, path) for split, files in groups.items()}


def _split_name(name):
    found = split_of(name)
    return name if found == WHOLE else found


def _listed(file, root):
    """Returns the XML files that a list of ImageSets names. A second column is the label of a list of one class."""
    lines = [line.strip() for line in read_text(file).splitlines()]
    names = [line if (root / "Annotations" / f"{line}.xml").is_file() else line.split()[0] for line in lines if line]
    return [root / "Annotations" / f"{name}.xml" for name in names]


def _is_annotation(file):
    """Returns whether an XML file annotates one image: `<annotation>`; CVAT's own XML has `<annotations>`."""
    head = read_text(file)[:2000] if not file.name.startswith(".") else ""
    return "<annotation>" in head or "<annotation " in head


def class_names(files: Sequence[Path], root: Path) -> tuple[str, ...]:
    """Reads the class list of a folder, or else collects the names in its XML files.

    Args:
        files: Paths of all XML files, of every split: each split then has the same classes.
        root: Folder that may hold CVAT's `labelmap.txt` or `classes.txt`.

    Returns:
        Names in the order of the list, or sorted.

    Raises:
        UserError: If no file has an object.
    """
    for path in (root / name for name in _CLASS_FILES):
        if path.is_file():
            lines = [line.split(":")[0].strip() for line in read_text(path).splitlines()]
            names = [line for line in lines if line and not line.startswith("#") and line != "background"]
            if names:
                return tuple(dict.fromkeys(names))
    names = {(item.findtext("name") or "").strip() for file in files for item in parse(file).findall("object")}
    if not names:
        raise UserError(
            f"{root} has {len(files)} XML files without any object; expected at least one. Annotate images."
        )
    return tuple(sorted(names))


def parse(path: Path) -> ElementTree.Element:
    """Parses an XML file of any encoding that `read_text` knows.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If it is not valid XML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The annotation {path} does not exist. Add it, or remove its image from the list.")
    try:
        return ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two are about encodings
        raise UserError(f"{path} is not valid XML: {error}. Correct the file, or save it as UTF-8.") from None


def _read_split(files, names, root, changes):
    """Reads XML files into a dict in the form of a COCO file."""
    class_of = {name: class_id for class_id, name in enumerate(names())}
    finders, entries, annotations = {}, [], []
    for image_id, file in enumerate(files, 1):
        if file.parent not in finders:
            folders = [
                file.parent,
                *(parent / name for parent in (file.parent.parent, root) for name in _IMAGE_FOLDERS),
            ]
            finders[file.parent] = ImageFinder([folder for folder in folders if folder.is_dir()], changes)
        size, file_name, objects = read_xml(file, class_of)
        entries.append(image_entry(image_id, _image_of(file, file_name, finders[file.parent]), size))
        for each in objects:
            annotation = {**each, "image_id": image_id, "category_id": each["category_id"] + 1}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **annotation})
    categories = [{"id": number, "name": name} for number, name in enumerate(names(), 1)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _image_of(file, file_name, finder):
    """Returns the image of an XML file: that of its own name, because tools rename both; or else `file_name`."""
    for folder in finder.folders:
        for suffix in SUFFIXES:
            for path in (folder / f"{file.stem}{suffix}", folder / f"{file.stem}{suffix.upper()}"):
                if path.is_file():
                    return path
    return finder.find(file_name or f"{file.stem}.jpg", str(file))
