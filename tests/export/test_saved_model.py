"""Tests SavedModels: signatures, stock ops, assets, and requests with bad images."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from export_models import verify_in_process
from PIL import Image, ImageOps
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import kerasdet
from kerasdet.errors import UserError, VerificationError
from kerasdet.export import export_saved_model, verify_export
from kerasdet.export.saved_model.load import read_metadata
from kerasdet.export.workflow import export_and_verify

CHECKOUT = Path(__file__).resolve().parents[2]

ELSEWHERE = """
import json, sys
checkout, folder, out = sys.argv[1:]
inside = [path for path in sys.path if path.startswith(checkout) and "site-packages" not in path]
sys.path = [path for path in sys.path if path not in inside]
sys.modules["kerasdet"] = None  # makes an import of it fail
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

data = np.load(out, allow_pickle=False)
loaded = tf.saved_model.load(folder)
results = {}
for name in data.files:
    if name.startswith("nothing"):
        values = loaded.signatures["encoded"](image_bytes=tf.zeros([0], tf.string))
    elif name.startswith("encoded"):
        values = loaded.signatures["encoded"](image_bytes=tf.stack([tf.io.read_file(str(p)) for p in data[name]]))
    else:
        signature = "float_image" if data[name].dtype == np.float32 else "serving_default"
        values = loaded.signatures[signature](image=tf.constant(data[name]))
    results |= {f"{name}/{key}": value.numpy() for key, value in values.items()}
np.savez(out, **results)

graph = SavedModel.FromString(open(folder + "/saved_model.pb", "rb").read()).meta_graphs[0].graph_def
functions = {function.signature.name for function in graph.library.function}
nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
ops = {node.op for node in nodes} - functions
foreign = [op for op in ops if op_def_registry.get(op) is None]

print(json.dumps({"foreign": foreign, "ops": sorted(ops), "nodes": len(nodes)}))
"""


@pytest.fixture(scope="module")
def model(models):
    return models("tiny")


@pytest.fixture(scope="module")
def exported(saved_model):
    return saved_model("tiny")


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes encoded images of different formats and sizes."""
    folder = tmp_path_factory.mktemp("images")
    first, second, third = (Image.fromarray(image) for image in tiny.images())
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = second.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(second.size))
    first.save(folder / "a.jpg", quality=92)
    second.save(folder / "b.png")
    third.convert("L").save(folder / "gray.png")
    alpha.save(folder / "rgba.png")
    third.save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


def upright(path):
    """Opens a file with PIL, turned upright by its EXIF orientation."""
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


@pytest.fixture(scope="module")
def inputs(files):
    paths = [str(path) for path in files]
    three = np.stack([image[:48, :64] for image in tiny.images()])
    return {
        "three": three,
        "one": tiny.images()[2][None],
        "float": three.astype(np.float32),
        "encoded": paths,
        "encoded_one": paths[-1:],
        "none": three[:0],
        "nothing": np.zeros(0),
    }


@pytest.fixture(scope="module")
def elsewhere(exported, inputs, tmp_path_factory):
    """Returns the results and the graph's properties from a process that cannot import kerasdet."""
    out = tmp_path_factory.mktemp("elsewhere") / "data.npz"
    np.savez(out, **inputs)
    process = subprocess.run(  # -I: neither PYTHONPATH nor the current folder
        [sys.executable, "-I", "-c", ELSEWHERE, str(CHECKOUT), str(exported), str(out)],
        capture_output=True,
        text=True,
        cwd=out.parent,
    )
    assert process.returncode == 0, process.stderr
    with np.load(out) as results:
        return dict(results), eval(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["one", "three", "float", "encoded", "encoded_one"])
def test_signature_equals_detect(model, inputs, elsewhere, name):
    images = [upright(path) for path in inputs[name]] if name.startswith("encoded") else list(inputs[name])
    expected = model.detect(images)
    found = {key.split("/")[1]: value for key, value in elsewhere[0].items() if key.split("/")[0] == name}
    np.testing.assert_array_equal(found["num_detections"], [len(each) for each in expected])
    for index, (image, each) in enumerate(zip(images, expected, strict=True)):
        count = len(each)
        assert count > 10
        boxes = found["detection_boxes"][index, :count] * np.tile(image.shape[:2], 2)
        np.testing.assert_allclose(boxes, each.boxes, atol=1e-3)
        np.testing.assert_allclose(found["detection_scores"][index, :count], each.scores, atol=1e-5)
        np.testing.assert_array_equal(found["detection_classes"][index, :count], each.class_ids + 1)
        np.testing.assert_array_equal(found["detection_classes"][index, count:], 0)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert found["detection_boxes"].min() >= 0
    assert found["detection_boxes"].max() <= 1 + 1e-6


