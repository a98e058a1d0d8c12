from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate, evaluate_with_results
from kerasdet.evaluation.evaluate import evaluate_batches, predictor_batches
from kerasdet.geometry import rle
from kerasdet.inference import AugmentedPredictor, Predictor
from kerasdet.inference.preprocessing import KeepSize

CATEGORY_IDS = [4, 7]
IMAGE_SIZE = np.array([50, 100], np.int32)  # inside a 64x128 network input


def truth_of(count, rng):
    """Images of different sizes with three boxes each."""
    images, annotations = [], []
    for image_id in range(10, 10 + count):
        height, width = (int(x) for x in rng.integers(200, 400, 2))
        images.append({"id": image_id, "height": height, "width": width})
        for k in range(3):
            x, y = (float(v) for v in rng.uniform(0, 100, 2))
            w, h = (float(v) for v in rng.uniform(40, 100, 2))
            annotations.append(
                {"id": k, "image_id": image_id, "category_id": CATEGORY_IDS[k % 2], "bbox": [x, y, w, h]}
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"thing {i}"} for i in CATEGORY_IDS],
    }


def batches_of(truth, size):
    """Batches whose pixels carry the image id; the last one is partial."""
    for start in range(0, len(truth["images"]), size):
        part = truth["images"][start : start + size]
        yield {
            "image": np.stack([np.full((64, 128, 3), image["id"], np.uint8) for image in part]),
            "image_size": np.stack([IMAGE_SIZE] * len(part)),
            "image_id": np.array([image["id"] for image in part], np.int64),
            "original_size": np.array([[image["height"], image["width"]] for image in part], np.int32),
        }


class Oracle(Predictor):
    """Finds the ground truth of the image whose id is its pixels, moved by `shift` of its boxes' widths."""

    def __init__(self, truth, shift=0.0):
        self.truth, self.shift = truth, shift

    def detect_batch(self, batch):
        assert set(batch) == {"image", "image_size", "original_size"}
        ids = batch["image"][:, 0, 0, 0].tolist()
        boxes = np.zeros((len(ids), 5, 4), np.float32)
        class_ids = np.full((len(ids), 5), -1, np.int32)
        scores = np.zeros((len(ids), 5), np.float32)
        for i, image_id in enumerate(ids):
            for k, a in enumerate(a for a in self.truth["annotations"] if a["image_id"] == image_id):
                x, y, w, h = a["bbox"]
                x += self.shift * w
                boxes[i, k] = y, x, y + h, x + w
                class_ids[i, k] = CATEGORY_IDS.index(a["category_id"])
                scores[i, k] = 0.9 - 0.1 * k
        return {"boxes": boxes, "scores": scores, "class_ids": class_ids, "valid": np.full(len(ids), 3, np.int32)}


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_an_oracle_has_ap_one(rng, size):
    truth = truth_of(5, rng)
    metrics, results = evaluate_batches(Oracle(truth), batches_of(truth, size), truth, CATEGORY_IDS)
    assert metrics["AP"] == pytest.approx(1.0)
    assert len(results) == 15
    for result, annotation in zip(results, truth["annotations"], strict=True):
        assert result["image_id"] == annotation["image_id"]
        np.testing.assert_allclose(result["bbox"], annotation["bbox"], rtol=1e-5, atol=1e-3)


def test_shifted_boxes_lower_ap(rng):
    truth = truth_of(5, rng)
    metrics, _ = evaluate_batches(Oracle(truth, shift=0.2), batches_of(truth, 2), truth, CATEGORY_IDS)
    assert metrics["AP50"] == pytest.approx(1.0)  # IoU 0.8 / 1.2
    assert 0.3 < metrics["AP"] < 0.5
    assert metrics["AP75"] == 0


