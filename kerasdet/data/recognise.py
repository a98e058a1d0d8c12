"""Detects the format of a dataset by its files, and opens the dataset as a `Dataset`."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasdet.data import labelme, remote, tfrecord, via, yolo
from kerasdet.data.annotations import read_contents, read_json
from kerasdet.data.classes import Classes, select_classes
from kerasdet.data.coco_exports import find_coco, json_kind
from kerasdet.data.dataset import Dataset
from kerasdet.data.examples import read_examples
from kerasdet.data.files import images_in, is_image, read_text, visible
from kerasdet.data.images import MAX_PIXELS
from kerasdet.data.splits import WHOLE, Reader, by_split, split_of
from kerasdet.data.unknown import explain_unknown
from kerasdet.data.values import Changes
from kerasdet.data.voc_folders import find_voc, is_annotation
from kerasdet.errors import UserError
from kerasdet.paths import expand

_logger = logging.getLogger("kerasdet.data")

_SAMPLE = 20  # number of JSON files of a folder whose kind is looked up


@dataclasses.dataclass(frozen=True)
class Source:
    """Holds the format and the splits of a dataset.

    Args:
        path: Path of the dataset, or the folder inside it that contains the data.
        format: Name of the format.
        splits: A dict from split name ("train", "val", "test" or others; "all" if the dataset is not split) to the
            function that reads this split into a dict in the form of a COCO file.
    """

    path: Path
    format: str
    splits: Mapping[str, Reader]

    def __str__(self) -> str:
        parts = ", ".join(self.splits)
        return f"{self.path}: {self.format}{'' if parts == WHOLE else f' with the splits {parts}'}"


def recognise(path: str | os.PathLike) -> Source:
    """Detects the format of a dataset.

    Args:
        path: A folder, or the file that describes the dataset: `data.yaml`, COCO's JSON, one of several
            TFRecord shards, or a pattern such as `train-*.tfrecord`. A path on S3, HTTP or another remote file system
            is first copied into the cache.

    Returns:
        The format and the splits. Annotations are not checked yet.

    Raises:
        FileNotFoundError: If the path does not exist.
        UserError: If the format is unknown. The message lists the contents of the folder and what to do.
    """
    path = remote.local_copy(path) if remote.is_remote(path) else expand(path, "The path of the dataset")
    if not path.exists() and not list(path.parent.glob(path.name) if path.parent.is_dir() else []):
        raise FileNotFoundError(f"The dataset {path} does not exist. Check the path.")
    if (source := _find(path)) is None:
        raise UserError(explain_unknown(path))
    return source


def _find(path):
    """Returns the dataset at a path, or inside its only folder; None if no format fits."""
    for name, find in _FINDERS.items():
        if splits := find(path):
            if path.is_dir() and (other := _other_annotations(path, name)):
                _logger.warning(
                    "%s is read as %s; the annotations in %s are not read. To read them, pass the path of this file.",
                    path,
                    name,
                    other,
                )
            return Source(path, name, splits)
    if path.is_dir():
        inside = [each for each in path.iterdir() if not each.name.startswith(".") and each.name != "__MACOSX"]
        folders = [each for each in inside if each.is_dir()]
        if len(folders) == 1 and not any(is_image(each) for each in inside):  # an archive unpacked into its own folder
            return _find(folders[0])
    return None


def _find_yolo(path):
    """Finds a `data.yaml`, or folders `images` and `labels` with a list of classes."""
    if path.is_dir():
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda file: (file.stem != "data", file.name))
    else:
        files = [path] if path.suffix.lower() in (".yaml", ".yml") else []
    found: dict[Path, dict[str, Reader]] = {}
    for file in files:
        try:
            data = yolo.read_yaml(file)
        except UserError:
            if path.is_dir():
                continue
            raise
        keys = yolo.split_keys(data, file)
        if "names" in data and keys:
            names = yolo.class_names(data, file)
            found[file] = {split: functools.partial(_read_yolo, data, file, key, names) for split, key in keys.items()}
    first, *others = found or [None]
    if others and (first.stem != "data" or others[0].stem == "data"):
        raise UserError(
            f"{path} has several files of a YOLO dataset, {', '.join(file.name for file in found)}; expected "
            f"one, or one named data.yaml. Give the file: {first}."
        )
    return found.get(first, {})


def _read_yolo(data, file, key, names, changes):
    with contextlib.suppress(UserError):  # the list is not used, so it need not be readable
        other, path = yolo.names_beside(file.parent) or (names, None)
        if other != names:
            changes.note("other_class_lists", str(path), f"has other classes, or another order, than {file.name}")
    images = yolo.split_images(data, file, key, changes)
    return yolo.read_yolo(images, names, changes, yolo.keypoint_shape(data, file), yolo.keypoint_names(data, file))


def _find_yolo_folder(path):
    """Finds images with label files and a list of classes, as LabelImg and Label Studio write them."""
    beside = yolo.names_beside(path) if path.is_dir() else None
    if beside is None:
        return {}
    images = images_in(path)
    if not any(yolo.label_of(image).is_file() for image in images):
        return {}
    return {
        split: functools.partial(yolo.read_yolo, files, beside[0]) for split, files in by_split(images, path).items()
    }


def _find_json(path, kind):
    """Returns the JSON files of a kind in a folder; none if the first few files are of other kinds."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and json_kind(path) == kind else []
    files = visible(path, "*.json")
    if not any(_is_kind(file, kind) for file in files[:_SAMPLE]):
        return []
    return [file for file in files if _is_kind(file, kind)]


