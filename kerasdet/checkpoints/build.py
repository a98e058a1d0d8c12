"""Builds the kerasdet model that corresponds to a model of a source framework, with random weights.

A "source" is a model of another framework, such as "torchvision/retinanet_resnet50_fpn".
"""

import inspect
from collections.abc import Mapping

import keras
import numpy as np

from kerasdet import losses
from kerasdet.checkpoints.sources import Source
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder, DistanceCoder
from kerasdet.geometry.default_boxes import DefaultBoxes
from kerasdet.geometry.matching import FCOSMatcher, IoUMatcher
from kerasdet.geometry.sampling import BalancedSampler
from kerasdet.layers import (
    FPN,
    VGG,
    BoxHead,
    ConvTop,
    CSPNeXt,
    CSPNeXtPAFPN,
    FCOSHead,
    MaxPoolTop,
    MobileNetV3,
    ResNet,
    RetinaNetHead,
    RoIPooler,
    SSDHead,
    SSDNeck,
)
from kerasdet.models import (
    FCOS,
    RPN,
    SSD,
    Centerness,
    DynamicMaskBranch,
    FasterRCNN,
    KeypointBranch,
    MaskBranch,
    Preprocessing,
    ProposalNetwork,
    ProposalSelection,
    RetinaNet,
    RoIHeads,
    RTMDet,
    RTMDetIns,
)
from kerasdet.models.common import LossNormalizer
from kerasdet.models.postprocess import Postprocessing

BACKBONES = {"ResNet": ResNet, "CSPNeXt": CSPNeXt, "MobileNetV3": MobileNetV3, "VGG": VGG}
# Kind of dense model -> classes of the model, of its coder, of its head and of its matcher
DENSE_PARTS = {
    "retinanet": (RetinaNet, DeltaCoder, RetinaNetHead, IoUMatcher),
    "fcos": (FCOS, DistanceCoder, FCOSHead, FCOSMatcher),
}
# Argument of `RPN` or `RoIHeads` -> class of the part
RCNN_PARTS = {
    "matcher": IoUMatcher,
    "sampler": BalancedSampler,
    "coder": DeltaCoder,
    "box_loss": losses.SmoothL1Loss,
    "proposals": ProposalSelection,
    "pooler": RoIPooler,
    "box_head": BoxHead,
    "postprocessing": Postprocessing,
}
# For each kind of model: the parts that checkpoints hold; the layers whose shapes depend on the number of classes; and
# the bias from whose size the number of classes is computed.
PARTS = {
    "backbone": ("backbone",),
    "retinanet": ("backbone", "neck", "head"),
    "fcos": ("backbone", "neck", "head"),
    "rtmdet": ("backbone", "neck", "head", "mask_branch"),
    "ssd": ("backbone", "neck", "head"),
    "rpn": ("backbone", "neck", "rpn"),
    "rcnn": ("backbone", "neck", "rpn", "box_head", "box_predictor", "mask_branch", "keypoint_branch"),
}
CLASS_LAYERS = {
    "backbone": (),
    "retinanet": ("head/class_logits/",),
    "fcos": ("head/class_logits/",),
    "rtmdet": ("head/class_logits/",),
    "ssd": ("head/class_logits/",),
    "rpn": (),
    "rcnn": ("box_predictor/", "mask_branch/head/mask_logits/"),
}
COUNTING_BIAS = {
    "retinanet": "head/class_logits/conv/bias",
    "fcos": "head/class_logits/conv/bias",
    "rtmdet": "head/class_logits/p3/conv/bias",
    "ssd": "head/class_logits/{finest}/conv/bias",
    "rcnn": "box_predictor/class_logits/bias",
}


