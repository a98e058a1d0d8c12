"""Tests the examples that run ONNX and OpenVINO files without kerasdet: Python, a browser, C++ and Triton's config."""

import functools
import http.server
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import kerasdet
from kerasdet.inference.preprocessing import Preprocessing

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

EXPORT = Path(kerasdet.__file__).parents[1] / "export"
ONNX, OPENVINO = (EXPORT / name / "examples" for name in ("onnx", "openvino"))
ONNXRUNTIME_WEB = Path(os.environ.get("ONNXRUNTIME_WEB", ONNX / "node_modules" / "onnxruntime-web" / "dist"))
# The wheel of onnxruntime has no headers; the archives of its releases and several packages of npm have them.
ONNXRUNTIME_INCLUDE = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
FIXED = {"size": (64, 64), "input_type": "uint8"}


@pytest.fixture(scope="module")
def image():
    """Makes an image of the size of the files' input: nothing depends on how an example resizes."""
    return tiny.images(sizes=[(64, 64)])[0]


@pytest.fixture(scope="module")
def expected(models, image):
    """Returns class name, score and box of each object that the model finds."""
    found = models("tiny").detect(image)
    assert len(found) == 20
    return [
        (tiny.CLASS_NAMES[class_id], score, box)
        for class_id, score, box in zip(found.class_ids, found.scores, found.boxes, strict=True)
    ]


def assert_equal(found, expected):
    """Compares objects (class name, score, box) with those of the model."""
    assert [name for name, _, _ in found] == [name for name, _, _ in expected]
    np.testing.assert_allclose([s for _, s, _ in found], [s for _, s, _ in expected], atol=1e-4)
    np.testing.assert_allclose([b for _, _, b in found], [b for _, _, b in expected], atol=1e-2)


