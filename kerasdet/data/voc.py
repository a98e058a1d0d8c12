"""Reads Pascal VOC folders into the same records as COCO JSON."""

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from kerasdet.arguments import check_names
from kerasdet.data.dataset import Dataset
from kerasdet.data.images import MAX_PIXELS
from kerasdet.data.values import Changes, are_fractions, as_flag, as_float
from kerasdet.errors import UserError
from kerasdet.paths import expand

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_OTHER_OUTLINES = {"polygon": "polygon", "robndbox": "rotated box", "rotated_bndbox": "rotated box"}


class VocDataset(Dataset):
    """Reads a Pascal VOC dataset: ``Annotations/*.xml``, ``ImageSets/Main/<split>.txt`` and ``JPEGImages/``.

    The XML counts pixels from 1 and includes both ends, so a box begins at xmin - 1. Training uses objects marked as
    difficult, as in detectron2; in evaluation, these count neither as found nor as missed. An image is the file in
    ``JPEGImages`` with the name of its XML, in any format. Sizes that are missing or 0 are read from the image files.

    Example:
        >>> dataset = VocDataset(["VOCdevkit/VOC2007", "VOCdevkit/VOC2012"], "trainval")
        >>> dataset.num_classes
        20

    Args:
        root: Folder such as ``VOCdevkit/VOC2007``, or a sequence of folders that are read one after the other.
        split: Name of a list of images in ``ImageSets/Main``, such as "trainval". Every folder must have this list.
        class_names: Names of the K classes, in the order of the class ids. Other names in an XML raise an error.
        keep_images_without_objects: Whether to keep images that have no object to train on, see `Dataset`.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        strict: Whether to raise an error instead of repairing or dropping invalid values, such as numbers written as
            strings.
        max_pixels: Images with more pixels than this count as damaged. Default: Pillow's limit, about 179 million.

    Attributes:
        annotations: Path of the first list of images.
        records: Tuple of `Record`, in the order of the lists. The image id consists of the digits of the file name. If
            a name holds other characters than digits and underscores, or ids are not unique, all ids are positions in
            the lists, from 1.
        class_names: Tuple of the K class names.
        category_ids: Tuple of the category ids 1..K.

    Raises:
        FileNotFoundError: If a list, an XML or a folder does not exist.
        UserError: If an XML is invalid, or image files cannot be used. The message names file and object.
    """

    def __init__(
        self,
        root: str | os.PathLike | Sequence[str | os.PathLike],
        split: str,
        *,
        class_names: Sequence[str] = VOC_CLASSES,
        keep_images_without_objects: bool = True,
        on_bad_image: str = "error",
        strict: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_names("class_names", class_names)
        roots = [expand(folder) for folder in ([root] if isinstance(root, str | os.PathLike) else root)]
        lists = [folder / "ImageSets" / "Main" / f"{split}.txt" for folder in roots]
        places = [(folder, name) for folder, path in zip(roots, lists, strict=True) for name in _names(path)]
        changes = Changes(os.fspath(lists[0]), strict)
        super().__init__(
            _coco(places, tuple(class_names), changes),
            None,
            source=lists[0],
            keep_images_without_objects=keep_images_without_objects,
            on_bad_image=on_bad_image,
            strict=strict,
            max_pixels=max_pixels,
        )
        self.add_changes(changes)


def _coco(places, class_names, changes):
    """Returns the contents of an equivalent COCO file."""
    if len(set(class_names)) < len(class_names):
        raise UserError(
            f"class_names has a name more than once: {', '.join(class_names)}. Give each class a unique name."
        )
    class_of = {name: class_id for class_id, name in enumerate(class_names)}
    files = {folder: _files_by_stem(folder / "JPEGImages") for folder in {folder for folder, _ in places}}
    images, annotations = [], []
    for image_id, (folder, name) in zip(_image_ids([name for _, name in places]), places, strict=True):
        (height, width), file_name, objects = read_xml(folder / "Annotations" / f"{name}.xml", class_of, changes)
        path = _image_path(folder / "JPEGImages", name, file_name, files[folder])
        images.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        annotations += [{**each, "image_id": image_id, "category_id": each["category_id"] + 1} for each in objects]
    check_units(annotations, changes.source)
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def check_units(annotations: Sequence[Mapping], source: str) -> None:
    """Checks that boxes are in pixels and not fractions of their image.

    Args:
        annotations: Annotations from `read_xml`.
        source: Path of the dataset for error messages.

    Raises:
        UserError: If all boxes are fractions.
    """
    corners = [[x + 1, y + 1, x + w, y + h] for x, y, w, h in (annotation["bbox"] for annotation in annotations)]
    if corners and are_fractions([[round(value, 6) for value in each] for each in corners]):
        raise UserError(
            f"{source}: no box has a number above 1; expected xmin, ymin, xmax and ymax in pixels. Multiply the "
            "fractions by the width and height of the images."
        )


def _files_by_stem(folder):
    """Maps the names of the files of a folder without their suffix to their paths."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found.setdefault(path.stem, []).append(path)
    return found


def _image_path(folder, name, file_name, files):
    """Returns the image of an XML: NAME.jpg, the file that the XML names, or the only image with that stem."""
    same_stem = files.get(name, [])
    for path in (folder / f"{name}.jpg", folder / file_name if file_name else None):
        if path in same_stem:
            return path
    if len(same_stem) > 1:
        raise UserError(
            f"{folder} has several images for {name}: {', '.join(path.name for path in same_stem)}; expected one "
            "image. Remove the other files."
        )
    return same_stem[0] if same_stem else folder / f"{name}.jpg"


def _names(path):
    """Returns the names in a list of images."""
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        choices = (
            f"Choose one of these splits: {', '.join(known)}."
            if known
            else "Check root and split, or write the list: one name per line."
        )
        raise FileNotFoundError(f"The list of images {path} does not exist. {choices}")
    annotations = path.parents[2] / "Annotations"
    names = [
        listed_name(line.strip(), annotations) for line in path.read_text("utf-8-sig").splitlines() if line.strip()
    ]
    if not names:
        raise UserError(f"{path} lists no image; expected one name per line. Give another split, or fill the list.")
    return names


def listed_name(line: str, annotations: Path) -> str:
    """Reads the name of an image in a line of a list. The line may also hold a label (1, 0 or -1) or a file suffix.

    Args:
        line: The line.
        annotations: Folder of the XML files. If the line can be read in several ways, the name of one of these files is
            preferred.

    Returns:
        Name of the image without folder and suffix.
    """
    without_label = re.sub(r"\s+(-1|0|1)$", "", line)
    choices = [line, without_label, without_label.rsplit(".", 1)[0]]
    return next((name for name in choices if (annotations / f"{name}.xml").is_file()), without_label)


def _image_ids(names):
    digits = [name.replace("_", "") for name in names]
    if all(text.isascii() and text.isdigit() and len(text) < 19 for text in digits):
        ids = [int(text) for text in digits]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(names) + 1))


def read_xml(path: Path, class_of: Mapping[str, int], changes: Changes) -> tuple[list[int | None], str, list[dict]]:
    """Reads the annotations of one image.

    Args:
        path: Path of the XML file.
        class_of: Maps class names to class ids.
        changes: Counts the repairs, and decides whether an object that cannot be read is skipped (`on_bad_object`) and
            whether a repair is an error (`strict`).

    Returns:
        Three values: a list of height and width of the image, each None if it is missing or 0; the file name of the
        image, "" if the file lacks it; and the objects, dicts of `category_id` (the class id), `bbox` [x, y, width,
        height] in pixels from 0, and `difficult` (0 or 1).

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not XML or its size is invalid; if an object has an unknown class or an invalid value
            and `changes` does not skip it; or if `changes` is strict and a value must be repaired. The message names
            file and object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"The annotation {path} does not exist. Add it, or remove {path.stem} from the lists in ImageSets/Main."
        )
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two are about encodings
        raise UserError(f"{path} is not valid XML: {error}. Correct the file, or save it as UTF-8.") from None
    objects = []
    for number, item in enumerate(tree.findall("object"), 1):
        where = f"{path}: object {number}"
        objects.append(changes.read_object(functools.partial(_object, item, class_of, where, changes), where))
    return (
        [_length(tree, name, path) for name in ("height", "width")],
        (tree.findtext("filename") or "").strip(),
        [each for each in objects if each is not None],
    )