def build(
    spec: Source, num_classes: int | None, shapes: Mapping[str, tuple], norm_epsilon: float | None
) -> keras.Model:
    """Builds the kerasdet model that corresponds to a model of a source framework, with random weights.

    Args:
        spec: A value of `kerasdet.checkpoints.SOURCES`.
        num_classes: K, number of classes without background. None for a backbone or a proposal network.
        shapes: Maps kerasdet's names of tensors to their shapes in the checkpoint. A Keypoint R-CNN needs
            ``keypoint_branch/head/deconv/bias``, whose length is the number of keypoints; other models need no entry.
        norm_epsilon: Epsilon of the backbone's norms. None: the epsilon of the source.

    Returns:
        The model, a backbone or a detector.

    Raises:
        UserError: If `norm_epsilon` is given for a backbone without norms.
    """
    backbone_class = BACKBONES[spec.backbone_class]
    if norm_epsilon is not None and "norm_epsilon" not in inspect.signature(backbone_class).parameters:
        raise UserError(
            f"norm_epsilon is {norm_epsilon}, but the backbone {backbone_class.__name__} has no norms; expected None. "
            "Remove the argument norm_epsilon (--norm-epsilon)."
        )
    epsilon = {} if norm_epsilon is None else {"norm_epsilon": norm_epsilon}
    backbone = backbone_class(**{**spec.backbone, **epsilon})
    if spec.kind == "backbone":
        return backbone
    preprocessing = Preprocessing(**spec.preprocessing)
    if spec.kind == "rtmdet":
        own = {} if spec.mask is None else {"branches": [DynamicMaskBranch(**spec.mask)]}
        return (RTMDetIns if own else RTMDet)(
            num_classes,
            backbone=backbone,
            neck=CSPNeXtPAFPN(**spec.neck),
            coder=DistanceCoder(**spec.coder),
            preprocessing=preprocessing,
            **own,
        )
    if spec.kind == "ssd":
        return SSD(
            num_classes,
            backbone=backbone,
            neck=SSDNeck(**spec.neck),
            anchors=DefaultBoxes(**spec.anchors),
            head=SSDHead(**spec.head),
            postprocessing=Postprocessing(**spec.postprocessing),
            preprocessing=preprocessing,
        )
    anchors = AnchorGenerator(**spec.anchors)
    if spec.kind in DENSE_PARTS:
        model, coder, head, matcher = DENSE_PARTS[spec.kind]
        own = {} if spec.centerness is None else {"centerness": Centerness(**spec.centerness)}
        return model(
            num_classes,
            backbone=backbone,
            neck=FPN(top=ConvTop(**spec.top), **spec.neck),
            anchors=anchors,
            coder=coder(**spec.coder),
            head=head(**spec.head),
            matcher=matcher(**spec.matcher),
            box_loss=None if spec.box_loss is None else getattr(losses, spec.box_loss[0])(**spec.box_loss[1]),
            normalizer=None if spec.normalizer is None else LossNormalizer(**spec.normalizer),
            postprocessing=None if spec.postprocessing is None else Postprocessing(**spec.postprocessing),
            preprocessing=preprocessing,
            **own,
        )
    parts = {
        "backbone": backbone,
        "neck": FPN(**{"in_features": ("c2", "c3", "c4", "c5"), **spec.neck}, top=MaxPoolTop()),
        "rpn": RPN(anchors=anchors, **with_parts(spec.rpn)),
        "preprocessing": preprocessing,
    }
    if spec.kind == "rpn":
        return ProposalNetwork(**parts)
    branches = []
    if spec.mask is not None:
        branches.append(MaskBranch(**spec.mask))
    if spec.keypoint is not None:
        branches.append(KeypointBranch(shapes["keypoint_branch/head/deconv/bias"][0], **spec.keypoint))
    return FasterRCNN(num_classes, **parts, roi_heads=RoIHeads(branches=branches, **with_parts(spec.roi_heads)))


def with_parts(arguments: Mapping[str, object]) -> dict[str, object]:
    """Replaces the dicts among the arguments of `RPN` or `RoIHeads` by the objects that they describe.

    Args:
        arguments: `Source.rpn` or `Source.roi_heads`, in which a dict holds the constructor arguments of an object.

    Returns:
        The arguments, in which every dict is replaced by an object of its class in `RCNN_PARTS`.
    """
    return {name: RCNN_PARTS[name](**value) if isinstance(value, dict) else value for name, value in arguments.items()}


