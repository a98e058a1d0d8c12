"""Every model, tail and precision as a TFLite file: what the table of the README says."""

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
from export_models import MODELS, make
from PIL import Image

import kerasdet
from kerasdet.export import export_tflite, tflite, verify_tflite
from kerasdet.export.tflite.quantization import PRECISIONS
from kerasdet.export.tflite.write import tails

pytest.importorskip("ai_edge_litert")
pytest.importorskip("ai_edge_quantizer")

SIZE = (96, 128)
EXAMPLES = Path(tflite.__file__).with_name("examples")
QUICK = {("retinanet", "nms", "float32"), ("fcos", "postprocess", "int8"), ("mask_keypoint_rcnn", "nms", "float32")}
CELLS = [(name, tail, precision) for name in MODELS for tail in tails.TAILS for precision in PRECISIONS]


def possible(cell):
    dense = cell[0] in ("retinanet", "fcos")
    no_tail = cell[1] == "postprocess" or (cell[1] == "raw" and cell[0] != "proposal_network")
    return dense or not (no_tail or (cell[2] == "int8" and cell[0] != "proposal_network"))


def marked(cells):
    return [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in cells]


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda name: made.setdefault(name, make(name))


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """A model of `MODELS` as a file, exported once."""
    folder, made = tmp_path_factory.mktemp("tflite"), {}

    def export(name, **options):
        key = "_".join(["model", name, *map(str, options.values())])
        if key not in made:
            made[key] = export_tflite(
                models(name), folder / f"{key}.tflite", size=SIZE, images=tiny.images(seed=1), **options
            )
        return made[key]

    return export


@pytest.mark.parametrize("name,tail,precision", marked(filter(possible, CELLS)))
def test_the_file_is_the_model(models, exported, name, tail, precision):
    report = verify_tflite(models(name), exported(name, tail=tail, precision=precision), tiny.images())
    assert report.detections >= 40
    if precision == "float32":
        assert report.lost == 0
        assert report.boxes <= 1e-2
        assert report.scores <= 1e-4
        assert report.masks <= 1e-3
        assert report.moved_keypoints == 0
    elif precision == "float16":
        assert report.lost <= 0.05 * report.detections
        assert 1e-3 < report.boxes < 0.5
        assert report.scores < 5e-3
    else:
        cascade = "rcnn" in name  # other proposals, other regions, and weights that nobody trained
        assert report.lost <= (0.4 if cascade else 0.15) * report.detections
        assert 0.1 < report.boxes < 20
        assert 1e-4 < report.scores < 0.2


@pytest.mark.parametrize("name,tail,precision", [cell for cell in CELLS if not possible(cell)])
def test_what_cannot_be_had_says_why(models, tmp_path, name, tail, precision):
    with pytest.raises(ValueError, match=f"cannot be had with the tail {tail} in {precision}: .*choose"):
        export_tflite(models(name), tmp_path / "x.tflite", tail=tail, precision=precision, images=tiny.images())
    assert not list(tmp_path.iterdir())


def test_detect_gives_what_the_model_gives(models, exported):
    model, path = models("mask_keypoint_rcnn"), exported("mask_keypoint_rcnn", tail="nms", precision="float32")
    loaded = kerasdet.load(path)
    images = tiny.images(sizes=((96, 128), (48, 64)))
    found, expected = loaded.detect(images), model.detect(images, resize=(96, 128))
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["valid"], expected["valid"])
    np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["mask_probs"], expected["mask_probs"], atol=1e-3)
    np.testing.assert_allclose(found["keypoints"], expected["keypoints"], atol=0.1, rtol=1e-3)
    masks = loaded.paste_masks(found["mask_probs"][0], found["boxes"][0], 96, 128)
    np.testing.assert_array_equal(masks, model.paste_masks(found["mask_probs"][0], found["boxes"][0], 96, 128))
    assert loaded.num_classes == model.num_classes
    with pytest.raises(TypeError, match=r"Image 0 is 'photo\.jpg'"):
        loaded.detect(["photo.jpg"])


