"""Tests every model as an ONNX file in every post-processing and precision, the cells of the table in docs."""

import json
import logging
import sys

import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import shared
from export_models import EXPORTED, SLOW, verify_alone

import kerasdet
from kerasdet.errors import UserError, VerificationError
from kerasdet.export import export_onnx, verify_export
from kerasdet.ops import roi_align

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
convert = pytest.importorskip("kerasdet.export.onnx.model").convert

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
DENSE = ("retinanet", "fcos", "ssd", "proposal_network")
# The parts of these are mask_keypoint_rcnn's: float32 shows that they fit.
PARTS_OF_ANOTHER = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn")
ONLY_RTMDET = {("nms", "int8")}  # rtmdet_ins has the others
CELLS = [
    (name, kind, precision)
    for precision in ("float32", "float16", "int8")
    for name in EXPORTED
    for kind in ("nms", "raw")
    if (name in DENSE or kind == "nms")
    and (name != "rtmdet" or (kind, precision) in ONLY_RTMDET)
    and (name not in PARTS_OF_ANOTHER or precision == "float32")
    and (kind == "nms" or precision == "float32")  # precisions change the network, and nothing behind it
]
QUICK = [(name, "nms", "float32") for name in EXPORTED if name not in (*SLOW, "ssd")]  # test_ssd.py has ssd's


@pytest.mark.parametrize(
    "name,kind,precision",
    [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in CELLS],
)
def test_file_equals_the_model(models, onnx_file, name, kind, precision):
    """The comparison checks its own tolerances; these bounds are closer."""
    path = onnx_file(name, postprocessing=kind, precision=precision)
    assert {opset.domain for opset in onnx.load(path).opset_import} == {""}
    report = verify_alone(models(name), path, tiny.images())
    assert report.detections >= 40
    if precision == "float32":
        assert report.one_sided == 0
        assert report.max_box_error < 1e-3
        assert report.max_score_error < 1e-5
        assert report.max_mask_error < 1e-4
        assert report.moved_keypoints == 0
    elif precision == "float16":
        assert report.one_sided <= 0.1 * report.detections
        # ssd's coder divides deltas by 5 and 10, and so their rounding
        assert (name != "ssd") * 1e-4 <= report.max_box_error < 0.5
    else:
        assert (name != "ssd") * 0.1 <= report.max_box_error < 20


@pytest.mark.parametrize("kind", ["nms", "raw"])
def test_file_runs_with_only_onnxruntime(models, onnx_file, kind):
    report = verify_export(models("tiny"), onnx_file("tiny", postprocessing=kind), tiny.images())
    assert report.detections > 50
    assert report.one_sided == 0
    assert report.milliseconds > 0


def test_file_has_operators_of_onnx_only_and_all_metadata(onnx_file):
    path = onnx_file("tiny", gin_config="STEPS = 3\n")
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert [(opset.domain, opset.version >= 17) for opset in file.opset_import] == [("", True)]
    assert {node.domain for node in file.graph.node} == {""}
    assert [node.op_type for node in file.graph.node].count("NonMaxSuppression") == 1
    properties = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(properties["class_names"]) == list(tiny.CLASS_NAMES)
    assert properties["config.gin"] == "STEPS = 3\n"
    assert "the shorter side resized to 64 pixels or, if the longer side would then exceed 96" in properties["input"]
    assert json.loads(properties["kerasdet"])["precision"] == "float32"
    assert kerasdet.load(path).class_names == tiny.CLASS_NAMES


def test_int8_quantises_backbone_and_neck(onnx_file, caplog):
    handlers = list(logging.getLogger().handlers)
    file = onnx.load(onnx_file("tiny", precision="int8"))
    assert [record.getMessage() for record in caplog.records if record.name == "root"] == []  # onnxruntime's advice
    assert logging.getLogger().handlers == handlers
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    dequantised = {node.output[0] for node in file.graph.node if node.op_type == "DequantizeLinear"}
    convs = {node.name: set(node.input[:2]) <= dequantised for node in file.graph.node if node.op_type == "Conv"}
    assert len(convs) > 20
    assert all(quantised != ("head" in name) for name, quantised in convs.items()), convs


def test_fixed_size_takes_letterboxed_uint8(models, onnx_file):
    model, path = models("tiny"), onnx_file("tiny", size=(64, 64), input_type="uint8")
    [image] = onnx.load(path).graph.input
    assert [axis.dim_value for axis in image.type.tensor_type.shape.dim] == [1, 64, 64, 3]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    report = verify_alone(model, path, tiny.images())
    assert report.detections > 50
    assert report.one_sided == 0
    found = kerasdet.load(path).detect(tiny.images(sizes=[(120, 30)])[0])
    assert len(found) > 0
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()  # those in the padding are dropped
    assert (found.boxes[:, 2:] <= (120, 30)).all()


