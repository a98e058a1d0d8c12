"""Tests the names of tensors: current layouts, published files with older names, and files of backbones.

Tests that only ask where each tensor goes fill the i-th tensor of the file with the number i.
"""

import pickle
import re

import numpy as np
import pytest
import tensorflow as tf
from checkpoints import golden

from kerasdet.checkpoints import read, to_model
from kerasdet.checkpoints.names import is_ignored, modern_names
from kerasdet.models import Preprocessing

TORCHVISION = "torchvision_retinanet_resnet50_fpn"
TORCHVISION_V2 = "torchvision_retinanet_resnet50_fpn_v2"
TORCHVISION_FCOS = "torchvision_fcos_resnet50_fpn"
DETECTRON2 = "detectron2_retinanet_R_50_FPN"
DETECTRON2_FCOS = "detectron2_fcos_R_50_FPN"
# Mean, standard deviation, maximum and value [1, 1, 2] of every 16th channel of torchvision 0.28.0's features
FEATURES = {
    18: {
        "c2": (1.70386, 1.45338, 7.83743, 4.89162),
        "c3": (2.08385, 1.97949, 11.74622, 4.64600),
        "c4": (1.95460, 2.05407, 10.30762, 6.22207),
        "c5": (1.21686, 1.72245, 9.69291, 0.78798),
    },
    34: {
        "c2": (1.88856, 1.64351, 8.20749, 5.67447),
        "c3": (2.51012, 2.25301, 12.12602, 4.38631),
        "c4": (2.37247, 3.15834, 19.06174, 11.76803),
        "c5": (1.99051, 2.43585, 12.56072, 5.28730),
    },
}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
NORM = ("weight", "bias", "running_mean", "running_var")


def parts(model):
    return model.backbone, model.neck, model.head


def renamed(state, *rules):
    """Rewrites every name of a state by regular expressions, one after the other."""
    out = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        assert name not in out
        out[name] = value
    return out


def deeper(layout, pattern, count):
    """Makes a layout of ResNet-101: copies block 1 of the fourth stage to the blocks 6 to `count`."""
    copies = {
        name.replace(pattern.format(1), pattern.format(block)): shape
        for name, shape in layout.items()
        if pattern.format(1) in name
        for block in range(6, count)
    }
    return {**layout, **copies}


# Current layouts


@pytest.mark.parametrize("name", [TORCHVISION, TORCHVISION_V2, TORCHVISION_FCOS, DETECTRON2, DETECTRON2_FCOS])
def test_every_entry_of_a_layout_is_used_once(name):
    state = golden.constants(golden.layout(name))
    model = to_model(state, name.replace("_", "/", 1))
    used = {key for key in state if not key.endswith("num_batches_tracked")}
    assert sorted(golden.numbers(*parts(model))) == sorted(int(state[key].flat[0]) for key in used)


def test_every_entry_of_a_resnet_101_is_used_once():
    layout = deeper(golden.layout(DETECTRON2), "res4.{}.", 23)
    model = to_model(golden.constants(layout), "detectron2/retinanet_R_101_FPN")
    assert sorted(golden.numbers(*parts(model))) == list(range(1, len(layout) + 1))


# torchvision renames older names in RetinaNet's `_v1_to_v2_weights` and in `FeaturePyramidNetwork`.


