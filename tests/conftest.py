"""Fixtures and settings for all tests: quiet TensorFlow, fixed seeds, the reference material, work for two workers."""

import ctypes
import gc
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores: more threads would only wait for one another
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest

# Python's own thresholds collect garbage so often that it takes a twentieth of the time in which graphs are traced.
gc.set_threshold(20_000, 20, 20)

SHARED = Path(os.environ.get("KERASDET_SHARED", Path(__file__).resolve().parents[2] / "shared"))

# Folders of tests that run each graph for a few steps only
UNOPTIMIZED = ("checkpoints", "data", "evaluation", "geometry", "layers", "models", "ops", "training")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def shared(path):
    """The path of a piece of reference material; skips the test where it is not present."""
    full = SHARED / path
    if not full.exists():
        pytest.skip(f"no shared/{path} here")
    return full


def forget_custom_gradients():
    """Removes the gradients that TensorFlow registers for ever: each keeps the graph in which it was traced."""
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]


def clear_kernel_cache():
    """Lets TensorFlow forget the kernels of the functions and eager operations that ran."""
    from tensorflow.python.eager import context

    context.context().clear_kernel_cache()


@pytest.fixture(scope="module", autouse=True)
def memory_given_back():
    """Frees a file's models and graphs: they refer to themselves, and two workers would keep 20 GiB of them."""
    gc.freeze()  # what was imported before stays, so that no collection during the tests visits it
    yield
    forget_custom_gradients()
    gc.unfreeze()
    gc.collect()
    clear_kernel_cache()
    if sys.platform == "linux":  # glibc keeps freed memory, unless it is asked
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def unoptimized_graphs():
    """Runs graphs as they were traced: to optimize one takes longer than the few steps that these tests run."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture(scope="module")
def models_opened_once():
    """Opens each .keras file once, so that commands share a model and its graph. Not for tests that train it."""
    from kerasdet import loading

    open_model, opened = loading.open_model, {}

    def open_once(file):
        key = file, file.stat().st_mtime_ns
        if key not in opened:
            opened[key] = open_model(file)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "open_model", open_once)
        yield


@pytest.fixture(scope="module")
def warm_workers():
    """Lets exports be verified in processes that are started only once, see tests/warm_workers.py."""
    import warm_workers

    with pytest.MonkeyPatch.context() as patch:
        for name in ("onnx", "saved_model", "tflite"):
            patch.setattr(f"kerasdet.export.{name}.format.run_worker", warm_workers.run)
        yield


@pytest.fixture(scope="module", autouse=True)
def graphs_as_traced(request):
    """Leaves the optimizer of graphs to tests of exports, inference and commands, of which some do without it, too."""
    if request.path.parent.name in UNOPTIMIZED:
        request.getfixturevalue("unoptimized_graphs")


def pytest_collection_modifyitems(items):
    """Puts files with slow tests first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
