"""What differs between the sources of checkpoints, as constructor arguments. Pure data.

`SOURCES` names every model that `kerasdet.checkpoints.to_model` can build.
"""

from dataclasses import dataclass, field

from kerasdet.anchors import octave_sizes

# Pixel statistics and resize rules
TORCHVISION = {"rounding": "torchvision", "kernel": "bilinear"}  # mean and std are Preprocessing's own, RGB
DETECTRON2 = {
    "mean": (103.53, 116.28, 123.675),
    "std": (1.0, 1.0, 1.0),
    "channel_order": "bgr",
    "rounding": "detectron2",
    "kernel": "pil",
}
MMDET = {"rounding": "detectron2", "kernel": "bilinear"}
MMDET_CAFFE = {**MMDET, "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0), "channel_order": "bgr"}

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

# Losses and post-processing of RetinaNet
TORCHVISION_RETINANET = {
    "normalizer": "image",
    "max_detections": 300,
    "clip_before_nms": True,
}
DETECTRON2_RETINANET = {"normalizer": "ema", "clip_before_nms": False}
MMDET_RETINANET = {"normalizer": "batch", "clip_before_nms": True}


@dataclass(frozen=True)
class Source:
    """A model of a source framework.

    Args:
        framework: A key of `kerasdet.checkpoints.names.LAYERS`.
        backbone: Arguments of `ResNet`.
        top: Arguments of `ConvTop`.
        anchors: Arguments of `AnchorGenerator`.
        preprocessing: Arguments of `Preprocessing`.
        model: Arguments of `RetinaNet`; None for a backbone alone.
        background_column: Whether the class logits start with a column for background.
    """

    framework: str
    backbone: dict
    top: dict = field(default_factory=dict)
    anchors: dict = field(default_factory=dict)
    preprocessing: dict = field(default_factory=dict)
    model: dict | None = None
    background_column: bool = False


def _detectron2_retinanet(depth):
    return Source(
        "detectron2",
        backbone={"depth": depth, "stride_in_1x1": True, "freeze_at": 2},
        top={"in_feature": "c5"},
        anchors=DETECTRON2_ANCHORS,
        preprocessing=DETECTRON2,
        model=DETECTRON2_RETINANET,
    )


def _mmdet_retinanet(depth, caffe):
    return Source(
        "mmdet",
        backbone={"depth": depth, "freeze_at": 2, **(_CAFFE if caffe else _PYTORCH)},
        top={"in_feature": "c5", "activation": None},
        anchors=MMDET_ANCHORS,
        preprocessing=MMDET_CAFFE if caffe else MMDET,
        model=MMDET_RETINANET,
    )


_CAFFE = {"stride_in_1x1": True, "norm": "frozen_bn"}
_PYTORCH = {"norm": "bn_inference"}
_ALL_FEATURES = {"out_features": ("c2", "c3", "c4", "c5")}

SOURCES = {
    # norm epsilon 0 is what torchvision sets for its published COCO_V1 files
    "torchvision/retinanet_resnet50_fpn": Source(
        "torchvision",
        backbone={"depth": 50, "norm": "frozen_bn", "norm_epsilon": 0.0, "freeze_at": 2},
        top={"in_feature": "p5"},
        anchors=TORCHVISION_ANCHORS,
        preprocessing=TORCHVISION,
        model=TORCHVISION_RETINANET,
        background_column=True,
    ),
    "torchvision/retinanet_resnet50_fpn_v2": Source(
        "torchvision",
        backbone={"depth": 50, "norm": "bn", "freeze_at": 0},
        top={"in_feature": "c5"},
        anchors=TORCHVISION_ANCHORS,
        preprocessing=TORCHVISION,
        model={**TORCHVISION_RETINANET, "head_norm": "gn", "box_loss": "giou"},
        background_column=True,
    ),
    "detectron2/retinanet_R_50_FPN": _detectron2_retinanet(50),
    "detectron2/retinanet_R_101_FPN": _detectron2_retinanet(101),
    **{
        f"mmdet/retinanet_r{depth}{'_caffe' if caffe else ''}_fpn": _mmdet_retinanet(depth, caffe)
        for depth in (50, 101)
        for caffe in (False, True)
    },
    # backbones trained on ImageNet
    **{
        f"torchvision/resnet{depth}": Source("torchvision", backbone={"depth": depth, **_ALL_FEATURES})
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"detectron2/MSRA_R-{depth}": Source(
            "detectron2", backbone={"depth": depth, "stride_in_1x1": True, **_ALL_FEATURES}, preprocessing=DETECTRON2
        )
        for depth in (50, 101)
    },
    **{
        f"mmdet/resnet{depth}_caffe": Source(
            "mmdet", backbone={"depth": depth, **_CAFFE, **_ALL_FEATURES}, preprocessing=MMDET_CAFFE
        )
        for depth in (50, 101)
    },
}