def _object(item, class_of, where, changes):
    """Returns the COCO annotation of an object."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{where} has no <name>; expected the name of its class. Add it.")
    if name not in class_of:
        raise UserError(
            f"{where} has the class {name!r}; expected one of {', '.join(class_of)}. Correct the name, or add "
            "it to the list of classes (a file such as classes.txt; for VocDataset, class_names)."
        )
    if (count := len(item.findall("bndbox"))) > 1:
        raise UserError(f"{where} has {count} elements <bndbox>; expected one. Write a separate object for each box.")
    other = next((tag for tag in _OTHER_OUTLINES if item.find(tag) is not None), None)
    if count == 0 and other:
        raise UserError(
            f"{where} has a {_OTHER_OUTLINES[other]} (<{other}>) and no <bndbox>; expected an upright box. Export "
            "boxes, or polygons as COCO."
        )
    x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
    if x1 > x2 or y1 > y2:
        changes.add("swapped_corners", where, f"has the corners x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if other:
        changes.note("other_outlines", where, f"has a {_OTHER_OUTLINES[other]} (<{other}>) beside its box")
    return {
        "category_id": class_of[name],
        "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
        "difficult": _difficult(item.findtext("difficult"), where),
    }


def _length(tree, name, path):
    """Returns height or width; None if it is missing, empty or 0."""
    if not (tree.findtext(f"size/{name}") or "").strip():
        return None
    length = _number(tree, f"size/{name}", path)
    if length < 0 or length != int(length):
        raise UserError(f"{path} has the <{name}> {length:g} in <size>; expected a positive integer. Change it.")
    return int(length) or None


def _difficult(text, where):
    text = (text or "").strip()
    flag = 0 if text.lower() == "unspecified" else as_flag(text)  # some tools write it into unset fields
    if flag is None:
        raise UserError(f"{where} has the <difficult> {text!r}; expected 0 or 1. Change it.")
    return flag


def _number(item, key, where):
    parent, _, tag = key.partition("/")
    text = item.findtext(key)
    if text is None:
        raise UserError(f"{where} has no <{tag}> in <{parent}>; expected a number. Add it.")
    number = as_float(text)
    if number is None or not math.isfinite(number):
        raise UserError(f"{where} has the <{tag}> {text!r} in <{parent}>; expected a number. Change it.")
    return number
