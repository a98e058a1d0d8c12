"""Every class with a config keeps every constructor argument in it."""

import importlib
import inspect
import json
import pkgutil

import keras
import pytest

import kerasdet
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder, DistanceCoder
from kerasdet.geometry.default_boxes import DefaultBoxes, SSDMatcher
from kerasdet.geometry.dynamic_matching import DynamicSoftLabelAssigner
from kerasdet.geometry.matching import FCOSMatcher, IoUMatcher
from kerasdet.geometry.sampling import BalancedSampler
from kerasdet.keras_utils import ConfigFromInit, constructor_arguments
from kerasdet.layers import (
    FPN,
    VGG,
    BatchNorm,
    BoxHead,
    BoxPredictor,
    ConvTop,
    CSPNeXt,
    CSPNeXtPAFPN,
    FCOSHead,
    GroupNormalization,
    KeypointHead,
    MaskHead,
    MaxPoolTop,
    MobileNetV3,
    ResNet,
    RetinaNetHead,
    RoIPooler,
    RTMDetHead,
    SSDHead,
    SSDNeck,
)
from kerasdet.layers.keras_backbones import KerasApplication, PyramidBackbone
from kerasdet.losses import FocalLoss, GIoULoss, IoULoss, QualityFocalLoss, SmoothL1Loss
from kerasdet.models import (
    FCOS,
    RPN,
    SSD,
    Centerness,
    FasterRCNN,
    KeypointBranch,
    KeypointRCNN,
    MaskBranch,
    MaskRCNN,
    Preprocessing,
    ProposalNetwork,
    ProposalSelection,
    RetinaNet,
    RoIHeads,
    RTMDet,
    RTMDetIns,
)
from kerasdet.models.common import LossNormalizer
from kerasdet.models.dynamic_mask_branch import DynamicMaskBranch
from kerasdet.models.postprocess import Postprocessing

BACKBONE = {
    "depth": 18,
    "stages": (1, 1, 1),
    "block": "bottleneck",
    "width": 4,
    "out_features": ("c3", "c4"),
    "stride_in_1x1": True,
    "dilate_last": True,
    "groups": 2,
    "deform_stages": ("c4",),
    "deform_version": 2,
    "deform_groups": 2,
    "norm": "bn_inference",
    "norm_epsilon": 1e-3,
    "freeze_at": 1,
}


def rtmdet_arguments(branches):
    """All arguments of `RTMDet`."""
    return {
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "backbone": CSPNeXt(**{**ARGUMENTS[CSPNeXt](), "out_features": ("c3", "c4", "c5")}),
        "neck": CSPNeXtPAFPN(channels=8, num_blocks=1),
        "anchors": AnchorGenerator([[8.0], [16.0], [32.0]], aspect_ratios=[1.0], levels=("p3", "p4", "p5"), offset=0.5),
        "coder": DistanceCoder(normalize=True),
        "head": RTMDetHead(num_convs=1),
        "matcher": DynamicSoftLabelAssigner(**ARGUMENTS[DynamicSoftLabelAssigner]()),
        "class_loss": QualityFocalLoss(weight=2.0),
        "box_loss": GIoULoss(weight=3.0),
        "branches": branches,
        "postprocessing": Postprocessing(0.2),
        "preprocessing": Preprocessing(letterbox_value=0.0),
    }