def test_python_example_equals_the_model(onnx_file, image, expected, tmp_path):
    Image.fromarray(image).save(tmp_path / "x.png")
    for path in (onnx_file("tiny", **FIXED), onnx_file("tiny")):
        run = subprocess.run(
            [sys.executable, str(ONNX / "detect.py"), str(path), "x.png"], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        lines = [line.split() for line in run.stdout.splitlines()]
        assert [name for name, *_ in lines] == [name for name, _, _ in expected]
        numbers = np.array([line[1:] for line in lines], float)
        np.testing.assert_allclose(numbers[:, 0], [score for _, score, _ in expected], atol=1e-3)
        np.testing.assert_allclose(numbers[:, 1:], [box for _, _, box in expected], atol=0.1)


def test_python_example_fits_images_into_the_input_like_the_predictor(onnx_file, monkeypatch):
    """Wide images touch the padding of a fixed input, and the resize rule of a free one."""
    monkeypatch.syspath_prepend(ONNX)
    example = importlib.import_module("detect")
    picture = np.full((20, 40, 3), 200, np.uint8)
    picture[5:15, 10:25] = 30
    for path in (onnx_file("tiny", **FIXED), onnx_file("tiny")):
        session = onnxruntime.InferenceSession(path)
        found, loaded = example.detect(session, Image.fromarray(picture)), kerasdet.load(path).detect(picture)
        strongest = found[0]
        distance = np.abs(loaded.boxes - strongest[2]).max(1)
        assert distance.min() < 1.0
        assert abs(loaded.scores[distance.argmin()] - strongest[1]) < 0.02


@pytest.mark.parametrize("size", [(480, 640), (500, 333), (40, 900)])
@pytest.mark.parametrize(
    "rule",
    [
        {"shortest": 320, "longest": 500},
        {"shortest": 320, "longest": 500, "rounding": "torchvision"},
        {"shortest": 300, "longest": 310, "rounding": "mmdetection", "letterbox_value": 114},
        {"shortest": 300, "longest": 300, "rounding": "square"},
    ],
    ids=["detectron2", "torchvision", "letterbox", "stretch"],
)
def test_python_example_sizes_its_input_like_the_predictor(monkeypatch, rule, size):
    monkeypatch.syspath_prepend(ONNX)
    sizes, picture = importlib.import_module("detect").sizes, np.zeros((*size, 3), np.uint8)
    rule = Preprocessing(**rule)
    batch = rule.batch([picture])
    free = sizes(rule.get_config(), size[::-1], ["batch", "height", "width", 3])
    np.testing.assert_array_equal(free[0][::-1], batch["image_size"][0])
    padded = tuple(batch["image"].shape[1:3])
    assert free[1][::-1] == (padded if rule.letterboxes else free[0][::-1])
    whole, shown = rule.letterbox(picture, 96, 128)
    fixed = sizes(rule.get_config(), size[::-1], [1, 96, 128, 3])
    assert (fixed[0][::-1], fixed[1][::-1]) == (shown, whole.shape[:2])


def test_browser_page_equals_the_model(browser, onnx_file, image, expected, tmp_path):
    if not (ONNXRUNTIME_WEB / "ort.wasm.min.mjs").exists():
        pytest.skip("no onnxruntime-web in $ONNXRUNTIME_WEB: npm install onnxruntime-web")
    shutil.copy(ONNX / "detect.html", tmp_path)
    shutil.copy(onnx_file("tiny", **FIXED), tmp_path / "detector.onnx")
    Image.fromarray(image).save(tmp_path / "x.png")
    (tmp_path / "runtime").symlink_to(ONNXRUNTIME_WEB.resolve())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/detect.html?runtime=runtime&image=x.png")
        page.wait_for_function("!document.getElementById('status').value.startsWith('Loading')", timeout=60_000)
        status, text = page.locator("#status").inner_text(), page.locator("#detections").inner_text()
        page.close()
        server.shutdown()
    assert status.startswith(f"{len(expected)} objects in"), status
    assert_equal([(each["label"], each["score"], each["box"]) for each in json.loads(text)], expected)


def flags_of_openvino(folder):
    package = Path(openvino.__file__).parent
    if not (package / "include").exists():
        pytest.skip("an openvino without headers")
    [library] = (package / "libs").glob("libopenvino.so.*")
    return [f"-isystem{package / 'include'}", str(library), f"-Wl,-rpath,{library.parent}"]


def flags_of_onnxruntime(folder):
    libraries = list((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries or not (ONNXRUNTIME_INCLUDE / "onnxruntime_cxx_api.h").exists():
        pytest.skip("no onnxruntime_cxx_api.h in $ONNXRUNTIME_INCLUDE")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])  # the name by which programs load it
    return [f"-isystem{ONNXRUNTIME_INCLUDE}", str(libraries[0]), f"-Wl,-rpath,{folder}"]


@pytest.mark.parametrize(
    "source,flags,suffix",
    [(ONNX, flags_of_onnxruntime, ""), (OPENVINO, flags_of_openvino, "model.xml")],
    ids=["onnxruntime", "openvino"],
)
def test_cpp_example_equals_the_model(onnx_file, openvino_folder, image, expected, tmp_path, source, flags, suffix):
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    binary = str(tmp_path / "detect")
    build = ["g++", "-std=c++17", "-O1", "-Wall", "-Werror", str(source / "detect.cc"), "-o", binary, *flags(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    Image.fromarray(image).save(tmp_path / "x.ppm")
    export = openvino_folder if source == OPENVINO else onnx_file
    model = str(export("tiny", **FIXED) / suffix)
    run = subprocess.run([binary, model, str(tmp_path / "x.ppm")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [np.array(line.split(), float) for line in run.stdout.splitlines()]
    assert_equal([(tiny.CLASS_NAMES[int(row[0])], row[1], row[2:]) for row in rows], expected)
    (tmp_path / "x.ppm").write_bytes(b"P6 64 64 255\n...")
    run = subprocess.run([binary, model, str(tmp_path / "x.ppm")], capture_output=True, text=True)
    assert run.returncode == 1
    assert "x.ppm is cut short" in run.stderr


def test_triton_config_names_inputs_and_outputs(onnx_file, monkeypatch):
    monkeypatch.syspath_prepend(ONNX)
    text = importlib.import_module("triton_config").triton_config(str(onnx_file("tiny", **FIXED)))
    assert 'input [{ name: "image" data_type: TYPE_UINT8 dims: [1, 64, 64, 3] }]' in text
    assert 'output [{ name: "detection_boxes" data_type: TYPE_FP32 dims: [1, 20, 4] }]' in text
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    config = text_format.Parse(text, schema.ModelConfig())
    assert [output.name for output in config.output][-1] == "num_detections"
