import numpy as np
import pytest
import tensorflow as tf
import tiny

from kerasdet import FCOS
from kerasdet.geometry.anchors import AnchorGenerator, octave_sizes, point_squares
from kerasdet.geometry.matching import FCOSMatcher, IoUMatcher
from kerasdet.models import Preprocessing
from kerasdet.reports.anchors import (
    Assigner,
    assigner_of,
    best_overlaps,
    match_objects,
    sample_images,
    suggest_anchors,
    suggest_ranges,
)
from kerasdet.reports.objects import Objects, of_images, resized

LEVELS = ("p3", "p4", "p5")


def objects(boxes, sizes, images=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    images = np.zeros(len(boxes), int) if images is None else np.array(images)
    return Objects(boxes, np.zeros(len(boxes), np.int32), images, np.array(sizes).reshape(-1, 2))


def random_objects(rng, sizes, per_image=6):
    corners = [rng.uniform(0, 0.7, (per_image, 2)) * size for size in sizes]
    lengths = [np.exp(rng.uniform(np.log(4), np.log(90), (per_image, 2))) for _ in sizes]
    boxes = np.concatenate([np.concatenate([c, c + w], 1) for c, w in zip(corners, lengths, strict=True)])
    return objects(boxes, sizes, np.repeat(np.arange(len(sizes)), per_image))


def scalar_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union


def laid_out(generator, size, divisor=32):
    """All anchors of an image, level by level, as Python floats."""
    padded = [-(-side // divisor) * divisor for side in size]
    grids = {level: tuple(-(-side // 2 ** int(level[1:])) for side in padded) for level in generator.levels}
    return np.concatenate(list(generator(grids, tuple(padded)).values())).tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"offset": 0.5}, {"round_corners": True, "strides_from_image": True, "levels": ("p3", "p5", "p7")}],
    ids=["detectron2", "centred", "torchvision"],
)
def test_best_overlaps_equal_a_search_among_all_anchors(rng, options):
    generator = AnchorGenerator(octave_sizes(12, 2, 3), (0.5, 1.0, 2.0), **{"levels": LEVELS, **options})
    sizes = [(75, 110), (96, 64)]
    data = random_objects(rng, sizes)
    best = best_overlaps(generator, data, 32)
    for box, image, value in zip(data.boxes.tolist(), data.images, best, strict=True):
        assert value == pytest.approx(
            max(scalar_iou(anchor, box) for anchor in laid_out(generator, sizes[image])), abs=1e-6
        )


def iou_assigner(generator, matcher):
    return Assigner(
        generator,
        lambda levels, batch: matcher(tf.concat(list(levels.values()), 0), batch),
        matcher.foreground_iou,
        None,
        32,
        "test",
    )


def test_matches_are_counted_for_each_object():
    generator = AnchorGenerator([[16], [32]], (1.0,), levels=("p3", "p4"))
    data = objects([[16, 16, 32, 32], [32, 64, 64, 96], [70, 6, 73, 9]], [(96, 96)])  # the last is tiny
    matches = match_objects(iou_assigner(generator, IoUMatcher(0.5, 0.4)), data)
    anchors = laid_out(generator, (96, 96))
    by_merit = [sum(scalar_iou(anchor, box) >= 0.5 for anchor in anchors) for box in data.boxes.tolist()]
    assert matches.by_merit.tolist() == by_merit and by_merit[0] > 0 and by_merit[1] > 0 and by_merit[2] == 0
    assert matches.total.tolist()[:2] == by_merit[:2]
    assert matches.total[2] > 0, "the matcher gives the tiny object its best anchors"
    assert matches.levels.sum(1).tolist() == matches.total.tolist() and matches.images == 1


def test_objects_that_share_their_only_anchor_are_found_without_one():
    generator = AnchorGenerator([[32]], (1.0,), levels=("p5",))
    data = objects([[18, 18, 46, 46], [24, 24, 40, 40]], [(64, 64)])  # both in the anchor at (32, 32)
    matches = match_objects(iou_assigner(generator, IoUMatcher(0.5, 0.4)), data)
    assert matches.total.tolist() == [1, 0]


def test_assigner_is_the_first_stage_of_an_rcnn_and_the_whole_of_a_dense_detector():
    rcnn, dense = tiny.rcnn(), tiny.detector()
    first = assigner_of(rcnn)
    assert (first.stage, first.anchors, first.foreground_iou) == ("RPN", rcnn.rpn.anchors, 0.7)
    assert (assigner_of(dense).stage, assigner_of(dense).ranges) == ("RetinaNet", None)
    data = objects([[8, 8, 40, 40]], [(64, 64)])
    assert match_objects(first, data).total[0] > 0
    assert match_objects(assigner_of(dense), data).total[0] > 0


def fcos_assigner(matcher):
    return Assigner(point_squares(("p3", "p5")), matcher, None, matcher.regress_ranges, 32, "FCOS")


def test_points_of_fcos_are_counted_on_the_level_whose_range_holds_the_object():
    matcher = FCOSMatcher(((0, 16), (16, 1e8)), center_radius=None)
    data = objects([[0, 0, 24, 24], [5, 5, 8, 8]], [(96, 96)])  # the second lies between the points, at 4, 12, 20 ...
    near = [(y, x) for y in (4, 12, 20) for x in (4, 12, 20) if max(y, x, 24 - y, 24 - x) < 16]
    matches = match_objects(fcos_assigner(matcher), data)
    assert matches.levels.tolist() == [[len(near), 0], [0, 0]] and matches.total.tolist() == [len(near), 0]


def test_suggested_anchors_fit_small_objects_and_keep_their_number(rng):
    generator = AnchorGenerator(octave_sizes(64, 1, 3), (1.0, 2.0, 4.0), levels=LEVELS)
    centers = rng.uniform(20, 80, (200, 2))
    lengths = np.exp(rng.normal(np.log((14, 28)), 0.1, (200, 2)))
    data = objects(np.concatenate([centers - lengths / 2, centers + lengths / 2], 1), [(96, 96)])
    before = (best_overlaps(generator, data, 32) >= 0.5).mean()
    better = suggest_anchors(generator, data, 32, 0.5)
    after = (best_overlaps(better, data, 32) >= 0.5).mean()
    assert before < 0.2 and after > 0.9
    assert better.num_anchors == generator.num_anchors and better.levels == generator.levels
    assert any(0.4 < ratio < 0.6 for ratio in better.aspect_ratios[0]), "the objects are twice as wide as high"


def test_suggestion_keeps_anchors_that_fit_perfectly():
    generator = AnchorGenerator([[16]], (1.0,), levels=("p3",))
    data = objects([[16, 16, 32, 32], [40, 40, 56, 56]], [(64, 64)])
    assert suggest_anchors(generator, data, 32, 0.5) is generator


def test_suggested_ranges_give_points_to_objects_that_have_none():
    matcher = FCOSMatcher(((0, 8), (8, 1e8)), center_radius=None)
    data = objects([[18, 18, 42, 42]], [(64, 64)])  # too large for p3 by these ranges; p5 has points at 16 and 48 only
    assigner = fcos_assigner(matcher)
    assert match_objects(assigner, data).total.tolist() == [0]
    better = suggest_ranges(matcher, assigner, data)
    assert better.regress_ranges == ((0, 16), (16, 1e8))
    assert match_objects(fcos_assigner(better), data).total[0] > 0


def test_resized_objects_follow_the_models_rule():
    data = objects([[10, 20, 30, 60]], [(100, 200)])
    small = resized(data, Preprocessing(shortest=50, longest=1000))
    assert small.sizes.tolist() == [[50, 100]]
    np.testing.assert_allclose(small.boxes, [[5, 10, 15, 30]])
    assert resized(data, Preprocessing(shortest=50, longest=80)).sizes.tolist() == [[40, 80]]


def test_samples_are_whole_images(rng):
    data = random_objects(rng, [(64, 64)] * 10, per_image=3)
    part = sample_images(data, 4, seed=0)
    assert len(part.sizes) == 4 and part.per_image.tolist() == [3] * 4
    chosen = of_images(data, np.array([2, 5]))
    np.testing.assert_array_equal(chosen.boxes, np.concatenate([data.boxes[6:9], data.boxes[15:18]]))
    assert sample_images(data, 10, seed=0) is data


def test_fcos_is_assigned_by_its_ranges():
    model = FCOS(2, backbone=tiny.backbone(), preprocessing=Preprocessing(shortest=64, longest=96))
    assigner = assigner_of(model)
    assert assigner.ranges == model.matcher.regress_ranges and assigner.foreground_iou is None
    assert match_objects(assigner, objects([[8, 8, 40, 40]], [(64, 64)])).total[0] > 0
