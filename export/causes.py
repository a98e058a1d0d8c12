"""Finds the usual mistakes of a new export format: other coordinates or class ids than `detect_batch` returns."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

_MOST = 0.9  # fraction of the model's detections that have a partner once a mistake is undone
_LARGEST_FRACTION = 2.0  # fractions of the image exceed 1 only where a box exceeds the image

Side = Mapping[str, np.ndarray]  # `boxes` (N, 4), `scores` (N,) and `class_ids` (N,) of one image


def likely_cause(images: Sequence[tuple[Side, Side]], pair: Callable[[Side, Side], np.ndarray]) -> str | None:
    """Finds a mistake whose correction would give most of the model's detections a partner.

    Args:
        images: The model's and the export's detections of each image without padding: dicts of `boxes` (N, 4) yxyx,
            `scores` (N,) and `class_ids` (N,).
        pair: Function of the model's and the export's detections of an image. It returns the indices of both sides, (P,
            2), for P pairs.

    Returns:
        A sentence that states the mistake and the expectation. None if no usual mistake explains the differences, or if
        most detections have a partner already.
    """
    total = sum(len(ours["scores"]) for ours, _ in images)

    def explains(correct):
        return sum(len(pair(ours, {**theirs, **correct(ours, theirs)})) for ours, theirs in images) >= _MOST * total

    if not total or explains(lambda ours, theirs: {}):
        return None
    return next((sentence for sentence, correct in _MISTAKES if explains(correct)), None)


def _as_pixels(ours, theirs):
    """Scales boxes like `_scaled` if they are fractions of the image, otherwise changes nothing."""
    return _scaled(ours, theirs) if theirs["boxes"].max(initial=0) <= _LARGEST_FRACTION else {}


def _scaled(ours, theirs):
    """Scales y and x by factors at which detections with the same position in both lists agree."""
    count = min(len(ours["boxes"]), len(theirs["boxes"]))
    mine, other = (np.asarray(side["boxes"][:count, 2:], float) for side in (ours, theirs))  # bottom and right
    factors = np.median(mine / np.maximum(other, 1e-9), 0) if count else np.ones(2)  # (2,)
    return {"boxes": theirs["boxes"] * np.tile(factors, 2)}


_MISTAKES = (
    (
        "Its boxes are (x1, y1, x2, y2): expected (y1, x1, y2, x2).",
        lambda ours, theirs: {"boxes": theirs["boxes"][:, [1, 0, 3, 2]]},
    ),
    (
        "Its class ids are 1 too high: expected 0 for the first class.",
        lambda ours, theirs: {"class_ids": theirs["class_ids"] - 1},
    ),
    (
        "Its class ids are 1 too low: expected 0 for the first class.",
        lambda ours, theirs: {"class_ids": theirs["class_ids"] + 1},
    ),
    ("Its boxes are fractions of the image: expected pixels of the original image.", _as_pixels),
    (
        "Its boxes are in pixels of an image of another size: expected pixels of the original image, not of the "
        "network's input.",
        _scaled,
    ),
)
