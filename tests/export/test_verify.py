"""Tests the comparison behind every export: broken converters fail in each precision, rounding passes."""

import numpy as np
import pytest

from kerasdet.errors import VerificationError
from kerasdet.export.verify import EIGHT_BITS, EXACT, ROUNDED, compare, tolerance_for

CLASSES = {"float32": EXACT, "16 bits": ROUNDED, "8 bits": EIGHT_BITS}
THRESHOLD = 0.05
CAPACITY = 100


def detections(count=60, seed=0):
    """Makes a padded dict of one image of 600x800: boxes of 30 to 80 pixels, with masks and keypoints."""
    rng = np.random.default_rng(seed)
    center = np.stack([rng.uniform(60, 540, count), rng.uniform(60, 740, count)], -1)
    half = rng.uniform(15, 40, (count, 2))
    boxes = np.concatenate([center - half, center + half], -1)
    position = center[:, None] + rng.uniform(-1, 1, (count, 5, 2)) * half[:, None]  # (N, J, 2)
    values = {
        "boxes": boxes,
        "scores": np.sort(rng.uniform(0.1, 0.99, count))[::-1],
        "class_ids": rng.integers(0, 3, count),
        "mask_probs": (rng.uniform(0, 1, (count, 14, 14)) < np.linspace(0.1, 0.9, 14)).astype(float),
        "keypoints": np.concatenate([position, rng.uniform(0, 1, (count, 5, 1))], -1),
    }
    return padded(values)


def padded(values, valid=None):
    """Pads arrays (N, ...) to the padded dict of one image."""
    count = len(values["scores"]) if valid is None else valid
    full = {"class_ids": -1}
    result = {"valid": np.array([count])}
    for name, value in values.items():
        rest = np.full((CAPACITY - len(value), *value.shape[1:]), full.get(name, 0), value.dtype)
        result[name] = np.concatenate([value, rest])[None]
    return result


def changed(detections, **values):
    """Copies padded detections and replaces some values by functions of them, padding included."""
    return {**detections, **{name: function(detections[name].copy()) for name, function in values.items()}}


def every_second_dropped(found):
    count = int(found["valid"][0])
    kept = {name: value[0, :count:2] for name, value in found.items() if name != "valid"}
    return padded(kept)


def with_nan(values):
    values[0, 3] = np.nan
    return values


def scaled_about_center(boxes):
    center, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    return np.concatenate([center - 1.05 * half, center + 1.05 * half], -1)


BROKEN = {
    "boxes shifted down by 2 px": lambda d: changed(d, boxes=lambda b: b + np.array([2, 0, 2, 0])),
    "boxes shifted to the left by 2 px": lambda d: changed(d, boxes=lambda b: b - [0, 2, 0, 2]),
    "y and x of boxes swapped": lambda d: changed(d, boxes=lambda b: b[..., [1, 0, 3, 2]]),
    "boxes scaled by 1.05": lambda d: changed(d, boxes=lambda b: 1.05 * b),
    "boxes scaled by 1.05 about their centres": lambda d: changed(d, boxes=scaled_about_center),
    "boxes in another layout": lambda d: changed(d, boxes=lambda b: b[..., [0, 2, 1, 3]]),
    "class ids off by one": lambda d: changed(d, class_ids=lambda c: c + 1),
    "scores halved": lambda d: changed(d, scores=lambda s: s / 2),
    "scores all equal": lambda d: changed(d, scores=lambda s: np.full_like(s, 0.9)),
    "every second detection dropped": every_second_dropped,
    "all detections dropped": lambda d: {**d, "valid": np.array([0])},
    "masks flipped": lambda d: changed(d, mask_probs=lambda m: m[..., ::-1]),
    "masks inverted": lambda d: changed(d, mask_probs=lambda m: 1 - m),
    "y and x of keypoints swapped": lambda d: changed(d, keypoints=lambda k: k[..., [1, 0, 2]]),
    "a box that is NaN": lambda d: changed(d, boxes=with_nan),
    "a score that is NaN": lambda d: changed(d, scores=with_nan),
    "masks that are NaN": lambda d: changed(d, mask_probs=with_nan),
    "no masks": lambda d: {name: value for name, value in d.items() if name != "mask_probs"},
    "fewer columns": lambda d: changed(d, keypoints=lambda k: k[:, :, :4]),
}


@pytest.mark.parametrize("precision", CLASSES)
@pytest.mark.parametrize("mutation", BROKEN)
def test_broken_converter_raises(mutation, precision):
    expected = detections()
    with pytest.raises(VerificationError, match=r"^out\.tflite differs from the model"):
        compare([(expected, BROKEN[mutation](expected))], CLASSES[precision], subject="out.tflite")


@pytest.mark.parametrize("precision", CLASSES)
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"boxes": lambda b: b[..., [1, 0, 3, 2]]}, r"boxes are \(x1, y1, x2, y2\): expected \(y1, x1, y2, x2\)"),
        ({"boxes": lambda b: b / [600, 800, 600, 800]}, "boxes are fractions of the image: expected pixels"),
        ({"boxes": lambda b: b * 2.1}, "boxes are in pixels of an image of another size: expected pixels of the orig"),
        ({"class_ids": lambda c: c + 1}, "class ids are 1 too high: expected 0 for the first class"),
        ({"class_ids": lambda c: c - 1}, "class ids are 1 too low: expected 0 for the first class"),
    ],
)
def test_usual_mistakes_of_a_new_format_are_named(precision, change, cause):
    expected = detections()
    with pytest.raises(VerificationError, match=rf"\. Its {cause}.* Correct the export format, or report it"):
        compare([(expected, changed(expected, **change))], CLASSES[precision], score_threshold=THRESHOLD)


