"""Maps kerasdet's names of a model's tensors to the names in each source framework.

In `LAYERS`, keys are kerasdet's names of layers, and values are the framework's names. A word in braces in a key
matches a number. A value may contain these numbers, and numbers that `_numbers` derives from these.
"""

import re
from collections.abc import Iterable, Mapping

PARAMETERS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "scale": "scale",
    "scale_weight": "scale_weight",
}

_TORCH_RESNET = {
    "backbone/stem/conv": "{backbone}conv1",
    "backbone/stem/norm": "{backbone}bn1",
    "backbone/c{stage}_{block}/conv{conv}/conv": "{backbone}layer{layer}.{block}.conv{conv}",
    "backbone/c{stage}_{block}/conv{conv}/norm": "{backbone}layer{layer}.{block}.bn{conv}",
    "backbone/c{stage}_{block}/shortcut/conv": "{backbone}layer{layer}.{block}.downsample.0",
    "backbone/c{stage}_{block}/shortcut/norm": "{backbone}layer{layer}.{block}.downsample.1",
}

LAYERS = {
    "torchvision": {
        **_TORCH_RESNET,
        "neck/lateral_c{stage}/conv": "backbone.fpn.inner_blocks.{level}.0",
        "neck/output_c{stage}/conv": "backbone.fpn.layer_blocks.{level}.0",
        "neck/top/conv{i}/conv": "backbone.fpn.extra_blocks.p{extra}",
        "head/class_tower/conv{i}/conv": "head.classification_head.conv.{i}.0",
        "head/class_tower/norm{i}_shared": "head.classification_head.conv.{i}.1",
        "head/class_logits/conv": "head.classification_head.cls_logits",
        "head/box_tower/conv{i}/conv": "head.regression_head.conv.{i}.0",
        "head/box_tower/norm{i}_shared": "head.regression_head.conv.{i}.1",
        "head/box_deltas/conv": "head.regression_head.bbox_reg",
        "head/box_distances/conv": "head.regression_head.bbox_reg",
        "head/centerness/conv": "head.regression_head.bbox_ctrness",
        "neck/lateral_c{stage}/norm": "backbone.fpn.inner_blocks.{level}.1",
        "neck/output_c{stage}/norm": "backbone.fpn.layer_blocks.{level}.1",
        "rpn/head/conv{i}/conv": "rpn.head.conv.{i}.0",
        "rpn/head/objectness/conv": "rpn.head.cls_logits",
        "rpn/head/box_deltas/conv": "rpn.head.bbox_pred",
        "box_head/fc{i}": "roi_heads.box_head.fc{from_6}",
        "box_predictor/class_logits": "roi_heads.box_predictor.cls_score",
        "box_predictor/box_deltas": "roi_heads.box_predictor.bbox_pred",
        "mask_branch/head/conv{i}/conv": "roi_heads.mask_head.{i}.0",
        "mask_branch/head/conv{i}/norm": "roi_heads.mask_head.{i}.1",
        "mask_branch/head/deconv": "roi_heads.mask_predictor.conv5_mask",
        "mask_branch/head/mask_logits/conv": "roi_heads.mask_predictor.mask_fcn_logits",
        "keypoint_branch/head/conv{i}/conv": "roi_heads.keypoint_head.{twice}",
        "keypoint_branch/head/deconv": "roi_heads.keypoint_predictor.kps_score_lowres",
    },
    "detectron2": {
        "backbone/stem/conv": "{backbone}stem.conv1",
        "backbone/stem/norm": "{backbone}stem.conv1.norm",
        "backbone/c{stage}_{block}/conv{conv}/conv": "{backbone}res{stage}.{block}.conv{conv}",
        "backbone/c{stage}_{block}/conv{conv}/norm": "{backbone}res{stage}.{block}.conv{conv}.norm",
        "backbone/c{stage}_{block}/shortcut/conv": "{backbone}res{stage}.{block}.shortcut",
        "backbone/c{stage}_{block}/shortcut/norm": "{backbone}res{stage}.{block}.shortcut.norm",
        "backbone/c{stage}_{block}/conv2/offset": "{backbone}res{stage}.{block}.conv2_offset",
        "neck/lateral_c{stage}/conv": "backbone.fpn_lateral{stage}",
        "neck/output_c{stage}/conv": "backbone.fpn_output{stage}",
        "neck/top/conv{i}/conv": "backbone.top_block.p{extra}",
        "head/class_tower/conv{i}/conv": "head.cls_subnet.{twice}",
        "head/class_logits/conv": "head.cls_score",
        "head/box_tower/conv{i}/conv": "head.bbox_subnet.{twice}",
        "head/box_deltas/conv": "head.bbox_pred",
        "head/box_distances/conv": "head.bbox_pred",
        "head/centerness/conv": "head.ctrness",
        "rpn/head/conv{i}/conv": "proposal_generator.rpn_head.conv",
        "rpn/head/objectness/conv": "proposal_generator.rpn_head.objectness_logits",
        "rpn/head/box_deltas/conv": "proposal_generator.rpn_head.anchor_deltas",
        "box_head/fc{i}": "roi_heads.box_head.fc{from_1}",
        "box_predictor/class_logits": "roi_heads.box_predictor.cls_score",
        "box_predictor/box_deltas": "roi_heads.box_predictor.bbox_pred",
        "mask_branch/head/conv{i}/conv": "roi_heads.mask_head.mask_fcn{from_1}",
        "mask_branch/head/deconv": "roi_heads.mask_head.deconv",
        "mask_branch/head/mask_logits/conv": "roi_heads.mask_head.predictor",
        "keypoint_branch/head/conv{i}/conv": "roi_heads.keypoint_head.conv_fcn{from_1}",
        "keypoint_branch/head/deconv": "roi_heads.keypoint_head.score_lowres",
    },
    "mmdet": {
        **_TORCH_RESNET,
        "backbone/c{stage}_{block}/conv2/offset": "{backbone}layer{layer}.{block}.conv2.conv_offset",
        "neck/lateral_c{stage}/conv": "neck.lateral_convs.{level}.conv",
        "neck/output_c{stage}/conv": "neck.fpn_convs.{level}.conv",
        "neck/top/conv{i}/conv": "neck.fpn_convs.{after_c5}.conv",
        "head/class_tower/conv{i}/conv": "bbox_head.cls_convs.{i}.conv",
        "head/class_tower/conv{i}/offset": "bbox_head.cls_convs.{i}.conv.conv_offset",
        "head/class_tower/norm{i}_shared": "bbox_head.cls_convs.{i}.gn",
        "head/class_logits/conv": "bbox_head.retina_cls",
        "head/box_tower/conv{i}/conv": "bbox_head.reg_convs.{i}.conv",
        "head/box_tower/conv{i}/offset": "bbox_head.reg_convs.{i}.conv.conv_offset",
        "head/box_tower/norm{i}_shared": "bbox_head.reg_convs.{i}.gn",
        "head/box_deltas/conv": "bbox_head.retina_reg",
        "head/box_distances/conv": "bbox_head.conv_reg",
        "head/centerness/conv": "bbox_head.conv_centerness",
        "head/scale_p{stage}": "bbox_head.scales.{level}",
        "rpn/head/conv{i}/conv": "rpn_head.rpn_conv",
        "rpn/head/objectness/conv": "rpn_head.rpn_cls",
        "rpn/head/box_deltas/conv": "rpn_head.rpn_reg",
        "box_head/fc{i}": "roi_head.bbox_head.shared_fcs.{i}",
        "box_predictor/class_logits": "roi_head.bbox_head.fc_cls",
        "box_predictor/box_deltas": "roi_head.bbox_head.fc_reg",
        "mask_branch/head/conv{i}/conv": "roi_head.mask_head.convs.{i}.conv",
        "mask_branch/head/deconv": "roi_head.mask_head.upsample",
        "mask_branch/head/mask_logits/conv": "roi_head.mask_head.conv_logits",
    },
}


