"""Loads the compiled ops and chooses the implementation of each operation.

The library uses only TensorFlow's C API: one binary runs on TensorFlow 2.16 to 2.21. Its sources are in custom_ops/.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from kerasdet.keras_compat import in_xla_context, kernel_devices

LIBRARY = Path(__file__).with_name("_kerasdet_ops.so")
_OPS = (
    "nms",
    "roi_align",
    "roi_align_grad",
    "deform_columns",
    "deform_columns_grad",
    "paste_masks",
    "encode_masks",
    "resize",
    "crop_masks",
)
_MIN_COMPUTE_CAPABILITY = (7, 0)  # lowest compute capability that custom_ops/cuda/compile.py compiles for
_logger = logging.getLogger(__name__)
_chosen: str | None = None


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Chooses the implementation of `kerasdet.ops` inside a ``with`` block.

    By default the operations use the compiled ops if their library loads. A `tf.function` keeps the implementation with
    which it was traced. The choice applies to all threads, because TensorFlow traces in several threads.

    Args:
        name: "compiled" for the compiled ops; "tensorflow" for stock TensorFlow ops, which run anywhere; "tflite" for
            stock ops with static shapes that TFLite can convert; "onnx" for stock ops in functions that the export to
            ONNX replaces by ONNX's operators (see `composite`).

    Yields:
        None.

    Raises:
        ValueError: If the name is unknown.
        RuntimeError: If `name` is "compiled" and the library of the compiled ops does not load.

    Example:
        >>> with kerasdet.ops.implementation("tensorflow"):
        ...     model.export("detector")  # runs without the compiled library
    """
    if name not in ("compiled", "tensorflow", "tflite", "onnx"):
        raise ValueError(
            f'implementation is {name!r}: expected "compiled", "tensorflow", "tflite" or "onnx". Change the name.'
        )
    if name == "compiled" and raw_ops() is None:
        raise RuntimeError(
            f"The compiled ops do not load from {LIBRARY}: expected a library that was built for this system. Install "
            "a wheel of kerasdet, or install g++ and make and then install kerasdet from source."
        )
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def stock_unless_chosen() -> contextlib.AbstractContextManager[None]:
    """Makes a ``with`` block that uses stock TensorFlow ops, unless it is inside a block of `implementation`.

    Returns:
        The context manager.
    """
    return contextlib.nullcontext() if _chosen else implementation("tensorflow")


def compiled_ops(for_gpus: bool = True) -> ModuleType | None:
    """Returns the compiled ops if the code traced here should use them.

    Compiled ops are not used for XLA, TFLite and ONNX, which do not support them, nor inside
    ``implementation("tensorflow")``.

    Args:
        for_gpus: Whether the op has a GPU kernel. If it has one, but TensorFlow uses a GPU for which the library has no
            kernels, the function returns None, because stock ops on the GPU are faster than the compiled op on the CPU.
            Inside ``implementation("compiled")`` this is not checked.

    Returns:
        The module of the compiled ops, or None to use stock TensorFlow ops.
    """
    if _chosen in ("tensorflow", "onnx") or static_shapes():
        return None
    return None if _chosen is None and for_gpus and lacks_gpu_kernels() else raw_ops()


def static_shapes() -> bool:
    """Tells whether the traced code is for XLA or TFLite, which need static shapes and lack sparse matrices.

    Returns:
        True inside a function compiled by XLA, or inside ``implementation("tflite")``.
    """
    return in_tflite() or in_xla_context()


def in_tflite() -> bool:
    """Tells whether the traced code is for TFLite.

    Returns:
        True inside ``implementation("tflite")``.
    """
    return _chosen == "tflite"


def in_onnx() -> bool:
    """Tells whether the traced code is for ONNX.

    Returns:
        True inside ``implementation("onnx")``.
    """
    return _chosen == "onnx"


def composite(function: Callable, name: str, **attributes: object) -> Callable:
    """Wraps stock ops in a function that the export to ONNX recognises and replaces by ONNX's operator.

    Args:
        function: A function of tensors that returns a tensor or a tuple of tensors.
        name: Name of the operation, such as "RoiAlign".
        **attributes: Numbers, bools and strings that describe the operation.

    Returns:
        The wrapped function inside ``implementation("onnx")``, otherwise `function` itself.
    """
    if not in_onnx():
        return function

    def call(*tensors):  # a `functools.partial` would get its keyword arguments as tensors
        return function(*tensors)

    marker = json.dumps([name, attributes])
    options = {"experimental_implements": marker, "experimental_attributes": {"_noinline": True}}
    return tf.function(call, autograph=False, **options)


@functools.cache
def lacks_gpu_kernels() -> bool:
    """Returns whether TensorFlow uses GPUs for which the library has no kernels; if so, logs a warning once.

    A compiled op would then run on the CPU, and copying data to the CPU and back takes more time than the op saves.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or raw_ops() is None:
        return False
    if "GPU" not in kernel_devices("Kerasdet>Nms"):
        reason = "The compiled ops have no GPU kernels: they were built without NVRTC, or they found no CUDA driver"
    elif old := [gpu.name for gpu in gpus if _capability(gpu) < _MIN_COMPUTE_CAPABILITY]:
        reason = f"The compiled ops have no kernels for a GPU as old as {old[0]}"
    else:
        return False
    _logger.warning("%s. On GPUs, TensorFlow's ops are used.", reason)
    return True


def _capability(gpu):
    """Returns the compute capability of a GPU, or the oldest supported one if TensorFlow does not know it."""
    return tf.config.experimental.get_device_details(gpu).get("compute_capability", _MIN_COMPUTE_CAPABILITY)


@functools.cache
def raw_ops() -> ModuleType | None:
    """Loads the compiled ops regardless of the chosen implementation.

    Returns:
        The module of the compiled ops, or None, with a warning, if the library does not load or is older than this
        package.
    """
    try:
        library = tf.load_op_library(str(LIBRARY))
    except (tf.errors.OpError, OSError) as error:
        _logger.warning("The compiled ops do not load, so TensorFlow's ops are used: %s", error)
        return None
    missing = [name for name in _OPS if not hasattr(library, f"kerasdet_{name}")]
    if missing:
        _logger.warning(
            "%s lacks %s, so TensorFlow's ops are used. Rebuild it: make -C custom_ops.", LIBRARY, ", ".join(missing)
        )
        return None
    return library
