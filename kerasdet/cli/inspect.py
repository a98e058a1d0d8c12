"""Implements ``kerasdet inspect``."""

import argparse
from pathlib import Path

from kerasdet import config
from kerasdet.data.recognise import open_dataset, recognise
from kerasdet.errors import UserError
from kerasdet.paths import prepare_files
from kerasdet.reports import inspect_dataset
from kerasdet.reports.charts import check_library
from kerasdet.reports.page import check_suffix


def inspect(options: argparse.Namespace) -> None:
    """Writes an HTML page about a dataset and prints its findings.

    Args:
        options: Parsed options with `data`, `config`, `overrides` and `out`.

    Raises:
        UserError: If the dataset or the recipe is invalid, or overrides are given without a recipe.
    """
    check_library()
    check_suffix(options.out)
    prepare_files({"--out": options.out}, {"DATA": options.data})
    splits = _open(options.data)
    source, model, transforms = str(options.data), None, []
    if options.config:
        first = next(iter(splits.values()))
        paths = dict.fromkeys(("TRAIN_ANNOTATIONS", "EVAL_ANNOTATIONS"), str(first.annotations))
        config.load(options.config, options.overrides, {"NUM_CLASSES": first.num_classes, **paths})
        model, transforms = config.model_and_transforms()
        source += f", with the recipe {options.config}"
    elif options.overrides:
        raise UserError("--set changes a recipe, but no recipe is given: pass a recipe with --config.")
    found = inspect_dataset(
        splits,
        options.out,
        title=f"Dataset {Path(options.data).absolute().stem}",
        source=source,
        model=model,
        transforms=transforms,
    )
    for finding in found:
        print(f"{finding.level}: {finding.text} {finding.action}".replace("`", "").rstrip())
    print(f"{options.out}: {Path(options.out).stat().st_size / 1e6:.1f} MB. Open it in a browser.")


def _open(path):
    """Opens all splits of a dataset, the training data first, with masks and keypoints if the splits have any."""
    names = sorted(recognise(path).splits, key=lambda split: split != "train")
    skipping = {"on_bad_image": "skip", "on_bad_object": "skip"}
    return {name: open_dataset(path, name, **skipping, masks=None, keypoints=None) for name in names}
