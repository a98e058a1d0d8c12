"""Tiny models for the tests of the detector contract; a new detector adds a line to `MODELS`."""

import numpy as np
import tiny

from kerasdet import (
    FCOS,
    FPN,
    SSD,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    ProposalNetwork,
    ResNet,
    RetinaNet,
    RTMDet,
    RTMDetIns,
)
from kerasdet.geometry.anchors import AnchorGenerator, octave_sizes
from kerasdet.geometry.default_boxes import DefaultBoxes
from kerasdet.geometry.sampling import BalancedSampler
from kerasdet.layers import (
    BoxHead,
    ConvTop,
    CSPNeXt,
    CSPNeXtPAFPN,
    FCOSHead,
    MaxPoolTop,
    MobileNetV3,
    RetinaNetHead,
    RTMDetHead,
    SSDHead,
    SSDNeck,
)
from kerasdet.models import (
    RPN,
    Centerness,
    DynamicMaskBranch,
    KeypointBranch,
    MaskBranch,
    Preprocessing,
    ProposalSelection,
    RoIHeads,
)
from kerasdet.models.common import LossNormalizer
from kerasdet.models.postprocess import Postprocessing

NUM_CLASSES = 3
NUM_KEYPOINTS = 2
OBJECT_KEYS = ("boxes", "class_ids", "is_crowd", "masks", "keypoints")


def parts(norm="bn_inference"):
    """Makes a backbone and a neck of a few thousand weights, and preprocessing for small images."""
    return {
        "backbone": ResNet(18, stages=(1, 1, 1, 1), width=16, norm=norm),
        "neck": FPN(channels=32, top=ConvTop("c5", 32)),
        "preprocessing": Preprocessing(shortest=96, longest=160, size_divisor=32),
    }


def retinanet(norm="bn_inference", score_threshold=0.05, max_detections=20, **kwargs):
    own = {
        "head": RetinaNetHead(num_convs=1),
        "anchors": AnchorGenerator(octave_sizes(16, 2)),
        "postprocessing": Postprocessing(score_threshold, max_detections=max_detections),
    }
    return RetinaNet(NUM_CLASSES, **{**parts(norm), **own, **kwargs})


def fcos(norm="bn_inference", score_threshold=0.05, max_detections=20, **kwargs):
    own = {
        "neck": FPN(channels=64, top=ConvTop("p5", 64)),  # two channels per group, because p7 of these images is 1x1
        "head": FCOSHead(num_convs=1),
        "normalizer": LossNormalizer("batch"),
        "centerness": Centerness(loss_weight=0.5),  # its targets are soft, so the loss cannot fall below 0.64
        "postprocessing": Postprocessing(score_threshold, nms_threshold=0.6, max_detections=max_detections),
    }
    return FCOS(NUM_CLASSES, **{**parts(norm), **own, **kwargs})


def ssd(norm="bn_inference", score_threshold=0.05, max_detections=20, **kwargs):
    """Makes an SSDLite. It is not in `MODELS`: its default boxes depend on the padded size, so it takes no padding."""
    own = {
        "backbone": tiny.PlainBackbone(),
        "neck": SSDNeck(("c4", "c5"), (32, 16), separable=True, norm=norm, norm_momentum=0.9),
        "anchors": DefaultBoxes((0.2, 0.4, 0.6, 0.8, 1.0), ((2,),) * 4, ("p4", "p5", "p6", "p7"), None),
        "head": SSDHead(separable=True, norm=norm, norm_momentum=0.9),
        "postprocessing": Postprocessing(
            score_threshold, max_detections=max_detections, clip_before_nms=True, empty_boxes="keep"
        ),
        "preprocessing": Preprocessing(shortest=96, longest=128, rounding="square", kernel="bilinear"),
    }
    return SSD(NUM_CLASSES, **{**own, **kwargs})


def ssdlite(norm="bn_inference", **kwargs):
    """Makes the SSDLite of torchvision with a quarter of its channels."""
    features = ("c4_expanded", "c5")
    own = {
        "backbone": MobileNetV3(
            width_factor=0.25, reduced_tail=True, out_features=features, norm=norm, norm_momentum=0.9
        ),
        "neck": SSDNeck(features, (32, 16), separable=True, norm=norm, norm_momentum=0.9),
    }
    return ssd(norm, **{**own, **kwargs})


