"""Tests `verify` and `kerasdet convert --reference-outputs`: agreement with a source, and tensors that differ."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from checkpoints import golden
from models.models import randomized, rtmdet, ssd

from kerasdet import cli
from kerasdet.checkpoints import SOURCES, to_model, verify
from kerasdet.models import Preprocessing

NAME, SOURCE = "torchvision_retinanet_resnet50_fpn", "torchvision/retinanet_resnet50_fpn"
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
PYRAMID = ["p3", "p4", "p5", "p6", "p7"]
TENSORS = [*PYRAMID, "class_logits", "box_deltas"]


@pytest.fixture(scope="module")
def model():
    """Converts the reference, and sets a resize rule that keeps the size of the reference's image."""
    model = to_model(golden.state(NAME), SOURCE)
    model.preprocessing.shortest, model.preprocessing.longest = 256, 320
    return model


@pytest.fixture(scope="module")
def image():
    return golden.weights().image(256, 320, seed=0)


@pytest.fixture(scope="module")
def tensors(model, image):
    """Computes the model's outputs in torchvision's layout: CHW, xyxy, and a column for background."""
    batch = {"image": tf.constant(image[None]), "image_size": tf.constant([[256, 320]])}
    pyramid = model.neck(model.backbone(model.preprocessing.normalize(**batch)))
    outputs = model(batch)
    logits, deltas = (np.concatenate([*map(np.asarray, outputs[name].values())], 1) for name in TENSORS[5:])
    return {
        **{level: np.transpose(x, (0, 3, 1, 2)) for level, x in pyramid.items()},
        "class_logits": np.concatenate([np.full((*logits.shape[:2], 1), -12, np.float32), logits], 2),
        "box_deltas": deltas[:, :, golden.XYXY],
    }


@pytest.fixture(scope="module")
def detections():
    return golden.expected_detections(golden.outputs(NAME), "detections")


def names_of_differences(report):
    return [name for name, _, same in report if not same]


# Agreement


def test_detections_of_the_reference_agree(model, image, detections):
    assert verify(model, {"image": image, **detections}, SOURCE) == [("detections", 0, True)]


def test_report_lists_outputs_in_the_order_of_computation(model, image, tensors, detections):
    report = verify(model, {**detections, **tensors, "image": image, "else": np.zeros(1)}, SOURCE)
    assert [name for name, _, _ in report] == [*TENSORS, "detections"]
    assert names_of_differences(report) == []
    assert max(difference for _, difference, _ in report) < 1e-5


@pytest.mark.parametrize("make,source", [(ssd, "torchvision/ssd300_vgg16"), (rtmdet, "mmdet/rtmdet_tiny")])
def test_network_gets_the_image_as_in_detect(make, source, rng):
    """SSD's logits have a column for the background, and RTMDet fills the padding."""
    model = randomized(make())
    if make is rtmdet:
        model.preprocessing = Preprocessing(shortest=96, longest=96, letterbox_value=0)
    image = rng.integers(0, 256, (40, 90, 3), np.uint8)
    found = {}
    model.postprocess = lambda outputs, size: found.update(outputs) or type(model).postprocess(model, outputs, size)
    tf.config.run_functions_eagerly(True)
    try:
        model.detect(image)
    finally:
        tf.config.run_functions_eagerly(False)
    logits = np.concatenate([*map(np.asarray, found["class_logits"].values())], 1)
    logits = np.roll(logits, 1, -1) if make is ssd else logits
    assert verify(model, {"image": image, "class_logits": logits}, source)[0][::2] == ("class_logits", True)


def test_batch_axis_is_optional(model, image, tensors, detections):
    without = {name: x[0] for name, x in tensors.items()}
    assert names_of_differences(verify(model, {"image": image, **without}, SOURCE)) == []
    batched = {name: x[None] for name, x in detections.items()}
    assert verify(model, {"image": image, **batched}, SOURCE) == [("detections", 0, True)]


def test_outputs_may_be_incomplete(model, image, tensors):
    report = verify(model, {"image": image, "box_deltas": tensors["box_deltas"], "p5": tensors["p5"]}, SOURCE)
    assert [name for name, _, _ in report] == ["p5", "box_deltas"]


