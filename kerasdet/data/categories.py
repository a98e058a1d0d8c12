"""Reads the categories of COCO files (ids, names and keypoints), and matches classes of datasets to those of models."""

import logging
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from kerasdet.data.values import Changes, as_float, as_int, as_list, is_missing, show
from kerasdet.errors import UserError

# Name of unused classes of a model. torchvision's models have such classes at the ids that COCO skips.
UNUSED = "N/A"

# Line breaks, control characters and unpaired surrogates, which class lists and XML cannot hold
_UNPRINTABLE = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+\s*")

_logger = logging.getLogger("kerasdet.data")


def read_categories(items: Sequence[Mapping], changes: Changes, keypoints: bool) -> dict[int, dict]:
    """Reads the categories of a COCO file.

    Args:
        items: Entries of the file's list `categories`.
        changes: Counts the values that had to be converted or repaired.
        keypoints: Whether to read the names of keypoints.

    Returns:
        A dict from id to category, in ascending order of ids. Each category has an int `id` and a str `name`; with
        keypoints also `keypoints`, a list of names.

    Raises:
        UserError: If a category cannot be read.
    """
    found = {}
    for number, item in enumerate(items):

        def name(number=number):
            return f"categories[{number}]"

        category_id = changes.convert(item.get("id"), as_int, name, "id")
        if category_id is None:
            raise UserError(
                f'{changes.source}: categories[{number}] is {show(dict(item))}; expected an integer "id" and a '
                'string "name". Correct this entry.'
            )
        category = {**item, "id": category_id, "name": _category_name(item.get("name"), category_id, changes)}
        if keypoints:
            category |= _category_keypoints(category, changes)
        first = found.setdefault(category_id, category)
        if first["name"] != category["name"]:
            raise UserError(
                f'{changes.source}: categories "{first["name"]}" and "{category["name"]}" share the id '
                f"{category_id}. Give each category a unique id."
            )
        if first is not category:
            changes.add("repeated_categories", f"category {category_id}", "is in the file twice")
            first.update({key: value for key, value in category.items() if not first.get(key)})
    by_name = {}
    for category in found.values():
        if (first := by_name.setdefault(category["name"], category)) is not category:
            fact = f"is named {first['name']!r}, as is category {first['id']}"
            changes.add("repeated_names", f"category {category['id']}", fact)
    by_key = {}
    for name in by_name:
        if (first := by_key.setdefault(name.casefold(), name)) != name:
            changes.note("similar_names", f"class {name!r}", f"and {first!r} are two classes")
    return dict(sorted(found.items()))


def match_classes(
    names: Sequence[str], model_names: Sequence[str], present: Collection[str], source: str
) -> list[int | None]:
    """Finds the class of a dataset that corresponds to each class of a model.

    Classes match by name. Names that differ only in case also match, with a warning. If dataset and model have the same
    number of classes, and every common name has the same index in both lists, all classes match by index, with a
    warning if names differ: the dataset may have translated names.

    Args:
        names: Names of the dataset's classes, in the order of the class ids.
        model_names: K names of the model's classes. `UNUSED` may occur several times.
        present: Names of the classes that have objects in the dataset.
        source: Path or name of the dataset for error messages.

    Returns:
        K indices into `names`, one for each class of the model; None for a class that the dataset does not have.

    Raises:
        UserError: If the dataset has objects of a class that the model does not have, or the classes must be matched by
            name but two have the same name.
    """
    model_names = list(model_names)
    names, present = _in_case_of(list(names), model_names, present, source)
    same_place = all(names.index(name) == i for i, name in enumerate(model_names) if name in names)
    if len(names) == len(model_names) and same_place:
        if names != model_names:
            _logger.warning(
                "%s and the model have different class names: the classes are matched by their order. "
                "If the order differs, rename the classes of the dataset.",
                source,
            )
        return list(range(len(names)))
    unknown = [name for name in names if name in present and name not in model_names]
    used = [name for name in model_names if name != UNUSED]
    if unknown or len(set(names)) < len(names) or len(set(used)) < len(used):
        if not unknown:
            raise UserError(
                f"{source} or the model has two classes of the same name; expected different names, because the "
                "classes are matched by name. Rename one of the two classes."
            )
        raise UserError(
            f"{source} has objects of {_listed(unknown)}; expected the classes of the model, {_listed(model_names)}. "
            "Rename or remove the other classes, for example with `kerasdet data convert --classes`, or train a model "
            "on all of them."
        )
    _logger.info("%s has other class ids than the model: the classes are matched by name.", source)
    return [names.index(name) if name in names else None for name in model_names]