def test_threads_may_share_a_file(models, exported):
    loaded = kerasdet.load(exported("retinanet", tail="nms", precision="float32"))
    images = [tiny.images(sizes=[SIZE], seed=seed)[0] for seed in range(4)]
    expected = [loaded.detect(image)["boxes"] for image in images]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda image: loaded.detect(image)["boxes"], images * 10))
    for one, other in zip(found, expected * 10, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_boxes_are_found_beside_the_image(exported):
    loaded = kerasdet.load(exported("retinanet", tail="nms", precision="float32"))
    [image] = tiny.images(sizes=[(120, 60)])
    found = loaded.detect(image)
    valid = found["valid"][0]
    assert 0 < valid < found["boxes"].shape[1]
    sides = found["boxes"][0, :, 2:] - found["boxes"][0, :, :2]
    assert (sides[:valid] > 0).all() and (sides[valid:] == 0).all()
    assert (found["class_ids"][0, :valid] >= 0).all() and (found["class_ids"][0, valid:] == -1).all()


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("model.bin", {}, "does not end in .tflite"),
        ("nowhere/model.tflite", {}, "There is no folder .*nowhere to write model.tflite to"),
        ("model.tflite", {"size": 96}, "size is 96: give"),
        ("model.tflite", {"size": (0, 96)}, "give .height, width. in whole pixels"),
        ("model.tflite", {"precision": "int8", "images": [np.zeros([8, 8], np.uint8)]}, "Image 0 has shape .8, 8."),
    ],
)
def test_mistakes_are_named_before_anything_is_done(models, tmp_path, name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_tflite(models("retinanet"), tmp_path / name, **options)


def test_heads_and_anchors_are_the_models_own(models, exported):
    model, path = models("fcos"), exported("fcos", tail="raw", precision="float32")
    loaded = kerasdet.load(path)
    frame, size = loaded.frame(tiny.images()[0])
    outputs, expected = loaded.outputs(frame), model(frame, training=False)
    assert size == (96, 96)
    assert outputs.keys() == {"class_logits", "box_distances", "centerness"}
    for name, value in outputs.items():
        np.testing.assert_allclose(value, np.concatenate(list(expected[name].values()), 1), atol=1e-4)
    with zipfile.ZipFile(path) as archive, np.load(io.BytesIO(archive.read("anchors.npz"))) as anchors:
        assert {level: len(values) for level, values in anchors.items()} == {
            level: len(values) for level, values in expected["anchors"].items()
        }


def test_pixels_may_be_bytes(models, exported):
    path = exported("retinanet", tail="nms", precision="float32", input_type="uint8")
    report = verify_tflite(models("retinanet"), path, tiny.images())
    assert report.detections == 60
    assert report.lost == 0
    assert report.boxes <= 1e-2


@pytest.mark.parametrize(
    "size", [None, pytest.param((90, 125), marks=pytest.mark.slow)], ids=["default", "needs padding"]
)
def test_the_size_of_the_input(models, tmp_path, size):
    """By default that of a wide image, in which the file sees the pixels that the model sees."""
    model = models("retinanet")
    loaded = kerasdet.load(export_tflite(model, tmp_path / "x.tflite", size=size))
    assert tuple(loaded.facts["size"]) == (size or (96, 160))
    image = tiny.images(sizes=[size or (60, 100)])[0]
    expected, found = model.detect(image, resize=False if size else None), loaded.detect(image)
    np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 20])
def test_the_custom_op_looks_at_every_class(num_classes, threads):
    """LiteRT 2.3 skips the class whose number is that of its threads."""
    from ai_edge_litert.interpreter import Interpreter

    model = tiny.detector(num_classes, max_detections=30)
    specs = {"encodings": [1, 40, 4], "scores": [1, 40, num_classes]}
    function = tf.function(
        lambda **candidates: tails.suppressed(model, candidates),
        input_signature=None,
    ).get_concrete_function(**{name: tf.TensorSpec(shape, tf.float32, name) for name, shape in specs.items()})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.allow_custom_ops = True
    run = Interpreter(model_content=converter.convert(), num_threads=threads)
    run.allocate_tensors()
    places = np.stack([np.arange(40) / 40, np.full(40, 0.5)], -1)
    values = {
        "encodings": np.concatenate([places, np.full([40, 2], np.log(0.01))], -1)[None].astype(np.float32),
        "scores": np.eye(40, num_classes, dtype=np.float32)[None] * 0.9,
    }
    for detail in run.get_input_details():
        run.set_tensor(detail["index"], next(value for name, value in values.items() if name in detail["name"]))
    run.invoke()
    found = [run.get_tensor(detail["index"]) for detail in run.get_output_details()]
    assert any(sorted(value.ravel()[:num_classes]) == list(range(num_classes)) for value in found if value.ndim == 2)


@pytest.mark.slow
def test_the_custom_op_keeps_more_than_a_hundred_of_a_class(models, tmp_path):
    model = tiny.talkative(max_detections=150, score_threshold=0.0)
    path = export_tflite(model, tmp_path / "x.tflite", size=(64, 64), tail="postprocess")
    report = verify_tflite(model, path, tiny.images(sizes=[(64, 64)]))
    assert report.detections > 120
    assert report.lost == 0


