"""Reads a case for analysis, and holds scalar code to compare with."""

from kerasdet.analysis import collect


def instances_of(truth, results, masks=False):
    annotations = [{**a, "ignored": a.get("difficult", 0)} for a in truth["annotations"]]
    found = [{"area": e["bbox"][2] * e["bbox"][3] if "bbox" in e else 0, **e} for e in results]
    image_ids = sorted(image["id"] for image in truth["images"])
    category_ids = sorted(category["id"] for category in truth["categories"])
    return collect(annotations, found, image_ids, category_ids, masks=masks)


def iou(a, b, crowd=False):
    """IoU of two boxes (x, y, width, height) in scalar code."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - width * height
    return width * height / union


def scalar_matches(truth, results, threshold=0.5):
    """Matches by COCO's rules in scalar code: index of a result -> True, False, or None for an ignored one."""
    verdicts, taken = {}, {}
    for index in sorted(range(len(results)), key=lambda i: -results[i]["score"]):
        entry = results[index]
        best, best_iou, best_ignored = None, threshold, True
        for a in truth["annotations"]:
            if (a["image_id"], a["category_id"]) != (entry["image_id"], entry["category_id"]):
                continue
            ignored = bool(a["iscrowd"] or a.get("difficult", 0))
            overlap = iou(entry["bbox"], a["bbox"], a["iscrowd"])
            if overlap < threshold or (a["id"] in taken and not a["iscrowd"]):
                continue
            if (ignored, -overlap) <= (best_ignored, -best_iou) or best is None:
                best, best_iou, best_ignored = a, overlap, ignored
        verdicts[index] = False if best is None else (None if best_ignored else True)
        if best is not None:
            taken[best["id"]] = index
    return verdicts, taken
