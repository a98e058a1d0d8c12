"""Pascal VOC folders to the same records as COCO JSON."""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from kerasdet.data.records import corners_inside, make_records, split_by_image

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class VocDataset:
    """A data set as Pascal VOC has it: ``Annotations/*.xml``, ``ImageSets/Main/<split>.txt``, ``JPEGImages/``.

    Coordinates in the XML are pixels counted from 1, both ends included, so a box begins at xmin - 1. As in
    detectron2, objects marked difficult are trained on; evaluation neither rewards nor punishes finding them.

    Args:
        root: a folder such as ``VOCdevkit/VOC2007``, or several of them, one after the other.
        split: the name of a list of images, such as "trainval"; the same in all folders.
        class_names: K names; another name in an XML is an error.
        keep_empty: whether to keep images without an object.
        bad_images: what to do about missing and damaged image files and those of another size than their XML says:
            "error" names them in one `ValueError`, "skip" leaves them out.

    Attributes:
        annotations: path of the first list of images.
        ground_truth: what to evaluate against: a dict as a COCO file holds it.
        records: tuple of `Record`, in the order of the lists. The id of an image is the digits of its name, or its
            place from 1 where that is not possible for all.
        class_names: as given.
        category_ids: 1..K.
        num_classes: K.
        counts: dict of how many images and boxes were kept, changed and dropped.

    Raises:
        FileNotFoundError: where a list, an XML or a folder does not exist.
        ValueError: for an XML that cannot be understood, naming it, and for bad images.
    """

    def __init__(
        self,
        root: str | os.PathLike | Sequence[str | os.PathLike],
        split: str,
        *,
        class_names: Sequence[str] = VOC_CLASSES,
        keep_empty: bool = True,
        bad_images: str = "error",
    ):
        roots = [Path(root)] if isinstance(root, str | os.PathLike) else [Path(folder) for folder in root]
        lists = [folder / "ImageSets" / "Main" / f"{split}.txt" for folder in roots]
        places = [(folder, name) for folder, path in zip(roots, lists, strict=True) for name in _names(path)]
        self.annotations = lists[0]
        self.class_names = tuple(class_names)
        self.category_ids = tuple(range(1, len(class_names) + 1))
        self.num_classes = len(class_names)

        paths = [str(folder / "JPEGImages" / f"{name}.jpg") for folder, name in places]
        image_ids = _image_ids([name for _, name in places])
        class_of = {name: class_id for class_id, name in enumerate(self.class_names)}
        parsed = [_read(folder / "Annotations" / f"{name}.xml", class_of) for folder, name in places]
        sizes = [size for size, _ in parsed]
        rows = np.repeat(np.arange(len(parsed)), [len(objects) for _, objects in parsed])
        table = np.array([row for _, objects in parsed for row in objects], np.float64).reshape(-1, 6)
        boxes, keep, counts = corners_inside(table[:, :4], np.array(sizes, np.float64)[rows])
        counts["difficult_boxes"] = int((keep & (table[:, 5] > 0)).sum())
        columns = {
            "boxes": boxes[keep],
            "class_ids": table[keep, 4].astype(np.int32),
            "is_crowd": np.zeros(keep.sum(), bool),
        }
        self.records, self.counts = make_records(
            self.annotations,
            image_ids,
            paths,
            sizes,
            split_by_image(columns, rows[keep], len(parsed)),
            keep_empty=keep_empty,
            bad_images=bad_images,
            num_classes=self.num_classes,
            object_counts=counts,
        )
        self.ground_truth = {
            "images": [
                {"id": image_id, "file_name": Path(path).name, "height": size[0], "width": size[1]}
                for image_id, path, size in zip(image_ids, paths, sizes, strict=True)
            ],
            "categories": [
                {"id": i, "name": name} for i, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": [
                {
                    "image_id": image_ids[row],
                    "category_id": int(class_id) + 1,
                    "bbox": [x, y, width, height],
                    "difficult": int(difficult),
                }
                for row, (x, y, width, height, class_id, difficult) in zip(
                    rows[keep].tolist(), table[keep].tolist(), strict=True
                )
            ],
        }

    def __len__(self):
        return len(self.records)


def _names(path):
    """The images that a list names, one a line; more in a line is VOC's per-class lists' and not looked at."""
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        raise FileNotFoundError(f"No list of images {path}" + (f"; there are {', '.join(known)}." if known else "."))
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} names no image.")
    return names


def _image_ids(names):
    digits = [name.replace("_", "") for name in names]
    if all(text.isascii() and text.isdigit() and len(text) < 19 for text in digits):
        ids = [int(text) for text in digits]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(names) + 1))


def _read(path, class_of):
    """(height, width) of the image, and its objects as (x, y, width, height, class_id, difficult)."""
    if not path.is_file():
        raise FileNotFoundError(f"No annotation {path}.")
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not valid XML: {error}.") from None
    size = [_number(tree, f"size/{name}", path) for name in ("height", "width")]
    if min(size) < 1 or any(length != int(length) for length in size):
        raise ValueError(f"{path}: the image has the height and width {size}; they must be whole and positive.")
    objects = []
    for number, item in enumerate(tree.findall("object"), 1):
        where = f"{path}: object {number}"
        name = (item.findtext("name") or "").strip()
        if name not in class_of:
            raise ValueError(f"{where} is a {name!r}, which is none of the classes {', '.join(class_of)}.")
        x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (item.findtext("difficult") or "0").strip() not in ("0", "")
        objects.append((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1, class_of[name], difficult))
    return (int(size[0]), int(size[1])), objects


def _number(item, key, where):
    text = item.findtext(key)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where} needs a number as {key}, has {text!r}.") from None
