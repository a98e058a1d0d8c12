"""Makes the smallest detectors and datasets, for tests from training to export."""

import contextlib
import json
import resource
import shutil
import signal

import keras
import numpy as np

from kerasdet import FPN, MaskRCNN, ResNet, RetinaNet
from kerasdet.data import CocoDataset, shapes
from kerasdet.geometry.sampling import BalancedSampler
from kerasdet.layers import BoxHead, ConvNorm, ConvTop, MaxPoolTop, RetinaNetHead, make_norm
from kerasdet.models import RPN, KeypointBranch, MaskBranch, Preprocessing, ProposalSelection, RoIHeads
from kerasdet.models.postprocess import Postprocessing

CLASS_NAMES = ("disk", "square", "triangle", "star", "arrow")


@keras.saving.register_keras_serializable(package="tests")
class PlainBackbone(keras.Model):
    """Computes features by plain convolutions: the smallest model that keeps the protocol of backbones."""

    def __init__(self, width=4, features=("c3", "c4", "c5"), norm=None, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.features = tuple(features)
        self.norm = norm
        self.channels = {name: width * 2 ** (int(name[1:]) - 1) for name in features}
        self.strides = {name: 2 ** int(name[1:]) for name in features}
        self.convs = [
            ConvNorm(width * 2**i, 3, strides=2, norm=make_norm(norm), activation="relu", name=f"conv{i}")
            for i in range(5)
        ]
        channels = 3
        for conv in self.convs:
            conv.build((None, None, None, channels))
            channels = conv.conv.filters
        self.built = True

    def call(self, images, training=False):
        x, features = images, {}
        for level, conv in enumerate(self.convs, start=1):
            x = conv(x, training=training)
            features[f"c{level}"] = x
        return {name: features[name] for name in self.features}

    def get_config(self):
        return {**super().get_config(), "width": self.width, "features": self.features, "norm": self.norm}


def backbone(**kwargs):
    return ResNet(**{"depth": 18, "stages": (1, 1, 1, 1), "width": 8, "norm": "bn", **kwargs})


def detector(num_classes=5, seed=0, model_class=RetinaNet, score_threshold=0.05, max_detections=100, **kwargs):
    """Makes a RetinaNet of 100,000 parameters for images of 64x64; `seed` decides its weights."""
    keras.utils.set_random_seed(seed)
    return model_class(
        num_classes,
        **{
            "backbone": backbone(),
            "neck": FPN(channels=16, top=ConvTop(channels=16)),
            "preprocessing": Preprocessing(shortest=64, longest=96),
            "head": RetinaNetHead(num_convs=1),
            "postprocessing": Postprocessing(score_threshold, max_detections=max_detections),
            **kwargs,
        },
    )


def rcnn(num_classes=5, seed=0, branches=None, **kwargs):
    """Makes an R-CNN with masks and keypoints for images of 64x64; `seed` decides its weights."""
    keras.utils.set_random_seed(seed)
    features = ("c2", "c3", "c4", "c5")
    if branches is None:
        branches = [MaskBranch(num_convs=1, channels=8), KeypointBranch(4, num_convs=1, channels=8)]
    return MaskRCNN(
        num_classes,
        **{
            "backbone": backbone(out_features=features),
            "neck": FPN(features, channels=16, top=MaxPoolTop()),
            "preprocessing": Preprocessing(shortest=64, longest=96),
            "rpn": RPN(proposals=ProposalSelection(train_post_nms_top_k=20, post_nms_top_k=20)),
            "roi_heads": RoIHeads(
                box_head=BoxHead(fc_channels=16), branches=branches, sampler=BalancedSampler(16, positive_fraction=0.25)
            ),
            **kwargs,
        },
    )


def talkative(seed=0, **kwargs):
    """Makes a `detector` that finds 20 objects in any image, with scores far apart."""
    model = detector(seed=seed, **{"max_detections": 20, "class_names": CLASS_NAMES, **kwargs})
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "class_logits" in variable.path and variable.name == "kernel":
            variable.assign(rng.normal(0, 2.5, variable.shape))
        if "box_deltas" in variable.path and variable.name == "kernel":
            variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


def shapes_data(folder, num_images=4, seed=0, image_size=(64, 64)):
    return CocoDataset(shapes.write(folder, num_images=num_images, seed=seed, image_size=image_size))


_XML = (
    """<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
)
_OBJECT = """<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>
<ymax>{3}</ymax></bndbox></object>"""


def as_voc(annotations, folder, splits):
    """Writes a COCO dataset as a Pascal VOC folder; each split lists all images."""
    data = json.loads(annotations.read_text())
    shutil.copytree(annotations.parent / "images", folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = {category["id"]: category["name"] for category in data["categories"]}
    for image in data["images"]:
        boxes = [(names[a["category_id"]], a["bbox"]) for a in data["annotations"] if a["image_id"] == image["id"]]
        objects = "".join(_OBJECT.format(x + 1, y + 1, x + w, y + h, name=name) for name, (x, y, w, h) in boxes)
        stem = image["file_name"].removesuffix(".jpg")
        xml = _XML.format(width=image["width"], height=image["height"], objects=objects)
        (folder / "Annotations" / f"{stem}.xml").write_text(xml)
        for split in splits:
            with (folder / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
                file.write(f"{stem}\n")
    return folder


def images(seed=0, sizes=((64, 64), (50, 90), (120, 70))):
    """Makes random images of 8x8 blocks, uint8."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        pictures.append(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
    return pictures


def weights(model):
    return [np.array(variable) for variable in model.variables]


@contextlib.contextmanager
def disk(size):
    """Limits files to `size` bytes inside the block, so that a larger write fails like on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
