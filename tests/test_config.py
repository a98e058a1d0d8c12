import json
import math
import re
import sys

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import shared

from kerasdet import FPN, ResNet, RetinaNet, RTMDet, RTMDetIns, config, load, losses
from kerasdet.checkpoints import SOURCES
from kerasdet.checkpoints.build import with_parts
from kerasdet.checkpoints.sources import RTMDET_SIZES
from kerasdet.data import RandomFlip, ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder, DistanceCoder
from kerasdet.geometry.matching import FCOSMatcher, IoUMatcher
from kerasdet.layers import ConvTop, CSPNeXt, CSPNeXtPAFPN, FCOSHead, RetinaNetHead
from kerasdet.losses import FocalLoss
from kerasdet.models import RPN, Detector, MaskBranch, Preprocessing, RoIHeads
from kerasdet.models.common import LossNormalizer
from kerasdet.models.postprocess import Postprocessing

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
FILES = sorted(config.GIN_CONFIGS.glob("*.gin"))
SHAPES = "retinanet_r18_fpn_shapes"
TINY = (
    "ResNet.width=8",
    "ResNet.stages=(1, 1, 1, 1)",
    "FPN.channels=32",
    "CSPNeXt.deepen_factor=0.167",
    "CSPNeXt.widen_factor=0.125",
    "CSPNeXtPAFPN.channels=16",
    "CSPNeXtPAFPN.num_blocks=1",
    "ConvTop.channels=32",
    "RetinaNetHead.num_convs=1",
    "FCOSHead.num_convs=1",
    "RTMDetHead.num_convs=1",
    "DynamicMaskBranch.num_convs=1",
    "DynamicMaskBranch.feature_convs=1",
    "BoxHead.fc_channels=16",
    "MaskBranch.channels=8",
    "KeypointBranch.channels=8",
    "ProposalSelection.train_post_nms_top_k=20",
    "ProposalSelection.post_nms_top_k=20",
    f"VocDataset.class_names={tiny.CLASS_NAMES}",
    "train/shapes_dataset.num_images=2",
    "eval/shapes_dataset.num_images=2",
)


@pytest.fixture(autouse=True)
def clear_configuration():
    yield
    gin.clear_config()
    keras.mixed_precision.set_global_policy("float32")
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """Returns a folder with tiny data in two formats, and backbones and a detector for CHECKPOINT."""
    folder = tmp_path_factory.mktemp("material")
    data = tiny.shapes_data(folder / "data", num_images=4)
    tiny.as_voc(data.annotations, folder / "voc", ["trainval", "test"])
    kinds = {"basic": {}, "bottleneck": {}, "caffe": {"block": "bottleneck", "stride_in_1x1": True}}
    for block, options in kinds.items():
        backbone = tiny.backbone(**{"norm": "frozen_bn", "block": block, **options})
        for variable in backbone.variables:
            if variable.name == "moving_mean":  # looks pretrained: training rejects frozen random layers
                variable.assign_add(np.full(variable.shape, 0.01))
        backbone.save(folder / f"{block}.keras")
    CSPNeXt(0.167, 0.125).save(folder / "cspnext.keras")
    tiny.detector(num_classes=2, class_names=("star", "bird")).save(folder / "detector.keras")
    return folder


def with_includes(path):
    """Returns the text of a gin file and of all files that it includes."""
    text = path.read_text()
    return text + "".join(with_includes(config.GIN_CONFIGS / name) for name in re.findall(r"include '(.*)'", text))


def tiny_overrides(path, material, out_dir):
    """Returns overrides with which a file trains a tiny model for one step on tiny data."""
    text = with_includes(path)
    depth = re.search(r"ResNet\.depth = (\d+)", text)
    backbone = "cspnext" if "CSPNeXt" in text else "basic" if depth and int(depth[1]) < 50 else "bottleneck"
    backbone = "caffe" if "ResNet.stride_in_1x1 = True" in text else backbone
    annotations = material / "data" / "annotations.json"
    macros = {
        "OUT_DIR": out_dir,
        "STEPS": 1,
        "BATCH_SIZE": 2,
        "NUM_CLASSES": 5,
        "SHORTEST_EDGE": 64,
        "LONGEST_EDGE": 96,
        "TRAIN_DIR": out_dir.parent / "train",
        "EVAL_DIR": out_dir.parent / "eval",
        "TRAIN_ANNOTATIONS": annotations,
        "EVAL_ANNOTATIONS": annotations,
        "TRAIN_IMAGES": None,
        "EVAL_IMAGES": None,
        "TRAIN_FOLDERS": (str(material / "voc"),),
        "EVAL_FOLDERS": (str(material / "voc"),),
        "NUM_KEYPOINTS": 4,
        "CHECKPOINT": material / ("detector.keras" if "@pretrained()" in text else f"{backbone}.keras"),
    }
    known = set(re.findall(r"^([A-Z][A-Z0-9_]*) =", text, re.MULTILINE))
    # Some files train at other sizes than SHORTEST_EDGE.
    sizes = ("ResizeShortestEdge.shortest=(64,)", "ResizeShortestEdge.longest=96")
    return [f"{name}={value}" for name, value in macros.items() if name in known] + [*TINY, *sizes]


