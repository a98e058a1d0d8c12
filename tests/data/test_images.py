import contextlib
import importlib.util
import io
import itertools
import struct

import numpy as np
import pytest
import tensorflow as tf
from checkpoints import golden
from conftest import shared
from PIL import Image, ImageOps

from kerasdet.data import images, jpeg
from kerasdet.data.files import upright_size
from kerasdet.errors import UserError
from kerasdet.ops import resize as resize_ops

decode = tf.function(images.decode, input_signature=[tf.TensorSpec((), tf.string)])
orientation_of = tf.function(jpeg.exif_orientation, input_signature=[tf.TensorSpec((), tf.string)])


@tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((2,), tf.int32)])
def resize_pil(image, size):
    return resize_ops.resize(image, size, "pil")


def picture(rng, height=23, width=37):
    return Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height))


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(order, value, kind=3):
    magic = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    entries = struct.pack(order + "HHII", 0x010F, 2, 3, 0) + struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return b"Exif\0\0" + magic + struct.pack(order + "IH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientations_equal_pil(rng, order, value):
    encoded = encode(picture(rng), "JPEG", exif=tiff(order, value))
    assert orientation_of(encoded) == value
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode(encoded), upright)
    np.testing.assert_array_equal(images.decode(encoded, exif=False), Image.open(io.BytesIO(encoded)))


def test_exif_of_other_types_and_places(rng):
    assert orientation_of(encode(picture(rng), "JPEG", exif=tiff(">", 6, kind=4))) == 6
    assert orientation_of(encode(picture(rng), "JPEG", exif=tiff("<", 9))) == 1
    assert orientation_of(encode(picture(rng), "JPEG", exif=tiff("<", 0))) == 1
    assert orientation_of(encode(picture(rng), "JPEG", exif=tiff("<", 6), comment=b"x" * 9000)) == 6
    assert orientation_of(encode(picture(rng), "PNG")) == 1


def test_damaged_exif_gives_a_valid_orientation(rng):
    encoded = encode(picture(rng), "JPEG", exif=tiff(">", 6))
    for length in range(0, 120, 3):
        assert orientation_of(encoded[:length]) in (1, 6)
    for _ in range(100):
        damaged = bytearray(encoded)
        for position in rng.integers(2, 90, 4):
            damaged[position] = rng.integers(256)
        assert 1 <= orientation_of(bytes(damaged)) <= 8


@pytest.mark.parametrize(
    "kind, mode, options",
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "quality": 40}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "L", {}),
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("GIF", "P", {}),
    ],
)
def test_decode_equals_pil(rng, kind, mode, options):
    image = picture(rng)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (23, 37), dtype=np.uint8)))
    encoded = encode(image.convert(mode), kind, **options)
    np.testing.assert_array_equal(decode(encoded), Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_decode_keeps_upper_bits_and_first_frame(rng):
    gray = rng.integers(0, 65536, (6, 7), dtype=np.uint16)
    expected = np.repeat((gray >> 8)[..., None], 3, -1)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(gray), "PNG")), expected)
    first, second = picture(rng), picture(rng)
    encoded = encode(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(encoded), Image.open(io.BytesIO(encoded)).convert("RGB"))


def detectron2_size(height, width, shortest, longest):
    scale = shortest / min(height, width)
    new = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(new) > longest:
        shrink = longest / max(new)
        new = new[0] * shrink, new[1] * shrink
    return int(new[0] + 0.5), int(new[1] + 0.5)


def torchvision_size(height, width, shortest, longest):
    scale = min(shortest / min(height, width), longest / max(height, width))
    return int(height * scale), int(width * scale)


