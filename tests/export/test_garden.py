"""Every model in every precision: what the table of the README says."""

import numpy as np
import pytest
import tensorflow as tf
import tiny
from export_models import MODELS, SLOW, make
from kerasdet.export import export_saved_model, verify_saved_model

import kerasdet
from kerasdet.ops.dispatch import raw_ops

TOLERANCES = {"boxes": (1e-3, 0), "scores": (1e-5, 0), "mask_probs": (1e-4, 0), "keypoints": (1e-2, 1e-2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("garden")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)
def model(request):
    return make(request.param)


@pytest.fixture(scope="module")
def exported(model, folder):
    return export_saved_model(model, folder / model.name)


def test_float32(model, exported):
    report = verify_saved_model(model, exported, tiny.images())
    assert report.detections >= 50
    assert report.lost == 0
    assert report.boxes <= 1e-3
    assert report.scores <= 1e-5
    assert report.masks <= 1e-4
    assert report.moved_keypoints == 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits(model, folder, precision):
    path = export_saved_model(model, folder / f"{model.name}_{precision}", precision=precision)
    report = verify_saved_model(model, path, tiny.images(), precision=precision)
    assert report.detections >= 50
    assert 1e-3 < report.boxes < 10
    variables = str(path / "variables" / "variables")
    kernels = [name for name, shape in tf.train.list_variables(variables) if len(shape) == 4]
    assert len(kernels) > 10
    types = {tf.train.load_variable(variables, name).dtype.name for name in kernels}
    assert types == {precision}


@pytest.mark.slow
def test_compiled_operations_by_option(folder):
    if raw_ops() is None:
        pytest.skip("no compiled ops here")
    model = make("mask_keypoint_rcnn")
    path = export_saved_model(model, folder / "compiled", ops="compiled")
    report = verify_saved_model(model, path, tiny.images(), ops="compiled")
    assert report.lost == 0
    assert report.boxes <= 1e-3
    assert b"Kerasdet>Nms" in (path / "saved_model.pb").read_bytes()
    found = kerasdet.load(path).detect(tiny.images()[0])
    np.testing.assert_allclose(found["boxes"], model.detect(tiny.images()[0])["boxes"], atol=1e-3)


def test_loaded_it_detects_as_the_model(model, exported):
    loaded = kerasdet.load(exported)
    assert loaded.num_classes == model.num_classes
    for images in (tiny.images(), tiny.images()[0], np.stack([tiny.images()[1]] * 2).astype(np.float32)):
        expected, found = model.detect(images), loaded.detect(images)
        assert found.keys() == expected.keys()
        assert expected["valid"].min() > 5
        np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
        np.testing.assert_array_equal(found["valid"], expected["valid"])
        for name, (atol, rtol) in TOLERANCES.items():
            if name in expected:
                assert found[name].dtype == expected[name].dtype
                np.testing.assert_allclose(found[name], expected[name], atol=atol, rtol=rtol)


def test_loaded_it_pastes_masks_as_the_model(folder):
    model = make("mask_rcnn")
    loaded = kerasdet.load(export_saved_model(model, folder / "masks"))
    image = tiny.images()[1]
    found = loaded.detect(image)
    arguments = found["mask_probs"][0], found["boxes"][0], *image.shape[:2]
    masks = np.array(loaded.paste_masks(*arguments))
    assert masks.shape == (20, *image.shape[:2])
    assert masks.any()
    np.testing.assert_array_equal(masks, model.paste_masks(*arguments))


def test_what_a_saved_model_cannot_take(exported, tmp_path):
    loaded = kerasdet.load(exported)
    with pytest.raises(ValueError, match="Image 0 is float32: images of several sizes must be uint8 here"):
        loaded.detect([image.astype(np.float32) for image in tiny.images()])
    with pytest.raises(ValueError, match=r"Image 1 has shape \(5, 5\)"):
        loaded.detect([tiny.images()[0], np.zeros((5, 5), np.uint8)])
    with pytest.raises(ValueError, match="at least one image"):
        loaded.detect([])
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is no SavedModel of `kerasdet export`: it has no assets/kerasdet\.json"):
        kerasdet.load(tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "kerasdet.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        kerasdet.load(tmp_path)
