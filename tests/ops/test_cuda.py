"""Tests the GPU kernels: all are compiled, and they handle the cases that only GPUs have.

They run as C++ on an emulated GPU unless TensorFlow has a real one; see conftest.py.
"""

import ctypes
import importlib.util
import math
import re
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import without_tensorflow
from ops import emulated
from ops.test_agreement import wild_boxes

from kerasdet import ops
from kerasdet.ops import dispatch

ARCHITECTURES = {70, 75, 80, 86, 89, 90, 100, 120}


def on_gpu(test):
    """Marks a test to run on the GPU kernels."""
    test = pytest.mark.usefixtures("implementation")(test)
    return pytest.mark.parametrize("implementation", ["gpu"], indirect=True)(test)


@pytest.fixture
def needs_emulation():
    if emulated.library() is None:
        pytest.skip("no C++ compiler is installed")


def kernel_names():
    sources = (without_tensorflow.FOLDER / "cuda").glob("*.cu")
    return {name for path in sources for name in re.findall(r"^KERASDET_KERNEL\((\w+)", path.read_text(), re.MULTILINE)}


def embedded_images(content):
    """Returns the machine code of each architecture in a library: ELF files of machine type 190."""
    images = {}
    for match in re.finditer(rb"\x7fELF\x02\x01", content):
        header = content[match.start() : match.start() + 64]
        machine, sections_at, flags = struct.unpack("<18xH20xQI12x", header)
        entry, count = struct.unpack_from("<HH", header, 58)
        if machine == 190:
            number = flags >> 8 & 0xFF if header[8] >= 8 else flags & 0xFF  # CUDA 13 moved it
            images[number] = content[match.start() : match.start() + sections_at + entry * count]
    return images


HAS_NVRTC = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cuda_nvrtc"))


@pytest.mark.skipif(not HAS_NVRTC, reason="NVRTC is not installed")
def test_every_kernel_is_compiled_for_every_architecture():
    """Also asserts that the library was built with NVRTC at all."""
    assert len(kernel_names()) > 10
    content = without_tensorflow.SHIPPED.read_bytes()
    images = embedded_images(content)
    assert set(images) == ARCHITECTURES
    for number, image in images.items():
        for name in kernel_names():
            assert f".text.{name}\0".encode() in image, f"{name} is not there for {number}"
    (ptx,) = re.findall(rb"\.version 7\.0\n\.target sm_70\n[^\0]+\0", content)
    assert kernel_names() == {name.decode() for name in re.findall(rb"\.entry (\w+)\(", ptx)}
    assert b"used_bytes_mask" not in ptx  # a driver of that version does not know it


HIDDEN = """
import importlib.util, runpy, sys
importlib.util.find_spec = lambda name: None
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def test_build_without_nvrtc_has_only_cpu_kernels_and_warns(tmp_path):
    script = without_tensorflow.FOLDER / "cuda" / "compile.py"
    run = subprocess.run([sys.executable, "-c", HIDDEN, tmp_path, script], capture_output=True, text=True, check=True)
    if run.stdout:  # else the system has NVRTC
        assert run.stdout.count("\n") == 1 and "pip install nvidia-cuda-nvrtc-cu12" in run.stdout
        assert ".incbin" not in (tmp_path / "images.S").read_text()


REGISTERED = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])  # stands in for a driver
from tensorflow.python.framework import kernels
from kerasdet.ops import dispatch
dispatch.raw_ops()
for op in ("Nms", "RoiAlign", "RoiAlignGrad", "DeformColumns", "DeformColumnsGrad"):
    devices = [kernel.device_type for kernel in kernels.get_registered_kernels_for_op(f"Kerasdet>{op}").kernel]
    print(op, devices.count("GPU"), devices.count("CPU"))
"""