# All arguments of each class, none at its default.
ARGUMENTS = {
    AnchorGenerator: lambda: {
        "sizes": ((16.0, 20.0), (32.0, 40.0)),
        "aspect_ratios": ((1.0, 3.0), (0.5, 1.0)),
        "levels": ("p3", "p4"),
        "offset": 0.5,
        "round_corners": True,
        "ratios_first": True,
        "strides_from_image": True,
    },
    DeltaCoder: lambda: {"weights": (10.0, 10.0, 5.0, 5.0), "max_log_scale": 2.0, "min_log_scale": -2.0},
    DistanceCoder: lambda: {"normalize": False, "activation": "exp"},
    IoUMatcher: lambda: {
        "foreground_iou": 0.6,
        "background_iou": 0.3,
        "allow_low_quality_matches": False,
        "ignore_crowd_iof": 0.5,
        "low_quality_owner": "forcing",
        "min_low_quality_iou": 0.3,
        "padded_size_divisor": 32,
    },
    FCOSMatcher: lambda: {
        "regress_ranges": ((0, 32), (32, 1e8)),
        "center_radius": None,
        "convention": "mmdet",
        "ignore_crowd_iof": 0.5,
    },
    BalancedSampler: lambda: {"samples_per_image": 16, "positive_fraction": 0.25},
    QualityFocalLoss: lambda: {"beta": 1.0, "weight": 2.0},
    DynamicSoftLabelAssigner: lambda: {"center_radius": 2.0, "top_k": 5, "iou_weight": 2.0, "padded_size_divisor": 32},
    FocalLoss: lambda: {"alpha": 0.5, "gamma": 1.0, "weight": 2.0},
    SmoothL1Loss: lambda: {"beta": 0.1, "weight": 3.0},
    IoULoss: lambda: {"linear": True, "weight": 3.0},
    GIoULoss: lambda: {"weight": 3.0},
    LossNormalizer: lambda: {"method": "image", "momentum": 0.5, "start": 10.0},
    Postprocessing: lambda: {
        "score_threshold": 0.1,
        "pre_nms_top_k": 50,
        "nms_threshold": 0.6,
        "max_detections": 7,
        "min_size": 2.0,
        "clip_before_nms": True,
        "empty_boxes": "drop_before_nms",
        "multi_label": False,
    },
    Preprocessing: lambda: {
        "mean": (1.0, 2.0, 3.0),
        "std": (4.0, 5.0, 6.0),
        "channel_order": "bgr",
        "shortest": 100,
        "longest": 200,
        "rounding": "torchvision",
        "kernel": "bilinear",
        "size_divisor": 64,
        "letterbox_value": 114.0,
    },
    GroupNormalization: lambda: {"groups": 2, "epsilon": 1e-3},
    BatchNorm: lambda: {"mode": "frozen_bn", "epsilon": 1e-3, "momentum": 0.5},
    MaxPoolTop: lambda: {"in_feature": "p4"},
    ConvTop: lambda: {"in_feature": "p5", "channels": 8, "num_levels": 1, "activation": None},
    FPN: lambda: {
        "in_features": ("c3",),
        "channels": 8,
        "norm": "bn",
        "norm_epsilon": 1e-3,
        "fusion": "average",
        "upsampling": "bilinear",
        "top": ConvTop("c3", 8, num_levels=1),
    },
    ResNet: lambda: dict(BACKBONE),
    RetinaNet: lambda: {
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "backbone": ResNet(**BACKBONE),
        "neck": FPN(**ARGUMENTS[FPN]()),
        "anchors": AnchorGenerator(**ARGUMENTS[AnchorGenerator]()),
        "coder": DeltaCoder(**ARGUMENTS[DeltaCoder]()),
        "preprocessing": Preprocessing(**ARGUMENTS[Preprocessing]()),
        "head": RetinaNetHead(**ARGUMENTS[RetinaNetHead]()),
        "matcher": IoUMatcher(**ARGUMENTS[IoUMatcher]()),
        "class_loss": FocalLoss(**ARGUMENTS[FocalLoss]()),
        "box_loss": GIoULoss(**ARGUMENTS[GIoULoss]()),
        "normalizer": LossNormalizer(**ARGUMENTS[LossNormalizer]()),
        "postprocessing": Postprocessing(**ARGUMENTS[Postprocessing]()),
    },
    RetinaNetHead: lambda: {
        "num_convs": 1,
        "norm": "bn",
        "norm_epsilon": 1e-3,
        "deform_last": True,
        "prior_probability": 0.02,
    },
    FCOSHead: lambda: {
        **ARGUMENTS[RetinaNetHead](),
        "use_bias": False,
        "centerness_on_boxes": False,
        "level_scales": True,
    },
    Centerness: lambda: {"loss_weight": 4.0, "weights_boxes": True, "score_convention": "product"},
    FCOS: lambda: {
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "backbone": ResNet(**BACKBONE),
        "neck": FPN(**ARGUMENTS[FPN]()),
        "anchors": AnchorGenerator(((8,), (16,)), (1.0,), ("p3", "p4")),
        "coder": DistanceCoder(normalize=False),
        "preprocessing": Preprocessing(**ARGUMENTS[Preprocessing]()),
        "head": FCOSHead(**ARGUMENTS[FCOSHead]()),
        "matcher": FCOSMatcher(**ARGUMENTS[FCOSMatcher]()),
        "class_loss": FocalLoss(**ARGUMENTS[FocalLoss]()),
        "box_loss": IoULoss(**ARGUMENTS[IoULoss]()),
        "centerness": Centerness(**ARGUMENTS[Centerness]()),
        "normalizer": LossNormalizer(**ARGUMENTS[LossNormalizer]()),
        "postprocessing": Postprocessing(**ARGUMENTS[Postprocessing]()),
    },
    BoxHead: lambda: {"num_convs": 1, "conv_channels": 8, "num_fcs": 1, "fc_channels": 9, "norm": "bn"},
    BoxPredictor: lambda: {"num_classes": 3, "class_agnostic": True},
    MaskHead: lambda: {"num_classes": 3, "num_convs": 1, "channels": 8, "norm": "bn"},
    KeypointHead: lambda: {"num_keypoints": 4, "num_convs": 1, "channels": 8},
    CSPNeXt: lambda: {
        "deepen_factor": 0.167,
        "widen_factor": 0.125,
        "out_features": ("c4", "c5"),
        "norm": "frozen_bn",
        "norm_epsilon": 1e-3,
        "freeze_at": 1,
    },
    CSPNeXtPAFPN: lambda: {
        "in_features": ("c4", "c5"),
        "channels": 8,
        "num_blocks": 1,
        "norm": "frozen_bn",
        "norm_epsilon": 1e-3,
    },
    RTMDetHead: lambda: {
        "num_convs": 1,
        "norm": "frozen_bn",
        "norm_epsilon": 1e-3,
        "box_tower": False,
        "box_bias": 1.0,
        "prior_probability": 0.1,
    },
    DynamicMaskBranch: lambda: {
        "num_convs": 1,
        "feature_convs": 1,
        "norm": "frozen_bn",
        "norm_epsilon": 1e-3,
        "loss_weight": 1.0,
    },
    RTMDet: lambda: rtmdet_arguments([]) | {"branches": [DynamicMaskBranch(num_convs=1)]},
    RTMDetIns: lambda: {
        name: value
        for name, value in (rtmdet_arguments([]) | {"branches": [DynamicMaskBranch(num_convs=1)]}).items()
        if name in parameters(RTMDetIns)
    },
    MobileNetV3: lambda: {
        "width_factor": 0.25,
        "reduced_tail": True,
        "out_features": ("c3", "c4_expanded"),
        "norm": "frozen_bn",
        "norm_epsilon": 1e-4,
        "norm_momentum": 0.5,
        "freeze_at": 1,
    },
    VGG: lambda: {"stages": (1, 1, 1, 1, 1), "width": 4, "fc_channels": 8, "freeze_at": 1},
    SSDNeck: lambda: {
        "in_features": ("c2", "c3"),
        "extra_channels": (8, 4),
        "unpadded": 1,
        "separable": False,  # excludes unpadded; tests/models/test_ssd.py saves a separable one
        "norm": "bn",
        "norm_epsilon": 1e-4,
        "norm_momentum": 0.5,
        "finest_scale": 10.0,
    },
    SSDHead: lambda: {"separable": True, "norm": "bn", "norm_epsilon": 1e-4, "norm_momentum": 0.5},
    DefaultBoxes: lambda: {
        "scales": (0.2, 0.4, 0.8, 1.0),
        "aspect_ratios": ((3,), (2,), (2, 4)),
        "levels": ("p3", "p4", "p5"),
        "strides": (8, 16, 32),
    },
    SSDMatcher: lambda: {"foreground_iou": 0.4, "ignore_crowd_iof": 0.5},
    SSD: lambda: {
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "backbone": VGG(**ARGUMENTS[VGG]()),
        "neck": SSDNeck(extra_channels=(4,)),
        "anchors": DefaultBoxes(**ARGUMENTS[DefaultBoxes]()),
        "coder": DeltaCoder(**ARGUMENTS[DeltaCoder]()),
        "head": SSDHead(separable=True),
        "matcher": SSDMatcher(**ARGUMENTS[SSDMatcher]()),
        "box_loss": GIoULoss(weight=3.0),
        "negative_ratio": 2.0,
        "normalizer": LossNormalizer("image"),
        "postprocessing": Postprocessing(0.2),
        "preprocessing": Preprocessing(shortest=64),
    },
    MaskBranch: lambda: {
        "pool_size": 7,
        "num_convs": 1,
        "channels": 8,
        "norm": "bn",
        "convention": "torchvision",
        "loss_weight": 2.0,
    },
    KeypointBranch: lambda: {
        "num_keypoints": 4,
        "pool_size": None,
        "num_convs": 1,
        "channels": 8,
        "convention": "torchvision",
        "loss_weight": 2.0,
        "keypoint_names": ("tip", "left", "right", "tail"),
        "skeleton": ((0, 1), (0, 2)),
    },
    ProposalSelection: lambda: {
        "pre_nms_top_k": 21,
        "post_nms_top_k": 11,
        "train_pre_nms_top_k": 20,
        "train_post_nms_top_k": 10,
        "nms_threshold": 0.6,
        "min_size": 1.0,
        "score_threshold": 0.05,
    },
    RPN: lambda: {
        "anchors": AnchorGenerator(**ARGUMENTS[AnchorGenerator]()),
        "coder": DeltaCoder(**ARGUMENTS[DeltaCoder]()),
        "num_convs": 2,
        "matcher": IoUMatcher(**ARGUMENTS[IoUMatcher]()),
        "sampler": BalancedSampler(**ARGUMENTS[BalancedSampler]()),
        "box_loss": SmoothL1Loss(**ARGUMENTS[SmoothL1Loss]()),
        "normalizer": "sampled",
        "straddle_threshold": 0.0,
        "proposals": ProposalSelection(**ARGUMENTS[ProposalSelection]()),
    },
    ProposalNetwork: lambda: {
        "backbone": ResNet(**BACKBONE),
        "neck": FPN(**ARGUMENTS[FPN]()),
        "rpn": RPN(**ARGUMENTS[RPN]()),
        "preprocessing": Preprocessing(**ARGUMENTS[Preprocessing]()),
        "seed": 3,
    },
    RoIPooler: lambda: {
        "output_size": 5,
        "method": "roi_pool",
        "sampling_ratio": 2,
        "aligned": False,
        "level_epsilon": 1e-6,
    },
    RoIHeads: lambda: {
        "pooler": RoIPooler(**ARGUMENTS[RoIPooler]()),
        "box_head": BoxHead(**ARGUMENTS[BoxHead]()),
        "branches": [MaskBranch(num_convs=1), KeypointBranch(4, pool_size=None, num_convs=1)],
        "matcher": IoUMatcher(**ARGUMENTS[IoUMatcher]()),
        "sampler": BalancedSampler(**ARGUMENTS[BalancedSampler]()),
        "add_gt_as_proposals": "after_matching",
        "coder": DeltaCoder(**ARGUMENTS[DeltaCoder]()),
        "box_loss": SmoothL1Loss(**ARGUMENTS[SmoothL1Loss]()),
        "class_agnostic": True,
        "postprocessing": Postprocessing(**ARGUMENTS[Postprocessing]()),
    },
    FasterRCNN: lambda: {
        **ARGUMENTS[ProposalNetwork](),
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "roi_heads": RoIHeads(**ARGUMENTS[RoIHeads]()),
    },
    MaskRCNN: lambda: ARGUMENTS[FasterRCNN](),
    KeypointRCNN: lambda: ARGUMENTS[FasterRCNN](),
}