def rtmdet(norm="bn_inference", score_threshold=0.05, max_detections=20, model_class=RTMDet, **kwargs):
    separate = model_class is RTMDet
    own = {
        "backbone": CSPNeXt(0.167, 0.25, norm=norm),
        "neck": CSPNeXtPAFPN(channels=32, num_blocks=1, norm=norm),
        # boxes start near 3 strides and scores at 0.3, so that few steps suffice
        "head": RTMDetHead(norm=norm, box_tower=separate, box_bias=1.0 if separate else 2.7, prior_probability=0.3),
        "postprocessing": Postprocessing(
            score_threshold, 1000, 0.65, max_detections, clip_before_nms=True, empty_boxes="drop_before_nms"
        ),
    }
    return model_class(NUM_CLASSES, **{**parts(norm), **own, **kwargs})


def rtmdet_ins(norm="bn_inference", **kwargs):
    return rtmdet(norm, model_class=RTMDetIns, **{"branches": [DynamicMaskBranch(norm=norm)], **kwargs})


def rpn(min_size=0.0, **kwargs):
    """Makes the RPN of `rcnn_parts`, with few proposals."""
    own = {
        "anchors": AnchorGenerator([[16], [24], [32], [48], [64]], levels=("p2", "p3", "p4", "p5", "p6")),
        "sampler": BalancedSampler(64, 0.5),
        "proposals": ProposalSelection(60, 30, 100, 40, nms_threshold=0.5, min_size=min_size),
    }
    return RPN(**{**own, **kwargs})


def rcnn_parts(norm="bn_inference"):
    """Makes `parts` with a p2 level, and an RPN."""
    features = ("c2", "c3", "c4", "c5")
    return {
        **parts(norm),
        "backbone": ResNet(18, stages=(1, 1, 1, 1), width=16, out_features=features, norm=norm),
        "neck": FPN(features, 32, top=MaxPoolTop()),
        "rpn": rpn(),
    }


def proposal_network(norm="bn_inference", **kwargs):
    return ProposalNetwork(**{**rcnn_parts(norm), **kwargs})


def roi_heads(branches=(), postprocessing=None, **kwargs):
    """Makes `RoIHeads` with a narrow head and few regions."""
    own = {
        "box_head": BoxHead(fc_channels=64),
        "sampler": BalancedSampler(32, 0.5),
        "postprocessing": Postprocessing(**{"nms_threshold": 0.2, "max_detections": 20, **(postprocessing or {})}),
    }
    return RoIHeads(branches=branches, **{**own, **kwargs})


def rcnn(model_class, branches, norm, score_threshold=0.05, max_detections=20, **kwargs):
    if "roi_heads" not in kwargs:
        postprocessing = {"score_threshold": score_threshold, "max_detections": max_detections}
        kwargs["roi_heads"] = roi_heads(branches, postprocessing)
    return model_class(NUM_CLASSES, **{**rcnn_parts(norm), **kwargs})


def mask_branch(**kwargs):
    return MaskBranch(**{"pool_size": 7, "num_convs": 1, "channels": 32, **kwargs})


def keypoint_branch(**kwargs):
    return KeypointBranch(NUM_KEYPOINTS, **{"pool_size": 7, "num_convs": 1, "channels": 32, **kwargs})


def faster_rcnn(norm="bn_inference", **kwargs):
    return rcnn(FasterRCNN, [], norm, **kwargs)


def mask_rcnn(norm="bn_inference", **kwargs):
    return rcnn(MaskRCNN, [mask_branch()], norm, **kwargs)


def keypoint_rcnn(norm="bn_inference", **kwargs):
    return rcnn(KeypointRCNN, [keypoint_branch()], norm, **kwargs)


def mask_keypoint_rcnn(norm="bn_inference", **kwargs):
    """Makes a model with both branches, the second on the features of the box head."""
    return rcnn(MaskRCNN, [mask_branch(), keypoint_branch(pool_size=None)], norm, **kwargs)


MODELS = {
    "retinanet": retinanet,
    "fcos": fcos,
    "rtmdet": rtmdet,
    "rtmdet_ins": rtmdet_ins,
    "proposal_network": proposal_network,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "keypoint_rcnn": keypoint_rcnn,
    "mask_keypoint_rcnn": mask_keypoint_rcnn,
}


