"""Tests drawings pixel by pixel."""

import numpy as np
import pytest

from kerasdet.visualize import PALETTE, colour, draw_boxes, draw_curve, grid

GREY = 128


@pytest.fixture
def image():
    return np.full((240, 320, 3), GREY, np.uint8)


def _changed(before, after):
    """Returns which pixels differ, (H, W) bool."""
    return (before != after).any(axis=-1)


def _is(picture, rgb):
    return (picture == np.array(rgb, np.uint8)).all(axis=-1)


def _extent(mask):
    rows, columns = np.nonzero(mask)
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def test_draw_boxes_changes_only_the_frame_in_the_class_colour(image):
    original = image.copy()
    drawn = draw_boxes(image, np.array([[50.0, 60.0, 150.0, 200.0]]), class_ids=[3])
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert np.array_equal(image, original), "the input image is unchanged"
    for y, x in [(50, 60), (50, 199), (149, 60), (149, 199), (50, 130), (149, 130), (100, 60), (100, 199)]:
        assert tuple(drawn[y, x]) == PALETTE[3]
    near = np.zeros(image.shape[:2], bool)
    near[48:152, 58:202] = True
    near[53:147, 63:197] = False
    assert not _changed(image, drawn)[~near].any()


def test_no_boxes_return_a_copy(image):
    for boxes in (np.zeros((0, 4)), []):
        drawn = draw_boxes(image, boxes, [], [], [], masks=[], keypoints=[])
        assert np.array_equal(drawn, image)
        assert drawn is not image


def test_padding_is_not_drawn(image):
    drawn = draw_boxes(image, np.zeros((2, 4)), ["a", "b"], [0.0, 0.0], [-1, -1])
    assert np.array_equal(drawn, image)


@pytest.mark.parametrize(
    "box", [(-50, -60, 80, 90), (200, 250, 900, 900), (-10, -10, 999, 999), (-90, -90, -20, -20), (500, 10, 600, 60)]
)
def test_boxes_beyond_the_image_are_clipped(image, box):
    drawn = draw_boxes(image, np.array([box], float), class_ids=[0])
    inside = box[0] < 240 and box[1] < 320 and box[2] > 0 and box[3] > 0
    assert _is(drawn, PALETTE[0]).any() == inside
    assert draw_boxes(image, np.array([box], float), ["name"], [0.5], [0]).shape == image.shape


def test_empty_box_is_visible(image):
    drawn = draw_boxes(image, np.array([[100.0, 100.0, 100.0, 100.0]]), class_ids=[1])
    assert tuple(drawn[100, 100]) == PALETTE[1]


def test_highest_score_is_on_top(image):
    boxes = np.array([[50.0, 50.0, 150.0, 150.0]] * 2)
    for scores, top in (([0.9, 0.2], 0), ([0.2, 0.9], 1)):
        frame = draw_boxes(image, boxes, scores=scores, class_ids=[0, 1])[145:150, 60:140]
        assert _is(frame, PALETTE[top]).any()
        assert not _is(frame, PALETTE[1 - top]).any()


def _letters(image, box):
    """Returns the extent of a tag's black letters, and their number of pixels."""
    dark = (draw_boxes(image, np.array([box], float), ["platelets"]) < 30).all(axis=-1)
    return _extent(dark), dark.sum()


def test_tag_is_above_the_box_and_inside_the_image(image):
    (top, left, bottom, right), count = _letters(image, (100, 100, 180, 220))
    assert 80 < top < bottom <= 100 <= left < right < 220
    for box in [(0, 0, 60, 60), (0, 290, 60, 320), (200, 300, 240, 320), (0, 0, 240, 320), (-80, -80, 20, 20)]:
        (y1, x1, y2, x2), there = _letters(image, box)
        assert (y2 - y1, x2 - x1, there) == (bottom - top, right - left, count), "the whole word is visible"


def test_tags_of_equal_boxes_do_not_overlap(image):
    boxes = np.array([[100.0, 100.0, 180.0, 220.0]] * 3)
    drawn = draw_boxes(image, boxes, ["cat", "cat", "cat"], class_ids=[0, 1, 2])
    one = [_is(draw_boxes(image, boxes[:1], ["cat"], class_ids=[k]), PALETTE[k]) for k in range(3)]
    frame = [_is(draw_boxes(image, boxes[:1], class_ids=[k]), PALETTE[k]) for k in range(3)]
    for k in range(3):
        tag = one[k].sum() - frame[k].sum()
        assert _is(drawn, PALETTE[k]).sum() >= 0.9 * tag