def configured(name):
    """Makes the object that a parameter refers to."""
    return gin.query_parameter(name).scoped_configurable_fn()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_configures_model_and_optimizer(tmp_path, material, path):
    """Builds everything that the file configures, without a training step."""
    config.load(path.stem, tiny_overrides(path, material, tmp_path / "run"))
    assert config.eval_data().num_classes == 5
    assert configured("train.data").num_classes == 5
    model = configured("train.model")
    assert isinstance(model, Detector)
    assert model.num_classes == 5
    model.compile(optimizer=configured("train.optimizer"))
    if "@backbone_weights()" in with_includes(path):
        source = load(config.macro("CHECKPOINT"))
        if hasattr(source, "widen_factor"):
            assert all(np.array_equal(w, e) for w, e in zip(model.backbone.weights, source.weights, strict=True))
            return
        for name in ("stem", "blocks"):
            ours, theirs = (getattr(backbone, name) for backbone in (model.backbone, source))
            layer, expected = (part[0] if name == "blocks" else part for part in (ours, theirs))
            assert all(np.array_equal(w, e) for w, e in zip(layer.weights, expected.weights, strict=True))


# One file for each kind of model; the slow ones load a backbone from a checkpoint and use other data.
TRAINED = {
    "retinanet_r18_fpn_shapes": "quick",
    "fcos_r18_fpn_shapes": "quick",
    "mask_rcnn_r18_fpn_shapes": "quick",
    "keypoint_rcnn_r18_fpn_shapes": "quick",
    "rtmdet_ins_tiny_shapes": "quick",
    "finetune": "quick",
    "retinanet_r50_fpn_1x": "slow",
    "fcos_r50_caffe_fpn_gn_tricks_dcn_1x": "slow",
    "faster_rcnn_r50_fpn_voc": "slow",
    "mask_rcnn_r18_fpn_dsb": "slow",
    "mmdet_retinanet_r50_fpn_1x": "slow",
    "mmdet_mask_rcnn_r50_caffe_fpn_1x": "slow",
}