def named_variables(model: keras.Model, kind: str) -> dict[str, keras.Variable]:
    """Lists the variables that correspond to tensors of a checkpoint, by names that all models of a kind share.

    Args:
        model: Result of `build`.
        kind: Kind of the source, a key of `PARTS`.

    Returns:
        A dict from kerasdet's name, such as ``backbone/c3_0/conv1/conv/kernel``, to the variable.
    """
    variables = {}
    for part in PARTS[kind]:
        layer = model if kind == "backbone" else _part(model, part)
        for variable in layer.variables if layer is not None else ():
            path = variable.path.split("/")
            path = path[path.index(layer.name) + 1 :] if layer.name in path else path
            if part == "neck" and getattr(layer, "top", None) is not None and path[0] == layer.top.name:
                path[0] = "top"
            variables["/".join([part, *path])] = variable
    return variables


def _part(model, part):
    if hasattr(model, part):
        return getattr(model, part)
    branches = {branch.name: branch for branch in model.branches}
    return branches.get(part) or getattr(getattr(model, "roi_heads", None), part, None)


def our_layout(name: str, value: np.ndarray, spec: Source) -> np.ndarray | None:
    """Converts a tensor of a source framework to the layout of kerasdet's variables.

    Kernels of convolutions become (h, w, in, out), of depthwise convolutions (h, w, in, 1) and of transposed
    convolutions (h, w, out, in); matrices become (in, out). Deltas become (dy, dx, dh, dw), distances (t, l, b, r).
    If the source counts the background as the first class, its entries move to the end of the class logits of R-CNNs
    and SSD. Other layers have no background in kerasdet, so its entries are removed.

    Args:
        name: kerasdet's name of the tensor.
        value: Tensor in the layout of the source framework.
        spec: Source of the model, a value of `kerasdet.checkpoints.SOURCES`.

    Returns:
        The converted tensor, or None if `value` cannot be reshaped as `spec` requires. The caller compares the shape of
        the tensor with that of the variable.
    """
    try:
        if "box_deltas/" in name or "box_distances/" in name:
            value = value.reshape(-1, 4, *value.shape[1:])
            if spec.background_first and name.startswith("box_predictor/"):
                value = value[1:]
            value = value[:, [1, 0, 3, 2]].reshape(-1, *value.shape[2:])
        elif spec.kind == "ssd" and name.startswith("head/class_logits/"):
            boxes = DefaultBoxes(**spec.anchors)
            count = boxes.num_anchors[boxes.levels.index(name.split("/")[2])]
            value = np.roll(value.reshape(count, -1, *value.shape[1:]), -1, axis=1).reshape(value.shape)
        elif spec.background_first and name.startswith("head/class_logits/"):
            value = value.reshape(AnchorGenerator(**spec.anchors).num_anchors, -1, *value.shape[1:])[:, 1:]
            value = value.reshape(-1, *value.shape[2:])
        elif spec.background_first and name.startswith("box_predictor/class_logits/"):
            value = np.roll(value, -1, axis=0)
        elif spec.background_first and "/mask_logits/" in name:
            value = value[1:]
        if name == "box_head/fc0/kernel":  # PyTorch flattens features from (C, h, w), kerasdet from (h, w, C)
            pooled = RoIPooler(**spec.roi_heads.get("pooler", {})).output_size
            value = value.reshape(len(value), -1, pooled, pooled).transpose(2, 3, 1, 0)
            return value.reshape(-1, value.shape[-1])
    except ValueError:
        return None
    if value.ndim == 2:
        return value.T
    if name.endswith("/depthwise_conv/kernel"):
        return value.transpose(2, 3, 0, 1) if value.ndim == 4 else value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