def mmdetection_size(height, width, shortest, longest):
    scale = min(longest / max(height, width), shortest / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


SIZE_RULES = {"detectron2": detectron2_size, "torchvision": torchvision_size, "mmdetection": mmdetection_size}


@pytest.mark.parametrize("rounding, rule", SIZE_RULES.items())
def test_shortest_edge_size_equals_the_source_rules(rng, rounding, rule):
    limits = [(800, 1333), (640, 1333), (512, 800), (320, 500)]
    cases = [(*size, *limits[i % 4]) for i, size in enumerate(rng.integers(1, 2001, (1500, 2)).tolist())]
    one = tf.TensorSpec((), tf.int32)

    @tf.function(input_signature=[one] * 4)
    def size_of(*case):
        return tf.stack(resize_ops.shortest_edge_size(*case, rounding))

    for case in cases:
        assert tuple(size_of(*case).numpy()) == rule(*case), case
    assert tuple(size_of(480, 640, 800, 1333).numpy()) == (800, 1066 if rounding == "torchvision" else 1067)


def test_shortest_edge_size_equals_detectron2():
    for *case, height, width in np.load(shared("reference/geometry.npz"))["resize_shortest_edge"].tolist():
        assert tuple(map(int, resize_ops.shortest_edge_size(*case, "detectron2"))) == (height, width)


@pytest.mark.parametrize("shortest, longest", [(800, 1333), (320, 500)])
def test_shortest_edge_size_equals_mmdetection(shortest, longest):
    reference = np.load(shared("reference/mmdet/cases/mmdet_resize.npz"))
    sizes = tf.transpose(reference["sizes_in"])  # heights and widths
    found = resize_ops.shortest_edge_size(sizes[0], sizes[1], shortest, longest, "mmdetection")
    np.testing.assert_array_equal(tf.stack(found, 1), reference[f"sizes_{longest}_{shortest}"])
    assert [int(x) for x in resize_ops.shortest_edge_size(757, 1514, 800, 1333, "mmdetection")] == [667, 1333]


def test_unknown_rounding_or_kernel_raises():
    with pytest.raises(ValueError, match="rounding"):
        resize_ops.shortest_edge_size(4, 4, 8, 8, "up")
    with pytest.raises(ValueError, match="kernel"):
        resize_ops.resize(np.zeros((2, 2, 3), np.uint8), (4, 4), "cubic")


def test_pil_kernel_equals_pil(rng):
    sizes = [(480, 640, 160, 213), (40, 53, 80, 107), (30, 30, 30, 61), (30, 30, 7, 30), (1, 9, 5, 2), (9, 9, 9, 9)]
    sizes += rng.integers(1, 150, (60, 4)).tolist()
    for height, width, new_height, new_width in sizes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        two_passes = Image.fromarray(image).resize((new_width, height), Image.BILINEAR)
        two_passes = two_passes.resize((new_width, new_height), Image.BILINEAR)
        np.testing.assert_array_equal(resize_pil(image, (new_height, new_width)), two_passes)


def test_pil_kernel_takes_batches_and_floats(rng):
    batch = rng.integers(0, 256, (2, 9, 11, 3), dtype=np.uint8)
    resized = resize_ops.resize(batch, (14, 5), "pil")
    np.testing.assert_array_equal(resized[1], resize_pil(batch[1], (14, 5)))
    np.testing.assert_array_equal(resize_ops.resize(batch.astype(np.float32), (14, 5), "pil"), resized)


@pytest.fixture(scope="module")
def opencv_linear():
    """OpenCV's resize in NumPy."""
    path = shared("reference/opencv_linear.py")
    spec = importlib.util.spec_from_file_location("opencv_linear", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((2,), tf.int32)])
def resize_opencv(image, size):
    return resize_ops.resize(image, size, "opencv")


def test_opencv_kernel_equals_opencv(rng, opencv_linear):
    sizes = [(250, 333, 320, 426), (480, 640, 800, 1067), (128, 160, 64, 80), (6, 10, 3, 5), (97, 131, 320, 432)]
    sizes += [(3, 5, 48, 80), (1, 7, 9, 63), (7, 1, 63, 9), (40, 30, 40, 31), (9, 9, 9, 9), (2, 2, 1, 1), (7, 5, 1, 1)]
    sizes += rng.integers(1, 200, (60, 4)).tolist()
    for height, width, new_height, new_width in sizes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = opencv_linear.resize(image, new_height, new_width)
        np.testing.assert_array_equal(resize_opencv(image, (new_height, new_width)), expected)


def test_resize_equals_mmdetections_images():
    reference = np.load(shared("reference/mmdet/cases/mmdet_resize.npz"))
    longest, shortest = reference["scale"]
    for index, (height, width) in enumerate(reference["shapes"]):
        image = golden.weights().image(height, width, seed=20 + index)
        size = tf.stack(resize_ops.shortest_edge_size(height, width, shortest, longest, "mmdetection"))
        np.testing.assert_array_equal(resize_opencv(image, size), reference[f"resized_{index}"])