def _csp_layer(ours, theirs):
    """Returns the names of a `CSPLayer` in mmdetection."""
    rows = {
        **{f"{part}/conv": f"{part}_conv.conv" for part in ("main", "short", "final")},
        **{f"{part}/norm": f"{part}_conv.bn" for part in ("main", "short", "final")},
        "attention/fc/conv": "attention.fc",
        "block{i}/conv1/conv": "blocks.{i}.conv1.conv",
        "block{i}/conv1/norm": "blocks.{i}.conv1.bn",
        "block{i}/depthwise/depthwise_conv": "blocks.{i}.conv2.depthwise_conv.conv",
        "block{i}/depthwise/norm": "blocks.{i}.conv2.depthwise_conv.bn",
        "block{i}/pointwise/conv": "blocks.{i}.conv2.pointwise_conv.conv",
        "block{i}/pointwise/norm": "blocks.{i}.conv2.pointwise_conv.bn",
    }
    return {f"{ours}/{mine}": f"{theirs}.{source}" for mine, source in rows.items()}


def _conv_norm(ours, theirs):
    """Returns the names of a `ConvNorm` in mmdetection."""
    return {f"{ours}/conv": f"{theirs}.conv", f"{ours}/norm": f"{theirs}.bn"}


# Rows for mmdetection's RTMDet, which take precedence over those of `LAYERS`
CSPNEXT = {
    **_conv_norm("backbone/stem{i}", "{backbone}stem.{i}"),
    **_conv_norm("backbone/c{stage}_down", "{backbone}stage{layer}.0"),
    **_conv_norm("backbone/c{stage}_spp/conv{conv}", "{backbone}stage{layer}.1.conv{conv}"),
    **_csp_layer("backbone/c5_csp", "{backbone}stage4.2"),
    **_csp_layer("backbone/c{stage}_csp", "{backbone}stage{layer}.1"),
}
RTMDET = {
    **CSPNEXT,
    **_conv_norm("neck/reduce_p5", "neck.reduce_layers.0"),
    **_conv_norm("neck/reduce_p4", "neck.reduce_layers.1"),
    **_csp_layer("neck/top_down_p4", "neck.top_down_blocks.0"),
    **_csp_layer("neck/top_down_p3", "neck.top_down_blocks.1"),
    **_conv_norm("neck/down_p{stage}", "neck.downsamples.{level}"),
    **_csp_layer("neck/bottom_up_p4", "neck.bottom_up_blocks.0"),
    **_csp_layer("neck/bottom_up_p5", "neck.bottom_up_blocks.1"),
    **_conv_norm("neck/output_p{stage}", "neck.out_convs.{level}"),
    "head/class_tower/conv{i}/conv": "bbox_head.cls_convs.0.{i}.conv",
    "head/class_tower/norm{i}_p{stage}": "bbox_head.cls_convs.{level}.{i}.bn",
    "head/box_tower/conv{i}/conv": "bbox_head.reg_convs.0.{i}.conv",
    "head/box_tower/norm{i}_p{stage}": "bbox_head.reg_convs.{level}.{i}.bn",
    "head/class_logits/p{stage}/conv": "bbox_head.rtm_cls.{level}",
    "head/box_distances/p{stage}/conv": "bbox_head.rtm_reg.{level}",
    "mask_branch/kernel_tower_p{stage}/conv{i}/conv": "bbox_head.kernel_convs.{level}.{i}.conv",
    "mask_branch/kernel_tower_p{stage}/norm{i}_p{same_stage}": "bbox_head.kernel_convs.{level}.{i}.bn",
    "mask_branch/kernels/p{stage}/conv": "bbox_head.rtm_kernel.{level}",
    "mask_branch/fusion/conv": "bbox_head.mask_head.fusion_conv",
    **_conv_norm("mask_branch/conv{i}", "bbox_head.mask_head.stacked_convs.{i}"),
    "mask_branch/projection/conv": "bbox_head.mask_head.projection",
}
# These files list some tensors under several names. Pattern of the other names -> the name in `RTMDET`
RTMDET_TIED = ((r"^(bbox_head\.(?:cls|reg)_convs)\.[1-9]\.(\d+\.conv\.weight)$", r"\1.0.\2"),)
RTMDET_INS_TIED = ((r"^bbox_head\.reg_convs\.", "bbox_head.cls_convs."), *RTMDET_TIED)


