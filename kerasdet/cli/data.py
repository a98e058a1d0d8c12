"""Implements ``kerasdet data check | convert | split``."""

import argparse
from collections import Counter
from collections.abc import Mapping

from kerasdet.data.check import check
from kerasdet.data.convert import convert
from kerasdet.data.split import split
from kerasdet.errors import UserError


def run_data(options: argparse.Namespace) -> None:
    """Runs one of the commands ``check``, ``convert`` and ``split``.

    Args:
        options: Parsed options; `action` is the name of the command.

    Raises:
        UserError: For a mistake of the user, and if ``check`` finds errors in the dataset.
    """
    {"check": _check, "convert": _convert, "split": _split}[options.action](options)


def _check(options):
    report = check(options.data, strict=options.strict)
    print(report)
    if report.errors:
        raise UserError(
            f"{options.data} has {len(report.errors)} errors, which are listed above: correct these "
            f"errors, then check the dataset again."
        )


def _convert(options):
    counts = convert(
        options.source,
        options.target,
        options.to,
        classes=options.classes,
        on_bad_image=options.on_bad_image,
        strict=options.strict,
    )
    _print(counts, options.target)


def _split(options):
    counts = split(
        options.source,
        options.target,
        options.parts,
        to=options.to,
        seed=options.seed,
        classes=options.classes,
        on_bad_image=options.on_bad_image,
        strict=options.strict,
    )
    whole = counts.pop("all")
    _print(counts, options.target)
    if whole["near_duplicates"]:
        print(
            f"{whole['near_duplicates']} images are near duplicates of others; near duplicates stay in the same part."
        )


def _print(counts: Mapping[str, Counter], target):
    lost = counts["lost"]
    for name, values in counts.items():
        if name != "lost":
            parts = [f"{values['images']} images"]
            parts += [
                f"{count} {key}" for key, count in values.items() if key == "boxes" or key.startswith("boxes of ")
            ]
            print(f"{target}: {name}: {', '.join(parts)}")
    if lost:
        print(
            f"The format cannot store {', '.join(f'{count} {name}' for name, count in lost.items())}: these are left "
            "out."
        )