# To trace a step takes much longer than to run it once; tests of models and of training trace the steps of all models.
AS_GRAPH = "mask_rcnn_r18_fpn_shapes"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if pace == "slow" else []) for name, pace in TRAINED.items()]
)
def test_file_trains_a_step_and_writes_its_configuration(tmp_path, material, name, caplog):
    out_dir = tmp_path / "run"
    overrides = tiny_overrides(config.GIN_CONFIGS / f"{name}.gin", material, out_dir)
    config.load(name, [*overrides, "train.validation=None"])
    tf.config.run_functions_eagerly(name != AS_GRAPH)
    with caplog.at_level("INFO", "kerasdet"):
        model = config.train()
    if name == "finetune":
        assert (
            "matched by name: star. Classes that start with random weights: disk, square, triangle, arrow."
            in caplog.text
        )
    (line,) = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    assert line["step"] == 1
    assert 0 < line["loss"] < math.inf
    for ours, theirs in zip(tiny.weights(load(out_dir)), tiny.weights(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    written = (out_dir / "config.gin").read_text()
    config.load(out_dir / "config.gin")
    assert gin.config_str(max_line_length=110) == written
    assert config.macro("STEPS") == 1


def test_moved_run_goes_on_in_its_own_folder(tmp_path, caplog):
    run = tmp_path / "moved"
    run.mkdir()
    (run / "config.gin").write_text(f"include '{config.GIN_CONFIGS / SHAPES}.gin'\nOUT_DIR = 'runs/before'\n")
    config.load(run)
    assert config.macro("OUT_DIR") == "runs/before"  # a file of the user, who has not trained here
    (run / "metrics.jsonl").touch()
    for path in (run, run / "config.gin"):
        config.load(path, ["STEPS=7"])
        assert config.macro("OUT_DIR") == str(run)
    with caplog.at_level("INFO", "kerasdet"):
        config.load(run, [f"OUT_DIR={run}"])
        assert not caplog.messages
        config.load(run, ["OUT_DIR=runs/after"])
    assert f"runs/after is a new run with the settings of {run}. To resume {run}, leave out OUT_DIR." in caplog.messages
    assert config.macro("OUT_DIR") == "runs/after"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_documents_its_command(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith(f"# kerasdet train {path.stem}")
    assert len([line for line in lines if not line.startswith("#")]) <= 15


SHORTEST = (640, 672, 704, 736, 768, 800)


MMDET_RECIPES = {
    "fcos_r50_caffe_fpn_gn_1x": ("mmdet/fcos_r50_caffe_fpn_gn-head", "constant", 35.0),
    "fcos_r101_caffe_fpn_gn_1x": ("mmdet/fcos_r101_caffe_fpn_gn-head", "constant", 35.0),
    "fcos_r50_caffe_fpn_gn_tricks_1x": (
        "mmdet/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head",
        "linear",
        None,
    ),
    "fcos_r50_caffe_fpn_gn_tricks_dcn_1x": (
        "mmdet/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn",
        "linear",
        None,
    ),
}


@pytest.mark.parametrize("name", MMDET_RECIPES)
def test_mmdetection_recipe_equals_its_source(name):
    """Compares the parts that a recipe configures with those of a converted checkpoint of the same recipe."""
    source, warmup, clip = MMDET_RECIPES[name]
    config.load(name, ["CHECKPOINT=R-50"])
    assert (config.macro("STEPS"), config.macro("BATCH_SIZE")) == (12 * 7330, 16)
    optimizer, schedule = configured("train.optimizer"), configured("SGD.learning_rate")
    assert (schedule.warmup, optimizer.global_clipnorm) == (warmup, clip)
    rates = [float(schedule(step)) for step in (0, 499, 500, 8 * 7330, 11 * 7330)]
    assert rates == pytest.approx([0.01 / 3, 0.01 / 3 if warmup == "constant" else 0.01, 0.01, 1e-3, 1e-4], rel=2e-3)
    assert (optimizer.momentum, optimizer.l2, optimizer.norm_l2) == (0.9, 1e-4, 1e-4)
    assert (optimizer.bias_l2, optimizer.bias_lr_factor) == (0.0, 2.0)

    spec = SOURCES[source]
    loss_name, loss_arguments = spec.box_loss
    expected = {
        "head": FCOSHead(**spec.head),
        "coder": DistanceCoder(**spec.coder),
        "matcher": FCOSMatcher(**spec.matcher),
        "class_loss": FocalLoss(),
        "box_loss": getattr(losses, loss_name)(**loss_arguments),
        "normalizer": LossNormalizer(**{"start": 300.0, **spec.normalizer}),
        "postprocessing": Postprocessing(**spec.postprocessing),
    }
    for part, theirs in expected.items():
        ours = configured(f"FCOS.{part}")
        assert (type(ours), ours.get_config()) == (type(theirs), theirs.get_config())
    arguments = {"Centerness": spec.centerness, "ResNet": spec.backbone, "ConvTop": spec.top}
    for owner, parameters in {**arguments, "Preprocessing": spec.preprocessing}.items():
        for parameter, argument in parameters.items():
            assert gin.query_parameter(f"{owner}.{parameter}") == argument, parameter


def serialized(part):
    """Serialises a part, without the numbers that Keras gives to names of layers."""
    text = json.dumps(keras.saving.serialize_keras_object(part))
    return json.loads(re.sub(r'("name": "[a-z_]+)_\d+"', r'\1"', text))


MMDET_1X = {
    f"mmdet_{kind}_r{depth}{caffe}_fpn_1x": f"mmdet/{kind}_r{depth}{caffe}_fpn"
    for kind in ("retinanet", "faster_rcnn", "mask_rcnn")
    for depth in (50, 101)
    for caffe in ("", "_caffe")
}


@pytest.mark.parametrize("name", MMDET_1X)
def test_mmdetection_1x_recipe_makes_the_parts_of_its_source(name):
    config.load(name, ["CHECKPOINT=R-50"])
    assert (config.macro("STEPS"), config.macro("BATCH_SIZE")) == (12 * 7330, 16)
    optimizer, schedule = configured("train.optimizer"), configured("SGD.learning_rate")
    rates = [float(schedule(step)) for step in (0, 500, 8 * 7330, 11 * 7330)]
    rate = 0.01 if "retinanet" in name else 0.02
    assert rates == pytest.approx([rate / 1000, rate, rate / 10, rate / 100], rel=2e-3)
    assert (optimizer.momentum, optimizer.l2, optimizer.norm_l2, optimizer.bias_l2) == (0.9, 1e-4, 1e-4, None)

    spec = SOURCES[MMDET_1X[name]]
    if spec.kind == "retinanet":
        model = "RetinaNet"
        expected = {
            "anchors": AnchorGenerator(**spec.anchors),
            "coder": DeltaCoder(**spec.coder),
            "head": RetinaNetHead(**spec.head),
            "matcher": IoUMatcher(**spec.matcher),
            "class_loss": FocalLoss(),
            "box_loss": losses.SmoothL1Loss(),
            "normalizer": LossNormalizer(**spec.normalizer),
            "postprocessing": Postprocessing(**spec.postprocessing),
        }
    else:
        model = "FasterRCNN" if spec.mask is None else "MaskRCNN"
        branches = [] if spec.mask is None else [MaskBranch(**spec.mask)]
        expected = {
            "rpn": RPN(anchors=AnchorGenerator(**spec.anchors), **with_parts(spec.rpn)),
            "roi_heads": RoIHeads(branches=branches, **with_parts(spec.roi_heads)),
        }
    expected["preprocessing"] = Preprocessing(**spec.preprocessing)
    for part, theirs in expected.items():
        ours = configured(f"{model}.{part}")
        assert serialized(ours) == serialized(theirs), part
    for owner, parameters in {"ResNet": spec.backbone, "ConvTop": spec.top}.items():
        for parameter, argument in parameters.items():
            assert gin.query_parameter(f"{owner}.{parameter}") == argument, parameter
    resize = ResizeShortestEdge(rounding="mmdetection", kernel="opencv")
    assert gin.query_parameter("train.transforms")[0].scoped_configurable_fn() == resize


@pytest.mark.parametrize("size", RTMDET_SIZES)
@pytest.mark.parametrize("kind", ["rtmdet", "rtmdet_ins"])
def test_rtmdet_recipe_equals_mmdetection(kind, size):
    config.load(f"{kind}_{size}_300e")
    facts = json.loads(shared("reference/rtmdet/rtmdet_schedule.json").read_text())
    theirs = facts["models"][f"{kind.replace('_', '-')}_{size}"]
    spec = SOURCES[f"mmdet/{kind.replace('_', '-')}_{size}"]
    for owner, parameters in {"CSPNeXt": spec.backbone, "CSPNeXtPAFPN": spec.neck, "DistanceCoder": spec.coder}.items():
        for parameter, argument in parameters.items():
            assert gin.query_parameter(f"{owner}.{parameter}") == argument, parameter
    assert serialized(configured("RTMDet.preprocessing")) == serialized(Preprocessing(**spec.preprocessing))
    default = (RTMDet if kind == "rtmdet" else RTMDetIns)(
        2, backbone=CSPNeXt(0.167, 0.125), neck=CSPNeXtPAFPN(channels=16, num_blocks=1)
    )
    for part in ("postprocessing", "matcher", "class_loss", "box_loss"):
        assert serialized(configured(f"RTMDet.{part}")) == serialized(getattr(default, part)), part
    head = configured("RTMDet.head")
    assert (head.box_tower, head.box_bias) == (default.head.box_tower, default.head.box_bias)

    optimizer, (warmup, cosine) = configured("train.optimizer"), theirs["learning_rate"]
    own, defaults = theirs["optimizer"]["optimizer"], theirs["optimizer"]["defaults"]
    assert (optimizer.weight_decay, optimizer.epsilon) == (own["weight_decay"], defaults["eps"])
    assert not optimizer.decay_norms_and_biases and optimizer.global_clipnorm is None
    assert (optimizer.beta_1, optimizer.beta_2) == tuple(defaults["betas"])
    ema = facts["all"]["ema"]
    assert (1 - optimizer.ema_momentum, optimizer.ema_warmup) == (pytest.approx(ema["momentum"]), ema["gamma"])
    rates, per_epoch, lr = configured("AdamW.learning_rate"), 459, own["lr"]
    steps = [0, warmup["end"] - 1, cosine["begin"] * per_epoch, cosine["end"] * per_epoch]
    assert [float(rates(step)) for step in steps] == pytest.approx([1e-5 * lr, lr, lr, cosine["eta_min"]])
    assert config.macro("STEPS") == facts["all"]["epochs"] * per_epoch

    (switch,) = (transform.scoped_configurable_fn() for transform in gin.query_parameter("train.transforms"))
    assert switch.step == facts["all"]["switch_epoch"] * per_epoch
    for stage, ours in (("train_pipeline", switch.transforms), ("train_pipeline_after_switch", switch.afterwards)):
        wanted = {each["type"]: each for each in theirs[stage]}
        ours = {type(each).__name__: each for each in ours}
        scale = np.array(wanted["RandomResize"]["ratio_range"]) * wanted["RandomResize"]["scale"][0] / 640
        np.testing.assert_allclose(ours["ScaleJitter"].scale, scale)
        hsv = wanted["YOLOXHSVRandomAug"]
        assert (ours["RandomHSV"].hue, ours["RandomHSV"].value) == (hsv["hue_delta"], hsv["value_delta"])
        assert [*ours["PadTo"].size] == wanted["Pad"]["size"] and ours["PadTo"].fill == 114
        assert ("Mosaic" in ours, "MixUp" in ours) == ("CachedMosaic" in wanted, "CachedMixUp" in wanted)
        if "MixUp" in ours:
            mix = wanted["CachedMixUp"]
            assert (ours["MixUp"].probability, [*ours["MixUp"].ratio]) == (mix["prob"], mix["ratio_range"])
            assert [*ours["Mosaic"].center] == wanted["CachedMosaic"]["center_ratio_range"]


@pytest.mark.parametrize(
    ("name", "depth", "steps", "milestones", "rate", "shortest"),
    [
        ("retinanet_r50_fpn_1x", 50, 90000, (60000, 80000), 0.01, SHORTEST),
        ("retinanet_r50_fpn_3x", 50, 270000, (210000, 250000), 0.01, SHORTEST),
        ("retinanet_r101_fpn_3x", 101, 270000, (210000, 250000), 0.01, SHORTEST),
        ("faster_rcnn_r50_fpn_1x", 50, 90000, (60000, 80000), 0.02, SHORTEST),
        ("faster_rcnn_r50_fpn_3x", 50, 270000, (210000, 250000), 0.02, SHORTEST),
        ("faster_rcnn_r50_fpn_voc", 50, 18000, (12000, 16000), 0.02, (480, 512, 544, 576, 608, *SHORTEST)),
        ("mask_rcnn_r50_fpn_1x", 50, 90000, (60000, 80000), 0.02, SHORTEST),
        ("mask_rcnn_r50_fpn_3x", 50, 270000, (210000, 250000), 0.02, SHORTEST),
        ("mask_rcnn_r50_fpn_dconv_1x", 50, 90000, (60000, 80000), 0.02, SHORTEST),
        ("keypoint_rcnn_r50_fpn_1x", 50, 90000, (60000, 80000), 0.02, SHORTEST),
    ],
)
def test_detectron2_recipe_equals_detectron2(name, depth, steps, milestones, rate, shortest):
    config.load(name, ["CHECKPOINT=R-50"])
    assert gin.query_parameter("ResNet.depth") == depth
    assert config.macro("STEPS") == steps
    assert config.macro("BATCH_SIZE") == 16
    optimizer, schedule = configured("train.optimizer"), configured("SGD.learning_rate")
    assert schedule.milestones == list(milestones)
    assert [float(schedule(step)) for step in (0, 1000, milestones[0], milestones[1])] == pytest.approx(
        [rate / 1000, rate, rate / 10, rate / 100]
    )
    assert (optimizer.momentum, optimizer.l2, optimizer.norm_l2) == (0.9, 1e-4, 0.0)
    assert gin.query_parameter("ResizeShortestEdge.shortest") == shortest


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("OUT_DIR=runs/a b/it's", "runs/a b/it's"),
        ("OUT_DIR = runs/100%/%DONE ", "runs/100%/%DONE"),
        ("OUT_DIR=a=b", "a=b"),
        ('OUT_DIR="quoted"', "quoted"),
        ("OUT_DIR=#1", "#1"),
        ("TRAIN_DIR=/data/ä/ö", "/data/ä/ö"),
        ("LR=1e-3", 1e-3),
        ("STEPS= 7 ", 7),
        ("OUT_DIR=None", None),
        ("Preprocessing.mean=(1, 2.5, 3)", (1, 2.5, 3)),
        ("ResNet.out_features=['c4', 'c5']", ["c4", "c5"]),
        ("RetinaNetHead.norm=gn", "gn"),
        ("RetinaNetHead.norm=None", None),
        ("FPN.norm='bn'", "bn"),
        ("train/shapes_dataset.num_images=12", 12),
    ],
)
def test_override_is_parsed_as_value_or_string(override, value):
    config.load(SHAPES, [override])
    name = override.partition("=")[0].strip()
    assert gin.query_parameter(name if "." in name else f"%{name}") == value


def test_override_accepts_references():
    config.load(SHAPES, ["train.optimizer=@SGD()", "SGD.learning_rate=%LR", "LR=0.5", "ConvTop.channels=%BATCH_SIZE"])
    assert type(configured("train.optimizer")).__name__ == "SGD"
    assert float(configured("train.optimizer").learning_rate) == 0.5
    assert configured("FPN.top").channels == 16
    config.load(SHAPES, ["train.transforms=[@RandomFlip()]", "RandomFlip.horizontal=0.25"])
    (flip,) = gin.query_parameter("train.transforms")
    assert flip.scoped_configurable_fn() == RandomFlip(0.25, 0.5)


def test_last_override_wins():
    config.load(SHAPES, ["STEPS=3", "STEPS=4"])
    assert config.macro("STEPS") == 4


MISTAKES = {
    "STEPSS=3": "the configuration has no macro STEPSS",
    "steps=3": r"the configuration has no macro steps: did you mean STEPS\? Otherwise set a macro",
    "BATCHSIZE=3": r"no macro BATCHSIZE: did you mean BATCH_SIZE\?",
    "out dir=3": "the configuration has no macro out dir",
    "STEPS": "the override 'STEPS' cannot be read: expected NAME=value",
    "=3": "the override .* cannot be read",
    "STEPS=ten": "STEPS is 'ten': expected a positive integer",
    "BATCH_SIZE=0": "BATCH_SIZE is 0: expected a positive integer",
    "STEPS=1e3": "STEPS is 1000.0: expected a positive integer",
    "NUM_CLASSES=None": "NUM_CLASSES is None",
    "LR=fast": "LR is 'fast': expected a number",
    "LR=-0.01": r"LR is -0\.01: expected a number above 0",
    "LR=1e999": "LR is inf: expected a number above 0",
    "DETERMINISTIC=yes": "DETERMINISTIC is 'yes': expected True or False",
    "PRECISION=float16": "PRECISION is 'float16': expected one of float32, mixed_bfloat16, mixed_float16",
    "BATCH_SIZE=True": "BATCH_SIZE is True: expected a positive integer",
    "LR=%RATE": "the macro RATE is used but never set",
    "ResNet.widht=8": "ResNet has no argument widht: choose one of depth, ",
    "RetinaNet.num_clases=8": "RetinaNet has no argument num_clases: choose one of num_classes, ",
    "AdamW.learning_rat=1": "AdamW has no argument learning_rat: choose one of learning_rate, ",
    "ResNett.width=8": "No configurable matching 'ResNett'",
    "train.optimizer=@SDG()": "No configurable matching reference '@SDG",
    "train.optimizer=SGD": r"would set the string 'SGD', not the class .* Write train\.optimizer=@SGD",
    "RetinaNet.neck=FPN()": r"would set the string 'FPN\(\)', not the class .* Write RetinaNet\.neck=@FPN\(\)",
    "Preprocessing.mean=(1, 2": "expected a closing bracket",
    "OUT_DIR=(runs)/a": "Failed to parse",
    "BATCH_SIZE=2,": "ends in a comma. Write BATCH_SIZE=2",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_invalid_override_raises_one_line(override):
    with pytest.raises(ValueError, match=MISTAKES[override]) as error:
        config.load(SHAPES, [override])
    assert f"{SHAPES}.gin: " in str(error.value) or str(error.value).startswith(f"--set {override}: ")
    assert "\n" not in str(error.value)


WRONG_FILES = {
    "include 'base/nothing.gin'\n": "line 1 of .*own.gin includes base/nothing.gin, but there is no such file",
    "include 'own.gin'\n": "line 1 of .*own.gin includes own.gin, which includes this file again",
    f"include '{SHAPES}.gin'\nSTEPS = %BATCH_SIZE\nBATCH_SIZE = %STEPS\n": (
        r"BATCH_SIZE depends on itself \(BATCH_SIZE -> STEPS -> BATCH_SIZE\): .* Change one of these references"
    ),
    f"include '{SHAPES}.gin'\nSTEP = 3\n": "the macro STEP is set but never used: correct its name, or delete",
    f"include '{SHAPES}.gin'\nCLASSES = ('fox',)\n": "CLASSES is set but never used: pass --data, include 'dataset/",
    f"include '{SHAPES}.gin'\ntrain.step = 3\n": "train has no argument step: choose one of .* steps, ",
    f"include '{SHAPES}.gin'\ntrain.steps = %MY_STEPS\n": "the macro MY_STEPS is used but never set",
    f"include '{SHAPES}.gin'\nSTEPS = \n": "own.gin: line 2: STEPS has no value",
    f"include '{SHAPES}.gin'\nSTEPS =  # many\nLR = 1\n": "own.gin: line 2: STEPS has no value",
    "# nothing\n": "own.gin: the file is empty: expected a gin configuration",
    '{"images": []}': "own.gin: the file is JSON, not a gin configuration",
    f"include '{SHAPES}.gin'\nResNet.stages = (1, 2\n": "expected a closing bracket",
    f"include '{SHAPES}.gin'\nResNett.depth = 18\n": "No configurable matching 'ResNett'",
    f"include '{SHAPES}.gin'\nRetinaNet.backbone = @RetinaNet()\n": r"itself \(RetinaNet -> RetinaNet\)",
    f"include '{SHAPES}.gin'\nSTEPS = 1\nLR = 1\nSTEPS = 2\n": "lines 2 and 4 both set STEPS: expected one value",
    f"include '{SHAPES}.gin'\nLR: 0.1\n": r"line 2, 'LR: 0.1', cannot be read .*: expected NAME = value",
    f"include '{SHAPES}.gin'\nRandomFlip.chance = 1.0\n": "RandomFlip has no argument chance: choose one of",
    "import no_such.module\n": r"'import no_such.module' fails \(No module named 'no_such'\): expected a module",
    "from os import nothing\n": "'from os import nothing' fails .* PYTHONPATH",
    "train.steps = 3\n": "PRECISION is used but never set",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_invalid_file_raises_one_line(tmp_path, text):
    path = tmp_path / "own.gin"
    path.write_text(text)
    with pytest.raises(ValueError, match=WRONG_FILES[text]) as error:
        config.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_binary_file_raises(tmp_path):
    (tmp_path / "image.gin").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"image\.gin is not a text file: expected a gin configuration"):
        config.load(tmp_path / "image.gin")


@pytest.mark.parametrize("name", ["nothing", "nothing.gin", "base", "/tmp", ""])
def test_missing_file_lists_available_files(name):
    with pytest.raises(
        FileNotFoundError,
        match=rf"There is no configuration {name}: expected the path of a gin file or .*, or one of .*{SHAPES}",
    ):
        config.load(name)


def test_macro_of_a_file_without_a_recipe_names_include(tmp_path):
    (tmp_path / "own.gin").write_text("train.callbacks = []\n")
    with pytest.raises(
        UserError, match=r"no macro STEPS: include a recipe that has it, such as include 'finetune\.gin', or"
    ):
        config.load(tmp_path / "own.gin", ["STEPS=3"])


def test_missing_macros_are_listed_together():
    with pytest.raises(
        ValueError, match="EVAL_ANNOTATIONS, NUM_CLASSES, TRAIN_ANNOTATIONS must be set: add --set"
    ) as error:
        config.load("finetune", ["CHECKPOINT=x"])
    assert "--data DATA sets NUM_CLASSES and the annotations" in str(error.value)
    with pytest.raises(ValueError, match=r"CHECKPOINT must be set: .* a name that `kerasdet zoo` lists"):
        config.load("finetune", ["NUM_CLASSES=1", "TRAIN_ANNOTATIONS=a", "EVAL_ANNOTATIONS=b"])


def test_file_includes_neighbours_and_packaged_files(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "common.gin").write_text(f"include '{SHAPES}.gin'\nMY_DEPTH = 34\nResNet.depth = %MY_DEPTH\n")
    (tmp_path / "own.gin").write_text("include 'common.gin'\ninclude 'schedule/1x.gin'\nSTEPS = 11\nMY_DEPTH = 50\n")
    config.load(tmp_path / "own.gin", ["MY_DEPTH=18"])
    assert config.macro("STEPS") == 11
    assert config.macro("BATCH_SIZE") == 16
    assert config.macro("MY_DEPTH") == 18


def test_file_of_a_windows_editor_is_read(tmp_path):
    (tmp_path / "own.gin").write_bytes(b"\xef\xbb\xbfinclude 'finetune.gin'\r\nNUM_CLASSES = 3\r\nCHECKPOINT = 'x'\r\n")
    config.load(tmp_path / "own.gin", ["TRAIN_ANNOTATIONS=a", "EVAL_ANNOTATIONS=b"])
    assert config.macro("NUM_CLASSES") == 3


def test_include_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "common.gin").write_text(f"include '{SHAPES}.gin'\nSTEPS = 7\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own.gin").write_text("include '~/common.gin'\n")
    config.load("~/deep/own.gin")
    assert config.macro("STEPS") == 7


def test_run_is_a_configuration(tmp_path):
    (tmp_path / "config.gin").write_text(f"include '{SHAPES}.gin'\nSTEPS = 7\n")
    config.load(tmp_path)
    assert config.macro("STEPS") == 7


def test_training_without_a_model_raises(tmp_path):
    (tmp_path / "own.gin").write_text("PRECISION = 'float32'\nSEED = 0\ntrain.steps = 3\n")
    config.load(tmp_path / "own.gin")
    with pytest.raises(UserError, match=r"sets no train\.model, train\.data, train\.optimizer, train\.batch_size"):
        config.train()


@pytest.mark.parametrize("seed", ["abc", "-1", "1.5", "True", "4294967296"])
def test_seed_that_is_no_seed_raises(seed):
    with pytest.raises(UserError, match=r"SEED is .*: expected an integer from 0 to 2\*\*32 - 1"):
        config.load(SHAPES, [f"SEED={seed}"])


def test_loading_again_clears_the_first_configuration(tmp_path):
    config.load(SHAPES, ["FPN.norm=bn", "STEPS=5"])
    config.load("retinanet_r50_fpn_1x", ["CHECKPOINT=x"])
    assert config.macro("STEPS") == 90000
    for name in ("FPN.norm", "RetinaNetHead.norm", "%TRAIN_DIR", "train/shapes_dataset.seed"):
        with pytest.raises(ValueError):
            gin.query_parameter(name)
    with pytest.raises(FileNotFoundError):
        config.load("nothing")
    assert config.macro("STEPS") == 90000


def test_finetuned_detector_detects_at_the_size_of_its_recipe(tmp_path):
    tiny.detector().save(tmp_path / "model.keras")
    settings = ["NUM_CLASSES=5", "TRAIN_ANNOTATIONS=a", "EVAL_ANNOTATIONS=b", "SHORTEST_EDGE=48", "LONGEST_EDGE=80"]
    config.load("finetune", [f"CHECKPOINT={tmp_path}/model.keras", *settings])
    rule = configured("train.model").preprocessing
    transforms = [each.scoped_configurable_fn() for each in gin.query_parameter("train.transforms")]
    (resize,) = [each for each in transforms if isinstance(each, ResizeShortestEdge)]
    assert (rule.shortest, rule.longest) == (48, 80)
    assert (resize.shortest, resize.longest) == ((48,), 80)


def test_configuration_does_not_change_python_defaults():
    config.load(SHAPES, [*TINY, "RandomFlip.horizontal=0.1", "Postprocessing.score_threshold=0.9"])
    assert RandomFlip() == RandomFlip(0.5, 0.0)
    assert ConvTop().channels == 256
    assert FPN(top=ConvTop()).channels == 256
    assert ResNet(18, stages=(1,), out_features=("c2",)).width == 64
    assert Postprocessing().score_threshold == 0.05


def test_configured_parts_have_the_original_classes():
    config.load(SHAPES, [*TINY, "NUM_CLASSES=7"])
    model = configured("train.model")
    assert [type(part) for part in (model, model.backbone, model.neck)] == [RetinaNet, ResNet, FPN]
    assert (model.num_classes, model.backbone.width, model.neck.channels) == (7, 8, 32)
    assert model.preprocessing.shortest == 128


OWN_MODULE = """
import gin
import keras
from kerasdet import ResNet

@gin.register{module}
@keras.saving.register_keras_serializable(package="own")
class {name}(ResNet):
    def __init__(self, squeeze: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.squeeze = squeeze
"""


@pytest.mark.parametrize("module", ["", '(module="elsewhere")'])
def test_backbone_from_a_user_module_is_configurable(tmp_path, monkeypatch, module):
    name = f"Own{len(module)}"
    (tmp_path / "modules" / name.lower()).mkdir(parents=True)
    (tmp_path / "modules" / name.lower() / "backbones.py").write_text(OWN_MODULE.format(module=module, name=name))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "own.gin").write_text(
        f"import {name.lower()}.backbones\ninclude '{SHAPES}.gin'\n\nRetinaNet.backbone = @{name}()\n"
        f"{name}.squeeze = 4\n{name}.stages = (1, 1, 1, 1)\n{name}.width = 8\n"
    )
    config.load(tmp_path / "own.gin", TINY)
    backbone = configured("train.model").backbone
    assert type(backbone).__name__ == name
    assert (backbone.squeeze, backbone.width) == (4, 8)

    (tmp_path / "config.gin").write_text(gin.config_str())
    config.load(tmp_path / "config.gin", [f"{name}.squeeze=5"])
    assert configured("train.model").backbone.squeeze == 5
    for typo in ("squeez", "widht"):  # the class takes any name as **kwargs
        with pytest.raises(
            UserError, match=f"--set {name}.{typo}: {name} has no argument {typo}: choose one of squeeze, depth, "
        ):
            config.load(tmp_path / "config.gin", [f"{name}.{typo}=5"])


