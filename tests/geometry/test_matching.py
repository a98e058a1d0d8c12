import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator, octave_sizes, point_squares
from kerasdet.geometry.matching import (
    IGNORE,
    NEGATIVE,
    FCOSMatcher,
    IoUMatcher,
    covered,
    gather_gt,
    match_fcos,
    match_iou,
)

YXYX = [1, 0, 3, 2]
RULES = {
    "retinanet": {"foreground_iou": 0.5, "background_iou": 0.4, "allow_low_quality_matches": True},
    "rpn": {"foreground_iou": 0.7, "background_iou": 0.3, "allow_low_quality_matches": True},
    "roi": {"foreground_iou": 0.5, "background_iou": 0.5, "allow_low_quality_matches": False},
    "retinanet_far": {"foreground_iou": 0.95, "background_iou": 0.95, "allow_low_quality_matches": True},
}


def match(anchors, gt_boxes, valid=None, **rule):
    """Matches the anchors of one image."""
    gt_boxes = np.float32(gt_boxes).reshape(1, -1, 4)
    valid = np.ones(gt_boxes.shape[:2], bool) if valid is None else np.array([valid])
    return match_iou(np.float32(anchors), gt_boxes, valid, **{**RULES["retinanet"], **rule}).numpy()[0]


def scalar_iou(a, b):
    height = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), np.float32(0))
    width = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), np.float32(0))
    return height * width / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width)


def scalar_match(anchors, gt_boxes, valid, foreground_iou, background_iou, allow_low_quality_matches):
    indices = [index for index, ok in enumerate(valid) if ok]
    table = [[scalar_iou(anchor, gt_boxes[index]) for index in indices] for anchor in anchors]
    matches = []
    for row in table:
        best = max(row, default=-1)
        if best >= foreground_iou:
            matches.append(indices[row.index(best)])
        else:
            matches.append(NEGATIVE if best < background_iou else IGNORE)
    if allow_low_quality_matches:
        for column in range(len(indices)):
            best = max(row[column] for row in table)
            for i, row in enumerate(table):
                if row[column] == best:
                    matches[i] = indices[row.index(max(row))]
    return matches


@pytest.mark.parametrize("name", RULES)
def test_equals_detectron2(name):
    with np.load(shared("reference/geometry.npz")) as golden:
        prefix = f"matcher_{name}_"
        case = {key.removeprefix(prefix): golden[key] for key in golden.files if key.startswith(prefix)}
    expected = np.where(case["labels"] == 1, case["matches"], np.where(case["labels"] == 0, NEGATIVE, IGNORE))
    actual = match(case["anchors_xyxy"][:, YXYX], case["gt_xyxy"][:, YXYX], **RULES[name])
    np.testing.assert_array_equal(actual, expected)
    assert (expected >= 0).any()


@pytest.mark.parametrize("name", RULES)
def test_equals_a_scalar_loop(rng, name):
    def grid_boxes(*shape):  # on a coarse grid, so that ties are common
        corner = rng.integers(0, 8, (*shape, 2)) * 4
        return np.concatenate([corner, corner + rng.integers(1, 5, (*shape, 2)) * 4], -1).astype(np.float32)

    anchors, gt_boxes = grid_boxes(50), grid_boxes(20, 5)
    valid = rng.random((20, 5)) < 0.7
    valid[0] = False
    actual = match_iou(anchors, gt_boxes, valid, **RULES[name]).numpy()
    for image in range(20):
        expected = scalar_match(anchors, gt_boxes[image], valid[image], **RULES[name])
        np.testing.assert_array_equal(actual[image], expected)


def test_image_without_objects_has_only_negatives():
    anchors = [[0, 0, 8, 8], [0, 0, 0, 0]]
    np.testing.assert_array_equal(match(anchors, np.zeros([3, 4]), [False] * 3), [NEGATIVE] * 2)