def test_tag_shows_name_and_score(image):
    box = np.array([[100.0, 50.0, 200.0, 300.0]])
    named = draw_boxes(image, box, ["cat 0.87"])
    assert np.array_equal(draw_boxes(image, box, ["cat"], [0.871]), named)
    assert not np.array_equal(draw_boxes(image, box, ["cat"], [0.3]), named)


def test_long_name_is_truncated_to_the_image():
    image = np.full((60, 80, 3), GREY, np.uint8)
    drawn = draw_boxes(image, np.array([[20.0, 20.0, 50.0, 60.0]]), ["a name much longer than the picture is wide"])
    assert drawn.shape == image.shape
    assert _is(drawn[:, 70:], PALETTE[0]).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (12, 12)])
def test_tiny_images_are_drawn(size):
    image = np.zeros((*size, 3), np.uint8)
    assert draw_boxes(image, np.array([[0.0, 0.0, *size]]), ["name"], [1.0]).shape == image.shape


def test_text_contrasts_with_every_tag(image):
    def luminance(rgb):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(rgb) / 255]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    for k in range(30):
        boxes = np.array([[100.0, 100.0, 180.0, 220.0]])
        drawn, plain = draw_boxes(image, boxes, ["MMMM"], class_ids=[k]), draw_boxes(image, boxes, class_ids=[k])
        tag = drawn[_changed(drawn, plain)]
        ratios = [(luminance(t) + 0.05) / (luminance(colour(k)) + 0.05) for t in ((0, 0, 0), (255, 255, 255))]
        text = max(((0, 0, 0), (255, 255, 255)), key=lambda rgb: _is(tag, rgb).sum())
        ratio = ratios[0] if text == (0, 0, 0) else ratios[1]
        assert max(ratio, 1 / ratio) >= 4.5


def test_class_colours_are_distinct():
    colours = np.array([colour(k) for k in range(200)])
    assert colours.min() >= 0 and colours.max() <= 255
    assert len({tuple(c) for c in colours.tolist()}) == 200
    first = colours[:12].astype(float)
    distances = np.linalg.norm(first[:, None] - first, axis=-1)[np.triu_indices(12, 1)]
    assert distances.min() > 40


def test_mask_tints_its_pixels_only(image):
    masks = np.zeros((1, 240, 320), bool)
    masks[0, 80:120, 100:160] = True
    drawn = draw_boxes(image, np.array([[60.0, 80.0, 140.0, 180.0]]), class_ids=[2], masks=masks)
    tinted = drawn[90:110, 110:150].reshape(-1, 3)
    expected = 0.6 * GREY + 0.4 * np.array(PALETTE[2])
    assert np.abs(tinted - expected).max() <= 2
    assert tuple(drawn[70, 130]) == (GREY,) * 3, "inside the box, outside the mask"


def test_keypoints_and_skeleton_are_drawn(image):
    points = np.array([[[60.0, 60.0, 2], [60.0, 160.0, 1], [160.0, 160.0, 0]]])
    box = np.array([[40.0, 40.0, 200.0, 200.0]])
    drawn = draw_boxes(image, box, class_ids=[4], keypoints=points, skeleton=[(0, 1), (1, 2)])
    assert tuple(drawn[60, 60]) == colour(0)
    assert tuple(drawn[60, 160]) == colour(1)
    assert _changed(image, drawn)[60, 110], "the line between both keypoints"
    assert not _changed(image, drawn)[100:190, 100:190].any(), "the unlabelled third keypoint has no line"


