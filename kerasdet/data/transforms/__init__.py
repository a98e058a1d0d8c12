"""Transforms an image together with its boxes, masks and keypoints.

A transform is a callable ``(example, seed) -> example``. An example is a dict of the tensors of one image with M
objects:

- `image` (H, W, 3), RGB in 0..255, uint8 or float32, and `image_size` (2,) int32, its height and width.
- `boxes` (M, 4) float32 yxyx in pixels, `class_ids` (M,) int32 and `is_crowd` (M,) bool.
- Optionally `masks` (M, S, S) uint8: each object's mask cropped to its box, see `kerasdet.geometry.masks`.
- Optionally `keypoints` (M, J, 3) float32 as (y, x, visibility), and `keypoint_flip` (J,) int32: keypoint j of the
  mirrored image is keypoint ``keypoint_flip[j]`` of the image.
- Optionally `extra_values` (M, V) float32: V numbers for each object, the values of the dataset's
  `extra_annotation_keys`.
- In training, `step`, a scalar int64, which `UntilStep` reads.

Transforms pass other keys through. They drop objects that leave the image. All randomness comes from `seed` (2,) int32,
so an example is reproducible. Each transform is a dataclass. `training_batches` and `train` take a list of transforms,
which they apply in order. Transforms that change only colours are cheapest before the image is enlarged.

Example:
    >>> transforms = [RandomPhotometricDistort(), ScaleJitter((1024, 1024)), RandomFlip()]
"""

from kerasdet.data.transforms.affine import RandomAffine, RandomRotate90
from kerasdet.data.transforms.blur import GaussianBlur
from kerasdet.data.transforms.color import RandomPhotometricDistort
from kerasdet.data.transforms.compose import RandomApply, Transform, UntilStep
from kerasdet.data.transforms.copy_paste import CopyPaste
from kerasdet.data.transforms.crop import RandomIoUCrop, RandomZoomOut, ScaleJitter
from kerasdet.data.transforms.erasing import RandomErasing
from kerasdet.data.transforms.flip import RandomFlip
from kerasdet.data.transforms.function import NumpyTransform
from kerasdet.data.transforms.hsv import RandomHSV
from kerasdet.data.transforms.mixing import MixTransform
from kerasdet.data.transforms.mixup import MixUp
from kerasdet.data.transforms.mosaic import Mosaic
from kerasdet.data.transforms.pad import PadTo
from kerasdet.data.transforms.resize import ResizeShortestEdge

__all__ = [
    "CopyPaste",
    "GaussianBlur",
    "MixTransform",
    "MixUp",
    "Mosaic",
    "NumpyTransform",
    "PadTo",
    "RandomAffine",
    "RandomApply",
    "RandomErasing",
    "RandomFlip",
    "RandomHSV",
    "RandomIoUCrop",
    "RandomPhotometricDistort",
    "RandomRotate90",
    "RandomZoomOut",
    "ResizeShortestEdge",
    "ScaleJitter",
    "Transform",
    "UntilStep",
]
