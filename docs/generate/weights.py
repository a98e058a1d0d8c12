"""Writes the table of published weights from ``zoo.txt``."""

import parity

from kerasdet.checkpoints import SOURCES
from kerasdet.checkpoints.zoo import LICENSES, ZOO
from kerasdet.inference.preprocessing import Preprocessing

_COLUMNS = ("name", "finds", "box AP", "mask or keypoint AP", "million parameters", "MB", "sides", "parity")


def zoo() -> str:
    """Returns a table of all weights that kerasdet fetches by name, a section for each publisher."""
    parts = []
    for publisher in dict.fromkeys(name.partition("/")[0] for name in ZOO):
        rows = [_row(weights) for name, weights in ZOO.items() if name.startswith(f"{publisher}/")]
        head = [f"## {publisher}\n", f"Licence of the weights: {LICENSES[publisher]}.\n"]
        parts.append("\n".join([*head, f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|", *rows]))
    return "\n\n".join(parts)


def _row(weights):
    rule = Preprocessing(**SOURCES[weights.source].preprocessing)
    sides = f"{rule.shortest}, {rule.longest}" if weights.task != "backbone" else ""
    box, branch = ("" if value is None else f"{value:.1f}" for value in (weights.box_ap, weights.branch_ap))
    parameters = f"{weights.megabytes / 4:.0f}"  # of float32
    compared = parity.parity(weights.source)
    cells = (f"`{weights.name}`", weights.task, box, branch, parameters, weights.megabytes, sides, compared)
    return f"| {' | '.join(map(str, cells))} |"
