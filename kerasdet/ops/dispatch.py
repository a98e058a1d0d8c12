"""The compiled ops, and which implementation of an operation runs.

The library speaks TensorFlow's C API, so one file serves every TensorFlow. Its sources are in custom_ops/.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import tensorflow as tf
from tensorflow.python.framework import kernels
from tensorflow.python.ops import control_flow_util

LIBRARY = Path(__file__).with_name("_kerasdet_ops.so")
_OPS = ("nms", "roi_align", "roi_align_grad", "deform_columns", "deform_columns_grad")
_OPS += ("paste_masks", "encode_masks")
_OLDEST = (7, 0)  # compute capability that the kernels for GPUs are compiled for
_logger = logging.getLogger(__name__)
_chosen: str | None = None


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Chooses how the operations of this package run.

    By default the compiled ones are taken where their library loads. A `tf.function` keeps what it was traced with. It
    holds for all threads, since TensorFlow traces in several.

    Args:
        name: "compiled"; "tensorflow" for stock TensorFlow ops, which run anywhere; or "tflite" for those of them that
            TFLite knows, in static shapes and without empty boxes in `nms`.

    Yields:
        Nothing.

    Raises:
        ValueError: For another name.
        RuntimeError: If the compiled ops are not there.
    """
    if name not in ("compiled", "tensorflow", "tflite"):
        raise ValueError(f'implementation is "compiled", "tensorflow" or "tflite", not {name!r}.')
    if name == "compiled" and raw_ops() is None:
        raise RuntimeError(
            f"The compiled ops do not load from {LIBRARY}: install kerasdet from its wheel, or where g++ and make are."
        )
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def compiled_ops(for_gpus: bool = True) -> ModuleType | None:
    """The compiled ops if they are to run here, else None: XLA, for one, cannot take them.

    Args:
        for_gpus: Whether the op has a kernel for GPUs, too, and is better not taken where that was not built.
    """
    if _chosen == "tensorflow" or static_shapes():
        return None
    return None if _chosen is None and for_gpus and _lacks_gpu_kernels() else raw_ops()


def static_shapes() -> bool:
    """Whether what is traced here goes to XLA or TFLite, which need static shapes and know no sparse matrices."""
    return in_tflite() or control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def in_tflite() -> bool:
    """Whether what is traced here goes to TFLite."""
    return _chosen == "tflite"


@functools.cache
def _lacks_gpu_kernels() -> bool:
    """Whether TensorFlow has GPUs and the library nothing for them: the way to the CPU and back would cost more."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or raw_ops() is None:
        return False
    if not any(kernel.device_type == "GPU" for kernel in kernels.get_registered_kernels_for_op("Kerasdet>Nms").kernel):
        why = "The compiled ops were built without NVRTC or found no CUDA"
    elif old := [gpu.name for gpu in gpus if _capability(gpu) < _OLDEST]:
        why = f"The compiled ops have nothing for a GPU as old as {old[0]}"
    else:
        return False
    _logger.warning("%s, so on GPUs TensorFlow's are used.", why)
    return True


def _capability(gpu):
    """The compute capability of a GPU, of which TensorFlow may know nothing."""
    return tf.config.experimental.get_device_details(gpu).get("compute_capability", _OLDEST)


@functools.cache
def raw_ops() -> ModuleType | None:
    """The compiled ops as they are, whatever is chosen; None where their library does not load."""
    try:
        library = tf.load_op_library(str(LIBRARY))
    except (tf.errors.OpError, OSError) as error:
        _logger.warning("The compiled ops are not there, so TensorFlow's are used: %s", error)
        return None
    missing = [name for name in _OPS if not hasattr(library, f"kerasdet_{name}")]
    if missing:
        _logger.warning("%s lacks %s, so TensorFlow's ops are used: build it anew.", LIBRARY, ", ".join(missing))
        return None
    return library
