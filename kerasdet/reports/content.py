"""Builds the sections about the contents of a dataset: splits, classes, problems and samples."""

import os
from collections.abc import Sequence

import numpy as np

from kerasdet import visualize
from kerasdet.data.annotations import CHANGES
from kerasdet.data.dataset import NOTES
from kerasdet.data.files import REPAIRS
from kerasdet.data.pipeline import Transform
from kerasdet.data.progress import progress
from kerasdet.data.values import MAX_LISTED
from kerasdet.models.detector import Detector
from kerasdet.reports import charts, page, pictures
from kerasdet.reports.page import Column, Finding, Section, count, number, share
from kerasdet.reports.splits import Splits

FEW_OBJECTS = 20  # the page names classes with fewer training objects
_MOST_BARS = 20
_MOST_KEYS = 20  # maximum number of classes in the legend of the samples
_SAMPLES_PER_PAGE = 6

# Keys of `Dataset.counts` that are sizes of the dataset, not faults.
_SIZES = ("images", "boxes", "images_without_objects", "crowd_boxes", "difficult_boxes")
_PHRASES = {"bad_images": "image files left out", **NOTES, **CHANGES, **REPAIRS}
_LOST = ("zero_area_boxes", "negative_boxes", "outside_boxes", "objects_without_mask")


def tiles(data: Splits) -> page.Html:
    """Builds the row of large numbers at the top of the page.

    Args:
        data: Splits of the dataset.

    Returns:
        The row as HTML.
    """
    datasets = data.datasets.values()
    values = [
        ("images", number(sum(len(dataset) for dataset in datasets))),
        ("objects", number(sum(len(objects) for objects in data.objects.values()))),
        ("classes", number(len(data.class_names))),
        ("objects per image", number(np.mean(np.concatenate([o.per_image for o in data.objects.values()])), 1)),
        ("images left out", number(sum(dataset.counts["bad_images"] for dataset in datasets))),
    ]
    return page.tiles(values)


def overview(data: Splits) -> tuple[Section, list[Finding]]:
    """Compares the splits by numbers of images and objects.

    Args:
        data: Splits of the dataset.

    Returns:
        The section of the page, and its findings.
    """
    columns = [Column("Split")] + [
        Column(title, "number")
        for title in ("Images", "Objects", "Per image", "Without objects", "Crowds", "Left out", "Median size")
    ]
    rows, found = [], []
    for split, dataset in data.datasets.items():
        objects = data.objects[split]
        empty = int((objects.per_image == 0).sum())
        height, width = np.median(objects.sizes, axis=0)
        rows.append(
            (
                split,
                number(len(dataset)),
                number(len(objects)),
                number(objects.per_image.mean(), 1),
                f"{number(empty)} ({share(empty, len(dataset))})",
                number(objects.crowds),
                number(dataset.counts["bad_images"]),
                f"{width:.0f} x {height:.0f}",
            )
        )
        if empty > len(dataset) / 2:
            found.append(
                Finding(
                    "advice",
                    f"{share(empty, len(dataset))} of the images of {split} have no object.",
                    "Check that their annotations are not missing. Images of pure background are fine, but they cost "
                    "as much time as others. To leave them out of a training with `--data`, add "
                    "`--set train/open_dataset.keep_images_without_objects=False` (Python: "
                    "`keep_images_without_objects=False`).",
                    "splits",
                )
            )
    table = page.table(columns, rows, "Splits", sortable=False, titled=False)
    return Section(
        "splits", "Splits", [table], "Sizes are width x height in pixels. Crowds are not counted as objects."
    ), found