def small_backbone(*features, top):
    return {
        "backbone": lambda: ResNet(18, stages=(1, 1, 1, 1), width=4, out_features=features),
        "neck": lambda: FPN(features, channels=32, top=top()),  # one channel for each group of a GroupNorm
    }


SMALL_DENSE = small_backbone("c3", "c4", "c5", top=lambda: ConvTop(channels=32))
SMALL_RCNN = small_backbone("c2", "c3", "c4", "c5", top=MaxPoolTop)
SMALL_RTMDET = {
    "backbone": lambda: CSPNeXt(0.167, 0.125),
    "neck": lambda: CSPNeXtPAFPN(channels=8, num_blocks=1),
}
# Parts of which the default is large.
SMALL_PARTS = {
    CSPNeXt: {"deepen_factor": lambda: 0.167, "widen_factor": lambda: 0.125},
    MobileNetV3: {"width_factor": lambda: 0.25},
    VGG: {"stages": lambda: (1,) * 5, "width": lambda: 4, "fc_channels": lambda: 4},
    **dict.fromkeys((RetinaNet, FCOS), SMALL_DENSE),
    **dict.fromkeys((ProposalNetwork, FasterRCNN, MaskRCNN, KeypointRCNN), SMALL_RCNN),
    SSD: {"backbone": lambda: VGG((1,) * 5, width=4, fc_channels=4)},
    **dict.fromkeys((RTMDet, RTMDetIns), SMALL_RTMDET),
}


