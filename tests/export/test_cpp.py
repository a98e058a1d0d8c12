"""Tests the C++ client, built with the libraries of the installed TensorFlow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

SOURCES = Path(__file__).resolve().parents[2] / "export" / "cpp"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    library = Path(tf.sysconfig.get_lib())
    if not shutil.which("g++") or not (library / "libtensorflow_cc.so.2").exists():
        pytest.skip("no C++ compiler, or a TensorFlow without libtensorflow_cc.so.2")
    path = tmp_path_factory.mktemp("cpp") / "detect"
    environment = {**os.environ, "PYTHON": sys.executable}
    build = subprocess.run(
        ["bash", str(SOURCES / "build.sh"), str(path)], capture_output=True, text=True, env=environment
    )
    assert build.returncode == 0, build.stderr
    return path


def run(binary, *arguments):
    return subprocess.run(
        [str(binary), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": ""},  # no Python
    )


def parsed(output):
    """Reads the output of the client as name -> (N, 6) array of class, score and box."""
    lines = iter(output.splitlines())
    found = {}
    for line in lines:
        name, count = line.rsplit(" ", 1)
        found[name] = np.array([next(lines).split() for _ in range(int(count))], float).reshape(-1, 6)
    return found


def assert_equal(found, file, model):
    image = tf.io.decode_jpeg(Path(file).read_bytes(), dct_method="INTEGER_ACCURATE").numpy()
    expected = model.detect(image)
    assert len(found) == len(expected) > 5
    np.testing.assert_array_equal(found[:, 0], expected.class_ids + 1)
    np.testing.assert_allclose(found[:, 1], expected.scores, atol=1e-5)
    pixels = found[:, 2:] * np.tile(image.shape[:2], 2)
    np.testing.assert_allclose(pixels, expected.boxes, atol=1e-3)


@pytest.fixture
def files(tmp_path):
    for index, image in enumerate(tiny.images()):
        Image.fromarray(image).save(tmp_path / f"{index}.jpg", quality=90)
    return sorted(tmp_path.glob("*.jpg"))


def test_client_detections_of_two_stages_equal_the_model(binary, models, saved_model, files):
    process = run(binary, saved_model("mask_keypoint_rcnn"), *files)
    assert process.returncode == 0, process.stderr
    assert list(parsed(process.stdout)) == list(map(str, files))
    for file, found in parsed(process.stdout).items():
        assert_equal(found, file, models("mask_keypoint_rcnn"))


def test_client_reports_bad_images_and_continues(binary, models, saved_model, files, tmp_path):
    path, content = saved_model("tiny"), files[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) * 3 // 4])
    process = run(binary, path, tmp_path / "cut.jpg", tmp_path / "absent.jpg", *files)
    assert process.returncode == 1
    assert "cut.jpg: assertion failed: [image_bytes[0] is damaged or cut short]" in process.stderr
    assert "absent.jpg: cannot be read" in process.stderr
    assert list(parsed(process.stdout)) == list(map(str, files))
    for file, found in parsed(process.stdout).items():
        assert_equal(found, file, models("tiny"))
    assert run(binary, tmp_path, files[0]).returncode == 2
    assert run(binary).returncode == 2
