"""One tiny detector of each kind, with weights that find things in any image."""

import keras
import numpy as np
import tiny

from kerasdet import FPN, FasterRCNN, KeypointRCNN, MaskRCNN, ProposalNetwork, ResNet
from kerasdet.anchors import AnchorGenerator
from kerasdet.layers import MaxPoolTop
from kerasdet.layers.roi_heads import BoxHead
from kerasdet.models import RPN, KeypointBranch, MaskBranch, Preprocessing

NUM_CLASSES = 3


def _two_stage(model_class, **kwargs):
    levels = ("p2", "p3", "p4", "p5", "p6")
    options = {
        "backbone": ResNet(18, stages=(1, 1, 1, 1), width=8, norm="bn", out_features=("c2", "c3", "c4", "c5")),
        "neck": FPN(("c2", "c3", "c4", "c5"), channels=16, top=MaxPoolTop()),
        "rpn": RPN(anchors=AnchorGenerator([[8 * 2**i] for i in range(5)], levels=levels), post_nms_top_k=40),
        "preprocessing": Preprocessing(shortest=64, longest=96),
        **kwargs,
    }
    return model_class(**options)


def _rcnn(model_class, num_classes=NUM_CLASSES, **kwargs):
    return _two_stage(
        model_class, num_classes=num_classes, box_head=BoxHead(fc_channels=32), max_detections=10, **kwargs
    )


MODELS = {
    "RetinaNet": lambda: tiny.talkative(),
    "ProposalNetwork": lambda: _two_stage(ProposalNetwork),
    "FasterRCNN": lambda: _rcnn(FasterRCNN),
    "MaskRCNN": lambda: _rcnn(MaskRCNN, branches=[MaskBranch(NUM_CLASSES, num_convs=1)]),
    "KeypointRCNN": lambda: _rcnn(KeypointRCNN, num_classes=1, branches=[KeypointBranch(4, num_convs=1)]),
}


def make(name, seed=0):
    """A model of `MODELS`; what follows from the weights is the same in every process."""
    keras.utils.set_random_seed(seed)
    model = MODELS[name]()
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        if variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
        if variable.name == "kernel" and name != "RetinaNet":
            gain = {"class_logits": 0.15, "objectness": 0.3, "box_deltas": 0.1, "mask_logits": 2.0}
            spread = [value for part, value in gain.items() if f"/{part}" in variable.path] or [1.5]
            variable.assign(rng.normal(0, spread[0] / np.sqrt(np.prod(variable.shape[:-1])), variable.shape))
    return model