_EXCITING = (4, 5, 6, 11, 12, 13, 14, 15)  # blocks of MobileNetV3 with squeeze and excitation


def _mobilenet_v3(theirs, theirs_of_tail=None):
    """Returns the names of a `MobileNetV3` in torchvision.

    Args:
        theirs: Prefix of the layers, which torchvision numbers.
        theirs_of_tail: Prefix of the layers after the first convolution of block 13, which SSDLite numbers from 0.
            None: all layers have the prefix `theirs`.
    """
    rows = {"stem": f"{theirs}.0", "last": f"{theirs}.16" if theirs_of_tail is None else f"{theirs_of_tail}.3"}
    for number in range(1, 16):
        parts = ["expand"] * (number > 1) + ["depthwise"] + ["excite"] * (number in _EXCITING) + ["reduce"]
        for index, part in enumerate(parts):
            name = f"{theirs}.{number}.block.{index}"
            if theirs_of_tail is not None and number >= 13:
                name = f"{theirs_of_tail}.{number - 13}.block.{index}"
                if number == 13:
                    name = f"{theirs}.13" if part == "expand" else f"{theirs_of_tail}.0.{index}"
            rows[f"block{number}/{part}"] = name
    names = {}
    for ours, name in rows.items():
        if ours.endswith("excite"):
            names |= {f"backbone/{ours}/squeeze/conv": f"{name}.fc1", f"backbone/{ours}/weigh/conv": f"{name}.fc2"}
            continue
        conv = "depthwise_conv" if ours.endswith("depthwise") else "conv"
        names |= {f"backbone/{ours}/{conv}": f"{name}.0", f"backbone/{ours}/norm": f"{name}.1"}
    return names