def test_the_frame_keeps_the_aspect_and_pads_with_what_is_zero_to_the_network(models):
    rule = models("retinanet").preprocessing
    image = tiny.images(sizes=[(60, 30)])[0]
    frame, size = rule.frame(image, 96, 128)
    assert size == (96, 48)
    assert frame.shape == (96, 128, 3)
    inside = np.array(rule.normalize(frame[None], None))[0]
    np.testing.assert_array_equal(inside[:, 48:], 0)
    assert np.abs(inside[:, :48]).min() > 0
    np.testing.assert_array_equal(frame[:, :48], kerasdet.data.images.resize(image, (96, 48), rule.kernel))


def test_labels_and_facts_travel_in_the_file(tmp_path):
    model = tiny.talkative()
    path = export_tflite(model, tmp_path / "x.tflite", size=(64, 64), gin_config="STEPS = 3\n")
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.read("labels.txt").decode().split() == list(tiny.CLASS_NAMES)
        assert archive.read("config.gin") == b"STEPS = 3\n"
        facts = json.loads(archive.read("kerasdet.json"))
    assert facts["size"] == [64, 64]
    assert facts["tail"] == "nms"
    assert kerasdet.load(path).class_names == tiny.CLASS_NAMES


def test_mistakes_are_named(tmp_path):
    model = tiny.talkative()
    for option, message in [
        ({"tail": "ssd"}, "no tail 'ssd': choose one of raw, postprocess, nms"),
        (
            {"precision": "bfloat16"},
            "no precision 'bfloat16': choose one of float32, float16, dynamic, int8",
        ),
        ({"input_type": "int8"}, "no input type 'int8': choose one of float32, uint8"),
        ({"precision": "int8"}, "int8 needs representative images"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_tflite(model, tmp_path / "x.tflite", **option)
    (tmp_path / "x.tflite").write_bytes(b"TFL3")
    with pytest.raises(FileExistsError, match=r"x\.tflite exists: export to another file"):
        export_tflite(model, tmp_path / "x.tflite")
    with pytest.raises(ValueError, match=r"x\.tflite is no TFLite file of `kerasdet export`"):
        kerasdet.load(tmp_path / "x.tflite")
    with pytest.raises(FileNotFoundError, match=r"There is no .*y\.tflite"):
        kerasdet.load(tmp_path / "y.tflite")


def test_another_model_is_noticed(exported, tmp_path):
    path = exported("retinanet", tail="nms", precision="float32")
    with pytest.raises(RuntimeError, match="differs from the model"):
        verify_tflite(make("retinanet", seed=1), path, tiny.images())


def test_without_the_packages_the_extra_is_named(exported, tmp_path, monkeypatch):
    path = exported("retinanet", tail="nms", precision="float32")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(RuntimeError, match=r"pip install 'kerasdet\[tflite\]'"):
        kerasdet.load(path)
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(RuntimeError, match=r"pip install 'kerasdet\[tflite\]'"):
        export_tflite(tiny.talkative(), tmp_path / "x.tflite", size=(64, 64), precision="dynamic")


def test_the_example_finds_what_the_model_finds(tmp_path):
    model = tiny.talkative(score_threshold=0.3)
    path = export_tflite(model, tmp_path / "x.tflite", size=(64, 64), input_type="uint8")
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
    expected = model.detect(image)
    assert len(lines) == expected["valid"][0]
    boxes = np.array([line[2:] for line in lines], float)
    np.testing.assert_allclose(boxes, expected["boxes"][0, : len(lines)], atol=0.06)
    assert [line[0] for line in lines] == [tiny.CLASS_NAMES[k] for k in expected["class_ids"][0][: len(lines)]]


@pytest.mark.parametrize("name,tail", [("retinanet", "nms"), ("fcos", "postprocess")])
def test_mediapipe_takes_it_as_it_is(exported, tmp_path, name, tail):
    """On a real photograph where there is one, else on a generated picture; by the example."""
    pytest.importorskip("mediapipe")
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "mediapipe_detect.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    path = exported(name, tail=tail, precision="int8" if tail == "postprocess" else "float32")
    image = photograph()
    Image.fromarray(image).save(tmp_path / "a.png")
    found = example.detect(str(path), str(tmp_path / "a.png"), min_score=0.0)
    expected = kerasdet.load(path).detect(image)
    count = expected["valid"][0]
    assert len(found) == count > 5
    np.testing.assert_allclose([box for _, _, box in found], expected["boxes"][0, :count], atol=2)  # whole pixels
    np.testing.assert_allclose([score for _, score, _ in found], expected["scores"][0, :count], atol=1e-4)
    assert [label for label, _, _ in found] == [str(k) for k in expected["class_ids"][0, :count]]


def photograph():
    from conftest import SHARED

    files = sorted((SHARED / "data" / "bccd" / "images").glob("*.jpg"))
    image = Image.open(files[0]) if files else Image.fromarray(tiny.images()[0])
    return np.array(image.resize(SIZE[::-1]))  # MediaPipe has a kernel of its own to resize with
