"""Reads Pascal VOC folders into the same records as COCO JSON."""

import os
from collections.abc import Sequence
from xml.etree import ElementTree

from kerasdet.data.dataset import Dataset
from kerasdet.errors import UserError
from kerasdet.paths import expand

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class VocDataset(Dataset):
    """Reads a Pascal VOC dataset: ``Annotations/*.xml``, ``ImageSets/Main/<split>.txt`` and ``JPEGImages/``.

    The XML counts pixels from 1 and includes both ends, so a box begins at xmin - 1. As in detectron2, training uses
    objects marked difficult; evaluation neither rewards nor punishes a detection of one.

    Example:
        >>> dataset = VocDataset(["VOCdevkit/VOC2007", "VOCdevkit/VOC2012"], "trainval")
        >>> dataset.num_classes
        20

    Args:
        root: Folder such as ``VOCdevkit/VOC2007``, or a sequence of folders that are read one after the other.
        split: Name of a list of images, such as "trainval"; every folder must have that list.
        class_names: The K names of the classes. Another name in an XML is an error.
        keep_images_without_objects: Whether to keep images without an object.
        on_bad_image: What to do if an image file is missing, damaged or not of the size in its XML: "error" raises
            one `UserError` that names them, "skip" leaves them out.

    Attributes:
        annotations: Path of the first list of images.
        ground_truth: Contents of an equivalent COCO file, for evaluation.
        records: Tuple of `Record`, in the order of the lists. The image id consists of the digits of the file name,
            or is the position from 1 if that does not give unique ids.
        class_names: Tuple of K names.
        category_ids: The numbers 1..K.
        num_classes: Number of classes, K.
        counts: Number of images and boxes that were kept, changed and dropped, by name.

    Raises:
        FileNotFoundError: If a list, an XML or a folder does not exist.
        UserError: If an XML is invalid, naming the file and the object, or if images are bad.
    """

    def __init__(
        self,
        root: str | os.PathLike | Sequence[str | os.PathLike],
        split: str,
        *,
        class_names: Sequence[str] = VOC_CLASSES,
        keep_images_without_objects: bool = True,
        on_bad_image: str = "error",
    ) -> None:
        roots = [expand(folder) for folder in ([root] if isinstance(root, str | os.PathLike) else root)]
        lists = [folder / "ImageSets" / "Main" / f"{split}.txt" for folder in roots]
        places = [(folder, name) for folder, path in zip(roots, lists, strict=True) for name in _names(path)]
        super().__init__(
            _coco(places, tuple(class_names)),
            None,
            source=lists[0],
            keep_images_without_objects=keep_images_without_objects,
            on_bad_image=on_bad_image,
        )


def _coco(places, class_names):
    """Returns the contents of an equivalent COCO file."""
    class_of = {name: class_id for class_id, name in enumerate(class_names)}
    images, annotations = [], []
    for image_id, (folder, name) in zip(_image_ids([name for _, name in places]), places, strict=True):
        (height, width), objects = read_xml(folder / "Annotations" / f"{name}.xml", class_of)
        path = str(folder / "JPEGImages" / f"{name}.jpg")
        images.append({"id": image_id, "file_name": path, "height": height, "width": width})
        annotations += [
            {"image_id": image_id, "category_id": class_id + 1, "bbox": xywh, "difficult": int(difficult)}
            for *xywh, class_id, difficult in objects
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _names(path):
    """Returns the names of the images in a list: the first word of each line, because per-class lists add a label."""
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        choices = f"Choose one of these splits: {', '.join(known)}." if known else "Check root and split."
        raise FileNotFoundError(f"The list of images {path} does not exist. {choices}")
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path} names no image; expected one name per line. Give another split or fill the list.")
    return names


def _image_ids(names):
    digits = [name.replace("_", "") for name in names]
    if all(text.isascii() and text.isdigit() and len(text) < 19 for text in digits):
        ids = [int(text) for text in digits]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(names) + 1))


def read_xml(path, class_of):
    """Returns (height, width) of the image, and its objects as (x, y, width, height, class_id, difficult)."""
    if not path.is_file():
        raise FileNotFoundError(f"The annotation {path} does not exist. Add it, or remove its image from the list.")
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML: {error}. Correct or replace the file.") from None
    size = [_number(tree, f"size/{name}", path) for name in ("height", "width")]
    if min(size) < 1 or any(length != int(length) for length in size):
        raise UserError(f"{path}: the image has (height, width) {size}; expected positive integers. Correct <size>.")
    objects = []
    for number, item in enumerate(tree.findall("object"), 1):
        where = f"{path}: object {number}"
        name = (item.findtext("name") or "").strip()
        if name not in class_of:
            raise UserError(
                f"{where} is a {name!r}; expected one of the classes {', '.join(class_of)}. Correct the name, or pass "
                "class_names."
            )
        x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (item.findtext("difficult") or "0").strip() not in ("0", "")
        objects.append((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1, class_of[name], difficult))
    return (int(size[0]), int(size[1])), objects


def _number(item, key, where):
    text = item.findtext(key)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise UserError(f"{where} has {key} {text!r}; expected a number. Correct the file.") from None
