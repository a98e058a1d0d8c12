"""Tests `to_model` and `kerasdet convert`: errors that name tensors, number of classes, norm epsilon, written file.

The depth of the backbone plays no part here, so all sources have shallow ones. test_names.py has the real depths.
"""

import math

import numpy as np
import pytest
import torch_files
from checkpoints import golden
from torch_files import Global, New

import kerasdet
from kerasdet import cli
from kerasdet.checkpoints import SOURCES, to_model
from kerasdet.checkpoints.state_dict import StateDict
from kerasdet.keras_compat import flatten_layers
from kerasdet.layers.norm import BatchNorm

TORCHVISION, TORCHVISION_SOURCE = "torchvision_retinanet_resnet50_fpn", "torchvision/retinanet_resnet50_fpn"
DETECTRON2, DETECTRON2_SOURCE = "detectron2_retinanet_R_50_FPN", "detectron2/retinanet_R_50_FPN"
CLASS_LAYERS = {
    TORCHVISION: "head.classification_head.cls_logits",
    DETECTRON2: "head.cls_score",
}


def with_columns(name, columns):
    """Makes a state in a reference's layout with another number of columns in its class logits."""
    layer = CLASS_LAYERS[name]
    shapes = {f"{layer}.weight": (9 * columns, 256, 3, 3), f"{layer}.bias": (9 * columns,)}
    return golden.constants({**golden.shallow_layout(name), **shapes})


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    for name, source in golden.shallow_sources().items():
        monkeypatch.setitem(SOURCES, name, source)


# Errors


@pytest.fixture
def state():
    return golden.constants(golden.shallow_layout(TORCHVISION))


def message(state, source=TORCHVISION_SOURCE, **arguments):
    with pytest.raises(ValueError) as error:
        to_model(state, source, **arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_raise(state, value):
    name = "backbone.body.conv1.weight"
    state = {**state, name: np.full_like(state[name], value)}
    assert f"The tensor {name} of the checkpoint has values that are NaN or infinite" in message(state)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "backbone.body.conv1.weight",
            lambda value: value.astype(np.int8),
            "holds int8 values, as quantised weights do",
        ),
        ("backbone.body.bn1.running_var", lambda value: -value, "is a variance and has the value -"),
        ("backbone.fpn.inner_blocks.0.0.weight", np.zeros_like, "is zero everywhere: expected trained weights"),
    ],
)
def test_values_that_no_training_leaves_raise(state, name, change, text):
    assert f"The checkpoint's tensor {name} {text}" in message({**state, name: change(state[name])})


def test_tensors_that_do_not_fit_are_named_in_one_line(state):
    del state["backbone.body.layer2.0.conv1.weight"]
    state["backbone.body.layer9.0.conv1.weight"] = np.zeros(3)
    state["head.regression_head.conv.1.0.bias"] = np.zeros(7)
    assert message(state) == (
        f"The checkpoint does not fit {TORCHVISION_SOURCE}: missing: backbone.body.layer2.0.conv1.weight; "
        "unexpected: backbone.body.layer9.0.conv1.weight; "
        "of another shape: head.regression_head.conv.1.0.bias (7,) (expected (256,)). Pass the model of "
        "the file with --source (Python: source=)."
    )


