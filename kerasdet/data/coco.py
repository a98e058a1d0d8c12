"""Reads COCO JSON: one file of annotations and a folder of images."""

import os
from pathlib import Path

from kerasdet.data.annotations import read_json
from kerasdet.data.dataset import Dataset


class CocoDataset(Dataset):
    """Reads a dataset in COCO format: one JSON file and a folder of images.

    Example:
        >>> dataset = CocoDataset("coco/annotations/instances_train2017.json", "coco/train2017", masks=True)
        >>> dataset.class_names[:3]
        ('person', 'bicycle', 'car')

    Args:
        annotations: Path of the JSON file.
        images: Folder that each `file_name` of the JSON is relative to. Default: `images` next to the JSON.
        keep_images_without_objects: As for `Dataset`.
        on_bad_image: As for `Dataset`.
        masks: As for `Dataset`.
        keypoints: As for `Dataset`.
        strict: As for `Dataset`.

    Raises:
        FileNotFoundError: If the JSON or the folder does not exist.
        UserError: If the JSON is not in COCO format, naming the item, or if images are bad.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        keep_images_without_objects: bool = True,
        on_bad_image: str = "error",
        masks: bool = False,
        keypoints: bool = False,
        strict: bool = False,
    ) -> None:
        path = Path(annotations)
        super().__init__(
            read_json(path),
            path.parent / "images" if images is None else images,
            source=path,
            keep_images_without_objects=keep_images_without_objects,
            on_bad_image=on_bad_image,
            masks=masks,
            keypoints=keypoints,
            strict=strict,
        )
        self.ground_truth = path
