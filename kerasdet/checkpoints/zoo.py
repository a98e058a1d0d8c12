"""Lists the published weights that kerasdet can download by name. The table is the file ``zoo.txt``."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from kerasdet.checkpoints.sources import SOURCES
from kerasdet.data.annotations import TYPE_NAMES
from kerasdet.data.categories import UNUSED

# COCO's names by category id. torchvision's detectors have a class for each id from 1 to 90, used or not.
_COCO = {
    **dict(enumerate(["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"], 1)),
    **{10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench"},
    **dict(enumerate(["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"], 16)),
    **{27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis"},
    **{36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard"},
    **{42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass"},
    **dict(
        enumerate(
            ["cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot"], 47
        )
    ),
    **{58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed"},
    **{67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard"},
    **{77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book"},
    **{85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush"},
}
COCO_CLASSES = tuple(_COCO.values())
COCO_CLASSES_BY_ID = tuple(_COCO.get(category_id, UNUSED) for category_id in range(1, 91))

# Licences that the publishers state for the weights. The training data have their own licences.
LICENSES = {"torchvision": "BSD-3-Clause", "detectron2": "CC BY-SA 3.0", "mmdet": "Apache-2.0"}
# Names of models with a configuration but without published weights
UNPUBLISHED = (
    "detectron2/fcos_R_50_FPN",
    "mmdet/fcos_center_r50_caffe_fpn_gn-head",
)

_VARIANT = re.compile(r"_(1x|2x|imagenet_v2)$")
_HASHES = (("sha256", r"-([0-9a-f]{8})\.pth$"), ("md5", r"/model_final_([0-9a-f]{6})\.pkl$"))


@dataclass(frozen=True)
class Weights:
    """Describes a published file of weights.

    Args:
        name: Name in kerasdet, such as ``mmdet/retinanet_r50_fpn_1x``.
        box_ap: AP of boxes on COCO val2017 in percent. None for a backbone or a proposal network.
        branch_ap: AP of masks or keypoints on COCO val2017 in percent. None if the model predicts neither.
        megabytes: Size of the file in millions of bytes.
        url: URL of the file.
    """

    name: str
    box_ap: float | None
    branch_ap: float | None
    megabytes: int
    url: str

    @property
    def source(self) -> str:
        """Name of the source model, a key of `kerasdet.checkpoints.SOURCES`."""
        return _VARIANT.sub("", self.name)

    @property
    def task(self) -> str:
        """Kind of model: "backbone", "proposals", or what it detects, a value of `TYPE_NAMES` such as "boxes"."""
        spec = SOURCES[self.source]
        if spec.kind in ("backbone", "rpn"):
            return "backbone" if spec.kind == "backbone" else "proposals"
        return TYPE_NAMES["keypoints" if spec.keypoint is not None else "segm" if spec.mask is not None else "bbox"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the class ids; empty for a backbone."""
        if self.task == "backbone":
            return ()
        if self.task in ("keypoints", "proposals"):
            return ("person" if self.task == "keypoints" else "object",)
        return COCO_CLASSES_BY_ID if self.name.startswith("torchvision/") else COCO_CLASSES

    @property
    def license(self) -> str:
        """Licence of the weights, as the publisher states it."""
        return LICENSES[self.name.partition("/")[0]]

    @property
    def digest(self) -> tuple[str, str] | None:
        """Algorithm and first hexadecimal digits of the file's hash; None if the publisher states no hash."""
        found = ((algorithm, re.search(pattern, self.url)) for algorithm, pattern in _HASHES)
        return next(((algorithm, match[1]) for algorithm, match in found if match), None)


def _read_table():
    rows = {}
    for line in Path(__file__).with_name("zoo.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, box_ap, branch_ap, megabytes, url = line.split()
            aps = (None if ap == "-" else float(ap) for ap in (box_ap, branch_ap))
            rows[name] = Weights(name, *aps, int(megabytes), url)
    return rows


ZOO = _read_table()


def is_name(text: str) -> bool:
    """Tells whether a string has the form of a name in the zoo: a framework, a slash and no further slash.

    Args:
        text: Any string.

    Returns:
        True if the string has this form; the name need not exist.
    """
    framework, slash, model = text.partition("/")
    return framework in LICENSES and bool(slash and model) and "/" not in model


def similar(text: str) -> str:
    """Finds the name of published weights that differs from a text only in the framework or in few letters.

    Args:
        text: Any string, such as ``rtmdet-tiny`` or ``mmdetection/rtmdet_tiny``.

    Returns:
        The most similar name, such as ``mmdet/rtmdet_tiny``; an empty string if no name is similar.
    """
    models = {name.partition("/")[2].lower(): name for name in reversed(ZOO)}
    wanted = text.rpartition("/")[2].lower().removesuffix("_3x")  # detectron2's longest schedule has the plain name
    found = difflib.get_close_matches(wanted, models, n=1, cutoff=0.85)
    return models[found[0]] if found else ""


def find(name: str) -> Weights:
    """Looks up published weights by name.

    Args:
        name: Name in the zoo, such as ``torchvision/maskrcnn_resnet50_fpn_v2``.

    Returns:
        The description of the published file.

    Raises:
        FileNotFoundError: If the zoo has no weights with this name.
    """
    if name in ZOO:
        return ZOO[name]
    if name in UNPUBLISHED:
        framework = name.partition("/")[0]
        reason = (
            f"{framework} publishes no weights of {name}: convert your own with `kerasdet convert --source {name}`."
        )
    else:
        lower = {other.lower(): other for other in ZOO}
        # "torchvision/retinanet" is a part of names, not a misspelt "torchvision/resnet".
        containing = [other for other in lower if name.lower() in other]
        near = [lower[other] for other in containing[:3] or difflib.get_close_matches(name.lower(), lower, n=3)]
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        reason = (
            f"There is no file or folder {name}, and no such name in the zoo. {meant}`kerasdet zoo` lists the names."
        )
    raise FileNotFoundError(reason)