def classes(data: Splits, model: Detector | None) -> tuple[Section, list[Finding]]:
    """Counts the objects of each class in each split.

    Args:
        data: Splits of the dataset.
        model: Detector whose number of classes is compared with the data. None: no comparison.

    Returns:
        The section of the page, and its findings.
    """
    totals = {split: _per_class(objects.class_ids, len(data.class_names)) for split, objects in data.objects.items()}
    everything = sum(totals.values())
    images = sum(_images_per_class(objects, len(data.class_names)) for objects in data.objects.values())
    order = np.argsort(-everything, kind="stable")
    columns = [Column("Class"), *(Column(split, "number") for split in totals), Column("Images", "number")]
    columns += [Column("Share", "number")]
    rows = [
        (
            data.class_names[k],
            *(number(total[k]) for total in totals.values()),
            number(images[k]),
            share(everything[k], everything.sum()),
        )
        for k in order
    ]
    table = page.table(columns, rows, "Numbers of each class")
    shown = order[:_MOST_BARS]
    bars = [
        (
            data.class_names[k],
            int(everything[k]),
            f"{data.class_names[k]}: {count(int(everything[k]), 'object')} in {count(int(images[k]), 'image')}",
        )
        for k in shown
    ]
    most = data.class_names[order[0]]
    description = f"{most} is the most frequent of {count(len(order), 'class', 'classes')}."
    title = "Objects per class" if len(shown) == len(order) else f"Objects of the {len(shown)} most frequent classes"
    figure = page.figure(charts.bars(bars, "objects", description), title)
    found = _class_findings(data, totals, model)
    return Section("classes", "Classes", [figure, table]), found


def _class_findings(data, totals, model):
    found = []
    training = totals[data.training]
    reference = next(iter(data.datasets.values()))
    for split, dataset in data.datasets.items():
        if dataset.class_names != reference.class_names:
            different = sorted(set(dataset.class_names) ^ set(reference.class_names)) or [
                "the same classes in another order"
            ]
            found.append(
                Finding(
                    "problem",
                    f"{split} has other classes than {data.training}: {_names(different)}.",
                    "Give all splits the same list of classes, or class ids will mean different things.",
                    "classes",
                )
            )
    missing = [name for name, n in zip(data.class_names, training, strict=True) if n == 0]
    if missing:
        found.append(
            Finding(
                "problem",
                f"{_some_classes(missing, training)} no object to train on: {_names(missing)}.",
                "Remove these classes from the list of classes, or add images with such objects.",
                "classes",
            )
        )
    few = [f"{name} ({n})" for name, n in zip(data.class_names, training, strict=True) if 0 < n < FEW_OBJECTS]
    if few:
        found.append(
            Finding(
                "advice",
                f"{_some_classes(few, training)} fewer than {FEW_OBJECTS} objects to train on: {_names(few)}.",
                "Expect a low AP for these classes. Label more images, or merge classes.",
                "classes",
            )
        )
    present = training[training > 0]
    if len(present) > 1 and present.max() > 50 * present.min() and not few:
        found.append(
            Finding(
                "advice",
                f"The most frequent class has {present.max() / present.min():.0f} times the objects of the rarest.",
                "Look at AP per class after training, and label more objects of rare classes.",
                "classes",
            )
        )
    expected = getattr(model, "num_classes", None)
    if expected not in (None, len(data.class_names)):
        found.append(
            Finding(
                "problem",
                f"The recipe is for {count(expected, 'class', 'classes')}, but the data have {len(data.class_names)}.",
                f"Set `NUM_CLASSES={len(data.class_names)}` (Python: `num_classes={len(data.class_names)}`).",
                "classes",
            )
        )
    return found


