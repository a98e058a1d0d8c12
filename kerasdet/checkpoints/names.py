"""What each source framework calls the tensors of a model.

The left column is kerasdet's name of a layer, the right one the framework's. A word in braces on the left is a number;
on the right these and what `_numbers` makes of them can stand.
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
    },
    "detectron2": {
        "backbone/stem/conv": "{backbone}stem.conv1",
        "backbone/stem/norm": "{backbone}stem.conv1.norm",
        "backbone/c{stage}_{block}/conv{conv}/conv": "{backbone}res{stage}.{block}.conv{conv}",
        "backbone/c{stage}_{block}/conv{conv}/norm": "{backbone}res{stage}.{block}.conv{conv}.norm",
        "backbone/c{stage}_{block}/shortcut/conv": "{backbone}res{stage}.{block}.shortcut",
        "backbone/c{stage}_{block}/shortcut/norm": "{backbone}res{stage}.{block}.shortcut.norm",
        "neck/lateral_c{stage}/conv": "backbone.fpn_lateral{stage}",
        "neck/output_c{stage}/conv": "backbone.fpn_output{stage}",
        "neck/top/conv{i}/conv": "backbone.top_block.p{extra}",
        "head/class_tower/conv{i}/conv": "head.cls_subnet.{twice}",
        "head/class_logits/conv": "head.cls_score",
        "head/box_tower/conv{i}/conv": "head.bbox_subnet.{twice}",
        "head/box_deltas/conv": "head.bbox_pred",
    },
    "mmdet": {
        **_TORCH_RESNET,
        "neck/lateral_c{stage}/conv": "neck.lateral_convs.{level}.conv",
        "neck/output_c{stage}/conv": "neck.fpn_convs.{level}.conv",
        "neck/top/conv{i}/conv": "neck.fpn_convs.{after_c5}.conv",
        "head/class_tower/conv{i}/conv": "bbox_head.cls_convs.{i}.conv",
        "head/class_logits/conv": "bbox_head.retina_cls",
        "head/box_tower/conv{i}/conv": "bbox_head.reg_convs.{i}.conv",
        "head/box_deltas/conv": "bbox_head.retina_reg",
    },
}

# Where the backbone's tensors are in the file of a detector.
BACKBONE_PREFIXES = {"torchvision": "backbone.body.", "detectron2": "backbone.bottom_up.", "mmdet": "backbone."}

# Entries that are no weights of ours: counters, buffers, and the classifiers of ImageNet files.
IGNORED = re.compile(
    r"num_batches_tracked$|^anchor_generator\.|^pixel_(mean|std)$|^data_preprocessor\.|^fc\.|^fc1000|^stem\.fc\.|^pred"
)

# Names inside published files that differ from what today's builders save.
_TORCHVISION_OLDER = [(r"(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)$", r"\1.\2.0.\3")] + [
    (rf"_head\.conv\.{2 * i}\.(weight|bias)$", rf"_head.conv.{i}.0.\1") for i in range(4)
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
    """Today's name of every entry of a file: its own name -> what the framework's builders save now."""
    names = list(names)
    if framework == "torchvision":
        rules = _TORCHVISION_OLDER
    elif framework == "detectron2" and any(name.startswith(("conv1_", "res_conv1_", "res2_0_")) for name in names):
        rules = _CAFFE2
    else:
        rules = []
    return {name: _rewrite(name, rules) for name in names}


def _rewrite(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def source_name(name: str, framework: str, *, backbone_only: bool, finest: int) -> str:
    """What a framework calls a tensor of kerasdet.

    Args:
        name: Such as ``backbone/c3_0/conv1/conv/kernel``.
        framework: A key of `LAYERS`.
        backbone_only: Whether the file holds a backbone alone.
        finest: The stage of the finest level of the neck, 3 for ``c3``.

    Raises:
        KeyError: If the framework has no such layer.
    """
    layer, parameter = name.rsplit("/", 1)
    for ours, theirs in LAYERS[framework].items():
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
        "extra": 6 + i,
        "after_c5": 6 - finest + i,
    }
