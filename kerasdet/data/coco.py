"""Reads COCO JSON: one file of annotations and a folder of images."""

import os
from collections.abc import Sequence

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
        images: Folder that each `file_name` of the JSON is relative to. By default the first of these folders that
            contains the first image: `images` next to the JSON, and the folder of the JSON itself (Roboflow). For a
            JSON named ``X_NAME.json``, also `images/NAME`, `images` and `NAME` beside the folder of the JSON (COCO,
            CVAT).
        keep_images_without_objects: Whether to keep images that have no object to train on, see `Dataset`.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        masks: Whether to read the segmentations.
        keypoints: Whether to read the keypoints.
        extra_annotation_keys: Keys of further values in the annotations, such as "age", for branches of your own. A
            value is a number, or a list of numbers that has the same length in all annotations. Batches hold the values
            as float32 under the same keys.
        strict: Whether to raise an error instead of repairing or dropping invalid values, such as numbers written as
            strings.
        max_pixels: Images with more pixels than this count as damaged. Default: Pillow's limit, about 179 million.

    Raises:
        FileNotFoundError: If the JSON or the folder does not exist.
        UserError: If the JSON is not in COCO format, or image files cannot be used. The message names the image or
            annotation.
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
        extra_annotation_keys: Sequence[str] = (),
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
            extra_annotation_keys=extra_annotation_keys,
            strict=strict,
            max_pixels=max_pixels,
        )
        self._data = None  # COCO's polygons take gigabytes of memory; `_contents` reads them again

    def _contents(self) -> dict:
        return read_json(self.annotations)


def _find_folder(path, data):
    """Returns the first usual folder that contains the first image; if there is none, the first folder that exists."""
    beside, above = path.parent, path.parent.parent
    part = path.stem.rsplit("_", 1)[-1]
    folders = [beside / "images", beside, above / "images" / part, above / "images", above / part]
    names = [image.get("file_name") for image in data["images"][:1]] if _has_images(data) else []
    for name in names:
        for folder in folders:
            if isinstance(name, str) and any(map(os.path.isfile, (folder / name, folder / name.replace("\\", "/")))):
                return folder
    return next((folder for folder in folders if folder != beside and folder.is_dir()), folders[0])


def _has_images(data):
    return (
        isinstance(data, dict)
        and isinstance(data.get("images"), list)
        and all(isinstance(image, dict) for image in data["images"][:1])
    )
