"""Joins the splits of a dataset: one list of classes, and the objects of each split."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from kerasdet.data.dataset import Dataset
from kerasdet.reports.objects import Objects, collect, join


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """Holds the splits of a dataset, the training data first.

    Args:
        datasets: Datasets by split name.
        objects: Objects by split name, in pixels of the image files; class ids are indices into `class_names`.
        class_names: Names of the classes of all splits.
    """

    datasets: Mapping[str, Dataset]
    objects: Mapping[str, Objects]
    class_names: tuple[str, ...]

    @property
    def training(self) -> str:
        """Name of the first split."""
        return next(iter(self.datasets))

    @property
    def all_objects(self) -> Objects:
        """The objects of all splits."""
        return join(list(self.objects.values()))


def join_splits(datasets: Mapping[str, Dataset]) -> Splits:
    """Collects the objects of several datasets, with the same class ids in all of them.

    Args:
        datasets: Datasets by split name, at least one.

    Returns:
        The joined splits.
    """
    names = tuple(dict.fromkeys(name for dataset in datasets.values() for name in dataset.class_names))
    objects = {}
    for split, dataset in datasets.items():
        collected = collect(dataset.records)
        ids = np.array([names.index(name) for name in dataset.class_names], np.int32)
        objects[split] = dataclasses.replace(collected, class_ids=ids[collected.class_ids])
    return Splits(dict(datasets), objects, names)