@pytest.mark.skipif(not HAS_NVRTC, reason="NVRTC is not installed")
def test_gpu_kernels_are_registered_if_there_is_a_driver(needs_emulation):
    driver = str(without_tensorflow.STAND_INS / "libcuda.so.1")
    run = subprocess.run([sys.executable, "-c", REGISTERED, driver], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "Nms 1 1",
        "RoiAlign 3 3",
        "RoiAlignGrad 3 3",
        "DeformColumns 1 1",
        "DeformColumnsGrad 1 1",
    ]


WITHOUT_DRIVER = """
import without_tensorflow
library = without_tensorflow.open_shipped()
library.op("Nms", "CPU", max_detections=1, iou_threshold=0.5, score_threshold=0.0, by_class=False)
library.op("Nms", "GPU")
"""


@pytest.mark.skipif(bool(emulated.GPUS), reason="a CUDA driver is installed")
def test_missing_driver_raises_without_tensorflow(needs_emulation):
    code = f"import sys; sys.path.insert(0, {str(without_tensorflow.FOLDER)!r}){WITHOUT_DRIVER}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = "ValueError: There is no kernel of Kerasdet>Nms for a GPU: the library finds no libcuda.so.1, or was built"
    assert run.stderr.splitlines()[-1].startswith(line)


@pytest.mark.skipif(dispatch.raw_ops() is None, reason="the compiled ops are not built here")
def test_gpu_without_kernels_uses_stock_ops(monkeypatch, caplog):
    if emulated.GPUS:
        pytest.skip("the library has kernels for this GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    dispatch.lacks_gpu_kernels.cache_clear()
    try:
        assert dispatch.compiled_ops() is None and dispatch.compiled_ops() is None
        assert dispatch.compiled_ops(for_gpus=False) is dispatch.raw_ops()
        with ops.implementation("compiled"):
            assert dispatch.compiled_ops() is dispatch.raw_ops()
    finally:
        dispatch.lacks_gpu_kernels.cache_clear()
    assert len(caplog.records) == 1 and "On GPUs, TensorFlow's ops are used" in caplog.text


@pytest.mark.skipif(dispatch.raw_ops() is None, reason="the compiled ops are not built here")
@pytest.mark.parametrize(("capability", "uses_stock_ops"), [((6, 1), True), ((7, 0), False), (None, False)])
def test_gpu_older_than_the_kernels_uses_stock_ops(monkeypatch, caplog, capability, uses_stock_ops):
    gpu = SimpleNamespace(name="GPU:0")
    details = {} if capability is None else {"compute_capability": capability}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [gpu])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    monkeypatch.setattr(dispatch, "kernel_devices", lambda op: {"GPU"})
    dispatch.lacks_gpu_kernels.cache_clear()
    try:
        assert (dispatch.compiled_ops() is None) == uses_stock_ops
    finally:
        dispatch.lacks_gpu_kernels.cache_clear()
    assert ("no kernels for a GPU as old as GPU:0" in caplog.text) == uses_stock_ops


@pytest.mark.skipif(bool(emulated.GPUS), reason="TensorFlow has loaded the real driver")
@pytest.mark.parametrize(
    ("gpu", "image"), [(70, "sm_70"), (75, "sm_70"), (80, "sm_80"), (89, "sm_86"), (90, "sm_90"), (120, "compute_70")]
)
def test_gpu_loads_the_newest_machine_code_that_it_runs(needs_emulation, gpu, image):
    driver = ctypes.CDLL(str(without_tensorflow.STAND_INS / "libcuda.so.1"))
    architecture = ctypes.c_int.in_dll(driver, "emulated_architecture")
    context, loaded = (ctypes.c_void_p.in_dll(driver, name) for name in ("emulated_context", "emulated_image"))
    before = architecture.value, context.value
    try:
        architecture.value, context.value = gpu, gpu
        emulated.run("Nms", [np.zeros((1, 1, 4), "f"), np.ones((1, 1), "f"), np.zeros((1, 0), "i")], NMS_OUTPUTS, **NMS)
        assert ctypes.string_at(loaded.value).decode() == image
    finally:
        architecture.value, context.value = before