# Rows for torchvision's mobile detectors and SSD, which take precedence over those of `LAYERS`
MOBILENET_V3 = _mobilenet_v3("features")
FASTER_RCNN_MOBILENET = {
    **_mobilenet_v3("backbone.body"),
    "neck/lateral_c5_first/conv": "backbone.fpn.inner_blocks.0.0",
    "neck/lateral_c5/conv": "backbone.fpn.inner_blocks.1.0",
    "neck/output_c5_first/conv": "backbone.fpn.layer_blocks.0.0",
    "neck/output_c5/conv": "backbone.fpn.layer_blocks.1.0",
}
SSDLITE = {
    **_mobilenet_v3("backbone.features.0", "backbone.features.1"),
    **{
        f"neck/extra{{i}}_{part}/{layer}": f"backbone.extra.{{i}}.{index}.{theirs}"
        for index, (part, conv) in enumerate([("reduce", "conv"), ("depthwise", "depthwise_conv"), ("expand", "conv")])
        for theirs, layer in enumerate([conv, "norm"])
    },
    **{
        f"head/{ours}_depthwise/p{{stage}}/{layer}": f"head.{theirs}.module_list.{{level}}.0.{index}"
        for ours, theirs in (("class", "classification_head"), ("box", "regression_head"))
        for index, layer in enumerate(["depthwise_conv", "norm"])
    },
    "head/class_logits/p{stage}/conv": "head.classification_head.module_list.{level}.1",
    "head/box_deltas/p{stage}/conv": "head.regression_head.module_list.{level}.1",
}
SSD_VGG = {
    **{
        f"backbone/conv{stage}_{i + 1}/conv": f"backbone.{theirs}.{first + 2 * i}"
        for stage, count, theirs, first in (
            (1, 2, "features", 0),
            (2, 2, "features", 5),
            (3, 3, "features", 10),
            (4, 3, "features", 17),
            (5, 3, "extra.0", 1),
        )
        for i in range(count)
    },
    "backbone/conv6/conv": "backbone.extra.0.7.1",
    "backbone/conv7/conv": "backbone.extra.0.7.3",
    "neck": "backbone",  # for the neck's own parameter, scale_weight
    "neck/extra{i}_reduce/conv": "backbone.extra.{from_1}.0",
    "neck/extra{i}_conv/conv": "backbone.extra.{from_1}.2",
    "head/class_logits/p{stage}/conv": "head.classification_head.module_list.{level}",
    "head/box_deltas/p{stage}/conv": "head.regression_head.module_list.{level}",
}

# Prefix of the backbone's tensors in the file of a detector.
BACKBONE_PREFIXES = {"torchvision": "backbone.body.", "detectron2": "backbone.bottom_up.", "mmdet": "backbone."}

# Entries that kerasdet's models do not have: counters, buffers, and classifiers of ImageNet.
IGNORED = re.compile(
    r"num_batches_tracked$|(^|\.)anchor_generator\.|^pixel_(mean|std)$|^data_preprocessor\.|^fc\.|^fc1000|^stem\.fc\.|^pred"
    r"|^head\.fc\.|^classifier\."
)
# Caffe's ImageNet files have biases before a norm, which detectron2 and mmdetection ignore.
_CAFFE_BIASES = re.compile(r"^stem\.conv1\.bias$|^(layer\d\.\d+\.)?(conv\d|downsample\.0)\.bias$")