def test_detect_equals_the_model(models, onnx_file):
    model, loaded = models("tiny"), kerasdet.load(onnx_file("tiny", postprocessing="nms"))
    several = tiny.images()
    for images, batch_size in ((several, 1), ([several[0]] * 3, 8)):
        for found, expected in zip(loaded.detect(images), model.detect(images, batch_size=batch_size), strict=True):
            np.testing.assert_array_equal(found.class_ids, expected.class_ids)
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_unsupported_options_and_files_raise(models, tmp_path, monkeypatch):
    model, path = models("tiny"), tmp_path / "x.onnx"
    for options, message in [
        ({"postprocessing": "ssd"}, "ONNX has no postprocessing 'ssd': choose one of raw, nms"),
        ({"precision": "bfloat16"}, "no precision 'bfloat16': choose one of float32, float16, int8"),
        ({"size": (0, 4)}, "expected .height, width. in whole pixels"),
        ({"precision": "int8"}, "int8 needs calibration images"),
    ]:
        with pytest.raises(UserError, match=message):
            export_onnx(model, path, **options)
    with pytest.raises(
        UserError, match=r"with postprocessing raw, because its second stage .*Choose postprocessing nms"
    ):
        export_onnx(models("faster_rcnn"), path, postprocessing="raw")
    with pytest.raises(UserError, match=r"does not end in \.onnx"):
        export_onnx(model, tmp_path / "x.bin")
    with pytest.raises(FileNotFoundError, match=r"The file .*x\.onnx does not exist"):
        kerasdet.load(path)
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be loaded by onnxruntime"):
        kerasdet.load(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[onnx\]'"):
        kerasdet.load(path)


def test_foreign_file_raises(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    opsets = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "x.onnx")
    with pytest.raises(UserError, match="has no entry kerasdet in its metadata: expected a file of"):
        kerasdet.load(tmp_path / "x.onnx")


@pytest.mark.parametrize("entry", ["{}", "no JSON", "[1]"])
def test_file_with_damaged_metadata_raises(onnx_file, tmp_path, entry):
    file = onnx.load(onnx_file("tiny", postprocessing="nms"))
    [metadata] = [each for each in file.metadata_props if each.key == "kerasdet"]
    metadata.value = entry
    onnx.save(file, tmp_path / "x.onnx")
    with pytest.raises(
        UserError, match=r"The entry kerasdet in the metadata of .*x\.onnx lacks .*Export the model again"
    ):
        kerasdet.load(tmp_path / "x.onnx")


def test_file_of_another_model_raises(onnx_file):
    with pytest.raises(VerificationError, match="differs from the model"):
        verify_alone(tiny.talkative(seed=1), onnx_file("tiny", postprocessing="nms"), tiny.images())


def run_roi_align(image, boxes, **options):
    """Runs kerasdet's ROIAlign as an ONNX model on an image (1, H, W, C) and boxes (P, 4)."""
    model = convert(
        lambda image: {"pooled": roi_align(image, boxes[None], **options)},
        tf.TensorSpec([1, None, None, image.shape[-1]], tf.float32, "image"),
        "float32",
    )
    [node] = [node for node in model.graph.node if node.op_type == "RoiAlign"]
    [pooled] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})
    return pooled[0], {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def test_roi_align_equals_the_onnx_reference():
    vectors = json.loads(shared("reference/onnx_vectors.json").read_text())
    cases = [v for v in vectors if v["attrs"]["op"] == "RoiAlign" and v["attrs"].get("mode", "avg") == "avg"]
    assert len(cases) >= 2
    for case in cases:
        expected, (image, boxes, _) = case["attrs"], case["inputs"]
        pooled, attributes = run_roi_align(
            np.transpose(image, (0, 2, 3, 1)).astype(np.float32),
            np.array(boxes, np.float32)[:, [1, 0, 3, 2]],
            output_size=(expected["output_height"], expected["output_width"]),
            spatial_scale=expected["spatial_scale"],
            sampling_ratio=expected["sampling_ratio"],
            aligned=expected["coordinate_transformation_mode"] == "half_pixel",
        )
        np.testing.assert_allclose(np.moveaxis(pooled, -1, 1), case["outputs"][0], atol=1e-4)
        assert attributes["coordinate_transformation_mode"].decode() == expected["coordinate_transformation_mode"]
        assert attributes["sampling_ratio"] == expected["sampling_ratio"]


def test_adaptive_sampling_of_roi_align_equals_the_compiled_op():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 24, 40, 3)).astype(np.float32)
    corners = rng.uniform(-8, [200, 330], (12, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 300, (12, 2))], 1).astype(np.float32)
    options = {"output_size": 7, "spatial_scale": 1 / 8, "sampling_ratio": 0, "aligned": True}
    pooled, attributes = run_roi_align(image, boxes, **options)
    np.testing.assert_allclose(pooled, roi_align(image, boxes[None], **options)[0], atol=1e-5)
    assert attributes["sampling_ratio"] == 0
    assert attributes["coordinate_transformation_mode"] == b"half_pixel"


def test_convolutions_of_many_channels_equal_tensorflow():
    """Their weights are no constants of the graph that is converted."""
    rng = np.random.default_rng(0)
    wide, bias, narrow = (
        tf.constant(rng.normal(size=s), tf.float32) for s in ([1, 1, 3, 1024], [1024], [3, 3, 1024, 2])
    )

    def function(image):
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(image, wide, 1, "SAME"), bias))
        return {"y": tf.nn.conv2d(x, narrow, 2, "SAME")}

    model = convert(function, tf.TensorSpec([None, None, None, 3], tf.float32, "image"), "float32")
    image = rng.normal(size=[1, 6, 7, 3]).astype(np.float32)
    [found] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})
    np.testing.assert_allclose(found, function(image)["y"], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("size", [(12, 14), (9, 5), (3, 20)])
def test_nearest_pixels_equal_tensorflow(size):
    """The necks of users resize in this way."""
    image = np.random.default_rng(0).normal(size=[1, 6, 7, 3]).astype(np.float32)
    spec = tf.TensorSpec([None, None, None, 3], tf.float32, "image")
    model = convert(lambda x: {"y": tf.image.resize(tf.nn.relu(x), size, "nearest")}, spec, "float32")
    [found] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})
    np.testing.assert_array_equal(found, tf.image.resize(tf.nn.relu(image), size, "nearest"))


def test_unknown_operation_raises():
    def function(image):
        return {"y": tf.math.lgamma(image)}

    with pytest.raises(UserError, match=r"has the operation Lgamma .*replace the layer that uses it"):
        convert(function, tf.TensorSpec([1, None, None, 3], tf.float32, "image"), "float32")