NMS = {"max_detections": 1, "iou_threshold": 0.5, "score_threshold": 0.0, "by_class": False}
NMS_OUTPUTS = [((1, 1), "int32"), ((1,), "int32")]


def test_invalid_argument_raises_and_is_named(needs_emulation):
    with pytest.raises(ValueError, match=r"boxes has the shape \(1, 3, 5\), expected \(\?, \?, 4\)"):
        emulated.run(
            "Nms", [np.zeros((1, 3, 5), "f"), np.zeros((1, 3), "f"), np.zeros((1, 0), "i")], NMS_OUTPUTS, **NMS
        )
    with pytest.raises(ValueError, match=r"iou_threshold must be in 0\.\.1"):
        emulated.run("Nms", [], NMS_OUTPUTS, **{**NMS, "iou_threshold": 1.5})
    with pytest.raises(ValueError, match="at most 12 levels"):
        emulated.run("RoiAlign", [], [], spatial_scales=[1.0] * 13, **ROI_ALIGN)


ROI_ALIGN = {"output_height": 2, "output_width": 2, "sampling_ratio": 0, "aligned": True, "lowest_level": 0}
ROI_ALIGN |= {"canonical_size": 1.0, "canonical_level": 0.0, "level_epsilon": 0.0}


@on_gpu
@pytest.mark.parametrize("most", [40, 500, 1024])
def test_nms_continues_after_the_window(rng, most):
    """NMS keeps few of the first 4096 boxes; more of the same and separate groups of three follow."""
    group = rng.integers(0, 100, 5000)
    low = np.stack([group // 10 * 30, group % 10 * 30], 1) + rng.integers(0, 8, (5000, 2)) / 4
    apart = np.arange(900) // 3 * 30
    low[4100:] = np.where(rng.random((900, 1)) < 0.2, low[4100:], np.stack([1000 + apart, apart % 300], 1))
    boxes = tf.constant(np.concatenate([low, low + 20], 1)[None], tf.float32)
    scores = tf.constant(np.linspace(1, 0.1, 5000)[None], tf.float32)
    class_ids = tf.constant(rng.integers(0, 3, (1, 5000)), tf.int32)
    options = {"iou_threshold": 0.3, "max_detections": most}
    found, [count] = ops.nms(boxes, scores, class_ids, **options)
    with ops.implementation("tensorflow"):
        expected, _ = ops.nms(boxes, scores, class_ids, **options)
    np.testing.assert_array_equal(found, expected)
    assert 600 < count < 1024 and found[0, count - 1] > 4950 if most == 1024 else count == most


@on_gpu
def test_nms_with_radix_sort_orders_odd_scores(rng):
    """Uses negative scores, ties, NaN and infinities in more boxes than one block sorts."""
    low = rng.uniform(0, 300, (3, 9000, 2))
    boxes = tf.constant(np.concatenate([low, low + rng.uniform(5, 40, (3, 9000, 2))], -1), tf.float32)
    scores = rng.normal(size=(3, 9000)).astype(np.float32)
    scores[1] = rng.integers(-4, 4, 9000)
    scores[0, ::7], scores[0, 1::7], scores[0, 2::7] = np.nan, -np.inf, np.inf
    for threshold in (-math.inf, 0.5):
        options = {"iou_threshold": 0.4, "max_detections": 200, "score_threshold": threshold}
        found = ops.nms(boxes, scores, **options)
        with ops.implementation("tensorflow"):
            for one, other in zip(ops.nms(boxes, scores, **options), found, strict=True):
                np.testing.assert_array_equal(one, other)


@on_gpu
@pytest.mark.parametrize("sampling_ratio", [0, 2, 40])
def test_bins_with_more_lines_than_a_warp_has_threads_agree(rng, sampling_ratio):
    features = tf.constant(rng.normal(size=(1, 110, 90, 5)), tf.float32)
    boxes = tf.constant([[[0.0, 0, 110, 90], [-9, 3, 100, 5], [40, -20, 44, 300], [1, 1, 66, 65]]])
    results = []
    for name in ("tensorflow", "compiled"):
        with ops.implementation(name), tf.GradientTape() as tape:
            tape.watch(features)
            pooled = ops.roi_align(
                features, boxes, output_size=(1, 2), spatial_scale=1.0, sampling_ratio=sampling_ratio
            )
        with ops.implementation(name):
            results.append((pooled, tape.gradient(pooled, features, tf.cos(pooled))))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def gradients_of_both(rng, dtype=tf.float32):
    """Returns a function that computes the gradients of multilevel ROIAlign and of deformable convolution."""
    maps = [tf.cast(rng.normal(size=(2, n, n + 3, 20)), dtype) for n in (24, 12, 6)]
    boxes = wild_boxes(rng, (2, 60), 96.0)
    shapes = ((2, 9, 11, 24), (3, 3, 12, 8), (2, 9, 11, 36), (2, 9, 11, 18))
    arguments = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch([maps, arguments])
            pyramid = {f"p{level}": x for level, x in enumerate(maps, 2)}
            pooled = tf.cast(ops.multilevel_roi_align(pyramid, boxes, output_size=3, canonical_size=40), tf.float32)
            convolved = ops.deform_conv2d(*arguments, padding=1, groups=2, deformable_groups=2)
            loss = tf.reduce_sum(tf.sin(pooled)) + tf.reduce_sum(tf.sin(convolved))
        return tape.gradient(loss, [*maps, *arguments])

    return gradients


@on_gpu
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_deterministic_gradients_are_bit_identical_and_correct(rng, deterministic, dtype):
    gradients = gradients_of_both(rng, dtype)
    first = gradients()
    for _ in range(3):
        for one, other in zip(first, gradients(), strict=True):
            np.testing.assert_array_equal(one, other)
    relative = {tf.float32: 1e-4, tf.float16: 2e-3, tf.bfloat16: 2e-2}[dtype]
    with ops.implementation("tensorflow"):
        for one, other in zip(gradients(), first, strict=True):
            one, other = tf.cast(one, tf.float32), tf.cast(other, tf.float32)
            np.testing.assert_allclose(other, one, rtol=relative, atol=relative)


@on_gpu
def test_gradients_without_determinism_vary(rng):
    """Without this, the test of determinism above would prove nothing."""
    gradients = gradients_of_both(rng)
    first = gradients()[0].numpy()
    assert any((first != gradients()[0].numpy()).any() for _ in range(20))


@on_gpu
def test_non_finite_deterministic_gradients_stay_non_finite(deterministic):
    features = tf.zeros([1, 4, 8, 4])
    boxes = tf.constant([[[0.0, 0, 4, 2], [0, 6, 4, 8], [0, 4, 4, 6]]])
    upstream = tf.constant([1.0, np.nan, -np.inf])[None, :, None, None, None] * tf.ones([1, 3, 1, 1, 4])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = ops.roi_align(features, boxes, output_size=1, spatial_scale=1.0, sampling_ratio=4)
    gradient = tape.gradient(pooled, features, upstream)[0, ..., 0].numpy()
    assert np.isfinite(gradient[:, :2]).all() and gradient[:, :2].sum() == 1 - gradient[:, 2].sum()
    assert np.isnan(gradient[:, 7]).all() and (gradient[:, 4] == -np.inf).all()


@on_gpu
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_deterministic_gradients_of_any_magnitude_are_correct(rng, deterministic, scale):
    features = tf.zeros([1, 12, 12, 8])
    boxes = wild_boxes(rng, (1, 100), 12.0)
    upstream = tf.constant(rng.normal(size=(1, 100, 3, 3, 8)) * scale, tf.float32)
    results = []
    for name in ("tensorflow", "compiled"):
        with ops.implementation(name), tf.GradientTape() as tape:
            tape.watch(features)
            pooled = ops.roi_align(features, boxes, output_size=3, spatial_scale=1.0)
        with ops.implementation(name):
            results.append(tape.gradient(pooled, features, upstream).numpy() / scale)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-4)
