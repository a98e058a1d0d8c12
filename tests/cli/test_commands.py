import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny
from conftest import shared
from PIL import Image

from kerasdet import cli, visualize
from kerasdet.evaluation import evaluate
from kerasdet.inference import AugmentedPredictor
from kerasdet.models import KeypointBranch

pytestmark = pytest.mark.usefixtures("unoptimized_graphs", "warm_workers", "models_opened_once")
SHAPES = "retinanet_r18_fpn_shapes"


@pytest.fixture(scope="module")
def model():
    return tiny.talkative(score_threshold=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """shapes/ holds data, run/ a training run on it; plain.keras, backbone.keras and broken files lie beside them."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.shapes_data(folder / "shapes", num_images=3)
    checkpoints = folder / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    model.save(checkpoints / "step_00000001.keras")
    (folder / "run" / "config.gin").write_text(
        "PRECISION = 'float32'\nSEED = 0\n"
        f"Validation.data = @eval/CocoDataset()\neval/CocoDataset.annotations = '{folder}/shapes/annotations.json'\n"
    )
    model.save(folder / "plain.keras")
    tiny.detector(num_classes=3).save(folder / "three.keras")
    tiny.backbone().save(folder / "backbone.keras")
    (folder / "cut.keras").write_bytes((folder / "plain.keras").read_bytes()[:9999])
    (folder / "words.jpg").write_text("not a picture")
    (folder / "other.pth").write_bytes(b"\x80\x04}q\x00.")
    with zipfile.ZipFile(folder / "torch.keras", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    (folder / "png").mkdir()
    Image.open(pictures(folder)[0]).save(folder / "png" / "a.png")
    (folder / "words.json").write_text("[{]")
    (folder / "lines.jsonl").write_text('{"image_id": 1}\n{"image_id": 2}\n')
    return folder


def kerasdet(*arguments):
    return cli.main([str(argument) for argument in arguments])


def pictures(folder):
    return sorted((folder / "shapes" / "images").glob("*.jpg"))


def test_eval_scores_a_file_of_detections(capsys, tmp_path):
    data = shared("data/cocoapi_eval")
    known = json.loads(shared("reference/known_answers.json").read_text())["cocoapi_bbox"]
    status = kerasdet(
        "eval",
        "--detections",
        data / "instances_val2014_fakebbox100_results.json",
        "--annotations",
        data / "instances_val2014_100.json",
        "--json",
        tmp_path / "metrics.json",
    )
    assert status == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["bbox", "AP", "AP50", "AP75"]
    assert table[1].split() == [f"{number:.3f}" for number in known]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    np.testing.assert_allclose(list(metrics["summary"].values()), known, atol=1e-9)
    assert "person" in metrics["per_class"]


def test_eval_uses_the_data_of_the_run(capsys, tmp_path, folder, model):
    found, scores = tmp_path / "new" / "detections.json", tmp_path / "new" / "folder" / "metrics.json"
    assert kerasdet("eval", folder / "run", "--save-detections", found, "--json", scores) == 0
    expected = evaluate(model, tiny.shapes_data(folder / "shapes", num_images=3))
    metrics = json.loads(scores.read_text())["summary"]
    assert metrics["AR100"] == pytest.approx(expected["AR100"], abs=1e-6)
    assert list(json.loads(scores.read_text())["per_class"]) == list(tiny.CLASS_NAMES)
    assert len(json.loads(found.read_text())) > 10
    again = tmp_path / "again.json"
    annotations = folder / "shapes" / "annotations.json"
    assert kerasdet("eval", "--detections", found, "--annotations", annotations, "--json", again) == 0
    assert again.read_text() == scores.read_text()


def test_eval_tta_detects_at_the_given_sizes(tmp_path, folder, model):
    found = tmp_path / "detections.json"
    assert kerasdet("eval", folder / "run", "--save-detections", found, "--tta", "48", "64") == 0
    augmented = AugmentedPredictor(model, [48, 64])
    expected = np.concatenate([augmented.detect(path).scores for path in pictures(folder)])
    scores = [detection["score"] for detection in json.loads(found.read_text())]
    assert len(scores) > 10
    np.testing.assert_allclose(scores, expected, rtol=1e-3)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_of_eval_ends_on_a_full_line(capsys, monkeypatch, folder, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert kerasdet("eval", folder / "run") == 0
    captured = capsys.readouterr()
    table = captured.out.partition("bbox ")
    assert table[1] and (not table[0] or table[0].endswith("\n"))
    assert not captured.err or captured.err.endswith("\n")


def test_predict_prints_a_table(capsys, folder, model):
    path = pictures(folder)[0]
    assert kerasdet("predict", folder / "run", path, "--score-threshold", "0.05") == 0
    title, *rows = capsys.readouterr().out.splitlines()
    expected = model.detect(path).filter(score=0.05)
    assert len(expected) > 3
    assert title == f"{path}: {len(expected)} objects"
    assert [row.split()[0] for row in rows] == [tiny.CLASS_NAMES[k] for k in expected.class_ids]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(expected.scores.tolist(), abs=6e-4)


def test_predict_prints_json_of_a_folder(capsys, folder, model):
    assert (
        kerasdet("predict", folder / "plain.keras", folder / "shapes/images", "--score-threshold", "0", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == [str(path) for path in pictures(folder)]
    for entry in found:
        expected = model.detect(entry["image"])
        detections = entry["detections"]
        assert len(detections) == len(expected) > 3
        np.testing.assert_allclose([d["box"] for d in detections], expected.boxes, atol=2e-3)
        assert [d["class_id"] for d in detections] == expected.class_ids.tolist()
        assert all(d["label"] == tiny.CLASS_NAMES[d["class_id"]] for d in detections)


def test_predict_prints_masks_and_keypoints_as_json(capsys, tmp_path, folder):
    model = tiny.rcnn()
    model.save(tmp_path / "model.keras")
    path = pictures(folder)[0]
    assert kerasdet("predict", tmp_path / "model.keras", path, "--score-threshold", "0", "--json") == 0
    [entry] = json.loads(capsys.readouterr().out)
    expected = model.detect(path)
    assert len(entry["detections"]) == len(expected) > 3
    assert [d["segmentation"] for d in entry["detections"]] == expected.encode_masks()
    np.testing.assert_allclose([d["keypoints"] for d in entry["detections"]], expected.keypoints, atol=1e-3)


def test_predict_goes_on_after_a_file_that_is_not_an_image(capsys, folder):
    good, absent = pictures(folder)[0], folder / "absent.jpg"
    assert kerasdet("predict", folder / "plain.keras", good, folder / "words.jpg", absent, good, "--json") == 2
    captured = capsys.readouterr()
    entries = json.loads(captured.out)
    assert [sorted(entry) for entry in entries] == [
        ["detections", "image"],
        ["error", "image"],
        ["error", "image"],
        ["detections", "image"],
    ]
    assert "2 of 4 images could not be read: " in captured.err and "words.jpg" in captured.err
    assert "{{" not in captured.out
    assert kerasdet("predict", folder / "plain.keras", absent, good) == 2
    assert capsys.readouterr().out.splitlines()[0] == f"{absent}: not read"


def test_predict_draws(folder, tmp_path):
    path, *_ = pictures(folder)
    assert kerasdet("predict", folder / "run", path, "--draw", tmp_path / "new", "--score-threshold", "0.05") == 0
    (drawn,) = (tmp_path / "new").iterdir()
    assert drawn.name == f"{path.stem}.png"
    original = np.asarray(Image.open(path), int)
    picture = np.asarray(Image.open(drawn).resize(original.shape[1::-1]), int)
    assert np.abs(picture - original).max() > 60


def assert_detects_like(capsys, export, folder, model, tolerance):
    """`predict` and `eval` take the export as they take the model."""
    annotations = folder / "shapes" / "annotations.json"
    capsys.readouterr()
    assert kerasdet("predict", export, *pictures(folder), "--score-threshold", "0", "--json") == 0
    found = [entry["detections"] for entry in json.loads(capsys.readouterr().out)]
    expected = [model.detect(path) for path in pictures(folder)]
    assert min(map(len, found)) > 3
    assert {record["label"] for records in found for record in records} <= set(tiny.CLASS_NAMES)
    best = [max(record["score"] for record in records) for records in found]
    assert best == pytest.approx([float(detections.scores[0]) for detections in expected], abs=tolerance)
    assert kerasdet("eval", export, "--annotations", annotations, "--json", export.parent / "export.json") == 0
    assert kerasdet("eval", folder / "run", "--json", export.parent / "model.json") == 0
    ours, theirs = (
        json.loads((export.parent / f"{name}.json").read_text())["summary"]["AR100"] for name in ("model", "export")
    )
    assert ours == pytest.approx(theirs, abs=tolerance)


def test_export_writes_a_saved_model_that_predict_and_eval_take(capsys, folder, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--verify-images", pictures(folder)[0], "--eval", folder / "shapes"]
    arguments += ["--class-offset", "0", "--max-pixels", "5000"]
    assert kerasdet("export", folder / "run", "served", *arguments) == 0
    report = capsys.readouterr().out
    assert "\nserved: " in report
    assert "bbox " in report
    assert (tmp_path / "served" / "saved_model.pb").is_file()
    assert "Validation.data" in (tmp_path / "served" / "assets" / "config.gin").read_text()
    metadata = json.loads((tmp_path / "served" / "assets" / "kerasdet.json").read_text())
    assert (metadata["class_offset"], metadata["max_pixels"]) == (0, 5000)
    assert_detects_like(capsys, tmp_path / "served", folder, model, tolerance=1e-3)
    assert kerasdet("eval", tmp_path / "served") == 0  # on the data of the configuration inside


def test_export_writes_a_tflite_file_that_predict_and_eval_take(capsys, folder, model, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_quantizer")
    monkeypatch.chdir(tmp_path)
    arguments = ["--precision", "dynamic", "--postprocessing", "postprocess", "--size", 64, 64, "--input", "uint8"]
    assert kerasdet("export", folder / "run", "a.tflite", *arguments) == 0
    report = capsys.readouterr().out
    assert report.startswith("a.tflite: 0.")
    for word in ("dynamic", "postprocess", "64x64", "uint8"):
        assert word in report.splitlines()[0]
    assert_detects_like(capsys, tmp_path / "a.tflite", folder, model, tolerance=0.1)


DATA = ["--annotations", "{}/shapes/annotations.json"]
PICTURE = "{}/shapes/images/000001.jpg"
FINETUNE = [
    *("train", "finetune", "--set", "NUM_CLASSES=5", "--set", "OUT_DIR={}/new"),
    *("--set", "TRAIN_ANNOTATIONS={}/shapes/annotations.json", "--set", "EVAL_ANNOTATIONS={}/shapes/annotations.json"),
]
SMALL = [
    *("train", SHAPES, "--set", "OUT_DIR={}/new", "--set", "TRAIN_DIR={}/a", "--set", "EVAL_DIR={}/b"),
    *("--set", "train/shapes_dataset.num_images=1", "--set", "eval/shapes_dataset.num_images=1"),
    *("--set", "HEAD_CHANNELS=32", "--set", "BACKBONE_WIDTH=8"),
]
FCOS = "torchvision/fcos_resnet50_fpn"
MISTAKES = {
    "train: no such configuration": (
        ["train", "retinanet_r5"],
        "no configuration retinanet_r5: expected the path of a gin file or of a run's folder, or one of",
    ),
    "train: unknown macro": ([*SMALL, "--set", "STEPSS=3"], "the configuration has no macro STEPSS"),
    "train: unknown argument": ([*SMALL, "--set", "ResNet.widht=3"], "ResNet has no argument widht: choose one of "),
    "train: argument of another part": (
        [*SMALL, "--set", "RetinaNet.head_num_convs=3"],
        "--set RetinaNet.head_num_convs=3: RetinaNet has no argument head_num_convs: choose one of num_classes, ",
    ),
    "train: macro without value": (["train", "finetune"], "CHECKPOINT, EVAL_ANNOTATIONS, NUM_CLASSES"),
    "train: text for a number": ([*SMALL, "--set", "STEPS=10k"], "STEPS is '10k': expected a positive integer"),
    "train: text for a rate": ([*SMALL, "--set", "LR=fast"], "LR is 'fast': expected a number"),
    "train: text for a size": (
        [*SMALL, "--set", "ResNet.width=wide"],
        "ResNet.width is 'wide': expected an integer",
    ),
    "train: no batch": ([*SMALL, "--set", "BATCH_SIZE=0"], "BATCH_SIZE is 0"),
    "train: precision": ([*SMALL, "--set", "PRECISION=float7"], "float7"),
    "train: depth": ([*SMALL, "--set", "ResNet.depth=19"], "ResNet.depth is 19: choose one of 18"),
    "train: classes": ([*SMALL, "--set", "NUM_CLASSES=3"], "The model has 3 classes, but"),
    "train: not shapes": ([*SMALL, "--set", "TRAIN_DIR={}/run"], "holds files that are not generated shapes"),
    "train: no checkpoint": ([*FINETUNE, "--set", "CHECKPOINT={}/absent"], "{}/absent does not exist"),
    "train: cut checkpoint": (
        [*FINETUNE, "--set", "CHECKPOINT={}/cut.keras"],
        "cut.keras is not a valid .keras file, or it is truncated",
    ),
    "train: a backbone": ([*FINETUNE, "--set", "CHECKPOINT={}/backbone.keras"], "contains a ResNet, not a detector"),
    "train: no annotations": (
        [*FINETUNE, "--set", "CHECKPOINT={}/run", "--set", "TRAIN_ANNOTATIONS={}/no.json"],
        "The file {}/no.json, the training data of finetune (TRAIN_ANNOTATIONS), does not exist",
    ),
    "train: no data of a recipe": (
        ["train", "retinanet_r18_fpn_bccd"],
        "The file data/bccd/train.json, the training data of retinanet_r18_fpn_bccd (TRAIN_ANNOTATIONS), does not exist"
        ". Pass your dataset with --data",
    ),
    "train: no images": (
        [*FINETUNE, "--set", "CHECKPOINT={}/run", "--set", "TRAIN_IMAGES={}/no"],
        ": the image folder {}/no does not exist",
    ),
    "eval: nothing": (["eval"], "There is nothing to evaluate: pass a MODEL, or a file of COCO results"),
    "eval: no model": (
        ["eval", "{}/absent", *DATA],
        "{}/absent does not exist: expected the folder of a run, a .keras file or an export",
    ),
    "eval: no data": (["eval", "{}/plain.keras"], "has no config.gin, which names the dataset to evaluate on: pass "),
    "eval: missing path": (["eval", "{}/absent"], "{}/absent does not exist"),
    "eval: folder without model": (["eval", "{}/shapes"], "{}/shapes contains no model: pass the OUT_DIR"),
    "predict: checkpoint of torch": (["predict", "{}/other.pth", PICTURE], "convert it with `kerasdet convert`"),
    "export: renamed checkpoint of torch": (["export", "{}/torch.keras", "{}/new"], "`kerasdet convert`"),
    "eval: no annotations": (
        ["eval", "{}/run", "--annotations", "{}/no.json"],
        "The file {}/no.json does not exist",
    ),
    "eval: classes": (["eval", "{}/three.keras", *DATA], "The model has 3 classes"),
    "eval: no truth": (["eval", "--detections", "{}/words.json"], "--detections was given without --annotations"),
    "eval: data for detections": (
        ["eval", "--detections", "{}/words.json", "--data", "{}/shapes"],
        "pass both. --data cannot replace it",
    ),
    "eval: no detections": (["eval", "--detections", "{}/no.json", *DATA], "The file {}/no.json does not exist"),
    "eval: JSON Lines": (
        ["eval", "--detections", "{}/lines.jsonl", *DATA],
        "lines.jsonl has more than one JSON value, like JSON Lines: expected one. Put the values into a list",
    ),
    "eval: no JSON": (["eval", "--detections", "{}/words.json", *DATA], "words.json is not valid JSON"),
    "eval: JSON over the annotations": (
        ["eval", "{}/run", *DATA, "--json", "{}/shapes/annotations.json"],
        "--json would overwrite {}/shapes/annotations.json, the file of --annotations: choose another file",
    ),
    "eval: JSON over the data": (
        ["eval", "{}/run", "--data", "{}/shapes", "--json", "{}/shapes/annotations.json"],
        "--json would overwrite {}/shapes/annotations.json, which is not an output of kerasdet: choose another file",
    ),
    "eval: detections over the model": (
        ["eval", "{}/run", "--save-detections", "{}/plain.keras"],
        "--save-detections would overwrite {}/plain.keras, which is not an output",
    ),
    "eval: one file for both outputs": (
        ["eval", "{}/run", "--json", "{}/shapes/a.json", "--save-detections", "{}/shapes/../shapes/a.json"],
        "--json would overwrite {}/shapes/a.json, the file of --save-detections",
    ),
    "eval: folder for a file": (["eval", "{}/run", "--json", "{}/shapes"], "--json: {}/shapes is a folder"),
    "eval: file for a folder": (
        ["eval", "{}/run", "--save-detections", "{}/words.json/new/a.json"],
        "--save-detections: {}/words.json/new cannot be written: Not a directory",
    ),
    "eval: images without annotations": (
        ["eval", "{}/run", "--images", "{}/shapes"],
        "--images was given without --annotations",
    ),
    "eval: detections are detected already": (
        ["eval", "--detections", "{}/words.json", *DATA, "--save-detections", "{}/new"],
        "--save-detections has no effect with --detections, because no model runs: remove --save-detections",
    ),
    "eval: TTA of detections": (
        ["eval", "--detections", "{}/words.json", *DATA, "--tta"],
        "--tta has no effect with --detections",
    ),
    "eval: a size twice": (
        ["eval", "{}/run", "--tta", "64", "64"],
        "--tta 64 64 names a size twice: expected different",
    ),
    "predict: image before the model": (
        ["predict", PICTURE, "{}/shapes/images"],
        "000001.jpg is an image: expected the folder of a run, a .keras file or an export. Pass the model first",
    ),
    "predict: pictures over the images": (
        ["predict", "{}/run", "{}/png/a.png", "--draw", "{}/png/../png"],
        "--draw {}/png/../png would overwrite the image {}/png/a.png: choose another folder",
    ),
    "predict: configuration": (["predict", "{}/run/config.gin", PICTURE], "config.gin is a configuration: expected"),
    "predict: annotations": (["predict", "{}/words.json", PICTURE], "words.json is not a model: expected the folder"),
    "predict: folder of a checkpoint": (["predict", "{}", PICTURE], "{} contains no model: pass the OUT_DIR of a"),
    "train: number for a folder": (
        [*FINETUNE, "--set", "CHECKPOINT={}/run", "--set", "OUT_DIR=7"],
        "OUT_DIR (Python: out_dir=) is 7: expected the path of a file or folder. Pass a path",
    ),
    "train: number for a model": ([*FINETUNE, "--set", "CHECKPOINT=7"], "The path of a model is 7: expected the path"),
    "train: checkpoint of torch": (
        [*FINETUNE, "--set", "CHECKPOINT={}/other.pth"],
        "other.pth is a checkpoint of another framework, not a .keras file: convert it with `kerasdet convert`",
    ),
    "predict: no model": (["predict", "{}/shapes", PICTURE], "{}/shapes contains no model: pass the OUT_DIR"),
    "predict: cut model": (
        ["predict", "{}/cut.keras", PICTURE],
        "cut.keras is not a valid .keras file, or it is truncated",
    ),
    "predict: no image in folder": (["predict", "{}/run", "{}/run"], "The folder {}/run holds no image"),
    "predict: drawings to a URL": (
        ["predict", "{}/run", PICTURE, "--draw", "gs://bucket/drawn"],
        "--draw is gs://bucket/drawn, a URL: expected",
    ),
    "predict: crops to a URL": (["predict", "{}/run", PICTURE, "--crops", "file:///crops"], "--crops is file:///crops"),
    "predict: no match": (["predict", "{}/run", "{}/*.png"], "No file matches {}/*.png"),
    "predict: a backbone": (["predict", "{}/backbone.keras", PICTURE], "contains a ResNet, not a detector"),
    "export: suffix of another tool": (
        ["export", "{}/run", "{}/new.engine"],
        "{}/new.engine ends in .engine, which no export format writes: expected a folder (saved_model) or a file",
    ),
    "export: suffix of Keras": (["export", "{}/run", "{}/new.keras"], "ends in .keras, which no export format writes"),
    "export: output before the model": (
        ["export", "{}/new.tflite", "{}/run"],
        "The model {}/new.tflite does not exist, but {}/run does: expected the model first, then the file or folder to",
    ),
    "export: images without --eval": (
        ["export", "{}/run", "{}/new", "--images", "{}/shapes/images"],
        "--images needs --eval, the COCO file of these images: pass both or neither",
    ),
    "export: drop without --eval": (
        ["export", "{}/run", "{}/new", "--max-ap-drop", "0.1"],
        "--max-ap-drop needs --eval",
    ),
    "export: images are elsewhere": (
        ["export", "{}/run", "{}/new", "--eval", "{}/shapes/annotations.json", "--images", "{}/no"],
        ": the image folder {}/no does not exist",
    ),
    "export: not empty": (["export", "{}/run", "{}/shapes"], "{}/shapes exists and is not empty"),
    "export: not for TFLite": (
        ["export", "{}/run", "{}/new.tflite", "--class-offset", "0"],
        "--class-offset has no effect with --format tflite",
    ),
    "export: serving of TFLite": (
        ["export", "{}/run", "{}/new.tflite", "--serving"],
        "--serving has no effect with --format tflite",
    ),
    "export: only for TFLite": (
        ["export", "{}/run", "{}/new", "--postprocessing", "raw"],
        "--postprocessing has no effect with --format saved_model",
    ),
    "export: file for a folder": (
        ["export", "{}/run", "{}/new.tflite", "--format", "saved_model"],
        "Format saved_model writes a folder, but {}/new.tflite ends in .tflite: change the path, or choose format ",
    ),
    "export: folder for a file": (
        ["export", "{}/run", "{}/new", "--format", "tflite"],
        "Format tflite writes a file, but {}/new does not end in .tflite",
    ),
    "export: no such precision": (["export", "{}/run", "{}/new.tflite", "--precision", "bfloat16"], "bfloat16"),
    "export: no calibration images": (["export", "{}/run", "{}/new.tflite", "--precision", "int8"], "int8 needs"),
    "export: no calibration image": (
        ["export", "{}/run", "{}/new.onnx", "--precision", "int8", "--calibration-images", "{}/no.jpg"],
        "The calibration image {}/no.jpg does not exist",
    ),
    "export: no image": (
        ["export", "{}/run", "{}/new", "--verify-images", "{}/no.jpg"],
        "{}/no.jpg",
    ),
    "convert: no source": (
        ["convert", "{}/no.pth", "--source", "torchvision/retinanet", "--out", "{}/new"],
        "--source is 'torchvision/retinanet': choose one of torchvision/retinanet_resnet50_fpn, ",
    ),
    "convert: suffix of another tool": (
        ["convert", "{}/no.pth", "--source", "torchvision/resnet50", "--out", "{}/new.h5"],
        "--out {}/new.h5 ends in .h5: expected a folder or a .keras file",
    ),
    "convert: labels are missing": (
        ["convert", "{}/no.pth", "--source", FCOS, "--labels", "{}/no.txt", "--out", "{}/new"],
        "{}/no.txt: No such file or directory",
    ),
    "convert: labels of a backbone": (
        ["convert", "{}/no.pth", "--source", "torchvision/resnet50", "--labels", "{}/words.jpg", "--out", "{}/new"],
        "--labels is for detectors, but torchvision/resnet50 is a backbone",
    ),
    "convert: no file": (
        ["convert", "{}/no.pth", "--source", "torchvision/retinanet_resnet50_fpn", "--out", "{}/new"],
        "{}/no.pth: the file does not exist",
    ),
    "convert: no checkpoint": (
        ["convert", "{}/words.jpg", "--source", "torchvision/retinanet_resnet50_fpn", "--out", "{}/new"],
        "words.jpg: the file has none of the supported formats",
    ),
}


def assert_one_line(captured, status, command, expected):
    (line,) = captured.err.splitlines()
    assert status == 2
    assert line.startswith(f"kerasdet {command}: ")
    assert expected in line
    assert "{{" not in line
    assert captured.out == ""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line(capsys, folder, mistake):
    arguments, expected = MISTAKES[mistake]
    status = kerasdet(*(argument.replace("{}", str(folder)) for argument in arguments))
    assert_one_line(capsys.readouterr(), status, arguments[0], expected.replace("{}", str(folder)))
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("no.jpg", "The image {}/no.jpg does not exist"),
        ("words.jpg", "{}/words.jpg cannot be read as an image: it is not a JPEG, PNG, BMP, GIF, WebP or TIFF file"),
    ],
)
def test_predict_names_an_image_that_cannot_be_read(capsys, folder, image, expected):
    assert kerasdet("predict", folder / "run", folder / image) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{folder / image}: not read\n"
    (line,) = captured.err.splitlines()
    assert line.startswith("kerasdet predict: 1 of 1 images could not be read: ")
    assert expected.replace("{}", str(folder)) in line


@pytest.mark.parametrize(("num_keypoints", "joined"), [(4, True), (17, False)])
def test_predict_joins_the_keypoints_of_the_model(monkeypatch, tmp_path, folder, num_keypoints, joined):
    """Four keypoints have the skeleton that training took from the data, seventeen are a person's."""
    branch = KeypointBranch(num_keypoints, num_convs=1, channels=8)
    if joined:
        branch.keypoint_names, branch.skeleton = ("tip", "left", "right", "tail"), ((0, 1), (0, 2))
    tiny.rcnn(branches=[branch]).save(tmp_path / "model.keras")
    seen = []
    monkeypatch.setattr(visualize, "draw_boxes", lambda image, *_, skeleton, **__: seen.append(skeleton) or image)
    assert kerasdet("predict", tmp_path / "model.keras", pictures(folder)[0], "--draw", tmp_path / "drawn") == 0
    assert seen == [((0, 1), (0, 2))] if joined else len(seen[0]) == 19


def test_bug_exits_with_1_and_debug_shows_the_stack(capsys, monkeypatch, folder):
    def fails(*_, **__):
        raise TypeError("a slip")

    monkeypatch.setattr("kerasdet.cli.commands.predict", fails)
    assert kerasdet("predict", folder / "run", "x.jpg") == 1
    assert "kerasdet predict: TypeError: a slip\n" in capsys.readouterr().err
    assert kerasdet("predict", folder / "run", "x.jpg", "--debug") == 1
    assert "Traceback (most recent call last):" in capsys.readouterr().err


def test_process_prints_nothing_of_tensorflow(folder):
    """Only a new process shows the lines with which TensorFlow starts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    root = Path(cli.__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, "-m", "kerasdet.cli", "predict", folder / "run", pictures(folder)[0]],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(root)},
    )
    assert process.returncode == 0
    assert not re.search(r"absl|cpu_feature_guard|oneDNN|\.cc:\d+", process.stderr)
    assert process.stdout.startswith(f"{pictures(folder)[0]}: ")


def test_failed_start_keeps_the_configuration_of_the_run(tmp_path, folder):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    os.link(folder / "three.keras", run / "checkpoints" / "step_00000001.keras")
    (run / "config.gin").write_text("precious")
    arguments = [argument.replace("{}", str(folder)) for argument in SMALL]
    assert kerasdet(*arguments, "--set", f"OUT_DIR={run}") == 2
    assert (run / "config.gin").read_text() == "precious"


def test_predict_imports_the_modules_of_the_run(capsys, tmp_path, monkeypatch, folder):
    (tmp_path / "homemade.py").write_text(
        "import keras\nfrom kerasdet import RetinaNet\n\n"
        "@keras.saving.register_keras_serializable('homemade')\nclass MyNet(RetinaNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import homemade

    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    tiny.detector(model_class=homemade.MyNet).save(run / "checkpoints" / "step_00000001.keras")
    (run / "config.gin").write_text("import homemade\nPRECISION = 'float32'\nSEED = 0\n")
    # a new process begins without the module
    monkeypatch.delitem(keras.saving.get_custom_objects(), "homemade>MyNet")
    monkeypatch.delitem(sys.modules, "homemade")
    assert kerasdet("predict", run, pictures(folder)[0]) == 0
    assert "homemade" in sys.modules
    beside = run / "best.keras"
    os.link(run / "checkpoints" / "step_00000001.keras", beside)
    monkeypatch.delitem(keras.saving.get_custom_objects(), "homemade>MyNet")
    monkeypatch.delitem(sys.modules, "homemade")
    assert kerasdet("predict", beside, pictures(folder)[0]) == 0
    (run / "config.gin").write_text("import no_such_module\n")
    assert kerasdet("predict", run, pictures(folder)[0]) == 2
    assert "config.gin: 'import no_such_module' fails" in capsys.readouterr().err


def test_predict_says_that_the_model_has_a_higher_threshold(capsys, folder):
    assert kerasdet("predict", folder / "plain.keras", pictures(folder)[0], "--score-threshold", "0.01") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The model itself drops detections with a score of 0.02 or less, so --score-threshold 0.01 ")


def test_package_runs_as_a_module():
    root = Path(cli.__file__).resolve().parents[2]
    command = [sys.executable, "-m", "kerasdet", "--version"]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert process.stdout.startswith("kerasdet 0.")


def test_closed_stdout_is_no_bug(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # `kerasdet zoo >&-`
    assert cli.main(["zoo", "retinanet"]) == 0
