import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kerasdet import ops
from kerasdet.ops import dispatch

BOXES = tf.constant([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
SCORES = tf.constant([[0.5, 0.6, 0.7]])
NEWEST_SYMBOLS = {"GLIBC": (2, 17), "GLIBCXX": (3, 4, 19), "CXXABI": (1, 3, 7), "GCC": (4, 8)}  # manylinux2014


def detections(**options):
    return ops.nms(BOXES, SCORES, **{"iou_threshold": 0.5, "max_detections": 3, **options})


@pytest.fixture
def compiled():
    if dispatch.raw_ops() is None:
        pytest.skip("the compiled ops are not built here")


@pytest.fixture
def missing(monkeypatch, tmp_path):
    monkeypatch.setattr(dispatch, "LIBRARY", tmp_path / "_kerasdet_ops.so")
    dispatch.raw_ops.cache_clear()
    yield dispatch.LIBRARY
    dispatch.raw_ops.cache_clear()


def runs_compiled(function, *arguments):
    graph = tf.function(function).get_concrete_function(*arguments).graph
    return any(operation.type.startswith("Kerasdet>") for operation in graph.get_operations())


def test_compiled_ops_are_the_default(compiled):
    assert runs_compiled(detections)
    with ops.implementation("tensorflow"):
        assert not runs_compiled(detections)
        with ops.implementation("compiled"):
            assert runs_compiled(detections)
        assert not runs_compiled(detections)
    assert runs_compiled(detections)


def test_unknown_implementation_raises():
    with pytest.raises(ValueError, match="implementation is 'torch'"), ops.implementation("torch"):
        pass


@pytest.mark.parametrize("content", [None, b"no library"])
def test_missing_library_warns_once_and_falls_back_to_stock_ops(missing, caplog, content):
    if content is not None:
        missing.write_bytes(content)
    with caplog.at_level(logging.INFO):
        indices, _ = detections()
        detections()
    assert indices.numpy().tolist() == [[2, 1, -1]]
    assert len(caplog.records) == 1 and "TensorFlow's ops are used" in caplog.text
    with pytest.raises(RuntimeError, match=r"do not load from .*_kerasdet_ops\.so"), ops.implementation("compiled"):
        pass


def test_xla_uses_stock_ops(compiled):
    @tf.function(jit_compile=True)
    def outer():
        return inner()

    @tf.function
    def inner():
        return tf.constant(dispatch.compiled_ops() is None)

    assert outer().numpy()
    assert not tf.function(lambda: tf.constant(dispatch.compiled_ops() is None))().numpy()


RELOAD = """
import sys
import tensorflow as tf
from kerasdet.ops import dispatch
dispatch.raw_ops()
print(tf.saved_model.load(sys.argv[1]).run()[0].numpy().tolist())
"""


def test_saved_model_with_compiled_ops_loads_in_another_process(compiled, tmp_path):
    module = tf.Module()
    module.run = tf.function(detections, input_signature=[])
    tf.saved_model.save(module, str(tmp_path))
    run = subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[[2, 1, -1]]"


RELOAD_GRADIENTS = """
import sys
import numpy as np
import tensorflow as tf
from kerasdet.ops import dispatch
dispatch.raw_ops()
module, x = tf.saved_model.load(sys.argv[1]), tf.ones([1, 6, 7, 4])
with tf.GradientTape() as tape:
    tape.watch(x)
    result = tf.reduce_sum(module.run(x) ** 2)
np.save(sys.argv[2], tape.gradient(result, x))
"""


def test_loaded_saved_model_has_equal_gradients(compiled, tmp_path):
    offsets, boxes = tf.fill([1, 6, 7, 18], 0.3), tf.constant([[[1.0, 2, 15, 20]]])
    module, x = tf.Module(), tf.ones([1, 6, 7, 4])

    def run(x):
        x = ops.deform_conv2d(x, tf.reshape(tf.range(9 * 4 * 2.0) / 50, [3, 3, 4, 2]), offsets, padding=1)
        return ops.roi_align(x, boxes, output_size=2, spatial_scale=0.25)

    module.run = tf.function(run, input_signature=[tf.TensorSpec([1, 6, 7, 4])])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    arguments = [sys.executable, "-c", RELOAD_GRADIENTS, str(tmp_path / "saved"), str(tmp_path / "gradient.npy")]
    subprocess.run(arguments, capture_output=True, check=True)
    with ops.implementation("tensorflow"), tf.GradientTape() as tape:
        tape.watch(x)
        expected = tape.gradient(tf.reduce_sum(run(x) ** 2), x)
    np.testing.assert_allclose(np.load(tmp_path / "gradient.npy"), expected, rtol=1e-4)


DETERMINISM = """
import sys
import numpy as np
import tensorflow as tf
from kerasdet import ops
tf.config.experimental.enable_op_determinism()
rng = np.random.default_rng(0)
shapes = (1, 40, 50, 24), (3, 3, 24, 8), (1, 40, 50, 18)
x, kernel, offsets = (tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes)
boxes = tf.constant(np.sort(rng.uniform(0, 200, (1, 300, 4)), -1), tf.float32)
found = []
for name in sys.argv[2:]:
    with ops.implementation(name), tf.GradientTape() as tape:
        tape.watch([x, kernel, offsets])
        moved = ops.deform_conv2d(x, kernel, offsets, padding=1)
        loss = tf.reduce_sum(ops.roi_align(moved, boxes, output_size=7, spatial_scale=0.25) ** 2)
    found += [loss, *tape.gradient(loss, [x, kernel, offsets])]
    found += ops.nms(boxes, tf.random.stateless_uniform([1, 300], [0, 0]), iou_threshold=0.5, max_detections=50)
np.savez(sys.argv[1], *found)
"""


def test_op_determinism_gives_bit_identical_results(tmp_path):
    """Two processes return the same bits, and TensorFlow accepts the ops under `enable_op_determinism`."""
    implementations = ["tensorflow"] + ["compiled"] * (dispatch.raw_ops() is not None)
    for number in range(2):
        arguments = [sys.executable, "-c", DETERMINISM, str(tmp_path / f"{number}.npz"), *implementations]
        subprocess.run(arguments, capture_output=True, check=True)
    first, second = (np.load(tmp_path / f"{number}.npz") for number in range(2))
    assert len(first.files) == 6 * len(implementations)
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


def test_compiled_op_runs_in_a_tf_data_pipeline(compiled):
    dataset = tf.data.Dataset.range(3).map(lambda _: detections()[0], num_parallel_calls=2)
    np.testing.assert_array_equal(list(dataset), [[[2, 1, -1]]] * 3)


def test_library_uses_only_manylinux2014_symbols(compiled):
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    listing = subprocess.run(["objdump", "-T", dispatch.LIBRARY], capture_output=True, text=True, check=True).stdout
    versions = set(re.findall(r"\((GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)\)", listing))
    assert {"GLIBC", "GLIBCXX"} <= {name for name, _ in versions}
    for name, version in versions:
        assert tuple(map(int, version.split("."))) <= NEWEST_SYMBOLS[name], f"{name}_{version}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": tf.zeros([1, 3, 5])}, r"boxes has the shape \(1, 3, 5\), expected \(\?, \?, 4\)"),
        ({"scores": tf.zeros([1, 4])}, r"scores has the shape \(1, 4\), expected \(1, 3\)"),
        ({"class_ids": tf.zeros([2, 3], tf.int32)}, "class_ids"),
        ({"max_detections": -1}, "max_detections is negative"),
        ({"iou_threshold": 1.5}, r"iou_threshold must be in 0\.\.1"),
    ],
)
def test_invalid_argument_raises_and_is_named(compiled, options, message):
    arguments = {"boxes": BOXES, "scores": SCORES, "class_ids": tf.zeros([1, 3], tf.int32)}
    attributes = {"max_detections": 3, "iou_threshold": 0.5, "score_threshold": 0.0, "by_class": True}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        dispatch.raw_ops().kerasdet_nms(**{**arguments, **attributes, **options})


@pytest.mark.parametrize(
    ("shape", "message"), [([1, 2**31 - 1, 2, 4], "A map is too large"), ([1, 2**20, 2**20, 4], "Out of memory")]
)
def test_too_large_gradient_raises(compiled, shape, message):
    attributes = {"spatial_scales": [1.0], "output_height": 1, "output_width": 1, "sampling_ratio": 1, "aligned": True}
    attributes |= {"lowest_level": 0, "canonical_size": 1.0, "canonical_level": 0, "level_epsilon": 0.0}
    with pytest.raises(tf.errors.OpError, match=message):
        dispatch.raw_ops().kerasdet_roi_align_grad(
            shapes=[shape], boxes=tf.zeros([1, 1, 4]), grad=tf.zeros([1, 1, 1, 1, 4]), **attributes
        )


def test_too_large_image_raises(compiled):
    with pytest.raises(tf.errors.InvalidArgumentError, match="1048576x1048576 is too large to have masks"):
        ops.paste_masks(tf.zeros([3, 28, 28]), tf.zeros([3, 4]), 2**20, 2**20)
