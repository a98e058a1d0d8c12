"""Writes datasets as Pascal VOC: `Annotations/`, `JPEGImages/`, `ImageSets/Main/SPLIT.txt` and `classes.txt`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from kerasdet.data.portable import Item, Part
from kerasdet.data.progress import progress


def write(parts: Sequence[Part], folder: Path) -> Counter[str]:
    """Writes splits as one Pascal VOC tree. `classes.txt` keeps the order of the classes.

    Args:
        parts: Splits of the dataset.
        folder: Empty folder to write to.

    Returns:
        Counts of values that the format cannot store, such as masks, by name.
    """
    lost: Counter[str] = Counter()
    images, annotations, lists = (folder / name for name in ("JPEGImages", "Annotations", "ImageSets/Main"))
    for target in (images, annotations, lists):
        target.mkdir(parents=True)
    for part in parts:
        names = {category["id"]: category["name"] for category in part.categories}
        stems = []
        for item in progress(part.items, f"Writing {part.name}"):
            item.save(images / item.name)
            stems.append(Path(item.name).stem)
            tree = ElementTree.ElementTree(_annotation(item, names, lost))
            ElementTree.indent(tree)
            tree.write(annotations / f"{stems[-1]}.xml", encoding="utf-8", xml_declaration=True)
        (lists / f"{part.name}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    classes = "".join(f"{category['name']}\n" for category in parts[0].categories)
    (folder / "classes.txt").write_text(classes, encoding="utf-8")
    return lost


def _annotation(item: Item, names, lost):
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", item.name)
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", item.record.width), ("height", item.record.height), ("depth", 3)):
        _add(size, name, value)
    for annotation in item.annotations:
        if annotation["iscrowd"]:
            lost["crowds"] += 1
            continue
        lost["masks"] += bool(annotation.get("segmentation"))
        lost["keypoints"] += bool(annotation.get("keypoints"))
        element = ElementTree.SubElement(root, "object")
        _add(element, "name", names[annotation["category_id"]])
        _add(element, "difficult", int(bool(annotation.get("difficult"))))
        x, y, w, h = annotation["bbox"]
        box = ElementTree.SubElement(element, "bndbox")
        # VOC counts pixels from 1 and includes both ends
        for name, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
            _add(box, name, repr(float(value)).removesuffix(".0"))
    return root


def _add(parent, name, value):
    ElementTree.SubElement(parent, name).text = str(value)
