"""Reads and checks the values of COCO annotations, for training and for evaluation.

The files of many tools deviate from COCO's format in ways whose meaning is clear, such as numbers written as strings.
The reader converts such values, drops annotations that cannot be used, such as those of images that are not in the
file, and counts both. It raises a `UserError` for anything else. Training and evaluation use the same reader, so they
see the same objects.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Set
from typing import Any

from kerasdet.data.categories import read_categories, without_groups
from kerasdet.data.segmentation import box_of, read_segmentation
from kerasdet.data.values import (
    MAX_ID,
    Changes,
    are_fractions,
    as_flag,
    as_float,
    as_floats,
    as_int,
    as_list,
    is_missing,
    is_plain,
    show,
)
from kerasdet.errors import UserError
from kerasdet.geometry import rle

# Text in the log for each kind of change
CHANGES = {
    "moved_files": "images found under another path",
    "missing_sizes": "image sizes read from the image files",
    "infinite_boxes": "boxes dropped because they have NaN or infinite values",
    "converted_values": "values converted to the right type",
    "repeated_images": "repeated images merged",
    "repeated_categories": "repeated categories merged",
    "repeated_names": "class names that several categories share",
    "similar_names": "class names that differ only in case",
    "renamed_images": "images renamed because another image has the same name",
    "undecodable_names": "images renamed because their names are not valid UTF-8",
    "repeated_boxes": "boxes that occur more than once in an image",
    "repeated_files": "image files that several images share",
    "unnamed_categories": "categories without a name, named by their id",
    "grouping_categories": "categories left out because they have no objects and only group others",
    "background_categories": "classes for the background, which have no objects and which detectors do not need",
    "orphaned_annotations": "annotations dropped because their image is not in the file",
    "missing_boxes": "missing boxes computed from the masks",
    "replaced_areas": "areas replaced by the areas of the boxes",
    "flat_polygons": "polygons converted to COCO's form",
    "short_polygons": "objects that lost polygons of fewer than three points",
    "odd_polygons": "objects with polygons of an odd number of values, whose last value was dropped",
    "masks_outside_boxes": "masks outside their boxes",
    "empty_masks": "masks that cover no pixel left out, but not their boxes",
    "keypoints_outside_boxes": "objects with keypoints outside their boxes",
    "contradicting_counts": "objects whose num_keypoints is wrong (the labelled keypoints were counted)",
    "ignore_flags": "annotations with ignore=1, which are used like all others (crowds have iscrowd=1)",
    "unnamed_keypoints": "objects whose keypoints were dropped because their category defines none",
    "unpaired_keypoints": "keypoints that flips do not exchange, because no names differ only in left and right",
    "skeletons_from_0": "skeletons whose keypoints are counted from 0",
    "bad_objects": "unreadable annotations left out",
}
TYPE_NAMES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}  # COCO's types of geometry, in messages
_UNPACK = "; expected JSON. Unpack it, and pass the path of the .json file."
# Messages for files that users pass in the place of JSON, by their first bytes
_OTHER_FILES = {
    b"\x1f\x8b": f"compressed with gzip{_UNPACK}",
    b"BZh": f"compressed with bzip2{_UNPACK}",
    b"\xfd7zXZ\x00": f"compressed with xz{_UNPACK}",
    b"PK\x03\x04": f"a ZIP file{_UNPACK}",
    b"\x80": (  # in UTF-8 and UTF-16, JSON never begins with this byte
        "a Python pickle; expected JSON. Write detections in COCO's results format: in mmdetection, "
        "--cfg-options test_evaluator.outfile_prefix=results writes results.bbox.json. `kerasdet convert` reads "
        "checkpoints."
    ),
}
# Keys of Open Images and of converters to COCO. If an annotation has several of them, the last one is used.
_GROUP_OF = ("IsGroupOf", "isgroupof", "is_group_of")


@dataclasses.dataclass(frozen=True)
class Contents:
    """Holds the contents of a COCO file after its values were checked and converted to the right types.

    Args:
        images: One dict per image: an int `id`, and `height` and `width`, ints in pixels, or None if the file does not
            give the size.
        categories: One dict per category, in ascending order of ids: an int `id`, a str `name` and, if keypoints were
            read, `keypoints`, a list of their names.
        annotations: One dict per annotation that was not dropped: ints `image_id` and `category_id`, `bbox` as four
            numbers (x, y, width, height) in pixels, a number `area`, and `iscrowd` and `difficult`, 0 or 1.
            `is_group_of`, 0 or 1, is present if the annotation has it. If masks were read, `segmentation` is the result
            of `read_segmentation`. If keypoints were read, `keypoints` is a flat list with x, y and visibility of each
            keypoint, or None.
        changes: Counts the values that had to be converted, repaired or dropped.
        bad: Indices, in the file's list, of the annotations that cannot be read. Always empty with
            ``on_bad_object="error"``.
    """

    images: list[dict]
    categories: list[dict]
    annotations: list[dict]
    changes: Changes
    bad: Set[int]


class GroundTruth(dict):
    """Holds the contents of a COCO file as a dict, and the name of the file for error messages.

    Args:
        contents: The lists `images`, `annotations` and `categories` by name.
        source: Path or name of the file.
    """

    def __init__(self, contents: Mapping[str, Any], source: str | os.PathLike) -> None:
        super().__init__(contents)
        self.source = os.fspath(source)


def read_json(path: str | os.PathLike) -> Any:
    """Parses a JSON file in UTF-8 or UTF-16, with or without a byte order mark.

    Args:
        path: Path of the file.

    Returns:
        The contents of the file, usually a dict or a list.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the path is a folder, or the file is not JSON.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; expected a JSON file. Pass the path of the file in this folder.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The file {path} does not exist. Check the path.")
    with open(path, "rb") as file:
        content = file.read()
    if fault := next((text for start, text in _OTHER_FILES.items() if content.startswith(start)), None):
        raise UserError(f"{path} is {fault}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data: line 2 "):
            raise UserError(
                f"{path} has more than one JSON value, like JSON Lines: expected one. Put the values into a list: [ "
                "before the first, commas between them, ] after the last."
            ) from None
        raise UserError(f"{path} is not valid JSON: {error}. Export or download it again.") from None


