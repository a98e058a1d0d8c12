"""The tiny models that all tests of the detector contract run on: a new detector adds a line to `MODELS`."""

import numpy as np

from kerasdet import FCOS, FPN, ResNet, RetinaNet
from kerasdet.anchors import AnchorGenerator, octave_sizes
from kerasdet.layers import ConvTop
from kerasdet.models import Preprocessing

NUM_CLASSES = 3


def parts(norm="bn_inference"):
    """A backbone and a neck of a few thousand weights, and images that stay small."""
    return {
        "backbone": ResNet(18, stages=(1, 1, 1, 1), width=16, norm=norm),
        "neck": FPN(channels=32, top=ConvTop("c5", 32)),
        "preprocessing": Preprocessing(shortest=96, longest=160, size_divisor=32),
    }


def retinanet(norm="bn_inference", **kwargs):
    own = {"head_convs": 1, "anchors": AnchorGenerator(octave_sizes(16, 2)), "max_detections": 20}
    return RetinaNet(NUM_CLASSES, **{**parts(norm), **own, **kwargs})


def fcos(norm="bn_inference", **kwargs):
    own = {
        "neck": FPN(channels=64, top=ConvTop("p5", 64)),  # two channels to a group: the p7 of these images is 1x1
        "head_convs": 1,
        "normalizer": "batch",
        "centerness_loss_weight": 0.5,  # its targets are soft: 0.64 is the least it can be
        "score_threshold": 0.05,
        "max_detections": 20,
    }
    return FCOS(NUM_CLASSES, **{**parts(norm), **own, **kwargs})


MODELS = {"retinanet": retinanet, "fcos": fcos}


def randomized(model, seed=0):
    """Gives a model weights that make it find things of all classes everywhere."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name == "kernel":
            gain = {"class_logits": 0.05, "box_deltas": 0.1}.get(weight.path.split("/")[-3], 1.0)
            weight.assign(rng.normal(0, gain * (2 / np.prod(weight.shape[:-1])) ** 0.5, weight.shape))
        elif "box_distances" in weight.path:  # boxes some strides wide
            weight.assign(np.full(weight.shape, 2.0))
    return model


def batch(seed=0, size=(96, 128), image_size=((96, 100), (70, 128))):
    """Two padded images with three objects, one object and a crowd."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for index, (height, width) in enumerate(image_size):
        image[index, height:] = image[index, :, width:] = 0
    return {
        "image": image,
        "image_size": np.int32(image_size),
        "boxes": np.float32(
            [
                [[10, 10, 50, 40], [30, 50, 60, 95], [60, 20, 90, 60]],
                [[5, 5, 40, 60], [10, 60, 60, 120], [0, 0, 0, 0]],
            ]
        ),
        "class_ids": np.int32([[0, 2, 1], [1, 0, -1]]),
        "is_crowd": np.array([[False, False, False], [False, True, False]]),
        "image_id": np.int64([17, 4242]),
        "original_size": np.int32(image_size),
    }


def without_objects(data):
    """The same images with nothing but padding in their ground truth."""
    return {
        **data,
        "boxes": np.zeros_like(data["boxes"]),
        "class_ids": np.full_like(data["class_ids"], -1),
        "is_crowd": np.zeros_like(data["is_crowd"]),
    }
