"""Runs each test of a compiled operation on the stock ops, the compiled CPU kernels and the GPU kernels.

GPU kernels run on a GPU if TensorFlow sees one (`CUDA_VISIBLE_DEVICES=0 pytest tests/ops`), else on an emulated one.
"""

import contextlib
import functools

import pytest
import tensorflow as tf
from ops import emulated
from tensorflow.python.framework import config

from kerasdet import ops
from kerasdet.ops import dispatch

tf.config.experimental.enable_tensor_float_32_execution(
    False
)  # TF32 products on GPUs have too few digits for these tests


@contextlib.contextmanager
def on_gpu(monkeypatch):
    """Runs the block on the GPU kernels."""
    if emulated.GPUS:
        with ops.implementation("compiled"), tf.device("/GPU:0"):
            yield
    elif emulated.library() is None:
        pytest.skip("no C++ compiler is installed")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, "raw_ops", lambda: emulated.RAW_OPS)
            with ops.implementation("compiled"):
                yield


@pytest.fixture(params=["tensorflow", "compiled", "gpu"])
def implementation(request, monkeypatch):
    if request.param == "compiled" and dispatch.raw_ops() is None:
        pytest.skip("the compiled ops are not built here")
    with on_gpu(monkeypatch) if request.param == "gpu" else ops.implementation(request.param):
        yield request.param


@pytest.fixture
def kernels(monkeypatch):
    """Returns those compiled kernels that run here, each with a function that makes a context to use them."""
    found = {"compiled": functools.partial(ops.implementation, "compiled")} if dispatch.raw_ops() else {}
    if emulated.GPUS or emulated.library():
        found["gpu"] = functools.partial(on_gpu, monkeypatch)
    if not found:
        pytest.skip("the compiled ops are not built here, and no C++ compiler is installed")
    return found


@pytest.fixture
def deterministic():
    """Enables `tf.config.experimental.enable_op_determinism()` for one test."""
    config.enable_op_determinism()
    if emulated.library():
        emulated.library().set_determinism(True)
    yield
    config.disable_op_determinism()
    if emulated.library():
        emulated.library().set_determinism(False)
