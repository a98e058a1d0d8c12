from types import SimpleNamespace

import numpy as np
import pytest

from kerasdet.evaluation.evaluate import _check_names, evaluate_batches, to_original
from kerasdet.geometry import masks, rle

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


class Oracle:
    """Finds the ground truth in the coordinates of the network's input, moved by `shift` of its boxes' widths."""

    def __init__(self, truth, shift=0.0):
        self.truth, self.shift = truth, shift

    def predict_on_batch(self, inputs):
        assert set(inputs) == {"image", "image_size"}
        ids = inputs["image"][:, 0, 0, 0].tolist()
        boxes = np.zeros((len(ids), 5, 4), np.float32)
        class_ids = np.full((len(ids), 5), -1, np.int32)
        scores = np.zeros((len(ids), 5), np.float32)
        for i, image_id in enumerate(ids):
            image = next(image for image in self.truth["images"] if image["id"] == image_id)
            scale = IMAGE_SIZE / (image["height"], image["width"])
            for k, a in enumerate(a for a in self.truth["annotations"] if a["image_id"] == image_id):
                x, y, w, h = a["bbox"]
                x += self.shift * w
                boxes[i, k] = np.array([y, x, y + h, x + w]) * np.tile(scale, 2)
                class_ids[i, k] = CATEGORY_IDS.index(a["category_id"])
                scores[i, k] = 0.9 - 0.1 * k
        return {"boxes": boxes, "scores": scores, "class_ids": class_ids, "valid": np.full(len(ids), 3, np.int32)}


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_an_oracle_is_perfect(rng, size):
    truth = truth_of(5, rng)
    metrics, results = evaluate_batches(Oracle(truth), batches_of(truth, size), truth, CATEGORY_IDS)
    assert metrics["AP"] == pytest.approx(1.0)
    assert len(results) == 15
    for result, annotation in zip(results, truth["annotations"], strict=True):
        assert result["image_id"] == annotation["image_id"]
        np.testing.assert_allclose(result["bbox"], annotation["bbox"], rtol=1e-5, atol=1e-3)


def test_a_shift_costs_precision(rng):
    truth = truth_of(5, rng)
    metrics, _ = evaluate_batches(Oracle(truth, shift=0.2), batches_of(truth, 2), truth, CATEGORY_IDS)
    assert metrics["AP50"] == pytest.approx(1.0)  # IoU 0.8 / 1.2
    assert 0.3 < metrics["AP"] < 0.5
    assert metrics["AP75"] == 0


def test_every_image_once(rng):
    truth = truth_of(5, rng)
    oracle, batches = Oracle(truth), list(batches_of(truth, 2))
    with pytest.raises(ValueError, match="Image 12 came twice"):
        evaluate_batches(oracle, [*batches[:2], batches[1]], truth, CATEGORY_IDS)
    with pytest.raises(ValueError, match="1 of 5 images never came, image 14 first"):
        evaluate_batches(oracle, batches[:2], truth, CATEGORY_IDS)
    metrics, _ = evaluate_batches(oracle, batches[:2], truth, CATEGORY_IDS, image_ids=[10, 11, 12, 13])
    assert metrics["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="Image 12 came for evaluation, but is not among the images to score"):
        evaluate_batches(oracle, batches, truth, CATEGORY_IDS, image_ids=[10, 11])


def test_categories_are_checked_before_the_first_batch(rng):
    with pytest.raises(ValueError, match="category_ids names category 5, which the ground truth lacks"):
        evaluate_batches(None, None, truth_of(1, rng), [4, 5])


def test_boxes_return_to_the_original_image():
    boxes = np.array([[[5, 10, 25, 60], [-3, -3, 90, 200]], [[5, 10, 25, 60], [0, 0, 50, 100]]], np.float32)
    back = to_original(boxes, np.array([[50, 100], [50, 100]]), np.array([[100, 400], [25, 50]]))
    expected = [[[10, 40, 50, 240], [0, 0, 100, 400]], [[2.5, 5, 12.5, 30], [0, 0, 25, 50]]]
    np.testing.assert_array_equal(back, expected)


class MaskOracle(Oracle):
    """Finds also the left half of every box as its mask, and three keypoints."""

    def predict_on_batch(self, inputs):
        detections = super().predict_on_batch(inputs)
        count = len(detections["valid"])
        mask = np.zeros((count, 5, 28, 28), np.float32)
        mask[..., :14] = 1
        low, high = detections["boxes"][..., None, :2], detections["boxes"][..., None, 2:]
        places = low + np.float32([[0.1, 0.2], [0.5, 0.5], [0.9, 0.3]]) * (high - low)
        keypoints = np.concatenate([places, np.ones_like(places[..., :1])], -1)
        return {**detections, "mask_probs": mask, "keypoints": keypoints}

    def paste_masks(self, mask_probs, boxes, height, width):
        return masks.paste_masks(mask_probs, boxes, height, width)


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


class CodingOracle(MaskOracle):
    """Gives the code of its masks, and no full-size ones."""

    def encode_masks(self, mask_probs, boxes, height, width):
        return rle.encode(masks.paste_masks(mask_probs, boxes, height, width))

    paste_masks = None


def test_a_model_that_codes_its_masks_is_not_asked_to_paste_them(rng):
    truth = truth_of(3, rng)
    results = [
        evaluate_batches(model(truth), batches_of(truth, 2), truth, CATEGORY_IDS)[1]
        for model in (MaskOracle, CodingOracle)
    ]
    assert results[0] == results[1]


def test_a_model_with_masks_on_data_without(rng):
    truth = truth_of(2, rng)
    metrics, results = evaluate_batches(MaskOracle(truth), batches_of(truth, 2), truth, CATEGORY_IDS)
    assert list(metrics.by_type) == ["bbox"] and "segmentation" in results[0]


def test_classes_in_another_order_are_an_error(caplog):
    dataset = SimpleNamespace(class_names=("cat", "dog"), annotations="val.json")
    for same in (None, ("cat", "dog")):
        _check_names(same, dataset)
    with pytest.raises(ValueError, match=r"val\.json orders the classes cat, dog"):
        _check_names(("dog", "cat"), dataset)
    assert not caplog.records
    _check_names(("kitten", "puppy"), dataset)
    assert "val.json names its classes otherwise than the model" in caplog.text
