"""Opens the dataset that the options of a command name."""

import logging
from pathlib import Path

from kerasdet.data import CocoDataset, Dataset, open_dataset
from kerasdet.data.recognise import recognise

_logger = logging.getLogger("kerasdet.data")


def open_data(path: Path, split: str | None = None, images: Path | None = None) -> Dataset:
    """Opens a dataset to evaluate on.

    Args:
        path: A dataset in any format, see `kerasdet.data.open_dataset`.
        split: Name of the split. None: ``val``, otherwise ``test``, otherwise the only split.
        images: Folder of the images if `path` is a file of COCO annotations. None: searched near the file.

    Returns:
        The dataset.

    Raises:
        OSError: If a file does not exist or cannot be read.
        UserError: If the dataset is invalid, or has several splits and neither ``val`` nor ``test``.
    """
    if images:
        return CocoDataset(path, images)
    splits = recognise(path).splits
    if split is None and list(splits) == ["train"]:
        _logger.warning("%s has only the split train: a model that was trained on it detects other images worse.", path)
    return open_dataset(path, split or next((name for name in ("val", "test") if name in splits), None))