def configured_classes():
    for module in pkgutil.walk_packages(kerasdet.__path__, "kerasdet."):
        if module.name != "kerasdet.ops._kerasdet_ops":  # a library for TensorFlow to load, no module of Python
            importlib.import_module(module.name)
    found, queue = set(), [ConfigFromInit]
    while queue:
        subclasses = queue.pop().__subclasses__()
        found.update(subclasses)
        queue += subclasses
    # other tests and examples of docstrings derive classes of theirs, and gin from those it configures
    found = {cls for cls in found if cls.__module__.startswith("kerasdet.")}
    return {cls for cls in found if getattr(importlib.import_module(cls.__module__), cls.__name__, None) is cls}


def as_json(thing):
    """Returns what a file would hold of an object."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(thing)))


def parameters(cls):
    """Returns the parameters of a constructor, and of kerasdet's constructors that its ``**kwargs`` reach."""
    inherited = {name: p for base in cls.__mro__ for name, p in inspect.signature(base.__init__).parameters.items()}
    own = inspect.signature(cls).parameters
    return {name: own.get(name, inherited[name]) for name in constructor_arguments(cls)}


def test_every_class_is_in_the_table():
    with_own_tests = {KerasApplication, PyramidBackbone}  # see tests/layers/test_keras_backbones.py
    assert configured_classes() == set(ARGUMENTS) | with_own_tests