def _is_kind(file, kind):
    if file.suffix == ".xml":
        return is_annotation(file) and kind == "xml"
    try:
        return json_kind(file) == kind
    except UserError:
        return kind == "labelme"  # a damaged file may be LabelMe's; the reader then raises an error that names it


def _find_labelme(path):
    files = _find_json(path, "labelme")
    if not files:
        return {}
    folder = path if path.is_dir() else path.parent

    @functools.cache
    def names():
        if listed := labelme.listed_labels(folder):
            return listed
        found = sorted({label for file in files for label in labelme.labels_of(read_json(file))})
        if not found:
            raise UserError(
                f"No LabelMe file of {folder} has a shape with a label and an area; expected at least one. "
                "Annotate images."
            )
        return found

    def read(files, changes):
        return labelme.read_labelme(files, names(), changes)

    return {split: functools.partial(read, own) for split, own in by_split(files, folder).items()}


def _find_via(path):
    groups: dict[str, list[Path]] = {}
    for file in _find_json(path, "via"):
        groups.setdefault(split_of(file.stem, file.parent.name), []).append(file)
    return {split: functools.partial(via.read_via, files) for split, files in groups.items()}


def _find_tfrecord(path):
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        files = [file for file in visible(path) if file.is_file() and tfrecord.is_tfrecord(file)]
    else:
        files = [file for file in tfrecord.shards(path) if tfrecord.is_tfrecord(file)]
    groups: dict[str, list[Path]] = {}
    for file in files:
        folders = reversed(file.relative_to(folder).parts[:-1])
        groups.setdefault(split_of(tfrecord.stem_of(file), *folders, folder.name), []).append(file)
    maps = visible(folder, "*.pbtxt")
    maps = [file for file in maps if "item" in read_text(file)]

    def read(files, changes):
        own = [file for file in maps if file.parent == files[0].parent] or maps
        categories = tfrecord.read_label_map(own[0]) if own else None
        every = [shard for file in files for shard in tfrecord.shards(file)]
        return tfrecord.read_tfrecords(list(dict.fromkeys(every)), categories, changes)

    return {split: functools.partial(read, own) for split, own in groups.items()}


def _find_coco(path):
    if path.is_file() and not (path.suffix.lower() == ".json" and json_kind(path) == "coco"):
        return {}
    return find_coco(path)


_FINDERS = {
    "YOLO": _find_yolo,
    "COCO": _find_coco,
    "VIA": _find_via,
    "LabelMe": _find_labelme,
    "TFRecord": _find_tfrecord,
    "Pascal VOC": find_voc,
    "YOLO without data.yaml": _find_yolo_folder,
    "COCO with scores": lambda path: find_coco(path, scored=True) if path.is_dir() else {},
}
# Places of annotations whose format may not be the one that was recognised: kind, name of the format, patterns
_OTHERS = (
    ("coco", "COCO", ("*.json", "[Aa]nnotations/*.json")),
    ("labelme", "LabelMe", ("*.json", "*/*.json")),
    ("xml", "Pascal VOC", ("*.xml", "Annotations/*.xml", "VOC*/Annotations/*.xml")),
)


def _other_annotations(path, name):
    """Returns a file of a folder in another format than the one that was recognised, or None."""
    for kind, of_format, patterns in _OTHERS:
        if not name.startswith(of_format):
            files = itertools.chain.from_iterable(sorted(path.glob(pattern))[:_SAMPLE] for pattern in patterns)
            if found := next((file for file in files if _is_kind(file, kind)), None):
                return found
    return None