def test_scale_enlarges_image_and_boxes(image):
    drawn = draw_boxes(image, np.array([[50.0, 60.0, 150.0, 200.0]]), class_ids=[0], scale=3)
    assert drawn.shape == (720, 960, 3)
    assert _extent(_is(drawn, PALETTE[0])) == (150, 180, 450, 600)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((240, 320), np.uint8),
        np.zeros((240, 320, 1), np.uint8),
        np.zeros((240, 320, 4), np.uint8),
        np.zeros((240, 320, 3), np.float32),
        [[0]],
    ],
)
def test_invalid_image_raises(wrong):
    with pytest.raises(ValueError, match=r"image is .*: expected a NumPy array \(H, W, 3\)"):
        draw_boxes(wrong, np.zeros((1, 4)))
    with pytest.raises(ValueError, match="image is"):
        grid([wrong], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": np.zeros((2, 5))}, r"expected numbers of shape \(N, 4\)"),
        ({"boxes": np.zeros(4)}, "boxes"),
        ({"boxes": [["a", "b", "c", "d"]]}, "boxes"),
        ({"boxes": [[0, 0, np.nan, 1]]}, "finite"),
        ({"labels": "ab"}, "labels is the string 'ab': expected a list"),
        ({"labels": ["a"]}, "labels has 1 entries for 2 boxes"),
        ({"labels": "ab"}, "labels"),
        ({"scores": [0.1, 0.2, 0.3]}, "scores"),
        ({"class_ids": [1]}, "class_ids"),
        ({"masks": np.zeros((2, 10, 10), bool)}, "masks has the shape"),
        ({"keypoints": np.zeros((2, 4, 2))}, "keypoints has the shape"),
        ({"keypoints": np.zeros((2, 4, 3)), "skeleton": [(1, 4)]}, "indices from 0 to 3"),
        ({"scale": 0}, "scale"),
    ],
)
def test_invalid_arguments_raise(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_boxes(image, **({"boxes": np.zeros((2, 4))} | arguments))


def test_grid_shows_every_image():
    pictures = [np.full((20 + 5 * i, 30, 3), 40 * i + 10, np.uint8) for i in range(3)]
    tiled = grid(pictures, 2)
    for picture in pictures:
        cell = _is(tiled, picture[0, 0])
        assert cell.sum() == picture.shape[0] * picture.shape[1]
        top, left, bottom, right = _extent(cell)
        assert np.array_equal(tiled[top:bottom, left:right], picture)
    firsts = [_extent(_is(tiled, p[0, 0])) for p in pictures]
    assert firsts[0][1] == firsts[2][1] < firsts[1][1]
    assert firsts[0][2] < firsts[2][0]
    assert tuple(tiled[0, 0]) == (255, 255, 255)


def test_grid_titles_are_above_the_images():
    pictures = [np.zeros((50, 100, 3), np.uint8)] * 2
    plain, titled = grid(pictures, 2), grid(pictures, 2, titles=["truth", "prediction"])
    extra = titled.shape[0] - plain.shape[0]
    assert extra > 10
    assert np.array_equal(titled[extra:], plain)
    assert (titled[:extra] < 100).any()


def test_invalid_grid_arguments_raise():
    with pytest.raises(ValueError, match="expected at least one of each"):
        grid([], 2)
    with pytest.raises(ValueError, match="titles"):
        grid([np.zeros((4, 4, 3), np.uint8)], 2, titles=["one"])


def _chart(series, **options):
    return draw_curve(series, **({"title": "Loss", "x_label": "step", "y_label": "value"} | options))


def test_curve_passes_through_its_points():
    rising = _chart({"a": [(i, i / 100) for i in range(101)]}, size=(640, 400))
    assert rising.shape == (400, 640, 3)
    assert rising.dtype == np.uint8
    rows, columns = np.nonzero(_is(rising, colour(0)))
    assert np.corrcoef(rows, columns)[0, 1] < -0.999
    falling = _chart({"a": [(i, -i) for i in range(101)]})
    rows, columns = np.nonzero(_is(falling, colour(0)))
    assert np.corrcoef(rows, columns)[0, 1] > 0.999
    assert np.ptp(columns) > 450 and np.ptp(rows) > 250


def test_every_series_has_a_colour_and_a_legend_entry():
    flat = {name: [(0, k), (10, k)] for k, name in enumerate(("a", "b", "c"))}
    chart = _chart(flat)
    heights = [np.bincount(np.nonzero(_is(chart, colour(k)))[0]).argmax() for k in range(3)]
    assert heights[0] > heights[1] > heights[2]
    assert all(_is(chart, colour(k)).sum(axis=1).astype(bool).sum() > 3 for k in range(3))


def test_non_finite_points_leave_a_gap():
    chart = _chart({"a": [(0, 1), (4, 1), (5, float("nan")), (6, 1), (10, 1)]})
    columns = np.nonzero(_is(chart, colour(0)).any(axis=0))[0]
    assert np.diff(columns).max() > 50


@pytest.mark.parametrize(
    "points",
    [
        [(5, 5)],
        [(0, 0), (0, 0)],
        [(0, -3), (1, -3)],
        [(0, 1e-9), (1, 3e-9)],
        [(0, 1e9), (1e7, 4e12)],
        [(1e6, 1), (1e6 + 1, 2)],
    ],
)
def test_curve_handles_any_range(points):
    assert _is(_chart({"a": points}), colour(0)).any()


def test_invalid_curve_arguments_raise():
    with pytest.raises(ValueError, match="'Loss' has no finite point"):
        _chart({"a": [], "b": [(0, float("nan"))]})
    with pytest.raises(ValueError, match="200 x 150"):
        _chart({"a": [(0, 1)]}, size=(50, 50))