@pytest.mark.parametrize("cls", ARGUMENTS, ids=lambda cls: cls.__name__)
def test_every_argument_survives_the_config(cls):
    arguments = ARGUMENTS[cls]()
    assert arguments.keys() == parameters(cls).keys()
    for name, parameter in parameters(cls).items():
        is_excluded = (cls, name) == (SSDNeck, "separable")
        assert arguments[name] != parameter.default or is_excluded, f"{name} is at its default"
    name = {"name": "somebody"} if issubclass(cls, keras.layers.Layer) else {}
    original = cls(**arguments, **name)
    for argument, value in (arguments | name).items():
        assert getattr(original, argument) == value

    config = as_json(original)
    for clone in (keras.saving.deserialize_keras_object(config), cls.from_config(original.get_config())):
        assert type(clone) is cls
        assert as_json(clone) == config
        assert getattr(clone, "name", "somebody") == "somebody"


@pytest.mark.parametrize("cls", ARGUMENTS, ids=lambda cls: cls.__name__)
def test_config_contains_the_defaults(cls):
    required = {name: 1 for name, p in parameters(cls).items() if p.default is p.empty}
    small = {name: make() for name, make in SMALL_PARTS.get(cls, {}).items()}  # the default ones are large
    assert parameters(cls).keys() <= cls(**required, **small).get_config().keys()


class Scale(ConfigFromInit, keras.layers.Layer):
    """Names its keyword arguments otherwise than kerasdet does."""

    def __init__(self, factor=2.0, **options):
        super().__init__(**options)
        self.factor = factor


def test_keyword_arguments_may_have_any_name():
    config = Scale(3.0, name="scale").get_config()
    assert config["factor"] == 3.0 and "options" not in config
    assert Scale.from_config(config).name == "scale"


def test_argument_without_attribute_raises():
    layer = Scale()
    del layer.factor
    with pytest.raises(UserError, match=r"Scale has no attribute factor, .*: store each"):
        layer.get_config()


def test_positional_arguments_of_any_number_raise():
    class Sum(ConfigFromInit):
        def __init__(self, *terms):
            self.terms = terms

    with pytest.raises(UserError, match=r"The constructor of Sum has \*terms, .*: replace \*terms by named arguments"):
        Sum(1, 2).get_config()