def test_labels_start_at_one_only_in_torchvision(model, image, detections):
    """detectron2 numbers its classes like kerasdet, from 0."""
    zero_based = {**detections, "labels": detections["labels"] - 1}
    assert verify(model, {"image": image, **zero_based}, SOURCE) == [("detections", 1, False)]
    assert verify(model, {"image": image, **zero_based}, "detectron2/retinanet_R_50_FPN") == [("detections", 0, True)]


def test_two_stage_models_compare_pyramid_and_detections(image):
    """The second stage's outputs depend on its proposals, so they are not compared."""
    name, source = "torchvision_fasterrcnn_resnet50_fpn", "torchvision/fasterrcnn_resnet50_fpn"
    model = to_model(golden.state(name), source)
    model.preprocessing.shortest, model.preprocessing.longest = 256, 320
    batch = {"image": tf.constant(image[None]), "image_size": tf.constant([[256, 320]])}
    p2 = model.neck(model.backbone(model.preprocessing.normalize(**batch)))["p2"]
    expected = golden.expected_detections(golden.outputs(name), "detections")
    report = verify(
        model, {"image": image, "p2": np.transpose(p2[0], (2, 0, 1)), **expected}, name.replace("_", "/", 1)
    )
    assert [(name, same) for name, _, same in report] == [("p2", True), ("detections", True)]


def test_fcos_compares_distances_and_centerness(image):
    """Centerness may have a channel axis, as in the source."""
    name, source = "torchvision_fcos_resnet50_fpn", "torchvision/fcos_resnet50_fpn"
    model = to_model(golden.state(name), source)
    model.preprocessing.shortest, model.preprocessing.longest = 256, 320
    outputs = model({"image": tf.constant(image[None]), "image_size": tf.constant([[256, 320]])})
    distances, centerness = (
        np.concatenate([*map(np.asarray, outputs[part].values())], 1) for part in ("box_distances", "centerness")
    )
    heads = {"box_distances": distances[:, :, golden.XYXY], "centerness": centerness[..., None]}
    expected = golden.expected_detections(golden.outputs(name), "detections")
    report = verify(model, {"image": image, **heads, **expected}, source)
    assert [(name, same) for name, _, same in report] == [
        ("box_distances", True),
        ("centerness", True),
        ("detections", True),
    ]
    assert names_of_differences(
        verify(model, {"image": image, **heads, "centerness": -heads["centerness"]}, source)
    ) == ["centerness"]


# Differences


@pytest.fixture
def perturbed(model):
    """Doubles a kernel and restores it after the test."""
    changed = []

    def change(layer):
        changed.append((layer.conv.kernel, layer.conv.kernel.numpy()))
        layer.conv.kernel.assign(changed[-1][1] * 2)

    yield change
    for kernel, value in changed:
        kernel.assign(value)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda m: m.backbone.stem, TENSORS),
        (lambda m: m.neck.laterals[2], TENSORS),  # lateral of c5; torchvision's v1 makes p6 from p5
        (lambda m: m.neck.outputs[0], ["p3", "class_logits", "box_deltas"]),
        (lambda m: m.neck.outputs[1], ["p4", "class_logits", "box_deltas"]),
        (lambda m: m.neck.top.convs[1], ["p7", "class_logits", "box_deltas"]),
        (lambda m: m.head.class_tower.convs[0], ["class_logits"]),
        (lambda m: m.head.class_logits, ["class_logits"]),
        (lambda m: m.head.box_tower.convs[3], ["box_deltas"]),
    ],
    ids=["stem", "lateral_c5", "output_c3", "output_c4", "p7", "class_tower", "class_logits", "box_tower"],
)
def test_changed_weight_shows_in_the_outputs_behind_it(model, image, tensors, perturbed, layer, expected):
    perturbed(layer(model))
    assert names_of_differences(verify(model, {"image": image, **tensors}, SOURCE)) == expected


def test_non_finite_tensors_differ(model, image, tensors):
    broken = np.full_like(tensors["p4"], np.nan)
    assert names_of_differences(verify(model, {"image": image, **tensors, "p4": broken}, SOURCE)) == ["p4"]