def choose_split(source: Source, split: str | None) -> str:
    """Chooses a split of a dataset by name; "val", "valid" and "validation" mean the same split.

    Args:
        source: Result of `recognise`.
        split: Name such as "val" or "validation"; None if the dataset has only one split.

    Returns:
        The name of the split, a key of `source.splits`.

    Raises:
        UserError: If the dataset has no such split, or `split` is None and the dataset has several splits.
    """
    known = ", ".join(source.splits)
    if not isinstance(split, str | None):
        raise UserError(f"The split is {split!r}; expected the name of one split, such as {known}. Pass one name.")
    if split is None:
        if len(source.splits) == 1:
            return next(iter(source.splits))
        raise UserError(
            f"{source.path} has the splits {known}; expected the name of one of these. Pass --split NAME (Python: "
            "split=NAME)."
        )
    for name in (split, split_of(split)):
        if name in source.splits:
            return name
    has = known if known != WHOLE else f"the split {WHOLE}, which holds all images"
    if source.path.is_file() and split_of(split) in _splits_beside(source.path):
        raise UserError(
            f"{source.path} has no split {split}, only {has}; another file of its folder has that split. Give the "
            f"folder {source.path.parent}."
        )
    raise UserError(
        f"{source.path} has no split {split}; it has {has}. Pass another split, or split the dataset: kerasdet data "
        "split SOURCE TARGET --parts train=0.8,val=0.2."
    )


def _splits_beside(file):
    """Returns the splits of the dataset that the folder of a file holds."""
    try:
        found = _find(file.parent)
    except UserError:
        return {}
    return found.splits if found else {}


def read_source(source: Source, split: str, changes: Changes, classes: Classes | None = None) -> dict[str, Any]:
    """Reads a split into a dict in the form of a COCO file.

    Args:
        source: Result of `recognise`.
        split: A key of `source.splits`.
        changes: Counts the values that had to be converted or repaired.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which None removes a class and equal new names merge classes. None keeps all classes.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file, with the full path of
        each image.

    Raises:
        UserError: If an item is invalid.
    """
    data = source.splits[split](changes)
    return data if classes is None else _select(data, classes, changes)


def _select(data, classes, changes):
    """Selects classes after converting ids to integers and names to strings."""
    contents = read_contents(data, changes.source, strict=changes.strict, on_bad_object=changes.on_bad_object)
    changes.merge(contents.changes)
    clean = {"images": contents.images, "annotations": contents.annotations, "categories": contents.categories}
    return select_classes({**data, **clean}, classes, changes.source)


def read_class_names(path: str | os.PathLike, *, classes: Classes | None = None) -> tuple[str, ...]:
    """Reads the names of the classes of a dataset, without opening its images.

    Args:
        path: A folder, or the file that describes the dataset, such as `data.yaml` or COCO's JSON.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which None removes a class and equal new names merge classes. None keeps all classes.

    Returns:
        The K class names in the order of the class ids. If the dataset has several splits, the names of the training
        split.

    Raises:
        FileNotFoundError: If the path does not exist.
        UserError: If the format is unknown, or an annotation is invalid.
    """
    source = recognise(path)
    split = "train" if "train" in source.splits else next(iter(source.splits))
    changes = Changes(str(source.path))
    contents = read_contents(read_source(source, split, changes, classes), changes.source)
    return tuple(category["name"] for category in contents.categories)


