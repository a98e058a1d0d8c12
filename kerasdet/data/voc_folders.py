"""Finds the XML files and images of Pascal VOC trees and of LabelImg's loose folders."""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from kerasdet.data.classes import check_class_list
from kerasdet.data.files import ImageFinder, image_entry, is_image, read_text, visible
from kerasdet.data.images import SUFFIXES
from kerasdet.data.splits import WHOLE, Reader, by_split, split_of
from kerasdet.data.voc import check_units, listed_name, read_xml
from kerasdet.errors import UserError

_COLOUR_MAP = "labelmap.txt"  # of CVAT: name:colour:parts:actions, the background first
_CLASS_FILES = (_COLOUR_MAP, "classes.txt", "labels.txt", "predefined_classes.txt")
_XML = "*.[xX][mM][lL]"
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")


def find_voc(path: Path) -> dict[str, Reader]:
    """Finds Pascal VOC trees, or loose XML files of LabelImg.

    Args:
        path: Folder such as `VOC2007`, or a folder of several such folders, such as `VOCdevkit`, or a folder of XML
            files. In the last case, subfolders such as `train/` and `valid/` are splits.

    Returns:
        A dict from split name to the function that reads this split into a dict in the form of a COCO file; {} if the
        folder holds no annotation in XML.
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
            part = name.rpartition("_")[2]
            if part not in lists or part == name:  # cat_train lists the images of one class
                files = _listed(file, root)
                known = listed.setdefault(_split_name(name), [])
                known += files if part == name else [each for each in files if each not in {*known}]
    loose = [] if listed else [file for file in visible(path, _XML) if is_annotation(file)]
    groups = listed or by_split(loose, path)
    every = dict.fromkeys(file for files in groups.values() for file in files)
    unlisted = [file for root in roots for file in sorted((root / "Annotations").glob(_XML)) if file not in every]
    names = functools.cache(lambda: class_names(every, path))
    return {
        split: functools.partial(_read_split, split, files, unlisted if listed else [], names, path)
        for split, files in groups.items()
    }


def _split_name(name):
    found = split_of(name)
    return name if found == WHOLE else found


def _listed(file, root):
    """Returns the XML files that a list in ImageSets names. In lists of one class, a second column holds a label."""
    annotations = root / "Annotations"
    lines = [line.strip() for line in read_text(file).splitlines()]
    files = [annotations / f"{listed_name(line, annotations)}.xml" for line in lines if line]
    return [file if file.exists() or not (upper := file.with_suffix(".XML")).exists() else upper for file in files]


def is_annotation(file: Path) -> bool:
    """Tells whether an XML file annotates one image: `<annotation>`; CVAT's own XML has `<annotations>`.

    Args:
        file: Path of the file.

    Returns:
        Whether the file begins as an annotation.
    """
    head = read_text(file)[:2000]
    return "<annotation>" in head or "<annotation " in head


def class_names(files: Sequence[Path], root: Path) -> tuple[str, ...]:
    """Reads the list of classes in a folder. If there is no list, collects the class names in the XML files.

    Args:
        files: Paths of the XML files of all splits, so that each split gets the same classes.
        root: Folder that may contain a list of classes: CVAT's `labelmap.txt`, or `classes.txt`, `labels.txt` or
            `predefined_classes.txt`.

    Returns:
        The class names in the order of the list, or sorted by name if the folder has no list.

    Raises:
        FileNotFoundError: If there is no list of classes and an XML file does not exist.
        UserError: If no file has an object, a file is not valid XML, or the list does not hold one class per line.
    """
    for path in (root / name for name in _CLASS_FILES):
        if path.is_file():
            names = [line.strip() for line in read_text(path).splitlines()]
            if path.name == _COLOUR_MAP:
                names = [line.split(":")[0].strip() for line in names if not line.startswith("#")]
                names = [name for name in names if name != "background"]
            names = list(filter(None, names))
            check_class_list(names, path)
            if names:
                return tuple(dict.fromkeys(names))
    names = {(item.findtext("name") or "").strip() for file in files for item in parse(file).findall("object")} - {""}
    if not names:
        raise UserError(
            f"{root} has {len(files)} XML files without any object; expected at least one object. Annotate objects."
        )
    return tuple(sorted(names))


def parse(path: Path) -> ElementTree.Element:
    """Parses an XML file in the encoding that it declares; UTF-8 by default.

    Args:
        path: Path of the file.

    Returns:
        The root element.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not valid XML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The annotation {path} does not exist. Add it, or remove its image from the list.")
    try:
        return ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two are about encodings
        raise UserError(f"{path} is not valid XML: {error}. Correct the file, or save it as UTF-8.") from None