def test_modules_of_both_kinds_of_imports_are_imported(tmp_path, monkeypatch):
    (tmp_path / "of_a_user").mkdir()
    for name in ("first", "second"):
        (tmp_path / "of_a_user" / f"{name}.py").write_text("")
    (tmp_path / "config.gin").write_text("import of_a_user.first\nfrom of_a_user import second\n")
    monkeypatch.syspath_prepend(tmp_path)
    config.import_modules(tmp_path / "config.gin")
    assert {"of_a_user.first", "of_a_user.second"} <= sys.modules.keys()
    (tmp_path / "config.gin").write_text("from of_a_user import third\n")
    with pytest.raises(UserError, match=r"config.gin: 'from of_a_user import third' fails .* PYTHONPATH"):
        config.import_modules(tmp_path / "config.gin")


def test_missing_eval_data_raises(tmp_path):
    (tmp_path / "own.gin").write_text("PRECISION = 'float32'\nSEED = 0\n")
    config.load(tmp_path / "own.gin")
    with pytest.raises(ValueError, match=r"Validation\.data"):
        config.eval_data()
    config.load(SHAPES, ["Validation.data=None"])
    with pytest.raises(
        ValueError, match=r"no Validation\.data, the dataset to evaluate on: pass a dataset with --data"
    ):
        config.eval_data()


