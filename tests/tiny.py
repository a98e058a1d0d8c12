"""The smallest detector and data set that go the whole way."""

import keras
import numpy as np

from kerasdet import FPN, ResNet, RetinaNet
from kerasdet.data import CocoDataset, shapes
from kerasdet.layers import ConvTop
from kerasdet.models import Preprocessing

CLASS_NAMES = ("disk", "square", "triangle", "star", "arrow")


def backbone(**kwargs):
    return ResNet(**{"depth": 18, "stages": (1, 1, 1, 1), "width": 8, "norm": "bn", **kwargs})


def detector(num_classes=5, seed=0, model_class=RetinaNet, **kwargs):
    """A RetinaNet of 100,000 parameters for images of 64x64, its weights by `seed`."""
    keras.utils.set_random_seed(seed)
    return model_class(
        num_classes,
        **{
            "backbone": backbone(),
            "neck": FPN(channels=16, top=ConvTop(channels=16)),
            "preprocessing": Preprocessing(shortest=64, longest=96),
            "head_convs": 1,
            **kwargs,
        },
    )


def talkative(seed=0, **kwargs):
    """A `detector` with 20 detections in any image, their scores far apart."""
    model = detector(seed=seed, **{"max_detections": 20, "class_names": CLASS_NAMES, **kwargs})
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "class_logits" in variable.path and variable.name == "kernel":
            variable.assign(rng.normal(0, 2.5, variable.shape))
        if "box_deltas" in variable.path and variable.name == "kernel":
            variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


def shapes_data(folder, num_images=4, seed=0, image_size=(64, 64)):
    return CocoDataset(shapes.write(folder, num_images=num_images, seed=seed, image_size=image_size))


def images(seed=0, sizes=((64, 64), (50, 90), (120, 70))):
    """Smooth random pictures, uint8."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        pictures.append(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
    return pictures


def weights(model):
    return [np.array(variable) for variable in model.variables]
