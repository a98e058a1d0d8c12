"""SAHI slices images for a predictor, with the real package."""

import subprocess
import sys

import numpy as np
import pytest

from kerasdet.errors import UserError
from kerasdet.inference import Detections, Predictor

pytest.importorskip("sahi", reason="needs the extra sahi")

from sahi.predict import get_prediction, get_sliced_prediction

from kerasdet.inference.sahi import SahiDetectionModel


class Bright(Predictor):
    """Finds the one rectangle of each class that is brighter than black: red is class 0, green class 1."""

    num_classes = 2
    class_names = ("red", "green")

    def __init__(self, masks=False):
        self.masks = masks

    def detect(self, images, *, batch_size=8, resize=None):
        return [self._one(image) for image in images] if isinstance(images, list) else self._one(images)

    def _one(self, image):
        boxes, ids = [], []
        for k in (0, 1):
            y, x = np.nonzero(image[..., k])
            if len(y):
                boxes.append([y.min(), x.min(), y.max() + 1, x.max() + 1])
                ids.append(k)
        masks = {"mask_probs": np.ones((len(boxes), 4, 4)), "mask_convention": "detectron2"} if self.masks else {}
        return Detections(boxes, [0.9 - 0.5 * k for k in ids], ids, image.shape[:2], self.class_names, **masks)


@pytest.fixture(scope="module")
def image():
    picture = np.zeros((100, 150, 3), np.uint8)
    picture[10:22, 120:140, 0] = 255
    picture[80:90, 5:25, 1] = 255
    return picture


def found(result):
    return {each.category.name: [round(v) for v in each.bbox.to_xyxy()] for each in result.object_prediction_list}


BOTH = {"red": [120, 10, 140, 22], "green": [5, 80, 25, 90]}


def test_whole_image(image):
    result = get_prediction(image, SahiDetectionModel(Bright()))
    assert found(result) == BOTH
    assert result.object_prediction_list[0].score.value == pytest.approx(0.9)


@pytest.mark.parametrize("masks", [False, True])
def test_slices_are_moved_to_their_place_in_the_image(image, masks):
    model = SahiDetectionModel(Bright(masks))
    result = get_sliced_prediction(image, model, 64, 64, 0.4, 0.4, perform_standard_pred=False, verbose=0)
    boxes = found(result)
    assert boxes.keys() == BOTH.keys()
    for name, box in BOTH.items():
        np.testing.assert_allclose(boxes[name], box, atol=1 if masks else 0)  # SAHI's polygons end inside the pixels
    if masks:
        red = next(each for each in result.object_prediction_list if each.category.name == "red")
        mask = np.zeros(image.shape[:2], bool)
        mask[tuple(slice(low, high) for low, high in ((10, 22), (120, 140)))] = True
        assert (red.mask.bool_mask & mask).sum() / (red.mask.bool_mask | mask).sum() > 0.8  # SAHI cuts polygons inside


def test_low_scores_are_dropped_and_categories_renumbered(image):
    model = SahiDetectionModel(Bright(), confidence_threshold=0.5, category_remapping={"0": 7})
    [red] = get_prediction(image, model).object_prediction_list
    assert (red.category.id, red.category.name) == (7, "red")


def test_model_that_is_no_predictor_raises():
    with pytest.raises(UserError, match=r"model is of type str: expected a predictor"):
        SahiDetectionModel("model.keras")


def test_missing_package_raises():
    code = "import sys; sys.modules['sahi'] = None; import kerasdet.inference.sahi"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "UserError: sahi is not installed, but kerasdet.inference.sahi needs it: run pip install 'kerasdet[sahi]'"
        in (process.stderr)
    )