def open_dataset(
    path: str | os.PathLike | Source,
    split: str | None = None,
    *,
    classes: Classes | None = None,
    keep_images_without_objects: bool = True,
    on_bad_image: str = "error",
    on_bad_object: str = "error",
    masks: bool | None = False,
    keypoints: bool | None = False,
    extra_annotation_keys: Sequence[str] = (),
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Opens a dataset of any supported format, and logs its format, its size and any repairs.

    The formats are COCO and the exports of Roboflow, CVAT, Label Studio, FiftyOne and LabelMe2COCO; Pascal VOC and
    loose XML files of LabelImg; YOLO; LabelMe; VIA; TFRecords of the TensorFlow Object Detection API. docs/data.md
    describes them.

    Example:
        >>> dataset = open_dataset("mine", "train")
        >>> len(dataset), dataset.class_names[:2]
        (4, ('disk', 'square'))

    Args:
        path: A folder, or the file that describes the dataset: `data.yaml`, COCO's JSON, one of several
            TFRecord shards, or a pattern such as `train-*.tfrecord`. A path on S3, HTTP or another remote file system
            is first copied into the cache. Or the result of `recognise`, whose format is then not logged.
        split: Name of a split: "train", "val" (or "valid", "validation") or "test". None if the dataset has only one
            split.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which classes with the same new name are merged and classes mapped to None are left out. None keeps all
            classes.
        keep_images_without_objects: Whether to keep images that have no object to train on, see `Dataset`.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        on_bad_object: What to do if an annotation cannot be read: "error" raises a `UserError` that names the
            annotation, "skip" leaves it out.
        masks: Whether to read the segmentations. None reads them if every object has one.
        keypoints: Whether to read the keypoints. None reads them if a class has keypoints.
        extra_annotation_keys: Keys of further values in the annotations, such as "age", for branches of your own. A
            value is a number, or a list of numbers that has the same length in all annotations. Batches hold the values
            as float32 under the same keys.
        strict: Whether to raise an error for values that would be repaired or dropped. By default these are counted and
            logged.
        max_pixels: Images with more pixels than this count as damaged. Default: Pillow's limit, about 179 million.

    Returns:
        The dataset. Its `counts` and `problems` include the repairs.

    Raises:
        FileNotFoundError: If the path does not exist.
        UserError: If the format is unknown, the split does not exist, or an item is invalid. The message names the
            image or annotation.
    """
    source = path if isinstance(path, Source) else recognise(path)
    name = choose_split(source, split)
    changes = Changes(str(source.path), strict, on_bad_object)
    data = read_source(source, name, changes, classes)
    if source is not path:
        _logger.info("%s", source)
    label = str(source.path) if name == WHOLE else f"{source.path} ({name})"
    dataset = Dataset(
        data,
        None,
        source=label,
        keep_images_without_objects=keep_images_without_objects,
        on_bad_image=on_bad_image,
        on_bad_object=on_bad_object,
        masks=_all_have(data.get("annotations") or (), "segmentation") if masks is None else masks,
        keypoints=_any_has(data.get("categories") or (), "keypoints") if keypoints is None else keypoints,
        extra_annotation_keys=extra_annotation_keys,
        strict=strict,
        max_pixels=max_pixels,
    )
    dataset.add_changes(changes)
    return dataset


def _all_have(annotations, key):
    return bool(annotations) and all(isinstance(each, Mapping) and each.get(key) for each in annotations)


def _any_has(categories, key):
    return any(isinstance(each, Mapping) and each.get(key) for each in categories)


def dataset_from_examples(
    examples: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    keypoint_names: Sequence[str] = (),
    classes: Classes | None = None,
    masks: bool = False,
    name: str = "examples",
    **options: Any,
) -> Dataset:
    """Makes a dataset from Python objects: an iterable of dicts, or a `tf.data.Dataset` of dicts.

    Example:
        >>> image = np.zeros((480, 640, 3), np.uint8)
        >>> dataset = dataset_from_examples(
        ...     [{"image": image, "boxes": [[10, 20, 110, 220]], "class_ids": [0]}], class_names=["cat"]
        ... )
        >>> batches = training_batches(dataset, batch_size=1)

    Args:
        examples: Dicts with `image`, a path or an array (H, W, 3) uint8; `boxes` (N, 4) yxyx in pixels; `class_ids`
            (N,) in 0..K-1; optional `is_crowd` (N,), `masks` (N, H, W), above 0 inside the object, `keypoints`
            (N, J, 3) as (y, x, visibility) and `image_id`, by default 1, 2, ... Rows with class id -1 are padding. The
            examples are read once. Images that are arrays stay in memory; if they do not fit, pass paths instead, or
            convert the data to TFRecord.
        class_names: Names of the K classes, in the order of the class ids.
        keypoint_names: Names of the J keypoints; () if the examples have no keypoints.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which None removes a class and equal new names merge classes. None keeps all classes.
        masks: Whether to read the masks.
        name: Name of the dataset for error messages.
        **options: Other arguments of `Dataset`, such as `strict`.

    Returns:
        The dataset of all examples.

    Raises:
        UserError: If an example does not have this form, or an image file cannot be used. The message names the index
            of the example, from 0, or the file.
    """
    data = read_examples(examples, class_names, keypoint_names)
    data = data if classes is None else _select(data, classes, Changes(name))
    return Dataset(data, None, source=name, masks=masks, keypoints=bool(keypoint_names), **options)