def problems(data: Splits) -> tuple[Section | None, list[Finding]]:
    """Lists the problems of files and annotations.

    Args:
        data: Splits of the dataset.

    Returns:
        The section of the page (None without problems), and its findings.
    """
    kinds, items, found = [], [], []
    for split, dataset in data.datasets.items():
        for key, n in dataset.counts.items():
            if n and key not in _SIZES:
                kinds.append((_sentence(_PHRASES.get(key, key.replace("_", " "))), split, number(n)))
        folders = {os.path.join(os.path.dirname(record.path), "") for record in dataset.records}
        shared = folders.pop() if len(folders) == 1 else ""  # a folder that all items share would only hide their names
        items += [
            (_without(each.item, shared), each.text, _sentence(_PHRASES[each.kind]), split) for each in dataset.problems
        ]
        if n := dataset.counts["bad_images"]:
            found.append(
                Finding(
                    "problem",
                    f"{count(n, 'image')} of {split} cannot be used and {'is' if n == 1 else 'are'} left out.",
                    "Repair or replace the files in the list.",
                    "problems",
                )
            )
        if n := dataset.counts.get("bad_objects", 0):
            found.append(
                Finding(
                    "problem",
                    f"{count(n, 'annotation')} of {split} cannot be read; training stops at the first unreadable "
                    "annotation.",
                    "Correct the annotations in the list.",
                    "problems",
                )
            )
        lost = sum(dataset.counts.get(key, 0) for key in _LOST)
        if lost:
            found.append(
                Finding(
                    "advice",
                    f"{count(lost, 'object')} of {split} {'has' if lost == 1 else 'have'} no usable box or mask and "
                    f"{'is' if lost == 1 else 'are'} left out.",
                    "Correct these objects in your labelling tool, or remove them.",
                    "problems",
                )
            )
    if not kinds:
        return None, [Finding("good", "All image files and boxes are usable.")]
    parts = [page.table([Column("Problem"), Column("Split"), Column("Number", "number")], kinds, "Problems by kind")]
    if items:
        columns = [Column("Item"), Column("What is wrong"), Column("Kind"), Column("Split")]
        parts.append(page.table(columns, items, "Files and objects"))
    intro = f"Of each kind, up to {MAX_LISTED} files and objects are listed." if items else ""
    return Section("problems", "Problems", parts, intro), found


def samples(
    data: Splits,
    transforms: Sequence[Transform],
    most: int,
    seed: int,
) -> tuple[Section, list[Finding]]:
    """Shows training samples.

    Args:
        data: Splits of the dataset.
        transforms: Training transforms.
        most: Maximum number of samples to show.
        seed: Seed of the choice of images and of the transforms.

    Returns:
        The section of the page, and its findings.
    """
    dataset = data.datasets[data.training]
    shown, seen = [], np.zeros(dataset.num_classes, np.int64)
    drawn = pictures.samples(dataset, transforms, most, seed)
    for sample in progress(drawn, "Drawing samples", min(most, len(dataset))):
        objects = count(len(sample.class_ids), "object")
        image = page.image(pictures.data_uri(sample.picture), f"Image {sample.image_id} with {objects} drawn")
        shown.append((image, f"Image {sample.image_id}, {objects}"))
        seen += np.bincount(sample.class_ids, minlength=dataset.num_classes)
    names = [name for transform in transforms for name in _transform_names(transform)]
    intro = (
        f"The training images as the model sees them, after {', '.join(f'`{name}`' for name in names)}."
        if names
        else f"Images of {data.training} with their annotations. `--config` shows them as a recipe trains on them."
    )
    frequent = [k for k in np.argsort(-seen, kind="stable").tolist() if seen[k]][:_MOST_KEYS]
    entries = [("rgb({},{},{})".format(*visualize.colour(k)), dataset.class_names[k]) for k in frequent]
    parts = [page.legend(entries), page.gallery(shown, _SAMPLES_PER_PAGE)]
    return Section("samples", "Training samples" if names else "Images", parts, intro), []


def _transform_names(transform):
    """Yields the name of a transform, or the names of the transforms that it applies, as a `RandomApply` does."""
    inner = getattr(transform, "transforms", None)
    if inner is None:
        yield getattr(transform, "__name__", type(transform).__name__)
    else:
        for each in inner:
            yield from _transform_names(each)


def _per_class(class_ids, num_classes):
    return np.bincount(class_ids, minlength=num_classes)


def _images_per_class(objects, num_classes):
    pairs = np.unique(np.stack([objects.images, objects.class_ids], 1), axis=0)
    return np.bincount(pairs[:, 1], minlength=num_classes)


def _some_classes(some, of_all):
    return f"{count(len(some), 'class', 'classes')} of {len(of_all)} {'has' if len(some) == 1 else 'have'}"


def _names(names, most=6):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _sentence(words):
    return words[:1].upper() + words[1:]


def _without(text, part):
    return text.replace(part, "") if part else text
