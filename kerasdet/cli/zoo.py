"""Implements ``kerasdet zoo``: the published weights as a table and JSON."""

import json

from kerasdet.checkpoints import SOURCES
from kerasdet.checkpoints.cache import is_cached, mirrored
from kerasdet.checkpoints.download import shown
from kerasdet.checkpoints.zoo import ZOO, Weights
from kerasdet.data.categories import UNUSED
from kerasdet.errors import UserError
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.paths import cache_home

_HEADER = ("name", "task", "classes", "box AP", "branch AP", "MB", "licence", "input", "cached")
_TO_THE_RIGHT = ("classes", "box AP", "branch AP", "MB")


def list_zoo(text: str, *, as_json: bool) -> None:
    """Prints the published weights that kerasdet can download.

    Args:
        text: Only names that contain this string are listed, regardless of upper and lower case.
        as_json: Whether to print one JSON array instead of a table.

    Raises:
        UserError: If no name contains `text`.
    """
    entries = [_entry(weights) for weights in ZOO.values() if text.lower() in weights.name.lower()]
    if not entries:
        raise UserError(f"No name in the zoo contains {text!r}: run `kerasdet zoo` to list all {len(ZOO)} names.")
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    rows = [_HEADER, *(_row(entry) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(_HEADER, row, widths, strict=True)
        print(
            "  ".join(
                f"{x:>{width}}" if name in _TO_THE_RIGHT else f"{x:<{width}}" for name, x, width in cells
            ).rstrip()
        )
    print(
        "\nAP in percent on COCO val2017 as published, of boxes and of masks or keypoints. The cache is "
        f"{cache_home()}.\n"
        "Licences are those of the weights; COCO and ImageNet, which they were trained on, have terms of their own."
    )


def _entry(weights: Weights) -> dict:
    """Returns the properties of published weights as values for JSON."""
    rule = Preprocessing(**SOURCES[weights.source].preprocessing)
    digest = weights.digest
    return {
        "name": weights.name,
        "source": weights.source,
        "task": weights.task,
        "classes": sum(name != UNUSED for name in weights.class_names),
        "box_ap": weights.box_ap,
        "branch_ap": weights.branch_ap,
        "megabytes": weights.megabytes,
        "license": weights.license,
        "input": {
            "shortest": rule.shortest,
            "longest": rule.longest,
            "channel_order": rule.channel_order,
            "kernel": rule.kernel,
            "stretched": rule.rounding == "square",
            "letterbox": rule.letterbox_value is not None,
        },
        "url": shown(mirrored(weights.url)),
        "hash": None if digest is None else {"algorithm": digest[0], "digits": digest[1]},
        "cached": is_cached(weights),
    }


def _row(entry):
    rule = entry["input"]
    bound = "letterbox" if rule["letterbox"] else "at most"
    size = f"{rule['shortest']}, {bound} {rule['longest']}, " if entry["task"] != "backbone" else ""
    if rule["stretched"]:
        size = f"{rule['shortest']} x {rule['shortest']}, "
    return (
        entry["name"],
        entry["task"],
        str(entry["classes"] or "-"),
        *("-" if entry[name] is None else f"{entry[name]:.1f}" for name in ("box_ap", "branch_ap")),
        str(entry["megabytes"]),
        entry["license"],
        f"{size}{rule['channel_order'].upper()}" + (f", {rule['kernel']}" if size else ""),
        "yes" if entry["cached"] else "no",
    )