@pytest.mark.parametrize("shapes", [((), ()), ((35, 256, 3, 3), (100, 256, 3, 3)), ((1, 36, 256, 3), (810, 256, 3, 3))])
def test_last_layers_of_another_shape_are_named(state, shapes):
    names = "head.regression_head.bbox_reg.weight", "head.classification_head.cls_logits.weight"
    state |= {name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    listed = message(state).split("of another shape: ")[1]
    assert all(f"{name} {shape}" in listed for name, shape in zip(names, shapes, strict=True))


@pytest.mark.parametrize("shape", [(), (9,), (100,)])
def test_class_bias_that_gives_no_number_of_classes_is_named(state, shape):
    state["head.classification_head.cls_logits.bias"] = np.zeros(shape)
    text = f"head.classification_head.cls_logits.bias of the checkpoint has {math.prod(shape)} entries; "
    assert text in message(state)


def test_long_lists_of_names_are_shortened(state):
    text = message({name: x for name, x in state.items() if "layer3" not in name})
    assert text.count("layer3") == 10 and "and 10 more." in text


@pytest.mark.parametrize(
    ("name", "source", "named"),
    [
        (TORCHVISION, DETECTRON2_SOURCE, "head.cls_score.bias"),
        (DETECTRON2, "mmdet/retinanet_r50_fpn", "bbox_head.retina_cls.bias"),
        (TORCHVISION, TORCHVISION_SOURCE + "_v2", "missing: head.classification_head.conv.0.1.weight"),
        (DETECTRON2, "detectron2/retinanet_R_101_FPN", "missing: backbone.bottom_up.res4.1.conv1.weight"),
    ],
)
def test_wrong_source_is_named(name, source, named):
    text = message(golden.constants(golden.shallow_layout(name)), source)
    assert source in text and named in text


def test_backbone_is_taken_out_of_a_detector(caplog):
    state = golden.constants(golden.shallow_layout(TORCHVISION))
    backbone = to_model(state, "torchvision/resnet50")
    kernel = next(v for v in backbone.variables if v.path.endswith("stem/conv/kernel"))
    np.testing.assert_array_equal(kernel, state["backbone.body.conv1.weight"].transpose(2, 3, 1, 0))
    [message] = caplog.messages
    assert "tensors with the prefix backbone.body. are used; these tensors are left out: backbone.fpn" in message


def test_unknown_source_raises_and_lists_the_sources():
    text = message({}, "torchvision/retinanet")
    assert "'torchvision/retinanet'" in text
    assert all(source in text for source in SOURCES)


def test_empty_state_raises():
    assert "head.cls_score.bias" in message({}, DETECTRON2_SOURCE)


def test_missing_statistics_raise_except_for_detectron2(state):
    """MSRA's files have affine norms without statistics; in other files their absence is a mistake."""
    state = {name: x for name, x in state.items() if "running" not in name}
    assert "missing: backbone.body.bn1.running_mean, backbone.body.bn1.running_var" in message(state)


# Number of classes


@pytest.mark.parametrize(("name", "columns"), [(TORCHVISION, 2), (DETECTRON2, 20)])
def test_number_of_classes_comes_from_the_file(name, columns):
    model = to_model(with_columns(name, columns), name.replace("_", "/", 1))
    assert model.num_classes == columns - (name == TORCHVISION)


def test_rows_of_the_last_layers_are_reordered():
    """Each anchor keeps its classes from column 1, without background; deltas become (dy, dx, dh, dw)."""
    state = with_columns(TORCHVISION, 21)
    state["head.classification_head.cls_logits.bias"] = np.arange(9 * 21.0)
    state["head.regression_head.bbox_reg.bias"] = np.arange(36.0)
    model = to_model(state, TORCHVISION_SOURCE)
    assert model.num_classes == 20
    np.testing.assert_array_equal(
        model.head.class_logits.conv.bias, [21 * anchor + column for anchor in range(9) for column in range(1, 21)]
    )
    np.testing.assert_array_equal(
        model.head.box_deltas.conv.bias, [4 * anchor + i for anchor in range(9) for i in (1, 0, 3, 2)]
    )


@pytest.mark.parametrize("name", [TORCHVISION, DETECTRON2])
def test_num_classes_re_initialises_only_the_class_layer(name):
    state, source = golden.constants(golden.shallow_layout(name)), name.replace("_", "/", 1)
    model = to_model(state, source, num_classes=5)
    assert model.num_classes == 5
    layer = model.head.class_logits.conv
    assert layer.kernel.shape == (3, 3, 256, 45)
    assert 0.009 < np.std(layer.kernel) < 0.011
    np.testing.assert_allclose(layer.bias, np.full(45, -math.log(99)), rtol=1e-6)

    kept = [model.backbone, model.neck, model.head.class_tower, model.head.box_tower, model.head.box_deltas]
    used = [int(x.flat[0]) for key, x in state.items() if not key.startswith(CLASS_LAYERS[name])]
    assert sorted(golden.numbers(*kept)) == sorted(used)


def test_num_classes_needs_no_class_layer_in_the_file(state):
    entries = {name: x for name, x in state.items() if not name.startswith(CLASS_LAYERS[TORCHVISION])}
    assert to_model(entries, TORCHVISION_SOURCE, num_classes=3).num_classes == 3


def test_negative_epsilon_raises(state):
    assert message(state, norm_epsilon=-1.0).startswith("to_model.norm_epsilon is -1.0: expected a number from 0 to 1")


def test_epsilon_for_a_backbone_without_norms_raises():
    tensors = {"backbone.features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    text = message(tensors, "torchvision/ssd300_vgg16", num_classes=2, norm_epsilon=1e-5)
    assert text.startswith("norm_epsilon is 1e-05, but the backbone VGG has no norms; expected None. Remove")


@pytest.mark.parametrize("num_classes", [0, -1])
def test_num_classes_below_one_raises(state, num_classes):
    assert "num_classes" in message(state, num_classes=num_classes)


# Norms


@pytest.mark.parametrize(("argument", "expected"), [(None, 0), (1e-3, 1e-3)])
def test_norm_epsilon_replaces_the_published_one(state, argument, expected):
    """The published files of torchvision's v1 detectors have an epsilon of 0."""
    backbone = to_model(state, TORCHVISION_SOURCE, norm_epsilon=argument).backbone
    assert {norm.epsilon for norm in flatten_layers(backbone) if isinstance(norm, BatchNorm)} == {expected}


# Command line


@pytest.fixture
def file(tmp_path, state):
    path = tmp_path / "retinanet.npz"
    np.savez(path, **state)
    return path


def convert(file, out, *arguments):
    return cli.main(["convert", str(file), "--source", TORCHVISION_SOURCE, "--out", str(out), *arguments])


def test_convert_writes_a_model_that_load_opens(file, tmp_path, state, capsys):
    out = tmp_path / "out"
    assert convert(file, out, "--num-classes", "3", "--norm-epsilon", "1e-5") == 0
    assert str(out / "model.keras") in capsys.readouterr().out
    model = kerasdet.load(out)
    assert isinstance(model, kerasdet.RetinaNet) and model.num_classes == 3
    assert model.backbone.stem.norm.epsilon == 1e-5
    assert model.preprocessing.rounding == "torchvision"
    expected = to_model(state, TORCHVISION_SOURCE, num_classes=3)
    assert golden.numbers(model.backbone, model.neck) == golden.numbers(expected.backbone, expected.neck)


def test_convert_prints_errors_in_one_line(file, tmp_path, capsys):
    np.savez(file, **{"head.classification_head.cls_logits.bias": np.zeros(18)})
    assert convert(file, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kerasdet convert: {file}: The checkpoint does not fit") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_convert_of_a_missing_file_fails(tmp_path, capsys):
    assert convert(tmp_path / "nothing.pth", tmp_path / "out") == 2
    assert "nothing.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


MMDET, MMDET_SOURCE = "mmdet_retinanet_r50_fpn", "mmdet/retinanet_r50_fpn"


def wrapped_by_mmdetection(path, state, meta):
    """Writes what a run of mmdetection with EMAHook saves: half precision, and the prefix of DataParallel."""
    arrays = {f"module.{name}": np.full(x.shape, x.flat[0], np.float16) for name, x in state.items()}
    tree, stored = torch_files.state_tree(arrays)
    ema = dict.fromkeys(tree, tree["module.bbox_head.retina_cls.bias"])  # of another shape: nobody may take these
    hub = New(Global("mmengine.logging.message_hub", "MessageHub"), ("name",))
    contents = {"meta": {**meta, "hub": hub}, "ema_state_dict": ema, "state_dict": tree, "message_hub": hub}
    contents["optimizer"] = {"state": {}, "param_groups": [{"lr": 0.01}]}
    path.write_bytes(torch_files.zip_file(contents, {key: x.tobytes() for key, x in stored.items()}))


@pytest.mark.parametrize(
    "meta", [{"dataset_meta": {"classes": ("cat", "dog")}}, {"CLASSES": ["cat", "dog"]}], ids=["mmdet 3", "mmdet 2"]
)
def test_convert_takes_files_of_mmdetection_with_their_class_names(tmp_path, meta, capsys):
    shapes = {**golden.shallow_layout(MMDET), "bbox_head.retina_cls.weight": (18, 256, 3, 3)}
    state = golden.constants({**shapes, "bbox_head.retina_cls.bias": (18,)})
    file, out = tmp_path / "epoch_12.pth", tmp_path / "out"
    wrapped_by_mmdetection(file, state, meta)
    assert cli.main(["convert", str(file), "--source", MMDET_SOURCE, "--out", str(out)]) == 0
    model = kerasdet.load(out)
    assert model.class_names == ("cat", "dog")
    expected = to_model(state, MMDET_SOURCE)
    assert golden.numbers(model.backbone, model.neck) == golden.numbers(expected.backbone, expected.neck)
    assert expected.class_names is None

    labels = tmp_path / "labels.txt"
    labels.write_text("katze\nhund\n")
    arguments = ["convert", str(file), "--source", MMDET_SOURCE, "--labels", str(labels), "--out"]
    assert cli.main([*arguments, str(out)]) == 2
    assert f"--out: {out}/model.keras exists: choose another folder" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "labelled")]) == 0
    assert kerasdet.load(tmp_path / "labelled").class_names == ("katze", "hund")


def test_class_names_of_other_classes_are_left_out(state, caplog):
    state = StateDict(state, class_names=("cat", "dog"))
    model = to_model(state, TORCHVISION_SOURCE)
    assert model.class_names is None
    assert f"has 2 class names (cat, dog), but its head has {model.num_classes} classes" in caplog.text
    assert to_model(state, TORCHVISION_SOURCE, num_classes=2).class_names is None


def test_weights_of_the_other_kind_warn(caplog):
    state = golden.constants(golden.shallow_layout(DETECTRON2))
    to_model(state, DETECTRON2_SOURCE)
    assert (
        "the torchvision (pytorch) kind, but detectron2/retinanet_R_50_FPN is of the MSRA (caffe) kind" in caplog.text
    )
    caplog.clear()
    to_model({**state, "backbone.bottom_up.stem.conv1.norm.running_var": np.ones(64, np.float32)}, DETECTRON2_SOURCE)
    assert not caplog.records