@pytest.mark.parametrize(
    "override, part",
    [
        ("SGD.momentum=0.5", "SGD"),  # the recipe trains by AdamW
        ("VocDataset.strict=True", "VocDataset"),
        ("trian/CocoDataset.strict=True", "trian/CocoDataset"),
        ("AdamW.weight_decay=0.1", None),
        ("train/CocoDataset.strict=True", None),
        ("octave_sizes.smallest=3.0", None),
        ("evaluate.batch_size=4", None),
        ("train/RandomFlip.vertical=1.0", "train/RandomFlip"),  # only datasets have the scope
        ("LR=0.1", None),
        ("SEED=1", None),
    ],
)
def test_override_without_effect_warns(caplog, override, part):
    config.load("retinanet_r18_fpn_bccd", [override])
    expected = (
        [] if part is None else [f"--set {override} has no effect, because this configuration does not use {part}."]
    )
    assert [record.message.partition(". Set")[0] + "." for record in caplog.records] == expected


TYPES = {
    "AdamW.use_ema=false": "AdamW.use_ema is 'false': expected True or False",
    "AdamW.decay_norms_and_biases=no": "is 'no': expected True or False",
    "Validation.every=often": "Validation.every is 'often': expected an integer",
    "train.transforms=@RandomFlip()": r"is @RandomFlip\(\): expected a list. Write \[@RandomFlip\(\)\]",
    "train.transforms=@RandomFlip": r"is @RandomFlip: expected a list. Write \[@RandomFlip\(\)\]",
    "train.transforms=[@RandomFlip]": r"has @RandomFlip, a class: expected an object. Write @RandomFlip\(\)",
    "train.optimizer=@AdamW": r"train.optimizer is @AdamW, a class: expected an object. Write @AdamW\(\)",
    "train.optimizer=adam": r"train.optimizer is 'adam': expected an object, such as @SGD\(\) or @AdamW\(\)",
    "train.validation=@Validation": r"train.validation is @Validation, a class: .* Write @Validation\(\)",
    "train.validation=val.json": r"train.validation is 'val.json': expected an object, such as @Validation\(\)",
    "RetinaNet.neck=@FPN": r"RetinaNet.neck is @FPN, a class: .* Write @FPN\(\)",
    "train.freeze=backbone": "train.freeze is 'backbone': expected a list",
    "RetinaNet.num_classes=['a']": r"RetinaNet.num_classes is \['a'\]: expected an integer",
    "OUT_DIR=[a]": r"'OUT_DIR=\[a\]': strings in brackets need quotes: write OUT_DIR=\['a', 'b'\]",
    "AnchorGenerator.sizes=32": "AnchorGenerator.sizes is 32: expected a list",
    "StepOptions.pad_to=640": r"StepOptions.pad_to is 640: expected 2 values. Write \(640, 640\)",
}