def read_contents(
    data: Any,
    source: str | os.PathLike,
    *,
    masks: bool = False,
    keypoints: bool = False,
    strict: bool = False,
    on_bad_object: str = "error",
) -> Contents:
    """Reads and checks every value of a COCO file.

    Args:
        data: Parsed JSON, which is not changed.
        source: Path or name of the file for error messages.
        masks: Whether to read segmentations.
        keypoints: Whether to read keypoints.
        strict: Whether to raise an error for values that would otherwise be converted or dropped, such as numbers
            written as strings.
        on_bad_object: "error" raises a `UserError` for an annotation that cannot be read, "skip" counts such
            annotations and leaves them out.

    Returns:
        The contents of the file. Images and annotations keep their order; categories are sorted by id. Entries keep
        keys that COCO does not define.

    Raises:
        UserError: If a value cannot be read, or `strict` is set and a value would be converted or dropped. The message
            names the file and the item.
    """
    source = os.fspath(source)
    if on_bad_object not in ("error", "skip"):
        raise UserError(f'on_bad_object is {on_bad_object!r}; expected "error" or "skip". Change on_bad_object.')
    _check_sections(data, source)
    changes = Changes(source, strict)
    categories = read_categories(data["categories"], changes, keypoints)
    images = _images(data["images"], changes)
    skip = on_bad_object == "skip"
    reader = _AnnotationReader(images, categories, changes, masks, keypoints, check_runs=skip)
    annotations, bad = [], set()
    for place, annotation in enumerate(data["annotations"]):
        try:
            annotations.append(reader.read(annotation))
        except UserError as error:
            if not skip:
                raise
            bad.add(place)
            name = name_of(annotation)
            changes.add("bad_objects", name, str(error).removeprefix(f"{source}: {name} "))
    kept = [annotation for annotation in annotations if annotation is not None]
    if annotations and changes.counts["orphaned_annotations"] == len(annotations):
        first = data["annotations"][0]
        raise UserError(
            f'{source}: {name_of(first)} has the image_id {show(first["image_id"])}, but no entry of "images" has that '
            "id; the other annotations have no image either. Correct their image_id, or add the images."
        )
    _check_units(kept, source)
    if masks:
        _check_units_of_polygons(kept, source)
    if keypoints:
        _check_units_of_keypoints(kept, source)
    used = {annotation["category_id"] for annotation in kept}
    return Contents(list(images.values()), without_groups(categories, used, changes), kept, changes, bad)