@pytest.mark.parametrize(("moved", "same"), [(30, True), (31, False)])
def test_ninety_percent_of_detections_must_be_found(model, image, detections, moved, same):
    boxes = detections["boxes"].copy()
    boxes[:moved, 0] -= 50
    report = verify(model, {"image": image, **detections, "boxes": boxes}, SOURCE)
    assert report == [("detections", pytest.approx(moved / 300), same)]


def test_detection_matches_only_once(model, image, detections):
    twice = {name: np.concatenate([x[:100], x[:100]]) for name, x in detections.items()}
    assert verify(model, {"image": image, **twice}, SOURCE) == [("detections", 0.5, False)]


# Errors


def message(model, outputs, source=SOURCE):
    with pytest.raises(ValueError) as error:
        verify(model, outputs, source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_image_raises(model, tensors):
    text = message(model, {"p3": tensors["p3"]})
    assert text.startswith(
        "The reference outputs have no entry 'image', only p3; expected the image as (H, W, 3) uint8."
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda image: image / np.float32(255),
        lambda image: image.transpose(2, 0, 1),
        lambda image: image[:, :, 0],
        lambda image: image[None],
    ],
    ids=["float", "channels first", "gray", "batch"],
)
def test_image_of_another_layout_raises(model, image, tensors, wrong):
    text = message(model, {"image": wrong(image), "p3": tensors["p3"]})
    assert str(wrong(image).shape) in text and "uint8" in text


def test_outputs_without_known_entries_raise(model, image, detections):
    assert "no entry to compare" in message(model, {"image": image})
    assert "no entry to compare" in message(model, {"image": image, "boxes": detections["boxes"]})


@pytest.mark.parametrize(("name", "shape"), [("p4", (256, 17, 20)), ("class_logits", (7,)), ("box_deltas", (3, 5, 4))])
def test_output_of_another_shape_raises(model, image, name, shape):
    text = message(model, {"image": image, name: np.zeros(shape, np.float32)})
    assert text.startswith(f"The entry {name!r} of the reference outputs has shape {shape}, but the model computes (")


@pytest.mark.parametrize(("name", "count"), [("boxes", 9), ("scores", 9), ("labels", 9)])
def test_detections_of_different_lengths_raise(model, image, detections, name, count):
    text = message(model, {"image": image, **detections, name: detections[name][:count]})
    assert f"{name} ({count}," in text


def test_unknown_source_raises(model, image, tensors):
    assert "'torch'" in message(model, {"image": image, **tensors}, "torch")


def test_comparing_a_backbone_raises(model, image):
    assert "ResNet" in message(model.backbone, {"image": image})


# Command line


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """Runs `kerasdet convert` on the reference with the resize rule of the reference."""
    preprocessing = {**SOURCES[SOURCE].preprocessing, "shortest": 256, "longest": 320}
    monkeypatch.setitem(SOURCES, SOURCE, replace(SOURCES[SOURCE], preprocessing=preprocessing))
    np.savez(tmp_path / "file.npz", **golden.state(NAME))

    def run(outputs):
        np.savez(tmp_path / "outputs.npz", **outputs)
        file, out, expected = (str(tmp_path / name) for name in ("file.npz", "out", "outputs.npz"))
        return cli.main(["convert", file, "--source", SOURCE, "--out", out, "--reference-outputs", expected])

    return run


def test_convert_compares_and_writes(convert, image, tensors, detections, tmp_path, capsys):
    assert convert({"image": image, "p3": tensors["p3"], **detections}) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:2]] == ["p3", "detections"]
    assert (tmp_path / "out" / "model.keras").is_file()


def test_convert_writes_nothing_if_outputs_differ(convert, image, tensors, tmp_path, capsys):
    wrong = {"p4": tensors["p4"] * 1.01, "class_logits": tensors["class_logits"] + 1}
    assert convert({"image": image, **tensors, **wrong}) == 2
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines() if "differs" in line] == ["p4", "class_logits"]
    assert (
        captured.err.count("\n") == 1
        and "The output p4 of the model" in captured.err
        and "no file was written" in captured.err
    )
    assert not (tmp_path / "out").exists()
