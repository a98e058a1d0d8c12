"""Makes the `Detections` of one image for the tests of what becomes of them."""

import numpy as np

from kerasdet.inference import Detections

SIZE = (60, 80)
NAMES = ("cat", "dog")


def detections(**changes):
    """A cat, a dog and a cat with masks and keypoints, in an image of 60x80."""
    rng = np.random.default_rng(0)
    values = {
        "boxes": [[10, 20, 30, 60.5], [0, 0, 20, 20], [40.25, 5, 60, 80]],
        "scores": [0.9, 0.5, 0.25],
        "class_ids": [0, 1, 0],
        "image_size": SIZE,
        "class_names": NAMES,
        "mask_probs": rng.random((3, 7, 7), np.float32),
        "keypoints": rng.uniform(0, 60, (3, 2, 3)).astype(np.float32),
        "mask_convention": "detectron2",
        "skeleton": ((0, 1),),
    }
    return Detections(**{**values, **changes})