@pytest.mark.parametrize("override", TYPES)
def test_value_of_another_type_raises(override):
    with pytest.raises(UserError, match=TYPES[override]):
        config.load("retinanet_r18_fpn_bccd", [override])


def test_binding_before_an_include_that_sets_it_raises(tmp_path):
    path = tmp_path / "own.gin"
    path.write_text(f"OUT_DIR = 'mine'\nSTEPS = 7\ninclude '{SHAPES}.gin'\n")
    with pytest.raises(UserError, match=r"own.gin: line 1 sets OUT_DIR, and the include in line 3 sets OUT_DIR again"):
        config.load(path)
    path.write_text(f"include '{SHAPES}.gin'\nOUT_DIR = 'mine'\n")
    config.load(path)
    assert config.macro("OUT_DIR") == "mine"


def test_binding_of_an_own_file_without_effect_warns(tmp_path, caplog):
    path = tmp_path / "own.gin"
    path.write_text(f"include '{SHAPES}.gin'\nSGD.momentum = 0.5\ntrain/RandomFlip.vertical = 1.0\nSTEPS = 3\n")
    config.load(path)
    assert [record.message.partition(". Set")[0] for record in caplog.records] == [
        f"{path}: SGD.momentum has no effect, because this configuration does not use SGD",
        f"{path}: train/RandomFlip.vertical has no effect, because this configuration does not use train/RandomFlip",
    ]


def test_recipes_load_without_warnings(caplog):
    values = {"CHECKPOINT": "x", "NUM_CLASSES": 3, "TRAIN_ANNOTATIONS": "a", "EVAL_ANNOTATIONS": "b"}
    for path in FILES:
        config.load(path, defaults=values)
    assert not caplog.records
