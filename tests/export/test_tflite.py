"""Tests every model as a TFLite file in every post-processing and precision, the cells of the table in docs."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from export_models import EXPORTED, verify_in_process
from PIL import Image

import kerasdet
from kerasdet.errors import UserError, VerificationError
from kerasdet.export import export_tflite, tflite, verify_export
from kerasdet.export.tflite import postprocessing as post
from kerasdet.export.tflite.spec import POSTPROCESSING, PRECISIONS
from kerasdet.export.tflite.write import default_size
from kerasdet.models import Preprocessing

pytest.importorskip("ai_edge_litert")
pytest.importorskip("ai_edge_quantizer")

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
SIZE = (96, 128)
EXAMPLES = Path(tflite.__file__).with_name("examples")
QUICK = {("retinanet", "nms", "float32"), ("fcos", "postprocess", "int8"), ("mask_keypoint_rcnn", "nms", "float32")}
PARTS_OF_ANOTHER = ("mask_rcnn", "keypoint_rcnn")  # their parts are mask_keypoint_rcnn's: float32 shows that they fit
ONLY_RTMDET = {("postprocess", "float32"), ("postprocess", "int8"), ("raw", "float32")}  # rtmdet_ins has the others
OF_THE_NETWORK = ("float16", "dynamic")  # these change the convolutions, which "nms" compares, and nothing behind them
CELLS = [
    (name, kind, precision)
    for name in EXPORTED
    for kind in POSTPROCESSING
    for precision in PRECISIONS
    if (name != "rtmdet" or (kind, precision) in ONLY_RTMDET)
    and (kind == "nms" or precision not in OF_THE_NETWORK)
    and (name not in PARTS_OF_ANOTHER or kind != "nms" or precision == "float32")
]


def possible(cell):
    dense = cell[0] in ("retinanet", "fcos", "ssd", "rtmdet") or (cell[0] == "rtmdet_ins" and cell[1] == "nms")
    unsupported = cell[1] == "postprocess" or (cell[1] == "raw" and cell[0] != "proposal_network")
    return dense or not (unsupported or (cell[2] == "int8" and cell[0] != "proposal_network"))


def marked(cells):
    return [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in cells]


@pytest.mark.parametrize("name,kind,precision", marked(filter(possible, CELLS)))
def test_file_equals_the_model(models, tflite_file, name, kind, precision):
    """The comparison checks its own tolerances; float16 must stay far below them."""
    path = tflite_file(name, postprocessing=kind, precision=precision)
    report = verify_in_process(models(name), path, tiny.images())
    assert report.detections >= 40
    if precision == "float32":
        assert report.one_sided == 0
        assert report.moved_keypoints == 0
    elif precision == "float16":
        assert report.one_sided <= 0.1 * report.detections
        # ssd's coder divides deltas by 5 and 10, and so their rounding
        assert (name != "ssd") * 1e-3 <= report.max_box_error < 0.5
        assert report.max_score_error < 5e-3
    else:
        assert (name != "ssd") * 0.1 <= report.max_box_error < 20
        assert 1e-4 < report.max_score_error < 0.2


@pytest.mark.parametrize("kind", ["nms", "raw"])
def test_file_runs_with_only_litert(models, tflite_file, kind):
    path = tflite_file("tiny", postprocessing=kind)
    report = verify_export(models("tiny"), path, tiny.images())
    assert report.detections > 50
    assert report.one_sided == 0
    assert report.milliseconds > 0


@pytest.mark.parametrize("name,kind,precision", [cell for cell in CELLS if not possible(cell)])
def test_unsupported_combination_raises_reason_and_alternative(models, tmp_path, name, kind, precision):
    options = {"calibration_images": tiny.images()} if precision == "int8" else {}
    with pytest.raises(UserError, match=f"cannot be exported with postprocessing {kind} in {precision}: .*choose"):
        export_tflite(models(name), tmp_path / "x.tflite", postprocessing=kind, precision=precision, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_detect_equals_the_model(models, tflite_file):
    model, path = models("mask_keypoint_rcnn"), tflite_file("mask_keypoint_rcnn", postprocessing="nms")
    loaded = kerasdet.load(path)
    images = tiny.images(sizes=((96, 128), (48, 64)))
    assert loaded.num_classes == model.num_classes
    for found, expected in zip(loaded.detect(images), model.detect(images, resize=(96, 128)), strict=True):
        np.testing.assert_array_equal(found.class_ids, expected.class_ids)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(found.mask_probs, expected.mask_probs, atol=1e-3)
        np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=0.1, rtol=1e-3)
        assert found.mask_convention == expected.mask_convention


def test_threads_may_share_a_file(tflite_file):
    loaded = kerasdet.load(tflite_file("tiny", postprocessing="nms"))
    images = [tiny.images(sizes=[(64, 64)], seed=seed)[0] for seed in range(4)]
    expected = [loaded.detect(image).boxes for image in images]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda image: loaded.detect(image).boxes, images * 10))
    for one, other in zip(found, expected * 10, strict=True):
        np.testing.assert_array_equal(one, other)


def test_boxes_in_letterbox_padding_are_dropped(tflite_file):
    loaded = kerasdet.load(tflite_file("tiny", postprocessing="nms"))
    [image] = tiny.images(sizes=[(120, 30)])
    found = loaded.detect(image)
    assert 0 < len(found) < 20
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes[:, 2:] <= image.shape[:2]).all()
    assert (found.class_ids >= 0).all()


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("model.bin", {}, "does not end in .tflite"),
        ("model.tflite", {"size": 96}, "size is 96: expected .height, width."),
        ("model.tflite", {"size": (0, 96)}, "expected .height, width. in whole pixels"),
        (
            "model.tflite",
            {"precision": "int8", "calibration_images": [np.zeros([8, 8], np.uint8)]},
            "Image 0 is an array of shape .8, 8.",
        ),
    ],
)
def test_invalid_arguments_raise_before_conversion(models, tmp_path, name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_tflite(models("tiny"), tmp_path / name, **options)


def test_raw_file_has_outputs_and_anchors_of_the_model(models, tflite_file):
    model, path = models("fcos"), tflite_file("fcos", postprocessing="raw", precision="float32")
    loaded = kerasdet.load(path)
    pixels, size = loaded.to_input(tiny.images()[0])
    outputs, expected = loaded.run(pixels), model(pixels, training=False)
    assert size == (96, 96)
    assert outputs.keys() == {"class_logits", "box_distances", "centerness"}
    for name, value in outputs.items():
        np.testing.assert_allclose(value, np.concatenate(list(expected[name].values()), 1), atol=1e-4)
    with zipfile.ZipFile(path) as archive, np.load(io.BytesIO(archive.read("anchors.npz"))) as anchors:
        assert {level: len(values) for level, values in anchors.items()} == {
            level: len(values) for level, values in expected["anchors"].items()
        }


def test_input_may_be_uint8(models, tflite_file):
    path = tflite_file("tiny", postprocessing="nms", input_type="uint8")
    report = verify_in_process(models("tiny"), path, tiny.images())
    assert report.detections == 60
    assert report.one_sided == 0
    assert report.max_box_error <= 1e-2


@pytest.mark.parametrize(
    "size", [None, pytest.param((60, 93), marks=pytest.mark.slow)], ids=["default", "needs padding"]
)
def test_input_size_option(models, tmp_path, size):
    """By default the size fits a wide image, so file and model see the same pixels."""
    model = models("tiny")
    loaded = kerasdet.load(export_tflite(model, tmp_path / "x.tflite", size=size))
    assert tuple(loaded.metadata["size"]) == (size or (64, 96))
    image = tiny.images(sizes=[size or (40, 60)])[0]
    expected, found = model.detect(image, resize=False if size else None), loaded.detect(image)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 20])
def test_custom_op_considers_every_class(num_classes):
    """LiteRT 2.3 skips the class whose number is that of its threads."""
    from ai_edge_litert.interpreter import Interpreter

    model = tiny.detector(num_classes, max_detections=30)
    specs = {"encodings": [1, 40, 4], "scores": [1, 40, num_classes]}
    function = tf.function(
        lambda **candidates: post.apply_nms_custom_op(model, candidates),
        input_signature=None,
    ).get_concrete_function(**{name: tf.TensorSpec(shape, tf.float32, name) for name, shape in specs.items()})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.allow_custom_ops = True
    content = converter.convert()
    places = np.stack([np.arange(40) / 40, np.full(40, 0.5)], -1)
    values = {
        "encodings": np.concatenate([places, np.full([40, 2], np.log(0.01))], -1)[None].astype(np.float32),
        "scores": np.eye(40, num_classes, dtype=np.float32)[None] * 0.9,
    }
    for threads in (1, 2, 3, 4):
        run = Interpreter(model_content=content, num_threads=threads)
        run.allocate_tensors()
        for detail in run.get_input_details():
            run.set_tensor(detail["index"], next(value for name, value in values.items() if name in detail["name"]))
        run.invoke()
        found = [run.get_tensor(detail["index"]) for detail in run.get_output_details()]
        classes = [sorted(value.ravel()[:num_classes]) for value in found if value.ndim == 2]
        assert list(range(num_classes)) in classes, threads


@pytest.mark.slow
def test_custom_op_finds_more_than_a_hundred_objects_of_a_class(tmp_path):
    model = tiny.talkative(max_detections=150, score_threshold=0.0)
    path = export_tflite(model, tmp_path / "x.tflite", size=(64, 64), postprocessing="postprocess")
    report = verify_in_process(model, path, tiny.images(sizes=[(64, 64)]))
    assert report.detections > 120
    assert report.one_sided == 0


def test_file_contains_labels_and_metadata(tflite_file):
    path = tflite_file("tiny", gin_config="STEPS = 3\n")
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.read("labels.txt").decode().split() == list(tiny.CLASS_NAMES)
        assert archive.read("config.gin") == b"STEPS = 3\n"
        metadata = json.loads(archive.read("kerasdet.json"))
    assert metadata["size"] == [64, 64]
    assert metadata["postprocessing"] == "nms"
    assert kerasdet.load(path).class_names == tiny.CLASS_NAMES


def test_int8_file_runs_although_no_calibration_image_reaches_a_relu(tmp_path):
    """An output that is always 0 has no range; XNNPACK refuses the scale of a range without width."""
    model = tiny.detector(score_threshold=0.001)
    shift = model.backbone.get_layer("c2_0").convs[0].norm.beta
    shift.assign(shift - 1e4)
    path = export_tflite(model, tmp_path / "x.tflite", precision="int8", size=SIZE, calibration_images=tiny.images())
    report = verify_export(model, path, tiny.images())
    assert report.detections > 0


def test_unknown_options_and_files_raise(models, tmp_path):
    model = models("tiny")
    for option, message in [
        ({"postprocessing": "ssd"}, "no postprocessing 'ssd': choose one of raw, postprocess, nms"),
        (
            {"precision": "bfloat16"},
            "no precision 'bfloat16': choose one of float32, float16, dynamic, int8",
        ),
        ({"input_type": "int8"}, "no input type 'int8': choose one of float32, uint8"),
        ({"precision": "int8"}, "int8 needs calibration images"),
    ]:
        with pytest.raises(UserError, match=message):
            export_tflite(model, tmp_path / "x.tflite", **option)
    (tmp_path / "x.tflite").write_bytes(b"TFL3")
    with pytest.raises(FileExistsError, match=r"x\.tflite exists: export to another file"):
        export_tflite(model, tmp_path / "x.tflite")
    with pytest.raises(ValueError, match=r"x\.tflite has no kerasdet\.json at its end: expected a whole file of"):
        kerasdet.load(tmp_path / "x.tflite")
    with pytest.raises(FileNotFoundError, match=r"The file .*y\.tflite does not exist"):
        kerasdet.load(tmp_path / "y.tflite")


def test_verify_file_of_another_model_raises(tflite_file):
    with pytest.raises(VerificationError, match="differs from the model"):
        verify_in_process(tiny.talkative(seed=1), tflite_file("tiny", postprocessing="nms"), tiny.images())


def test_missing_package_is_named_with_its_extra(models, tflite_file, tmp_path, monkeypatch):
    path = tflite_file("tiny", postprocessing="nms")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[tflite\]'"):
        kerasdet.load(path)
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[tflite\]'"):
        export_tflite(models("tiny"), tmp_path / "x.tflite", size=(64, 64), precision="dynamic")


def test_default_size_is_not_wider_than_the_rule_of_coco():
    rules = (800, 1333), (240, 1067), (300, 300)
    sizes = [default_size(Preprocessing(shortest=shortest, longest=longest)) for shortest, longest in rules]
    assert sizes == [(800, 1333), (240, 400), (300, 300)]


def test_example_detections_equal_those_of_kerasdet(tmp_path):
    model = tiny.talkative(score_threshold=0.3)
    path = export_tflite(model, tmp_path / "x.tflite", size=(64, 96), input_type="uint8")
    image = tiny.images(sizes=[(64, 64)])[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "detect.py"), str(path), str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    expected = kerasdet.load(path).detect(image)
    assert len(lines) == len(expected) > 0
    boxes = np.array([line[2:] for line in lines], float)
    np.testing.assert_allclose(boxes, expected.boxes, atol=0.06)
    assert [line[0] for line in lines] == expected.labels


@pytest.mark.parametrize("name,kind", [("retinanet", "nms"), ("fcos", "postprocess")])
def test_mediapipe_runs_the_file_unchanged(tflite_file, tmp_path, name, kind):
    """The example detects in a photograph if the shared data is present, else in a generated image."""
    pytest.importorskip("mediapipe")
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "mediapipe_detect.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    path = tflite_file(name, postprocessing=kind, precision="int8" if kind == "postprocess" else "float32")
    image = photograph()
    Image.fromarray(image).save(tmp_path / "a.png")
    found = example.detect(str(path), str(tmp_path / "a.png"), min_score=0.0)
    expected = kerasdet.load(path).detect(image)
    assert len(found) == len(expected) > 5
    np.testing.assert_allclose([box for _, _, box in found], expected.boxes, atol=2)  # MediaPipe rounds to whole pixels
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, atol=1e-4)
    assert [label for label, _, _ in found] == expected.labels


def photograph():
    from conftest import SHARED

    files = sorted((SHARED / "data" / "bccd" / "images").glob("*.jpg"))
    image = Image.open(files[0]) if files else Image.fromarray(tiny.images()[0])
    return np.array(image.resize(SIZE[::-1]))  # resized here, because MediaPipe uses another resize kernel