def test_zero_ground_truth_rows_match_nothing():
    matched = match_iou(tf.zeros([3, 4]), tf.zeros([2, 0, 4]), tf.zeros([2, 0], tf.bool), **RULES["retinanet"])
    np.testing.assert_array_equal(matched, np.full([2, 3], NEGATIVE))


def test_padding_and_crowds_match_nothing():
    anchors = [[0, 0, 8, 8], [0, 0, 8, 7], [100, 100, 108, 108], [50, 50, 60, 60]]
    alone = match(anchors, [[0, 0, 8, 8]])
    together = match(anchors, [[0, 0, 0, 0], [0, 0, 8, 8], [50, 50, 60, 60]], [False, True, False])
    np.testing.assert_array_equal(together, np.where(alone == 0, 1, alone))


def test_foreground_threshold_is_inclusive_and_background_exclusive():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 3]]  # IoU 1, 0.5, 0.4, 0.3
    np.testing.assert_array_equal(
        match(anchors, [[0, 0, 10, 10]], allow_low_quality_matches=False), [0, 0, IGNORE, NEGATIVE]
    )


def test_low_quality_matches_give_every_object_an_anchor():
    anchors = [[0, 0, 10, 1], [0, 0, 10, 2], [90, 90, 99, 99]]
    np.testing.assert_array_equal(
        match(anchors, [[0, 0, 10, 10]], allow_low_quality_matches=True), [NEGATIVE, 0, NEGATIVE]
    )
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 10]], allow_low_quality_matches=False), [NEGATIVE] * 3)


def test_low_quality_matches_take_every_tied_anchor():
    np.testing.assert_array_equal(match([[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1]], [[0, 0, 10, 10]]), [0, 0, -1])


def test_low_quality_anchor_keeps_its_own_best_object():
    anchors = [[0, 0, 10, 10]]  # the best there is for both, 0.3 and 0.2
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 2], [0, 0, 10, 3]]), [1])


def test_forced_anchor_may_answer_for_the_last_object_that_forces_it():
    anchors = [[0, 0, 10, 10], [50, 50, 60, 60]]  # the first is the best there is for the first three objects
    gt = [[0, 0, 10, 3], [0, 0, 10, 2], [0, 8, 10, 10], [50, 50, 60, 60]]
    np.testing.assert_array_equal(match(anchors, gt), [0, 3])
    np.testing.assert_array_equal(match(anchors, gt, low_quality_owner="forcing"), [2, 3])


def test_forcing_object_takes_a_foreground_anchor():
    anchors = [[0, 0, 10, 10]]
    np.testing.assert_array_equal(match(anchors, [[0, 0, 10, 9], [0, 0, 10, 6]], low_quality_owner="forcing"), [1])


def test_objects_below_the_least_iou_force_no_anchor():
    anchors = [[0, 0, 10, 10], [20, 20, 30, 30]]
    gt = [[0, 0, 10, 3], [20, 20, 30, 22]]  # IoU 0.3 and 0.2 with their best anchor
    for owner in ("best", "forcing"):
        rule = {"low_quality_owner": owner, "background_iou": 0.1}
        np.testing.assert_array_equal(match(anchors, gt, min_low_quality_iou=0.3, **rule), [0, IGNORE])
        np.testing.assert_array_equal(match(anchors, gt, min_low_quality_iou=0.0, **rule), [0, 1])


def test_unknown_low_quality_owner_raises():
    with pytest.raises(UserError, match="low_quality_owner is 'last': choose 'best' or 'forcing'"):
        IoUMatcher(low_quality_owner="last")
    with pytest.raises(UserError, match="low_quality_owner of match_iou is 'last'"):
        match([[0, 0, 1, 1]], [], low_quality_owner="last")


def test_each_image_may_have_its_own_anchors(rng):
    anchors = rng.uniform(0, 50, (2, 30, 4)).astype(np.float32)
    anchors[..., 2:] += anchors[..., :2]
    gt = anchors[:, :4] + 1
    matched = match_iou(anchors, gt, np.ones([2, 4], bool), **RULES["retinanet"]).numpy()
    for image in range(2):
        np.testing.assert_array_equal(matched[image], match(anchors[image], gt[image]))


