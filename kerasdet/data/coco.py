"""Reads COCO JSON: one file of annotations and a folder of images."""

import os

from kerasdet.data.annotations import read_json
from kerasdet.data.dataset import Dataset
from kerasdet.data.images import MAX_PIXELS
from kerasdet.paths import expand


class CocoDataset(Dataset):
    """Reads a dataset in COCO format: one JSON file and a folder of images.

    Example:
        >>> dataset = CocoDataset("mine/train.json", "mine/images", masks=True)
        >>> dataset.class_names[:3]
        ('disk', 'square', 'triangle')

    Args:
        annotations: Path of the JSON file.
        images: Folder that each `file_name` of the JSON is relative to. Default: the first of these that has the first
            image: `images` next to the JSON; the folder of the JSON, as in Roboflow's exports; and, as in CVAT's and
            COCO's own folders, beside the folder of ``X_NAME.json``: `images/NAME`, `images` and `NAME`.
        keep_images_without_objects: As for `Dataset`.
        on_bad_image: As for `Dataset`.
        masks: As for `Dataset`.
        keypoints: As for `Dataset`.
        strict: As for `Dataset`.
        max_pixels: As for `Dataset`.

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
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        path = expand(annotations, "annotations")
        data = read_json(path)
        super().__init__(
            data,
            _find_folder(path, data) if images is None else expand(images, "images"),
            source=path,
            keep_images_without_objects=keep_images_without_objects,
            on_bad_image=on_bad_image,
            masks=masks,
            keypoints=keypoints,
            strict=strict,
            max_pixels=max_pixels,
        )
        self._data = None  # the polygons of COCO fill gigabytes

    def _contents(self) -> dict:
        return read_json(self.annotations)


def _find_folder(path, data):
    """Returns the folder that has the first image, among those where tools put images: beside the JSON or above it."""
    beside, above = path.parent, path.parent.parent
    part = path.stem.rsplit("_", 1)[-1]
    folders = [beside / "images", beside, above / "images" / part, above / "images", above / part]
    names = [image.get("file_name") for image in data["images"][:1]] if _has_images(data) else []
    for name in names:
        for folder in folders:
            if isinstance(name, str) and ((folder / name).is_file() or (folder / name.replace("\\", "/")).is_file()):
                return folder
    return next((folder for folder in folders if folder != beside and folder.is_dir()), folders[0])


def _has_images(data):
    return (
        isinstance(data, dict)
        and isinstance(data.get("images"), list)
        and all(isinstance(image, dict) for image in data["images"][:1])
    )