def older(state):
    return renamed(
        state,
        (r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2."),
        *((rf"(classification|regression)_head\.conv\.{i}\.0\.", rf"\1_head.conv.{2 * i}.") for i in (3, 2, 1, 0)),
    )


def test_torchvision_older_names_give_the_same_model():
    state = golden.constants(golden.layout(TORCHVISION))
    old = older(state)
    assert len(set(old) - set(state)) == 28  # 6 convolutions of the pyramid and 8 of the towers, 2 entries each
    assert {
        "backbone.fpn.inner_blocks.0.weight",
        "backbone.fpn.layer_blocks.2.bias",
        "backbone.fpn.extra_blocks.p6.weight",
        "head.classification_head.conv.0.weight",
        "head.classification_head.conv.6.bias",
        "head.regression_head.conv.2.weight",
        "head.regression_head.bbox_reg.weight",
    } <= set(old)
    source = "torchvision/retinanet_resnet50_fpn"
    assert golden.numbers(*parts(to_model(old, source))) == golden.numbers(*parts(to_model(state, source)))


def test_older_names_of_torchvisions_fcos_are_renamed():
    """The towers of FCOS have norms between the convolutions and were never renamed."""
    state = golden.constants(golden.layout(TORCHVISION_FCOS))
    old = renamed(state, (r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2."))
    assert {"head.classification_head.conv.0.weight", "backbone.fpn.inner_blocks.0.weight"} <= set(old)
    assert modern_names(old, "torchvision") == dict(zip(old, state, strict=True))


# Containers of detectron2 and names of caffe2


def test_detectron2_pickle_ignores_buffers(tmp_path):
    layout = golden.layout(DETECTRON2)
    state = {name: value for name, value in golden.constants(layout).items() if value.size < 1e5}
    extra = {
        "pixel_mean": np.zeros((3, 1, 1), np.float32),
        "pixel_std": np.ones((3, 1, 1), np.float32),
        "anchor_generator.cell_anchors.0": np.zeros((9, 4), np.float32),
    }
    path = tmp_path / "model_final.pkl"
    contents = {"model": {**state, **extra}, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(contents, protocol=2))

    entries = read(path)
    assert set(entries) == {*state, *extra}
    rest = golden.constants(layout)
    model = to_model({**rest, **entries}, "detectron2/retinanet_R_50_FPN")
    assert sorted(golden.numbers(*parts(model))) == list(range(1, len(layout) + 1))


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("anchor_generator.cell_anchors.0", True),
        ("proposal_generator.anchor_generator.cell_anchors.4", True),  # in published R-CNNs
        ("pixel_mean", True),
        ("stem.conv1.bias", True),
        ("backbone.bottom_up.stem.conv1.bias", False),
        ("head.cls_score.bias", False),
        ("roi_heads.box_predictor.bbox_pred.bias", False),
    ],
)
def test_ignored_entries_are_those_of_detectron2(name, ignored):
    assert is_ignored(name, "detectron2") == ignored


_CAFFE2_NAMES = (
    (r"^backbone\.bottom_up\.", ""),
    (r"^stem\.conv1\.norm\.", "res_conv1.norm."),
    (r"^stem\.", ""),
    (r"\.shortcut\.", "_branch1."),
    (r"\.conv1\.(?=norm|weight)", "_branch2a."),
    (r"\.conv2\.", "_branch2b."),
    (r"\.conv3\.", "_branch2c."),
    (r"(res\d)\.(\d+)", r"\1_\2"),
    (r"(?<!norm)\.weight$", "_w"),
)
AFFINE = (*_CAFFE2_NAMES, (r"\.norm\.weight$", "_bn_s"), (r"\.norm\.bias$", "_bn_b"))
WITH_STATISTICS = (
    *_CAFFE2_NAMES,
    (r"\.norm\.weight$", "_bn_gamma"),
    (r"\.norm\.bias$", "_bn_beta"),
    (r"\.norm\.running_mean$", "_bn_running_mean"),
    (r"\.norm\.running_var$", "_bn_running_var"),
)
CLASSIFIER = {
    "conv1_b": np.ones(64, np.float32),  # a bias before a norm, which detectron2 ignores
    "fc1000_w": np.ones((1000, 2048), np.float32),
    "fc1000_b": np.ones(1000, np.float32),
}


def backbone_of(entries):
    return {name: value for name, value in entries.items() if name.startswith("backbone.bottom_up.")}


def without_statistics(state):
    return {name: value for name, value in state.items() if "running" not in name}


@pytest.mark.parametrize("depth", [50, 101])
def test_msra_names_fill_the_backbone(depth):
    layout = deeper(backbone_of(golden.layout(DETECTRON2)), "res4.{}.", BLOCKS[depth][2])
    state = renamed(golden.constants(layout), *WITH_STATISTICS)
    assert {
        "conv1_w",
        "res_conv1_bn_running_mean",
        "res_conv1_bn_beta",
        "res2_0_branch1_w",
        "res2_0_branch1_bn_gamma",
        "res2_0_branch2a_w",
        f"res4_{BLOCKS[depth][2] - 1}_branch2c_bn_running_var",
        "res5_2_branch2b_w",
    } <= set(state)
    backbone = to_model({**state, **CLASSIFIER}, f"detectron2/MSRA_R-{depth}")
    assert sorted(golden.numbers(backbone)) == list(range(1, len(layout) + 1))


def test_msra_norms_get_mean_0_and_variance_1():
    """The files have no statistics; detectron2 adds its epsilon to the variance of 1."""
    layout = without_statistics(backbone_of(golden.layout(DETECTRON2)))
    state = renamed(golden.constants(layout), *AFFINE)
    assert {"conv1_w", "res_conv1_bn_s", "res_conv1_bn_b", "res2_0_branch1_w", "res5_2_branch2c_bn_s"} <= set(state)
    backbone = to_model({**state, **CLASSIFIER}, "detectron2/MSRA_R-50")

    statistics = [v for v in backbone.variables if v.name.startswith("moving_")]
    assert len(statistics) == 2 * 53
    for variable in statistics:
        assert np.all(variable.numpy() == (1 if variable.name == "moving_variance" else 0))
    rest = [v for v in backbone.variables if not v.name.startswith("moving_")]
    assert sorted(int(v.numpy().flat[0]) for v in rest) == list(range(1, len(layout) + 1))

    x, gamma, beta = 700.0, state["res_conv1_bn_s"][0], state["res_conv1_bn_b"][0]
    y = backbone.stem.norm(tf.fill([1, 1, 1, 64], x))
    np.testing.assert_allclose(y, np.full((1, 1, 1, 64), x * gamma / np.sqrt(1 + 1e-5) + beta), rtol=1e-6)


# A backbone's own file must give the features of the detector with the same tensors.


@pytest.fixture(scope="module")
def image():
    return golden.weights().image(64, 96)[None]


@pytest.fixture(scope="module")
def detectron2():
    return to_model(golden.state(DETECTRON2), "detectron2/retinanet_R_50_FPN")


def assert_same_features(backbone, detector, image):
    normalized = detector.preprocessing.normalize(tf.constant(image), None)
    expected = detector.backbone(normalized)
    features = backbone(normalized)
    assert {"c2", *expected} == set(features)
    for level, x in expected.items():
        np.testing.assert_array_equal(features[level], x)


def test_torchvision_backbone_file_gives_the_detectors_features(image):
    state = golden.state(TORCHVISION)
    detector = to_model(state, "torchvision/retinanet_resnet50_fpn")
    own = {name.removeprefix("backbone.body."): x for name, x in state.items() if name.startswith("backbone.body.")}
    assert "layer1.0.downsample.1.running_mean" in own
    own |= {"fc.weight": np.ones((1000, 2048)), "fc.bias": np.ones(1000), "bn1.num_batches_tracked": np.array(7)}
    assert_same_features(to_model(own, "torchvision/resnet50", norm_epsilon=0.0), detector, image)


def test_detectron2_backbone_file_gives_the_detectors_features(detectron2, image):
    state = renamed(backbone_of(golden.state(DETECTRON2)), *WITH_STATISTICS)
    assert_same_features(to_model(state, "detectron2/MSRA_R-50"), detectron2, image)


# mmdetection 1.x, 2.x and 3.x use the same names in ResNet, FPN and RetinaHead.

_MMDET_BACKBONE = (
    (r"^backbone\.bottom_up\.stem\.", "backbone."),
    *((rf"^backbone\.bottom_up\.res{stage}\.", f"backbone.layer{stage - 1}.") for stage in (2, 3, 4, 5)),
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.", "downsample.0."),
)
MMDET = (
    *_MMDET_BACKBONE,
    *((rf"^backbone\.fpn_lateral{stage}\.", f"neck.lateral_convs.{stage - 3}.conv.") for stage in (3, 4, 5)),
    *((rf"^backbone\.fpn_output{stage}\.", f"neck.fpn_convs.{stage - 3}.conv.") for stage in (3, 4, 5)),
    *((rf"^backbone\.top_block\.p{level}\.", f"neck.fpn_convs.{level - 3}.conv.") for level in (6, 7)),
    *((rf"^head\.cls_subnet\.{2 * i}\.", f"bbox_head.cls_convs.{i}.conv.") for i in range(4)),
    *((rf"^head\.bbox_subnet\.{2 * i}\.", f"bbox_head.reg_convs.{i}.conv.") for i in range(4)),
    (r"^head\.cls_score\.", "bbox_head.retina_cls."),
    (r"^head\.bbox_pred\.", "bbox_head.retina_reg."),
)


@pytest.fixture(scope="module")
def mmdet():
    """Makes a state with mmdetection's names and the tensors of the detectron2 reference."""
    state = renamed(golden.state(DETECTRON2), *MMDET)
    assert {
        "backbone.conv1.weight",
        "backbone.bn1.running_var",
        "backbone.layer1.0.bn1.weight",
        "backbone.layer4.0.downsample.1.bias",
        "neck.lateral_convs.0.conv.weight",
        "neck.fpn_convs.4.conv.bias",
        "bbox_head.cls_convs.0.conv.weight",
        "bbox_head.reg_convs.3.conv.bias",
        "bbox_head.retina_cls.weight",
        "bbox_head.retina_reg.bias",
    } <= set(state)
    return state


def test_mmdet_caffe_retinanet_equals_detectron2_except_for_p7(mmdet, detectron2, image):
    """Both place strides alike and share pixel statistics; only detectron2 has a ReLU between P6 and P7."""
    buffers = {"data_preprocessor.mean": np.zeros((3, 1, 1)), "data_preprocessor.std": np.ones((3, 1, 1))}
    model = to_model({**mmdet, **buffers}, "mmdet/retinanet_r50_caffe_fpn")
    normalized = model.preprocessing.normalize(tf.constant(image), None)
    np.testing.assert_array_equal(normalized, detectron2.preprocessing.normalize(tf.constant(image), None))
    pyramid, expected = (m.neck(m.backbone(normalized)) for m in (model, detectron2))
    for level in ("p3", "p4", "p5", "p6"):
        np.testing.assert_array_equal(pyramid[level], expected[level])
    heads = model.head(pyramid), detectron2.head({**expected, "p7": pyramid["p7"]})
    for name in ("class_logits", "box_deltas"):
        for level in pyramid:
            np.testing.assert_array_equal(heads[0][name][level], heads[1][name][level])

    kernel = np.transpose(mmdet["neck.fpn_convs.4.conv.weight"], (2, 3, 1, 0))
    padded = tf.pad(pyramid["p6"], [[0, 0], [1, 1], [1, 1], [0, 0]])
    p7 = tf.nn.conv2d(padded, kernel, 2, "VALID") + mmdet["neck.fpn_convs.4.conv.bias"]
    np.testing.assert_allclose(pyramid["p7"], p7, atol=1e-5)


def test_mmdet_anchors_equal_those_of_its_tests(mmdet):
    """mmdetection's tests list RetinaNet's base anchors ratio by ratio, without rounding."""
    model = to_model(golden.constants({name: x.shape for name, x in mmdet.items()}), "mmdet/retinanet_r50_fpn")
    sides = [
        (45.2548, 22.6274),
        (57.0175, 28.5088),
        (71.8376, 35.9188),
        (32, 32),
        (40.3175, 40.3175),
        (50.7968, 50.7968),
    ]
    sides += [(height, width) for width, height in sides[:3]]
    expected = [(-height / 2, -width / 2, height / 2, width / 2) for width, height in sides]
    np.testing.assert_allclose(model.anchors.cell_anchors("p3"), expected, atol=1e-4)
    assert model.anchors.offset == 0
    assert sorted(golden.numbers(*parts(model))) == list(range(1, len(mmdet) + 1))


@pytest.mark.parametrize("biases", ["conv1", "all"])
def test_mmdet_caffe_resnet_gives_the_detectors_features(mmdet, detectron2, image, biases):
    """Some published caffe files have biases that mmdetection's ResNet ignores."""
    state = {name.removeprefix("backbone."): x for name, x in mmdet.items() if name.startswith("backbone.")}
    convolutions = [name for name, x in state.items() if x.ndim == 4]
    for name in {"conv1": ["conv1.weight"], "all": convolutions}[biases]:
        state[name.replace("weight", "bias")] = np.ones(len(state[name]), np.float32)
    assert_same_features(to_model(state, "mmdet/resnet50_caffe"), detectron2, image)


# mmdetection renames older entries of FCOS: `AnchorFreeHead._load_from_state_dict` those named fcos_cls, mmcv's
# `ModulatedDeformConv2dPack` those named conv_offset beside their convolution.

_MMDET_NECK = tuple(rule for rule in MMDET if "subnet" not in rule[0] and not rule[0].startswith(r"^head"))
_TOWERS = (("cls_subnet", "cls_convs"), ("bbox_subnet", "reg_convs"))
MMDET_FCOS = (
    *_MMDET_NECK,
    *((rf"^head\.{a}\.{3 * i}\.", f"bbox_head.{b}.{i}.conv.") for a, b in _TOWERS for i in range(4)),
    *((rf"^head\.{a}\.{3 * i + 1}\.", f"bbox_head.{b}.{i}.gn.") for a, b in _TOWERS for i in range(4)),
    (r"^head\.cls_score\.", "bbox_head.conv_cls."),
    (r"^head\.bbox_pred\.", "bbox_head.conv_reg."),
    (r"^head\.ctrness\.", "bbox_head.conv_centerness."),
)
FCOS_SOURCES = {
    "fcos_r50_caffe_fpn_gn-head": {},
    "fcos_r101_caffe_fpn_gn-head": {"depth": 101},
    "fcos_center_r50_caffe_fpn_gn-head": {},
    "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head": {"biases": True},
    "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn": {"biases": True, "deformable": True},
}


def mmdet_fcos_layout(biases=False, deformable=False, depth=50):
    """Makes names and shapes of a published file, without training statistics."""
    layout = renamed(golden.layout(DETECTRON2_FCOS), *MMDET_FCOS)
    layout |= {f"bbox_head.scales.{i}.scale": () for i in range(5)}
    if not biases:
        layout = {
            name: x for name, x in layout.items() if not re.search(r"_convs\.\d\.conv\.bias$", name) or "neck" in name
        }
    if depth == 101:
        layout = deeper(layout, "layer3.{}.", 23)
    if deformable:
        offsets = {f"bbox_head.{b}.3.conv.conv_offset": 256 for _, b in _TOWERS}
        for name, shape in layout.items():
            if re.match(r"backbone\.layer[234]\.\d+\.conv2\.weight", name):
                offsets[name.removesuffix("weight") + "conv_offset"] = shape[1]
        layout |= {f"{name}.weight": (27, channels, 3, 3) for name, channels in offsets.items()}
        layout |= {f"{name}.bias": (27,) for name in offsets}
    return layout


@pytest.mark.parametrize("name", FCOS_SOURCES)
def test_mmdet_fcos_fills_the_model_with_current_and_older_names(name):
    layout = mmdet_fcos_layout(**FCOS_SOURCES[name])
    assert {
        "bbox_head.cls_convs.0.conv.weight",
        "bbox_head.reg_convs.3.gn.bias",
        "bbox_head.conv_cls.weight",
        "bbox_head.conv_reg.bias",
        "bbox_head.conv_centerness.weight",
        "bbox_head.scales.4.scale",
        "neck.fpn_convs.4.conv.bias",
    } <= set(layout)
    state = golden.constants(layout)
    counters = {"backbone.bn1.num_batches_tracked": np.array(5), "data_preprocessor.mean": np.zeros((3, 1, 1))}
    model = to_model({**state, **counters}, f"mmdet/{name}")
    assert sorted(golden.numbers(*parts(model))) == list(range(1, len(layout) + 1))
    assert [float(scale.scale) for scale in model.head.scales.values()] == [
        float(state[f"bbox_head.scales.{i}.scale"]) for i in range(5)
    ]
    assert model.coder.normalize == ("normbbox" in name) == model.head.centerness_on_boxes
    assert (model.matcher.center_radius == 1.5) == ("center" in name)

    older = renamed(
        state,
        (r"bbox_head\.conv_", "bbox_head.fcos_"),
        (r"(conv2|conv)\.conv_offset\.", r"\1_offset."),
    )
    assert {"bbox_head.fcos_cls.weight", "bbox_head.fcos_centerness.bias"} <= set(older)
    assert ("backbone.layer2.0.conv2_offset.weight" in older) == name.endswith("dcn")
    assert modern_names(older, "mmdet") == dict(zip(older, state, strict=True))


def test_mmdet_fcos_with_all_tricks_equals_detectron2():
    """With scales of 1 and biases in the towers, both are the same network."""
    image = golden.weights().image(64, 96)[None]
    state = golden.state(DETECTRON2_FCOS)
    scales = {f"bbox_head.scales.{i}.scale": np.float32(1) for i in range(5)}
    source = "mmdet/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head"
    models = to_model(state, "detectron2/fcos_R_50_FPN"), to_model({**renamed(state, *MMDET_FCOS), **scales}, source)
    theirs, ours = (model(image) for model in models)
    tf.nest.assert_same_structure(ours, theirs)
    for x, y in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_mmdet_fcos_with_unexpected_biases_raises():
    state = golden.constants(mmdet_fcos_layout(biases=True))
    with pytest.raises(ValueError, match=r"unexpected: bbox_head\.cls_convs\.0\.conv\.bias"):
        to_model(state, "mmdet/fcos_r50_caffe_fpn_gn-head")


# ImageNet files of torchvision


def imagenet_layout(depth):
    """Makes names and shapes of torchvision's ResNets."""
    bottleneck = depth >= 50
    layout = {"conv1.weight": (64, 3, 7, 7), **norm_layout("bn1", 64)}
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        width = 64 * 2 ** (stage - 1)
        out = width * (4 if bottleneck else 1)
        sizes = [(width, 1), (width, 3), (out, 1)] if bottleneck else [(width, 3), (width, 3)]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            incoming = channels
            for number, (filters, kernel) in enumerate(sizes, 1):
                layout[f"{name}.conv{number}.weight"] = (filters, incoming, kernel, kernel)
                layout |= norm_layout(f"{name}.bn{number}", filters)
                incoming = filters
            if block == 0 and channels != out:
                layout[f"{name}.downsample.0.weight"] = (out, channels, 1, 1)
                layout |= norm_layout(f"{name}.downsample.1", out)
            channels = out
    return layout


def norm_layout(name, channels):
    return {f"{name}.{entry}": (channels,) for entry in NORM}


@pytest.mark.parametrize(
    "depth", [50, pytest.param(101, marks=pytest.mark.slow), pytest.param(152, marks=pytest.mark.slow)]
)
def test_torchvision_imagenet_files_fill_the_backbone(depth):
    layout = imagenet_layout(depth)
    ignored = {re.sub("running_mean$", "num_batches_tracked", name): np.array(9) for name in layout if "mean" in name}
    ignored |= {"fc.weight": np.ones((1000, 2048), np.float32), "fc.bias": np.ones(1000, np.float32)}
    backbone = to_model({**golden.constants(layout), **ignored}, f"torchvision/resnet{depth}")
    assert sorted(golden.numbers(backbone)) == list(range(1, len(layout) + 1))
    assert backbone.out_features == ("c2", "c3", "c4", "c5")


@pytest.mark.parametrize("depth", FEATURES)
def test_torchvision_imagenet_backbones_give_torchvisions_features(depth):
    """torchvision computed `FEATURES` for ``image(97, 131, 3)`` with the tensors of ``state_dict(layout, "y")``."""
    weights = golden.weights()
    backbone = to_model(weights.state_dict(imagenet_layout(depth), "y"), f"torchvision/resnet{depth}")
    features = backbone(Preprocessing().normalize(tf.constant(weights.image(97, 131, 3)[None]), None))
    for level, expected in FEATURES[depth].items():
        x = features[level][0].numpy().transpose(2, 0, 1)[::16]
        np.testing.assert_allclose((x.mean(), x.std(), x.max(), x[1, 1, 2]), expected, rtol=1e-5, atol=1e-5)
