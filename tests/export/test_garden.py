"""Tests every model as a SavedModel in every precision, the cells of the table in docs."""

import numpy as np
import pytest
import tensorflow as tf
import tiny
from export_models import COVERING, SLOW, verify_in_process

import kerasdet
from kerasdet.errors import UserError
from kerasdet.export import verify_export
from kerasdet.ops.dispatch import raw_ops

pytestmark = pytest.mark.usefixtures("unoptimized_graphs", "warm_workers")  # `verify_export` runs the optimised ones
TOLERANCES = {"boxes": (1e-3, 0), "scores": (1e-5, 0), "mask_probs": (1e-4, 0), "keypoints": (1e-2, 1e-2)}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in COVERING]


@pytest.mark.slow
def test_float32_export_equals_the_model_without_kerasdet(models, saved_model):
    """Tests in test_saved_model.py do the same with the model of one stage."""
    report = verify_export(models("mask_keypoint_rcnn"), saved_model("mask_keypoint_rcnn"), tiny.images())
    assert report.detections >= 50
    assert report.one_sided == 0
    assert report.max_box_error <= 1e-3
    assert report.max_score_error <= 1e-5
    assert report.max_mask_error <= 1e-4
    assert report.moved_keypoints == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,precision",
    [
        ("retinanet", "float16"),
        ("fcos", "bfloat16"),
        ("rtmdet_ins", "float16"),
        ("mask_keypoint_rcnn", "float16"),
        ("mask_keypoint_rcnn", "bfloat16"),
    ],
)
def test_16_bit_export_stores_16_bit_weights_and_stays_close(models, saved_model, name, precision):
    path = saved_model(name, precision=precision)
    report = verify_in_process(models(name), path, tiny.images())
    assert report.detections >= 50
    # With AVX-512, NMS may keep the box of a neighbouring point: 8 pixels of the input, 10.7 of the image
    assert 1e-3 < report.max_box_error < 11
    variables = str(path / "variables" / "variables")
    kernels = [name for name, shape in tf.train.list_variables(variables) if len(shape) == 4]
    assert len(kernels) > 10
    types = {tf.train.load_variable(variables, name).dtype.name for name in kernels}
    assert types == {precision}


@pytest.mark.slow
def test_export_with_compiled_ops_equals_the_model(models, saved_model):
    if raw_ops() is None:
        pytest.skip("no compiled ops here")
    path = saved_model("mask_keypoint_rcnn", ops="compiled")
    report = verify_export(models("mask_keypoint_rcnn"), path, tiny.images())
    assert report.one_sided == 0
    assert report.max_box_error <= 1e-3
    assert b"Kerasdet>Nms" in (path / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_loaded_export_detections_equal_the_model(models, saved_model, name):
    model, loaded = models(name), kerasdet.load(saved_model(name))
    assert loaded.num_classes == model.num_classes
    assert loaded.skeleton == tuple(map(tuple, model.skeleton))
    floats = [image.astype(np.float32) for image in tiny.images()]
    for images in (tiny.images(), floats, [tiny.images()[0]], [floats[1]] * 2):
        # Floats of several sizes run one by one in the export; padding to a common size changes features at borders.
        batch_size = 1 if images is floats else 8
        for expected, found in zip(model.detect(images, batch_size=batch_size), loaded.detect(images), strict=True):
            assert len(found) == len(expected) > 5
            np.testing.assert_array_equal(found.class_ids, expected.class_ids)
            for key, (atol, rtol) in TOLERANCES.items():
                value, wanted = getattr(found, key), getattr(expected, key)
                assert (value is None) == (wanted is None)
                if wanted is not None:
                    assert value.dtype == wanted.dtype
                    np.testing.assert_allclose(value, wanted, atol=atol, rtol=rtol)


@pytest.mark.slow
def test_loaded_export_masks_equal_the_model(models, saved_model):
    model, image = models("mask_keypoint_rcnn"), tiny.images()[1]
    found, expected = kerasdet.load(saved_model("mask_keypoint_rcnn")).detect(image), model.detect(image)
    assert found.mask_convention == expected.mask_convention == model.mask_convention
    assert found.masks.shape == (20, *image.shape[:2])
    assert found.masks.any()
    assert (found.masks != expected.masks).mean() < 1e-3  # a probability at 0.5 may round to either side


def test_model_card_says_which_area_masks_of_whole_images_cover(saved_model):
    card = (saved_model("rtmdet_ins") / "assets" / "model_card.md").read_text()
    assert "probabilities in the area of `detection_mask_boxes`" in card
    assert "probabilities inside the box" not in card
    assert "output of a branch of the model" not in card


def test_foreign_folder_raises(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no assets/kerasdet\.json: expected a SavedModel of `kerasdet export`"):
        kerasdet.load(tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "kerasdet.json").write_text('{"num_classes": 5}')
    with pytest.raises(UserError, match="cannot be loaded by TensorFlow"):
        kerasdet.load(tmp_path)
