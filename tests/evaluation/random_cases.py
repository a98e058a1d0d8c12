"""Makes small random evaluations: crowds, difficult objects, ties, empty classes, masks, keypoints."""

import numpy as np
from pycocotools import mask

HEIGHT, WIDTH, JOINTS = 120, 160, 17


def random_case(seed, iou_type="bbox", *, crowds=0.15, difficult=0.15, ties=True, images=12, classes=5, in_bytes=False):
    """Returns contents of a COCO file and entries of a results file; the last class has no object."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 3 * i + 1, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": 2 * k + 3, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    if iou_type == "keypoints":
        for category in truth["categories"]:
            category["keypoints"] = [f"joint {j}" for j in range(JOINTS)]
    ids = [category["id"] for category in truth["categories"]]
    results = []

    def detect(image, category, box):
        score = rng.random()
        score = float(round(score, 1) if ties else score)
        entry = {"image_id": image["id"], "category_id": category, "score": score}
        results.append(entry | _geometry(rng, box, iou_type, in_bytes))

    for image in truth["images"]:
        for _ in range(rng.integers(0, 9)):
            box = np.round([*rng.uniform(0, 1, 2) * (100, 70), *(2 + rng.uniform(0, 1, 2) * rng.choice([20, 60]))], 1)
            category = ids[rng.integers(classes - 1)]
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": category}
            annotation |= {"iscrowd": int(rng.random() < crowds), "difficult": int(rng.random() < difficult)}
            truth["annotations"].append(annotation | _geometry(rng, box, iou_type, in_bytes))
            for _ in range(rng.integers(0, 4)):
                moved = box if rng.random() < 0.3 else np.maximum(box + np.round(rng.normal(0, 3, 4)), 0)
                detect(image, ids[rng.integers(classes)] if rng.random() < 0.2 else category, moved)
        for _ in range(rng.integers(0, 3)):
            detect(image, ids[rng.integers(classes)], rng.uniform(5, 60, 4))
    return truth, results


def _geometry(rng, box, iou_type, in_bytes):
    x, y, width, height = box.tolist()
    values = {"bbox": [x, y, width, height], "area": width * height}
    if iou_type == "segm":
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        pixels[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = 1
        pixels[rng.random(pixels.shape) < 0.05] = 0
        code = mask.encode(pixels)
        values["area"] = float(mask.area(code))
        values["segmentation"] = code if in_bytes else {**code, "counts": code["counts"].decode()}
    if iou_type == "keypoints":
        points = np.stack([x + rng.random(JOINTS) * width, y + rng.random(JOINTS) * height, rng.integers(0, 3, JOINTS)])
        values["keypoints"] = points.T.ravel().tolist()
    return values
