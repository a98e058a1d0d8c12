import json
import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import shared
from PIL import Image

from kerasdet import cli, config
from kerasdet.evaluation import evaluate
from kerasdet.models import AugmentedDetector, KeypointBranch

SHAPES = "retinanet_r18_fpn_shapes"


@pytest.fixture(scope="module")
def model():
    return tiny.talkative(score_threshold=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """shapes/ the data, run/ a training run on it, plain.keras, backbone.keras and what is broken."""
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
    (folder / "words.json").write_text("[{]")
    return folder


def kerasdet(*arguments):
    return cli.main([str(argument) for argument in arguments])


def pictures(folder):
    return sorted((folder / "shapes" / "images").glob("*.jpg"))


def test_eval_of_detections(capsys, tmp_path):
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


def test_eval_of_a_run_on_the_data_of_its_configuration(capsys, tmp_path, folder, model):
    found, scores = tmp_path / "detections.json", tmp_path / "metrics.json"
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


def test_eval_with_test_time_augmentation(tmp_path, folder, model):
    found = tmp_path / "detections.json"
    assert kerasdet("eval", folder / "run", "--save-detections", found, "--tta", "48", "64") == 0
    augmented = AugmentedDetector(model, [48, 64])
    images = [np.asarray(Image.open(path)) for path in pictures(folder)]
    expected = np.concatenate([augmented.detect(image)["scores"][0] for image in images])
    scores = [detection["score"] for detection in json.loads(found.read_text())]
    assert len(scores) > 10
    np.testing.assert_allclose(scores, expected[expected > 0], rtol=1e-3)


def test_predict_as_a_table(capsys, folder, model):
    path = pictures(folder)[0]
    assert kerasdet("predict", folder / "run", path, "--score", "0.05") == 0
    title, *rows = capsys.readouterr().out.splitlines()
    expected = model.detect(np.asarray(Image.open(path)))
    count = int((expected["scores"][0] >= 0.05).sum())
    assert count > 3
    assert title == f"{path}: {count} objects"
    assert [row.split()[0] for row in rows] == [tiny.CLASS_NAMES[k] for k in expected["class_ids"][0, :count]]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(expected["scores"][0, :count].tolist(), abs=6e-4)


def test_predict_as_json(capsys, folder, model):
    assert kerasdet("predict", folder / "plain.keras", *pictures(folder), "--score", "0", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == [str(path) for path in pictures(folder)]
    for entry in found:
        expected = model.detect(np.asarray(Image.open(entry["image"])))
        count = expected["valid"][0]
        detections = entry["detections"]
        assert len(detections) == count
        np.testing.assert_allclose([d["box"] for d in detections], expected["boxes"][0, :count], atol=2e-3)
        assert [d["class_id"] for d in detections] == expected["class_ids"][0, :count].tolist()
        assert all(d["label"] == tiny.CLASS_NAMES[d["class_id"]] for d in detections)


def test_predict_goes_on_after_a_file_that_is_no_image(capsys, folder):
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
    assert kerasdet("predict", folder / "plain.keras", absent, good) == 2
    assert capsys.readouterr().out.splitlines()[0] == f"{absent}: not read"


def test_predict_draws(folder, tmp_path):
    path, *_ = pictures(folder)
    assert kerasdet("predict", folder / "run", path, "--draw", tmp_path / "new" / "drawn", "--score", "0.05") == 0
    (drawn,) = (tmp_path / "new" / "drawn").iterdir()
    assert drawn.name == f"{path.stem}.png"
    original = np.asarray(Image.open(path), int)
    picture = np.asarray(Image.open(drawn).resize(original.shape[1::-1]), int)
    assert np.abs(picture - original).max() > 60


def test_export(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    annotations = folder / "shapes" / "annotations.json"
    arguments = ["--verify", pictures(folder)[0], "--eval", annotations, "--class-offset", "0", "--max-pixels", "5000"]
    assert kerasdet("export", folder / "run", "served", *arguments) == 0
    first, second, *tables = capsys.readouterr().out.splitlines()
    assert first.startswith("served: ")
    assert first.endswith(" MiB, float32.")
    assert second.startswith("Reloaded with TensorFlow alone: 60 detections compared, 0 found by one side only; ")
    ours, theirs = (tables[tables.index(title) + 1 :] for title in ("The model:", "The export:"))
    assert ours[:3] == theirs[:3]
    assert (tmp_path / "served" / "saved_model.pb").is_file()
    assert "Validation.data" in (tmp_path / "served" / "assets" / "config.gin").read_text()
    facts = json.loads((tmp_path / "served" / "assets" / "kerasdet.json").read_text())
    assert (facts["class_offset"], facts["max_pixels"]) == (0, 5000)


def test_export_to_tflite(capsys, folder, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_quantizer")
    monkeypatch.chdir(tmp_path)
    annotations = folder / "shapes" / "annotations.json"
    arguments = ["--precision", "int8", "--tail", "postprocess", "--size", 64, 64, "--input", "uint8"]
    arguments += ["--representative", folder / "shapes" / "images", "--eval", annotations]
    assert kerasdet("export", folder / "run", "a.tflite", "--format", "tflite", *arguments) == 0
    first, second, *tables = capsys.readouterr().out.splitlines()
    assert first.startswith("a.tflite: 0.")
    assert first.endswith(" MiB, int8, tail postprocess, input 64x64 uint8.")
    assert second.startswith("Reloaded with LiteRT alone: 40 detections compared")
    assert {"The model:", "The export:"} <= set(tables)


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
MISTAKES = {
    "train: no such configuration": (["train", "retinanet_r5"], "no configuration retinanet_r5: give a path or one of"),
    "train: unknown macro": ([*SMALL, "--set", "STEPSS=3"], "the configuration has no macro STEPSS"),
    "train: unknown argument": ([*SMALL, "--set", "ResNet.widht=3"], "'widht'"),
    "train: macro without value": (["train", "finetune"], "CHECKPOINT, EVAL_ANNOTATIONS, NUM_CLASSES"),
    "train: text for a number": ([*SMALL, "--set", "STEPS=10k"], "STEPS is '10k': it must be a whole number from 1"),
    "train: text for a rate": ([*SMALL, "--set", "LR=fast"], "LR is 'fast': it must be a number"),
    "train: text for a size": ([*SMALL, "--set", "ResNet.width=wide"], "in an argument of ResNet"),
    "train: no batch": ([*SMALL, "--set", "BATCH_SIZE=0"], "BATCH_SIZE is 0"),
    "train: precision": ([*SMALL, "--set", "PRECISION=float7"], "float7"),
    "train: depth": ([*SMALL, "--set", "ResNet.depth=19"], "ResNet has no depth 19: choose one of 18"),
    "train: classes": ([*SMALL, "--set", "NUM_CLASSES=3"], "The model has 3 classes and"),
    "train: not shapes": ([*SMALL, "--set", "TRAIN_DIR={}/run"], "holds something else than generated shapes"),
    "train: no checkpoint": ([*FINETUNE, "--set", "CHECKPOINT={}/absent"], "There is no {}/absent"),
    "train: cut checkpoint": ([*FINETUNE, "--set", "CHECKPOINT={}/cut.keras"], "cut.keras is no Keras model file"),
    "train: a backbone": ([*FINETUNE, "--set", "CHECKPOINT={}/backbone.keras"], "holds a ResNet, not a detector"),
    "train: no annotations": (
        [*FINETUNE, "--set", "CHECKPOINT={}/run", "--set", "TRAIN_ANNOTATIONS={}/no.json"],
        "No annotation file {}/no.json",
    ),
    "train: no images": (
        [*FINETUNE, "--set", "CHECKPOINT={}/run", "--set", "TRAIN_IMAGES={}/no"],
        "No folder {}/no with the images of",
    ),
    "eval: nothing": (["eval"], "name a model, or --detections"),
    "eval: no model": (["eval", "{}/absent", *DATA], "There is no {}/absent: give a run directory or a .keras file"),
    "eval: no data": (["eval", "{}/plain.keras"], "has no config.gin: name a data set with --annotations"),
    "eval: no annotations": (["eval", "{}/run", "--annotations", "{}/no.json"], "No annotation file {}/no.json"),
    "eval: classes": (["eval", "{}/three.keras", *DATA], "The model has 3 classes"),
    "eval: no truth": (["eval", "--detections", "{}/words.json"], "--detections needs --annotations"),
    "eval: no detections": (["eval", "--detections", "{}/no.json", *DATA], "There is no file {}/no.json"),
    "eval: no JSON": (["eval", "--detections", "{}/words.json", *DATA], "words.json is not a JSON file"),
    "predict: no model": (["predict", "{}/shapes", PICTURE], "{}/shapes holds no model: give the OUT_DIR"),
    "predict: cut model": (["predict", "{}/cut.keras", PICTURE], "cut.keras is no Keras model file"),
    "predict: no image": (
        ["predict", "{}/run", "{}/no.jpg"],
        "1 of 1 images could not be read: There is no image {}/no.jpg",
    ),
    "predict: corrupt image": (["predict", "{}/run", "{}/words.jpg"], "{}/words.jpg cannot be read as an image"),
    "export: not empty": (["export", "{}/run", "{}/shapes"], "{}/shapes exists and is not empty"),
    "export: not for TFLite": (
        ["export", "{}/run", "{}/new.tflite", "--format", "tflite", "--class-offset", "0"],
        "--format tflite has no --class-offset",
    ),
    "export: only for TFLite": (["export", "{}/run", "{}/new", "--tail", "raw"], "--format saved_model has no --tail"),
    "export: no such precision": (
        ["export", "{}/run", "{}/new.tflite", "--format", "tflite", "--precision", "bfloat16"],
        "TFLite has no precision 'bfloat16': choose one of float32, float16, dynamic, int8",
    ),
    "export: no representative images": (
        ["export", "{}/run", "{}/new.tflite", "--format", "tflite", "--precision", "int8"],
        "int8 needs representative images",
    ),
    "export: no image": (["export", "{}/run", "{}/new", "--verify", "{}/no.jpg"], "There is no image {}/no.jpg"),
    "convert: no file": (
        ["convert", "{}/no.pth", "--source", "torchvision/retinanet_resnet50_fpn", "--out", "{}/new"],
        "{}/no.pth: no such file",
    ),
    "convert: no checkpoint": (
        ["convert", "{}/words.jpg", "--source", "torchvision/retinanet_resnet50_fpn", "--out", "{}/new"],
        "words.jpg: is none of the formats that are read",
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
def test_a_mistake_is_one_line(capsys, folder, mistake):
    arguments, expected = MISTAKES[mistake]
    status = kerasdet(*(argument.replace("{}", str(folder)) for argument in arguments))
    assert_one_line(capsys.readouterr(), status, arguments[0], expected.replace("{}", str(folder)))
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            tf.errors.NotFoundError(
                None,
                None,
                "Graph execution error:\n\nDetected at node ReadFile defined at (most recent call last):\nError in "
                "user-defined function passed to ParallelMapDatasetV2:72 transformation with iterator: Iterator::Root"
                "::Prefetch::ParallelMapV2: a/1.jpg; No such file or directory\n\t [[{{node ReadFile}}]] [Op:__inf]",
            ),
            "kerasdet train: a/1.jpg; No such file or directory\n",
        ),
        (FloatingPointError("The loss is not finite"), "kerasdet train: The loss is not finite\n"),
        (ValueError("one\n  two\n  In call to configurable 'x' (<class>)"), "kerasdet train: one two\n"),
    ],
)
def test_errors_of_other_libraries_become_one_line(capsys, monkeypatch, error, expected):
    def fails():
        raise error

    monkeypatch.setattr(config, "load", lambda *_: None)
    monkeypatch.setattr(config, "train", fails)
    assert kerasdet("train", SHAPES) == 2
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("num_keypoints", "joined"), [(4, True), (17, False)])
def test_predict_joins_the_keypoints_of_the_model(monkeypatch, tmp_path, folder, num_keypoints, joined):
    """Four have the bones that training took from the data, seventeen are a person's."""
    branch = KeypointBranch(num_keypoints, num_convs=1, channels=8)
    if joined:
        branch.keypoint_names, branch.skeleton = ("tip", "left", "right", "tail"), ((0, 1), (0, 2))
    tiny.rcnn(branches=[branch]).save(tmp_path / "model.keras")
    seen = []
    monkeypatch.setattr(cli, "draw_boxes", lambda image, *_, skeleton, **__: seen.append(skeleton) or image)
    assert kerasdet("predict", tmp_path / "model.keras", pictures(folder)[0], "--draw", tmp_path / "drawn") == 0
    assert seen == [((0, 1), (0, 2))] if joined else len(seen[0]) == 19


def test_a_bug_is_no_mistake_of_the_user(monkeypatch):
    def fails():
        raise TypeError("a bug")

    monkeypatch.setattr(config, "load", lambda *_: None)
    monkeypatch.setattr(config, "train", fails)
    with pytest.raises(TypeError, match="a bug"):
        kerasdet("train", SHAPES)


@pytest.mark.parametrize(
    "arguments",
    [[], ["trian"], ["train"], ["predict", "x"], ["eval", "x", "--batch-size", "0"], ["export", "x", "y", "--fast"]],
)
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        kerasdet(*arguments)
    assert stop.value.code == 2
    assert "usage: kerasdet" in capsys.readouterr().err


def test_a_failed_start_leaves_the_configuration_of_the_run(tmp_path, folder):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    os.link(folder / "three.keras", run / "checkpoints" / "step_00000001.keras")
    (run / "config.gin").write_text("precious")
    arguments = [argument.replace("{}", str(folder)) for argument in SMALL]
    assert kerasdet(*arguments, "--set", f"OUT_DIR={run}") == 2
    assert (run / "config.gin").read_text() == "precious"


def test_a_model_of_the_users_own_module(capsys, tmp_path, monkeypatch, folder):
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
    # as a new process would begin
    monkeypatch.delitem(keras.saving.get_custom_objects(), "homemade>MyNet")
    monkeypatch.delitem(sys.modules, "homemade")
    assert kerasdet("predict", run, pictures(folder)[0]) == 0
    assert "homemade" in sys.modules
    (run / "config.gin").write_text("import no_such_module\n")
    assert kerasdet("predict", run, pictures(folder)[0]) == 2
    assert "config.gin imports no_such_module: No module named 'no_such_module'." in capsys.readouterr().err