@pytest.mark.parametrize(
    ("precision", "remedy"), [("float32", "compare the input first"), ("16 bits", "Use another --precision")]
)
def test_differences_without_a_usual_cause_have_a_remedy(precision, remedy):
    expected = detections()
    with pytest.raises(VerificationError, match=rf"differs from the model in .* {remedy}.*bug of kerasdet\."):
        compare([(expected, changed(expected, scores=lambda s: s / 2))], CLASSES[precision])


def test_missing_output_is_listed_with_the_others():
    expected = detections()
    renamed = {f"detection_{name}": value for name, value in expected.items()}
    with pytest.raises(VerificationError, match=r"boxes is missing among detection_.*`from_tf_od` converts"):
        compare([(expected, renamed | {"valid": expected["valid"]})], EXACT)


@pytest.mark.parametrize("precision", ["16 bits", "8 bits"])
@pytest.mark.parametrize("mutation", list(BROKEN)[:8])
def test_broken_converter_with_rounding_raises(mutation, precision):
    expected = detections(CAPACITY)
    with pytest.raises(VerificationError):
        compare([(expected, BROKEN[mutation](rounded(expected, NOISE[precision])))], CLASSES[precision])


NOISE = {  # standard deviations of box sides (as a fraction of the box), scores and mask probabilities
    "float32": (1e-6, 1e-6, 1e-6),
    "16 bits": (0.006, 0.004, 0.01),
    "8 bits": (0.03, 0.02, 0.04),
}


def rounded(expected, noise, seed=1):
    """Adds a small random error to each value of the detections, like rounding."""
    rng = np.random.default_rng(seed)
    box, score, mask = noise
    size = np.sqrt((expected["boxes"][..., 2:] - expected["boxes"][..., :2]).prod(-1))[..., None]
    found = changed(
        expected,
        boxes=lambda b: b + size * rng.normal(0, box, b.shape),
        scores=lambda s: np.clip(s + rng.normal(0, score, s.shape), 0, 1),
        mask_probs=lambda m: np.clip(m + rng.normal(0, mask, m.shape), 0, 1),
    )
    order = np.argsort(-found["scores"][0, : found["valid"][0]])
    return padded({name: value[0][order] for name, value in found.items() if name != "valid"})


@pytest.mark.parametrize("precision", CLASSES)
@pytest.mark.parametrize("count", [1, 3, 10, CAPACITY])
def test_rounding_passes(precision, count):
    expected = detections(count)
    report = compare([(expected, rounded(expected, NOISE[precision]))], CLASSES[precision], score_threshold=THRESHOLD)
    assert report.detections == report.matched == count
    assert report.one_sided == 0
    assert report.max_box_error > 0


@pytest.mark.parametrize("tolerance", CLASSES.values(), ids=CLASSES)
def test_equal_detections_have_no_differences(tolerance):
    expected = detections()
    report = compare([(expected, expected)] * 2, tolerance)
    assert (report.detections, report.matched, report.one_sided) == (120, 120, 0)
    assert report.max_box_error == report.max_score_error == report.mean_mask_error == report.moved_keypoints == 0
    assert report.mean_iou == pytest.approx(1)


def test_images_without_detections_have_no_differences():
    nothing = {**detections(), "valid": np.array([0])}
    assert compare([(nothing, nothing)], EXACT).detections == 0


def test_order_of_equal_scores_may_differ():
    expected = changed(detections(), scores=lambda s: np.full_like(s, 0.5))
    order = np.r_[np.random.default_rng(0).permutation(60), 60:CAPACITY]
    found = {name: value if name == "valid" else value[:, order] for name, value in expected.items()}
    assert compare([(expected, found)], EXACT).one_sided == 0


def test_detection_near_the_threshold_may_be_unmatched():
    expected = changed(detections(), scores=lambda s: np.where(np.arange(CAPACITY) == 59, THRESHOLD + 5e-5, s))
    found = {**expected, "valid": expected["valid"] - 1}
    assert compare([(expected, found)], EXACT, score_threshold=THRESHOLD).one_sided == 1
    clear = changed(expected, scores=lambda s: np.where(np.arange(CAPACITY) == 59, THRESHOLD + 0.01, s))
    with pytest.raises(VerificationError, match=r"clear detections \(1 of 119 found by one side only\)"):
        compare([(clear, {**clear, "valid": found["valid"]})], EXACT, score_threshold=THRESHOLD)


def test_large_score_outliers_pass_only_in_16_bits():
    expected = detections(CAPACITY)
    found = changed(expected, scores=lambda s: s - 0.09 * (np.arange(CAPACITY) < 3))
    assert compare([(expected, found)], ROUNDED).max_score_error == pytest.approx(0.09)
    with pytest.raises(VerificationError, match=r"scores \(0\.09, at most 0\.0001\)"):
        compare([(expected, found)], EXACT)


def test_tolerance_is_the_coarser_of_model_and_export():
    assert tolerance_for("float32") is EXACT
    assert tolerance_for("float32", "bfloat16") is tolerance_for("bfloat16") is tolerance_for("float16") is ROUNDED
    assert tolerance_for("dynamic") is tolerance_for("int8", "bfloat16") is EIGHT_BITS


def test_report_prints_a_sentence():
    expected = detections()
    text = str(compare([(expected, expected)], EXACT))
    assert text.startswith("60 detections compared, 0 found by one side only; boxes 0 px at most")
    assert "nan" not in text
