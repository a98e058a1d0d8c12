"""Shows how far a long loop is."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Shows a progress bar on standard error while items are taken, if that is a terminal and it takes a second.

    Args:
        items: Iterable.
        label: Text before the bar.
        total: Number of items; None for `len(items)`, or unknown.
    """
    return tqdm(items, label, total, leave=False, disable=None, delay=1)