@pytest.mark.parametrize("size", [(14, 5), (4, 6)])  # another size, exactly half of the size
def test_opencv_kernel_takes_batches_floats_and_static_shapes(rng, size):
    batch = rng.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    resized = resize_ops.resize(batch, size, "opencv")
    np.testing.assert_array_equal(resized[1], resize_opencv(batch[1], size))
    np.testing.assert_array_equal(resize_ops.resize(batch + np.float32(0.4), size, "opencv"), resized)
    traced = tf.function(lambda: resize_ops.resize(batch, size, "opencv"))
    np.testing.assert_array_equal(traced(), resized)


def test_opencv_kernel_traces_odd_static_shapes(rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    traced = tf.function(lambda: resize_ops.resize(image, (3, 4), "opencv"))
    np.testing.assert_array_equal(traced(), resize_opencv(image, (3, 4)))


def test_bilinear_kernel_samples_half_pixel_centres(rng):
    image = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    for height, width in [(12, 20), (4, 5), (7, 3)]:
        expected = np.zeros((height, width, 3))
        for i, j in itertools.product(range(height), range(width)):
            y, x = max((i + 0.5) * 7 / height - 0.5, 0), max((j + 0.5) * 9 / width - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 6), min(left + 1, 8)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            expected[i, j] = upper * (1 - (y - top)) + lower * (y - top)
        np.testing.assert_allclose(resize_ops.resize(image, (height, width), "bilinear"), expected, atol=1e-3)


def test_pad_to_adds_zeros_at_the_bottom_right():
    padded = resize_ops.pad_to(np.ones((2, 3, 3), np.uint8), 4, 5).numpy()
    assert padded.shape == (4, 5, 3) and padded[:2, :3].all() and padded.sum() == 18


def rgb(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize(
    "kind, mode, options",
    [
        ("BMP", "P", {}),
        ("BMP", "1", {}),
        ("BMP", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"quality": 60}),
        ("GIF", "P", {"transparency": 0}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("MPO", "RGB", {}),
    ],
)
def test_read_and_pipelines_give_pils_pixels(rng, tmp_path, kind, mode, options):
    encoded = encode(picture(rng).convert(mode), kind, **options)
    path = tmp_path / "image.any"
    path.write_bytes(encoded)
    np.testing.assert_array_equal(images.read(path), rgb(encoded))
    by_pil = tf.constant(images.inspect(encoded).by_pil)
    files = tf.data.Dataset.from_tensors(str(path)).map(
        lambda name: images.load(tf.io.read_file(name), tf.constant(True), by_pil)
    )
    np.testing.assert_array_equal(next(iter(files)), rgb(encoded))


def test_graphs_look_up_the_palette_of_a_bmp(rng):
    for colours in (2, 16, 256):
        encoded = encode(picture(rng).quantize(colours), "BMP")
        np.testing.assert_array_equal(decode(encoded), rgb(encoded))


@pytest.mark.parametrize("kind,options", [("WEBP", {"lossless": True}), ("PNG", {"dpi": (72, 72)})])
def test_exif_of_other_formats_applies(rng, tmp_path, kind, options):
    path = tmp_path / f"turned.{kind.lower()}"
    path.write_bytes(encode(picture(rng), kind, exif=tiff("<", 6), **options))
    assert images.inspect(path.read_bytes()).upright == (37, 23)
    np.testing.assert_array_equal(images.read(path), ImageOps.exif_transpose(Image.open(path)))
    assert upright_size(path) == (37, 23)


def test_reading_files_with_exif_does_not_retrace(rng, caplog):
    for value in (1, 3, 6, 8) * 4:
        images.inspect(encode(picture(rng), "JPEG", exif=tiff("<", value)))
    assert "retracing" not in caplog.text


def photo(rng, height=160, width=240):
    """Makes a picture with detail everywhere, so that its JPEG has data for every part of it."""
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8))