def _check_sections(data, source):
    """Checks that the three sections of a COCO file are lists of objects."""
    if isinstance(data, list):
        raise UserError(
            f"{source} holds a list, like a file of detections; expected a COCO dataset with images, annotations and "
            "categories. Give the ground-truth file."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, Mapping) or key not in data:
            raise UserError(
                f'{source} has no "{key}"; expected a COCO dataset with images, annotations and categories. Convert '
                "the file to COCO format."
            )
        if not isinstance(data[key], list) or not all(isinstance(item, Mapping) for item in data[key]):
            raise UserError(
                f'{source}: "{key}" is not a list of JSON objects, as COCO\'s format requires. Correct the file.'
            )
    for key in ("images", "categories"):
        if not data[key]:
            raise UserError(
                f'{source}: "{key}" is empty; expected at least one entry. Add entries, or give another file.'
            )


def _check_units(annotations, source):
    """Raises an error if the boxes are fractions of the image instead of pixels."""
    boxes = [annotation["bbox"] for annotation in annotations]
    if boxes and are_fractions(boxes):
        raise UserError(
            f'{source}: no box has a number above 1 (first: {name_of(annotations[0])} has "bbox" {show(boxes[0])}); '
            "expected [x, y, width, height] in pixels. Multiply the fractions by the width and height of the images."
        )


def _check_units_of_polygons(annotations, source):
    """Raises an error if the polygons are fractions of the image instead of pixels."""
    drawn = [annotation for annotation in annotations if isinstance(annotation["segmentation"], list)]
    if drawn and are_fractions([polygon for annotation in drawn for polygon in annotation["segmentation"]]):
        raise UserError(
            f'{source}: no polygon has a coordinate above 1 (first: {name_of(drawn[0])} has "segmentation" '
            f"{show(drawn[0]['segmentation'])}); expected polygons in pixels. Multiply the fractions by the width and "
            "height of the images."
        )


def _check_units_of_keypoints(annotations, source):
    """Raises an error if the keypoints are fractions of the image instead of pixels."""
    points = [point for annotation in annotations for point in _labelled(annotation["keypoints"])]
    if points and are_fractions(points):
        raise UserError(
            f"{source}: no keypoint has a coordinate above 1 (first: {show(points[0])}); expected x and y in pixels. "
            "Multiply the fractions by the width and height of the images."
        )


def _images(items, changes):
    """Maps the id of each image to its entry, in the order of the file."""
    found = {}
    for number, item in enumerate(items):

        def name(number=number):
            return f"images[{number}]"

        image_id = changes.convert(item.get("id"), as_int, name, "id")
        if image_id is None:
            raise UserError(
                f'{changes.source}: images[{number}] is {show(dict(item))}; expected an integer "id" and a '
                '"file_name". Correct this entry.'
            )
        sides = {key: _side(item.get(key), image_id, key, changes) for key in ("height", "width")}
        if None in sides.values():
            sides = dict.fromkeys(sides)
        image = {**item, "id": image_id, **sides}
        first = found.setdefault(image_id, image)
        if first is not image:
            if first.get("file_name") != image.get("file_name"):
                raise UserError(
                    f"{changes.source}: two images share the id {image_id}; the second is {image.get('file_name')}. "
                    "Give each image a unique id."
                )
            changes.add("repeated_images", f"image {image_id}", "is in the file twice")
    return found


def _side(value, image_id, key, changes):
    """Returns the height or width of an image; None if it is missing (some tools write 0 or -1)."""
    if type(value) is int and value > 0:
        return value
    if is_missing(value):
        return None
    length = changes.convert(value, as_int, lambda: f"image {image_id}", key)
    if length is None:
        raise UserError(
            f"{changes.source}: image {image_id} has the {key} {show(value)}; expected a positive integer. Correct "
            f'"{key}", or remove it: kerasdet then reads it from the image file.'
        )
    return length if length > 0 else None