def test_shapes_and_types_in_a_graph():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None], tf.bool),
        ]
    )
    def function(anchors, gt_boxes, valid):
        return match_iou(anchors, gt_boxes, valid, **RULES["retinanet"])

    matched = function(tf.zeros([5, 4]), tf.zeros([2, 3, 4]), tf.zeros([2, 3], tf.bool))
    assert matched.shape == (2, 5) and matched.dtype == tf.int32


def test_gather_gt():
    values = tf.constant([[[1.0], [2]], [[3], [4]]])
    gathered = gather_gt(values, tf.constant([[1, NEGATIVE, 0], [IGNORE, 1, 1]]))
    np.testing.assert_array_equal(gathered[..., 0], [[2, 0, 1], [0, 4, 4]])
    assert gather_gt(tf.zeros([2, 0, 4]), tf.fill([2, 5], NEGATIVE)).shape == (2, 5, 4)


# -- FCOS


def points(height, width):
    """Makes the squares of all points of an image on five levels, and their ranges."""
    grids = {f"p{i}": (-(-height // 2**i), -(-width // 2**i)) for i in range(3, 8)}
    levels = list(point_squares()(grids, (height, width)).values())
    return np.concatenate(levels), np.repeat(
        np.float32(FCOSMatcher().regress_ranges), [len(level) for level in levels], 0
    )


def direct_match_fcos(squares, ranges, gt_boxes, valid, radius, rule):
    """All points against all boxes at once, by the words of the paper and the arithmetic of the sources."""
    center = (squares[:, :2] + squares[:, 2:])[:, None] / 2
    stride = squares[:, None, 2] - squares[:, None, 0]
    distances = np.concatenate([center - gt_boxes[:, :2], gt_boxes[:, 2:] - center], -1)  # (R, M, 4)
    inside, farthest = distances.min(-1) > 0, distances.max(-1)
    low, high = ranges[:, :1], ranges[:, 1:]
    area = (gt_boxes[:, 2] - gt_boxes[:, 0]) * (gt_boxes[:, 3] - gt_boxes[:, 1])
    if rule == "detectron2":
        fits = inside & (farthest > low) & (farthest < high)
        quality = np.float32(1e8) - area
    else:
        fits = inside & (farthest >= low) & (farthest <= high)
        quality = -area.astype(float)
    if radius is not None:
        middle = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        fits &= np.abs(center - middle).max(-1) < radius * stride
    quality = np.where(fits & valid, quality, -np.inf)
    return np.where(quality.max(1) > -1e8, quality.argmax(1), NEGATIVE)


@pytest.mark.parametrize("rule", ["detectron2", "mmdet"])
@pytest.mark.parametrize("center_sampling", [0, 1])
def test_fcos_equals_the_reference(center_sampling, rule):
    with np.load(shared("reference/geometry.npz")) as golden:
        prefix = f"fcos_targets_center_sampling_{center_sampling}_"
        case = {key.removeprefix(prefix): golden[key] for key in golden.files if key.startswith(prefix)}
    squares, ranges = points(512, 640)
    gt_boxes = case["gt_xyxy"][None, :, YXYX]
    radius = 1.5 if center_sampling else None
    matched = match_fcos(squares, ranges, gt_boxes, np.ones([1, 12], bool), radius=radius, convention=rule)[0].numpy()
    np.testing.assert_array_equal(matched, case["matched_gt"])
    np.testing.assert_array_equal(np.where(matched >= 0, case["gt_classes"][matched], -1), case["labels"])
    assert (matched >= 0).sum() > 50


@pytest.mark.parametrize("rule", ["detectron2", "mmdet"])
@pytest.mark.parametrize("radius", [None, 1.5, 0.5])
@pytest.mark.parametrize("count", [1, 8, 9, 300])
def test_fcos_in_chunks_equals_the_direct_form(rng, count, radius, rule):
    """On a grid of 4 pixels, where areas and distances to bounds tie, and for more objects than a chunk holds."""
    corner = rng.integers(0, 60, (3, count, 2)) * 4
    size = rng.integers(1, 60, (3, count, 2)) * 4
    gt_boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    valid = rng.random((3, count)) < 0.8
    squares, ranges = points(256, 224)
    matched = match_fcos(squares, ranges, gt_boxes, valid, radius=radius, convention=rule).numpy()
    for image in range(3):
        expected = direct_match_fcos(squares, ranges, gt_boxes[image], valid[image], radius, rule)
        np.testing.assert_array_equal(matched[image], expected)
    if count == 300:
        assert len(np.unique(matched)) > 50


def fcos_of_one_point(gt_boxes, rule, center=(100.0, 100.0), bounds=(0, 64), radius=None):
    y, x = center
    square = np.float32([[y - 4, x - 4, y + 4, x + 4]])
    gt_boxes = np.float32(gt_boxes)[None]
    valid = np.ones(gt_boxes.shape[:2], bool)
    return int(match_fcos(square, np.float32([bounds]), gt_boxes, valid, radius=radius, convention=rule)[0, 0])


def test_ranges_are_open_in_detectron2_and_closed_in_mmdetection():
    box = [[36, 90, 110, 110]]  # 64 up
    assert fcos_of_one_point(box, "detectron2") == fcos_of_one_point(box, "detectron2", bounds=(64, 128)) == NEGATIVE
    assert fcos_of_one_point(box, "mmdet") == fcos_of_one_point(box, "mmdet", bounds=(64, 128)) == 0


def test_the_smallest_box_wins_and_in_detectron2_nearly_equal_ones_tie():
    boxes = [[80, 80, 120, 120], [80, 80, 119, 120], [90, 90, 110, 110.0]]
    assert [fcos_of_one_point(boxes[:2], rule) for rule in ("detectron2", "mmdet")] == [1, 1]
    assert [fcos_of_one_point(boxes, rule) for rule in ("detectron2", "mmdet")] == [2, 2]
    nearly = [[90, 90, 110, 110.1], [90, 90, 110, 110]]  # 402 and 400 square pixels
    assert [fcos_of_one_point(nearly, rule) for rule in ("detectron2", "mmdet")] == [0, 1]
    apart = [nearly[0], *[[0, 0, 1, 1]] * 20, nearly[1]]  # not in one chunk
    assert [fcos_of_one_point(apart, rule) for rule in ("detectron2", "mmdet")] == [0, 21]


def test_point_on_the_side_of_a_box_is_outside():
    for rule in ("detectron2", "mmdet"):
        assert fcos_of_one_point([[100, 90, 120, 110]], rule) == NEGATIVE
        assert fcos_of_one_point([[99.9, 90, 120, 110]], rule) == 0


def test_center_sampling_is_a_square_around_the_centre_within_the_box():
    wide = [[90, 60, 110, 139.9]]  # its centre is (100, 99.95)
    for offset, inside in ((0, True), (11.9, True), (12.1, False), (-11.9, True), (-12.2, False)):
        matched = fcos_of_one_point(wide, "detectron2", center=(100, 100 + offset), radius=1.5)
        assert (matched == 0) == inside
    assert fcos_of_one_point(wide, "mmdet", center=(110.1, 100), radius=1.5) == NEGATIVE


@pytest.mark.parametrize("rows", [0, 3])
def test_fcos_without_objects_is_all_negative(rows):
    squares, ranges = points(64, 64)
    none = np.zeros([2, rows], bool)
    matched = match_fcos(squares, ranges, np.zeros([2, rows, 4], np.float32), none, radius=1.5, convention="mmdet")
    np.testing.assert_array_equal(matched, np.full([2, len(squares)], NEGATIVE))


def test_unknown_fcos_convention_raises():
    squares, ranges = points(64, 64)
    with pytest.raises(ValueError, match="convention of match_fcos is 'adelai': choose 'detectron2' or 'mmdet'"):
        match_fcos(
            squares, ranges, np.zeros([1, 1, 4], np.float32), np.ones([1, 1], bool), radius=None, convention="adelai"
        )


@pytest.mark.parametrize("function", ["match_fcos", "covered"])
def test_memory_does_not_grow_with_the_number_of_objects(function):
    """No temporary has more than 16 numbers for a point of an image."""
    squares, ranges = points(256, 256)
    size = 2 * len(squares)

    @tf.function
    def traced(gt_boxes, valid):
        if function == "covered":
            return covered(squares, gt_boxes, valid, min_iof=0.5)
        return match_fcos(squares, ranges, gt_boxes, valid, radius=1.5, convention="detectron2")

    largest = {}
    for rows in (5, 1000):
        concrete = traced.get_concrete_function(tf.TensorSpec([2, rows, 4]), tf.TensorSpec([2, rows], tf.bool))
        graphs = [concrete.graph, *(function.graph for function in concrete.graph._functions.values())]
        assert len(graphs) > 1  # the loop's body is one
        shapes = [tensor.shape for graph in graphs for op in graph.get_operations() for tensor in op.outputs]
        of_points = [shape for shape in shapes if shape.rank and len(squares) in shape]
        largest[rows] = max(shape.num_elements() for shape in of_points)
    assert 8 * size <= largest[5] == largest[1000] <= 16 * size


# -- regions to ignore


def test_covered_is_intersection_over_the_anchor():
    anchors = np.float32([[0, 0, 10, 10], [0, 5, 10, 15], [0, 9, 10, 19], [40, 40, 41, 41]])
    regions = np.float32([[[0, 10, 20, 300], [0, 0, 0, 0], [30, 30, 60, 60]], [[0, 0, 300, 300]] * 3])
    is_region = np.array([[True, True, False], [False, False, False]])
    iof = np.array([0, 0.5, 0.9, 0])
    for bound in (0.0, 0.5, 0.89, 0.95):
        found = covered(anchors, regions, is_region, min_iof=bound).numpy()
        np.testing.assert_array_equal(found, [iof > bound, [False] * 4])


def test_last_of_many_regions_covers_an_anchor():
    regions = np.zeros([1, 50, 4], np.float32)
    regions[0, 49] = 0, 0, 8, 8
    assert covered(np.float32([[0, 0, 8, 8]]), regions, np.ones([1, 50], bool), min_iof=0.5).numpy().all()


def test_ignored_anchors_take_no_part_in_matching():
    """As in mmdetection: neither as positives nor as the best for an object, which then takes another anchor."""
    anchors = [[0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]]
    gt = np.float32([[[0, 0, 10, 10]]])
    rule = {**RULES["retinanet"], "ignored": np.array([[True, False, False]])}
    matched = match_iou(np.float32(anchors), gt, np.ones([1, 1], bool), **rule)
    np.testing.assert_array_equal(matched, [[IGNORE, 0, NEGATIVE]])
    rule["ignored"] = np.ones([1, 3], bool)
    np.testing.assert_array_equal(match_iou(np.float32(anchors), gt, np.ones([1, 1], bool), **rule), [[IGNORE] * 3])


def test_ignored_points_match_nothing(rng):
    squares, ranges = points(64, 64)
    gt = np.float32([[[10, 10, 50, 50]]])
    plain = match_fcos(squares, ranges, gt, np.ones([1, 1], bool), radius=None, convention="mmdet").numpy()
    ignored = rng.random(plain.shape) < 0.5
    matched = match_fcos(squares, ranges, gt, np.ones([1, 1], bool), radius=None, convention="mmdet", ignored=ignored)
    np.testing.assert_array_equal(matched, np.where(ignored, IGNORE, plain))
    assert (plain >= 0).any()


# -- parts


def crowded_batch():
    """Makes two images with two objects each, the second of them a crowd, and a row of padding."""
    boxes = np.float32([[[10, 10, 60, 50], [0, 0, 30, 30], [0, 0, 0, 0]], [[20, 5, 40, 60], [30, 30, 64, 64], [0] * 4]])
    return {
        "boxes": boxes,
        "class_ids": np.int32([[0, 1, -1], [2, 0, -1]]),
        "is_crowd": np.array([[False, True, False]] * 2),
    }


@pytest.mark.parametrize("ignore_crowd_iof", [None, 0.5])
def test_iou_matcher_passes_over_crowds_and_padding(ignore_crowd_iof):
    data, anchors = crowded_batch(), points(64, 64)[0]
    crowds = data["is_crowd"] & (data["class_ids"] >= 0)
    ignored = None if ignore_crowd_iof is None else covered(anchors, data["boxes"], crowds, min_iof=0.5)
    matched = IoUMatcher(0.3, 0.2, ignore_crowd_iof=ignore_crowd_iof)(anchors, data).numpy()
    rule = {"foreground_iou": 0.3, "background_iou": 0.2, "allow_low_quality_matches": True}
    valid = np.array([[True, False, False]] * 2)
    np.testing.assert_array_equal(matched, match_iou(anchors, data["boxes"], valid, ignored=ignored, **rule))
    assert set(matched[matched >= 0]) == {0}


def test_crowds_of_an_image_without_objects_cover_nothing():
    """Every anchor is background in mmdetection if there is nothing to match."""
    data = crowded_batch()
    data["is_crowd"][1] = True, True, False
    matched = IoUMatcher(ignore_crowd_iof=0.5)(points(64, 64)[0], data).numpy()
    assert (matched[0] == IGNORE).any() and (matched[1] == NEGATIVE).all()


@pytest.mark.parametrize("divisor", [1, 32])
def test_anchors_in_the_padding_of_a_batch_are_ignored(divisor):
    sizes = np.int32([[64, 96], [33, 40]])
    generator = AnchorGenerator(sizes=octave_sizes(), levels=("p3", "p4", "p5", "p6", "p7"))
    grids = {f"p{i}": (-(-64 // 2**i), -(-96 // 2**i)) for i in range(3, 8)}
    anchors = np.concatenate(list(generator(grids, (64, 96)).values()))
    cells = [  # y and x of the centre of each anchor, exactly
        (y * 2**i, x * 2**i)
        for i in range(3, 8)
        for y in range(grids[f"p{i}"][0])
        for x in range(grids[f"p{i}"][1])
        for _ in range(9)
    ]
    limits = -(-sizes // divisor) * divisor
    outside = (np.array(cells) >= limits[:, None]).any(-1)
    data = {**crowded_batch(), "image_size": sizes}
    plain = IoUMatcher(0.3, 0.2, allow_low_quality_matches=False)(anchors, data).numpy()
    matcher = IoUMatcher(0.3, 0.2, allow_low_quality_matches=False, padded_size_divisor=divisor)
    np.testing.assert_array_equal(matcher(anchors, data), np.where(outside, IGNORE, plain))
    assert not outside[0].any() and outside[1].any()


def test_fcos_matcher_knows_the_range_of_each_level():
    data = crowded_batch()
    grids = {f"p{i}": (-(-64 // 2**i), -(-64 // 2**i)) for i in range(3, 8)}
    squares, ranges = points(64, 64)
    matched = FCOSMatcher(convention="mmdet")(point_squares()(grids, (64, 64)), data).numpy()
    valid = np.array([[True, False, False]] * 2)
    expected = match_fcos(squares, ranges, data["boxes"], valid, radius=1.5, convention="mmdet")
    np.testing.assert_array_equal(matched, expected)
    assert (matched >= 0).any()
