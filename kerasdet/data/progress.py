"""Shows the progress of a long loop."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Shows a progress bar on standard error while a loop runs over items.

    The bar appears only if standard error is a terminal and the loop takes longer than a second.

    Args:
        items: Items to loop over.
        label: Label before the bar.
        total: Number of items. None: `len(items)`, if `items` has a length.

    Returns:
        An iterable of the same items.
    """
    return tqdm(items, label, total, leave=False, disable=None, delay=1)
