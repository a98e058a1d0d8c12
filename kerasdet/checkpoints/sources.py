"""Lists the models of other frameworks that can be converted, and the constructor arguments of the kerasdet parts.

The keys of `SOURCES` are the names of all models that `kerasdet.checkpoints.to_model` can build. Arguments that are not
listed have the default of the part.
"""

from dataclasses import dataclass, field, replace

from kerasdet.checkpoints.names import (
    CSPNEXT,
    FASTER_RCNN_MOBILENET,
    MOBILENET_V3,
    RTMDET,
    RTMDET_INS_TIED,
    RTMDET_TIED,
    SSD_VGG,
    SSDLITE,
)
from kerasdet.geometry.anchors import octave_sizes
from kerasdet.geometry.coders import MAX_LOG_SCALE

# Pixel statistics and resize rules
TORCHVISION = {"rounding": "torchvision", "kernel": "bilinear"}  # mean, std and RGB are the defaults of Preprocessing
DETECTRON2 = {
    "mean": (103.53, 116.28, 123.675),
    "std": (1.0, 1.0, 1.0),
    "channel_order": "bgr",
    "rounding": "detectron2",
    "kernel": "pil",
}
MMDET = {"rounding": "mmdetection", "kernel": "opencv"}
MMDET_CAFFE = {**MMDET, "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0), "channel_order": "bgr"}

RTMDET_PREPROCESSING = {
    **MMDET_CAFFE,
    "std": (57.375, 57.12, 58.395),
    "shortest": 640,
    "longest": 640,
    "letterbox_value": 114,
}

DETECTRON_MEAN = (102.9801, 115.9465, 122.7717)  # pixel means of Detectron, the predecessor of detectron2, in BGR

# Anchors of RetinaNet
_ROUNDED_OCTAVES = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
TORCHVISION_ANCHORS = {
    "sizes": _ROUNDED_OCTAVES,
    "round_corners": True,
    "ratios_first": True,
    "strides_from_image": True,
}
DETECTRON2_ANCHORS = {"sizes": octave_sizes()}
MMDET_ANCHORS = {"sizes": octave_sizes(), "ratios_first": True}

# Post-processing of dense models
TORCHVISION_DENSE = {"clip_before_nms": True, "empty_boxes": "keep"}
MMDET_DENSE = {"clip_before_nms": True, "empty_boxes": "drop_before_nms"}

# mmdetection matches an anchor of low IoU to the object that has no better anchor, and ignores anchors in the padding.
MMDET_MATCHER = {"low_quality_owner": "forcing", "padded_size_divisor": 32}
MMDET_CODER = {"min_log_scale": -MAX_LOG_SCALE}

# FCOS
_STRIDES = ((8,), (16,), (32,), (64,), (128,))
POINTS = {"sizes": _STRIDES, "aspect_ratios": (1.0,), "offset": 0.5}
TORCHVISION_POINTS = {"sizes": _STRIDES, "aspect_ratios": (1.0,), "strides_from_image": True}
FCOS_POSTPROCESSING = {"score_threshold": 0.2, "nms_threshold": 0.6}
MMDET_FCOS = {
    "head": {"use_bias": False, "centerness_on_boxes": False, "level_scales": True},
    "matcher": {"center_radius": None, "convention": "mmdet"},
    "box_loss": ("IoULoss", {}),
    "normalizer": {"method": "batch"},
    "postprocessing": {"score_threshold": 0.05, "nms_threshold": 0.5, **MMDET_DENSE},
    "centerness": {"weights_boxes": True, "score_convention": "product"},
}
MMDET_FCOS_CENTER = {**MMDET_FCOS, "matcher": {"center_radius": 1.5, "convention": "mmdet"}}
MMDET_FCOS_TRICKS = {
    **MMDET_FCOS_CENTER,
    "head": {"use_bias": True, "centerness_on_boxes": True, "level_scales": True},
    "box_loss": ("GIoULoss", {}),
    "postprocessing": {**MMDET_FCOS["postprocessing"], "nms_threshold": 0.6},
}
MMDET_FCOS_TRICKS_DCN = {**MMDET_FCOS_TRICKS, "head": {**MMDET_FCOS_TRICKS["head"], "deform_last": True}}

# R-CNNs
_SIZES = [[size] for size in (32, 64, 128, 256, 512)]
_RCNN_LEVELS = {"sizes": _SIZES, "levels": ("p2", "p3", "p4", "p5", "p6")}
TORCHVISION_RCNN_ANCHORS = {
    **_RCNN_LEVELS,
    "round_corners": True,
    "ratios_first": True,
    "strides_from_image": True,
}
TORCHVISION_RPN = {
    "box_loss": {"beta": 1 / 9},
    "normalizer": "sampled",
    "proposals": {"train_post_nms_top_k": 2000, "min_size": 1e-3},
}
TORCHVISION_ROI_HEADS = {
    "pooler": {"sampling_ratio": 2, "aligned": False, "level_epsilon": 1e-6},
    "box_loss": {"beta": 1 / 9},
    "postprocessing": {"min_size": 1e-2, "clip_before_nms": True},
}
MMDET_RPN = {
    "coder": MMDET_CODER,
    "matcher": {"foreground_iou": 0.7, "background_iou": 0.3, "min_low_quality_iou": 0.3, **MMDET_MATCHER},
    "normalizer": "image_sum",
}


def mmdet_roi_heads(allow_low_quality_matches: bool) -> dict:
    """Returns the arguments of `RoIHeads` for mmdetection's R-CNNs.

    Args:
        allow_low_quality_matches: True for Mask R-CNN, False for Faster R-CNN.

    Returns:
        The arguments by name. An argument that is an object, such as `matcher`, is given as a dict of the object's
        arguments.
    """
    return {
        "matcher": {
            "foreground_iou": 0.5,
            "background_iou": 0.5,
            "allow_low_quality_matches": allow_low_quality_matches,
            "low_quality_owner": "forcing",
            "min_low_quality_iou": 0.5,
        },
        "add_gt_as_proposals": "after_matching",
        "coder": {"weights": (10.0, 10.0, 5.0, 5.0), **MMDET_CODER},
        "postprocessing": {"clip_before_nms": True, "empty_boxes": "keep"},
    }


@dataclass(frozen=True)
class Source:
    """Describes a model of a source framework by the arguments of its parts.

    Args:
        framework: Name of the source framework, a key of `kerasdet.checkpoints.names.LAYERS`.
        kind: Kind of model: "backbone", "retinanet", "fcos", "rtmdet", "ssd", "rpn" or "rcnn".
        backbone: Arguments of the class `backbone_class`.
        backbone_class: Class of the backbone: "ResNet", "CSPNeXt", "MobileNetV3" or "VGG".
        neck: Arguments of `FPN`, RTMDet's `CSPNeXtPAFPN` or `SSDNeck`.
        top: Arguments of `ConvTop`.
        anchors: Arguments of `AnchorGenerator`, or of SSD's `DefaultBoxes`.
        coder: Arguments of RetinaNet's `DeltaCoder`, or of the `DistanceCoder` of FCOS and RTMDet.
        head: Arguments of `RetinaNetHead`, `FCOSHead` or `SSDHead`.
        matcher: Arguments of RetinaNet's `IoUMatcher` or FCOS' `FCOSMatcher`.
        box_loss: Name of a class in `kerasdet.losses` and its arguments. None: the model's default.
        normalizer: Arguments of `LossNormalizer`. None: the model's default.
        postprocessing: Arguments of the `Postprocessing` of RetinaNet, FCOS or SSD. None: the model's default.
        rpn: Arguments of `RPN`. An argument that is an object is given as a dict of the object's arguments.
        roi_heads: Arguments of `RoIHeads` in the same form, without `branches`, which `mask` and `keypoint` describe.
        mask: Arguments of `MaskBranch`, or of RTMDet's `DynamicMaskBranch`. None: no masks.
        keypoint: Arguments of `KeypointBranch`. None: no keypoints.
        preprocessing: Arguments of `Preprocessing`.
        centerness: Arguments of `Centerness`. None: the default of `FCOS`.
        background_first: Whether the first column of the class logits is the background.
        names: Maps kerasdet's names of layers to their names in the source, for layers that differ from
            `LAYERS[framework]`.
        tied: Pairs of a regular expression and its replacement, for files that contain a tensor under several names.
            The pairs convert each other name to the one in `names`.
    """

    framework: str
    kind: str
    backbone: dict
    backbone_class: str = "ResNet"
    neck: dict = field(default_factory=dict)
    top: dict = field(default_factory=dict)
    anchors: dict = field(default_factory=dict)
    coder: dict = field(default_factory=dict)
    head: dict = field(default_factory=dict)
    matcher: dict = field(default_factory=dict)
    box_loss: tuple[str, dict] | None = None
    normalizer: dict | None = None
    postprocessing: dict | None = None
    rpn: dict = field(default_factory=dict)
    roi_heads: dict = field(default_factory=dict)
    mask: dict | None = None
    keypoint: dict | None = None
    preprocessing: dict = field(default_factory=dict)
    centerness: dict | None = None
    background_first: bool = False
    names: dict = field(default_factory=dict)
    tied: tuple[tuple[str, str], ...] = ()


def _detectron2_retinanet(depth):
    return Source(
        "detectron2",
        "retinanet",
        backbone={"depth": depth, "freeze_at": 2, **_CAFFE},
        top={"in_feature": "c5"},
        anchors=DETECTRON2_ANCHORS,
        preprocessing=DETECTRON2,
    )


def _mmdet_retinanet(depth, caffe):
    return Source(
        "mmdet",
        "retinanet",
        backbone={"depth": depth, "freeze_at": 2, **(_CAFFE if caffe else _PYTORCH)},
        top={"in_feature": "c5", "activation": None},
        anchors=MMDET_ANCHORS,
        coder=MMDET_CODER,
        matcher=MMDET_MATCHER,
        normalizer={"method": "image_sum"},
        postprocessing=MMDET_DENSE,
        preprocessing=MMDET_CAFFE if caffe else MMDET,
    )


def _mmdet_fcos(depth, parts, normalize, mean, **backbone):
    return Source(
        "mmdet",
        "fcos",
        backbone={"depth": depth, "freeze_at": 2, **_CAFFE, **backbone},
        top={"in_feature": "p5"},
        anchors=POINTS,
        coder={"normalize": normalize},
        preprocessing={**MMDET_CAFFE, "mean": mean},
        names={"head/class_logits/conv": "bbox_head.conv_cls"},
        **parts,
    )


def _towers(theirs_of_classes, theirs_of_boxes):
    """Returns the names of towers in which convolution, norm and ReLU alternate."""
    towers = (("class_tower", theirs_of_classes), ("box_tower", theirs_of_boxes))
    return {
        **{f"head/{ours}/conv{{i}}/conv": f"{theirs}.{{thrice}}" for ours, theirs in towers},
        **{f"head/{ours}/norm{{i}}_shared": f"{theirs}.{{thrice_and_1}}" for ours, theirs in towers},
    }


_CAFFE = {"stride_in_1x1": True, "norm": "frozen_bn"}  # MSRA's ResNet, which detectron2 also uses
_PYTORCH = {"norm": "bn_inference"}
_DEFORMABLE = {"deform_stages": ("c3", "c4", "c5"), "deform_version": 2}
_ALL_FEATURES = {"out_features": ("c2", "c3", "c4", "c5")}

_MASK_RCNN = {"mask": {}}
_KEYPOINT_RCNN = {
    "keypoint": {},
    "rpn": {"proposals": {"train_post_nms_top_k": 1500}},
    "roi_heads": {"box_loss": {"beta": 0.5}},
}
_TORCHVISION_MASK = {"mask": {"convention": "torchvision"}}


def _torchvision_rcnn(**parts):
    return Source(
        "torchvision",
        "rcnn",
        backbone={"depth": 50, "norm": "frozen_bn", "norm_epsilon": 0.0, "freeze_at": 2, **_ALL_FEATURES},
        anchors=TORCHVISION_RCNN_ANCHORS,
        rpn=TORCHVISION_RPN,
        roi_heads=TORCHVISION_ROI_HEADS,
        preprocessing=TORCHVISION,
        background_first=True,
        **parts,
    )


def _torchvision_rcnn_v2(**parts):
    """Returns a source with batch norms everywhere, a deeper RPN, and convolutions in the box head."""
    return replace(
        _torchvision_rcnn(**parts),
        backbone={"depth": 50, "norm": "bn", "freeze_at": 2, **_ALL_FEATURES},
        neck={"norm": "bn"},
        rpn={**TORCHVISION_RPN, "num_convs": 2},
        roi_heads={**TORCHVISION_ROI_HEADS, "box_head": {"num_convs": 4, "num_fcs": 1, "norm": "bn"}},
        names={
            "box_head/conv{i}/conv": "roi_heads.box_head.{i}.0",
            "box_head/conv{i}/norm": "roi_heads.box_head.{i}.1",
            "box_head/fc{i}": "roi_heads.box_head.5",
        },
    )


def _fasterrcnn_mobilenet(preprocessing, **proposals):
    """Returns a source with two levels with a stride of 32 pixels, the second of which only the RPN uses."""
    return replace(
        _torchvision_rcnn(),
        backbone={
            "out_features": ("c5_first", "c5"),
            "norm": "frozen_bn",
            "norm_epsilon": 1e-5,
            "freeze_at": 3,
        },
        backbone_class="MobileNetV3",
        neck={"in_features": ("c5_first", "c5")},
        anchors={
            **TORCHVISION_RCNN_ANCHORS,
            "sizes": [[32, 64, 128, 256, 512]] * 3,
            "levels": ("p5_first", "p5", "p6"),
        },
        rpn={
            **TORCHVISION_RPN,
            "proposals": {**TORCHVISION_RPN["proposals"], "score_threshold": 0.05, **proposals},
        },
        preprocessing={**TORCHVISION, **preprocessing},
        names=FASTER_RCNN_MOBILENET,
    )


_SQUARE = {"rounding": "square", "kernel": "bilinear", "size_divisor": 1}
_SSD_DENSE = {"clip_before_nms": True, "empty_boxes": "keep"}
_SSDLITE_NORM = {"norm": "bn", "norm_epsilon": 1e-3, "norm_momentum": 0.97}
SSDLITE_ANCHORS = {
    "scales": (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
    "aspect_ratios": ((2, 3),) * 6,
    "levels": ("p4", "p5", "p6", "p7", "p8", "p9"),
    "strides": None,
}


def _detectron2_rcnn(depth, deform_stages=(), **parts):
    return Source(
        "detectron2",
        "rcnn",
        backbone={"depth": depth, "deform_stages": deform_stages, "freeze_at": 2, **_CAFFE, **_ALL_FEATURES},
        anchors=_RCNN_LEVELS,
        preprocessing=DETECTRON2,
        **parts,
    )


def _mmdet_rcnn(depth, caffe, **parts):
    return Source(
        "mmdet",
        "rcnn",
        backbone={"depth": depth, "freeze_at": 2, **(_CAFFE if caffe else _PYTORCH), **_ALL_FEATURES},
        anchors={**_RCNN_LEVELS, "ratios_first": True},
        rpn=MMDET_RPN,
        roi_heads=mmdet_roi_heads(allow_low_quality_matches="mask" in parts),
        preprocessing=MMDET_CAFFE if caffe else MMDET,
        **parts,
    )


# Size of RTMDet -> factors of the backbone's depth and width, number of the neck's channels, number of its blocks per
# stage, and the activation of distances
RTMDET_SIZES = {
    "tiny": (0.167, 0.375, 96, 1, "linear"),
    "s": (0.33, 0.5, 128, 1, "linear"),
    "m": (0.67, 0.75, 192, 2, "exp"),
    "l": (1.0, 1.0, 256, 3, "exp"),
    "x": (1.33, 1.25, 320, 4, "exp"),
}


def _cspnext(size):
    deepen_factor, widen_factor, *_ = RTMDET_SIZES[size]
    return {"deepen_factor": deepen_factor, "widen_factor": widen_factor}


def _rtmdet(size, **parts):
    _, _, channels, num_blocks, activation = RTMDET_SIZES[size]
    own = {"coder": {"activation": activation}, "tied": RTMDET_TIED}
    return Source(
        "mmdet",
        "rtmdet",
        backbone=_cspnext(size),
        backbone_class="CSPNeXt",
        neck={"channels": channels, "num_blocks": num_blocks},
        preprocessing=RTMDET_PREPROCESSING,
        names=RTMDET,
        **{**own, **parts},
    )


def _rtmdet_ins(size):
    return _rtmdet(size, coder={"activation": "relu"}, mask={}, tied=RTMDET_INS_TIED)


SOURCES = {
    # torchvision sets norm epsilon 0 for its published COCO_V1 files.
    "torchvision/retinanet_resnet50_fpn": Source(
        "torchvision",
        "retinanet",
        backbone={"depth": 50, "norm": "frozen_bn", "norm_epsilon": 0.0, "freeze_at": 2},
        top={"in_feature": "p5"},
        anchors=TORCHVISION_ANCHORS,
        normalizer={"method": "image"},
        postprocessing={**TORCHVISION_DENSE, "max_detections": 300},
        preprocessing=TORCHVISION,
        background_first=True,
    ),
    "torchvision/retinanet_resnet50_fpn_v2": Source(
        "torchvision",
        "retinanet",
        backbone={"depth": 50, "norm": "bn", "freeze_at": 2},
        top={"in_feature": "c5"},
        anchors=TORCHVISION_ANCHORS,
        head={"norm": "gn"},
        box_loss=("GIoULoss", {}),
        normalizer={"method": "image"},
        postprocessing={**TORCHVISION_DENSE, "max_detections": 300},
        preprocessing=TORCHVISION,
        background_first=True,
    ),
    "detectron2/retinanet_R_50_FPN": _detectron2_retinanet(50),
    "detectron2/retinanet_R_101_FPN": _detectron2_retinanet(101),
    **{
        f"mmdet/retinanet_r{depth}{'_caffe' if caffe else ''}_fpn": _mmdet_retinanet(depth, caffe)
        for depth in (50, 101)
        for caffe in (False, True)
    },
    "torchvision/fcos_resnet50_fpn": Source(
        "torchvision",
        "fcos",
        backbone={"depth": 50, "norm": "frozen_bn", "freeze_at": 2},
        top={"in_feature": "p5"},
        anchors=TORCHVISION_POINTS,
        normalizer={"method": "batch"},
        postprocessing={**FCOS_POSTPROCESSING, **TORCHVISION_DENSE},
        preprocessing=TORCHVISION,
        background_first=True,
        names=_towers("head.classification_head.conv", "head.regression_head.conv"),
    ),
    "detectron2/fcos_R_50_FPN": Source(
        "detectron2",
        "fcos",
        backbone={"depth": 50, "freeze_at": 2, **_CAFFE},
        top={"in_feature": "p5"},
        anchors=POINTS,
        preprocessing=DETECTRON2,
        names=_towers("head.cls_subnet", "head.bbox_subnet"),
    ),
    **{
        f"mmdet/fcos_r{depth}_caffe_fpn_gn-head": _mmdet_fcos(depth, MMDET_FCOS, False, DETECTRON_MEAN)
        for depth in (50, 101)
    },
    "mmdet/fcos_center_r50_caffe_fpn_gn-head": _mmdet_fcos(50, MMDET_FCOS_CENTER, False, DETECTRON_MEAN),
    "mmdet/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head": _mmdet_fcos(
        50, MMDET_FCOS_TRICKS, True, MMDET_CAFFE["mean"]
    ),
    "mmdet/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn": _mmdet_fcos(
        50, MMDET_FCOS_TRICKS_DCN, True, MMDET_CAFFE["mean"], **_DEFORMABLE
    ),
    "torchvision/fasterrcnn_resnet50_fpn": _torchvision_rcnn(),
    "torchvision/fasterrcnn_resnet50_fpn_v2": _torchvision_rcnn_v2(),
    "torchvision/maskrcnn_resnet50_fpn": _torchvision_rcnn(**_TORCHVISION_MASK),
    "torchvision/maskrcnn_resnet50_fpn_v2": _torchvision_rcnn_v2(mask={"convention": "torchvision", "norm": "bn"}),
    "torchvision/keypointrcnn_resnet50_fpn": _torchvision_rcnn(keypoint={"convention": "torchvision"}),
    "torchvision/fasterrcnn_mobilenet_v3_large_fpn": _fasterrcnn_mobilenet({}),
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn": _fasterrcnn_mobilenet(
        {"shortest": 320, "longest": 640}, pre_nms_top_k=150, post_nms_top_k=150
    ),
    "torchvision/ssd300_vgg16": Source(
        "torchvision",
        "ssd",
        backbone={"freeze_at": 1},
        backbone_class="VGG",
        neck={"unpadded": 2, "finest_scale": 20.0},
        postprocessing={
            "score_threshold": 0.01,
            "pre_nms_top_k": 400,
            "nms_threshold": 0.45,
            "max_detections": 200,
            **_SSD_DENSE,
        },
        preprocessing={
            **_SQUARE,
            "mean": (122.99925, 116.9991, 103.9992),  # 0.48235, 0.45882 and 0.40784 of 255
            "std": (1.0, 1.0, 1.0),
            "shortest": 300,
            "longest": 300,
        },
        background_first=True,
        names=SSD_VGG,
    ),
    "torchvision/ssdlite320_mobilenet_v3_large": Source(
        "torchvision",
        "ssd",
        backbone={"reduced_tail": True, "out_features": ("c4_expanded", "c5"), **_SSDLITE_NORM},
        backbone_class="MobileNetV3",
        neck={
            "in_features": ("c4_expanded", "c5"),
            "extra_channels": (512, 256, 256, 128),
            "separable": True,
            **_SSDLITE_NORM,
        },
        anchors=SSDLITE_ANCHORS,
        head={"separable": True, **_SSDLITE_NORM},
        postprocessing={
            "score_threshold": 0.001,
            "pre_nms_top_k": 300,
            "nms_threshold": 0.55,
            "max_detections": 300,
            **_SSD_DENSE,
        },
        preprocessing={
            **_SQUARE,
            "mean": (127.5, 127.5, 127.5),
            "std": (127.5, 127.5, 127.5),
            "shortest": 320,
            "longest": 320,
        },
        background_first=True,
        names=SSDLITE,
    ),
    "detectron2/rpn_R_50_FPN": replace(_detectron2_rcnn(50), kind="rpn", rpn={"proposals": {"post_nms_top_k": 2000}}),
    **{f"detectron2/faster_rcnn_R_{depth}_FPN": _detectron2_rcnn(depth) for depth in (50, 101)},
    **{f"detectron2/mask_rcnn_R_{depth}_FPN": _detectron2_rcnn(depth, **_MASK_RCNN) for depth in (50, 101)},
    **{f"detectron2/keypoint_rcnn_R_{depth}_FPN": _detectron2_rcnn(depth, **_KEYPOINT_RCNN) for depth in (50, 101)},
    "detectron2/mask_rcnn_R_50_FPN_dconv_c3-c5": _detectron2_rcnn(50, ("c3", "c4", "c5"), **_MASK_RCNN),
    **{
        f"mmdet/{name}_rcnn_r{depth}{'_caffe' if caffe else ''}_fpn": _mmdet_rcnn(depth, caffe, **parts)
        for name, parts in (("faster", {}), ("mask", _MASK_RCNN))
        for depth in (50, 101)
        for caffe in (False, True)
    },
    **{f"mmdet/rtmdet_{size}": _rtmdet(size) for size in RTMDET_SIZES},
    **{f"mmdet/rtmdet-ins_{size}": _rtmdet_ins(size) for size in RTMDET_SIZES},
    # backbones trained on ImageNet
    **{
        f"mmdet/cspnext-{size}": Source(
            "mmdet",
            "backbone",
            backbone={**_cspnext(size), **_ALL_FEATURES},
            backbone_class="CSPNeXt",
            preprocessing=RTMDET_PREPROCESSING,
            names=CSPNEXT,
        )
        for size in RTMDET_SIZES
    },
    **{
        f"torchvision/resnet{depth}": Source(
            "torchvision", "backbone", backbone={"depth": depth, "norm": "frozen_bn", **_ALL_FEATURES}
        )
        for depth in (18, 34, 50, 101, 152)
    },
    "torchvision/mobilenet_v3_large": Source(
        "torchvision",
        "backbone",
        backbone={"norm": "frozen_bn"},
        backbone_class="MobileNetV3",
        names=MOBILENET_V3,
    ),
    **{
        f"detectron2/MSRA_R-{depth}": Source(
            "detectron2",
            "backbone",
            backbone={"depth": depth, **_CAFFE, **_ALL_FEATURES},
            preprocessing=DETECTRON2,
        )
        for depth in (50, 101)
    },
    **{
        f"mmdet/resnet{depth}_caffe": Source(
            "mmdet",
            "backbone",
            backbone={"depth": depth, **_CAFFE, **_ALL_FEATURES},
            preprocessing=MMDET_CAFFE,
        )
        for depth in (50, 101)
    },
}
