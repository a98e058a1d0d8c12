"""Tests every model as OpenVINO IR in every precision, the cells of the table in docs."""

import sys

import numpy as np
import pytest
import tiny
from export_models import EXPORTED, SLOW, verify_alone

import kerasdet
from kerasdet.errors import UserError
from kerasdet.export import export_and_verify, export_openvino, verify_export
from kerasdet.export.openvino.load import OpenVinoPredictor

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
# The parts of these are mask_keypoint_rcnn's: float32 shows that they fit.
PARTS_OF_ANOTHER = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn")
CELLS = [
    (name, precision)
    for precision in ("float32", "float16", "int8")
    for name in EXPORTED
    if (name != "rtmdet" or precision == "int8") and (name not in PARTS_OF_ANOTHER or precision == "float32")
]
QUICK = [(name, "float32") for name in EXPORTED if name not in (*SLOW, "ssd")]  # test_ssd.py has ssd's


@pytest.mark.parametrize(
    "name,precision", [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in CELLS]
)
def test_ir_equals_the_model(models, openvino_folder, name, precision):
    report = verify_alone(models(name), openvino_folder(name, precision=precision), tiny.images())
    assert report.detections >= 40
    if precision == "float32":
        assert report.one_sided == 0
        assert report.max_box_error < 1e-2
        assert report.max_score_error < 1e-4
        assert report.moved_keypoints == 0
    elif precision == "float16":
        assert report.one_sided <= 0.1 * report.detections
        # ssd's coder divides deltas by 5 and 10, and so their rounding
        assert (name != "ssd") * 1e-4 <= report.max_box_error < 0.5
    else:
        assert (name != "ssd") * 0.1 <= report.max_box_error < 20


@pytest.mark.parametrize("kind", ["nms", "raw"])
def test_ir_runs_with_only_openvino(models, openvino_folder, kind):
    report = verify_export(models("tiny"), openvino_folder("tiny", postprocessing=kind), tiny.images())
    assert report.detections > 50
    assert report.one_sided == 0


def test_ir_of_fixed_size_has_static_shapes(models, openvino_folder):
    import openvino

    path = openvino_folder("tiny", size=(64, 64))
    model = openvino.Core().read_model(path / "model.xml")
    assert list(model.input("image").shape) == [1, 64, 64, 3]
    assert verify_alone(models("tiny"), path, tiny.images()).one_sided == 0


def test_float16_halves_the_weights(openvino_folder):
    sizes = [(openvino_folder("tiny", precision=p) / "model.bin").stat().st_size for p in ("float32", "float16")]
    assert 0.4 < sizes[1] / sizes[0] < 0.7


def test_serving_folder_gets_versions(models, shared_conversions, tmp_path):
    for number in (1, 2):
        with shared_conversions("tiny"):
            path, report = export_and_verify(models("tiny"), tmp_path / "served", format="openvino", serving=True)
        assert path == tmp_path / "served" / str(number)
        assert "Run by OpenVINO alone" in report
        assert sorted(file.name for file in path.iterdir()) == ["model.bin", "model.xml"]


def test_detect_equals_the_model(models, openvino_folder):
    model, loaded = models("tiny"), kerasdet.load(openvino_folder("tiny", postprocessing="nms"))
    image = tiny.images()[0]
    found, expected = loaded.detect(image), model.detect(image)
    assert loaded.class_names == model.class_names
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_unknown_device_is_named(openvino_folder):
    with pytest.raises(UserError, match=r"on the device 'TPU'; available are CPU.*\. Change device"):
        OpenVinoPredictor(openvino_folder("tiny", postprocessing="nms"), device="TPU")


def test_mistakes_raise(models, tmp_path, monkeypatch):
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(UserError, match="cannot be loaded by OpenVINO"):
        kerasdet.load(tmp_path)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export_openvino(models("tiny"), tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[openvino\]'"):
        kerasdet.load(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[openvino\]'"):
        export_openvino(models("tiny"), tmp_path / "new")