# Published files use older names than the current releases of the frameworks save.
_TORCHVISION_OLDER = [
    (r"(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)$", r"\1.\2.0.\3"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    *((rf"mask_head\.mask_fcn{i + 1}\.(weight|bias)$", rf"mask_head.{i}.0.\1") for i in range(4)),
]
# Only RetinaNet's towers were renamed. FCOS' towers still number convolutions, norms and ReLUs in one sequence, so
# their conv.1 is a norm.
_TORCHVISION_OLDER_TOWERS = [(rf"_head\.conv\.{2 * i}\.(weight|bias)$", rf"_head.conv.{i}.0.\1") for i in range(4)]
_MMDET_OLDER = [
    (r"^bbox_head\.fcos_(cls|reg|centerness)\.", r"bbox_head.conv_\1."),
    (r"(?<!conv\.)(?<!conv\d\.)\b(conv\d?)_offset\.", r"\1.conv_offset."),
]
_CAFFE2 = [
    (r"_", "."),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
    (r"bn\.(s|gamma)$", "norm.weight"),
    (r"bn\.(bias|beta)$", "norm.bias"),
    (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
]


def modern_names(names: Iterable[str], framework: str) -> dict[str, str]:
    """Maps every name in a file to the name that the current release of the framework uses for the tensor.

    Args:
        names: Names in the file.
        framework: Name of the source framework, a key of `LAYERS`.

    Returns:
        A dict from name in the file to current name.
    """
    names = list(names)
    if framework == "torchvision":
        has_norms = "head.classification_head.conv.1.weight" in names
        rules = _TORCHVISION_OLDER if has_norms else _TORCHVISION_OLDER + _TORCHVISION_OLDER_TOWERS
    elif framework == "mmdet":
        rules = _MMDET_OLDER
        if all(name.startswith(("backbone.", "head.fc.")) for name in names):  # an ImageNet classifier of mmpretrain
            rules = [*rules, (r"^backbone\.", "")]
    elif framework == "detectron2" and any(name.startswith(("conv1_", "res_conv1_", "res2_0_")) for name in names):
        rules = _CAFFE2
    else:
        rules = []
    return {name: _rewrite(name, rules) for name in names}


def is_ignored(name: str, framework: str) -> bool:
    """Tells whether an entry of a file has no counterpart in kerasdet's models, so that conversion leaves it out.

    Args:
        name: Current name of the entry, see `modern_names`.
        framework: Name of the source framework, a key of `LAYERS`.

    Returns:
        True for counters, buffers, ImageNet classifiers and, except in torchvision, biases before a norm.
    """
    return bool(IGNORED.search(name) or (framework != "torchvision" and _CAFFE_BIASES.search(name)))


def untied_name(name: str, tied: Iterable[tuple[str, str]]) -> str:
    """Returns the main name of a tensor that a file contains several times under different names.

    Args:
        name: Current name of the entry, see `modern_names`.
        tied: Pairs of a regular expression and its replacement, such as `RTMDET_TIED`.

    Returns:
        The name that `source_name` returns for the tensor; `name` itself if no pair matches.
    """
    return _rewrite(name, tied)


def _rewrite(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def source_name(name: str, framework: str, exceptions: Mapping[str, str], *, backbone_only: bool, finest: int) -> str:
    """Converts kerasdet's name of a tensor to the framework's name.

    Args:
        name: kerasdet's name of the tensor, such as ``backbone/c3_0/conv1/conv/kernel``.
        framework: Name of the source framework, a key of `LAYERS`.
        exceptions: Additional rows in the form of `LAYERS[framework]`, which take precedence.
        backbone_only: Whether the file contains only a backbone.
        finest: Number of the neck's finest level, such as 3 for ``p3``.

    Returns:
        The name of the tensor in files of the framework's current release.

    Raises:
        KeyError: If the framework has no such layer.
    """
    layer, parameter = name.rsplit("/", 1)
    for ours, theirs in {**exceptions, **{k: v for k, v in LAYERS[framework].items() if k not in exceptions}}.items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", ours), layer)
        if match:
            prefix = "" if backbone_only else BACKBONE_PREFIXES[framework]
            numbers = _numbers({key: int(value) for key, value in match.groupdict().items()}, finest)
            return f"{theirs.format(backbone=prefix, **numbers)}.{PARAMETERS[parameter]}"
    raise KeyError(f"{framework} has no layer that corresponds to {layer}.")


def _numbers(groups: Mapping[str, int], finest: int) -> dict[str, int]:
    stage, i = groups.get("stage", 0), groups.get("i", 0)
    return {
        **groups,
        "layer": stage - 1,
        "level": stage - finest,
        "twice": 2 * i,
        "thrice": 3 * i,
        "thrice_and_1": 3 * i + 1,
        "extra": 6 + i,
        "after_c5": 6 - finest + i,
        "from_1": 1 + i,
        "from_6": 6 + i,
    }