class _AnnotationReader:
    """Reads annotations one by one. If `check_runs` is set, `read` also checks the run lengths of RLE masks."""

    def __init__(self, images, categories, changes, masks, keypoints, check_runs):
        self.images, self.categories, self.changes = images, categories, changes
        self.masks, self.keypoints, self.check_runs = masks, keypoints, check_runs

    def read(self, annotation: Mapping) -> dict | None:
        """Reads one annotation.

        Args:
            annotation: Entry of the file's list `annotations`.

        Returns:
            A copy of the annotation with values of the right types; None if its image is not in the file or its box is
            not finite.

        Raises:
            UserError: If a value cannot be read.
        """

        def name():
            return name_of(annotation)

        image_id = self._id(annotation, "image_id", "images", name)
        if image_id not in self.images:
            self.changes.add("orphaned_annotations", name(), f"is of image {image_id}, which is not in the file")
            return None
        category_id = self._id(annotation, "category_id", "categories", name)
        if category_id not in self.categories:
            raise self._unknown_id(annotation, "category_id", "categories", name)
        result = {**annotation, "image_id": image_id, "category_id": category_id}
        for key in ("iscrowd", "difficult"):
            result[key] = self._flag(annotation.get(key), key, name)
        if as_flag(annotation.get("ignore")):
            self.changes.note("ignore_flags", name(), 'has "ignore" 1')
        for key in _GROUP_OF:
            if key in annotation:
                value = annotation[key]  # true and false are usual, so they do not count as converted
                result["is_group_of"] = self._flag(int(value) if isinstance(value, bool) else value, key, name)
        if self.masks:
            result["segmentation"] = self._segmentation(annotation, name)
            self._check_rle_size(result, name)
            if self.check_runs and isinstance(result["segmentation"], dict):
                self._read_runs(result["segmentation"], name)
        if as_int(annotation.get("bbox_mode", 1)) != 1:  # of detectron2, whose 1 means COCO's x, y, width and height
            raise self._error(
                name,
                f'has "bbox_mode" {show(annotation["bbox_mode"])} of detectron2; expected "bbox" as x, y, width and '
                'height. Convert the boxes, and remove "bbox_mode".',
            )
        result["bbox"] = self._box(annotation, name)
        if not all(map(math.isfinite, result["bbox"])):
            self.changes.add("infinite_boxes", name(), f'has "bbox" {show(annotation["bbox"])}')
            return None
        if self.masks and _is_outside(result["segmentation"], result["bbox"]):
            self.changes.add("masks_outside_boxes", name(), f'has "bbox" {show(result["bbox"])} and its mask elsewhere')
        result["area"] = self._area(annotation.get("area"), result["bbox"], name)
        if self.keypoints:
            result["keypoints"] = self._keypoints(annotation, self.categories[category_id], name)
            self._check_keypoints(result, name)
        return result

    def _check_keypoints(self, annotation, name):
        points = _labelled(annotation["keypoints"])
        if astray := [point for point in points if not _is_near(point, annotation["bbox"])]:
            fact = f'has "bbox" {show(annotation["bbox"])} and a keypoint at {show(astray[0])}'
            self.changes.note("keypoints_outside_boxes", name(), fact)
        count = annotation.get("num_keypoints", len(points))
        if annotation["keypoints"] is not None and as_int(count) != len(points):
            fact = f'has "num_keypoints" {show(count)} but {len(points)} labelled keypoints'
            self.changes.note("contradicting_counts", name(), fact)

    def _error(self, name, problem):
        return UserError(f"{self.changes.source}: {name()} {problem}")

    def _id(self, annotation, key, section, name):
        value = annotation.get(key)
        if type(value) is int and -MAX_ID <= value <= MAX_ID:
            return value
        if key not in annotation:
            raise self._error(name, f'has no "{key}". Add the id of an entry of "{section}".')
        value = self.changes.convert(value, as_int, name, key)
        if value is None:
            raise self._unknown_id(annotation, key, section, name)
        return value

    def _unknown_id(self, annotation, key, section, name):
        return self._error(
            name,
            f'has the {key} {show(annotation[key])}, but no entry of "{section}" has that id. Correct the id or add '
            "the entry.",
        )

    def _flag(self, value, key, name):
        if value is None or (type(value) is int and value in (0, 1)):
            return value or 0
        flag = self.changes.convert(value, as_flag, name, key)
        if flag is None:
            raise self._error(name, f'has "{key}" {show(value)}; expected 0 or 1. Correct the annotation.')
        return flag

    def _segmentation(self, annotation, name):
        try:
            return read_segmentation(annotation.get("segmentation"), self.changes, name)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise self._error(name, f"{error}. Correct its segmentation.") from None

    def _read_runs(self, code, name):
        """Reads the run lengths of a mask, and raises an error if they are invalid."""
        try:
            rle.runs_from_segmentation(code, *code["size"])
        except ValueError as error:
            raise self._error(name, f"{str(error).removesuffix('.')}. Correct its segmentation.") from None

    def _check_rle_size(self, annotation, name):
        image, code = self.images[annotation["image_id"]], annotation["segmentation"]
        if isinstance(code, dict) and image["height"] and code["size"] != [image["height"], image["width"]]:
            raise self._error(
                name,
                f"has an RLE mask of size {code['size']}, but the image has height and width "
                f"{[image['height'], image['width']]}. Correct the segmentation.",
            )

    def _box(self, annotation, name):
        box = annotation.get("bbox")
        if is_plain(box) and len(box) == 4:
            return box
        if is_missing(box):
            segmentation = self._segmentation(annotation, name)
            if segmentation is None:
                raise self._error(name, 'has no "bbox". Add the four numbers [x, y, width, height] in pixels.')
            self.changes.add("missing_boxes", name(), "has no bbox")
            return box_of(segmentation)
        numbers = as_floats(box)
        if numbers is None or len(numbers) != 4:
            raise self._error(
                name,
                f'has "bbox" {show(box)}; expected four numbers [x, y, width, height] in pixels. Correct the '
                "annotation.",
            )
        self.changes.add("converted_values", name(), f'has "bbox" {show(box)} instead of {show(numbers)}')
        return numbers

    def _area(self, value, box, name):
        """Returns the area by which evaluation classifies an object as small, medium or large."""
        if type(value) in (int, float) and 0 < value < MAX_ID:
            return value
        own = max(box[2], 0) * max(box[3], 0)
        if is_missing(value):
            return own
        listed = as_list(value)
        number = as_float(listed[0] if listed and len(listed) == 1 else value)
        if number is not None and 0 < number < MAX_ID:
            self.changes.add("converted_values", name(), f'has "area" {show(value)} instead of {number}')
            return number
        if own > 0:
            self.changes.add("replaced_areas", name(), f'has "area" {show(value)}')
        return own

    def _keypoints(self, annotation, category, name):
        """Returns x, y and visibility of each keypoint in a flat list, or None if the object has no keypoints."""
        values, count = annotation.get("keypoints"), len(category["keypoints"])
        if is_missing(values):
            return None
        if not count:
            self.changes.add("unnamed_keypoints", name(), "has keypoints, but its category has none")
            return None
        numbers = values
        if not is_plain(values):
            numbers = _flat_keypoints(values)
            self.changes.add("converted_values", name(), f'has "keypoints" {show(values)}')
        wrong = numbers is None or len(numbers) != 3 * count or not all(map(math.isfinite, numbers))
        if wrong or any(visibility not in (0, 1, 2) for visibility in numbers[2::3]):
            raise self._error(
                name,
                f'has "keypoints" {show(values)}; expected {3 * count} numbers, x, y and visibility (0, 1 or 2) for '
                f"each of the {count} keypoints of its category. Correct the annotation.",
            )
        return numbers