def damages(encoded, rng):
    """Yields damaged copies of a JPEG whose header and end stay whole."""
    middle, noise = len(encoded) // 2, rng.integers(0, 256, 800, dtype=np.uint8).tobytes()
    yield "zeros", encoded[:middle] + bytes(2000) + encoded[middle + 2000 :]
    yield "left out", encoded[: len(encoded) // 3] + encoded[middle:]
    yield "noise", encoded[:middle] + noise + encoded[middle + 800 :]
    yield "cut before its end", encoded[:middle] + b"\xff\xd9"


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def is_damaged(encoded):
    return jpeg.is_damaged(encoded, jpeg.decode(encoded))


JPEGS = [
    {},
    {"subsampling": 0},
    {"optimize": True},
    {"quality": 40},
    {"progressive": True},
    {"restart_marker_blocks": 9},
]


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_jpegs_damaged_in_the_middle_are_refused(rng, tmp_path, options):
    encoded = encode(photo(rng), "JPEG", **options)
    assert not is_damaged(encoded)
    path = tmp_path / "damaged.jpg"
    for _, damaged in damages(encoded, rng):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"damaged\.jpg cannot be read as an image: it (is damaged|cannot be decoded) \("
        ):
            images.read(path)
        # Graphs see only libjpeg's pixels, and progressive files keep a blurred picture
        if "progressive" not in options:
            with contextlib.suppress(tf.errors.InvalidArgumentError):  # the decoder itself reports some damage
                assert is_damaged(damaged)


def test_whole_jpegs_with_unusual_ends_are_decoded(rng, tmp_path):
    gray_end = np.asarray(photo(rng)).copy()
    gray_end[-40:, -60:] = 128
    cases = {
        "gray corner": encode(Image.fromarray(gray_end), "JPEG", subsampling=0),
        "all gray": encode(Image.new("RGB", (50, 40), (128, 128, 128)), "JPEG"),
        "motion photo": encode(photo(rng), "JPEG") + rng.integers(0, 256, 20000, dtype=np.uint8).tobytes(),
        "thumbnail": encode(photo(rng), "JPEG", exif=tiff("<", 1) + encode(picture(rng), "JPEG")),
        "CMYK": encode(photo(rng).convert("CMYK"), "JPEG"),
        "gray": encode(photo(rng).convert("L"), "JPEG"),
        "long profile": encode(photo(rng), "JPEG", icc_profile=rng.integers(0, 256, 90000, dtype=np.uint8).tobytes()),
        "one pixel": encode(Image.new("RGB", (1, 1)), "JPEG"),
        "few bytes before the end": encode(photo(rng), "JPEG")[:-2] + b"\0\0\xff\xd9",
    }
    for name, encoded in cases.items():
        path = tmp_path / "whole.jpg"
        path.write_bytes(encoded)
        np.testing.assert_array_equal(images.read(path), rgb(encoded), err_msg=name)
        assert not is_damaged(encoded), name


def test_damaged_or_foreign_files_are_named(rng, tmp_path):
    cases = {
        "is ICO; convert it": encode(picture(rng), "ICO"),
        "is a TIFF with 32 bits": encode(picture(rng).convert("F"), "TIFF"),
        "is not a JPEG, PNG, BMP, GIF, WebP or TIFF file": b"hello",
        "is truncated": encode(photo(rng), "JPEG")[:-300],
        "cannot be decoded": encode(picture(rng), "PNG")[:-20],
        "cannot be decoded .*": encode(picture(rng), "WEBP")[:60],
    }
    for message, content in cases.items():
        path = tmp_path / "bad.img"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"bad\.img cannot be read as an image: it {message}"):
            images.read(path)
    with pytest.raises(FileNotFoundError, match="none"):
        images.read(tmp_path / "none.jpg")


def test_tiff_files_have_pillows_pixels(rng, tmp_path):
    image, path = picture(rng), tmp_path / "a.tif"
    deep = rng.integers(0, 1 << 16, (23, 37), dtype=np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    cases = {
        "RGB": (encode(image, "TIFF", compression="tiff_lzw"), np.asarray(image)),
        "gray": (encode(image.convert("L"), "TIFF"), np.asarray(image.convert("L").convert("RGB"))),
        "BigTIFF": (encode(image, "TIFF", big_tiff=True), np.asarray(image)),
        "CMYK": (encode(image.convert("CMYK"), "TIFF"), np.asarray(image.convert("CMYK").convert("RGB"))),
        "16 bits": (encode(Image.fromarray(deep), "TIFF"), np.repeat(deep[..., None] >> 8, 3, 2)),
        "first page": (encode(image, "TIFF", save_all=True, append_images=[picture(rng)]), np.asarray(image)),
        "turned": (encode(image, "TIFF", exif=turned), np.rot90(np.asarray(image), -1)),
    }
    for name, (encoded, expected) in cases.items():
        path.write_bytes(encoded)
        np.testing.assert_array_equal(images.read(path), expected, err_msg=name)
        info = images.inspect(encoded)
        assert info.by_pil and info.upright == expected.shape[:2], name