def _in_case_of(names, model_names, present, source):
    """Returns `names` and `present` with the upper and lower case of the model's names, where the match is unique."""
    own, models = ([name.casefold() for name in each] for each in (names, model_names))
    as_model = {
        name: model_names[models.index(key)]
        for name, key in zip(names, own, strict=True)
        if name not in model_names and own.count(key) == 1 and models.count(key) == 1
    }
    if as_model:
        pairs = ", ".join(f"{name} is read as {other}" for name, other in as_model.items())
        _logger.warning("%s names classes in another case than the model: %s.", source, pairs)
    return [as_model.get(name, name) for name in names], {as_model.get(name, name) for name in present}


def _listed(names):
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _category_name(value, category_id, changes):
    where = f"category {category_id}"
    # macOS may write an accent as a character of its own: NFC gives equal names equal characters
    if isinstance(value, str) and (name := unicodedata.normalize("NFC", _UNPRINTABLE.sub(" ", value).strip())):
        if value != name:
            changes.add("converted_values", where, f'has "name" {show(value)}')
        return name
    if value is None or value == "":
        changes.add("unnamed_categories", where, "has no name")
        return str(category_id)
    if as_float(value) is None:
        raise UserError(f'{changes.source}: {where} has the name {show(value)}; expected a string. Change "name".')
    changes.add("converted_values", where, f'has "name" {show(value)}')
    return str(value)


def _category_keypoints(category, changes):
    """Returns the names of a category's keypoints, as a dict to merge into the category."""
    where, listed = f"category {category['id']}", category.get("keypoints")
    if is_missing(listed):
        return {"keypoints": []}
    names = as_list(listed) if not isinstance(listed, str) else None
    if names is None or not all(isinstance(each, str) or as_int(each) is not None for each in names):
        raise UserError(
            f'{changes.source}: the "keypoints" of {where} are {show(listed)}; expected a list of names. Change '
            '"keypoints".'
        )
    if not all(isinstance(each, str) for each in names):
        changes.add("converted_values", where, f'has "keypoints" {show(names)}')
    return {"keypoints": [str(each) for each in names]}


def read_skeleton(category: Mapping, changes: Changes) -> tuple[tuple[int, int], ...]:
    """Reads the skeleton of a category. COCO counts keypoints from 1; some tools count from 0, which is detected.

    Args:
        category: Category from `read_categories` with `keypoints`, the names of its keypoints.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Pairs of keypoint indices from 0.

    Raises:
        UserError: If the skeleton is not a list of pairs of keypoint numbers.
    """
    value, count = category.get("skeleton"), len(category["keypoints"])
    if is_missing(value):
        return ()
    where, pairs = f"category {category['id']}", _pairs(value)
    first = 0 if pairs and min(map(min, pairs)) == 0 else 1
    if pairs is None or not all(first <= index < count + first for pair in pairs for index in pair):
        raise UserError(
            f'{changes.source}: the "skeleton" of {where} is {show(value)}; expected a list of pairs of numbers from '
            f'1 to {count}. Change "skeleton".'
        )
    if first == 0:
        changes.add("skeletons_from_0", where, f"has the skeleton {show(value)}")
    if not all(type(index) is int for pair in as_list(value) for index in pair):
        changes.add("converted_values", where, f"has the skeleton {show(value)}")
    return tuple((a - first, b - first) for a, b in pairs)


def _pairs(value):
    """Converts a value to a list of pairs of integers; returns None if that is not possible."""
    pairs = [as_list(pair) for pair in as_list(value) or [None]]
    if any(pair is None or len(pair) != 2 or None in map(as_int, pair) for pair in pairs):
        return None
    return [tuple(map(as_int, pair)) for pair in pairs]


def without_groups(categories: Mapping[int, dict], used: Collection[int], changes: Changes) -> list[dict]:
    """Removes the category that Roboflow adds, which has no objects and is only the supercategory of other categories.

    A class named "background" without objects is counted and kept.

    Args:
        categories: Result of `read_categories`.
        used: Ids of the categories that have objects.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        The remaining categories.
    """
    groups = {str(category.get("supercategory")) for category in categories.values()}
    kept = []
    for category in categories.values():
        if category.get("supercategory") == "none" and category["name"] in groups and category["id"] not in used:
            changes.add("grouping_categories", f"category {category['id']}", f"named {category['name']} has no objects")
        else:
            if category["name"].strip("_").lower() == "background" and category["id"] not in used:
                changes.note("background_categories", f"category {category['id']}", f"is named {category['name']!r}")
            kept.append(category)
    return kept
