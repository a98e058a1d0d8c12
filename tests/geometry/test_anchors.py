import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.geometry.anchors import AnchorGenerator, octave_sizes, point_squares

YXYX = [1, 0, 3, 2]
IMAGE_SIZE = (192, 256)
GRIDS = {"p3": (24, 32), "p4": (12, 16), "p5": (6, 8), "p6": (3, 4), "p7": (2, 2)}


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_equals_detectron2(offset):
    with np.load(shared("reference/geometry.npz")) as golden:
        anchors = AnchorGenerator(offset=offset)(GRIDS, IMAGE_SIZE)
        assert list(anchors) == list(GRIDS)
        for index, level in enumerate(GRIDS):
            expected = golden[f"detectron2_retinanet_anchors_offset{offset}_level{index}_xyxy"][:, YXYX]
            assert anchors[level].dtype == tf.float32
            np.testing.assert_allclose(anchors[level], expected, atol=1e-4)


def test_equals_torchvision():
    generator = AnchorGenerator(
        sizes=tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)),
        round_corners=True,
        ratios_first=True,
        strides_from_image=True,
    )
    anchors = np.concatenate(list(generator(GRIDS, IMAGE_SIZE).values()))
    with np.load(shared("reference/geometry.npz")) as golden:
        np.testing.assert_array_equal(anchors, golden["torchvision_retinanet_anchors_xyxy"][:, YXYX])


def test_octave_sizes():
    sizes = octave_sizes(16, 2, 3)
    np.testing.assert_allclose(sizes, [[16, 16 * 2**0.5], [32, 32 * 2**0.5], [64, 64 * 2**0.5]])


@pytest.mark.parametrize("ratios_first", [False, True])
def test_equals_nested_loops(ratios_first):
    sizes, ratios = (10.0, 24.0), (0.5, 1.0, 3.0)
    generator = AnchorGenerator((sizes,), ratios, ("p3",), offset=0.25, ratios_first=ratios_first)
    pairs = [(s, r) for r in ratios for s in sizes] if ratios_first else [(s, r) for s in sizes for r in ratios]
    expected = []
    for row in range(3):
        for column in range(2):
            for size, ratio in pairs:
                y, x = (row + 0.25) * 8, (column + 0.25) * 8
                height, width = size * ratio**0.5, size / ratio**0.5
                expected.append([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
    np.testing.assert_allclose(generator({"p3": (3, 2)}, (24, 16))["p3"], expected, atol=1e-4)


def test_aspect_ratio_is_height_over_width_at_equal_area():
    anchors = AnchorGenerator(((32.0,),), (0.25, 4.0), ("p3",)).cell_anchors("p3")
    height, width = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    np.testing.assert_allclose(height, [16, 64], rtol=1e-6)
    np.testing.assert_allclose(height * width, 32**2, rtol=1e-6)


def test_ratios_of_each_level():
    generator = AnchorGenerator(((8.0,), (16.0,)), ((1.0, 2.0), (0.5, 4.0)), ("p3", "p4"))
    assert generator.num_anchors == 2
    anchors = generator({"p3": (1, 1), "p4": (1, 1)}, (16, 16))
    for level, ratios in {"p3": (1, 2), "p4": (0.5, 4)}.items():
        y1, x1, y2, x2 = anchors[level].numpy().T
        np.testing.assert_allclose((y2 - y1) / (x2 - x1), ratios, rtol=1e-5)


def test_offset_moves_anchors_by_a_fraction_of_the_stride():
    grids = {"p4": (2, 3)}
    plain = AnchorGenerator(((32.0,),), levels=("p4",))(grids, (32, 48))["p4"]
    middle = AnchorGenerator(((32.0,),), levels=("p4",), offset=0.5)(grids, (32, 48))["p4"]
    np.testing.assert_allclose(middle - plain, 8, atol=1e-5)


def test_strides_from_the_image_round_down():
    generator = AnchorGenerator(((32.0,),), (1.0,), ("p7",), strides_from_image=True)
    centers = generator({"p7": (2, 2)}, (192, 257))["p7"].numpy().reshape(2, 2, 4)
    np.testing.assert_array_equal(centers[1, 0, 0] - centers[0, 0, 0], 96)
    np.testing.assert_array_equal(centers[0, 1, 1] - centers[0, 0, 1], 128)  # rounded down


def test_tensor_sizes_in_a_graph_equal_python_sizes():
    generator = AnchorGenerator(strides_from_image=True)

    @tf.function(input_signature=[tf.TensorSpec([5, 2], tf.int32), tf.TensorSpec([2], tf.int32)])
    def function(grids, image_size):
        return generator(
            {level: tuple(tf.unstack(grid)) for level, grid in zip(GRIDS, tf.unstack(grids), strict=True)},
            tuple(tf.unstack(image_size)),
        )

    expected = generator(GRIDS, IMAGE_SIZE)
    actual = function(list(GRIDS.values()), IMAGE_SIZE)
    for level in GRIDS:
        np.testing.assert_array_equal(actual[level], expected[level])


def test_points_are_squares_around_the_middle_of_cells():
    squares = point_squares(("p3", "p5"))({"p3": (3, 2), "p5": (1, 1)}, (24, 16))
    np.testing.assert_array_equal(squares["p3"][:3], [[0, 0, 8, 8], [0, 8, 8, 16], [8, 0, 16, 8]])
    np.testing.assert_array_equal(squares["p5"], [[0, 0, 32, 32]])


def test_different_numbers_of_sizes_and_levels_raise():
    with pytest.raises(ValueError, match="sizes and aspect ratios for each of its 5 levels"):
        AnchorGenerator(sizes=((32.0,), (64.0,)))
    with pytest.raises(ValueError, match="2 tuples of aspect ratios"):
        AnchorGenerator(aspect_ratios=((1.0,), (2.0,)))


def test_different_numbers_of_anchors_on_levels_raise():
    generator = AnchorGenerator(((8.0,), (8.0, 16.0)), (1.0,), ("p3", "p4"))
    with pytest.raises(ValueError, match="expected the same number on every level"):
        _ = generator.num_anchors


def test_config_round_trip():
    generator = AnchorGenerator(
        sizes=[[8.0, 9.0]], aspect_ratios=[[1.0, 3.0]], levels=["p4"], offset=0.5, round_corners=True, ratios_first=True
    )
    clone = AnchorGenerator.from_config(generator.get_config())
    assert clone.get_config() == generator.get_config()
    np.testing.assert_array_equal(clone({"p4": (2, 2)}, (32, 32))["p4"], generator({"p4": (2, 2)}, (32, 32))["p4"])