def _is_outside(segmentation, box):
    """Returns whether polygons lie outside their box, for example because x and y are swapped or not in pixels."""
    if not isinstance(segmentation, list):
        return False
    mask = box_of(segmentation)
    return any(mask[i] > box[i] + max(box[i + 2], 0) + 1 or mask[i] + mask[i + 2] + 1 < box[i] for i in (0, 1))


def _labelled(keypoints):
    """Returns a list [x, y] for each labelled keypoint; `keypoints` is COCO's flat list, or None."""
    values = keypoints or []
    return [values[i : i + 2] for i in range(0, len(values), 3) if values[i + 2] > 0]


def _is_near(point, box):
    """Returns whether a keypoint lies in its box, or within a quarter of the box's sides around it."""
    return all(box[i] - box[i + 2] / 4 - 1 <= point[i] <= box[i] + 1.25 * box[i + 2] + 1 for i in (0, 1))


def _flat_keypoints(values):
    """Converts nested lists, strings and nulls of unlabelled keypoints to a flat list; returns None for other input."""
    items = as_list(values) or []
    if any(isinstance(item, list | tuple) for item in items):
        items = [value for item in items for value in (item if isinstance(item, list | tuple) else [item])]
    triples = [items[i : i + 3] for i in range(0, len(items), 3)]
    numbers = []
    for triple in triples:
        hidden = len(triple) == 3 and as_float(triple[2]) == 0
        numbers += [0.0 if value is None and hidden else as_float(value) for value in triple]
    return None if None in numbers else numbers


def name_of(annotation: Mapping) -> str:
    """Returns the name of an annotation for error messages.

    Args:
        annotation: Entry of `annotations` of a COCO file.

    Returns:
        A string such as "annotation 7".
    """
    return f"annotation {annotation['id']}" if "id" in annotation else f"an annotation ({str(annotation)[:200]})"