def test_exif_image_fixture_is_rotated(files):
    turned = next(path for path in files if path.name == "turned.jpg")
    assert upright(turned).shape == (70, 120, 3)
    assert Image.open(turned).size == (70, 120)


def test_graph_has_only_stock_operations(elsewhere):
    metadata = elsewhere[1]
    assert metadata["nodes"] > 500
    assert "Conv2D" in metadata["ops"]
    assert metadata["foreign"] == []
    assert "PyFunc" not in metadata["ops"]
    assert "EagerPyFunc" not in metadata["ops"]


@pytest.mark.parametrize("name", ["none", "nothing"])
def test_empty_batch_gives_empty_outputs(elsewhere, name):
    shapes = {key.split("/")[1]: value.shape for key, value in elsewhere[0].items() if key.split("/")[0] == name}
    assert shapes == {
        "detection_boxes": (0, 20, 4),
        "detection_scores": (0, 20),
        "detection_classes": (0, 20),
        "num_detections": (0,),
    }


def test_network_is_stored_once(exported, model):
    saved = SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    assert sum(any(node.op == "Conv2D" for node in function.node_def) for function in functions) == 1


def test_assets_describe_the_model(exported):
    assets = exported / "assets"
    assert (assets / "labels.txt").read_text().splitlines() == list(tiny.CLASS_NAMES)
    items = (assets / "label_map.pbtxt").read_text().split("item")[1:]
    assert items[0].split() == ["{", "id:", "1", "name:", '"disk"', "}"]
    assert len(items) == 5
    card = (assets / "model_card.md").read_text()
    for words in ("# RetinaNet", "3: triangle", "resized to 64 pixels", "`encoded`", "(any, 20, 4)", "1.0"):
        assert words in card
    metadata = json.loads((assets / "kerasdet.json").read_text())
    assert metadata["class_offset"] == 1
    assert metadata["preprocessing"]["longest"] == 96
    assert not (assets / "config.gin").exists()


@pytest.mark.parametrize("content", ["", '{"num_classes": ', "[]", "{}"])
def test_damaged_description_raises(tmp_path, content):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "kerasdet.json").write_text(content)
    with pytest.raises(UserError, match=r"assets/kerasdet\.json is damaged: expected the description"):
        read_metadata(tmp_path)


def test_verify_export_accepts_a_relative_path(model, exported, monkeypatch):
    monkeypatch.chdir(exported.parent)
    report = verify_export(model, exported.name, tiny.images())
    assert report.detections > 80
    assert report.one_sided == 0
    assert report.max_box_error <= 1e-3
    assert report.max_score_error <= 1e-5
    assert report.milliseconds > 0


def test_verify_export_of_another_model_raises(exported):
    with pytest.raises(VerificationError, match="differs from the model"):
        verify_in_process(tiny.talkative(seed=1), exported, tiny.images()[:1])