def test_image_twice_or_missing_or_unknown_raises(rng):
    truth = truth_of(5, rng)
    oracle, batches = Oracle(truth), list(batches_of(truth, 2))
    with pytest.raises(ValueError, match="Image 12 occurs twice"):
        evaluate_batches(oracle, [*batches[:2], batches[1]], truth, CATEGORY_IDS)
    with pytest.raises(ValueError, match="1 of 5 images are missing from the batches; the first is image 14"):
        evaluate_batches(oracle, batches[:2], truth, CATEGORY_IDS)
    metrics, _ = evaluate_batches(oracle, batches[:2], truth, CATEGORY_IDS, image_ids=[10, 11, 12, 13])
    assert metrics["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="Image 12 is in the batches but not in image_ids"):
        evaluate_batches(oracle, batches, truth, CATEGORY_IDS, image_ids=[10, 11])


def test_unknown_category_raises_before_the_first_batch(rng):
    with pytest.raises(ValueError, match="5, which is not a category id of the ground truth: pass one of its 2 ids"):
        evaluate_batches(None, None, truth_of(1, rng), [4, 5])


class MaskOracle(Oracle):
    """Also finds the left half of every box as its mask, and three keypoints."""

    mask_convention = "detectron2"

    def detect_batch(self, batch):
        detections = super().detect_batch(batch)
        count = len(detections["valid"])
        mask = np.zeros((count, 5, 28, 28), np.float32)
        mask[..., :14] = 1
        low, high = detections["boxes"][..., None, :2], detections["boxes"][..., None, 2:]
        places = low + np.float32([[0.1, 0.2], [0.5, 0.5], [0.9, 0.3]]) * (high - low)
        keypoints = np.concatenate([places, np.ones_like(places[..., :1])], -1)
        return {**detections, "mask_probs": mask, "keypoints": keypoints}


def test_masks_and_keypoints_are_measured_in_the_original_images(rng):
    truth = truth_of(5, rng)
    truth["categories"][0] |= {"keypoints": ["a", "b", "c"]}
    sizes = {image["id"]: image for image in truth["images"]}
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        bitmap = np.zeros((sizes[a["image_id"]]["height"], sizes[a["image_id"]]["width"]), bool)
        bitmap[round(y) : round(y + h), round(x) : round(x + w / 2)] = True
        [a["segmentation"]] = rle.encode(bitmap[None])
        a["area"] = int(bitmap.sum())
        places = [(x + u * w - 0.5, y + v * h - 0.5, 2) for v, u in ((0.1, 0.2), (0.5, 0.5), (0.9, 0.3))]
        a["keypoints"] = [float(value) for place in places for value in place]
    metrics, results = evaluate_batches(MaskOracle(truth), batches_of(truth, 2), truth, CATEGORY_IDS)
    assert metrics["AP"] == pytest.approx(1.0) and metrics["keypoints/AP"] == pytest.approx(1.0)
    assert metrics["segm/AP75"] == pytest.approx(1.0) and metrics["segm/AP"] > 0.9
    assert list(metrics.by_type["keypoints"].per_class) == ["thing 4"]
    for result, annotation in zip(results, truth["annotations"], strict=True):
        assert result["segmentation"]["size"] == annotation["segmentation"]["size"]
        np.testing.assert_allclose(result["keypoints"][:2], annotation["keypoints"][:2], atol=1e-3)
    moved, _ = evaluate_batches(MaskOracle(truth, shift=0.2), batches_of(truth, 2), truth, CATEGORY_IDS)
    assert moved["segm/AP"] < 0.3 and moved["keypoints/AP"] < 0.1


def test_masks_without_ground_truth_are_in_the_results_only(rng):
    truth = truth_of(2, rng)
    metrics, results = evaluate_batches(MaskOracle(truth), batches_of(truth, 2), truth, CATEGORY_IDS)
    assert list(metrics.by_type) == ["bbox"] and "segmentation" in results[0]


@pytest.fixture(scope="module")
def model():
    return tiny.talkative(max_detections=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.shapes_data(tmp_path_factory.mktemp("shapes"), num_images=3, image_size=(80, 64))


def test_evaluation_scores_what_detect_finds(model, data):
    _, results = evaluate_with_results(model, data, batch_size=2)
    expected = []
    for record in data.records:
        expected += model.detect(record.path).to_coco(record.image_id, data.category_ids)
    assert len(results) == len(expected) > 10
    for found, wanted in zip(results, expected, strict=True):
        assert (found["image_id"], found["category_id"]) == (wanted["image_id"], wanted["category_id"])
        np.testing.assert_allclose(found["bbox"], wanted["bbox"], atol=0.05)
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-3)


def test_batches_follow_the_predictors_resize_rule(model, data):
    resized = next(iter(predictor_batches(model, data, batch_size=2)))
    np.testing.assert_array_equal(resized["image_size"], [[80, 64]] * 2)
    assert resized["image"].shape == (2, 96, 64, 3)
    unchanged = next(iter(predictor_batches(AugmentedPredictor(model), data, batch_size=2)))
    np.testing.assert_array_equal(unchanged["image_size"], unchanged["original_size"])
    assert unchanged["image"].shape == (2, 80, 64, 3) and unchanged["image"].dtype == np.uint8


def test_test_time_augmentation_is_evaluated_like_a_model(model, data):
    augmented = AugmentedPredictor(model, [model.preprocessing.shortest], hflip=False)
    ours, theirs = (evaluate_with_results(each, data)[1] for each in (augmented, model))
    np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in theirs], rtol=1e-3)


def test_another_number_of_classes_raises(data):
    with pytest.raises(ValueError, match=r"The model has 2 classes without names, .* has 5: .* Evaluate on a dataset"):
        evaluate_with_results(tiny.detector(2), data)


def test_classes_that_the_data_lack_are_matched_by_name(data):
    """torchvision's models have a class for each of COCO's ids from 1 to 90, and COCO files have 80 of them."""
    names = ("N/A", *reversed(data.class_names), "N/A", "zebra")
    records = iter(data.records)

    class Named(Predictor):
        num_classes, class_names, preprocessing = len(names), names, KeepSize()

        def detect_batch(self, batch):
            record = next(records)
            class_ids = np.int32([[names.index(data.class_names[i]) for i in record.class_ids]])
            scores = np.full(class_ids.shape, 0.9, np.float32)
            return {"boxes": record.boxes[None], "scores": scores, "class_ids": class_ids, "valid": [len(scores[0])]}

    metrics, results = evaluate_with_results(Named(), data)
    assert metrics["AP"] == pytest.approx(1.0)
    assert {result["category_id"] for result in results} <= set(data.category_ids)


def test_arguments_of_another_kind_raise():
    dataset, oracle = SimpleNamespace(records=()), Oracle({"annotations": []})
    with pytest.raises(UserError, match=r"^evaluate.dataset is 'val.json': expected a dataset. Pass open_dataset"):
        evaluate(oracle, "val.json")
    with pytest.raises(UserError, match=r"^evaluate.predictor is namespace\(records=\(\)\): expected a detector"):
        evaluate(dataset, oracle)
