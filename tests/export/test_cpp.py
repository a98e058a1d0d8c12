"""Tests the C++ client, built with the libraries of the installed TensorFlow."""

import io
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


# The client reads boxes, scores and classes alike from all models: with classes, without, and from two stages.
@pytest.mark.parametrize("name", ["retinanet", "proposal_network", "mask_keypoint_rcnn"])
def test_client_detections_equal_the_model(binary, models, saved_model, tmp_path, name):
    model, path = models(name), saved_model(name)
    for index, image in enumerate(tiny.images()):
        Image.fromarray(image).save(tmp_path / f"{index}.jpg", quality=90)
    files = sorted(tmp_path.glob("*.jpg"))
    process = run(binary, path, *files)
    assert process.returncode == 0, process.stderr
    for file, found in parsed(process.stdout).items():
        image = tf.io.decode_jpeg(Path(file).read_bytes(), dct_method="INTEGER_ACCURATE").numpy()
        expected = model.detect(image)
        assert len(found) == len(expected) > 5
        np.testing.assert_array_equal(found[:, 0], expected.class_ids + 1)
        np.testing.assert_allclose(found[:, 1], expected.scores, atol=1e-5)
        pixels = found[:, 2:] * np.tile(image.shape[:2], 2)
        np.testing.assert_allclose(pixels, expected.boxes, atol=1e-3)


def test_client_reports_bad_images_and_continues(binary, saved_model, tmp_path):
    path = saved_model("tiny")
    file = io.BytesIO()
    Image.fromarray(tiny.images()[0]).save(file, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[: len(file.getvalue()) * 3 // 4])
    (tmp_path / "good.jpg").write_bytes(file.getvalue())
    process = run(binary, path, tmp_path / "cut.jpg", tmp_path / "absent.jpg", tmp_path / "good.jpg")
    assert process.returncode == 1
    assert "cut.jpg: assertion failed: [image_bytes[0] is damaged or cut short]" in process.stderr
    assert "absent.jpg: cannot be read" in process.stderr
    assert list(parsed(process.stdout)) == [str(tmp_path / "good.jpg")]
    assert run(binary, tmp_path, tmp_path / "good.jpg").returncode == 2
    assert run(binary).returncode == 2