def on_plain_features(name, norm="bn_inference", **kwargs):
    """Makes a model of `MODELS` on the smallest backbone, for tests of what comes after its features."""
    coarse = ("c3", "c4", "c5")
    features = coarse if name in ("retinanet", "fcos", "rtmdet", "rtmdet_ins") else ("c2", *coarse)
    return MODELS[name](norm, **{"backbone": tiny.PlainBackbone(8, features, norm), **kwargs})


# Only the slow suite runs these: `rtmdet_ins` and `mask_keypoint_rcnn` have all their parts.
SLOW = ("rtmdet", "proposal_network", "faster_rcnn", "mask_rcnn", "keypoint_rcnn")
# Together these have all parts of all models, for tests that are too expensive for each model.
COVERING = ("retinanet", "fcos", "rtmdet_ins", "proposal_network", "mask_keypoint_rcnn")


def randomized(model, seed=0):
    """Assigns weights with which the model detects objects of all classes everywhere; returns the model."""
    rng = np.random.default_rng(seed)
    has_silu = "rtmdet" in type(model).__name__.lower()  # it halves small numbers, unless norms lift them
    gains = {
        **{f"class_logits/p{level}": 4.0 for level in (3, 4, 5) if has_silu},
        "box_predictor/class_logits": 0.03,
        "box_predictor/box_deltas": 0.02,
        "class_logits": 0.05,
        "box_deltas": 0.1,
        "keypoint_branch/head/deconv": 0.1,
    }
    for weight in model.weights:
        if weight.name == "kernel":
            gain = next(
                (gain for layer, gain in gains.items() if f"/{layer}/" in f"/{weight.path}"), 0.6 if has_silu else 1.0
            )
            fan_in = np.prod(weight.shape[:2] if "depthwise" in weight.path else weight.shape[:-1])
            value = rng.normal(0, gain * (2 / fan_in) ** 0.5, weight.shape)
            if has_silu and "class_logits" in weight.path:  # a SiLU's mean would give one class all places
                value -= value.mean(2, keepdims=True)
            weight.assign(value)
        elif weight.name == "beta" and has_silu:
            weight.assign(np.ones(weight.shape))
        elif "box_distances" in weight.path:  # boxes of a few strides
            weight.assign(np.full(weight.shape, 2.0))
    return model


def batch(seed=0, size=(96, 128), image_size=((96, 100), (70, 128))):
    """Makes a batch of two padded images: one with three objects, one with an object and a crowd."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for index, (height, width) in enumerate(image_size):
        image[index, height:] = image[index, :, width:] = 0
    boxes = np.float32(
        [
            [[10, 10, 50, 40], [30, 50, 60, 95], [60, 20, 90, 60]],
            [[5, 5, 40, 60], [10, 60, 60, 120], [0, 0, 0, 0]],
        ]
    )
    class_ids = np.int32([[0, 2, 1], [1, 0, -1]])
    return {
        "image": image,
        "image_size": np.int32(image_size),
        "boxes": boxes,
        "class_ids": class_ids,
        "is_crowd": np.array([[False, False, False], [False, True, False]]),
        "masks": _ellipses(class_ids),
        "keypoints": _keypoints(boxes, class_ids),
        "image_id": np.int64([17, 4242]),
        "original_size": np.int32(image_size),
    }


def _ellipses(class_ids, size=28):
    """Makes crops (B, M, S, S): an ellipse that fills the box, without a part that depends on the class."""
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size * 2 - 1] * 2, indexing="ij")
    missing = [y < -0.3, x < -0.3, x > 0.3, np.full_like(y, True, bool)]
    return np.array([[255 * ((y**2 + x**2 < 1) & ~missing[k]) for k in row] for row in class_ids], np.uint8)


def _keypoints(boxes, class_ids):
    """Makes two keypoints per object: one in the middle, and one at the upper left that class 2 lacks."""
    low, size = boxes[..., None, :2], boxes[..., None, 2:] - boxes[..., None, :2]
    places = low + np.float32([[0.5, 0.5], [0.25, 0.125]]) * size  # (B, M, J, 2)
    visibility = np.stack([np.where(class_ids >= 0, 2, 0), np.where(np.isin(class_ids, (0, 1)), 1, 0)], -1)[..., None]
    return np.float32(np.concatenate([np.where(visibility > 0, places, 0), visibility], -1))


def without_objects(data):
    """Returns the same images with only padding in their ground truth."""
    padding = {"class_ids": -1}
    return {**data, **{name: np.full_like(data[name], padding.get(name, 0)) for name in OBJECT_KEYS}}