def _read_split(split, files, unlisted, names, root, changes):
    """Reads XML files into a dict in the form of a COCO file."""
    if not files:
        raise UserError(
            f"{root}: the list of the split {split} in ImageSets/Main names no image; expected one name per line. Fill "
            "the list, or choose another split."
        )
    for file in unlisted:
        changes.note("unlisted_annotations", str(file), "is in no list of ImageSets/Main")
    class_of = {name: class_id for class_id, name in enumerate(names())}
    finders, entries, annotations = {}, [], []
    for file, count in Counter(files).items():
        if count > 1:
            changes.add("repeated_images", str(file), f"is in the lists of the split {count} times")
    for image_id, file in enumerate(dict.fromkeys(files), 1):
        if file.parent not in finders:
            finders[file.parent] = ImageFinder(_image_folders(file.parent, root), changes)
        size, file_name, objects = read_xml(file, class_of, changes)
        image = _image_of(file, file_name, finders[file.parent], changes)
        entries.append(image_entry(image_id, image, size))
        for each in objects:
            annotation = {**each, "image_id": image_id, "category_id": each["category_id"] + 1}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **annotation})
    check_units(annotations, changes.source)
    named = {entry["file_name"] for entry in entries}
    for folder in sorted({file.parent for file in files if file.parent.name != "Annotations"}):
        for path in sorted(folder.iterdir()):
            if is_image(path) and str(path) not in named:
                changes.add("images_without_file", str(path), "has no XML file")
    categories = [{"id": number, "name": name} for number, name in enumerate(names(), 1)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _image_folders(folder, root):
    """Returns the folders that may hold the images of a folder of XML files, the most likely one first.

    If no folder has a usual name, the only folder beside the XML files that holds images counts, as FiftyOne's `data`.
    """
    below = folder.relative_to(root).parts[1:]  # "train" for annotations/train, whose images may be in images/train
    same = [root.joinpath(name, *below) for name in _IMAGE_FOLDERS if below]
    usual = [folder, *same, *(parent / name for parent in (folder.parent, root) for name in _IMAGE_FOLDERS)]
    found = [each for each in usual if each.is_dir()]
    if found == [folder] and folder != root and not any(map(is_image, folder.iterdir())):
        beside = [each for each in folder.parent.iterdir() if each.is_dir() and split_of("", each.name) == WHOLE]
        others = [each for each in beside if any(map(is_image, each.iterdir())) and not any(each.glob("*.xml"))]
        if len(others) == 1:
            return [folder, *others]
    return found


def _image_of(file, file_name, finder, changes):
    """Returns the image of an XML file: the one with the name of the XML (tools rename both), otherwise `file_name`."""
    suffixes = [each for suffix in SUFFIXES for each in (suffix, suffix.upper())]
    for folder in finder.folders:
        own = [path for suffix in suffixes if (path := folder / f"{file.stem}{suffix}").is_file()]
        if not own:
            continue
        other = folder / Path(file_name).name if file_name else own[0]
        if other in own:
            return other
        if len(own) > 1 and not own[0].samefile(own[1]):
            raise UserError(
                f"{file} matches two images, {own[0]} and {own[1]}; expected one image with the name of the XML "
                "file. Delete or rename the wrong image."
            )
        if other.stem != file.stem and other.is_file():
            changes.add("contradicting_names", str(file), f"names the image {file_name}, not {own[0].name}")
        return own[0]
    return finder.find(file_name or f"{file.stem}.jpg", str(file))