def test_export_over_existing_files_raises(tmp_path, model):
    (tmp_path / "precious.txt").write_text("x")
    for path in (tmp_path, tmp_path / "precious.txt"):
        with pytest.raises(
            FileExistsError, match="exists and is not empty: export to another folder, or delete this one"
        ):
            export_saved_model(model, path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("character", ["[", "\\"])
def test_characters_that_tensorflow_cannot_read_in_a_path_raise(tmp_path, model, exported, character):
    for serving in (False, True):
        with pytest.raises(UserError, match=rf"a{re.escape(character)}1\] contains {re.escape(character)}, with which"):
            export_and_verify(model, tmp_path / f"a{character}1]", serving=serving)
    assert not list(tmp_path.iterdir())
    copy = shutil.copytree(exported, tmp_path / f"b{character}1]")
    with pytest.raises(UserError, match=r"cannot be loaded by TensorFlow, which takes \[ and "):
        kerasdet.load(copy)


def test_options_change_the_export(tmp_path):
    model, image = tiny.talkative(class_names=None), tiny.images()[0]
    options = {"class_offset": 0, "gin_config": "STEPS = 3\n", "max_pixels": image.shape[0] * image.shape[1]}
    path = export_saved_model(model, tmp_path, **options)  # an empty folder is fine
    signature = tf.saved_model.load(str(path)).signatures["encoded"]
    found, expected = signature(image_bytes=tf.constant([PNG])), model.detect(image).class_ids
    assert len(expected) > 10
    np.testing.assert_array_equal(found["detection_classes"][0, : len(expected)], expected)
    assert not (path / "assets" / "labels.txt").exists()
    assert (path / "assets" / "config.gin").read_text() == "STEPS = 3\n"
    wider = np.pad(image, [[0, 0], [0, 1], [0, 0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[0\] has 4160 pixels"):
        signature(image_bytes=tf.constant([encoded(wider)]))


def test_unknown_precision_raises(model, tmp_path):
    with pytest.raises(UserError, match="precision is 'int8': choose one of float32, bfloat16, float16"):
        export_saved_model(model, tmp_path / "model", precision="int8")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"class_offset": -1}, "class_offset is -1: expected an integer from 0 to 16777211"),
        ({"class_offset": 2**24}, "class_offset is 16777216: expected an integer from 0 to"),
        ({"class_offset": 1.0}, r"class_offset is 1\.0: "),
        ({"class_offset": True}, "class_offset is True: "),
        ({"max_pixels": 0}, "max_pixels is 0: expected an integer from 1"),
    ],
)
def test_number_out_of_its_range_raises(model, tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        export_saved_model(model, tmp_path / "model", **option)
    assert not (tmp_path / "model").exists()


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


PNG, JPEG = encoded(tiny.images()[0]), encoded(tiny.images()[1], "JPEG")
BOMB = PNG[:16] + (60000).to_bytes(4, "big") * 2 + PNG[24:]
BAD = {
    "nothing": (b"", "is not a JPEG or PNG file"),
    "text": (b"not an image", "is not a JPEG or PNG file"),
    "gif": (encoded(tiny.images()[0], "GIF"), "is not a JPEG or PNG file"),
    "JPEG cut in its header": (JPEG[:100], "is damaged or cut short"),
    "JPEG cut in the middle": (JPEG[: len(JPEG) * 3 // 4], "is damaged or cut short"),
    "JPEG with zeros in the middle": (
        JPEG[: len(JPEG) // 2] + bytes(300) + JPEG[len(JPEG) // 2 + 300 :],
        "is damaged or",
    ),
    "PNG cut in its header": (PNG[:18], "is damaged or cut short"),
    "PNG cut in the middle": (PNG[: len(PNG) // 2], "is damaged or cut short"),
    "PNG with other bytes": (PNG[:60] + b"XXXX" + PNG[64:], "is damaged or cut short"),
    "bomb": (BOMB, "has 3600000000 pixels, and this model accepts 50000000: send a smaller image"),
    "JPEG bomb": (None, "has 4225000000 pixels, and this model accepts 50000000: send a smaller image"),
    "no pixels": (PNG[:16] + bytes(8) + PNG[24:], "is damaged or cut short"),
}


def jpeg_bomb():
    """Makes a small JPEG whose header claims 65000 x 65000 pixels."""
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + (65000).to_bytes(2, "big") * 2 + JPEG[start + 4 :]


@pytest.mark.parametrize("kind", BAD)
def test_bad_image_raises_and_is_named(exported, loaded, kind):
    bad, message = BAD[kind]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        loaded.signatures["encoded"](image_bytes=tf.constant([JPEG, PNG, jpeg_bomb() if bad is None else bad, JPEG]))
    assert f"image_bytes[2] {message}" in str(error.value)
    good = loaded.signatures["encoded"](image_bytes=tf.constant([JPEG]))
    assert good["num_detections"][0] > 10


def test_datasets_of_encoded_images_have_few_ops(exported):
    """Each request prepares the functions of its datasets anew, which takes 0.2 s for some hundred ops."""
    graph = SavedModel.FromString((exported / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    functions = {function.signature.name: function for function in graph.library.function}

    def count_nodes(name):
        nodes = functions[name].node_def
        called = {attr.func.name for node in nodes for attr in node.attr.values() if attr.func.name}
        return len(nodes) + sum(map(count_nodes, called))

    maps = [node for function in functions.values() for node in function.node_def if node.op == "MapDataset"]
    assert maps
    assert max(count_nodes(node.attr["f"].func.name) for node in maps) < 60


@pytest.mark.parametrize("shape", [(2, 50, 70, 1), (2, 50, 70, 4), (50, 70, 3), (50, 70)])
@pytest.mark.parametrize("signature", ["serving_default", "float_image"])
def test_image_of_another_shape_raises_and_names_the_expected_one(loaded, signature, shape):
    image = tf.zeros(shape, tf.uint8 if signature == "serving_default" else tf.float32)
    message = r"image_is_batch_of_height_width_RGB [\s\S]*Shape of tensor image .* not compatible .* \[\?,\?,\?,3\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        loaded.signatures[signature](image=image)


def test_image_without_pixels_raises(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image has no pixels"):
        loaded.signatures["serving_default"](image=tf.zeros([2, 0, 5, 3], tf.uint8))
